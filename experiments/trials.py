"""Trials of a grid: its axes, and groups of trials that share a compilation.

Hyperparameters (margin, learning rate, those of the loss, seed) are data to a step. Options that
change the structure of the program make groups, which are compiled one by one.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, get_args

import jax

from contrastive_jax import cli
from contrastive_jax.data import Dataset, PairDataset
from contrastive_jax.data._digest import digest
from contrastive_jax.search import texts
from contrastive_jax.search.space import Hyperparameters
from contrastive_jax.train import loss_table, training, trial_axes
from contrastive_jax.train.devices import check_strategy
from contrastive_jax.train.grid_strategy import Strategy, cores_as_devices
from contrastive_jax.train.labelled import check_labels
from contrastive_jax.train.optimizer import OPTIMIZER
from contrastive_jax.train.trial_assembly import AssembledTrials, Variant, assemble_trials
from contrastive_jax.train.trial_figures import Retrieval, Verification, chosen_figure
from experiments import command, option_checks, options, train

# Options of a training that are data to a step, and those that change its structure.
TUNABLE = (*OPTIMIZER, "loss_learning_rate")
HYPERPARAMETERS = ("margin", "positive_fraction", *TUNABLE, "seed")
STRUCTURE: dict[str, texts.Kind] = {
    "loss": loss_table.NAMES,
    "encoder": (*options.ENCODERS,),
    "width": int,
    "distance": (*options.DISTANCES,),
    "objective": ("auto", "pairs", "all_pairs"),
    "batch_size": int,
    "group": int,
}

# Options that may differ when a grid is resumed.
FREE = options.FREE | {"strategy", "devices", "memory_limit"}


@dataclasses.dataclass(frozen=True)
class Training(options.Runs, options.Batches, options.Training, options.Data):
    """Options that all trials have in common, and how they are trained."""

    steps: int = 1000
    """Training steps of every trial."""
    strategy: Strategy = "auto"
    """The way in which trials are trained: one after another, mapped, or spread over devices; auto
    times each for a few steps. Results are the same to rounding."""
    devices: int | None = None
    """Number of devices; all by default, and of a CPU its cores."""
    devices_per_trial: int = 1
    """Devices over which the batch of a trial is spread; the others are for the grid."""
    memory_limit: float | None = None
    """GB that a device may hold, by which the grid is split into chunks; by default most of an
    accelerator's memory and half of what a host has free."""
    log_every: int = 50
    """Steps between two points of the history of a trial."""
    shown_by: Retrieval | Verification | None = None
    """The figure by which hyperparameters are chosen on validation, and which the figures show; by
    default map_at_r, and auc on given pairs."""


def check_axes(config: Any, axes: Iterable[str], losses: Iterable[str], option: str) -> None:
    """Checks that each axis is one of trainings with these losses, and is not given as an option.

    An axis that is given as an option is said to be one of `option`, which names the axes.
    """
    for loss in losses:
        loss_table.check_name(loss)
        defaults = loss_table.hyperparameters_of(loss)
        trial_axes.check_axes(axes, [*HYPERPARAMETERS[:-1], *STRUCTURE, *defaults], loss)
    for name in axes:
        if cli.is_given(config, name):
            raise ValueError(
                f"--{name} has no effect, as {name} is an axis of {option}: leave one of them out"
            )
        if name in config.loss_options:
            raise ValueError(f"{name} is an axis of {option}: leave it out of --loss_options")


def structure_of(hyperparameters: Hyperparameters, loss: str) -> str:
    """Returns a name of the structure of a trial, which is also the name of a file."""
    names = {*STRUCTURE, *loss_table.whole_hyperparameters(loss)} - {*HYPERPARAMETERS}
    return ",".join(f"{key}={value}" for key, value in hyperparameters.items() if key in names)


def configured(base: train.Config, hyperparameters: Hyperparameters) -> train.Config:
    """Returns the options of the training of a trial."""
    fields: dict[str, Any] = {}
    loss_options = dict(base.loss_options)
    for name, value in hyperparameters.items():
        is_option = name in HYPERPARAMETERS or name in STRUCTURE
        (fields if is_option else loss_options)[name] = value
    replaced = dataclasses.replace(base, **fields, loss_options=loss_options)
    config: train.Config = option_checks.checked_training(replaced)
    return config


class Group(NamedTuple):
    """Trials that share their structure."""

    structure: str
    """A name of the structure, which is also the name of a file."""
    hyperparameters: list[Hyperparameters]
    configs: list[train.Config]
    indices: list[int]
    """The position of each trial among all that were grouped."""


def groups(base: train.Config, trials: Iterable[Hyperparameters]) -> list[Group]:
    """Splits trials into groups of one structure, in the order in which each comes first."""
    by_structure: dict[str, Group] = {}
    for index, hyperparameters in enumerate(trials):
        config = configured(base, hyperparameters)
        structure = structure_of(hyperparameters, config.loss)
        group = by_structure.setdefault(structure, Group(structure, [], [], []))
        group.indices.append(index)
        group.hyperparameters.append(hyperparameters)
        group.configs.append(config)
    return [*by_structure.values()]


def prepared(
    config: Any, points: Iterable[Hyperparameters]
) -> tuple[Any, list[Group], Dataset | PairDataset, list[jax.Device]]:
    """Checks the options of all trials, reads the data, and checks that they can be trained on it.

    Returns:
      The options with `shown_by` filled in, the groups of trials, the data, and the devices.
    """
    cli.check_effects(config, option_checks.EFFECTS)
    # Before anything runs: JAX starts with the devices it has then.
    devices = devices_of(config)
    trial_devices = devices[: config.devices_per_trial]
    made = groups(base_of(config), points)
    configs = [one for group in made for one in group.configs]
    for one in configs:
        options.settled(one, trial_devices)
    option_checks.warn_of_reach(configs)
    data = options.load_data(config)
    with command.naming_options(vars(config)):
        config = dataclasses.replace(config, shown_by=chosen_figure(data, config.shown_by))
    check_data(made, data, trial_devices)
    return config, made, data, devices


def check_data(
    groups: Sequence[Group], data: Dataset | PairDataset, devices: Sequence[jax.Device]
) -> None:
    """Checks, without training anything, that all groups can be trained on a data set."""
    with command.naming_options(vars(groups[0].configs[0])):
        for group in groups:
            jax.eval_shape(lambda group=group: assembled(group, data, devices).init(0))
    if isinstance(data, Dataset):
        # Labels of two rows are an option that all trials share.
        config = option_checks.for_data(groups[0].configs[0], data)
        objective = options.objective_of(config, options.settled(config, devices))
        check_labels(objective, data, ["train", "validation", "test"])


def assembled(
    group: Group,
    data: Dataset | PairDataset,
    devices: Sequence[jax.Device],
    *,
    further_seeds: Sequence[int] = (),
) -> AssembledTrials:
    """Makes the parts of the trials of a group, as `assemble_trials` does."""
    configs = [option_checks.for_data(config, data) for config in group.configs]
    settled = [options.settled(config, devices) for config in configs]
    variants = []
    for hyperparameters, config, one in zip(group.hyperparameters, configs, settled, strict=True):
        objective = options.objective_of(config, one)
        tuned = {key: one[key] for key in OPTIMIZER}
        if objective.learning_rate:
            tuned["loss_learning_rate"] = config.loss_learning_rate or objective.learning_rate
        variants.append(Variant(hyperparameters, config.seed, objective, tuned))
    common = training.Training(
        **options.training_of(configs[0], settled[0], data, TUNABLE), devices=len(devices)
    )
    return assemble_trials(common, variants, further_seeds=further_seeds)


def base_of(config: Training) -> train.Config:
    """Returns the options of `experiments.train` that all trials have."""
    names = {field.name for field in dataclasses.fields(train.Config)} & {*vars(config)}
    names -= {"name", "runs", "resume", "overwrite", "devices"}
    given = {name: getattr(config, name) for name in names}
    # Steps of a call are the grid's own business.
    return train.Config(**given | {"validate_every": config.log_every, "steps_per_call": 1})


def devices_of(config: Training) -> list[jax.Device]:
    """Returns the devices of a grid; of a CPU as many as it has cores."""
    cores_as_devices(collective=config.devices_per_trial > 1)
    devices = options.devices_of(config)
    with command.naming_options(vars(config)):
        strategies = get_args(Strategy)
        check_strategy(config.strategy, strategies, len(devices), config.devices_per_trial)
    return devices


def recorded(
    config: Training, varied: Iterable[str], device: jax.Device, data: Dataset | PairDataset
) -> dict[str, Any]:
    """Returns the options of a grid, and what else may not differ when it is resumed."""
    return cli.as_saved(config) | {
        "axes": sorted(varied),
        "data_digest": digest(data),
        "dtype": "float32" if device.platform == "cpu" else "bfloat16",
    }


def grid_options(config: Training, devices: Sequence[jax.Device]) -> dict[str, Any]:
    """Returns the options of `choose_grid` that a run asks for."""
    most = 10 if devices[0].platform == "cpu" else config.log_every
    return {
        "strategy": config.strategy,
        "devices": devices,
        "devices_per_trial": config.devices_per_trial,
        "memory_limit": None if config.memory_limit is None else config.memory_limit * 1e9,
        "steps_per_call": math.gcd(config.log_every, config.steps, most),
    }

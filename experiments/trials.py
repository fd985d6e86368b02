"""Trials of a grid: from options and hyperparameters to groups that share a compilation.

Hyperparameters (margin, learning rate, those of the loss, seed) are data to a step. Options that
change the structure of the program make groups, which are compiled one by one.
"""

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from contrastive_jax.data import Dataset, PairDataset
from contrastive_jax.data._digest import digest
from contrastive_jax.search.space import Hyperparameters
from contrastive_jax.train import folder as runs
from contrastive_jax.train import training
from contrastive_jax.train.grid_strategy import Strategy, cores_as_devices
from contrastive_jax.train.labelled import check_labels
from contrastive_jax.train.optimizer import OPTIMIZER
from contrastive_jax.train.trial_assembly import AssembledTrials, Variant, assemble_trials
from experiments import option_checks, options, train
from experiments.axes import HYPERPARAMETERS, STRUCTURE, whole_options

# Figures on validation by which hyperparameters may be chosen.
RETRIEVAL = ("precision_at_1", "r_precision", "map_at_r", "mean_reciprocal_rank")
VERIFICATION = ("auc", "average_precision")

# Options that may differ when a run is resumed: they do not change the results of a trial.
FREE = {
    "strategy",
    "devices",
    "memory_limit",
    "resume",
    "overwrite",
    "name",
    "runs",
    "data_dir",
    "tfds_dir",
}


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
    shown_by: str | None = None
    """The figure by which hyperparameters are chosen on validation, and which the figures show; by
    default map_at_r, and auc on given pairs."""


def configured(base: train.Config, hyperparameters: Hyperparameters) -> train.Config:
    """Returns the options of the training of a trial.

    Raises:
      ValueError: if they do not fit each other.
    """
    names = {*HYPERPARAMETERS, *STRUCTURE}
    fields = {key: value for key, value in hyperparameters.items() if key in names}
    rest = {key: value for key, value in hyperparameters.items() if key not in names}
    config: train.Config = option_checks.checked_training(
        dataclasses.replace(base, **fields, loss_options=base.loss_options | rest)
    )
    return config


class Group(NamedTuple):
    """Trials that share their structure."""

    hyperparameters: list[Hyperparameters]
    configs: list[train.Config]
    indices: list[int]
    """The position of each trial among all that were grouped."""


def groups(base: train.Config, trials: Iterable[Hyperparameters]) -> list[Group]:
    """Splits trials into groups of one structure, in the order in which each comes first."""
    by_structure: dict[str, Group] = {}
    for index, hyperparameters in enumerate(trials):
        config = configured(base, hyperparameters)
        structure = _structure(hyperparameters, config)
        group = by_structure.setdefault(structure, Group([], [], []))
        group.indices.append(index)
        group.hyperparameters.append(hyperparameters)
        group.configs.append(config)
    return [*by_structure.values()]


def check_groups(groups: Iterable[Group], devices: Sequence[jax.Device]) -> None:
    """Checks the options of all trials, before any data is read.

    Raises:
      ValueError: if those of one do not fit each other.
    """
    for group in groups:
        for config in group.configs:
            options.settled(config, devices)


def structure_of(group: Group) -> str:
    """Returns a name of the structure of a group, which is also the name of a file."""
    return _structure(group.hyperparameters[0], group.configs[0])


def _structure(hyperparameters: Hyperparameters, config: train.Config) -> str:
    names = {*STRUCTURE, *whole_options(config.loss)}
    return ",".join(f"{key}={value}" for key, value in hyperparameters.items() if key in names)


def check_data(
    groups: Sequence[Group], data: Dataset | PairDataset, devices: Sequence[jax.Device]
) -> None:
    """Checks, without training anything, that all groups can be trained on a data set.

    Args:
      groups: of trials.
      data: to train on.
      devices: over which the batch of a trial is spread.

    Raises:
      ValueError: as `assembled`.
    """
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
    """Makes the parts of the trials of a group.

    Args:
      group: of trials.
      data: to train on.
      devices: over which the batch of a trial is spread.
      further_seeds: as in `assemble_trials`.

    Raises:
      ValueError: if options do not fit each other or the data.
    """
    configs = [option_checks.for_data(config, data) for config in group.configs]
    settled = [options.settled(config, devices) for config in configs]
    variants = []
    for hyperparameters, config, one in zip(group.hyperparameters, configs, settled, strict=True):
        objective = options.objective_of(config, one)
        tuned = {key: one[key] for key in OPTIMIZER}
        if objective.learning_rate:
            tuned["loss_learning_rate"] = config.loss_learning_rate or objective.learning_rate
        variants.append(Variant(hyperparameters, config.seed, objective, tuned))
    first = variants[0].objective
    common = training.Training(
        model=options.model_of(configs[0], settled[0]),
        data=data,
        objective=first,
        steps=settled[0]["steps"],
        devices=len(devices),
        **options.batch_of(configs[0], settled[0], data),
        **options.optimizers_of(configs[0], settled[0], first, tunable=True),
    )
    return assemble_trials(common, variants, further_seeds=further_seeds)


def base_of(config: Training) -> train.Config:
    """Returns the options of `experiments.train` that all trials have."""
    shared = {field.name for field in dataclasses.fields(train.Config)} - {
        "name",
        "runs",
        "resume",
        "overwrite",
        "devices",
    }
    given = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name in shared
    }
    # Steps of a call are the grid's own business.
    return train.Config(**given | {"validate_every": config.log_every, "steps_per_call": 1})


def devices_of(config: Training) -> list[jax.Device]:
    """Returns the devices of a grid; of a CPU as many as it has cores."""
    cores_as_devices(collective=config.devices_per_trial > 1)
    devices = jax.devices()
    if config.devices is not None:
        if not 0 < config.devices <= len(devices):
            raise ValueError(f"--devices must be from 1 to {len(devices)}, got {config.devices}")
        devices = devices[: config.devices]
    if not 0 < config.devices_per_trial <= len(devices):
        raise ValueError(
            f"--devices_per_trial must be from 1 to {len(devices)}, got {config.devices_per_trial}"
        )
    return devices


def check(config: Training) -> None:
    """Checks what options say together, before any data is read.

    Raises:
      ValueError: if they do not fit each other.
    """
    option_checks.check_effects(config)
    if config.shown_by not in (None, *RETRIEVAL, *VERIFICATION):
        raise ValueError(
            f"--shown_by must be one of {', '.join(RETRIEVAL)} or, on given pairs, of "
            f"{', '.join(VERIFICATION)}, got {config.shown_by}"
        )
    if config.name is not None:
        runs.check_name(config.name)
        if not (config.resume or config.overwrite):
            runs.check_new(config.runs / config.name)


def shown_on(config: Any, data: Dataset | PairDataset) -> Any:
    """Fills in the figure by which hyperparameters are chosen, which depends on the data.

    Raises:
      ValueError: if that which is named is not one of this data.
    """
    figures = VERIFICATION if isinstance(data, PairDataset) else RETRIEVAL
    shown_by = config.shown_by or ("auc" if isinstance(data, PairDataset) else "map_at_r")
    if shown_by not in figures:
        raise ValueError(
            f"--shown_by must be one of {', '.join(figures)} on {data.name}, got {shown_by}"
        )
    return dataclasses.replace(config, shown_by=shown_by)


@contextlib.contextmanager
def open_run(
    config: Training,
    default_name: str,
    axes: Iterable[str],
    free: Iterable[str],
    device: jax.Device,
    data: Dataset | PairDataset,
    *,
    shared: bool = False,
) -> Iterator[Path]:
    """Creates a run, or opens that of this name if it is resumed, as `runs.open_run`.

    Args:
      config: options.
      default_name: what a nameless run is called.
      axes: names of what is varied, which may not differ when it is resumed.
      free: names of options that may.
      device: of which kind they all are.
      data: to train on, which is to be the same where the run is resumed.
      shared: whether other processes that say the same may work on the run at the same time.

    Yields:
      The folder.

    Raises:
      BlockingIOError: if another process works on the run.
      FileExistsError: if the name is taken.
      FileNotFoundError: if there is no such run to resume.
      ValueError: if options differ from those it was begun with.
    """
    record = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    record["axes"] = sorted(axes)
    record["data_digest"] = digest(data)
    record["dtype"] = "float32" if device.platform == "cpu" else "bfloat16"
    with runs.open_run(
        config.runs,
        config.resume or config.name,
        default_name,
        record,
        resume=config.resume is not None,
        overwrite=config.overwrite,
        free=free,
        shared=shared,
    ) as folder:
        if config.resume:
            runs.write_config(folder, record)
        yield folder


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

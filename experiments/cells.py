"""Cells of a grid: from what the command line names to groups that share a compilation.

A cell is a training, told from the others by its settings. Numbers (margin, learning rate, numbers
of the loss, seed) are data to a step; what changes the structure makes groups, compiled one by one.
"""

import contextlib
import dataclasses
import difflib
import functools
import hashlib
import itertools
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import optax

from contrastive_jax._extras import needs

with needs("train", "experiments.cells"):
    from tqdm import tqdm

from contrastive_jax.data import Dataset, PairDataset
from contrastive_jax.evaluation.given_pairs import points_of_pairs, summarize_pairs
from contrastive_jax.evaluation.summary import summarize
from contrastive_jax.train import (
    Hyperparameters,
    PairSource,
    Source,
    TrainState,
    embed,
    loss_table,
)
from contrastive_jax.train import folder as runs
from contrastive_jax.train import grid as grids
from contrastive_jax.train.assembly import Assembled, assemble, source_of
from contrastive_jax.train.objectives import of_given_pairs
from contrastive_jax.train.validation import figures_on_validation
from experiments import option_checks, options, train

# Options of a training that are data to a step, and those that change its structure.
NUMBERS = (
    "margin",
    "learning_rate",
    "loss_learning_rate",
    "similar_fraction",
    "weight_decay",
    "clip_norm",
    "seed",
)
STRUCTURE: dict[str, type] = {
    "loss": str,
    "encoder": str,
    "width": int,
    "distance": str,
    "objective": str,
    "batch_size": int,
    "group": int,
}
CHOICES: dict[str, tuple[str, ...]] = {
    "loss": loss_table.NAMES,
    "encoder": (*options.ENCODERS,),
    "distance": (*options.DISTANCES,),
    "objective": ("auto", "pairs", "all_pairs"),
}
# Of a setting on validation.
RETRIEVAL = ("precision_at_1", "r_precision", "map_at_r", "mean_reciprocal_rank")
VERIFICATION = ("auc", "average_precision")
Strategy = Literal["auto", "sequential", "vmap", "shard_map"]

# Options that may differ when a run is resumed: they do not change the numbers of a cell.
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
class Training(options.Runs, options.Training, options.Data):
    """Options that all trials have in common, and how they are trained."""

    steps: int = 1000
    """Training steps of every trial."""
    strategy: Strategy = "auto"
    """How the trials are trained: one after another, mapped, or spread over devices; auto times
    each for a few steps. The numbers are the same to rounding."""
    devices: int | None = None
    """Number of devices; all by default, and of a CPU its cores."""
    devices_per_cell: int = 1
    """Devices over which the batch of a trial is spread; the others are for the grid."""
    memory_limit: float | None = None
    """GB that a device may hold, by which the grid is split into chunks; by default most of an
    accelerator's memory and half of what a host has free."""
    log_every: int = 50
    """Steps between two points of the history of a trial."""
    shown_by: str | None = None
    """The figure by which hyperparameters are chosen on validation, and which the figures show; by
    default map_at_r, and auc on given pairs."""


Setting = dict[str, Any]


def parse_axes(named: Iterable[str], option: str = "--grid") -> dict[str, list[Any]]:
    """Reads axes of a grid, such as `learning_rate=1e-3,1e-2` or `loss=contrastive,supcon`.

    Args:
      named: each a name, an equals sign and values.
      option: that they were given with, for errors.

    Returns:
      Values by name.

    Raises:
      ValueError: if one is not of that form, has no values or the same twice, or is named twice.
    """
    axes: dict[str, list[Any]] = {}
    for text in named:
        name, equals, values = text.partition("=")
        if not equals or not name or not values:
            raise ValueError(
                f"{option} takes name=value,value, as learning_rate=1e-3,1e-2, got {text!r}"
            )
        if name == "seed":
            raise ValueError(f"--seeds says how many seeds there are: leave them out of {option}")
        if name in axes:
            raise ValueError(f"{option} names {name} twice; put all its values into one")
        axes[name] = [_value(name, value) for value in values.split(",")]
    for name, found in axes.items():
        if len({*found}) < len(found):
            raise ValueError(f"the values of {name} must differ, got {found}")
    return axes


def _value(name: str, text: str) -> Any:
    kind = STRUCTURE.get(name, float)
    if name == "loss":
        loss_table.check_name(text)
    if name in CHOICES and text not in CHOICES[name]:
        close = difflib.get_close_matches(text, CHOICES[name], n=3) or CHOICES[name]
        raise ValueError(f"{name} must be one of those known, as {', '.join(close)}; got {text!r}")
    try:
        return kind(text)
    except ValueError:
        expected = {int: "a whole number", float: "a number"}[kind]
        raise ValueError(f"{name} must be {expected}, got {text!r}") from None


def check_axes(axes: Iterable[str], losses: Iterable[str]) -> None:
    """Checks that each axis is one of trainings with these losses.

    Raises:
      ValueError: if one is not, naming those that are.
    """
    for loss in losses:
        loss_table.check_name(loss)
        known = [*NUMBERS[:-1], *STRUCTURE, *_options_of(loss)]
        for name in axes:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=3)
                raise ValueError(
                    f"{name} can not be an axis of trainings with {loss}; "
                    + (f"close to it: {', '.join(close)}; " if close else "")
                    + f"known: {', '.join(dict.fromkeys(known))}"
                )


def _options_of(loss: str) -> dict[str, float]:
    if loss == "contrastive" or loss not in loss_table.NAMES:
        return {}
    return loss_table.hyperparameters_of(loss)


def whole_options(loss: str) -> set[str]:
    """Names of the whole numbers of a loss, which are structure."""
    return {k for k, v in _options_of(loss).items() if isinstance(v, int)} - {*NUMBERS}


def product(axes: Mapping[str, Sequence[Any]]) -> list[Setting]:
    """All combinations, the last axis fastest."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def configured(base: train.Config, setting: Setting) -> train.Config:
    """The options of the training of a cell.

    Raises:
      ValueError: if they do not fit each other.
    """
    fields = {key: setting[key] for key in setting if key in NUMBERS or key in STRUCTURE}
    numbers = {key: value for key, value in setting.items() if key not in fields}
    config: train.Config = option_checks.checked_training(
        dataclasses.replace(base, **fields, loss_options=base.loss_options | numbers)
    )
    return config


class Group(NamedTuple):
    """Cells that share their structure."""

    settings: list[Setting]
    configs: list[train.Config]
    places: list[int]
    """The position of each setting among all that were grouped."""

    def part(self, places: Iterable[int]) -> "Group":
        """Returns the cells at some positions."""
        kept = [*places]
        return Group(
            [self.settings[k] for k in kept],
            [self.configs[k] for k in kept],
            [self.places[k] for k in kept],
        )


def groups(base: train.Config, settings: Iterable[Setting]) -> list[Group]:
    """Splits cells into groups of one structure, in the order in which each comes first."""
    found: dict[str, Group] = {}
    for place, setting in enumerate(settings):
        config = configured(base, setting)
        group = found.setdefault(_structure(setting, config), Group([], [], []))
        group.places.append(place)
        group.settings.append(setting)
        group.configs.append(config)
    return [*found.values()]


def check_groups(groups: Iterable[Group], devices: Sequence[jax.Device]) -> None:
    """Checks the options of all cells, before any data is read.

    Raises:
      ValueError: if those of one do not fit each other.
    """
    for group in groups:
        for config in group.configs:
            options.settled(config, devices)


def structure_of(group: Group) -> str:
    """Returns a name of the structure of a group, which is also the name of a file."""
    return _structure(group.settings[0], group.configs[0])


def _structure(setting: Setting, config: train.Config) -> str:
    names = {*STRUCTURE, *whole_options(config.loss)}
    return ",".join(f"{key}={value}" for key, value in setting.items() if key in names)


class Prepared(NamedTuple):
    """A group ready to be trained."""

    assembled: Assembled
    distance: Callable[..., jax.Array]
    """The distance of the objective."""
    source: Source | PairSource
    numbers: list[Hyperparameters]
    init: grids.Init
    """From the position of a cell to its first state."""


def check_data(
    groups: Iterable[Group], data: Dataset | PairDataset, devices: Sequence[jax.Device]
) -> None:
    """Checks, without computing anything, that all groups can be trained on a data set.

    Args:
      groups: of cells.
      data: to train on.
      devices: over which the batch of a cell is spread.

    Raises:
      ValueError: as `prepare`.
    """
    for group in groups:
        jax.eval_shape(lambda group=group: prepare(group, data, devices).init(0))


def prepare(group: Group, data: Dataset | PairDataset, devices: Sequence[jax.Device]) -> Prepared:
    """Makes the step of a group, and the hyperparameters and first states of its cells.

    Args:
      group: of cells.
      data: to train on.
      devices: over which the batch of a cell is spread.

    Returns:
      All of these.

    Raises:
      ValueError: if options do not fit each other or the data.
    """
    configs = [option_checks.for_data(config, data) for config in group.configs]
    settled = [options.settled(config, devices) for config in configs]
    objectives = [*map(options.objective_of, configs, settled)]
    if isinstance(data, PairDataset):
        objectives = [*map(of_given_pairs, objectives)]
    for fraction in {one["similar_fraction"] for one in settled}:
        source = source_of(data, fraction)
    config = configs[0]
    batch = options.batch_of(config, settled[0], data)
    del batch["categories"]  # of trainings alone
    assembled = assemble(
        options.model_of(config, settled[0]),
        data,
        objectives[0],
        steps=settled[0]["steps"],
        seed=config.seed,
        seeds=[one.seed for one in configs],
        devices=len(devices),
        **batch,
        **options.optimizers_of(config, settled[0], objectives[0], tunable=True),
    )
    # Seeds come again with each margin.
    first_state = functools.cache(assembled.init)

    def init(cell: int) -> TrainState:
        config, one, objective = configs[cell], settled[cell], objectives[cell]
        state = first_state(config.seed)
        tuned = {key: one[key] for key in ("learning_rate", "weight_decay", "clip_norm")}
        loss_params = assembled.init_loss(objective, config.seed)
        if jax.tree.leaves(loss_params):
            state = state._replace(params=state.params._replace(loss=loss_params))
            tuned["loss_learning_rate"] = config.loss_learning_rate or objective.learning_rate
        values = {key: np.array(value, np.float32) for key, value in tuned.items()}
        return state._replace(opt_state=optax.tree.set(state.opt_state, **values))

    return Prepared(
        assembled,
        objectives[0].distance,
        source,
        [
            Hyperparameters(config.seed, dict(objective.hyperparameters))
            for config, objective in zip(configs, objectives, strict=True)
        ],
        init,
    )


def base_of(config: Training) -> train.Config:
    """The options of `experiments.train` that all cells have."""
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
    """The devices that a grid may take, those of a CPU as many as it has cores."""
    make_cores_devices(waiting=config.devices_per_cell > 1)
    devices = jax.devices()
    if config.devices is not None:
        if not 0 < config.devices <= len(devices):
            raise ValueError(f"--devices must be from 1 to {len(devices)}, got {config.devices}")
        devices = devices[: config.devices]
    if not 0 < config.devices_per_cell <= len(devices):
        raise ValueError(
            f"--devices_per_cell must be from 1 to {len(devices)}, got {config.devices_per_cell}"
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
    """Fills in the figure by which settings are chosen, which depends on the data.

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


def make_cores_devices(*, waiting: bool = False) -> None:
    """Makes a device of each core of a CPU, if JAX has not started and nothing else was asked for.

    Two small trainings side by side, a core each, are quicker than each over both cores in turn.

    Args:
      waiting: whether devices wait for one another, which takes more threads.
    """
    asked = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if waiting:
        os.environ.setdefault("PJRT_NPROC", "64")
    if asked or jax.config.jax_num_cpu_devices > 0:  # type: ignore[attr-defined]
        return
    # What has started stays as it is.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))


def memory_of(device: jax.Device) -> float:
    """Bytes that a grid may take on a device: most of an accelerator's, half of what a host has."""
    found = device.memory_stats()
    if found and "bytes_limit" in found:
        return 0.9 * float(found["bytes_limit"])
    return 0.5 * _free() / jax.local_device_count()


def _free() -> float:
    """Bytes of a host, or of the container this is in, that may still be taken."""
    free = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    known, limit, used = (
        Path(path) for path in ("/proc/meminfo", f"{_CGROUP}memory.max", f"{_CGROUP}memory.current")
    )
    if known.exists():
        found = dict(line.split(":") for line in known.read_text().splitlines())
        free = 1024.0 * int(found["MemAvailable"].split()[0])
    if limit.exists() and used.exists() and limit.read_text().strip().isdigit():
        free = min(free, float(limit.read_text()) - float(used.read_text()))
    return free


_CGROUP = "/sys/fs/cgroup/"


def made_grid(
    prepared: Prepared, strategy: grids.Strategy, at_once: int, **where: Any
) -> grids.Grid:
    """`grid.make_grid` of a group, with some cells at once."""
    state, numbers = prepared.init(0), prepared.numbers[0]
    step, source = prepared.assembled.drawn, prepared.source
    return grids.make_grid(step, state, source, numbers, strategy, cells=at_once, **where)


def choose_grid(
    prepared: Prepared,
    strategy: Strategy,
    *,
    devices: Sequence[jax.Device],
    devices_per_cell: int,
    limit: float,
    steps_per_call: int,
) -> tuple[grids.Grid, dict[str, float]]:
    """Compiles the grid of a strategy, or of the one that trains the quickest here.

    Args:
      prepared: the group.
      strategy: one of them, or `"auto"` to time each for a few steps.
      devices: for the grid.
      devices_per_cell: over which a batch is spread.
      limit: bytes of memory on a device; as many cells are trained at once as fit.
      steps_per_call: steps of one call.

    Returns:
      The grid, and steps of cells per second of each strategy that was timed.

    Raises:
      MemoryError: if a cell does not fit into memory.
    """
    count = len(prepared.numbers)
    where: dict[str, Any] = {
        "devices": devices,
        "devices_per_cell": devices_per_cell,
        "steps_per_call": steps_per_call,
    }
    abreast = grids.groups_of("shard_map", len(devices), devices_per_cell)

    def compiled(strategy: grids.Strategy, most: int) -> grids.Grid:
        def make(cells: int) -> grids.Grid:
            return made_grid(prepared, strategy, cells, **where)

        return grids.largest_grid(make, most, abreast if strategy == "shard_map" else 1, limit)

    # On a CPU more than a few cells at once only leave its caches.
    at_once = count if devices[0].platform != "cpu" else min(count, 4)
    candidates: list[tuple[grids.Strategy, int]] = [("sequential", 1), ("vmap", at_once)]
    if abreast > 1 or strategy == "shard_map":
        # A cell to each device, and several.
        candidates += [("shard_map", most) for most in sorted({abreast, max(at_once, abreast)})]
    if strategy != "auto":
        candidates = [(name, most) for name, most in candidates if name == strategy]
    elif count == 1:
        candidates = candidates[:1]
    found = [compiled(name, most) for name, most in candidates]
    if len(found) == 1:
        return found[0], {}
    rates = {}
    for grid in found:
        source = jax.device_put(prepared.source, grid.shared)
        name = f"{grid.strategy} of {grid.cells}"
        rates[name] = grids.time_grid(grid, prepared.init, source, prepared.numbers)
    best = max(found, key=lambda grid: rates[f"{grid.strategy} of {grid.cells}"])
    return best, rates


def compile_grid(
    config: Training,
    prepared: Prepared,
    devices: Sequence[jax.Device],
    before: tuple[grids.Strategy, int] | None = None,
) -> grids.Grid:
    """Compiles the grid that the options of a run ask for, and says which it is.

    Args:
      config: options.
      prepared: the group.
      devices: for the grid.
      before: strategy and cells of one call that it was begun with, to go on to the same bits.

    Returns:
      The grid.

    Raises:
      MemoryError: if a cell does not fit into memory.
    """
    limit = memory_of(devices[0])
    if config.memory_limit is not None:
        limit = config.memory_limit * 1e9
    most = 10 if devices[0].platform == "cpu" else config.log_every
    where: dict[str, Any] = {
        "devices": devices,
        "devices_per_cell": config.devices_per_cell,
        "steps_per_call": math.gcd(config.log_every, config.steps, most),
    }
    grid: grids.Grid | None = None
    rates: dict[str, float] = {}
    if before is not None and config.strategy in ("auto", before[0]):
        # On other devices than before it may not be possible.
        with contextlib.suppress(ValueError):
            grid = made_grid(prepared, *before, **where)
    if grid is None:
        grid, rates = choose_grid(prepared, config.strategy, limit=limit, **where)
    timed = ", ".join(f"{name} {rate:,.0f}" for name, rate in rates.items())
    tqdm.write(
        f"{len(prepared.numbers)} cells, {grid.cells} at once, {grid.strategy}"
        + (f" (steps of cells per second: {timed})" if timed else "")
        + f", {grid.bytes / 2**20:,.0f} MB",
        file=sys.stdout,
    )
    return grid


class NotFiniteError(ValueError):
    """An embedding of a trained cell is not finite."""


def embed_of(prepared: Prepared, state: TrainState) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the function that embeds by a trained cell; it raises NotFiniteError."""

    def embedded(images: np.ndarray) -> np.ndarray:
        embeddings = embed(prepared.assembled.network.encode, state.weights, images)
        if not np.isfinite(embeddings).all():
            raise NotFiniteError
        return embeddings

    return embedded


def on_validation(
    prepared: Prepared, state: TrainState, data: Dataset | PairDataset
) -> dict[str, float] | None:
    """Figures of a trained cell on validation; None if it has diverged after all."""
    try:
        return figures_on_validation(embed_of(prepared, state), data, prepared.distance)[0]
    except NotFiniteError:
        return None


def figures_of(
    prepared: Prepared, state: TrainState, data: Dataset | PairDataset
) -> dict[str, dict[str, float]] | None:
    """Figures of a trained cell on validation and on test; None if it has diverged after all."""
    embedded, distance = embed_of(prepared, state), prepared.distance
    validation = on_validation(prepared, state, data)
    if validation is None:
        return None
    try:
        if isinstance(data, PairDataset):
            splits = [
                points_of_pairs(embedded, data.images, pairs)
                for pairs in (data.validation, data.test)
            ]
            summary = summarize_pairs(*splits, distance=distance)
        else:
            summary = summarize(
                embedded(data.validation.images),
                data.validation.classes,
                embedded(data.test.images),
                data.test.classes,
                distance=distance,
                queries=data.test.queries,
            )
    except NotFiniteError:
        return None
    return {"validation": validation, "test": summary.figures}


def key_of(setting: Setting) -> str:
    """Returns the key of a cell, which no other cell has."""
    return json.dumps(setting, sort_keys=True)


def state_path(setting: Setting) -> str:
    """Where the final state of a cell lies in the folder of its run; no other cell's lies there."""
    return f"states/{hashlib.sha256(key_of(setting).encode()).hexdigest()[:16]}"

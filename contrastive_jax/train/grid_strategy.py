"""The choice of a strategy for a grid: as many trials at once as fit, and the fastest way."""

import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Literal, NamedTuple, get_args

import jax

from contrastive_jax.train import grid as grids
from contrastive_jax.train.devices import check_strategy
from contrastive_jax.train.grid import Grid, Init, groups_of, stack_trials
from contrastive_jax.train.trial_assembly import AssembledTrials
from contrastive_jax.train.types import Hyperparameters, PairSource, Source

Strategy = Literal["auto", "sequential", "vmap", "shard_map"]

# More trials than this at once leave the caches of a CPU.
_AT_ONCE_ON_CPU = 4
_CGROUP = "/sys/fs/cgroup/"


class Choice(NamedTuple):
    """A compiled grid and the speeds by which it was chosen."""

    grid: Grid
    rates: dict[str, float]
    """Steps of trials per second of each strategy that was timed; empty where none was."""


def choice_line(choice: Choice, trials: int) -> str:
    """Returns a line that names the strategy of some trials.

    Example:
      >>> from contrastive_jax.train.grid import Grid
      >>> from contrastive_jax.train.grid_strategy import Choice, choice_line
      >>> grid = Grid("vmap", 4, 1, 2**20, None, None, None)
      >>> choice_line(Choice(grid, {}), trials=8)
      '8 trials, 4 at once, vmap, 1 MB'
    """
    grid = choice.grid
    timed = ", ".join(f"{name} {rate:,.0f}" for name, rate in choice.rates.items())
    return (
        f"{trials} trials, {grid.trials} at once, {grid.strategy}"
        + (f" (steps of trials per second: {timed})" if timed else "")
        + f", {grid.bytes / 2**20:,.0f} MB"
    )


def available_memory(device: jax.Device) -> float:
    """Returns the bytes that a grid may take on a device.

    That is 90 % of the memory of an accelerator, and on a CPU an equal share for each device of
    half the memory that the host, or the container, has free.

    Example:
      >>> import jax
      >>> from contrastive_jax.train.grid_strategy import available_memory
      >>> available_memory(jax.devices()[0]) > 0
      True
    """
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return 0.9 * float(stats["bytes_limit"])
    return 0.5 * _free_memory() / jax.local_device_count()


def _free_memory() -> float:
    """Returns the bytes of this host, or of its container, that may still be taken."""
    free = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    meminfo, limit, used = (
        Path(path) for path in ("/proc/meminfo", f"{_CGROUP}memory.max", f"{_CGROUP}memory.current")
    )
    if meminfo.exists():
        fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
        free = 1024.0 * int(fields["MemAvailable"].split()[0])
    if limit.exists() and used.exists() and limit.read_text().strip().isdigit():
        free = min(free, float(limit.read_text()) - float(used.read_text()))
    return free


def cores_as_devices(*, collective: bool = False) -> None:
    """Makes a device of each core of a CPU, unless JAX has started or was told otherwise.

    Two small trainings side by side, a core each, are faster than one after the other over both
    cores. Call this before JAX runs anything.

    Args:
      collective: whether a batch is spread over several devices, which wait for each other; this
        takes more threads.

    Example:
      >>> from contrastive_jax.train.grid_strategy import cores_as_devices
      >>> cores_as_devices()  # too late here, where JAX has started: nothing changes
    """
    asked = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if collective:
        os.environ.setdefault("PJRT_NPROC", "64")
    if asked or jax.config.jax_num_cpu_devices > 0:  # type: ignore[attr-defined]
        return
    # A backend that has started stays as it is.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))


def largest_grid(make: Callable[[int], Grid], trials: int, unit: int, limit: float) -> Grid:
    """Makes the grid with the most trials in one call that fit into memory, by compiling it.

    Args:
      make: from trials of one call to a grid.
      trials: in all.
      unit: trials of one call must be a multiple of it.
      limit: bytes of memory of a device.

    Returns:
      The grid, of `trials` rounded up to whole units if they fit.

    Raises:
      MemoryError: if not even one unit fits, saying how much it takes.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from contrastive_jax.train.grid import make_grid
      >>> from contrastive_jax.train.grid_strategy import largest_grid
      >>> from contrastive_jax.train import Hyperparameters, TrainState
      >>> def step(state, source, hyperparameters):
      ...     params = state.params * hyperparameters.loss["margin"]
      ...     metrics = {"loss": params, "gradient_norm": params}
      ...     return state._replace(step=state.step + 1, params=params), metrics
      >>> state = TrainState(jnp.int32(0), params=jnp.float32(1.0), opt_state=())
      >>> margins = [Hyperparameters(0, {"margin": m}) for m in (0.5, 0.25)]
      >>> source = jnp.zeros(1)
      >>> def make(trials):
      ...     devices = jax.devices()[:1]
      ...     return make_grid(
      ...         step, state, source, margins[0], "vmap", trials=trials, devices=devices
      ...     )
      >>> largest_grid(make, trials=3, unit=1, limit=2**30).trials
      3
    """
    chunk = -(-trials // unit) * unit
    while (grid := make(chunk)).bytes > limit:
        if chunk == unit:
            raise MemoryError(
                f"training {unit} trials at once takes {grid.bytes / 2**20:,.0f} MB on each "
                f"device, and {limit / 2**20:,.0f} MB are allowed: take a smaller batch or encoder"
            )
        fitting = int(chunk * limit / grid.bytes) // unit * unit
        chunk = max(unit, min(fitting, chunk - unit))
    # Chunks of one size train as many trials in as many calls, with the least padding.
    calls = -(-trials // chunk)
    even = -(-trials // (calls * unit)) * unit
    return grid if even == grid.trials else make(even)


def time_grid(
    grid: Grid, init: Init, source: Source | PairSource, hyperparameters: Sequence[Hyperparameters]
) -> float:
    """Measures how quickly a grid trains.

    Args:
      grid: the compiled step.
      init: from the position of a trial to its state.
      source: the data, where `train_grid` takes it.
      hyperparameters: of each trial.

    Returns:
      Steps of trials per second, the faster of two calls; padding does not count.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from contrastive_jax.train.grid import make_grid
      >>> from contrastive_jax.train.grid_strategy import time_grid
      >>> from contrastive_jax.train import Hyperparameters, TrainState
      >>> def step(state, source, hyperparameters):
      ...     params = state.params * hyperparameters.loss["margin"]
      ...     metrics = {"loss": params, "gradient_norm": params}
      ...     return state._replace(step=state.step + 1, params=params), metrics
      >>> state = TrainState(jnp.int32(0), params=jnp.float32(1.0), opt_state=())
      >>> margins = [Hyperparameters(0, {"margin": m}) for m in (0.5, 0.25)]
      >>> source = jnp.zeros(1)
      >>> two = make_grid(
      ...     step, state, source, margins[0], "vmap", trials=2, devices=jax.devices()[:1]
      ... )
      >>> source = jax.device_put(source, two.shared)
      >>> time_grid(two, lambda trial: state, source, margins) > 0
      True
    """
    trials = [*range(min(grid.trials, len(hyperparameters)))]
    states, own = stack_trials(grid, trials, init, hyperparameters)
    times = []
    for _ in range(3):
        began = perf_counter()
        states, _ = jax.block_until_ready(grid.step(states, source, own))
        times.append(perf_counter() - began)
    return len(trials) * grid.steps_per_call / min(times[1:])


def choose_grid(
    trials: AssembledTrials,
    strategy: Strategy = "auto",
    *,
    devices: Sequence[jax.Device] | None = None,
    devices_per_trial: int = 1,
    memory_limit: float | None = None,
    steps_per_call: int = 1,
    before: tuple[grids.Strategy, int] | None = None,
) -> Choice:
    """Compiles the grid of a strategy, or of the fastest one on these devices.

    Args:
      trials: to train.
      strategy: `"auto"` times each of the others for a few steps, with as many trials at once as
        fit; see `make_grid` for the others.
      devices: all devices by default.
      devices_per_trial: devices over which the batch of a trial is spread.
      memory_limit: bytes that a device may hold, by which trials are split into chunks; by default
        `available_memory`.
      steps_per_call: steps of one call.
      before: strategy and trials of one call with which the trials began. They go on with these if
        the strategy and a given memory limit allow it, so that results are the same bit for bit.

    Returns:
      The grid, and the speeds where strategies were timed.

    Raises:
      MemoryError: if not even one trial fits.
      ValueError: if the strategy is unknown, or `devices_per_trial` is not from 1 to the number of
        devices.

    Example:
      >>> import contrastive_jax as cj
      >>> from contrastive_jax.train.grid_strategy import choose_grid
      >>> from contrastive_jax.train.training import Training
      >>> from contrastive_jax.train.trial_assembly import Variant, assemble_trials
      >>> variants = [Variant({"seed": k}, k, cj.train.objective("supcon")) for k in (0, 1)]
      >>> training = Training(
      ...     model=cj.models.Linear,
      ...     data=cj.data.load("digits"),
      ...     objective=variants[0].objective,
      ...     steps=10,
      ...     batch_size=32,
      ... )
      >>> trials = assemble_trials(training, variants)
      >>> choose_grid(trials, "sequential").grid.trials
      1
    """
    devices = list(devices or jax.devices())
    check_strategy(strategy, get_args(Strategy), len(devices), devices_per_trial)
    limit = available_memory(devices[0]) if memory_limit is None else memory_limit

    def compiled(strategy: grids.Strategy, at_once: int) -> Grid:
        return grids.make_grid(
            trials.parts.drawn,
            trials.init(0),
            trials.source,
            trials.hyperparameters[0],
            strategy,
            trials=at_once,
            devices=devices,
            devices_per_trial=devices_per_trial,
            steps_per_call=steps_per_call,
        )

    if before is not None and strategy in ("auto", before[0]):
        # Other devices than before may not allow it.
        with contextlib.suppress(ValueError):
            grid = compiled(*before)
            if limit is None or grid.bytes <= limit:
                return Choice(grid, {})
    candidates = _candidates(strategy, len(trials.hyperparameters), devices, devices_per_trial)
    made = [
        largest_grid(lambda at_once, name=name: compiled(name, at_once), most, unit, limit)  # type: ignore[misc]
        for name, most, unit in candidates
    ]
    if len(made) == 1:
        return Choice(made[0], {})
    rates = []
    for grid in made:
        source = jax.device_put(trials.source, grid.shared)
        rates.append(time_grid(grid, trials.init, source, trials.hyperparameters))
    fastest = made[rates.index(max(rates))]
    names = [f"{grid.strategy} of {grid.trials}" for grid in made]
    return Choice(fastest, dict(zip(names, rates, strict=True)))


def _candidates(
    strategy: Strategy, trials: int, devices: Sequence[jax.Device], devices_per_trial: int
) -> list[tuple[grids.Strategy, int, int]]:
    """Lists strategies with the trials of one call and the number these must be a multiple of."""
    at_once = min(trials, _AT_ONCE_ON_CPU) if devices[0].platform == "cpu" else trials
    groups = groups_of("shard_map", len(devices), devices_per_trial)
    candidates: list[tuple[grids.Strategy, int, int]] = [
        ("sequential", 1, 1),
        ("vmap", at_once, 1),
    ]
    if groups > 1 or strategy == "shard_map":
        # One trial to each group of devices, and several.
        sizes = sorted({groups, max(at_once, groups)})
        candidates += [("shard_map", most, groups) for most in sizes]
    if strategy != "auto":
        return [one for one in candidates if one[0] == strategy]
    return candidates[:1] if trials == 1 else candidates

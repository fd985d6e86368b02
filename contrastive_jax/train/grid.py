"""A grid of trainings from one compilation, with hyperparameters as arguments.

A cell of the grid is one trial: a training with hyperparameters of its own. Cells that share their
structure (encoder, batch, loss) share a step, compiled once, and are trained several at a time or
one after another.
"""

from collections.abc import Callable, Iterator, Sequence
from time import perf_counter
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from contrastive_jax._compat import donated_state, vmap_over_states
from contrastive_jax.checks import check_seed
from contrastive_jax.train.steps import repeated
from contrastive_jax.train.types import (
    AXIS,
    Hyperparameters,
    Metrics,
    PairSource,
    Source,
    Step,
    TrainState,
)

CELLS = "cells"
Strategy = Literal["sequential", "vmap", "shard_map"]
Init = Callable[[int], TrainState]


class Grid(NamedTuple):
    """The compiled step of some cells at once."""

    strategy: Strategy
    cells: int
    """The number of cells of one call, C."""
    steps_per_call: int
    bytes: int
    """Memory of a call on each device, by XLA's analysis: arguments, results and temporaries; 0
    where there is no analysis."""
    step: Callable[[Any, Any, Any], tuple[Any, Metrics]]
    """A function of states `[C, ...]`, the source and hyperparameters `[C]` to states and metrics
    `[C, steps]`."""
    spread: NamedSharding
    """Sharding of the arrays that differ between trials: states and hyperparameters."""
    shared: NamedSharding
    """Sharding of the arrays that all trials share: put the source there, by `jax.device_put`."""


class Window(NamedTuple):
    """Some steps of the cells that are trained together."""

    cells: list[int]
    """The positions of the cells in the grid, N."""
    step: int
    """The number of steps that they have taken."""
    states: Any
    """The states after that step, `[C, ...]`, of which the first N count. The next window consumes
    them."""
    metrics: dict[str, np.ndarray]
    """The metrics of each step of the window, `[N, steps]`."""
    diverged: list[int | None]
    """The first step whose loss or gradient was not finite, or the last if parameters are not after
    it, of each cell; None where there is none."""

    def state(self, place: int) -> TrainState:
        """Copies the state of the cell at this index of `cells` to the host."""
        state: TrainState = jax.tree.map(lambda x: np.array(x[place]), self.states)
        return state


def make_grid(
    step: Step,
    state: TrainState,
    source: Source | PairSource,
    hyperparameters: Hyperparameters,
    strategy: Strategy,
    *,
    cells: int = 1,
    devices: Sequence[jax.Device] | None = None,
    devices_per_cell: int = 1,
    steps_per_call: int = 1,
) -> Grid:
    """Compiles the step of several cells from that of one. The numbers are the same to rounding.

    Args:
      step: of one cell, written against `train.AXIS`.
      state: of any one cell; its shapes are what counts, here and below.
      source: the data, which all cells share.
      hyperparameters: of any one cell.
      strategy: `"sequential"` trains one cell at a time, `"vmap"` maps the step over the cells, and
        `"shard_map"` spreads cells over devices, mapped where a device has several.
      cells: of one call, C; 1 with `"sequential"`, and with `"shard_map"` a multiple of the number
        of groups of devices.
      devices: all local devices by default.
      devices_per_cell: devices over which the batch of a cell is spread, a group. With
        `"shard_map"` there are as many groups as fit, with the other strategies one.
      steps_per_call: steps of one call.

    Returns:
      The grid.

    Raises:
      ValueError: if the strategy is unknown, or cells and devices do not fit.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from contrastive_jax.train import grid
      >>> from contrastive_jax.train import Hyperparameters, TrainState
      >>> def step(state, source, hyperparameters):
      ...     params = state.params * hyperparameters.loss["margin"]
      ...     metrics = {"loss": params, "gradient_norm": params}
      ...     return state._replace(step=state.step + 1, params=params), metrics
      >>> state = TrainState(jnp.int32(0), params=jnp.float32(1.0), opt_state=())
      >>> margins = [Hyperparameters(0, {"margin": m}) for m in (0.5, 0.25)]
      >>> source = jnp.zeros(1)
      >>> trials = grid.make_grid(
      ...     step, state, source, margins[0], "vmap", cells=2, devices=jax.devices()[:1]
      ... )
      >>> trials.cells, trials.strategy
      (2, 'vmap')
    """
    devices = list(devices or jax.local_devices())
    if strategy not in get_args(Strategy):
        raise ValueError(f"strategy must be one of {get_args(Strategy)}, got {strategy!r}")
    if not 0 < devices_per_cell <= len(devices):
        raise ValueError(
            f"devices_per_cell must be from 1 to {len(devices)}, the number of devices, got "
            f"{devices_per_cell}"
        )
    groups = groups_of(strategy, len(devices), devices_per_cell)
    if cells < 1 or cells % groups or (strategy == "sequential" and cells != 1):
        raise ValueError(
            "cells of one call must be 1 if they are trained one after another, and else a "
            f"multiple of the {groups} groups of devices, got {cells} with {strategy}"
        )
    used = np.array(devices[: groups * devices_per_cell]).reshape(groups, devices_per_cell)
    mesh = Mesh(used, (CELLS, AXIS))
    own, common = PartitionSpec(CELLS), PartitionSpec()
    call = repeated(step, steps_per_call)

    def local(states: Any, source: Any, hyperparameters: Any) -> tuple[Any, Metrics]:
        if cells == groups:
            # A batch of one is slower than none.
            state, one = jax.tree.map(lambda x: x[0], (states, hyperparameters))
            of_one: tuple[Any, Metrics] = jax.tree.map(lambda x: x[None], call(state, source, one))
            return of_one
        of_all: tuple[Any, Metrics] = vmap_over_states(call)(states, source, hyperparameters)
        return of_all

    # Without check_vma a gradient is that of the device's own rows, as the step expects.
    mapped = jax.shard_map(
        local, mesh=mesh, in_specs=(own, common, own), out_specs=own, check_vma=False
    )
    spread, shared = (NamedSharding(mesh, spec) for spec in (own, common))

    def described(tree: Any, sharding: NamedSharding, *leading: int) -> Any:
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
                (*leading, *jnp.shape(x)), jnp.result_type(x), sharding=sharding
            ),
            tree,
        )

    compiled = (
        jax.jit(mapped, donate_argnums=donated_state(devices[0].platform))
        .lower(
            described(state, spread, cells),
            described(source, shared),
            described(hyperparameters, spread, cells),
        )
        .compile()
    )
    needed = 0
    if analysis := compiled.memory_analysis():
        needed = analysis.argument_size_in_bytes + analysis.output_size_in_bytes
        needed += analysis.temp_size_in_bytes - analysis.alias_size_in_bytes
    return Grid(strategy, cells, steps_per_call, needed, compiled, spread, shared)


def groups_of(strategy: Strategy, devices: int, devices_per_cell: int = 1) -> int:
    """Returns the number of groups of devices that train cells side by side.

    Example:
      >>> from contrastive_jax.train.grid import groups_of
      >>> groups_of("shard_map", devices=8, devices_per_cell=2), groups_of("vmap", devices=8)
      (4, 1)
    """
    return devices // devices_per_cell if strategy == "shard_map" else 1


def largest_grid(make: Callable[[int], Grid], cells: int, unit: int, limit: float) -> Grid:
    """Makes the grid with the most cells in one call that fit into memory, by compiling it.

    Args:
      make: from cells of one call to a grid.
      cells: in all.
      unit: cells of one call must be a multiple of it.
      limit: bytes of memory of a device.

    Returns:
      The grid, of `cells` rounded up to whole units if they fit.

    Raises:
      MemoryError: if not even one unit fits, saying how much it takes.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from contrastive_jax.train import grid
      >>> from contrastive_jax.train import Hyperparameters, TrainState
      >>> def step(state, source, hyperparameters):
      ...     params = state.params * hyperparameters.loss["margin"]
      ...     metrics = {"loss": params, "gradient_norm": params}
      ...     return state._replace(step=state.step + 1, params=params), metrics
      >>> state = TrainState(jnp.int32(0), params=jnp.float32(1.0), opt_state=())
      >>> margins = [Hyperparameters(0, {"margin": m}) for m in (0.5, 0.25)]
      >>> source = jnp.zeros(1)
      >>> def make(cells):
      ...     devices = jax.devices()[:1]
      ...     return grid.make_grid(
      ...         step, state, source, margins[0], "vmap", cells=cells, devices=devices
      ...     )
      >>> grid.largest_grid(make, cells=3, unit=1, limit=2**30).cells
      3
    """
    chunk = -(-cells // unit) * unit
    while (grid := make(chunk)).bytes > limit:
        if chunk == unit:
            raise MemoryError(
                f"training {unit} cells at once takes {grid.bytes / 2**20:,.0f} MB on each device, "
                f"and {limit / 2**20:,.0f} MB are allowed: take a smaller batch or encoder"
            )
        fitting = int(chunk * limit / grid.bytes) // unit * unit
        chunk = max(unit, min(fitting, chunk - unit))
    # Chunks alike in size train as many cells in as many calls, with the least left empty.
    calls = -(-cells // chunk)
    even = -(-cells // (calls * unit)) * unit
    return grid if even == grid.cells else make(even)


def train_grid(
    grid: Grid,
    init: Init,
    source: Source | PairSource,
    hyperparameters: Sequence[Hyperparameters],
    *,
    start: int = 0,
    steps: int,
    window: int,
) -> Iterator[Window]:
    """Trains all cells, chunk by chunk, handing the states back after each window.

    A cell that diverges is marked and leaves the others alone; a chunk of which all have diverged
    is not trained further.

    Args:
      grid: the compiled step.
      init: from the position of a cell to its state at step `start`.
      source: the data, placed by `jax.device_put(source, grid.shared)`.
      hyperparameters: of each cell.
      start: steps already taken.
      steps: steps to take in all.
      window: steps between two windows of a chunk; the last may be shorter.

    Yields:
      Each window, of all chunks one after another. A chunk is complete when `step` is `steps` or
      all its cells have diverged.

    Raises:
      ValueError: if windows or steps are not whole calls, or a seed is not in [0, 2^32).

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from contrastive_jax.train import grid
      >>> from contrastive_jax.train import Hyperparameters, TrainState
      >>> def step(state, source, hyperparameters):
      ...     params = state.params * hyperparameters.loss["margin"]
      ...     metrics = {"loss": params, "gradient_norm": params}
      ...     return state._replace(step=state.step + 1, params=params), metrics
      >>> state = TrainState(jnp.int32(0), params=jnp.float32(1.0), opt_state=())
      >>> margins = [Hyperparameters(0, {"margin": m}) for m in (0.5, 0.25)]
      >>> source = jnp.zeros(1)
      >>> trials = grid.make_grid(
      ...     step, state, source, margins[0], "vmap", cells=2, devices=jax.devices()[:1]
      ... )
      >>> source = jax.device_put(source, trials.shared)
      >>> for window in grid.train_grid(
      ...     trials, lambda trial: state, source, margins, steps=2, window=1
      ... ):
      ...     print(window.step, window.metrics["loss"].ravel())
      1 [0.5  0.25]
      2 [0.25   0.0625]
    """
    for one in hyperparameters:
        check_seed(one.seed)
    for name, value in (("window", window), ("steps", steps), ("start", start)):
        if value % grid.steps_per_call:
            raise ValueError(
                f"{name} must be a multiple of steps_per_call, got {value} and "
                f"{grid.steps_per_call}"
            )
    for first in range(0, len(hyperparameters), grid.cells):
        cells = [*range(first, min(first + grid.cells, len(hyperparameters)))]
        states, of_cells = _placed(grid, cells, init, hyperparameters)
        diverged: list[int | None] = [None] * len(cells)
        now = start
        while now < steps and None in diverged:
            stop = min(now - now % window + window, steps)
            calls = []
            for _ in range(now, stop, grid.steps_per_call):
                states, metrics = grid.step(states, source, of_cells)
                calls.append(metrics)
            fetched = jax.device_get(calls)
            columns = {
                name: np.concatenate([call[name] for call in fetched], axis=1)[: len(cells)]
                for name in fetched[0]
            }
            finite = np.isfinite(columns["loss"]) & np.isfinite(columns["gradient_norm"])
            for place in np.flatnonzero(~finite.all(axis=1)).tolist():
                if diverged[place] is None:
                    diverged[place] = now + int(np.argmin(finite[place])) + 1
            now = stop
            if now == steps:
                # The loss of a step is that before its update: the last may have spoilt a cell.
                whole = _finite(states.params)[: len(cells)]
                diverged = [
                    now if step is None and not fine else step
                    for step, fine in zip(diverged, whole, strict=True)
                ]
            yield Window(cells, now, states, columns, [*diverged])


def _finite(params: Any) -> list[bool]:
    """Tells for each cell whether all its parameters are finite."""
    by_leaf = [
        jnp.isfinite(leaf).reshape(len(leaf), -1).all(axis=1) for leaf in jax.tree.leaves(params)
    ]
    return [all(of_cell) for of_cell in zip(*(one.tolist() for one in by_leaf), strict=True)]


def time_grid(
    grid: Grid, init: Init, source: Source | PairSource, hyperparameters: Sequence[Hyperparameters]
) -> float:
    """Measures how quickly a grid trains.

    Args:
      grid: the compiled step.
      init: from the position of a cell to its state.
      source: the data, placed as `train_grid` takes it.
      hyperparameters: of each cell.

    Returns:
      Steps of cells per second, the faster of two calls; places of a call that no cell fills do
      not count.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from contrastive_jax.train import grid
      >>> from contrastive_jax.train import Hyperparameters, TrainState
      >>> def step(state, source, hyperparameters):
      ...     params = state.params * hyperparameters.loss["margin"]
      ...     metrics = {"loss": params, "gradient_norm": params}
      ...     return state._replace(step=state.step + 1, params=params), metrics
      >>> state = TrainState(jnp.int32(0), params=jnp.float32(1.0), opt_state=())
      >>> margins = [Hyperparameters(0, {"margin": m}) for m in (0.5, 0.25)]
      >>> source = jnp.zeros(1)
      >>> trials = grid.make_grid(
      ...     step, state, source, margins[0], "vmap", cells=2, devices=jax.devices()[:1]
      ... )
      >>> source = jax.device_put(source, trials.shared)
      >>> grid.time_grid(trials, lambda trial: state, source, margins) > 0
      True
    """
    cells = [*range(min(grid.cells, len(hyperparameters)))]
    states, of_cells = _placed(grid, cells, init, hyperparameters)
    times = []
    for _ in range(3):
        began = perf_counter()
        states, _ = jax.block_until_ready(grid.step(states, source, of_cells))
        times.append(perf_counter() - began)
    return len(cells) * grid.steps_per_call / min(times[1:])


def _placed(
    grid: Grid, cells: list[int], init: Init, hyperparameters: Sequence[Hyperparameters]
) -> tuple[Any, Any]:
    """Puts states and hyperparameters of some cells on the devices, padded by the last cell."""
    whole = cells + cells[-1:] * (grid.cells - len(cells))
    states = [jax.device_get(init(k)) for k in cells]
    states += states[-1:] * (grid.cells - len(cells))

    def stacked(*leaves: Any) -> np.ndarray:
        return np.stack([np.asarray(leaf).astype(jnp.result_type(leaf)) for leaf in leaves])

    of_cells = jax.tree.map(stacked, *[hyperparameters[k] for k in whole])
    placed: tuple[Any, Any] = jax.device_put(
        (jax.tree.map(stacked, *states), of_cells), grid.spread
    )
    return placed

"""A grid of trainings from one compilation, with hyperparameters as arguments.

A trial is one training with hyperparameters of its own. Trials that share their structure
(encoder, batch, loss) share a step, which is compiled once. They train several at a time or one
after another.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from contrastive_jax._compat import donated_state, vmap_over_states
from contrastive_jax._traced_checks import without_checks
from contrastive_jax.checks import check_seed
from contrastive_jax.train.devices import check_strategy
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

TRIALS = "trials"
Strategy = Literal["sequential", "vmap", "shard_map"]
Init = Callable[[int], TrainState]


class Grid(NamedTuple):
    """The compiled step of some trials at once."""

    strategy: Strategy
    trials: int
    """The number of trials of one call, T."""
    steps_per_call: int
    bytes: int
    """Memory of a call on each device, by XLA's analysis: arguments, results and temporaries; 0
    where there is no analysis."""
    step: Callable[[Any, Any, Any], tuple[Any, Metrics]]
    """A function of states `[T, ...]`, the source and hyperparameters `[T]` to states and metrics
    `[T, steps]`."""
    spread: NamedSharding
    """Sharding of the arrays that differ between trials: states and hyperparameters."""
    shared: NamedSharding
    """Sharding of the arrays that all trials share: put the source there, by `jax.device_put`."""


class Window(NamedTuple):
    """Some steps of the trials that train together."""

    trials: list[int]
    """The positions of the trials in the grid, N."""
    step: int
    """The number of steps that they have taken."""
    states: Any
    """The states after that step, `[T, ...]`, of which the first N count. The next window consumes
    them."""
    metrics: dict[str, np.ndarray]
    """The metrics of each step of the window, `[N, steps]`."""
    diverged: list[int | None]
    """For each trial the first step whose loss or gradient was not finite, or the last step if
    parameters are not finite after it; None where all are finite."""

    def state(self, index: int) -> TrainState:
        """Copies the state of the trial at this index of `trials` to the host."""
        state: TrainState = jax.tree.map(lambda x: np.array(x[index]), self.states)
        return state


def make_grid(
    step: Step,
    state: TrainState,
    source: Source | PairSource,
    hyperparameters: Hyperparameters,
    strategy: Strategy,
    *,
    trials: int = 1,
    devices: Sequence[jax.Device] | None = None,
    devices_per_trial: int = 1,
    steps_per_call: int = 1,
) -> Grid:
    """Compiles the step of several trials from that of one. Results are the same to rounding.

    Args:
      step: of one trial, written against `train.AXIS`.
      state: of any one trial; only shapes count, here and below.
      source: the data, which all trials share.
      hyperparameters: of any one trial.
      strategy: `"sequential"` trains one trial at a time, `"vmap"` maps the step over the trials,
        and `"shard_map"` spreads trials over devices, mapped where a device has several.
      trials: of one call, T; 1 with `"sequential"`, and with `"shard_map"` a multiple of the number
        of groups of devices.
      devices: all local devices by default.
      devices_per_trial: devices over which the batch of a trial is spread, a group. With
        `"shard_map"` there are as many groups as fit, with the other strategies one.
      steps_per_call: steps of one call.

    Returns:
      The grid.

    Raises:
      ValueError: if the strategy is unknown, or trials and devices do not fit.

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
      >>> two = grid.make_grid(
      ...     step, state, source, margins[0], "vmap", trials=2, devices=jax.devices()[:1]
      ... )
      >>> two.trials, two.strategy
      (2, 'vmap')
    """
    devices = list(devices or jax.local_devices())
    check_strategy(strategy, get_args(Strategy), len(devices), devices_per_trial)
    groups = groups_of(strategy, len(devices), devices_per_trial)
    if trials < 1 or trials % groups or (strategy == "sequential" and trials != 1):
        raise ValueError(
            "trials of one call must be 1 if they train one after another, and else a multiple of "
            f"the {groups} groups of devices, got {trials} with {strategy}"
        )
    used = np.array(devices[: groups * devices_per_trial]).reshape(groups, devices_per_trial)
    mesh = Mesh(used, (TRIALS, AXIS))
    own, common = PartitionSpec(TRIALS), PartitionSpec()
    call = repeated(without_checks(step), steps_per_call)

    def local(states: Any, source: Any, hyperparameters: Any) -> tuple[Any, Metrics]:
        if trials == groups:
            # A batch of one is slower than none.
            state, one = jax.tree.map(lambda x: x[0], (states, hyperparameters))
            single: tuple[Any, Metrics] = jax.tree.map(lambda x: x[None], call(state, source, one))
            return single
        several: tuple[Any, Metrics] = vmap_over_states(call)(states, source, hyperparameters)
        return several

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
            described(state, spread, trials),
            described(source, shared),
            described(hyperparameters, spread, trials),
        )
        .compile()
    )
    needed = 0
    if analysis := compiled.memory_analysis():
        needed = analysis.argument_size_in_bytes + analysis.output_size_in_bytes
        needed += analysis.temp_size_in_bytes - analysis.alias_size_in_bytes
    return Grid(strategy, trials, steps_per_call, needed, compiled, spread, shared)


def groups_of(strategy: Strategy, devices: int, devices_per_trial: int = 1) -> int:
    """Returns the number of groups of devices that train trials side by side.

    Example:
      >>> from contrastive_jax.train.grid import groups_of
      >>> groups_of("shard_map", devices=8, devices_per_trial=2), groups_of("vmap", devices=8)
      (4, 1)
    """
    return devices // devices_per_trial if strategy == "shard_map" else 1


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
    """Trains all trials, chunk by chunk, handing the states back after each window.

    A trial that diverges is marked and leaves the others alone; a chunk whose trials have all
    diverged does not train on.

    Args:
      grid: the compiled step.
      init: from the position of a trial to its state at step `start`.
      source: the data, put there by `jax.device_put(source, grid.shared)`.
      hyperparameters: of each trial.
      start: steps already taken.
      steps: steps to take in all.
      window: steps between two windows of a chunk; the last may be shorter.

    Yields:
      Each window, of all chunks one after another. A chunk is complete when `step` is `steps` or
      all its trials have diverged.

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
      >>> two = grid.make_grid(
      ...     step, state, source, margins[0], "vmap", trials=2, devices=jax.devices()[:1]
      ... )
      >>> source = jax.device_put(source, two.shared)
      >>> for window in grid.train_grid(
      ...     two, lambda trial: state, source, margins, steps=2, window=1
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
    for first in range(0, len(hyperparameters), grid.trials):
        trials = [*range(first, min(first + grid.trials, len(hyperparameters)))]
        states, own = stack_trials(grid, trials, init, hyperparameters)
        diverged: list[int | None] = [None] * len(trials)
        now = start
        while now < steps and None in diverged:
            stop = min(now - now % window + window, steps)
            calls = []
            for _ in range(now, stop, grid.steps_per_call):
                states, metrics = grid.step(states, source, own)
                calls.append(metrics)
            fetched = jax.device_get(calls)
            columns = {
                name: np.concatenate([call[name] for call in fetched], axis=1)[: len(trials)]
                for name in fetched[0]
            }
            finite = np.isfinite(columns["loss"]) & np.isfinite(columns["gradient_norm"])
            for index in np.flatnonzero(~finite.all(axis=1)).tolist():
                if diverged[index] is None:
                    diverged[index] = now + int(np.argmin(finite[index])) + 1
            now = stop
            if now == steps:
                # A step logs the loss before its update, so the last update may have spoilt a
                # trial.
                sound = _finite(states.params)[: len(trials)]
                diverged = [
                    now if step is None and not fine else step
                    for step, fine in zip(diverged, sound, strict=True)
                ]
            yield Window(trials, now, states, columns, [*diverged])


def _finite(params: Any) -> list[bool]:
    """Tells for each trial whether all its parameters are finite."""
    by_leaf = [
        jnp.isfinite(leaf).reshape(len(leaf), -1).all(axis=1) for leaf in jax.tree.leaves(params)
    ]
    return [all(row) for row in zip(*(one.tolist() for one in by_leaf), strict=True)]


def stack_trials(
    grid: Grid, trials: Sequence[int], init: Init, hyperparameters: Sequence[Hyperparameters]
) -> tuple[Any, Any]:
    """Puts states and hyperparameters of some trials on the devices, padded by the last trial.

    Args:
      grid: the compiled step.
      trials: the positions of the trials, as many as a call takes or fewer.
      init: from the position of a trial to its state.
      hyperparameters: of each trial.

    Returns:
      States `[T, ...]` and hyperparameters `[T]`, as `grid.step` takes them.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from contrastive_jax.train import grid
      >>> from contrastive_jax.train import Hyperparameters, TrainState
      >>> def step(state, source, hyperparameters):
      ...     return state, {"loss": hyperparameters.loss["margin"]}
      >>> state = TrainState(jnp.int32(0), params=jnp.float32(1.0), opt_state=())
      >>> margins = [Hyperparameters(0, {"margin": m}) for m in (0.5, 0.25, 0.1)]
      >>> two = grid.make_grid(
      ...     step, state, jnp.zeros(1), margins[0], "vmap", trials=2, devices=jax.devices()[:1]
      ... )
      >>> states, own = grid.stack_trials(two, [2], lambda trial: state, margins)
      >>> print(own.loss["margin"])
      [0.1 0.1]
    """
    padding = grid.trials - len(trials)
    states = [jax.device_get(init(k)) for k in trials]
    states += states[-1:] * padding

    def stacked(*leaves: Any) -> np.ndarray:
        return np.stack([np.asarray(leaf).astype(jnp.result_type(leaf)) for leaf in leaves])

    own = jax.tree.map(stacked, *[hyperparameters[k] for k in (*trials, *[trials[-1]] * padding)])
    on_devices: tuple[Any, Any] = jax.device_put((jax.tree.map(stacked, *states), own), grid.spread)
    return on_devices

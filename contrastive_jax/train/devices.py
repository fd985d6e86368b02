"""A step over several devices, by `jax.pmap` or by `jax.shard_map`.

Virtual CPU devices hold a thread of XLA's pool each while they wait for one another, and the pool
has one to a core. With more devices than cores set the environment variable `PJRT_NPROC` to several
times their number before JAX starts, or they may wait for ever.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import numpy as np
from jax.experimental import checkify
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from contrastive_jax._compat import check_checked_pmap, donated_state
from contrastive_jax._traced_checks import without_checks
from contrastive_jax.train.types import AXIS

Strategy = Literal["pmap", "shard_map"]


class Parallel(NamedTuple):
    """A mapped step and the three ways data goes to and from its devices."""

    step: Callable[..., Any]
    """Like the step it was made from, on arguments placed by the functions below."""
    replicate: Callable[[Any], Any]
    """Puts a copy of each array on every device."""
    shard: Callable[[Any], Any]
    """Spreads the rows of each array over the devices."""
    fetch: Callable[[Any], Any]
    """One copy on the host of the state that a step returned."""


def _checked(mapped: Callable[..., Any], donated: tuple[int, ...]) -> Callable[..., Any]:
    call = jax.jit(checkify.checkify(mapped), donate_argnums=donated)

    def step(*arguments: Any) -> Any:
        error, result = call(*arguments)
        if message := error.get():
            raise ValueError(message)
        return result

    return step


def _to_host(tree: Any) -> Any:
    # On a CPU what `device_get` returns may share the buffer, which the next step overwrites.
    return jax.tree.map(np.array, jax.device_get(tree))


def _put(tree: Any, sharding: NamedSharding) -> Any:
    # From a copy, as donating a buffer that the caller's array shares would delete that array.
    tree = _to_host(tree)
    jax.tree_util.tree_map_with_path(_check_fits, tree)
    return jax.device_put(tree, sharding)


def _check_fits(path: Any, x: np.ndarray) -> None:
    """Checks that JAX keeps an integer whole: of 64 bits it drops the upper 32 without a word."""
    if jax.config.jax_enable_x64 or x.dtype not in (np.int64, np.uint64) or not x.size:  # type: ignore[attr-defined]
        return
    for value in (x.min(), x.max()):
        if not -(2**31) <= value < 2**32:
            raise ValueError(
                f"integers must fit into 32 bits, got {value} in {jax.tree_util.keystr(path)}; a "
                "seed is from 0 to 4294967295 (2^32 - 1)"
            )


def check_strategy(
    strategy: str, strategies: Sequence[str], devices: int, devices_per_trial: int = 1
) -> None:
    """Checks that there is such a strategy, and that there are devices for a trial.

    Args:
      strategy: to check.
      strategies: that there are.
      devices: number of devices.
      devices_per_trial: devices over which the batch of a trial is spread.

    Raises:
      ValueError: if the strategy is unknown, or `devices_per_trial` is not from 1 to the number of
        devices.

    Example:
      >>> from contrastive_jax.train.devices import check_strategy
      >>> check_strategy("vmap", ["sequential", "vmap"], devices=4, devices_per_trial=2)
    """
    if strategy not in strategies:
        *others, last = map(repr, strategies)
        raise ValueError(f"strategy must be one of {', '.join(others)} or {last}, got {strategy!r}")
    if not 0 < devices_per_trial <= devices:
        raise ValueError(
            f"devices_per_trial must be from 1 to {devices}, the number of devices, got "
            f"{devices_per_trial}"
        )


def parallel(
    step: Callable[..., Any],
    strategy: Strategy,
    devices: Sequence[jax.Device] | None = None,
    *,
    sharded: tuple[int, ...] = (),
    check_values: bool = False,
) -> Parallel:
    """Runs a step written against `train.AXIS` on every device at once.

    The first argument, the state, is donated: its buffers hold the new state. Before jax 0.9 CPUs
    keep the old state beside the new one.

    Args:
      step: from a state and further arguments to a new state and metrics, equal on all devices.
      strategy: `"pmap"` or `"shard_map"`. The numbers are the same. Under `pmap` arrays carry a
        leading axis of devices, under `shard_map` they are global arrays on a mesh.
      devices: all local devices by default.
      sharded: positions of the arguments whose rows are spread over the devices; the others are
        replicated.
      check_values: whether the checks of `contrastive_jax.checks` run inside the step. Every call
        then waits for its result. Without them the compiled step does not contain the checks.

    Returns:
      The mapped step and its placement functions. Metrics come back as they are, states by `fetch`.

    Raises:
      ValueError: if the strategy is unknown, or if `"pmap"` is to check values before jax 0.8; from
        the step, the first check that failed.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import train
      >>> from contrastive_jax.train.devices import parallel
      >>> def step(state, rows):
      ...     total = jax.lax.psum(rows.sum(), train.AXIS)
      ...     return state + total, {"loss": total}
      >>> devices = parallel(step, "shard_map", jax.devices()[:1], sharded=(1,))
      >>> state, rows = devices.replicate(jnp.float32(0.0)), devices.shard(jnp.arange(4.0))
      >>> state, metrics = devices.step(state, rows)
      >>> print(devices.fetch(state))
      6.0
    """
    devices = list(devices or jax.local_devices())
    check_strategy(strategy, get_args(Strategy), len(devices))
    mesh = Mesh(np.array(devices), (AXIS,))
    donated = donated_state(devices[0].platform)
    if not check_values:
        step = without_checks(step)
    replicated, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), (AXIS,)))

    if strategy == "shard_map":

        def mapped(*arguments: Any) -> Any:
            specs = tuple(
                PartitionSpec(AXIS) if k in sharded else PartitionSpec()
                for k in range(len(arguments))
            )
            # Steps of one's own need not keep the rules of check_vma, by which the gradient of a
            # value that the devices share has the sum over them in it; those of `make_step` do.
            return jax.shard_map(
                step, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False
            )(*arguments)

        return Parallel(
            step=(
                _checked(mapped, donated)
                if check_values
                else jax.jit(mapped, donate_argnums=donated)
            ),
            replicate=lambda tree: _put(tree, replicated),
            shard=lambda tree: _put(tree, split),
            fetch=_to_host,
        )
    if check_values:
        check_checked_pmap()
    mapped_ = partial(jax.pmap, step, axis_name=AXIS, devices=devices, out_axes=(0, None))
    return Parallel(
        step=_checked(mapped_(), donated) if check_values else mapped_(donate_argnums=donated),
        replicate=lambda tree: _put(
            jax.tree.map(
                lambda x: np.broadcast_to(x, (len(devices), *np.shape(x))), _to_host(tree)
            ),
            split,
        ),
        shard=lambda tree: _put(
            jax.tree.map(lambda x: x.reshape(len(devices), -1, *np.shape(x)[1:]), tree), split
        ),
        fetch=lambda state: _to_host(
            jax.tree.map(lambda x: x.addressable_data(0).squeeze(0), state)
        ),
    )

"""Everything that differs between the supported versions of JAX and Flax.

Each function says from which version on its callers can do without it.
"""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import jax
from jax import lax
from jax.sharding import AxisType

MARK_AS_VARYING = "jax.lax.pcast(value, {}, to='varying')"
"""A call that marks a value as varying along axes, for error messages; this from jax 0.8.2 on."""
if not hasattr(lax, "pcast"):
    MARK_AS_VARYING = "jax.lax.pvary(value, {})"


def check_explicit_axes(mesh: Any) -> None:
    """Refuses a mesh with explicit axes where JAX can not compute on it yet.

    Before jax 0.10 new arrays belong to no mesh, and then do not fit those that do. This does
    nothing from jax 0.10 on.

    Raises:
      ValueError: if some axis of the mesh is explicit and JAX is too old.
    """
    if AxisType.Explicit in mesh.axis_types and jax.__version_info__ < (0, 10):
        raise ValueError(
            "arrays along explicit axes of a mesh need jax 0.10 or later, and this is jax "
            f"{jax.__version__}: make the mesh with axis_types=(jax.sharding.AxisType.Auto,) * "
            f"{len(mesh.axis_types)}, or call the function under jax.shard_map"
        )


def varying_axes(x: Any) -> frozenset[Any]:
    """Returns the axes of a mesh along which `jax.shard_map` knows an array to vary.

    From jax 0.10 on this is `jax.typeof(x).manual_axis_type.varying`.
    """
    aval = jax.typeof(x)
    axes: frozenset[Any]
    axes = aval.manual_axis_type.varying if hasattr(aval, "manual_axis_type") else aval.vma
    return axes


def pcast_varying(x: jax.Array, axes: tuple[Any, ...]) -> jax.Array:
    """Marks an array as varying along axes of a mesh.

    From jax 0.8.2 on this is `lax.pcast(x, axes, to="varying")`.
    """
    marked: jax.Array
    marked = lax.pcast(x, axes, to="varying") if hasattr(lax, "pcast") else lax.pvary(x, axes)  # type: ignore[attr-defined]
    return marked


def check_checked_pmap() -> None:
    """Refuses checks of values inside of `jax.pmap` where JAX can not take them out of it.

    From jax 0.8 on, in which `jax.pmap` is made of `jax.shard_map`, this does nothing.

    Raises:
      ValueError: if JAX is too old.
    """
    if jax.__version_info__ < (0, 8):
        raise ValueError(
            "checks of values inside of pmap need jax 0.8 or later, and this is jax "
            f"{jax.__version__}: use shard_map, or leave the checks out"
        )


def donated_state(platform: str) -> tuple[int, ...]:
    """Gives `jax.jit` the first argument to donate, the state of a step over devices.

    From jax 0.9 on this is `(0,)`. Before, XLA for CPUs overwrites donated parameters of some
    programs under `jax.shard_map` while they are still read, and the step returns a wrong state.
    """
    return () if platform == "cpu" and jax.__version_info__ < (0, 9) else (0,)


def keeps_checks() -> bool:
    """Tells whether a compiled step keeps checks of traced values that nobody asks for.

    From jax 0.9 on this is False. Before, steps are called the way they have been tested, as XLA
    for CPUs overwrites some states that are still read (`donated_state`).
    """
    return bool(jax.__version_info__ < (0, 9))


def vmap_over_states(step: Callable[..., Any]) -> Callable[..., Any]:
    """Maps `step(state, source, hyperparameters)` over states and hyperparameters.

    From jax 0.8 on this is `jax.vmap(step, in_axes=(0, None, 0))`. JAX 0.7 can not map gradients of
    convolutions inside of `jax.shard_map`: there one program takes the steps one after another.
    """
    if jax.__version_info__ >= (0, 8):
        return jax.vmap(step, in_axes=(0, None, 0))

    def in_turn(states: Any, source: Any, hyperparameters: Any) -> Any:
        return lax.map(lambda own: step(own[0], source, own[1]), (states, hyperparameters))

    return in_turn


def without_constants(program: Any) -> Any:
    """Returns a program from `jax.make_jaxpr` that takes its constants as first arguments.

    Up to jax 0.10 this is `program.jaxpr`. Later that holds the constants too, and would keep
    traced values among them for longer than their trace.
    """
    jaxpr = program.jaxpr
    return jaxpr.with_consts([]) if hasattr(jaxpr, "with_consts") else jaxpr


def list_of_modules(modules: Iterable[Any]) -> Any:
    """Makes a list that an `nnx.Module` holds as a part of itself.

    From flax 0.12 on this is `nnx.List(modules)`; Flax 0.11 takes lists as they are.
    """
    from flax import nnx  # importing the library alone does not load Flax

    return nnx.List(modules) if hasattr(nnx, "List") else list(modules)


def on_checkify(primitive: Any, parameter: str) -> bool:
    """Lets `checkify` make the checks of a primitive that returns its first argument.

    JAX has no public way to say so, in any version.

    Args:
      primitive: takes a carrier and values.
      parameter: name of its parameter that is the program of the checks, a function of the values.

    Returns:
      False where JAX has no such way any more, and the checks have to be made otherwise.
    """
    try:
        from jax._src import checkify

        make_checks, rules = checkify.checkify_jaxpr, checkify.error_checks
        # jax 0.12 passes a context first.
        first = [*inspect.signature(make_checks).parameters].index("jaxpr")
    except (ImportError, AttributeError, ValueError):
        return False

    def rule(*arguments: Any, **parameters: Any) -> Any:
        context, (error, enabled, carrier, *values) = arguments[:first], arguments[first:]
        error, _ = make_checks(*context, parameters[parameter], enabled, error, *values)
        return error, carrier

    rules[primitive] = rule
    return True

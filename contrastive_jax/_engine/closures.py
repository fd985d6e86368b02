"""Functions that close over traced values or numbers on a device, made comparable."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from contrastive_jax._compat import MARK_AS_VARYING, without_constants
from contrastive_jax._engine.program_cache import (
    Unidentified,
    identified,
    identified_with_arguments,
    is_tracing,
)
from contrastive_jax._engine.sharding import axes_of
from contrastive_jax._traced_checks import CheckedBefore, check_closed_over, checked_before


def closure_convert(
    name: str,
    function: Callable[..., Any],
    examples: tuple[Any, ...],
    check: Callable[[str, Any], None],
    *,
    shared: bool = False,
) -> tuple[Callable[..., Any], tuple[jax.Array, ...]]:
    """Turns traced values that a function closes over into arguments after its own.

    In an eager call, arrays of one number become arguments too.

    Unlike `jax.closure_convert`, it converts values of all dtypes, and its result equals that for a
    function of the same code and values (`program_cache`), so that an eager call finds the program
    that was compiled for an equal loss, and none for an earlier state of the function.

    Args:
      name: name of the function, for errors.
      function: function of trees of arrays.
      examples: its arguments.
      check: takes the name, and the shape of the result.
      shared: True if it may close over values that do not vary along the axes of its arguments.

    Returns:
      The function with further arguments, and the values of these.
    """
    with checked_before():
        # A function of its own, as JAX would not trace one again that closes over other values now.
        trace = jax.make_jaxpr(lambda *arguments: function(*arguments), return_shape=True)
        closed, shape = trace(*examples)
    check(name, shape)
    consts = closed.consts
    # An eager call takes numbers on a device as arguments too: one program serves all of them.
    eager = not is_tracing()
    traced = [
        k
        for k, value in enumerate(consts)
        if isinstance(value, jax.core.Tracer) or (eager and _is_number(value))
    ]
    if not traced:
        return CheckedBefore(identified(function)), ()
    check_closed_over(function, *examples)
    axes = axes_of(examples[0])
    for k in traced:
        # A collective of JAX's own would else stand inside of loops that end at different times.
        if not shared and (missing := axes - axes_of(consts[k])):
            raise ValueError(
                f"{name} closes over a value {jax.typeof(consts[k])} that is the same along "
                f"{', '.join(map(str, missing))}, where the embeddings differ; close over "
                f"{MARK_AS_VARYING.format(tuple(missing))} instead"
            )
    # Only concrete constants may outlive the trace.
    jaxpr, own_count = without_constants(closed), len(examples)
    concrete = [None if k in traced else value for k, value in enumerate(consts)]
    tree = jax.tree.structure(shape)

    def with_values(*arguments: Any) -> Any:
        own, values = arguments[:own_count], list(concrete)
        for k, value in zip(traced, arguments[own_count:], strict=True):
            values[k] = value
        return jax.tree.unflatten(tree, jax.core.eval_jaxpr(jaxpr, values, *jax.tree.leaves(own)))

    values = tuple(consts[k] for k in traced)
    if any(isinstance(one, jax.Array) or np.ndim(one) for one in concrete if one is not None):
        return Unidentified(with_values), values
    # Programs are printed with the addresses of their functions, whose code is compared instead.
    text = re.sub("0x[0-9a-f]+", "", str(jaxpr))
    constants = tuple(None if one is None else np.asarray(one).tobytes() for one in concrete)
    program = text, constants, tree, tuple(jax.typeof(one) for one in consts)
    return identified_with_arguments(with_values, function, values, program), values


def _is_number(value: Any) -> bool:
    """Returns True for an array of one number, such as a temperature, and False for a key."""
    if not isinstance(value, jax.Array) or value.ndim:
        return False
    return not jnp.issubdtype(value.dtype, jax.dtypes.extended)

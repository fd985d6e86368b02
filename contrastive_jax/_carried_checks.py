"""Checks of traced values that come with a value, and cost a program nothing.

`checkify.debug_check` does nothing unless `checkify` asks for it, but it leaves an effect in the
program. JAX calls a program with an effect from Python, and one without from C++, which is 0.1 ms
faster a call: as much as the loss of a small batch takes. Here a primitive returns one of its
arguments and holds the check as a program. It has no effect, and stays in the program as long as
its result is used.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

from contrastive_jax._compat import on_checkify
from contrastive_jax._traced_checks import CHECKED_BEFORE
from contrastive_jax.checks import check_values

_carry = Primitive("carry_check")


def with_checks(carrier: Any, **values: Any) -> Any:
    """Checks arguments as `check_values` does, those that are traced by way of another.

    Args:
      carrier: array that the program uses.
      **values: arguments by name.

    Returns:
      The carrier, to be used in place of the argument. `checkify` makes the checks where it is.

    Raises:
      ValueError: for the first concrete value that is wrong, naming argument, row and value.
    """
    check_values(**{name: x for name, x in values.items() if not isinstance(x, jax.core.Tracer)})
    traced = {name: x for name, x in values.items() if isinstance(x, jax.core.Tracer)}
    return carry_check(carrier, check_values, **traced)


def carry_check(carrier: Any, check: Callable[..., None], **values: Any) -> Any:
    """Makes a check of traced values by way of an array that the program uses.

    Args:
      carrier: the array.
      check: function of the values by name, which calls `checkify.debug_check`.
      **values: traced values.

    Returns:
      The carrier, to be used in its own place.
    """
    if not values or CHECKED_BEFORE.get():
        return carrier
    if not _IS_CARRIED:
        check(**values)
        return carrier
    program = jax.make_jaxpr(lambda values: check(**values))(values)
    return _carry.bind(jnp.asarray(carrier), *jax.tree.leaves(values), check=program)


def _carrier(carrier: Any, *values: Any, check: Any) -> Any:
    return carrier


def _derivative(primals: Any, tangents: Any, *, check: Any) -> Any:
    return _carry.bind(*primals, check=check), tangents[0]


def _mapped(arguments: Any, axes: Any, *, check: Any) -> Any:
    """The rule of `jax.vmap`: the check of values that are mapped is mapped too."""
    carrier, *values = arguments
    is_mapped = [axis is not None for axis in axes[1:]]
    if any(is_mapped):
        values = [
            value if axis is None else jnp.moveaxis(value, axis, 0)
            for value, axis in zip(values, axes[1:], strict=True)
        ]
        in_axes = tuple(0 if one else None for one in is_mapped)
        check = jax.make_jaxpr(jax.vmap(jaxpr_as_fun(check), in_axes))(*values)
    return _carry.bind(carrier, *values, check=check), axes[0]


_carry.def_impl(_carrier)
_carry.def_abstract_eval(_carrier)
ad.primitive_jvps[_carry] = _derivative
batching.primitive_batchers[_carry] = _mapped
mlir.register_lowering(_carry, lambda context, carrier, *values, check: [carrier])
_IS_CARRIED = on_checkify(_carry, "check")

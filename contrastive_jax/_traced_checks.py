"""Checks of traced values, made once where a value enters and not in every tile."""

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify
from jax.extend.core import Var

from contrastive_jax._compat import keeps_checks

# JAX traces a function again where this differs. Else one that was traced without its checks would
# be taken where they are asked for.
_LEFT_OUT = jax.make_user_context(False)
# True if traced values were checked where they entered, as those of a pass over pairs are.
CHECKED_BEFORE = contextvars.ContextVar("checked_before", default=False)


def check_traced(valid: jax.Array, message: str, **details: Any) -> None:
    """Checks a traced condition where `checkify` asks for it.

    Args:
      valid: scalar, bool; True if the value is right.
      message: the error, with the names of details in braces.
      **details: traced scalars.
    """
    if not CHECKED_BEFORE.get():
        checkify.debug_check(valid, message, **details)


def check_closed_over(function: Callable[..., Any], *examples: Any) -> None:
    """Runs the checks of a function that depend only on traced values it closes over.

    Args:
      function: function of trees of arrays, which a pass over pairs will call many times.
      *examples: arguments of it, of which only shapes and dtypes count.
    """
    # A function of its own, as JAX would find what it traced of the other without its checks.
    closed = jax.make_jaxpr(lambda *arguments: function(*arguments))(*examples)
    unknown, equations = {*closed.jaxpr.invars}, []
    for equation in closed.jaxpr.eqns:
        if any(isinstance(one, Var) and one in unknown for one in equation.invars):
            unknown.update(equation.outvars)
        else:
            equations.append(equation)
    closed_alone = closed.jaxpr.replace(eqns=equations, outvars=[])
    jax.core.eval_jaxpr(closed_alone, closed.consts, *jax.tree.leaves(examples))


@contextlib.contextmanager
def checked_before() -> Iterator[None]:
    """Skips the checks of traced values, which were made where the values entered.

    Inside the loops of a pass over pairs, and of its derivatives, they would be made for every
    tile, or not be seen.
    """
    token = CHECKED_BEFORE.set(True)
    try:
        yield
    finally:
        CHECKED_BEFORE.reset(token)


@dataclasses.dataclass(frozen=True)
class CheckedBefore:
    """A function whose traced values were checked before; equal for equal functions."""

    function: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        with checked_before():
            return self.function(*arguments)


def without_checks(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function whose program does not contain its checks of traced values.

    A check that nobody asks for leaves an effect in a program, and JAX calls such a program from
    Python, which takes some tenths of a millisecond.

    Args:
      function: function that is compiled.
    """
    if keeps_checks():
        return function

    def unchecked(*arguments: Any) -> Any:
        with checked_before(), _LEFT_OUT(True):
            return function(*arguments)

    return unchecked


def is_whole(low: int, x: Any) -> bool:
    """Returns True if a value, of any type, is a whole number and not below the least.

    Args:
      low: the least.
      x: the value.

    Returns:
      True if it is; False also for a traced value.
    """
    try:
        return bool(np.ndim(x) == 0 and int(x) == x and x >= low)
    except (TypeError, ValueError, OverflowError):
        return False


def check_real_scalar(name: str, shape: Any) -> None:
    """Checks that a loss or a distance returns a real scalar."""
    if getattr(shape, "shape", None) != () or not jnp.isrealobj(shape):
        raise AssertionError(f"{name} must return a real scalar, got {shape}")

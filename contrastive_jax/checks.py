"""Checks of values, as opposed to shapes: labels, margins, embeddings.

A value that is known is checked on the spot. A traced one cannot be: its check costs nothing and
does nothing unless the caller asks for it by `checkify`, outside of everything else and under one
`jax.jit`:

    checked = jax.jit(checkify.checkify(step))
    error, result = checked(*arguments)
    error.throw()

`step` may be plain, or already mapped over devices by `jax.pmap` or `jax.shard_map`; its arguments
and results stay as they are, and buffers are donated by this outer `jax.jit`. `error.throw()` waits
for the step and raises a ValueError for the check that failed. On several devices rows count within
the share of each; `error.get()`, the message or None, says at which.
"""

import math
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify
from jax.typing import ArrayLike

from contrastive_jax.sharding import gathered

_Rule = tuple[str, Callable[[Any], Any]]

_FINITE: _Rule = ("finite", lambda x: abs(x) < math.inf)
_ABOVE_ZERO: _Rule = ("above 0 and finite", lambda x: (x > 0) & (x < math.inf))
_LABEL: _Rule = ("0 (similar) or 1 (dissimilar)", lambda x: (x == 0) | (x == 1))
_CLASS: _Rule = (
    "from 0 to 2^31 - 1, or -1 for a row to ignore",
    lambda x: (x >= -1) & (x <= np.iinfo(np.int32).max),
)
_WEIGHT: _Rule = ("at least 0 and finite", lambda x: (x >= 0) & (x < math.inf))
_RULES: dict[str, _Rule] = {
    "a": _FINITE,
    "b": _FINITE,
    "labels": _LABEL,
    "label": _LABEL,
    "margin": _ABOVE_ZERO,
    "temperature": _ABOVE_ZERO,
    "scale": _ABOVE_ZERO,
    "threshold": _ABOVE_ZERO,
    "alpha": _ABOVE_ZERO,
    "beta": _ABOVE_ZERO,
    "gamma": _ABOVE_ZERO,
    "epsilon": _ABOVE_ZERO,
    "eps": _ABOVE_ZERO,
    "embeddings": _FINITE,
    "classes": _CLASS,
    "weights": _WEIGHT,
    "proxies": _FINITE,
    "references": _FINITE,
    "reference_classes": _CLASS,
    "reference_weights": _WEIGHT,
    "max_age": ("at least 0", lambda x: x >= 0),
    "step": ("from 0 to 2^31 - 1", lambda x: (x >= 0) & (x <= np.iinfo(np.int32).max)),
}


def check_pairs(a: ArrayLike, b: ArrayLike, labels: ArrayLike, margin: ArrayLike = 1.0) -> None:
    """Checks that embeddings are finite, labels 0 or 1, and the margin above 0 and finite.

    Args:
      a: embeddings of the first members, `[B, D]`.
      b: embeddings of the second members, `[B, D]`.
      labels: `[B]`.
      margin: scalar.

    Raises:
      ValueError: for the first known value that is wrong, naming argument, row and value. Values
        already on a device are copied to the host for it.
    """
    check_values(a=a, b=b, labels=labels, margin=margin)


def check_values(**values: ArrayLike) -> None:
    """Checks arguments of the library by their names.

    Args:
      **values: embeddings (`a`, `b`, `embeddings`, `references`) and `proxies`, which must be
        finite; `labels`, 0 or 1; `margin`, above 0 and finite; `classes` and `reference_classes`,
        at least -1; `weights` and `reference_weights`, at least 0 and finite; `step`, at least 0.

    Raises:
      ValueError: for the first known value that is wrong, naming argument, row and value.
    """
    known = {name: x for name, x in values.items() if not isinstance(x, jax.core.Tracer)}
    for name, x in (values | jax.device_get(known)).items():
        _check(name, np.asarray(x) if name in known else x)


def check_known(**values: ArrayLike) -> None:
    """Checks the label and the numbers of one pair where they are known, and nothing where traced.

    Args:
      **values: scalars: `label`, 0 or 1; `margin`, `temperature`, `threshold` and other numbers of
        losses, above 0 and finite; `max_age`, at least 0.

    Raises:
      AssertionError: if a value, traced or not, is not a real scalar.
      ValueError: for the first known value that is wrong, naming it.
    """
    for name, x in values.items():
        check_scalars(**{name: x})
        if not isinstance(x, jax.core.Tracer):
            _check(name, np.asarray(x))


def check_range(low: float, high: float, **values: ArrayLike) -> None:
    """Checks that numbers are in `[low, high)` where they are known, and nothing where traced.

    Args:
      low: the least.
      high: above all.
      **values: scalars, finite even where the ends are not.

    Raises:
      AssertionError: if a value, traced or not, is not a real scalar.
      ValueError: for the first known number that is not in the range, naming it.
    """
    for name, x in values.items():
        check_scalars(**{name: x})
        known = not isinstance(x, jax.core.Tracer)
        if known and not (low <= np.asarray(x) < high and np.isfinite(x)):
            raise ValueError(f"{name} must be in [{low:.5g}, {high:.5g}), got {x}")


def check_scalars(**values: ArrayLike) -> None:
    """Checks that numbers are real scalars, traced or not.

    Args:
      **values: numbers.

    Raises:
      AssertionError: for the first that is not, naming it.
    """
    for name, x in values.items():
        dtype = x.dtype if isinstance(x, jax.Array) else np.asarray(x).dtype
        if np.ndim(x):
            raise AssertionError(f"{name} must be a scalar, got {dtype} of shape {np.shape(x)}")
        if not any(jnp.issubdtype(dtype, kind) for kind in (np.floating, np.integer, np.bool_)):
            raise AssertionError(f"{name} must be a scalar, a real number, got {x!r}")


def is_whole(low: int, x: Any) -> bool:
    """Tells whether a value, of any type, is a whole number and not below the least.

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


def check_whole(low: int, **values: Any) -> None:
    """Checks that numbers are whole and not below the least.

    Args:
      low: the least.
      **values: numbers, of any type.

    Raises:
      ValueError: for the first that is not, naming it.
    """
    for name, x in values.items():
        if not is_whole(low, x):
            raise ValueError(f"{name} must be a whole number, at least {low}, got {x!r}")


def check_pair_loss(loss: Any) -> None:
    """Checks that a loss is a function, as losses of anchors and proxies are not.

    Args:
      loss: of a distance and a label.

    Raises:
      ValueError: if it is not.
    """
    if not callable(loss):
        raise ValueError(
            f"loss must be a function of a distance and a label, got {loss!r}; an AnchorLoss or a "
            "TripleLoss is for anchor_loss, a ProxyLoss for proxy_loss"
        )


def check_distance(distance: Any) -> None:
    """Checks that a distance is a function, as its name is not.

    Args:
      distance: of two vectors.

    Raises:
      ValueError: if it is not.
    """
    if not callable(distance):
        raise ValueError(
            "distance must be a function of two vectors, such as those of "
            f"contrastive_jax.distances, got {distance!r}"
        )


def check_seed(seed: ArrayLike) -> None:
    """Checks that a concrete seed is one of those that differ, and nothing where it is traced.

    JAX keeps the last 32 bits of a seed: 2^32 would draw what 0 draws, and -1 what 2^32 - 1 does.

    Args:
      seed: scalar.

    Raises:
      ValueError: if it is not an integer in [0, 2^32).
    """
    if isinstance(seed, jax.core.Tracer):
        return
    message = f"seed must be an integer from 0 to 4294967295 (2^32 - 1), got {seed!r}"
    try:
        value = operator.index(seed)  # type: ignore[arg-type]
    except TypeError:
        raise ValueError(message) from None
    if not 0 <= value < 2**32:
        raise ValueError(message)


def _check(name: str, x: Any) -> None:
    expected, rule = _RULES[name]
    if x.size == 0:
        return
    # To find the first wrong row takes all of them; nothing is gathered unless it is asked for.
    x = gathered(x)
    valid = rule(x)
    first = valid.argmin()
    message = f"{name} must be {expected}, got {{value}}"
    details = {"value": x.ravel()[first]}
    if x.ndim:
        message += " in row {row}"
        details["row"] = first // (x.size // x.shape[0])
    if isinstance(x, jax.core.Tracer):
        checkify.debug_check(jnp.all(valid), message, **details)
    elif not valid.all():
        raise ValueError(message.format(**details))

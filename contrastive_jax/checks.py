"""Checks of values, as opposed to shapes: labels, margins, embeddings.

A concrete value is checked on the spot. A traced one cannot be: its check does nothing unless the
caller asks for it by `checkify`, outside of everything else and under one `jax.jit`:

    checked = jax.jit(checkify.checkify(step))
    error, result = checked(*arguments)
    error.throw()

`step` may be plain, or already mapped over devices by `jax.pmap` or `jax.shard_map`; its arguments
and results stay as they are, and buffers are donated by this outer `jax.jit`. `error.throw()` waits
for the step and raises a ValueError for the check that failed. On several devices rows count within
the share of each; `error.get()`, the message or None, says at which. Before jax 0.8 `checkify` can
not take checks out of `jax.pmap` or `jax.checkpoint`.

Hyperparameters of a loss or a distance are checked where they enter: where the loss is made
(`losses.ntxent(temperature)`), or where a function that closes over them, or has them bound by
`functools.partial`, is handed to `all_pairs_loss` and the like. The check of a traced one, and a
call of a function below with traced values, is an effect of the program. JAX then calls the program
from Python, which takes 0.1 ms. The checks that losses make of their arguments are no effects.
"""

import math
import operator
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from contrastive_jax._engine.sharding import gathered
from contrastive_jax._traced_checks import CHECKED_BEFORE, check_traced, is_whole

_Rule = tuple[str, Callable[[Any], Any]]

_FINITE: _Rule = ("finite", lambda x: abs(x) < math.inf)
_ABOVE_ZERO: _Rule = ("above 0 and finite", lambda x: (x > 0) & (x < math.inf))
_LABEL: _Rule = ("0 (similar) or 1 (dissimilar)", lambda x: (x == 0) | (x == 1))
_CLASS: _Rule = (
    "from 0 to 2^31 - 1, or -1 for a row to ignore",
    lambda x: _is_class(x),
)
_WEIGHT: _Rule = ("at least 0 and finite", lambda x: (x >= 0) & (x < math.inf))
_RULES: dict[str, _Rule] = {
    "a": _FINITE,
    "b": _FINITE,
    "anchors": _FINITE,
    "positives": _FINITE,
    "negatives": _FINITE,
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
      ValueError: for the first concrete value that is wrong, naming argument, row and value. Values
        already on a device are copied to the host for it.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import checks
      >>> a = b = jnp.zeros((2, 3))
      >>> checks.check_pairs(a, b, jnp.array([0, 2]))
      Traceback (most recent call last):
          ...
      ValueError: labels must be 0 (similar) or 1 (dissimilar), got 2 in row 1
    """
    check_values(a=a, b=b, labels=labels, margin=margin)


def check_values(**values: ArrayLike) -> None:
    """Checks arguments of the library by their names.

    Args:
      **values: embeddings (`a`, `b`, `anchors`, `positives`, `negatives`, `embeddings`,
        `references`) and `proxies`, which must be finite; `labels`, 0 or 1; `margin`, above 0 and
        finite; `classes` and `reference_classes`, at least -1; `weights` and `reference_weights`,
        at least 0 and finite; `step`, at least 0.

    Raises:
      ValueError: for the first concrete value that is wrong, naming argument, row and value.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import checks
      >>> checks.check_values(classes=jnp.array([3, -1]), margin=1.0)
      >>> checks.check_values(embeddings=jnp.array([[0.0], [jnp.nan]]))
      Traceback (most recent call last):
          ...
      ValueError: embeddings must be finite, got nan in row 1
    """
    concrete = {name: x for name, x in values.items() if not isinstance(x, jax.core.Tracer)}
    for name, x in (values | jax.device_get(concrete)).items():
        _check(name, np.asarray(x) if name in concrete else x)


def check_hyperparameters(**values: ArrayLike) -> None:
    """Checks the label of one pair and the hyperparameters of a loss.

    Args:
      **values: scalars: `label`, 0 or 1; `margin`, `temperature`, `threshold` and other
        hyperparameters, above 0 and finite; `max_age`, at least 0.

    Raises:
      AssertionError: if a value, traced or not, is not a real scalar.
      ValueError: for the first concrete value that is wrong, naming it.

    Example:
      >>> from contrastive_jax import checks
      >>> checks.check_hyperparameters(label=1, temperature=0.1)
      >>> checks.check_hyperparameters(temperature=0.0)
      Traceback (most recent call last):
          ...
      ValueError: temperature must be above 0 and finite, got 0.0
    """
    for name, x in values.items():
        check_scalars(**{name: x})
        if not isinstance(x, jax.core.Tracer):
            _check(name, np.asarray(x))
        elif name != "label":
            # A traced label is one of a batch, which `pair_loss` checks as a whole.
            _check(name, x)


def check_range(low: float, high: float, **values: ArrayLike) -> None:
    """Checks that hyperparameters are in `[low, high)`.

    Args:
      low: the least value allowed.
      high: the bound above, which is not allowed itself.
      **values: scalars, finite even where the ends are not.

    Raises:
      AssertionError: if a value, traced or not, is not a real scalar.
      ValueError: for the first concrete number that is not in the range, naming it.

    Example:
      >>> from contrastive_jax import checks
      >>> checks.check_range(0, 1, margin=0.5)
      >>> checks.check_range(0, 1, margin=1.5)
      Traceback (most recent call last):
          ...
      ValueError: margin must be in [0, 1), got 1.5
    """
    for name, x in values.items():
        check_scalars(**{name: x})
        message = f"{name} must be in [{low:.5g}, {high:.5g}), got {{value}}"
        if isinstance(x, jax.core.Tracer):
            check_traced((low <= x) & (x < high) & jnp.isfinite(x), message, value=x)
        elif not (low <= np.asarray(x) < high and np.isfinite(x)):
            raise ValueError(message.format(value=x))


def check_scalars(**values: ArrayLike) -> None:
    """Checks that values are real scalars, traced or not.

    Args:
      **values: scalars.

    Raises:
      AssertionError: for the first that is not, naming it.

    Example:
      >>> import numpy as np
      >>> from contrastive_jax import checks
      >>> checks.check_scalars(margin=0.5)
      >>> checks.check_scalars(margin=np.ones(3, np.float32))
      Traceback (most recent call last):
          ...
      AssertionError: margin must be a scalar, got float32 of shape (3,)
    """
    for name, x in values.items():
        dtype = x.dtype if isinstance(x, jax.Array) else np.asarray(x).dtype
        if np.ndim(x):
            raise AssertionError(f"{name} must be a scalar, got {dtype} of shape {np.shape(x)}")
        if not any(
            jnp.issubdtype(dtype, dtype_class)
            for dtype_class in (np.floating, np.integer, np.bool_)
        ):
            raise AssertionError(f"{name} must be a scalar, a real number, got {x!r}")


def check_whole(low: int, **values: Any) -> None:
    """Checks that values are whole numbers and not below the least.

    Args:
      low: the least.
      **values: values of any type.

    Raises:
      ValueError: for the first that is not, naming it.

    Example:
      >>> from contrastive_jax import checks
      >>> checks.check_whole(1, bins=10)
      >>> checks.check_whole(1, bins=2.5)
      Traceback (most recent call last):
          ...
      ValueError: bins must be a whole number, at least 1, got 2.5
    """
    for name, x in values.items():
        if not is_whole(low, x):
            raise ValueError(f"{name} must be a whole number, at least {low}, got {x!r}")


# What factories of losses make, and the function that takes it.
_MADE = {
    "AnchorLoss": "anchor_loss",
    "TripletLoss": "anchor_loss",
    "ProxyLoss": "proxy_loss",
    "CentersLoss": "proxy_loss",
}


def check_pair_loss(loss: Any) -> None:
    """Checks that a loss is a function of a pair, as those of anchors and proxies are not.

    Args:
      loss: function of a distance and a label.

    Raises:
      ValueError: if it is not, or makes a loss of anchors or proxies and was not called.

    Example:
      >>> from contrastive_jax import checks, losses
      >>> checks.check_pair_loss(losses.contrastive)
      >>> checks.check_pair_loss("contrastive")
      Traceback (most recent call last):
          ...
      ValueError: loss must be a function of a distance and a label, got 'contrastive'; an ...
    """
    if not callable(loss):
        raise ValueError(
            f"loss must be a function of a distance and a label, got {loss!r}; an AnchorLoss or a "
            "TripletLoss is for anchor_loss, a ProxyLoss for proxy_loss"
        )
    factory = loss
    while hasattr(factory, "func"):
        factory = factory.func
    try:
        made = getattr(factory, "__annotations__", {}).get("return")
    except NameError:  # from Python 3.14 on, where a name is imported for type checkers alone
        return
    takers = [_MADE[name] for name in re.findall(r"\w+", str(made)) if name in _MADE]
    if takers:
        own, where = getattr(factory, "__name__", "it"), takers[0]
        raise ValueError(
            f"loss must be a function of a distance and a label, got {own}, a function that makes "
            f"losses: call it, and give {own}() to {where} or train.objective"
        )


def check_distance(distance: Any) -> None:
    """Checks that a distance is a function, as its name is not.

    Args:
      distance: function of two vectors.

    Raises:
      ValueError: if it is not.

    Example:
      >>> from contrastive_jax import checks, distances
      >>> checks.check_distance(distances.cosine)
      >>> checks.check_distance("cosine")
      Traceback (most recent call last):
          ...
      ValueError: distance must be a function of two vectors, such as those of ...
    """
    if not callable(distance):
        raise ValueError(
            "distance must be a function of two vectors, such as those of "
            f"contrastive_jax.distances, got {distance!r}"
        )


def check_seed(seed: ArrayLike) -> None:
    """Checks that a concrete seed is in range; a traced one is not checked.

    JAX keeps the last 32 bits of a seed: 2^32 would draw what 0 draws, and -1 what 2^32 - 1 does.

    Args:
      seed: scalar.

    Raises:
      ValueError: if it is not an integer in [0, 2^32).

    Example:
      >>> from contrastive_jax import checks
      >>> checks.check_seed(0)
      >>> checks.check_seed(-1)
      Traceback (most recent call last):
          ...
      ValueError: seed must be an integer from 0 to 4294967295 (2^32 - 1), got -1
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


def _is_class(x: Any) -> Any:
    # Bounds that the dtype can not exceed may not be of that dtype either.
    bounds = np.iinfo(x.dtype)
    valid = x == x
    if bounds.min < -1:
        valid &= x >= -1
    if bounds.max > np.iinfo(np.int32).max:
        valid &= x <= np.iinfo(np.int32).max
    return valid


def check_bounds(bounds: tuple[float, float], **values: Any) -> None:
    """Checks that all entries of arrays are in `[low, high)`, as `check_range` does for scalars.

    Args:
      bounds: the least value allowed, and the bound above, which is not allowed itself.
      **values: scalars or arrays.

    Raises:
      ValueError: for the first concrete value that is wrong, naming argument, row and value.

    Example:
      >>> import numpy as np
      >>> from contrastive_jax import checks
      >>> checks.check_bounds((-1, 1), margin=np.array([0.5, 1.0]))
      Traceback (most recent call last):
          ...
      ValueError: margin must be in [-1, 1), got 1.0 in row 1
    """
    low, high = bounds
    rule = (f"in [{low:.5g}, {high:.5g})", lambda x: (x >= low) & (x < high))
    for name, x in values.items():
        _check(name, x if isinstance(x, jax.core.Tracer) else np.asarray(jax.device_get(x)), rule)


def _check(name: str, x: Any, rule: _Rule | None = None) -> None:
    expected, holds = rule or _RULES[name]
    if x.size == 0 or (isinstance(x, jax.core.Tracer) and CHECKED_BEFORE.get()):
        return
    # To find the first wrong row takes all of them; nothing is gathered unless it is asked for.
    x = gathered(x)
    valid = holds(x)
    message = f"{name} must be {expected}, got {{value}}"
    details = {"value": x}
    if x.ndim:
        first = valid.argmin()
        message += " in row {row}"
        details["value"] = x.ravel()[first]
        details["row"] = first // (x.size // x.shape[0])
    if isinstance(x, jax.core.Tracer):
        check_traced(jnp.all(valid), message, **details)
    elif not valid.all():
        raise ValueError(message.format(**details))

"""Statistics that an anchor keeps of its pairs: sums, extremes and log-sum-exps.

A function of a pair returns some of them; walked over all pairs of an anchor they are merged, tile
by tile, into numbers. What is merged is small: a sum; an extreme and which row gave it; a maximum
and the sum of exponentials below it (Milakov and Gimelshein, Online normalizer calculation for
softmax, 2018).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

Kind = Literal["sum", "max", "min", "log_sum_exp"]
Kept = tuple[jax.Array, ...]


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["value", "where"], meta_fields=["kind"]
)
@dataclasses.dataclass(frozen=True)
class Statistic:
    """What one pair adds to a statistic of its anchor."""

    kind: Kind
    value: Any
    where: Any


def total(value: ArrayLike, where: ArrayLike = True) -> Statistic:
    """Sum of `value` over the pairs for which `where` holds; 0 over none.

    Args:
      value: scalar.
      where: scalar, bool.

    Returns:
      The statistic.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import anchor_statistics, distances, statistics
      >>> x = jnp.array([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
      >>> classes = jnp.array([0, 0, 1])
      >>> def statistic(distance, label):
      ...     return statistics.total(1.0, label == 0)
      >>> (result,) = anchor_statistics(
      ...     x, classes, statistics=(statistic,), distance=distances.squared_euclidean
      ... )
      >>> print(result)  # the number of positives of each anchor
      [1. 1. 0.]
    """
    return _statistic("sum", value, where)


def largest(value: ArrayLike, where: ArrayLike = True) -> Statistic:
    """Largest `value` over the pairs for which `where` holds; `-inf` over none.

    Its derivative is that of the pair which gave it; of several, of one.

    Args:
      value: scalar.
      where: scalar, bool.

    Returns:
      The statistic.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import anchor_statistics, distances, statistics
      >>> x = jnp.array([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
      >>> classes = jnp.array([0, 0, 1])
      >>> def statistic(distance, label):
      ...     return statistics.largest(distance, label == 1)
      >>> (result,) = anchor_statistics(
      ...     x, classes, statistics=(statistic,), distance=distances.squared_euclidean
      ... )
      >>> print(result)  # the farthest negative of each anchor
      [ 1. 18. 18.]
    """
    return _statistic("max", value, where)


def smallest(value: ArrayLike, where: ArrayLike = True) -> Statistic:
    """Smallest `value` over the pairs for which `where` holds; `inf` over none.

    Args:
      value: scalar.
      where: scalar, bool.

    Returns:
      The statistic.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import anchor_statistics, distances, statistics
      >>> x = jnp.array([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
      >>> classes = jnp.array([0, 0, 1])
      >>> def statistic(distance, label):
      ...     return statistics.smallest(distance, label == 1)
      >>> (result,) = anchor_statistics(
      ...     x, classes, statistics=(statistic,), distance=distances.squared_euclidean
      ... )
      >>> print(result)  # the nearest negative of each anchor
      [ 1. 18.  1.]
    """
    return _statistic("min", value, where)


def log_sum_exp(value: ArrayLike, where: ArrayLike = True) -> Statistic:
    r"""Log-sum-exp of `value` over the pairs for which `where` holds; `-inf` over none.

    $$\log \sum e^v$$

    with $v$ the value.

    Args:
      value: scalar.
      where: scalar, bool.

    Returns:
      The statistic.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import anchor_statistics, distances, statistics
      >>> x = jnp.array([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
      >>> classes = jnp.array([0, 0, 1])
      >>> def statistic(distance, label):
      ...     return statistics.log_sum_exp(-distance, label == 1)
      >>> (result,) = anchor_statistics(
      ...     x, classes, statistics=(statistic,), distance=distances.squared_euclidean
      ... )
      >>> print([f"{one:.2f}" for one in result])  # a soft nearest negative of each anchor
      ['-1.00', '-18.00', '-1.00']
    """
    return _statistic("log_sum_exp", value, where)


class OfSimilar(NamedTuple):
    """A function of pairs whose statistics are of similar pairs alone.

    A walk passes by what holds none of them, which is most of it.
    """

    function: Callable[..., Any]

    def __call__(self, distance: jax.Array, label: jax.Array, *known: Any) -> Any:
        def similar(one: Statistic) -> Statistic:
            return Statistic(one.kind, one.value, one.where & (label == 0))

        found = self.function(distance, label, *known)
        return jax.tree.map(similar, found, is_leaf=is_statistic)


def _statistic(kind: Kind, value: ArrayLike, where: ArrayLike) -> Statistic:
    value = jnp.asarray(value)
    if not jnp.issubdtype(value.dtype, jnp.floating):
        value = value.astype(jnp.float32)
    return Statistic(kind, value, jnp.asarray(where, bool))


def holds_for_none(where: Any) -> bool:
    """Whether a condition on one pair is known, where a program is traced, not to hold."""
    return not isinstance(where, jax.core.Tracer) and not where


def to_keep(tree: Any, dtype: Any) -> Any:
    """Statistics of one pair in the dtype they are kept in.

    They have no value and no condition where this is known not to hold.
    """

    def one(statistic: Statistic) -> Statistic:
        if holds_for_none(statistic.where):
            return Statistic(statistic.kind, None, None)
        return Statistic(statistic.kind, jnp.asarray(statistic.value, dtype), statistic.where)

    return jax.tree.map(one, tree, is_leaf=is_statistic)


def is_statistic(leaf: Any) -> bool:
    """Whether a leaf of a tree is a statistic."""
    return isinstance(leaf, Statistic)


def none_kept(kind: Kind, shape: tuple[int, ...], dtype: Any) -> Kept:
    """What is kept before any pair."""
    if kind == "sum":
        return (jnp.zeros(shape, dtype),)
    lowest = jnp.full(shape, -jnp.inf, dtype)
    return lowest, jnp.full(shape, -1, jnp.int32) if kind in ("max", "min") else jnp.zeros_like(
        lowest
    )


def kept_of_tile(
    statistic: Statistic, counts: jax.Array | None, axis: int, places: jax.Array
) -> Kept | None:
    """What is kept of the pairs of a tile, along one of its axes.

    Args:
      statistic: of `[H, W]` pairs.
      counts: which pairs count, `[H, W]`; None where all do.
      axis: 1 to keep it for rows, 0 for columns.
      places: of the rows on the other side.

    Returns:
      For the rows, `[H]`, or for the columns, `[W]`; None of a statistic without condition.
    """
    if statistic.where is None:
        return None
    value, where = statistic.value, statistic.where
    if counts is not None:
        where = where & counts
    if statistic.kind == "sum":
        return (jnp.sum(jnp.where(where, value, 0), axis),)
    if statistic.kind == "min":
        value = -value
    # One array is compared with its maximum: computed twice it might differ in the last digit.
    value = lax.optimization_barrier(jnp.where(where, value, -jnp.inf))
    most = jnp.max(value, axis)
    across = jnp.expand_dims(most, axis)
    if statistic.kind in ("max", "min"):
        at = where & (value == across)
        theirs = places[None, :] if axis == 1 else places[:, None]
        return most, jnp.max(jnp.where(at, theirs, -1), axis)
    return most, jnp.sum(_exp_below(value, across), axis)


def _exp_below(value: jax.Array, most: jax.Array) -> jax.Array:
    """`exp(value - most)`, and 0 below `-inf`."""
    return jnp.exp(value - jnp.where(most == -jnp.inf, 0, most))


def merged(kind: Kind, a: Kept, b: Kept) -> Kept:
    """What is kept of two sets of pairs."""
    if kind == "sum":
        return (a[0] + b[0],)
    # Not by comparing, as a NaN is to stay.
    most = jnp.maximum(a[0], b[0])
    if kind in ("max", "min"):
        return most, jnp.where(b[0] > a[0], b[1], a[1])
    return most, a[1] * _exp_below(a[0], most) + b[1] * _exp_below(b[0], most)


def reduced(pairs: Statistic, counts: jax.Array, dtype: Any) -> jax.Array:
    """Reduces a statistic of a row of pairs in plain JAX, which can be differentiated in any way.

    Args:
      pairs: statistic of `[M]` pairs.
      counts: mask of the pairs that count, `[M]`.
      dtype: dtype of the result.

    Returns:
      The statistic over those that count, a scalar.
    """
    where, value = pairs.where & counts, pairs.value.astype(dtype)
    if pairs.kind == "sum":
        return jnp.sum(jnp.where(where, value, 0))
    if pairs.kind == "log_sum_exp":
        # Over no pair the logarithm is taken of 1, as that of 0 has no derivative.
        where &= value > -jnp.inf
        some = jnp.any(where)
        value = jnp.where(where, value, jnp.where(some, -jnp.inf, 0))
        return jnp.where(some, jax.nn.logsumexp(value), -jnp.inf)
    none = -jnp.inf if pairs.kind == "max" else jnp.inf
    value = jnp.where(where, value, none)
    index = jnp.argmax(value) if pairs.kind == "max" else jnp.argmin(value)
    return jnp.where(jnp.any(where), value[index], none)


def result(kind: Kind, kept: Kept) -> jax.Array:
    """The statistic that was kept."""
    if kind == "sum":
        return kept[0]
    if kind == "log_sum_exp":
        # The logarithm of 0 is -inf, and the maximum then too.
        return kept[0] + jnp.log(jnp.where(kept[1] == 0, 1, kept[1]))
    return -kept[0] if kind == "min" else kept[0]

"""Reductions of the statistics of pairs: init, reduce a tile, merge, result."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from contrastive_jax.statistics import Kind, Statistic

Kept = tuple[jax.Array, ...]


def holds_for_none(where: Any) -> bool:
    """Whether a condition on one pair is known, where a program is traced, not to hold."""
    return not isinstance(where, jax.core.Tracer) and not where


def is_statistic(leaf: Any) -> bool:
    """Whether a leaf of a tree is a statistic."""
    return isinstance(leaf, Statistic)


def to_keep(tree: Any, dtype: Any) -> Any:
    """Statistics of one pair in the dtype they are kept in.

    They have no value and no condition where this is known not to hold.
    """

    def one(statistic: Statistic) -> Statistic:
        if holds_for_none(statistic.where):
            return Statistic(statistic.kind, None, None)
        return Statistic(statistic.kind, jnp.asarray(statistic.value, dtype), statistic.where)

    return jax.tree.map(one, tree, is_leaf=is_statistic)


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

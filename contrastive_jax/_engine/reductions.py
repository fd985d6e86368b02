"""Reductions of the statistics of an anchor's pairs: init, reduce a tile, merge, result.

The partial result of a statistic is small, so that it is merged tile by tile: a sum; a maximum, or
the negative of a minimum, and the index of the row that gave it; for a log-sum-exp a maximum and
the sum of the
exponentials relative to it (Milakov and Gimelshein, Online normalizer calculation for softmax,
2018).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from contrastive_jax.statistics import Op, Statistic

Partial = tuple[jax.Array, ...]


def is_statistic(leaf: Any) -> bool:
    """Returns whether a leaf of a tree is a statistic."""
    return isinstance(leaf, Statistic)


def flatten_statistics(tree: Any) -> list[Statistic]:
    """Returns the statistics of a tree, in the order of its leaves."""
    return jax.tree.leaves(tree, is_leaf=is_statistic)


def never_holds(where: Any) -> bool:
    """Returns whether a condition is concrete where a program is traced, and false."""
    return not isinstance(where, jax.core.Tracer) and not where


def cast_statistics(tree: Any, dtype: Any) -> Any:
    """Casts the statistics of one pair to the dtype of their reduction.

    Value and condition of a statistic whose condition never holds become None, so that its
    reduction is skipped.
    """

    def one(statistic: Statistic) -> Statistic:
        if never_holds(statistic.where):
            return Statistic(statistic.op, None, None)
        return Statistic(statistic.op, jnp.asarray(statistic.value, dtype), statistic.where)

    return jax.tree.map(one, tree, is_leaf=is_statistic)


def init_partial(op: Op, shape: tuple[int, ...], dtype: Any) -> Partial:
    """Returns the partial result of a reduction over no pairs."""
    if op == "sum":
        return (jnp.zeros(shape, dtype),)
    lowest = jnp.full(shape, -jnp.inf, dtype)
    if op == "log_sum_exp":
        return lowest, jnp.zeros_like(lowest)
    return lowest, jnp.full(shape, -1, jnp.int32)


def reduce_tile(
    statistic: Statistic, counts: jax.Array | None, axis: int, indices: jax.Array
) -> Partial | None:
    """Reduces a statistic of the pairs of a tile along one of its axes.

    Args:
      statistic: statistic of `[H, W]` pairs.
      counts: mask of the pairs that count, `[H, W]`; None if all do.
      axis: 1 for the anchors of the rows, 0 for those of the columns.
      indices: consecutive indices of the rows on the other side.

    Returns:
      The partial result, `[H]` or `[W]`; None if the condition of the statistic never holds.
    """
    if statistic.where is None:
        return None
    value, where = statistic.value, statistic.where
    if counts is not None:
        where = where & counts
    if statistic.op == "sum":
        return (jnp.sum(jnp.where(where, value, 0), axis),)
    if statistic.op == "min":
        value = -value
    # One array is compared with its maximum: computed twice it might differ in the last digit.
    value = lax.optimization_barrier(jnp.where(where, value, -jnp.inf))
    largest = jnp.max(value, axis)
    expanded = jnp.expand_dims(largest, axis)
    if statistic.op in ("max", "min"):
        at = where & (value == expanded)
        # Positions in a tile are exact in float32. Its maximum is a call of a library on a CPU, and
        # need not be compiled.
        own = jnp.expand_dims(jnp.arange(len(indices), dtype=jnp.float32), 1 - axis)
        last = jnp.max(jnp.where(at, own, -1), axis).astype(jnp.int32)
        return largest, jnp.where(last < 0, -1, indices[0] + last)
    return largest, jnp.sum(_exp_below(value, expanded), axis)


def _exp_below(value: jax.Array, largest: jax.Array) -> jax.Array:
    """Returns `exp(value - largest)`, and 0 where both are `-inf`."""
    return jnp.exp(value - jnp.where(largest == -jnp.inf, 0, largest))


def merge(op: Op, a: Partial, b: Partial) -> Partial:
    """Merges the partial results of two sets of pairs."""
    if op == "sum":
        return (a[0] + b[0],)
    # Not by comparing, as a NaN is to stay.
    largest = jnp.maximum(a[0], b[0])
    if op in ("max", "min"):
        return largest, jnp.where(b[0] > a[0], b[1], a[1])
    return largest, a[1] * _exp_below(a[0], largest) + b[1] * _exp_below(b[0], largest)


def result(op: Op, partial: Partial) -> jax.Array:
    """Returns the statistic that a partial result over all pairs stands for."""
    if op == "sum":
        return partial[0]
    if op == "log_sum_exp":
        # The logarithm of 0 is -inf, and the maximum then too.
        return partial[0] + jnp.log(jnp.where(partial[1] == 0, 1, partial[1]))
    return -partial[0] if op == "min" else partial[0]


def reduce_row(pairs: Statistic, counts: jax.Array, dtype: Any) -> jax.Array:
    """Reduces a statistic of the pairs of one row in plain JAX, which is differentiable in any way.

    Args:
      pairs: statistic of `[M]` pairs.
      counts: mask of the pairs that count, `[M]`.
      dtype: dtype of the result.

    Returns:
      The statistic over those that count, a scalar.
    """
    where, value = pairs.where & counts, pairs.value.astype(dtype)
    if pairs.op == "sum":
        return jnp.sum(jnp.where(where, value, 0))
    if pairs.op == "log_sum_exp":
        # Over no pair the logarithm is taken of 1, as that of 0 has no derivative.
        where &= value > -jnp.inf
        some = jnp.any(where)
        value = jnp.where(where, value, jnp.where(some, -jnp.inf, 0))
        return jnp.where(some, jax.nn.logsumexp(value), -jnp.inf)
    init = -jnp.inf if pairs.op == "max" else jnp.inf
    value = jnp.where(where, value, init)
    index = jnp.argmax(value) if pairs.op == "max" else jnp.argmin(value)
    return jnp.where(jnp.any(where), value[index], init)

"""Statistics of the pairs of each row of a matrix of distances."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from contrastive_jax._engine.reductions import is_statistic
from contrastive_jax._engine.squared_distances import Pairs
from contrastive_jax._engine.stages import Stage, values_of_stage
from contrastive_jax.statistics import Statistic


def statistics_of_rows(
    stages: tuple[Stage, ...],
    pairs: Pairs,
    data: tuple[Any, ...],
    parameters: tuple[jax.Array, ...],
) -> tuple[Any, ...]:
    """Returns the statistics of each stage over the columns that count.

    Args:
      stages: functions that give the statistics.
      pairs: the pairs, `[N, M]`.
      data: data of each row, trees of `[N]`.
      parameters: parameters of the stages, one after the other.

    Returns:
      For each stage its statistics, `[N]` each.
    """
    results = data
    for k in range(len(stages)):
        pair_statistics = partial(values_of_stage, stages, k)
        over_columns = jax.vmap(pair_statistics, (0, 0, None, None))
        over_rows = jax.vmap(over_columns, (0, 0, 0, None))
        each = over_rows(pairs.distances, pairs.labels, results, parameters)
        reduce = partial(_reduced, pairs.counts, pairs.distances.dtype)
        results = (*results, jax.tree.map(reduce, each, is_leaf=is_statistic))
    return results[len(data) :]


def _reduced(counts: jax.Array, dtype: Any, pairs: Statistic) -> jax.Array:
    """A statistic of pairs `[N, M]`, over those of each row that count."""
    where, value = pairs.where & counts, pairs.value.astype(dtype)
    if pairs.op == "sum":
        return jnp.sum(jnp.where(where, value, 0), axis=1)
    if pairs.op == "max":
        return _largest(value, where)
    if pairs.op == "min":
        return -_largest(-value, where)
    return _log_sum_exp(value, where)


@jax.custom_vjp
def _log_sum_exp(value: jax.Array, where: jax.Array) -> jax.Array:
    """Log-sum-exp of each row where a mask holds; -inf where it holds nowhere."""
    return _log_sum_exp_forward(value, where)[0]


def _log_sum_exp_forward(value: jax.Array, where: jax.Array) -> tuple[jax.Array, Any]:
    # One array is compared with its maximum: computed twice it might have other digits.
    value = lax.optimization_barrier(jnp.where(where, value, -jnp.inf))
    largest = jnp.max(value, axis=1)
    offset = jnp.where(jnp.abs(largest) == jnp.inf, 0, largest)
    terms = jnp.exp(value - offset[:, None])
    total = jnp.sum(terms, axis=1)
    some = total != 0
    total = jnp.where(some, total, 1)
    return jnp.where(some, offset + jnp.log(total), -jnp.inf), (terms, total, some)


def _log_sum_exp_backward(residuals: Any, cotangent: jax.Array) -> tuple[jax.Array, None]:
    terms, total, some = residuals
    # The terms are 0 where the mask does not hold, so that it is not needed again. A row without
    # terms has no derivative, whatever its cotangent is: that of -inf may be NaN.
    return (jnp.where(some, cotangent, 0) / total)[:, None] * terms, None


_log_sum_exp.defvjp(_log_sum_exp_forward, _log_sum_exp_backward)


def _largest(value: jax.Array, where: jax.Array) -> jax.Array:
    """Largest value of each row where a mask holds, with the derivative of one entry alone."""
    # Exact in float32: XLA has a kernel ready for the largest of them on a CPU.
    indices = np.arange(value.shape[1], dtype=np.float32)

    @jax.custom_vjp
    def largest(value: jax.Array, where: jax.Array) -> jax.Array:
        return jnp.max(jnp.where(where, value, -jnp.inf), axis=1)

    def forward(value: jax.Array, where: jax.Array) -> tuple[jax.Array, jax.Array]:
        # One array is compared with its maximum: computed twice it might have other digits.
        value = lax.optimization_barrier(jnp.where(where, value, -jnp.inf))
        result = jnp.max(value, axis=1)
        chosen = jnp.where(value == result[:, None], indices[None], -1)
        # XLA would select in the kernel of the maximum, which takes a CPU longer than two kernels,
        # and removes a barrier before it decides. Rounding, which is exact for an index, it keeps.
        index = jnp.max(lax.reduce_precision(chosen, 8, 22), axis=1)
        # A row without entries, or of -inf alone, has no derivative.
        return result, jnp.where(result == -jnp.inf, -1, index)

    def backward(index: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, None]:
        return jnp.where(indices[None] == index[:, None], cotangent[:, None], 0), None

    largest.defvjp(forward, backward)
    return largest(value, where)

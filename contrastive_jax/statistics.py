"""Statistics of the pairs of an anchor: sums, maxima, minima and log-sum-exps.

A function of a pair returns some of them, and a pass over all pairs of an anchor reduces each to a
scalar.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

Op = Literal["sum", "max", "min", "log_sum_exp"]


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["value", "where"], meta_fields=["op"]
)
@dataclasses.dataclass(frozen=True)
class Statistic:
    """The contribution of one pair to a statistic of its anchor."""

    op: Op
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


class PositivesOnly(NamedTuple):
    """A function of pairs whose statistics are of positive pairs alone.

    A pass over the pairs skips the tiles without positive pairs, which are most of them.
    """

    function: Callable[..., Any]

    def __call__(self, distance: jax.Array, label: jax.Array, *results: Any) -> Any:
        def positive(one: Statistic) -> Statistic:
            return Statistic(one.op, one.value, one.where & (label == 0))

        tree = self.function(distance, label, *results)
        return jax.tree.map(positive, tree, is_leaf=lambda leaf: isinstance(leaf, Statistic))


def _statistic(op: Op, value: ArrayLike, where: ArrayLike) -> Statistic:
    value = jnp.asarray(value)
    if not jnp.issubdtype(value.dtype, jnp.floating):
        value = value.astype(jnp.float32)
    return Statistic(op, value, jnp.asarray(where, bool))

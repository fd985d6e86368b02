"""Losses that combine other losses."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax.typing import ArrayLike

from contrastive_jax.checks import check_range
from contrastive_jax.losses._distance import check_fits_statistics, rule_of_pairs
from contrastive_jax.losses.types import AnchorLoss, Mean, resolve_distance
from contrastive_jax.statistics import total


def mean_over_pairs(
    loss: Callable[..., jax.Array], distance: Callable[..., jax.Array] | None = None
) -> AnchorLoss:
    """Makes an anchor loss that is the mean of a pair loss over all pairs.

    Use it in `weighted_sum`, or for the loss of each row with `reduction="none"`; by itself a pair
    loss is faster in `all_pairs_loss`.

    Args:
      loss: scalar function `(distance, label)`.
      distance: function of two vectors; by default that of the loss.

    Returns:
      Loss for `anchor_loss`.

    Raises:
      ValueError: if `loss` or `distance` is not a function, or the distance does not fit the loss.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import anchor_loss, losses
      >>> x = jnp.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> classes = jnp.array([0, 0, 1, 1])
      >>> contrastive = losses.mean_over_pairs(losses.contrastive)
      >>> value = anchor_loss(x, classes, loss=contrastive)
      >>> print(f"{value:.3f}")
      0.135
    """
    measure = resolve_distance(loss, distance)

    def statistics(distance: jax.Array, label: jax.Array) -> Any:
        value = loss(distance, label)
        return total(value), total(1.0), total(1.0, value != 0)

    check = rule_of_pairs(loss)
    return AnchorLoss(lambda stats: Mean(*stats), (statistics,), measure, check_distance=check)


def weighted_sum(*terms: tuple[ArrayLike, AnchorLoss]) -> AnchorLoss:
    """Adds anchor losses, computed in the same passes over the pairs.

    Args:
      *terms: weights and losses of one distance. Weights are scalars and may be traced. The losses
        take no data.

    Returns:
      Loss for `anchor_loss`.

    Raises:
      AssertionError: if a weight is not a scalar.
      ValueError: if there are no terms, a concrete weight is not finite, a loss is not an
        `AnchorLoss`, or distances differ: add up the results of several calls of `anchor_loss`
        then.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import anchor_loss, losses
      >>> x = jnp.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> classes = jnp.array([0, 0, 1, 1])
      >>> both = losses.weighted_sum((0.5, losses.supcon(0.5)), (0.5, losses.ntxent(0.5)))
      >>> value = anchor_loss(x, classes, loss=both)
      >>> print(f"{value:.3f}")
      0.430
    """
    if not terms or not all(isinstance(term, tuple) and len(term) == 2 for term in terms):
        raise ValueError(
            f"weighted_sum needs at least one pair of a weight and a loss, got {terms!r}"
        )
    losses = [loss for _, loss in terms]
    for weight, loss in terms:
        check_range(-math.inf, math.inf, weight=weight)
        if not isinstance(loss, AnchorLoss):
            raise ValueError(
                f"weighted_sum adds up losses of type AnchorLoss, got {loss!r}; mean_over_pairs "
                "makes one of a pair loss"
            )
        if loss.needs:
            raise ValueError(
                "weighted_sum adds up losses that need no data; add this one by itself"
            )
        if loss.distance is not losses[0].distance:
            raise ValueError(
                "losses that share a pass must have one distance, got "
                f"{losses[0].distance!r} and {loss.distance!r}; loss._replace(distance=...) "
                "changes it"
            )

    def in_pass(index: int, distance: jax.Array, label: jax.Array, *stats: Any) -> dict[int, Any]:
        return {
            k: loss.statistics[index](distance, label, *[earlier[k] for earlier in stats])
            for k, loss in enumerate(losses)
            if index < len(loss.statistics)
        }

    def loss_of(*stats: Any) -> tuple[Mean, ...]:
        means = []
        for k, (weight, loss) in enumerate(terms):
            result = loss.loss(*[one[k] for one in stats[: len(loss.statistics)]])
            for mean in [result] if isinstance(result, Mean) else result:
                means.append(mean._replace(value=weight * mean.value))
        return tuple(means)

    def check_all(distance: Any) -> None:
        for loss in losses:
            check_fits_statistics(loss, distance)

    passes = max(len(loss.statistics) for loss in losses)
    statistics = tuple(partial(in_pass, index) for index in range(passes))
    return AnchorLoss(loss_of, statistics, losses[0].distance, check_distance=check_all)

"""The loss of an anchor by some of its pairs: those that a miner selects, or that are given.

`anchor_loss` reduces the statistics of all pairs of an anchor tile by tile. A miner that has a
condition restricts these statistics to the pairs that meet it. Where a positive and a negative are
selected together, their distances are at hand, and the statistics are reduced over an array of two.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from contrastive_jax._engine.reductions import is_statistic, reduce_row
from contrastive_jax.losses.types import AnchorLoss, Mean, TripletLoss
from contrastive_jax.statistics import PositivesOnly, Statistic, total

Loss = Callable[..., jax.Array] | AnchorLoss | TripletLoss

LABELS = np.int32(0), np.int32(1)
"""Labels of a positive pair and of a negative one."""


def means_of_triplet(
    loss: AnchorLoss | TripletLoss,
    distances: Sequence[jax.Array],
    valid: Sequence[jax.Array],
    data: tuple[Any, ...] = (),
) -> tuple[Mean, ...]:
    """Returns the means that an anchor adds to a loss, over one positive and one negative.

    Args:
      loss: a loss of anchors, or of anchors and their positives.
      distances: distances of the positive and of the negative, finite also where one is not valid.
      valid: for the positive and for the negative, True if it counts.
      data: data of the anchor; of a `TripletLoss` the distance of its positive.

    Returns:
      The means, one for most losses.
    """
    both, counts, results = jnp.stack([*distances]), jnp.stack([*valid]), data
    for function in loss.statistics:
        over_pairs = jax.vmap(function, (0, 0, *[None] * len(results)))
        pairs = over_pairs(both, jnp.stack(LABELS), *results)
        reduce = partial(reduce_row, counts=counts, dtype=both.dtype)
        results = (*results, jax.tree.map(reduce, pairs, is_leaf=is_statistic))
    means = loss.loss(*results)
    return (means,) if isinstance(means, Mean) else tuple(means)


def mean_of_two(loss: Loss, positive: jax.Array, negative: jax.Array) -> Mean:
    """Returns the one mean of `means_of_two`."""
    means = means_of_two(loss, positive, negative)
    if len(means) > 1:
        raise ValueError(
            f"this miner selects a negative for each positive, and the loss has {len(means)} means "
            "of which each anchor has one: mine the terms of weighted_sum one by one, and add up "
            "the results of anchor_loss"
        )
    return means[0]


def means_of_two(
    loss: Loss, positive: jax.Array, negative: jax.Array, *data: Any
) -> tuple[Mean, ...]:
    """Returns the means of an anchor with one positive and one negative.

    A distance that is not finite means that there is no such pair.
    """
    both = positive, negative
    valid = [jnp.isfinite(one) for one in both]
    finite = [jnp.where(is_valid, one, 1) for is_valid, one in zip(valid, both, strict=True)]
    if isinstance(loss, AnchorLoss):
        return means_of_triplet(loss, finite, valid, data)
    if isinstance(loss, TripletLoss):
        # Without a positive the result is masked, and its derivative has to be finite.
        valid[0], has_positive = jnp.ones_like(valid[0]), valid[0]
        means = means_of_triplet(loss, finite, valid, (finite[0],))
        return tuple(masked(mean, has_positive) for mean in means)
    value, count = jnp.zeros_like(positive), jnp.zeros_like(positive)
    for label, distance, is_valid in zip(LABELS, finite, valid, strict=True):
        value += jnp.where(is_valid, loss(distance, label), 0)
        count += is_valid.astype(count.dtype)
    return (Mean(value, count),)


def masked(mean: Mean, counts: jax.Array) -> Mean:
    """Returns a mean that is empty where an anchor, or its positive, does not count."""
    return Mean(*(None if one is None else jnp.where(counts, one, 0) for one in mean))


def as_loss_of_anchors(loss: Loss) -> Any:
    """Returns the mean of a pair loss over the pairs of an anchor, and other losses as they are."""
    if isinstance(loss, AnchorLoss | TripletLoss):
        return loss

    def sums_of_pair(distance: jax.Array, label: jax.Array) -> Any:
        return total(loss(distance, label)), total(1.0)

    return AnchorLoss(lambda sums: Mean(*sums), (sums_of_pair,))


def restricted_to(
    loss: Any, is_mined: Callable[..., jax.Array], first: Callable[..., Any] | None = None
) -> Any:
    """Returns a loss of anchors or triplets that sees the pairs alone that meet a condition.

    Args:
      loss: the loss of all pairs.
      is_mined: takes a distance, a label and, where there are some, the statistics of `first`.
      first: statistics of all pairs that the condition depends on.
    """
    # A loss of triplets has the distance of its positive where one of anchors has its data.
    data_count = 1 if isinstance(loss, TripletLoss) else len(loss.needs)
    end = data_count + (first is not None)

    def restricted(function: Callable[..., Any]) -> Any:
        def mined(distance: jax.Array, label: jax.Array, *results: Any) -> Any:
            where = is_mined(distance, label, *results[data_count:end])
            return jax.tree.map(
                lambda one: Statistic(one.op, one.value, one.where & where),
                function(distance, label, *results[:data_count], *results[end:]),
                is_leaf=is_statistic,
            )

        return PositivesOnly(mined) if isinstance(function, PositivesOnly) else mined

    def loss_of_anchor(*results: Any) -> Any:
        return loss.loss(*results[:data_count], *results[end:])

    def loss_of_positive(positive: jax.Array, *results: Any) -> Mean:
        counts = is_mined(positive, 0, *results[: end - 1])
        # Where the positive is not mined any statistics do, whose derivative is finite.
        own = jax.tree.map(lambda leaf: jnp.where(counts, leaf, 1), results[end - 1 :])
        return masked(loss.loss(positive, *own), counts)

    statistics = (*([] if first is None else [first]), *map(restricted, loss.statistics))
    function = loss_of_positive if isinstance(loss, TripletLoss) else loss_of_anchor
    return loss._replace(loss=function, statistics=statistics)

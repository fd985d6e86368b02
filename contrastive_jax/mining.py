"""Mining: which pairs of an anchor count, as weights inside the walk over all pairs.

Each function takes a pair loss, a function of a distance and a label, and gives a loss for
`anchor_loss`, or is one of a batch (`online_hard_loss`); where nothing is found nothing is added.
What is chosen is not differentiated, only the loss of it.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from contrastive_jax.all_pairs import Reduction, all_pairs_loss
from contrastive_jax.anchor_loss import anchor_statistics
from contrastive_jax.checks import (
    check_distance,
    check_known,
    check_pair_loss,
    check_range,
    check_scalars,
    check_traced,
)
from contrastive_jax.distances import cosine, euclidean
from contrastive_jax.host_arrays import as_array, as_classes
from contrastive_jax.losses.kinds import AnchorLoss, Mean, TripleLoss
from contrastive_jax.losses.pairwise import contrastive, margin_based
from contrastive_jax.statistics import (
    Statistic,
    is_statistic,
    largest,
    log_sum_exp,
    smallest,
    total,
)
from contrastive_jax.tiles import axes_of, varying

__all__ = [
    "distance_weighted",
    "easy_positive",
    "hard",
    "multi_similarity",
    "online_hard_loss",
    "semi_hard",
]

PairLoss = Callable[[jax.Array, jax.Array], jax.Array]
Distance = Callable[[jax.Array, jax.Array], jax.Array]


def hard(loss: PairLoss = contrastive, distance: Distance = euclidean) -> AnchorLoss:
    """The farthest positive and the nearest negative of each anchor.

    Args:
      loss: of a distance and a label.
      distance: of two vectors.

    Returns:
      Loss for `anchor_loss`, the mean over the pairs found.

    Raises:
      ValueError: if `loss` or `distance` is not a function.

    References:
      Hermans, Beyer and Leibe, In Defense of the Triplet Loss for Person Re-Identification, 2017
      <https://arxiv.org/abs/1703.07737>, eq. 5.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import anchor_loss, mining
      >>> x = jnp.array([[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [0.0, 1.0, 0.0], [-0.6, 0.8, 0.0]])
      >>> classes = jnp.array([0, 0, 1, 1])
      >>> value = anchor_loss(x, classes, loss=mining.hard())
      >>> print(f"{value:.3f}")
      0.203
    """
    return _of_extremes(largest, loss, distance)


def easy_positive(loss: PairLoss = contrastive, distance: Distance = euclidean) -> AnchorLoss:
    """The nearest positive and the nearest negative of each anchor.

    Classes that lie in several places need not be pulled into one.

    Args:
      loss: of a distance and a label.
      distance: of two vectors.

    Returns:
      Loss for `anchor_loss`, the mean over the pairs found.

    Raises:
      ValueError: if `loss` or `distance` is not a function.

    References:
      Xuan, Stylianou and Pless, Improved Embeddings with Easy Positive Triplet Mining, 2020
      <https://arxiv.org/abs/1904.04370>, sec. 3.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import anchor_loss, mining
      >>> x = jnp.array([[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [0.0, 1.0, 0.0], [-0.6, 0.8, 0.0]])
      >>> classes = jnp.array([0, 0, 1, 1])
      >>> value = anchor_loss(x, classes, loss=mining.easy_positive())
      >>> print(f"{value:.3f}")
      0.203
    """
    return _of_extremes(smallest, loss, distance)


def _of_extremes(
    of_positives: Callable[..., Statistic], loss: PairLoss, distance: Distance
) -> AnchorLoss:
    check_pair_loss(loss)
    check_distance(distance)

    def statistics(distance: jax.Array, label: jax.Array) -> Any:
        return of_positives(distance, label == 0), smallest(distance, label == 1)

    def of_anchor(found: Any) -> Mean:
        return _of_two(loss, *found)

    return AnchorLoss(of_anchor, (statistics,), distance)


def semi_hard(
    loss: PairLoss = contrastive, distance: Distance = euclidean, *, margin: ArrayLike = math.inf
) -> TripleLoss:
    """Each positive, and the nearest negative that is farther off than it, by less than a margin.

    $$d_p < d_n < d_p + m$$

    with $d$ the distance of a positive $p$ and of a negative $n$, and $m$ the margin.

    Args:
      loss: of a distance and a label.
      distance: of two vectors.
      margin: above 0, in the unit of the distance. Positives that have no such negative are left
        out with it.

    Returns:
      Loss for `anchor_loss`, the mean over the pairs found. A walk over all pairs for every four
      examples of the largest class.

    Raises:
      ValueError: if `loss` or `distance` is not a function, or a known margin not above 0.

    References:
      Schroff, Kalenichenko and Philbin, FaceNet, 2015 <https://arxiv.org/abs/1503.03832>, eq. 4.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import anchor_loss, mining
      >>> x = jnp.array([[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [0.0, 1.0, 0.0], [-0.6, 0.8, 0.0]])
      >>> classes = jnp.array([0, 0, 1, 1])
      >>> value = anchor_loss(x, classes, loss=mining.semi_hard(margin=0.5))
      >>> print(f"{value:.3f}")
      0.206
    """

    check_pair_loss(loss)
    check_distance(distance)
    check_scalars(margin=margin)
    if isinstance(margin, jax.core.Tracer):
        check_traced(margin > 0, "margin must be above 0, got {margin}", margin=margin)
    elif not np.asarray(margin) > 0:
        raise ValueError(f"margin must be above 0, got {margin}")

    def statistics(distance: jax.Array, label: jax.Array, positive: jax.Array) -> Statistic:
        semi_hard = (label == 1) & (distance > positive) & (distance < positive + margin)
        return smallest(distance, semi_hard)

    def of_triple(positive: jax.Array, negative: jax.Array) -> Mean:
        found = _of_two(loss, positive, negative)
        known = jnp.isfinite(negative)
        return Mean(*(jnp.where(known, one, 0) for one in found[:2]))

    return TripleLoss(of_triple, (statistics,), distance)


def _of_two(loss: PairLoss, positive: jax.Array, negative: jax.Array) -> Mean:
    """Loss of a positive and a negative where they were found."""
    value, count = jnp.zeros_like(positive), jnp.zeros_like(positive)
    for label, distance in enumerate((positive, negative)):
        known = jnp.isfinite(distance)
        value += jnp.where(known, loss(jnp.where(known, distance, 1), jnp.int32(label)), 0)
        count += known.astype(count.dtype)
    return Mean(value, count)


def multi_similarity(
    loss: PairLoss | AnchorLoss = contrastive,
    distance: Distance | None = None,
    *,
    epsilon: ArrayLike = 0.1,
) -> AnchorLoss:
    r"""Negatives nearer than the farthest positive, positives farther than the nearest negative.

    $$d_n < \max_p d_p + \epsilon \quad \text{and} \quad d_p > \min_n d_n - \epsilon$$

    with $d$ the distance of the positives $p$ and of the negatives $n$, and $\epsilon$ the slack
    `epsilon`.

    Args:
      loss: of a distance and a label; or an `AnchorLoss` of one walk, such as
        `losses.multi_similarity()`, which then sees the mined pairs only.
      distance: of two vectors; by default that of an `AnchorLoss`, and the cosine distance.
      epsilon: at least 0, in the unit of the distance; 0.1 in the paper, for cosines.

    Returns:
      Loss for `anchor_loss`, the mean over the pairs found, or that of the `AnchorLoss`.

    Raises:
      ValueError: if `loss` is neither a function nor an `AnchorLoss` of one walk without data, if
        its formula is of another distance, or a known `epsilon` is below 0.

    References:
      Wang et al., Multi-Similarity Loss with General Pair Weighting for Deep Metric Learning, 2019
      <https://arxiv.org/abs/1904.06627>, eq. 11 and 12.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import anchor_loss, losses, mining
      >>> x = jnp.array([[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [0.0, 1.0, 0.0], [-0.6, 0.8, 0.0]])
      >>> classes = jnp.array([0, 1, 0, 1])
      >>> value = anchor_loss(x, classes, loss=mining.multi_similarity(losses.multi_similarity()))
      >>> print(f"{value:.3f}")
      0.957
    """

    if not isinstance(loss, AnchorLoss):
        check_pair_loss(loss)
    if distance is not None:
        check_distance(distance)
    check_range(0, math.inf, epsilon=epsilon)

    def extremes(distance: jax.Array, label: jax.Array) -> Any:
        return largest(distance, label == 0), smallest(distance, label == 1)

    def is_mined(distance: jax.Array, label: jax.Array, found: Any) -> jax.Array:
        farthest, nearest = found
        near, far = distance < farthest + epsilon, distance > nearest - epsilon
        return jnp.where(label == 1, near, far)

    def of_pair(distance: jax.Array, label: jax.Array) -> Any:
        return total(loss(distance, label)), total(1.0)  # type: ignore[operator]

    of_mined: Callable[..., Any] = of_pair
    of_anchor: Callable[..., Any] = lambda found: Mean(*found)  # noqa: E731
    fixed = False
    if isinstance(loss, AnchorLoss):
        fixed = loss.fixed
        if fixed and distance not in (None, loss.distance):
            raise ValueError("the formula of this loss is of its own distance: leave distance out")
        distance = loss.distance if distance is None else distance
        if len(loss.statistics) != 1 or loss.needs:
            raise ValueError("the AnchorLoss of mined pairs must take one walk and no data")
        (of_mined,), of_anchor = loss.statistics, loss.loss

    def mined(distance: jax.Array, label: jax.Array, found: Any) -> Any:
        where = is_mined(distance, label, found)
        return jax.tree.map(
            lambda one: Statistic(one.kind, one.value, one.where & where),
            of_mined(distance, label),
            is_leaf=is_statistic,
        )

    walks = extremes, mined
    return AnchorLoss(lambda _, found: of_anchor(found), walks, distance or cosine, fixed)


def distance_weighted(
    loss: PairLoss = margin_based,
    *,
    dimension: int,
    cutoff: float = 0.5,
    largest: float = 1.4,
) -> AnchorLoss:
    r"""All positives, and negatives in expectation of a draw that is even over distances.

    On a sphere of many dimensions random pairs lie near $\sqrt{2}$; negatives weigh by the inverse
    of the density of their distance,

    $$q(d) \propto d^{n - 2} (1 - d^2 / 4)^{(n - 3) / 2}$$

    with $d$ the distance and $n$ the dimension. Where the paper draws one for each positive, here
    the mean over such draws is taken, which needs no key and has no variance.

    Args:
      loss: of a distance and a label.
      dimension: of the embeddings, which are of unit length; at least 3.
      cutoff: distances below weigh as this one, as noise would rule else.
      largest: negatives farther off are left out, as a loss would be 0 there.

    Returns:
      Loss for `anchor_loss`, the mean over positives of their loss and that of a negative; with the
      Euclidean distance alone.

    Raises:
      ValueError: if `loss` is not a function, `dimension` is below 3, or not
        `0 < cutoff < largest <= 2`.

    References:
      Wu, Manmatha, Smola and Kraehenbuehl, Sampling Matters in Deep Embedding Learning, 2017
      <https://arxiv.org/abs/1706.07567>, eq. 1 to 3.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import anchor_loss, mining
      >>> x = jnp.array([[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [0.0, 1.0, 0.0], [-0.6, 0.8, 0.0]])
      >>> classes = jnp.array([0, 0, 1, 1])
      >>> value = anchor_loss(x, classes, loss=mining.distance_weighted(dimension=3))
      >>> print(f"{value:.3f}")
      0.253
    """
    check_pair_loss(loss)
    check_scalars(dimension=dimension, cutoff=cutoff, largest=largest)
    if dimension < 3:
        raise ValueError(f"dimension must be at least 3, got {dimension}")
    if not 0 < cutoff < largest <= 2:
        raise ValueError(f"expected 0 < cutoff < largest <= 2, got {cutoff} and {largest}")

    def log_weight(distance: jax.Array) -> jax.Array:
        distance = jnp.clip(distance, cutoff, largest)
        height = jnp.maximum(1 - distance**2 / 4, 1e-6)
        return (2 - dimension) * jnp.log(distance) + (3 - dimension) / 2 * jnp.log(height)

    def weights(distance: jax.Array, label: jax.Array) -> Any:
        drawn = (label == 1) & (distance < largest)
        return log_sum_exp(log_weight(distance), drawn), total(1.0, label == 0)

    def weighted(distance: jax.Array, label: jax.Array, found: Any) -> Any:
        whole, positives = found
        share = jnp.exp(jnp.minimum(log_weight(distance) - whole, 0))
        value, share = loss(distance, label), lax.stop_gradient(share)
        drawn = (label == 1) & (distance < largest) & (whole > -jnp.inf)
        return (
            total(value, label == 0),
            total(positives * jnp.where(drawn, share, 0) * value, drawn),
        )

    def of_anchor(first: Any, found: Any) -> Mean:
        return Mean(sum(found), first[1])

    return AnchorLoss(of_anchor, (weights, weighted), euclidean, fixed=True)


def online_hard_loss(
    embeddings: jax.Array,
    classes: jax.Array,
    references: jax.Array | None = None,
    reference_classes: jax.Array | None = None,
    *,
    loss: Callable[..., jax.Array] = contrastive,
    distance: Distance = cosine,
    margin: ArrayLike = 0.5,
    reduction: Reduction = "sum",
    axis_name: Any = None,
    **options: Any,
) -> jax.Array:
    """Loss of the hard pairs of a batch: similar ones farther apart than the nearest dissimilar.

    And dissimilar ones closer than the farthest similar, both over the whole batch. Sentence-
    transformers' OnlineContrastiveLoss does so with the pairs it is given, and with label 1 for
    similar ones; of a batch with at most one pair of a kind it takes a mean in place of the
    extreme, where here none is hard without pairs of both kinds.

    Args:
      embeddings: `[B, D]`, floating.
      classes: `[B]`, integers from 0; rows of class -1 are ignored.
      references: `[R, D]`.
      reference_classes: `[R]`.
      loss: of a distance and a label, with `margin` as a keyword.
      distance: of two vectors.
      margin: above 0, in the unit of the distance.
      reduction: as in `all_pairs_loss`; means but that over active pairs count all pairs, hard or
        not. Every pair of one set counts in both orders.
      axis_name: of the devices that share the batch.
      **options: `exact`, `tile`, `precision` and `method` of `all_pairs_loss`.

    Returns:
      Loss, a scalar; 0 where there is no hard pair.

    Raises:
      AssertionError: as `all_pairs_loss`.
      ValueError: as `all_pairs_loss`.

    References:
      Reimers and Gurevych, Sentence-BERT, 2019 <https://arxiv.org/abs/1908.10084>, and its
      library's OnlineContrastiveLoss.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import mining
      >>> x = jnp.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> value = mining.online_hard_loss(x, jnp.array([0, 1, 0, 1]))
      >>> print(f"{value:.3f}")
      4.380
    """
    check_known(margin=margin)
    classes = as_classes("classes", classes)
    embeddings = as_array("embeddings", embeddings, classes=classes)
    if reference_classes is not None:
        reference_classes = as_classes("reference_classes", reference_classes)
    if references is not None:
        references = as_array("references", references, classes=reference_classes)
    sets = (embeddings, classes, references, reference_classes)
    options |= {"distance": distance, "axis_name": axis_name}
    constant: list[Any] = [one if one is None else lax.stop_gradient(one) for one in sets]
    ((farthest, nearest),) = anchor_statistics(*constant, statistics=(_extremes,), **options)
    farthest, nearest = jnp.max(farthest, initial=-jnp.inf), jnp.min(nearest, initial=jnp.inf)
    farthest, nearest = lax.stop_gradient((farthest, nearest))
    if axis_name is not None:
        axes = axes_of((farthest, nearest))
        farthest, nearest = lax.pmax(farthest, axis_name), -lax.pmax(-nearest, axis_name)
        farthest, nearest = varying((farthest, nearest), axes)

    def of_hard(distance: jax.Array, label: jax.Array, margin: jax.Array) -> jax.Array:
        is_hard = jnp.where(label == 1, distance < farthest, distance > nearest)
        return jnp.where(is_hard, loss(distance, label, margin=margin), 0)

    return all_pairs_loss(*sets, loss=of_hard, margin=margin, reduction=reduction, **options)


def _extremes(distance: jax.Array, label: jax.Array) -> Any:
    return largest(distance, label == 0), smallest(distance, label == 1)

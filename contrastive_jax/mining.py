"""Mining: rules that select the pairs of an anchor, inside the pass over all pairs.

Each function takes a loss of pairs, of anchors or of triplets, and returns a loss for
`anchor_loss`; `online_hard_loss` is itself the loss of a batch. An anchor without selected pairs
adds 0. The selection has no derivative, only the loss of the selected pairs has.

A miner measures the distance of its loss. A loss of pairs is averaged over the pairs that are
selected. A loss of anchors or of triplets sees these pairs in place of all pairs of the anchor: a
positive and a negative where the miner selects them together (`hard`, `easy_positive`, `semi_hard`,
`distance_weighted`), or those that pass its condition (`multi_similarity`, `online_hard_loss`).
`losses.angular` takes no miner, as its negatives are not measured from the anchor.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from contrastive_jax._engine.arguments import checked_points
from contrastive_jax._engine.program_cache import identified, program_or_part
from contrastive_jax._engine.sharding import axes_of, varying
from contrastive_jax._traced_checks import check_traced
from contrastive_jax.all_pairs import Reduction, all_pairs_loss
from contrastive_jax.anchors import anchor_loss, anchor_statistics
from contrastive_jax.checks import check_distance, check_range, check_scalars
from contrastive_jax.distances import (
    angular,
    cosine,
    euclidean,
    negative_dot,
    squared_euclidean,
)
from contrastive_jax.labels.types import PairLabels, as_pair_labels
from contrastive_jax.losses._distance import carrier, check_fits_statistics, rule_of_pairs
from contrastive_jax.losses._margins import with_margin_checks
from contrastive_jax.losses._means import split_mean
from contrastive_jax.losses._selected import (
    as_loss_of_anchors,
    masked,
    mean_of_two,
    means_of_two,
    restricted_to,
)
from contrastive_jax.losses.combined import mean_over_pairs
from contrastive_jax.losses.pairwise import contrastive, margin_based
from contrastive_jax.losses.types import (
    AnchorLoss,
    CentersLoss,
    Mean,
    ProxyLoss,
    TripletLoss,
    resolve_distance,
    with_distance,
)
from contrastive_jax.statistics import Statistic, largest, log_sum_exp, smallest, total

__all__ = [
    "distance_weighted",
    "easy_positive",
    "hard",
    "multi_similarity",
    "online_hard_loss",
    "semi_hard",
]

PairLoss = Callable[..., jax.Array]
Distance = Callable[[jax.Array, jax.Array], jax.Array]

# As the papers of these miners have it.
_cosine_contrastive = with_distance(cosine)(contrastive)


def hard(
    loss: PairLoss | AnchorLoss | TripletLoss = contrastive, distance: Distance | None = None
) -> AnchorLoss:
    """The farthest positive and the nearest negative of each anchor.

    Args:
      loss: a loss of a distance and a label, of anchors, or of triplets.
      distance: function of two vectors; by default that of the loss.

    Returns:
      A loss for `anchor_loss`, the mean of a pair loss over the pairs that are selected, or a loss
      of anchors or triplets of this positive and this negative alone.

    Raises:
      ValueError: if `loss` is neither a function nor a loss of anchors or triplets, the distance
        does not fit it, or its negatives are not measured from the anchor.

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
    return _select_two(largest, loss, distance)


def easy_positive(
    loss: PairLoss | AnchorLoss | TripletLoss = contrastive, distance: Distance | None = None
) -> AnchorLoss:
    """The nearest positive and the nearest negative of each anchor.

    Classes that form several clusters need not be pulled into one.

    Args:
      loss: a loss of a distance and a label, of anchors, or of triplets.
      distance: function of two vectors; by default that of the loss.

    Returns:
      A loss for `anchor_loss`, the mean of a pair loss over the pairs that are selected, or a loss
      of anchors or triplets of this positive and this negative alone.

    Raises:
      ValueError: if `loss` is neither a function nor a loss of anchors or triplets, the distance
        does not fit it, or its negatives are not measured from the anchor.

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
    return _select_two(smallest, loss, distance)


def _select_two(
    positive_statistic: Callable[..., Statistic],
    loss: PairLoss | AnchorLoss | TripletLoss,
    distance: Distance | None,
) -> AnchorLoss:
    measure, rules = _measure(loss, distance)

    def statistics(distance: jax.Array, label: jax.Array, *data: Any) -> Any:
        return positive_statistic(distance, label == 0), smallest(distance, label == 1)

    def loss_of_anchor(*results: Any) -> tuple[Mean, ...]:
        *data, (positive, negative) = results
        return means_of_two(loss, positive, negative, *data)

    needs = loss.needs if isinstance(loss, AnchorLoss) else ()
    return AnchorLoss(loss_of_anchor, (statistics,), measure, needs=needs, **rules)


def semi_hard(
    loss: PairLoss | AnchorLoss | TripletLoss = contrastive,
    distance: Distance | None = None,
    *,
    margin: ArrayLike = math.inf,
) -> TripletLoss:
    """Each positive, and the nearest negative that is farther away than it, by less than a margin.

    $$d_p < d_n < d_p + m$$

    with $d$ the distance of a positive $p$ and of a negative $n$, and $m$ the margin.

    Args:
      loss: a loss of a distance and a label, of anchors without data, or of triplets.
      distance: function of two vectors; by default that of the loss.
      margin: above 0, in the unit of the distance; by default there is none. A positive without
        such a negative is left out.

    Returns:
      A loss for `anchor_loss`, the mean of a pair loss over the pairs that are selected, or of a
      loss of anchors or triplets over each positive with its negative alone. It takes a pass over
      all pairs for every four examples of the largest class.

    Raises:
      ValueError: as `hard`, and if a loss of anchors needs data or has several means, or a concrete
        margin is not above 0.

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
    measure, rules = _measure(loss, distance)
    _check_of_positives(loss)
    check_scalars(margin=margin)
    if isinstance(margin, jax.core.Tracer):
        check_traced(margin > 0, "margin must be above 0, got {margin}", margin=margin)
    elif not np.asarray(margin) > 0:
        raise ValueError(f"margin must be above 0, got {margin}")

    def statistics(distance: jax.Array, label: jax.Array, positive: jax.Array) -> Statistic:
        semi_hard = (label == 1) & (distance > positive) & (distance < positive + margin)
        return smallest(distance, semi_hard)

    def loss_of_triplet(positive: jax.Array, negative: jax.Array) -> Mean:
        has_negative = jnp.isfinite(negative)
        mean = mean_of_two(loss, positive, jnp.where(has_negative, negative, 1))
        return masked(mean, has_negative)

    return TripletLoss(loss_of_triplet, (statistics,), measure, **rules)


def _measure(
    loss: PairLoss | AnchorLoss | TripletLoss, distance: Distance | None
) -> tuple[Distance, dict[str, Any]]:
    """Returns the distance that a miner measures, and the fields that say which others fit."""
    if isinstance(loss, ProxyLoss | CentersLoss):
        raise ValueError(
            f"a miner selects among the pairs of a batch, and a {type(loss).__name__} compares "
            "rows with proxies: give it to proxy_loss"
        )
    if not isinstance(loss, AnchorLoss | TripletLoss):
        measure = resolve_distance(loss, distance)
        return measure, {"check_distance": rule_of_pairs(loss)}
    if isinstance(loss, TripletLoss) and (loss.combine or loss.positive_distance):
        raise ValueError(
            "a miner selects pairs by their distances from the anchor, and the negatives of this "
            "loss are measured from anchor and positive together: take it without a miner, or give "
            "its triplets to triplet_loss"
        )
    if distance is not None:
        check_distance(distance)
        check_fits_statistics(loss, distance)
    rules = {"fixed": loss.fixed, "check_distance": loss.check_distance}
    return loss.distance if distance is None else distance, rules


def _check_of_positives(loss: PairLoss | AnchorLoss | TripletLoss) -> None:
    """Raises ValueError if a loss needs data of anchors, which a loss of triplets does not take."""
    if isinstance(loss, AnchorLoss) and loss.needs:
        raise ValueError(
            f"this miner selects a negative for each positive, and the loss needs "
            f"{' and '.join(loss.needs)}, which it does not pass on: mine with hard, easy_positive "
            "or multi_similarity"
        )


def multi_similarity(
    loss: PairLoss | AnchorLoss | TripletLoss = _cosine_contrastive,
    distance: Distance | None = None,
    *,
    epsilon: ArrayLike = 0.1,
) -> AnchorLoss | TripletLoss:
    r"""Negatives nearer than the farthest positive, positives farther than the nearest negative.

    $$d_n < \max_p d_p + \epsilon \quad \text{and} \quad d_p > \min_n d_n - \epsilon$$

    with $d$ the distance of the positives $p$ and of the negatives $n$, and $\epsilon$ the slack
    `epsilon`.

    Args:
      loss: a loss of a distance and a label, by default `losses.contrastive` of cosine distances;
        of anchors, such as `losses.multi_similarity()`; or of triplets.
      distance: function of two vectors; by default that of the loss.
      epsilon: at least 0, in the unit of the distance; 0.1 in the paper, for cosines.

    Returns:
      A loss for `anchor_loss`, the mean of a pair loss over the pairs that are selected, or a loss
      of anchors or triplets, which sees these pairs only. It takes one pass more than the loss
      itself.

    Raises:
      ValueError: as `hard`, or if a concrete `epsilon` is below 0.

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
    measure, rules = _measure(loss, distance)
    check_range(0, math.inf, epsilon=epsilon)

    def is_mined(distance: jax.Array, label: ArrayLike, selected: Any) -> jax.Array:
        farthest, nearest = selected
        near, far = distance < farthest + epsilon, distance > nearest - epsilon
        return jnp.where(label == 1, near, far)

    loss_of_all = as_loss_of_anchors(loss)._replace(distance=measure, **rules)
    mined: AnchorLoss | TripletLoss = restricted_to(loss_of_all, is_mined, _farthest_and_nearest)
    return mined


# The Euclidean distance of vectors of unit length, from other distances of them.
_CHORDS: tuple[tuple[Distance, Callable[[jax.Array], jax.Array]], ...] = (
    (euclidean, lambda distance: distance),
    (squared_euclidean, jnp.sqrt),
    (cosine, lambda distance: jnp.sqrt(2 * distance)),
    (angular, lambda distance: 2 * jnp.sin(distance / 2)),
    (negative_dot, lambda distance: jnp.sqrt(jnp.maximum(0, 2 + 2 * distance))),
)


def distance_weighted(
    loss: PairLoss | AnchorLoss | TripletLoss = margin_based,
    *,
    dimension: int,
    cutoff: float = 0.5,
    largest: float = 1.4,
) -> AnchorLoss | TripletLoss:
    r"""All positives, and the expectation over negatives drawn uniformly by distance.

    On a sphere of many dimensions random pairs lie near $\sqrt{2}$; negatives are weighted by the
    inverse of the density of their distance,

    $$q(d) \propto d^{n - 2} (1 - d^2 / 4)^{(n - 3) / 2}$$

    with $d$ the distance and $n$ the dimension. Where the paper draws one for each positive, here
    the mean over such draws is taken, which needs no key and has no variance.

    Args:
      loss: a loss of a distance and a label, of anchors without data, or of triplets.
      dimension: size of the embeddings, which are of unit length; at least 3.
      cutoff: Euclidean distances below get the weight of this one, as noise would dominate
        otherwise.
      largest: negatives farther away are left out, as a loss would be 0 there; a Euclidean
        distance too, whichever the loss measures.

    Returns:
      Loss for `anchor_loss` with the distance of the loss alone, the mean over positives of their
      loss and that of a negative, or of a loss of anchors or triplets that has the positive and
      the negative alone. The latter takes two passes for each example of the largest class.

    Raises:
      ValueError: as `semi_hard`, and if the loss measures a distance other than the Euclidean, the
        squared Euclidean, the cosine or the angular one or the negative dot product, `dimension` is
        below 3, or `0 < cutoff < largest <= 2` does not hold.

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
    measure, _ = _measure(loss, None)
    chord = next((chord for one, chord in _CHORDS if one is measure), None)
    if chord is None:
        names = ", ".join(one.__name__ for one, _ in _CHORDS)
        raise ValueError(
            "negatives are drawn by the distances of vectors of unit length, which follow from "
            f"those of {names}, and this loss measures {getattr(measure, '__name__', measure)}"
        )
    _check_of_positives(loss)
    check_scalars(dimension=dimension, cutoff=cutoff, largest=largest)
    if dimension < 3:
        raise ValueError(f"dimension must be at least 3, got {dimension}")
    if not 0 < cutoff < largest <= 2:
        raise ValueError(f"expected 0 < cutoff < largest <= 2, got {cutoff} and {largest}")

    def log_weight(distance: jax.Array) -> jax.Array:
        # The weights are constants, and the chord has no derivative where two vectors coincide.
        distance = jnp.clip(chord(lax.stop_gradient(distance)), cutoff, largest)
        height = jnp.maximum(1 - distance**2 / 4, 1e-6)
        return (2 - dimension) * jnp.log(distance) + (3 - dimension) / 2 * jnp.log(height)

    def is_drawn(distance: jax.Array, label: jax.Array) -> jax.Array:
        return (label == 1) & (chord(distance) < largest)

    def share(distance: jax.Array, whole: jax.Array) -> jax.Array:
        return lax.stop_gradient(jnp.exp(jnp.minimum(log_weight(distance) - whole, 0)))

    if isinstance(loss, AnchorLoss | TripletLoss):
        return _in_expectation(loss, measure, log_weight, is_drawn, share)

    def weights(distance: jax.Array, label: jax.Array) -> Any:
        return log_sum_exp(log_weight(distance), is_drawn(distance, label)), total(1.0, label == 0)

    def weighted(distance: jax.Array, label: jax.Array, earlier: Any) -> Any:
        whole, positives = earlier
        value, part = loss(distance, label), share(distance, whole)
        drawn = is_drawn(distance, label) & (whole > -jnp.inf)
        return (
            total(value, label == 0),
            total(positives * jnp.where(drawn, part, 0) * value, drawn),
        )

    def loss_of_anchor(first: Any, sums: Any) -> Mean:
        return Mean(sum(sums), first[1])

    return AnchorLoss(loss_of_anchor, (weights, weighted), measure, fixed=True)


def _in_expectation(
    loss: AnchorLoss | TripletLoss,
    measure: Distance,
    log_weight: Callable[[jax.Array], jax.Array],
    is_drawn: Callable[[jax.Array, jax.Array], jax.Array],
    share: Callable[[jax.Array, jax.Array], jax.Array],
) -> TripletLoss:
    """Returns the loss of each positive with one negative, in expectation over its draw."""

    def weights(distance: jax.Array, label: jax.Array, positive: jax.Array) -> Any:
        return log_sum_exp(log_weight(distance), is_drawn(distance, label))

    def weighted(
        distance: jax.Array, label: jax.Array, positive: jax.Array, whole: jax.Array
    ) -> list[Statistic]:
        drawn = is_drawn(distance, label) & (whole > -jnp.inf)
        part = jnp.where(drawn, share(distance, whole), 0)
        return [
            total(part * one, drawn) for one in split_mean(mean_of_two(loss, positive, distance))
        ]

    def loss_of_positive(positive: jax.Array, whole: jax.Array, sums: Any) -> Mean:
        alone = split_mean(mean_of_two(loss, positive, jnp.full_like(positive, jnp.inf)))
        some = whole > -jnp.inf
        return Mean(*(jnp.where(some, *both) for both in zip(sums, alone, strict=True)))

    # One positive at a time: the loss is evaluated for each pair, and for four compiled four times.
    return TripletLoss(
        loss_of_positive, (weights, weighted), measure, positives_per_pass=1, fixed=True
    )


def online_hard_loss(
    embeddings: jax.Array,
    classes: Any,
    references: jax.Array | None = None,
    reference_classes: Any = None,
    *,
    loss: PairLoss | AnchorLoss | TripletLoss = _cosine_contrastive(margin=0.5),  # noqa: B008
    distance: Distance | None = None,
    margin: ArrayLike | None = None,
    reduction: Reduction | Literal["none"] = "sum",
    labels: PairLabels | Callable[[Any, Any], ArrayLike] | None = None,
    axis_name: Any = None,
    **options: Any,
) -> jax.Array:
    """Loss of the hard pairs of a batch.

    A positive pair is hard if it is farther apart than the nearest negative pair of the batch, and
    a negative pair if it is closer than the farthest positive one. Sentence-transformers'
    OnlineContrastiveLoss selects so among the pairs it is given, with label 1 for positive ones. In
    a batch with at most one pair of a label it takes a mean in place of the maximum or minimum;
    here no pair is hard unless there are pairs of both labels.

    Args:
      embeddings: `[B, D]`, floating.
      classes: `[B]`, integers from 0; rows of class -1 are ignored. With `labels` the attributes
        of the rows: any tree of arrays `[B, ...]`.
      references: `[R, D]`.
      reference_classes: `[R]`; with `labels` a tree like `classes`, of arrays `[R, ...]`.
      loss: a loss of a distance and a label, by default `losses.contrastive` of cosine distances
        with a margin of 0.5; of anchors without data, or of triplets, which see the hard pairs
        only.
      distance: function of two vectors; by default that of the loss.
      margin: in the unit of the distance, passed to a pair loss as a keyword; without it the loss
        keeps its own.
      reduction: for a pair loss as in `all_pairs_loss`, for others as in `anchor_loss`. The
        reductions `"mean"` and `"balanced"` of a pair loss divide by the number of all pairs, hard
        or not, and `"active"` by that of active pairs. Every pair of one set counts in both orders.
        `"none"` is the mean over the hard pairs of each row.
      labels: function of the attributes of two rows that returns 0 (similar), 1 (dissimilar) or
        -1 (ignored), as in `all_pairs_loss`.
      axis_name: axis of the devices that share the batch.
      **options: `refine`, `tile`, `precision` and `method` of `all_pairs_loss`.

    Returns:
      Loss, a scalar, or `[B]` with the reduction `"none"`; 0 if there is no hard pair.

    Raises:
      AssertionError: as `all_pairs_loss`.
      ValueError: as `all_pairs_loss` or `anchor_loss`, as `hard`, or if a loss of anchors or
        triplets is given a margin.

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
    measure, _ = _measure(loss, distance)
    if margin is not None:
        if isinstance(loss, AnchorLoss | TripletLoss):
            raise ValueError(
                "margin is passed to losses of pairs: make this loss with its margin, as in "
                "losses.triplet_all(margin), and leave margin out here"
            )
        check_scalars(margin=margin)
        margin = with_margin_checks(margin, loss, margin)
    if reduction == "none" and not isinstance(loss, AnchorLoss | TripletLoss):
        bound = loss if margin is None else partial(loss, margin=margin)
        loss, margin = mean_over_pairs(bound, measure), None
    # Checked here, as their values are traced in the program that an eager call compiles.
    rule = None if labels is None else as_pair_labels(labels)
    own = checked_points("", embeddings, classes, None, labels=rule)
    sides = [own.vectors, classes if labels else own.classes, references, reference_classes]
    if references is not None:
        others = checked_points("reference_", references, reference_classes, None, labels=rule)
        sides[2:] = others.vectors, reference_classes if labels else others.classes
    options |= {"distance": measure, "axis_name": axis_name, "labels": labels}
    run: Any = partial(_loss_of_hard_pairs, loss=loss, reduction=reduction, options=options)
    if labels is None:
        # In one program, which takes the farthest and the nearest pair as arguments of its parts:
        # each part by itself would be compiled for their values.
        run = program_or_part(_called, identified(run))
    value: jax.Array = run(*sides, margin)
    return value


def _called(function: Callable[..., jax.Array], *arguments: Any) -> jax.Array:
    return function(*arguments)


def _loss_of_hard_pairs(
    embeddings: jax.Array,
    classes: Any,
    references: jax.Array | None,
    reference_classes: Any,
    margin: ArrayLike | None,
    *,
    loss: PairLoss | AnchorLoss | TripletLoss,
    reduction: Any,
    options: dict[str, Any],
) -> jax.Array:
    """Computes `online_hard_loss`, whose options are those of `all_pairs_loss`."""
    sets, axis_name = (embeddings, classes, references, reference_classes), options["axis_name"]
    constant: list[Any] = [
        one if one is None else lax.stop_gradient(one) for one in (embeddings, references)
    ]
    ((farthest, nearest),) = anchor_statistics(
        constant[0],
        classes,
        constant[1],
        reference_classes,
        statistics=(_farthest_and_nearest,),
        **options,
    )
    farthest, nearest = jnp.max(farthest, initial=-jnp.inf), jnp.min(nearest, initial=jnp.inf)
    farthest, nearest = lax.stop_gradient((farthest, nearest))
    if axis_name is not None:
        axes = axes_of((farthest, nearest))
        farthest, nearest = lax.pmax(farthest, axis_name), -lax.pmax(-nearest, axis_name)
        farthest, nearest = varying((farthest, nearest), axes)

    def is_hard(distance: jax.Array, label: ArrayLike) -> jax.Array:
        return jnp.where(label == 1, distance < farthest, distance > nearest)

    if isinstance(loss, AnchorLoss | TripletLoss):
        return anchor_loss(*sets, loss=restricted_to(loss, is_hard), reduction=reduction, **options)
    pair_loss, measure = loss, options["distance"]

    @with_distance(measure, (measure,), margins=getattr(carrier(loss), "margins", None))
    def hard_loss(distance: jax.Array, label: jax.Array, **margins: jax.Array) -> jax.Array:
        return jnp.where(is_hard(distance, label), pair_loss(distance, label, **margins), 0)

    return all_pairs_loss(*sets, loss=hard_loss, margin=margin, reduction=reduction, **options)


def _farthest_and_nearest(distance: jax.Array, label: jax.Array, *results: Any) -> Any:
    return largest(distance, label == 0), smallest(distance, label == 1)

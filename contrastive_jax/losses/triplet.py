"""Losses of triplets: an anchor, a positive and a negative."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from contrastive_jax._directions import unit
from contrastive_jax.checks import check_hyperparameters, check_range
from contrastive_jax.distances import cosine, euclidean, negative_dot
from contrastive_jax.losses._numerics import softplus
from contrastive_jax.losses.types import AnchorLoss, Mean, TripletLoss
from contrastive_jax.statistics import Statistic, largest, log_sum_exp, smallest, total


def triplet_hard(margin: ArrayLike = 0.2, *, smooth: bool = False) -> AnchorLoss:
    r"""Triplet loss of the farthest positive and the nearest negative of each anchor.

    $$\max(0, d_p - d_n + m)$$

    with $d$ the distance and $m$ the margin, or $\log(1 + e^{d_p - d_n + m})$ if it is smooth; the
    mean over anchors that have both.

    *When.* Use it with clean labels and batches of a few classes with several examples each. It
    starts slowly, and all embeddings may collapse to a point where labels are noisy or the learning
    rate is high; use `triplet_semi_hard` there.

    Args:
      margin: above 0, in the unit of the distance; 0.05 to 0.5 on the unit sphere.
      smooth: True if a triplet beyond the margin still has a gradient. `margin` may be 0 then.

    Returns:
      Loss in [0, inf) for `anchor_loss`.

    Raises:
      ValueError: if a concrete margin is not above 0.

    References:
      Hermans, Beyer and Leibe, In Defense of the Triplet Loss for Person Re-Identification, 2017
      <https://arxiv.org/abs/1703.07737>, eq. 5, and sec. 3.2 for the soft margin.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import anchor_loss, losses
      >>> x = jnp.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> classes = jnp.array([0, 0, 1, 1])
      >>> value = anchor_loss(x, classes, loss=losses.triplet_hard(margin=0.5))
      >>> print(f"{value:.3f}")
      0.119
    """
    _check(margin, smooth)

    def statistics(distance: jax.Array, label: jax.Array) -> Any:
        return largest(distance, label == 0), smallest(distance, label == 1)

    def loss(stats: Any) -> Mean:
        valid = jnp.isfinite(stats[0]) & jnp.isfinite(stats[1])
        positive, negative = (jnp.where(valid, one, 0) for one in stats)
        value = _hinge(positive - negative + margin, smooth)
        return Mean(jnp.where(valid, value, 0), valid)

    return AnchorLoss(loss, (statistics,), euclidean)


def triplet_semi_hard(margin: ArrayLike = 0.2) -> TripletLoss:
    r"""Triplet loss of each positive pair and the nearest negative that is farther away.

    $$\max(0, d_p - d_n + m)$$

    with $d$ the distance and $m$ the margin. Where no negative is farther away, the farthest one
    takes its place. The loss is the mean over positive pairs whose anchor has a negative. It takes
    a pass over all pairs for every four examples of the largest class.

    *When.* Use it as the first triplet loss to try. It leaves out negatives nearer than the
    positive, which make embeddings collapse at the start of training.

    Args:
      margin: above 0, in the unit of the distance; 0.05 to 0.5 on the unit sphere.

    Returns:
      Loss in [0, inf) for `anchor_loss`.

    Raises:
      ValueError: if a concrete margin is not above 0.

    References:
      Schroff, Kalenichenko and Philbin, FaceNet, 2015 <https://arxiv.org/abs/1503.03832>, eq. 3 and
      4.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import anchor_loss, losses
      >>> x = jnp.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> classes = jnp.array([0, 0, 1, 1])
      >>> value = anchor_loss(x, classes, loss=losses.triplet_semi_hard(margin=0.5))
      >>> print(f"{value:.3f}")
      0.119
    """
    check_hyperparameters(margin=margin)

    def statistics(distance: jax.Array, label: jax.Array, positive: jax.Array) -> Any:
        farther = (label == 1) & (distance > positive)
        return smallest(distance, farther), largest(distance, label == 1)

    def loss(positive: jax.Array, stats: Any) -> Mean:
        farther, farthest = stats
        negative = jnp.where(jnp.isfinite(farther), farther, farthest)
        valid = jnp.isfinite(negative)
        value = jax.nn.relu(positive - jnp.where(valid, negative, 0) + margin)
        return Mean(jnp.where(valid, value, 0), valid)

    return TripletLoss(loss, (statistics,), euclidean)


def triplet_all(margin: ArrayLike = 0.2, *, smooth: bool = False) -> TripletLoss:
    r"""Triplet loss of all triplets.

    $$\max(0, d_p - d_n + m)$$

    with $d$ the distance and $m$ the margin. The loss is the mean over triplets, or over those
    whose loss is not 0 with `reduction="active"` ("batch all" of the paper). It takes a pass over
    all pairs for every four examples of the largest class. Memory stays linear in the batch, though
    the number of triplets grows with its cube.

    *When.* Use it with few or noisy examples, where a single hardest triplet may be a wrong label.

    Args:
      margin: above 0, in the unit of the distance; 0.05 to 0.5 on the unit sphere.
      smooth: True if $\log(1 + e^x)$ takes the place of $\max(0, x)$. `margin` may be 0 then.

    Returns:
      Loss in [0, inf) for `anchor_loss`.

    Raises:
      ValueError: if a concrete margin is not above 0.

    References:
      Hermans, Beyer and Leibe, In Defense of the Triplet Loss for Person Re-Identification, 2017
      <https://arxiv.org/abs/1703.07737>, eq. 6.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import anchor_loss, losses
      >>> x = jnp.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> classes = jnp.array([0, 0, 1, 1])
      >>> value = anchor_loss(x, classes, loss=losses.triplet_all(margin=0.5))
      >>> print(f"{value:.3f}")
      0.060
    """
    _check(margin, smooth)

    def statistics(distance: jax.Array, label: jax.Array, positive: jax.Array) -> Any:
        value, negative = _hinge(positive - distance + margin, smooth), label == 1
        return total(value, negative), total(1.0, negative), total(1.0, negative & (value > 0))

    def loss(positive: jax.Array, stats: Any) -> Mean:
        return Mean(*stats)

    return TripletLoss(loss, (statistics,), euclidean)


def angular(alpha: ArrayLike = 0.7) -> TripletLoss:
    r"""Angular loss: the angle at the negative, in a triangle of a positive pair and a negative.

    $$\log\big(1 + \sum_n e^{4 \tan^2 \alpha \, (a + p) \cdot n
    - 2 (1 + \tan^2 \alpha) \, a \cdot p}\big)$$

    for each positive pair, $a$ and $p$ of unit length. The loss is the mean over positive pairs. It
    takes a pass over all pairs for every example of the largest class.

    *When.* Use it with classes of different spread, as the angle does not depend on scale. The
    paper adds it to `n_pair`.

    Args:
      alpha: angle in radians, in (0, pi / 2); 0.6 to 1 in the paper. pytorch-metric-learning has
        degrees, 40 by default.

    Returns:
      Loss in [0, inf) for `anchor_loss`; the paper has negatives of unit length too.

    Raises:
      ValueError: if a concrete angle is not in its range.

    References:
      Wang et al., Deep Metric Learning with Angular Loss, 2017 <https://arxiv.org/abs/1708.01682>,
      eq. 7 and 8.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import anchor_loss, losses
      >>> x = jnp.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> classes = jnp.array([0, 0, 1, 1])
      >>> value = anchor_loss(x, classes, loss=losses.angular())
      >>> print(f"{value:.3f}")
      0.313
    """
    check_hyperparameters(alpha=alpha)
    check_range(0, math.pi / 2, alpha=alpha)

    def statistics(distance: jax.Array, label: jax.Array, positive: jax.Array) -> Statistic:
        return log_sum_exp(-4 * jnp.tan(alpha) ** 2 * distance, label == 1)

    def loss(positive: jax.Array, negatives: jax.Array) -> Mean:
        pair_term = 2 * (1 + jnp.tan(alpha) ** 2) * (1 - positive)
        return Mean(softplus(negatives - pair_term), 1.0)

    def combine(anchor: jax.Array, positive: jax.Array) -> jax.Array:
        return unit(anchor) + unit(positive)

    return TripletLoss(loss, (statistics,), negative_dot, combine, cosine, fixed=True)


def _check(margin: ArrayLike, smooth: bool) -> None:
    if smooth:
        check_range(0, math.inf, margin=margin)
    else:
        check_hyperparameters(margin=margin)


def _hinge(violation: jax.Array, smooth: bool) -> jax.Array:
    return softplus(violation) if smooth else jax.nn.relu(violation)

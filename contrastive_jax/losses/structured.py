"""Anchor losses that weight each pair of an anchor by how hard it is."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from contrastive_jax.checks import check_hyperparameters, check_range
from contrastive_jax.distances import euclidean
from contrastive_jax.losses._numerics import softplus, turned
from contrastive_jax.losses.types import AnchorLoss, Mean
from contrastive_jax.statistics import PositivesOnly, Statistic, log_sum_exp, total


def lifted(margin: ArrayLike = 1.0, positive_margin: ArrayLike = 0.0) -> AnchorLoss:
    r"""Generalised lifted structure loss: a soft farthest positive and a soft nearest negative.

    $$\max\big(0, \log \sum_p e^{d_p - m_+} + \log \sum_n e^{m - d_n}\big)$$

    with $d$ the distance, $m$ the margin and $m_+$ the positive margin. A log-sum-exp over no pairs
    counts as 0. The loss is the mean over all anchors.

    *When.* Use it as a smooth form of the hardest triplet of each anchor, with large batches.

    Args:
      margin: in the unit of the distance; 0.5 to 1 on the unit sphere. May be traced.
      positive_margin: in the same unit. A change of it shifts the sum as a change of `margin` does.

    Returns:
      Loss in [0, inf) for `anchor_loss`.

    Raises:
      ValueError: if a concrete margin is not finite.

    References:
      Song et al., Deep Metric Learning via Lifted Structured Feature Embedding, 2016
      <https://arxiv.org/abs/1511.06452>, eq. 4; Hermans, Beyer and Leibe, In Defense of the Triplet
      Loss for Person Re-Identification, 2017 <https://arxiv.org/abs/1703.07737>, eq. 8.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import anchor_loss, losses
      >>> x = jnp.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> classes = jnp.array([0, 0, 1, 1])
      >>> value = anchor_loss(x, classes, loss=losses.lifted(margin=1.0))
      >>> print(f"{value:.3f}")
      0.973
    """
    check_range(-math.inf, math.inf, margin=margin, positive_margin=positive_margin)

    def statistics(distance: jax.Array, label: jax.Array) -> Any:
        return (
            log_sum_exp(distance - positive_margin, label == 0),
            log_sum_exp(margin - distance, label == 1),
        )

    def loss(stats: Any) -> Mean:
        positives, negatives = (jnp.where(jnp.isneginf(one), 0, one) for one in stats)
        return Mean(jax.nn.relu(positives + negatives), 1.0)

    return AnchorLoss(loss, (statistics,), euclidean)


def multi_similarity(
    alpha: ArrayLike = 2.0, beta: ArrayLike = 50.0, base: ArrayLike = 0.5
) -> AnchorLoss:
    r"""Multi-similarity loss: a pair is weighted by its similarity and by those of other pairs.

    $$\frac{1}{\alpha} \log\big(1 + \sum_p e^{-\alpha (s_p - \lambda)}\big)
    + \frac{1}{\beta} \log\big(1 + \sum_n e^{\beta (s_n - \lambda)}\big)$$

    with $s$ the cosine and $\lambda$ the base; the mean over all anchors.

    *When.* Use it with class labels and several examples of each class. The paper mines pairs
    first, `mining.multi_similarity(losses.multi_similarity())`, which is also the better one of the
    two in docs/compare_losses.md on seen classes.

    Args:
      alpha: above 0, sharpness among positives.
      beta: above 0, sharpness among negatives.
      base: cosine in [-1, 1). The cosine of a positive should exceed it, that of a negative should
        stay below it.

    Returns:
      Loss in [0, inf) for `anchor_loss`; with the cosine distance alone.

    Raises:
      ValueError: if a concrete number is not in its range.

    References:
      Wang et al., Multi-Similarity Loss with General Pair Weighting for Deep Metric Learning, 2019
      <https://arxiv.org/abs/1904.06627>, eq. 15.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import anchor_loss, losses
      >>> x = jnp.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> classes = jnp.array([0, 0, 1, 1])
      >>> value = anchor_loss(x, classes, loss=losses.multi_similarity())
      >>> print(f"{value:.3f}")
      0.269
    """
    check_hyperparameters(alpha=alpha, beta=beta)
    check_range(-1, 1, base=base)

    def statistics(distance: jax.Array, label: jax.Array) -> Any:
        above = 1 - distance - base
        return log_sum_exp(alpha * -above, label == 0), log_sum_exp(beta * above, label == 1)

    def loss(stats: Any) -> Mean:
        positives, negatives = (softplus(one) for one in stats)
        return Mean(positives / alpha + negatives / beta, 1.0)

    return AnchorLoss(loss, (statistics,), fixed=True)


def circle(margin: ArrayLike = 0.4, scale: ArrayLike = 80.0) -> AnchorLoss:
    r"""Circle loss: the gradient of a pair grows with its difference from the optimum.

    $$\log\big(1 + \sum_n e^{\gamma w_n (s_n - m)} \sum_p e^{-\gamma w_p (s_p - 1 + m)}\big)$$

    with $s$ the cosine, $m$ the margin, $\gamma$ the scale and weights $w_n = \max(0, s_n + m)$ and
    $w_p = \max(0, 1 + m - s_p)$ that are not differentiated; the mean over anchors with a positive
    and a negative whose loss is not 0.

    *When.* Use it with class labels and several examples of each class, where positives and
    negatives converge at different rates.

    Args:
      margin: cosine in (0, 1). The cosine of a positive should exceed `1 - margin`, that of a
        negative should stay below `margin`.
      scale: above 0.

    Returns:
      Loss in [0, inf) for `anchor_loss`; with the cosine distance alone.

    Raises:
      ValueError: if a concrete number is not in its range.

    References:
      Sun et al., Circle Loss: A Unified Perspective of Pair Similarity Optimization, 2020
      <https://arxiv.org/abs/2002.10857>, eq. 6.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import anchor_loss, losses
      >>> x = jnp.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> classes = jnp.array([0, 0, 1, 1])
      >>> value = anchor_loss(x, classes, loss=losses.circle())
      >>> print(f"{value:.3f}")
      3.201
    """
    check_hyperparameters(margin=margin, scale=scale)
    check_range(0, 1, margin=margin)

    def statistics(distance: jax.Array, label: jax.Array) -> Any:
        s = 1 - distance
        positive_weight = lax.stop_gradient(jax.nn.relu(1 + margin - s))
        negative_weight = lax.stop_gradient(jax.nn.relu(s + margin))
        return (
            log_sum_exp(scale * positive_weight * (1 - margin - s), label == 0),
            log_sum_exp(scale * negative_weight * (s - margin), label == 1),
        )

    def loss(stats: Any) -> Mean:
        valid = jnp.isfinite(stats[0]) & jnp.isfinite(stats[1])
        both = sum(jnp.where(valid, one, 0) for one in stats)
        value = jnp.where(valid, softplus(both), 0)
        return Mean(value, value != 0)

    return AnchorLoss(loss, (statistics,), fixed=True)


def tuplet_margin(margin: ArrayLike = 0.1, scale: ArrayLike = 64.0) -> AnchorLoss:
    r"""Tuplet margin loss: a softmax over a positive and all negatives, with a slack on the angle.

    $$\log\big(1 + \sum_n e^{\gamma (s_n - \cos(\theta_p - m))}\big)$$

    with $s$ the cosine, $\theta$ the angle, $m$ the margin and $\gamma$ the scale; the mean over
    positive pairs.

    *When.* Use it like `ntxent` with class labels, where the network would overfit hard positives:
    the slack leaves positives within `margin` alone.

    Args:
      margin: angle in radians, in [0, pi / 2); 0.1 in the paper. pytorch-metric-learning has
        degrees, 5.73 by default.
      scale: above 0.

    Returns:
      Loss in [0, inf) for `anchor_loss`; with the cosine distance alone.

    Raises:
      ValueError: if a concrete number is not in its range.

    References:
      Yu and Tao, Deep Metric Learning with Tuplet Margin Loss, 2019
      <https://openaccess.thecvf.com/content_ICCV_2019/papers/Yu_Deep_Metric_Learning_With_Tuplet_Margin_Loss_ICCV_2019_paper.pdf>,
      eq. 5.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import anchor_loss, losses
      >>> x = jnp.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> classes = jnp.array([0, 0, 1, 1])
      >>> value = anchor_loss(x, classes, loss=losses.tuplet_margin())
      >>> print(f"{value:.3f}")
      0.000
    """
    check_hyperparameters(scale=scale)
    check_range(0, math.pi / 2, margin=margin)

    def negatives(distance: jax.Array, label: jax.Array) -> Statistic:
        return log_sum_exp(scale * (1 - distance), label == 1)

    def positives(distance: jax.Array, label: jax.Array, negatives: jax.Array) -> Any:
        cosine = turned(distance, 0 - margin)
        return total(softplus(negatives - scale * cosine)), total(1.0)

    def loss(negatives: jax.Array, positives: Any) -> Mean:
        return Mean(*positives)

    return AnchorLoss(loss, (negatives, PositivesOnly(positives)), fixed=True)


def margin_by_class(margin: ArrayLike = 0.2) -> AnchorLoss:
    r"""Margin based loss with a boundary for each anchor.

    $$\max(0, m + z (d - \beta_a))$$

    with $d$ the distance, $z$ 1 for a positive pair and -1 for a negative one, $m$ the margin and
    $\beta_a$ the boundary of the anchor.

    Boundaries are passed as data, `anchor_loss(..., data=(boundaries[classes],))`, and get a
    gradient: a boundary learned for each class grows where the class is wide. A pair counts as
    often as it is in a triplet of anchor, positive and negative. The loss is the mean over pairs
    whose loss is not 0. `losses.margin_based` is the same with one boundary.

    *When.* Use it where classes differ in spread, and labels say which class a row is of.

    Args:
      margin: above 0, in the unit of the distance.

    Returns:
      Loss in [0, inf) for `anchor_loss`.

    Raises:
      ValueError: if a concrete margin is not above 0.

    References:
      Wu, Manmatha, Smola and Kraehenbuehl, Sampling Matters in Deep Embedding Learning, 2017
      <https://arxiv.org/abs/1706.07567>, eq. 4, with the weights and the mean of
      pytorch-metric-learning's MarginLoss. Add the paper's penalty on boundaries, a multiple of
      their sum, to the loss yourself.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import anchor_loss, losses
      >>> x = jnp.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> classes = jnp.array([0, 0, 1, 1])
      >>> boundaries = jnp.array([0.5, 0.7])  # one for each class, learned
      >>> value = anchor_loss(
      ...     x, classes, loss=losses.margin_by_class(), data=(boundaries[classes],)
      ... )
      >>> print(f"{value:.3f}")
      0.207
    """
    check_hyperparameters(margin=margin)

    def statistics(distance: jax.Array, label: jax.Array, boundary: jax.Array) -> Any:
        terms = []
        for sign, where in ((1, label == 0), (-1, label == 1)):
            value = jax.nn.relu(margin + sign * (distance - boundary))
            terms.append((total(value, where), total(1.0, where & (value > 0)), total(1.0, where)))
        return terms

    def loss(boundary: jax.Array, stats: Any) -> Mean:
        (positive, active_positive, positives), (negative, active_negative, negatives) = stats
        # Without pairs of the other label a sum does not count, however large it is.
        positive = jnp.where(negatives > 0, positive, 0)
        negative = jnp.where(positives > 0, negative, 0)
        return Mean(
            negatives * positive + positives * negative,
            negatives * active_positive + positives * active_negative,
        )

    return AnchorLoss(loss, (statistics,), euclidean, needs=("a boundary for each anchor",))

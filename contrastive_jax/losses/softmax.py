"""Anchor losses with a softmax over the distances of an anchor."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from contrastive_jax.checks import check_hyperparameters
from contrastive_jax.distances import negative_dot, squared_euclidean
from contrastive_jax.losses._numerics import softplus
from contrastive_jax.losses.types import AnchorLoss, Mean
from contrastive_jax.statistics import PositivesOnly, Statistic, log_sum_exp, total


def ntxent(temperature: ArrayLike = 0.07) -> AnchorLoss:
    r"""NT-Xent loss, also called InfoNCE: a softmax over one positive and all negatives.

    $$-\log \frac{e^{s_p / t}}{e^{s_p / t} + \sum_n e^{s_n / t}}$$

    with $s$ the cosine and $t$ the temperature, for each positive $p$ of an anchor and all its
    negatives $n$; the mean over positive pairs. Other positives are not in the denominator.

    Two views of B images: embed both, `classes = jnp.tile(jnp.arange(B), 2)`. Two modalities, of
    which row i belongs to row i: `classes = jnp.arange(B)`, and the mean of
    `anchor_loss(x, classes, y, classes, loss=ntxent())` and of the same with x and y exchanged.
    Over devices each row needs a class of its own: add `B * jax.lax.axis_index(axis_name)`.

    *When.* Use it for pairs without class labels, such as two views or two modalities, and with
    large batches.

    Args:
      temperature: above 0, in the unit of the distance; 0.05 to 0.5 for cosines. May be traced.

    Returns:
      Loss in [0, inf) for `anchor_loss`. An anchor without negatives has loss 0.

    Raises:
      ValueError: if a concrete temperature is not above 0.

    References:
      Oord, Li and Vinyals, Representation Learning with Contrastive Predictive Coding, 2018
      <https://arxiv.org/abs/1807.03748>, eq. 4. Chen et al., A Simple Framework for Contrastive
      Learning of Visual Representations, 2020 <https://arxiv.org/abs/2002.05709>, eq. 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import anchor_loss, losses
      >>> x = jnp.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> classes = jnp.array([0, 0, 1, 1])
      >>> value = anchor_loss(x, classes, loss=losses.ntxent(temperature=0.5))
      >>> print(f"{value:.3f}")
      0.430
    """
    check_hyperparameters(temperature=temperature)

    def negatives(distance: jax.Array, label: jax.Array) -> Statistic:
        return log_sum_exp(-distance / temperature, label == 1)

    def positives(distance: jax.Array, label: jax.Array, negatives: jax.Array) -> Any:
        return total(softplus(negatives + distance / temperature)), total(1.0)

    def loss(negatives: jax.Array, positives: Any) -> Mean:
        return Mean(*positives)

    return AnchorLoss(loss, (negatives, PositivesOnly(positives)))


def supcon(
    temperature: ArrayLike = 0.1, *, log: Literal["outside", "inside"] = "outside"
) -> AnchorLoss:
    r"""Supervised contrastive loss: a softmax over all other rows, averaged over the positives.

    With the logarithm outside of the sum over the positives $P$,

    $$-\frac{1}{|P|} \sum_{p \in P} \log \frac{e^{s_p / t}}{\sum_a e^{s_a / t}}$$

    and inside,

    $$-\log \frac{1}{|P|} \sum_{p \in P} \frac{e^{s_p / t}}{\sum_a e^{s_a / t}}$$

    with $s$ the cosine, $t$ the temperature and $a$ all others. The mean over anchors that have a
    positive.

    *When.* Use it with class labels and several examples of each class in a batch. In the
    comparison of this library (docs/compare_losses.md) it is in the lower half of the table, tuned
    like the others, so compare it with simpler losses. The logarithm outside trains better in the
    paper's table 1.

    Args:
      temperature: above 0, in the unit of the distance; 0.05 to 0.5 for cosines. May be traced.
      log: `"outside"` or `"inside"` of the sum over the positives.

    Returns:
      Loss in [0, inf) for `anchor_loss`.

    Raises:
      ValueError: if a concrete temperature is not above 0, or `log` is neither.

    References:
      Khosla et al., Supervised Contrastive Learning, 2020 <https://arxiv.org/abs/2004.11362>, eq. 2
      (outside) and 3 (inside).

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import anchor_loss, losses
      >>> x = jnp.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> classes = jnp.array([0, 0, 1, 1])
      >>> value = anchor_loss(x, classes, loss=losses.supcon(temperature=0.5))
      >>> print(f"{value:.3f}")
      0.430
    """
    check_hyperparameters(temperature=temperature)
    if log not in ("outside", "inside"):
        raise ValueError(f"log must be 'outside' or 'inside', got {log!r}")

    def statistics(distance: jax.Array, label: jax.Array) -> Any:
        logit, positive = -distance / temperature, label == 0
        positives = (total if log == "outside" else log_sum_exp)(logit, positive)
        return log_sum_exp(logit), positives, total(1.0, positive)

    def loss(stats: Any) -> Mean:
        everything, positives, count = stats
        valid, some = count > 0, jnp.maximum(count, 1)
        positives = jnp.where(valid, positives, 0)
        mean = positives / some if log == "outside" else positives - jnp.log(some)
        return Mean(jnp.where(valid, jnp.where(valid, everything, 0) - mean, 0), valid)

    return AnchorLoss(loss, (statistics,))


def decoupled(temperature: ArrayLike = 0.1) -> AnchorLoss:
    r"""Decoupled contrastive loss: NT-Xent without the positive in the denominator.

    $$-\frac{s_p}{t} + \log \sum_n e^{s_n / t}$$

    with $s$ the cosine and $t$ the temperature; the mean over positive pairs of anchors that have
    a negative.

    *When.* Use it with small batches, where the positive in NT-Xent's denominator weakens its own
    gradient.

    Args:
      temperature: above 0, in the unit of the distance; 0.05 to 0.5 for cosines. May be traced.

    Returns:
      Loss in (-inf, inf) for `anchor_loss`.

    Raises:
      ValueError: if a concrete temperature is not above 0.

    References:
      Yeh et al., Decoupled Contrastive Learning, 2022 <https://arxiv.org/abs/2110.06848>, eq. 5.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import anchor_loss, losses
      >>> x = jnp.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> classes = jnp.array([0, 0, 1, 1])
      >>> value = anchor_loss(x, classes, loss=losses.decoupled(temperature=0.5))
      >>> print(f"{value:.3f}")
      -0.737
    """
    check_hyperparameters(temperature=temperature)

    def statistics(distance: jax.Array, label: jax.Array) -> Any:
        logit, positive = -distance / temperature, label == 0
        return log_sum_exp(logit, ~positive), total(logit, positive), total(1.0, positive)

    def loss(stats: Any) -> Mean:
        negatives, positives, count = stats
        valid = negatives > -jnp.inf
        count = jnp.where(valid, count, 0)
        value = count * jnp.where(valid, negatives, 0) - positives
        return Mean(jnp.where(valid, value, 0), count)

    return AnchorLoss(loss, (statistics,))


def n_pair() -> AnchorLoss:
    r"""N-pair loss: a softmax over inner products with one positive and all negatives.

    $$\log\big(1 + \sum_n e^{a \cdot n - a \cdot p}\big)$$

    the mean over positive pairs of an anchor $a$ and a positive $p$, with $n$ its negatives. The
    paper gives each class one anchor and one positive, and the negatives of an anchor are the
    positives of other classes: pass anchors and positives as two sets. Lengths are not normalised;
    add `regularizers.embedding_norm`, as the paper does.

    *When.* Use it with unnormalised embeddings and many classes with two examples each. On the unit
    sphere use `ntxent`, which is the same with a temperature.

    Returns:
      Loss in [0, inf) for `anchor_loss`.

    References:
      Sohn, Improved Deep Metric Learning with Multi-class N-pair Loss Objective, 2016
      <https://proceedings.neurips.cc/paper/2016/hash/6b180037abbebea991d8b1232f8a8ca9-Abstract.html>,
      eq. 8.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import anchor_loss, losses
      >>> x = jnp.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> classes = jnp.array([0, 0, 1, 1])
      >>> value = anchor_loss(x, classes, loss=losses.n_pair())
      >>> print(f"{value:.3f}")
      0.674
    """
    return ntxent(1.0)._replace(distance=negative_dot)


def nca(scale: ArrayLike = 1.0) -> AnchorLoss:
    r"""Neighbourhood components analysis: the probability of a neighbour of the same class.

    $$-\log \frac{\sum_p e^{-\alpha d_p}}{\sum_a e^{-\alpha d_a}}$$

    with $d$ the squared Euclidean distance, $\alpha$ the scale, $p$ the positives and $a$ all
    others; the mean over anchors that have a positive.

    *When.* Use it where nearest-neighbour classification is the goal and a class may form several
    clusters.

    Args:
      scale: above 0, inverse unit of the distance. On the unit sphere squared distances lie in
        [0, 4] and a scale from 5 to 30 tells them apart. May be traced.

    Returns:
      Loss in [0, inf) for `anchor_loss`.

    Raises:
      ValueError: if a concrete scale is not above 0.

    References:
      Goldberger et al., Neighbourhood Components Analysis, 2004
      <https://proceedings.neurips.cc/paper/2004/hash/42fe880812925e520249e808937738d2-Abstract.html>,
      eq. 1 and 2, with the logarithm of sec. 2.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import anchor_loss, losses
      >>> x = jnp.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> classes = jnp.array([0, 0, 1, 1])
      >>> value = anchor_loss(x, classes, loss=losses.nca(scale=2.0))
      >>> print(f"{value:.3f}")
      0.221
    """
    check_hyperparameters(scale=scale)

    def statistics(distance: jax.Array, label: jax.Array) -> Any:
        logit = scale * -distance
        return log_sum_exp(logit), log_sum_exp(logit, label == 0)

    def loss(stats: Any) -> Mean:
        everything, positives = stats
        valid = positives > -jnp.inf
        value = jnp.where(valid, everything, 0) - jnp.where(valid, positives, 0)
        return Mean(jnp.where(valid, value, 0), valid)

    return AnchorLoss(loss, (statistics,), squared_euclidean)

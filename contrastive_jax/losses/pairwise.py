"""Losses of one pair: a distance and a label, for `pair_loss` and `all_pairs_loss`.

Each carries the distance of its paper, `losses.sigmoid.distance`, and the ones that fit its
formula, `losses.sigmoid.distances` (`contrastive_jax.losses.types`).
"""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from contrastive_jax.checks import check_hyperparameters, check_range, check_scalars
from contrastive_jax.distances import cosine, euclidean, manhattan, squared_euclidean
from contrastive_jax.losses._numerics import softplus
from contrastive_jax.losses.types import with_distance


@with_distance(euclidean)
def contrastive(
    distance: ArrayLike,
    label: ArrayLike,
    margin: ArrayLike = 1.0,
    positive_margin: ArrayLike = 0.0,
) -> jax.Array:
    r"""Contrastive loss of a positive or a negative pair.

    $$L(D, Y) = (1 - Y) D^2 + Y \max(0, m - D)^2$$

    with $D$ the distance, $Y$ the label and $m$ the margin; with $m_+$, the positive margin,
    $\max(0, D - m_+)$ takes the place of $D$ in the first term. Positive pairs are pulled together,
    negative ones pushed apart until they are `margin` apart. On unnormalised embeddings the
    margin only sets the unit of length. On the unit sphere Euclidean distances lie in [0, 2], those
    of random pairs near $\sqrt{2}$: margins from 0.5 to 1.5 make sense, and above 2 no negative
    pair is ever far enough.

    *When.* Use it first. It has one number to choose, and the distances of its embeddings mean
    something by themselves, as verification by a threshold needs.

    Args:
      distance: scalar, at least 0; Euclidean by default, and any other that is at least 0.
      label: scalar, 0 for a positive pair (similar), 1 for a negative one (dissimilar); integer,
        bool or float.
      margin: scalar above 0, in the unit of `distance`. It may be traced: another margin is no
        reason to compile again.
      positive_margin: scalar, at least 0 and below `margin`: positive pairs so close are left
        alone.

    Returns:
      Loss in [0, inf), of the dtype of `distance`. With `distances.euclidean` its gradient by the
      first vector is `2 (a - b)` exactly for a positive pair, and 0 for a negative pair that
      coincides, which has no direction to be pushed in.

    Raises:
      AssertionError: if an argument is not a scalar or `distance` not a floating-point one.
      ValueError: if a concrete label is neither 0 nor 1, a concrete margin not above 0 and finite,
        or a concrete `positive_margin` not in its range; `contrastive_jax.checks` says how to check
        traced ones.

    References:
      Hadsell, Chopra and LeCun, Dimensionality Reduction by Learning an Invariant Mapping, 2006
      <https://doi.org/10.1109/CVPR.2006.100>, eq. 4, which has the same labels and halves both
      terms.

    Example:
      >>> from contrastive_jax import losses
      >>> print(losses.contrastive(0.5, 0, margin=1.0))
      0.25
      >>> print(losses.contrastive(0.5, 1, margin=1.0))
      0.25
      >>> print(losses.contrastive(1.5, 1, margin=1.0))
      0.0
    """
    distance, label, cast_margin = _checked(distance, label, margin)
    positive = _beyond(distance, positive_margin, margin)
    return _by_label(label, positive, jnp.maximum(0, cast_margin - distance)) ** 2


@with_distance(euclidean)
def contrastive_halved(
    distance: ArrayLike,
    label: ArrayLike,
    margin: ArrayLike = 1.0,
    positive_margin: ArrayLike = 0.0,
) -> jax.Array:
    r"""Contrastive loss as first published: half of `contrastive`, in value and gradient.

    $$L(D, Y) = (1 - Y) \frac{1}{2} D^2 + Y \frac{1}{2} \max(0, m - D)^2$$

    with $D$ the distance, $Y$ the label and $m$ the margin; with $m_+$, the positive margin,
    $\max(0, D - m_+)$ takes the place of $D$ in the first term.

    *When.* Use it to repeat published figures without changing their learning rate.

    Args:
      distance: scalar, at least 0; Euclidean by default, and any other that is at least 0.
      label: scalar, 0 for a positive pair (similar), 1 for a negative one (dissimilar).
      margin: scalar above 0, in the unit of `distance`.
      positive_margin: scalar in [0, `margin`).

    Returns:
      Loss in [0, inf).

    Raises:
      AssertionError: as `contrastive`.
      ValueError: as `contrastive`.

    References:
      Hadsell, Chopra and LeCun, Dimensionality Reduction by Learning an Invariant Mapping, 2006
      <https://doi.org/10.1109/CVPR.2006.100>, eq. 4.

    Example:
      >>> from contrastive_jax import losses
      >>> print(losses.contrastive_halved(0.5, 0), losses.contrastive_halved(0.5, 1))
      0.125 0.125
    """
    return 0.5 * contrastive(distance, label, margin, positive_margin)


@with_distance(euclidean)
def contrastive_linear(
    distance: ArrayLike,
    label: ArrayLike,
    margin: ArrayLike = 1.0,
    positive_margin: ArrayLike = 0.0,
) -> jax.Array:
    r"""Contrastive loss without squares.

    $$L(D, Y) = (1 - Y) D + Y \max(0, m - D)$$

    with $D$ the distance, $Y$ the label and $m$ the margin; with $m_+$, the positive margin,
    $\max(0, D - m_+)$ takes the place of $D$ in the first term.

    *When.* Use it where positive pairs hold outliers or wrong labels, which squares would follow.
    With `distances.signal_to_noise` it is the signal-to-noise ratio contrastive loss.

    Args:
      distance: scalar, at least 0; Euclidean by default, and any other that is at least 0.
      label: scalar, 0 for a positive pair (similar), 1 for a negative one (dissimilar).
      margin: scalar above 0, in the unit of `distance`.
      positive_margin: scalar in [0, `margin`): positive pairs so close are left alone.

    Returns:
      Loss in [0, inf).

    Raises:
      AssertionError: as `contrastive`.
      ValueError: as `contrastive`.

    References:
      Musgrave, Belongie and Lim, PyTorch Metric Learning, 2020 <https://arxiv.org/abs/2008.09164>,
      ContrastiveLoss, which is averaged over active pairs (`reduction="active"`). Yuan et al.,
      Signal-to-Noise Ratio: A Robust Distance Metric for Deep Metric Learning, 2019
      <https://arxiv.org/abs/1904.02616>, whose penalty on the mean of the entries is left out.

    Example:
      >>> from contrastive_jax import losses
      >>> print(losses.contrastive_linear(0.5, 0), losses.contrastive_linear(0.25, 1))
      0.5 0.75
    """
    distance, label, cast_margin = _checked(distance, label, margin)
    positive = _beyond(distance, positive_margin, margin)
    return _by_label(label, positive, jnp.maximum(0, cast_margin - distance))


@with_distance(cosine, (cosine,), margins=(-1, 1))
def cosine_embedding(distance: ArrayLike, label: ArrayLike, margin: ArrayLike = 0.0) -> jax.Array:
    r"""Cosine embedding loss: positive pairs are to point in one direction.

    $$L(s, Y) = (1 - Y) (1 - s) + Y \max(0, s - m)$$

    with $s$ the cosine, $Y$ the label and $m$ the margin.

    *When.* Use it where embeddings are compared by cosine, and unrelated ones need be no more than
    perpendicular.

    Args:
      distance: scalar, `distances.cosine`, which is `1 - s`, in [0, 2].
      label: scalar, 0 for a positive pair, 1 for a negative one; PyTorch has 1 and -1 in their
        place.
      margin: scalar in [-1, 1), a cosine: negative pairs below it are left alone.

    Returns:
      Loss in [0, 2].

    Raises:
      AssertionError: if an argument is not a scalar or `distance` not a floating-point one.
      ValueError: if a concrete label is neither 0 nor 1, or a concrete margin not in its range.

    References:
      PyTorch, torch.nn.CosineEmbeddingLoss
      <https://pytorch.org/docs/stable/generated/torch.nn.CosineEmbeddingLoss.html>.

    Example:
      >>> from contrastive_jax import losses
      >>> print(losses.cosine_embedding(0.25, 0), losses.cosine_embedding(0.25, 1))
      0.25 0.75
    """
    check_range(-1, 1, margin=margin)
    distance, label, margin = _checked(distance, label, margin, above_zero=False)
    return _by_label(label, distance, jnp.maximum(0, 1 - distance - margin))


@with_distance(cosine, (cosine, euclidean, manhattan))
def sentence_contrastive(
    distance: ArrayLike, label: ArrayLike, margin: ArrayLike = 0.5
) -> jax.Array:
    """Contrastive loss of sentence-transformers: `contrastive_halved` with a margin of 0.5.

    Labels are those of this library. In sentence-transformers label 1 is similar: pass `1 - label`.

    *When.* Use it to compare a sentence encoder with one that was trained there.

    Args:
      distance: scalar; cosine by default, or Euclidean or Manhattan, as there.
      label: scalar, 0 for a positive pair (similar), 1 for a negative one (dissimilar).
      margin: scalar above 0; below 2 for the cosine distance.

    Returns:
      Loss in [0, inf).

    Raises:
      AssertionError: as `contrastive`.
      ValueError: as `contrastive`.

    References:
      Reimers and Gurevych, Sentence-BERT, 2019 <https://arxiv.org/abs/1908.10084>, and its
      library's ContrastiveLoss.

    Example:
      >>> from contrastive_jax import losses
      >>> print(losses.sentence_contrastive(0.5, 0), losses.sentence_contrastive(0.25, 1))
      0.125 0.03125
    """
    return contrastive_halved(distance, label, margin)


@with_distance(cosine, (cosine,))
def sigmoid(
    distance: ArrayLike,
    label: ArrayLike,
    temperature: ArrayLike = 10.0,
    bias: ArrayLike = -10.0,
) -> jax.Array:
    r"""Sigmoid loss: is this pair positive?

    $$L(s, z) = -\log \frac{1}{1 + e^{-z (t s + b)}}$$

    with $s$ the cosine, $z$ 1 for a positive pair and -1 for a negative one, $t$ the temperature
    and $b$ the bias. Every pair is a question of its own, answered by a logistic regression on the
    cosine.
    Temperature and bias are learned: bind them by a closure, or pass them on through
    `all_pairs_loss`, which gives their gradients.

    *When.* Use it for images and texts, or for large batches over many devices, as it takes no
    softmax over them.

    Args:
      distance: scalar, `distances.cosine`, which is `1 - s`, in [0, 2].
      label: scalar, 0 for a positive pair (similar), 1 for a negative one (dissimilar).
      temperature: scalar above 0; the paper learns its logarithm, from $\log 10$.
      bias: scalar; -10 suits a start where almost all pairs are negative.

    Returns:
      Loss in (0, inf).

    Raises:
      AssertionError: if an argument is not a scalar or `distance` not a floating-point one.
      ValueError: if a concrete label is neither 0 nor 1, a concrete temperature not above 0, or a
        concrete bias not finite.

    References:
      Zhai et al., Sigmoid Loss for Language Image Pre-Training, 2023
      <https://arxiv.org/abs/2303.15343>, sec. 3.2, with the sum over pairs divided by the number of
      images.

    Example:
      >>> from contrastive_jax import losses
      >>> print(f"{losses.sigmoid(0.5, 0):.3f} {losses.sigmoid(0.5, 1):.3f}")
      5.007 0.007
    """
    check_range(-math.inf, math.inf, bias=bias)
    distance, label, temperature = _checked(distance, label, temperature, name="temperature")
    logit = temperature * (1 - distance) + jnp.asarray(bias, distance.dtype)
    return softplus((2 * label - 1) * logit)


@with_distance(squared_euclidean)
def logistic(
    distance: ArrayLike,
    label: ArrayLike,
    threshold: ArrayLike = 1.0,
    scale: ArrayLike = 1.0,
) -> jax.Array:
    r"""Logistic loss of a threshold, a soft margin on both sides of it.

    $$L(D, z) = \log(1 + e^{z \alpha (D - \tau)})$$

    with $D$ the distance, $z$ 1 for a positive pair and -1 for a negative one, $\tau$ the threshold
    and $\alpha$ the scale.

    *When.* Use it where pairs are verified by a threshold that is given, or learned along.

    Args:
      distance: scalar, at least 0; squared Euclidean by default, as in the paper, and any other
        that is at least 0.
      label: scalar, 0 for a positive pair (similar), 1 for a negative one (dissimilar).
      threshold: scalar above 0, in the unit of `distance`, at which a pair of either label
        costs $\log 2$.
      scale: scalar above 0, how steep the change is.

    Returns:
      Loss in (0, inf).

    Raises:
      AssertionError: if an argument is not a scalar or `distance` not a floating-point one.
      ValueError: if a concrete label is neither 0 nor 1, or a concrete threshold or scale not above
        0.

    References:
      Hu, Lu and Tan, Discriminative Deep Metric Learning for Face Verification in the Wild, 2014
      <https://openaccess.thecvf.com/content_cvpr_2014/papers/Hu_Discriminative_Deep_Metric_2014_CVPR_paper.pdf>,
      eq. 6 and 7, divided by the scale there.

    Example:
      >>> from contrastive_jax import losses
      >>> print(f"{losses.logistic(1.0, 0):.3f} {losses.logistic(3.0, 1):.3f}")
      0.693 0.127
    """
    check_hyperparameters(scale=scale)
    distance, label, threshold = _checked(distance, label, threshold, name="threshold")
    scale = jnp.asarray(scale, distance.dtype)
    return softplus((1 - 2 * label) * scale * (distance - threshold))


@with_distance(euclidean)
def margin_based(
    distance: ArrayLike,
    label: ArrayLike,
    margin: ArrayLike = 0.2,
    boundary: ArrayLike = 1.2,
) -> jax.Array:
    r"""Margin based loss: a boundary between positive and negative pairs, with margins around it.

    $$L(D, z) = \max(0, m + z (D - \beta))$$

    with $D$ the distance, $z$ 1 for a positive pair and -1 for a negative one, $m$ the margin and
    $\beta$ the boundary. Positive pairs are to be closer than `boundary - margin`, negative
    ones farther than `boundary + margin`. `losses.margin_by_class` learns a boundary for each
    class.

    *When.* Use it where classes vary much in themselves, with pairs that are drawn by distance
    (`mining.distance_weighted`).

    Args:
      distance: scalar, at least 0; Euclidean by default, and any other that is at least 0.
      label: scalar, 0 for a positive pair (similar), 1 for a negative one (dissimilar).
      margin: scalar above 0, in the unit of `distance`.
      boundary: scalar above `margin`; may be learned.

    Returns:
      Loss in [0, inf).

    Raises:
      AssertionError: if an argument is not a scalar or `distance` not a floating-point one.
      ValueError: if a concrete label is neither 0 nor 1, a concrete margin not above 0, or a
        concrete boundary not finite.

    References:
      Wu, Manmatha, Smola and Kraehenbuehl, Sampling Matters in Deep Embedding Learning, 2017
      <https://arxiv.org/abs/1706.07567>, eq. 4.

    Example:
      >>> from contrastive_jax import losses
      >>> print(losses.margin_based(1.5, 0, margin=0.25, boundary=1.0))
      0.75
      >>> print(losses.margin_based(1.5, 1, margin=0.25, boundary=1.0))
      0.0
    """
    distance, label, margin = _checked(distance, label, margin)
    check_range(-math.inf, math.inf, boundary=boundary)
    beyond = distance - jnp.asarray(boundary, distance.dtype)
    return jnp.maximum(0, margin + (1 - 2 * label) * beyond)


def _checked(
    distance: ArrayLike,
    label: ArrayLike,
    margin: ArrayLike,
    *,
    name: str = "margin",
    above_zero: bool = True,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Checks concrete values, and casts all to the dtype of the distance."""
    distance = jnp.asarray(distance)
    chex.assert_rank([distance, label], 0, custom_message="map a batch by jax.vmap")
    message = f"{name} must be a scalar: map a batch by jax.vmap"
    chex.assert_rank(margin, 0, custom_message=message)
    check_scalars(**{name: margin})
    chex.assert_type(
        distance, float, custom_message="distance must be a floating-point number, as 2.0"
    )
    check_hyperparameters(label=label, **({name: margin} if above_zero else {}))
    return distance, jnp.asarray(label, distance.dtype), jnp.asarray(margin, distance.dtype)


def _by_label(label: jax.Array, positive: jax.Array, negative: jax.Array) -> jax.Array:
    """Returns the term of a positive or of a negative pair.

    It is chosen before it is squared, and not multiplied by the label: the square of the other one
    may be infinite, and 0 times infinity is not 0.
    """
    return jnp.where(label == 1, negative, positive)


def _beyond(distance: jax.Array, positive_margin: ArrayLike, margin: ArrayLike) -> jax.Array:
    """By how much a distance exceeds the margin of positive pairs; itself where that is 0.

    The margin is as the caller passes it: cast under a transformation it would be traced.
    """
    if isinstance(positive_margin, int | float) and positive_margin == 0:
        return distance
    most = math.inf if isinstance(margin, jax.core.Tracer) else float(np.asarray(margin))
    check_range(0, most, positive_margin=positive_margin)
    return jnp.maximum(0, distance - jnp.asarray(positive_margin, distance.dtype))

"""Losses of embeddings and learned proxies of the classes, for `proxy_loss`."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import logsumexp
from jax.typing import ArrayLike

from contrastive_jax.checks import check_hyperparameters, check_range
from contrastive_jax.losses._numerics import softplus, turned
from contrastive_jax.losses.softmax import nca
from contrastive_jax.losses.types import AnchorLoss, CentersLoss, Mean, ProxyLoss
from contrastive_jax.statistics import log_sum_exp, smallest


def normalized_softmax(temperature: ArrayLike = 0.05) -> ProxyLoss:
    r"""Normalised softmax loss: classification by the cosine with the proxy of each class.

    $$-\log \frac{e^{s_y / t}}{\sum_c e^{s_c / t}}$$

    with $s$ the cosine, $t$ the temperature and $y$ the class of the anchor; the mean over anchors.

    *When.* Use it as the first proxy loss to try, above all with many classes. In
    docs/compare_losses.md it is among the best on seen classes and among the worst on unseen ones.

    Args:
      temperature: above 0; 0.05 in the paper. May be traced.

    Returns:
      Loss in [0, inf) for `proxy_loss`.

    Raises:
      ValueError: if a concrete temperature is not above 0.

    References:
      Zhai and Wu, Classification is a Strong Baseline for Deep Metric Learning, 2019
      <https://arxiv.org/abs/1811.12649>, eq. 3.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import losses, proxy_loss
      >>> x = jnp.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> classes = jnp.array([0, 0, 1, 1])
      >>> proxies = jnp.array([[1.0, 0.2], [-0.2, 1.0]])  # one for each class
      >>> loss = losses.normalized_softmax(temperature=0.5)
      >>> value = proxy_loss(x, classes, proxies, loss=loss)
      >>> print(f"{value:.3f}")
      0.169
    """
    check_hyperparameters(temperature=temperature)

    def row_loss(cosines: jax.Array, own: jax.Array) -> Mean:
        logits = cosines / temperature
        return Mean(logsumexp(logits) - logsumexp(logits[own]), 1.0)

    by_statistics = nca(1 / temperature)._replace(distance=AnchorLoss._field_defaults["distance"])
    return ProxyLoss(by_statistics, row_loss=row_loss, by_cosine=True)


def proxy_nca(temperature: ArrayLike = 1 / 9) -> ProxyLoss:
    r"""ProxyNCA++ loss: classification by the squared distance to the proxy of each class.

    $$-\log \frac{e^{-d_y / t}}{\sum_c e^{-d_c / t}}$$

    with $d$ the squared distance on the unit sphere, $t$ the temperature and $y$ the class of the
    anchor. The sum is over all proxies, that of the anchor's class included. The loss is the mean
    over anchors.

    *When.* Use it like `normalized_softmax`, which it equals at half the temperature. In
    docs/compare_losses.md it is first on seen classes and last but one on unseen ones.

    Args:
      temperature: above 0; 1/9 in the paper. May be traced.

    Returns:
      Loss in [0, inf) for `proxy_loss`.

    Raises:
      ValueError: if a concrete temperature is not above 0.

    References:
      Teh, DeVries and Taylor, ProxyNCA++: Revisiting and Revitalizing Proxy Neighborhood Component
      Analysis, 2020 <https://arxiv.org/abs/2004.01113>, eq. 6.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import losses, proxy_loss
      >>> x = jnp.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> classes = jnp.array([0, 0, 1, 1])
      >>> proxies = jnp.array([[1.0, 0.2], [-0.2, 1.0]])  # one for each class
      >>> loss = losses.proxy_nca(temperature=0.5)
      >>> value = proxy_loss(x, classes, proxies, loss=loss)
      >>> print(f"{value:.3f}")
      0.049
    """
    check_hyperparameters(temperature=temperature)
    # A squared distance on the unit sphere is twice a cosine distance.
    return normalized_softmax(temperature / 2)


def cosface(margin: ArrayLike = 0.35, scale: ArrayLike = 64.0) -> ProxyLoss:
    r"""CosFace loss: a softmax over classes with a margin on the cosine.

    $$-\log \frac{e^{\gamma (s_y - m)}}{e^{\gamma (s_y - m)} + \sum_{c \neq y} e^{\gamma s_c}}$$

    with $s$ the cosine, $m$ the margin, $\gamma$ the scale and $y$ the class of the anchor; the
    mean over anchors. Where a class has several proxies, the nearest one counts.

    *When.* Use it with many classes, as in face recognition, where identities that training never
    saw must be distinguished.

    Args:
      margin: cosine in [0, 2); 0.35 in the paper.
      scale: above 0; 30 to 64.

    Returns:
      Loss in [0, inf) for `proxy_loss`.

    Raises:
      ValueError: if a concrete number is not in its range.

    References:
      Wang et al., CosFace: Large Margin Cosine Loss for Deep Face Recognition, 2018
      <https://arxiv.org/abs/1801.09414>, eq. 4.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import losses, proxy_loss
      >>> x = jnp.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> classes = jnp.array([0, 0, 1, 1])
      >>> proxies = jnp.array([[1.0, 0.2], [-0.2, 1.0]])  # one for each class
      >>> loss = losses.cosface(scale=4.0)
      >>> value = proxy_loss(x, classes, proxies, loss=loss)
      >>> print(f"{value:.3f}")
      0.175
    """
    check_range(0, 2, margin=margin)
    return _with_margin(lambda distance: 1 - distance - margin, scale, by_cosine=True)


def arcface(margin: ArrayLike = 0.5, scale: ArrayLike = 64.0) -> ProxyLoss:
    r"""ArcFace loss: a softmax over classes with a margin on the angle.

    $$-\log \frac{e^{\gamma \cos(\theta_y + m)}}
    {e^{\gamma \cos(\theta_y + m)} + \sum_{c \neq y} e^{\gamma \cos \theta_c}}$$

    as `cosface`, with $\theta$ the angle. Where $\theta_y + m$ exceeds $\pi$,
    $\cos \theta_y - m \sin m$ takes the place of the cosine, which would rise again.

    *When.* Use it like `cosface`. The margin is the same at every angle. The gradient of an
    embedding that is compared with all proxies at once (`proxy_loss`) loses digits close to its
    proxy: a thousandth of it at 0.01 radians, a tenth at 0.001. `refine=True` computes it from the
    distance.

    Args:
      margin: angle in radians, in [0, pi); 0.5 in the paper. pytorch-metric-learning has degrees,
        28.6 by default.
      scale: above 0; 64 in the paper.

    Returns:
      Loss in [0, inf) for `proxy_loss`.

    Raises:
      ValueError: if a concrete number is not in its range.

    References:
      Deng et al., ArcFace: Additive Angular Margin Loss for Deep Face Recognition, 2019
      <https://arxiv.org/abs/1801.07698>, eq. 3.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import losses, proxy_loss
      >>> x = jnp.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> classes = jnp.array([0, 0, 1, 1])
      >>> proxies = jnp.array([[1.0, 0.2], [-0.2, 1.0]])  # one for each class
      >>> loss = losses.arcface(scale=4.0)
      >>> value = proxy_loss(x, classes, proxies, loss=loss)
      >>> print(f"{value:.3f}")
      0.142
    """
    check_range(0, math.pi, margin=margin)

    def own(distance: jax.Array) -> jax.Array:
        turns = 1 - distance < jnp.cos(math.pi - margin)
        return jnp.where(turns, 1 - distance - margin * jnp.sin(margin), turned(distance, margin))

    # An angle has the digits of the square root of its distance.
    return _with_margin(own, scale, by_cosine=False)


def proxy_anchor(margin: ArrayLike = 0.1, alpha: ArrayLike = 32.0) -> ProxyLoss:
    r"""Proxy-Anchor loss: each proxy is an anchor for all embeddings of the batch.

    $$\log\big(1 + \sum_p e^{-\alpha (s_p - m)}\big)$$

    with $s$ the cosine, $m$ the margin and $\alpha$ a scale, the mean over proxies with a positive,
    plus

    $$\log\big(1 + \sum_n e^{\alpha (s_n + m)}\big)$$

    the mean over all proxies.

    *When.* Use it with many classes where other proxy losses converge slowly: a proxy weights the
    embeddings of a batch against each other.

    Args:
      margin: cosine in [0, 1); 0.1 in the paper.
      alpha: above 0; 32 in the paper.

    Returns:
      Loss in [0, inf) for `proxy_loss`.

    Raises:
      ValueError: if a concrete number is not in its range.

    References:
      Kim et al., Proxy Anchor Loss for Deep Metric Learning, 2020
      <https://arxiv.org/abs/2003.13911>, eq. 4.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import losses, proxy_loss
      >>> x = jnp.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> classes = jnp.array([0, 0, 1, 1])
      >>> proxies = jnp.array([[1.0, 0.2], [-0.2, 1.0]])  # one for each class
      >>> loss = losses.proxy_anchor()
      >>> value = proxy_loss(x, classes, proxies, loss=loss)
      >>> print(f"{value:.3f}")
      13.241
    """
    check_hyperparameters(alpha=alpha)
    check_range(0, 1, margin=margin)

    def statistics(distance: jax.Array, label: jax.Array) -> Any:
        s = 1 - distance
        return (
            log_sum_exp(alpha * (margin - s), label == 0),
            log_sum_exp(alpha * (s + margin), label == 1),
        )

    def loss(stats: Any) -> tuple[Mean, Mean]:
        positives, negatives = stats
        return (
            Mean(softplus(positives), positives > -jnp.inf),
            Mean(softplus(negatives), 1.0),
        )

    return ProxyLoss(AnchorLoss(loss, (statistics,), fixed=True), anchors="proxies", by_cosine=True)


def soft_triple(
    margin: ArrayLike = 0.01, scale: ArrayLike = 20.0, gamma: ArrayLike = 0.1
) -> CentersLoss:
    r"""SoftTriple loss: classification with several centres for each class.

    $$S_c = \sum_k \frac{e^{s_{ck} / \gamma}}{\sum_l e^{s_{cl} / \gamma}} s_{ck}$$

    is the similarity to a class, with $s_{ck}$ the cosine with its centre $k$; then as `cosface`,

    $$-\log \frac{e^{\lambda (S_y - m)}}{e^{\lambda (S_y - m)} + \sum_{c \neq y} e^{\lambda S_c}}$$

    with $m$ the margin, $\lambda$ the scale and $y$ the class of the anchor; the mean over anchors.
    Proxies are `[C, K, D]`; `regularizers.centers` merges centres that are not needed.

    *When.* Use it where a class has several modes.

    Args:
      margin: cosine in [0, 2); 0.01 in the paper.
      scale: above 0; 20 in the paper.
      gamma: above 0, temperature of the choice; 0.1 in the paper.

    Returns:
      Loss in [0, inf) for `proxy_loss`.

    Raises:
      ValueError: if a concrete number is not in its range.

    References:
      Qian et al., SoftTriple Loss: Deep Metric Learning Without Triplet Sampling, 2019
      <https://arxiv.org/abs/1909.05235>, eq. 7 and 8.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import losses, proxy_loss
      >>> x = jnp.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> classes = jnp.array([0, 0, 1, 1])
      >>> centers = jnp.array([[[1.0, 0.2], [0.6, 0.8]], [[-0.2, 1.0], [-1.0, 0.2]]])  # two a class
      >>> value = proxy_loss(x, classes, centers, loss=losses.soft_triple(scale=4.0))
      >>> print(f"{value:.3f}")
      0.159
    """
    check_hyperparameters(scale=scale, gamma=gamma)
    check_range(0, 2, margin=margin)

    def loss(cosines: jax.Array, own: jax.Array) -> Mean:
        to_class = jnp.sum(jax.nn.softmax(cosines / gamma) * cosines, axis=1)
        to_class -= jnp.where(jnp.arange(len(cosines)) == own, margin, 0)
        return Mean(-jax.nn.log_softmax(scale * to_class)[own], 1.0)

    return CentersLoss(loss)


def _with_margin(own: Any, scale: ArrayLike, *, by_cosine: bool) -> ProxyLoss:
    """Makes a softmax loss in which `own` changes the cosine with the proxy of the class."""
    check_hyperparameters(scale=scale)

    def statistics(distance: jax.Array, label: jax.Array) -> Any:
        return smallest(distance, label == 0), log_sum_exp(scale * (1 - distance), label == 1)

    def loss(stats: Any) -> Mean:
        distance, others = stats
        valid = jnp.isfinite(distance)
        value = softplus(others - scale * own(jnp.where(valid, distance, 0)))
        return Mean(jnp.where(valid, value, 0), valid)

    def row_loss(cosines: jax.Array, own_class: jax.Array) -> Mean:
        if len(cosines) == 1:
            return Mean(0 * cosines[0, 0], 1.0)
        is_own = (jnp.arange(len(cosines)) == own_class)[:, None]
        others = logsumexp(jnp.where(is_own, -jnp.inf, scale * cosines))
        nearest = own(1 - jnp.max(cosines[own_class]))
        return Mean(softplus(others - scale * nearest), 1.0)

    by_statistics = AnchorLoss(loss, (statistics,), fixed=True)
    return ProxyLoss(by_statistics, row_loss=row_loss, by_cosine=by_cosine)

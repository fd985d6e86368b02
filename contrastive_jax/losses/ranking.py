"""Losses that approximate the average precision of the ranking of an anchor."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from contrastive_jax.checks import check_hyperparameters, check_whole
from contrastive_jax.losses.types import AnchorLoss, Mean, TripletLoss
from contrastive_jax.statistics import total


def fast_ap(bins: int = 10) -> AnchorLoss:
    r"""FastAP: average precision by histograms of distances with soft bins.

    $$1 - \frac{1}{N_+} \sum_k h^+_k \frac{H^+_k}{H_k}$$

    with $h^+$ the histogram of the $N_+$ positives, $H^+$ its running sum, and $H$ the running sum
    of the histogram of all. Squared Euclidean distances on the unit sphere fall into `bins + 1`
    bins over [0, 4], shared linearly between the two nearest; the precision at a bin is that of all
    distances up to it. The mean over anchors that have a positive.

    *When.* Use it where the order of a long ranking is the goal and batches are large.

    Args:
      bins: number of intervals, at least 1; 10 in the paper.

    Returns:
      Loss in [0, 1] for `anchor_loss`; with the cosine distance alone.

    Raises:
      ValueError: if `bins` is not a whole number from 1.

    References:
      Cakir et al., Deep Metric Learning to Rank, 2019 <https://doi.org/10.1109/CVPR.2019.00196>,
      eq. 5 to 8.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import anchor_loss, losses
      >>> x = jnp.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> classes = jnp.array([0, 1, 0, 1])
      >>> value = anchor_loss(x, classes, loss=losses.fast_ap())
      >>> print(f"{value:.3f}")
      0.583
    """
    check_whole(1, bins=bins)

    def statistics(distance: jax.Array, label: jax.Array) -> Any:
        # In units of a bin; twice the cosine distance is the squared Euclidean one.
        position = distance * (bins / 2)
        shares = [jax.nn.relu(1 - jnp.abs(position - k)) for k in range(int(bins) + 1)]
        positives = [total(share, label == 0) for share in shares]
        return positives, [total(share) for share in shares], total(1.0, label == 0)

    def loss(stats: Any) -> Mean:
        positives, everything, count = stats
        positives, everything = jnp.stack(positives), jnp.stack(everything)
        seen, below = jnp.cumsum(everything), jnp.cumsum(positives)
        some = seen > 0
        gained = jnp.where(some, positives * below / jnp.where(some, seen, 1), 0)
        valid = count > 0
        value = 1 - jnp.sum(gained) / jnp.maximum(count, 1)
        return Mean(jnp.where(valid, value, 0), valid)

    return AnchorLoss(loss, (statistics,), fixed=True)


def smooth_ap(temperature: ArrayLike = 0.01, *, include_query: bool = False) -> TripletLoss:
    r"""Smooth-AP: average precision with a sigmoid for each comparison of two distances.

    $$1 - \frac{1}{|P|} \sum_{p \in P} \frac{1 + \sum_{j \in P} \sigma((d_p - d_j) / t)}
    {1 + \sum_j \sigma((d_p - d_j) / t)}$$

    with $d$ the distance, $t$ the temperature, $\sigma$ the sigmoid and $j \neq p$. The fraction is
    the rank of a positive among the positives $P$, divided by its rank among all. The loss is the
    mean over anchors that have a positive. It takes a pass over all pairs for every four examples
    of the largest class.

    *When.* Use it where average precision itself is the goal and batches have several examples of
    each class.

    Args:
      temperature: above 0, in the unit of the distance; 0.01 in the paper, for cosines. A lower
        one is closer to AP, and fewer pairs have a gradient.
      include_query: True if the anchor itself, at distance 0, is retrieved as one more positive, as
        in the authors' code and in pytorch-metric-learning. That raises every AP.

    Returns:
      Loss in [0, 1) for `anchor_loss`.

    Raises:
      ValueError: if a concrete temperature is not above 0.

    References:
      Brown et al., Smooth-AP: Smoothing the Path Towards Large-Scale Image Retrieval, 2020
      <https://arxiv.org/abs/2007.12163>, eq. 6.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import anchor_loss, losses
      >>> x = jnp.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> classes = jnp.array([0, 0, 1, 1])
      >>> value = anchor_loss(x, classes, loss=losses.smooth_ap(temperature=0.1))
      >>> print(f"{value:.3f}")
      0.054
    """
    check_hyperparameters(temperature=temperature)

    def statistics(distance: jax.Array, label: jax.Array, positive: jax.Array) -> Any:
        before, is_positive = jax.nn.sigmoid((positive - distance) / temperature), label == 0
        stats = [total(before), total(before, is_positive), total(1.0, is_positive)]
        if include_query:
            nearer = jax.nn.sigmoid(-distance / temperature)
            stats += [total(nearer), total(nearer, is_positive)]
        return tuple(stats)

    def loss(positive: jax.Array, stats: Any) -> Mean:
        everything, positives, count, *query_stats = stats
        # The positive is among those that are compared with it, and adds a half to either sum.
        if not include_query:
            return Mean((1 - (0.5 + positives) / (0.5 + everything)) / count, 1 / count)
        query = 0.5 + jax.nn.sigmoid(positive / temperature)
        value = 1 - (query + positives) / (query + everything)
        # The query counts once, and so by a part with each of its positives.
        value += (1 - (1 + query_stats[1]) / (1 + query_stats[0])) / count
        return Mean(value / (count + 1), 1 / count)

    return TripletLoss(loss, (statistics,))

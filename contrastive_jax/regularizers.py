"""Penalties on a batch of embeddings, whatever their classes; add them to a loss.

All leave out rows of class -1 where classes are given, and with an axis name are those of the
global batch: each device gets the same value, and the gradient by its own rows. For the gradients
of values that the devices share see *Shared parameters* in `contrastive_jax.all_pairs_loss`.
Without an axis name arrays under `jax.jit` may be spread over a mesh; `koleo`, `covariance` and
`centers` gather the rows of theirs.
"""

import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax import lax

from contrastive_jax._carried_checks import with_checks
from contrastive_jax._directions import unit
from contrastive_jax._dtypes import widen
from contrastive_jax._engine.sharding import gathered, psum_once
from contrastive_jax._host_arrays import as_array, as_classes, column_hint
from contrastive_jax.anchors import anchor_loss
from contrastive_jax.checks import check_hyperparameters, check_range
from contrastive_jax.distances import euclidean
from contrastive_jax.losses.types import AnchorLoss, Mean
from contrastive_jax.statistics import smallest

__all__ = ["centers", "covariance", "embedding_norm", "koleo", "variance"]


def embedding_norm(
    embeddings: jax.Array, classes: jax.Array | None = None, *, axis_name: Any = None
) -> jax.Array:
    r"""Mean squared length, a penalty for losses of inner products.

    $$\frac{1}{N} \sum_i |x_i|^2$$

    of $N$ embeddings $x_i$.

    Args:
      embeddings: `[B, D]`, floating.
      classes: `[B]`, integers, of which only -1 counts: rows to ignore, whatever they hold.
      axis_name: axis of the devices that share the batch.

    Returns:
      A scalar in [0, inf); 0 of no rows.

    Raises:
      AssertionError: if ranks, shapes or dtypes do not fit.
      ValueError: if an array is masked, or a concrete embedding or class has a wrong value.

    References:
      Sohn, Improved Deep Metric Learning with Multi-class N-pair Loss Objective, 2016
      <https://proceedings.neurips.cc/paper/2016/hash/6b180037abbebea991d8b1232f8a8ca9-Abstract.html>,
      sec. 3.2.3.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import regularizers
      >>> print(regularizers.embedding_norm(jnp.array([[3.0, 4.0], [0.0, 1.0]])))
      13.0
    """
    embeddings, counts = _counted(embeddings, classes)
    total: jax.Array
    total, count = psum_once((jnp.sum(embeddings**2), jnp.sum(counts)), axis_name)
    return total / jnp.maximum(lax.stop_gradient(count), 1)


def koleo(
    embeddings: jax.Array, classes: jax.Array | None = None, *, axis_name: Any = None
) -> jax.Array:
    r"""Kozachenko-Leonenko regulariser, which keeps embeddings on the sphere apart.

    $$-\frac{1}{N} \sum_i \log \min_{j \neq i} |x_i - x_j|$$

    of $N$ embeddings $x_i$.

    It spreads embeddings evenly. One pass over the pairs gives the nearest neighbours, without a
    B x B array.

    Args:
      embeddings: `[B, D]`, floating, scaled to unit length here.
      classes: `[B]`, integers, of which only -1 counts: rows to ignore, whatever they hold.
      axis_name: axis of the devices that share the batch.

    Returns:
      A scalar, at least $-\log 2$; 0 of fewer than two rows. Rows that coincide count as 1e-8
      apart, and have no gradient.

    Raises:
      AssertionError: if ranks, shapes or dtypes do not fit.
      ValueError: if an array is masked, or a concrete embedding or class has a wrong value.

    References:
      Sablayrolles et al., Spreading Vectors for Similarity Search, 2019
      <https://arxiv.org/abs/1806.03198>, eq. 3.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import regularizers
      >>> apart, close = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([[1.0, 0.0], [1.0, 0.1]])
      >>> print(f"{regularizers.koleo(apart):.2f} {regularizers.koleo(close):.2f}")
      -0.35 2.31
    """
    embeddings, counts = _counted(embeddings, classes)
    one_class = jnp.where(counts > 0, 0, -1)
    return anchor_loss(unit(embeddings), one_class, loss=_KOLEO, axis_name=axis_name)


def _nearest(distance: jax.Array, label: jax.Array) -> Any:
    return smallest(distance)


def _log_distance(nearest: jax.Array) -> Mean:
    has_neighbour, apart = jnp.isfinite(nearest), nearest > 1e-8
    value = -jnp.log(jnp.where(has_neighbour & apart, nearest, 1e-8))
    return Mean(jnp.where(has_neighbour, value, 0), has_neighbour)


_KOLEO = AnchorLoss(_log_distance, (_nearest,), euclidean)


def variance(
    embeddings: jax.Array,
    classes: jax.Array | None = None,
    *,
    target: float = 1.0,
    eps: float = 1e-4,
    axis_name: Any = None,
) -> jax.Array:
    r"""VICReg's variance term, which makes each entry vary over the batch.

    $$\frac{1}{D} \sum_d \max\big(0, \tau - \sqrt{\text{var}_d + \epsilon}\big)$$

    with $\text{var}_d$ the unbiased variance of entry $d$ over the rows, $D$ the number of entries,
    $\tau$ the target and $\epsilon$ `eps`.

    Args:
      embeddings: `[B, D]`, floating.
      classes: `[B]`, integers, of which only -1 counts: rows to ignore, whatever they hold.
      target: standard deviation to reach, at least 0.
      eps: above 0, which keeps the derivative of the root finite.
      axis_name: axis of the devices that share the batch.

    Returns:
      A scalar in [0, target); 0 of fewer than two rows.

    Raises:
      AssertionError: if ranks, shapes or dtypes do not fit.
      ValueError: if `eps` is not above 0 or `target` below 0, an array is masked, or a concrete
        embedding or class has a wrong value.

    References:
      Bardes, Ponce and LeCun, VICReg, 2022 <https://arxiv.org/abs/2105.04906>, eq. 1 and 2.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import regularizers
      >>> x = jnp.array([[0.5, 2.0], [-0.5, -2.0]])  # the first entry varies too little
      >>> print(f"{regularizers.variance(x):.2f}")
      0.15
    """
    check_hyperparameters(eps=eps)
    check_range(0, math.inf, target=target)
    centred, count = _centred(embeddings, classes, axis_name)
    square = psum_once(jnp.sum(centred**2, axis=0), axis_name) / jnp.maximum(count - 1, 1)
    value = jnp.mean(jax.nn.relu(target - jnp.sqrt(square + eps)))
    return jnp.where(count > 1, value, 0)


def covariance(
    embeddings: jax.Array, classes: jax.Array | None = None, *, axis_name: Any = None
) -> jax.Array:
    r"""VICReg's covariance term, which decorrelates the entries of an embedding.

    $$\frac{1}{D} \sum_{d \neq e} C_{de}^2$$

    with $C$ the covariance matrix: the sum of its squared off-diagonal entries, over D.

    Args:
      embeddings: `[B, D]`, floating.
      classes: `[B]`, integers, of which only -1 counts: rows to ignore, whatever they hold.
      axis_name: axis of the devices that share the batch.

    Returns:
      A scalar in [0, inf); 0 of fewer than two rows.

    Raises:
      AssertionError: if ranks, shapes or dtypes do not fit.
      ValueError: if an array is masked, or a concrete embedding or class has a wrong value.

    References:
      Bardes, Ponce and LeCun, VICReg, 2022 <https://arxiv.org/abs/2105.04906>, eq. 3 and 4.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import regularizers
      >>> x = jnp.array([[1.0, 1.0], [-1.0, -1.0]])  # the entries vary together
      >>> print(f"{regularizers.covariance(x):.2f}")
      4.00
    """
    centred, count = _centred(embeddings, classes, axis_name)
    centred = gathered(centred)
    product = jnp.matmul(centred.T, centred, precision=lax.Precision.HIGHEST)
    matrix = psum_once(product, axis_name) / jnp.maximum(count - 1, 1)
    size = len(matrix)
    return jnp.sum(jnp.where(jnp.eye(size, dtype=bool), 0, matrix) ** 2) / size


def centers(proxies: jax.Array) -> jax.Array:
    r"""SoftTriple's regulariser, which merges the centres of a class that are not needed.

    $$\frac{1}{C K (K - 1)} \sum_c \sum_{k < l} \sqrt{2 - 2 w_{ck} \cdot w_{cl}}$$

    with $w_{ck}$ centre $k$ of class $c$: half the mean over pairs of centres of one class.

    Args:
      proxies: `[C, K, D]`, floating, scaled to unit length here.

    Returns:
      A scalar in [0, 1]; 0 with one centre a class. Centres that coincide have no gradient.

    Raises:
      AssertionError: if ranks or dtypes do not fit.
      ValueError: if an array is masked, or a concrete proxy is not finite.

    References:
      Qian et al., SoftTriple Loss: Deep Metric Learning Without Triplet Sampling, 2019
      <https://arxiv.org/abs/1909.05235>, eq. 9.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import regularizers
      >>> proxies = jnp.array([[[1.0, 0.0], [0.0, 1.0]]])  # one class with two centres
      >>> print(f"{regularizers.centers(proxies):.3f}")
      0.707
    """
    proxies = as_array("proxies", proxies)
    chex.assert_rank(proxies, 3, custom_message="expected proxies: [C, K, D]")
    chex.assert_type(proxies, float, custom_message="proxies must be floating")
    proxies = with_checks(jnp.asarray(proxies), proxies=proxies)
    rows, columns = jnp.triu_indices(proxies.shape[1], 1)
    if not len(rows):
        return jnp.zeros((), proxies.dtype)
    directions = unit(gathered(proxies))
    between = jax.vmap(jax.vmap(euclidean))(directions[:, rows], directions[:, columns])
    # The paper divides the sum over pairs by their number in both orders.
    return jnp.mean(between) / 2


def _counted(embeddings: jax.Array, classes: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Returns embeddings in float32 at least, 0 in ignored rows, and 1 for each row that counts."""
    classes = None if classes is None else as_classes("classes", classes)
    embeddings = jnp.asarray(as_array("embeddings", embeddings, classes=classes))
    chex.assert_rank(embeddings, 2, custom_message="expected embeddings: [B, D]")
    chex.assert_type(embeddings, float, custom_message="embeddings must be floating")
    embeddings = widen(embeddings)
    if classes is None:
        embeddings = with_checks(embeddings, embeddings=embeddings)
        # Derived from the embeddings, so that under `jax.shard_map` it differs where they do.
        return embeddings, jnp.ones_like(embeddings[:, 0])
    classes = jnp.asarray(classes)
    expected = f"expected embeddings: [B, D], classes: [B]{column_hint(classes=classes)}"
    chex.assert_rank(classes, 1, custom_message=expected)
    chex.assert_equal_shape_prefix([embeddings, classes], 1, custom_message=expected)
    counts = (classes >= 0).astype(embeddings.dtype)
    embeddings = jnp.where(counts[:, None] > 0, embeddings, 0)
    return with_checks(embeddings, embeddings=embeddings), counts


def _centred(
    embeddings: jax.Array, classes: jax.Array | None, axis_name: Any
) -> tuple[jax.Array, jax.Array]:
    """Subtracts the mean over all devices; returns the rows and their number."""
    embeddings, counts = _counted(embeddings, classes)
    total, count = jnp.sum(embeddings, axis=0), jnp.sum(counts)
    if axis_name is not None:
        # The derivative by the mean vanishes, as centred rows add up to 0.
        total, count = lax.psum((lax.stop_gradient(total), count), axis_name)
    mean = lax.stop_gradient(total) / jnp.maximum(count, 1)
    return jnp.where(counts[:, None] > 0, embeddings - mean[None], 0), lax.stop_gradient(count)

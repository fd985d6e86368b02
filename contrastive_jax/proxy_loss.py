"""Losses of embeddings and learned proxies of their classes."""

from typing import Any, cast

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from contrastive_jax.all_pairs import checked_side
from contrastive_jax.anchor_loss import AnchorReduction, anchor_loss, three
from contrastive_jax.anchors import shared_total
from contrastive_jax.losses.directions import unit
from contrastive_jax.losses.kinds import AnchorLoss, CentersLoss, ProxyLoss
from contrastive_jax.memory import own_share

# Cosines that are held at once.
_COSINES = 2**20


def proxy_loss(
    embeddings: jax.Array,
    classes: jax.Array,
    proxies: jax.Array,
    *,
    loss: ProxyLoss | CentersLoss | AnchorLoss,
    reduction: AnchorReduction = "mean",
    axis_name: Any = None,
    **options: Any,
) -> jax.Array:
    """Loss of embeddings against proxies of the classes, which are parameters to be learned.

    Proxies are the second set of `anchor_loss`. With an axis name every device holds all proxies
    and takes its share of them: their gradient, as that of the encoder, is to be added up over the
    devices (`lax.psum`), unless `jax.shard_map` with its default `check_vma=True` does.

    Args:
      embeddings: `[B, D]`, floating.
      classes: `[B]`, integers from 0 to C - 1; rows of class -1 are ignored, and those of traced
        classes without a proxy.
      proxies: `[C, D]`, or `[C, K, D]` with K for each class; of the dtype of `embeddings`.
      loss: one of the proxy losses of `contrastive_jax.losses`, or any `AnchorLoss`.
      reduction: as in `anchor_loss`.
      axis_name: of the devices that share the batch.
      **options: `distance`, `exact`, `tile` and `precision` of `anchor_loss`; of a `CentersLoss`
        `precision` alone.

    Returns:
      Loss, a scalar.

    Raises:
      AssertionError: if ranks, shapes or dtypes do not fit.
      ValueError: as `anchor_loss`, and if a known class has no proxy or an option is not one of
        those above.
    """
    if isinstance(loss, AnchorLoss):
        loss = ProxyLoss(loss)
    if not isinstance(loss, ProxyLoss | CentersLoss):
        raise ValueError(
            f"loss must be a ProxyLoss, a CentersLoss or an AnchorLoss, got {loss!r}; a factory "
            "such as losses.arcface is to be called"
        )
    if reduction not in ("mean", "active", "sum"):
        raise ValueError(f"reduction must be one of mean, active, sum, got {reduction!r}")
    largest = None if isinstance(classes, jax.core.Tracer) else np.max(classes, initial=-1)
    embeddings, classes, _ = checked_side("", embeddings, classes, None)
    proxies = jnp.asarray(proxies)
    expected = {"custom_message": "expected embeddings: [B, D] and proxies: [C, D] or [C, K, D]"}
    chex.assert_rank(proxies, {2, 3}, **expected)
    chex.assert_equal_shape_suffix([embeddings, proxies], 1, **expected)
    chex.assert_type(
        proxies, embeddings.dtype, custom_message="proxies are not of embeddings' dtype"
    )
    if largest is not None and largest >= len(proxies):
        raise ValueError(
            f"classes must be below {len(proxies)}, the number of proxies, got {largest}"
        )
    if isinstance(loss, CentersLoss):
        if {*options} - {"precision"}:
            wrong = ", ".join(sorted({*options} - {"precision"}))
            raise ValueError(f"a CentersLoss meets all centres at once and takes no {wrong}")
        return _of_centers(embeddings, classes, proxies, loss, reduction, axis_name, **options)
    rows = proxies.reshape(-1, proxies.shape[-1])
    numbers = jnp.arange(len(rows)) // (len(rows) // len(proxies))
    if axis_name is not None:
        rows, numbers = own_share((rows, numbers), axis_name)
    sets = (embeddings, classes), (rows, numbers)
    if loss.anchors == "proxies":
        sets = sets[1], sets[0]
    return anchor_loss(
        *sets[0], *sets[1], loss=loss.loss, reduction=reduction, axis_name=axis_name, **options
    )


def _of_centers(
    embeddings: jax.Array,
    classes: jax.Array,
    proxies: jax.Array,
    loss: CentersLoss,
    reduction: AnchorReduction,
    axis_name: Any,
    *,
    precision: lax.PrecisionLike = lax.Precision.HIGHEST,
) -> jax.Array:
    """Loss of rows that meet the centres of all classes at once, some rows at a time."""
    proxies = proxies if proxies.ndim == 3 else proxies[:, None]
    dtype = jnp.promote_types(embeddings.dtype, jnp.float32)
    centers = unit(proxies.astype(dtype)).reshape(-1, proxies.shape[-1])
    height = max(1, min(len(embeddings), _COSINES // len(centers)))
    padding = -len(embeddings) % height
    bad = jnp.sum(jnp.where((classes >= 0)[:, None], embeddings.astype(dtype), 0) * 0)
    counts = (classes >= 0) & (classes < len(proxies))
    rows = jnp.where(counts[:, None], embeddings.astype(dtype), 0)
    rows = jnp.pad(rows, ((0, padding), (0, 0))).reshape(-1, height, rows.shape[1])
    classes = jnp.pad(jnp.where(counts, classes, -1), (0, padding), constant_values=-1)

    @jax.checkpoint
    def of_block(block: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
        rows, classes = block
        cosines = jnp.matmul(unit(rows), centers.T, precision=precision)
        cosines = cosines.reshape(len(rows), *proxies.shape[:2])
        known = classes >= 0
        means = three(jax.vmap(loss.loss)(cosines, jnp.maximum(classes, 0)))
        means = jax.tree.map(lambda one: jnp.broadcast_to(one, known.shape), means)
        return tuple(jnp.sum(jnp.where(known, one, 0)) for one in means)

    sums = lax.map(of_block, (rows, classes.reshape(-1, height)))
    value, count, active = shared_total(tuple(jnp.sum(one) for one in sums), axis_name)
    # A NaN shows, whatever the loss makes of it.
    value += shared_total(bad, axis_name)
    if reduction == "sum":
        return cast(jax.Array, value)
    count = active if reduction == "active" else count
    return cast(jax.Array, value / jnp.where(count > 0, count, 1))

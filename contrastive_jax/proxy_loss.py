"""Losses of embeddings and learned proxies of their classes."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax import lax

from contrastive_jax.anchor_loss import AnchorReduction, anchor_loss
from contrastive_jax.losses.kinds import AnchorLoss, ProxyLoss


def proxy_loss(
    embeddings: jax.Array,
    classes: jax.Array,
    proxies: jax.Array,
    *,
    loss: ProxyLoss | AnchorLoss,
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
      classes: `[B]`, integers from 0 to C - 1; rows of class -1 are ignored.
      proxies: `[C, D]`, or `[C, K, D]` with K for each class; of the dtype of `embeddings`.
      loss: one of the proxy losses of `contrastive_jax.losses`, or any `AnchorLoss`.
      reduction: as in `anchor_loss`.
      axis_name: of the devices that share the batch.
      **options: `distance`, `exact`, `tile` and `precision` of `anchor_loss`.

    Returns:
      Loss, a scalar.

    Raises:
      AssertionError: if ranks, shapes or dtypes do not fit.
      ValueError: as `anchor_loss`, and if a known class has no proxy.
    """
    if isinstance(loss, AnchorLoss):
        loss = ProxyLoss(loss)
    if not isinstance(loss, ProxyLoss):
        raise ValueError(f"loss must be a ProxyLoss or an AnchorLoss, got {loss!r}")
    embeddings, proxies = jnp.asarray(embeddings), jnp.asarray(proxies)
    expected = {"custom_message": "expected embeddings: [B, D] and proxies: [C, D] or [C, K, D]"}
    chex.assert_rank([embeddings, proxies], [2, {2, 3}], **expected)
    chex.assert_equal(embeddings.shape[-1], proxies.shape[-1])
    if not isinstance(classes, jax.core.Tracer) and jnp.max(classes, initial=-1) >= len(proxies):
        raise ValueError(
            f"classes must be below {len(proxies)}, the number of proxies, got {jnp.max(classes)}"
        )
    proxies = proxies if proxies.ndim == 3 else proxies[:, None]
    numbers = jnp.arange(len(proxies))
    size = proxies.shape[1:]
    if loss.to_class is None:
        numbers = jnp.repeat(numbers, size[0])
        rows = proxies.reshape(-1, size[1])
    else:
        # A class is met as a whole: its centres one after the other, and the embedding as often.
        rows = proxies.reshape(len(proxies), -1)
        embeddings = jnp.tile(embeddings, (1, size[0]))
        to_class = loss.to_class

        def distance(a: jax.Array, b: jax.Array) -> jax.Array:
            return to_class(a.reshape(size)[0], b.reshape(size))

        options = {"distance": distance} | options
    if axis_name is not None:
        devices = lax.axis_size(axis_name)
        share = -(-len(rows) // devices)
        padding = share * devices - len(rows)
        rows = jnp.pad(rows, ((0, padding), (0, 0)))
        numbers = jnp.pad(numbers, (0, padding), constant_values=-1)
        start = lax.axis_index(axis_name) * share
        rows, numbers = (lax.dynamic_slice_in_dim(a, start, share) for a in (rows, numbers))
    sets = (embeddings, classes), (rows, numbers)
    if loss.anchors == "proxies":
        sets = sets[1], sets[0]
    return anchor_loss(
        *sets[0], *sets[1], loss=loss.loss, reduction=reduction, axis_name=axis_name, **options
    )

"""Losses of rows that are compared with the centres of all classes at once, some rows at a time."""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import lax

from contrastive_jax._directions import unit
from contrastive_jax._dtypes import widen
from contrastive_jax._engine.arguments import Method
from contrastive_jax._engine.closures import closure_convert
from contrastive_jax._engine.derivatives import add_gradient, differentiable, eager_vjp
from contrastive_jax._engine.matmul import matmul
from contrastive_jax._engine.problem import zero_or_nan
from contrastive_jax._engine.program_cache import compiled
from contrastive_jax._engine.sharding import axes_of, psum_once, varying
from contrastive_jax.losses._means import check_mean, split_mean, total_of_means
from contrastive_jax.losses.types import CentersLoss, Mean

# Cosines that are held at once.
_COSINES = 2**19

# A value, and the counts of all rows and of active ones.
_Sums = tuple[jax.Array, tuple[jax.Array, jax.Array]]


def centers_loss(
    embeddings: jax.Array,
    classes: jax.Array,
    proxies: jax.Array,
    loss: CentersLoss,
    reduction: str,
    axis_name: Any,
    *,
    precision: lax.PrecisionLike = lax.Precision.HIGHEST,
    method: Method = "sweep",
) -> jax.Array:
    """Computes a loss of embeddings and the centres of all classes.

    Args:
      embeddings: `[B, D]`.
      classes: `[B]`; -1, or a class without centres, where a row is ignored.
      proxies: `[C, D]` or `[C, K, D]`.
      loss: the loss of an embedding.
      reduction: `"mean"`, `"active"`, `"sum"` or `"none"`.
      axis_name: axis of the devices that share the batch, or None.
      precision: precision of the products.
      method: `"sweep"` or `"autodiff"`.

    Returns:
      The loss, a scalar, or `[B]` with the reduction `"none"`.
    """
    proxies = proxies if proxies.ndim == 3 else proxies[:, None]
    embeddings = widen(embeddings)
    centers = unit(widen(proxies).reshape(-1, proxies.shape[-1]))
    height = max(1, min(len(embeddings), _COSINES // len(centers)))
    padding = -len(embeddings) % height
    bad = zero_or_nan(jnp.where((classes >= 0)[:, None], embeddings, 0))
    counts = (classes >= 0) & (classes < len(proxies))
    rows = unit(jnp.where(counts[:, None], embeddings, 0))
    rows = jnp.pad(rows, ((0, padding), (0, 0))).reshape(-1, height, rows.shape[1])
    classes = jnp.where(counts, classes, -1).astype(jnp.int32)
    classes = jnp.pad(classes, (0, padding), constant_values=-1)
    classes = classes.reshape(-1, height)

    example = varying(jnp.zeros(proxies.shape[:2], rows.dtype), axes_of((rows, centers)))
    one_class = varying(jnp.int32(0), axes_of(example))
    function, parameters = closure_convert("loss", loss.loss, (example, one_class), check_mean)
    static = function, precision, proxies.shape[:2]
    arguments = rows, centers.T, parameters, classes
    if reduction == "none":
        each: jax.Array = compiled(_losses_of_rows, *static)(*arguments)
        return jnp.where(counts, each[: len(counts)] + bad, 0)
    swept, plain = (compiled(sums, *static) for sums in (_swept_sums, _plain_sums))
    if method == "autodiff":
        value, counts = plain(*arguments)
    elif axis_name is None:
        value, counts = differentiable(swept, plain, *arguments)
    else:
        value, counts = swept(*arguments)
    value, count, active = psum_once((value, *counts), axis_name)
    # A NaN shows, whatever the loss makes of it.
    value += psum_once(bad, axis_name)
    if reduction == "sum":
        return cast(jax.Array, value)
    count = active if reduction == "active" else count
    return cast(jax.Array, value / jnp.where(count > 0, count, 1))


def _losses_of_rows(
    loss: Callable[..., Mean],
    precision: lax.PrecisionLike,
    shape: tuple[int, int],
    rows: jax.Array,
    centers: jax.Array,
    parameters: tuple[jax.Array, ...],
    classes: jax.Array,
) -> jax.Array:
    """Returns the loss of each row, in plain JAX; any value where a row does not count."""

    @partial(jax.checkpoint, prevent_cse=False)
    def one_block(block: tuple[jax.Array, jax.Array]) -> jax.Array:
        cosines = jnp.matmul(block[0], centers, precision=precision).reshape(-1, *shape)

        def one_row(cosines: jax.Array, own: jax.Array) -> Mean:
            return loss(cosines, own, *parameters)

        mean = jax.vmap(one_row)(cosines, jnp.maximum(block[1], 0))
        return jnp.broadcast_to(total_of_means((mean,)), block[1].shape)

    return cast(jax.Array, lax.map(one_block, (rows, classes)).ravel())


def _swept_sums(
    loss: Callable[..., Mean],
    precision: lax.PrecisionLike,
    shape: tuple[int, int],
    rows: jax.Array,
    centers: jax.Array,
    parameters: tuple[jax.Array, ...],
    classes: jax.Array,
) -> _Sums:
    """Sums over blocks of rows, with the gradient computed in the forward pass."""
    sums_of_block = partial(_sums_of_block, loss, partial(matmul, precision), shape)

    def with_gradient(
        wanted: Any, rows: jax.Array, centers: jax.Array, parameters: Any, classes: jax.Array
    ) -> tuple[jax.Array, Any, Any]:
        if not any(jax.tree.leaves(wanted)):
            each = lax.map(
                lambda one: sums_of_block(one[0], centers, parameters, one[1]), (rows, classes)
            )
            return *jax.tree.map(jnp.sum, each), None

        def add(total: Any, block: Any) -> Any:
            sums, by_shared = total
            part, own = block
            gradient_of = jax.value_and_grad(sums_of_block, (0, 1, 2), has_aux=True, allow_int=True)
            more, (by_rows, *by_more) = gradient_of(part, centers, parameters, own)
            sums = jax.tree.map(jnp.add, sums, more)
            return (sums, jax.tree.map(add_gradient, by_shared, tuple(by_more))), by_rows

        zero = jnp.zeros((), rows.dtype)
        init = (zero, (zero, zero)), jax.tree.map(jnp.zeros_like, (centers, parameters))
        init = varying(init, axes_of((rows, centers, parameters, classes)))
        ((value, counts), by_shared), by_rows = lax.scan(add, init, (rows, classes))
        return value, counts, (by_rows, *by_shared, None)

    value, counts = eager_vjp(with_gradient, rows, centers, parameters, classes)
    return value, counts


def _plain_sums(
    loss: Callable[..., Mean],
    precision: lax.PrecisionLike,
    shape: tuple[int, int],
    rows: jax.Array,
    centers: jax.Array,
    parameters: tuple[jax.Array, ...],
    classes: jax.Array,
) -> _Sums:
    """Returns the same sums in plain JAX, which can be differentiated in any way."""
    product = partial(jnp.matmul, precision=precision)

    @partial(jax.checkpoint, prevent_cse=False)
    def one_block(block: tuple[jax.Array, jax.Array]) -> Any:
        return _sums_of_block(loss, product, shape, block[0], centers, parameters, block[1])

    sums = jax.tree.map(jnp.sum, lax.map(one_block, (rows, classes)))
    return cast(_Sums, sums)


def _sums_of_block(
    loss: Callable[..., Mean],
    product: Callable[[jax.Array, jax.Array], jax.Array],
    shape: tuple[int, int],
    rows: jax.Array,
    centers: jax.Array,
    parameters: tuple[jax.Array, ...],
    classes: jax.Array,
) -> _Sums:
    """Sums over a block of rows, which have class -1 where they do not count."""
    cosines = product(rows, centers).reshape(len(rows), *shape)
    counts = classes >= 0

    def one_row(cosines: jax.Array, own: jax.Array) -> Mean:
        return loss(cosines, own, *parameters)

    means = split_mean(jax.vmap(one_row)(cosines, jnp.maximum(classes, 0)))
    value, count, active = (
        jnp.sum(jnp.where(counts, jnp.broadcast_to(one, counts.shape), 0)).astype(rows.dtype)
        for one in means
    )
    return value, (count, active)

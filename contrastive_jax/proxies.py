"""Losses of embeddings and learned proxies of their classes."""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from contrastive_jax._directions import unit
from contrastive_jax._dtypes import widen
from contrastive_jax._engine.closures import hoisted
from contrastive_jax._engine.derivatives import differentiable, plus
from contrastive_jax._engine.problem import Method, check_method, checked_side
from contrastive_jax._engine.program_cache import compiled
from contrastive_jax._engine.sharding import axes_of, gathered, local_shard, shared_total, varying
from contrastive_jax._host_arrays import as_array
from contrastive_jax._traced_checks import check_traced
from contrastive_jax.anchors import AnchorReduction, anchor_loss
from contrastive_jax.checks import check_values
from contrastive_jax.losses._means import check_mean, check_reduction, three, total_of_means
from contrastive_jax.losses.types import AnchorLoss, CentersLoss, Mean, ProxyLoss

# Cosines that are held at once.
_COSINES = 2**19
# Proxies of which a row meets all at once, in one walk for loss and gradient. With more a block
# would have too few rows.
_AT_ONCE = 2**13
_OPTIONS_OF_CENTERS = {"precision", "method"}


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

    Proxies are the second set of `anchor_loss`.

    *Devices.* With an axis name every device holds all proxies and takes its share of them. For the
    gradients of what the devices share, proxies among it, and for sharded arrays under `jax.jit`,
    whose rows are gathered, see *Shared parameters* and *Sharded arrays* in
    `contrastive_jax.all_pairs_loss`.

    Args:
      embeddings: `[B, D]`, floating.
      classes: `[B]`, integers from 0 to C - 1; rows of class -1 are ignored, and those of traced
        classes without a proxy.
      proxies: `[C, D]`, or `[C, K, D]` with K for each class; of the dtype of `embeddings`.
      loss: one of the proxy losses of `contrastive_jax.losses`, or any `AnchorLoss`.
      reduction: as in `anchor_loss`; `"none"` gives the loss of each embedding, `[B]`, or of a loss
        whose anchors are the proxies (`losses.proxy_anchor`) that of each proxy.
      axis_name: of the devices that share the batch.
      **options: `distance`, `exact`, `tile`, `precision` and `method` of `anchor_loss`; of a
        `CentersLoss` `precision` and `method` alone.

    Returns:
      Loss, a scalar, 0 of no rows. It can be differentiated in any mode and any number of times;
      with an axis name, and of a loss that `anchor_loss` computes with `reduction="none"`, once, in
      reverse mode.

    Raises:
      AssertionError: if ranks, shapes or dtypes do not fit.
      ValueError: as `anchor_loss`, and if a known class has no proxy, a known proxy is not finite
        or an option is not one of those above.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import losses, proxy_loss
      >>> x = jnp.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> classes = jnp.array([0, 0, 1, 1])
      >>> proxies = jnp.array([[1.0, 0.2], [-0.2, 1.0]])  # one for each class
      >>> value = proxy_loss(x, classes, proxies, loss=losses.proxy_nca(temperature=0.5))
      >>> print(f"{value:.3f}")
      0.049
    """
    if isinstance(loss, AnchorLoss):
        loss = ProxyLoss(loss)
    if not isinstance(loss, ProxyLoss | CentersLoss):
        raise ValueError(
            f"loss must be a ProxyLoss, a CentersLoss or an AnchorLoss, got {loss!r}; a factory "
            "such as losses.arcface is to be called"
        )
    check_reduction(reduction)
    check_method(options.get("method", "one_walk"), axis_name)
    given = classes
    embeddings, classes, _ = checked_side("", embeddings, classes, None)
    proxies = gathered(jnp.asarray(as_array("proxies", proxies)))
    expected = {"custom_message": "expected embeddings: [B, D] and proxies: [C, D] or [C, K, D]"}
    chex.assert_rank(proxies, {2, 3}, **expected)
    chex.assert_equal_shape_suffix([embeddings, proxies], 1, **expected)
    chex.assert_type(
        proxies, embeddings.dtype, custom_message="proxies are not of embeddings' dtype"
    )
    # The classes as given, as those that are arrays of JAX by now may be traced.
    _check_proxies(classes if isinstance(given, jax.core.Tracer) else given, len(proxies))
    check_values(proxies=proxies)
    if isinstance(loss, CentersLoss):
        if {*options} - _OPTIONS_OF_CENTERS:
            wrong = ", ".join(sorted({*options} - _OPTIONS_OF_CENTERS))
            raise ValueError(f"a CentersLoss meets all centres at once and takes no {wrong}")
        return _of_centers(embeddings, classes, proxies, loss, reduction, axis_name, **options)
    rows = proxies.reshape(-1, proxies.shape[-1])
    at_once = len(rows) <= _AT_ONCE and not {*options} - _OPTIONS_OF_CENTERS
    if loss.of_row is not None and at_once:
        of_row = CentersLoss(loss.of_row)
        return _of_centers(embeddings, classes, proxies, of_row, reduction, axis_name, **options)
    numbers = jnp.arange(len(rows)) // (len(rows) // len(proxies))
    if axis_name is not None:
        rows, numbers = local_shard((rows, numbers), axis_name)
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
    method: Method = "one_walk",
) -> jax.Array:
    """Loss of rows that meet the centres of all classes at once, some rows at a time."""
    proxies = proxies if proxies.ndim == 3 else proxies[:, None]
    embeddings = widen(embeddings)
    centers = unit(widen(proxies)).reshape(-1, proxies.shape[-1])
    height = max(1, min(len(embeddings), _COSINES // len(centers)))
    padding = -len(embeddings) % height
    bad = jnp.sum(jnp.where((classes >= 0)[:, None], embeddings, 0) * 0)
    counts = (classes >= 0) & (classes < len(proxies))
    rows = unit(jnp.where(counts[:, None], embeddings, 0))
    rows = jnp.pad(rows, ((0, padding), (0, 0))).reshape(-1, height, rows.shape[1])
    classes = jnp.where(counts, classes, -1).astype(jnp.int32)
    classes = jnp.pad(classes, (0, padding), constant_values=-1)
    classes = classes.reshape(-1, height)

    example = varying(jnp.zeros(proxies.shape[:2], rows.dtype), axes_of((rows, centers)))
    one_class = varying(jnp.int32(0), axes_of(example))
    function, parameters = hoisted("loss", loss.loss, (example, one_class), check_mean)

    shape = proxies.shape[:2]
    swept, plain = (
        compiled(sums, function, precision, shape) for sums in (_swept_sums, _plain_sums)
    )
    arguments = rows, centers.T, parameters, classes
    if reduction == "none":
        each: jax.Array = compiled(_losses_of_rows, function, precision, shape)(*arguments)
        return jnp.where(counts, each[: len(counts)] + bad, 0)
    if method == "autodiff":
        value, counts = plain(*arguments)
    elif axis_name is None:
        value, counts = differentiable(swept, plain, *arguments)
    else:
        value, counts = swept(*arguments)
    value, count, active = shared_total((value, *counts), axis_name)
    # A NaN shows, whatever the loss makes of it.
    value += shared_total(bad, axis_name)
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
    """Loss of each row, in plain JAX; anything where a row does not count."""

    @partial(jax.checkpoint, prevent_cse=False)
    def of_block(block: tuple[jax.Array, jax.Array]) -> jax.Array:
        cosines = jnp.matmul(block[0], centers, precision=precision).reshape(-1, *shape)

        def of_row(cosines: jax.Array, own: jax.Array) -> Mean:
            return loss(cosines, own, *parameters)

        mean = jax.vmap(of_row)(cosines, jnp.maximum(block[1], 0))
        return jnp.broadcast_to(total_of_means((mean,)), block[1].shape)

    return cast(jax.Array, lax.map(of_block, (rows, classes)).ravel())


def _swept_sums(
    loss: Callable[..., Mean],
    precision: lax.PrecisionLike,
    shape: tuple[int, int],
    rows: jax.Array,
    centers: jax.Array,
    parameters: tuple[jax.Array, ...],
    classes: jax.Array,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Sums over blocks of rows: the value, and the counts of all rows and of active ones."""
    of_block = partial(_sums_of_block, loss, partial(_product, precision), shape)
    value, *counts = _in_one_walk(of_block, rows, centers, parameters, classes)
    return value, (counts[0], counts[1])


def _plain_sums(
    loss: Callable[..., Mean],
    precision: lax.PrecisionLike,
    shape: tuple[int, int],
    rows: jax.Array,
    centers: jax.Array,
    parameters: tuple[jax.Array, ...],
    classes: jax.Array,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """The same sums in plain JAX, which can be differentiated in any way."""
    of_block = partial(_sums_of_block, loss, partial(jnp.matmul, precision=precision), shape)

    @partial(jax.checkpoint, prevent_cse=False)
    def one(block: tuple[jax.Array, jax.Array]) -> Any:
        return of_block(block[0], centers, parameters, block[1])

    sums = jax.tree.map(jnp.sum, lax.map(one, (rows, classes)))
    return cast(tuple[jax.Array, tuple[jax.Array, jax.Array]], sums)


def _sums_of_block(
    loss: Callable[..., Mean],
    product: Callable[[jax.Array, jax.Array], jax.Array],
    shape: tuple[int, int],
    rows: jax.Array,
    centers: jax.Array,
    parameters: tuple[jax.Array, ...],
    classes: jax.Array,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Sums over a block of rows, which have class -1 where they do not count."""
    cosines = product(rows, centers).reshape(len(rows), *shape)
    counts = classes >= 0

    def of_row(cosines: jax.Array, own: jax.Array) -> Mean:
        return loss(cosines, own, *parameters)

    means = three(jax.vmap(of_row)(cosines, jnp.maximum(classes, 0)))
    value, count, active = (
        jnp.sum(jnp.where(counts, jnp.broadcast_to(one, counts.shape), 0)).astype(rows.dtype)
        for one in means
    )
    return value, (count, active)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(precision: lax.PrecisionLike, a: jax.Array, b: jax.Array) -> jax.Array:
    """`a @ b`, whose gradients are products that a CPU is quick at."""
    return jnp.matmul(a, b, precision=precision)


def _product_forward(precision: lax.PrecisionLike, a: jax.Array, b: jax.Array) -> Any:
    # Not by the function itself: the derivative of a gradient goes through here.
    return jnp.matmul(a, b, precision=precision), (a, b)


def _product_backward(precision: lax.PrecisionLike, operands: Any, of_product: jax.Array) -> Any:
    a, b = operands
    # The barrier keeps the transposition out of the product, which over the rows of a is slow.
    across = lax.optimization_barrier(a.T)
    of_a = jnp.matmul(of_product, b.T, precision=precision)
    return of_a, jnp.matmul(across, of_product, precision=precision)


_product.defvjp(_product_forward, _product_backward)


def _in_one_walk(
    of_block: Callable[..., Any],
    rows: jax.Array,
    centers: jax.Array,
    parameters: tuple[jax.Array, ...],
    classes: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sums over blocks of rows, whose gradients are taken along while their cosines are at hand.

    The gradient of a scalar is that for a cotangent of 1, times the cotangent.
    """

    @jax.custom_vjp
    def walk(rows: jax.Array, centers: jax.Array, parameters: Any, classes: jax.Array) -> Any:
        found = lax.map(lambda one: of_block(one[0], centers, parameters, one[1]), (rows, classes))
        value, (count, active) = jax.tree.map(jnp.sum, found)
        return value, count, active

    def forward(rows: jax.Array, centers: jax.Array, parameters: Any, classes: jax.Array) -> Any:
        def add(total: Any, block: Any) -> Any:
            sums, of_shared = total
            part, own = block
            gradient_of = jax.value_and_grad(of_block, (0, 1, 2), has_aux=True, allow_int=True)
            (value, (count, active)), (of_rows, *more) = gradient_of(part, centers, parameters, own)
            sums = jax.tree.map(jnp.add, sums, (value, count, active))
            return (sums, jax.tree.map(plus, of_shared, tuple(more))), of_rows

        nothing = varying(
            ((jnp.zeros((), rows.dtype),) * 3, jax.tree.map(jnp.zeros_like, (centers, parameters))),
            axes_of((rows, centers, parameters, classes)),
        )
        (sums, of_shared), of_rows = lax.scan(add, nothing, (rows, classes))
        return sums, (of_rows, *of_shared)

    def backward(gradients: Any, cotangents: Any) -> Any:
        # Counts have no derivative.
        scaled = (
            jax.tree.map(lambda one: one * cotangents[0].astype(one.dtype), of) for of in gradients
        )
        return *scaled, None

    walk.defvjp(forward, backward)
    arguments = rows, centers, parameters, classes
    sums = walk(*varying(arguments, axes_of(arguments)))
    return cast(tuple[jax.Array, jax.Array, jax.Array], sums)


def _check_proxies(classes: ArrayLike, proxies: int) -> None:
    """Checks that every class has a proxy.

    Args:
      classes: `[B]`, checked before.
      proxies: number of classes that have some.

    Raises:
      ValueError: if a known class has none, naming the largest.
    """
    message = f"classes must be below {proxies}, the number of proxies, got {{largest}}"
    if isinstance(classes, jax.core.Tracer):
        largest = jnp.max(classes, initial=-1)
        check_traced(largest < proxies, message, largest=largest)
    elif (largest := np.max(np.asarray(classes), initial=-1)) >= proxies:
        raise ValueError(message.format(largest=largest))

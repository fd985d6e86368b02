"""Losses of embeddings and learned proxies of their classes."""

from typing import Any, cast

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from contrastive_jax._carried_checks import carry_check, with_checks
from contrastive_jax._directions import cosine_from_product
from contrastive_jax._engine.arguments import check_method, checked_points
from contrastive_jax._engine.centers import centers_loss
from contrastive_jax._engine.sharding import gathered, local_shard
from contrastive_jax._host_arrays import as_array
from contrastive_jax._traced_checks import check_traced
from contrastive_jax.anchors import AnchorReduction, anchor_loss
from contrastive_jax.distances import cosine
from contrastive_jax.losses._means import check_reduction
from contrastive_jax.losses.types import AnchorLoss, CentersLoss, ProxyLoss

# Proxies up to which each row is compared with all at once. With more a block of rows would be too
# small.
_MOST_AT_ONCE = 2**13
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

    A `CentersLoss`, and most proxy losses of up to 8,192 proxies, compare each row with all proxies
    at once. Otherwise proxies are the references of `anchor_loss`, or its anchors
    (`losses.proxy_anchor`).

    *Devices.* With an axis name every device holds all proxies and takes its share of them. For the
    gradients of values that the devices share, such as the proxies, and for sharded arrays under
    `jax.jit`, whose rows are gathered, see *Shared parameters* and *Sharded arrays* in
    `contrastive_jax.all_pairs_loss`.

    Args:
      embeddings: `[B, D]`, floating.
      classes: `[B]`, integers from 0 to C - 1. Rows of class -1 are ignored, and so are rows whose
        class is traced and has no proxy.
      proxies: `[C, D]`, or `[C, K, D]` with K for each class; of the dtype of `embeddings`.
      loss: one of the proxy losses of `contrastive_jax.losses`, or any `AnchorLoss`.
      reduction: as in `anchor_loss`; `"none"` gives the loss of each embedding, `[B]`, or of a loss
        whose anchors are the proxies (`losses.proxy_anchor`) that of each proxy.
      axis_name: axis of the devices that share the batch.
      **options: `distance`, `refine`, `tile`, `precision` and `method` of `anchor_loss`; of a
        `CentersLoss` `precision` and `method` alone. By default cosines come from one product of
        directions; with `refine` or `distance` pairs are computed as `anchor_loss` does.

    Returns:
      Loss, a scalar, 0 of no rows. It can be differentiated in any mode and any number of times;
      with an axis name, and of a loss that `anchor_loss` computes with `reduction="none"`, once, in
      reverse mode.

    Raises:
      AssertionError: if ranks, shapes or dtypes do not fit.
      TypeError: if `anchor_loss` has no such option.
      ValueError: as `anchor_loss`, and if a concrete class has no proxy, a concrete proxy is not
        finite, `labels` are given, or a `CentersLoss` is given one of the other options.

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
    if "labels" in options:
        raise ValueError(
            "proxies stand for classes, so proxy_loss takes no labels: take anchor_loss with the "
            "proxies as references and their attributes as reference_classes"
        )
    check_method(options.get("method", "sweep"), axis_name)
    given = classes
    embeddings, classes, *_ = checked_points("", embeddings, classes, None)
    proxies = gathered(jnp.asarray(as_array("proxies", proxies)))
    expected = {"custom_message": "expected embeddings: [B, D] and proxies: [C, D] or [C, K, D]"}
    chex.assert_rank(proxies, {2, 3}, **expected)
    chex.assert_equal_shape_suffix([embeddings, proxies], 1, **expected)
    chex.assert_type(
        proxies, embeddings.dtype, custom_message="proxies are not of embeddings' dtype"
    )
    # The classes as given, as those that are arrays of JAX by now may be traced.
    classes = _classes_with_proxies(
        classes, classes if isinstance(given, jax.core.Tracer) else given, len(proxies)
    )
    proxies = with_checks(proxies, proxies=proxies)
    if isinstance(loss, CentersLoss):
        if {*options} - _OPTIONS_OF_CENTERS:
            wrong = ", ".join(sorted({*options} - _OPTIONS_OF_CENTERS))
            raise ValueError(
                f"a CentersLoss compares with all centres at once and takes no {wrong}"
            )
        return centers_loss(embeddings, classes, proxies, loss, reduction, axis_name, **options)
    rows = proxies.reshape(-1, proxies.shape[-1])
    few = len(rows) <= _MOST_AT_ONCE and not {*options} - _OPTIONS_OF_CENTERS
    if loss.row_loss is not None and few:
        row_loss = CentersLoss(loss.row_loss)
        return centers_loss(embeddings, classes, proxies, row_loss, reduction, axis_name, **options)
    proxy_classes = jnp.arange(len(rows)) // (len(rows) // len(proxies))
    if axis_name is not None:
        rows, proxy_classes = local_shard((rows, proxy_classes), axis_name)
    sets = (embeddings, classes), (rows, proxy_classes)
    if loss.anchors == "proxies":
        sets = sets[1], sets[0]
    formula = loss.loss
    by_cosine = loss.by_cosine and formula.distance is cosine
    if by_cosine and not {"distance", "refine"} & {*options}:
        formula = formula._replace(distance=cosine_from_product)
    return anchor_loss(
        *sets[0], *sets[1], loss=formula, reduction=reduction, axis_name=axis_name, **options
    )


def _classes_with_proxies(classes: jax.Array, given: ArrayLike, proxies: int) -> jax.Array:
    """Checks that every class has a proxy.

    Args:
      classes: `[B]`, checked before.
      given: the same, concrete where the caller's are.
      proxies: number of classes that have some.

    Returns:
      The classes.

    Raises:
      ValueError: if a concrete class has none, naming the largest.
    """
    message = f"classes must be below {proxies}, the number of proxies, got {{largest}}"
    if isinstance(given, jax.core.Tracer):

        def check(given: jax.Array) -> None:
            largest = jnp.max(given, initial=-1)
            check_traced(largest < proxies, message, largest=largest)

        return cast(jax.Array, carry_check(classes, check, given=given))
    if (largest := np.max(np.asarray(given), initial=-1)) >= proxies:
        raise ValueError(message.format(largest=largest))
    return classes

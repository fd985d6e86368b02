"""Losses of a batch of given pairs."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import numpy as np
from jax.typing import ArrayLike

from contrastive_jax._carried_checks import with_checks
from contrastive_jax._host_arrays import as_array, column_hint
from contrastive_jax.checks import check_scalars
from contrastive_jax.losses import contrastive, resolve_distance
from contrastive_jax.losses._margins import with_margin_checks


def pair_loss(
    a: jax.Array,
    b: jax.Array,
    labels: jax.Array,
    *,
    loss: Callable[..., jax.Array] = contrastive,
    distance: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    margin: ArrayLike | None = None,
) -> jax.Array:
    """Losses of a batch of pairs, one by one.

    They are not reduced, so that pairs can be weighted or inspected; take their mean for training.

    Arrays under `jax.jit` may be spread over a mesh, along automatic axes or, from jax 0.10 on,
    explicit ones; every device computes the losses of its own rows.

    Args:
      a: embeddings of the first members, `[B, D]`.
      b: embeddings of the second members, `[B, D]`, of the same dtype.
      labels: 0 for a positive pair (similar), 1 for a negative one (dissimilar), `[B]`; integer,
        bool or float, as an array or a list. Neither -1 nor a grade is allowed here.
      loss: scalar function `(distance, label)`, or `(distance, label, margin)` where a margin is
        given.
      distance: function of two vectors `[D]` to a scalar; by default the one that the loss carries,
        or the Euclidean distance for a function that carries none. Parameters of its own are bound
        by `functools.partial`.
      margin: scalar above 0, or one of each pair, `[B]`, passed to `loss` as a keyword; without it
        `loss` keeps its default. Under `jax.jit` pass it as an argument, and one compilation serves
        all margins. For a margin of each class pass `margins[classes]`.

    Returns:
      Losses, `[B]`.

    Raises:
      AssertionError: if ranks, shapes or dtypes do not fit, or `loss` does not return a scalar.
      ValueError: if `loss` or `distance` is not a function, the distance does not fit the loss, an
        array is masked, or a concrete label, margin or embedding has a wrong value;
        `contrastive_jax.checks` says how to check traced ones.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import pair_loss
      >>> a = jnp.array([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
      >>> b = jnp.array([[0.5, 0.0], [0.5, 0.0], [3.0, 4.0]])
      >>> labels = jnp.array([0, 1, 1])  # 0: a positive pair, 1: a negative pair
      >>> print(pair_loss(a, b, labels, margin=1.0))
      [0.25 0.25 0.  ]
    """
    measure = resolve_distance(loss, distance)
    a, b, labels = (
        as_array(name, values) for name, values in (("a", a), ("b", b), ("labels", labels))
    )
    expected = {
        "custom_message": "expected a: [B, D], b: [B, D], labels: [B], a scalar margin or [B]"
        f"{column_hint(labels=labels)}"
    }
    chex.assert_rank([a, b, labels], [2, 2, 1], **expected)
    chex.assert_equal_shape([a, b], **expected)
    chex.assert_equal_shape_prefix([a, labels], 1, **expected)
    chex.assert_type([a, b], float, custom_message="a and b must be floating")
    margins: dict[str, Any] = {} if margin is None else {"margin": margin}
    axis = 0 if margin is not None and np.ndim(margin) else None
    if axis is None:
        check_scalars(**margins)
    else:
        margins = {"margin": as_array("margin", margin)}
        chex.assert_shape(margins["margin"], labels.shape, **expected)
    a = with_checks(a, a=a, b=b, labels=labels)
    for margin in margins.values():
        a = with_margin_checks(a, loss, margin)

    def one(a: jax.Array, b: jax.Array, label: jax.Array, margins: dict[str, Any]) -> jax.Array:
        value = loss(measure(a, b), label, **margins)
        chex.assert_rank(value, 0, custom_message="loss must return a scalar")
        return value

    return jax.vmap(one, (0, 0, 0, axis))(a, b, labels, margins)

"""Losses of a batch of given triplets."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from contrastive_jax._carried_checks import carry_check, with_checks
from contrastive_jax._host_arrays import as_array
from contrastive_jax._traced_checks import check_traced
from contrastive_jax.checks import check_distance
from contrastive_jax.losses import AnchorLoss, TripletLoss, mean_over_pairs
from contrastive_jax.losses._distance import check_fits_statistics
from contrastive_jax.losses._means import total_of_means
from contrastive_jax.losses._selected import means_of_triplet


def triplet_loss(
    anchors: jax.Array,
    positives: jax.Array,
    negatives: jax.Array,
    embeddings: jax.Array | None = None,
    *,
    loss: Callable[..., jax.Array] | AnchorLoss | TripletLoss,
    distance: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    data: tuple[Any, ...] = (),
) -> jax.Array:
    """Losses of a batch of given triplets, one by one.

    The loss of a triplet is that of `anchor_loss` for an anchor whose pairs are this positive and
    this negative alone. Losses are not reduced, so that triplets can be weighted or inspected; take
    their mean for training.

    Args:
      anchors: embeddings, `[B, D]`, floating; or, with `embeddings`, indices of their rows, `[B]`,
        integers from 0.
      positives: the same of the positives.
      negatives: the same of the negatives.
      embeddings: rows that the other three are indices of, `[N, D]`, floating.
      loss: a loss of triplets, such as `losses.triplet_all()` or `losses.angular()`; of anchors,
        such as `losses.ntxent()`; or of pairs, of which it is the mean over the two.
      distance: function of two vectors `[D]` to a scalar; by default that of the loss.
      data: data of each anchor that an `AnchorLoss` needs, trees of floating `[B]`.

    Returns:
      Losses, `[B]`. They can be differentiated in any mode and any number of times.

    Raises:
      AssertionError: if ranks, shapes or dtypes do not fit.
      ValueError: if `loss` is none of those above, the distance does not fit it, data that it needs
        are missing, or a concrete embedding or index has a wrong value.

    References:
      Schroff, Kalenichenko and Philbin, FaceNet, 2015 <https://arxiv.org/abs/1503.03832>, eq. 3.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import losses, triplet_loss
      >>> x = jnp.array([[0.0, 0.0], [0.3, 0.4], [0.6, 0.0], [3.0, 4.0]])
      >>> loss = losses.triplet_all(margin=0.2)
      >>> values = triplet_loss(x[:1], x[1:2], x[2:3], loss=loss)  # rows
      >>> print([f"{value:.1f}" for value in values])
      ['0.1']
      >>> values = triplet_loss([0, 0], [1, 1], [2, 3], x, loss=loss)  # indices of rows of x
      >>> print([f"{value:.1f}" for value in values])
      ['0.1', '0.0']
    """
    triplet_loss_of, measure = _checked_loss(loss, distance, data)
    rows = {"anchors": anchors, "positives": positives, "negatives": negatives}
    rows = {name: as_array(name, values) for name, values in rows.items()}
    if embeddings is not None:
        rows = _rows_of(embeddings, rows)
    expected = {"custom_message": "expected anchors, positives and negatives: [B, D]"}
    chex.assert_rank([*rows.values()], 2, **expected)
    chex.assert_equal_shape([*rows.values()], **expected)
    chex.assert_type(
        [*rows.values()], float, custom_message="give embeddings where they are indices"
    )
    for leaf in jax.tree.leaves(data):
        chex.assert_shape(
            leaf, rows["anchors"].shape[:1], custom_message="data must be trees of [B]"
        )
    rows["anchors"] = with_checks(rows["anchors"], **rows)

    def one(anchor: jax.Array, positive: jax.Array, negative: jax.Array, *data: Any) -> jax.Array:
        vector = anchor
        if isinstance(triplet_loss_of, TripletLoss):
            positive_distance = triplet_loss_of.positive_distance or measure
            data = (positive_distance(anchor, positive),)
            if triplet_loss_of.combine is not None:
                vector = triplet_loss_of.combine(anchor, positive)
        distances = [measure(vector, other) for other in (positive, negative)]
        means = means_of_triplet(triplet_loss_of, distances, [jnp.bool_(True)] * 2, data)
        return total_of_means(means)

    return jax.vmap(one)(*rows.values(), *data)


def _checked_loss(
    loss: Any, distance: Any, data: tuple[Any, ...]
) -> tuple[AnchorLoss | TripletLoss, Callable[..., jax.Array]]:
    """Returns a loss of anchors or triplets, and the distance that it measures."""
    if not isinstance(loss, AnchorLoss | TripletLoss):
        loss = mean_over_pairs(loss, distance)
    elif distance is not None:
        check_distance(distance)
        check_fits_statistics(loss, distance)
    needs = loss.needs if isinstance(loss, AnchorLoss) else ()
    if len(data) != len(needs):
        raise ValueError(
            f"the loss needs data: a tuple of {' and '.join(needs)}, got {len(data)} entries"
            if needs
            else f"this loss takes no data, got {len(data)} entries"
        )
    return loss, loss.distance if distance is None else distance


def _rows_of(embeddings: Any, indices: dict[str, Any]) -> dict[str, Any]:
    """Returns the rows of embeddings that indices name."""
    embeddings = jnp.asarray(as_array("embeddings", embeddings))
    chex.assert_rank(embeddings, 2, custom_message="expected embeddings: [N, D]")
    count = len(embeddings)
    for name, index in indices.items():
        if index.ndim != 1 or not jnp.issubdtype(index.dtype, jnp.integer):
            raise AssertionError(
                f"{name} must be indices of rows of embeddings, integers [B], got {index.dtype} of "
                f"shape {index.shape}; leave embeddings out where they are rows themselves"
            )
        message = f"{name} must be indices from 0 to {count - 1}, rows of embeddings, got {{wrong}}"
        if isinstance(index, jax.core.Tracer):

            def check(index: jax.Array, message: str = message) -> None:
                valid = (index >= 0) & (index < count)
                wrong = index[jnp.argmin(valid)] if index.size else jnp.int32(0)
                check_traced(jnp.all(valid), message, wrong=wrong)

            indices[name] = carry_check(index, check, index=index)
        elif (
            wrong_rows := np.flatnonzero((np.asarray(index) < 0) | (np.asarray(index) >= count))
        ).size:
            raise ValueError(message.format(wrong=np.asarray(index)[wrong_rows[0]]))
    return {name: embeddings[index] for name, index in indices.items()}

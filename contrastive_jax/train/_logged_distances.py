"""Sums of the distances of a batch, from which a step logs their means."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from contrastive_jax._directions import unit
from contrastive_jax._dtypes import at_least_float32
from contrastive_jax._engine.sharding import gathered
from contrastive_jax.all_pairs import all_pairs_sums
from contrastive_jax.labels.types import PairLabels
from contrastive_jax.train.types import AXIS, Metrics


def as_metrics(pairs: jax.Array, distance: jax.Array) -> Metrics:
    """Names the counts of positive and negative pairs, `[2]`, and the sums of their distances.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax.train._logged_distances import as_metrics
      >>> sorted(as_metrics(jnp.array([2.0, 4.0]), jnp.array([1.0, 5.0])))
      ['negative', 'negative_distance', 'positive', 'positive_distance']
    """
    return {
        "positive": pairs[0],
        "negative": pairs[1],
        "positive_distance": distance[0],
        "negative_distance": distance[1],
    }


def swept_distances(
    embeddings: jax.Array,
    classes: Any,
    distance: Callable[..., jax.Array],
    axis_name: str | None,
    labels: PairLabels | None = None,
) -> Metrics:
    """Sums the distances of all pairs of the global batch in a sweep of their own.

    Args:
      embeddings: the rows of this device, `[B, D]`.
      classes: `[B]`, -1 for rows to ignore; with `labels` attributes, a tree of `[B, ...]`.
      distance: between two embeddings.
      axis_name: axis of the devices that share the batch.
      labels: of two rows, in place of those by class.

    Returns:
      The sums, as `as_metrics` names them.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import distances
      >>> from contrastive_jax.train._logged_distances import swept_distances
      >>> x, classes = jnp.array([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]]), jnp.array([0, 0, 1])
      >>> sums = swept_distances(x, classes, distances.euclidean, None)
      >>> print(sums["positive_distance"] / sums["positive"])
      5.0
    """
    sums = all_pairs_sums(
        jax.lax.stop_gradient(embeddings),
        classes,
        distance=distance,
        loss=_distance_itself,
        axis_name=axis_name,
        labels=labels,
        refine=False,
    )
    return as_metrics(sums.pairs, sums.loss)


def _distance_itself(distance: jax.Array, label: jax.Array) -> jax.Array:
    return distance


def cosine_distances(embeddings: jax.Array, classes: jax.Array, count: int) -> Metrics:
    """Sums the cosine distances of all pairs of the global batch, in time linear in its rows.

    The inner products of all unit vectors of a class add up to the square of their sum.

    Args:
      embeddings: the rows of this device along `AXIS`, `[B, D]`.
      classes: `[B]`, below `count`; -1 for rows to ignore.
      count: number of classes.

    Returns:
      The sums, as `as_metrics` names them.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from contrastive_jax.train._logged_distances import cosine_distances
      >>> from contrastive_jax.train.types import AXIS
      >>> x = jnp.array([[[2.0, 0.0], [0.6, 0.8]], [[0.0, 1.0], [0.0, 3.0]]])  # on two devices
      >>> classes = jnp.array([[0, 0], [1, -1]])
      >>> mapped = jax.vmap(lambda x, c: cosine_distances(x, c, 2), axis_name=AXIS)
      >>> sums = mapped(x, classes)
      >>> print((sums["positive_distance"] / sums["positive"])[0].round(2))
      0.4
    """
    x, classes = gathered((jax.lax.stop_gradient(embeddings), classes))
    x = unit(x.astype(at_least_float32(x.dtype)))
    counts = classes >= 0
    x = jnp.where(counts[:, None], x, 0)
    # A row of class -1 adds to none.
    index = jnp.where(counts, classes, count)
    rows = jnp.where(counts, 1, 0).astype(x.dtype)
    by_class = jax.ops.segment_sum(x, index, count)
    rows_of_class = jax.ops.segment_sum(rows, index, count)
    # A vector of no direction is not at distance 0 from itself.
    itself = jnp.sum(rows - jnp.sum(x * x, axis=1))
    by_class, rows_of_class, itself = jax.lax.psum((by_class, rows_of_class, itself), AXIS)

    def between(vector: jax.Array, rows: jax.Array) -> jax.Array:
        return rows**2 - jnp.sum(vector**2, axis=-1)

    rows = jnp.sum(rows_of_class)
    positive = jnp.sum(rows_of_class**2) - rows
    pairs = jnp.stack([positive, rows**2 - rows - positive])
    own = jnp.sum(between(by_class, rows_of_class))
    all_pairs = between(jnp.sum(by_class, axis=0), rows)
    return as_metrics(pairs, jnp.stack([own - itself, all_pairs - own]))

"""The objective of given pairs: a pair loss of pairs whose images are encoded once each."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from contrastive_jax.pairs import pair_loss
from contrastive_jax.train.types import AXIS, IndexedPairs, Metrics

Value = Callable[[jax.Array, Any, Any, Any, Mapping[str, Any]], tuple[jax.Array, Metrics]]


def value_of_given_pairs(
    loss: Callable[..., jax.Array],
    distance: Callable[..., jax.Array],
    bind: Callable[[Any], Mapping[str, Any]] | None = None,
) -> Value:
    """Makes the value of an objective on `IndexedPairs`: the weighted mean of a pair loss.

    Args:
      loss: scalar function of distance, label and hyperparameters.
      distance: between two embeddings.
      bind: from the parameters of the loss, where it has some, to hyperparameters.

    Returns:
      `value(embeddings, batch, params, references, hyperparameters)`, as `Objective.value`. It
      returns the loss of the global batch over `AXIS`, the sum of weight times loss over the sum of
      weights, and sums for logging.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import distances, losses
      >>> from contrastive_jax.train import AXIS, IndexedPairs
      >>> from contrastive_jax.train.given_pairs import value_of_given_pairs
      >>> value = value_of_given_pairs(losses.contrastive, distances.euclidean)
      >>> def local_loss(embeddings, left, right, labels):
      ...     batch = IndexedPairs(embeddings, left, right, labels)
      ...     return value(embeddings, batch, (), None, {"margin": 1.0})[0]
      >>> pairs = jnp.array([[0, 0]]), jnp.array([[1, 2]]), jnp.array([[0, 1]])
      >>> print(jax.vmap(local_loss, axis_name=AXIS)(jnp.array([[[0.0], [0.2], [0.5]]]), *pairs))
      [0.145]
    """

    def value(
        embeddings: jax.Array,
        batch: IndexedPairs,
        params: Any,
        references: Any,
        options: Mapping[str, Any],
    ) -> tuple[jax.Array, Metrics]:
        options = dict(options) if bind is None else {**options, **bind(params)}
        if jax.lax.axis_size(AXIS) > 1:
            embeddings = jax.lax.all_gather(embeddings, AXIS, tiled=True)
        a, b = (embeddings[jnp.asarray(rows)] for rows in (batch.left, batch.right))
        labels = jnp.asarray(batch.labels)
        bound = partial(loss, **options) if options else loss
        values = pair_loss(a, b, labels, loss=bound, distance=distance)
        weights = jnp.ones(len(labels)) if batch.weights is None else jnp.asarray(batch.weights)
        weights = weights.astype(values.dtype)
        # Where all weights of a batch are 0 its loss is 0.
        total = jnp.maximum(jax.lax.psum(weights.sum(), AXIS), 1e-30)
        part = jnp.sum(weights * values) / total
        # Each device has the gradient of its own pairs alone, and the value of all.
        mean = part + jax.lax.stop_gradient(jax.lax.psum(part, AXIS) - part)
        sums = pair_sums(jax.vmap(distance)(a, b), values, labels)
        return mean, jax.lax.psum(sums, AXIS)

    return value


def pair_sums(distance: jax.Array, values: jax.Array, labels: jax.Array) -> Metrics:
    """Returns the sums over the pairs of a device from which logged means are made.

    Args:
      distance: `[B]`.
      values: loss of each pair, `[B]`.
      labels: `[B]`.

    Returns:
      The number of positive and of negative pairs, the sums of their distances, and the number of
      negative pairs whose loss is not 0.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax.train.given_pairs import pair_sums
      >>> sums = pair_sums(jnp.array([0.5, 2.0]), jnp.array([0.1, 0.0]), jnp.array([0, 1]))
      >>> print(sums["negative_distance"], sums["active"])
      2.0 0.0
    """
    negative = labels.astype(jnp.float32)
    positive = 1 - negative
    return {
        "positive": jnp.sum(positive),
        "negative": jnp.sum(negative),
        "positive_distance": jnp.sum(positive * distance),
        "negative_distance": jnp.sum(negative * distance),
        "active": jnp.sum(jnp.where(values > 0, negative, 0)),
    }

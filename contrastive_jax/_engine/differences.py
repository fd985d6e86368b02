"""Squared distances of all pairs of a small batch from the differences of the vectors.

A difference keeps all digits of a close pair, so that no pair is computed again. It takes D steps
for each pair instead of a matrix product. It is faster than a product

- on a GPU, which computes the pairs of a small batch in one kernel, while a loop over unresolved
  pairs waits for the host in each round;
- where points have few entries, as embeddings that are drawn as a map do. Most rows then have close
  pairs, which take many rounds.
"""

import functools
from typing import cast

import jax
import jax.numpy as jnp

from contrastive_jax._engine.close_pairs import Metric, Rows
from contrastive_jax._engine.matmul import Product

# Entries of all differences, `N x M x D`, up to which they take less time than products on a GPU.
LARGEST_ON_GPU = 2**25
# Entries of a point up to which they took less time than products, on a CPU.
NARROW = 4


def fit_differences(metric: Metric, x: Rows, y: Rows | None) -> bool:
    """Tells whether all pairs are computed from their differences.

    Args:
      metric: the distance.
      x: rows.
      y: columns; None for the rows.

    Returns:
      True for points of few entries and for a small batch on a GPU, of a distance whose points are
      vectors or their directions.
    """
    product = cast(Product, metric.product)
    if not (metric.refine and product.keeps_digits):
        return False
    rows, width = x.points.shape
    if width <= NARROW:
        return True
    if jax.default_backend() != "gpu":
        return False
    return rows * len(x.points if y is None else y.points) * width <= LARGEST_ON_GPU


def squares_by_difference(metric: Metric, x: Rows, y: Rows | None) -> jax.Array:
    """Returns the squared distances of all pairs, `[N, M]`, each right to its last digits."""
    product = cast(Product, metric.product)
    others = x if y is None else y
    if x.points.shape[1] <= NARROW:
        square = functools.reduce(jnp.add, map(jnp.square, _differences_of_entries(x, others)))
    else:
        square = jnp.sum(jnp.square(_differences(x, others)), axis=2)
    if not product.on_sphere:
        return square

    def without_direction(side: Rows) -> jax.Array:
        return jnp.all(side.points == 0, axis=1).astype(square.dtype)

    # A vector without direction is perpendicular to every other, and its square 2.
    rows = without_direction(x)
    columns = rows if y is None else without_direction(y)
    return square + rows[:, None] + columns[None]


def gradients_by_difference(
    metric: Metric, derivatives: jax.Array, x: Rows, y: Rows | None
) -> tuple[jax.Array, jax.Array | None]:
    """Gradients by points of a sum over all pairs.

    Args:
      metric: the distance.
      derivatives: those of the sum by the squared distances, `[N, M]`.
      x: rows.
      y: columns; None for the rows.

    Returns:
      Gradients by the points of the rows and of the columns.
    """
    others = x if y is None else y
    if x.points.shape[1] <= NARROW:
        # Summed over rows and over columns: to transpose the matrix and to sum over columns alone
        # takes a CPU longer.
        by_entry = [2 * derivatives * entry for entry in _differences_of_entries(x, others)]
        by_x = jnp.stack([jnp.sum(each, axis=1) for each in by_entry], axis=1)
        if y is None and metric.symmetric:
            return 2 * by_x, None
        by_y = -jnp.stack([jnp.sum(each, axis=0) for each in by_entry], axis=1)
        return (by_x + by_y, None) if y is None else (by_x, by_y)
    if y is None:
        derivatives = derivatives + derivatives.T
        return 2 * jnp.sum(derivatives[:, :, None] * _differences(x, x), axis=1), None
    weights = 2 * derivatives[:, :, None] * _differences(x, y)
    return jnp.sum(weights, axis=1), -jnp.sum(weights, axis=0)


def _differences_of_entries(x: Rows, y: Rows) -> list[jax.Array]:
    """Differences of each entry of the points of all pairs, `[N, M]` each.

    A sum over the few entries of a point is not vectorised on a CPU: the caller adds them up. These
    are not slices of `_differences`, which take a CPU up to twice as long where there is a rest.
    """

    def differences(a: jax.Array, b: jax.Array) -> list[jax.Array]:
        return [p[:, None] - q[None] for p, q in zip(a.T, b.T, strict=True)]

    entries = differences(x.points, y.points)
    if x.rest is None or y.rest is None:
        return entries
    return list(map(jnp.add, entries, differences(x.rest, y.rest)))


def _differences(x: Rows, y: Rows) -> jax.Array:
    """Differences of the points of all pairs, `[N, M, D]`, which no program stores."""
    differences = x.points[:, None] - y.points[None]
    if x.rest is None or y.rest is None:
        return differences
    return differences + (x.rest[:, None] - y.rest[None])

"""The distances of all pairs of two small sets of rows, accurate for close pairs too.

A distance that follows from a squared one is computed by a matrix product, and close pairs are
computed again (`squared_distances`, `close_pairs`): a cluster of close points takes one more
product, and a batch without close pairs none. Other distances are computed here, from a product
that they follow from themselves, or pair by pair.
"""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import lax

from contrastive_jax._engine.close_pairs import Metric, Rows
from contrastive_jax._engine.matmul import Product, matmul
from contrastive_jax._engine.problem import zero_or_nan
from contrastive_jax._engine.sharding import axes_of, varying
from contrastive_jax._engine.squared_distances import Pairs, masks_of_pairs, pairs_from_squares


def distance_matrix(
    metric: Metric,
    x: jax.Array,
    y: jax.Array | None,
    parameters: tuple[jax.Array, ...],
    x_classes: jax.Array,
    y_classes: jax.Array | None,
    labels: jax.Array | None = None,
) -> Pairs:
    """Distances of the rows of `x` from those of `y`, or from one another.

    Args:
      metric: the distance.
      x: vectors, `[N, D]`, of zeros where a row does not count.
      y: vectors, `[M, D]`; None for those of `x`.
      parameters: parameters of the distance.
      x_classes: classes of the rows, `[N]`; -1 where a row does not count.
      y_classes: classes of the columns, `[M]`; None for those of the rows.
      labels: labels of the pairs, `[N, M]`, below 0 where a pair does not count; None where the
        classes give them.

    Returns:
      The pairs. Their distances can be differentiated once, in reverse mode, by vectors and
      parameters; what the cotangent holds for pairs that do not count is ignored.
    """
    product = metric.product
    if product is None or not product.squared:
        x, y, parameters = varying((x, y, parameters), axes_of((x, y, parameters)))
        pairs_of_distance = _pair_by_pair if product is None else _pairs_from_products
        counts, differ = masks_of_pairs(x_classes, y_classes, labels)
        pair = _pair_that_counts(x_classes, y_classes) if labels is None else _first_pair(counts)
        return pairs_of_distance(metric, x, y, parameters, _Masks(counts, differ, pair))

    origin = lax.stop_gradient(x[:1])
    rows = _rows(metric, parameters, x, origin)
    columns = None if y is None else _rows(metric, parameters, y, origin)
    return pairs_from_squares(metric, rows, columns, parameters, x_classes, y_classes, labels)


class _Masks(NamedTuple):
    """The pairs that count, and their labels."""

    counts: jax.Array
    """Mask of the pairs that count, `[N, M]`."""
    differ: jax.Array
    """Mask of the negative pairs, `[N, M]`."""
    pair: tuple[jax.Array, jax.Array]
    """Row and column of one pair that counts; of any pair if none does."""


def _rows(
    metric: Metric, parameters: tuple[jax.Array, ...], vectors: jax.Array, origin: jax.Array
) -> Rows:
    product = cast(Product, metric.product)
    if product.points is None:
        return Rows(vectors, vectors, None)
    # Points that are linear in the vectors are taken from an origin nearby, as the gradient by the
    # factors is a sum of products with these vectors, which cancel where they are long.
    points = product.points(vectors - origin if product.linear else vectors, *parameters)
    return Rows(vectors, points, None)


def _pair_by_pair(
    metric: Metric,
    x: jax.Array,
    y: jax.Array | None,
    parameters: tuple[jax.Array, ...],
    masks: _Masks,
) -> Pairs:
    """The pairs of a distance that does not follow from a product."""
    columns = x if y is None else y
    counts, differ, pair = masks
    row, column = pair
    # If no pair counts, one of two different vectors takes its place.
    substitutes = x[row], columns[column] + jnp.where(counts[pair], 0, 1)

    def one(a: jax.Array, b: jax.Array, valid: jax.Array) -> jax.Array:
        # The distance of a row from itself need not have a derivative.
        a, b = (jnp.where(valid, *both) for both in zip((a, b), substitutes, strict=True))
        return metric.distance(a, b, *parameters)

    over_columns = jax.vmap(one, (None, 0, 0))
    distances = jax.vmap(over_columns, (0, None, 0))(x, columns, counts).astype(x.dtype)
    return _substituted((x, y), _masked(distances, counts), counts, differ, pair)


def _pairs_from_products(
    metric: Metric,
    x: jax.Array,
    y: jax.Array | None,
    parameters: tuple[jax.Array, ...],
    masks: _Masks,
) -> Pairs:
    """The pairs of a distance that follows from the product of two points itself."""
    product = cast(Product, metric.product)
    counts, differ, pair = masks

    def points(side: jax.Array) -> jax.Array:
        return side if product.points is None else product.points(side, *parameters)

    products = matmul(metric.precision, points(x), points(x if y is None else y).T)
    distances = product.to_distance(products)
    return _substituted((x, y), _masked(distances, counts), counts, differ, pair)


def _pair_that_counts(
    x_classes: jax.Array, y_classes: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Indices of the row and the column of one pair that counts; of any pair if none does."""
    row = _first(x_classes >= 0)
    if y_classes is not None:
        return row, _first(y_classes >= 0)
    return row, _first((x_classes >= 0) & (jnp.arange(len(x_classes)) != row))


def _first_pair(counts: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Indices of the row and the column of the first pair where a mask `[N, M]` holds."""
    row = _first(jnp.max(counts.astype(jnp.float32), axis=1) > 0)
    return row, _first(counts[row])


def _first(mask: jax.Array) -> jax.Array:
    """Index of the first entry where a mask `[N]` holds, or the last index."""
    size = len(mask)
    # In floating point, as XLA has a kernel ready for it on a CPU, and must compile one else.
    ranks = jnp.where(mask, size - jnp.arange(size, dtype=jnp.float32), 1)
    return size - jnp.max(ranks).astype(jnp.int32)


def _substituted(
    sides: tuple[jax.Array, jax.Array | None],
    distances: jax.Array,
    counts: jax.Array,
    differ: jax.Array,
    pair: tuple[jax.Array, jax.Array],
) -> Pairs:
    """Pairs of which those that do not count are replaced by a given one.

    If that does not count either it is a negative pair at a distance of 1.
    """
    distance = lax.stop_gradient(jnp.where(counts[pair], distances[pair], 1))
    labels = jnp.where(counts, differ, differ[pair] | ~counts[pair])
    distances = jnp.where(counts, distances, distance)
    number = jnp.sum(counts.astype(distances.dtype))
    x, y = sides
    bad = zero_or_nan(x) + (0 if y is None else zero_or_nan(y))
    return Pairs(distances, labels.astype(jnp.int32), counts, number, bad)


@jax.custom_vjp
def _masked(matrix: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns a matrix, and a cotangent of 0 where a mask does not hold."""
    return matrix


def _masked_backward(mask: jax.Array, cotangent: jax.Array) -> Any:
    return jnp.where(mask, cotangent, 0), None


_masked.defvjp(lambda matrix, mask: (matrix, mask), _masked_backward)

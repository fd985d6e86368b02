"""The matrix of the distances between two small sets of rows, right to the last digit.

A distance that follows from a product of points is computed as `|a|^2 + |b|^2 - 2 a b`, a matrix
product, as everybody does, here of points from one reference, the first row. Where two points are
close and far from the reference, that difference has lost its digits. Such pairs get another
reference, a row that they are close to, and the product is computed again, until every pair is
resolved. A cluster of close points takes one more product, and a batch without close pairs
none. The gradient of each pair is taken from the same reference as its distance.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from contrastive_jax._engine.derivatives import differentiable_once
from contrastive_jax._engine.matmul import Product
from contrastive_jax._engine.sharding import axes_of, on_mesh_of_arguments, varying


class Metric(NamedTuple):
    """A distance, and how its matrix is computed: all that a program is compiled for."""

    distance: Callable[..., jax.Array]
    """Takes two vectors and the parameters of the distance."""
    product: Product | None
    refine: bool
    """True if close pairs are computed again."""
    precision: lax.PrecisionLike
    symmetric: bool
    """True if the cotangent of the matrix of one set is symmetric."""


class Rows(NamedTuple):
    """One set of rows."""

    vectors: jax.Array
    """`[N, D]`."""
    points: jax.Array
    """Operands of the product, `[N, E]`; the vectors themselves for many distances."""
    rest: jax.Array | None
    """The part of the points that rounding has removed, `[N, E]`; None where they are exact."""


# Indices of a row and of a column.
Pair = tuple[jax.Array, jax.Array]


def pairs_that_count(x_classes: jax.Array, y_classes: jax.Array | None) -> jax.Array:
    """Tells which pairs of two sets count, or of one set, where no row is paired with itself.

    Args:
      x_classes: classes of the rows, `[N]`; -1 where a row does not count.
      y_classes: classes of the columns, `[M]`; None for those of the rows.

    Returns:
      Mask, `[N, M]`.
    """
    columns = x_classes if y_classes is None else y_classes
    mask = (x_classes >= 0)[:, None] & (columns >= 0)[None]
    if y_classes is None:
        mask &= ~jnp.eye(len(x_classes), dtype=bool)
    return mask


def pair_that_counts(x_classes: jax.Array, y_classes: jax.Array | None) -> Pair:
    """Finds the indices of one pair that counts; of any pair if none does.

    Args:
      x_classes: classes of the rows, `[N]`.
      y_classes: classes of the columns, `[M]`; None for those of the rows.

    Returns:
      Index of its row and index of its column.
    """
    row = _first(x_classes >= 0)
    if y_classes is not None:
        return row, _first(y_classes >= 0)
    return row, _first((x_classes >= 0) & (jnp.arange(len(x_classes)) != row))


def _first(mask: jax.Array) -> jax.Array:
    """Index along the last axis of the first entry where a mask holds, or the last index."""
    size = mask.shape[-1]
    # In floating point, as XLA has a kernel ready for it on a CPU, and must compile one else.
    ranks = jnp.where(mask, size - jnp.arange(size, dtype=jnp.float32), 1)
    return size - jnp.max(ranks, axis=-1).astype(jnp.int32)


def distance_matrix(
    metric: Metric,
    x: jax.Array,
    y: jax.Array | None,
    parameters: tuple[jax.Array, ...],
    counts: jax.Array,
    pair: Pair,
) -> jax.Array:
    """Distances of the rows of `x` from those of `y`, or from one another.

    Args:
      metric: the distance.
      x: vectors, `[N, D]`, of zeros where a row does not count.
      y: vectors, `[M, D]`; None for those of `x`.
      parameters: parameters of the distance.
      counts: mask of the pairs that count, `[N, M]`.
      pair: indices of one of them.

    Returns:
      The matrix, `[N, M]`, with the distance of `pair` in place of each that does not count. It can
      be differentiated once, in reverse mode, by vectors and parameters; what the cotangent holds
      for pairs that do not count is ignored.
    """
    if metric.product is None:
        arguments = varying((x, y, parameters), axes_of((x, y, parameters)))
        pairs = _pair_by_pair(metric, counts, pair, *arguments)
        return _masked(_with_pair(pairs, counts, pair), counts)

    @jax.custom_vjp
    def matrix(
        x: Rows, y: Rows | None, parameters: tuple[jax.Array, ...], counts: jax.Array, pair: Pair
    ) -> Any:
        return _forward(metric, x, y, parameters, counts, pair)[0]

    matrix.defvjp(partial(_forward, metric), partial(_backward, metric))
    origin = lax.stop_gradient(x[:1])
    rows = _rows(metric, parameters, x, origin)
    columns = None if y is None else _rows(metric, parameters, y, origin)
    arguments = (rows, columns, parameters, counts, pair)
    return cast(jax.Array, matrix(*varying(arguments, axes_of(arguments))))


def _rows(
    metric: Metric, parameters: tuple[jax.Array, ...], vectors: jax.Array, origin: jax.Array
) -> Rows:
    product = cast(Product, metric.product)
    if product.points is None:
        return Rows(vectors, vectors, None)
    # Points that are linear in the vectors are taken from an origin nearby, as the gradient by the
    # factors is a sum of products with these vectors, which cancel where they are long.
    points = product.points(vectors - origin if product.linear else vectors, *parameters)
    rest = None
    if product.rest is not None and metric.refine:
        rest = product.rest(*lax.stop_gradient((vectors, points)))
    return Rows(vectors, points, rest)


def _pair_by_pair(
    metric: Metric,
    counts: jax.Array,
    pair: Pair,
    x: jax.Array,
    y: jax.Array | None,
    parameters: tuple[jax.Array, ...],
) -> jax.Array:
    """The matrix of a distance that does not follow from a product."""
    columns = x if y is None else y
    # If no pair counts, one of two different vectors takes its place.
    substitutes = x[pair[0]], columns[pair[1]] + jnp.where(counts[pair], 0, 1)

    def one(a: jax.Array, b: jax.Array, valid: jax.Array) -> jax.Array:
        # The distance of a row from itself need not have a derivative.
        a, b = (jnp.where(valid, *both) for both in zip((a, b), substitutes, strict=True))
        return metric.distance(a, b, *parameters)

    over_columns = jax.vmap(one, (None, 0, 0))
    return jax.vmap(over_columns, (0, None, 0))(x, columns, counts).astype(x.dtype)


def _with_pair(matrix: jax.Array, counts: jax.Array, pair: Pair) -> jax.Array:
    """Puts the entry of a pair that counts in place of all that do not, or 1 if none does.

    A loss need not have a derivative where two points coincide, as a row does with itself.
    """
    return jnp.where(counts, matrix, jnp.where(counts[pair], matrix[pair], 1))


@jax.custom_vjp
def _masked(matrix: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns a matrix, and a cotangent of 0 where a mask does not hold."""
    return matrix


def _masked_backward(mask: jax.Array, cotangent: jax.Array) -> Any:
    return jnp.where(mask, cotangent, 0), None


_masked.defvjp(lambda matrix, mask: (matrix, mask), _masked_backward)


class _Residuals(NamedTuple):
    x: Rows
    y: Rows | None
    parameters: tuple[jax.Array, ...]
    counts: jax.Array
    entries: jax.Array
    """Squared distances of points, or their products, `[N, M]`."""
    rounds: jax.Array | None
    """The round in which each pair was resolved, `[N, M]`; None where there is but one."""
    rounds_taken: jax.Array | None
    """The number of rounds."""


@on_mesh_of_arguments
def _forward(
    metric: Metric,
    x: Rows,
    y: Rows | None,
    parameters: tuple[jax.Array, ...],
    counts: jax.Array,
    pair: Pair,
) -> tuple[jax.Array, _Residuals]:
    x, y, parameters = differentiable_once((x, y, parameters))
    product = cast(Product, metric.product)
    rounds = count = None
    if not product.squared:
        entries = _dot(metric, x.points, (x if y is None else y).points, (1, 1))
    elif metric.refine:
        entries, rounds, count = _resolved(metric, x, y, parameters, counts)
    else:
        entries, _ = _squares(metric, x, y, parameters, _first_references(x, y))
    entries = _with_pair(entries, counts, pair)
    matrix = product.of(entries, *_lengths(metric, x))
    return matrix, _Residuals(x, y, parameters, counts, entries, rounds, count)


def _lengths(metric: Metric, x: Rows) -> tuple[jax.Array, ...]:
    """Squared lengths of the points of the rows, where the distance depends on them."""
    by_anchor = cast(Product, metric.product).by_anchor
    return (jnp.sum(x.points**2, axis=1)[:, None],) if by_anchor else ()


# Indices of the references of the rows and, of two sets, of the columns.
References = tuple[jax.Array, ...]


def _first_references(x: Rows, y: Rows | None) -> References:
    """The first row as the reference of all rows and columns."""
    zeros = [jnp.zeros(len(side.vectors), jnp.int32) for side in (x, y) if side is not None]
    return cast(References, varying(tuple(zeros), axes_of((x, y))))


def _from_references(
    metric: Metric, x: Rows, y: Rows | None, parameters: Any, references: References
) -> tuple[jax.Array, jax.Array]:
    """Points of rows and columns as seen from their references."""
    product = cast(Product, metric.product)

    def seen(side: Rows, index: jax.Array) -> jax.Array:
        if product.points is None:
            return side.vectors - x.vectors[index]
        if product.additive:
            # A difference of vectors is exact, and so are points that are linear in them.
            return product.points(side.vectors - x.vectors[index], *parameters)
        difference = side.points - x.points[index]
        return (
            difference
            if x.rest is None
            else difference + (cast(jax.Array, side.rest) - x.rest[index])
        )

    u = seen(x, references[0])
    return u, u if y is None else seen(y, references[1])


def _squares(
    metric: Metric, x: Rows, y: Rows | None, parameters: Any, references: References
) -> tuple[jax.Array, jax.Array]:
    """Squared distances of points, and whether each has kept its digits."""
    product = cast(Product, metric.product)
    u, v = _from_references(metric, x, y, parameters, references)

    def norms(side: Rows, seen: jax.Array) -> jax.Array:
        squares = jnp.sum(seen * seen, axis=1)
        if product.on_sphere:
            # A vector without direction is perpendicular to every other, and its square 2.
            squares += jnp.all(side.points == 0, axis=1).astype(squares.dtype)
        return squares

    row = norms(x, u)[:, None]
    column = row.T if y is None else norms(y, v)[None]
    square = row + column - 2 * _dot(metric, u, v, (1, 1))
    # The error of a square is a few times the rounding of the norms it is the difference of. The
    # distance from the reference itself is exact.
    least = 8 * math.sqrt(np.finfo(square.dtype).eps)
    is_exact = ~(square <= least * (row + column)) | (row == 0) | (column == 0)
    return square, is_exact


def _resolved(
    metric: Metric, x: Rows, y: Rows | None, parameters: Any, counts: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Squared distances, the round in which each was resolved, and the number of rounds."""
    square, is_exact = _squares(metric, x, y, parameters, _first_references(x, y))
    # Rounding may leave less than nothing of a square that is 0. A pair that is not resolved has
    # an entry of -1.
    entries = jnp.where(counts & ~is_exact, -1, jnp.maximum(square, 0))

    def one_round(state: Any) -> Any:
        index, _, entries, rounds = state
        references = _references(y is None, index, entries < 0)
        square, is_exact = _squares(metric, x, y, parameters, references)
        by_one = references[0][:, None] == references[-1][None]
        resolves = (entries < 0) & by_one & is_exact
        entries = jnp.where(resolves, jnp.maximum(square, 0), entries)
        rounds = jnp.where(resolves, index.astype(rounds.dtype), rounds)
        return index + 1, jnp.min(entries), entries, rounds

    init = (jnp.int32(1), jnp.min(entries), entries, jnp.zeros(counts.shape, jnp.int16))
    init = varying(init, axes_of((x, y, parameters, counts)))
    state = lax.while_loop(lambda state: state[1] < 0, one_round, init)
    return state[2], state[3], state[0]


def _references(one_set: bool, index: jax.Array, unresolved: jax.Array) -> References:
    """The references of a round, each a row that a row or a column has an unresolved pair with.

    They are the first such rows in an order that is another one in each round, so that two close
    rows soon have one reference. The very first row is the reference of all rows and columns that
    it has unresolved pairs with: each round resolves the pairs of one row at least.
    """
    size = len(unresolved)
    rows = jnp.arange(size, dtype=jnp.int32)
    scattered = (rows + 1) * (40503 + 2 * index) % 1024
    # Whole numbers below 2^24, for which float32 is exact: XLA has a kernel for the least of them.
    keys = (scattered * size + rows).astype(jnp.float32)

    def least(mask: jax.Array, keys: jax.Array) -> jax.Array:
        return jnp.min(jnp.where(mask, keys[None], keys.dtype.type(2**24)), axis=1)

    if one_set:
        chosen: tuple[jax.Array, ...] = (least(unresolved | jnp.eye(size, dtype=bool), keys),)
    else:
        columns = least(unresolved.T, keys)
        chosen = least(unresolved, columns), columns
    return tuple(one.astype(jnp.int32) % size for one in chosen)


def _dot(metric: Metric, a: jax.Array, b: jax.Array, axes: tuple[int, int]) -> jax.Array:
    return lax.dot_general(a, b, (((axes[0],), (axes[1],)), ((), ())), precision=metric.precision)


@on_mesh_of_arguments
def _backward(metric: Metric, residuals: _Residuals, cotangent: jax.Array) -> Any:
    x, y, parameters, counts, entries, rounds, count = residuals
    product = cast(Product, metric.product)
    _, pull = jax.vjp(product.of, entries, *_lengths(metric, x))
    slopes, *by_lengths = pull(jnp.where(counts, cotangent, 0))
    if not product.squared:
        of_x, of_y = _of_points(metric, slopes, x.points, None if y is None else y.points)
    else:
        u, v = _from_references(metric, x, y, parameters, _first_references(x, y))
        own = slopes if rounds is None else jnp.where(rounds == 0, slopes, 0)
        of_x, of_y = _of_points(metric, own, u, None if y is None else v)
    if rounds is not None:

        def one_round(state: Any) -> Any:
            index, total = state
            references = _references(y is None, index, rounds >= index.astype(rounds.dtype))
            u, v = _from_references(metric, x, y, parameters, references)
            own = jnp.where(rounds == index.astype(rounds.dtype), slopes, 0)
            more = _of_points(metric, own, u, None if y is None else v)
            return index + 1, jax.tree.map(jnp.add, total, more)

        init = varying((jnp.int32(1), (of_x, of_y)), axes_of((residuals, cotangent)))
        state = lax.while_loop(lambda state: state[0] < count, one_round, init)
        of_x, of_y = state[1]
    if by_lengths:
        of_x += 2 * by_lengths[0] * x.points

    def of_side(side: Rows, of_points: jax.Array) -> Rows:
        # Vectors have the gradient through their points, which are made outside of this function.
        return Rows(jnp.zeros_like(side.vectors), of_points, None)

    return (
        of_side(x, of_x),
        None if y is None else of_side(y, cast(jax.Array, of_y)),
        jax.tree.map(lambda _: None, parameters),
        None,
        None,
    )


def _of_points(
    metric: Metric, slopes: jax.Array, u: jax.Array, v: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
    """Gradients by points of a sum whose derivatives by the entries of a product are given."""
    squared = cast(Product, metric.product).squared
    factor = 2 if squared else 1
    if v is None and not metric.symmetric:
        slopes = slopes + slopes.T
    elif v is None:
        factor *= 2
    of_u = _dot(metric, slopes, u if v is None else v, (1, 0))
    if squared:
        of_u = jnp.sum(slopes, axis=1)[:, None] * u - of_u
    if v is None:
        return factor * of_u, None
    of_v = _dot(metric, slopes, u, (0, 0))
    if squared:
        of_v = jnp.sum(slopes, axis=0)[:, None] * v - of_v
    return factor * of_u, factor * of_v

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
from contrastive_jax._engine.problem import zero_or_nan
from contrastive_jax._engine.sharding import axes_of, on_mesh_of_arguments, varying

# Rows from which on it takes a CPU longer to transpose a matrix than to multiply by it.
_LARGE = 512
# Pairs whose square is below so many times the least that has its digits share a reference in the
# first round. They are resolved down to a sixteenth of it.
_NEAR = 8


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
    """The part of the points that rounding has removed, `[N, E]`; None where it is not needed."""


class Pairs(NamedTuple):
    """All pairs of two sets of rows, or of one set; `[N, M]` each.

    A pair that does not count has the distance and the label of one that does, as a loss need not
    have a derivative where two points coincide, as a row does with itself.
    """

    distances: jax.Array
    labels: jax.Array
    counts: jax.Array
    """Mask of the pairs that count."""
    number: jax.Array
    """The number of pairs that count, a scalar."""
    bad: jax.Array
    """NaN if a vector that counts is not finite, else 0."""


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
        of_pairs = _pair_by_pair if product is None else _of_products
        counts, differ = _masks(x_classes, y_classes, labels)
        pair = _pair_that_counts(x_classes, y_classes) if labels is None else _first_pair(counts)
        return of_pairs(metric, x, y, parameters, _Masks(counts, differ, pair))

    @jax.custom_vjp
    def pairs(
        x: Rows, y: Rows | None, parameters: tuple[jax.Array, ...], *classes_and_labels: Any
    ) -> Any:
        return forward(x, y, parameters, *classes_and_labels)[0]

    forward = partial(_forward, metric)
    pairs.defvjp(forward, partial(_backward, metric))
    origin = lax.stop_gradient(x[:1])
    rows = _rows(metric, parameters, x, origin)
    columns = None if y is None else _rows(metric, parameters, y, origin)
    arguments = (rows, columns, parameters, x_classes, y_classes, labels)
    return cast(Pairs, pairs(*varying(arguments, axes_of(arguments))))


class _Masks(NamedTuple):
    """The pairs that count, and their labels."""

    counts: jax.Array
    """Mask of the pairs that count, `[N, M]`."""
    differ: jax.Array
    """Mask of the negative pairs, `[N, M]`."""
    pair: tuple[jax.Array, jax.Array]
    """Row and column of one pair that counts; of any pair if none does."""


def _masks(
    x_classes: jax.Array, y_classes: jax.Array | None, labels: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Masks of the pairs that count, and of the negative ones, `[N, M]`."""
    columns = x_classes if y_classes is None else y_classes
    counts = (x_classes >= 0)[:, None] & (columns >= 0)[None]
    if y_classes is None:
        counts &= ~jnp.eye(len(x_classes), dtype=bool)
    if labels is None:
        return counts, x_classes[:, None] != columns[None]
    return counts & (labels >= 0), labels > 0


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


def _of_products(
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

    distances = product.of(_dot(metric, points(x), points(x if y is None else y), (1, 1)))
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


class _Residuals(NamedTuple):
    x: Rows
    y: Rows | None
    parameters: tuple[jax.Array, ...]
    keys: jax.Array
    substitute: jax.Array
    """Key of a pair that takes the place of those that do not count."""
    rounds: jax.Array | None
    """The round in which each pair was resolved, `[N, M]`; None where there is but one."""
    rounds_taken: jax.Array | None
    """The number of rounds."""
    references: Any
    """The references of the first round."""


@on_mesh_of_arguments
def _forward(
    metric: Metric,
    x: Rows,
    y: Rows | None,
    parameters: tuple[jax.Array, ...],
    x_classes: jax.Array,
    y_classes: jax.Array | None,
    given: jax.Array | None,
) -> tuple[Pairs, _Residuals]:
    x, y, parameters = differentiable_once((x, y, parameters))
    square, is_exact, norms = _squares(metric, x, y, parameters, None)
    if cast(Product, metric.product).rest is not None:
        # Without the rest of rounding not even the distance from the reference is exact.
        is_exact &= ~(square < 128 * np.finfo(square.dtype).eps)
    counts, differ = _masks(x_classes, y_classes, given)
    keys = jnp.where(counts, _keys(square, differ, is_exact if metric.refine else None), -jnp.inf)
    largest, rounds, count, references = jnp.max(keys), None, None, None
    if metric.refine:
        needed = largest >= np.finfo(keys.dtype).max
        x, y = _with_rest(metric, x, y, needed)
        resolved = _resolved(metric, x, y, parameters, keys, norms, largest)
        keys, largest, rounds, count, references = resolved
    substitute = jnp.where(largest == -jnp.inf, -1, largest)
    entries, labels, counts = _entries(keys, substitute)
    distances = cast(Product, metric.product).of(entries, *_lengths(metric, x))
    classes = (x_classes,) if y_classes is None else (x_classes, y_classes)
    number, bad = _number(norms, classes)
    if given is not None:
        number = jnp.sum(counts.astype(number.dtype))
    residuals = _Residuals(x, y, parameters, keys, substitute, rounds, count, references)
    return Pairs(distances, labels, counts, number, bad), residuals


def _number(
    norms: tuple[jax.Array, ...], classes: tuple[jax.Array, ...]
) -> tuple[jax.Array, jax.Array]:
    """The number of pairs that count, and NaN or 0 of squared lengths."""
    # Both sums in one, for which XLA has a kernel ready on a CPU.
    sums = [
        jnp.sum(jnp.stack([norm * 2.0**-32, jnp.asarray(own >= 0, norm.dtype)]), axis=1)
        for norm, own in zip(norms, classes, strict=True)
    ]
    counts = [count for _, count in sums]
    number = counts[0] * (counts[0] - 1 if len(counts) == 1 else counts[1])
    return number, 0 * (sums[0][0] + (sums[1][0] if len(sums) > 1 else 0))


def _with_rest(
    metric: Metric, x: Rows, y: Rows | None, needed: jax.Array
) -> tuple[Rows, Rows | None]:
    """Rows with the part of their points that rounding has removed, where pairs need it."""
    product = cast(Product, metric.product)
    rest, scaled = product.rest, product.scaled
    if rest is None or scaled is None:
        return x, y
    sides = [x] if y is None else [x, y]

    def computed(vectors: list[jax.Array], points: list[jax.Array]) -> list[jax.Array]:
        together = rest(jnp.concatenate(vectors), jnp.concatenate(points))
        return jnp.split(together, [len(x.points)])[: len(sides)]

    def zeros(_: list[jax.Array], points: list[jax.Array]) -> list[jax.Array]:
        return [jnp.zeros_like(one) for one in points]

    # Scaled outside of the branch, as the points are made of the same scaled vectors.
    operands = [scaled(side.vectors) for side in sides], [side.points for side in sides]
    rests = lax.cond(needed, computed, zeros, *operands)
    sides = [side._replace(rest=one) for side, one in zip(sides, rests, strict=True)]
    return sides[0], None if y is None else sides[1]


def _keys(square: jax.Array, differ: jax.Array, is_exact: jax.Array | None) -> jax.Array:
    """One number for the square and the label of a pair that counts, and for what it lacks.

    The key of a positive pair is its square, that of a negative pair the negative of its square,
    and that of a pair which is not resolved is above both. A pair that does not count has the key
    -inf. So one matrix has all of a pair, and its maximum is the key of one that counts.
    """
    limits = np.finfo(square.dtype)
    # Rounding may leave less than nothing of a square that is 0.
    square = lax.clamp(limits.tiny, square, limits.max / 2)
    keys = jnp.where(differ, -square, square)
    if is_exact is None:
        return keys
    return jnp.where(is_exact, keys, jnp.where(differ, limits.max, jnp.inf))


def _entries(keys: jax.Array, substitute: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Squares, labels and the mask of the pairs that count."""
    counts = keys != -jnp.inf
    keys = jnp.where(counts, keys, substitute)
    squares = jnp.abs(keys)
    squares = jnp.where(squares <= np.finfo(keys.dtype).tiny, 0, squares)
    return squares, (keys < 0).astype(jnp.int32), counts


def _lengths(metric: Metric, x: Rows) -> tuple[jax.Array, ...]:
    """Squared lengths of the points of the rows, where the distance depends on them."""
    by_anchor = cast(Product, metric.product).by_anchor
    return (jnp.sum(x.points**2, axis=1)[:, None],) if by_anchor else ()


# Indices of the references of the rows and, of two sets, of the columns; None for the first row.
References = tuple[jax.Array, ...] | None


def _from_references(
    metric: Metric, x: Rows, y: Rows | None, parameters: Any, references: References
) -> tuple[jax.Array, jax.Array]:
    """Points of rows and columns as seen from their references."""
    product = cast(Product, metric.product)

    def seen(side: Rows, index: jax.Array | None) -> jax.Array:
        def difference(own: jax.Array, of_rows: jax.Array) -> jax.Array:
            return own - (of_rows[:1] if index is None else of_rows[index])

        if product.points is None:
            return difference(side.vectors, x.vectors)
        if product.additive:
            # A difference of vectors is exact, and so are points that are linear in them.
            return product.points(difference(side.vectors, x.vectors), *parameters)
        points = difference(side.points, x.points)
        if index is None or x.rest is None:
            return points
        return points + difference(cast(jax.Array, side.rest), x.rest)

    indices = (None, None) if references is None else references
    u = seen(x, indices[0])
    return u, u if y is None else seen(y, indices[1])


def _squares(
    metric: Metric, x: Rows, y: Rows | None, parameters: Any, references: References
) -> tuple[jax.Array, jax.Array, tuple[jax.Array, ...]]:
    """Squared distances of points, whether each has its digits, and squared lengths of points."""
    product = cast(Product, metric.product)
    u, v = _from_references(metric, x, y, parameters, references)

    def norms(side: Rows, seen: jax.Array) -> jax.Array:
        squares = jnp.sum(seen * seen, axis=1)
        if product.on_sphere:
            # A vector without direction is perpendicular to every other, and its square 2.
            squares += (jnp.sum(side.points * side.points, axis=1) == 0).astype(squares.dtype)
        return squares

    lengths = (norms(x, u),) if y is None else (norms(x, u), norms(y, v))
    row, column = lengths[0][:, None], lengths[-1][None]
    square = row + column - 2 * _dot(metric, u, v, (1, 1))
    # The distance from the reference itself is exact.
    return square, ~(square < _least(square.dtype) * (row + column)), lengths


def _least(dtype: Any) -> float:
    """Returns the share of the squared lengths of two points below which a square lacks digits.

    The error of a square is a few times the rounding of the lengths that it is the difference of.
    """
    return float(8 * math.sqrt(np.finfo(dtype).eps))


def _resolved(
    metric: Metric,
    x: Rows,
    y: Rows | None,
    parameters: Any,
    keys: jax.Array,
    norms: tuple[jax.Array, ...],
    largest: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, tuple[jax.Array, ...]]:
    """Resolves all pairs.

    Returns:
      The keys, the largest of them, the round in which each pair was resolved, the number of rounds
      and the references of the first.
    """
    waiting = np.finfo(keys.dtype).max

    def one_round(state: Any) -> Any:
        index, _, keys, rounds, first = state
        unresolved = keys >= waiting
        # In a cluster some pairs are resolved from the start and others not. The first round takes
        # one reference for all of it: pairs that are nearly unresolved count too. What depends on
        # the round is computed in it: XLA would compute the rest before the loop, which a batch
        # without close pairs does not enter.
        share = jnp.where(index == 1, _NEAR * _least(keys.dtype), 0)
        row, column = share * norms[0], share * norms[-1]
        related = unresolved | (jnp.abs(keys) < row[:, None] + column[None])
        references = _references(y is None, index, related)
        square, is_exact, _ = _squares(metric, x, y, parameters, references)
        by_one = references[0][:, None] == references[-1][None]
        resolves = unresolved & by_one & is_exact
        keys = jnp.where(resolves, _keys(square, keys == waiting, None), keys)
        rounds = jnp.where(resolves, index.astype(rounds.dtype), rounds)
        first = jax.tree.map(partial(jnp.where, index == 1), references, first)
        return index + 1, jnp.max(keys), keys, rounds, first

    none = tuple(jnp.zeros(len(norm), jnp.int32) for norm in norms)
    init = (jnp.int32(1), largest, keys, jnp.zeros(keys.shape, jnp.int16), none)
    init = varying(init, axes_of((x, y, parameters, keys)))
    state = lax.while_loop(lambda state: state[1] >= waiting, one_round, init)
    index, largest, keys, rounds, first = state
    return keys, largest, rounds, index, first


def _references(one_set: bool, index: jax.Array, related: jax.Array) -> tuple[jax.Array, ...]:
    """The references of a round, each a row that a row or a column is related to.

    They are the first such rows in an order that is another one in each round, so that two close
    rows soon have one reference. The very first row is the reference of all rows and columns that
    it is related to: where those are its unresolved pairs, the round resolves them all.
    """
    size = len(related)
    rows = jnp.arange(size, dtype=jnp.int32)
    step = 40503 + 2 * index
    scattered = lax.rem(rows * step + step, np.int32(1024))
    # Whole numbers below 2^24, for which float32 is exact: XLA has a kernel for the least of them.
    keys = (scattered * size + rows).astype(jnp.float32)

    def least(mask: jax.Array, keys: jax.Array) -> jax.Array:
        return jnp.min(jnp.where(mask, keys[None], np.float32(2**24)), axis=1)

    if one_set:
        chosen: tuple[jax.Array, ...] = (jnp.minimum(least(related, keys), keys),)
    else:
        columns = least(related.T, keys)
        chosen = least(related, columns), columns
    return tuple(lax.rem(one.astype(jnp.int32), np.int32(size)) for one in chosen)


def _dot(metric: Metric, a: jax.Array, b: jax.Array, axes: tuple[int, int]) -> jax.Array:
    return lax.dot_general(a, b, (((axes[0],), (axes[1],)), ((), ())), precision=metric.precision)


@on_mesh_of_arguments
def _backward(metric: Metric, residuals: _Residuals, cotangents: Pairs) -> Any:
    x, y, parameters, keys, substitute, rounds, count, first = residuals
    product = cast(Product, metric.product)
    entries, _, counts = _entries(keys, substitute)
    _, pull = jax.vjp(product.of, entries, *_lengths(metric, x))
    slopes, *by_lengths = pull(jnp.where(counts, cotangents.distances, 0))
    u, v = _from_references(metric, x, y, parameters, None)
    own = slopes if rounds is None else jnp.where(rounds == 0, slopes, 0)
    total = _of_points(metric, own, u, None if y is None else v)
    if rounds is not None:

        def one_round(state: Any) -> Any:
            index, total = state
            related = rounds >= index.astype(rounds.dtype)
            references = _references(y is None, index, related)
            references = jax.tree.map(partial(jnp.where, index == 1), first, references)
            u, v = _from_references(metric, x, y, parameters, references)
            own = jnp.where(rounds == index.astype(rounds.dtype), slopes, 0)
            more = _of_points(metric, own, u, None if y is None else v)
            return index + 1, jax.tree.map(jnp.add, total, more)

        init = varying((jnp.int32(1), total), axes_of((residuals, cotangents.distances)))
        total = lax.while_loop(lambda state: state[0] < count, one_round, init)[1]
    of_x, of_y = total
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
        None,
    )


def _of_points(
    metric: Metric, slopes: jax.Array, u: jax.Array, v: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
    """Gradients by points of a sum whose derivatives by their squared distances are given."""

    def weighted(axis: int, of: jax.Array, others: jax.Array) -> jax.Array:
        """Differences of `of` from `others`, which go along an axis of the slopes, added up."""
        total = jnp.sum(slopes, axis=axis)[:, None] * of
        return total - _dot(metric, slopes, others, (axis, 0))

    # The factors are in the slopes, as a product in which XLA scales its result is slower on a CPU.
    slopes = 2 * slopes
    if v is not None:
        return weighted(1, u, v), weighted(0, v, u)
    if not metric.symmetric and len(u) >= _LARGE:
        return weighted(1, u, u) + weighted(0, u, u), None
    slopes = 2 * slopes if metric.symmetric else slopes + slopes.T
    return weighted(1, u, u), None

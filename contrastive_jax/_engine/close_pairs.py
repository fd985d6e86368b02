"""Squared distances of the rows of two small sets, with all digits of close pairs.

A square is `|a|^2 + |b|^2 - 2 a b` of points less an origin, which is the first row at first. Where
two points are close to each other and far from the origin, that difference has lost its digits.
Such pairs get another origin, a row that they are close to, and the product is computed again,
until every pair is resolved.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from contrastive_jax._engine.matmul import Product
from contrastive_jax._engine.sharding import axes_of, varying

# Two rows are related in a round if their pair helps to choose the origins of that round. All
# unresolved pairs do and, in the first round, those whose square is below this multiple of the
# smallest accurate one (`_least_square`).
_NEAR = 8
# Number of the first round. Pairs that were resolved before have round 0, or 1 where they were
# related in the first round.
FIRST_ROUND = 2
# For each row and, of two sets, for each column the index of its origin among the rows; None if the
# first row is the origin of all.
Origins = tuple[jax.Array, ...] | None


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


def from_origins(
    metric: Metric, x: Rows, y: Rows | None, parameters: Any, origins: Origins
) -> tuple[jax.Array, jax.Array]:
    """Points of rows and columns less their origins."""
    product = cast(Product, metric.product)

    def seen(side: Rows, index: jax.Array | None) -> jax.Array:
        def difference(own: jax.Array, rows: jax.Array) -> jax.Array:
            return own - (rows[:1] if index is None else rows[index])

        if product.points is None:
            return difference(side.vectors, x.vectors)
        if product.additive:
            # A difference of vectors is exact, and so are points that are linear in them.
            return product.points(difference(side.vectors, x.vectors), *parameters)
        points = difference(side.points, x.points)
        if index is None or x.rest is None:
            return points
        return points + difference(cast(jax.Array, side.rest), x.rest)

    indices = (None, None) if origins is None else origins
    u = seen(x, indices[0])
    return u, u if y is None else seen(y, indices[1])


def squares(
    metric: Metric, x: Rows, y: Rows | None, parameters: Any, origins: Origins
) -> tuple[jax.Array, jax.Array, tuple[jax.Array, ...]]:
    """Returns squared distances and the mask of accurate ones, `[N, M]`, and squared lengths.

    Lengths are those of the points less their origins, `[N]` and, of two sets, `[M]`.
    """
    product = cast(Product, metric.product)
    u, v = from_origins(metric, x, y, parameters, origins)

    def norms(side: Rows, seen: jax.Array) -> jax.Array:
        total = jnp.sum(seen * seen, axis=1)
        if product.on_sphere:
            # A vector without direction is perpendicular to every other, and its square 2.
            total += (jnp.sum(side.points * side.points, axis=1) == 0).astype(total.dtype)
        return total

    lengths = (norms(x, u),) if y is None else (norms(x, u), norms(y, v))
    row, column = lengths[0][:, None], lengths[-1][None]
    square = row + column - 2 * jnp.matmul(u, v.T, precision=metric.precision)
    # The distance from the origin itself is exact.
    is_exact = ~(square < _least_square(metric, lengths, with_rest=x.rest is not None))
    return square, is_exact, lengths


def _least_square(
    metric: Metric,
    lengths: tuple[jax.Array, ...],
    *,
    with_rest: bool = False,
    times: jax.Array | int = 1,
) -> jax.Array:
    """Squared distances below which a square lacks digits, `[N, M]`.

    The error of a square is a few eps of the lengths that it is the difference of. Above 8
    sqrt(eps) of them it has a relative error below about sqrt(eps).

    Args:
      metric: the distance.
      lengths: squared lengths of the points of rows and, of two sets, of columns.
      with_rest: True if the rest of the points is known. If not, their rounding shows in a small
        square, whatever they are seen from.
      times: a factor.

    Returns:
      The squares, times the factor.
    """
    eps = float(np.finfo(lengths[0].dtype).eps)
    share = 8 * math.sqrt(eps) * times
    least = (share * lengths[0])[:, None] + (share * lengths[-1])[None]
    if with_rest or cast(Product, metric.product).rest is None:
        return least
    return jnp.maximum(least, 128 * eps * times)


def keys_of_pairs(square: jax.Array, differ: jax.Array, is_exact: jax.Array | None) -> jax.Array:
    """Encodes the square, the label and the state of each pair in one float, `[N, M]`.

    The key of a positive pair is its square, and that of a negative pair the negative of its
    square, -0.0 for 0. An unresolved pair has the key inf if it is positive, and the largest finite
    number if it is negative. The caller gives pairs that do not count the key -inf, so that the
    maximum is the key of a pair that counts.
    """
    limits = np.finfo(square.dtype)
    # Rounding may leave less than nothing of a square that is 0. The absolute value makes the sign
    # that of the label for a NaN too.
    square = jnp.abs(lax.clamp(limits.dtype.type(0), square, limits.max / 2))
    keys = jnp.where(differ, -square, square)
    if is_exact is None:
        return keys
    return jnp.where(is_exact, keys, jnp.where(differ, limits.max, jnp.inf))


def resolve(
    metric: Metric,
    x: Rows,
    y: Rows | None,
    parameters: Any,
    keys: jax.Array,
    norms: tuple[jax.Array, ...],
    largest: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Gives unresolved pairs other origins, in rounds of one product, until all are resolved.

    Args:
      metric: the distance.
      x: rows.
      y: columns; None for the rows.
      parameters: parameters of the distance.
      keys: keys of the pairs, `[N, M]` (`keys_of_pairs`).
      norms: squared lengths of rows and columns, `[N]` and, of two sets, `[M]`.
      largest: the largest key.

    Returns:
      The keys, the largest of them, the round in which each pair was resolved, 0 or 1 if before all
      rounds (`FIRST_ROUND`), and one more than the number of the last round.
    """
    waiting = np.finfo(keys.dtype).max

    def one_round(state: Any) -> Any:
        index, _, keys, rounds = state
        unresolved = keys >= waiting
        # In a cluster some pairs are resolved from the start and others not. The first round takes
        # one origin for all of it: pairs that are nearly unresolved count too. What depends on
        # the round is computed in it: XLA would compute the rest before the loop, which a batch
        # without close pairs does not enter.
        near = _least_square(metric, norms, times=jnp.where(index == FIRST_ROUND, _NEAR, 0))
        related = unresolved | (jnp.abs(keys) < near)
        origins = origins_of_round(y is None, index, related)
        square, is_exact, _ = squares(metric, x, y, parameters, origins)
        by_one = origins[0][:, None] == origins[-1][None]
        resolves = unresolved & by_one & is_exact
        keys = jnp.where(resolves, keys_of_pairs(square, keys == waiting, None), keys)
        # In the first round alone, as later ones have no other related pairs.
        rounds = jnp.where(related & ~unresolved, np.int16(1), rounds)
        rounds = jnp.where(resolves, index.astype(rounds.dtype), rounds)
        return index + 1, jnp.max(keys), keys, rounds

    init = varying(
        (jnp.int32(FIRST_ROUND), largest, keys, jnp.zeros(keys.shape, jnp.int16)),
        axes_of((x, y, parameters, keys)),
    )
    state = lax.while_loop(lambda state: state[1] >= waiting, one_round, init)
    index, largest, keys, rounds = state
    return keys, largest, rounds, index


def related_in_round(index: jax.Array, rounds: jax.Array) -> jax.Array:
    """Mask of the pairs that were related in a round, from the rounds of all pairs.

    It is that of the forward pass, so that both choose the same origins.
    """
    return rounds >= jnp.where(index == FIRST_ROUND, 1, index).astype(rounds.dtype)


def origins_of_round(one_set: bool, index: jax.Array, related: jax.Array) -> tuple[jax.Array, ...]:
    """Chooses an origin for each row and, of two sets, for each column.

    A row of one set takes the first row, itself included, that it is related to. Of two sets a
    column takes the first row that it is related to, and a row the first origin of its related
    columns. The order of the rows is another one in each round, so that two close rows soon have
    one origin.
    """
    size = len(related)
    rows = jnp.arange(size, dtype=jnp.int32)
    # A multiplicative hash, whose odd factor is another one in each round.
    step = 40503 + 2 * index
    scattered = lax.rem(rows * step + step, np.int32(1024))
    # Below 1024 times the most rows (`dense.LONGEST`), 2^24, for which float32 is exact: XLA has a
    # kernel ready for the least of floats on a CPU.
    keys = (scattered * size + rows).astype(jnp.float32)

    def least(mask: jax.Array, keys: jax.Array) -> jax.Array:
        return jnp.min(jnp.where(mask, keys[None], np.float32(2**24)), axis=1)

    if one_set:
        chosen: tuple[jax.Array, ...] = (jnp.minimum(least(related, keys), keys),)
    else:
        columns = least(related.T, keys)
        chosen = least(related, columns), columns
    return tuple(lax.rem(one.astype(jnp.int32), np.int32(size)) for one in chosen)

"""The matrix of distances that follow from squared ones, and its gradient.

The gradient of each pair is taken from the same origin as its distance (`close_pairs`).
"""

from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from contrastive_jax._engine.close_pairs import (
    FIRST_ROUND,
    Metric,
    Rows,
    from_origins,
    keys_of_pairs,
    origins_of_round,
    related_in_round,
    resolve,
    squares,
)
from contrastive_jax._engine.derivatives import differentiable_once
from contrastive_jax._engine.differences import (
    fit_differences,
    gradients_by_difference,
    squares_by_difference,
)
from contrastive_jax._engine.matmul import Product, matmul_over_rows
from contrastive_jax._engine.problem import zero_or_nan
from contrastive_jax._engine.sharding import axes_of, on_mesh_of_arguments, varying
from contrastive_jax.distances import rounded


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


def pairs_from_squares(
    metric: Metric,
    x: Rows,
    y: Rows | None,
    parameters: tuple[jax.Array, ...],
    x_classes: jax.Array,
    y_classes: jax.Array | None,
    labels: jax.Array | None,
) -> Pairs:
    """Pairs of two sets of rows, or of one, by a distance that follows from a squared one.

    Args:
      metric: the distance.
      x: rows.
      y: columns; None for the rows.
      parameters: parameters of the distance.
      x_classes: classes of the rows, `[N]`; -1 where a row does not count.
      y_classes: classes of the columns, `[M]`; None for those of the rows.
      labels: labels of the pairs, `[N, M]`, below 0 where a pair does not count; None where the
        classes give them.

    Returns:
      The pairs, whose distances can be differentiated once, in reverse mode, by the points.
    """

    @jax.custom_vjp
    def pairs(*arguments: Any) -> Any:
        return forward(*arguments)[0]

    forward = partial(_forward, metric)
    pairs.defvjp(forward, partial(_backward, metric))
    arguments = x, y, parameters, x_classes, y_classes, labels
    return cast(Pairs, pairs(*varying(arguments, axes_of(arguments))))


def masks_of_pairs(
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


class _Residuals(NamedTuple):
    """Everything that the backward pass takes."""

    x: Rows
    y: Rows | None
    parameters: tuple[jax.Array, ...]
    keys: jax.Array
    substitute: jax.Array
    """Key of a pair that takes the place of those that do not count."""
    rounds: jax.Array | None
    """The round in which each pair was resolved, 0 or 1 if before all rounds, `[N, M]`; None where
    none is taken."""
    end_round: jax.Array | None
    """One more than the number of the last round."""


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
    counts, differ = masks_of_pairs(x_classes, y_classes, given)
    by_difference = fit_differences(metric, x, y)
    if by_difference:
        x, y = _with_rest(metric, x, y)
        square, is_exact = squares_by_difference(metric, x, y), None
    else:
        square, is_exact, norms = squares(metric, x, y, parameters, None)
    keys = jnp.where(
        counts, keys_of_pairs(square, differ, is_exact if metric.refine else None), -jnp.inf
    )
    largest, rounds, end_round = jnp.max(keys), None, None
    if metric.refine and not by_difference:
        needed = largest >= np.finfo(keys.dtype).max
        x, y = _with_rest(metric, x, y, needed)
        keys, largest, rounds, end_round = resolve(metric, x, y, parameters, keys, norms, largest)
    substitute = jnp.where(largest == -jnp.inf, -1, largest)
    entries, labels, counts = _entries(keys, substitute)
    distances = cast(Product, metric.product).to_distance(entries, *_lengths(metric, x))
    if given is not None:
        number = jnp.sum(counts.astype(distances.dtype))
    else:
        classes = (x_classes,) if y_classes is None else (x_classes, y_classes)
        number = _number(classes, distances.dtype)
    bad = zero_or_nan(x.vectors) + (0 if y is None else zero_or_nan(y.vectors))
    residuals = _Residuals(x, y, parameters, keys, substitute, rounds, end_round)
    return Pairs(distances, labels, counts, number, bad), residuals


def _number(classes: tuple[jax.Array, ...], dtype: Any) -> jax.Array:
    """Returns the number of pairs that count where the classes alone tell them."""
    counts = [jnp.sum((one >= 0).astype(dtype)) for one in classes]
    return counts[0] * (counts[1] if len(counts) == 2 else counts[0] - 1)


def _with_rest(
    metric: Metric, x: Rows, y: Rows | None, needed: jax.Array | None = None
) -> tuple[Rows, Rows | None]:
    """Rows with the part of their points that rounding has removed.

    Args:
      metric: the distance.
      x: rows.
      y: columns; None for the rows.
      needed: True if it is needed; None if it always is, for differences of the points.

    Returns:
      The rows and the columns.
    """
    product = cast(Product, metric.product)
    rest, scaled = product.rest, product.scaled
    if rest is None or scaled is None:
        return x, y
    sides = [x] if y is None else [x, y]

    def computed(vectors: list[jax.Array], points: list[jax.Array]) -> list[jax.Array]:
        together = rest(jnp.concatenate(vectors), jnp.concatenate(points))
        return jnp.split(together, [len(x.points)])[: len(sides)]

    def unused(_: list[jax.Array], points: list[jax.Array]) -> list[jax.Array]:
        # Arrays that are there already, as zeros would have to be written.
        return points

    if needed is None:
        # XLA makes the points anew where it takes differences of them, and may fuse the product
        # that they are with the difference, which leaves out its rounding. Rounded to one bit less
        # they are the same everywhere, and the rest holds that bit.
        bits = np.finfo(x.points.dtype).nmant - 1
        sides = [side._replace(points=rounded(side.points, bits)) for side in sides]
    # Scaled outside of the branch, as the points are made of the same scaled vectors.
    operands = [scaled(side.vectors) for side in sides], [side.points for side in sides]
    rests = computed(*operands) if needed is None else lax.cond(needed, computed, unused, *operands)
    sides = [side._replace(rest=one) for side, one in zip(sides, rests, strict=True)]
    return sides[0], None if y is None else sides[1]


def _entries(keys: jax.Array, substitute: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Squares, labels and the mask of the pairs that count."""
    counts = keys != -jnp.inf
    keys = jnp.where(counts, keys, substitute)
    # The sign of a zero tells its label too, but -0.0 < 0 does not hold.
    bits = lax.bitcast_convert_type(keys, np.dtype(f"int{8 * keys.dtype.itemsize}"))
    labels = lax.shift_right_logical(bits, bits.dtype.type(8 * keys.dtype.itemsize - 1))
    return jnp.abs(keys), labels.astype(jnp.int32), counts


def _lengths(metric: Metric, x: Rows) -> tuple[jax.Array, ...]:
    """Squared lengths of the points of the rows, where the distance depends on them."""
    by_anchor = cast(Product, metric.product).by_anchor
    return (jnp.sum(x.points**2, axis=1)[:, None],) if by_anchor else ()


@on_mesh_of_arguments
def _backward(metric: Metric, residuals: _Residuals, cotangents: Pairs) -> Any:
    x, y, parameters, keys, substitute, *_ = residuals
    product = cast(Product, metric.product)
    entries, _, counts = _entries(keys, substitute)
    _, pull = jax.vjp(product.to_distance, entries, *_lengths(metric, x))
    derivatives, *by_lengths = pull(jnp.where(counts, cotangents.distances, 0))
    if fit_differences(metric, x, y):
        by_x, by_y = gradients_by_difference(metric, derivatives, x, y)
    else:
        axes = axes_of((residuals, cotangents.distances))
        by_x, by_y = _gradients_by_product(metric, residuals, derivatives, axes)
    if by_lengths:
        by_x += 2 * by_lengths[0] * x.points

    def gradient_of(side: Rows, by_points: jax.Array) -> Rows:
        # Vectors have the gradient through their points, which are made outside of this function.
        return Rows(jnp.zeros_like(side.vectors), by_points, None)

    return (
        gradient_of(x, by_x),
        None if y is None else gradient_of(y, cast(jax.Array, by_y)),
        jax.tree.map(lambda _: None, parameters),
        None,
        None,
        None,
    )


def _gradients_by_product(
    metric: Metric, residuals: _Residuals, derivatives: jax.Array, axes: frozenset[Any]
) -> tuple[jax.Array, jax.Array | None]:
    """Gradients with respect to points, each pair less the origins of its distance.

    Args:
      metric: the distance.
      residuals: the rows and the rounds.
      derivatives: those of a sum over all pairs by their squared distances, `[N, M]`.
      axes: axes of a mesh along which they vary.

    Returns:
      Gradients of the sum by the points of the rows and of the columns.
    """
    x, y, parameters, _, _, rounds, end_round = residuals

    def round_gradients(
        derivatives: jax.Array, origins: Any, *, stored: bool
    ) -> tuple[jax.Array, jax.Array | None]:
        u, v = from_origins(metric, x, y, parameters, origins)
        return _by_product(metric, derivatives, u, None if y is None else v, stored=stored)

    # The derivatives have the factor, as a product whose result XLA scales is slower on a CPU.
    derivatives = derivatives * (4 if y is None and metric.symmetric else 2)
    if rounds is None:
        return round_gradients(derivatives, None, stored=False)

    def one_round(state: Any) -> Any:
        index, derivatives, total = state
        related = related_in_round(index, rounds)
        origins = origins_of_round(y is None, index, related)
        resolved = rounds == index.astype(rounds.dtype)
        more = round_gradients(jnp.where(resolved, derivatives, 0), origins, stored=True)
        return index + 1, jnp.where(resolved, 0, derivatives), jax.tree.map(jnp.add, total, more)

    # The derivatives go through the loop, which leaves those of the pairs that were resolved from
    # the start. What comes out of a loop is in memory, even if no round was taken.
    zero = jnp.zeros_like(x.points), None if y is None else jnp.zeros_like(y.points)
    init = varying((jnp.int32(FIRST_ROUND), derivatives, zero), axes)
    _, derivatives, total = lax.while_loop(lambda state: state[0] < end_round, one_round, init)
    by_x, by_y = jax.tree.map(jnp.add, total, round_gradients(derivatives, None, stored=True))
    return by_x, by_y


def _by_product(
    metric: Metric, derivatives: jax.Array, u: jax.Array, v: jax.Array | None, *, stored: bool
) -> tuple[jax.Array, jax.Array | None]:
    """Gradients by points of a sum over all pairs of one round.

    Args:
      metric: the distance.
      derivatives: those of the sum by squared distances, times 2; times 4 for one set whose
        cotangent is symmetric.
      u: points of the rows.
      v: points of the columns; None for those of the rows.
      stored: True if the derivatives are in memory. Otherwise XLA computes them inside of the
        kernel that transposes them, which takes a CPU several times as long.

    Returns:
      Gradients by the points of the rows and of the columns.
    """

    def weighted(axis: int, of: jax.Array, others: jax.Array) -> jax.Array:
        """Adds up the differences of `of` from `others`, which go along an axis of the matrix."""
        total = jnp.sum(derivatives, axis=axis)[:, None] * of
        if axis == 0:
            return total - matmul_over_rows(metric.precision, others, derivatives).T
        return total - jnp.matmul(derivatives, others, precision=metric.precision)

    if v is not None:
        return weighted(1, u, v), weighted(0, v, u)
    if not metric.symmetric:
        if not stored:
            return weighted(1, u, u) + weighted(0, u, u), None
        derivatives = derivatives + derivatives.T
    return weighted(1, u, u), None

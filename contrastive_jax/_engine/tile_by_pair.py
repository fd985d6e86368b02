"""Pairs of a tile one by one, some rows at a time, and only rows that have any.

A distance comes from the difference of the vectors where it only depends on that, or from the
difference of their points and what rounding has removed from these; else from the two vectors.
"""

from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import lax

from contrastive_jax._engine.accumulators import (
    Gradient,
    TileCarry,
    add_at,
    add_losses,
    add_statistics,
    add_to_sum,
    number_of_sums,
    with_label,
)
from contrastive_jax._engine.derivatives import add_gradient, substitute
from contrastive_jax._engine.layout import Layout, SortedPoints, points_of, take_block
from contrastive_jax._engine.pair_values import (
    Tile,
    map_over_pairs,
    measuring,
    over_pairs,
    values_of_pair,
)
from contrastive_jax._engine.problem import Parameters, Task, pairs_by_points

# Entries of the differences between vectors that are held at once.
_DIFFERENCES = 2**19


def add_by_pair(layout: Layout, tile: Tile, weights: jax.Array, carry: TileCarry) -> TileCarry:
    """Adds the pairs of a tile whose weight, `[H, W]`, is not 0."""
    rest_of_rows, rest_of_columns = (_rest(layout.task, side) for side in (tile.rows, tile.columns))
    height, size = tile.rows.vectors.shape
    width = len(tile.columns.vectors)
    step = 1
    while height % (2 * step) == 0 and 2 * step * width * size <= _DIFFERENCES:
        step *= 2

    def next_part(remaining: jax.Array) -> tuple[jax.Array, jax.Array]:
        part = jnp.argmax(remaining)
        return remaining[part] > 0, part

    def add_next(state: Any) -> Any:
        _, part, remaining, carry = state
        start = part * step
        rows, rest, own_weights = take_block((tile.rows, rest_of_rows, weights), start, step)
        # Labels are computed again, as those of a tile would have to be stored for it.
        top = None if tile.top is None else tile.top + start
        own = tile._replace(rows=rows, top=top, rests=(rest, rest_of_columns))
        carry = _add_rows(layout, own, start, own_weights, carry)
        remaining = remaining.at[part].set(0)
        return *next_part(remaining), remaining, carry

    # The largest weight rather than `jnp.any`, which takes longer to compile.
    counted = jnp.where(weights > 0, weights, 0)
    largest = jnp.max(counted.reshape(height // step, -1), axis=1)
    state = *next_part(largest), largest, carry
    return lax.while_loop(lambda state: state[0], add_next, state)[-1]


def _add_rows(
    layout: Layout,
    tile: Tile,
    start: jax.Array,
    weights: jax.Array,
    carry: TileCarry,
) -> TileCarry:
    """Adds the pairs of some rows, which begin at `start` of their block."""
    task, wanted = layout.task, layout.wanted
    labels, _ = tile.labels_and_weights(layout)
    x, y = tile.rows.vectors, tile.columns.vectors
    if pairs_by_points(task):
        x, y = points_of(tile.rows), points_of(tile.columns)
    pairs = partial(_distances_and_labels, task, tile, labels, weights)
    if task.statistics is not None:
        evaluate = partial(_evaluate, task, layout.parameters, *pairs(x, y, layout.parameters))
        return add_statistics(task, tile, evaluate, weights > 0, start, carry)

    def losses(x: jax.Array, y: jax.Array, parameters: Parameters) -> jax.Array:
        values = _evaluate(task, parameters, *pairs(x, y, parameters), tile)
        return jnp.stack(values).astype(weights.dtype)

    if any(wanted.sides) or wanted.parameters:
        values, pull = jax.vjp(losses, x, y, layout.parameters)
    else:
        values, pull = losses(x, y, layout.parameters), None
    if task.anchors == "none":
        distances: list[Any] = [None] * len(values)
        if task.measured:
            parameters = lax.stop_gradient(layout.parameters)
            distances = _evaluate(measuring(task), parameters, *pairs(x, y, parameters), tile)
        for one, distance in zip(values, distances, strict=True):
            carry = add_losses(task, carry, one, distance, labels, weights)
    if pull is None:
        return carry
    count = number_of_sums(task)
    for k in range(count):
        own = with_label(k, count, labels, weights)
        gradients = pull(jnp.broadcast_to(own, values.shape))
        carry = _add_gradients(layout, k, gradients, start, tile.left, carry)
    return carry


def _distances_and_labels(
    task: Task,
    tile: Tile,
    labels: jax.Array,
    weights: jax.Array,
    x: jax.Array,
    y: jax.Array,
    parameters: Parameters,
) -> tuple[list[jax.Array], jax.Array]:
    """Returns the distances of all pairs of vectors, or of points, `x` and `y`, and their labels.

    A pair that does not count is replaced by one that does, as a loss, and a distance that is not
    of this library, need not have a derivative where the distance is 0.
    """
    counts = weights > 0
    if pairs_by_points(task) or task.translation_invariant:
        distance = partial(_distance_by_difference, task, parameters.distance)
        each = over_pairs(distance, (x, tile.rests[0]), (y, tile.rests[1]))
        return cast(tuple[Any, Any], substitute(counts, ([each], labels)))
    if not task.finite_derivatives:
        # Their vectors are not stored for each pair.
        index = jnp.argmax(counts)
        substitutes = x[index // len(y)], y[index % len(y)]

    def distances_of_pair(a: jax.Array, b: jax.Array, valid: jax.Array) -> list[jax.Array]:
        if not task.finite_derivatives:
            a, b = (jnp.where(valid, *one) for one in zip((a, b), substitutes, strict=True))
        return [distance(a, b, *parameters.distance) for distance in task.distances]

    distances = over_pairs(distances_of_pair, x, y, counts)
    return cast(tuple[Any, Any], substitute(counts, (distances, labels)))


def _evaluate(
    task: Task, parameters: Parameters, distances: list[jax.Array], labels: jax.Array, tile: Tile
) -> list[Any]:
    """Evaluates the loss of a task for all pairs, from their distances."""

    def one(label: Any, row: Any, column: Any, *distances: Any) -> list[Any]:
        return values_of_pair(task, [*distances], label, row, column, parameters.loss)

    values: list[Any] = map_over_pairs(one, tile.rows, tile.columns, labels, *distances)
    return values


def _distance_by_difference(
    task: Task,
    parameters: tuple[jax.Array, ...],
    a: tuple[jax.Array, jax.Array | None],
    b: tuple[jax.Array, jax.Array | None],
) -> jax.Array:
    """Returns the distance of two vectors, or of two points with their rest, by their difference.

    The gradients by rows and by columns are then sums of one array, that by the differences, which
    is finite where a difference is 0 too.
    """
    difference = a[0] - b[0]
    if a[1] is not None and b[1] is not None:
        difference += a[1] - b[1]
    if task.translation_invariant:
        return task.distances[0](difference, jnp.zeros_like(difference), *parameters)
    # A vector without direction is perpendicular to every other, and so in no pair that comes here.
    square = jnp.sum(difference**2)
    return task.product.to_distance(square)  # type: ignore[union-attr]


def _rest(task: Task, rows: SortedPoints) -> jax.Array | None:
    """Returns what rounding has removed from the points, where pairs are computed from points."""
    product = task.product
    if product is None or product.rest is None or product.scaled is None:
        return None
    return product.rest(product.scaled(rows.vectors), points_of(rows))


def _add_gradients(
    layout: Layout, k: int, gradients: Any, start: jax.Array, left: jax.Array, carry: TileCarry
) -> TileCarry:
    """Adds the gradients of sum number k by rows, columns and parameters."""
    by_rows, by_columns, by_parameters = gradients
    name = "points" if pairs_by_points(layout.task) else "vectors"

    def replaced(gradient: Gradient, new: jax.Array) -> Gradient:
        return gradient._replace(**{name: new})

    rows, columns, parameters = carry.rows, carry.columns, list(carry.parameters)
    if rows.gradient is not None:
        old = getattr(rows.gradient, name)
        new = old.at[k].set(add_at(old[k].T, by_rows.T, start).T)
        rows = rows._replace(gradient=replaced(rows.gradient, new))
    if columns.gradient is not None:
        old = getattr(columns.gradient, name)
        new = add_to_sum(old, k, by_columns.T, left)
        columns = columns._replace(gradient=replaced(columns.gradient, new))
    if layout.wanted.parameters:
        parameters[k] = jax.tree.map(add_gradient, parameters[k], by_parameters)
    return TileCarry(carry.sums, rows, columns, tuple(parameters))

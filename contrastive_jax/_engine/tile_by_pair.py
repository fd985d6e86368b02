"""Pairs of a tile by their distance itself, some rows at a time, and only rows that have any."""

from functools import partial
from typing import Any

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
from contrastive_jax._engine.layout import Layout, SortedPoints, take_block
from contrastive_jax._engine.pair_values import Tile, map_over_pairs, measuring, values_of_pair
from contrastive_jax._engine.problem import Parameters, Task

# Entries of the differences between vectors that are held at once.
_DIFFERENCES = 2**19


def add_by_pair(
    layout: Layout, tile: Tile, labels: jax.Array, weights: jax.Array, carry: TileCarry
) -> TileCarry:
    """Adds the pairs of a tile whose weight is not 0."""
    height, size = tile.rows.vectors.shape
    width = len(tile.columns.vectors)
    step = 1
    while height % (2 * step) == 0 and 2 * step * width * size <= _DIFFERENCES:
        step *= 2

    def add_next(state: Any) -> Any:
        remaining, carry = state
        part = jnp.argmax(remaining)
        start = part * step
        rows, own_labels, own_weights = take_block((tile.rows, labels, weights), start, step)
        own = tile._replace(rows=rows)
        carry = _add_rows(layout, own, start, own_labels, own_weights, carry)
        return remaining.at[part].set(False), carry

    has_pairs = jnp.any(weights.reshape(height // step, -1) > 0, axis=1)
    state = has_pairs, carry
    return lax.while_loop(lambda state: jnp.any(state[0]), add_next, state)[1]


def _add_rows(
    layout: Layout,
    tile: Tile,
    start: jax.Array,
    labels: jax.Array,
    weights: jax.Array,
    carry: TileCarry,
) -> TileCarry:
    """Adds the pairs of some rows, which begin at `start` of their block."""
    task, wanted = layout.task, layout.wanted
    x, y = tile.rows.vectors, tile.columns.vectors
    evaluate = partial(_evaluate, task, tile, labels, weights)
    if task.statistics is not None:
        by_side = evaluate(x, y, layout.parameters)
        indices = tile.rows.indices, tile.columns.indices
        return add_statistics(carry, by_side, weights > 0, indices, (start, tile.left))

    def losses(x: jax.Array, y: jax.Array, parameters: Parameters) -> jax.Array:
        return jnp.stack(evaluate(x, y, parameters)).astype(weights.dtype)

    if any(wanted.sides) or wanted.parameters:
        values, pull = jax.vjp(losses, x, y, layout.parameters)
    else:
        values, pull = losses(x, y, layout.parameters), None
    if task.anchors == "none":
        distances: list[Any] = [None] * len(values)
        if task.measured:
            parameters = lax.stop_gradient(layout.parameters)
            distances = _evaluate(measuring(task), tile, labels, weights, x, y, parameters)
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


def _evaluate(
    task: Task,
    tile: Tile,
    labels: jax.Array,
    weights: jax.Array,
    x: jax.Array,
    y: jax.Array,
    parameters: Parameters,
) -> list[Any]:
    """Evaluates the loss of a task for all pairs of vectors `x` and `y`."""
    # A pair that does not count is replaced by one that does, as a distance need not have a
    # derivative between a vector and itself. Their vectors are not stored for each pair.
    index = jnp.argmax(weights > 0)
    substitutes = x[index // len(y)], y[index % len(y)]
    labels = substitute(weights > 0, labels)

    def one(label: Any, row: Any, column: Any, weight: Any) -> list[Any]:
        (row_index, (a, row_data)), (column_index, (b, column_data)) = row, column
        a = jnp.where(weight > 0, a, substitutes[0])
        b = jnp.where(weight > 0, b, substitutes[1])
        distances = [distance(a, b, *parameters.distance) for distance in task.distances]
        row, column = (row_index, row_data), (column_index, column_data)
        return values_of_pair(task, distances, label, row, column, parameters.loss)

    def with_vectors(rows: SortedPoints, vectors: jax.Array) -> SortedPoints:
        return rows._replace(anchors=(vectors, rows.anchors))

    rows, columns = with_vectors(tile.rows, x), with_vectors(tile.columns, y)
    values: list[Any] = map_over_pairs(one, rows, columns, labels, weights)
    return values


def _add_gradients(
    layout: Layout, k: int, gradients: Any, start: jax.Array, left: jax.Array, carry: TileCarry
) -> TileCarry:
    """Adds the gradients of sum number k by rows, columns and parameters."""
    by_rows, by_columns, by_parameters = gradients
    # Where the vectors are the points, there is one gradient by both.
    product = layout.task.product
    name = "points" if product is not None and product.points is None else "vectors"

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

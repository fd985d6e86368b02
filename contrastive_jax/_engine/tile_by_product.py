"""Pairs of a tile whose distance follows from a matrix product.

One product gives the distances. The loss maps each to a loss and to its derivative W, entry by
entry, and two products of W with the points give the gradients of rows and columns. They are
skipped where W is zero.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from contrastive_jax._engine.accumulators import (
    Gain,
    TileCarry,
    add_losses,
    add_statistics,
    add_to_sum,
    number_of_sums,
    with_label,
)
from contrastive_jax._engine.derivatives import add_gradient, substitute
from contrastive_jax._engine.layout import Layout, points_of
from contrastive_jax._engine.pair_values import Tile, map_over_pairs, measuring, values_of_pair
from contrastive_jax._engine.problem import Task


class Operands(NamedTuple):
    """Points of a tile and the entries of their product."""

    u: jax.Array
    """Points of the rows, `[H, E]`."""
    transposed: jax.Array
    """The same, `[E, H]`."""
    v: jax.Array
    """Points of the columns, `[W, E]`."""
    entries: jax.Array
    """Squared distances of the points, or their products, `[H, W]`."""


def inner_products(task: Task, u: jax.Array, v: jax.Array) -> jax.Array:
    """Returns the inner products of rows and columns, `[H, W]`."""
    return lax.dot_general(u, v, (((1,), (1,)), ((), ())), precision=task.numerics.precision)


def lazy_cond(condition: jax.Array, change: Callable[[Any], Any], state: Any) -> Any:
    """Returns `change(state)` if a condition holds, else the state.

    It is a loop of at most one step. Under `vmap`, `lax.cond` would compute both branches, and a
    loop takes no step if the condition holds for no element.
    """
    # `& False` ends the loop with a condition of the same type, axes of a mesh included.
    return lax.while_loop(
        lambda s: s[0], lambda s: (s[0] & False, change(s[1])), (condition, state)
    )[1]


def add_by_product(
    layout: Layout,
    tile: Tile,
    operands: Operands,
    labels: jax.Array | None,
    weights: jax.Array | None,
    carry: TileCarry,
) -> TileCarry:
    """Adds pairs, given the entries of their product.

    Args:
      layout: what stays the same during a sweep.
      tile: rows and columns.
      operands: points and entries of the product.
      labels: `[H, W]`; None if all pairs are negative.
      weights: `[H, W]`; None if all are 1.
      carry: accumulators.

    Returns:
      The accumulators with these pairs.
    """
    task, parameters, wanted = layout.task, layout.parameters, layout.wanted
    entries = _with_squares(tile, operands.entries)
    if task.statistics is not None:
        counts = None if weights is None else weights > 0
        evaluate = partial(_evaluate, task, parameters.loss, entries, labels)
        return add_statistics(task, tile, evaluate, counts, 0, carry)

    def losses(loss_parameters: Any, entries: Any, labels: Any) -> list[jax.Array]:
        values = _evaluate(task, loss_parameters, entries, labels, tile)
        return [loss.astype(operands.entries.dtype) for loss in values]

    def add_to_sums(carry: TileCarry, values: list[jax.Array]) -> TileCarry:
        if task.anchors != "none":
            return carry
        distances: list[Any] = [None] * len(values)
        if task.measured:
            distances = _evaluate(measuring(task), parameters.loss, entries, labels, tile)
        for value, distance in zip(values, distances, strict=True):
            carry = add_losses(task, carry, value, distance, labels, weights)
        return carry

    if not any(wanted.sides) and not wanted.parameters:
        return add_to_sums(carry, losses(parameters.loss, entries, labels))
    values, pull = jax.vjp(lambda *entries: losses(parameters.loss, entries, labels), *entries)
    carry = add_to_sums(carry, values)
    # A loss that has a value for each side weights these alike.
    cotangent = jnp.ones_like(operands.entries) if weights is None else weights
    if wanted.parameters:
        carry = _add_by_parameters(layout, losses, entries, labels, weights, cotangent, carry)
    if not any(wanted.sides):
        return carry
    derivatives = pull([cotangent] * len(values))
    if weights is not None:
        derivatives = [jnp.where(weights > 0, one, 0) for one in derivatives]
    return _add_by_points(layout, tile, operands, labels, derivatives, carry)


def _with_squares(tile: Tile, entries: jax.Array) -> tuple[jax.Array, ...]:
    """Returns the entries, and where a distance depends on them the squared lengths of points."""
    x, y = tile.rows.squares, tile.columns.squares
    if x is None or y is None:
        return (entries,)
    return entries, *(jnp.broadcast_to(one, entries.shape) for one in (x[:, None], y[None]))


def _evaluate(
    task: Task, parameters: tuple[jax.Array, ...], entries: Any, labels: Any, tile: Tile
) -> list[Any]:
    """Evaluates the function of a task, `loss`, for all pairs, from the entries of the product.

    A distance that is not symmetric takes the squared length of its first vector: that of the row
    in one order, and that of the column in the other.
    """
    distance_from = task.product.to_distance  # type: ignore[union-attr]

    def one(label: Any, row: Any, column: Any, entry: Any, *squares: Any) -> list[Any]:
        by_order = squares[: len(task.distances)]
        distances = [distance_from(entry, square) for square in by_order]
        return values_of_pair(
            task, distances or [distance_from(entry)], label, row, column, parameters
        )

    values: list[Any] = map_over_pairs(one, tile.rows, tile.columns, labels, *entries)
    return values


def _sums_with_pairs(task: Task, labels: jax.Array | None) -> range:
    """Returns the indices of the sums that pairs add to, without labels that of negative pairs."""
    count = number_of_sums(task)
    return range(0 if labels is not None else count - 1, count)


def _add_by_parameters(
    layout: Layout,
    losses: Callable[..., list[jax.Array]],
    entries: tuple[jax.Array, ...],
    labels: jax.Array | None,
    weights: jax.Array | None,
    cotangent: jax.Array,
    carry: TileCarry,
) -> TileCarry:
    """Adds the gradient by the parameters of the loss."""
    if weights is not None and labels is not None:
        entries, labels_of_entries = substitute(weights > 0, (entries, labels))
    else:
        labels_of_entries = labels
    values, pull = jax.vjp(lambda p: losses(p, entries, labels_of_entries), layout.parameters.loss)
    count = number_of_sums(layout.task)
    totals = list(carry.parameters)
    for k in _sums_with_pairs(layout.task, labels):
        own = with_label(k, count, labels, cotangent)
        (more,) = pull([own] * len(values))
        # If no pair counts, `substitute` had no valid entry, and this gradient may be NaN.
        add = partial(add_gradient, where=jnp.any(own > 0))
        totals[k] = totals[k]._replace(loss=jax.tree.map(add, totals[k].loss, more))
    return carry._replace(parameters=tuple(totals))


def _add_by_points(
    layout: Layout,
    tile: Tile,
    operands: Operands,
    labels: jax.Array | None,
    derivatives: Any,
    carry: TileCarry,
) -> TileCarry:
    """Adds the gradients by the points of rows and columns.

    With derivative w by a squared distance, the gradient by u is the sum of 2 w (u - v): a multiple
    of u less a product of the derivatives with v.
    """
    task, count = layout.task, number_of_sums(layout.task)
    if task.product.squared:  # type: ignore[union-attr]
        derivatives = [2 * one for one in derivatives]
    for k in _sums_with_pairs(task, labels):
        own, *by_squares = (with_label(k, count, labels, one) for one in derivatives)
        add = partial(_add_to_sides, task, tile, operands, k, own, by_squares)
        is_active = jnp.max(jnp.abs(own)) != 0
        rows, columns = lazy_cond(is_active, add, (carry.rows, carry.columns))
        carry = carry._replace(rows=rows, columns=columns)
    return carry


def _add_to_sides(
    task: Task,
    tile: Tile,
    operands: Operands,
    k: int,
    derivatives: jax.Array,
    by_squares: list[jax.Array],
    gains: tuple[Gain, Gain],
) -> tuple[Gain, Gain]:
    """Adds to the gradients of sum number k by the rows, `[K, H, E]`, and columns, `[K, E, N]`."""
    rows, columns = gains
    product = partial(lax.dot, precision=task.numerics.precision)
    squared = task.product.squared  # type: ignore[union-attr]
    if rows.gradient is not None:
        points = product(derivatives, operands.v)
        if squared:
            points = jnp.sum(derivatives, axis=1)[:, None] * operands.u - points
        for one in by_squares[:1]:
            points += jnp.sum(one, axis=1)[:, None] * points_of(tile.rows)
        total = rows.gradient.points.at[k].add(points)
        rows = rows._replace(gradient=rows.gradient._replace(points=total))
    if columns.gradient is not None:
        points = product(operands.transposed, derivatives)
        if squared:
            points = jnp.sum(derivatives, axis=0)[None] * operands.v.T - points
        for one in by_squares[1:]:
            points += jnp.sum(one, axis=0)[None] * points_of(tile.columns).T
        total = add_to_sum(columns.gradient.points, k, points, tile.left)
        columns = columns._replace(gradient=columns.gradient._replace(points=total))
    return rows, columns

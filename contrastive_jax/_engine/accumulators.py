"""Accumulators of a sweep: sums, statistics of anchors and gradients; init, add a tile, merge."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import lax

from contrastive_jax._engine.derivatives import add_gradient, zero_gradient
from contrastive_jax._engine.layout import (
    Layout,
    SortedPoints,
    points_from,
    points_of,
)
from contrastive_jax._engine.pair_values import Tile
from contrastive_jax._engine.problem import Parameters, Sums, Task, pairs_by_points
from contrastive_jax._engine.reductions import (
    Partial,
    flatten_statistics,
    init_partial,
    merge,
    reduce_tile,
)
from contrastive_jax._engine.sharding import axes_of, varying
from contrastive_jax.statistics import Op


class Gradient(NamedTuple):
    """The gradient of each of K sums by the rows of a side.

    `[K, ., N]` for all rows, `[K, N, .]` for a block of rows.
    """

    points: Any
    """The gradient by the points; None where the distance does not follow from a product."""
    vectors: Any
    """The gradient by the vectors themselves; None where all pairs are computed from the points."""


class Gain(NamedTuple):
    """The contribution of pairs to the rows of one side."""

    gradient: Gradient | None
    """None where it is not wanted."""
    statistics: tuple[Partial, ...]
    """A partial result for each statistic, `[N]`, or `[P, N]` for P positives; of the anchors
    alone."""


class Carry(NamedTuple):
    """The accumulators of a sweep."""

    sums: Sums
    gains: tuple[Gain, ...]
    """The gain of each side: with one side rows and columns share `gains[0]`."""
    parameters: tuple[Parameters, ...]
    """Gradients of the K sums by the parameters; empty where they are not wanted."""


class TileCarry(NamedTuple):
    """The accumulators of a row of tiles."""

    sums: Sums
    rows: Gain
    """The gain of the block of rows, `[H]`."""
    columns: Gain
    """The gain of all columns, `[N]`."""
    parameters: tuple[Parameters, ...]


def number_of_sums(task: Task) -> int:
    """Returns K: 2 if positive and negative pairs are summed separately, else 1."""
    return 2 if task.by_label else 1


def init_carry(layout: Layout) -> Carry:
    """Returns the accumulators of a sweep before any pair."""
    task, wanted, sides = layout.task, layout.wanted, layout.sides
    count, dtype = number_of_sums(task), sides[0].norms.dtype
    zero = jnp.zeros(count, dtype)
    parameters: tuple[Parameters, ...] = ()
    if wanted.parameters:
        parameters = tuple(jax.tree.map(zero_gradient, layout.parameters) for _ in range(count))
    carry = Carry(
        Sums(zero, zero, zero, zero),
        tuple(
            Gain(
                init_gradient(task, rows) if is_wanted else None,
                init_statistics(task, len(rows.norms), dtype) if k == 0 else (),
            )
            for k, (rows, is_wanted) in enumerate(zip(sides, wanted.sides, strict=True))
        ),
        parameters,
    )
    return cast(Carry, varying(carry, axes_of(sides[0].vectors)))


def init_gradient(task: Task, rows: SortedPoints, *, block: bool = False) -> Gradient:
    """Returns the gradient by rows, or by those of a block, before any pair."""

    def zeros(*shape: int) -> jax.Array:
        shape = shape[::-1] if block else shape
        return jnp.zeros((number_of_sums(task), *shape), rows.norms.dtype)

    count, size = rows.vectors.shape
    product = task.product
    return Gradient(
        points=zeros(points_of(rows).shape[1], count) if product else None,
        vectors=None if pairs_by_points(task) else zeros(size, count),
    )


def init_statistics(task: Task, count: int, dtype: Any) -> tuple[Partial, ...]:
    """Returns the partial results of all statistics before any pair."""
    shape = (task.positives, count) if task.positives else (count,)
    return tuple(init_partial(op, shape, dtype) for op in task.statistics or ())


def add_losses(
    task: Task,
    carry: TileCarry,
    losses: jax.Array,
    distances: jax.Array | None,
    labels: jax.Array | None,
    weights: jax.Array | None,
) -> TileCarry:
    """Adds the losses of a tile to the sums.

    Without labels all pairs are negative; without weights every weight is 1. Distances are None
    where the task does not sum them.
    """
    count = number_of_sums(task)

    def total(values: jax.Array) -> jax.Array:
        return jnp.stack(
            [
                jnp.sum(with_label(k, count, labels, values))
                if labels is not None or k == count - 1
                else jnp.zeros((), values.dtype)
                for k in range(count)
            ]
        )

    zeros = jnp.zeros_like(carry.sums.active)
    if weights is None:
        weights = jnp.ones_like(losses)

    def weighted(values: jax.Array) -> jax.Array:
        return total(jnp.where(weights > 0, weights * values, 0))

    more = Sums(
        loss=weighted(losses),
        pairs=total(weights),
        active=total(jnp.where(losses != 0, weights, 0)) if task.active else zeros,
        distance=zeros if distances is None else weighted(distances.astype(losses.dtype)),
    )
    return carry._replace(sums=jax.tree.map(jnp.add, carry.sums, more))


def with_label(k: int, count: int, labels: jax.Array | None, values: jax.Array) -> jax.Array:
    """Returns the values of pairs that go into sum number k, and 0 for other pairs."""
    return values if count == 1 or labels is None else jnp.where(labels == k, values, 0)


def add_statistics(
    task: Task,
    tile: Tile,
    evaluate: Callable[[Tile], list[Any]],
    counts: jax.Array | None,
    start: jax.Array | int,
    carry: TileCarry,
) -> TileCarry:
    """Reduces the statistics of a tile for its rows and, where these are anchors, its columns.

    Args:
      task: reductions, and the number of positives of an anchor.
      tile: rows and columns.
      evaluate: takes a tile with the data of one positive of each anchor and returns, for each side
        that is an anchor, a tree of statistics of `[H, W]` pairs.
      counts: mask of the pairs that count, `[H, W]`; None if all do.
      start: position of the first row in the accumulators of its block.
      carry: accumulators.

    Returns:
      The accumulators with these pairs.
    """

    def add(tile: Tile, carry: TileCarry, *positive: jax.Array) -> TileCarry:
        gains = [carry.rows, carry.columns]
        indices, starts = (tile.rows.indices, tile.columns.indices), (start, tile.left)
        for side, tree in enumerate(evaluate(tile)):
            statistics = flatten_statistics(tree)
            more = [reduce_tile(one, counts, 1 - side, indices[1 - side]) for one in statistics]
            ops, begin = tuple(one.op for one in statistics), (*positive, starts[side])
            merged = merge_at(ops, gains[side].statistics, more, begin)
            gains[side] = gains[side]._replace(statistics=merged)
        return carry._replace(rows=gains[0], columns=gains[1])

    if not task.positives:
        return add(tile, carry)
    # In a loop, so that a positive is compiled once.
    return cast(
        TileCarry,
        lax.fori_loop(
            0, task.positives, lambda k, carry: add(tile.select_positive(k), carry, k), carry
        ),
    )


def merge_at(
    ops: tuple[Op, ...], whole: Any, part: Any, begin: tuple[jax.Array | int, ...]
) -> tuple[Partial, ...]:
    """Merges the partial results of some rows into those of all rows, from `begin` on.

    Args:
      ops: reductions.
      whole: partial results, `[N]` or `[P, N]`.
      part: partial results `[H]`, or `[P, H]`; None each where no pair adds to a statistic.
      begin: an index for each axis of those of all rows.

    Returns:
      The partial results of all rows.
    """
    begin = _int32(begin)
    merged = []
    for op, old, new in zip(ops, whole, part, strict=True):
        if new is None:
            merged.append(old)
            continue
        new = tuple(one.reshape(*[1] * (len(begin) - one.ndim), *one.shape) for one in new)
        now = tuple(
            lax.dynamic_slice(o, begin, n.shape, allow_negative_indices=False)
            for o, n in zip(old, new, strict=True)
        )
        merged.append(
            tuple(
                lax.dynamic_update_slice(o, b, begin, allow_negative_indices=False)
                for o, b in zip(old, merge(op, now, new), strict=True)
            )
        )
    return tuple(merged)


def add_block(task: Task, whole: Gain, block: Gain, start: jax.Array) -> Gain:
    """Adds the gain of a block of rows to that of all rows."""
    if task.statistics:
        begin = (0, start) if task.positives else (start,)
        merged = merge_at(task.statistics, whole.statistics, block.statistics, begin)
        whole = whole._replace(statistics=merged)
    if block.gradient is None:
        return whole
    transposed = jax.tree.map(lambda g: jnp.swapaxes(g, 1, 2) if g.ndim == 3 else g, block.gradient)

    def add(old: jax.Array, new: jax.Array) -> jax.Array:
        return add_at(old, new, start)

    return whole._replace(gradient=jax.tree.map(add, whole.gradient, transposed))


def add_at(whole: jax.Array, part: jax.Array, start: jax.Array) -> jax.Array:
    """Adds `part` to `whole` along its last axis, from `start` on."""
    return _add_at(whole, (*[0] * (whole.ndim - 1), start), part)


def add_to_sum(whole: jax.Array, k: int, part: jax.Array, start: jax.Array) -> jax.Array:
    """Adds to some of the last positions of `whole[k]`, in place."""
    return _add_at(whole, (k, *[0] * (whole.ndim - 2), start), part[None])


def _add_at(whole: jax.Array, begin: tuple[Any, ...], part: jax.Array) -> jax.Array:
    begin = _int32(begin)
    now = lax.dynamic_slice(whole, begin, part.shape, allow_negative_indices=False)
    return lax.dynamic_update_slice(whole, now + part, begin, allow_negative_indices=False)


def _int32(begin: tuple[Any, ...]) -> tuple[jax.Array, ...]:
    """Returns indices of one dtype: that of a device is int32 where other integers are int64."""
    return tuple(jnp.asarray(one, jnp.int32) for one in begin)


def input_gradients(
    layout: Layout, carry: Carry
) -> tuple[list[jax.Array | None], tuple[Parameters, ...]]:
    """Returns the gradients of the K sums by the vectors as given, and by the parameters.

    Returns:
      For each side `[K, N, D]`, or None where it is not wanted; and K gradients by the parameters.
    """
    by_vectors: list[jax.Array | None] = []
    by_parameters = carry.parameters
    for rows, order, gain in zip(layout.sides, layout.orders, carry.gains, strict=True):
        if gain.gradient is None:
            by_vectors.append(None)
            continue
        vectors, more = _through_points(layout, rows, gain.gradient)
        if layout.wanted.parameters and more:
            by_parameters = tuple(
                one._replace(distance=jax.tree.map(add_gradient, one.distance, m))
                for one, m in zip(by_parameters, more, strict=True)
            )
        by_vectors.append(jnp.take(vectors, jnp.argsort(order), axis=1, mode="clip"))
    return by_vectors, by_parameters


def _through_points(
    layout: Layout, rows: SortedPoints, gradient: Gradient
) -> tuple[jax.Array, list[Any]]:
    """Returns the gradients by the vectors, and by the parameters that the points depend on."""
    task, parameters = layout.task, layout.parameters
    if gradient.points is None:
        return jnp.swapaxes(gradient.vectors, 1, 2), []
    by_points = jnp.swapaxes(gradient.points, 1, 2)
    if task.product is None or task.product.points is None:
        return by_points, []
    _, pull = jax.vjp(partial(points_from, layout), rows.vectors, *parameters.distance)
    pulled = [pull(one) for one in by_points]
    by_vectors = jnp.stack([one[0] for one in pulled])
    if gradient.vectors is not None:
        by_vectors += jnp.swapaxes(gradient.vectors, 1, 2)
    return by_vectors, [tuple(one[1:]) for one in pulled]

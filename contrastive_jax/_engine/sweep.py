"""The sweep over the tiles of all pairs, on one device or in a ring of devices."""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import lax

from contrastive_jax._engine.accumulators import (
    Carry,
    added,
    kept_at,
    no_gradient,
    nothing_kept,
)
from contrastive_jax._engine.layout import Context, Rows, block_of, block_size, points_of
from contrastive_jax._engine.problem import Task
from contrastive_jax._engine.sharding import axes_of, ring_permute, varying
from contrastive_jax._engine.tile import add_tile


def walked(context: Context, sides: list[Rows], carry: Carry) -> Carry:
    """What the pairs of all devices add; of one set it is the columns that gain."""
    task = context.task
    axis = task.axis_name
    add = partial(add_tiles, context)
    rows = sides[0]
    if len(sides) == 1:
        carry = add(rows, None, carry)
        return carry if axis is None else _ring(task, rows, carry, add)
    if axis is None:
        return add(rows, sides[1], carry)

    def turn(_: Any, state: Any) -> Any:
        visitor, carry = state
        carry = add(rows, visitor, carry)
        visitor, columns = ring_permute((visitor, carry.columns), axis, 1)
        return visitor, carry._replace(columns=columns)

    return cast(Carry, lax.fori_loop(0, lax.axis_size(axis), turn, (sides[1], carry))[1])


def _ring(task: Task, rows: Rows, carry: Carry, add: Callable[..., Carry]) -> Carry:
    """Adds the pairs with the rows of other devices, which visit by half a turn of the ring.

    A pair of devices meets once, and the visitor carries home what it gains. Where their number is
    even those opposite meet twice: there each takes every other tile, as on a chessboard.
    """
    axis = task.axis_name
    devices, index = lax.axis_size(axis), lax.axis_index(axis)
    # A visitor begins with nothing, and like the rows at home with None where none is wanted.
    gained = (
        jax.tree.map(jnp.zeros_like, carry.columns),
        nothing_kept(task, len(rows.norms), rows.norms.dtype),
    )
    gained = varying(gained, axes_of(rows.vectors))

    def turn(step: jax.Array, state: Any) -> Any:
        visitor, gained, carry = state
        visitor, gained = ring_permute((visitor, gained), axis, 1)
        opposite = 2 * step == devices
        met = add(
            rows,
            visitor,
            carry._replace(
                rows=carry.columns,
                columns=gained[0],
                rows_kept=carry.columns_kept,
                columns_kept=gained[1],
            ),
            stride=jnp.where(opposite, 2, 1),
            colour=jnp.where(opposite, index // (devices // 2 or 1), 0),
        )
        home = met._replace(rows=None, columns=met.rows, rows_kept=None, columns_kept=met.rows_kept)
        return visitor, (met.columns, met.columns_kept), home

    turns = devices // 2
    _, gained, carry = lax.fori_loop(1, turns + 1, turn, (rows, gained, carry))
    gradient, kept_there = ring_permute(gained, axis, -turns)
    return carry._replace(
        columns=jax.tree.map(jnp.add, carry.columns, gradient),
        columns_kept=kept_at(task.statistics or (), carry.columns_kept, kept_there, 0),
    )


def add_tiles(
    context: Context,
    x: Rows,
    y: Rows | None,
    carry: Carry,
    *,
    stride: jax.Array | int = 1,
    colour: jax.Array | int = 0,
) -> Carry:
    """Adds the pairs of `x` and `y`, or of the rows of `x`, which are columns then.

    Of each row of tiles those from `(row + colour) % stride` on, by `stride`.
    """
    task, wanted, centre = context.task, context.wanted, context.centre
    columns = x if y is None else y
    height, width = (block_size(task, rows) for rows in (x, columns))
    tiles = len(columns.norms) // width
    kinds = len(carry.sums.loss)

    def add_row(i: jax.Array, carry: Carry) -> Carry:
        top = i * height
        block = block_of(x, top, height)
        first = i if y is None else (i + colour) % stride
        across = None
        if centre is not None:
            # The barrier keeps the transposition out of the products, of which that over the rows
            # of a tile is slow on a CPU.
            across = lax.optimization_barrier(points_of(block) - centre[None]).T

        def add_column(k: jax.Array, carry: Carry) -> Carry:
            left = (first + k * stride) * width
            other = block_of(columns, left, width)
            above = top if y is None else None
            return add_tile(context, block, across, other, above, left, carry)

        # Summed by rows of tiles first: a sum of many tiles one by one would lose digits.
        sums = jax.tree.map(jnp.zeros_like, carry.sums)
        of_block = no_gradient(task, block, kinds, transposed=False) if wanted.rows else None
        of_rows = nothing_kept(task, height, block.norms.dtype)
        begun = {"sums": sums, "rows": of_block, "rows_kept": of_rows}
        inner = carry._replace(**varying(begun, axes_of(x.vectors)))
        inner = lax.fori_loop(0, (tiles - first + stride - 1) // stride, add_column, inner)
        carry = inner._replace(
            sums=jax.tree.map(jnp.add, carry.sums, inner.sums),
            rows=carry.rows,
            rows_kept=carry.rows_kept,
        )
        whole = "columns_kept" if y is None else "rows_kept"
        if task.statistics:
            kept_now = kept_at(task.statistics, getattr(carry, whole), inner.rows_kept, top)
            carry = carry._replace(**{whole: kept_now})
        if inner.rows is None:
            return carry
        flipped = jax.tree.map(lambda g: jnp.swapaxes(g, 1, 2) if g.ndim == 3 else g, inner.rows)
        if y is None:
            return carry._replace(columns=added(carry.columns, flipped, top))
        return carry._replace(rows=added(carry.rows, flipped, top))

    return cast(Carry, lax.fori_loop(0, len(x.norms) // height, add_row, carry))

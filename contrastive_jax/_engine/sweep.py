"""The sweep over the tiles of all pairs, on one device or over a ring of devices."""

from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import lax

from contrastive_jax._engine.accumulators import (
    Carry,
    Gain,
    TileCarry,
    add_block,
    init_gradient,
    init_statistics,
)
from contrastive_jax._engine.layout import (
    Layout,
    SortedPoints,
    block_size,
    points_of,
    take_block,
)
from contrastive_jax._engine.pair_values import Tile
from contrastive_jax._engine.reductions import merge
from contrastive_jax._engine.sharding import axes_of, ring_permute, varying
from contrastive_jax._engine.tile import add_tile


def sweep(layout: Layout, carry: Carry) -> Carry:
    """Adds the pairs of all devices to the accumulators."""
    axis = layout.task.axis_name
    rows, columns = layout.sides[0], layout.sides[-1]
    if len(layout.sides) == 1:
        carry = _add_tiles(layout, rows, None, carry)
        return carry if axis is None else _half_ring(layout, carry)
    if axis is None:
        return _add_tiles(layout, rows, columns, carry)

    def turn(_: Any, state: Any) -> Any:
        remote, carry = state
        carry = _add_tiles(layout, rows, remote, carry)
        remote, gain = ring_permute((remote, carry.gains[1]), axis, 1)
        return remote, carry._replace(gains=(carry.gains[0], gain))

    return cast(Carry, lax.fori_loop(0, lax.axis_size(axis), turn, (columns, carry))[1])


def _half_ring(layout: Layout, carry: Carry) -> Carry:
    """Adds the pairs with the rows of other devices, which come by in half a turn of the ring.

    A pair of devices meets once, and the remote block carries its gain home. Where the number of
    devices is even, opposite ones meet twice: there each takes every other tile, as on a
    chessboard.
    """
    task, rows = layout.task, layout.sides[0]
    axis = task.axis_name
    devices, index = lax.axis_size(axis), lax.axis_index(axis)
    remote_gain = Gain(
        jax.tree.map(jnp.zeros_like, carry.gains[0].gradient),
        init_statistics(task, len(rows.norms), rows.norms.dtype),
    )
    remote_gain = varying(remote_gain, axes_of(rows.vectors))

    def turn(step: jax.Array, state: Any) -> Any:
        remote, remote_gain, carry = state
        remote, remote_gain = ring_permute((remote, remote_gain), axis, 1)
        opposite = 2 * step == devices
        both = _add_tiles(
            layout,
            rows,
            remote,
            carry._replace(gains=(carry.gains[0], remote_gain)),
            stride=jnp.where(opposite, 2, 1),
            colour=jnp.where(opposite, index // (devices // 2 or 1), 0),
        )
        return remote, both.gains[1], both._replace(gains=both.gains[:1])

    turns = devices // 2
    _, remote_gain, carry = lax.fori_loop(1, turns + 1, turn, (rows, remote_gain, carry))
    gradient, statistics = ring_permute(remote_gain, axis, -turns)
    own = carry.gains[0]
    total = Gain(
        jax.tree.map(jnp.add, own.gradient, gradient),
        tuple(map(merge, task.statistics or (), own.statistics, statistics)),
    )
    return carry._replace(gains=(total,))


def _add_tiles(
    layout: Layout,
    x: SortedPoints,
    y: SortedPoints | None,
    carry: Carry,
    *,
    stride: jax.Array | int = 1,
    colour: jax.Array | int = 0,
) -> Carry:
    """Adds the pairs of `x` and `y`, or without `y` those of two different rows of `x`.

    In row `i` it visits every `stride`-th tile, from `(i + colour) % stride` on. Without `y` it
    begins at tile `i`, on the diagonal.
    """
    columns = x if y is None else y
    height, width = (block_size(layout.task, rows) for rows in (x, columns))
    end = len(columns.norms)

    def add_row(i: jax.Array, state: Any) -> Any:
        top, carry = state
        block = take_block(x, top, height)
        # On the diagonal, or where the row begins.
        first = top if y is None else (i + colour) % stride * width
        seen: tuple[jax.Array, jax.Array] | None = None
        if layout.centre is not None:
            # The barrier keeps the transposition out of the products, of which that over the rows
            # of a tile is slow on a CPU.
            points = lax.optimization_barrier(points_of(block) - layout.centre[None])
            seen = points, points.T

        def add_column(state: Any) -> Any:
            left, inner = state
            other = take_block(columns, left, width)
            tile = Tile(block, other, seen, top if y is None else None, left)
            return left + stride * width, add_tile(layout, tile, inner)

        init = first, _init_row(layout, block, carry)
        _, inner = lax.while_loop(lambda state: state[0] < end, add_column, init)
        gains = (*carry.gains[:-1], inner.columns)
        gains = (add_block(layout.task, gains[0], inner.rows, top), *gains[1:])
        sums = jax.tree.map(jnp.add, carry.sums, inner.sums)
        return top + height, Carry(sums, gains, inner.parameters)

    # Positions are added up from a number that XLA does not see. Multiples of an index would become
    # part of the code that slices a block, and that of rows and of columns would be compiled
    # separately.
    zero = lax.optimization_barrier(jnp.asarray(0))
    return cast(Carry, lax.fori_loop(0, len(x.norms) // height, add_row, (zero, carry))[1])


def _init_row(layout: Layout, block: SortedPoints, carry: Carry) -> TileCarry:
    """Returns the accumulators of a row of tiles."""
    task = layout.task
    # Summed by rows of tiles first: a sum of many tiles one by one would lose digits.
    sums = jax.tree.map(jnp.zeros_like, carry.sums)
    rows = Gain(
        init_gradient(task, block, block=True) if layout.wanted.sides[0] else None,
        init_statistics(task, len(block.norms), block.norms.dtype),
    )
    sums, rows = varying((sums, rows), axes_of(block.vectors))
    return TileCarry(sums, rows, carry.gains[-1], carry.parameters)

"""All pairs of one tile, a block of rows and a block of columns.

Where a distance follows from a product of points, a tile is a matrix product (`tile_by_product`).
Pairs of points that are close, compared with their distance from the centre of all, lose digits in
such a product. They are taken out of it and recomputed:

- those of one class as a product of their differences from the first row of that class, which are
  exact, and as short as the class is compact;
- what is still too close, and close pairs of different classes, one by one, as are all pairs of a
  distance that does not follow from a product (`tile_by_pair`).
"""

import math
from functools import partial
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np

from contrastive_jax._engine.accumulators import TileCarry
from contrastive_jax._engine.layout import Layout, points_of
from contrastive_jax._engine.matmul import Product
from contrastive_jax._engine.pair_values import Tile
from contrastive_jax._engine.problem import Task
from contrastive_jax._engine.tile_by_pair import add_by_pair
from contrastive_jax._engine.tile_by_product import (
    Operands,
    add_by_product,
    inner_products,
    lazy_cond,
)


def add_tile(layout: Layout, tile: Tile, carry: TileCarry) -> TileCarry:
    """Adds the pairs of a tile to the accumulators."""
    x, y = tile.rows, tile.columns
    all_negative = (x.classes[-1] < y.classes[0]) | (y.classes[-1] < x.classes[0])
    add = partial(_add_pairs, layout, tile, all_negative)
    if layout.task.positives_only:
        return cast(TileCarry, lazy_cond(~all_negative, add, carry))
    return add(carry)


def _add_pairs(layout: Layout, tile: Tile, all_negative: jax.Array, carry: TileCarry) -> TileCarry:
    """Adds the pairs of a tile, by a product where the distance follows from one."""
    task = layout.task
    if task.product is None:
        _, weights = tile.labels_and_weights(layout)
        return add_by_pair(layout, tile, weights, carry)
    # There is a centre if the distance follows from a squared distance. The sweep has subtracted it
    # from the rows already, once for all tiles of a row.
    if layout.centre is not None and tile.seen is not None:
        return _add_by_squares(layout, tile, all_negative, carry)
    u, v = points_of(tile.rows), points_of(tile.columns)
    operands = Operands(u, u.T, v, inner_products(task, u, v))
    return add_by_product(layout, tile, operands, *tile.labels_and_weights(layout), carry)


def _add_by_squares(
    layout: Layout, tile: Tile, all_negative: jax.Array, carry: TileCarry
) -> TileCarry:
    """Adds the pairs of a tile whose distance follows from a squared distance of points."""
    task, product = layout.task, cast(Product, layout.task.product)
    refine = task.numerics.refine
    u, transposed = cast(tuple[jax.Array, jax.Array], tile.seen)
    v = points_of(tile.columns) - cast(jax.Array, layout.centre)[None]
    inner = inner_products(task, u, v)
    squares = partial(_squares, product, tile, inner)

    def add_negative(carry: TileCarry) -> TileCarry:
        operands = Operands(u, transposed, v, squares()[0])
        return add_by_product(layout, tile, operands, None, None, carry)

    def add_plain(carry: TileCarry) -> TileCarry:
        operands = Operands(u, transposed, v, squares()[0])
        labels, weights = tile.labels_and_weights(layout)
        # A function that labels pairs may ignore one, which then has weight 0 though its rows have
        # weight 1.
        own = None if task.labels is None else weights
        return add_by_product(layout, tile, operands, labels, own, carry)

    def add_any(carry: TileCarry) -> TileCarry:
        square, slack = squares()
        labels, weights = tile.labels_and_weights(layout)
        slack = jnp.where((weights > 0) & refine, slack, 1)
        weights = jnp.where(slack < 0, 0, weights)
        operands = Operands(u, transposed, v, square)
        carry = add_by_product(layout, tile, operands, labels, weights, carry)
        if not refine:
            return carry
        recompute = partial(_add_close, layout, tile, inner)
        return cast(TileCarry, lazy_cond(jnp.min(slack) < 0, recompute, carry))

    # Most tiles need less than all of this: none of their pairs is close, has a weight other than 1
    # or is of a row with itself, and in most of those all pairs are negative.
    plain = _is_plain(task, tile, inner)
    if tile.top is not None:
        plain &= tile.top != tile.left
    carry = lazy_cond(plain & all_negative, add_negative, carry)
    carry = lazy_cond(plain & ~all_negative, add_plain, carry)
    return cast(TileCarry, lazy_cond(~plain, add_any, carry))


def _relative_tolerance(x: jax.Array) -> float:
    """Returns the square, relative to the squared norms, below which it has too few digits.

    The error of a square is a few eps of the norms that it is the difference of. Above 8 sqrt(eps)
    of them it has a relative error below about sqrt(eps).
    """
    return 8 * math.sqrt(np.finfo(x.dtype).eps)


def _squares(product: Product, tile: Tile, inner: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns squared distances, and by how much they exceed their tolerance: below 0 if close."""
    x, y = tile.rows, tile.columns
    norms = x.norms[:, None] + y.norms[None]
    square = norms - 2 * inner
    tolerance = _relative_tolerance(x.norms) * norms
    if product.points is not None:
        tolerance += x.tolerance[:, None] + y.tolerance[None]
    slack = square - tolerance
    if product.bends_at_antipodes:
        slack = jnp.minimum(slack, 4 - square - tolerance)
    return square, slack


def _is_plain(task: Task, tile: Tile, inner: jax.Array) -> jax.Array:
    """Returns whether every weight is 1 and, with `refine`, no square lies within the tolerance."""
    x, y = tile.rows, tile.columns
    if not task.numerics.refine:
        return jnp.all(x.weights == 1) & jnp.all(y.weights == 1)
    least = _relative_tolerance(x.norms)
    # A pair is close if and only if its inner product exceeds a + b, where a depends on the row and
    # b on the column. One maximum tells whether any pair is: on a CPU it is a call of a library,
    # and `jnp.any` takes longer to compile than the loss of a tile. A NaN makes the comparison
    # false.
    a, b = (
        jnp.where(rows.weights == 1, 0.5 * ((1 - least) * rows.norms - rows.tolerance), -jnp.inf)
        for rows in (x, y)
    )
    is_plain = jnp.max(inner - a[:, None] - b[None]) <= 0
    if cast(Product, task.product).bends_at_antipodes:
        a, b = (0.5 * ((1 + least) * rows.norms + rows.tolerance) for rows in (x, y))
        is_plain &= jnp.max(a[:, None] + b[None] - inner) <= 2
    return is_plain


def _add_close(layout: Layout, tile: Tile, inner: jax.Array, carry: TileCarry) -> TileCarry:
    """Adds the pairs whose squared distance lies within the tolerance of the product."""
    task, x, y = layout.task, tile.rows, tile.columns
    product = cast(Product, task.product)
    # Computed again: to pass on whole tiles would slow down those without close pairs.
    labels, weights = tile.labels_and_weights(layout)
    weights = jnp.where(_squares(product, tile, inner)[1] < 0, weights, 0)
    u, v = _from_first_of_class(layout, tile)
    own = jnp.sum(u * u, axis=1)[:, None] + jnp.sum(v * v, axis=1)[None]
    square = own - 2 * inner_products(task, u, v)
    tolerance = _relative_tolerance(x.norms) * own
    if product.points is not None and not product.linear:
        tolerance += x.tolerance[:, None] + y.tolerance[None]
    # Not where both are 0: such points coincide, or the square of their difference underflows.
    same = labels == 0 if task.labels is None else x.classes[:, None] == y.classes[None]
    is_accurate = same & (square > tolerance)
    if product.bends_at_antipodes:
        is_accurate &= square < 2
    operands = Operands(u, u.T, v, square)
    accurate = jnp.where(is_accurate, weights, 0)
    carry = add_by_product(layout, tile, operands, labels, accurate, carry)
    return add_by_pair(layout, tile, jnp.where(is_accurate, 0, weights), carry)


def _from_first_of_class(layout: Layout, tile: Tile) -> tuple[jax.Array, jax.Array]:
    """Returns the points of rows and columns less the first of the tile's rows of their class.

    A column whose class no row has is taken from another row; its pairs are not used.
    """
    product = cast(Product, layout.task.product)
    x, y = tile.rows, tile.columns
    rows, columns = (x.vectors, y.vectors) if product.linear else (points_of(x), points_of(y))
    # The number of rows of lower classes, as a sum of floats, which compiles faster than a search.
    classes = jnp.concatenate([x.classes, y.classes])
    first = jnp.sum((x.classes[None] < classes[:, None]).astype(rows.dtype), axis=1)
    origins = rows[jnp.minimum(first.astype(jnp.int32), len(rows) - 1)]
    u, v = rows - origins[: len(rows)], columns - origins[len(rows) :]
    if product.linear and product.points is not None:
        u, v = (product.points(w, *layout.parameters.distance) for w in (u, v))
    return u, v

"""The walk over all pairs of two sets, tile by tile, that gives sums and gradients at once.

Rows are sorted by class and cut into blocks; a tile is a block of rows against a block of columns
(`contrastive_jax.tiles`). Of each tile only sums are kept, and for the gradient what its pairs add
to rows and columns, so that memory grows with the number of rows and not with that of pairs. One
set against itself takes the tiles on and above the diagonal. Over devices blocks visit each other.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from contrastive_jax.derivatives import differentiable_once
from contrastive_jax.dtypes import at_least_float32
from contrastive_jax.program_cache import compiled
from contrastive_jax.sharding import on_mesh_of_arguments
from contrastive_jax.tiles import (
    Carry,
    Context,
    Gradient,
    Parameters,
    Rows,
    Sums,
    Task,
    Wanted,
    add_tile,
    added,
    axes_of,
    block_of,
    kept_at,
    no_gradient,
    nothing_kept,
    plus,
    points_of,
    varying,
)

# Rows whose median is the centre of all.
_SAMPLE = 64


class Side(NamedTuple):
    """The rows on one side of the pairs."""

    vectors: jax.Array
    """`[N, D]`."""
    classes: jax.Array
    """`[N]`, -1 where a row is to be ignored."""
    weights: jax.Array
    """`[N]`."""


def pair_sums(task: Task, x: Side, y: Side | None, parameters: Parameters) -> Sums:
    """Sums over all pairs of a row of `x` and one of `y`, or of two different rows of `x`.

    Every pair of two rows of `x` counts in both orders. With an axis name the rows of all devices
    along it are paired; each device gets the sums over all pairs and the gradient of its own rows.

    Args:
      task: what is summed.
      x: rows.
      y: columns; None for those of `x`.
      parameters: of the loss and of the distance.

    Returns:
      The sums, of which the first can be differentiated once, in reverse mode, by vectors and
      parameters.
    """
    return cast(Sums, compiled(_pair_sums, task)(x, y, parameters))


def _pair_sums(task: Task, x: Side, y: Side | None, parameters: Parameters) -> Sums:
    # A pair of rows is met once and counts in both orders.
    times = 2 if y is None and len(task.distances) == 1 else 1
    kinds = 2 if task.by_label else 1

    @jax.custom_vjp
    @on_mesh_of_arguments
    def sums(x: Side, y: Side | None, parameters: Parameters) -> Sums:
        result, *_ = _walk(task, x, y, parameters, Wanted(False, False, False))
        return cast(Sums, jax.tree.map(lambda total: times * total, result))

    @on_mesh_of_arguments
    def forward(x: Side, y: Side | None, parameters: Parameters) -> Any:
        (x, y, parameters), (of_x, of_y, of) = of_marks((x, y, parameters))
        x, y, parameters = differentiable_once((x, y, parameters))
        # The gradient of parameters that make the points comes through that of the points.
        through = task.product is not None and any(of.distance)
        rows = of_x.vectors or through
        columns = rows if y is None else of_y.vectors or through
        wanted = Wanted(rows, columns, parameters=any(jax.tree.leaves(of)))
        result, *gradients = _walk(task, x, y, parameters, wanted)
        # Residuals keep one structure, whatever is wanted: a compiled program is used again where
        # something else is. So what is not wanted is empty, and dtypes are those of empty arrays.
        empty = jnp.zeros((0, 0, 0), x.vectors.dtype)
        of_x, of_y = (empty if gradient is None else gradient for gradient in gradients[:2])
        none = varying(jax.tree.map(_zeros, parameters), axes_of(x.vectors))
        of_parameters = gradients[2] or (none,) * kinds
        like = (
            x.vectors[:0],
            (x if y is None else y).vectors[:0],
            jax.tree.map(empty_like, parameters),
        )
        residuals = of_x, of_y, of_parameters, like
        return jax.tree.map(lambda total: times * total, result), residuals

    @on_mesh_of_arguments
    def backward(residuals: Any, cotangent: Sums) -> Any:
        of_x, of_y, of_parameters, like = residuals
        slope = cotangent.loss
        if isinstance(slope, jax.custom_derivatives.SymbolicZero):
            slope = jnp.zeros(kinds)
        slope = times * slope

        def of_side(gradient: jax.Array, like: jax.Array) -> Side | None:
            if not len(gradient):
                return None
            of_vectors = jnp.einsum("k,knd->nd", slope, gradient).astype(like.dtype)
            return Side(of_vectors, None, None)  # type: ignore[arg-type]

        def of_parameter(like: jax.Array | None, *parts: jax.Array) -> jax.Array | None:
            if like is None:
                return None
            terms = [s * part for s, part in zip(slope, parts, strict=True)]
            return jnp.asarray(sum(terms), like.dtype)

        return (
            of_side(of_x, like[0]),
            of_side(of_y, like[1]),
            jax.tree.map(of_parameter, like[2], *of_parameters, is_leaf=lambda x: x is None),
        )

    sums.defvjp(forward, backward, symbolic_zeros=True)
    arguments = x, y, parameters
    return cast(Sums, sums(*varying(arguments, axes_of(arguments))))


def of_marks(marked: Any) -> tuple[Any, Any]:
    """Values, and whether their gradient is asked for, of arguments with symbolic zeros."""
    is_mark = lambda leaf: hasattr(leaf, "perturbed")  # noqa: E731
    values = jax.tree.map(lambda mark: mark.value, marked, is_leaf=is_mark)
    return values, jax.tree.map(lambda mark: mark.perturbed, marked, is_leaf=is_mark)


def _zeros(parameter: jax.Array) -> jax.Array:
    """Where its gradient is added up: in float32 at least, and for an integer or a key, nothing."""
    if not jnp.issubdtype(parameter.dtype, jnp.inexact):
        return jnp.zeros(())
    return jnp.zeros(parameter.shape, at_least_float32(parameter.dtype))


def empty_like(parameter: jax.Array) -> jax.Array | None:
    """Of its dtype; None for an integer or a key, which have no gradient."""
    inexact = jnp.issubdtype(parameter.dtype, jnp.inexact)
    return jnp.zeros((0,), parameter.dtype) if inexact else None


def _walk(
    task: Task, x: Side, y: Side | None, parameters: Parameters, wanted: Wanted
) -> tuple[Sums, jax.Array | None, jax.Array | None, tuple[Parameters, ...]]:
    """Sums over the pairs of all devices, and the gradients of them, `[K, N, D]` and K times."""
    sides, orders, context = arranged(task, (x, y), parameters, wanted)
    carry = walked(context, sides, nothing_added(context, sides))
    # A NaN or an infinity shows, whatever the loss makes of its distances.
    bad = sum(zero_or_nan(side.vectors) + zero_or_nan(side.weights) for side in sides)
    sums = carry.sums._replace(loss=carry.sums.loss + bad)
    if task.axis_name is not None:
        sums = lax.psum(sums, task.axis_name)
    of_sides, of_parameters = gradients(context, sides, orders, carry)
    return sums, of_sides[0], of_sides[1] if y is not None else None, of_parameters


def arranged(
    task: Task, given: tuple[Side, Side | None], parameters: Parameters, wanted: Wanted
) -> tuple[list[Rows], list[jax.Array], Context]:
    """Rows sorted and measured, of one side or of two, their places before, and what they share."""
    sides = [_sorted(task, side) for side in given if side is not None]
    rows, context = _measured(Context(task, parameters, wanted, None, None), [s for s, _ in sides])
    return rows, [order for _, order in sides], context


def nothing_added(context: Context, sides: list[Rows]) -> Carry:
    """What a walk begins with."""
    task, parameters, wanted, *_ = context
    kinds = 2 if task.by_label else 1
    rows, columns = sides[0], sides[-1]
    dtype = rows.norms.dtype
    one_set = len(sides) == 1
    zero = jnp.zeros(kinds, dtype)
    carry = Carry(
        Sums(zero, zero, zero),
        no_gradient(task, rows, kinds) if wanted.rows and not one_set else None,
        no_gradient(task, columns, kinds) if wanted.columns else None,
        tuple(jax.tree.map(_zeros, parameters) for _ in range(kinds)) if wanted.parameters else (),
        None if one_set else nothing_kept(task, len(rows.norms), dtype),
        nothing_kept(task, len(rows.norms), dtype) if one_set else None,
    )
    return cast(Carry, varying(carry, axes_of(rows.vectors)))


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
        visitor, columns = _passed_on((visitor, carry.columns), axis, 1)
        return visitor, carry._replace(columns=columns)

    return cast(Carry, lax.fori_loop(0, lax.axis_size(axis), turn, (sides[1], carry))[1])


def gradients(
    context: Context, sides: list[Rows], orders: list[jax.Array], carry: Carry
) -> tuple[list[jax.Array | None], tuple[Parameters, ...]]:
    """Of each side the gradient of its vectors, in their order before, and that of parameters."""
    gained = [carry.columns] if len(sides) == 1 else [carry.rows, carry.columns]
    of_sides: list[jax.Array | None] = []
    of_parameters = carry.parameters
    for side, order, gradient in zip(sides, orders, gained, strict=True):
        if gradient is None:
            of_sides.append(None)
            continue
        of_vectors, more = _finished(context, side, gradient)
        if context.wanted.parameters and more:
            of_parameters = tuple(
                p._replace(distance=jax.tree.map(plus, p.distance, m))
                for p, m in zip(of_parameters, more, strict=True)
            )
        of_sides.append(jnp.take(of_vectors, jnp.argsort(order), axis=1))
    return of_sides, of_parameters


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
        visitor, gained = _passed_on((visitor, gained), axis, 1)
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
    gradient, kept_there = _passed_on(gained, axis, -turns)
    return carry._replace(
        columns=jax.tree.map(jnp.add, carry.columns, gradient),
        columns_kept=kept_at(task.statistics or (), carry.columns_kept, kept_there, 0),
    )


def _passed_on(tree: Any, axis: Any, steps: int) -> Any:
    devices = lax.axis_size(axis)
    route = [(i, (i + steps) % devices) for i in range(devices)]
    return jax.tree.map(lambda x: lax.ppermute(x, axis, route), tree)


def zero_or_nan(x: jax.Array) -> jax.Array:
    """Returns NaN if an entry is not finite, else 0; without a derivative.

    Args:
      x: floating array of any shape.

    Returns:
      A scalar that makes a loss NaN, whatever that makes of its distances.
    """
    # Scaled, as the sum of finite entries may overflow.
    return 0 * jnp.sum(lax.stop_gradient(x) * 2.0**-32)


def not_finite(x: Side, y: Side | None) -> jax.Array:
    """Returns NaN if an embedding that counts is not finite, else 0; without a derivative.

    Args:
      x: rows.
      y: columns; None for those of `x`.

    Returns:
      A scalar.
    """
    sides = [kept(side) for side in (x, y) if side is not None]
    return cast(jax.Array, sum(zero_or_nan(side.vectors) for side in sides))


def kept(side: Side) -> Side:
    """Rows in float32 at least, with zeros where they are to be ignored, whatever they hold."""
    ignored = (side.classes < 0) | (side.weights == 0)
    dtype = at_least_float32(side.vectors.dtype)
    return Side(
        jnp.where(ignored[:, None], 0, side.vectors.astype(dtype)),
        jnp.where(ignored, -1, side.classes),
        jnp.where(ignored, 0, side.weights.astype(dtype)),
    )


def _sorted(task: Task, side: Side) -> tuple[Rows, jax.Array]:
    """Rows by class, and for each sorted row its place before."""
    count = len(side.classes)
    blocks = -(-count // task.tile) or 1
    block = -(-count // (8 * blocks)) * 8 or 8
    padding = blocks * block - count
    vectors, classes, weights = kept(side)
    last = np.iinfo(np.int32).max
    classes = jnp.where(classes < 0, last, classes.astype(jnp.int32))
    order = jnp.argsort(classes, stable=True)
    zeros = jnp.zeros(blocks * block, vectors.dtype)
    rows = Rows(
        vectors=jnp.pad(vectors[order], ((0, padding), (0, 0))),
        points=None,
        norms=zeros,
        blur=zeros,
        classes=jnp.pad(classes[order], (0, padding), constant_values=last),
        weights=jnp.pad(weights[order], (0, padding)),
        places=_first_place(task, blocks * block) + jnp.arange(blocks * block, dtype=jnp.int32),
    )
    return varying(rows, axes_of(rows.vectors)), order


def _first_place(task: Task, count: int) -> jax.Array | int:
    """Place of the first row of this device among those of all."""
    return 0 if task.axis_name is None else lax.axis_index(task.axis_name) * count


def _measured(context: Context, sides: list[Rows]) -> tuple[list[Rows], Context]:
    """The rows with their points and how far those are from a centre, and the context with it."""
    task, parameters = context.task, context.parameters
    product = task.product
    if product is None:
        return sides, context
    if product.linear:
        context = context._replace(origin=_centre(task, sides))
    if product.points is not None:
        sides = [
            rows._replace(points=_points(context, rows.vectors, *parameters.distance))
            for rows in sides
        ]
    if not product.squared:
        return sides, context
    centre = _centre(task, sides)
    if product.by_anchor:
        # What a squared length adds to the gradient of a point is along the point itself.
        centre = jnp.zeros_like(centre)
    measured = []
    for rows in sides:
        points = points_of(rows)
        if product.by_anchor:
            rows = rows._replace(squares=jnp.sum(points * points, axis=1))
        rows = rows._replace(norms=jnp.sum((points - centre[None]) ** 2, axis=1))
        if product.on_sphere:
            # A vector without direction is perpendicular to every other, and its square 2.
            zero = jnp.all(points == 0, axis=1)
            rows = rows._replace(norms=rows.norms + zero.astype(rows.norms.dtype))
        if product.points is not None:
            # Points rounded by eps times their size are known to eps^0.5 from eps^0.5 of it on.
            size = jnp.sum(points * points, axis=1)
            if product.linear:
                size = jnp.sum((rows.vectors - cast(jax.Array, context.origin)[None]) ** 2, axis=1)
                size *= sum(
                    jnp.sum(factor.astype(size.dtype) ** 2) for factor in parameters.distance
                )
            rows = rows._replace(blur=64 * np.finfo(points.dtype).eps * size)
        measured.append(rows)
    return measured, context._replace(centre=centre)


def _points(context: Context, vectors: jax.Array, *of_distance: jax.Array) -> jax.Array:
    if context.origin is not None:
        vectors = vectors - context.origin[None]
    points: jax.Array = context.task.product.points(vectors, *of_distance)  # type: ignore[union-attr, misc]
    return points


def _centre(task: Task, sides: list[Rows]) -> jax.Array:
    """A point in the middle: the less far out the others, the more digits a product keeps.

    It is the median of some rows, as a mean would follow a single row that lies far away.
    """
    some = []
    for rows in sides:
        count = jnp.sum(rows.weights > 0)
        places = (jnp.arange(_SAMPLE) * count) // _SAMPLE
        some.append(points_of(rows)[places])
    centre = jnp.median(jnp.concatenate(some), axis=0)
    return centre if task.axis_name is None else lax.pmean(centre, task.axis_name)


def _finished(context: Context, rows: Rows, gradient: Gradient) -> tuple[jax.Array, list[Any]]:
    """The gradient of the vectors, and of the parameters of the points."""
    task, parameters, centre = context.task, context.parameters, context.centre
    if gradient.points is None:
        return jnp.swapaxes(gradient.vectors, 1, 2), []
    of_points = jnp.swapaxes(gradient.points, 1, 2)
    if centre is not None:
        of_points += gradient.scale[..., None] * (points_of(rows) - centre[None])[None]
    if task.product is None or task.product.points is None:
        return of_points, []
    _, pull = jax.vjp(partial(_points, context), rows.vectors, *parameters.distance)
    pulled = [pull(one) for one in of_points]
    of_vectors = jnp.stack([one[0] for one in pulled]) + jnp.swapaxes(gradient.vectors, 1, 2)
    return of_vectors, [tuple(one[1:]) for one in pulled]


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
    height, width = (_block_size(task, rows) for rows in (x, columns))
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


def _block_size(task: Task, rows: Rows) -> int:
    count = len(rows.norms)
    return count // (-(-count // task.tile))

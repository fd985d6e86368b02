"""Rows sorted by class and padded to whole blocks, with the points that products are taken of."""

from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from contrastive_jax._engine.problem import Parameters, Points, Task
from contrastive_jax._engine.sharding import axes_of, varying

# Rows whose median is the centre of all.
_SAMPLE = 64


class SortedPoints(NamedTuple):
    """The rows of one side, sorted by class and padded to whole blocks; ignored rows come last."""

    vectors: jax.Array
    """`[N, D]`."""
    points: jax.Array | None
    """Operands of the product, `[N, E]`; None where they are the vectors."""
    norms: jax.Array
    """Squared distances of the points from the centre, `[N]`."""
    tolerance: jax.Array
    """Squared distance below which the rounding of a point shows, `[N]`; 0 where it is exact."""
    classes: jax.Array
    """`[N]`, the largest integer where a row is ignored."""
    weights: jax.Array
    """`[N]`, 0 where a row is ignored."""
    indices: jax.Array
    """Indices among the rows of all devices, `[N]`."""
    anchors: Any = ()
    """Data of each row as an anchor, a tree of `[N]`."""
    squares: jax.Array | None = None
    """Squared lengths of the points, `[N]`, where a distance depends on them."""
    attributes: Any = ()
    """Attributes that a function labels pairs by, a tree of `[N, ...]`."""


class Wanted(NamedTuple):
    """Tells which gradients are computed."""

    sides: tuple[bool, ...]
    parameters: bool


class Layout(NamedTuple):
    """The sorted sides of all pairs, and the values that stay the same during a sweep over them."""

    task: Task
    parameters: Parameters
    wanted: Wanted
    sides: tuple[SortedPoints, ...]
    """Rows, and columns where these are others."""
    orders: tuple[jax.Array, ...]
    """For each side the indices that sort its rows."""
    origin: jax.Array | None = None
    """Origin of the vectors, where points are linear in them."""
    centre: jax.Array | None = None
    """Centre of the points, where distances follow from squared distances."""


def gradients_wanted(task: Task, sides: tuple[Points, ...], parameters: Parameters) -> Wanted:
    """Tells which gradients a sweep computes, from trees of bools."""
    # Parameters that the points depend on get their gradient through that of the points.
    through_points = task.product is not None and any(parameters.distance)
    vectors = tuple(bool(side.vectors) or through_points for side in sides)
    return Wanted(vectors, parameters=any(jax.tree.leaves(parameters)))


def arrange(
    task: Task, sides: tuple[Points, ...], parameters: Parameters, wanted: Wanted
) -> Layout:
    """Sorts the rows of all sides by class and computes their points."""
    each = [_sorted(task, side) for side in sides]
    layout = Layout(
        task,
        parameters,
        wanted,
        tuple(rows for rows, _ in each),
        tuple(order for _, order in each),
    )
    return layout if task.product is None else _with_points(layout)


def _sorted(task: Task, side: Points) -> tuple[SortedPoints, jax.Array]:
    """Returns rows sorted by class, and for each its index before."""
    count, tile = len(side.classes), task.numerics.tile_size
    blocks = -(-count // tile) or 1
    block = -(-count // (8 * blocks)) * 8 or 8
    padding = blocks * block - count
    vectors, classes, weights, attributes = side
    last = np.iinfo(np.int32).max
    classes = jnp.where(classes < 0, last, classes.astype(jnp.int32))
    order = jnp.argsort(classes, stable=True)
    zeros = jnp.zeros(blocks * block, vectors.dtype)
    rows = SortedPoints(
        vectors=jnp.pad(vectors[order], ((0, padding), (0, 0))),
        points=None,
        norms=zeros,
        tolerance=zeros,
        classes=jnp.pad(classes[order], (0, padding), constant_values=last),
        weights=jnp.pad(weights[order], (0, padding)),
        indices=_first_index(task, blocks * block) + jnp.arange(blocks * block, dtype=jnp.int32),
        attributes=jax.tree.map(
            lambda leaf: jnp.pad(leaf[order], [(0, padding)] + [(0, 0)] * (leaf.ndim - 1)),
            attributes,
        ),
    )
    return varying(rows, axes_of(rows.vectors)), order


def _first_index(task: Task, count: int) -> jax.Array | int:
    """Returns the index of the first row of this device among those of all."""
    return 0 if task.axis_name is None else lax.axis_index(task.axis_name) * count


def _with_points(layout: Layout) -> Layout:
    """Adds the points of all sides, their centre, and what products of them need."""
    task, parameters, sides = layout.task, layout.parameters, layout.sides
    product = task.product
    assert product is not None
    if product.linear:
        layout = layout._replace(origin=_centre(task, sides))
    if product.points is not None:
        sides = tuple(
            rows._replace(points=points_from(layout, rows.vectors, *parameters.distance))
            for rows in sides
        )
    if product.squared:
        centre = _centre(task, sides)
        if product.by_anchor:
            # What a squared length adds to the gradient of a point is along the point itself.
            centre = jnp.zeros_like(centre)
        layout = layout._replace(centre=centre)
        sides = tuple(_with_norms(layout, rows) for rows in sides)
    return layout._replace(sides=sides)


def _with_norms(layout: Layout, rows: SortedPoints) -> SortedPoints:
    """Adds the squared distances from the centre, and the tolerance for rounded points."""
    product, centre = layout.task.product, cast(jax.Array, layout.centre)
    assert product is not None
    points = points_of(rows)
    square = jnp.sum(points * points, axis=1)
    if product.by_anchor:
        rows = rows._replace(squares=square)
    rows = rows._replace(norms=jnp.sum((points - centre[None]) ** 2, axis=1))
    if product.on_sphere:
        # A vector without direction is perpendicular to every other, and its square 2.
        rows = rows._replace(norms=rows.norms + (square == 0).astype(rows.norms.dtype))
    if product.points is None:
        return rows
    # A point carries an absolute error of eps times its length, so a distance is accurate to
    # sqrt(eps) only where it exceeds sqrt(eps) times that length.
    if product.linear:
        origin = cast(jax.Array, layout.origin)
        square = jnp.sum((rows.vectors - origin[None]) ** 2, axis=1)
        square *= sum(
            jnp.sum(factor.astype(square.dtype) ** 2) for factor in layout.parameters.distance
        )
    return rows._replace(tolerance=64 * np.finfo(points.dtype).eps * square)


def points_from(layout: Layout, vectors: jax.Array, *parameters: jax.Array) -> jax.Array:
    """Maps vectors to the points whose products give the distance."""
    if layout.origin is not None:
        vectors = vectors - layout.origin[None]
    points: jax.Array = layout.task.product.points(vectors, *parameters)  # type: ignore[union-attr, misc]
    return points


def _centre(task: Task, sides: tuple[SortedPoints, ...]) -> jax.Array:
    """Returns a point in the middle: the closer all others, the more digits a product keeps.

    It is the median of some rows, as a mean would follow a single row that lies far away.
    """
    sample = []
    for rows in sides:
        count = jnp.sum(rows.weights > 0)
        indices = (jnp.arange(_SAMPLE) * count) // _SAMPLE
        sample.append(points_of(rows)[indices])
    # By a sort, as `jnp.median` takes longer to compile; a NaN comes last and does not spread.
    ascending = jnp.sort(jnp.concatenate(sample), axis=0)
    middle = len(ascending) // 2
    centre = 0.5 * (ascending[middle - 1] + ascending[middle])
    return centre if task.axis_name is None else lax.pmean(centre, task.axis_name)


def points_of(rows: SortedPoints) -> jax.Array:
    """Returns the operands of the product, which may be the vectors."""
    return rows.vectors if rows.points is None else rows.points


def block_size(task: Task, rows: SortedPoints) -> int:
    """Returns the number of rows of a block."""
    count = len(rows.norms)
    return count // (-(-count // task.numerics.tile_size))


def take_block(tree: Any, start: jax.Array | int, size: int) -> Any:
    """Slices a block of rows out of a tree of arrays."""
    # No index is negative: a program need not look.
    block = partial(lax.dynamic_slice_in_dim, allow_negative_indices=False)
    return jax.tree.map(lambda x: block(x, start, size, 0), tree)


def to_sorted(layout: Layout, tree: Any) -> Any:
    """Puts values of the rows as given into the order of the sorted rows, and pads them."""
    order, count = layout.orders[0], len(layout.sides[0].norms)

    def one(values: jax.Array) -> jax.Array:
        padding = [(0, count - len(order))] + [(0, 0)] * (values.ndim - 1)
        return jnp.pad(values[order], padding)

    return jax.tree.map(one, tree)


def from_sorted(layout: Layout, tree: Any) -> Any:
    """Returns values of the sorted rows of the first side in the order given, without padding."""
    order = layout.orders[0]
    return jax.tree.map(partial(_take, order), tree)


def _take(order: jax.Array, values: jax.Array) -> jax.Array:
    return jnp.take(values, jnp.argsort(order), axis=0, mode="clip")

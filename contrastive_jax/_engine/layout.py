"""Rows sorted by class and padded to whole blocks, with their points and norms."""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from contrastive_jax._engine.problem import Parameters, Side, Task, kept
from contrastive_jax._engine.sharding import axes_of, varying


class Rows(NamedTuple):
    """Rows sorted by class, ignored ones last with weight 0, up to a whole number of blocks."""

    vectors: jax.Array
    points: jax.Array | None
    """None where the vectors are the points."""
    norms: jax.Array
    """Squared distances of the points from the centre."""
    blur: jax.Array
    """Squared distance below which a point is a blur for having been rounded; 0 where exact."""
    classes: jax.Array
    weights: jax.Array
    places: jax.Array
    """Which of the rows of all devices each is."""
    anchors: Any = ()
    """What is known of each row as an anchor."""
    squares: jax.Array | None = None
    """Squared lengths of the points, where a distance is by them."""


class Wanted(NamedTuple):
    """Of what the gradient is asked for."""

    rows: bool
    columns: bool
    parameters: bool


class Context(NamedTuple):
    """What stays the same through a walk."""

    task: Task
    parameters: Parameters
    wanted: Wanted
    origin: jax.Array | None
    """Of the vectors, where points are linear in them and taken from it."""
    centre: jax.Array | None
    """Of the points, where squared distances are taken from it."""


# Rows whose median is the centre of all.
_SAMPLE = 64


def arranged(
    task: Task, given: tuple[Side, Side | None], parameters: Parameters, wanted: Wanted
) -> tuple[list[Rows], list[jax.Array], Context]:
    """Rows sorted and measured, of one side or of two, their places before, and what they share."""
    sides = [_sorted(task, side) for side in given if side is not None]
    rows, context = _measured(Context(task, parameters, wanted, None, None), [s for s, _ in sides])
    return rows, [order for _, order in sides], context


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
            rows._replace(points=points_from(context, rows.vectors, *parameters.distance))
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


def points_from(context: Context, vectors: jax.Array, *of_distance: jax.Array) -> jax.Array:
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


def block_size(task: Task, rows: Rows) -> int:
    count = len(rows.norms)
    return count // (-(-count // task.tile))


def points_of(rows: Rows) -> jax.Array:
    return rows.vectors if rows.points is None else rows.points


def block_of(tree: Any, start: jax.Array | int, size: int, axis: int = 0) -> Any:
    return jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, size, axis), tree)

"""Accumulators of a sweep: sums, statistics and gradients."""

from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import lax

from contrastive_jax._engine.derivatives import plus, zero_gradient
from contrastive_jax._engine.layout import Context, Rows, block_of, points_from, points_of
from contrastive_jax._engine.problem import Parameters, Sums, Task
from contrastive_jax._engine.reductions import (
    is_statistic,
    kept_of_tile,
    merged,
    none_kept,
)
from contrastive_jax._engine.sharding import axes_of, varying
from contrastive_jax.statistics import Kind


class Gradient(NamedTuple):
    """What pairs add to the gradient of rows, for each kind of pair.

    `[K, ., N]` of all rows, `[K, N, .]` of a block of rows.
    """

    points: Any
    scale: Any
    """`[K, N]`: how much of the points themselves, less the centre, is to be added."""
    vectors: Any


class Carry(NamedTuple):
    """What a walk adds to."""

    sums: Sums
    rows: Gradient | None
    columns: Gradient | None
    parameters: tuple[Parameters, ...]
    rows_kept: Any = None
    """Of each statistic what is kept for the rows, `[N]`."""
    columns_kept: Any = None


def kept_at(kinds: tuple[Kind, ...], whole: Any, part: Any, start: jax.Array | int) -> Any:
    """Merges what is kept of some rows into what is kept of all."""
    result = []
    for kind, old, new in zip(kinds, whole, part, strict=True):
        if new is None:
            result.append(old)
            continue
        size = len(new[0])
        both = merged(kind, block_of(old, start, size), new)
        result.append(
            tuple(
                lax.dynamic_update_slice_in_dim(o, b, start, 0)
                for o, b in zip(old, both, strict=True)
            )
        )
    return tuple(result)


def nothing_kept(task: Task, count: int, dtype: Any) -> Any:
    """Of each statistic what is kept before any pair."""
    return tuple(none_kept(kind, (count,), dtype) for kind in task.statistics or ())


def add_statistics(
    carry: Carry,
    seen: list[Any],
    counts: jax.Array | None,
    x: Rows,
    y: Rows,
    left: jax.Array,
    top: jax.Array | int = 0,
) -> Carry:
    """Keeps the statistics of a tile, for its rows and, where they are anchors too, its columns."""
    sides = (carry.rows_kept, 1, y.places, top), (carry.columns_kept, 0, x.places, left)
    now = []
    for tree, (kept, axis, places, start) in zip(seen, sides, strict=False):
        statistics = jax.tree.leaves(tree, is_leaf=is_statistic)
        more = [kept_of_tile(statistic, counts, axis, places) for statistic in statistics]
        now.append(kept_at(tuple(s.kind for s in statistics), kept, more, start))
    return carry._replace(
        rows_kept=now[0], columns_kept=now[1] if len(now) > 1 else carry.columns_kept
    )


def no_gradient(task: Task, rows: Rows, kinds: int, transposed: bool = True) -> Gradient:
    def zeros(*shape: int) -> jax.Array:
        return jnp.zeros((kinds, *(shape if transposed else shape[::-1])), rows.norms.dtype)

    count, size = rows.vectors.shape
    product = task.product
    return Gradient(
        points=zeros(points_of(rows).shape[1], count) if product else None,
        scale=zeros(count) if product and product.squared else None,
        vectors=None if product and product.points is None else zeros(size, count),
    )


def added_at(whole: jax.Array, k: int, part: jax.Array, start: jax.Array) -> jax.Array:
    """Adds to some of the last positions of `whole[k]`, in place."""
    begin: tuple[Any, ...] = (k, *[0] * (whole.ndim - 2), start)
    now = lax.dynamic_slice(whole, begin, (1, *part.shape))
    return lax.dynamic_update_slice(whole, now + part[None], begin)


def add_losses(
    task: Task,
    carry: Carry,
    losses: jax.Array,
    labels: jax.Array | None,
    weights: jax.Array | None,
) -> Carry:
    """Adds losses to the sums; without labels and weights as of dissimilar pairs of weight 1."""
    kinds = len(carry.sums.loss)

    def total(values: jax.Array) -> jax.Array:
        return jnp.stack(
            [
                jnp.sum(with_label(k, kinds, labels, values))
                if labels is not None or k == kinds - 1
                else jnp.zeros((), values.dtype)
                for k in range(kinds)
            ]
        )

    zeros = jnp.zeros_like(carry.sums.active)
    if weights is None:
        weights = jnp.ones_like(losses)
    more = Sums(
        loss=total(jnp.where(weights > 0, weights * losses, 0)),
        pairs=total(weights),
        active=total(jnp.where(losses != 0, weights, 0)) if task.active else zeros,
    )
    return carry._replace(sums=jax.tree.map(jnp.add, carry.sums, more))


def added(whole: Any, part: Any, start: jax.Array) -> Any:
    """Adds to some of the last positions of arrays."""

    def one(whole: jax.Array, part: jax.Array) -> jax.Array:
        axis = whole.ndim - 1
        now = lax.dynamic_slice_in_dim(whole, start, part.shape[-1], axis)
        return lax.dynamic_update_slice_in_dim(whole, now + part, start, axis)

    return jax.tree.map(one, whole, part)


def with_label(k: int, kinds: int, labels: jax.Array | None, values: jax.Array) -> jax.Array:
    return values if kinds == 1 or labels is None else jnp.where(labels == k, values, 0)


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
        tuple(jax.tree.map(zero_gradient, parameters) for _ in range(kinds))
        if wanted.parameters
        else (),
        None if one_set else nothing_kept(task, len(rows.norms), dtype),
        nothing_kept(task, len(rows.norms), dtype) if one_set else None,
    )
    return cast(Carry, varying(carry, axes_of(rows.vectors)))


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
        of_vectors, more = finished(context, side, gradient)
        if context.wanted.parameters and more:
            of_parameters = tuple(
                p._replace(distance=jax.tree.map(plus, p.distance, m))
                for p, m in zip(of_parameters, more, strict=True)
            )
        of_sides.append(jnp.take(of_vectors, jnp.argsort(order), axis=1))
    return of_sides, of_parameters


def finished(context: Context, rows: Rows, gradient: Gradient) -> tuple[jax.Array, list[Any]]:
    """The gradient of the vectors, and of the parameters of the points."""
    task, parameters, centre = context.task, context.parameters, context.centre
    if gradient.points is None:
        return jnp.swapaxes(gradient.vectors, 1, 2), []
    of_points = jnp.swapaxes(gradient.points, 1, 2)
    if centre is not None:
        of_points += gradient.scale[..., None] * (points_of(rows) - centre[None])[None]
    if task.product is None or task.product.points is None:
        return of_points, []
    _, pull = jax.vjp(partial(points_from, context), rows.vectors, *parameters.distance)
    pulled = [pull(one) for one in of_points]
    of_vectors = jnp.stack([one[0] for one in pulled]) + jnp.swapaxes(gradient.vectors, 1, 2)
    return of_vectors, [tuple(one[1:]) for one in pulled]

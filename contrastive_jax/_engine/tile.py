"""What the pairs of one tile add to sums and gradients: a block of rows against another.

Where a distance follows from a product of points, a tile is a matrix product, the loss and its
derivative W entry by entry, and two products of W with the points; the two are left out where W is
zero. Pairs of points that lie close, measured against their distance from the centre of all, lose
digits in such a product. They are taken out of it and done again:

- those of one class as a product of their differences from the first row of that class, which are
  exact and as small as the class is compact;
- what is still too close, and close pairs of different classes, by the distance itself, as are all
  pairs of a distance that does not follow from a product.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from contrastive_jax._engine.accumulators import (
    Carry,
    add_losses,
    add_statistics,
    added_at,
    with_label,
)
from contrastive_jax._engine.derivatives import plus
from contrastive_jax._engine.layout import Context, Rows, points_of
from contrastive_jax._engine.pair_values import seen_by, seen_over
from contrastive_jax._engine.problem import Task
from contrastive_jax._engine.tile_by_pair import add_by_pairs


def add_tile(
    context: Context,
    x: Rows,
    across: jax.Array | None,
    y: Rows,
    top: jax.Array | None,
    left: jax.Array,
    carry: Carry,
) -> Carry:
    """Adds the pairs of a block `x`, its points transposed beside it, and a block `y`.

    The rows of `y` begin at `left`. Where those of `x` are of the same set they begin at `top`.
    """
    apart = (x.classes[-1] < y.classes[0]) | (y.classes[-1] < x.classes[0])
    add = partial(_add_tile, context, x, across, y, top, left, apart)
    if context.task.similar_alone:
        return cast(Carry, lazy_cond(~apart, add, carry))
    return add(carry)


def _add_tile(
    context: Context,
    x: Rows,
    across: jax.Array | None,
    y: Rows,
    top: jax.Array | None,
    left: jax.Array,
    apart: jax.Array,
    carry: Carry,
) -> Carry:
    """Adds the pairs of a tile, of which `apart` says whether no two are of one class."""
    task, centre = context.task, context.centre
    product = task.product

    def labelled() -> tuple[jax.Array, jax.Array]:
        """Labels and weights of pairs."""
        labels = (x.classes[:, None] != y.classes[None]).astype(jnp.int32)
        weights = x.weights[:, None] * y.weights[None]
        if top is not None:
            places = top + jnp.arange(len(x.norms)), left + jnp.arange(len(y.norms))
            weights = jnp.where(places[0][:, None] < places[1][None], weights, 0)
        if task.similar_alone:
            weights = jnp.where(labels == 0, weights, 0)
        return labels, weights

    by_pairs = partial(add_by_pairs, context, x, y, left)
    if product is None:
        return by_pairs(*labelled(), carry)
    by_product = partial(_add_by_product, context, x, y, left)
    if centre is None or across is None:
        u, v = points_of(x), points_of(y)
        return by_product(u, u.T, v, _inner(task, u, v), *labelled(), carry)

    u, v = points_of(x) - centre[None], points_of(y) - centre[None]
    inner = _inner(task, u, v)
    # The error of a square is a few times the rounding of the norms it is the difference of.
    least = 8 * math.sqrt(np.finfo(x.norms.dtype).eps)

    def squares() -> tuple[jax.Array, jax.Array]:
        """Squared distances, and by how much they exceed what a product can tell from zero."""
        norms = x.norms[:, None] + y.norms[None]
        square = norms - 2 * inner
        unsure = least * norms
        if product.points is not None:
            unsure += x.blur[:, None] + y.blur[None]
        excess = square - unsure
        if product.bends_at_antipodes:
            excess = jnp.minimum(excess, 4 - square - unsure)
        return square, excess

    def any_close() -> jax.Array:
        """Whether a square exceeds too little, in one pass over the products."""
        # By columns: of a square below `least` times the norms, the product exceeds the norms.
        a, b = (0.5 * ((1 - least) * rows.norms - rows.blur) for rows in (x, y))
        close = jnp.any(jnp.max(inner - a[:, None], axis=0) > b)
        if product.bends_at_antipodes:
            a, b = (0.5 * ((1 + least) * rows.norms + rows.blur) for rows in (x, y))
            close |= jnp.any(jnp.max(a[:, None] - inner, axis=0) > 2 - b)
        return close

    def add_apart(carry: Carry) -> Carry:
        return by_product(u, across, v, squares()[0], None, None, carry)

    def add_plain(carry: Carry) -> Carry:
        return by_product(u, across, v, squares()[0], labelled()[0], None, carry)

    def add_any(carry: Carry) -> Carry:
        square, excess = squares()
        labels, weights = labelled()
        excess = jnp.where((weights > 0) & task.exact, excess, 1)
        weights = jnp.where(excess < 0, 0, weights)
        carry = by_product(u, across, v, square, labels, weights, carry)
        if not task.exact:
            return carry
        return cast(Carry, lazy_cond(jnp.min(excess) < 0, add_close, carry))

    def add_close(carry: Carry) -> Carry:
        # Measured again: to hand over whole tiles would slow down those that have nothing close.
        labels, weights = labelled()
        weights = jnp.where(squares()[1] < 0, weights, 0)
        rows, columns = (x.vectors, y.vectors) if product.linear else (points_of(x), points_of(y))
        first = jnp.searchsorted(x.classes, x.classes)
        same = jnp.minimum(jnp.searchsorted(x.classes, y.classes), len(rows) - 1)
        u, v = rows - rows[first], columns - rows[same]
        if product.linear and product.points is not None:
            u, v = (product.points(w, *context.parameters.distance) for w in (u, v))
        own = jnp.sum(u * u, axis=1)[:, None] + jnp.sum(v * v, axis=1)[None]
        square = own - 2 * _inner(task, u, v)
        known = least * own
        if product.points is not None and not product.linear:
            known += x.blur[:, None] + y.blur[None]
        # Not where both are 0: such points may coincide, or differ by less than has a square.
        good = (labels == 0) & (square > known)
        if product.bends_at_antipodes:
            good &= square < 2
        kept = jnp.where(good, weights, 0)
        carry = by_product(u, u.T, v, square, labels, kept, carry, direct=True)
        return by_pairs(labels, jnp.where(good, 0, weights), carry)

    # Most tiles need less than all of this: none of their pairs is close, weighs other than 1 or is
    # of a row with itself, and in most of those all are dissimilar.
    plain = jnp.all(x.weights == 1) & jnp.all(y.weights == 1)
    if task.exact:
        plain &= ~any_close()
    if top is not None:
        plain &= top != left
    carry = lazy_cond(plain & apart, add_apart, carry)
    carry = lazy_cond(plain & ~apart, add_plain, carry)
    return cast(Carry, lazy_cond(~plain, add_any, carry))


def _inner(task: Task, u: jax.Array, v: jax.Array) -> jax.Array:
    return lax.dot_general(u, v, (((1,), (1,)), ((), ())), precision=task.precision)


def _add_by_product(
    context: Context,
    x: Rows,
    y: Rows,
    left: jax.Array,
    u: jax.Array,
    across: jax.Array,
    v: jax.Array,
    values: jax.Array,
    labels: jax.Array | None,
    weights: jax.Array | None,
    carry: Carry,
    *,
    direct: bool = False,
) -> Carry:
    """Adds pairs of points of which the squared distance, or the product, is known.

    Without labels and weights all are dissimilar and of weight 1. `direct` adds the whole gradient
    at once, for points other than those of the rows.
    """
    task, parameters, wanted, *_ = context
    of, squared = task.product.of, task.product.squared  # type: ignore[union-attr]
    given: tuple[jax.Array, ...] = (values,)
    if x.squares is not None and y.squares is not None:
        given += tuple(
            jnp.broadcast_to(of_rows, values.shape)
            for of_rows in (x.squares[:, None], y.squares[None])
        )

    def seen(parameters: tuple[jax.Array, ...], given: Any, labels: Any) -> list[Any]:
        def one(label: Any, of_row: Any, of_column: Any, value: Any, *squares: Any) -> list[Any]:
            sides = squares[: len(task.distances)]
            distances = [of(value, side) for side in sides] if sides else [of(value)]
            return seen_by(task, distances, label, of_row, of_column, parameters)

        found: list[Any] = seen_over(one, x, y, labels, *given)
        return found

    def losses(parameters: tuple[jax.Array, ...], given: Any, labels: Any) -> list[jax.Array]:
        return [loss.astype(values.dtype) for loss in seen(parameters, given, labels)]

    def counted(carry: Carry, found: list[jax.Array]) -> Carry:
        for one in found if task.anchors == "none" else []:
            carry = add_losses(task, carry, one, labels, weights)
        return carry

    # A loss that is seen from both sides weighs the same from each.
    whole = jnp.ones_like(values) if weights is None else weights

    if task.statistics is not None:
        counts = None if weights is None else weights > 0
        return add_statistics(carry, seen(parameters.loss, given, labels), counts, x, y, left)
    if not any(wanted):
        return counted(carry, losses(parameters.loss, given, labels))
    found, pull = jax.vjp(lambda *given: losses(parameters.loss, given, labels), *given)
    carry = counted(carry, found)
    count = len(carry.sums.loss)
    kinds = range(count) if labels is not None else [count - 1]
    if wanted.parameters:
        of_parameters = list(carry.parameters)
        counting, their_labels = given, labels
        if weights is not None and labels is not None:
            # In place of a pair that does not count stands one that does, as its loss may have no
            # derivative.
            spare = jnp.argmax(weights > 0)
            counting = tuple(jnp.where(weights > 0, one, one.ravel()[spare]) for one in given)
            their_labels = jnp.where(weights > 0, labels, labels.ravel()[spare])
        _, pull_parameters = jax.vjp(lambda p: losses(p, counting, their_labels), parameters.loss)
        for k in kinds:
            kind = with_label(k, count, labels, whole)
            (more,) = pull_parameters([kind] * len(found))
            # Without any pair that counts there is none to stand in either.
            add_parameter = partial(plus, where=jnp.any(kind > 0))
            old = of_parameters[k]
            of_parameters[k] = old._replace(loss=jax.tree.map(add_parameter, old.loss, more))
        carry = carry._replace(parameters=tuple(of_parameters))
    if not (wanted.rows or wanted.columns):
        return carry
    slopes, *by_squares = pull([whole] * len(found))
    if weights is not None:
        slopes, *by_squares = (jnp.where(weights > 0, one, 0) for one in (slopes, *by_squares))
    if squared:
        slopes, *by_squares = (2 * one for one in (slopes, *by_squares))
    rows, columns = carry.rows, carry.columns
    dot = partial(lax.dot, precision=task.precision)
    sign = -1 if squared else 1

    def add(k: int, slope: jax.Array, state: Any) -> Any:
        rows, columns = state
        if rows is not None:
            points = sign * dot(slope, v)
            scale = jnp.sum(slope, axis=1)
            if direct:
                points += scale[:, None] * u
            rows = rows._replace(points=rows.points.at[k].add(points))
            scale = jnp.zeros_like(scale) if direct else scale
            if by_squares:
                scale += jnp.sum(with_label(k, count, labels, by_squares[0]), axis=1)
            if squared and (by_squares or not direct):
                rows = rows._replace(scale=rows.scale.at[k].add(scale))
        if columns is not None:
            points = sign * dot(across, slope)
            scale = jnp.sum(slope, axis=0)
            if direct:
                points += scale[None] * v.T
            columns = columns._replace(points=added_at(columns.points, k, points, left))
            scale = jnp.zeros_like(scale) if direct else scale
            if by_squares:
                scale += jnp.sum(with_label(k, count, labels, by_squares[1]), axis=0)
            if squared and (by_squares or not direct):
                columns = columns._replace(scale=added_at(columns.scale, k, scale, left))
        return rows, columns

    for k in kinds:
        slope = with_label(k, count, labels, slopes)
        weighs = jnp.max(jnp.abs(slope)) != 0
        rows, columns = lazy_cond(weighs, partial(add, k, slope), (rows, columns))
    return carry._replace(rows=rows, columns=columns)


def lazy_cond(condition: jax.Array, change: Callable[[Any], Any], state: Any) -> Any:
    """`change(state)` where the condition holds.

    A loop and not `lax.cond`, which under `vmap` computes both branches for all: so mapped, nothing
    is computed where the condition holds for none.
    """
    return lax.while_loop(
        lambda s: s[0], lambda s: (s[0] & False, change(s[1])), (condition, state)
    )[1]

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

import contextlib
import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from contrastive_jax._compat import pcast_varying, varying_axes
from contrastive_jax.products import Product
from contrastive_jax.sharding import evaluated_while_tracing
from contrastive_jax.statistics import (
    Kind,
    is_statistic,
    kept_of_tile,
    merged,
    none_kept,
    to_keep,
)

# Entries of the differences between vectors that are held at once where a distance is computed
# pair by pair.
_DIFFERENCES = 2**19


class Task(NamedTuple):
    """What is summed over pairs: all that a program is compiled for."""

    loss: Callable[..., Any]
    """Of a distance, a label and the parameters of the loss. With anchors it takes before those the
    place of the other row and what is known of the anchor."""
    distances: tuple[Callable[..., jax.Array], ...]
    """Of two vectors and the parameters of the distance; two where the directions differ."""
    product: Product | None
    by_label: bool
    """Whether similar and dissimilar pairs are summed apart."""
    active: bool
    """Whether active pairs are counted, which takes another pass over each tile."""
    exact: bool
    """Whether close pairs are measured again."""
    tile: int
    precision: lax.PrecisionLike
    axis_name: Any
    dense: bool = False
    """Whether the matrix of all pairs is computed at once."""
    weighted: bool = True
    """Whether rows may have weights other than 1."""
    anchors: Literal["none", "rows", "both"] = "none"
    """Whether a pair is seen from an anchor: from none, from its row, or from either side."""
    statistics: tuple[Kind, ...] | None = None
    """Kinds of the statistics that `loss` returns, which are kept for the anchors; None where it
    returns a loss."""
    similar_alone: bool = False
    """Whether dissimilar pairs add nothing."""


class Parameters(NamedTuple):
    """Of the loss and of the distance."""

    loss: tuple[jax.Array, ...]
    distance: tuple[jax.Array, ...]


class Sums(NamedTuple):
    """Weighted sums over pairs, `[K]`: over all, or over the similar and over the dissimilar."""

    loss: jax.Array
    pairs: jax.Array
    """Of ones."""
    active: jax.Array
    """Of ones, over pairs whose loss is not 0; 0 where they are not counted."""


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


class Gradient(NamedTuple):
    """What pairs add to the gradient of rows, for each kind of pair.

    `[K, ., N]` of all rows, `[K, N, .]` of a block of rows.
    """

    points: Any
    scale: Any
    """`[K, N]`: how much of the points themselves, less the centre, is to be added."""
    vectors: Any


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


class Carry(NamedTuple):
    """What a walk adds to."""

    sums: Sums
    rows: Gradient | None
    columns: Gradient | None
    parameters: tuple[Parameters, ...]
    rows_kept: Any = None
    """Of each statistic what is kept for the rows, `[N]`."""
    columns_kept: Any = None


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

    by_pairs = partial(_add_by_pairs, context, x, y, left)
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


def _seen(
    task: Task,
    distances: list[jax.Array],
    label: jax.Array,
    of_row: Any,
    of_column: Any,
    parameters: tuple[jax.Array, ...],
) -> list[Any]:
    """What the loss makes of a pair, once for each side that it is seen from apart."""
    if task.anchors == "none":
        return [task.loss(distance, label, *parameters) for distance in distances]
    (row, as_row), (column, as_column) = of_row, of_column
    # What follows from a known label alone is then known too, and may be to leave a statistic out.
    known = not isinstance(label, jax.core.Tracer)
    with evaluated_while_tracing() if known else contextlib.nullcontext():
        seen = [task.loss(distances[0], label, column, as_row, *parameters)]
        if task.anchors == "both":
            seen.append(task.loss(distances[-1], label, row, as_column, *parameters))
    if task.statistics is None:
        return seen
    return [to_keep(one, distances[0].dtype) for one in seen]


def _seen_over(one: Callable[..., Any], x: Rows, y: Rows, labels: Any, *of: Any) -> Any:
    """Maps a function of a label, of what is known of both rows, and of further entries."""
    label_axis = None if labels is None else 0
    label: Any = labels
    if labels is None:
        # Known where a program is traced, unless it has to differ along the axes of a mesh.
        with evaluated_while_tracing():
            label = jnp.int32(1)
        label = varying(label, axes_of((x.weights, *of)))
    over_columns = jax.vmap(one, (label_axis, None, 0, *[0] * len(of)))
    over_rows = jax.vmap(over_columns, (label_axis, 0, None, *[0] * len(of)))
    return over_rows(label, (x.places, x.anchors), (y.places, y.anchors), *of)


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
            return _seen(task, distances, label, of_row, of_column, parameters)

        found: list[Any] = _seen_over(one, x, y, labels, *given)
        return found

    def losses(parameters: tuple[jax.Array, ...], given: Any, labels: Any) -> list[jax.Array]:
        return [loss.astype(values.dtype) for loss in seen(parameters, given, labels)]

    def counted(carry: Carry, found: list[jax.Array]) -> Carry:
        for one in found if task.anchors == "none" else []:
            carry = _counted(task, carry, one, labels, weights)
        return carry

    # A loss that is seen from both sides weighs the same from each.
    whole = jnp.ones_like(values) if weights is None else weights

    if task.statistics is not None:
        counts = None if weights is None else weights > 0
        return _kept(carry, seen(parameters.loss, given, labels), counts, x, y, left)
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
            kind = _of_kind(k, count, labels, whole)
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
                scale += jnp.sum(_of_kind(k, count, labels, by_squares[0]), axis=1)
            if squared and (by_squares or not direct):
                rows = rows._replace(scale=rows.scale.at[k].add(scale))
        if columns is not None:
            points = sign * dot(across, slope)
            scale = jnp.sum(slope, axis=0)
            if direct:
                points += scale[None] * v.T
            columns = columns._replace(points=_added_to(columns.points, k, points, left))
            scale = jnp.zeros_like(scale) if direct else scale
            if by_squares:
                scale += jnp.sum(_of_kind(k, count, labels, by_squares[1]), axis=0)
            if squared and (by_squares or not direct):
                columns = columns._replace(scale=_added_to(columns.scale, k, scale, left))
        return rows, columns

    for k in kinds:
        slope = _of_kind(k, count, labels, slopes)
        weighs = jnp.max(jnp.abs(slope)) != 0
        rows, columns = lazy_cond(weighs, partial(add, k, slope), (rows, columns))
    return carry._replace(rows=rows, columns=columns)


def _kept(
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


def _add_by_pairs(
    context: Context,
    rows: Rows,
    columns: Rows,
    left: jax.Array,
    labels: jax.Array,
    weights: jax.Array,
    carry: Carry,
) -> Carry:
    """Adds pairs by their distance itself, some rows at a time, and only rows that have any."""
    task, parameters, wanted, *_ = context
    x, y = rows.vectors, columns.vectors
    (height, size), width = x.shape, len(y)
    step = 1
    while height % (2 * step) == 0 and 2 * step * width * size <= _DIFFERENCES:
        step *= 2
    kinds = len(carry.sums.loss)
    exact = task.product is not None and task.product.points is None

    def add(start: jax.Array, carry: Carry) -> Carry:
        of_rows, some_labels, some = block_of((rows, labels, weights), start, step)
        part = of_rows.vectors
        # In place of a pair that does not count stands one that does: a distance need not have a
        # derivative between a vector and itself, nor a loss where they are equal.
        spare = jnp.argmax(some > 0)
        stand_in = part[spare // width], y[spare % width]
        their_labels = jnp.where(some > 0, some_labels, some_labels.ravel()[spare])

        def seen(part: jax.Array, y: jax.Array, parameters: Parameters) -> list[Any]:
            def one(label: Any, of_row: Any, of_column: Any, weight: Any) -> list[Any]:
                (row, (a, as_row)), (column, (b, as_column)) = of_row, of_column
                a = jnp.where(weight > 0, a, stand_in[0])
                b = jnp.where(weight > 0, b, stand_in[1])
                found = [distance(a, b, *parameters.distance) for distance in task.distances]
                known = (row, as_row), (column, as_column)
                return _seen(task, found, label, *known, parameters.loss)

            with_vectors = (
                of_rows._replace(anchors=(part, of_rows.anchors)),
                columns._replace(anchors=(y, columns.anchors)),
            )
            found: list[Any] = _seen_over(one, *with_vectors, their_labels, some)
            return found

        def losses(part: jax.Array, y: jax.Array, parameters: Parameters) -> jax.Array:
            return jnp.stack(seen(part, y, parameters)).astype(weights.dtype)

        if task.statistics is not None:
            return _kept(carry, seen(part, y, parameters), some > 0, of_rows, columns, left, start)
        if any(wanted):
            found, pull = jax.vjp(losses, part, y, parameters)
        else:
            found = losses(part, y, parameters)
        if task.anchors == "none":
            for values in found:
                carry = _counted(task, carry, values, some_labels, some)
        if not any(wanted):
            return carry
        of_row, of_column, of_parameters = carry.rows, carry.columns, list(carry.parameters)
        for k in range(kinds):
            kind = _of_kind(k, kinds, some_labels, some)
            of_part, of_y, more = pull(jnp.broadcast_to(kind, found.shape))
            if of_row is not None:
                old = of_row.points if exact else of_row.vectors
                now = old.at[k].set(added(old[k].T, of_part.T, start).T)
                of_row = of_row._replace(**{"points" if exact else "vectors": now})
            if of_column is not None:
                old = of_column.points if exact else of_column.vectors
                now = _added_to(old, k, of_y.T, left)
                of_column = of_column._replace(**{"points" if exact else "vectors": now})
            if wanted.parameters:
                of_parameters[k] = jax.tree.map(plus, of_parameters[k], more)
        return carry._replace(rows=of_row, columns=of_column, parameters=tuple(of_parameters))

    def next_part(state: Any) -> Any:
        left_over, carry = state
        part = jnp.argmax(left_over)
        return left_over.at[part].set(False), add(part * step, carry)

    some = jnp.any(weights.reshape(height // step, -1) > 0, axis=1)
    return lax.while_loop(lambda state: jnp.any(state[0]), next_part, (some, carry))[1]


def plus(total: jax.Array, more: jax.Array, where: jax.Array | bool = True) -> jax.Array:
    """Adds to a gradient; an integer or a key has none, and its total stays."""
    return total if more.dtype == jax.dtypes.float0 else total + jnp.where(where, more, 0)


def _of_kind(k: int, kinds: int, labels: jax.Array | None, values: jax.Array) -> jax.Array:
    return values if kinds == 1 or labels is None else jnp.where(labels == k, values, 0)


def _added_to(whole: jax.Array, k: int, part: jax.Array, start: jax.Array) -> jax.Array:
    """Adds to some of the last positions of `whole[k]`, in place."""
    begin: tuple[Any, ...] = (k, *[0] * (whole.ndim - 2), start)
    now = lax.dynamic_slice(whole, begin, (1, *part.shape))
    return lax.dynamic_update_slice(whole, now + part[None], begin)


def _counted(
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
                jnp.sum(_of_kind(k, kinds, labels, values))
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


def points_of(rows: Rows) -> jax.Array:
    return rows.vectors if rows.points is None else rows.points


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


def block_of(tree: Any, start: jax.Array | int, size: int, axis: int = 0) -> Any:
    return jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, size, axis), tree)


def added(whole: Any, part: Any, start: jax.Array) -> Any:
    """Adds to some of the last positions of arrays."""

    def one(whole: jax.Array, part: jax.Array) -> jax.Array:
        axis = whole.ndim - 1
        now = lax.dynamic_slice_in_dim(whole, start, part.shape[-1], axis)
        return lax.dynamic_update_slice_in_dim(whole, now + part, start, axis)

    return jax.tree.map(one, whole, part)


def lazy_cond(condition: jax.Array, change: Callable[[Any], Any], state: Any) -> Any:
    """`change(state)` where the condition holds.

    A loop and not `lax.cond`, which under `vmap` computes both branches for all: so mapped, nothing
    is computed where the condition holds for none.
    """
    return lax.while_loop(
        lambda s: s[0], lambda s: (s[0] & False, change(s[1])), (condition, state)
    )[1]


def axes_of(tree: Any) -> frozenset[Any]:
    """The axes of a mesh along which `jax.shard_map` knows some array to differ."""
    return frozenset[Any]().union(*map(varying_axes, jax.tree.leaves(tree)))


def varying(tree: Any, axes: frozenset[Any]) -> Any:
    """Marks arrays as differing along all of these axes, as the results of a loop must be."""

    def one(x: jax.Array) -> jax.Array:
        missing = tuple(axes - axes_of(x))
        return pcast_varying(x, missing) if missing else x

    return jax.tree.map(one, tree)

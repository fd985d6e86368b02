"""Statistics that anchors keep of their pairs, and the gradient of what is made of them.

One walk over the tiles keeps them (`contrastive_jax.statistics`); statistics that depend on earlier
ones take a walk each. What the loss of an anchor makes of its statistics is ordinary JAX. Its
derivatives by them weigh the pairs, and one more walk adds up the gradient: a pair adds to a sum
its value, to a log-sum-exp its share of it, to an extreme its value if it is the one.
"""

from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import lax

from contrastive_jax._engine.accumulators import gradients, nothing_added
from contrastive_jax._engine.derivatives import differentiable_once, empty_like, of_marks
from contrastive_jax._engine.layout import Rows, Wanted, arranged
from contrastive_jax._engine.problem import Parameters, Side, Task, kept
from contrastive_jax._engine.program_cache import compiled
from contrastive_jax._engine.reductions import is_statistic, result
from contrastive_jax._engine.sharding import axes_of, on_mesh_of_arguments, varying
from contrastive_jax._engine.stages import (
    Collected,
    Stage,
    Weighed,
    flat,
    flat_values,
    slopes_of,
    values_of_stage,
)
from contrastive_jax._engine.sweep import walked


def anchor_statistics(
    task: Task,
    stages: tuple[Stage, ...],
    x: Side,
    y: Side | None,
    data: tuple[Any, ...],
    parameters: Parameters,
) -> tuple[Any, ...]:
    """Statistics over the pairs of each row of `x` with the rows of `y`, or with the others of `x`.

    With an axis name the rows of all devices along it are paired, and each device keeps the
    statistics of its own.

    Args:
      task: how the pairs are walked.
      stages: what is kept, one walk each.
      x: anchors, `[N]` rows.
      y: columns; None for the other rows of `x`.
      data: what is known of each anchor before, trees of `[N]`.
      parameters: of the stages one after the other, and of the distance.

    Returns:
      For each stage its statistics, `[N]` each. They can be differentiated once, in reverse mode,
      by vectors, data and parameters; of log-sum-exps and extremes not by what was known before.
    """
    run = compiled(_anchor_statistics, task, stages)
    return cast(tuple[Any, ...], run(x, y, data, parameters))


def _anchor_statistics(
    task: Task,
    stages: tuple[Stage, ...],
    x: Side,
    y: Side | None,
    data: tuple[Any, ...],
    parameters: Parameters,
) -> tuple[Any, ...]:
    one_set = y is None
    task = task._replace(anchors="both" if one_set else "rows")

    def walk_stages(
        x: Side, y: Side | None, data: Any, parameters: Parameters, slopes: bool
    ) -> Any:
        nothing = Wanted(False, False, False)
        sides, orders, context = arranged(task, (x, y), parameters, nothing)
        rows, *others = sides
        known = jax.tree.map(partial(_sorted_like, rows.norms, orders[0]), data)
        all_kept, all_slopes = [], []
        for k in range(len(stages)):
            of_row = jax.tree.map(lambda leaf: leaf[0], known)
            scalar, label = _example(rows)
            examples = scalar, label, label, of_row, *parameters.loss
            collected = Collected(stages, k, slopes_of(stages, k, examples) if slopes else None)
            shape = jax.eval_shape(partial(collected), *examples)
            statistics, tree = jax.tree.flatten(shape, is_leaf=is_statistic)
            kinds = tuple(one.kind for one in statistics)
            now = context._replace(
                task=task._replace(
                    loss=collected, statistics=kinds, similar_alone=stages[k].similar_alone
                )
            )
            begun = [rows._replace(anchors=known), *others]
            carry = walked(now, begun, nothing_added(now, begun))
            of_anchors = carry.columns_kept if one_set else carry.rows_kept
            values = [result(kind, one) for kind, one in zip(kinds, of_anchors, strict=True)]
            found, of_slopes = jax.tree.unflatten(tree, values)
            known = (*known, found)
            # Of an extreme the place, of a log-sum-exp its value: what tells the part of a pair.
            all_kept.append(
                [
                    one[1] if kind in ("max", "min") else jnp.where(jnp.isinf(value), 0, value)
                    for kind, one, value in zip(kinds, of_anchors, values, strict=True)
                ][: len(flat_values(found))]
            )
            all_slopes.append(of_slopes)
        found = jax.tree.map(partial(_given_like, orders[0]), known[len(data) :])
        return found, (known, all_kept, all_slopes)

    @jax.custom_vjp
    @on_mesh_of_arguments
    def statistics_of(x: Side, y: Side | None, data: Any, parameters: Parameters) -> Any:
        return walk_stages(x, y, data, parameters, False)[0]

    @on_mesh_of_arguments
    def forward(x: Side, y: Side | None, data: Any, parameters: Parameters) -> Any:
        (x, y, data, parameters), (of_x, of_y, _, of) = of_marks((x, y, data, parameters))
        x, y, data, parameters = differentiable_once((x, y, data, parameters))
        through = task.product is not None and any(of.distance)
        rows = of_x.vectors or through
        columns = rows if y is None else of_y.vectors or through
        wanted = Wanted(rows, columns, any(jax.tree.leaves(of)))
        found, state = walk_stages(x, y, data, parameters, True)
        # What is wanted has to be told in shapes, as residuals are arrays.
        flags = tuple(jnp.zeros(int(flag)) for flag in wanted)
        return found, (x, y, data, parameters, state, flags)

    @on_mesh_of_arguments
    def backward(residuals: Any, cotangents: Any) -> Any:
        x, y, data, parameters, (known, all_kept, all_slopes), flags = residuals
        wanted = Wanted(*[len(flag) > 0 for flag in flags])
        sides, orders, context = arranged(task, (x, y), parameters, wanted)
        rows, *others = sides
        counts = rows.weights > 0

        def sorted_weight(cotangent: Any, like: jax.Array) -> jax.Array:
            if isinstance(cotangent, jax.custom_derivatives.SymbolicZero):
                cotangent = jnp.zeros(len(x.classes), like.dtype)
            return jnp.where(counts, _sorted_like(rows.norms, orders[0], cotangent), 0)

        is_zero = lambda leaf: isinstance(leaf, jax.custom_derivatives.SymbolicZero)  # noqa: E731
        weights = jax.tree.map(sorted_weight, cotangents, known[len(data) :], is_leaf=is_zero)
        weights = (*jax.tree.map(jnp.zeros_like, known[: len(data)]), *weights)
        # What sums are by what was known before them, from the last stage to the first.
        extremes_alone = True
        for k in reversed(range(len(stages))):
            place = len(data) + k
            of_row = jax.tree.map(lambda leaf: leaf[0], known[:place])
            scalar, label = _example(rows)
            collected = partial(Collected(stages, k, None))
            shape = jax.eval_shape(collected, scalar, label, label, of_row, *parameters.loss)[0]
            extremes_alone &= all(one.kind in ("max", "min") for one in flat(shape))
            sums = [
                weight
                for one, weight in zip(flat(shape), flat_values(weights[place]), strict=True)
                if one.kind == "sum"
            ]
            for weight, slopes in zip(sums, all_slopes[k], strict=True):
                more = jax.tree.map(lambda slope, w=weight: w * slope, slopes)
                weights = (*jax.tree.map(jnp.add, weights[:place], more), *weights[place:])
        of_data = jax.tree.map(
            lambda weight, like: _given_like(orders[0], weight).astype(like.dtype),
            weights[: len(data)],
            data,
        )
        weighed = tuple(
            tuple(zip(flat_values(weight), at, strict=True))
            for weight, at in zip(weights[len(data) :], all_kept, strict=True)
        )
        begun = [rows._replace(anchors=(known, weighed)), *others]
        context = context._replace(task=task._replace(loss=Weighed(stages)))
        none = jax.tree.map(lambda p: None, parameters)
        of_sides: list[Any] = [None] * len(sides)
        of_parameters = none
        if any(wanted) and extremes_alone and task.axis_name is None:
            given = partial(_given_like, orders[0])
            of_sides, of_parameters = _of_picked(
                task,
                stages,
                (x, y),
                orders[-1],
                parameters,
                wanted,
                *jax.tree.map(given, (known, weighed)),
            )
        elif any(wanted):
            carry = walked(context, begun, nothing_added(context, begun))
            of_sides, found = gradients(context, begun, orders, carry)
            if wanted.parameters:
                like = jax.tree.map(empty_like, parameters)
                of_parameters = jax.tree.map(
                    lambda like, one: None if like is None else one.astype(like.dtype),
                    like,
                    found[0],
                    is_leaf=lambda leaf: leaf is None,
                )

        def of_side(gradient: Any, side: Side) -> Any:
            if gradient is None:
                return None
            return Side(gradient[0].astype(side.vectors.dtype), None, None)  # type: ignore[arg-type]

        of_y = None if y is None else of_side(of_sides[1], y)
        return of_side(of_sides[0], x), of_y, of_data, of_parameters

    statistics_of.defvjp(forward, backward, symbolic_zeros=True)
    arguments = x, y, data, parameters
    return cast(tuple[Any, ...], statistics_of(*varying(arguments, axes_of(arguments))))


def _of_picked(
    task: Task,
    stages: tuple[Stage, ...],
    sides: tuple[Side, Side | None],
    order: jax.Array,
    parameters: Parameters,
    wanted: Wanted,
    known: tuple[Any, ...],
    weighed: tuple[Any, ...],
) -> tuple[list[Any], Any]:
    """Gradients of extremes alone: of pairs that are known, without another walk."""
    x, y = kept(sides[0]), None if sides[1] is None else kept(sides[1])
    others = x if y is None else y
    at = jnp.stack([at for of_stage in weighed for _, at in of_stage])
    found = at >= 0
    # In place of an anchor that has found none stands one that has: its pair has a derivative.
    spare = jnp.argmax(found, axis=1)[:, None]
    row = jnp.where(found, jnp.arange(at.shape[1])[None], spare)
    at = jnp.where(found, at, jnp.maximum(jnp.take_along_axis(at, spare, axis=1), 0))
    at = order[at]

    def total(vectors: jax.Array, their: jax.Array, parameters: Parameters) -> jax.Array:
        def of_anchor(i: jax.Array, j: jax.Array, statistic: int, weight: jax.Array) -> jax.Array:
            between = task.distances[0](vectors[i], their[j], *parameters.distance)
            label = (x.classes[i] != others.classes[j]).astype(jnp.int32)
            stage, place = of_statistic[statistic]
            before = known[: len(known) - len(stages) + stage]
            before = jax.tree.map(lambda leaf: lax.stop_gradient(leaf[i]), before)
            one = flat(values_of_stage(stages, stage, between, label, before, parameters.loss))[
                place
            ]
            return jnp.asarray(weight * one.value)

        added = jnp.zeros((), x.vectors.dtype)
        for k, (weight, _) in enumerate(one for of_stage in weighed for one in of_stage):
            values = jax.vmap(partial(of_anchor, statistic=k))(row[k], at[k], weight=weight)
            added += jnp.sum(jnp.where(found[k], values, 0))
        return added

    of_statistic = [(k, place) for k, of in enumerate(weighed) for place in range(len(of))]
    their = others.vectors
    gradients_of = jax.grad(total, (0, 1, 2), allow_int=True)
    of_x, of_y, of_parameters = gradients_of(x.vectors, their, parameters)
    any_found = jnp.any(found)

    def none_where_nothing(gradient: jax.Array) -> jax.Array | None:
        if gradient.dtype == jax.dtypes.float0:
            return None
        return jnp.where(any_found, gradient, 0)

    of_sides: list[Any] = [None, None]
    if y is None and wanted.rows:
        of_sides = [(none_where_nothing(of_x + of_y),)]
    elif y is not None:
        of_sides = [
            (none_where_nothing(one),) if asked else None
            for one, asked in ((of_x, wanted.rows), (of_y, wanted.columns))
        ]
    if not wanted.parameters:
        return of_sides, jax.tree.map(lambda _: None, parameters)
    return of_sides, jax.tree.map(none_where_nothing, of_parameters)


def _example(rows: Rows) -> tuple[jax.Array, jax.Array]:
    """A distance and a label, or the place of a row, as pairs of these rows have them."""
    scalar = rows.norms[0]
    return scalar, varying(jnp.int32(0), axes_of(scalar))


def _sorted_like(norms: jax.Array, order: jax.Array, values: jax.Array) -> jax.Array:
    """Values of rows as given, in the order of the sorted rows and padded as they are."""
    padding = [(0, len(norms) - len(order))] + [(0, 0)] * (values.ndim - 1)
    return jnp.pad(values[order], padding)


def _given_like(order: jax.Array, values: jax.Array) -> jax.Array:
    """Values of sorted rows, in the order of the rows as given."""
    return jnp.take(values, jnp.argsort(order), axis=0)

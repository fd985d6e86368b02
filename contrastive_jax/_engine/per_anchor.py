"""Statistics of the pairs of each anchor, and the gradient of a loss that depends on them.

Each stage takes one sweep over the tiles, which reduces its statistics (`reductions`). What the
loss of an anchor makes of its statistics is ordinary JAX. Its derivatives by them weight the pairs,
and one more sweep adds up the gradient: a pair adds its value to a sum, its share to a log-sum-exp,
and its value to a maximum or a minimum if it is the pair that gave it.
"""

from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from contrastive_jax._engine.accumulators import init_carry, input_gradients
from contrastive_jax._engine.derivatives import (
    differentiable_once,
    split_marks,
)
from contrastive_jax._engine.layout import (
    Layout,
    Wanted,
    arrange,
    from_sorted,
    gradients_wanted,
    to_sorted,
)
from contrastive_jax._engine.problem import (
    Parameters,
    Points,
    Task,
    gradient_by_vectors,
)
from contrastive_jax._engine.program_cache import program_or_part
from contrastive_jax._engine.reductions import flatten_statistics, is_statistic, result
from contrastive_jax._engine.selected_pairs import selected_gradients
from contrastive_jax._engine.sharding import axes_of, on_mesh_of_arguments, varying
from contrastive_jax._engine.stages import (
    CollectStatistics,
    Stage,
    WeightedStatistic,
    WeightStatistics,
    sums_with_derivatives,
    values_of_stage,
)
from contrastive_jax._engine.sweep import sweep


def anchor_statistics(
    task: Task,
    stages: tuple[Stage, ...],
    sides: tuple[Points, ...],
    data: tuple[Any, ...],
    parameters: Parameters,
) -> tuple[Any, ...]:
    """Statistics over the pairs of each row with the columns, or with the other rows.

    With an axis name the rows of all devices along it are paired, and each device gets the
    statistics of its own.

    Args:
      task: distances of the pairs.
      stages: functions that give the statistics, one sweep each.
      sides: anchors, `[N]` rows, and columns where these are others.
      data: data of each anchor, trees of `[N]`; of `[N, P]` for P positives of a task.
      parameters: parameters of the stages one after the other, and of the distance.

    Returns:
      For each stage its statistics, `[N]` or `[N, P]` each. They can be differentiated once, in
      reverse mode, with respect to vectors, data and parameters. The derivatives of a log-sum-exp,
      a maximum or a minimum with respect to data and earlier results are not computed.
    """
    run = program_or_part(_anchor_statistics, task, stages)
    return cast(tuple[Any, ...], run(sides, data, parameters))


class _Residuals(NamedTuple):
    sides: tuple[Points, ...]
    data: tuple[Any, ...]
    parameters: Parameters
    sweeps: "_Sweeps"
    wanted: Any
    """Tree of `[0]` for each gradient that is not wanted and of `[1]` for each other, as residuals
    are arrays."""


class _Sweeps(NamedTuple):
    """The results of the sweeps of all stages, for the sorted rows."""

    results: tuple[Any, ...]
    """The data and the results of the stages."""
    selectors: list[list[jax.Array]]
    """For each statistic of each stage what tells the share of a pair in it: the index of the row
    that gave a maximum or a minimum, or the value of a log-sum-exp."""
    derivatives: list[Any]
    """For each sum of each stage its derivatives with respect to data and earlier results."""


def _anchor_statistics(
    task: Task,
    stages: tuple[Stage, ...],
    sides: tuple[Points, ...],
    data: tuple[Any, ...],
    parameters: Parameters,
) -> tuple[Any, ...]:
    task = task._replace(anchors="both" if len(sides) == 1 else "rows")

    @jax.custom_vjp
    @on_mesh_of_arguments
    def statistics(sides: Any, data: Any, parameters: Any) -> Any:
        return _sweep_stages(task, stages, sides, data, parameters, derivatives=False)[0]

    @on_mesh_of_arguments
    def forward(*marked: Any) -> Any:
        arguments, marks = split_marks(marked)
        sides, data, parameters = differentiable_once(arguments)
        by_stage, sweeps = _sweep_stages(task, stages, sides, data, parameters, derivatives=True)
        wanted = gradients_wanted(task, marks[0], marks[2])
        flags = jax.tree.map(lambda flag: jnp.zeros(int(flag)), wanted)
        return by_stage, _Residuals(sides, data, parameters, sweeps, flags)

    statistics.defvjp(
        forward,
        on_mesh_of_arguments(partial(_backward, task, stages)),
        symbolic_zeros=True,
    )
    arguments = sides, data, parameters
    return cast(tuple[Any, ...], statistics(*varying(arguments, axes_of(arguments))))


def _sweep_stages(
    task: Task,
    stages: tuple[Stage, ...],
    sides: tuple[Points, ...],
    data: Any,
    parameters: Parameters,
    *,
    derivatives: bool,
) -> tuple[tuple[Any, ...], _Sweeps]:
    """Returns the results of all stages for the rows as given, and those of their sweeps."""
    layout = arrange(task, sides, parameters, Wanted((False,) * len(sides), parameters=False))
    results = to_sorted(layout, data)
    selectors: list[list[jax.Array]] = []
    all_derivatives: list[Any] = []
    for k, stage in enumerate(stages):
        example = _example(layout, results)
        # The derivatives of sums are sums too, and are collected along with the statistics.
        table = None
        if derivatives:
            table = sums_with_derivatives(stages, k, *example, parameters.loss)
        collect = CollectStatistics(stages, k, table)
        distance, label, row = example
        # The second label stands for the index of a column, of the same type.
        shape = jax.eval_shape(partial(collect), distance, label, label, row, *parameters.loss)
        statistics, structure = jax.tree.flatten(shape, is_leaf=is_statistic)
        ops = tuple(one.op for one in statistics)
        own_task = task._replace(loss=collect, statistics=ops, positives_only=stage.positives_only)
        own = _with_anchors(layout, own_task, results)
        partials = jax.tree.map(jnp.transpose, sweep(own, init_carry(own)).gains[0].statistics)
        values = [result(op, one) for op, one in zip(ops, partials, strict=True)]
        tree, by_results = jax.tree.unflatten(structure, values)
        results = (*results, tree)
        # A maximum has the index of its row beside its value; derivatives come last.
        selectors.append(
            [
                one[1] if op in ("max", "min") else jnp.where(jnp.isinf(value), 0, value)
                for op, one, value in zip(ops, partials, values, strict=True)
            ][: len(jax.tree.leaves(tree))]
        )
        all_derivatives.append(by_results)
    by_stage = from_sorted(layout, results[len(data) :])
    return by_stage, _Sweeps(results, selectors, all_derivatives)


def _with_anchors(layout: Layout, task: Task, anchors: Any) -> Layout:
    """Returns a layout for another task, with data of the rows as anchors."""
    rows, *columns = layout.sides
    return layout._replace(task=task, sides=(rows._replace(anchors=anchors), *columns))


def _example(layout: Layout, results: Any) -> tuple[jax.Array, jax.Array, Any]:
    """Returns a distance, a label and the results of one anchor, for their dtypes and mesh axes."""
    distance = layout.sides[0].norms[0]
    label = varying(jnp.int32(0), axes_of(distance))
    return distance, label, jax.tree.map(lambda leaf: leaf[(0,) * leaf.ndim], results)


def _backward(
    task: Task, stages: tuple[Stage, ...], residuals: _Residuals, cotangents: Any
) -> tuple[Any, Any, Any]:
    """Returns the gradients by sides, data and parameters."""
    sides, data, parameters, sweeps, flags = residuals
    wanted = Wanted(
        tuple(len(flag) > 0 for flag in flags.sides), parameters=len(flags.parameters) > 0
    )
    layout = arrange(task, sides, parameters, wanted)
    ops = [_ops(layout, stages, k, sweeps.results, len(data)) for k in range(len(stages))]
    weights = _weights(layout, ops, sweeps, len(data), cotangents)
    by_data = jax.tree.map(
        lambda weight, like: weight.astype(like.dtype),
        from_sorted(layout, weights[: len(data)]),
        data,
    )
    weighted = tuple(
        tuple(map(WeightedStatistic, jax.tree.leaves(weight), selectors))
        for weight, selectors in zip(weights[len(data) :], sweeps.selectors, strict=True)
    )
    by_vectors: list[Any] = [None] * len(sides)
    by_parameters: Any = None
    if any(wanted.sides) or wanted.parameters:
        only_selected = all(op in ("max", "min") for by_stage in ops for op in by_stage)
        one_device = task.axis_name is None
        gradients = selected_gradients if only_selected and one_device else _swept_gradients
        by_vectors, by_parameters = gradients(layout, stages, sides, sweeps.results, weighted)
    if not wanted.parameters:
        by_parameters = jax.tree.map(lambda _: None, parameters)
    by_sides = tuple(
        gradient_by_vectors(side, by_vector.astype(side.vectors.dtype))
        if by_vector is not None and is_wanted
        else None
        for by_vector, side, is_wanted in zip(by_vectors, sides, wanted.sides, strict=True)
    )
    return by_sides, by_data, by_parameters


def _ops(
    layout: Layout, stages: tuple[Stage, ...], k: int, results: Any, data_count: int
) -> list[str]:
    """Returns the reductions of a stage."""
    example = _example(layout, results[: data_count + k])
    evaluate = partial(values_of_stage, stages, k)
    shape = jax.eval_shape(partial(evaluate), *example, layout.parameters.loss)
    return [one.op for one in flatten_statistics(shape)]


def _weights(
    layout: Layout, ops: list[list[str]], sweeps: _Sweeps, data_count: int, cotangents: Any
) -> tuple[Any, ...]:
    """Returns the derivatives of the loss by data and results, for the sorted rows.

    A result acts on the loss directly, by its cotangent, and through the sums of later stages.
    """
    results = sweeps.results
    counts = layout.sides[0].weights > 0

    def sorted_cotangent(cotangent: Any, like: jax.Array) -> jax.Array:
        if isinstance(cotangent, SymbolicZero):
            cotangent = jnp.zeros(cotangent.shape, like.dtype)
        cotangent = to_sorted(layout, cotangent)
        return jnp.where(counts.reshape(-1, *[1] * (cotangent.ndim - 1)), cotangent, 0)

    is_zero = lambda leaf: isinstance(leaf, SymbolicZero)  # noqa: E731
    direct = jax.tree.map(sorted_cotangent, cotangents, results[data_count:], is_leaf=is_zero)
    weights = (*jax.tree.map(jnp.zeros_like, results[:data_count]), *direct)
    for k in reversed(range(len(ops))):
        own = jax.tree.leaves(weights[data_count + k])
        sums = [weight for op, weight in zip(ops[k], own, strict=True) if op == "sum"]
        for weight, derivatives_of_sum in zip(sums, sweeps.derivatives[k], strict=True):
            more = jax.tree.map(lambda one, w=weight: w * one, derivatives_of_sum)
            earlier = jax.tree.map(jnp.add, weights[: data_count + k], more)
            weights = (*earlier, *weights[data_count + k :])
    return weights


def _swept_gradients(
    layout: Layout,
    stages: tuple[Stage, ...],
    sides: tuple[Points, ...],
    results: tuple[Any, ...],
    weighted: tuple[tuple[WeightedStatistic, ...], ...],
) -> tuple[list[Any], Any]:
    """Returns the gradients by vectors and parameters, by one more sweep over all pairs."""
    task = layout.task._replace(loss=WeightStatistics(stages, layout.task.positives))
    layout = _with_anchors(layout, task, (results, weighted))
    by_vectors, by_parameters = input_gradients(layout, sweep(layout, init_carry(layout)))
    # There is one sum.
    vectors = [None if one is None else one[0] for one in by_vectors]
    if not by_parameters:
        return vectors, None

    def like(parameter: jax.Array, gradient: jax.Array) -> jax.Array | None:
        if not jnp.issubdtype(parameter.dtype, jnp.inexact):
            return None
        return gradient.astype(parameter.dtype)

    return vectors, jax.tree.map(like, layout.parameters, by_parameters[0])

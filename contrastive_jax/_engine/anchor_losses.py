"""The loss of a batch of anchors as a function of arrays, evaluated by any engine."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import chex
import jax
import jax.numpy as jnp

from contrastive_jax._engine import row_by_row
from contrastive_jax._engine.closures import closure_convert
from contrastive_jax._engine.derivatives import substitute
from contrastive_jax._engine.engines import Engine
from contrastive_jax._engine.measured import distance_sums, measure
from contrastive_jax._engine.per_triplet import Triplets
from contrastive_jax._engine.problem import (
    Parameters,
    Points,
    Problem,
    is_graded,
    zero_or_nan_of,
)
from contrastive_jax._engine.reductions import flatten_statistics, is_statistic
from contrastive_jax._engine.sharding import axes_of, psum_once, varying
from contrastive_jax._engine.stages import Stage, has_derivatives
from contrastive_jax.losses._means import check_mean, check_means, split_mean, total_of_means
from contrastive_jax.losses.types import AnchorLoss, Mean, TripletLoss
from contrastive_jax.statistics import PositivesOnly

# A function and its arguments. The function takes an engine and the arguments, and returns the loss
# and `DistanceSums`, or `()` if distances are not summed.
LossOfArrays = tuple[Callable[..., tuple[jax.Array, Any]], tuple[Any, ...]]


def anchor_total(
    problem: Problem,
    loss: AnchorLoss,
    data: tuple[Any, ...],
    reduction: str,
    *,
    measured: bool = False,
) -> LossOfArrays:
    """Returns an anchor loss as a function of arrays.

    Args:
      problem: the pairs.
      loss: the loss of an anchor.
      data: data of each anchor, trees of `[N]`.
      reduction: `"mean"`, `"active"`, `"sum"` or `"none"`.
      measured: True if distances are summed too.

    Returns:
      The function, and its arguments.
    """
    task = problem.task
    data = checked_data(problem, data)
    stages, stage_parameters, example = make_stages(problem, loss.statistics, data)
    # Over devices a value that is the same on all of them may stay so outside of the sweep.
    function, loss_parameters = loss.loss, cast(tuple[jax.Array, ...], ())
    if task.axis_name is None:
        function, loss_parameters = closure_convert(
            "loss", loss.loss, example, check_means, shared=True
        )
    else:
        check_means("loss", jax.eval_shape(partial(function), *example))
    index = 0
    if measured:
        stages, index = measure(stages, len(data))

    def total(
        engine: Engine,
        sides: tuple[Points, ...],
        data: tuple[Any, ...],
        parameters: Parameters,
        loss_parameters: tuple[jax.Array, ...],
    ) -> tuple[jax.Array, Any]:
        by_stage = engine.anchor_statistics(task, stages, sides, data, parameters)
        distances: Any = ()
        if measured:
            own, statistics = by_stage[index]
            by_stage = (*by_stage[:index], own, *by_stage[index + 1 :])[: len(loss.statistics)]
            distances = distance_sums(statistics, sides, task.axis_name)
        counts = sides[0].classes >= 0
        # A loss of no pairs need not have a derivative.
        results = (*data, *by_stage)
        results = substitute(counts, results)
        means = jax.vmap(lambda *results: function(*results, *loss_parameters))(*results)
        if reduction == "none":
            each = total_of_means((means,) if isinstance(means, Mean) else means)
            each = jnp.broadcast_to(each, counts.shape)
            return jnp.where(counts, each + zero_or_nan_of(sides), 0), distances
        sums = [
            tuple(jnp.sum(jnp.where(counts, one, 0)) for one in split_mean(mean))
            for mean in ([means] if isinstance(means, Mean) else means)
        ]
        return _reduced(sums, sides, task.axis_name, reduction), distances

    parameters = problem.parameters._replace(loss=stage_parameters)
    return total, (problem.sides, data, parameters, loss_parameters)


def triplet_total(problem: Problem, loss: TripletLoss, reduction: str) -> LossOfArrays:
    """Returns a loss of anchors and their positives as a function of arrays.

    Args:
      problem: the pairs.
      loss: the loss of an anchor and a positive.
      reduction: `"mean"`, `"active"`, `"sum"` or `"none"`; the last is computed row by row,
        whatever the engine.

    Returns:
      The function, and its arguments.
    """
    if loss.positives_per_pass < 1:
        raise ValueError(f"positives_per_pass must be at least 1, got {loss.positives_per_pass}")
    task, scalar = problem.task, problem.examples[0]
    stages, stage_parameters, example = make_stages(problem, loss.statistics, (scalar,))
    function, loss_parameters = closure_convert("loss", loss.loss, example, check_mean)
    vector = jnp.zeros(problem.sides[0].vectors.shape[1:], scalar.dtype)
    vector = varying(vector, axes_of(scalar))

    def convert(name: str, function: Any) -> Any:
        if function is None:
            return None
        function, closed = closure_convert(name, function, (vector, vector), lambda *_: None)
        if closed:
            raise ValueError(f"{name} must not close over traced values")
        return function

    triplets = Triplets(
        _SplitMean(function),
        stages,
        convert("combine", loss.combine),
        convert("positive_distance", loss.positive_distance),
        loss.positives_per_pass if loss.combine is None else 1,
    )

    def total(engine: Engine, sides: tuple[Points, ...], *arguments: Any) -> tuple[jax.Array, Any]:
        if reduction == "none":
            sums = row_by_row.triplet_sums_by_anchor(task, triplets, sides, *arguments)
            counts = sides[0].classes >= 0
            each = total_of_means((Mean(*sums),)) + zero_or_nan_of(sides)
            return jnp.where(counts, each, 0), ()
        sums = engine.triplet_sums(task, triplets, sides, *arguments)
        return _reduced([sums], sides, task.axis_name, reduction), ()

    parameters = problem.parameters._replace(loss=stage_parameters)
    return total, (problem.sides, loss_parameters, parameters)


def _reduced(
    sums: list[tuple[jax.Array, ...]],
    sides: tuple[Points, ...],
    axis_name: Any,
    reduction: str,
) -> jax.Array:
    """Returns the loss, from sums over the anchors of this device: values, counts and active."""
    bad = zero_or_nan_of(sides)
    # It varies along no mesh axis, as the loss of all devices is the same on each.
    total = jnp.zeros((), sides[0].vectors.dtype)
    for value, *counts in sums:
        value, count, active = psum_once((value + bad, *counts), axis_name)
        count = active if reduction == "active" else count
        total += value if reduction == "sum" else value / jnp.where(count > 0, count, 1)
    return total


@dataclasses.dataclass(frozen=True)
class _SplitMean:
    """A loss that returns value, count and active count; equal for equal losses."""

    loss: Callable[..., Mean]

    def __call__(self, *arguments: Any) -> tuple[jax.Array, ...]:
        return split_mean(self.loss(*arguments))


def check_not_graded(problem: Problem) -> None:
    """Raises ValueError if labels are grades, which statistics of an anchor have no place for."""
    if is_graded(problem.task):
        raise ValueError(
            "labels returns a grade, and a loss of anchors tells positive pairs from negative "
            "ones: return the integers 0, 1 and -1, or take all_pairs_loss"
        )


def checked_data(problem: Problem, data: tuple[Any, ...]) -> tuple[Any, ...]:
    """Checks the data of anchors, and casts them to the dtype of distances."""
    distance = problem.examples[0]
    for leaf in jax.tree.leaves(data):
        shape = problem.sides[0].classes.shape
        chex.assert_shape(leaf, shape, custom_message="data must be trees of [B]")
        chex.assert_type(leaf, float)
    data = jax.tree.map(lambda leaf: jnp.asarray(leaf, distance.dtype), data)
    return cast(tuple[Any, ...], varying(data, axes_of(problem.examples)))


def make_stages(
    problem: Problem, statistics: tuple[Callable[..., Any], ...], data: tuple[Any, ...]
) -> tuple[tuple[Stage, ...], tuple[jax.Array, ...], tuple[Any, ...]]:
    """Makes stages of the functions of a loss.

    Args:
      problem: the pairs.
      statistics: functions of a distance, a label, data and earlier results.
      data: data of the anchors, of which only the structure counts.

    Returns:
      The stages; the traced values that they close over; and an example of data and results, a
      scalar for each.
    """
    scalar, label = problem.examples
    results = jax.tree.map(lambda leaf: jnp.zeros_like(scalar), data)
    stages: list[Stage] = []
    parameters: tuple[jax.Array, ...] = ()
    for function in statistics:
        positives_only = isinstance(function, PositivesOnly)
        examples = (scalar, label, *results)
        function, closed = closure_convert("statistics", function, examples, _check_statistics)
        _check_derivatives(function, examples, closed)
        stages.append(Stage(function, len(closed), positives_only))
        parameters += closed
        shape = jax.eval_shape(partial(function), *examples, *closed)
        result = jax.tree.map(lambda _: jnp.zeros_like(scalar), shape, is_leaf=is_statistic)
        results = (*results, result)
    return tuple(stages), parameters, results


def _check_derivatives(
    function: Callable[..., Any], examples: tuple[Any, ...], closed: tuple[jax.Array, ...]
) -> None:
    """Raises ValueError if a derivative of a statistic by data or results would be left out."""

    def values(results: tuple[Any, ...], distance: Any, label: Any, *closed: Any) -> Any:
        tree = function(distance, label, *results, *closed)
        return [one.value for one in flatten_statistics(tree) if one.op != "sum"]

    distance, label, *results = examples
    if any(map(any, has_derivatives(values, tuple(results), distance, label, *closed))):
        raise ValueError(
            "the value of a log-sum-exp, a largest or a smallest has a derivative by the data "
            "of the anchor, by an earlier result or by the distance of the positive, which is "
            "not taken: take that part out of the statistic and into the loss, or stop its "
            "gradient (jax.lax.stop_gradient)"
        )


def _check_statistics(name: str, shape: Any) -> None:
    for leaf in jax.tree.leaves(shape, is_leaf=is_statistic):
        if not is_statistic(leaf) or leaf.value.shape or leaf.where.shape:
            raise AssertionError(
                f"{name} must return a tree of contrastive_jax.statistics of scalars, got {leaf}"
            )

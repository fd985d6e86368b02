"""The gradient of a loss of maxima and minima, from the pairs that gave these.

A sweep stores the index of the row that gave an extreme. These pairs, one for each anchor and
statistic, are computed again and differentiated, and no sweep over all pairs is needed.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from contrastive_jax._engine.derivatives import substitute
from contrastive_jax._engine.layout import Layout, from_sorted
from contrastive_jax._engine.problem import Parameters, Points, label_of_rows
from contrastive_jax._engine.reductions import flatten_statistics
from contrastive_jax._engine.stages import Stage, WeightedStatistic, values_of_stage


def selected_gradients(
    layout: Layout,
    stages: tuple[Stage, ...],
    sides: tuple[Points, ...],
    results: tuple[Any, ...],
    weighted: tuple[tuple[WeightedStatistic, ...], ...],
) -> tuple[list[Any], Any]:
    """Returns the gradients of a loss whose statistics are all maxima or minima, on one device.

    Args:
      layout: rows sorted by class, of the sweeps.
      stages: functions that gave the statistics.
      sides: anchors, and columns where these are others, as given.
      results: data and results of the stages, for the sorted rows.
      weighted: for each stage the derivatives of the loss by its statistics, with the indices of
        the rows that gave them.

    Returns:
      The gradients by the vectors of each side, and by the parameters.
    """
    results, weighted = from_sorted(layout, (results, weighted))
    rows, columns = sides[0], sides[-1]
    order, data_count = layout.orders[-1], len(results) - len(stages)
    task = layout.task

    # `at` has the index of the anchor, and of the positive where the task has them; `j` is the
    # index of the column in the given order.
    def value_of_pair(
        stage: int,
        position: int,
        parameters: Parameters,
        distance: jax.Array,
        at: tuple[jax.Array, ...],
        j: jax.Array,
    ) -> jax.Array:
        label = label_of_rows(task, parameters, rows, at[0], columns, j)
        earlier = results[: data_count + stage]
        earlier = jax.tree.map(lambda leaf: lax.stop_gradient(leaf[at]), earlier)
        tree = values_of_stage(stages, stage, distance, label, earlier, parameters.loss)
        return jnp.asarray(flatten_statistics(tree)[position].value)

    def gradients(stage: int, position: int, weight: jax.Array, index: jax.Array) -> Any:
        # By anchor, and by positive where the task has them.
        each = partial(_over_axes, index.ndim)
        valid = index >= 0

        def total(x: jax.Array, y: jax.Array, parameters: Parameters) -> jax.Array:
            def distance_of_pair(a: jax.Array, b: jax.Array) -> jax.Array:
                return task.distances[0](a, b, *parameters.distance)

            indices = tuple(jnp.indices(index.shape)), order[jnp.maximum(index, 0)]
            at, j = substitute(valid, indices)
            # If all derivatives are finite, an anchor without a valid pair may stay: to broadcast
            # takes less time than to gather.
            if task.finite_derivatives:
                anchors = x.reshape(len(x), *[1] * (index.ndim - 1), -1)
                anchors = jnp.broadcast_to(anchors, (*index.shape, x.shape[1]))
            else:
                anchors = x[at[0]]
            distances = substitute(valid, each(distance_of_pair)(anchors, y[j]), default=1)
            values = each(partial(value_of_pair, stage, position, parameters))(distances, at, j)
            return jnp.sum(jnp.where(valid, weight * values, 0))

        def masked(gradient: jax.Array) -> jax.Array | None:
            if gradient.dtype == jax.dtypes.float0:
                return None
            if task.finite_derivatives:
                return gradient
            # `substitute` puts a valid pair in the place of the others. If there is none, the
            # derivative of a distance may be NaN.
            return jnp.where(jnp.any(valid), gradient, 0)

        by_all = jax.grad(total, (0, 1, 2), allow_int=True)
        return jax.tree.map(masked, by_all(rows.vectors, columns.vectors, layout.parameters))

    parts = [
        gradients(stage, position, *one)
        for stage, by_stage in enumerate(weighted)
        for position, one in enumerate(by_stage)
    ]
    *by_vectors, by_parameters = jax.tree.map(lambda *each: sum(each[1:], each[0]), *parts)
    if len(sides) == 1:
        by_vectors = [by_vectors[0] + by_vectors[1]]
    return by_vectors, by_parameters


def _over_axes(count: int, function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Maps a function over so many leading axes of its arguments."""
    return function if count == 0 else _over_axes(count - 1, jax.vmap(function))

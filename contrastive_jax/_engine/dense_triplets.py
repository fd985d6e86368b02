"""Sums over pairs of an anchor and a positive, from one matrix of distances.

The positives of all anchors are taken together, the first of each, then the second, so that no
matrix is held for each positive.
"""

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import lax

from contrastive_jax._engine.dense import matrix_of_pairs
from contrastive_jax._engine.derivatives import differentiable_once, substitute
from contrastive_jax._engine.matrix_statistics import statistics_of_rows
from contrastive_jax._engine.per_triplet import (
    Triplets,
    sums_over_positives,
    without_own_pairs,
)
from contrastive_jax._engine.problem import Parameters, Points, Task
from contrastive_jax._engine.program_cache import program_or_part
from contrastive_jax._engine.sharding import axes_of, on_mesh_of_arguments, varying
from contrastive_jax._engine.squared_distances import Pairs
from contrastive_jax._engine.stages import Stage


def triplet_sums(
    task: Task,
    triplets: Triplets,
    x: Points,
    y: Points | None,
    loss_parameters: tuple[jax.Array, ...],
    parameters: Parameters,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sums over all pairs of an anchor and a positive.

    Args:
      task: distances of the pairs.
      triplets: functions of an anchor and a positive.
      x: anchors, `[N]` rows.
      y: columns; None for the other rows of `x`.
      loss_parameters: parameters of the loss.
      parameters: parameters of the stages one after the other, and of the distance.

    Returns:
      Sums of the values, of their counts and of the counts of active ones. The first can be
      differentiated once, in reverse mode, by vectors and parameters.
    """
    run = program_or_part(_triplet_sums, task, triplets)
    return cast(tuple[jax.Array, jax.Array, jax.Array], run(x, y, loss_parameters, parameters))


def _triplet_sums(
    task: Task,
    triplets: Triplets,
    x: Points,
    y: Points | None,
    loss_parameters: tuple[jax.Array, ...],
    parameters: Parameters,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    if triplets.combine is None and triplets.positive_distance is None:
        pairs = matrix_of_pairs(task, x, y, parameters)
        y_classes = None if y is None else y.classes
        if task.labels is not None:
            # A distance of NaN has lost the label of its pair.
            positive = pairs.counts & (pairs.labels == 0) & ~jnp.isnan(pairs.distances)
            ordinals = _ordinals_by_row(positive)
        elif y_classes is not None and len(y_classes) > len(x.classes):
            # To compare the columns with one another would take more pairs than the matrix has.
            ordinals = _ordinals_by_row(pairs.counts & (x.classes[:, None] == y_classes[None]))
        else:
            ordinals = _ordinals(pairs, x.classes, y_classes)
        arguments = pairs.distances, parameters.loss, loss_parameters, pairs, ordinals
        sums = _sums_over_positives(triplets, *varying(arguments, axes_of(arguments)))
        return cast(tuple[jax.Array, jax.Array, jax.Array], sums)

    task, (x, *others) = without_own_pairs(task, triplets, (x,) if y is None else (x, y))
    y = others[0] if others else None

    # Distances from a vector that is made of anchor and positive change with the positive.
    def statistics(
        stages: tuple[Stage, ...],
        anchors: Points,
        columns: Points | None,
        data: tuple[Any, ...],
        parameters: Parameters,
    ) -> tuple[Any, ...]:
        pairs = matrix_of_pairs(task, anchors, columns, parameters)

        def one_positive(data: tuple[Any, ...]) -> tuple[Any, ...]:
            return statistics_of_rows(stages, pairs, data, parameters.loss)

        return jax.vmap(one_positive, 1, 1)(data)

    return sums_over_positives(statistics, task, triplets, x, y, loss_parameters, parameters)


def _ordinals(pairs: Pairs, x_classes: jax.Array, y_classes: jax.Array | None) -> jax.Array:
    """Numbers the positives of each anchor from 0 on, `[N, M]`; -1 where a pair is not positive."""
    columns = x_classes if y_classes is None else y_classes
    indices = jnp.arange(len(columns))
    before = (columns[:, None] == columns[None]) & (indices[:, None] > indices[None])
    # Numbers below 2^24, for which float32 is exact: XLA has a kernel ready for their sum on a CPU.
    ordinals = jnp.sum(before.astype(jnp.float32), axis=1)
    by_pair = jnp.broadcast_to(ordinals[None], pairs.counts.shape)
    if y_classes is None:
        by_pair -= (ordinals[None] > ordinals[:, None]).astype(jnp.float32)
    return jnp.where(pairs.counts & (pairs.labels == 0), by_pair, -1)


def _ordinals_by_row(positive: jax.Array) -> jax.Array:
    """Numbers the positives of each anchor, as `_ordinals` does, given the mask of all of them."""
    return jnp.where(positive, jnp.cumsum(positive.astype(jnp.float32), axis=1) - 1, -1)


def _sums_over_positives(triplets: Triplets, *arguments: Any) -> Any:
    """Sums of `triplet_sums` over the positives of all anchors, one of each anchor at a time.

    The loop computes the gradient along with the sums, as the number of its turns is not a constant
    and JAX does not differentiate it.
    """

    @jax.custom_vjp
    def sums(*arguments: Any) -> Any:
        zero = jnp.zeros((), arguments[0].dtype)
        init = zero, zero, zero
        return _looped(lambda k: _sums_of_one(triplets, k, *arguments), init, arguments[-1])

    @on_mesh_of_arguments
    def forward(distances: Any, parameters: Any, loss_parameters: Any, *others: Any) -> Any:
        wanted = differentiable_once((distances, parameters, loss_parameters))

        def one(k: jax.Array) -> Any:
            def value(wanted: Any) -> tuple[jax.Array, Any]:
                value, *counts = _sums_of_one(triplets, k, *wanted, *others)
                return value, counts

            (total, counts), gradient = jax.value_and_grad(value, has_aux=True)(wanted)
            return (total, *counts), gradient

        zero = jnp.zeros((), distances.dtype)
        init = (zero, zero, zero), jax.tree.map(jnp.zeros_like, wanted)
        return _looped(one, init, others[-1])

    @on_mesh_of_arguments
    def backward(gradient: Any, cotangents: Any) -> Any:
        scaled = jax.tree.map(lambda one: (cotangents[0] * one).astype(one.dtype), gradient)
        return *scaled, None, None

    sums.defvjp(forward, backward)
    return sums(*arguments)


def _looped(one: Callable[[jax.Array], Any], init: Any, ordinals: jax.Array) -> Any:
    """Adds up a function of the number of a positive of each anchor."""
    last = jnp.max(ordinals)

    def add(state: Any) -> Any:
        k, total = state
        return k + 1, jax.tree.map(jnp.add, total, one(k))

    init = varying((jnp.float32(0), init), axes_of(ordinals))
    return lax.while_loop(lambda state: state[0] <= last, add, init)[1]


def _sums_of_one(
    triplets: Triplets,
    k: jax.Array,
    distances: jax.Array,
    parameters: tuple[jax.Array, ...],
    loss_parameters: tuple[jax.Array, ...],
    pairs: Pairs,
    ordinals: jax.Array,
) -> tuple[jax.Array, ...]:
    """Sums over one positive of each anchor, that of number `k`."""
    chosen = ordinals == k
    valid = jnp.max(chosen.astype(distances.dtype), axis=1) > 0
    positive = jnp.sum(jnp.where(chosen, distances, 0), axis=1)
    pairs = pairs._replace(distances=distances)
    # An anchor without such a positive takes the results of one that has it, as a loss of no pairs
    # need not have a derivative.
    positive = substitute(valid, positive)
    results = statistics_of_rows(triplets.stages, pairs, (positive,), parameters)
    results = substitute(valid, results)
    means = jax.vmap(lambda *results: triplets.loss(*results, *loss_parameters))(positive, *results)
    sums = (jnp.sum(jnp.where(valid, one, 0)) for one in means)
    value, *counts = (one.astype(distances.dtype) for one in sums)
    return value, *map(lax.stop_gradient, counts)

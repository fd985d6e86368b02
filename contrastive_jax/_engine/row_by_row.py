"""Sums and statistics over all pairs, one row after another, in plain JAX.

They equal those of the sweeps over tiles (`over_all`, `per_anchor`, `per_triplet`), are
slower, and can be differentiated in any mode and any number of times. Memory is linear in the
number of rows, as the pairs of a row are computed again for its derivatives. They run on one
device.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import lax

from contrastive_jax._engine.derivatives import substitute
from contrastive_jax._engine.per_triplet import Triplets
from contrastive_jax._engine.problem import (
    Parameters,
    Points,
    Sums,
    Task,
    labels_of_row,
    zero_or_nan,
)
from contrastive_jax._engine.program_cache import compiled
from contrastive_jax._engine.reductions import init_partial, is_statistic, reduce_row, result
from contrastive_jax._engine.sharding import axes_of, varying
from contrastive_jax._engine.stages import Stage, values_of_stage

TripletSums = tuple[jax.Array, jax.Array, jax.Array]


def pair_sums(task: Task, sides: tuple[Points, ...], parameters: Parameters) -> Sums:
    """Sums over all pairs of two sides, or over all pairs of different rows of one side.

    Args:
      task: losses and distances of the pairs.
      sides: rows, and columns where these are others.
      parameters: parameters of the loss and of the distance.

    Returns:
      The sums, of which the first has derivatives by vectors and parameters.
    """
    return cast(Sums, compiled(_pair_sums, task)(sides, parameters))


def _pair_sums(task: Task, sides: tuple[Points, ...], parameters: Parameters) -> Sums:
    x, columns = (
        side._replace(weights=lax.stop_gradient(side.weights)) for side in (sides[0], sides[-1])
    )
    dtype = x.vectors.dtype
    count = 2 if task.by_label else 1

    def by_row(row: Points, labels: jax.Array, weights: jax.Array) -> Sums:
        vectors, column_labels = substitute(weights > 0, (columns.vectors, labels))

        def one(b: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array]:
            # Both orders of a pair are met, each from one of its rows.
            distance = task.distances[0](row.vectors, b, *parameters.distance)
            return task.loss(distance, label, *parameters.loss), distance

        losses, distances = jax.vmap(one)(vectors, column_labels)
        losses = losses.astype(dtype)

        def total(values: jax.Array) -> jax.Array:
            index = labels if count == 2 else 0 * labels
            return jnp.stack([jnp.sum(jnp.where(index == k, values, 0)) for k in range(count)])

        def weighted(values: jax.Array) -> jax.Array:
            return total(jnp.where(weights > 0, weights * values, 0))

        return Sums(
            loss=weighted(losses),
            pairs=total(weights),
            active=total(jnp.where(losses != 0, weights, 0)),
            distance=weighted(lax.stop_gradient(distances).astype(dtype)),
        )

    def by_row_or_init(index: jax.Array, row: Points) -> Sums:
        weights = row.weights * columns.weights
        if len(sides) == 1:
            weights = jnp.where(jnp.arange(len(weights)) == index, 0, weights)
        labels = labels_of_row(task, parameters, row, columns)
        if task.labels is not None:
            weights = jnp.where(labels < 0, 0, weights)
        # A row without partners has no pair that could replace another.
        sums = lax.cond(jnp.any(weights > 0), by_row, lambda *_: empty, row, labels, weights)
        return cast(Sums, sums)

    bad = zero_or_nan(x.vectors) + zero_or_nan(columns.vectors)
    zero = jnp.zeros(count, dtype) + bad
    empty = jax.tree.map(jnp.zeros_like, Sums(zero, zero, zero, zero))
    init: Sums = empty._replace(loss=zero)
    if not len(columns.weights):
        return init
    return cast(Sums, _summed(by_row_or_init, init, x))


def anchor_statistics(
    task: Task,
    stages: tuple[Stage, ...],
    sides: tuple[Points, ...],
    data: tuple[Any, ...],
    parameters: Parameters,
) -> tuple[Any, ...]:
    """Statistics over the pairs of each row with the columns, or with the other rows.

    Args:
      task: distances of the pairs.
      stages: functions that give the statistics.
      sides: anchors, `[N]` rows, and columns where these are others.
      data: data of each anchor, trees of `[N]`.
      parameters: parameters of the stages one after the other, and of the distance.

    Returns:
      For each stage its statistics, `[N]` each.
    """
    run = compiled(_anchor_statistics, task, stages)
    return cast(tuple[Any, ...], run(sides, data, parameters))


def _anchor_statistics(
    task: Task,
    stages: tuple[Stage, ...],
    sides: tuple[Points, ...],
    data: tuple[Any, ...],
    parameters: Parameters,
) -> tuple[Any, ...]:
    x, columns = sides[0], sides[-1]
    none = _statistics_of_none(stages, x, data, parameters)
    if not len(columns.weights):
        whole = jax.tree.map(lambda one: jnp.broadcast_to(one, len(x.classes)), none)
        return cast(tuple[Any, ...], whole)

    @partial(jax.checkpoint, prevent_cse=False)
    def by_row(indexed: tuple[jax.Array, Points, tuple[Any, ...]]) -> tuple[Any, ...]:
        index, row, own_data = indexed
        pairs = _partners(task, parameters, row, columns, index if len(sides) == 1 else None)

        def with_pairs(row: Points, own_data: tuple[Any, ...]) -> tuple[Any, ...]:
            return _statistics(task, stages, row.vectors, columns, pairs, own_data, parameters)

        results = lax.cond(jnp.any(pairs[1]), with_pairs, lambda *_: none, row, own_data)
        return cast(tuple[Any, ...], results)

    results = lax.map(by_row, (jnp.arange(len(x.classes)), x, data))
    return cast(tuple[Any, ...], results)


def triplet_sums(
    task: Task,
    triplets: Triplets,
    sides: tuple[Points, ...],
    loss_parameters: tuple[jax.Array, ...],
    parameters: Parameters,
) -> TripletSums:
    """Sums over all pairs of an anchor and a positive.

    Args:
      task: distances of the pairs.
      triplets: functions of an anchor and a positive.
      sides: anchors, `[N]` rows, and columns where these are others.
      loss_parameters: parameters of the loss.
      parameters: parameters of the stages one after the other, and of the distance.

    Returns:
      Sums of the values, of their counts and of the counts of active ones. The first has
      derivatives by vectors and parameters.
    """
    run = compiled(_triplet_sums, task, triplets, False)
    return cast(TripletSums, run(sides, loss_parameters, parameters))


def triplet_sums_by_anchor(
    task: Task,
    triplets: Triplets,
    sides: tuple[Points, ...],
    loss_parameters: tuple[jax.Array, ...],
    parameters: Parameters,
) -> TripletSums:
    """Sums over the positives of each anchor, `[N]`; the arguments are those of `triplet_sums`."""
    run = compiled(_triplet_sums, task, triplets, True)
    return cast(TripletSums, run(sides, loss_parameters, parameters))


def _triplet_sums(
    task: Task,
    triplets: Triplets,
    by_anchor: bool,
    sides: tuple[Points, ...],
    loss_parameters: tuple[jax.Array, ...],
    parameters: Parameters,
) -> TripletSums:
    x, columns = sides[0], sides[-1]
    dtype = x.vectors.dtype
    zero = varying(jnp.zeros((), dtype), axes_of((x, columns, loss_parameters, parameters)))
    init = (zero,) * 3

    def by_positive(row: Points, pairs: tuple[jax.Array, jax.Array], b: jax.Array) -> TripletSums:
        a = row.vectors
        between = (
            task.distances[0] if triplets.positive_distance is None else triplets.positive_distance
        )
        own = parameters.distance if triplets.positive_distance is None else ()
        positive = between(a, b, *own)
        vector = a if triplets.combine is None else triplets.combine(a, b)
        results = _statistics(
            task, triplets.stages, vector, columns, pairs, (positive,), parameters
        )
        value, count, active = triplets.loss(positive, *results, *loss_parameters)
        return value, lax.stop_gradient(count), lax.stop_gradient(active)

    def by_row(index: jax.Array, row: Points) -> TripletSums:
        pairs = _partners(task, parameters, row, columns, index if len(sides) == 1 else None)
        labels, counts = pairs

        def by_column(_: jax.Array, column: tuple[jax.Array, jax.Array]) -> TripletSums:
            is_positive, b = column
            with_positive = partial(by_positive, row, pairs)
            return cast(TripletSums, lax.cond(is_positive, with_positive, lambda _: init, b))

        are_positive = counts & (labels == 0)
        return cast(TripletSums, _summed(by_column, init, (are_positive, columns.vectors)))

    if by_anchor:
        each = jax.checkpoint(lambda indexed: by_row(*indexed), prevent_cse=False)
        rows = jnp.arange(len(x.classes)), x
        none = tuple(jnp.broadcast_to(one, x.classes.shape) for one in init)
        return cast(TripletSums, lax.map(each, rows) if len(columns.weights) else none)
    return cast(TripletSums, _summed(by_row, init, x)) if len(columns.weights) else init


def _summed(function: Callable[[jax.Array, Any], Any], init: Any, rows: Any) -> Any:
    """Adds up a function of the index and the entries of a row, over all rows."""

    @partial(jax.checkpoint, prevent_cse=False)
    def add(total: Any, indexed: tuple[jax.Array, Any]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, function(*indexed)), None

    count = len(jax.tree.leaves(rows)[0])
    return lax.scan(add, init, (jnp.arange(count), rows))[0]


def _partners(
    task: Task, parameters: Parameters, row: Points, columns: Points, own: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Returns the labels of the pairs of a row, and the mask of those that count, `[M]`.

    Args:
      task: the labels.
      parameters: values that labels depend on.
      row: the row.
      columns: the columns.
      own: index of the row among the columns; None where it is not among them.
    """
    counts = (row.classes >= 0) & (columns.classes >= 0)
    labels = labels_of_row(task, parameters, row, columns)
    if task.labels is not None:
        counts &= labels >= 0
    return labels, counts if own is None else counts & (jnp.arange(len(counts)) != own)


def _statistics(
    task: Task,
    stages: tuple[Stage, ...],
    vector: jax.Array,
    columns: Points,
    pairs: tuple[jax.Array, jax.Array],
    data: tuple[Any, ...],
    parameters: Parameters,
) -> tuple[Any, ...]:
    """Returns the statistics of the pairs of a row, with distances of columns from `vector`."""
    labels, counts = pairs
    vectors, labels = substitute(counts, (columns.vectors, labels))
    distances = jax.vmap(lambda b: task.distances[0](vector, b, *parameters.distance))(vectors)
    results = data
    for k in range(len(stages)):
        evaluate = partial(values_of_stage, stages, k)
        each = jax.vmap(evaluate, (0, 0, None, None))(distances, labels, results, parameters.loss)
        reduce = partial(reduce_row, counts=counts, dtype=distances.dtype)
        results = (*results, jax.tree.map(reduce, each, is_leaf=is_statistic))
    return results[len(data) :]


def _statistics_of_none(
    stages: tuple[Stage, ...], x: Points, data: tuple[Any, ...], parameters: Parameters
) -> tuple[Any, ...]:
    """Returns the statistics of an anchor without pairs, a scalar each."""
    dtype = x.vectors.dtype
    scalar = jax.ShapeDtypeStruct((), dtype)
    results: tuple[Any, ...] = jax.tree.map(lambda _: scalar, data)
    by_stage: list[Any] = []
    for k in range(len(stages)):
        label = jax.ShapeDtypeStruct((), jnp.int32)
        shape = jax.eval_shape(
            partial(values_of_stage, stages, k), scalar, label, results, parameters.loss
        )
        results = (*results, jax.tree.map(lambda _: scalar, shape, is_leaf=is_statistic))
        by_stage.append(
            jax.tree.map(
                lambda one: result(one.op, init_partial(one.op, (), dtype)),
                shape,
                is_leaf=is_statistic,
            )
        )
    return cast(tuple[Any, ...], varying(tuple(by_stage), axes_of((x, data, parameters))))

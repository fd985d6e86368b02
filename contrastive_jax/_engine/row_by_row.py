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

from contrastive_jax._engine.per_triplet import Triples
from contrastive_jax._engine.problem import Parameters, Side, Sums, Task, kept, zero_or_nan
from contrastive_jax._engine.program_cache import compiled
from contrastive_jax._engine.reductions import is_statistic, none_kept, reduced, result
from contrastive_jax._engine.sharding import axes_of, varying
from contrastive_jax._engine.stages import Stage, values_of_stage

TripleSums = tuple[jax.Array, jax.Array, jax.Array]


def pair_sums(task: Task, x: Side, y: Side | None, parameters: Parameters) -> Sums:
    """Sums over all pairs of a row of `x` and one of `y`, or of two different rows of `x`.

    Args:
      task: losses and distances of the pairs.
      x: rows.
      y: columns; None for the other rows of `x`.
      parameters: parameters of the loss and of the distance.

    Returns:
      The sums, of which the first has derivatives by vectors and parameters.
    """
    return cast(Sums, compiled(_pair_sums, task)(x, y, parameters))


def _pair_sums(task: Task, x: Side, y: Side | None, parameters: Parameters) -> Sums:
    x, columns = (
        side._replace(weights=lax.stop_gradient(side.weights))
        for side in (kept(x), kept(x if y is None else y))
    )
    dtype = x.vectors.dtype
    count = 2 if task.by_label else 1

    def of_row(row: Side, weights: jax.Array) -> Sums:
        labels = (row.classes != columns.classes).astype(jnp.int32)
        vectors, labels_of = _substituted(weights > 0, (columns.vectors, labels))

        def one(b: jax.Array, label: jax.Array) -> jax.Array:
            # Both orders of a pair are met, each from one of its rows.
            distance = task.distances[0](row.vectors, b, *parameters.distance)
            value: jax.Array = task.loss(distance, label, *parameters.loss)
            return value

        losses = jax.vmap(one)(vectors, labels_of).astype(dtype)

        def total(values: jax.Array) -> jax.Array:
            index = labels if count == 2 else 0 * labels
            return jnp.stack([jnp.sum(jnp.where(index == k, values, 0)) for k in range(count)])

        return Sums(
            total(jnp.where(weights > 0, weights * losses, 0)),
            total(weights),
            total(jnp.where(losses != 0, weights, 0)),
        )

    def of_row_or_nothing(index: jax.Array, row: Side) -> Sums:
        weights = row.weights * columns.weights
        if y is None:
            weights = jnp.where(jnp.arange(len(weights)) == index, 0, weights)
        # A row without partners has no pair to take the place of another either.
        sums = lax.cond(jnp.any(weights > 0), of_row, lambda *_: nothing, row, weights)
        return cast(Sums, sums)

    bad = zero_or_nan(x.vectors) + zero_or_nan(columns.vectors)
    zero = jnp.zeros(count, dtype) + bad
    nothing = jax.tree.map(jnp.zeros_like, Sums(zero, zero, zero))
    init = Sums(zero, zero * 0, zero * 0)
    if not len(columns.weights):
        return init
    return cast(Sums, _summed(of_row_or_nothing, init, x))


def anchor_statistics(
    task: Task,
    stages: tuple[Stage, ...],
    x: Side,
    y: Side | None,
    data: tuple[Any, ...],
    parameters: Parameters,
) -> tuple[Any, ...]:
    """Statistics over the pairs of each row of `x` with the rows of `y`, or with the others of `x`.

    Args:
      task: distances of the pairs.
      stages: functions that give the statistics.
      x: anchors, `[N]` rows.
      y: columns; None for the other rows of `x`.
      data: data of each anchor, trees of `[N]`.
      parameters: parameters of the stages one after the other, and of the distance.

    Returns:
      For each stage its statistics, `[N]` each.
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
    x, columns = kept(x), kept(x if y is None else y)
    none = _statistics_of_none(stages, x, data, parameters)
    if not len(columns.weights):
        whole = jax.tree.map(lambda one: jnp.broadcast_to(one, len(x.classes)), none)
        return cast(tuple[Any, ...], whole)

    @partial(jax.checkpoint, prevent_cse=False)
    def of_row(indexed: tuple[jax.Array, Side, tuple[Any, ...]]) -> tuple[Any, ...]:
        index, row, own_data = indexed
        counts = _partners(row, columns, None if y is not None else index)

        def measured(row: Side, own_data: tuple[Any, ...]) -> tuple[Any, ...]:
            return _statistics(
                task, stages, row, row.vectors, columns, counts, own_data, parameters
            )

        results = lax.cond(jnp.any(counts), measured, lambda *_: none, row, own_data)
        return cast(tuple[Any, ...], results)

    results = lax.map(of_row, (jnp.arange(len(x.classes)), x, data))
    return cast(tuple[Any, ...], results)


def triple_sums(
    task: Task,
    triples: Triples,
    x: Side,
    y: Side | None,
    of_loss: tuple[jax.Array, ...],
    parameters: Parameters,
) -> TripleSums:
    """Sums over all pairs of an anchor and a positive.

    Args:
      task: distances of the pairs.
      triples: functions of an anchor and a positive.
      x: anchors, `[N]` rows.
      y: columns; None for the other rows of `x`.
      of_loss: parameters of the loss.
      parameters: parameters of the stages one after the other, and of the distance.

    Returns:
      Sums of the values, of their counts and of the counts of active ones. The first has
      derivatives by vectors and parameters.
    """
    run = compiled(_triple_sums, task, triples, False)
    return cast(TripleSums, run(x, y, of_loss, parameters))


def triple_sums_by_anchor(
    task: Task,
    triples: Triples,
    x: Side,
    y: Side | None,
    of_loss: tuple[jax.Array, ...],
    parameters: Parameters,
) -> TripleSums:
    """Sums over the positives of each anchor, `[N]`; arguments are those of `triple_sums`."""
    run = compiled(_triple_sums, task, triples, True)
    return cast(TripleSums, run(x, y, of_loss, parameters))


def _triple_sums(
    task: Task,
    triples: Triples,
    by_anchor: bool,
    x: Side,
    y: Side | None,
    of_loss: tuple[jax.Array, ...],
    parameters: Parameters,
) -> TripleSums:
    x, columns = kept(x), kept(x if y is None else y)
    dtype = x.vectors.dtype
    zero = varying(jnp.zeros((), dtype), axes_of((x, columns, of_loss, parameters)))
    init = (zero,) * 3

    def of_positive(row: Side, counts: jax.Array, b: jax.Array) -> TripleSums:
        a = row.vectors
        between = task.distances[0] if triples.to_positive is None else triples.to_positive
        own = parameters.distance if triples.to_positive is None else ()
        positive = between(a, b, *own)
        vector = a if triples.joined is None else triples.joined(a, b)
        found = _statistics(
            task, triples.stages, row, vector, columns, counts, (positive,), parameters
        )
        value, count, active = triples.loss(positive, *found, *of_loss)
        return value, lax.stop_gradient(count), lax.stop_gradient(active)

    def of_row(index: jax.Array, row: Side) -> TripleSums:
        counts = _partners(row, columns, None if y is not None else index)

        def of_column(_: jax.Array, column: tuple[jax.Array, jax.Array]) -> TripleSums:
            is_positive, b = column
            of_two = partial(of_positive, row, counts)
            return cast(TripleSums, lax.cond(is_positive, of_two, lambda _: init, b))

        are_positive = counts & (columns.classes == row.classes)
        return cast(TripleSums, _summed(of_column, init, (are_positive, columns.vectors)))

    if by_anchor:
        each = jax.checkpoint(lambda indexed: of_row(*indexed), prevent_cse=False)
        rows = jnp.arange(len(x.classes)), x
        none = tuple(jnp.broadcast_to(one, x.classes.shape) for one in init)
        return cast(TripleSums, lax.map(each, rows) if len(columns.weights) else none)
    return cast(TripleSums, _summed(of_row, init, x)) if len(columns.weights) else init


def _summed(function: Callable[[jax.Array, Any], Any], init: Any, rows: Any) -> Any:
    """Adds up a function of the index and the entries of a row, over all rows."""

    @partial(jax.checkpoint, prevent_cse=False)
    def add(total: Any, indexed: tuple[jax.Array, Any]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, function(*indexed)), None

    count = len(jax.tree.leaves(rows)[0])
    return lax.scan(add, init, (jnp.arange(count), rows))[0]


def _partners(row: Side, columns: Side, own: jax.Array | None) -> jax.Array:
    """Tells which columns make a pair with a row, of which the row itself is `own`, `[M]`."""
    counts = (row.classes >= 0) & (columns.classes >= 0)
    return counts if own is None else counts & (jnp.arange(len(counts)) != own)


def _substituted(counts: jax.Array, columns: Any) -> Any:
    """Columns in which those that do not count are replaced by one that does.

    A distance or a loss need not have a derivative where a pair does not count.
    """
    substitute = jnp.argmax(counts)

    def one(values: jax.Array) -> jax.Array:
        return jnp.where(
            counts.reshape(-1, *[1] * (values.ndim - 1)), values, values[substitute][None]
        )

    return jax.tree.map(one, columns)


def _statistics(
    task: Task,
    stages: tuple[Stage, ...],
    row: Side,
    vector: jax.Array,
    columns: Side,
    counts: jax.Array,
    data: tuple[Any, ...],
    parameters: Parameters,
) -> tuple[Any, ...]:
    """Statistics of the pairs of one row, with the distances of the columns from `vector`."""
    labels = (row.classes != columns.classes).astype(jnp.int32)
    vectors, labels = _substituted(counts, (columns.vectors, labels))
    distances = jax.vmap(lambda b: task.distances[0](vector, b, *parameters.distance))(vectors)
    results = data
    for k in range(len(stages)):
        of_pair = partial(values_of_stage, stages, k)
        pairs = jax.vmap(of_pair, (0, 0, None, None))(distances, labels, results, parameters.loss)
        reduce = partial(reduced, counts=counts, dtype=distances.dtype)
        results = (*results, jax.tree.map(reduce, pairs, is_leaf=is_statistic))
    return results[len(data) :]


def _statistics_of_none(
    stages: tuple[Stage, ...], x: Side, data: tuple[Any, ...], parameters: Parameters
) -> tuple[Any, ...]:
    """Statistics of an anchor without pairs, one of each."""
    dtype = x.vectors.dtype
    scalar = jax.ShapeDtypeStruct((), dtype)
    results: tuple[Any, ...] = jax.tree.map(lambda _: scalar, data)
    nones: list[Any] = []
    for k in range(len(stages)):
        label = jax.ShapeDtypeStruct((), jnp.int32)
        shape = jax.eval_shape(
            partial(values_of_stage, stages, k), scalar, label, results, parameters.loss
        )
        results = (*results, jax.tree.map(lambda _: scalar, shape, is_leaf=is_statistic))
        nones.append(
            jax.tree.map(
                lambda one: result(one.kind, none_kept(one.kind, (), dtype)),
                shape,
                is_leaf=is_statistic,
            )
        )
    return cast(tuple[Any, ...], varying(tuple(nones), axes_of((x, data, parameters))))

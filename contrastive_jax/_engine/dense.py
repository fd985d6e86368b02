"""Sums and statistics over all pairs of two small sets of rows, from one matrix of distances.

They equal those of the sweeps over tiles (`over_all`, `per_anchor`, `per_triplet`). The
matrix of distances takes memory for every pair, but a small one is computed, compiled and
differentiated as fast as a few lines of `jax.numpy`: there is no loop over tiles and no sort. What
the loss makes of the distances is ordinary JAX, and the derivatives of the matrix are those of
`contrastive_jax._engine.distance_matrix`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from contrastive_jax._engine.derivatives import differentiable_once
from contrastive_jax._engine.distance_matrix import (
    Metric,
    Pairs,
    distance_matrix,
)
from contrastive_jax._engine.per_triplet import (
    Triplets,
    sums_over_positives,
    without_own_pairs,
)
from contrastive_jax._engine.problem import (
    Parameters,
    Points,
    Sums,
    Task,
    is_graded,
    masked_points,
    pair_labels,
    zero_or_nan,
)
from contrastive_jax._engine.program_cache import compiled
from contrastive_jax._engine.reductions import is_statistic
from contrastive_jax._engine.sharding import axes_of, on_mesh_of_arguments, varying
from contrastive_jax._engine.stages import Stage, values_of_stage
from contrastive_jax.statistics import Statistic

# Rows of a side up to which all pairs are computed at once, on a CPU and on a GPU. A sweep over
# 4,096 rows takes twice the time on a GPU, where the matrix and its gradient take 300 MB.
LARGEST, LARGEST_ON_GPU = 1024, 4096
# Entries of the differences of all pairs, `N x M x D`, up to which a distance that does not follow
# from a product is computed at once.
_DIFFERENCES = 2**24


def fits(task: Task, x: Points, y: Points | None) -> bool:
    """Tells whether the matrix of two sets is small enough.

    Args:
      task: the distance.
      x: rows.
      y: columns; None for the rows.

    Returns:
      Whether the functions of this module are faster than a sweep over tiles.
    """
    rows, width = x.vectors.shape
    columns = rows if y is None else len(y.classes)
    if not min(rows, columns) or max(rows, columns) > largest_side():
        return False
    if task.product is not None:
        return not task.product.bends_at_antipodes
    return rows * columns * width <= _DIFFERENCES


def largest_side() -> int:
    """Returns the number of rows of a side up to which all pairs are computed at once."""
    return LARGEST_ON_GPU if jax.default_backend() == "gpu" else LARGEST


def _program(function: Callable[..., Any], *static: Any) -> Callable[..., Any]:
    """A function that is compiled, or joins the program that is being traced."""
    # A new array is traced inside of `jax.jit` alone. There a program of its own would be traced
    # twice, once by itself and once for its derivative.
    if isinstance(jnp.zeros(()), jax.core.Tracer):
        return partial(function, *static)
    return compiled(function, *static)


def pair_sums(task: Task, x: Points, y: Points | None, parameters: Parameters) -> Sums:
    """Sums over all pairs of a row of `x` and one of `y`, or of two different rows of `x`.

    Args:
      task: losses and distances of the pairs.
      x: rows.
      y: columns; None for the other rows of `x`.
      parameters: parameters of the loss and of the distance.

    Returns:
      The sums, of which the first can be differentiated once, in reverse mode, by vectors and
      parameters.
    """
    return cast(Sums, _program(_pair_sums, task)(x, y, parameters))


def _pair_sums(task: Task, x: Points, y: Points | None, parameters: Parameters) -> Sums:
    x, y = masked_points(x), None if y is None else masked_points(y)
    columns = x if y is None else y
    symmetric = y is None and len(task.distances) == 1
    pairs = _pairs(task, x, y, parameters, symmetric=symmetric)
    matrix, labels, counts = pairs[:3]
    if is_graded(task):
        # The matrix knows negative pairs from positive ones alone.
        grades = pair_labels(task, parameters, x, columns)
        labels = jnp.where(counts, grades, labels.astype(grades.dtype))

    def of_pair(distance: jax.Array, label: jax.Array) -> jax.Array:
        return cast(jax.Array, task.loss(distance, label, *parameters.loss))

    losses = jax.vmap(jax.vmap(of_pair))(matrix, labels).astype(matrix.dtype)
    x_weights, y_weights = (lax.stop_gradient(side.weights) for side in (x, columns))
    weights = counts.astype(matrix.dtype)
    if task.weighted:
        weights = jnp.where(counts, x_weights[:, None] * y_weights[None], 0)

    def total(values: jax.Array) -> jax.Array:
        if not task.by_label:
            return jnp.sum(values)[None]
        return jnp.stack([jnp.sum(jnp.where(labels == k, values, 0)) for k in range(2)])

    bad = pairs.bad
    if task.weighted:
        bad += zero_or_nan(x_weights) + zero_or_nan(y_weights)
    number = total(weights) if task.weighted or task.by_label else pairs.number[None]

    def weighted(values: jax.Array) -> jax.Array:
        return total(jnp.where(weights > 0, weights * values, 0))

    return Sums(
        loss=weighted(losses) + bad,
        pairs=number,
        active=total(jnp.where(losses != 0, weights, 0)) if task.active else 0 * number,
        distance=weighted(lax.stop_gradient(matrix)) if task.measured else 0 * number,
    )


def anchor_statistics(
    task: Task,
    stages: tuple[Stage, ...],
    x: Points,
    y: Points | None,
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
      For each stage its statistics, `[N]` each. They can be differentiated once, in reverse mode.
    """
    run = _program(_anchor_statistics, task, stages)
    return cast(tuple[Any, ...], run(x, y, data, parameters))


def _anchor_statistics(
    task: Task,
    stages: tuple[Stage, ...],
    x: Points,
    y: Points | None,
    data: tuple[Any, ...],
    parameters: Parameters,
) -> tuple[Any, ...]:
    x, y = masked_points(x), None if y is None else masked_points(y)
    pairs = _pairs(task, x, y, parameters)
    return _statistics(stages, pairs, data, parameters.loss)


def triple_sums(
    task: Task,
    triplets: Triplets,
    x: Points,
    y: Points | None,
    of_loss: tuple[jax.Array, ...],
    parameters: Parameters,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sums over all pairs of an anchor and a positive.

    Args:
      task: distances of the pairs.
      triplets: functions of an anchor and a positive.
      x: anchors, `[N]` rows.
      y: columns; None for the other rows of `x`.
      of_loss: parameters of the loss.
      parameters: parameters of the stages one after the other, and of the distance.

    Returns:
      Sums of the values, of their counts and of the counts of active ones. The first can be
      differentiated once, in reverse mode, by vectors and parameters.
    """
    run = _program(_triple_sums, task, triplets)
    return cast(tuple[jax.Array, jax.Array, jax.Array], run(x, y, of_loss, parameters))


def _triple_sums(
    task: Task,
    triplets: Triplets,
    x: Points,
    y: Points | None,
    of_loss: tuple[jax.Array, ...],
    parameters: Parameters,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, y = masked_points(x), None if y is None else masked_points(y)
    if triplets.combine is None and triplets.positive_distance is None:
        pairs = _pairs(task, x, y, parameters)
        ordinals = (
            _ordinals(pairs, x.classes, None if y is None else y.classes)
            if task.labels is None
            else _ordinals_by_label(pairs)
        )
        arguments = pairs.distances, parameters.loss, of_loss, pairs, ordinals
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
        pairs = _pairs(task, anchors, columns, parameters)
        return _statistics(stages, pairs, data, parameters.loss)

    return sums_over_positives(statistics, task, triplets, x, y, of_loss, parameters)


def _ordinals(pairs: Pairs, x_classes: jax.Array, y_classes: jax.Array | None) -> jax.Array:
    """Numbers the positives of each anchor from 0 on, `[N, M]`; -1 where a pair is not positive."""
    columns = x_classes if y_classes is None else y_classes
    indices = jnp.arange(len(columns))
    before = (columns[:, None] == columns[None]) & (indices[:, None] > indices[None])
    # Numbers below 2^24, for which float32 is exact: XLA has a kernel ready for their sum on a CPU.
    ordinals = jnp.sum(before.astype(jnp.float32), axis=1)
    of_pairs = jnp.broadcast_to(ordinals[None], pairs.counts.shape)
    if y_classes is None:
        of_pairs -= (ordinals[None] > ordinals[:, None]).astype(jnp.float32)
    return jnp.where(pairs.counts & (pairs.labels == 0), of_pairs, -1)


def _ordinals_by_label(pairs: Pairs) -> jax.Array:
    """Numbers the positives of each anchor, as `_ordinals` does, from the labels of all pairs."""
    positive = pairs.counts & (pairs.labels == 0)
    return jnp.where(positive, jnp.cumsum(positive.astype(jnp.float32), axis=1) - 1, -1)


def _sums_over_positives(triplets: Triplets, *arguments: Any) -> Any:
    """Sums of `triple_sums` over the positives of all anchors, one of each anchor at a time.

    The loop computes the gradient along with the sums, as the number of its turns is not a constant
    and JAX does not differentiate it.
    """

    @jax.custom_vjp
    def sums(*arguments: Any) -> Any:
        return _looped(lambda k: _sums_of_one(triplets, k, *arguments), arguments[-1])

    @on_mesh_of_arguments
    def forward(distances: Any, parameters: Any, of_loss: Any, *others: Any) -> Any:
        wanted = differentiable_once((distances, parameters, of_loss))

        def one(k: jax.Array) -> Any:
            def value(wanted: Any) -> tuple[jax.Array, Any]:
                value, *counts = _sums_of_one(triplets, k, *wanted, *others)
                return value, counts

            (total, counts), gradient = jax.value_and_grad(value, has_aux=True)(wanted)
            return (total, *counts), gradient

        return _looped(one, others[-1])

    @on_mesh_of_arguments
    def backward(gradient: Any, cotangents: Any) -> Any:
        scaled = jax.tree.map(lambda one: (cotangents[0] * one).astype(one.dtype), gradient)
        return *scaled, None, None

    sums.defvjp(forward, backward)
    return sums(*arguments)


def _looped(one: Callable[[jax.Array], Any], ordinals: jax.Array) -> Any:
    """Adds up a function of the number of a positive of each anchor."""
    shapes = jax.eval_shape(one, jnp.float32(0))
    init = jax.tree.map(lambda like: jnp.zeros(like.shape, like.dtype), shapes)
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
    of_loss: tuple[jax.Array, ...],
    pairs: Pairs,
    ordinals: jax.Array,
) -> tuple[jax.Array, ...]:
    """Sums over one positive of each anchor, that of number `k`."""
    chosen = ordinals == k
    valid = jnp.max(chosen.astype(distances.dtype), axis=1) > 0
    positive = jnp.sum(jnp.where(chosen, distances, 0), axis=1)
    pairs = pairs._replace(distances=distances)
    some = jnp.argmax(valid)

    def substituted(leaf: jax.Array) -> jax.Array:
        # An anchor that has no such positive takes the results of one that does: a loss of no pairs
        # need not have a derivative.
        return jnp.where(valid, leaf, lax.stop_gradient(leaf)[some])

    positive = substituted(positive)
    results = _statistics(triplets.stages, pairs, (positive,), parameters)
    results = jax.tree.map(substituted, results)
    means = jax.vmap(lambda *results: triplets.loss(*results, *of_loss))(positive, *results)
    value, *counts = (jnp.sum(jnp.where(valid, one, 0)) for one in means)
    return value, *map(lax.stop_gradient, counts)


def _pairs(
    task: Task,
    x: Points,
    y: Points | None,
    parameters: Parameters,
    *,
    symmetric: bool = False,
) -> Pairs:
    labels = None
    if task.labels is not None:
        labels = pair_labels(task, parameters, x, x if y is None else y)
    metric = Metric(
        task.distances[0], task.product, task.numerics.refine, task.numerics.precision, symmetric
    )
    columns = (None, None) if y is None else (y.vectors, y.classes)
    return distance_matrix(
        metric, x.vectors, columns[0], parameters.distance, x.classes, columns[1], labels
    )


def _statistics(
    stages: tuple[Stage, ...],
    pairs: Pairs,
    data: tuple[Any, ...],
    parameters: tuple[jax.Array, ...],
) -> tuple[Any, ...]:
    results = data
    for k in range(len(stages)):
        of_pair = partial(values_of_stage, stages, k)
        over_columns = jax.vmap(of_pair, (0, 0, None, None))
        over_rows = jax.vmap(over_columns, (0, 0, 0, None))
        each = over_rows(pairs.distances, pairs.labels, results, parameters)
        reduce = partial(_reduced, pairs.counts, pairs.distances.dtype)
        results = (*results, jax.tree.map(reduce, each, is_leaf=is_statistic))
    return results[len(data) :]


def _reduced(counts: jax.Array, dtype: Any, pairs: Statistic) -> jax.Array:
    """A statistic of pairs `[N, M]`, over those of each row that count."""
    where, value = pairs.where & counts, pairs.value.astype(dtype)
    if pairs.op == "sum":
        return jnp.sum(jnp.where(where, value, 0), axis=1)
    if pairs.op == "max":
        return _largest(value, where)
    if pairs.op == "min":
        return -_largest(-value, where)
    # One array is compared with its maximum: computed twice it might have other digits.
    value = lax.optimization_barrier(jnp.where(where, value, -jnp.inf))
    largest = lax.stop_gradient(jnp.max(value, axis=1))
    offset = jnp.where(jnp.abs(largest) == jnp.inf, 0, largest)
    total = jnp.sum(jnp.exp(value - offset[:, None]), axis=1)
    some = total != 0
    return jnp.where(some, offset + jnp.log(jnp.where(some, total, 1)), -jnp.inf)


def _largest(value: jax.Array, where: jax.Array) -> jax.Array:
    """Largest value of each row where a mask holds, with the derivative of one entry alone."""
    # Exact in float32: XLA has a kernel ready for the largest of them on a CPU.
    indices = np.arange(value.shape[1], dtype=np.float32)

    @jax.custom_vjp
    def largest(value: jax.Array, where: jax.Array) -> jax.Array:
        return jnp.max(jnp.where(where, value, -jnp.inf), axis=1)

    def forward(value: jax.Array, where: jax.Array) -> tuple[jax.Array, jax.Array]:
        # One array is compared with its maximum: computed twice it might have other digits.
        value = lax.optimization_barrier(jnp.where(where, value, -jnp.inf))
        result = jnp.max(value, axis=1)
        is_largest = where & (value == result[:, None])
        return result, jnp.max(jnp.where(is_largest, indices[None], -1), axis=1)

    def backward(index: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, None]:
        return jnp.where(indices[None] == index[:, None], cotangent[:, None], 0), None

    largest.defvjp(forward, backward)
    return largest(value, where)

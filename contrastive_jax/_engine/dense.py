"""Sums and statistics over all pairs of two small sets of rows, from one matrix of distances.

They equal those of the sweeps over tiles (`over_all`, `per_anchor`, `per_triplet`). The
matrix of distances takes memory for every pair, but a small one is computed, compiled and
differentiated as fast as a few lines of `jax.numpy`: there is no loop over tiles and no sort. What
the loss makes of the distances is ordinary JAX, and the derivatives of the matrix are those of
`contrastive_jax._engine.distance_matrix`.
"""

from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import lax

from contrastive_jax._engine.close_pairs import Metric
from contrastive_jax._engine.distance_matrix import distance_matrix
from contrastive_jax._engine.matrix_statistics import statistics_of_rows
from contrastive_jax._engine.problem import (
    Parameters,
    Points,
    Sums,
    Task,
    is_graded,
    pair_labels,
    zero_or_nan,
)
from contrastive_jax._engine.program_cache import program_or_part
from contrastive_jax._engine.squared_distances import Pairs
from contrastive_jax._engine.stages import Stage

# Rows up to which all their pairs are computed at once, on a CPU and on a GPU. A sweep over 4,096
# rows takes twice the time on a GPU, where the matrix and its gradient take 300 MB.
LARGEST, LARGEST_ON_GPU = 1024, 4096
# Largest number of rows of a side, however few the other has. The numbers by which close pairs find
# their origins (`close_pairs`) are exact up to here.
LONGEST = 2**14
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
      True if both sides have rows, at most `LONGEST`, and the pairs are no more than those of
      `largest_side` rows with one another. False for the angular distance, and for too many
      differences of a distance that does not follow from a product.
    """
    rows, width = x.vectors.shape
    columns = rows if y is None else len(y.classes)
    if not min(rows, columns) or rows * columns > largest_side() ** 2:
        return False
    if max(rows, columns) > LONGEST:
        return False
    if task.product is not None:
        return not task.product.bends_at_antipodes
    return rows * columns * width <= _DIFFERENCES


def largest_side() -> int:
    """Returns the number of rows up to which all their pairs are computed at once."""
    return LARGEST_ON_GPU if jax.default_backend() == "gpu" else LARGEST


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
    return cast(Sums, program_or_part(_pair_sums, task)(x, y, parameters))


def _pair_sums(task: Task, x: Points, y: Points | None, parameters: Parameters) -> Sums:
    columns = x if y is None else y
    symmetric = y is None and len(task.distances) == 1
    pairs = matrix_of_pairs(task, x, y, parameters, symmetric=symmetric)
    matrix, labels, counts = pairs[:3]
    if is_graded(task):
        # The matrix knows negative pairs from positive ones alone.
        grades = pair_labels(task, parameters, x, columns)
        labels = jnp.where(counts, grades, labels.astype(grades.dtype))

    def pair_loss(distance: jax.Array, label: jax.Array) -> jax.Array:
        return cast(jax.Array, task.loss(distance, label, *parameters.loss))

    losses = jax.vmap(jax.vmap(pair_loss))(matrix, labels).astype(matrix.dtype)
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

    def total_over_pairs(values: jax.Array) -> jax.Array:
        if not task.weighted:
            return total(jnp.where(counts, values, 0))
        return total(jnp.where(weights > 0, weights * values, 0))

    return Sums(
        loss=total_over_pairs(losses) + bad,
        pairs=number,
        active=total(jnp.where(losses != 0, weights, 0)) if task.active else 0 * number,
        distance=total_over_pairs(lax.stop_gradient(matrix)) if task.measured else 0 * number,
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
    run = program_or_part(_anchor_statistics, task, stages)
    return cast(tuple[Any, ...], run(x, y, data, parameters))


def _anchor_statistics(
    task: Task,
    stages: tuple[Stage, ...],
    x: Points,
    y: Points | None,
    data: tuple[Any, ...],
    parameters: Parameters,
) -> tuple[Any, ...]:
    pairs = matrix_of_pairs(task, x, y, parameters)
    return statistics_of_rows(stages, pairs, data, parameters.loss)


def matrix_of_pairs(
    task: Task,
    x: Points,
    y: Points | None,
    parameters: Parameters,
    *,
    symmetric: bool = False,
) -> Pairs:
    """Returns all pairs of the rows of `x` and of `y`, or of the rows of `x` alone.

    Args:
      task: distances and labels of the pairs.
      x: rows.
      y: columns; None for the rows.
      parameters: parameters of the distance and of the labels.
      symmetric: True if the cotangent of the matrix of one set is symmetric.

    Returns:
      The pairs.
    """
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

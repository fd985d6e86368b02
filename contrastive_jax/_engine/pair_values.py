"""The values of a loss, or the statistics of anchors, for all pairs of a tile."""

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from contrastive_jax._engine.layout import Layout, SortedPoints
from contrastive_jax._engine.problem import Task, is_graded, pair_labels
from contrastive_jax._engine.reductions import cast_statistics
from contrastive_jax._engine.sharding import axes_of, evaluated_while_tracing, varying


class Tile(NamedTuple):
    """All pairs of a block of rows and a block of columns."""

    rows: SortedPoints
    columns: SortedPoints
    seen: tuple[jax.Array, jax.Array] | None
    """Points of the rows as seen from the centre, `[H, E]`, and their transpose, `[E, H]`; None
    without a centre."""
    top: jax.Array | None
    """Position of the first row; None if rows and columns are of different sides."""
    left: jax.Array
    """Position of the first column."""
    rests: tuple[jax.Array | None, jax.Array | None] = (None, None)
    """The part of the points of rows and of columns that rounding has removed, `[H, E]` and
    `[W, E]`, where pairs are computed from it."""

    def select_positive(self, k: jax.Array) -> "Tile":
        """Returns the tile with the data of positive number `k` of each anchor."""

        def side(rows: SortedPoints) -> SortedPoints:
            chosen = partial(lax.dynamic_index_in_dim, index=k, axis=1, keepdims=False)
            return rows._replace(anchors=jax.tree.map(chosen, rows.anchors))

        return self._replace(rows=side(self.rows), columns=side(self.columns))

    def labels_and_weights(self, layout: Layout) -> tuple[jax.Array, jax.Array]:
        """Returns labels and weights of the pairs, `[H, W]`; weight 0 where a pair is left out."""
        task, x, y = layout.task, self.rows, self.columns
        labels = pair_labels(task, layout.parameters, x, y)
        weights = x.weights[:, None] * y.weights[None]
        if self.top is not None:
            row, column = self.top + jnp.arange(len(x.norms)), self.left + jnp.arange(len(y.norms))
            weights = jnp.where(row[:, None] < column[None], weights, 0)
        if task.labels is not None:
            # An ignored pair has weight 0, and label 1, as a loss is defined for 0 and 1 alone.
            weights, labels = jnp.where(labels < 0, 0, weights), jnp.where(labels < 0, 1, labels)
        if task.positives_only:
            weights = jnp.where(labels == 0, weights, 0)
        return labels, weights


def values_of_pair(
    task: Task,
    distances: list[jax.Array],
    label: jax.Array,
    row: tuple[jax.Array, Any],
    column: tuple[jax.Array, Any],
    parameters: tuple[jax.Array, ...],
) -> list[Any]:
    """Evaluates the loss of a task for one pair.

    Args:
      task: the loss, and which sides of a pair are anchors.
      distances: distance of the pair, or its two distances where they depend on the order.
      label: 0 for a positive pair, 1 for a negative one, or a grade in [0, 1].
      row: index of the row, and its data as an anchor.
      column: the same of the column.
      parameters: parameters of the loss.

    Returns:
      Losses or trees of statistics: one of the pair, or one for each side that is an anchor.
    """
    if is_graded(task):
        label = label.astype(distances[0].dtype)
    if task.anchors == "none":
        return [task.loss(distance, label, *parameters) for distance in distances]
    (row_index, row_data), (column_index, column_data) = row, column
    # With a concrete label, masks that depend on the label alone are evaluated where the program is
    # traced; reductions that they rule out are skipped.
    concrete = not isinstance(label, jax.core.Tracer)
    with evaluated_while_tracing() if concrete else contextlib.nullcontext():
        values = [task.loss(distances[0], label, column_index, row_data, *parameters)]
        if task.anchors == "both":
            values.append(task.loss(distances[-1], label, row_index, column_data, *parameters))
    if task.statistics is None:
        return values
    return [cast_statistics(one, distances[0].dtype) for one in values]


def measuring(task: Task) -> Task:
    """Returns a task whose loss is the distance of a pair."""
    return task._replace(loss=_distance_itself)


def _distance_itself(distance: jax.Array, label: jax.Array, *parameters: jax.Array) -> jax.Array:
    return distance


def map_over_pairs(
    function: Callable[..., Any],
    rows: SortedPoints,
    columns: SortedPoints,
    labels: jax.Array | None,
    *entries: Any,
) -> Any:
    """Maps a function over all pairs of rows and columns.

    Args:
      function: takes a label, index and data of a row and of a column, and entries of a pair.
      rows: a block of rows.
      columns: a block of columns.
      labels: `[H, W]`; None if all pairs are negative.
      *entries: arrays of pairs, `[H, W]`.

    Returns:
      The results, `[H, W]` each.
    """
    label_axis = None if labels is None else 0
    label: Any = labels
    if labels is None:
        # Concrete where a program is traced, unless it has to vary along the axes of a mesh.
        with evaluated_while_tracing():
            label = jnp.int32(1)
        label = varying(label, axes_of((rows.weights, *entries)))
    pairwise = [0] * len(entries)
    over_columns = jax.vmap(function, (label_axis, None, 0, *pairwise))
    over_rows = jax.vmap(over_columns, (label_axis, 0, None, *pairwise))
    return over_rows(
        label, (rows.indices, rows.anchors), (columns.indices, columns.anchors), *entries
    )


def over_pairs(function: Callable[..., Any], rows: Any, columns: Any, *entries: Any) -> Any:
    """Maps a function of a row, a column and entries `[H, W]` of a pair over all pairs."""
    pairwise = [0] * len(entries)
    over_columns = jax.vmap(function, (None, 0, *pairwise))
    return jax.vmap(over_columns, (0, None, *pairwise))(rows, columns, *entries)

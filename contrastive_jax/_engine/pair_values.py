"""What the loss makes of the pairs of a tile."""

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from contrastive_jax._engine.layout import Rows
from contrastive_jax._engine.problem import Task
from contrastive_jax._engine.reductions import (
    to_keep,
)
from contrastive_jax._engine.sharding import axes_of, evaluated_while_tracing, varying


def seen_by(
    task: Task,
    distances: list[jax.Array],
    label: jax.Array,
    of_row: Any,
    of_column: Any,
    parameters: tuple[jax.Array, ...],
) -> list[Any]:
    """What the loss makes of a pair, once for each side that it is seen from apart."""
    if task.anchors == "none":
        return [task.loss(distance, label, *parameters) for distance in distances]
    (row, as_row), (column, as_column) = of_row, of_column
    # What follows from a known label alone is then known too, and may be to leave a statistic out.
    known = not isinstance(label, jax.core.Tracer)
    with evaluated_while_tracing() if known else contextlib.nullcontext():
        seen = [task.loss(distances[0], label, column, as_row, *parameters)]
        if task.anchors == "both":
            seen.append(task.loss(distances[-1], label, row, as_column, *parameters))
    if task.statistics is None:
        return seen
    return [to_keep(one, distances[0].dtype) for one in seen]


def seen_over(one: Callable[..., Any], x: Rows, y: Rows, labels: Any, *of: Any) -> Any:
    """Maps a function of a label, of what is known of both rows, and of further entries."""
    label_axis = None if labels is None else 0
    label: Any = labels
    if labels is None:
        # Known where a program is traced, unless it has to differ along the axes of a mesh.
        with evaluated_while_tracing():
            label = jnp.int32(1)
        label = varying(label, axes_of((x.weights, *of)))
    over_columns = jax.vmap(one, (label_axis, None, 0, *[0] * len(of)))
    over_rows = jax.vmap(over_columns, (label_axis, 0, None, *[0] * len(of)))
    return over_rows(label, (x.places, x.anchors), (y.places, y.anchors), *of)

"""The positives of each anchor by a function of labels, some at a time, in linear memory.

Rows of one class lie side by side once they are sorted, and the positives of an anchor with them.
The positives that a function labels lie anywhere: a pass over blocks of columns counts them.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from contrastive_jax._engine.layout import take_block
from contrastive_jax._engine.problem import Parameters, Points, Task, pair_labels
from contrastive_jax._engine.sharding import axes_of, gather_rows, varying

# Labels that are held at once.
_LABELS = 2**20


class LabelledPositives(NamedTuple):
    """The columns of all devices, and the number of positives of each anchor among them."""

    columns: Points
    """Padded to whole blocks by columns of class -1; their vectors are left out."""
    own: jax.Array
    """Index of the anchor itself among the columns, -1 where it is not among them, `[N]`."""
    sizes: jax.Array
    """Number of positives, `[N]`."""
    most: jax.Array
    """Largest number of positives of an anchor of any device."""


def labelled_positives(
    task: Task, parameters: Parameters, sides: tuple[Points, ...]
) -> LabelledPositives:
    """Counts the positives of each anchor.

    Args:
      task: the labels, and the axis of the devices.
      parameters: values that the labels depend on.
      sides: anchors, `[N]` rows, and columns where these are others.

    Returns:
      The positives.
    """
    x, axis = sides[0], task.axis_name
    count = len(x.classes)
    side = sides[-1]._replace(vectors=sides[-1].vectors[:, :0])
    columns = gather_rows(axis, side)
    width = _width(count, len(columns.classes))
    padding = -len(columns.classes) % width

    def padded(leaf: jax.Array, value: int = 0) -> jax.Array:
        ends = [(0, padding)] + [(0, 0)] * (leaf.ndim - 1)
        return jnp.pad(leaf, ends, constant_values=value)

    classes = padded(columns.classes, -1)
    columns = jax.tree.map(padded, columns)._replace(classes=classes)
    own = jnp.full(count, -1, jnp.int32)
    if len(sides) == 1:
        start = 0 if axis is None else lax.axis_index(axis) * count
        own = start + jnp.arange(count, dtype=jnp.int32)
    none = jnp.zeros((0, 1), jnp.int32)
    sizes, _ = _sweep(task, parameters, x, columns, own, none)
    most = jnp.max(sizes, initial=0)
    most = most if axis is None else lax.pmax(most, axis)
    return LabelledPositives(columns, own, sizes, most)


def indices_of_positives(
    task: Task, parameters: Parameters, x: Points, positives: LabelledPositives, number: jax.Array
) -> jax.Array:
    """Returns the columns that are positives of some numbers.

    Args:
      task: the labels.
      parameters: values that the labels depend on.
      x: anchors, `[N]` rows.
      positives: the positives of all anchors.
      number: numbers of positives from 0, `[P, 1]`.

    Returns:
      Indices among the columns of all devices, `[P, N]`; 0 where an anchor has none of a number.
    """
    columns, own = positives.columns, positives.own
    return _sweep(task, parameters, x, columns, own, number.astype(jnp.int32))[1]


def _width(rows: int, columns: int) -> int:
    """Returns the number of columns of a block."""
    return max(1, min(columns, _LABELS // max(rows, 1)))


def _sweep(
    task: Task,
    parameters: Parameters,
    x: Points,
    columns: Points,
    own: jax.Array,
    number: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Returns the number of positives of each anchor, `[N]`, and some of these, `[P, N]`."""
    count = len(x.classes)
    width = _width(count, len(columns.classes))

    def add_block(block: jax.Array, state: Any) -> Any:
        before, indices = state
        start = block * width
        some = take_block(columns, start, width)
        index = start + jnp.arange(width, dtype=jnp.int32)
        positive = pair_labels(task, parameters, x, some) == 0
        positive &= (x.classes >= 0)[:, None] & (some.classes >= 0)[None]
        positive &= own[:, None] != index[None]
        ordinal = before[:, None] + jnp.cumsum(positive.astype(jnp.int32), axis=1) - 1
        each = [
            jnp.max(jnp.where(positive & (ordinal == one[:, None]), index[None], 0), axis=1)
            for one in number
        ]
        if each:
            indices = jnp.maximum(indices, jnp.stack(each))
        return before + jnp.sum(positive.astype(jnp.int32), axis=1), indices

    init = jnp.zeros(count, jnp.int32), jnp.zeros((len(number), count), jnp.int32)
    init = varying(init, axes_of((x, columns, own, parameters, number)))
    blocks = len(columns.classes) // width
    sizes, indices = lax.fori_loop(0, blocks, add_block, init)
    return sizes, indices

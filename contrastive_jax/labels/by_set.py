"""Labels by sets: rows that have several labels each."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from contrastive_jax.labels._columns import sets_of_column
from contrastive_jax.labels.types import PairLabels


def any_shared(column: str | None = None) -> PairLabels:
    """Rows with several labels each are similar if they share any.

    Attributes are the bits of `as_bits`: unsigned integers, `[B]` or `[B, W]` for W words. A row
    without labels is ignored.

    Args:
      column: name of the column of the data with the labels of each example: text such as
        `red; round` or `["red", "round"]`, integers `[N]` or `[N, K]`, of which -1 is none, or
        booleans `[N, L]`, True where a row has a label. Without it an objective needs `attributes`.

    Returns:
      The labels, which raise a TypeError for rows that are not of unsigned integers.

    Example:
      >>> from contrastive_jax import labels
      >>> first, second, third = labels.as_bits([[0, 5], [5, 40], [7]])
      >>> rule = labels.any_shared()
      >>> print(rule(first, second), rule(first, third))
      0 1
    """

    def label(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where(jnp.any((_bits(a) & _bits(b)) != 0), 0, 1)

    def class_of(row: jax.Array) -> jax.Array:
        return jnp.where(jnp.any(_bits(row) != 0), 0, -1)

    if column is None:
        return PairLabels(label, class_of)
    attributes_of = partial(_bits_of_column, name=column)
    return PairLabels(label, class_of, attributes_of, f"any_shared={column}")


def _bits_of_column(examples: Any, name: str) -> np.ndarray:
    sets = sets_of_column(examples, name)
    codes = {label: number for number, label in enumerate(sorted(set().union(*sets)))}
    return as_bits([[codes[label] for label in one] for one in sets], len(codes))


def _bits(row: jax.Array) -> jax.Array:
    if not jnp.issubdtype(jnp.result_type(row), jnp.unsignedinteger):
        raise TypeError(
            "any_shared takes sets of labels as bits, unsigned integers that labels.as_bits makes "
            f"of lists of labels, got {jnp.result_type(row)}"
        )
    return row


def as_bits(sets: Sequence[Sequence[int]] | Any, number: int | None = None) -> np.ndarray:
    """Packs sets of labels into bits, for `any_shared`.

    Args:
      sets: for each row its labels, integers from 0, in any order; or a bool array `[B, L]`, True
        where a row has a label.
      number: the number of labels, L; by default the largest one and 1.

    Returns:
      Words of 32 bits, `uint32` `[B, W]` with W = ceil(L / 32), so two words for 64 labels.

    Raises:
      ValueError: if a label is not an integer from 0 to L - 1.

    Example:
      >>> from contrastive_jax import labels
      >>> print(labels.as_bits([[0, 1], [33], []]))
      [[3 0]
       [0 2]
       [0 0]]
    """
    if isinstance(sets, np.ndarray | jax.Array) and sets.ndim == 2 and sets.dtype == bool:
        number = sets.shape[1] if number is None else number
        sets = [np.flatnonzero(row) for row in np.asarray(sets)]
    rows = [np.asarray(row) for row in sets]
    for index, row in enumerate(rows):
        wrong = row.size and not np.issubdtype(row.dtype, np.integer)
        if wrong or row.ndim != 1 or (row < 0).any():
            raise ValueError(f"labels must be integers from 0, got {row.tolist()} in row {index}")
    rows = [row.astype(np.int64) for row in rows]
    least = 1 + max((int(row.max(initial=-1)) for row in rows), default=-1)
    number = least if number is None else number
    if least > number:
        raise ValueError(f"labels must be below {number}, the number of labels, got {least - 1}")
    words = np.zeros((len(rows), max(1, -(-number // 32))), np.uint32)
    for index, row in enumerate(rows):
        np.bitwise_or.at(words[index], row // 32, np.uint32(1) << (row % 32).astype(np.uint32))
    return words

"""Attributes from the columns of a data set, as labels of two rows take them.

Labels compare the rows of one split, so that numbers are given to the values of each split anew.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np


def column_of(examples: Any, name: str) -> np.ndarray:
    """Returns a column of the examples of a split by its name.

    Args:
      examples: `contrastive_jax.data.Examples`.
      name: of an attribute, or `class`.

    Returns:
      The column, `[N, ...]`.

    Raises:
      ValueError: if there is no such column.
    """
    columns = {"class": examples.classes} | dict(examples.attributes)
    if name not in columns:
        raise ValueError(
            f"labels take the column {name}, and the data has none: its columns are "
            f"{', '.join(columns)}"
        )
    return np.asarray(columns[name])


def sets_of_column(examples: Any, name: str) -> list[set[Any]]:
    """Returns the set of labels of each example in a column, for `any_shared`.

    Args:
      examples: `contrastive_jax.data.Examples`.
      name: of a column of text, where `red; round` and `["red", "round"]` are the same set, or of
        integers, `[N]` or `[N, K]` for K labels of each row.

    Returns:
      N sets, of text or of integers.

    Raises:
      ValueError: if there is no such column, or it holds something else.
    """
    values = column_of(examples, name)
    if values.dtype.kind in "UO":
        return [_set_of_text(str(value), name) for value in values]
    if values.dtype.kind in "iub":
        return [set(row) for row in values.reshape(len(values), -1).tolist()]
    raise ValueError(
        f"any_shared takes a column of text, such as 'red; round', or of integers, and {name} has "
        f"{values.dtype} {values[:1].tolist()}"
    )


def _set_of_text(text: str, name: str) -> set[str]:
    if not text.lstrip().startswith("["):
        return {part.strip() for part in text.split(";")} - {""}
    try:
        return {str(label) for label in json.loads(text)}
    except ValueError:
        raise ValueError(
            f'{name} has {text[:40]!r}, which begins as a list does and is none: expected ["red", '
            '"round"], or red; round'
        ) from None


def numbers_of_column(examples: Any, name: str, threshold: float) -> np.ndarray:
    """Returns the numbers of a column, for `within`, counted from the least of them.

    Counted so, times have as many digits as their differences need.

    Args:
      examples: `contrastive_jax.data.Examples`.
      name: of a column of numbers, `[N]` or `[N, K]`.
      threshold: with which differences are compared; 0 if it is not known yet.

    Returns:
      `float32`, `[N]` or `[N, K]`, NaN where a number is missing or infinite.

    Raises:
      ValueError: if there is no such column, it holds something else, or its numbers are so far
        apart that their differences can not be compared with the threshold.
    """
    values = column_of(examples, name)
    if values.dtype.kind not in "iuf":
        raise ValueError(
            f"within takes a column of numbers, and {name} has {values.dtype} {values[:1].tolist()}"
        )
    finite = np.where(np.isfinite(values), values, np.nan) if values.dtype.kind == "f" else values
    if np.isnan(finite).all(axis=0).any():
        raise ValueError(f"within takes a column of numbers, and {name} has none in a whole split")
    least, most = np.nanmin(finite, axis=0), np.nanmax(finite, axis=0)
    span = float(np.max(most.astype(np.float64) - least.astype(np.float64)))
    if threshold and span * np.finfo(np.float32).eps > threshold / 16:
        raise ValueError(
            f"{name} spans {span:g}, in which differences of {threshold:g} are not told apart in "
            "float32: give a larger threshold, or divide the data"
        )
    # Subtracted as they are: integers may have more digits than a floating number.
    from_least: np.ndarray = finite - least
    return from_least.astype(np.float32)


def paths_of_columns(examples: Any, names: Sequence[str]) -> np.ndarray:
    """Returns the values of columns as paths from the root, for `hierarchy`.

    Args:
      examples: `contrastive_jax.data.Examples`.
      names: of L columns of integers, booleans or text, from the root.

    Returns:
      Integers, `[N, L]`, -1 where a value is missing: empty text, or an integer of -1.

    Raises:
      ValueError: if there is no such column, or it holds something else.
    """
    levels = []
    for name in names:
        values = column_of(examples, name)
        if values.ndim != 1 or values.dtype.kind not in "iubUO":
            raise ValueError(
                f"hierarchy takes columns of integers or text, and {name} has {values.dtype} "
                f"{values[:1].tolist()}"
            )
        missing = values == ("" if values.dtype.kind in "UO" else -1)
        numbers = np.unique(values, return_inverse=True)[1]
        levels.append(np.where(missing, -1, numbers).astype(np.int32))
    return np.stack(levels, axis=1)

"""Attributes from the columns of a data set, as labels of two rows take them.

Labels compare rows of one split, so values are numbered anew in each split, and those of two splits
can not be compared. A value is missing where it is masked, None, NaN or blank text, and where a
column of one integer for each row has -1; what it is missing in is ignored.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

# Distinct labels of a split, beyond which a column is one of ids rather than of labels.
MOST_LABELS = 4096


def column_of(examples: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns a column of the examples of a split by its name, and which values are missing.

    Args:
      examples: `contrastive_jax.data.Examples`.
      name: of an attribute, or `class`.

    Returns:
      The column, of text, numbers or booleans, and the mask of missing values, `[N, ...]` each.

    Raises:
      ValueError: if there is no such column.
    """
    columns = {"class": examples.classes} | dict(examples.attributes)
    if name not in columns:
        raise ValueError(
            f"the data has no column {name}, which labels take: its columns are "
            f"{', '.join(columns)}"
        )
    values = np.ma.getdata(columns[name])
    missing = np.array(np.ma.getmaskarray(columns[name]))
    if values.dtype.kind == "O":
        absent = [value is None or value != value for value in values.ravel()]
        missing |= np.reshape(absent, values.shape)
        if all(isinstance(value, str) for value in values[~missing]):
            values = np.where(missing, "", values).astype(str)
    if values.dtype.kind == "U":
        missing |= np.char.strip(values) == ""
    elif values.dtype.kind == "f":
        missing |= np.isnan(values)
        present = values[~missing]
        # Whole numbers are floating ones where some are missing.
        if np.isfinite(present).all() and (present % 1 == 0).all() and (abs(present) < 2**53).all():
            values = np.where(missing, -1, values).astype(np.int64)
    if values.dtype.kind == "i" and values.ndim == 1:
        missing |= values == -1
    return values, missing


def _refused(values: np.ndarray, name: str, expected: str) -> ValueError:
    return ValueError(f"{expected}, and {name} has {values.dtype} {values[:1].tolist()}")


def sets_of_column(examples: Any, name: str) -> list[set[Any]]:
    """Returns the set of labels of each example in a column, for `any_shared`.

    Args:
      examples: `contrastive_jax.data.Examples`.
      name: of a column of text, where `red; round` and `["red", "round"]` are the same set; of
        integers, `[N]`, or `[N, K]` for K labels of each row, padded with -1; or of booleans
        `[N, L]`, True where a row has a label.

    Returns:
      N sets, of text or of integers; empty where a value is missing.

    Raises:
      ValueError: if there is no such column, it holds something else, or it has more than 4,096
        labels.
    """
    values, missing = column_of(examples, name)
    kind = values.dtype.kind
    sets: list[set[Any]]
    if kind == "U" and values.ndim == 1:
        pairs = zip(values.tolist(), missing.tolist(), strict=True)
        sets = [set() if is_missing else _set_of_text(text, name) for text, is_missing in pairs]
    elif kind == "b" and values.ndim == 2:
        sets = [{*np.flatnonzero(row).tolist()} for row in values & ~missing]
    elif kind in "iu":
        if values.ndim == 2 and values.shape[1] > 2 and {*np.unique(values).tolist()} <= {0, 1}:
            raise ValueError(
                f"{name} has only 0 and 1 in {values.shape[1]} entries of a row, which look like "
                "flags and not like labels: store them as booleans, or as lists of labels"
            )
        rows = values.reshape(len(values), -1)
        missing = missing.reshape(rows.shape) | (rows == -1 if kind == "i" else False)
        sets = [{*row[~hidden].tolist()} for row, hidden in zip(rows, missing, strict=True)]
    else:
        raise _refused(
            values, name, "any_shared takes a column of text, such as 'red; round', or of integers"
        )
    number = len(set().union(*sets))
    if number > MOST_LABELS:
        raise ValueError(
            f"{name} has {number:,} labels, of which any_shared takes at most {MOST_LABELS:,}: a "
            "column of one value for each row is for hierarchy"
        )
    return sets


def _set_of_text(text: str, name: str) -> set[str]:
    if not text.lstrip().startswith("["):
        return {part.strip() for part in text.split(";")} - {""}
    try:
        labels = [label for label in json.loads(text) if label is not None]
    except ValueError:
        raise ValueError(
            f'{name} has {text[:40]!r}, which begins as a list does and is none: expected ["red", '
            '"round"], or red; round'
        ) from None
    if any(isinstance(label, bool) for label in labels):
        raise ValueError(f"{name} has lists of flags, {text[:40]}: expected lists of labels")
    return {str(label) for label in labels}


def numbers_of_column(examples: Any, name: str, threshold: float) -> np.ndarray:
    """Returns the numbers of a column less the least of them, for `within`.

    Large numbers, such as times, keep digits this way that float32 would lose.

    Args:
      examples: `contrastive_jax.data.Examples`.
      name: of a column of numbers, `[N]` or `[N, K]`.
      threshold: limit of positive pairs; 0 while it is traced, which skips the check of precision.

    Returns:
      `[N]` or `[N, K]`: `int32` if all are whole and less than 2^31 apart, -1 where one is missing,
      and else `float32`, NaN where one is missing or infinite.

    Raises:
      ValueError: if there is no such column, it holds something else, or its numbers are so far
        apart that their differences can not be compared with the threshold.
    """
    if name == "class":
        raise ValueError(
            "within takes numbers, and class holds the names of classes: give the numbers in a "
            "column of another name"
        )
    values, missing = column_of(examples, name)
    if values.dtype.kind not in "iuf" or values.ndim > 2:
        raise _refused(values, name, "within takes a column of numbers")
    if values.dtype.kind == "f":
        missing |= ~np.isfinite(values)
    # A position counts if all of its entries do.
    hidden = missing if values.ndim == 1 else missing.any(axis=1)
    if hidden.all():
        raise ValueError(f"within takes a column of numbers, and {name} has none in a whole split")
    rows = values[~hidden]
    least, most = rows.min(axis=0), rows.max(axis=0)
    spans = [
        int(b) - int(a) if values.dtype.kind in "iu" else float(b) - float(a)
        for a, b in zip(np.ravel(least), np.ravel(most), strict=True)
    ]
    if values.dtype.kind in "iu" and max(spans) < 2**31:
        wide = values.astype(np.uint64 if values.dtype == np.uint64 else np.int64)
        from_least = np.full(values.shape, -1, np.int32)
        from_least[~hidden] = wide[~hidden] - wide[~hidden].min(axis=0)
        return from_least
    if threshold and max(spans) * np.finfo(np.float32).eps > threshold / 2**10:
        raise ValueError(
            f"{name} spans {max(spans):g}, in which differences of {threshold:g} are not told "
            "apart in float32: give a larger threshold, or divide the data"
        )
    precise = values.astype(np.float64)
    precise = np.where(hidden.reshape(-1, *[1] * (values.ndim - 1)), np.nan, precise)
    differences: np.ndarray = (precise - np.nanmin(precise, axis=0)).astype(np.float32)
    return differences


def paths_of_columns(examples: Any, names: Sequence[str]) -> np.ndarray:
    """Returns the values of columns as paths from the root, for `hierarchy`.

    Args:
      examples: `contrastive_jax.data.Examples`.
      names: of L columns of integers, booleans or text, from the root.

    Returns:
      Integers, `[N, L]`, -1 where a value is missing.

    Raises:
      ValueError: if there is no such column, or it holds something else.
    """
    levels = []
    for name in names:
        values, missing = column_of(examples, name)
        if values.ndim != 1 or values.dtype.kind not in "iubU":
            raise _refused(values, name, "hierarchy takes columns of integers or text")
        codes = np.unique(values, return_inverse=True)[1]
        levels.append(np.where(missing, -1, codes).astype(np.int32))
    return np.stack(levels, axis=1)

"""Rows of data of one's own, as every reader returns them, and the columns of a table."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from contrastive_jax.data.findings import Finding

Item = Path | bytes
"""An encoded image: the path of its file, or its bytes."""
_INTEGER = re.compile(r"-?(0|[1-9]\d*)")
_SPLITS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}


class Table(NamedTuple):
    """Columns of a table by name."""

    name: str
    form: str
    where: str
    """The path, for errors."""
    columns: dict[str, Any]
    """Lists of Python values with one entry a row, or arrays whose first axis is the rows."""
    folder: Path | None = None
    """The folder that paths are relative to."""
    class_names: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    """Names of the classes by column, where the column holds their numbers."""
    findings: tuple[Finding, ...] = ()


class Rows(NamedTuple):
    """Examples with labels, before images are decoded."""

    name: str
    form: str
    where: str
    items: list[Item] | np.ndarray
    """Encoded images, or an array of images `[N, H, W, C]` or vectors `[N, D]`."""
    labels: list[Any]
    sources: list[str]
    splits: list[Any] | None = None
    groups: list[Any] | None = None
    roles: list[Any] | None = None
    attributes: Mapping[str, np.ndarray] = MappingProxyType({})
    findings: tuple[Finding, ...] = ()


def take(rows: Rows, chosen: np.ndarray) -> Rows:
    """Returns the rows at these positions."""

    def pick(values: list[Any] | None) -> list[Any] | None:
        return None if values is None else [values[k] for k in chosen]

    items = rows.items
    return rows._replace(
        items=items[chosen] if isinstance(items, np.ndarray) else [items[k] for k in chosen],
        labels=[rows.labels[k] for k in chosen],
        sources=[rows.sources[k] for k in chosen],
        splits=pick(rows.splits),
        groups=pick(rows.groups),
        roles=pick(rows.roles),
        attributes={name: values[chosen] for name, values in rows.attributes.items()},
    )


def is_missing(value: Any) -> bool:
    """Tells whether a field of a table is empty: null, NaN or blank text."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return True
    return isinstance(value, str) and not value.strip()


def label_text(value: Any, where: str) -> str | None:
    """Writes a label as text, or returns None if it is hidden.

    Raises:
      ValueError: if it is neither an integer, a string nor a boolean.
    """
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if is_missing(value):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int | str):
        raise ValueError(
            f"{where} has the class {value!r}, expected an integer, a string or a boolean; write "
            "classes as names or whole numbers"
        )
    return str(value)


def ordered_names(texts: set[str]) -> tuple[str, ...]:
    """Sorts names: by value if all of them are integers, and otherwise by their characters."""
    if all(_INTEGER.fullmatch(text) for text in texts):
        return tuple(sorted(texts, key=int))
    return tuple(sorted(texts))


def numbered(values: list[Any], sources: list[str], where: str) -> tuple[tuple[str, ...], Any]:
    """Returns the names of labels, and the number of each label, -1 where it is hidden.

    Among labels that are all integers, -1 is hidden too.
    """
    texts = [
        label_text(value, f"{source} of {where}")
        for value, source in zip(values, sources, strict=True)
    ]
    present = {text for text in texts if text is not None}
    if "-1" in present and all(_INTEGER.fullmatch(text) for text in present):
        present.remove("-1")
    names = ordered_names(present)
    index_of = {text: k for k, text in enumerate(names)}
    return names, np.array([index_of.get(text or "", -1) for text in texts], np.int32)


def split_name(value: Any) -> str | None:
    """Returns `train`, `validation` or `test` for a name of that split, and None for others."""
    return _SPLITS.get(str(value).strip().casefold())

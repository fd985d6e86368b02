"""Tables in CSV and Parquet, and the examples in the columns of any table."""

import contextlib
import csv
import io
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from contrastive_jax._extras import needs
from contrastive_jax.data._errors import explained
from contrastive_jax.data._own.rows import Item, Rows, Table, is_missing
from contrastive_jax.data.findings import Finding, finding

# A vector may be one field of a CSV.
_LONGEST_FIELD = 2**24
# Characters of a column of lists, of 4 bytes each.
_LARGEST_TEXT = 2**24
_DELIMITERS = (",", ";", "\t")
# Reserved columns, and other names for them.
NAMES = {
    "class": ("class", "classes", "label", "labels"),
    "split": ("split", "splits"),
    "group": ("group", "groups"),
    "role": ("role", "roles"),
}
CONTENTS = ("vector", "image", "path")
EXPECTED = (
    "expected a column class and one of path, image or vector, and for given pairs left, right and "
    "one of similar, dissimilar or label"
)


def read_csv(path: Path) -> Table:
    """Reads a CSV as columns of text, separated by commas, semicolons or tabs.

    Raises:
      ValueError: if it is not UTF-8, has no rows, two columns of one name, or rows of other lengths
        than its header.
    """
    text = _decoded(path)
    first = text.split("\n", 1)[0]
    delimiter = max(_DELIMITERS, key=first.count)
    csv.field_size_limit(_LONGEST_FIELD)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[list[str]] = []
    try:
        for row in reader:
            if not any(field.strip() for field in row):
                continue
            if rows and len(row) != len(rows[0]):
                raise ValueError(
                    f"line {reader.line_num} of {path} has {len(row)} fields, and its header "
                    f"{len(rows[0])}; put fields that contain {delimiter!r} into double quotes"
                )
            rows.append(row)
    except csv.Error as error:
        raise ValueError(
            f"line {reader.line_num} of {path} can not be read: {error}; close its quotes"
        ) from None
    if len(rows) < 2:
        raise ValueError(f"{path} has no rows below its header; {EXPECTED}")
    names = [name.strip() for name in rows[0]]
    check_names(names, path)
    columns = {name: [row[k].strip() for row in rows[1:]] for k, name in enumerate(names)}
    return Table(path.stem, "a table (CSV)", str(path), columns, path.parent)


def _decoded(path: Path) -> str:
    content = path.read_bytes()
    wide = content[:2] in (b"\xff\xfe", b"\xfe\xff")
    try:
        return content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(
            f"line {line} of {path} is not UTF-8; save the table as CSV in UTF-8"
        ) from None


def check_names(names: list[str], path: Path) -> None:
    """Checks that no two columns have one name."""
    twice = [name for name, count in Counter(map(str.casefold, names)).items() if count > 1]
    if twice:
        raise ValueError(f"{path} has two columns {twice[0]!r}; rename one of them")


def read_parquet(path: Path) -> Table:
    """Reads a Parquet file, with lists of numbers as arrays.

    Raises:
      ValueError: if it is damaged, has no rows, or two columns of one name.
    """
    with needs("train", "reading Parquet"):
        from pyarrow import parquet

    with explained(f"{path} can not be read as Parquet", "write it anew"):
        table = parquet.read_table(path)
    check_names(table.column_names, path)
    if not table.num_rows:
        raise ValueError(f"{path} has no rows; {EXPECTED}")
    return from_arrow(table, path.stem, "a table (Parquet)", str(path), path.parent)


def from_arrow(table: Any, name: str, form: str, where: str, folder: Path | None) -> Table:
    """Takes the columns of an Arrow table, with the class names that `datasets` stores in it."""
    columns = {
        column: arrow_column(table[column])
        for column in table.column_names
        if not column.startswith("__index_level_")  # the index of pandas
    }
    metadata = (table.schema.metadata or {}).get(b"huggingface")
    features = json.loads(metadata)["info"]["features"] if metadata else {}
    names = {
        column: tuple(feature["names"])
        for column, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
    }
    return Table(name, form, where, columns, folder, names)


def arrow_column(column: Any) -> Any:
    """Returns an Arrow column as a list of Python values, or lists of one length as an array."""
    import pyarrow as pa

    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or _is_fixed(kind)):
        return column.to_pylist()
    is_number = pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)
    chunks = [chunk for chunk in column.chunks if len(chunk)]
    if column.null_count or not is_number or not chunks:
        return column.to_pylist()
    lengths = np.concatenate([_lengths(chunk) for chunk in chunks])
    if (lengths != lengths[0]).any():
        return column.to_pylist()
    values = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in chunks]
    return np.concatenate(values).reshape(len(column), -1)


def _is_fixed(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_fixed_size_list(kind))


def _lengths(chunk: Any) -> np.ndarray:
    if _is_fixed(chunk.type):
        return np.full(len(chunk), chunk.type.list_size)
    return np.asarray(chunk.value_lengths())


def reserved(table: Table) -> dict[str, str]:
    """Returns the columns of a table that have a meaning, by that meaning."""
    by_name = {str(name).casefold(): name for name in table.columns}
    meant = {}
    for meaning, names in (NAMES | {one: (one,) for one in CONTENTS}).items():
        present = [by_name[name] for name in names if name in by_name]
        if present:
            meant[meaning] = present[0]
    return meant


def rows_of(table: Table) -> Rows:
    """Takes the examples in the columns of a table.

    Raises:
      ValueError: if it has no column of classes, or none of paths, images or vectors.
    """
    meant = reserved(table)
    contents = [one for one in CONTENTS if one in meant]
    if not contents or "class" not in meant:
        lacking = "class" if contents else "path, image or vector"
        raise ValueError(
            f"{table.where} has no column {lacking}: its columns are "
            f"{', '.join(map(str, table.columns))}; {EXPECTED}"
        )
    values = table.columns[meant[contents[0]]]
    count = len(values)
    paths = table.columns[meant["path"]] if "path" in meant else [None] * count
    items, sources = contents_of(table, meant[contents[0]], paths)
    labels = named_labels(table, meant["class"])
    rest = {name: column for name, column in table.columns.items() if name not in meant.values()}
    attributes, findings = _attributes(rest)
    columns = {
        one: list(table.columns[meant[one]]) if one in meant else None
        for one in ("split", "group", "role")
    }
    if columns["group"] is not None:
        attributes[meant["group"]] = np.array([str(value) for value in columns["group"]])
    kind = "vectors" if isinstance(items, np.ndarray) and items.ndim == 2 else "images"
    return Rows(
        table.name,
        f"{table.form} of {kind}",
        table.where,
        items,
        labels,
        sources,
        columns["split"],
        columns["group"],
        columns["role"],
        attributes,
        (*table.findings, *findings),
    )


def named_labels(table: Table, column: str) -> list[Any]:
    """Returns the labels of a column, by name where the column holds numbers of named classes."""
    values = list(table.columns[column])
    names = table.class_names.get(column)
    if names is None:
        return values
    hidden = [value is None or value == -1 for value in values]
    for value, is_hidden in zip(values, hidden, strict=True):
        if not is_hidden and not 0 <= value < len(names):
            raise ValueError(
                f"{table.where} has the class {value} in {column}, which names {len(names)} "
                "classes; write the data anew"
            )
    return [None if h else names[v] for v, h in zip(values, hidden, strict=True)]


def contents_of(table: Table, column: str, paths: Any) -> tuple[list[Item] | np.ndarray, list[str]]:
    """Returns encoded images, or arrays, in a column, and the source of each.

    Args:
      table: with that column.
      column: of paths, of bytes, of structs of both as `datasets` writes them, or of vectors.
      paths: of the same rows, or None for each.

    Raises:
      ValueError: if a field is empty or of another type.
    """
    values = table.columns[column]
    sources = [f"row {k}" if is_missing(path) else str(path) for k, path in enumerate(paths)]
    if isinstance(values, np.ndarray):
        return values, sources
    if any(isinstance(value, list) for value in values):
        raise ValueError(_not_vectors(values, f"column {column} of {table.where}"))
    if isinstance(values[0], str) and values[0].lstrip().startswith("["):
        return _vectors_of_text(values, f"column {column} of {table.where}"), sources
    items: list[Item] = []
    for row, value in enumerate(values):
        if isinstance(value, dict) and {"bytes", "path"} & value.keys():
            if not is_missing(value.get("path")):
                sources[row] = value["path"]
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes):
            items.append(value)
        elif isinstance(value, str) and value.strip():
            sources[row] = value
            items.append((table.folder or Path()) / Path(value).expanduser())
        else:
            got = "nothing" if is_missing(value) else f"a {type(value).__name__}"
            raise ValueError(
                f"row {row} of {table.where} has {got} in column {column}, expected a path, the "
                "bytes of an image, or a vector"
            )
    return items, sources


def _not_vectors(values: list[Any], where: str) -> str:
    """Says why lists are no vectors of one length."""
    first = next(value for value in values if isinstance(value, list))
    for row, value in enumerate(values):
        if not isinstance(value, list):
            return f"{where} has no vector in row {row}; leave that row out"
        if len(value) != len(first):
            return (
                f"{where} has vectors of {len(first)} entries, and of {len(value)} in row {row}; "
                "all must be of one length"
            )
    return f"{where} has lists of {type(first[0]).__name__} values, expected vectors of numbers"


def _vectors_of_text(values: list[str], where: str) -> np.ndarray:
    vectors = []
    for row, text in enumerate(values):
        try:
            vectors.append(np.array(json.loads(text), np.float32))
        except (ValueError, TypeError):
            raise ValueError(
                f"{where} has {text[:20]!r} in row {row}, expected a vector such as [0.5, 1.25]; "
                "Parquet stores vectors as they are"
            ) from None
        if vectors[-1].shape != vectors[0].shape or vectors[-1].ndim != 1:
            raise ValueError(
                f"{where} has vectors of {vectors[0].size} entries, and of {vectors[-1].size} in "
                f"row {row}; all must be of one length"
            )
    return np.stack(vectors)


def _attributes(columns: dict[str, Any]) -> tuple[dict[str, np.ndarray], list[Finding]]:
    """Converts columns to arrays, lists that are no array to JSON, and names the other columns."""
    attributes, left_out = {}, []
    for name, values in columns.items():
        array = values if isinstance(values, np.ndarray) else _array(list(values))
        if array is None:
            left_out.append(name)
        else:
            attributes[name] = array
    text = "columns of neither numbers nor strings nor lists of them, which are left out"
    return attributes, finding(text, left_out, warns=False)


def _array(values: list[Any]) -> np.ndarray | None:
    present = [value for value in values if value is not None]
    if all(isinstance(value, str) for value in present):
        return _parsed(["" if value is None else value for value in values])
    uniform = len(present) == len(values) and len({type(value) for value in values}) == 1
    if uniform and isinstance(values[0], bool | int | float):
        return np.array(values)
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in present):
        return np.array([np.nan if value is None else value for value in values], np.float64)
    if present and all(isinstance(value, list) for value in present):
        return _lists(values, present)
    return None


def _lists(values: list[Any], present: list[list[Any]]) -> np.ndarray | None:
    """Returns lists of numbers of one length as an array with NaN for missing ones, others as JSON.

    JSON takes the memory of the longest for each row. A column that would take much is left out.
    """
    entries = [entry for value in present for entry in value if entry is not None]
    if not all(isinstance(entry, str | int | float) for entry in entries):
        return None
    lengths = {len(value) for value in present}
    if len(lengths) == 1 and all(isinstance(entry, bool) for value in present for entry in value):
        return np.array(values) if len(present) == len(values) else None
    are_numbers = all(
        isinstance(entry, int | float) and not isinstance(entry, bool)
        for value in present
        for entry in value
    )
    if len(lengths) == 1 and are_numbers:
        missing = [np.nan] * lengths.pop()
        return np.array([missing if value is None else value for value in values], np.float64)
    texts = ["" if one is None else json.dumps(one, ensure_ascii=False) for one in values]
    return np.array(texts) if len(texts) * max(map(len, texts)) < _LARGEST_TEXT else None


def _parsed(values: list[str]) -> np.ndarray:
    """Reads text as integers or floats where all of it is, as a CSV has no types.

    Text such as 007 or 1_2, which is a name and not a number, stays as it is.
    """
    if any(values) and all(not value.strip() or value.startswith("[") for value in values):
        with contextlib.suppress(ValueError):
            lists = [json.loads(value) if value.strip() else None for value in values]
            array = _lists(lists, [one for one in lists if one is not None])
            if array is not None and array.dtype.kind != "U":
                return array
    integers = [re.fullmatch(r"-?(0|[1-9]\d*)", value) is not None for value in values]
    limits = np.iinfo(np.int64)
    if any(integers) and not all(
        limits.min <= int(value) <= limits.max
        for value, is_integer in zip(values, integers, strict=True)
        if is_integer
    ):
        return np.array(values)
    if all(integers):
        return np.array([int(value) for value in values], np.int64)
    decimal = r"[+-]?(0|[1-9]\d*)?(\.\d*)?([eE][+-]?\d+)?|[+-]?(nan|inf)"
    if all(value and re.fullmatch(decimal, value, re.IGNORECASE) for value in values):
        with contextlib.suppress(ValueError):
            return np.array([float(value) for value in values])
    return np.array(values)

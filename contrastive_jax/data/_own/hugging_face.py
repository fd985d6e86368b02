"""Data sets of Hugging Face `datasets`: a folder written by `save_to_disk`, or an object."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from contrastive_jax._extras import needs
from contrastive_jax.data._errors import explained
from contrastive_jax.data._own.rows import Table
from contrastive_jax.data._own.tables import arrow_column, check_names

_REMEDY = "save it anew with save_to_disk"


def is_saved(folder: Path) -> bool:
    """Tells whether a folder was written by `save_to_disk`."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    )


def is_object(source: Any) -> bool:
    """Tells whether an object is a `Dataset`, or a `DatasetDict` of them."""
    if isinstance(source, Mapping):
        return bool(source) and all(map(is_object, source.values()))
    return hasattr(source, "features") and hasattr(source, "with_format")


def read_saved(folder: Path) -> Table:
    """Reads what `save_to_disk` wrote, without the package `datasets`.

    Raises:
      ImportError: if pyarrow is not installed.
      ValueError: if files are missing or damaged, or the columns can not be told apart.
    """
    parts: dict[str | None, Path] = {None: folder}
    if (folder / "dataset_dict.json").is_file():
        splits = _json(folder / "dataset_dict.json").get("splits", [])
        parts = {split: folder / split for split in splits}
    tables: dict[str | None, Any] = {}
    by_split: dict[str | None, dict[str, Any]] = {}
    for split, part in parts.items():
        by_split[split] = _json(part / "dataset_info.json").get("features") or {}
        tables[split] = _arrow(part, _json(part / "state.json"))
    features = _features(by_split, str(folder))
    form = "a folder of Hugging Face datasets"
    return _joined(folder.resolve().name, form, str(folder), tables, features, folder)


def read_object(source: Any) -> Table:
    """Reads a `Dataset` or a `DatasetDict`.

    Raises:
      ValueError: if it is streamed, or the columns can not be told apart.
    """
    parts = dict(source) if isinstance(source, Mapping) else {None: source}
    tables: dict[str | None, Any] = {}
    by_split: dict[str | None, dict[str, Any]] = {}
    for split, part in parts.items():
        if not hasattr(part, "__len__") or part.features is None:
            raise ValueError(
                f"the {type(part).__name__} is streamed; load it without streaming=True"
            )
        tables[split] = part.with_format("arrow")[:]
        by_split[split] = {
            name: {"_type": type(one).__name__, "names": getattr(one, "names", None)}
            for name, one in part.features.items()
        }
    first = next(iter(parts.values()))
    name = str(getattr(first.info, "dataset_name", None) or "dataset")
    where = f"the {type(source).__name__} {name}"
    features = _features(by_split, where)
    return _joined(name, "an object of Hugging Face datasets", where, tables, features, None)


def _features(by_split: dict[str | None, dict[str, Any]], where: str) -> dict[str, Any]:
    """Returns the features of all splits, which must name their classes alike.

    Classes are stored as numbers: with other names in another split they would be mixed up.
    """
    first, *others = by_split.items()
    for split, features in others:
        for column in {*_columns(first[1], "ClassLabel"), *_columns(features, "ClassLabel")}:
            names = [(one.get(column) or {}).get("names") for one in (first[1], features)]
            if names[0] != names[1]:
                raise ValueError(
                    f"the splits of {where} name the classes of column {column} differently, "
                    f"{first[0]} by {names[0]} and {split} by {names[1]}: cast them to one "
                    "ClassLabel, with cast_column"
                )
    return first[1]


def _json(path: Path) -> Any:
    with explained(f"{path} can not be read", _REMEDY):
        return json.loads(path.read_text())


def _arrow(folder: Path, state: dict[str, Any]) -> Any:
    with needs("train", "reading Hugging Face datasets"):
        import pyarrow as pa

    tables = []
    for file in state.get("_data_files", []):
        path = folder / file["filename"]
        with explained(f"{path} can not be read", _REMEDY), pa.memory_map(str(path)) as mapped:
            tables.append(pa.ipc.open_stream(mapped).read_all())
    if not tables:
        raise ValueError(f"{folder} names no files of data; {_REMEDY}")
    return pa.concat_tables(tables)


def _joined(
    name: str,
    form: str,
    where: str,
    tables: dict[str | None, Any],
    features: dict[str, Any],
    folder: Path | None,
) -> Table:
    """Joins the tables of the splits, with images, classes and vectors chosen by feature type."""
    import pyarrow as pa

    with explained(f"the splits of {where} can not be joined", "save all with the same features"):
        table = pa.concat_tables(list(tables.values()))
    check_names(table.column_names, Path(where))
    if not table.num_rows:
        raise ValueError(f"{where} has no rows")
    columns = {one: arrow_column(table[one]) for one in table.column_names}
    chosen = {}
    if not {"left", "right"} <= columns.keys():
        images = _columns(features, "Image")
        vectors = [one for one in columns if _is_vector(table.schema.field(one).type)]
        chosen["image" if images else "vector"] = _only(
            images or vectors, "image" if images else "vector", where, columns
        )
        classes = _columns(features, "ClassLabel")
        if classes:
            chosen["class"] = _only(classes, "label", where, columns)
    renamed = {old: new for new, old in chosen.items()}
    # Another column of that name stays, as an attribute.
    for new, old in chosen.items():
        if new != old and new in columns:
            free = f"other_{new}"
            while free in columns:
                free = f"other_{free}"
            renamed[new] = free
    columns = {renamed.get(one, one): values for one, values in columns.items()}
    names = {
        renamed.get(one, one): tuple(features[one]["names"])
        for one in _columns(features, "ClassLabel")
    }
    if None not in tables:
        columns["split"] = [split for split, part in tables.items() for _ in range(part.num_rows)]
    return Table(name, form, where, columns, folder, names)


def _columns(features: dict[str, Any], kind: str) -> list[str]:
    return [
        name
        for name, one in features.items()
        if isinstance(one, Mapping) and one.get("_type") == kind
    ]


def _is_vector(kind: Any) -> bool:
    import pyarrow as pa

    lists = (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )
    return bool(lists and pa.types.is_floating(kind.value_type))


def _only(candidates: list[str], usual: str, where: str, columns: Mapping[str, Any]) -> str:
    if usual in candidates or len(candidates) == 1:
        return usual if usual in candidates else candidates[0]
    raise ValueError(
        f"{where} has {len(candidates)} columns that may be the {usual}, expected one, or one "
        f"called {usual!r}; its columns are {', '.join(columns)}; select_columns chooses among them"
    )

"""Vectors of another model, in files of NumPy and safetensors."""

from pathlib import Path
from typing import Any

import numpy as np

from contrastive_jax._extras import needs
from contrastive_jax.data._errors import explained
from contrastive_jax.data._own import tables
from contrastive_jax.data._own.rows import Table

SUFFIXES = (".npz", ".npy", ".parquet", ".safetensors")
"""Endings of the files that `read_without_classes` reads."""
_VECTORS = ("embeddings", "vectors")
_CLASSES = ("classes", "labels")


def read_npz(path: Path) -> Table:
    """Reads an `.npz` with `embeddings` or `vectors`, and `classes` or `labels`.

    Raises:
      ValueError: if it is damaged, an array is missing or holds Python objects, or their lengths
        differ.
    """
    return _table(path, _arrays_of_npz(path), "arrays (.npz)")


def read_safetensors(path: Path) -> Table:
    """Reads safetensors with `embeddings` or `vectors`, and `classes` or `labels` of integers.

    Raises:
      ImportError: if safetensors is not installed.
      ValueError: as `read_npz`.
    """
    return _table(path, _arrays_of_safetensors(path), "arrays (safetensors)")


def read_npy(path: Path) -> Table:
    """Reads an `.npy` of vectors, and its labels from the `.npy` beside it.

    The labels of x.npy are x_labels.npy, x_classes.npy, labels.npy or classes.npy, in this order.

    Raises:
      ValueError: if there is no file of labels, a file is damaged, or lengths differ.
    """
    candidates = [
        path.with_name(name)
        for name in (
            *(f"{path.stem}_{one}.npy" for one in reversed(_CLASSES)),
            *(f"{one}.npy" for one in reversed(_CLASSES)),
        )
    ]
    beside = next((one for one in candidates if one.exists() and one != path), None)
    if beside is None:
        raise ValueError(
            f"{path} has no labels beside it; save the class of each row as {candidates[0].name}, "
            f"or as one of {', '.join(one.name for one in candidates[1:])}"
        )
    arrays = {"embeddings": _array_of_npy(path), "classes": _array_of_npy(beside)}
    return _table(path, arrays, f"an array with labels in {beside.name}")


def read_without_classes(path: Path) -> tuple[list[str], np.ndarray]:
    """Reads vectors that need no classes, as a trained head takes them.

    Args:
      path: `.npz` or `.safetensors` with `embeddings` or `vectors`, and names of the rows as
        `paths` if there are any; Parquet with a column `vector`, and names as `path`; or `.npy`.

    Returns:
      Names of the rows, by default `row 0` and so on, and the array as it is.

    Raises:
      ImportError: if the package that reads the file is not installed.
      ValueError: if it is damaged or another file, or has no vectors, or names of other rows.
    """
    if path.suffix == ".parquet":
        return _read_parquet(path)
    if path.suffix == ".npy":
        arrays = {"embeddings": _array_of_npy(path)}
    elif path.suffix == ".npz":
        arrays = _arrays_of_npz(path)
    else:
        arrays = _arrays_of_safetensors(path)
    vectors = arrays[_one_name(path, arrays, _VECTORS)]
    count = len(np.atleast_1d(vectors))
    names = arrays.get("paths", np.array([f"row {k}" for k in range(count)]))
    if len(np.atleast_1d(names)) != count:
        raise ValueError(
            f"{path} has {len(np.atleast_1d(names))} paths for {count} vectors: give a path for "
            "each, or none"
        )
    return [str(name) for name in np.atleast_1d(names)], vectors


def _read_parquet(path: Path) -> tuple[list[str], np.ndarray]:
    table = tables.read_parquet(path)
    column = tables.reserved(table).get("vector")
    if column is None:
        raise ValueError(
            f"{path} has no column vector; its columns are {', '.join(map(str, table.columns))}"
        )
    rows = len(table.columns[column])
    contents, names = tables.contents_of(table, column, table.columns.get("path", [None] * rows))
    if not isinstance(contents, np.ndarray):
        raise ValueError(f"the column {column} of {path} has no vectors")
    return names, contents


def _arrays_of_npz(path: Path) -> dict[str, np.ndarray]:
    with (
        explained(f"{path} can not be read", "save arrays of numbers or strings with numpy.savez"),
        np.load(path, allow_pickle=False) as file,
    ):
        return {name: file[name] for name in file.files}


def _arrays_of_safetensors(path: Path) -> dict[str, np.ndarray]:
    with needs("export", "reading safetensors"):
        from safetensors.numpy import load_file

    with explained(f"{path} can not be read as safetensors", "write it anew"):
        arrays: dict[str, np.ndarray] = load_file(path)
    return arrays


def _array_of_npy(path: Path) -> np.ndarray:
    with explained(f"{path} can not be read", "save it with numpy.save"):
        array: np.ndarray = np.load(path, allow_pickle=False)
    return array


def _one_name(path: Path, arrays: dict[str, np.ndarray], names: tuple[str, ...]) -> str:
    """Returns the name that an array has in a file, among those that it may have."""
    present = [one for one in names if one in arrays]
    if len(present) != 1:
        raise ValueError(
            f"{path} has {len(present)} of the arrays {' and '.join(names)}, expected one; its "
            f"arrays are {', '.join(arrays) or 'none'}"
        )
    return present[0]


def _checked_pairs(path: Path, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Checks that there is one entry for each pair, and gives both sides one type."""
    count = len(arrays["left"]) if arrays["left"].ndim else 0
    for name, one in arrays.items():
        if one.ndim == 0 or len(one) != count:
            raise ValueError(
                f"{path} has {count} vectors as left, and an array of shape {list(one.shape)} as "
                f"{name}; expected one entry for each pair"
            )
    # A vector that is in both is one vector, whatever it was stored as.
    dtype = np.result_type(arrays["left"], arrays["right"])
    return arrays | {name: arrays[name].astype(dtype) for name in ("left", "right")}


def _table(path: Path, arrays: dict[str, np.ndarray], form: str) -> Table:
    if "left" in arrays and "right" in arrays:
        return Table(path.stem, form, str(path), _checked_pairs(path, arrays))
    columns: dict[str, Any] = {}
    for names, meant in ((_VECTORS, "vector"), (_CLASSES, "class")):
        columns[meant] = arrays[_one_name(path, arrays, names)]
    rest = {name: one for name, one in arrays.items() if name not in (*_VECTORS, *_CLASSES)}
    columns |= rest
    count = len(columns["vector"]) if columns["vector"].ndim else 0
    for name, one in columns.items():
        if one.ndim == 0 or len(one) != count or (name != "vector" and one.ndim != 1):
            raise ValueError(
                f"{path} has {count} vectors, and an array of shape {list(one.shape)} as {name}; "
                "expected one entry for each vector"
            )
    return Table(path.stem, form, str(path), columns, path.parent)


def in_float32(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns vectors `[N, D]` in float32, and the mask of those of finite length, `[N]`."""
    with np.errstate(over="ignore"):
        vectors = vectors.astype(np.float32)
        # An encoder of longer vectors would compute with infinities.
        return vectors, np.isfinite(np.einsum("nd,nd->n", vectors, vectors))

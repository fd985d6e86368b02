"""Vectors of another model, in files of NumPy and safetensors."""

from pathlib import Path
from typing import Any

import numpy as np

from contrastive_jax._extras import needs
from contrastive_jax.data._errors import explained
from contrastive_jax.data._own.rows import Table

_VECTORS = ("embeddings", "vectors")
_CLASSES = ("classes", "labels")


def read_npz(path: Path) -> Table:
    """Reads an `.npz` with `embeddings` or `vectors`, and `classes` or `labels`.

    Raises:
      ValueError: if it is damaged, an array is missing or holds Python objects, or their lengths
        differ.
    """
    with (
        explained(f"{path} can not be read", "save arrays of numbers or strings with numpy.savez"),
        np.load(path, allow_pickle=False) as file,
    ):
        arrays = {name: file[name] for name in file.files}
    return _table(path, arrays, "arrays (.npz)")


def read_safetensors(path: Path) -> Table:
    """Reads safetensors with `embeddings` or `vectors`, and `classes` or `labels` of integers.

    Raises:
      ImportError: if safetensors is not installed.
      ValueError: as `read_npz`.
    """
    with needs("export", "reading safetensors"):
        from safetensors.numpy import load_file

    with explained(f"{path} can not be read as safetensors", "write it anew"):
        arrays = load_file(path)
    return _table(path, arrays, "arrays (safetensors)")


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
    arrays = {}
    for name, file in (("embeddings", path), ("classes", beside)):
        with explained(f"{file} can not be read", "save it with numpy.save"):
            arrays[name] = np.load(file, allow_pickle=False)
    return _table(path, arrays, f"an array with labels in {beside.name}")


def _of_pairs(path: Path, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
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
        return Table(path.stem, form, str(path), _of_pairs(path, arrays))
    columns: dict[str, Any] = {}
    for names, meant in ((_VECTORS, "vector"), (_CLASSES, "class")):
        present = [one for one in names if one in arrays]
        if len(present) != 1:
            raise ValueError(
                f"{path} has {len(present)} of the arrays {' and '.join(names)}, expected one; its "
                f"arrays are {', '.join(arrays) or 'none'}"
            )
        columns[meant] = arrays[present[0]]
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

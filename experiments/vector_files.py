"""Vectors from files, as a run on vectors takes them."""

from pathlib import Path

import numpy as np

from contrastive_jax.data._errors import explained
from contrastive_jax.data._own import tables
from contrastive_jax.train import Run

SUFFIXES = (".npz", ".parquet")


def read(path: Path, run: Run) -> tuple[list[str], np.ndarray]:
    """Reads the vectors of a file.

    Args:
      path: `.npz` with an array `embeddings` or `vectors`, and names of the rows as `paths` if
        there are any; or Parquet with a column `vector`, and names as `path`.
      run: trained on vectors.

    Returns:
      Names of the vectors, by default `row 0` and so on, and the vectors, `[N, V]` float32.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is another file or damaged, the run takes images, or vectors are of another
        length or not finite.
    """
    width = run.image_shape[0]
    if len(run.image_shape) > 1:
        raise ValueError(f"the run takes images, and {path} holds vectors: give pictures")
    if path.suffix not in SUFFIXES or path.is_dir():
        raise ValueError(
            f"the run takes vectors of {width} entries: give them in a file (.npz with an array "
            f"embeddings, .parquet with a column vector), got {path}"
        )
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    names, vectors = _read_npz(path) if path.suffix == ".npz" else _read_parquet(path)
    if vectors.ndim != 2 or vectors.shape[1] != width or vectors.dtype.kind not in "fiu":
        raise ValueError(
            f"the run takes vectors of {width} entries, and {path} has {vectors.dtype} of shape "
            f"{list(vectors.shape)}"
        )
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise ValueError(f"{len(bad):,} vectors of {path} are not finite: {names[bad[0]]} first")
    return names, vectors.astype(np.float32)


def _read_npz(path: Path) -> tuple[list[str], np.ndarray]:
    with (
        explained(f"{path} can not be read", "save arrays of numbers or strings with numpy.savez"),
        np.load(path, allow_pickle=False) as file,
    ):
        arrays = {name: file[name] for name in file.files}
    present = [name for name in ("embeddings", "vectors") if name in arrays]
    if len(present) != 1:
        raise ValueError(
            f"{path} has {len(present)} of the arrays embeddings and vectors, expected one; its "
            f"arrays are {', '.join(arrays) or 'none'}"
        )
    vectors = arrays[present[0]]
    names = arrays.get("paths", np.array([f"row {k}" for k in range(len(np.atleast_1d(vectors)))]))
    if len(names) != len(np.atleast_1d(vectors)):
        raise ValueError(
            f"{path} has {len(names)} paths for {len(np.atleast_1d(vectors))} vectors: give a path "
            "for each, or none"
        )
    return [str(name) for name in names], vectors


def _read_parquet(path: Path) -> tuple[list[str], np.ndarray]:
    table = tables.read_parquet(path)
    if "vector" not in table.columns:
        raise ValueError(
            f"{path} has no column vector; its columns are {', '.join(map(str, table.columns))}"
        )
    rows = len(table.columns["vector"])
    contents, names = tables.contents_of(table, "vector", table.columns.get("path", [None] * rows))
    if not isinstance(contents, np.ndarray):
        raise ValueError(f"the column vector of {path} has no vectors")
    return names, contents

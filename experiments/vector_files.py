"""Vectors from files, as a run on vectors takes them."""

from pathlib import Path

import numpy as np

from contrastive_jax.data._own.vectors import SUFFIXES, read_without_classes
from contrastive_jax.train import Run


def read(path: Path, run: Run) -> tuple[list[str], np.ndarray]:
    """Reads the vectors of a file.

    Args:
      path: a file of vectors, as `read_without_classes` takes it.
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
            f"embeddings, .parquet with a column vector, .npy or .safetensors), got {path}"
        )
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    names, vectors = read_without_classes(path)
    if vectors.ndim != 2 or vectors.shape[1] != width or vectors.dtype.kind not in "fiu":
        raise ValueError(
            f"the run takes vectors of {width} entries, and {path} has {vectors.dtype} of shape "
            f"{list(vectors.shape)}"
        )
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise ValueError(f"{len(bad):,} vectors of {path} are not finite: {names[bad[0]]} first")
    return names, vectors.astype(np.float32)

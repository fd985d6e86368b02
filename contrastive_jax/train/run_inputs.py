"""Images and vectors from files as a run takes them, and a file of their embeddings."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from contrastive_jax._extras import needs
from contrastive_jax.data._own.vectors import SUFFIXES, in_float32, read_without_classes
from contrastive_jax.data.pictures import pictures_in, read_pictures
from contrastive_jax.train.run import Run


def read_inputs(run: Run, sources: Iterable[Path]) -> tuple[list[str], np.ndarray]:
    """Reads pictures, or files of vectors, as the inputs that a run takes.

    Args:
      run: trained on images, or on vectors.
      sources: for a run on images pictures or folders of them; for a run on vectors files of them:
        `.npz` or `.safetensors` with an array `embeddings`, `.parquet` with a column `vector`, or
        `.npy`.

    Returns:
      Names of the inputs, N, and the inputs, `[N, H, W, C]` or `[N, V]`. A picture is named by its
      path, one of a folder by its path from there, and a vector as its file names it, by default
      `row 0` and so on; of several folders or files the names begin with their paths.

    Raises:
      FileNotFoundError: if there is no such file, or no picture in a folder.
      ValueError: if a file is damaged, or holds something else than the run takes.

    Example:
      >>> from pathlib import Path
      >>> import numpy as np
      >>> import contrastive_jax as cj
      >>> from PIL import Image
      >>> from contrastive_jax.train.run_inputs import read_inputs
      >>> digits, objective = cj.data.load("digits"), cj.train.objective("contrastive")
      >>> run = cj.train.fit(cj.models.MLP, digits, objective, steps=20, progress=False)
      >>> Image.fromarray(np.zeros((16, 16), np.uint8)).save("zero.png")
      >>> names, images = read_inputs(run, [Path("zero.png")])
      >>> names, images.shape
      (['zero.png'], (1, 8, 8, 1))
    """
    paths = [*sources]
    parts = [_inputs_of(run, path) for path in paths]
    between = " " if len(run.image_shape) == 1 else "/"
    names = [
        f"{path}{between}{name}" if name and len(paths) > 1 else name or str(path)
        for path, (entries, _) in zip(paths, parts, strict=True)
        for name in entries
    ]
    if not parts:
        return [], np.empty((0, *run.image_shape), run.image_dtype)
    inputs = [inputs for _, inputs in parts]
    return names, inputs[0] if len(inputs) == 1 else np.concatenate(inputs)


def _inputs_of(run: Run, path: Path) -> tuple[list[str], np.ndarray]:
    """Reads the inputs of one file or folder; a single picture has an empty name."""
    if len(run.image_shape) == 1:
        return _vectors_of(path, run.image_shape[0])
    if path.suffix in SUFFIXES and not path.is_dir():
        raise ValueError(f"the run takes images, and {path} holds vectors: give pictures")
    if path.is_file() or (path.suffix and not path.is_dir()):
        return [""], read_pictures([path], run.image_shape, run.image_dtype)
    pictures = pictures_in(path)
    names = [one.relative_to(path).as_posix() for one in pictures]
    return names, read_pictures(pictures, run.image_shape, run.image_dtype)


def _vectors_of(path: Path, width: int) -> tuple[list[str], np.ndarray]:
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
    vectors, finite = in_float32(vectors)
    bad = np.flatnonzero(~finite)
    if len(bad):
        raise ValueError(
            f"{len(bad):,} vectors of {path} or their lengths are not finite: {names[bad[0]]} first"
        )
    return names, vectors


def check_embeddings_file(path: Path) -> None:
    """Checks that embeddings can be written to a file of this name.

    Raises:
      ImportError: if it is Parquet and pyarrow is not installed.
      ValueError: if it ends in neither `.parquet` nor `.npz`.

    Example:
      >>> from pathlib import Path
      >>> from contrastive_jax.train.run_inputs import check_embeddings_file
      >>> check_embeddings_file(Path("vectors.npz"))
    """
    if path.suffix not in (".parquet", ".npz"):
        raise ValueError(f"path must end in .parquet or .npz, got {path}")
    if path.suffix == ".parquet":
        with needs("train", "writing Parquet"):
            import pyarrow.parquet  # noqa: F401


def save_embeddings(path: Path, names: Sequence[str], embeddings: np.ndarray) -> None:
    """Writes embeddings and their names to a file, which `contrastive_jax.data.load` can read.

    It is renamed when it is whole, so that a file of this name is never half written.

    Args:
      path: `.parquet`, with columns `path` and `vector`, or `.npz`, with arrays `paths` and
        `embeddings`. Its folder is made if need be.
      names: of the embeddings, N.
      embeddings: `[N, D]`.

    Raises:
      ImportError, ValueError: as `check_embeddings_file`.

    Example:
      >>> from pathlib import Path
      >>> import numpy as np
      >>> from contrastive_jax.train.run_inputs import save_embeddings
      >>> save_embeddings(Path("vectors.npz"), ["one", "two"], np.zeros((2, 64), np.float32))
      >>> np.load("vectors.npz")["embeddings"].shape
      (2, 64)
    """
    check_embeddings_file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}{path.suffix}")
    if path.suffix == ".npz":
        np.savez(fresh, paths=np.array(names), embeddings=embeddings)
    else:
        import pyarrow as pa
        from pyarrow import parquet

        vectors: Any = pa.FixedSizeListArray.from_arrays(embeddings.ravel(), embeddings.shape[1])
        parquet.write_table(pa.table({"path": list(names), "vector": vectors}), fresh)
    fresh.replace(path)

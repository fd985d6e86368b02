"""Recognises the form of data of one's own, by its name and its contents."""

from pathlib import Path
from typing import Any

from contrastive_jax.data._own import folders, hugging_face, tables, vectors
from contrastive_jax.data._own.rows import Rows, Table

READERS = {
    ".csv": tables.read_csv,
    ".tsv": tables.read_csv,
    ".parquet": tables.read_parquet,
    ".npz": vectors.read_npz,
    ".npy": vectors.read_npy,
    ".safetensors": vectors.read_safetensors,
}
_TAKEN = (
    "a folder of class folders of images, a folder of Hugging Face's save_to_disk, or a file "
    f"{', '.join(READERS)}"
)


def looks_like_path(text: str) -> bool:
    """Tells whether a string is a path by its form, whether or not there is such a file."""
    return text.startswith((".", "/", "~")) or Path(text).suffix.lower() in READERS


def read(source: Any) -> Table | Rows:
    """Reads the table, or lists the images, that a path or an object of `datasets` holds.

    Raises:
      FileNotFoundError: if there is no such file or folder.
      ImportError: if the package that reads it is not installed.
      ValueError: if it is none of the forms, or damaged.
    """
    if not isinstance(source, str | Path):
        if hugging_face.is_object(source):
            return hugging_face.read_object(source)
        raise ValueError(
            f"data must be a name, a path or a Dataset of Hugging Face, got a "
            f"{type(source).__name__}; contrastive_jax.data.from_arrays takes arrays"
        )
    try:
        path = Path(source).expanduser()
    except RuntimeError as error:
        raise ValueError(f"--data {source} names no home folder: {error}") from error
    if path.is_dir():
        if hugging_face.is_saved(path):
            return hugging_face.read_saved(path)
        return folders.read_folder(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {path}; expected {_TAKEN}")
    suffix = path.suffix.lower()
    if suffix in READERS:
        return READERS[suffix](path)
    if suffix in folders.SUFFIXES:
        raise ValueError(f"{path} is a single image; expected {_TAKEN}")
    raise ValueError(f"{path} is of no form that is read here; expected {_TAKEN}")

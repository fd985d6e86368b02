"""Decoded images of a prepared data set, kept in a file beside what they were decoded from.

Decoding 70,000 pictures takes ten seconds and reading their pixels a tenth of one. The file holds
what it was made from: names, sizes and times of the prepared files, the options and the versions
that decide about pixels. If any of that differs, or the file is damaged, it is as if there were
none. It is written under a name of its own and renamed, so that processes may write at the same
time. Where it can not be written, images are decoded at every start.
"""

import contextlib
import io
import json
import os
import uuid
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

# To be raised when the same files are decoded to other pixels or classes than before.
_FORMAT = 1


class Decoded(NamedTuple):
    """The splits of a data set that have examples with a label."""

    class_names: tuple[str, ...]
    images: dict[str, np.ndarray]
    classes: dict[str, np.ndarray]
    notes: tuple[str, ...]
    """Warnings about examples that were left out or changed."""


def source_of(folder: Path, image_size: int | None) -> dict[str, Any] | None:
    """Describes what images are decoded from, or returns None if the folder can not be read."""
    from PIL import __version__ as pillow

    try:
        files = sorted(
            (path.name, path.stat().st_size, path.stat().st_mtime_ns)
            for path in folder.iterdir()
            if path.is_file() and not _is_own(path)
        )
    except OSError:
        return None
    return {
        "format": _FORMAT,
        "image_size": image_size,
        "pillow": pillow,
        "files": [list(file) for file in files],
    }


def read(folder: Path, source: dict[str, Any] | None) -> Decoded | None:
    """Reads the decoded images of a source, or returns None if there are none."""
    if source is None:
        return None
    try:
        # Reading an entry of an archive compares it with its checksum.
        path = _path(folder, source["image_size"])
        with path.open("rb") as stored, np.load(stored) as file:
            about = json.loads(file["about"].tobytes())
            if about["source"] != source:
                return None
            images = {split: file[f"{split}_images"] for split in about["splits"]}
            classes = {split: file[f"{split}_classes"] for split in about["splits"]}
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error):
        return None
    return Decoded(tuple(about["class_names"]), images, classes, tuple(about["notes"]))


def write(folder: Path, source: dict[str, Any] | None, decoded: Decoded) -> None:
    """Writes the decoded images of a source, if the folder can be written."""
    if source is None:
        return
    about = {
        "source": source,
        "splits": list(decoded.images),
        "class_names": decoded.class_names,
        "notes": decoded.notes,
    }
    arrays: dict[str, Any] = {
        "about": np.frombuffer(json.dumps(about).encode(), np.uint8),
        **{f"{split}_images": one for split, one in decoded.images.items()},
        **{f"{split}_classes": one for split, one in decoded.classes.items()},
    }
    path = _path(folder, source["image_size"])
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.new")
    # In memory first: an archive that fails half way complains once more when it is deleted.
    content = io.BytesIO()
    np.savez(content, **arrays)
    with contextlib.suppress(OSError):
        try:
            with part.open("xb") as file:
                file.write(content.getbuffer())
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


def _path(folder: Path, image_size: int | None) -> Path:
    return folder / (f"decoded-{image_size}.npz" if image_size else "decoded.npz")


def _is_own(path: Path) -> bool:
    return path.name.startswith("decoded") and ".npz" in path.name

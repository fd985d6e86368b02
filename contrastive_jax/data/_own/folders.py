"""Folders of class folders of images."""

import os
from pathlib import Path

from contrastive_jax.data._own.rows import Rows, split_name
from contrastive_jax.data.findings import finding

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
_REMEDY = (
    "put the images of each class into a folder of its own, as FOLDER/CLASS/IMAGE.png or "
    "FOLDER/train/CLASS/IMAGE.png, or list them in a table with columns path and class"
)


def read_folder(folder: Path) -> Rows:
    """Lists the images of a folder of class folders, or of splits above class folders.

    A folder has splits where each of its folders is named train, validation (or val) or test.
    Hidden files and folders, whose names begin with a dot, are left out. Links are followed.

    Raises:
      ValueError: if there are no class folders, no images, or folders inside of class folders.
    """
    folders, files = _entries(folder)
    parts = _by_split(folder, folders)
    has_splits = parts[0][0] is not None
    images: list[tuple[Path, str, str | None]] = []
    # Without splits the loop below passes over the files of this folder itself.
    outside = _images(files) if has_splits else []
    others = _others(files) if has_splits else []
    empty = []
    for name, part in parts:
        classes, loose = _entries(part)
        outside += _images(loose)
        others += _others(loose)
        if not classes:
            raise ValueError(_without_classes(part, loose))
        for one in classes:
            inside, members = _entries(one)
            _check_not_nested(one, inside)
            others += _others(members)
            pictures = _images(members)
            images += [(path, one.name, name) for path in pictures]
            empty += [] if pictures else [one]
    if not images:
        raise ValueError(
            f"{folder} has no images ({', '.join(SUFFIXES)}) in class folders; {_REMEDY}"
        )

    def relative(paths: list[Path]) -> list[str]:
        return [path.relative_to(folder).as_posix() for path in paths]

    return Rows(
        folder.resolve().name,
        "a folder of class folders of images" + (" by split" if has_splits else ""),
        str(folder),
        [path for path, _, _ in images],
        [label for _, label, _ in images],
        relative([path for path, _, _ in images]),
        [name for _, _, name in images] if has_splits else None,
        findings=(
            *finding("images outside of class folders, which are left out", relative(outside)),
            *finding("files that are no images, which are left out", relative(others), warns=False),
            *finding("class folders without images", relative(empty)),
        ),
    )


def _by_split(folder: Path, folders: list[Path]) -> list[tuple[str | None, Path]]:
    """Returns the folders of the splits with their names, or this folder where there are none."""
    names = [split_name(one.name) for one in folders]
    if folders and None not in names:
        if len({*names}) < len(names):
            raise ValueError(
                f"{folder} has two folders of one split among "
                f"{', '.join(one.name for one in folders)}; leave one of train, one of validation "
                "and one of test"
            )
        return [*zip(names, folders, strict=True)]
    for name, one in zip(names, folders, strict=True):
        if name and _entries(one)[0]:
            other = folders[names.index(None)]
            raise ValueError(
                f"{folder} has the split {one.name} beside {other.name}, which is no split; move "
                f"{other.name} elsewhere, or name the folder of one split"
            )
    return [(None, folder)]


def _entries(folder: Path) -> tuple[list[Path], list[Path]]:
    """Returns folders and files that are not hidden, in the order of their names."""
    with os.scandir(folder) as entries:
        shown = sorted(
            (entry for entry in entries if not entry.name.startswith((".", "__MACOSX"))),
            key=lambda entry: entry.name,
        )
    folders = [folder / entry.name for entry in shown if entry.is_dir()]
    return folders, [folder / entry.name for entry in shown if not entry.is_dir()]


def _images(files: list[Path]) -> list[Path]:
    return [path for path in files if path.suffix.lower() in SUFFIXES]


def _others(files: list[Path]) -> list[Path]:
    return [path for path in files if path.suffix.lower() not in SUFFIXES]


def _check_not_nested(one: Path, inside: list[Path]) -> None:
    """Checks that folders in a class folder hold no images, whose class would be a guess."""
    for folder in inside:
        for where, _, names in os.walk(folder):
            images = sorted(name for name in names if Path(name).suffix.lower() in SUFFIXES)
            if images:
                raise ValueError(
                    f"{Path(where) / images[0]} lies in a folder inside of the class folder {one}, "
                    f"and its class may be {one.name} or {Path(where).name}; {_REMEDY}"
                )


def _without_classes(folder: Path, files: list[Path]) -> str:
    images = _images(files)
    if images:
        return (
            f"{folder} has {len(images):,} images and no class folders, so that their classes are "
            f"not given; {_REMEDY}"
        )
    tables = [path.name for path in files if path.suffix in (".csv", ".tsv", ".parquet", ".npz")]
    if tables:
        return f"{folder} has no class folders; if {tables[0]} is the data, name that file"
    return f"{folder} is empty: it has neither class folders nor images; {_REMEDY}"

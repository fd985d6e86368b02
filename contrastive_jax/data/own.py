"""Data of one's own: folders, tables, vectors, Hugging Face `datasets`, and arrays."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from contrastive_jax.checks import check_seed
from contrastive_jax.data._own import examples, pair_sets, pair_tables, recognise, tables
from contrastive_jax.data._own.examples import Choices
from contrastive_jax.data._own.rows import Rows, Table
from contrastive_jax.data.datasets import Dataset, PairDataset
from contrastive_jax.data.findings import Report, message

SplitBy = Literal["classes", "examples"]


def load_with_report(
    source: str | Path | Any,
    *,
    image_size: int | None = None,
    split_by: SplitBy | None = None,
    similar_label: Literal[0, 1] | None = None,
    on_bad_input: Literal["error", "skip"] = "error",
    validation_fraction: float = 0.1,
    seed: int = 0,
) -> tuple[Dataset | PairDataset, Report]:
    """Loads data of one's own, and reports what it is and what is wrong with it.

    These forms are told apart by what is there:

    - a folder of class folders of images (PNG, JPEG, WebP, BMP, TIFF, GIF), with or without folders
      train, validation (or val) and test above them;
    - a table, CSV or Parquet, with a column `class` (or `label`) and one of `path` (relative to the
      table), `image` (bytes) or `vector`; optional are `split`, `group`, `role` (query or gallery),
      and other columns, which become attributes;
    - a table of pairs with columns `left`, `right` and one of `similar`, `same`, `dissimilar`,
      `different`, or `label` with `similar_label`; optional are `split` and `weight`;
    - vectors: `.npz` and safetensors with `embeddings` (or `vectors`) and `classes` (or `labels`),
      and `.npy` with labels in an `.npy` beside it (x.npy with x_labels.npy, x_classes.npy,
      labels.npy or classes.npy);
    - a folder that Hugging Face `datasets` wrote with `save_to_disk`, a `Dataset` or a
      `DatasetDict`, with columns chosen by their feature types.

    Classes are sorted by name, or by value if all names are integers. Examples of a split are
    sorted by class, and within a class by a digest of their pixels or entries. The same images give
    the same arrays from every form, whatever the names of files and the order of rows.

    Images are grey if all of them are, and RGB otherwise. Those of several sizes are scaled to
    squares.

    Args:
      source: a path, or an object of `datasets`.
      image_size: side in pixels to which images are scaled; by default images of one size keep it,
        and others get the median of their shorter sides, at most 64.
      split_by: how splits are made where none are given: `classes` (no class of validation and test
        is seen in training) or `examples` (of every class). By default classes where at least 20
        classes have two examples and half of these fewer than ten, and otherwise examples. Groups
        are never divided. For pairs, `classes` keeps every image in one split.
      similar_label: the label of positive pairs in a column `label`.
      on_bad_input: `error` raises for images that can not be read, vectors that are not finite and
        pairs that contradict each other; `skip` leaves them out.
      validation_fraction: share held out for validation, in (0, 1/4]; test takes twice as
        much.
      seed: of the splits, in [0, 2^32).

    Returns:
      The data, and the report.

    Raises:
      FileNotFoundError: if there is no such file.
      ImportError: if the package that reads it is not installed.
      ValueError: if it is none of these forms or damaged, or an argument has no effect on it.

    Example:
      >>> import pathlib, tempfile
      >>> import numpy as np
      >>> from contrastive_jax.data import load_with_report
      >>> from contrastive_jax.data.findings import as_text
      >>> file = pathlib.Path(tempfile.mkdtemp()) / "birds.npz"
      >>> vectors = np.random.default_rng(0).normal(size=(40, 8))
      >>> np.savez(file, embeddings=vectors, classes=np.repeat(["tit", "wren"], 20))
      >>> data, report = load_with_report(file)
      >>> data.class_names, data.train.images.shape
      (('tit', 'wren'), (28, 8))
      >>> print(as_text(report).splitlines()[0])
      birds: arrays (.npz) of vectors, 40 vectors of 8 entries
    """
    choices = _choices(image_size, split_by, on_bad_input, validation_fraction, seed)
    if similar_label not in (None, 0, 1):
        raise ValueError(f"similar_label must be 0 or 1, got {similar_label!r}")
    read = recognise.read(source)
    if isinstance(read, Table) and pair_tables.is_pair_table(read):
        return pair_sets.pair_dataset(read, similar_label, choices)
    if similar_label is not None:
        where = read.where
        raise ValueError(
            f"--similar_label has no effect on {where}, which holds classes and no pairs: leave it "
            "out"
        )
    return examples.dataset(tables.rows_of(read) if isinstance(read, Table) else read, choices)


def from_arrays(
    images: ArrayLike,
    classes: ArrayLike,
    *,
    splits: Sequence[str] | None = None,
    groups: Sequence[Any] | None = None,
    roles: Sequence[str] | None = None,
    attributes: Mapping[str, ArrayLike] | None = None,
    name: str = "arrays",
    split_by: SplitBy | None = None,
    validation_fraction: float = 0.1,
    seed: int = 0,
) -> Dataset:
    """Makes a data set of arrays, with splits as `load_with_report` makes them.

    Args:
      images: `uint8` `[N, H, W]` or `[N, H, W, C]`, or vectors `[N, D]`.
      classes: integers, strings or booleans, `[N]`; examples of class -1, of an empty string or
        of a masked entry are left out.
      splits: `train`, `validation` or `test` for each, `[N]`.
      groups: names or numbers of groups, `[N]`, which are never divided between splits.
      roles: `query` or `gallery` for each, `[N]`.
      attributes: other arrays by name, `[N]` each.
      name: of the data set.
      split_by: as in `load_with_report`.
      validation_fraction: as in `load_with_report`.
      seed: of the splits, in [0, 2^32).

    Raises:
      ValueError: if arrays differ in length or have other types or shapes, or are too few to split.
        What else may spoil a training is a warning.

    Example:
      >>> import numpy as np
      >>> from contrastive_jax.data import from_arrays
      >>> images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), np.uint8)
      >>> data = from_arrays(images, np.repeat(["tit", "wren"], 20))
      >>> data.class_names, data.train.images.shape
      (('tit', 'wren'), (28, 8, 8, 1))
    """
    choices = _choices(None, split_by, "error", validation_fraction, seed)
    array = np.asarray(images)
    if array.ndim not in (2, 3, 4) or not len(array):
        raise ValueError(
            f"images must be [N, H, W], [N, H, W, C] or vectors [N, D], got {list(array.shape)}"
        )
    columns = {"classes": classes, "splits": splits, "groups": groups, "roles": roles}
    given = {one: np.asarray(values) for one, values in columns.items() if values is not None}
    extra = {one: np.asarray(values) for one, values in (attributes or {}).items()}
    for one, values in (given | extra).items():
        if values.shape != (len(array),):
            raise ValueError(
                f"{one} must have one entry for each of {len(array)} images, got the shape "
                f"{list(values.shape)}"
            )
    optional = {
        one: given[one].tolist() if one in given else None for one in ("splits", "groups", "roles")
    }
    rows = Rows(
        name,
        f"arrays of {'vectors' if array.ndim == 2 else 'images'}",
        name,
        array,
        np.ma.asarray(classes).tolist(),  # None where a class is masked
        [f"row {k}" for k in range(len(array))],
        splits=optional["splits"],
        groups=optional["groups"],
        roles=optional["roles"],
        attributes=extra,
    )
    data, report = examples.dataset(rows, choices)
    warn(report)
    return data


def warn(report: Report) -> None:
    """Warns of each finding of a report that may spoil a training.

    Example:
      >>> from contrastive_jax.data.findings import Report
      >>> from contrastive_jax.data.own import warn
      >>> warn(Report("pets", "arrays", "vectors of 8 entries", "given", (), ()))
    """
    for one in report.findings:
        if one.warns:
            warnings.warn(f"{report.name}: {message(one)}", stacklevel=3)


def _choices(
    image_size: int | None,
    split_by: str | None,
    on_bad_input: str,
    validation_fraction: float,
    seed: int,
) -> Choices:
    check_seed(seed)
    if image_size is not None and image_size < 1:
        raise ValueError(f"--image_size must be at least 1 pixel, got {image_size}")
    if split_by not in (None, "classes", "examples"):
        raise ValueError(f"split_by must be classes or examples, got {split_by!r}")
    if on_bad_input not in ("error", "skip"):
        raise ValueError(f"on_bad_input must be error or skip, got {on_bad_input!r}")
    if not 0 < validation_fraction <= 1 / 4:
        raise ValueError(
            f"validation_fraction must be in (0, 1/4], as test takes twice as much, got "
            f"{validation_fraction}"
        )
    return Choices(image_size, split_by, on_bad_input, validation_fraction, seed)

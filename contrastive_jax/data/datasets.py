"""Data sets, by name through tensorflow-datasets and without TensorFlow where that can be."""

import difflib
import importlib
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np

from contrastive_jax._extras import needs
from contrastive_jax.checks import check_seed
from contrastive_jax.data import _decoded
from contrastive_jax.data._errors import explained, one_line
from contrastive_jax.data.splits import hold_out, seen_classes

OWN = ("digits", "fashion_mnist", "mnist", "idx")


class Examples(NamedTuple):
    """Labelled examples of one split: images or vectors, one class each."""

    images: np.ndarray
    """Images, `uint8` `[N, H, W, C]`, or vectors of another model, `float32` `[N, D]`."""
    classes: np.ndarray
    """Numbers of the classes, `int32` `[N]`, indices into the names of the data set."""
    groups: np.ndarray | None = None
    """Number of the group of each example, such as its camera, session or subject, `int32` `[N]`;
    None where there are no groups."""
    queries: np.ndarray | None = None
    """True for a query and False for an example of the gallery, `[N]`; None where every example is
    both."""
    attributes: Mapping[str, np.ndarray] = MappingProxyType({})
    """Other columns of a table by name, `[N]` or `[N, K]` each."""
    sources: np.ndarray | None = None
    """The path of each example, or its row in a table, as strings `[N]`."""


class Dataset(NamedTuple):
    """The three splits of a data set."""

    name: str
    class_names: tuple[str, ...]
    train: Examples
    validation: Examples
    test: Examples


class GivenPairs(NamedTuple):
    """Labelled pairs of one split, as rows of the images of a `PairDataset`."""

    left: np.ndarray
    """`int32` `[P]`."""
    right: np.ndarray
    """`int32` `[P]`."""
    labels: np.ndarray
    """0 for a positive pair, 1 for a negative one, `int32` `[P]`."""
    weights: np.ndarray | None = None
    """At least 0, `float32` `[P]`; None where all are 1."""


class PairDataset(NamedTuple):
    """Images, or vectors, and the three splits of the given pairs of them."""

    name: str
    images: np.ndarray
    """Each image once, `uint8` `[N, H, W, C]`, or vectors, `float32` `[N, D]`."""
    train: GivenPairs
    validation: GivenPairs
    test: GivenPairs
    sources: np.ndarray | None = None
    """The path of each image, as strings `[N]`."""


def load(
    source: str | Path | Any,
    *,
    data_dir: str | Path | None = None,
    tfds_dir: str | Path | None = None,
    image_size: int | None = None,
    split_by: Literal["classes", "examples"] | None = None,
    similar_label: Literal[0, 1] | None = None,
    on_bad_input: Literal["error", "skip"] = "error",
    validation_fraction: float = 0.1,
    seed: int = 0,
) -> Dataset | Any:
    """Loads a data set by its name, or data of one's own by its path.

    A string is a path if it begins with `.`, `/` or `~` or ends as a file that is read here, such
    as .csv; or if there is such a file and no data set of this name. `load_with_report` says which
    forms are read and how; what may spoil a training is a warning. The rest of this description is
    of data sets by name.

    A data set is prepared and its images are decoded at the first time. Decoded images are stored
    in the folder of the prepared data set, as `decoded.npz`, or as `decoded-SIZE.npz` where they
    are scaled, and read from there later. They are decoded again when the prepared files change,
    and at every call where that folder can not be written.

    Splits are those of the data set. Where it has no validation split, a fixed part of train
    becomes one; where it has no test split, validation is the test set, or failing that another
    part of train. `check_evaluable` says whether these splits can be evaluated.

    Examples whose label is hidden (-1, or an empty string) are left out with a warning, and a split
    that has no others counts as missing. Pixels of 16 bits are scaled to 8; images with transparent
    pixels are laid on white, with a warning.

    Args:
      source: a path, a `Dataset` of Hugging Face, or a name: `digits` (1,797 digits of 8 x 8,
        always at hand), `fashion_mnist` or `mnist` (from IDX files), `idx` (from IDX files of any
        other set, such as EMNIST, with classes named by their labels), or any name in
        tensorflow-datasets with images and with class labels, or with a feature called `label`
        that is an integer or a string.
      data_dir: folder of the IDX files; by default where Debian's packages put them. A `~` at its
        beginning is the home folder, here and below.
      tfds_dir: folder of prepared data sets; by default that of tensorflow-datasets.
      image_size: side in pixels to which images are scaled; needed where they differ in size.
      split_by: `classes` trains and validates on the first half of the classes and tests on the
        others; `examples` does as the data set. For data of one's own see `load_with_report`.
      similar_label: of pairs of one's own, as in `load_with_report`.
      on_bad_input: for data of one's own, as in `load_with_report`.
      validation_fraction: share of every class of train held out for validation.
      seed: of that choice, in [0, 2^32).

    Returns:
      The data set, in memory, which is a `PairDataset` if a table has pairs.

    Raises:
      FileNotFoundError: if IDX files are missing, or there is no file of that path.
      ImportError: if packages of the extra `train` are missing, or the set can only be prepared or
        read with TensorFlow.
      ValueError: if the name is unknown, the set has no images or labels, its images differ in
        size and no `image_size` is given, they take more memory than the machine has, files are
        damaged or can not be read or written, or a split ends up empty.

    Example:
      >>> from contrastive_jax.data import load
      >>> digits = load("digits")
      >>> digits.train.images.shape[1:], len(digits.test.classes)
      ((8, 8, 1), 450)
    """
    if not isinstance(source, str) or _is_path(source):
        from contrastive_jax.data import own

        if data_dir is not None or tfds_dir is not None:
            raise ValueError(
                "data_dir and tfds_dir are of data sets by name, and have no effect on "
                f"{source}: leave them out"
            )
        data, report = own.load_with_report(
            source,
            image_size=image_size,
            split_by=split_by,
            similar_label=similar_label,
            on_bad_input=on_bad_input,
            validation_fraction=validation_fraction,
            seed=seed,
        )
        own.warn(report)
        return data
    if split_by not in (None, "classes", "examples"):
        raise ValueError(f"split_by must be classes or examples, got {split_by!r}")
    if similar_label is not None or on_bad_input != "error":
        raise ValueError(
            "similar_label and on_bad_input are of data of one's own, and have no effect on the "
            f"data set {source}: leave them out"
        )
    return _load_by_name(
        source,
        _expanded("--data_dir", data_dir),
        _expanded("--tfds_dir", tfds_dir),
        image_size,
        split_by == "classes",
        validation_fraction,
        seed,
    )


def _load_by_name(
    name: str,
    data_dir: Path | None,
    tfds_dir: Path | None,
    image_size: int | None,
    split_classes: bool,
    validation_fraction: float,
    seed: int,
) -> Dataset:
    """Loads a data set by its name."""
    check_seed(seed)
    if image_size is not None and image_size < 1:
        raise ValueError(f"--image_size must be at least 1 pixel, got {image_size}")
    decoded = _named(name, data_dir, tfds_dir, image_size)
    for note in decoded.notes:
        warnings.warn(note, stacklevel=3)
    parts = {
        split: Examples(images, decoded.classes[split]) for split, images in decoded.images.items()
    }
    train, validation, test = _three(parts, validation_fraction, seed)
    if split_classes:
        seen = seen_classes(len(decoded.class_names))
        train = _rows(train, seen[train.classes])
        validation = _rows(validation, seen[validation.classes])
        test = _rows(test, ~seen[test.classes])
    data = Dataset(name, decoded.class_names, train, validation, test)
    for split in ("train", "validation", "test"):
        if len(getattr(data, split).classes) == 0:
            raise ValueError(f"{name} has no {split} examples left")
    return data


def _is_path(source: str) -> bool:
    """Tells whether a string is a path to data of one's own, and not the name of a data set."""
    from contrastive_jax.data._own.recognise import looks_like_path

    if looks_like_path(source):
        return True
    if source in OWN or not source or not Path(source).exists():
        return False
    with needs("train", __name__):
        import tensorflow_datasets as tfds

    name = source.partition("/")[0].partition(":")[0]
    return name not in tfds.list_builders(with_community_datasets=False)


def _named(
    name: str, data_dir: Path | None, tfds_dir: Path | None, image_size: int | None
) -> _decoded.Decoded:
    """Prepares and decodes a data set by its name, or reads what was decoded before."""
    from contrastive_jax.data import _examples  # needs Pillow

    builder = _builder(name, data_dir, tfds_dir)
    image, label = _examples.image_and_label(name, builder.info)
    if not len(builder.info.splits):
        _prepare(name, builder)
        builder = _builder(name, data_dir, tfds_dir)
    folder = Path(builder.data_path)
    source = _decoded.source_of(folder, image_size)
    decoded = _decoded.read(folder, source)
    if decoded is None:
        decoded = _examples.decode(name, builder, image, label, image_size)
        _decoded.write(folder, source, decoded)
    return decoded


def _three(
    parts: dict[str, Examples], validation_fraction: float, seed: int
) -> tuple[Examples, Examples, Examples]:
    """Makes train, validation and test of the splits that there are."""

    def carve(examples: Examples) -> tuple[Examples, Examples]:
        stay, held = hold_out(examples.classes, validation_fraction, seed=seed)
        return _rows(examples, stay), _rows(examples, held)

    train = parts["train"]
    if "test" in parts:
        test = parts["test"]
    elif "validation" in parts:
        test = parts["validation"]
    else:
        train, test = carve(train)
    if {"validation", "test"} <= set(parts):
        validation = parts["validation"]
    else:
        train, validation = carve(train)
    return train, validation, test


def _rows(examples: Examples, rows: np.ndarray) -> Examples:
    return Examples(examples.images[rows], examples.classes[rows])


def _expanded(option: str, folder: str | Path | None) -> Path | None:
    """Replaces `~` at the beginning of a folder by the home folder."""
    try:
        return None if folder is None else Path(folder).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{option} {folder} names no home folder: {error}") from error


def _builder(name: str, data_dir: Path | None, tfds_dir: Path | None) -> Any:
    with needs("train", __name__):
        # The library imports the first two where it needs them, and fails there without a name.
        for package in ("importlib_resources", "tqdm", "tensorflow_datasets"):
            importlib.import_module(package)
        import tensorflow_datasets as tfds

    make: Callable[..., Any] = partial(tfds.builder, name)
    folder = tfds_dir
    if name == "digits":
        from contrastive_jax.data.digits import DigitsSklearn

        make = DigitsSklearn
    elif name in OWN:
        from contrastive_jax.data import idx

        files = idx.find_idx(name, data_dir)
        folder = idx.folder_of(files, Path(tfds_dir or tfds.core.constants.DATA_DIR))
        make = partial(idx.BUILDERS[name], files=files, class_names=idx.class_names(name, files))
    where = tfds_dir or "the folder of tensorflow-datasets"
    remedy = "delete what is damaged there to have it prepared anew, or name another folder"
    try:
        with explained(f"{name} could not be opened in {where}", f"{remedy} with --tfds_dir"):
            return make(data_dir=folder, file_format="array_record")
    except ImportError as error:
        raise ImportError(_needs_tensorflow(name)) from error
    except ValueError as error:
        if isinstance(error.__cause__, tfds.core.DatasetNotFoundError):
            raise ValueError(_unknown(name)) from None
        if "format is already set" not in str(error):
            raise
        raise ValueError(
            f"{name} was prepared in {where} in a format that is read with TensorFlow alone; name "
            "another folder with --tfds_dir to prepare it anew"
        ) from error


def _unknown(name: str) -> str:
    import tensorflow_datasets as tfds

    names = tfds.list_builders(with_community_datasets=False)
    close = difflib.get_close_matches(name, [*OWN, *names], n=5)
    return (
        f"unknown data set {name!r}; "
        + (f"close to it: {', '.join(close)}; " if close else "")
        + f"own: {', '.join(OWN)}; and {len(names)} of tensorflow-datasets "
        "(https://www.tensorflow.org/datasets/catalog/overview); nor is there a file or folder of "
        "that name"
    )


def _needs_tensorflow(name: str) -> str:
    return (
        f"{name} can only be prepared or read with TensorFlow: "
        "pip install 'contrastive_jax[tensorflow]'"
    )


def _prepare(name: str, builder: Any) -> None:
    try:
        builder.download_and_prepare()
    except ImportError as error:
        if name in OWN:  # these need no TensorFlow, and their error names what they need
            raise
        raise ImportError(_needs_tensorflow(name)) from error
    except Exception as error:
        # Another process may have prepared the same meanwhile, and moved it to its place first.
        if builder.data_path.exists():
            return
        if isinstance(error, FileNotFoundError | ValueError) and "\n" not in str(error):
            raise
        raise ValueError(
            f"{name} could not be prepared in {builder.data_dir}: {type(error).__name__}: "
            f"{one_line(error)}; if that folder can not be written, name another with --tfds_dir"
        ) from error

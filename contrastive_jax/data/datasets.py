"""Labelled images by name, through tensorflow-datasets and without TensorFlow where that can be."""

import difflib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from contrastive_jax._extras import needs
from contrastive_jax.checks import check_seed
from contrastive_jax.data.splits import hold_out, seen_classes

OWN = ("digits", "fashion_mnist", "mnist", "idx")


class Examples(NamedTuple):
    """Images, `uint8` `[N, H, W, C]`, and their classes, `int32` `[N]`."""

    images: np.ndarray
    classes: np.ndarray


class Dataset(NamedTuple):
    """The three splits of a data set."""

    name: str
    class_names: tuple[str, ...]
    train: Examples
    validation: Examples
    test: Examples


def load(
    name: str,
    *,
    data_dir: str | Path | None = None,
    tfds_dir: str | Path | None = None,
    image_size: int | None = None,
    split_classes: bool = False,
    validation_fraction: float = 0.1,
    seed: int = 0,
) -> Dataset:
    """Loads a data set, preparing it at the first time.

    Splits are those of the data set. Where it has no validation split, a fixed part of train
    becomes one; where it has no test split, validation is the test set, or failing that another
    part of train. `check_evaluable` says whether these splits can be evaluated.

    Examples whose label is hidden (-1, or an empty string) are left out with a warning, and a split
    that has no others counts as missing. Pixels of 16 bits are scaled to 8; images with transparent
    pixels are laid on white, with a warning.

    Args:
      name: `digits` (1,797 digits of 8 x 8, always at hand), `fashion_mnist` or `mnist` (from IDX
        files), `idx` (from IDX files of any other set, such as EMNIST, with classes named by their
        labels), or any name in tensorflow-datasets with images and with class labels, or with
        a feature called `label` that is an integer or a string.
      data_dir: folder of the IDX files; by default where Debian's packages put them. A `~` at its
        beginning is the home folder, here and below.
      tfds_dir: folder of prepared data sets; by default that of tensorflow-datasets.
      image_size: side in pixels to which images are scaled; needed where they differ in size.
      split_classes: train and validate on the first half of the classes, test on the others.
      validation_fraction: share of every class of train held out for validation.
      seed: of that choice, in [0, 2^32).

    Returns:
      The data set, in memory.

    Raises:
      FileNotFoundError: if IDX files are missing.
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
    from contrastive_jax.data.images import decode_images  # needs Pillow, as only this does

    check_seed(seed)
    if image_size is not None and image_size < 1:
        raise ValueError(f"--image_size must be at least 1 pixel, got {image_size}")
    data_dir, tfds_dir = _expanded("--data_dir", data_dir), _expanded("--tfds_dir", tfds_dir)
    builder = _builder(name, data_dir, tfds_dir)
    image, label = _image_and_label(name, builder.info)
    if not len(builder.info.splits):
        _prepare(name, builder)
        builder = _builder(name, data_dir, tfds_dir)
    names, contents, classes = _labelled(name, builder, image, label)
    try:
        pixels, transparent = decode_images(
            contents,
            grey=builder.info.features[image].shape[-1] == 1,
            image_size=image_size,
        )
    except ValueError as error:
        raise ValueError(f"{name} in {builder.data_dir}: {_line(error)}") from error
    if transparent:
        warnings.warn(
            f"{transparent:,} images of {name} have transparent pixels; they are laid on white",
            stacklevel=2,
        )
    splits = {split: Examples(pixels[split], classes[split]) for split in contents}

    def carve(examples: Examples) -> tuple[Examples, Examples]:
        kept, held = hold_out(examples.classes, validation_fraction, seed=seed)
        return _rows(examples, kept), _rows(examples, held)

    train = splits["train"]
    if "test" in splits:
        test = splits["test"]
    elif "validation" in splits:
        test = splits["validation"]
    else:
        train, test = carve(train)
    if {"validation", "test"} <= set(splits):
        validation = splits["validation"]
    else:
        train, validation = carve(train)

    if split_classes:
        seen = seen_classes(len(names))
        train = _rows(train, seen[train.classes])
        validation = _rows(validation, seen[validation.classes])
        test = _rows(test, ~seen[test.classes])
    data = Dataset(name, names, train, validation, test)
    for split in ("train", "validation", "test"):
        if len(getattr(data, split).classes) == 0:
            raise ValueError(f"{name} has no {split} examples left")
    return data


def _rows(examples: Examples, rows: np.ndarray) -> Examples:
    return Examples(examples.images[rows], examples.classes[rows])


def _expanded(option: str, folder: str | Path | None) -> Path | None:
    """Replaces `~` at the beginning of a folder by the home folder."""
    try:
        return None if folder is None else Path(folder).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{option} {folder} names no home folder: {error}") from error


def _line(error: Exception) -> str:
    """Shortens the message of an error to one line."""
    text = " ".join(str(error).split())
    return text if len(text) <= 500 else text[:500] + " ..."


@contextmanager
def _explained(action: str, remedy: str) -> Iterator[None]:
    """Turns any error of a library that reads files into one line that says what to do.

    Damaged and forbidden files raise almost anything there.
    """
    try:
        yield
    except ImportError:
        raise
    except Exception as error:
        raise ValueError(f"{action}: {type(error).__name__}: {_line(error)}; {remedy}") from error


def _builder(name: str, data_dir: Path | None, tfds_dir: Path | None) -> Any:
    with needs("train", __name__):
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
        with _explained(f"{name} could not be opened in {where}", f"{remedy} with --tfds_dir"):
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

    known = tfds.list_builders(with_community_datasets=False)
    close = difflib.get_close_matches(name, [*OWN, *known], n=5)
    return (
        f"unknown data set {name!r}; "
        + (f"close to it: {', '.join(close)}; " if close else "")
        + f"own: {', '.join(OWN)}; and {len(known)} of tensorflow-datasets "
        "(https://www.tensorflow.org/datasets/catalog/overview)"
    )


def _needs_tensorflow(name: str) -> str:
    return (
        f"{name} can only be prepared or read with TensorFlow: "
        "pip install 'contrastive_jax[tensorflow]'"
    )


def _image_and_label(name: str, info: Any) -> tuple[str, str]:
    """Returns the names of the features that hold the images and their labels."""
    import tensorflow_datasets as tfds

    features = info.features

    def only(kind: type, usual: str) -> str:
        found = [key for key, feature in features.items() if type(feature) is kind]
        if usual in found or len(found) == 1:
            return usual if usual in found else found[0]
        raise ValueError(
            f"{name} has {len(found)} features of type {kind.__name__}, expected one, or one "
            f"called {usual!r}; its features are {', '.join(map(str, features))}"
        )

    image = only(tfds.features.Image, "image")
    pixel = np.dtype(features[image].np_dtype)
    if pixel.kind == "f":
        raise ValueError(
            f"the pixels of {name} are {pixel}, expected integers of 8 or 16 bits; take another "
            "data set"
        )
    if "label" in features and _is_class(features["label"]):
        return image, "label"
    return image, only(tfds.features.ClassLabel, "label")


def _is_class(feature: Any) -> bool:
    """Tells whether a feature is one integer, boolean or string, which may be a class."""
    import tensorflow_datasets as tfds

    if not isinstance(feature, tfds.features.Tensor) or feature.shape:
        return False
    # Text is of objects.
    return np.dtype(feature.np_dtype).kind in "biuOSU"


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
            f"{_line(error)}; if that folder can not be written, name another with --tfds_dir"
        ) from error


def _labelled(
    name: str, builder: Any, image: str, label: str
) -> tuple[tuple[str, ...], dict[str, list[bytes]], dict[str, np.ndarray]]:
    """Names of the classes, and by split the examples with a label: encoded images and classes."""
    available = [split for split, info in builder.info.splits.items() if info.num_examples]
    if "train" not in available:
        raise ValueError(
            f"{name} has no training examples in {builder.data_dir}; its splits are {available}; "
            "delete that folder to have the data set prepared anew, or take another data set"
        )
    rows = {
        split: _read(name, builder, split, image)
        for split in ("train", "validation", "test")
        if split in available
    }
    names, numbers = _classes(builder.info.features[label], label, rows)
    hidden = {split: int((part < 0).sum()) for split, part in numbers.items()}
    if hidden["train"] == len(rows["train"]):
        raise ValueError(
            f"{name} has no training example with a label in {builder.data_dir}: all "
            f"{hidden['train']:,} labels are hidden; take another data set"
        )
    if any(hidden.values()):
        counts = ", ".join(
            f"{count:,} of {len(rows[split]):,} in {split}"
            + (", which counts as missing" if count == len(rows[split]) else "")
            for split, count in hidden.items()
            if count
        )
        warnings.warn(f"examples of {name} without a label are left out: {counts}", stacklevel=3)
    contents, classes = {}, {}
    for split, part in numbers.items():
        if hidden[split] < len(part):
            chosen = np.flatnonzero(part >= 0)
            contents[split] = [rows[split][k][image] for k in chosen]
            classes[split] = part[chosen]
    return names, contents, classes


def _read(name: str, builder: Any, split: str, image: str) -> list[dict[str, Any]]:
    """Reads all examples of a split, with images still encoded."""
    import tensorflow_datasets as tfds

    with _explained(
        f"split {split} of {name} in {builder.data_dir} can not be read",
        "delete that folder to have the data set prepared anew",
    ):
        source = builder.as_data_source(split, decoders={image: tfds.decode.SkipDecoding()})
        rows: list[dict[str, Any]] = source.__getitems__(range(len(source)))
        return rows


def _classes(
    feature: Any, label: str, rows: dict[str, list[dict[str, Any]]]
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Names of the classes, and the class of each example by split, -1 where it is hidden.

    Labels that are integers or strings become classes in their order, named by them.
    """
    import tensorflow_datasets as tfds

    values = {split: [row[label] for row in part] for split, part in rows.items()}
    if isinstance(feature, tfds.features.ClassLabel) and feature.num_classes is not None:
        return tuple(feature.names), {
            split: np.array(part, np.int32) for split, part in values.items()
        }
    plain = {split: [_plain(value) for value in part] for split, part in values.items()}
    present = sorted({value for part in plain.values() for value in part} - {-1, ""})
    number = {value: k for k, value in enumerate(present)}
    return tuple(map(str, present)), {
        split: np.array([number.get(value, -1) for value in part], np.int32)
        for split, part in plain.items()
    }


def _plain(value: Any) -> Any:
    """Converts a label to an integer, a boolean or a string of Python."""
    value = value.item() if isinstance(value, np.generic) else value
    return value.decode(errors="replace") if isinstance(value, bytes) else value

"""Labelled images by name, through tensorflow-datasets and without TensorFlow where that can be."""

import difflib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from contrastive_jax.data.splits import hold_out, seen_classes

OWN = ("digits", "fashion_mnist", "mnist")


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
    data_dir: Path | None = None,
    tfds_dir: Path | None = None,
    image_size: int | None = None,
    split_classes: bool = False,
    validation_fraction: float = 0.1,
    seed: int = 0,
) -> Dataset:
    """Loads a data set, preparing it at the first time.

    Splits are those of the data set. Where it has no validation split, a fixed part of train
    becomes one; where it has no test split, validation is the test set, or failing that another
    part of train.

    Args:
      name: `digits` (1,797 digits of 8 x 8, always at hand), `fashion_mnist` or `mnist` (from IDX
        files), or any name in tensorflow-datasets with images and class labels.
      data_dir: folder of the IDX files; by default where Debian's packages put them.
      tfds_dir: folder of prepared data sets; by default that of tensorflow-datasets.
      image_size: side in pixels to which images are scaled; needed where they differ in size.
      split_classes: train and validate on the first half of the classes, test on the others.
      validation_fraction: share of every class of train held out for validation.
      seed: of that choice.

    Returns:
      The data set, in memory.

    Raises:
      FileNotFoundError: if IDX files are missing.
      ImportError: if the set can only be prepared or read with TensorFlow.
      ValueError: if the name is unknown, the set has no images or labels, its images differ in
        size and no `image_size` is given, files are broken, or a split ends up empty.
    """
    try:
        builder = _builder(name, data_dir, tfds_dir)
    except ValueError as error:
        if "format is already set" not in str(error):
            raise
        raise ValueError(
            f"{name} was prepared in {tfds_dir or 'the folder of tensorflow-datasets'} in a format "
            "that is read with TensorFlow alone; name another folder with --tfds_dir to prepare it "
            "anew"
        ) from error
    image, label = _image_and_label(name, builder.info.features)
    _prepare(name, builder)
    names = tuple(builder.info.features[label].names)
    available = [split for split, info in builder.info.splits.items() if info.num_examples]
    if "train" not in available:
        raise ValueError(f"{name} has no training examples; its splits are {available}")

    def read(split: str) -> Examples:
        return _read(name, builder, split, image, label, image_size)

    def carve(examples: Examples) -> tuple[Examples, Examples]:
        kept, held = hold_out(examples.classes, validation_fraction, seed=seed)
        return _rows(examples, kept), _rows(examples, held)

    train = read("train")
    if "test" in available:
        test = read("test")
    elif "validation" in available:
        test = read("validation")
    else:
        train, test = carve(train)
    if {"validation", "test"} <= set(available):
        validation = read("validation")
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


def _builder(name: str, data_dir: Path | None, tfds_dir: Path | None) -> Any:
    import tensorflow_datasets as tfds

    options: dict[str, Any] = {"data_dir": tfds_dir, "file_format": "array_record"}
    if name == "digits":
        from contrastive_jax.data.digits import DigitsSklearn

        return DigitsSklearn(**options)
    if name in OWN:
        from contrastive_jax.data import idx

        own = {"fashion_mnist": idx.FashionMnistIdx, "mnist": idx.MnistIdx}[name]
        return own(raw_dir=data_dir, **options)
    try:
        return tfds.builder(name, **options)
    except tfds.core.DatasetNotFoundError:
        known = tfds.list_builders(with_community_datasets=False)
        close = difflib.get_close_matches(name, [*OWN, *known], n=5)
        raise ValueError(
            f"unknown data set {name!r}; "
            + (f"close to it: {', '.join(close)}; " if close else "")
            + f"own: {', '.join(OWN)}; and {len(known)} of tensorflow-datasets "
            "(https://www.tensorflow.org/datasets/catalog/overview)"
        ) from None
    except ImportError as error:
        raise ImportError(_needs_tensorflow(name)) from error


def _needs_tensorflow(name: str) -> str:
    return (
        f"{name} can only be prepared or read with TensorFlow: "
        "pip install 'contrastive_jax[tensorflow]'"
    )


def _image_and_label(name: str, features: Any) -> tuple[str, str]:
    import tensorflow_datasets as tfds

    def only(kind: type, usual: str) -> str:
        found = [key for key, feature in features.items() if type(feature) is kind]
        if usual in found or len(found) == 1:
            return usual if usual in found else found[0]
        raise ValueError(
            f"{name} has {len(found)} features of type {kind.__name__}, expected one, or one "
            f"called {usual!r}; its features are {', '.join(map(str, features))}"
        )

    return only(tfds.features.Image, "image"), only(tfds.features.ClassLabel, "label")


def _prepare(name: str, builder: Any) -> None:
    try:
        builder.download_and_prepare()
    except ImportError as error:
        raise ImportError(_needs_tensorflow(name)) from error
    except (FileNotFoundError, ValueError):
        raise
    except Exception as error:
        raise ValueError(
            f"{name} could not be prepared in {builder.data_dir}: {type(error).__name__}: {error}"
        ) from error


def _read(
    name: str, builder: Any, split: str, image: str, label: str, image_size: int | None
) -> Examples:
    import tensorflow_datasets as tfds

    source = builder.as_data_source(split, decoders={image: tfds.decode.SkipDecoding()})
    channels = builder.info.features[image].shape[-1]
    decode = _decoder(channels, image_size)
    rows = source.__getitems__(range(len(source)))
    images = [decode(row[image]) for row in rows]
    shapes = sorted({one.shape for one in images})
    if len(shapes) > 1:
        raise ValueError(
            f"images of {name} differ in size, from {shapes[0]} to {shapes[-1]}; scale them to one "
            "size with --image_size"
        )
    return Examples(np.stack(images), np.array([row[label] for row in rows], np.int32))


def _decoder(channels: int | None, image_size: int | None) -> Callable[[bytes], np.ndarray]:
    from PIL import Image

    def decode(content: bytes) -> np.ndarray:
        image = Image.open(io.BytesIO(content)).convert("L" if channels == 1 else "RGB")
        if image_size:
            image = image.resize((image_size, image_size), Image.Resampling.BILINEAR)
        pixels = np.asarray(image)
        return pixels[..., None] if pixels.ndim == 2 else pixels

    return decode

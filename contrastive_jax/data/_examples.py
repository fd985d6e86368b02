"""Labelled examples of a prepared data set, decoded to pixels and classes."""

from typing import Any

import numpy as np

from contrastive_jax.data._decoded import Decoded
from contrastive_jax.data._errors import explained, one_line
from contrastive_jax.data.images import decode_images


def image_and_label(name: str, info: Any) -> tuple[str, str]:
    """Returns the names of the features that hold the images and their labels."""
    import tensorflow_datasets as tfds

    features = info.features

    def only(kind: type, usual: str) -> str:
        candidates = [key for key, feature in features.items() if type(feature) is kind]
        if usual in candidates or len(candidates) == 1:
            return usual if usual in candidates else candidates[0]
        raise ValueError(
            f"{name} has {len(candidates)} features of type {kind.__name__}, expected one, or one "
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


def decode(name: str, builder: Any, image: str, label: str, image_size: int | None) -> Decoded:
    """Reads and decodes the examples with a label."""
    names, contents, classes, notes = _labelled(name, builder, image, label)
    try:
        pixels, transparent = decode_images(
            contents,
            grey=builder.info.features[image].shape[-1] == 1,
            image_size=image_size,
        )
    except ValueError as error:
        raise ValueError(f"{name} in {builder.data_dir}: {one_line(error)}") from error
    if transparent:
        notes.append(
            f"{transparent:,} images of {name} have transparent pixels; they are laid on white"
        )
    return Decoded(names, pixels, classes, tuple(notes))


def _labelled(
    name: str, builder: Any, image: str, label: str
) -> tuple[tuple[str, ...], dict[str, list[bytes]], dict[str, np.ndarray], list[str]]:
    """Encoded images and classes of the examples with a label by split, and warnings about others.

    The names of the classes come first.
    """
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
    names, class_ids = _classes(builder.info.features[label], label, rows)
    hidden = {split: int((part < 0).sum()) for split, part in class_ids.items()}
    if hidden["train"] == len(rows["train"]):
        raise ValueError(
            f"{name} has no training example with a label in {builder.data_dir}: all "
            f"{hidden['train']:,} labels are hidden; take another data set"
        )
    notes = []
    if any(hidden.values()):
        counts = ", ".join(
            f"{count:,} of {len(rows[split]):,} in {split}"
            + (", which counts as missing" if count == len(rows[split]) else "")
            for split, count in hidden.items()
            if count
        )
        notes.append(f"examples of {name} without a label are left out: {counts}")
    contents, classes = {}, {}
    for split, part in class_ids.items():
        if hidden[split] < len(part):
            chosen = np.flatnonzero(part >= 0)
            contents[split] = [rows[split][k][image] for k in chosen]
            classes[split] = part[chosen]
    return names, contents, classes, notes


def _read(name: str, builder: Any, split: str, image: str) -> list[dict[str, Any]]:
    """Reads all examples of a split, with images still encoded."""
    import tensorflow_datasets as tfds

    with explained(
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

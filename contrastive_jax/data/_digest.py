"""A digest of a data set, by which a run notices that it is not the one it was trained on."""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from contrastive_jax.data.datasets import Dataset, Examples, GivenPairs, PairDataset


def digest(data: Dataset | PairDataset) -> str:
    """Returns a digest of the examples of a data set, of their order and of their splits.

    Args:
      data: from `load`, or made by hand.

    Returns:
      16 hexadecimal digits. They differ where images, classes, groups, roles, attributes, pairs,
      their weights or splits do, and not where names of files or of classes do.

    Example:
      >>> from contrastive_jax.data import load
      >>> from contrastive_jax.data._digest import digest
      >>> digits = load("digits")
      >>> digest(digits) == digest(digits._replace(train=digits.test))
      False
    """
    state = hashlib.blake2b(digest_size=8)
    for name, array in _arrays(data):
        state.update(f"{name} {array.dtype} {array.shape} ".encode())
        state.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return state.hexdigest()


def _arrays(data: Dataset | PairDataset) -> Iterator[tuple[str, np.ndarray]]:
    """Yields all arrays of a data set, each with its name, in an order that is always the same."""
    if isinstance(data, PairDataset):
        yield "images", np.asarray(data.images)
    for split in ("train", "validation", "test"):
        for name, column in _columns(getattr(data, split)):
            array = np.asarray(column)
            # Objects have addresses for bytes.
            yield f"{split} {name}", array.astype(str) if array.dtype.hasobject else array
            if isinstance(column, np.ma.MaskedArray):
                yield f"{split} mask of {name}", np.ma.getmaskarray(column)


def _columns(split: Examples | GivenPairs) -> Iterator[tuple[str, Any]]:
    """Yields the columns of a split by name."""
    columns = split._asdict()
    attributes = columns.pop("attributes", {})
    columns.pop("sources", None)
    yield from ((name, column) for name, column in columns.items() if column is not None)
    yield from ((f"attribute {name}", attributes[name]) for name in sorted(attributes))

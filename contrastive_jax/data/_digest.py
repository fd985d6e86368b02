"""A digest of a data set, by which a run notices that it is not the one it was trained on."""

import hashlib
from collections.abc import Iterator

import numpy as np

from contrastive_jax.data.datasets import Dataset, PairDataset


def digest(data: Dataset | PairDataset) -> str:
    """Returns a digest of the examples of a data set and of their order and splits.

    Args:
      data: from `load`, or made by hand.

    Returns:
      16 hexadecimal digits, which are others for other images, classes, pairs or splits.

    Example:
      >>> from contrastive_jax.data import load
      >>> from contrastive_jax.data._digest import digest
      >>> digits = load("digits")
      >>> digest(digits) == digest(digits._replace(train=digits.test))
      False
    """
    state = hashlib.blake2b(digest_size=8)
    for array in _arrays(data):
        state.update(f"{array.dtype} {array.shape} ".encode())
        state.update(np.ascontiguousarray(array).data)
    return state.hexdigest()


def _arrays(data: Dataset | PairDataset) -> Iterator[np.ndarray]:
    if isinstance(data, PairDataset):
        yield data.images
    for split in (data.train, data.validation, data.test):
        yield from (np.asarray(column) for column in split[:3] if isinstance(column, np.ndarray))

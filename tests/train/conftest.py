"""A data set that is trained on in seconds."""

import numpy as np
import pytest

from contrastive_jax.data.datasets import Dataset, Examples


def _examples(number, seed):
    """Images `[N, 6, 6, 1]` of three classes: a bright row each, under noise."""
    rng = np.random.default_rng(seed)
    classes = np.arange(number, dtype=np.int32) % 3
    images = rng.integers(0, 120, (number, 6, 6, 1), np.uint8)
    images[np.arange(number), 2 * classes] += 100
    return Examples(images, classes)


@pytest.fixture(scope="session")
def data():
    splits = [_examples(number, seed) for seed, number in enumerate((60, 24, 24))]
    return Dataset("rows", ("top", "middle", "bottom"), *splits)

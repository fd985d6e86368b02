"""Batches from the host are those drawn on the device."""

import itertools

import jax
import numpy as np
import pytest

from contrastive_jax.data import draw_pairs, index_by_class, stream_pairs


def test_the_stream_is_what_the_device_draws_from_any_step_on():
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (30, 4, 4, 1), dtype=np.uint8)
    classes = np.arange(30) % 4
    index = index_by_class(classes)
    for start in (0, 5):
        stream = stream_pairs(
            images, classes, seed=3, batch_size=8, positive_fraction=0.25, start_step=start
        )
        for step, (first, second, *both) in enumerate(itertools.islice(stream, 7), start):
            key = jax.random.fold_in(jax.random.key(3), step)
            i, j, labels = draw_pairs(key, index, 8, 0.25)
            np.testing.assert_array_equal(first, images[i])
            np.testing.assert_array_equal(second, images[j])
            np.testing.assert_array_equal(both, [classes[i], classes[j]])
            np.testing.assert_array_equal(both[0] != both[1], labels)


def test_images_without_a_class_are_not_streamed():
    images = np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1)
    classes = np.ma.masked_array(np.arange(10) % 2, mask=np.arange(10) == 3)
    classes[4] = -1
    options = {"seed": 0, "batch_size": 64, "positive_fraction": 0.5}
    first, second, *both = next(stream_pairs(images, classes, **options))
    assert {3, 4}.isdisjoint(np.concatenate([first, second]).ravel().tolist())
    np.testing.assert_array_equal(both, [first.ravel() % 2, second.ravel() % 2])
    with pytest.raises(ValueError, match=r"images must not be masked, got 1 masked .* row 2"):
        next(stream_pairs(np.ma.masked_equal(images, 2), classes, **options))
    with pytest.raises(ValueError, match="10 images and 9 classes"):
        next(stream_pairs(images, classes[:9], **options))

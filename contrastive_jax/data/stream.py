"""Pairs from the host, for images that do not fit on the device."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from contrastive_jax._extras import needs
from contrastive_jax.checks import check_seed
from contrastive_jax.data._given_pairs import draw_given_pairs, positives_first
from contrastive_jax.data.datasets import GivenPairs, PairDataset
from contrastive_jax.data.draw import draw_pairs, index_by_class
from contrastive_jax.data.labels import check_unmasked, class_numbers


def stream_pairs(
    images: np.ndarray,
    classes: np.ndarray,
    *,
    seed: int,
    batch_size: int,
    positive_fraction: float,
    start_step: int = 0,
    threads: int = 4,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Gathers batches ahead of time, in threads (Grain), the same that are drawn on the device.

    Args:
      images: `[N, H, W, C]`, in memory or mapped into it.
      classes: `[N]`, integers, booleans or strings (`class_numbers`). Images of class -1, and those
        whose class is masked, are never drawn.
      seed: of the pairs, in [0, 2^32).
      batch_size: pairs in a batch, B.
      positive_fraction: share of positive pairs.
      start_step: step of the first batch, where a run is resumed.
      threads: how many gather.

    Yields:
      Images `[B, H, W, C]` of the first and of the second members, and class numbers `[B]` of both,
      int32, without end.

    Raises:
      ImportError: if Grain is not installed, with the extra that brings it.
      ValueError: as `index_by_class`; or if images and classes differ in number, an entry of an
        image is masked, or the seed is out of its range.

    Example:
      >>> import numpy as np
      >>> from contrastive_jax.data.stream import stream_pairs
      >>> images, classes = np.zeros((6, 8, 8, 1), np.uint8), np.array([0, 0, 1, 1, 2, 2])
      >>> pairs = stream_pairs(images, classes, seed=0, batch_size=4, positive_fraction=0.5)
      >>> first, second, first_classes, second_classes = next(pairs)
      >>> first.shape, int(np.sum(first_classes == second_classes))
      ((4, 8, 8, 1), 2)
    """
    with needs("train", __name__):
        import grain  # noqa: F401

    check_seed(seed)
    check_unmasked(images=images)
    images, class_ids = np.ma.getdata(images), class_numbers(classes)
    if len(images) != len(class_ids):
        raise ValueError(
            "images and classes must be as many, got "
            f"{len(images)} images and {len(class_ids)} classes"
        )
    cpu = jax.local_devices(backend="cpu")[0]
    index = jax.device_put(index_by_class(classes, positive_fraction), cpu)

    @jax.jit
    def draw(step: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        key = jax.random.fold_in(jax.random.key(seed), step)
        return draw_pairs(key, index, batch_size, positive_fraction)

    def batch(step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        i, j, _ = jax.device_get(draw(jax.device_put(np.int32(step), cpu)))
        return images[i], images[j], class_ids[i], class_ids[j]

    yield from _ahead_of_time(batch, start_step, threads)


def stream_given_pairs(
    data: PairDataset,
    *,
    seed: int,
    batch_size: int,
    images: int,
    balanced: bool,
    start_step: int = 0,
    threads: int = 4,
) -> Iterator[tuple[np.ndarray, GivenPairs]]:
    """Gathers batches of given pairs ahead of time, the same as those drawn on the device.

    Args:
      data: with the pairs of its train split.
      seed: of the batches, in [0, 2^32).
      batch_size: pairs in a batch, B.
      images: room for different images in a batch, U, from `train.draw.most_images`; a batch with
        fewer repeats its first one.
      balanced: whether positive and negative pairs are drawn equally often.
      start_step: step of the first batch, where a run is resumed.
      threads: how many gather.

    Yields:
      Images `[U, H, W, C]` or vectors `[U, D]`, and `[B]` pairs of their rows, without end.

    Raises:
      ImportError: if Grain is not installed, with the extra that brings it.
      ValueError: if the seed is out of its range.

    Example:
      >>> import numpy as np
      >>> from contrastive_jax.data import GivenPairs, PairDataset
      >>> from contrastive_jax.data.stream import stream_given_pairs
      >>> pairs = GivenPairs(np.array([0, 0]), np.array([1, 2]), np.array([0, 1]))
      >>> data = PairDataset("three", np.eye(3), pairs, pairs, pairs)
      >>> stream = stream_given_pairs(data, seed=0, batch_size=4, images=3, balanced=True)
      >>> vectors, batch = next(stream)
      >>> print(vectors.shape, batch.labels, batch.right)
      (3, 3) [1 0 1 0] [2 1 2 1]
    """
    check_seed(seed)
    pairs, positives = positives_first(data.train)
    cpu = jax.local_devices(backend="cpu")[0]
    left, right = jax.device_put((pairs.left, pairs.right), cpu)

    @jax.jit
    def draw(step: jax.Array) -> tuple[jax.Array, ...]:
        key = jax.random.fold_in(jax.random.key(seed), step)
        return draw_given_pairs(key, left, right, positives, batch_size, images, balanced=balanced)

    def batch(step: int) -> tuple[np.ndarray, GivenPairs]:
        step = jax.device_put(np.int32(step), cpu)
        rows, encoded, first, second = jax.device_get(draw(step))
        weights = None if pairs.weights is None else pairs.weights[rows]
        return data.images[encoded], GivenPairs(first, second, pairs.labels[rows], weights)

    yield from _ahead_of_time(batch, start_step, threads)


def _ahead_of_time(batch: Callable[[int], Any], start_step: int, threads: int) -> Iterator[Any]:
    """Yields the batch of every step, some of them made before they are asked for."""
    with needs("train", __name__):
        import grain

    steps = grain.MapDataset.range(start_step, np.iinfo(np.int32).max)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    yield from steps.map(batch).to_iter_dataset(options)

"""Batches of a training: the data that they are drawn from, and the step that draws them."""

import math
import warnings
from collections.abc import Sequence

import numpy as np

from contrastive_jax.data.datasets import Dataset, PairDataset
from contrastive_jax.data.draw import index_by_class
from contrastive_jax.data.labels import class_numbers
from contrastive_jax.train.draw import (
    draws_classes,
    draws_given_pairs,
    draws_pairs,
    draws_views,
    most_images,
    pair_source,
)
from contrastive_jax.train.labelled import labelled_rows
from contrastive_jax.train.training import Training
from contrastive_jax.train.types import PairSource, Source, Step

# A larger batch would repeat the data, or the same pairs, and say nothing more about it. Small data
# may have any batch that is computed at once.
MOST_REPEATED = 4
MOST_ALWAYS = 1024


def source_of(training: Training) -> Source | PairSource:
    """Returns what the batches of a training are drawn from.

    Raises:
      AssertionError: if an attribute is no array with one number for each example.
      ValueError: if the classes can not give such pairs, a batch is too small for a positive one,
        or the data lacks the attributes.

    Example:
      >>> import contrastive_jax as cj
      >>> from contrastive_jax.train.batches import source_of
      >>> from contrastive_jax.train.training import Training
      >>> digits, objective = cj.data.load("digits"), cj.train.objective("supcon")
      >>> training = Training(model=cj.models.Linear, data=digits, objective=objective, steps=10)
      >>> source_of(training).images.shape
      (1211, 8, 8, 1)
    """
    data, objective = training.data, training.objective
    if isinstance(data, PairDataset):
        return pair_source(data)
    classes = trained_classes(data)
    # Where pairs are drawn, the classes have to be able to give the share of positive ones.
    fraction = objective.hyperparameters.get("positive_fraction", 0.5)
    index = index_by_class(classes, fraction, categories=training.categories)
    if objective.separable and objective.group == 1:
        _check_share(float(fraction), training.batch_size // 2)
    attributes = None
    if objective.labels is not None:
        attributes = labelled_rows(objective, data.train)[0]
    return Source(data.train.images, classes, index, attributes)


def _check_share(share: float, pairs: int) -> None:
    """Checks that a batch of drawn pairs has a positive one, where it is to have some."""
    if share > 0 and pairs * share + 1e-4 < 1:  # rounded as in `draw_pairs`
        raise ValueError(
            f"batch_size must give at least {math.ceil(1 / share - 1e-4)} pairs, for one to be "
            f"positive at a positive_fraction of {share:g}, got {pairs}"
        )


def trained_classes(data: Dataset) -> np.ndarray:
    """Numbers the classes of train from 0 on, in their order.

    A class that train does not have, as where splits are by classes, would get a proxy that no
    example is ever drawn to.

    Example:
      >>> import contrastive_jax as cj
      >>> from contrastive_jax.train.batches import trained_classes
      >>> int(trained_classes(cj.data.load("digits")).max())
      9
    """
    classes = class_numbers(data.train.classes)
    present, dense = np.unique(classes[classes >= 0], return_inverse=True)
    if len(present) == 0 or present[-1] == len(present) - 1:
        return classes
    numbered = np.full_like(classes, -1)
    numbered[classes >= 0] = dense
    return numbered


def draws_batches(step: Step, training: Training, seeds: Sequence[int]) -> tuple[Step, int, int]:
    """Makes the step that draws its batch from a `Source` or a `PairSource`.

    Args:
      step: on a batch of the objective.
      training: whose batches are drawn.
      seeds: of all trainings that take the step. The batches of given pairs have room for the
        images of the largest one of these trainings.

    Returns:
      The step, the number of pairs that it compares, and the number of images that a batch of given
      pairs has room for, 0 for others.

    Raises:
      ValueError: if classes and images of a batch do not fit, or the batch is larger than 1,024 and
        than four times the data.

    Example:
      >>> import contrastive_jax as cj
      >>> from contrastive_jax.train.batches import draws_batches
      >>> from contrastive_jax.train.training import Training
      >>> digits, objective = cj.data.load("digits"), cj.train.objective("supcon")
      >>> training = Training(model=cj.models.Linear, data=digits, objective=objective, steps=10)
      >>> def step(state, batch, hyperparameters):
      ...     return state, {}
      >>> _, pairs, _ = draws_batches(step, training, seeds=[0])
      >>> pairs
      32640
    """
    data, objective, batch_size = training.data, training.objective, training.batch_size
    if isinstance(data, PairDataset):
        return _draws_given_pairs(step, training, pair_source(data), seeds)
    if objective.separable:
        pairs = _half(batch_size)
        fraction = objective.hyperparameters["positive_fraction"]
        return draws_pairs(step, pairs, positive_fraction=fraction), pairs, 0
    compared = batch_size * (batch_size - 1) // 2
    if training.views > 1:
        return draws_views(step, batch_size // training.views, training.views), compared, 0
    counts = np.unique(data.train.classes[data.train.classes >= 0], return_counts=True)[1]
    classes, examples = balance(batch_size, training.batch_classes, len(counts))
    few = int(np.sum(counts < examples))
    # Where no class is small, the program is the same either way.
    repeat = training.repeat and few > 0
    if repeat:
        warnings.warn(
            f"{few} of {len(counts)} classes have fewer than the {examples} examples that a batch "
            "takes of a class: theirs are repeated (repeat=False, --no_repeat leaves them out)",
            stacklevel=4,
        )
    drawn = draws_classes(step, classes, examples, repeat=repeat, by_size=training.by_size)
    return drawn, compared, 0


def _draws_given_pairs(
    step: Step, training: Training, source: PairSource, seeds: Sequence[int]
) -> tuple[Step, int, int]:
    """Makes the step that draws given pairs, and counts its pairs and the room for images."""
    pairs, balanced = _half(training.batch_size), training.balanced
    most = most_images(source, pairs, seeds=seeds, steps=training.steps, balanced=balanced)
    unit = training.devices * training.microbatches
    images = math.ceil(most / unit) * unit
    return draws_given_pairs(step, pairs, images, balanced=balanced), pairs, images


def check_size(data: Dataset | PairDataset, batch_size: int) -> None:
    """Checks that a batch is not so large that it would be the data many times over.

    Raises:
      ValueError: if it is larger than 1,024 and than four times the data.

    Example:
      >>> import contrastive_jax as cj
      >>> from contrastive_jax.train.batches import check_size
      >>> check_size(cj.data.load("digits"), batch_size=256)
    """
    if isinstance(data, PairDataset):
        count, available, noun = batch_size // 2, len(data.train.labels), "pairs"
    else:
        count, available, noun = batch_size, len(data.train.images), "images"
    most = max(MOST_REPEATED * available, MOST_ALWAYS)
    if count > most:
        raise ValueError(
            f"a batch has at most {most:,} {noun} on the {available:,} {noun} of the train split, "
            f"{MOST_REPEATED} times as many and always {MOST_ALWAYS:,}, got {count:,}: take a "
            "smaller batch_size (--batch_size)"
        )


def _half(batch_size: int) -> int:
    """Returns the pairs of a batch of so many images."""
    pairs, rest = divmod(batch_size, 2)
    if pairs < 1 or rest:
        raise ValueError(
            f"batch_size must be even for an objective of pairs, of two images each, got "
            f"{batch_size}"
        )
    return pairs


def balance(batch_size: int, batch_classes: int | None, available: int) -> tuple[int, int]:
    """Returns the number of classes of a batch, and of examples of each.

    Args:
      batch_size: images in a batch.
      batch_classes: classes in a batch; by default the largest number up to 32 that divides it.
      available: classes of the training data.

    Raises:
      ValueError: if the classes do not divide the batch, or there are not so many.

    Example:
      >>> from contrastive_jax.train.batches import balance
      >>> balance(256, None, available=10)
      (8, 32)
    """
    classes = batch_classes
    if classes is None:
        most = min(32, available, batch_size)
        classes = max(count for count in range(1, most + 1) if batch_size % count == 0)
    if not 1 < classes <= available or batch_size % classes:
        raise ValueError(
            f"batch_classes must be from 2 to {available}, the classes of the training data, and "
            f"divide the {batch_size} images of a batch, got {classes}"
        )
    return classes, batch_size // classes

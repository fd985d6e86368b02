"""Checks of the arguments of a training, before anything is computed or written."""

from collections.abc import Mapping, Sequence
from typing import Any

from contrastive_jax.data.augment import Augment
from contrastive_jax.data.datasets import Dataset, PairDataset
from contrastive_jax.data.evaluable import check_evaluable
from contrastive_jax.train.labelled import check_labels
from contrastive_jax.train.objectives import Objective
from contrastive_jax.train.ranges import check_multiples, check_ranges
from contrastive_jax.train.training import Training

SCHEDULE = (
    ("validate_every", "log_every"),
    ("log_every", "steps_per_call"),
    ("steps", "steps_per_call"),
)
"""Numbers of steps of `fit`, and those that they are multiples of."""


def check_types(devices: Any, optimizers: Mapping[str, Any], counts: Mapping[str, Any]) -> None:
    """Checks arguments of `fit` whose types are easily mistaken.

    Args:
      devices: a sequence, or None.
      optimizers: by the name of the argument, of optax or None.
      counts: by the name of the argument, which are to be in their range.

    Raises:
      ValueError: for the first that is of another type, or out of its range.

    Example:
      >>> from contrastive_jax.train.preconditions import check_types
      >>> check_types(None, {"optimizer": "adam"}, {"steps": 10})
      Traceback (most recent call last):
          ...
      ValueError: optimizer must be an optimizer, as optax.adam(1e-3), got 'adam'
    """
    if isinstance(devices, int):
        raise ValueError(f"devices must be a sequence, as jax.devices()[:{devices}], got {devices}")
    for name, one in optimizers.items():
        if one is not None and not (hasattr(one, "init") and hasattr(one, "update")):
            raise ValueError(f"{name} must be an optimizer, as optax.adam(1e-3), got {one!r}")
    check_ranges(counts)


def check_training(
    training: Training,
    *,
    log_every: int,
    validate_every: int,
    steps_per_call: int,
    keep: int = 1,
    data_on: str = "device",
) -> None:
    """Checks that arguments of `fit` fit each other and the data.

    Args:
      training: to check.
      log_every: as in `fit`, and so the others.
      validate_every: a multiple of `log_every`.
      steps_per_call: divides the steps and `log_every`.
      keep: at least 1.
      data_on: where images are.

    Raises:
      AssertionError: if an attribute is no array with one number for each example.
      ValueError: for the first that does not fit, saying what to do about it.

    Example:
      >>> import contrastive_jax as cj
      >>> from contrastive_jax.train.preconditions import check_training
      >>> from contrastive_jax.train.training import Training
      >>> digits, objective = cj.data.load("digits"), cj.train.objective("supcon")
      >>> training = Training(model=cj.models.Linear, data=digits, objective=objective, steps=20)
      >>> check_training(training, log_every=10, validate_every=15, steps_per_call=1)
      Traceback (most recent call last):
          ...
      ValueError: validate_every must be a multiple of log_every, got 15 and 10
    """
    schedule = {
        "steps": training.steps,
        "log_every": log_every,
        "validate_every": validate_every,
        "steps_per_call": steps_per_call,
        "keep": keep,
    }
    check_ranges(schedule)
    check_multiples(schedule, SCHEDULE)
    _check_drawing(training, data_on, steps_per_call)
    check_batches(
        training.objective,
        batch_size=training.batch_size,
        batch_classes=training.batch_classes,
        repeat=training.repeat,
        by_size=training.by_size,
        categories=training.categories,
        views=training.views,
        augment=training.augment,
        memory_size=training.memory_size,
        max_age=training.max_age,
        given_pairs=isinstance(training.data, PairDataset),
    )
    check_evaluable(training.data)
    if isinstance(training.data, Dataset):
        check_labels(training.objective, training.data)
    _check_shares(training)


def _check_drawing(training: Training, data_on: str, steps_per_call: int) -> None:
    """Checks that what says how batches are drawn has an effect on this data."""
    if data_on not in ("device", "host"):
        raise ValueError(f"data_on must be 'device' or 'host', got {data_on!r}")
    if data_on == "host" and steps_per_call != 1:
        raise ValueError(f"data_on='host' takes one step per call, got {steps_per_call}")
    if isinstance(training.data, PairDataset):
        if training.batch_classes is not None:
            raise ValueError("given pairs have no classes: leave batch_classes out")
        return
    if not training.balanced:
        raise ValueError(
            "balanced is of given pairs, and has no effect on data with classes: leave it out"
        )
    if data_on == "host" and not training.objective.separable:
        raise ValueError(
            "data_on='host' streams pairs: take an objective of pairs, as objective(..., "
            "on='pairs'), or data_on='device'"
        )


def check_batches(
    objective: Objective,
    *,
    batch_size: int,
    batch_classes: int | None = None,
    repeat: bool = True,
    by_size: bool = False,
    categories: Any = None,
    views: int = 1,
    augment: Augment | None = None,
    memory_size: int = 0,
    max_age: int | None = None,
    given_pairs: bool = False,
) -> None:
    """Checks that what says how batches are made has an effect, before any data is read.

    Args:
      objective: of the training.
      batch_size: as in `fit`, and so the others.
      batch_classes: divides the images of a batch.
      repeat: of batches of classes, and so the next two.
      by_size: see `fit`.
      categories: see `fit`; anything but None stands for some.
      views: divides the images of a batch.
      augment: needed by several views.
      memory_size: 0, or at least the images of a batch.
      max_age: needs a memory.
      given_pairs: whether the data are given pairs.

    Raises:
      ValueError: for the first that has no effect or does not fit, saying what to do about it.

    Example:
      >>> from contrastive_jax import train
      >>> from contrastive_jax.train.preconditions import check_batches
      >>> check_batches(train.objective("supcon"), batch_size=64, max_age=100)
      Traceback (most recent call last):
          ...
      ValueError: max_age has no effect without a memory: give memory_size, or leave max_age out
    """
    given = {
        "views": views != 1,
        "repeat": not repeat,
        "by_size": by_size,
        "categories": categories is not None,
        "batch_classes": batch_classes is not None,
    }
    named = [name for name, is_given in given.items() if is_given]
    if named and (given_pairs or objective.separable):
        raise ValueError(
            f"{named[0]} is of batches of classes, and has no effect on pairs: leave it out"
            + (
                ""
                if given_pairs
                else ", or take an objective of whole batches (--objective all_pairs, "
                "or another loss than contrastive)"
            )
        )
    for name, number in (("views", views), ("batch_classes", batch_classes)):
        if number is not None and (number < 1 or batch_size % number):
            raise ValueError(f"{name} must divide the {batch_size} images of a batch, got {number}")
    if views > 1:
        _check_views(objective, views, augment, named)
    if memory_size and (given_pairs or objective.separable):
        raise ValueError(
            "memory_size is compared with whole batches, and has no effect on pairs: take an "
            "objective of whole batches (--objective all_pairs, or another loss), or leave "
            "memory_size out"
        )
    if memory_size and not objective.takes_memory:
        raise ValueError(
            f"{objective.name or 'this objective'} compares with proxies and takes no memory_size: "
            "leave memory_size out"
        )
    if memory_size and memory_size < batch_size:
        raise ValueError(
            f"memory_size must be 0 or at least the {batch_size} images of a batch, got "
            f"{memory_size}"
        )
    if max_age is not None and not memory_size:
        raise ValueError(
            "max_age has no effect without a memory: give memory_size, or leave max_age out"
        )


def _check_views(
    objective: Objective, views: int, augment: Augment | None, named: Sequence[str]
) -> None:
    """Checks that the views of an image differ, and that nothing chooses among classes."""
    if objective.labels is not None:
        raise ValueError(
            "labels has no effect with several views of one image, which alone are positive pairs: "
            "leave labels out"
        )
    if augment is None:
        raise ValueError(
            "the views of one image would all be equal: change images at random (--augment, --flip "
            "or --shift)"
        )
    if len(named) > 1:
        raise ValueError(
            f"{named[1]} has no effect with several views of one image, whose batches are of "
            "images: leave it out"
        )


def _check_shares(training: Training) -> None:
    """Checks that a batch divides into devices and microbatches, as the step will."""
    if not isinstance(training.data, PairDataset):
        check_shares(
            training.objective,
            batch_size=training.batch_size,
            devices=training.devices,
            microbatches=training.microbatches,
        )
        return
    pairs, devices = training.batch_size // 2, training.devices
    # Their images are filled up to whole microbatches.
    if training.microbatches < 1 or pairs % devices:
        raise ValueError(
            f"the {pairs} pairs of a batch must divide into {devices} devices, with at least one "
            f"microbatch each, got {training.microbatches}"
        )


def check_shares(
    objective: Objective, *, batch_size: int, devices: int = 1, microbatches: int = 1
) -> None:
    """Checks that a batch divides into devices, microbatches and groups, before any data is read.

    Args:
      objective: of the training, on data with classes.
      batch_size: images in a batch, over all devices; an objective of pairs has half as many pairs.
      devices: over which a batch is spread.
      microbatches: of each device.

    Raises:
      ValueError: if it does not.

    Example:
      >>> from contrastive_jax import train
      >>> from contrastive_jax.train.preconditions import check_shares
      >>> check_shares(train.objective("supcon"), batch_size=256, devices=4, microbatches=2)
    """
    count, kind = (batch_size // 2, "pairs") if objective.separable else (batch_size, "images")
    group = objective.group
    if microbatches < 1 or count % (devices * microbatches * group):
        factor, groups = (" times group", f", groups of {group}") if group > 1 else ("", "")
        raise ValueError(
            f"the {kind} of a batch must be a multiple of devices times microbatches{factor}, "
            f"got {count} {kind}, {devices} devices, {microbatches} microbatches{groups}"
        )

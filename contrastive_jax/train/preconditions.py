"""Checks of the arguments of a training, before anything is computed or written."""

from collections.abc import Mapping
from typing import Any

from contrastive_jax.data.datasets import Dataset, PairDataset
from contrastive_jax.data.evaluable import check_evaluable
from contrastive_jax.data.pair_checks import check_given_pairs
from contrastive_jax.train.labelled import check_labels
from contrastive_jax.train.objectives import Objective


def check_training(
    data: Dataset | PairDataset,
    objective: Objective,
    *,
    schedule: Mapping[str, int],
    batch: Mapping[str, Any],
    data_on: str,
    devices: int,
    microbatches: int,
) -> None:
    """Checks that arguments of `fit` fit each other and the data.

    Args:
      data: to train on.
      objective: of given pairs where the data has them.
      schedule: `steps`, `log_every`, `validate_every`, `steps_per_call` and `keep`.
      batch: `batch_size`, `batch_classes`, `balanced`, `repeat`, `by_size`, `views`, `categories`
        and `augment`.
      data_on: where images are.
      devices: number of devices.
      microbatches: parts in which a device encodes its images.

    Raises:
      AssertionError: if an attribute is no array with one number for each example.
      ValueError: for the first that does not fit, saying what to do about it.

    Example:
      >>> import contrastive_jax as cj
      >>> from contrastive_jax.train.preconditions import check_training
      >>> schedule = {"steps": 20, "log_every": 10, "validate_every": 15, "steps_per_call": 1}
      >>> digits, objective = cj.data.load("digits"), cj.train.objective("supcon")
      >>> options = {"batch": {}, "data_on": "device", "devices": 1, "microbatches": 1}
      >>> check_training(digits, objective, schedule=schedule, **options)
      Traceback (most recent call last):
          ...
      ValueError: validate_every must be a multiple of log_every, got 15 and 10
    """
    _check_schedule(**schedule)
    _check_drawing(
        data,
        objective,
        data_on,
        schedule["steps_per_call"],
        batch["batch_classes"],
        batch["balanced"],
    )
    _check_batch(data, objective, batch)
    if isinstance(data, PairDataset):
        check_given_pairs(data)
    else:
        check_evaluable(data)
        check_labels(objective, data)
    _check_shares(data, objective, batch["batch_size"], devices, microbatches)


def _check_drawing(
    data: Dataset | PairDataset,
    objective: Objective,
    data_on: str,
    steps_per_call: int,
    batch_classes: int | None,
    balanced: bool,
) -> None:
    """Checks that what says how batches are drawn has an effect on this data."""
    if data_on not in ("device", "host"):
        raise ValueError(f"data_on must be 'device' or 'host', got {data_on!r}")
    if data_on == "host" and steps_per_call != 1:
        raise ValueError(f"data_on='host' takes one step per call, got {steps_per_call}")
    if isinstance(data, PairDataset):
        if batch_classes is not None:
            raise ValueError("given pairs have no classes: leave batch_classes out")
        return
    if not balanced:
        raise ValueError(
            "balanced is of given pairs, and has no effect on data with classes: leave it out"
        )
    if data_on == "host" and not objective.separable:
        raise ValueError(
            "data_on='host' streams pairs: take an objective of pairs, as objective(..., "
            "on='pairs'), or data_on='device'"
        )


def _check_schedule(**arguments: int) -> None:
    """Checks how often something is done, before anything is written.

    Raises:
      ValueError: if a number is below 1, or one is not a multiple of another that divides it.
    """
    for name, value in arguments.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    for name, unit in (
        ("validate_every", "log_every"),
        ("log_every", "steps_per_call"),
        ("steps", "steps_per_call"),
    ):
        if arguments[name] % arguments[unit]:
            raise ValueError(
                f"{name} must be a multiple of {unit}, got {arguments[name]} and {arguments[unit]}"
            )


def _check_batch(
    data: Dataset | PairDataset, objective: Objective, batch: Mapping[str, Any]
) -> None:
    """Checks that what says how classes and views are drawn has an effect."""
    given = {
        "repeat": not batch["repeat"],
        "by_size": batch["by_size"],
        "categories": batch["categories"] is not None,
        "views": batch["views"] != 1,
    }
    named = [name for name, is_given in given.items() if is_given]
    if named and (isinstance(data, PairDataset) or objective.separable):
        raise ValueError(
            f"{named[0]} is of batches of classes, and has no effect on pairs: leave it out, or "
            "take data with classes and an objective of whole batches"
        )
    views, batch_size = batch["views"], batch["batch_size"]
    if views == 1:
        return
    if objective.labels is not None:
        raise ValueError(
            "views of one image are similar and those of two are not, which labels of two rows do "
            "not say: leave views or labels out"
        )
    if views < 1 or batch_size % views:
        raise ValueError(
            f"views must be at least 1 and divide the {batch_size} images of a batch, got {views}"
        )
    if batch["augment"] is None:
        raise ValueError(
            "views of one image would all be equal: give augment (--augment, --flip or --shift)"
        )
    if named != ["views"] or batch["batch_classes"] is not None:
        other = "batch_classes" if named == ["views"] else named[0]
        raise ValueError(f"{other} has no effect with views of images: leave it out")


def _check_shares(
    data: Dataset | PairDataset,
    objective: Objective,
    batch_size: int,
    devices: int,
    microbatches: int,
) -> None:
    """Checks that a batch divides into devices and microbatches, as the step will."""
    if isinstance(data, PairDataset):
        # Their images are filled up to whole microbatches.
        if microbatches < 1 or batch_size // 2 % devices:
            raise ValueError(
                f"the {batch_size // 2} pairs of a batch must divide into {devices} devices, with "
                f"at least one microbatch each, got {microbatches}"
            )
        return
    count, kind = (batch_size // 2, "pairs") if objective.separable else (batch_size, "images")
    unit = devices * microbatches * objective.group
    if microbatches < 1 or count % unit:
        groups = f" and groups of {objective.group}" if objective.group > 1 else ""
        raise ValueError(
            f"the {count} {kind} of a batch must divide into {devices} devices with {microbatches} "
            f"microbatches each{groups}"
        )

"""The batches of a comparison of losses: which options they have, and what fits the data."""

import dataclasses
from typing import Any

import numpy as np

from contrastive_jax import train
from contrastive_jax.data import Dataset, index_by_class
from contrastive_jax.train import loss_table
from contrastive_jax.train.batches import balance
from contrastive_jax.train.labelled import check_labels
from experiments import option_checks, options
from experiments.train import Config as TrainConfig


def losses_of(config: Any) -> tuple[str, ...]:
    """Returns the losses to compare, by default all that take the labels of the options."""
    if config.losses:
        return tuple(config.losses)
    if config.labels == "class":
        return loss_table.NAMES
    return tuple(name for name in loss_table.NAMES if name not in loss_table.PROXIES)


def check_options(config: Any) -> None:
    """Checks what the options of a batch say together, before any data is read.

    Raises:
      ValueError: if one has no effect, or they do not fit each other.
    """
    batch = {
        field.name: getattr(config, field.name) for field in dataclasses.fields(options.Batches)
    }
    for name in losses_of(config):
        training = TrainConfig(loss=name, objective="all_pairs", **batch)
        option_checks.check_effects(training, option_checks.EFFECTS_OF_TRAINING)
    _check_chosen(config, config.batch_classes is None and config.views == 1)
    for option in ("views", "batch_classes"):
        if (value := getattr(config, option)) and config.batch_size % value:
            raise ValueError(
                f"--{option} must divide the {config.batch_size} images of a batch "
                f"(--batch_size), got {value}"
            )
    options.check_views(config.views, options.augmentation(*_changes(config)))


def _check_chosen(config: Any, all_classes: bool) -> None:
    """Raises ValueError if an option chooses among classes and a batch has all of them."""
    for option in ("by_size", "category"):
        if all_classes and option_checks.is_given(config, option):
            raise ValueError(
                f"--{option} has no effect where a batch has all classes: take fewer with "
                f"--batch_classes, or leave --{option} out"
            )


def check_data(config: Any, split: str, data: Dataset) -> None:
    """Checks that batches can be drawn from a data set, with the labels of the options.

    Args:
      config: the options.
      split: its name, for errors.
      data: to train on.

    Raises:
      ValueError: if an option has no effect on this data, or classes do not fit a batch.
    """
    if data.train.images.ndim == 2:
        option_checks.check_effects(config, option_checks.EFFECTS_ON_VECTORS)
    else:
        options.check_shift(_changes(config)[1], data)
    # To see that pairs can be drawn.
    index_by_class(data.train.classes, categories=options.categories_of(config.category, data))
    objective = options.labelled(train.objective(losses_of(config)[0]), config.labels)
    check_labels(objective, data, ["train", "validation", "test"])
    if config.views > 1:
        return
    classes = len(np.unique(data.train.classes))
    if config.batch_classes is not None:
        _check_chosen(config, config.batch_classes == classes)
        try:
            balance(config.batch_size, config.batch_classes, classes)
        except ValueError as error:
            raise ValueError(f"--{error} ({split})") from None
    elif config.batch_size % classes or config.batch_size < 2 * classes:
        raise ValueError(
            f"--batch_size must be a multiple of the {classes} classes that are trained on "
            f"({split}) and hold two of each, got {config.batch_size}: or take some classes to a "
            "batch with --batch_classes"
        )


def batch_of(config: Any, data: Dataset) -> dict[str, Any]:
    """Returns the arguments of `assemble_trials` that say how a batch is made."""
    by_class = {
        "batch_classes": config.batch_classes or len(np.unique(data.train.classes)),
        "repeat": config.repeat,
        "by_size": config.by_size,
        "categories": options.categories_of(config.category, data),
    }
    vectors = data.train.images.ndim == 2
    return {
        "batch_size": config.batch_size,
        "views": config.views,
        "augment": None if vectors else options.augmentation(*_changes(config)),
    } | ({} if config.views > 1 else by_class)


def _changes(config: Any) -> tuple[bool, int, tuple[str, ...]]:
    """Returns whether images are mirrored, how far they are moved, and other changes."""
    recipe = options.recipe_of(config)
    flip = recipe["flip"] if config.flip is None else config.flip
    shift = recipe["shift"] if config.shift is None else config.shift
    return flip, shift, config.augment

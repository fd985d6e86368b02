"""The batches of a comparison of losses: which options they have, and what fits the data."""

from typing import Any

import numpy as np

from contrastive_jax import train
from contrastive_jax.data import Dataset
from contrastive_jax.data.categories import categories_of
from contrastive_jax.train import loss_table
from contrastive_jax.train.labelled import check_labels
from contrastive_jax.train.preconditions import check_batches
from experiments import command, option_checks, options
from experiments.train import Config as TrainConfig


def losses_of(config: Any) -> tuple[str, ...]:
    """Returns the losses to compare, by default all that take the labels of the options."""
    if config.losses:
        return tuple(config.losses)
    if config.labels == "class":
        return loss_table.NAMES
    return tuple(name for name in loss_table.NAMES if name not in loss_table.PROXIES)


def _batch(config: Any) -> dict[str, Any]:
    """Returns the arguments of `fit` that say how a batch is made, but for categories."""
    recipe = options.recipe_of(config)
    changes = {name: getattr(config, name) for name in ("augment", "flip", "shift")}
    changes = {name: recipe.get(name) if one is None else one for name, one in changes.items()}
    return {
        "batch_size": config.batch_size,
        "batch_classes": config.batch_classes,
        "repeat": config.repeat,
        "by_size": config.by_size,
        "views": config.views,
        "augment": options.augmentation(changes),
    }


def check_options(config: Any) -> None:
    """Checks what the options of a batch say together, before any data is read."""
    for name in losses_of(config):
        training = TrainConfig(
            loss=name, objective="all_pairs", labels=config.labels, views=config.views
        )
        option_checks.check_effects(training, option_checks.EFFECTS_OF_TRAINING)
    _check_chosen(config, config.batch_classes is None and config.views == 1)
    with command.options_named(vars(config)):
        objective = train.objective(losses_of(config)[0])
        check_batches(objective, **_batch(config), categories=config.category)


def _check_chosen(config: Any, all_classes: bool) -> None:
    """Raises ValueError if an option chooses among classes and a batch has all of them."""
    for option in ("by_size", "category"):
        if all_classes and option_checks.is_given(config, option):
            raise ValueError(
                f"--{option} has no effect where a batch has all classes: take fewer with "
                f"--batch_classes, or leave --{option} out"
            )


def check_data(config: Any, split: str, data: Dataset) -> None:
    """Checks that the options of a batch have an effect on a data set, and its labels.

    Args:
      config: the options.
      split: its name, for errors.
      data: to train on.

    Raises:
      ValueError: if an option has no effect on this data, or classes do not fit a batch.
    """
    if data.train.images.ndim == 2:
        option_checks.check_effects(config, option_checks.EFFECTS_ON_VECTORS)
    check_labels(options.labelled(train.objective(losses_of(config)[0]), config.labels), data)
    classes = len(np.unique(data.train.classes))
    _check_chosen(config, config.batch_classes == classes)
    if config.batch_classes is not None or config.views > 1:
        return
    if config.batch_size % classes or config.batch_size < 2 * classes:
        raise ValueError(
            f"--batch_size must be a multiple of the {classes} classes that are trained on "
            f"({split}) and hold two of each, got {config.batch_size}: or take some classes to a "
            "batch with --batch_classes"
        )


def batch_of(config: Any, data: Dataset) -> dict[str, Any]:
    """Returns the arguments of `assemble_trials` that say how a batch is made."""
    batch = _batch(config)
    if data.train.images.ndim == 2:
        batch["augment"] = None
    if config.views == 1:
        batch["batch_classes"] = config.batch_classes or len(np.unique(data.train.classes))
        batch["categories"] = config.category and categories_of(data, config.category)
    return batch

"""The axes of a grid and the space of a search: options of a training, and those of its loss."""

import difflib
from collections.abc import Iterable
from typing import Any

from contrastive_jax.search import texts
from contrastive_jax.search.space import Hyperparameters
from contrastive_jax.train import loss_table
from experiments import option_checks, options

# Options of a training that are data to a step, and those that change its structure.
HYPERPARAMETERS = (
    "margin",
    "learning_rate",
    "loss_learning_rate",
    "similar_fraction",
    "weight_decay",
    "clip_norm",
    "seed",
)
STRUCTURE: dict[str, texts.Kind] = {
    "loss": loss_table.NAMES,
    "encoder": (*options.ENCODERS,),
    "width": int,
    "distance": (*options.DISTANCES,),
    "objective": ("auto", "pairs", "all_pairs"),
    "batch_size": int,
    "group": int,
}


def check_axes(config: Any, axes: Iterable[str], losses: Iterable[str], option: str) -> None:
    """Checks that each axis is one of trainings with these losses, and is not given as an option.

    Args:
      config: the options of a program.
      axes: names of what is varied.
      losses: with which trainings are.
      option: by which the axes were named, for the error.

    Raises:
      ValueError: if an axis is not one of a training, naming those that are, or if its values would
        take the place of an option.
    """
    for loss in losses:
        loss_table.check_name(loss)
        of_loss = {} if loss == "contrastive" else loss_table.hyperparameters_of(loss)
        possible = [*dict.fromkeys([*HYPERPARAMETERS[:-1], *STRUCTURE, *of_loss])]
        for name in {*axes} - {*possible}:
            close = difflib.get_close_matches(name, possible, n=3)
            raise ValueError(
                f"{name} can not be an axis of trainings with {loss}; "
                + (f"close to it: {', '.join(close)}; " if close else "")
                + f"possible axes: {', '.join(possible)}"
            )
    for name in axes:
        if option_checks.is_given(config, name):
            raise ValueError(
                f"--{name} has no effect, as {name} is an axis of {option}: leave one of them out"
            )
        if name in config.loss_options:
            raise ValueError(f"{name} is an axis of {option}: leave it out of --loss_options")


def structure_of(hyperparameters: Hyperparameters, loss: str) -> str:
    """Returns a name of the structure of a trial, which is also the name of a file."""
    names = {*STRUCTURE, *loss_table.whole_hyperparameters(loss)} - {*HYPERPARAMETERS}
    return ",".join(f"{key}={value}" for key, value in hyperparameters.items() if key in names)

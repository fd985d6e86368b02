"""Checks of the options of a program: their ranges, and under which others each has an effect.

An option that could do nothing is an error and not ignored: a folder of data that is not read, or a
memory's age without a memory, would be recorded as if they had made the figures.
"""

import dataclasses
import warnings
from collections.abc import Iterable
from typing import Any, TypeVar

import numpy as np

from contrastive_jax import cli
from contrastive_jax.cli import Effect
from contrastive_jax.data import Dataset, PairDataset, augment, datasets
from contrastive_jax.data._own import recognise
from contrastive_jax.train import folder, loss_table, ranges
from contrastive_jax.train.validation import margin_out_of_reach
from experiments import command, options

Config = TypeVar("Config")

# Data sets that are read from IDX files.
IDX = tuple(name for name in datasets.OWN if name != "digits")


# The numbers of programs besides those of `fit` and its optimizers.
RULES = {
    **ranges.RANGES,
    **dict.fromkeys(("image_size", "images", "margin"), ranges.ABOVE_ZERO),
    **dict.fromkeys(("memory_limit", "neighbours"), ranges.ABOVE_ZERO),
    **dict.fromkeys(("memory", "shift"), ranges.NOT_NEGATIVE),
    **dict.fromkeys(("at_once", "trials"), ranges.at_least(1)),
    **dict.fromkeys(("keep_one_in", "width"), ranges.at_least(2)),
    "seeds": ranges.Limits("at least 1 and below 2^32", lambda x: 1 <= x < 2**32),
    "warmup": ranges.Limits("in [0, 1)", lambda x: 0 <= x < 1),
}


def _contrastive(config: Any) -> bool:
    return bool(config.loss == "contrastive")


def _whole_batches(config: Any) -> bool:
    return not _contrastive(config) or config.objective == "all_pairs"


def _pair_loss(config: Any) -> bool:
    return config.loss in loss_table.PAIRS


_WHOLE_BATCHES = (
    "--loss {loss} is of whole batches and has a distance of its own",
    "leave --objective and --distance out",
)
_ON_DEVICE = (
    "--loss {loss} is of whole batches, drawn on the device",
    "leave --data_on out",
)
_TWICE = "--{option} and --loss_options {option} name the same number"

# Each table in the order in which it is checked. An option that is in neither always has an effect.
EFFECTS = (
    Effect(
        "dataset", lambda config: config.data is None, "--data and --dataset exclude each other"
    ),
    Effect(
        "data_dir tfds_dir",
        lambda config: config.data is None,
        "--{option} has no effect with --data, which names the files itself",
    ),
    Effect(
        "on_bad_input similar_label",
        lambda config: config.data is not None,
        "--{option} is of data of your own",
        "give --data, or leave --{option} out",
    ),
    Effect(
        "data_dir",
        lambda config: config.dataset in IDX,
        "--data_dir has no effect with --dataset {dataset}, which is not read from IDX files",
        f"leave it out, or name one of {', '.join(IDX)} with --dataset",
    ),
    Effect(
        "keep_one_in",
        lambda config: config.method == "halving" and config.trials > 1,
        "--keep_one_in is of halving among several trials, and has no effect with --method "
        "{method} and --trials {trials}",
    ),
    Effect(
        "at_once",
        lambda config: config.method == "optuna",
        "--at_once is of optuna, and has no effect with --method {method}",
    ),
)
EFFECTS_OF_TRAINING = (
    Effect(
        "loss_learning_rate",
        lambda config: loss_table.TABLE[config.loss].learning_rate > 0,
        "{loss} has no parameters",
    ),
    Effect(
        "objective",
        lambda config: config.objective != "pairs" or _contrastive(config),
        *_WHOLE_BATCHES,
    ),
    Effect("distance", _contrastive, *_WHOLE_BATCHES),
    Effect("data_on", _pair_loss, *_ON_DEVICE),
    Effect(
        "data_on",
        lambda config: config.objective != "all_pairs",
        "--objective all_pairs is of whole batches, drawn on the device",
        "leave --data_on out",
    ),
    Effect("margin", lambda config: "margin" not in config.loss_options, _TWICE),
    Effect("positive_fraction", _pair_loss, "{loss} has no share of positive pairs"),
    Effect(
        "positive_fraction", lambda config: "positive_fraction" not in config.loss_options, _TWICE
    ),
    Effect(
        "group",
        lambda config: not _whole_batches(config),
        "--group has no effect where all pairs of a batch are compared (--objective all_pairs, and "
        "every loss but contrastive)",
    ),
)


_DRAWN = "given pairs are drawn with both labels equally often (or as they are, by --no_balanced)"
EFFECTS_ON_PAIRS = (
    Effect(
        "loss",
        _pair_loss,
        "--loss {loss} compares whole batches by class, and given pairs have no classes",
        f"take one of {', '.join(loss_table.PAIRS)}",
    ),
    Effect(
        "objective",
        lambda config: config.objective != "all_pairs" or not _contrastive(config),
        "given pairs have labels and no classes",
    ),
    Effect(
        "batch_classes group views repeat by_size category labels memory",
        lambda config: False,
        "given pairs have labels and no classes",
    ),
    Effect(
        "loss_options",
        lambda config: "positive_fraction" not in config.loss_options,
        _DRAWN,
        "leave positive_fraction out of --loss_options",
    ),
    Effect("positive_fraction", lambda config: False, _DRAWN),
)
EFFECTS_ON_VECTORS = (
    Effect(
        "encoder",
        lambda config: config.encoder in options.ENCODERS_OF_VECTORS,
        "--encoder {encoder} takes images, and the data has vectors",
        f"take one of {', '.join(options.ENCODERS_OF_VECTORS)}",
    ),
    Effect(
        "flip shift augment views",
        lambda config: False,
        "--{option} changes images, and the data has vectors",
    ),
)
EFFECTS_ON_CLASSES = (
    Effect(
        "balanced",
        lambda config: False,
        "--balanced is of given pairs, and the data has classes",
        "leave it out",
    ),
    Effect("data_on", lambda config: not _whole_batches(config), *_ON_DEVICE),
)


def for_data(config: Any, data: Dataset | PairDataset) -> Any:
    """Checks options of a training against its data, and fills in those that depend on it.

    Args:
      config: options from `checked_training`, before `options.settled`.
      data: to train on.

    Returns:
      The options, of which `balanced` is None on data with classes, and `positive_fraction` on
      given pairs the share of positive pairs among those drawn.
    """
    vectors = (data.images if isinstance(data, PairDataset) else data.train.images).ndim == 2
    cli.check_effects(
        config, EFFECTS_ON_PAIRS if isinstance(data, PairDataset) else EFFECTS_ON_CLASSES
    )
    filled: dict[str, Any] = {"encoder": config.encoder or ("linear" if vectors else "convnet")}
    if vectors:
        cli.check_effects(config, EFFECTS_ON_VECTORS)
        filled |= {"flip": False, "shift": 0, "steps": config.steps or options.STEPS_ON_VECTORS}
    if isinstance(data, PairDataset):
        balanced = config.balanced is not False
        drawn = 0.5 if balanced else float(np.mean(data.train.labels == 0))
        filled |= {"group": 1, "positive_fraction": drawn, "balanced": balanced}
    return dataclasses.replace(config, **filled)


def checked_training(config: Any) -> Any:
    """Checks the options of a single training, and fills in those that depend on the loss."""
    config = checked(config)
    cli.check_effects(config, EFFECTS)
    complete = options.resolved(config)
    cli.check_effects(config, EFFECTS_OF_TRAINING)
    with command.naming_options(vars(config)):
        options.objective_of(complete)
    return complete


def checked(config: Config, default: str = "digits") -> Config:
    """Checks each option by itself, expands `~` in paths, and fills in the data set.

    Args:
      config: the options of a program of this folder.
      default: the data set where none is given.

    Raises:
      FileExistsError: if the run that `--name` names exists and is not to be replaced.
      ValueError: if a number is not in its range, or a path or name is not one of a folder.
    """
    config = _with_paths(config, default)
    values: dict[str, Any] = vars(config)
    with command.naming_options(values):
        ranges.check_ranges(values, RULES)
    augment.by_names(values.get("augment", ()))
    tfds_dir, resume = values["tfds_dir"], values.get("resume")
    if tfds_dir is not None and not tfds_dir.is_dir():
        raise ValueError(
            f"--tfds_dir {tfds_dir} is not a folder: create it, or leave --tfds_dir out for that "
            "of tensorflow-datasets"
        )
    name, overwrite = resume or values["name"], values["overwrite"]
    folder.check_run(values["runs"], name, resume=resume is not None, overwrite=overwrite)
    return config


def _with_paths(config: Config, default: str) -> Config:
    """Fills in whole paths, and the data set by default."""
    config = cli.expand_home(config)
    values: dict[str, Any] = vars(config)
    if values["dataset"] and recognise.looks_like_path(values["dataset"]):
        raise ValueError(
            f"--dataset takes the name of a data set, got the path {values['dataset']}: give it "
            "with --data"
        )
    if values["data"] is None:
        return dataclasses.replace(config, dataset=values["dataset"] or default)  # type: ignore[type-var]
    return dataclasses.replace(config, data=values["data"].absolute())  # type: ignore[type-var]


def warn_of_reach(configs: Iterable[Any]) -> None:
    """Warns once of each margin of trainings that is out of the reach of its distance."""
    messages = [
        margin_out_of_reach(options.objective_of(one), one.width, unit_length=one.normalize)
        for one in configs
    ]
    for message in filter(None, dict.fromkeys(messages)):
        warnings.warn(message, stacklevel=2)

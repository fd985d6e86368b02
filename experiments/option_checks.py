"""Checks of the options of a program: their ranges, and under which others each has an effect.

An option that could do nothing is an error and not ignored: a folder of data that is not read, or a
memory's age without a memory, would be recorded as if they had made the figures.
"""

import dataclasses
import math
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from contrastive_jax import distances, labels, train
from contrastive_jax.data import Dataset, PairDataset, augment, datasets
from contrastive_jax.data._own import recognise
from contrastive_jax.train import diagnostics, loss_table
from experiments.options import ENCODERS_OF_VECTORS, STEPS_ON_VECTORS, images_of, resolved

Config = TypeVar("Config")

# Data sets that are read from IDX files.
IDX = tuple(name for name in datasets.OWN if name != "digits")


class Rule(NamedTuple):
    """The range of a number."""

    expected: str
    holds: Callable[[Any], bool]


_ABOVE_ZERO = Rule("above 0", lambda x: 0 < x < math.inf)
_NOT_NEGATIVE = Rule("at least 0 and finite", lambda x: 0 <= x < math.inf)
_SHARE = Rule("in [0, 1]", lambda x: 0 <= x <= 1)


def _at_least(least: int) -> Rule:
    return Rule(f"at least {least}", lambda x: x >= least)


RULES: dict[str, Rule] = {
    "batch_classes": _at_least(2),
    "batch_size": _ABOVE_ZERO,
    "clip_norm": _ABOVE_ZERO,
    "group": _ABOVE_ZERO,
    "image_size": _ABOVE_ZERO,
    "images": _ABOVE_ZERO,
    "keep": _ABOVE_ZERO,
    "keep_one_in": _at_least(2),
    "at_once": _at_least(1),
    "learning_rate": _ABOVE_ZERO,
    "log_every": _ABOVE_ZERO,
    "loss_learning_rate": _ABOVE_ZERO,
    "margin": _ABOVE_ZERO,
    "max_age": _ABOVE_ZERO,
    "memory": _NOT_NEGATIVE,
    "memory_limit": _ABOVE_ZERO,
    "microbatches": _ABOVE_ZERO,
    "neighbours": _ABOVE_ZERO,
    "save_every": _ABOVE_ZERO,
    "seed": Rule("from 0 to 4294967295 (2^32 - 1)", lambda x: 0 <= x < 2**32),
    "seeds": Rule("at least 1 and below 2^32", lambda x: 1 <= x < 2**32),
    "shift": _NOT_NEGATIVE,
    "similar_fraction": _SHARE,
    "steps": _ABOVE_ZERO,
    "steps_per_call": _ABOVE_ZERO,
    "trials": _at_least(1),
    "validate_every": _ABOVE_ZERO,
    "views": _at_least(1),
    "warmup": Rule("in [0, 1)", lambda x: 0 <= x < 1),
    "weight_decay": _NOT_NEGATIVE,
    "width": _at_least(2),
}


class Effect(NamedTuple):
    """The condition under which an option has an effect, and the error where it does not hold."""

    option: str
    holds: Callable[[Any], bool]
    error: str
    """With options of the program in braces."""


def _contrastive(config: Any) -> bool:
    return bool(config.loss == "contrastive")


def _draws_pairs(config: Any) -> bool:
    return _contrastive(config) and config.objective != "all_pairs"


def _by_name(config: Any) -> bool:
    """Tells whether the data set is named and not one's own; some programs take names alone."""
    return getattr(config, "data", None) is None


def _pair_loss(config: Any) -> bool:
    return config.loss in loss_table.PAIRS


_ALONE = (
    "--loss contrastive takes --margin alone: leave --loss_options and --loss_learning_rate out"
)
_WHOLE_BATCHES = (
    "--loss {loss} is of whole batches drawn on the device and has a distance of its own: leave "
    "--objective, --distance and --data_on out"
)
_TWICE = "--{0} and --loss_options {0} name the same number: leave one of them out"

# Each table in the order in which it is checked. An option that is in neither always has an effect.
EFFECTS = (
    Effect("dataset", _by_name, "--data and --dataset exclude each other: leave --dataset out"),
    Effect(
        "data_dir",
        _by_name,
        "--data_dir has no effect with --data, which names the files itself: leave --data_dir out",
    ),
    Effect("tfds_dir", _by_name, "--tfds_dir has no effect with --data: leave --tfds_dir out"),
    Effect(
        "on_bad_input",
        lambda config: config.data is not None,
        "--on_bad_input is of data of your own: give --data, or leave --on_bad_input out",
    ),
    Effect(
        "similar_label",
        lambda config: config.data is not None,
        "--similar_label is of pairs of your own: give --data, or leave --similar_label out",
    ),
    Effect(
        "data_dir",
        lambda config: config.dataset in IDX,
        "--data_dir has no effect with --dataset {dataset}, which is not read from IDX files: "
        f"leave it out, or name one of {', '.join(IDX)} with --dataset",
    ),
    Effect(
        "overwrite", lambda config: bool(config.name), "--overwrite needs the --name of the run"
    ),
    Effect(
        "overwrite",
        lambda config: not getattr(config, "resume", False),
        "--resume and --overwrite exclude each other",
    ),
    Effect(
        "keep_one_in",
        lambda config: config.method == "halving" and config.trials > 1,
        "--keep_one_in has no effect with --method {method} and --trials {trials}: it is of "
        "halving among several trials; leave it out",
    ),
    Effect(
        "at_once",
        lambda config: config.method == "optuna",
        "--at_once has no effect with --method {method}: it is of optuna; leave it out",
    ),
)
EFFECTS_OF_TRAINING = (
    Effect("loss_options", lambda config: not _contrastive(config), _ALONE),
    Effect("loss_learning_rate", lambda config: not _contrastive(config), _ALONE),
    Effect(
        "loss_learning_rate",
        lambda config: loss_table.TABLE[config.loss].learning_rate > 0,
        "{loss} has no parameters: leave --loss_learning_rate out",
    ),
    Effect(
        "memory",
        lambda config: not _draws_pairs(config),
        "--memory is compared with whole batches: give --objective all_pairs, or another loss",
    ),
    Effect(
        "memory",
        lambda config: config.loss not in loss_table.PROXIES,
        "{loss} compares with proxies and takes no --memory",
    ),
    Effect(
        "max_age",
        lambda config: config.memory > 0,
        "--max_age has no effect without a memory: give --memory, or leave --max_age out",
    ),
    Effect(
        "objective",
        lambda config: config.objective != "pairs" or _contrastive(config),
        _WHOLE_BATCHES,
    ),
    Effect("distance", _contrastive, _WHOLE_BATCHES),
    Effect("data_on", lambda config: _contrastive(config) or _pair_loss(config), _WHOLE_BATCHES),
    Effect(
        "data_on",
        lambda config: config.objective != "all_pairs",
        "--objective all_pairs draws on the device: leave --data_on device",
    ),
    Effect("margin", lambda config: "margin" not in config.loss_options, _TWICE.format("margin")),
    Effect(
        "similar_fraction",
        lambda config: _contrastive(config) or config.loss in loss_table.PAIRS,
        "{loss} has no share of similar pairs: leave --similar_fraction out",
    ),
    Effect(
        "similar_fraction",
        lambda config: "similar_fraction" not in config.loss_options,
        _TWICE.format("similar_fraction"),
    ),
    Effect(
        "group",
        _draws_pairs,
        "--group has no effect where all pairs of a batch are compared (--objective all_pairs, and "
        "every loss but contrastive): leave --group out",
    ),
    *(
        Effect(
            option,
            lambda config: not _draws_pairs(config),
            f"--{option} is of batches of classes: give --objective all_pairs, or another loss "
            "than contrastive",
        )
        for option in ("views", "repeat", "by_size", "category", "labels")
    ),
    *(
        Effect(
            option,
            lambda config: config.views == 1,
            f"--{option} has no effect with --views {{views}}, whose batches are of images: leave "
            "it out",
        )
        for option in ("batch_classes", "repeat", "by_size", "category", "labels")
    ),
    Effect(
        "labels",
        lambda config: config.loss not in loss_table.PROXIES,
        "{loss} compares with proxies of classes and takes no --labels: take a pair loss with "
        "--objective all_pairs, or a loss such as supcon",
    ),
    Effect(
        "batch_classes",
        lambda config: not _draws_pairs(config),
        "--batch_classes needs --objective all_pairs, or another loss than contrastive",
    ),
)


_ON_PAIRS = "given pairs have labels and no classes: leave --{0} out"
EFFECTS_ON_PAIRS = (
    Effect(
        "loss",
        _pair_loss,
        "--loss {loss} compares whole batches by class, and given pairs have no classes: take one "
        f"of {', '.join(loss_table.PAIRS)}",
    ),
    Effect(
        "objective",
        lambda config: config.objective != "all_pairs" or not _contrastive(config),
        _ON_PAIRS.format("objective"),
    ),
    *(
        Effect(option, lambda config: False, _ON_PAIRS.format(option))
        for option in (
            "batch_classes",
            "group",
            "views",
            "repeat",
            "by_size",
            "category",
            "labels",
        )
    ),
    Effect(
        "similar_fraction",
        lambda config: False,
        "given pairs are drawn with both labels equally often (or as they are, by --no_balanced): "
        "leave --similar_fraction out",
    ),
    Effect(
        "loss_options",
        lambda config: "similar_fraction" not in config.loss_options,
        "given pairs are drawn with both labels equally often (or as they are, by --no_balanced): "
        "leave similar_fraction out of --loss_options",
    ),
    Effect(
        "memory",
        lambda config: False,
        "--memory is compared by class, and given pairs have no classes: leave --memory out",
    ),
)
_ON_VECTORS = "--{0} changes images, and the data has vectors: leave --{0} out"
EFFECTS_ON_VECTORS = (
    Effect(
        "encoder",
        lambda config: config.encoder in ENCODERS_OF_VECTORS,
        "--encoder {encoder} takes images, and the data has vectors: take one of "
        f"{', '.join(ENCODERS_OF_VECTORS)}",
    ),
    *(
        Effect(option, lambda config: False, _ON_VECTORS.format(option))
        for option in ("flip", "shift", "augment", "views")
    ),
)
EFFECTS_ON_CLASSES = (
    Effect(
        "balanced",
        lambda config: False,
        "--balanced is of given pairs, and the data has classes: leave it out",
    ),
    Effect("data_on", _draws_pairs, _WHOLE_BATCHES),
)


def for_data(config: Any, data: Dataset | PairDataset) -> Any:
    """Checks options of a training against its data, and fills in those that depend on it.

    Args:
      config: options from `checked_training`, before `options.settled`.
      data: to train on.

    Returns:
      The options, of which `balanced` is None on data with classes, and `similar_fraction` on given
      pairs the share of similar pairs among those drawn.

    Raises:
      ValueError: if an option has no effect on this data.
    """
    vectors = images_of(data).ndim == 2
    check_effects(config, EFFECTS_ON_PAIRS if isinstance(data, PairDataset) else EFFECTS_ON_CLASSES)
    filled: dict[str, Any] = {"encoder": config.encoder or ("linear" if vectors else "convnet")}
    if vectors:
        check_effects(config, EFFECTS_ON_VECTORS)
        filled |= {"flip": False, "shift": 0, "steps": config.steps or STEPS_ON_VECTORS}
    if isinstance(data, PairDataset):
        balanced = config.balanced is not False
        drawn = 0.5 if balanced else float(np.mean(data.train.labels == 0))
        filled |= {"group": 1, "similar_fraction": drawn, "balanced": balanced}
    return dataclasses.replace(config, **filled)


def is_given(config: Any, option: str) -> bool:
    """Returns whether a program has this option, at another value than its default."""
    for field in dataclasses.fields(config):
        if field.name == option:
            factory = field.default_factory
            default = field.default if factory is dataclasses.MISSING else factory()
            return bool(getattr(config, option) != default)
    return False


def checked_training(config: Any) -> Any:
    """Checks the options of a single training, and fills in those that depend on the loss.

    Raises:
      ValueError: if an option has a wrong value, or no effect under the others.
    """
    config = checked(config)
    check_effects(config)
    complete = resolved(config)
    check_effects(config, EFFECTS_OF_TRAINING)
    return complete


def checked(config: Config, default: str = "digits") -> Config:
    """Checks each option by itself, expands `~` in paths, and fills in the data set.

    Args:
      config: the options of a program of this folder.
      default: the data set where none is given.

    Returns:
      The options, with whole paths.

    Raises:
      ValueError: if a number is not in its range, the home folder that a path names is not known,
        `--tfds_dir` is no folder, or `--runs` is something else than a folder.
    """
    config = _with_dataset(_expanded(config), default)
    values: dict[str, Any] = vars(config)
    for option, rule in RULES.items():
        value = values.get(option)
        if value is not None and not rule.holds(value):
            raise ValueError(f"--{option} must be {rule.expected}, got {value}")
    augment.by_names(values.get("augment", ()))
    try:
        labels.by_name(values.get("labels", "class"))
    except ValueError as error:
        raise ValueError(f"--labels: {error}") from None
    tfds_dir, runs = values["tfds_dir"], values["runs"]
    if tfds_dir is not None and not tfds_dir.is_dir():
        raise ValueError(
            f"--tfds_dir {tfds_dir} is not a folder: create it, or leave --tfds_dir out for that "
            "of tensorflow-datasets"
        )
    if runs.exists() and not runs.is_dir():
        raise ValueError(f"--runs {runs} is not a folder: name one, which is created if need be")
    return config


def _expanded(config: Config) -> Config:
    paths = {}
    for option, value in vars(config).items():
        if isinstance(value, Path):
            try:
                paths[option] = value.expanduser()
            except RuntimeError:
                raise ValueError(
                    f"--{option} {value} begins with a home folder that is not known: give the "
                    "whole path"
                ) from None
    return dataclasses.replace(config, **paths)  # type: ignore[type-var]


def _with_dataset(config: Config, default: str) -> Config:
    """Fills in the data set by default, and the whole path of data of one's own."""
    values = vars(config)
    if values["dataset"] and recognise.looks_like_path(values["dataset"]):
        raise ValueError(
            f"--dataset takes the name of a data set, got the path {values['dataset']}: "
            + ("give it with --data" if "data" in values else "this program takes names alone")
        )
    if "data" not in values:
        return config
    filled: dict[str, Any] = {"data": values["data"] and values["data"].absolute()}
    if values["data"] is None:
        filled["dataset"] = values["dataset"] or default
    return dataclasses.replace(config, **filled)  # type: ignore[type-var]


def check_effects(config: Any, effects: Iterable[Effect] = EFFECTS) -> None:
    """Checks that every option that is given has an effect under the others.

    Args:
      config: the options of a program of this folder, as they were given.
      effects: `EFFECTS`, or `EFFECTS_OF_TRAINING` for the options of a single training.

    Raises:
      ValueError: for the first condition that does not hold, saying what to leave out.
    """
    for option, holds, error in effects:
        if is_given(config, option) and not holds(config):
            raise ValueError(error.format_map(vars(config)))


def check_axes(config: Any, axes: Iterable[str], option: str) -> None:
    """Checks that no option is given that is an axis too, whose values would take its place.

    Args:
      config: the options of a program.
      axes: names of what is varied.
      option: by which they were named, for the error.

    Raises:
      ValueError: if one is.
    """
    for name in axes:
        if is_given(config, name):
            raise ValueError(
                f"--{name} has no effect, as {name} is an axis of {option}: leave one of them out"
            )
        if name in config.loss_options:
            raise ValueError(f"{name} is an axis of {option}: leave it out of --loss_options")


def warn_of_reach(configs: Iterable[Any]) -> None:
    """Warns once of each margin that is out of the reach of its distance.

    Args:
      configs: options of trainings, from `options.resolved`.
    """
    for message in dict.fromkeys(map(_out_of_reach, configs)):
        if message:
            warnings.warn(message, stacklevel=3)


def _out_of_reach(config: Any) -> str:
    """Returns the warning of a training, empty where its margin can be reached."""
    if config.loss not in (*loss_table.BOUNDED, *loss_table.SLACK):
        return ""
    values = loss_table.hyperparameters_of(config.loss) | config.loss_options
    distance = train.objective(config.loss, **config.loss_options).distance
    if config.loss == "contrastive":
        values, distance = {"margin": config.margin}, getattr(distances, config.distance)
    return diagnostics.out_of_reach(
        values["margin"],
        distance,
        config.width,
        unit_length=config.normalize,
        boundary=values.get("boundary", 0.0),
    )

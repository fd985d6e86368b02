"""Trains every loss alike, tuned with the same budget each, and compares them on test.

    python -m experiments.compare_losses                           # forty minutes on two cores
    python -m experiments.compare_losses --resume compare_losses   # goes on
    python -m experiments.compare_losses --resume compare_losses --losses supcon  # a part

As "A Metric Learning Reality Check" (Musgrave, Belongie and Lim 2020) asks for: the same encoder,
batch, steps and augmentation for all; learning rate and hyperparameters of a loss chosen by MAP@R
on validation, from as many trials for each; then several seeds with those, and their mean on test
with a 95 % interval (Student's t over seeds). Two splits: all classes, and half of the classes,
seen in training, against the others. The figures of raw pixels, or of vectors as they are, whitened
and by LDA, stand beside them.

What a reader should know: in both splits validation is of held-out images of the classes trained
on, where that paper holds out classes; a loss without ranges in the table of losses has its
learning rate tuned alone; the learning rate of proxies and boundaries follows that of the
encoder.

Each trial adds a line to runs/NAME/trials.jsonl when it is finished. Hyperparameters are data, so
that all trials of a loss and a split share one compilation.
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from contrastive_jax._extras import needs

with needs("train", "experiments.compare_losses"):
    from tqdm import tqdm

from contrastive_jax import cli, train
from contrastive_jax.data import Dataset, check_evaluable
from contrastive_jax.data._digest import digest
from contrastive_jax.data.categories import categories_of
from contrastive_jax.data.evaluable import with_classes
from contrastive_jax.loss_report import report, splits_of
from contrastive_jax.search.loss_comparison import losses_locked, train_losses
from contrastive_jax.search.loss_trials import trials_of_loss
from contrastive_jax.train import loss_table
from contrastive_jax.train.labelled import check_labels
from contrastive_jax.train.preconditions import check_batches
from contrastive_jax.train.training import Training
from contrastive_jax.train.trial_assembly import AssembledTrials
from experiments import command, option_checks, options
from experiments.options import ENCODERS

EFFECTS = (
    *option_checks.EFFECTS,
    cli.Effect(
        "by_size category",
        lambda config: config.batch_classes is not None or config.views > 1,
        "--{option} has no effect where a batch has all classes",
        "take fewer with --batch_classes, or leave --{option} out",
    ),
)
# Options that may differ when it is resumed.
FREE = options.FREE | {"losses"}


@dataclasses.dataclass(frozen=True)
class Config(options.Runs, options.Batches, options.Data):
    """Options of the comparison."""

    dataset: str | None = None
    """digits, fashion_mnist (the default), mnist, or any name in tensorflow-datasets with images
    and labels."""
    data: Path | None = None
    """Data of your own with classes and without splits, in place of a data set by name."""
    split: Literal["classes", "examples"] | None = None
    """Compare by this split alone; by default by both, examples of all classes and classes never
    seen in training."""
    losses: tuple[str, ...] = ()
    """The losses to train, all by default."""
    trials: int = 4
    """Trials of each loss on validation; the first has the hyperparameters of `loss_table`."""
    seeds: int = 3
    """Trials on test with the chosen hyperparameters."""
    steps: int = 300
    """Steps of every trial."""
    batch_size: int = 60
    """Images in a batch."""
    batch_classes: int | None = None
    """Classes in a batch; by default all that are trained on, alike."""
    encoder: options.Encoder | None = None
    """Network from images to embeddings; by default convnet, and linear on vectors, which linear,
    mlp and residual take."""
    width: int = 64
    """Number of entries of an embedding."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices and kernels."""
    name: str | None = "compare_losses"
    """Folder of this run."""


def main(config: Config) -> Path:
    """Runs the comparison and returns its folder."""
    config = option_checks.checked(config, default="fashion_mnist")
    _check(config)
    names = losses_of(config)
    sets = {split: _load(config, split) for split in splits_of(config.split)}
    for split, data in sets.items():
        check_evaluable(data)
        check_data(config, split, data)
        try:
            _check_fits(config, data, names[0])
        except ValueError as error:
            error.add_note(f"by the split of {split}")
            raise
    total = len(sets) * len(names) * (config.trials + config.seeds)
    with _folder(config, names, sets) as folder, tqdm(total=total, unit="run", disable=None) as bar:
        for split, data in sets.items():

            def advance(name: str, count: int, split: str = split) -> None:
                bar.set_postfix_str(f"{split}, {name}")
                bar.update(count)

            train_losses(
                names,
                partial(_assembled, config, data),
                folder,
                data,
                split,
                labelled=train.objective(names[0], labels=config.labels),
                width=config.width,
                trials=config.trials,
                seeds=config.seeds,
                steps=config.steps,
                advance=advance,
            )
        report(folder)
    return folder


def _check_fits(config: Config, data: Dataset, name: str) -> None:
    """Checks, without training anything, that the encoder and a batch fit a data set."""
    point = ({"learning_rate": 1e-3, "options": {}}, 0)
    jax.eval_shape(lambda: _assembled(config, data, name, [point]).init(0))


def _assembled(
    config: Config, data: Dataset, name: str, points: Sequence[tuple[dict[str, Any], int]]
) -> AssembledTrials:
    """Makes the parts of trials of a loss, each of hyperparameters and a seed."""
    make = partial(train.objective, name, labels=config.labels)
    default = "linear" if data.train.images.ndim == 2 else "convnet"
    with command.naming_options(vars(config)):
        training = Training(
            model=partial(ENCODERS[config.encoder or default], width=config.width),
            data=data,
            objective=make(),
            steps=config.steps,
            **_batch_of(config, data),
        )
        return trials_of_loss(training, make, points, weight_decay=config.weight_decay)


def _load(config: Config, split: str) -> Dataset:
    """Loads the data set with one of the splits, and prints a report of data of one's own."""
    by: Literal["classes", "examples"] = "classes" if split == "unseen classes" else "examples"
    return with_classes(options.read_data(dataclasses.replace(config, split=by)))


def _check(config: Config) -> None:
    for name in config.losses:
        loss_table.check_name(name)
    cli.check_effects(config, EFFECTS)
    _check_batch(config)
    if config.width < 3:
        # Mining weights pairs by the distances of random points, whose formula needs three.
        raise ValueError(f"--width must be at least 3, got {config.width}")
    if twice := [name for name in config.losses if config.losses.count(name) > 1]:
        raise ValueError(f"--losses names {twice[0]} twice: leave one of them out")


@contextlib.contextmanager
def _folder(config: Config, names: Iterable[str], sets: Mapping[str, Dataset]) -> Iterator[Path]:
    """Opens the run. Several processes may share it, but not a loss."""
    record = cli.as_saved(config)
    record["data_digest"] = " ".join(map(digest, sets.values()))
    run = options.open_run(config, "compare_losses", record, free=FREE, shared=True)
    with run as folder, losses_locked(folder, names):
        yield folder


def losses_of(config: Config) -> tuple[str, ...]:
    """Returns the losses to compare, by default all that take the labels of the options."""
    if config.losses:
        return tuple(config.losses)
    if config.labels == "class":
        return loss_table.NAMES
    return tuple(name for name in loss_table.NAMES if name not in loss_table.PROXIES)


def _batch(config: Config) -> dict[str, Any]:
    """Returns the arguments of `fit` that say how a batch is made, but for categories."""
    changes = {name: getattr(config, name) for name in ("flip", "shift")}
    given = {name: change for name, change in changes.items() if change is not None}
    return options.batch_of(config, options.recipe_of(config) | given)


def _check_batch(config: Config) -> None:
    """Checks what the options of a batch say together, before any data is read."""
    with command.naming_options(vars(config)):
        for name in losses_of(config):
            objective = train.objective(name, labels=config.labels)
        check_batches(objective, **_batch(config), categories=config.category)


def check_data(config: Config, split: str, data: Dataset) -> None:
    """Checks that the options of a batch have an effect on a data set, and its labels."""
    if data.train.images.ndim == 2:
        cli.check_effects(config, option_checks.EFFECTS_ON_VECTORS)
    objective = train.objective(losses_of(config)[0], labels=config.labels)
    check_labels(objective, data, ["train", "validation", "test"])
    classes = len(np.unique(data.train.classes))
    if config.batch_classes == classes:
        cli.check_effects(dataclasses.replace(config, batch_classes=None, views=1), EFFECTS)
    if config.batch_classes is not None or config.views > 1:
        return
    if config.batch_size % classes or config.batch_size < 2 * classes:
        raise ValueError(
            f"--batch_size must be a multiple of the {classes} classes that are trained on "
            f"({split}) and hold two of each, got {config.batch_size}: or take some classes to a "
            "batch with --batch_classes"
        )


def _batch_of(config: Config, data: Dataset) -> dict[str, Any]:
    """Returns the arguments of `assemble_trials` that say how a batch is made."""
    batch = _batch(config)
    if data.train.images.ndim == 2:
        batch["augment"] = None
    if config.views == 1:
        batch["batch_classes"] = config.batch_classes or len(np.unique(data.train.classes))
        batch["categories"] = config.category and categories_of(data, config.category)
    return batch


if __name__ == "__main__":
    cli.run(main, lambda: cli.parse(Config, "experiments.compare_losses", str(__doc__)))

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
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from contrastive_jax._extras import needs

with needs("train", "experiments.compare_losses"):
    from tqdm import tqdm

from contrastive_jax import locks, train
from contrastive_jax.data import Dataset, check_evaluable
from contrastive_jax.data._digest import digest
from contrastive_jax.evaluation import baselines
from contrastive_jax.loss_report import report, splits_of
from contrastive_jax.search.loss_trials import (
    figures_on,
    read_finished,
    train_loss,
    trials_of_loss,
)
from contrastive_jax.train import folder as runs
from contrastive_jax.train import json_lines, loss_table
from contrastive_jax.train.training import Training
from contrastive_jax.train.trial_assembly import AssembledTrials
from contrastive_jax.train.trial_folder import TRIALS
from experiments import batches_compared, command, option_checks, options
from experiments.options import ENCODERS, with_classes

# Options that may differ when it is resumed: they do not change the results.
FREE = {"losses", "resume", "overwrite", "name", "runs", "data_dir", "tfds_dir"}


@dataclasses.dataclass(frozen=True)
class Config(options.Batches, options.Data):
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
    encoder: str | None = None
    """Network from images to embeddings: linear, mlp, residual, drlim, convnet or resnet18; by
    default convnet, and linear on vectors, which the first three take."""
    width: int = 64
    """Number of entries of an embedding."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices and kernels."""
    runs: Path = Path("runs")
    """Folder of all runs."""
    name: str = "compare_losses"
    """Folder of this run."""
    resume: str | None = None
    """Go on with the run of this name."""
    overwrite: bool = False
    """Replace the run of this name."""


def main(config: Config) -> Path:
    """Runs the comparison and returns its folder."""
    config = option_checks.checked(config, default="fashion_mnist")
    _check(config)
    sets = {split: _load(config, split) for split in splits_of(config.split)}
    for split, data in sets.items():
        check_evaluable(data)
        batches_compared.check_data(config, split, data)
        train.check_images(
            train.network(_model(config, data), data.train.images.shape[1:]),
            train=data.train.images,
            validation=data.validation.images,
            test=data.test.images,
        )
    names = batches_compared.losses_of(config)
    counts = {"trials": config.trials, "seeds": config.seeds, "steps": config.steps}
    per_loss = config.trials + config.seeds
    total = len(sets) * len(names) * per_loss
    with _folder(config, names, sets) as folder, tqdm(total=total, unit="run", disable=None) as bar:
        for split, data in sets.items():
            labelled = options.labelled(train.objective(names[0]), config.labels)
            for beside, embed in baselines.baselines(
                data.train.images, data.train.classes, width=config.width
            ).items():
                line = {"split": split, "loss": beside}
                if not read_finished(folder, **line):
                    figures = figures_on(embed, data.test, labelled)
                    json_lines.append_line(folder / TRIALS, line | {"figures": figures})
            for name in names:
                bar.set_postfix_str(f"{split}, {name}")
                rest = per_loss
                assemble = partial(_assembled, config, name, data)
                for line in train_loss(name, assemble, folder, split, **counts):
                    json_lines.append_line(folder / TRIALS, line)
                    bar.update()
                    rest -= 1
                bar.update(rest)
        report(folder)
    return folder


def _assembled(
    config: Config, name: str, data: Dataset, points: Sequence[tuple[dict[str, Any], int]]
) -> AssembledTrials:
    """Makes the parts of trials of a loss, each of hyperparameters and a seed."""

    def make(**values: Any) -> train.Objective:
        return options.labelled(train.objective(name, **values), config.labels)

    training = Training(
        model=_model(config, data),
        data=data,
        objective=make(),
        steps=config.steps,
        **batches_compared.batch_of(config, data),
    )
    return trials_of_loss(training, make, points, weight_decay=config.weight_decay)


def _model(config: Config, data: Dataset) -> Any:
    default = "linear" if data.train.images.ndim == 2 else "convnet"
    return partial(ENCODERS[config.encoder or default], width=config.width)


def _load(config: Config, split: str) -> Dataset:
    """Loads the data set with one of the splits, and prints a report of data of one's own."""
    split_by: Literal["classes", "examples"] = (
        "classes" if split == "unseen classes" else "examples"
    )
    return with_classes(options.read_data(dataclasses.replace(config, split=split_by)))


def _check(config: Config) -> None:
    option_checks.check_effects(config)
    for name in config.losses:
        loss_table.check_name(name)
    batches_compared.check_options(config)
    runs.check_name(config.name)
    if not (config.resume or config.overwrite):
        runs.check_new(config.runs / config.name)
    if config.width < 3:
        # Mining weights pairs by the distances of random points, whose formula needs three.
        raise ValueError(f"--width must be at least 3, got {config.width}")
    if config.encoder not in (None, *ENCODERS):
        raise ValueError(f"--encoder must be one of {', '.join(ENCODERS)}, got {config.encoder}")
    if twice := [name for name in config.losses if config.losses.count(name) > 1]:
        raise ValueError(f"--losses names {twice[0]} twice: leave one of them out")


@contextlib.contextmanager
def _folder(config: Config, names: Iterable[str], sets: Mapping[str, Dataset]) -> Iterator[Path]:
    """Opens the run. Several processes may share it, but not a loss."""
    record = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    record["data_digest"] = " ".join(map(digest, sets.values()))
    with contextlib.ExitStack() as held:
        run = runs.open_run(
            config.runs,
            config.resume or config.name,
            config.name,
            record,
            resume=config.resume is not None,
            overwrite=config.overwrite,
            free=FREE,
            shared=True,
        )
        folder = held.enter_context(run)
        (folder / "locks").mkdir(exist_ok=True)
        for name in names:
            lock = locks.locked(folder / "locks" / name, f"{name} in {folder}")
            held.enter_context(lock)
        yield folder


if __name__ == "__main__":
    command.run(main, lambda: command.parse(Config, "experiments.compare_losses", str(__doc__)))

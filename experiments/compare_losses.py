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
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import optax
from scipy import stats

from contrastive_jax._extras import needs

with needs("train", "experiments.compare_losses"):
    from tqdm import tqdm

from contrastive_jax import locks, train
from contrastive_jax.data import Dataset, Examples, check_evaluable
from contrastive_jax.data._digest import digest
from contrastive_jax.evaluation import baselines
from contrastive_jax.evaluation.retrieval import retrieval
from contrastive_jax.evaluation.summary import by_role
from contrastive_jax.train import folder as runs
from contrastive_jax.train import grid as grids
from contrastive_jax.train import loss_table, trial_figures
from contrastive_jax.train.trial_assembly import AssembledTrials, Variant, assemble_trials
from contrastive_jax.train.trial_folder import TRIALS
from experiments import batches_compared, command, option_checks, options
from experiments.loss_report import CHOSEN_BY, SHOWN, Line, read_finished, report, splits_of
from experiments.options import ENCODERS, with_classes

LEARNING_RATE = 4e-3
# Ranges that are searched beside those of the table of losses, logarithmically.
LEARNING_RATES = (1e-3, 1e-2)
FRACTIONS = (0.05, 0.5)
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
    per_loss = config.trials + config.seeds
    total = len(sets) * len(names) * per_loss
    with _folder(config, names, sets) as folder, tqdm(total=total, unit="run", disable=None) as bar:
        for split, data in sets.items():
            for beside, embed in baselines.baselines(
                data.train.images, data.train.classes, width=config.width
            ).items():
                line = {"split": split, "loss": beside}
                if not read_finished(folder, **line):
                    figures = _figures(embed, data.test)
                    runs.append_line(folder / TRIALS, line | {"figures": figures})
            for name in names:
                bar.set_postfix_str(f"{split}, {name}")
                rest = per_loss
                for line in _compared(config, folder, split, name, data):
                    runs.append_line(folder / TRIALS, line)
                    bar.update()
                    rest -= 1
                bar.update(rest)
        report(folder)
    return folder


def _compared(config: Config, folder: Path, split: str, name: str, data: Dataset) -> Iterator[Line]:
    """Trains the trials of a loss that are not finished: first all tuning, then all seeds."""
    where = {"split": split, "loss": name}
    grid: grids.Grid | None = None
    for stage, count in (("tuning", config.trials), ("test", config.seeds)):
        finished = {line["number"] for line in read_finished(folder, **where, stage=stage)}
        pending = [number for number in range(count) if number not in finished]
        if not pending:
            continue
        if stage == "tuning":
            points = tuning_points(name, config.trials)
        else:
            points = [_best(read_finished(folder, **where, stage="tuning"))] * count
        # Seed 0 tunes: figures on test are of other seeds.
        seeds = {number: 0 if stage == "tuning" else number + 1 for number in pending}
        trials = _assembled(config, name, data, [(points[k], seed) for k, seed in seeds.items()])
        grid = grid or grids.make_grid(
            trials.parts.drawn,
            trials.init(0),
            trials.source,
            trials.hyperparameters[0],
            "sequential",
            devices=jax.devices()[:1],
        )
        for index, figures, seconds in _trained(trials, grid, config.steps, stage):
            line = where | {"stage": stage, "number": pending[index]} | points[pending[index]]
            yield line | {"figures": figures, "seconds": round(seconds, 2)}


def _trained(
    trials: AssembledTrials, grid: grids.Grid, steps: int, stage: str
) -> Iterator[tuple[int, dict[str, float] | None, float]]:
    """Trains trials one after another; yields the index, figures and seconds of each."""
    began = time.perf_counter()
    source = jax.device_put(trials.source, grid.shared)
    hyperparameters = trials.hyperparameters
    windows = grids.train_grid(
        grid, trials.init, source, hyperparameters, steps=steps, window=steps
    )
    for window in windows:
        figures = None
        if window.diverged[0] is None:
            figures = _figures_of(trials, window.state(0), stage)
        yield window.trials[0], figures, time.perf_counter() - began
        began = time.perf_counter()


def tuning_points(name: str, count: int) -> list[dict[str, Any]]:
    """Returns the hyperparameters that are tried of a loss.

    The first are those that it is trained with by default; the others are points of a Sobol
    sequence.

    Args:
      name: of the loss.
      count: how many.

    Returns:
      Each a learning rate and options of the loss.
    """
    ranges = {"learning_rate": LEARNING_RATES} | dict(loss_table.TABLE[name].ranges)
    defaults = loss_table.hyperparameters_of(name)
    if "similar_fraction" in defaults:
        ranges = ranges | {"similar_fraction": FRACTIONS}
    # All points have the same hyperparameters, so that they share a compilation.
    by_default = {key: defaults[key] for key in ranges if key in defaults}
    points: list[dict[str, Any]] = [{"learning_rate": LEARNING_RATE, "options": by_default}]
    low, high = np.log(np.array([*ranges.values()])).T
    # A power of two, to which Sobol sequences are even, and from which the first are taken.
    exponent = max(count - 2, 0).bit_length()
    drawn = stats.qmc.Sobol(len(ranges), seed=0).random_base2(exponent)
    for point in np.exp(low + (high - low) * drawn)[: count - 1]:
        values = {key: float(f"{value:.3g}") for key, value in zip(ranges, point, strict=True)}
        points.append({"learning_rate": values.pop("learning_rate"), "options": values})
    return points


def _assembled(
    config: Config, name: str, data: Dataset, trials: Sequence[tuple[dict[str, Any], int]]
) -> AssembledTrials:
    """Makes the parts of trials of a loss, each of hyperparameters and a seed."""
    shared = {"steps": config.steps, "warmup_steps": config.steps // 20}
    variants = []
    for point, seed in trials:
        objective = options.labelled(train.objective(name, **point["options"]), config.labels)
        variants.append(
            Variant(point, seed, objective, {"step_size": point["learning_rate"] / LEARNING_RATE})
        )
    # A learning rate scales all steps, of the encoder and of the loss.
    encoder, loss = (
        optax.chain(
            train.make_optimizer(rate, weight_decay=decay, **shared),
            optax.inject_hyperparams(optax.scale)(step_size=1.0),
        )
        for rate, decay in (
            (LEARNING_RATE, config.weight_decay),
            (variants[0].objective.learning_rate, 0.0),
        )
    )
    return assemble_trials(
        _model(config, data),
        data,
        variants,
        steps=config.steps,
        optimizer=encoder,
        loss_optimizer=loss,
        **batches_compared.batch_of(config, data),
    )


def _model(config: Config, data: Dataset) -> Any:
    default = "linear" if data.train.images.ndim == 2 else "convnet"
    return partial(ENCODERS[config.encoder or default], width=config.width)


def _figures_of(
    trials: AssembledTrials, state: train.TrainState, stage: str
) -> dict[str, float] | None:
    """Computes figures on validation, by the labels of the objective, or on test, by class."""
    if stage == "tuning":
        figures = trial_figures.on_validation(trials, state)
        return figures and {key: figures[key] for key in SHOWN}
    embed = partial(train.embed, trials.parts.network.encode, state.weights)
    return _figures(embed, with_classes(trials.data).test)


def _figures(embed: Callable[[np.ndarray], np.ndarray], part: Examples) -> dict[str, float]:
    figures = retrieval(*by_role(embed(part.images), part.classes, part.queries))
    return {key: figures[key] for key in SHOWN}


def _best(lines: Sequence[Line]) -> dict[str, Any]:
    """Returns the hyperparameters that validation chooses; a trial that diverged is the worst."""
    best = max(lines, key=lambda line: line["figures"][CHOSEN_BY] if line["figures"] else -1)
    return {key: best[key] for key in ("learning_rate", "options")}


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

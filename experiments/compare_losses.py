"""Trains every loss alike, tuned with the same budget each, and compares them on test.

    python -m experiments.compare_losses                           # forty minutes on two cores
    python -m experiments.compare_losses --resume compare_losses   # goes on
    python -m experiments.compare_losses --resume compare_losses --losses supcon  # a part

As "A Metric Learning Reality Check" (Musgrave, Belongie and Lim 2020) asks for: the same encoder,
batch, steps and augmentation for all; learning rate and the numbers of a loss chosen by MAP@R on
validation, from as many trials for each; then several seeds with those, and their mean on test with
a 95 % interval (Student's t over seeds). Two splits: all classes, and half of the classes, seen in
training, against the others. The figures of raw pixels, or of vectors as they are, whitened and by
LDA, stand beside them.

What a reader should know: in both splits validation is of held-out images of the classes trained
on, where that paper holds out classes; a loss without ranges in the table of losses has its
learning rate tuned alone; the learning rate of proxies and boundaries follows that of the
encoder.

Each training adds a line to runs/NAME/cells.jsonl when it is complete. The numbers of a loss are
data, so that all trainings of a loss and a split share one compilation.
"""

import contextlib
import dataclasses
import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator
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

from contrastive_jax import locks, plots
from contrastive_jax import train as training
from contrastive_jax.data import (
    Dataset,
    Examples,
    as_text,
    check_evaluable,
    index_by_class,
    load,
    load_with_report,
)
from contrastive_jax.evaluation.retrieval import retrieval
from contrastive_jax.evaluation.summary import by_role
from contrastive_jax.train import folder as runs
from contrastive_jax.train import loss_table
from contrastive_jax.train.assembly import assemble, source_of
from experiments import command, evaluate, option_checks
from experiments.options import ENCODERS, augmentation, with_classes

SPLITS = ("all classes", "unseen classes")
SHOWN = {"precision_at_1": "P@1", "r_precision": "R-precision", "map_at_r": "MAP@R"}
CHOSEN_BY = "map_at_r"
LEARNING_RATE = 4e-3
# Ranges that are searched beside those of the table of losses, logarithmically.
LEARNING_RATES = (1e-3, 1e-2)
FRACTIONS = (0.05, 0.5)
# Options that may differ when it is resumed: they do not change the numbers.
FREE = {"losses", "resume", "overwrite", "name", "runs", "data_dir", "tfds_dir"}

Cell = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the comparison."""

    dataset: str | None = None
    """digits, fashion_mnist (the default), mnist, or any name in tensorflow-datasets with images
    and labels."""
    data: Path | None = None
    """Data of your own with classes and without splits, in place of a data set by name."""
    data_dir: Path | None = None
    """Folder of the raw IDX files of fashion_mnist or mnist; Debian's by default."""
    tfds_dir: Path | None = None
    """Folder of prepared data sets; that of tensorflow-datasets by default."""
    losses: tuple[str, ...] = ()
    """The losses to train, all by default."""
    trials: int = 4
    """Settings that are tried of each loss; the first are those of `loss_table`."""
    seeds: int = 3
    """Trainings with the chosen setting."""
    steps: int = 300
    """Steps of every training."""
    batch_size: int = 60
    """Images in a batch, of all classes alike."""
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
    sets = {split: _load(config, split) for split in SPLITS}
    for split, data in sets.items():
        check_evaluable(data)
        index_by_class(data.train.classes)  # to see that pairs can be drawn
        training.check_images(
            training.network(_model(config, data), data.train.images.shape[1:]),
            train=data.train.images,
            validation=data.validation.images,
            test=data.test.images,
        )
        classes = len(np.unique(data.train.classes))
        if config.batch_size % classes or config.batch_size < 2 * classes:
            raise ValueError(
                f"--batch_size must be a multiple of the {classes} classes that are trained on "
                f"({split}) and hold two of each, got {config.batch_size}"
            )
    names = config.losses or loss_table.NAMES
    runs_of_loss = config.trials + config.seeds
    total = len(SPLITS) * len(names) * runs_of_loss
    with _folder(config, names) as folder, tqdm(total=total, unit="run", disable=None) as bar:
        for split, data in sets.items():
            for beside, embed in evaluate.beside(data.train, width=config.width).items():
                line = {"split": split, "loss": beside}
                if not _found(folder, **line):
                    figures = _figures(embed, data.test)
                    runs.append_line(folder / "cells.jsonl", line | {"figures": figures})
            for name in names:
                bar.set_postfix_str(f"{split}, {name}")
                done = runs_of_loss
                for cell in _compared(config, folder, split, name, data):
                    runs.append_line(folder / "cells.jsonl", cell)
                    bar.update()
                    done -= 1
                bar.update(done)
        report(folder)
    return folder


def _compared(config: Config, folder: Path, split: str, name: str, data: Dataset) -> Iterable[Cell]:
    """Trains what is still to be trained of a loss: first all trials, then all seeds."""
    known = {"split": split, "loss": name}
    train: Callable[..., Any] | None = None
    for stage, count in (("tuning", config.trials), ("test", config.seeds)):
        for number in range(count):
            if _found(folder, **known, stage=stage, number=number):
                continue
            if stage == "tuning":
                setting = trial_settings(name, config.trials)[number]
            else:
                setting = _best(_found(folder, **known, stage="tuning"))
            train = train or _trainer(config, name, data)
            began = time.perf_counter()
            # Seed 0 is of the trials: what was chosen by it is not judged by it.
            embed = train(setting, 0 if stage == "tuning" else number + 1)
            part = data.validation if stage == "tuning" else data.test
            figures = None if embed is None else _figures(embed, part)
            seconds = round(time.perf_counter() - began, 2)
            yield (
                known
                | {"stage": stage, "number": number}
                | setting
                | {
                    "figures": figures,
                    "seconds": seconds,
                }
            )


def trial_settings(name: str, count: int) -> list[dict[str, Any]]:
    """Settings of a loss: the one it is trained with by default, then points of a Sobol sequence.

    Args:
      name: of the loss.
      count: how many.

    Returns:
      Each a learning rate and options.
    """
    ranges = {"learning_rate": LEARNING_RATES} | dict(loss_table.TABLE[name].ranges)
    known = loss_table.hyperparameters_of(name)
    if "similar_fraction" in known:
        ranges = ranges | {"similar_fraction": FRACTIONS}
    # All settings have the same numbers, so that they share a compilation.
    by_default = {key: known[key] for key in ranges if key in known}
    settings: list[dict[str, Any]] = [{"learning_rate": LEARNING_RATE, "options": by_default}]
    low, high = np.log(np.array([*ranges.values()])).T
    # A power of two, to which Sobol sequences are even, and from which the first are taken.
    exponent = max(count - 2, 0).bit_length()
    points = stats.qmc.Sobol(len(ranges), seed=0).random_base2(exponent)
    for point in np.exp(low + (high - low) * points)[: count - 1]:
        options = {key: float(f"{value:.3g}") for key, value in zip(ranges, point, strict=True)}
        settings.append({"learning_rate": options.pop("learning_rate"), "options": options})
    return settings


def _trainer(config: Config, name: str, data: Dataset) -> Callable[..., Any]:
    """Compiles the training of a loss, from hyperparameters and a seed to a function that embeds.

    It returns None where the training diverged.
    """
    shared = {"steps": config.steps, "warmup_steps": config.steps // 20}
    objective = training.objective(name)
    encoder_optimizer = training.make_optimizer(
        LEARNING_RATE, weight_decay=config.weight_decay, **shared
    )
    loss_optimizer = training.make_optimizer(objective.learning_rate, **shared)
    # A learning rate scales all steps, of the encoder and of the loss; as a number in the state it
    # is data.
    scales = [optax.inject_hyperparams(optax.scale)(step_size=1.0) for _ in range(2)]
    parts = assemble(
        _model(config, data),
        data,
        objective,
        steps=config.steps,
        batch_size=config.batch_size,
        batch_classes=len(np.unique(data.train.classes)),
        optimizer=optax.chain(encoder_optimizer, scales[0]),
        loss_optimizer=optax.chain(loss_optimizer, scales[1]),
        augment=None
        if data.train.images.ndim == 2
        else augmentation(config.dataset not in ("digits", "mnist"), 1),
    )
    placed = training.parallel(parts.drawn, "shard_map", jax.devices()[:1])
    source = placed.replicate(source_of(data))

    def train(setting: dict[str, Any], seed: int) -> Any:
        chosen = training.objective(name, **setting["options"])
        state = parts.init(seed)
        state = state._replace(
            params=state.params._replace(loss=parts.init_loss(chosen, seed)),
            opt_state=optax.tree.set(
                state.opt_state, step_size=np.float32(setting["learning_rate"] / LEARNING_RATE)
            ),
        )
        hyperparameters = training.Hyperparameters(seed, dict(chosen.hyperparameters))
        state, hyperparameters = placed.replicate((state, hyperparameters))
        try:
            ((state, _),) = training.windows(
                lambda state: placed.step(state, source, hyperparameters),
                state,
                steps=config.steps,
                window=config.steps,
            )
        except FloatingPointError:
            return None
        weights = placed.fetch(state).weights
        return lambda images: training.embed(parts.network.encode, weights, images)

    return train


def _model(config: Config, data: Dataset) -> Any:
    default = "linear" if data.train.images.ndim == 2 else "convnet"
    return partial(ENCODERS[config.encoder or default], width=config.width)


def _figures(embed: Callable[[np.ndarray], np.ndarray], part: Examples) -> dict[str, float]:
    figures = retrieval(*by_role(embed(part.images), part.classes, part.queries))
    return {key: figures[key] for key in SHOWN}


def _best(cells: list[Cell]) -> dict[str, Any]:
    """The setting that validation chooses; a training that diverged is worse than any other."""
    best = max(cells, key=lambda cell: cell["figures"][CHOSEN_BY] if cell["figures"] else -1)
    return {key: best[key] for key in ("learning_rate", "options")}


def _found(folder: Path, **known: Any) -> list[Cell]:
    """The complete trainings of which these things are so, each once.

    A line cut short is none, and two processes may have done the same.
    """
    cells = {}
    for cell in runs.read_lines(folder / "cells.jsonl", keys=("split", "loss", "figures")):
        if all(cell.get(key) == value for key, value in known.items()):
            cells[tuple(cell.get(key) for key in ("split", "loss", "stage", "number"))] = cell
    return [*cells.values()]


def interval(values: Iterable[float]) -> tuple[float, float]:
    """Mean and half of its 95 % interval, by Student's t; NaN of one value.

    Args:
      values: of independent trainings.

    Returns:
      Both.
    """
    array = np.array([*values], np.float64)
    half = float(np.nan)
    if len(array) > 1:
        half = stats.t.ppf(0.975, len(array) - 1) * array.std(ddof=1) / np.sqrt(len(array))
    return float(array.mean()), float(half)


def report(folder: Path) -> None:
    """Writes the table, as Markdown and CSV, and the figure, of what is complete in a folder."""
    seeds = runs.read_config(folder)["seeds"]
    found: dict[str, dict[str, dict[str, tuple[float, float]]]] = {}
    diverged, incomplete = [], []
    for split, name in itertools.product(SPLITS, (*evaluate.BESIDE, *loss_table.NAMES)):
        cells = _found(folder, split=split, loss=name)
        judged = [cell for cell in cells if cell.get("stage", "test") == "test"]
        if any(cell["figures"] is None for cell in judged):
            diverged.append(f"{name} on {split}")
        elif cells and len(judged) < (1 if name in evaluate.BESIDE else seeds):
            incomplete.append(f"{name} on {split}")
        elif judged:
            found.setdefault(name, {})[split] = {
                key: interval(cell["figures"][key] for cell in judged) for key in SHOWN
            }
    complete = {name: of for name, of in found.items() if len(of) == len(SPLITS)}
    order = sorted(complete, key=lambda name: complete[name][SPLITS[0]][CHOSEN_BY][0], reverse=True)
    columns = [(split, key) for split in SPLITS for key in SHOWN]
    lines = [
        ["loss", *[f"{SHOWN[key]}, {split}" for split, key in columns]],
        ["---", *["---:"] * len(columns)],
    ]
    csv = [["loss", *[f"{key} {split} {what}" for split, key in columns for what in ("mean", "±")]]]
    for name in order:
        cells_of = [complete[name][split][key] for split, key in columns]
        lines.append([name, *[_text(*cell) for cell in cells_of]])
        csv.append([name, *[f"{value:.6f}" for cell in cells_of for value in cell]])
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    print(table)
    for why, names in (("diverged", diverged), ("not complete", incomplete)):
        if names:
            print(f"\n{why}, and left out: {', '.join(names)}")
    (folder / "results.md").write_text(table + "\n")
    (folder / "results.csv").write_text("".join(",".join(line) + "\n" for line in csv))
    intervals = {
        split: {name: complete[name][split][CHOSEN_BY] for name in order} for split in SPLITS
    }
    if order:
        figure = plots.intervals(intervals, f"{SHOWN[CHOSEN_BY]} on test")
        plots.save(figure, folder / "comparison.png")


def _text(mean: float, half: float) -> str:
    return f"{100 * mean:.1f}" + (f" ± {100 * half:.1f}" if np.isfinite(half) else "")


def _load(config: Config, split: str) -> Dataset:
    """Loads the data set with one of the splits, and prints a report of data of one's own."""
    split_by: Literal["classes", "examples"] = (
        "classes" if split == "unseen classes" else "examples"
    )
    if config.data is None:
        return load(
            config.dataset,
            data_dir=config.data_dir,
            tfds_dir=config.tfds_dir,
            split_by=split_by,
        )
    data, report = load_with_report(config.data, split_by=split_by)
    print(as_text(report))
    return with_classes(data)


def _check(config: Config) -> None:
    option_checks.check_effects(config)
    runs.check_name(config.name)
    if not (config.resume or config.overwrite):
        runs.check_new(config.runs / config.name)
    if config.width < 3:
        # Of the distances of random points that mining weighs by.
        raise ValueError(f"--width must be at least 3, got {config.width}")
    if config.encoder not in (None, *ENCODERS):
        raise ValueError(f"--encoder must be one of {', '.join(ENCODERS)}, got {config.encoder}")
    for name in config.losses:
        loss_table.check_name(name)
    if twice := [name for name in config.losses if config.losses.count(name) > 1]:
        raise ValueError(f"--losses names {twice[0]} twice: leave one of them out")


@contextlib.contextmanager
def _folder(config: Config, names: Iterable[str]) -> Iterator[Path]:
    """Opens the run. Several processes may share it, but not a loss."""
    options = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    with contextlib.ExitStack() as held:
        run = runs.open_run(
            config.runs,
            config.resume or config.name,
            config.name,
            options,
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

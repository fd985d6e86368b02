"""Trials of losses that are tuned alike: some on validation, then several seeds on test."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from scipy import stats

from contrastive_jax.data.datasets import Examples
from contrastive_jax.evaluation.retrieval import retrieval
from contrastive_jax.evaluation.summary import by_role
from contrastive_jax.train import TrainState, embed, json_lines, loss_table, trial_figures
from contrastive_jax.train import grid as grids
from contrastive_jax.train.labelled import rows_and_labels
from contrastive_jax.train.objectives import Objective
from contrastive_jax.train.optimizer import make_optimizer
from contrastive_jax.train.training import Training
from contrastive_jax.train.trial_assembly import AssembledTrials, Variant, assemble_trials
from contrastive_jax.train.trial_folder import TRIALS

LEARNING_RATE = 4e-3
# Ranges that are searched beside those of the table of losses, logarithmically.
LEARNING_RATES = (1e-3, 1e-2)
FRACTIONS = (0.05, 0.5)
SHOWN = {"precision_at_1": "P@1", "r_precision": "R-precision", "map_at_r": "MAP@R"}
CHOSEN_BY = "map_at_r"

Line = dict[str, Any]
"""A line of `trials.jsonl`."""


def tuning_points(name: str, count: int) -> list[dict[str, Any]]:
    """Returns the hyperparameters that are tried of a loss.

    The first are those that it is trained with by default; the others are points of a Sobol
    sequence.

    Args:
      name: of the loss.
      count: how many.

    Returns:
      Each a learning rate and options of the loss.

    Example:
      >>> from contrastive_jax.search.loss_trials import tuning_points
      >>> tuning_points("supcon", 1)
      [{'learning_rate': 0.004, 'options': {'temperature': 0.1}}]
    """
    ranges = {"learning_rate": LEARNING_RATES} | dict(loss_table.TABLE[name].ranges)
    defaults = loss_table.hyperparameters_of(name)
    if "positive_fraction" in defaults:
        ranges = ranges | {"positive_fraction": FRACTIONS}
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


def trials_of_loss(
    training: Training,
    make: Callable[..., Objective],
    points: Sequence[tuple[dict[str, Any], int]],
    *,
    weight_decay: float = 0.1,
) -> AssembledTrials:
    """Makes the parts of trials of a loss.

    Args:
      training: whose objective, optimizers and seed are those of the trials.
      make: from options of the loss to its objective.
      points: hyperparameters, from `tuning_points`, and the seed of each trial.
      weight_decay: of matrices and kernels of the encoder.

    Returns:
      The parts. A learning rate scales all steps, of the encoder and of the loss.

    Example:
      >>> from functools import partial
      >>> import contrastive_jax as cj
      >>> from contrastive_jax.search.loss_trials import trials_of_loss, tuning_points
      >>> from contrastive_jax.train.training import Training
      >>> digits, make = cj.data.load("digits"), partial(cj.train.objective, "supcon")
      >>> training = Training(model=cj.models.Linear, data=digits, objective=make(), steps=10)
      >>> points = [(point, 0) for point in tuning_points("supcon", 2)]
      >>> len(trials_of_loss(training, make, points).recorded)
      2
    """
    steps = training.steps
    variants = []
    for point, seed in points:
        objective, rate = make(**point["options"]), point["learning_rate"] / LEARNING_RATE
        scale = {"step_size": rate}
        if jax.tree.leaves(objective.init(2, 8, 0)):
            scale["loss_step_size"] = rate
        variants.append(Variant(point, seed, objective, scale))
    first = variants[0].objective
    encoder, loss = (
        optax.chain(
            make_optimizer(rate, steps, warmup_steps=steps // 20, weight_decay=decay),
            optax.inject_hyperparams(scaled)(**{name: 1.0}),
        )
        for rate, decay, scaled, name in (
            (LEARNING_RATE, weight_decay, optax.scale, "step_size"),
            (first.learning_rate, 0.0, _scale_of_loss, "loss_step_size"),
        )
    )
    own = replace(training, objective=first, optimizer=encoder, loss_optimizer=loss)
    return assemble_trials(own, variants)


def _scale_of_loss(loss_step_size: float) -> optax.GradientTransformation:
    """Scales steps, by a hyperparameter with another name than that of the encoder."""
    return optax.scale(loss_step_size)


def train_loss(
    name: str,
    assemble: Callable[[Sequence[tuple[dict[str, Any], int]]], AssembledTrials],
    folder: Path,
    split: str,
    *,
    trials: int,
    seeds: int,
    steps: int,
) -> Iterator[Line]:
    """Trains the trials of a loss that are not finished: first all tuning, then all seeds.

    Args:
      name: of the loss.
      assemble: from hyperparameters and seeds to the parts of trials, as `trials_of_loss`.
      folder: whose lines say what is finished, and to which the caller adds each line.
      split: a name of the split of the data, for the lines.
      trials: trials that tune the loss, with seed 0.
      seeds: trials on test, with seeds 1, 2, ...
      steps: of each trial.

    Yields:
      The line of each trial.

    Example:
      >>> from functools import partial
      >>> from pathlib import Path
      >>> import contrastive_jax as cj
      >>> from contrastive_jax.search.loss_trials import train_loss, trials_of_loss
      >>> from contrastive_jax.train.json_lines import append_line
      >>> from contrastive_jax.train.training import Training
      >>> digits, make = cj.data.load("digits"), partial(cj.train.objective, "supcon")
      >>> training = Training(
      ...     model=cj.models.Linear, data=digits, objective=make(), steps=4, batch_size=20
      ... )
      >>> assemble = partial(trials_of_loss, training, make)
      >>> count = {"trials": 1, "seeds": 1, "steps": 4}
      >>> for line in train_loss("supcon", assemble, Path(), "all classes", **count):
      ...     append_line(Path("trials.jsonl"), line)
      ...     print(line["stage"], line["number"])
      tuning 0
      test 0
    """
    where = {"split": split, "loss": name, "steps": steps}
    grid: grids.Grid | None = None
    for stage, count in (("tuning", trials), ("test", seeds)):
        finished = {line["number"] for line in read_finished(folder, **where, stage=stage)}
        pending = [number for number in range(count) if number not in finished]
        if not pending:
            continue
        if stage == "tuning":
            points = tuning_points(name, count)
        else:
            points = [best_point(read_finished(folder, **where, stage="tuning"))] * count
        # Seed 0 tunes: figures on test are of other seeds.
        stage_seeds = {number: 0 if stage == "tuning" else number + 1 for number in pending}
        made = assemble([(points[k], seed) for k, seed in stage_seeds.items()])
        grid = grid or grids.make_grid(
            made.parts.drawn,
            made.init(0),
            made.source,
            made.hyperparameters[0],
            "sequential",
            devices=jax.devices()[:1],
        )
        for index, figures, seconds in _trained(made, grid, steps, stage):
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


def _figures_of(trials: AssembledTrials, state: TrainState, stage: str) -> dict[str, float] | None:
    """Computes figures on validation or on test, by the labels of the objective."""
    if stage == "tuning":
        figures = trial_figures.on_validation(trials, state)
        return figures and {key: figures[key] for key in SHOWN}
    data: Any = trials.data
    encode = partial(embed, trials.parts.network.encode, state.weights)
    return figures_on(encode, data.test, trials.objective)


def figures_on(
    embed: Callable[[np.ndarray], np.ndarray],
    part: Examples,
    objective: Objective | None = None,
) -> dict[str, float]:
    """Computes the figures of a comparison on one split.

    Args:
      embed: from images to embeddings `[N, D]`.
      part: the split.
      objective: if it has labels of two rows, they define matches; otherwise classes do.

    Example:
      >>> import contrastive_jax as cj
      >>> from contrastive_jax.search.loss_trials import figures_on
      >>> embed = lambda images: images.reshape(len(images), -1) / 255
      >>> sorted(figures_on(embed, cj.data.load("digits").test))
      ['map_at_r', 'precision_at_1', 'r_precision']
    """
    rows, labels = rows_and_labels(objective, part)
    figures = retrieval(*by_role(embed(part.images), rows, part.queries), labels=labels)
    return {key: figures[key] for key in SHOWN}


def best_point(lines: Sequence[Line]) -> dict[str, Any]:
    """Returns the hyperparameters that validation chooses; a trial that diverged is the worst.

    Args:
      lines: of the trials that tuned a loss, from `read_finished`.

    Example:
      >>> from contrastive_jax.search.loss_trials import best_point
      >>> low, high = {"map_at_r": 0.5}, {"map_at_r": 0.6}
      >>> point = {"learning_rate": 4e-3, "options": {}}
      >>> best_point([point | {"figures": low}, point | {"learning_rate": 1e-3, "figures": high}])
      {'learning_rate': 0.001, 'options': {}}
    """
    best = max(lines, key=lambda line: line["figures"][CHOSEN_BY] if line["figures"] else -1)
    return {key: best[key] for key in ("learning_rate", "options")}


def read_finished(folder: Path, **values: Any) -> list[Line]:
    """Reads the lines of finished trials that have these values, each trial once.

    A line cut short is left out, and two processes may have trained the same trial.

    Example:
      >>> from pathlib import Path
      >>> from contrastive_jax.search.loss_trials import read_finished
      >>> read_finished(Path("a_new_folder"), loss="supcon")
      []
    """
    lines = {}
    for line in json_lines.read_lines(folder / TRIALS, keys=("split", "loss", "figures")):
        if all(line.get(key) == value for key, value in values.items()):
            lines[tuple(line.get(key) for key in ("split", "loss", "stage", "number"))] = line
    return [*lines.values()]

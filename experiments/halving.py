"""Successive halving: many trials train a little, and the best of them train on.

Jamieson and Talwalkar, Non-stochastic Best Arm Identification and Hyperparameter Optimization, 2016
<https://arxiv.org/abs/1502.07943>.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from contrastive_jax.train import TrainState, json_lines, saved_states
from contrastive_jax.train.trial_assembly import AssembledTrials
from contrastive_jax.train.trial_folder import TRIALS, trial_key
from experiments.axes import Hyperparameters, Space, spread, text_of
from experiments.trainer import Trainer


def rungs(config: Any) -> list[tuple[int, int]]:
    """Returns how many trials train to how many steps, until one is left.

    Raises:
      ValueError: if there are too few steps for as many rungs.
    """
    counts, keep_one_in = [config.trials], config.keep_one_in or 3
    while counts[-1] > 1:
        counts.append(math.ceil(counts[-1] / keep_one_in))
    unit, last = _unit(config), len(counts) - 1
    # Whole calls of the compiled step.
    steps = [
        round(config.steps / keep_one_in ** (last - k) / unit) * unit for k in range(len(counts))
    ]
    if steps[0] < 1 or len({*steps}) < len(steps):
        raise ValueError(
            f"--steps {config.steps} are too few for {len(counts)} rungs, of which the first has "
            f"{steps[0]}: take more steps or fewer --trials"
        )
    return [*zip(counts, steps, strict=True)]


def _unit(config: Any) -> int:
    return math.gcd(config.log_every, config.steps)


def halving(config: Any, folder: Path, space: Space, trainer: Trainer) -> Hyperparameters:
    """Searches by successive halving, and goes on from the trials that are stored.

    Args:
      config: options.
      folder: of the run.
      space: to search.
      trainer: of trials.

    Returns:
      The hyperparameters that are left.
    """
    points, start = spread(space, config.trials), 0
    names = {trial_key(point): f"{k:04d}" for k, point in enumerate(points)}
    for number, (count, stop) in enumerate(rungs(config)):
        points = points[:count]
        values = _train_rung(folder, trainer, points, names, number, start, stop)
        points = [points[k] for k in sorted(range(count), key=lambda k: -values[k])]
        print(
            f"{count} trials after {stop:,} steps; the best: {text_of(points[0])}, "
            f"{config.shown_by} {max(values):.4f} on validation"
        )
        start = stop
    return points[0]


def _train_rung(
    folder: Path,
    trainer: Trainer,
    points: Sequence[Hyperparameters],
    names: Mapping[str, str],
    number: int,
    start: int,
    stop: int,
) -> list[float]:
    """Trains the trials of a rung from the last rung on, and returns their values on validation."""
    values = {
        trial_key(line["hyperparameters"]): line["value"]
        for line in json_lines.read_lines(folder / TRIALS, keys=("hyperparameters",))
        if line.get("rung") == number and "value" in line
    }
    left = [point for point in points if trial_key(point) not in values]

    def path(point: Hyperparameters, rung: int) -> Path:
        return folder / "states" / f"{names[trial_key(point)]}-{rung}"

    def resumed(k: int, like: TrainState) -> TrainState:
        where = path(left[k], number - 1)
        state: TrainState = saved_states.restore_state(where, jax.device_get(like))
        return state

    def finished(k: int, made: AssembledTrials, state: TrainState, diverged: int | None) -> None:
        saved_states.save_state(path(left[k], number), state)
        value = values[trial_key(left[k])] = trainer.on_validation(made, state, diverged)
        record = {"rung": number, "steps": stop, "hyperparameters": left[k], "value": value}
        json_lines.append_line(folder / TRIALS, record | {"diverged": diverged})

    damaged = [p for p in left if number and saved_states.damage(path(p, number - 1))]
    for point in damaged:
        warnings.warn(
            f"{path(point, number - 1)} is damaged: {text_of(point)} trains from step 0 again",
            stacklevel=2,
        )
    if damaged:
        trainer.train(
            damaged,
            stop=start,
            finished=lambda k, made, state, diverged: saved_states.save_state(
                path(damaged[k], number - 1), state
            ),
        )
    trainer.train(
        left, start=start, stop=stop, resumed=resumed if number else None, finished=finished
    )
    return [values[trial_key(point)] for point in points]

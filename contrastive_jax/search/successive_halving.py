"""Successive halving: many trials train a little, and the best of them train on."""

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

from contrastive_jax.search.space import Hyperparameters, Space, spread, text_of
from contrastive_jax.search.trainer import Trainer
from contrastive_jax.train import TrainState, json_lines, saved_states
from contrastive_jax.train.trial_assembly import AssembledTrials
from contrastive_jax.train.trial_folder import TRIALS, trial_key


def rungs(trials: int, steps: int, *, keep_one_in: int = 3, unit: int = 1) -> list[tuple[int, int]]:
    """Returns how many trials train to how many steps, until one is left.

    Args:
      trials: of the first rung.
      steps: of the last.
      keep_one_in: each rung keeps one of so many trials.
      unit: steps of which those of a rung are a multiple.

    Returns:
      Trials and steps of each rung.

    Raises:
      ValueError: if there is no trial, a rung would keep all, or there are too few steps for as
        many rungs.

    Example:
      >>> from contrastive_jax.search import rungs
      >>> rungs(27, 2700)
      [(27, 100), (9, 300), (3, 900), (1, 2700)]
    """
    if trials < 1 or keep_one_in < 2:
        raise ValueError(
            f"halving needs 1 trial at least and keeps one of 2 at least, got {trials} trials and "
            f"one of {keep_one_in}"
        )
    counts = [trials]
    while counts[-1] > 1:
        counts.append(math.ceil(counts[-1] / keep_one_in))
    last = len(counts) - 1
    # Whole calls of the compiled step.
    taken = [round(steps / keep_one_in ** (last - k) / unit) * unit for k in range(len(counts))]
    if taken[0] < 1 or len({*taken}) < len(taken):
        raise ValueError(
            f"{steps} steps are too few for {len(counts)} rungs, of which the first has "
            f"{taken[0]}: take more steps (--steps) or fewer trials (--trials)"
        )
    return [*zip(counts, taken, strict=True)]


def halving(
    trainer: Trainer,
    space: Space,
    *,
    trials: int,
    steps: int,
    folder: Path,
    keep_one_in: int = 3,
    unit: int = 1,
) -> Hyperparameters:
    """Searches by successive halving, and goes on from the trials that are stored.

    Args:
      trainer: of trials.
      space: to search.
      trials: of the first rung.
      steps: of the last.
      folder: where trials are stored; made if it is not there.
      keep_one_in: each rung keeps one of so many trials.
      unit: steps of one call of the trainer.

    Returns:
      The hyperparameters that are left.

    Raises:
      ValueError: as `rungs`.

    References:
      Jamieson and Talwalkar, Non-stochastic Best Arm Identification and Hyperparameter
      Optimization, 2016 <https://arxiv.org/abs/1502.07943>.

    Example:
      >>> from pathlib import Path
      >>> import contrastive_jax as cj
      >>> from contrastive_jax.search import Range, halving, make_trainer
      >>> from contrastive_jax.train.training import Training
      >>> digits, objective = cj.data.load("digits"), cj.train.objective("contrastive")
      >>> training = Training(
      ...     model=cj.models.Linear, data=digits, objective=objective, steps=6, batch_size=32
      ... )
      >>> trainer = make_trainer(training, strategy="sequential", report=lambda line: None)
      >>> space = {"margin": Range(0.5, 1.5)}
      >>> best = halving(trainer, space, trials=3, steps=6, folder=Path())
      >>> 0.5 <= best["margin"] <= 1.5
      True
    """
    ladder = rungs(trials, steps, keep_one_in=keep_one_in, unit=unit)
    folder.mkdir(parents=True, exist_ok=True)
    points, start = spread(space, trials), 0
    names = {trial_key(point): f"{k:04d}" for k, point in enumerate(points)}
    for number, (count, stop) in enumerate(ladder):
        points = points[:count]
        values = _train_rung(folder, trainer, points, names, number, start, stop)
        points = [points[k] for k in sorted(range(count), key=lambda k: -values[k])]
        trainer.report(
            f"{count} trials after {stop:,} steps; the best: {text_of(points[0])}, "
            f"{trainer.chosen_by} {max(values):.4f} on validation"
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
        if (line.get("rung"), line.get("steps")) == (number, stop) and "value" in line
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

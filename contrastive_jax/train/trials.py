"""Trials of a grid of hyperparameters, trained from one compilation: `fit` for many at once."""

import contextlib
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import jax
import numpy as np
import optax
from jax.typing import ArrayLike

from contrastive_jax.data._digest import digest
from contrastive_jax.data.augment import Augment
from contrastive_jax.data.datasets import Dataset, PairDataset
from contrastive_jax.train import folder as runs
from contrastive_jax.train.devices import check_strategy
from contrastive_jax.train.grid_strategy import Strategy
from contrastive_jax.train.labelled import check_labels
from contrastive_jax.train.objectives import Objective
from contrastive_jax.train.optimizer import tunable_optimizers
from contrastive_jax.train.preconditions import check_training, check_types
from contrastive_jax.train.progress import step_bar
from contrastive_jax.train.ranges import check_multiples, check_ranges
from contrastive_jax.train.run import Run
from contrastive_jax.train.run_folder import described
from contrastive_jax.train.training import Training, recorded
from contrastive_jax.train.trial_assembly import AssembledTrials, assemble_trials
from contrastive_jax.train.trial_axes import values_of_axes, variants_of_axes
from contrastive_jax.train.trial_folder import read_trials, restore_trial, trial_key
from contrastive_jax.train.trial_loop import Schedule, train_pending
from contrastive_jax.train.types import Weights
from contrastive_jax.train.validation import trained_run, warn_of_margin


class Trial(NamedTuple):
    """One training of a grid."""

    hyperparameters: dict[str, Any]
    """The value on each axis of the grid, the seed included."""
    validation: dict[str, float] | None
    """Figures on validation; None if the trial diverged."""
    test: dict[str, float] | None
    """Figures on test; None if the trial diverged or test was left out."""
    run: Run | None
    """The encoder after the last step, where `fit` returns that of the best validation. It embeds
    and compares images; None if the trial diverged."""
    history: dict[str, np.ndarray]
    """Means of what a step logs over `log_every` steps, with the `step` that each ends at."""
    diverged: int | None
    """The step at which loss, gradient or parameters were not finite; None if they always were."""


def fit_grid(
    model: Any,
    data: Dataset | PairDataset,
    objective: Objective | Callable[..., Objective],
    *,
    steps: int,
    seed: int | Sequence[int] = 0,
    batch_size: int = 256,
    batch_classes: int | None = None,
    balanced: bool = True,
    repeat: bool = True,
    by_size: bool = False,
    categories: ArrayLike | None = None,
    views: int = 1,
    optimizer: optax.GradientTransformation | None = None,
    loss_optimizer: optax.GradientTransformation | None = None,
    augment: Augment | None = None,
    microbatches: int = 1,
    remat: bool = True,
    memory_size: int = 0,
    max_age: int | None = None,
    weights: Weights | None = None,
    devices: Sequence[jax.Device] | None = None,
    devices_per_trial: int = 1,
    strategy: Strategy = "auto",
    memory_limit: float | None = None,
    steps_per_call: int | None = None,
    log_every: int = 100,
    save_every: int | None = None,
    test: bool = True,
    folder: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    **axes: float | Sequence[float],
) -> list[Trial]:
    """Trains an encoder for every combination of hyperparameters, from one compilation.

    Each trial takes the steps that `fit` takes with its hyperparameters and its seed. A trial that
    diverges is marked, and the others go on.

    Args:
      model: the encoder, as in `fit`.
      data: from `contrastive_jax.data.load`.
      objective: from `train.objective`, or a function that makes it from the hyperparameters of the
        loss, such as `functools.partial(train.objective, "arcface")`. The function is needed for
        hyperparameters that the objective leaves at their defaults.
      steps: training steps of each trial.
      seed: one or several, of the encoder and the batches.
      batch_size: as in `fit`.
      batch_classes: as in `fit`.
      balanced: as in `fit`.
      repeat: as in `fit`.
      by_size: as in `fit`.
      categories: as in `fit`.
      views: as in `fit`.
      optimizer: as in `fit`. With one of your own, and where `objective` is no function, an axis
        that is not of the objective is a hyperparameter that `optax.inject_hyperparams` has put
        into its state.
      loss_optimizer: as in `fit`.
      augment: as in `fit`.
      microbatches: as in `fit`.
      remat: as in `fit`.
      memory_size: as in `fit`.
      max_age: as in `fit`.
      weights: as in `fit`.
      devices: all devices by default.
      devices_per_trial: devices over which the batch of a trial is spread.
      strategy: `"sequential"` trains one trial after another, `"vmap"` maps the step over trials,
        `"shard_map"` spreads them over devices, and `"auto"` times each for a few steps. Results
        are the same to rounding; one after another, steps are those of `fit` bit for bit.
      memory_limit: bytes that a device may hold, by which trials are split into chunks; by default
        most of an accelerator's memory and half of what a host has free.
      steps_per_call: steps of one compiled call; by default 1 on a CPU, and elsewhere the largest
        number that divides `log_every` and `steps`.
      log_every: steps between two points of the history.
      save_every: steps between two saves of the trials that are training, a multiple of
        `log_every`; by default about a tenth of the steps.
      test: whether trials are evaluated on test; leave it out while you choose hyperparameters.
      folder: where trials are stored as they finish; by default nothing is stored.
      resume: whether to go on in this folder. Trials that are finished are not trained again, and
        axes may have more values than before. `"auto"` takes the strategy that it chose before.
      progress: whether to show progress: a bar on a terminal, and a line that names the strategy.
      **axes: one value or several of each hyperparameter to vary: those of the objective, such as
        `margin`, `temperature` or `positive_fraction`; `learning_rate`, `weight_decay` and
        `clip_norm` of the default optimizer, and `loss_learning_rate` of that of the loss.

    Returns:
      The trials, all combinations in the order of the axes, with the seed fastest.

    Raises:
      BlockingIOError: if another process works in the folder.
      FileExistsError: if the folder exists and is not to be resumed.
      FileNotFoundError: if there is no such folder to resume.
      MemoryError: if not even one trial fits into memory.
      TypeError: if `data` or `objective` is not of its type.
      ValueError: if an axis has no value or the same one twice, or is none of the objective or the
        optimizer, or arguments do not fit each other or the data.

    Example:
      >>> import contrastive_jax as cj
      >>> digits = cj.data.load("digits")
      >>> trials = cj.train.fit_grid(
      ...     cj.models.Linear,
      ...     digits,
      ...     cj.train.objective("contrastive"),
      ...     margin=[0.5, 1.0],
      ...     steps=10,
      ...     strategy="sequential",
      ...     progress=False,
      ... )
      >>> [trial.hyperparameters for trial in trials]
      [{'margin': 0.5, 'seed': 0}, {'margin': 1.0, 'seed': 0}]
      >>> best = max(trials, key=lambda trial: trial.validation["map_at_r"])
      >>> best.run.embed(digits.test.images[:3]).shape
      (3, 64)
    """
    _check_objective(objective)
    if resume and folder is None:
        raise ValueError("resume goes on in a folder: give folder, or leave resume out")
    counts = {"steps": steps, "log_every": log_every, "batch_size": batch_size}
    optimizers = {"optimizer": optimizer, "loss_optimizer": loss_optimizer}
    check_types(devices, optimizers, counts)
    devices = list(devices or jax.devices())
    check_strategy(strategy, get_args(Strategy), len(devices), devices_per_trial)
    if steps_per_call is None:
        steps_per_call = 1 if devices[0].platform == "cpu" else math.gcd(log_every, steps)
    values = values_of_axes({**axes, "seed": seed})
    variants = variants_of_axes(
        objective,
        values,
        given_pairs=isinstance(data, PairDataset),
        own_optimizer=optimizer is not None,
    )
    optimizer, loss_optimizer = tunable_optimizers(values, steps, optimizer, loss_optimizer)
    training = Training(
        model=model,
        data=data,
        objective=variants[0].objective,
        steps=steps,
        seed=variants[0].seed,
        batch_size=batch_size,
        batch_classes=batch_classes,
        balanced=balanced,
        repeat=repeat,
        by_size=by_size,
        categories=categories,
        views=views,
        optimizer=optimizer,
        loss_optimizer=loss_optimizer,
        augment=augment,
        microbatches=microbatches,
        remat=remat,
        memory_size=memory_size,
        max_age=max_age,
        weights=weights,
        devices=devices_per_trial,
    )
    check_training(
        training, log_every=log_every, validate_every=log_every, steps_per_call=steps_per_call
    )
    if test and isinstance(data, Dataset):
        check_labels(variants[0].objective, data, ["test"])
    schedule = _schedule(steps, log_every, save_every)
    trials = assemble_trials(training, variants)
    for one in {one.objective.hyperparameters.get("margin"): one for one in variants}.values():
        warn_of_margin(trials.parts.network, data, one.objective)
    record = _recorded(training, trials, values) | {"log_every": log_every, "test": test}
    with _opened(folder, record, resume=resume) as where:
        with step_bar(len(variants) * steps, shown=progress) as advance:
            train_pending(
                trials,
                where,
                schedule,
                test=test,
                report=print if progress else lambda line: None,
                advance=advance,
                strategy=strategy,
                devices=devices,
                devices_per_trial=devices_per_trial,
                memory_limit=memory_limit,
                steps_per_call=steps_per_call,
            )
        return _trials(trials, where)


def _recorded(
    training: Training, trials: AssembledTrials, values: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the options that the folder of trials records, to be resumed with the same."""
    hyperparameters = training.objective.hyperparameters
    return recorded(training, trials.init(0).opt_state) | {
        "devices_per_trial": training.devices,
        "axes": sorted(values),
        "hyperparameters": {k: float(v) for k, v in hyperparameters.items() if k not in values},
        "data_digest": digest(training.data),
        "encoder": described(training.model),
    }


def _schedule(steps: int, log_every: int, save_every: int | None) -> Schedule:
    """Returns the schedule of trials, which by default are saved at every tenth of their steps."""
    if save_every is None:
        save_every = max(steps // 10 // log_every, 1) * log_every
    every = {"save_every": save_every, "log_every": log_every}
    check_ranges(every)
    check_multiples(every, [("save_every", "log_every")])
    return Schedule(steps, log_every, save_every)


def _check_objective(objective: Any) -> None:
    if not isinstance(objective, Objective) and not callable(objective):
        raise TypeError(
            "objective must come from contrastive_jax.train.objective, or be a function that makes "
            f"one from hyperparameters, got {objective!r:.80}"
        )


@contextlib.contextmanager
def _opened(
    folder: str | Path | None, record: Mapping[str, Any], *, resume: bool
) -> Iterator[Path]:
    """Opens the folder of the trials, or one that is removed afterwards."""
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            yield Path(temporary)
        return
    where = Path(folder).expanduser().absolute()
    options = json.loads(json.dumps(record, default=str))
    with runs.open_run(where.parent, where.name, where.name, options, resume=resume) as opened:
        yield opened


def _trials(trials: AssembledTrials, folder: Path) -> list[Trial]:
    """Returns the finished trials, with their encoders."""
    lines, like = read_trials(folder), jax.device_get(trials.init(0))
    finished = []
    for hyperparameters in trials.recorded:
        line, run = lines[trial_key(hyperparameters)], None
        if line["diverged"] is None:
            weights = restore_trial(folder, line, like).weights
            objective = trials.objective
            run, _ = trained_run(
                trials.parts.network,
                weights,
                trials.data,
                objective.distance,
                objective=objective,
            )
        history = {name: np.array(points, np.float64) for name, points in line["history"].items()}
        finished.append(
            Trial(hyperparameters, line["validation"], line["test"], run, history, line["diverged"])
        )
    return finished

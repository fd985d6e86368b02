"""The loop over trials: it trains them in a grid, evaluates each and stores it in a folder."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from contrastive_jax.train import grid as grids
from contrastive_jax.train import saved_states, trial_figures, trial_folder
from contrastive_jax.train.grid_strategy import choice_line, choose_grid
from contrastive_jax.train.trial_assembly import AssembledTrials
from contrastive_jax.train.trial_folder import trial_key
from contrastive_jax.train.types import TrainState

HISTORY = ("loss", "positive_distance", "negative_distance", "active_fraction")
"""The metrics of a step whose means are the history of a trial."""


class Schedule(NamedTuple):
    """The steps of a trial, and the steps between two records and two saves."""

    steps: int
    log_every: int
    """Steps between two points of the history."""
    save_every: int
    """Steps between two saves of the trials that are training, a multiple of `log_every`."""


class _Loop(NamedTuple):
    """The arguments that all chunks of trials share."""

    trials: AssembledTrials
    folder: Path
    running: Path
    grid: grids.Grid
    source: Any
    schedule: Schedule
    test: bool
    advance: Callable[[int], Any]


def _ignore(taken: int) -> None:
    """Takes the number of steps where no progress is shown."""


def train_trials(
    trials: AssembledTrials,
    folder: Path,
    schedule: Schedule,
    *,
    name: str = "trials",
    test: bool = True,
    report: Callable[[str], Any] = print,
    advance: Callable[[int], Any] | None = None,
    **options: Any,
) -> None:
    """Trains trials that share their structure, and stores each when it is finished.

    Trials that were interrupted go on with the strategy that they began with, to the same bits, and
    those that have not begun take the strategy that was chosen for them all. A trial that diverges
    is marked, and the others go on.

    Args:
      trials: to train; no two have the same values.
      folder: where trials are stored, see `trial_folder`.
      schedule: how long they train.
      name: of this structure among others in the folder, the name of a file.
      test: whether trials are evaluated on test too.
      report: takes a line that names the strategy.
      advance: takes the number of steps that trials have taken since the last call.
      **options: others of `choose_grid`.

    Raises:
      MemoryError: if not even one trial fits.
      OSError: if a trial can not be stored.
      ValueError: if options of the grid do not fit.

    Example:
      >>> from pathlib import Path
      >>> import contrastive_jax as cj
      >>> from contrastive_jax.train.training import Training
      >>> from contrastive_jax.train.trial_assembly import Variant, assemble_trials
      >>> from contrastive_jax.train.trial_folder import read_trials
      >>> from contrastive_jax.train.trial_loop import Schedule, train_trials
      >>> variants = [Variant({"seed": k}, k, cj.train.objective("supcon")) for k in (0, 1)]
      >>> training = Training(
      ...     model=cj.models.Linear,
      ...     data=cj.data.load("digits"),
      ...     objective=variants[0].objective,
      ...     steps=4,
      ...     batch_size=32,
      ... )
      >>> trials = assemble_trials(training, variants)
      >>> train_trials(
      ...     trials,
      ...     Path(),
      ...     Schedule(steps=4, log_every=2, save_every=2),
      ...     strategy="sequential",
      ...     report=lambda line: None,
      ... )
      >>> [line["history"]["step"] for line in read_trials(Path()).values()]
      [[2, 4], [2, 4]]
    """
    keys = [*map(trial_key, trials.recorded)]
    running = folder / "running" / name
    saved = trial_folder.read_running(running, folder)
    records = {} if saved is None else {k: r for k, r in saved.records.items() if k in keys}
    started = [keys.index(key) for key in records]
    # All are restored now, as the first chunk replaces what is saved.
    restored = {
        k: saved_states.restore_state(folder / records[keys[k]]["state"], trials.init(k))
        for k in started
    }
    # A choice for fewer trials says little about how many train best.
    before = trial_folder.read_strategy(folder, name, count=len(keys))
    if saved is not None:
        before = (saved.strategy, saved.at_once)
    choice = choose_grid(trials, before=before, **options)
    # One trial alone says nothing about how several train best.
    if len(keys) > 1 and before is None:
        trial_folder.save_strategy(folder, name, choice.grid, count=len(keys))
    report(choice_line(choice, len(keys)))
    source = jax.device_put(trials.source, choice.grid.shared)
    loop = _Loop(trials, folder, running, choice.grid, source, schedule, test, advance or _ignore)
    rest = [k for k in range(len(keys)) if k not in started]
    for part, start in ((started, 0 if saved is None else saved.step), (rest, 0)):
        for first in range(0, len(part), choice.grid.trials):
            chunk = part[first : first + choice.grid.trials]
            states = [restored[k] if k in restored else trials.init(k) for k in chunk]
            _train_chunk(loop, chunk, states, [records.get(keys[k]) for k in chunk], start)


def train_pending(
    trials: AssembledTrials,
    folder: Path,
    schedule: Schedule,
    *,
    advance: Callable[[int], Any] = _ignore,
    **options: Any,
) -> None:
    """Trains the trials that are not finished in a folder, as `train_trials`.

    Args:
      trials: that share their structure.
      folder: where trials are stored.
      schedule: how long they train.
      advance: takes the number of steps that trials have taken since the last call, those of
        finished trials at once.
      **options: others of `train_trials`.

    Raises:
      MemoryError, OSError, ValueError: as `train_trials`.

    Example:
      >>> from pathlib import Path
      >>> import contrastive_jax as cj
      >>> from contrastive_jax.train.training import Training
      >>> from contrastive_jax.train.trial_assembly import Variant, assemble_trials
      >>> from contrastive_jax.train.trial_folder import read_trials
      >>> from contrastive_jax.train.trial_loop import Schedule, train_pending
      >>> digits, objective = cj.data.load("digits"), cj.train.objective("supcon")
      >>> training = Training(
      ...     model=cj.models.MLP, data=digits, objective=objective, steps=4, batch_size=32
      ... )
      >>> trials = assemble_trials(training, [Variant({"seed": 0}, 0, objective)])
      >>> schedule = Schedule(steps=4, log_every=2, save_every=2)
      >>> train_pending(trials, Path(), schedule, report=lambda line: None)
      >>> len(read_trials(Path()))
      1
    """
    finished = trial_folder.read_trials(folder)
    pending = [k for k, one in enumerate(trials.recorded) if trial_key(one) not in finished]
    advance((len(trials.recorded) - len(pending)) * schedule.steps)
    if pending:
        train_trials(trials.part(pending), folder, schedule, advance=advance, **options)


def _train_chunk(
    loop: _Loop,
    chunk: Sequence[int],
    states: list[TrainState],
    saved: Sequence[dict[str, Any] | None],
    step: int,
) -> None:
    """Trains the trials that fit into one call, from the step that they have reached."""
    steps, log_every, save_every = loop.schedule
    records = [one or {"history": {}, "diverged": None, "seconds": 0.0} for one in saved]
    recorded = [loop.trials.recorded[k] for k in chunk]
    loop.advance(step * len(chunk))
    windows = grids.train_grid(
        loop.grid,
        states.__getitem__,
        loop.source,
        [loop.trials.hyperparameters[k] for k in chunk],
        start=step,
        steps=steps,
        window=log_every,
    )
    began = time.perf_counter()
    for window in windows:
        seconds = (time.perf_counter() - began) / len(chunk)
        for index, record in enumerate(records):
            _extend(record["history"], window, index)
            record["diverged"] = record["diverged"] or window.diverged[index]
            record["seconds"] += seconds
        loop.advance(len(chunk) * (window.step - step))
        step = window.step
        done = step == steps or all(record["diverged"] for record in records)
        if done or step % save_every == 0:
            states = [window.state(index) for index in range(len(chunk))]
            trials = [*zip(recorded, records, states, strict=True)]
            trial_folder.save_running(loop.running, loop.folder, loop.grid, step, trials)
        began = time.perf_counter()
    loop.advance(len(chunk) * (steps - step))
    for hyperparameters, record, state in zip(recorded, records, states, strict=True):
        _finish(loop, hyperparameters, record, state)
    shutil.rmtree(loop.running, ignore_errors=True)


def _extend(history: dict[str, list[float | None]], window: grids.Window, index: int) -> None:
    """Adds a window to the history of a trial."""
    history.setdefault("step", []).append(window.step)
    for name in HISTORY:
        if name in window.metrics:
            mean = float(np.mean(window.metrics[name][index]))
            # JSON has no NaN.
            history.setdefault(name, []).append(mean if np.isfinite(mean) else None)


def _finish(
    loop: _Loop, hyperparameters: Mapping[str, Any], record: dict[str, Any], state: TrainState
) -> None:
    """Evaluates a trial and stores it."""
    diverged, validation, test = record["diverged"], None, None
    if diverged is None:
        validation = trial_figures.on_validation(loop.trials, state)
        if validation is not None and loop.test:
            test = trial_figures.on_test(loop.trials, state)
        if validation is None or (loop.test and test is None):
            diverged, validation, test = loop.schedule.steps, None, None
    line = {"diverged": diverged, "validation": validation, "test": test}
    line |= {"history": record["history"], "seconds": round(record["seconds"], 2)}
    trial_folder.add_trial(loop.folder, hyperparameters, state, line)

"""The folder in which trials are stored, so that they can be interrupted and go on.

    trials.jsonl      a line for each finished trial: hyperparameters, figures, history, state
    states/           the final state of each
    running/NAME/     the states of the trials that are training, and a record of them
    strategies/       the strategy of each structure, with which trials go on

A line is written after the state that it names, and stands for a finished trial. A damaged line, or
a damaged state of a trial that was training, is reported, and its trial trains again. A damaged
state of a finished trial is an error that says which line to remove.
"""

import hashlib
import json
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from contrastive_jax.train import json_lines, saved_states
from contrastive_jax.train._files import replace_file
from contrastive_jax.train.grid import Grid
from contrastive_jax.train.types import TrainState

TRIALS = "trials.jsonl"
LINE = ("hyperparameters", "diverged", "validation", "test", "history", "seconds", "state")
"""The fields of a line of `trials.jsonl`."""


class Running(NamedTuple):
    """Trials that were interrupted, as they were last saved."""

    strategy: Any
    """The strategy of their grid."""
    at_once: int
    """The number of trials of one call of it."""
    step: int
    records: dict[str, dict[str, Any]]
    """The record of each trial by its key: history, the step at which it diverged, seconds, and the
    path of its state."""


def trial_key(hyperparameters: Mapping[str, Any]) -> str:
    """Returns the key of a trial, which no other trial of a folder has.

    Example:
      >>> from contrastive_jax.train.trial_folder import trial_key
      >>> trial_key({"seed": 0, "margin": 1.0})
      '{"margin": 1.0, "seed": 0}'
    """
    return json.dumps(dict(hyperparameters), sort_keys=True)


def state_path(hyperparameters: Mapping[str, Any]) -> str:
    """Returns the path of the final state of a trial, relative to the folder.

    Example:
      >>> from contrastive_jax.train.trial_folder import state_path
      >>> state_path({"margin": 1.0})
      'states/bad3f3833ee0e4ce'
    """
    digest = hashlib.sha256(trial_key(hyperparameters).encode()).hexdigest()
    return f"states/{digest[:16]}"


def read_trials(folder: Path) -> dict[str, dict[str, Any]]:
    """Reads the lines of the finished trials, by their keys.

    A line that can not be read is left out, with a warning. Of two lines of a trial the later
    counts.

    Example:
      >>> from pathlib import Path
      >>> from contrastive_jax.train.trial_folder import read_trials
      >>> read_trials(Path("a_new_folder"))
      {}
    """
    lines = json_lines.read_lines(folder / TRIALS, keys=LINE)
    return {trial_key(line["hyperparameters"]): line for line in lines}


def add_trial(
    folder: Path,
    hyperparameters: Mapping[str, Any],
    state: TrainState,
    record: Mapping[str, Any],
) -> None:
    """Stores a finished trial: first its state, then its line.

    Args:
      folder: of the trials.
      hyperparameters: of the trial.
      state: after its last step.
      record: the other fields of its line.

    Example:
      >>> from pathlib import Path
      >>> import numpy as np
      >>> from contrastive_jax.train.trial_folder import add_trial, read_trials
      >>> record = dict.fromkeys(("diverged", "validation", "test", "history", "seconds"))
      >>> add_trial(Path(), {"margin": 1.0}, np.zeros(2), record)
      >>> [*read_trials(Path())]
      ['{"margin": 1.0}']
    """
    path = state_path(hyperparameters)
    saved_states.save_state(folder / path, state)
    line = {"hyperparameters": dict(hyperparameters), **record, "state": path}
    json_lines.append_line(folder / TRIALS, line)


def restore_trial(folder: Path, line: Mapping[str, Any], like: TrainState) -> TrainState:
    """Restores the final state of a finished trial.

    Args:
      folder: of the trials.
      line: of the trial, from `read_trials`.
      like: a state of the same structure.

    Returns:
      The state.

    Raises:
      ValueError: if the state is damaged, saying how to train the trial again.

    Example:
      >>> from pathlib import Path
      >>> import numpy as np
      >>> from contrastive_jax.train import trial_folder
      >>> record = dict.fromkeys(("diverged", "validation", "test", "history", "seconds"))
      >>> trial_folder.add_trial(Path(), {"margin": 1.0}, np.ones(2), record)
      >>> (line,) = trial_folder.read_trials(Path()).values()
      >>> print(trial_folder.restore_trial(Path(), line, np.zeros(2)))
      [1. 1.]
    """
    try:
        return saved_states.restore_state(folder / line["state"], like)
    except ValueError as error:
        error.add_note(
            f"to train the trial again, remove the line of {line['hyperparameters']} from "
            f"{folder / TRIALS} and resume"
        )
        raise


def save_running(
    running: Path, folder: Path, grid: Grid, step: int, trials: Sequence[tuple[Any, Any, Any]]
) -> None:
    """Saves the trials that are training, in place of what was saved before.

    Args:
      running: the folder of their states and their record.
      folder: of the trials, to which paths are relative.
      grid: their grid.
      step: the number of steps that they have taken.
      trials: for each its hyperparameters, its record and its state.

    Example:
      >>> from pathlib import Path
      >>> from types import SimpleNamespace
      >>> import numpy as np
      >>> from contrastive_jax.train.trial_folder import read_running, save_running
      >>> running, grid = Path("running/trials"), SimpleNamespace(strategy="vmap", trials=2)
      >>> trials = [({"margin": 1.0}, {"history": {}}, np.zeros(3))]
      >>> save_running(running, Path(), grid, 4, trials)
      >>> read_running(running, Path()).step
      4
    """
    records = {}
    for index, (hyperparameters, record, state) in enumerate(trials):
        path = running / str(step) / str(index)
        saved_states.save_state(path, state)
        records[trial_key(hyperparameters)] = {**record, "state": str(path.relative_to(folder))}
    saved = Running(grid.strategy, grid.trials, step, records)
    fresh = running / "record.tmp"
    fresh.write_text(json.dumps(saved_states.seal(saved._asdict())))
    fresh.replace(running / "record.json")
    for old in running.iterdir():
        if old.is_dir() and old.name != str(step):
            shutil.rmtree(old)


def save_strategy(folder: Path, name: str, grid: Grid, *, count: int) -> None:
    """Stores the strategy of the trials of one structure, which was chosen for `count` of them.

    Example:
      >>> from pathlib import Path
      >>> from types import SimpleNamespace
      >>> from contrastive_jax.train.trial_folder import read_strategy, save_strategy
      >>> save_strategy(Path(), "trials", SimpleNamespace(strategy="vmap", trials=2), count=4)
      >>> read_strategy(Path(), "trials", count=4)
      ('vmap', 2)
      >>> print(read_strategy(Path(), "trials", count=100))
      None
    """
    path = folder / "strategies" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    replace_file(path, json.dumps([grid.strategy, grid.trials, count]).encode())


def read_strategy(folder: Path, name: str, *, count: int) -> tuple[Any, int] | None:
    """Reads the strategy of the trials of one structure and how many trials a call trains.

    None where none was stored, it was chosen for fewer than `count` trials, or the file is damaged.

    Example:
      >>> from pathlib import Path
      >>> from contrastive_jax.train.trial_folder import read_strategy
      >>> print(read_strategy(Path("a_new_folder"), "trials", count=2))
      None
    """
    try:
        path = folder / "strategies" / f"{name}.json"
        strategy, at_once, chosen_for = json.loads(path.read_bytes())
        return (strategy, int(at_once)) if count <= chosen_for else None
    except (FileNotFoundError, ValueError, TypeError):
        return None


def read_running(running: Path, folder: Path) -> Running | None:
    """Reads the trials that were interrupted.

    Trials whose state is damaged are left out with a warning, and train again from their first
    step.

    Args:
      running: the folder of their states and their record.
      folder: of the trials.

    Returns:
      The trials; None if there are none, or the record is damaged.

    Example:
      >>> from pathlib import Path
      >>> from contrastive_jax.train.trial_folder import read_running
      >>> print(read_running(Path("running"), Path()))
      None
    """
    path = running / "record.json"
    if not path.exists():
        return None
    try:
        saved = Running(**saved_states.unseal(json.loads(path.read_bytes())))
    except (ValueError, TypeError) as error:
        warnings.warn(
            f"{path} is damaged ({error}): its trials train from step 0 again", stacklevel=2
        )
        return None
    whole = {}
    for key, record in saved.records.items():
        state = folder / record["state"]
        if reason := saved_states.damage(state):
            warnings.warn(
                f"{state} is damaged ({reason}): trial {key} trains from step 0 again",
                stacklevel=2,
            )
        else:
            whole[key] = record
    return saved._replace(records=whole)

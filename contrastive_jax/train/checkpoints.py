"""Checkpoints of a training run (Orbax): atomic, verified, the last few and the best by validation.

A checkpoint carries a digest of each of its arrays and of its metrics (`saved_states`).
"""

import contextlib
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as policy

from contrastive_jax.train.saved_states import check_room, damage, digests_of, one_error, restored

State = TypeVar("State")
# Folders among the checkpoints. Their names are no steps, so that Orbax takes neither for one.
DAMAGED = "damaged"
DELETED = "deleted"


def open_checkpoints(
    folder: str | Path, *, keep: int = 2, best_by: str
) -> contextlib.AbstractContextManager[ocp.CheckpointManager]:
    """Opens the checkpoints of a run, creating the folder where there is none.

    A checkpoint is written beside its final name and renamed when whole, and renamed before it is
    removed, so a run killed at any moment leaves only whole ones. Writing goes on in the
    background; the end of the context waits for it.

    All checkpoints are verified first. A damaged one is moved to `folder/damaged`, with a warning
    that names it and the reason, so that the latest and the best step are those of good ones. One
    process at a time may open a folder: `train.folder.open_run` sees to that for a run.

    Args:
      folder: where they lie.
      keep: how many of the last to keep, at least 1. The best is kept besides.
      best_by: name of the validation metric whose largest value marks the best.

    Returns:
      A context manager that gives the Orbax manager, for the functions below.

    Raises:
      ValueError: if none would be kept.
      OSError: from the context, if a file can not be read or written.

    Example:
      >>> import numpy as np
      >>> from contrastive_jax.train.checkpoints import open_checkpoints, restore, save
      >>> with open_checkpoints("checkpoints", best_by="accuracy") as checkpoints:
      ...     save(checkpoints, 10, {"weight": np.ones(2)}, {"accuracy": 0.5})
      ...     save(checkpoints, 20, {"weight": np.zeros(2)}, {"accuracy": 0.4})
      ...     state = restore(checkpoints, checkpoints.best_step(), {"weight": np.zeros(2)})
      >>> state["weight"]
      array([1., 1.])
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}")
    return _opened(Path(folder).absolute(), keep, best_by)


@contextlib.contextmanager
def _opened(folder: Path, keep: int, best_by: str) -> Iterator[ocp.CheckpointManager]:
    folder.mkdir(parents=True, exist_ok=True)
    # What a killed process was about to remove, or had begun to write.
    for path in (folder / DELETED, *folder.glob("*.orbax-checkpoint-tmp*")):
        shutil.rmtree(path, ignore_errors=True)
    _set_damaged_aside(folder)
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policy.AnyPreservationPolicy(
            [
                policy.LatestN(keep),
                policy.BestN(get_metric_fn=lambda metrics: metrics[best_by], n=1),
            ]
        ),
        best_fn=lambda metrics: metrics[best_by],
        best_mode="max",
        # Renamed in one go; `_opened` and `save` remove what has been renamed.
        todelete_subdir=DELETED,
    )
    manager = ocp.CheckpointManager(folder, options=options)
    try:
        yield manager
    except BaseException:
        # The error of the run is the one to show.
        with contextlib.suppress(Exception):
            manager.close()
        raise
    with one_error(folder):
        manager.close()
    shutil.rmtree(folder / DELETED, ignore_errors=True)


def steps_taken(folder: Path) -> int:
    """Returns the latest step of which a folder of checkpoints has one, 0 without any.

    Example:
      >>> from pathlib import Path
      >>> from contrastive_jax.train.checkpoints import steps_taken
      >>> steps_taken(Path("runs/none/checkpoints"))
      0
    """
    return max((int(path.name) for path in folder.glob("*") if path.name.isdigit()), default=0)


def _set_damaged_aside(folder: Path) -> None:
    steps = [path for path in folder.iterdir() if path.name.isdecimal()]
    for path in sorted(steps, key=lambda path: int(path.name)):
        if reason := damage(path) or _misread(path):
            aside = folder / DAMAGED / path.name
            number = 1
            while aside.exists():
                number += 1
                aside = aside.with_name(f"{path.name}-{number}")
            aside.parent.mkdir(exist_ok=True)
            path.rename(aside)
            warnings.warn(
                f"checkpoint {path.name} is damaged and left out: {reason}; it is now {aside}",
                stacklevel=4,
            )


def _misread(path: Path) -> str | None:
    """Returns why a manager can not read a checkpoint, which keeps it from opening any other."""
    try:
        steps = ocp.path.step.standard_name_format()
        _ = steps.find_step(path.parent, int(path.name)).commit_timestamp
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return f"its metadata can not be read ({error})"
    return None


def save(
    checkpoints: ocp.CheckpointManager, step: int, state: State, metrics: Mapping[str, float]
) -> None:
    """Saves the state after `step` steps, with the validation metrics it is judged by.

    Args:
      checkpoints: an open manager.
      step: steps taken, above those of all checkpoints there are.
      state: a tree of arrays, copied before the call returns.
      metrics: among them that which marks the best.

    Raises:
      OSError: if this or the checkpoint before it can not be written, as on a full disk.

    Example:
      >>> import numpy as np
      >>> from contrastive_jax.train.checkpoints import open_checkpoints, save
      >>> with open_checkpoints("checkpoints", best_by="accuracy") as checkpoints:
      ...     save(checkpoints, 10, {"weight": np.ones(2)}, {"accuracy": 0.5})
      ...     checkpoints.latest_step()
      10
    """
    metrics = {name: float(value) for name, value in metrics.items()}
    state = jax.tree.map(np.array, jax.device_get(state))
    folder = Path(checkpoints.directory)
    with one_error(folder):
        # Orbax would wait as well. What it has renamed by then can be removed.
        checkpoints.wait_until_finished()
        shutil.rmtree(folder / DELETED, ignore_errors=True)
        check_room(folder, state)
        checkpoints.save(
            step,
            args=ocp.args.StandardSave(state),
            metrics=metrics,
            custom_metadata=digests_of(state, metrics),
        )


def restore(checkpoints: ocp.CheckpointManager, step: int, like: State) -> State:
    """Restores the state saved after `step` steps.

    Args:
      checkpoints: an open manager.
      step: a saved step, such as `checkpoints.latest_step()` or `checkpoints.best_step()`.
      like: a state of the same structure, whose shapes, types and devices the restored one takes.

    Returns:
      The state.

    Raises:
      ValueError: if the checkpoint is damaged, or if the saved state has another structure or other
        shapes, as when the encoder of the run was changed.

    Example:
      >>> import numpy as np
      >>> from contrastive_jax.train.checkpoints import open_checkpoints, restore, save
      >>> with open_checkpoints("checkpoints", best_by="accuracy") as checkpoints:
      ...     save(checkpoints, 10, {"weight": np.ones(2)}, {"accuracy": 0.5})
      ...     state = restore(checkpoints, 10, {"weight": np.zeros(2)})
      >>> state["weight"]
      array([1., 1.])
    """
    with one_error(Path(checkpoints.directory)):
        checkpoints.wait_until_finished()
    path = Path(checkpoints.directory) / str(step)
    try:
        return restored(f"checkpoint {step}", path, like)
    except ValueError as error:
        if damage(path):
            error.add_note("opening the checkpoints again, as --resume does, leaves it out")
        raise

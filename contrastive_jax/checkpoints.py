"""Checkpoints of a training run (Orbax): atomic, the last few and the best by validation."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as policy

State = TypeVar("State")


def open_checkpoints(folder: str | Path, *, keep: int = 2, best_by: str) -> ocp.CheckpointManager:
    """Opens the checkpoints of a run, creating the folder where there is none.

    A checkpoint is written beside its final name and renamed when whole, so a run killed at any
    moment leaves only whole ones. Writing goes on in the background; `close()` waits for it.

    Args:
      folder: where they lie.
      keep: how many of the last to keep, at least 1. The best is kept besides.
      best_by: name of the validation metric whose largest value marks the best.

    Returns:
      The manager, for the functions below.

    Raises:
      ValueError: if none would be kept.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}")
    return ocp.CheckpointManager(
        Path(folder).absolute(),
        options=ocp.CheckpointManagerOptions(
            preservation_policy=policy.AnyPreservationPolicy(
                [
                    policy.LatestN(keep),
                    policy.BestN(get_metric_fn=lambda metrics: metrics[best_by], n=1),
                ]
            ),
            best_fn=lambda metrics: metrics[best_by],
            best_mode="max",
        ),
    )


def save(
    checkpoints: ocp.CheckpointManager, step: int, state: State, metrics: Mapping[str, float]
) -> None:
    """Saves the state after `step` steps, with the validation metrics it is judged by."""
    checkpoints.save(step, args=ocp.args.StandardSave(state), metrics=dict(metrics))


def restore(checkpoints: ocp.CheckpointManager, step: int, like: State) -> State:
    """Restores the state saved after `step` steps.

    Args:
      checkpoints: an open manager.
      step: a saved step, such as `checkpoints.latest_step()` or `checkpoints.best_step()`.
      like: a state of the same structure, whose shapes, types and devices the restored one takes.

    Returns:
      The state.

    Raises:
      ValueError: if the saved state has another structure or other shapes, as when the encoder
        of the run was changed.
    """
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    restored: State = checkpoints.restore(step, args=ocp.args.StandardRestore(abstract))
    return _checked(f"checkpoint {step}", restored, like)


def save_state(path: str | Path, state: Any) -> None:
    """Saves a single state, in place of what may be at this path; whole when the call returns."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(Path(path).absolute(), state, force=True)


def restore_state(path: str | Path, like: State) -> State:
    """Restores what `save_state` saved.

    Args:
      path: where it lies.
      like: a state of the same structure, whose shapes, types and devices the restored one takes.

    Returns:
      The state.

    Raises:
      ValueError: if the saved state has another structure or other shapes.
    """
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    with ocp.StandardCheckpointer() as checkpointer:
        restored: State = checkpointer.restore(Path(path).absolute(), abstract)
    return _checked(str(path), restored, like)


def _checked(what: str, restored: State, like: State) -> State:
    for (path, got), want in zip(
        jax.tree_util.tree_leaves_with_path(restored), jax.tree.leaves(like), strict=True
    ):
        if np.shape(got) != np.shape(want):
            raise ValueError(
                f"{what} holds {jax.tree_util.keystr(path)} of shape {np.shape(got)}, expected "
                f"{np.shape(want)}: it is of another encoder"
            )
    return restored

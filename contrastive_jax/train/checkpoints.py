"""Checkpoints of a training run (Orbax): atomic, verified, the last few and the best by validation.

A checkpoint carries a digest of each of its arrays and of its metrics. Whatever loads a state
compares them first, so that a damaged file never leads to other numbers.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from orbax.checkpoint.checkpoint_managers import preservation_policy as policy

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
    process at a time may open a folder: `runs.open_run` sees to that for a run.

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
    with _writing(folder):
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
    with _writing(folder):
        # Orbax would wait as well. What it has renamed by then can be removed.
        checkpoints.wait_until_finished()
        shutil.rmtree(folder / DELETED, ignore_errors=True)
        _check_room(folder, state)
        checkpoints.save(
            step,
            args=ocp.args.StandardSave(state),
            metrics=metrics,
            custom_metadata=_sealed(state, metrics),
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
    with _writing(Path(checkpoints.directory)):
        checkpoints.wait_until_finished()
    path = Path(checkpoints.directory) / str(step)
    try:
        return _restored(f"checkpoint {step}", path, like)
    except ValueError as error:
        if damage(path):
            error.add_note("opening the checkpoints again, as --resume does, leaves it out")
        raise


def save_state(path: str | Path, state: Any) -> None:
    """Saves a single state, in place of what may be at this path; whole when the call returns.

    Args:
      path: where to.
      state: a tree of arrays.

    Raises:
      OSError: if it can not be written, as on a full disk.

    Example:
      >>> import numpy as np
      >>> from contrastive_jax.train.checkpoints import restore_state, save_state
      >>> save_state("state", {"weight": np.ones(2)})
      >>> restore_state("state", {"weight": np.zeros(2)})
      {'weight': array([1., 1.])}
    """
    path = Path(path).absolute()
    state = jax.tree.map(np.array, jax.device_get(state))
    with _writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        _check_room(path.parent, state)
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path, state, force=True, custom_metadata=_sealed(state, {}))


def restore_state(path: str | Path, like: State) -> State:
    """Restores a state that `save_state` saved.

    Args:
      path: where it lies.
      like: a state of the same structure, whose shapes, types and devices the restored one takes.

    Returns:
      The state.

    Raises:
      ValueError: if it is damaged, or has another structure or other shapes.

    Example:
      >>> import numpy as np
      >>> from contrastive_jax.train.checkpoints import restore_state, save_state
      >>> save_state("state", {"weight": np.ones(2)})
      >>> restore_state("state", {"weight": np.zeros(2)})
      {'weight': array([1., 1.])}
    """
    return _restored(str(path), Path(path), like)


def damage(path: str | Path) -> str | None:
    """Reads a checkpoint or a saved state and compares it with its digests.

    Args:
      path: of a state of `save_state`, or of a checkpoint, `FOLDER/STEP`.

    Returns:
      What is wrong with it, or None.

    Raises:
      OSError: if a file may not be read, which says nothing about what is in it.

    Example:
      >>> import numpy as np
      >>> from contrastive_jax.train.checkpoints import damage, save_state
      >>> save_state("state", {"weight": np.ones(2)})
      >>> print(damage("state"))
      None
    """
    try:
        _verified_arrays(Path(path))
    except ValueError as error:
        return str(error)
    return None


def _restored(what: str, path: Path, like: State) -> State:
    try:
        arrays = _verified_arrays(path)
    except ValueError as error:
        raise ValueError(f"{what} is damaged: {error} ({path})") from error
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    names = [_name(keys) for keys, _ in leaves]
    if differing := sorted({*names} ^ {*arrays}):
        raise ValueError(
            f"{what} differs from the expected state in {', '.join(differing[:3])}: it is of "
            "another encoder, loss or optimizer"
        )
    for (keys, want), name in zip(leaves, names, strict=True):
        if arrays[name].shape != np.shape(want):
            raise ValueError(
                f"{what} holds {jax.tree_util.keystr(keys)} of shape {arrays[name].shape}, "
                f"expected {np.shape(want)}: it is of another encoder"
            )
    restored: State = jax.tree.unflatten(
        structure,
        [_like(arrays[name], want) for name, (_, want) in zip(names, leaves, strict=True)],
    )
    return restored


def _like(array: np.ndarray, want: Any) -> Any:
    array = array.astype(getattr(want, "dtype", array.dtype), copy=False)
    sharding = getattr(want, "sharding", None)
    return array if sharding is None else jax.device_put(array, sharding)


def _verified_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads the arrays of a checkpoint, by name.

    Raises:
      ValueError: with the reason, if it is damaged.
      OSError: if a file may not be read.
    """
    if not path.is_dir():
        raise ValueError("there is no such folder")
    for file in path.rglob("*"):
        if file.is_file():
            file.open("rb").close()  # Orbax does not tell a forbidden file from a damaged one.
    try:
        saved = json.loads((path / "_CHECKPOINT_METADATA").read_bytes())
        record = unseal(saved.get("custom_metadata"))
    except (OSError, ValueError, AttributeError):
        raise ValueError("its digests are missing or can not be read") from None
    # A checkpoint of a manager has the state and the metrics side by side.
    in_parts = (path / "metrics").exists() or (path / "default").exists()
    if record["metrics"]:
        try:
            metrics = json.loads((path / "metrics" / "metrics").read_bytes())
        except (OSError, ValueError):
            raise ValueError("its metrics are missing or can not be read") from None
        if json.dumps(metrics, sort_keys=True) != record["metrics"]:
            raise ValueError("its metrics are not those that were saved")
    arrays = _read(path / "default" if in_parts else path, record["digests"])
    for name, array in arrays.items():
        if _digest(array) != record["digests"][name]:
            raise ValueError(f"{name} has not the digest that was saved")
    return arrays


def _read(path: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    # Not by Orbax, whose threads go on after the first has failed and print what they meet.
    database = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{path.absolute()}/"}}
    stores = {
        name: ts.open({"driver": "zarr", "kvstore": database | {"path": f"{name}/"}}, read=True)
        for name in names
    }
    arrays = {}
    for name, store in stores.items():
        try:
            arrays[name] = np.asarray(store.result().read().result())
        except ValueError as error:
            raise ValueError(f"{name} can not be read ({str(error).split(':')[0]})") from None
    return arrays


def _sealed(state: Any, metrics: Mapping[str, float]) -> dict[str, str]:
    """Returns the digests of a state and its metrics, and a digest of the digests."""
    digests = {name: _digest(array) for name, array in _arrays(state).items()}
    saved = json.dumps(metrics, sort_keys=True) if metrics else ""
    return seal({"digests": digests, "metrics": saved})


def seal(record: Mapping[str, Any]) -> dict[str, str]:
    """Puts a digest beside a record of JSON types.

    Example:
      >>> from contrastive_jax.train.checkpoints import seal
      >>> sorted(seal({"step": 10}))
      ['record', 'sha256']
    """
    text = json.dumps(record)
    return {"record": text, "sha256": _sha256(text.encode())}


def unseal(sealed: Any) -> dict[str, Any]:
    """Returns the record of a result of `seal`.

    Raises:
      ValueError: if it is not the record that was sealed.

    Example:
      >>> from contrastive_jax.train.checkpoints import seal, unseal
      >>> sealed = seal({"step": 10})
      >>> unseal(sealed)
      {'step': 10}
      >>> unseal({**sealed, "record": '{"step": 11}'})
      Traceback (most recent call last):
          ...
      ValueError: the record is not the one that its digest is of
    """
    try:
        text = sealed["record"]
        if _sha256(text.encode()) == sealed["sha256"]:
            record: dict[str, Any] = json.loads(text)
            return record
    except (KeyError, TypeError, AttributeError):
        pass
    raise ValueError("the record is not the one that its digest is of")


def _arrays(tree: Any) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {_name(keys): np.asarray(leaf) for keys, leaf in leaves}


def _name(keys: tuple[Any, ...]) -> str:
    """Returns the name by which Orbax saves an array."""
    parts = []
    for key in keys:
        if isinstance(key, jax.tree_util.GetAttrKey):
            parts.append(key.name)
        elif isinstance(key, jax.tree_util.SequenceKey):
            parts.append(str(key.idx))
        else:
            parts.append(str(key.key))
    return ".".join(parts)


def _digest(array: np.ndarray) -> str:
    values = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return _sha256(f"{array.dtype.name} {array.shape} ".encode() + values.tobytes())


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _check_room(folder: Path, state: Any) -> None:
    """Checks that a state fits on the disk: Orbax fails half way, in hundreds of lines.

    Raises:
      OSError: if there is no room, or no file can be made.
    """
    size = sum(array.nbytes for array in jax.tree.leaves(state)) + 2**20
    with tempfile.TemporaryFile(dir=folder) as file:
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    raise


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Makes one error of the many that a failed write has in the libraries below."""
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__ or cause.__context__
        if isinstance(cause, OSError) and cause.errno is not None:
            path = str(cause.filename or folder)
            raise OSError(cause.errno, cause.strerror, path) from error
        text = str(error)[:200]
        raise OSError(f"no checkpoint could be written to {folder}: {text}") from error

"""A saved state with a digest of each of its arrays.

Whatever loads a state compares the digests first, so that a damaged file never leads to other
numbers.
"""

import contextlib
import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

State = TypeVar("State")


def save_state(path: str | Path, state: Any) -> None:
    """Saves a single state, in place of what may be at this path; whole when the call returns.

    Args:
      path: where to.
      state: a tree of arrays.

    Raises:
      OSError: if it can not be written, as on a full disk.

    Example:
      >>> import numpy as np
      >>> from contrastive_jax.train.saved_states import restore_state, save_state
      >>> save_state("state", {"weight": np.ones(2)})
      >>> restore_state("state", {"weight": np.zeros(2)})
      {'weight': array([1., 1.])}
    """
    path = Path(path).absolute()
    state = jax.tree.map(np.array, jax.device_get(state))
    with one_error(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        check_room(path.parent, state)
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path, state, force=True, custom_metadata=digests_of(state, {}))


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
      >>> from contrastive_jax.train.saved_states import restore_state, save_state
      >>> save_state("state", {"weight": np.ones(2)})
      >>> restore_state("state", {"weight": np.zeros(2)})
      {'weight': array([1., 1.])}
    """
    return restored(str(path), Path(path), like)


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
      >>> from contrastive_jax.train.saved_states import damage, save_state
      >>> save_state("state", {"weight": np.ones(2)})
      >>> print(damage("state"))
      None
    """
    try:
        _verified_arrays(Path(path))
    except ValueError as error:
        return str(error)
    return None


def restored(what: str, path: Path, like: State) -> State:
    """Restores a state or a checkpoint.

    Args:
      what: is restored, for errors.
      path: where it lies.
      like: a state of the same structure, whose shapes, types and devices the restored one takes.

    Raises:
      ValueError: if it is damaged, or has another structure or other shapes.

    Example:
      >>> from pathlib import Path
      >>> import numpy as np
      >>> from contrastive_jax.train.saved_states import restored, save_state
      >>> save_state("state", {"weight": np.ones(2)})
      >>> restored("the state", Path("state"), {"weight": np.zeros(2)})
      {'weight': array([1., 1.])}
    """
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


def digests_of(state: Any, metrics: Mapping[str, float]) -> dict[str, str]:
    """Returns the digests of a state and its metrics, and a digest of the digests.

    Example:
      >>> import numpy as np
      >>> from contrastive_jax.train.saved_states import digests_of, unseal
      >>> [*unseal(digests_of({"weight": np.ones(2)}, {}))["digests"]]
      ['weight']
    """
    digests = {name: _digest(array) for name, array in _arrays(state).items()}
    saved = json.dumps(metrics, sort_keys=True) if metrics else ""
    return seal({"digests": digests, "metrics": saved})


def seal(record: Mapping[str, Any]) -> dict[str, str]:
    """Puts a digest beside a record of JSON types.

    Example:
      >>> from contrastive_jax.train.saved_states import seal
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
      >>> from contrastive_jax.train.saved_states import seal, unseal
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


def check_room(folder: Path, state: Any) -> None:
    """Checks that a state fits on the disk: Orbax fails half way, in hundreds of lines.

    Raises:
      OSError: if there is no room, or no file can be made.

    Example:
      >>> from pathlib import Path
      >>> import numpy as np
      >>> from contrastive_jax.train.saved_states import check_room
      >>> check_room(Path(), {"weight": np.ones(2)})
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
def one_error(folder: Path) -> Iterator[None]:
    """Makes one error of the many that a failed write has in the libraries below.

    Args:
      folder: that is written to, for the error.

    Raises:
      OSError: in place of any error, with the reason that the operating system gave.

    Example:
      >>> from pathlib import Path
      >>> from contrastive_jax.train.saved_states import one_error
      >>> with one_error(Path("checkpoints")):
      ...     raise RuntimeError("metadata could not be written")
      Traceback (most recent call last):
          ...
      OSError: no checkpoint could be written to checkpoints: metadata could not be written
    """
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

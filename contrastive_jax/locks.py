"""Locks on files, by which processes keep out of each other's way.

A lock belongs to an open file. The operating system releases it when the process ends, however that
ends. Some network file systems have no locks: there a warning says so, and nothing is locked.
"""

import contextlib
import errno
import fcntl
import os
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO

_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}


@contextlib.contextmanager
def locked(path: Path, what: str, *, shared: bool = False) -> Iterator[None]:
    """Holds the lock of a file, which is created where there is none.

    Args:
      path: the file. The process that holds the lock alone writes its name into it.
      what: is locked, for the error.
      shared: whether others may hold it shared at the same time.

    Yields:
      Nothing, while the lock is held.

    Raises:
      BlockingIOError: if another process holds the lock, naming that process.
      OSError: if the file can not be opened for writing.

    Example:
      >>> from pathlib import Path
      >>> from contrastive_jax.locks import locked
      >>> with locked(Path("run.lock"), "the run"):
      ...     print("no other process holds the lock now")
      no other process holds the lock now
    """
    with path.open("a+") as file:
        try:
            take(file, shared=shared, wait=False)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise BlockingIOError(
                f"{what} is in use by {holder} (lock {path}); wait until it ends, or stop it"
            ) from None
        if not _is_at(file, path):
            raise BlockingIOError(f"{what} was replaced by another process meanwhile")
        file.truncate(0)
        if not shared:
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def take(file: IO[str] | IO[bytes], *, shared: bool = False, wait: bool = True) -> None:
    """Takes the lock of an open file, until it is closed.

    Args:
      file: open.
      shared: whether others may hold it shared at the same time.
      wait: for others to release it.

    Raises:
      BlockingIOError: if another holds it and this does not wait.

    Example:
      >>> from contrastive_jax.locks import take
      >>> with open("records.jsonl", "ab") as file:
      ...     take(file)  # waits until no other process holds it; closing the file releases it
    """
    mode = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(file, mode if wait else mode | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        warnings.warn(
            f"{file.name} is on a file system without locks ({error.strerror}): take care that no "
            "other process uses the same run",
            stacklevel=3,
        )


def _is_at(file: IO[str], path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False

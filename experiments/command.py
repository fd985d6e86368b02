"""The command line of an experiment: errors that its user can mend end it with one line."""

import errno
import sys
from collections.abc import Callable
from typing import TypeVar

Config = TypeVar("Config")

# What options, files and the machine are to blame for. Anything else is a bug, and its traceback
# says where.
MENDABLE = (FloatingPointError, ImportError, MemoryError, OSError, ValueError)
# Remedies by the error of the operating system.
REMEDIES = {
    errno.EACCES: "make it readable and writable for this user, or name another folder",
    errno.EPERM: "make it readable and writable for this user, or name another folder",
    errno.EROFS: "it is on a read-only disk: name another folder",
    errno.ENOSPC: "free some space and start again (--resume goes on with a run)",
    errno.EDQUOT: "free some space and start again (--resume goes on with a run)",
    errno.EFBIG: "allow larger files and start again (--resume goes on with a run)",
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "a file is where a folder should be: remove it, or name another folder",
    errno.EISDIR: "a folder is where a file should be: remove it, or name another folder",
    errno.EIO: "the disk may be failing: copy the run to another one and go on there",
}


def run(main: Callable[[Config], object], parse: Callable[[], Config]) -> None:
    """Runs an experiment with the options of the command line.

    Args:
      main: the experiment.
      parse: reads the options.

    Raises:
      SystemExit: with code 1 and one line on stderr, if an error ends the experiment that its user
        can mend.
    """
    try:
        main(parse())
    except MENDABLE as error:
        sys.exit(f"error: {message_of(error)}")


def message_of(error: BaseException) -> str:
    """One line on an error: what was wrong, with which file, and what to do."""
    text = str(error)
    if isinstance(error, OSError) and error.errno is not None:
        path = error.filename or "a file"
        remedy = REMEDIES.get(error.errno)
        text = f"{path}: {error.strerror}" + (f"; {remedy}" if remedy else "")
    parts = [text or type(error).__name__, *getattr(error, "__notes__", ())]
    return "; ".join(" ".join(part.split()) for part in parts)

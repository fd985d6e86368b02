"""Errors of a command line that its user can mend, each in one line."""

import contextlib
import errno
import io
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

Config = TypeVar("Config")

# What options, files and the machine are to blame for. Anything else is a bug, and its traceback
# says where.
MENDABLE = (FloatingPointError, ImportError, MemoryError, OSError, ValueError)
# Remedies by the error of the operating system.
REMEDIES = {
    errno.EACCES: "make it readable and writable for this user, or name another folder",
    errno.EPERM: "make it readable and writable for this user, or name another folder",
    errno.EROFS: "it is on a read-only disk: name another folder",
    errno.ENOSPC: "free some space and start again",
    errno.EDQUOT: "free some space and start again",
    errno.EFBIG: "allow larger files and start again",
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "a file is where a folder should be: remove it, or name another folder",
    errno.EISDIR: "a folder is where a file should be: remove it, or name another folder",
    errno.EIO: "the disk may be failing: copy the run to another one and go on there",
}
# Errors after which a run can go on.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def run(main: Callable[[Config], object], parse: Callable[[], Config]) -> None:
    """Runs a program with the options of the command line.

    An error of a file, a value, memory, a number that is not finite or a package that is missing
    ends it with one line. Any other error is a bug and keeps its traceback.

    Args:
      main: the program.
      parse: reads the options, as `contrastive_jax.cli.parse` does.

    Raises:
      SystemExit: with code 1 and one line on stderr, if an error ends the program that its user
        can mend, as an option of another type is; with code 130 after Ctrl-C.

    Example:
      >>> from contrastive_jax import cli, data
      >>> try:
      ...     cli.run(data.load, lambda: "photos/cat.png")
      ... except SystemExit as ended:
      ...     print(ended.code.partition(":")[0])
      error
    """
    config = None
    with warnings.catch_warnings():
        # Without the line of code that warns, which tells a user nothing.
        warnings.showwarning = _show_warning
        try:
            config = _parsed(parse)
            main(config)
        except KeyboardInterrupt:
            sys.exit(130)
        except MENDABLE as error:
            goes_on = hasattr(config, "resume") and hasattr(config, "runs")
            full = getattr(error, "errno", None) in FULL
            hint = "; --resume goes on with a run" if full and goes_on else ""
            sys.exit(f"error: {message_of(error)}{hint}")
        except RuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            sys.exit(f"error: {message_of(error)}{_smaller(config)}")


def _show_warning(message: Any, *_: Any, **__: Any) -> None:
    print(f"warning: {message}", file=sys.stderr)


def _smaller(config: Any) -> str:
    """Returns what to do where the memory of a device is full, with options of the program."""
    remedies = []
    if hasattr(config, "batch_size"):
        remedies.append("a smaller --batch_size")
    if hasattr(config, "image_size"):
        remedies.append("smaller images with --image_size")
    return f" Take {', or '.join(remedies)}" if remedies else ""


def _parsed(parse: Callable[[], Config]) -> Config:
    """Reads options, with an error of the parser as one line in place of a box.

    Raises:
      ValueError: if an option has a value of another type, or none.
    """
    written = io.StringIO()
    try:
        with contextlib.redirect_stderr(written):
            config = parse()
    except SystemExit as error:
        message = _message_in_box(written.getvalue())
        if error.code and message:
            raise ValueError(f"{message}; --help explains the options") from None
        sys.stderr.write(written.getvalue())
        raise
    sys.stderr.write(written.getvalue())
    return config


def _message_in_box(text: str) -> str:
    """Returns what tyro says in a box, below its title and above the help of the option."""

    lines = [line.strip(" │") for line in text.splitlines()[1:]]
    message: list[str] = []
    for line in lines:
        if (line and not line.strip("─-╰╯")) or line == "Got errors:":
            if message:
                break
        elif line:
            message.append(line)
    text = " ".join(message).rstrip(".").removeprefix("Error parsing ")
    # Choices are those of a set, in no order, and None stands for a default.
    choices = re.search(r"Expected one of \((.*)\)", text)
    if choices:
        names = sorted({*re.findall(r"'([^']*)'", choices[1])} - {"None"})
        text = text.replace(choices[0], f"Expected one of {', '.join(names)}")
    typed = re.fullmatch(r"(--\w+): no type matching (.*) could be \w+ from \[(.*)\]", text)
    expected = typed[2].replace("{None}|", "").strip("{}") if typed else ""
    if typed and (match := re.fullmatch(r"(INT|FLOAT)|\[(INT|FLOAT) \[\2 \.\.\.\]\]", expected)):
        kind = {"INT": "a whole number", "FLOAT": "a number"}[match[1] or match[2]]
        several = " or several, with spaces between" if match[2] else ""
        text = f"{typed[1]} takes {kind}{several}, got {typed[3]}"
    for python, kind in (
        ("invalid literal for int() with base 10:", "a whole number"),
        ("could not convert string to float:", "a number"),
    ):
        text = text.replace(f": {python}", f" takes {kind}, got")
    return text


@contextlib.contextmanager
def options_named(options: Mapping[str, str]) -> Iterator[None]:
    """Names options in errors of the library, which name the arguments of its functions.

    An argument is renamed where an error begins with it, and where it says what to give or to leave
    out. The error stays the same object, with its notes.

    Args:
      options: names of options by names of arguments, as `{"memory_size": "memory"}`.

    Raises:
      ValueError: from the context.

    Example:
      >>> from contrastive_jax.cli import options_named
      >>> from contrastive_jax.train.ranges import check_ranges
      >>> with options_named({"steps": "training_steps"}):
      ...     check_ranges({"steps": 0})
      Traceback (most recent call last):
          ...
      ValueError: --training_steps must be at least 1, got 0
    """

    def option(match: re.Match[str]) -> str:
        return f"--{options[match[0]]}" if match[0] in options else match[0]

    try:
        yield
    except ValueError as error:
        # Not every word that is the name of an argument means it.
        place = (
            r"^|(?<= multiple of )|(?<= times )|(?<=already: )|(?<= leave )|(?<= give )|(?<= no )"
        )
        # Nor does a path that begins like one.
        named = re.sub(rf"(?:{place})[a-z_]+(?![\w./-])", option, str(error))
        if named != str(error):
            error.args = (named,)
        raise


def message_of(error: BaseException) -> str:
    """Returns one line on an error: what was wrong, with which file, and what to do.

    Args:
      error: of a program.

    Example:
      >>> import errno
      >>> from contrastive_jax.cli.errors import message_of
      >>> message_of(OSError(errno.EMFILE, "Too many open files", "a.png"))
      'a.png: Too many open files; allow more open files (ulimit -n)'
    """
    text = str(error)
    if isinstance(error, OSError) and error.errno is not None:
        path = error.filename or "a file"
        remedy = REMEDIES.get(error.errno)
        text = f"{path}: {error.strerror}" + (f"; {remedy}" if remedy else "")
    # JAX notes on errors in traced code that it has shortened their traceback, which is not shown.
    notes = [one for one in getattr(error, "__notes__", ()) if "JAX has removed" not in one]
    parts = [text or type(error).__name__, *notes]
    return "; ".join(" ".join(part.split()) for part in parts)

"""Errors of libraries that read files, as one line that says what to do."""

from collections.abc import Iterator
from contextlib import contextmanager


def one_line(error: Exception) -> str:
    """Shortens the message of an error to one line."""
    text = " ".join(str(error).split())
    return text if len(text) <= 500 else text[:500] + " ..."


@contextmanager
def explained(action: str, remedy: str) -> Iterator[None]:
    """Turns any error of a library that reads files into one line that says what to do.

    Damaged and forbidden files raise almost anything there.
    """
    try:
        yield
    except ImportError:
        raise
    except Exception as error:
        raise ValueError(
            f"{action}: {type(error).__name__}: {one_line(error)}; {remedy}"
        ) from error

"""Files that are whole, and errors that name them."""

import contextlib
from collections.abc import Iterator
from pathlib import Path


def replace_file(path: Path, data: bytes) -> None:
    """Writes a file under another name and renames it, so that it is never half written."""
    whole = path.with_name(f".{path.name}.new")
    with errors_named(whole):
        whole.write_bytes(data)
        whole.replace(path)


@contextlib.contextmanager
def errors_named(path: Path) -> Iterator[None]:
    """Names the file in errors of the operating system, which do not where a write fails."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise

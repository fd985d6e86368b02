"""Files of JSON lines, to which several processes may append.

Only a last line that was cut short by a kill is repaired. Any other line that can not be read stays
in the file, and a warning names it.
"""

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from contrastive_jax import locks
from contrastive_jax.train._files import errors_named


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Adds a record to a JSON lines file, whose last line a kill may have cut short.

    Several processes may add to one file.

    Example:
      >>> from pathlib import Path
      >>> from contrastive_jax.train.json_lines import append_line, read_lines
      >>> append_line(Path("trials.jsonl"), {"margin": 1.0})
      >>> read_lines(Path("trials.jsonl"))
      [{'margin': 1.0}]
    """
    append_lines(path, [record])


def append_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Adds records to a JSON lines file, as `append_line` adds one.

    Example:
      >>> from pathlib import Path
      >>> from contrastive_jax.train.json_lines import append_lines, read_lines
      >>> append_lines(Path("trials.jsonl"), [{"margin": 1.0}, {"margin": 2.0}])
      >>> len(read_lines(Path("trials.jsonl")))
      2
    """
    with errors_named(path), path.open("a+b") as file:
        # A line that another process is about to write is not taken for a torn one.
        locks.take(file)
        _repair(file)
        file.write(b"".join(json.dumps(record).encode() + b"\n" for record in records))


def repair_lines(path: Path) -> None:
    """Drops a last line that a kill has cut short from a JSON lines file, if there is one.

    Example:
      >>> from pathlib import Path
      >>> from contrastive_jax.train.json_lines import append_line, repair_lines
      >>> path = Path("trials.jsonl")
      >>> append_line(path, {"margin": 1.0})
      >>> with path.open("a") as file:
      ...     _ = file.write('{"mar')  # a kill cut this line short
      >>> repair_lines(path)
      >>> print(path.read_text().strip())
      {"margin": 1.0}
    """
    if path.exists():
        append_lines(path, [])


def _repair(file: IO[bytes]) -> None:
    end = file.seek(0, 2)
    file.seek(max(end - 1, 0))
    if file.read(1) in (b"", b"\n"):
        return
    file.seek(0)
    last = file.read().split(b"\n")[-1]
    if parse_record(last) is None:
        file.truncate(end - len(last))
    else:
        file.write(b"\n")  # only its end was cut off


def read_lines(
    path: Path, *, keys: Iterable[str] = (), numeric: Iterable[str] = ()
) -> list[dict[str, Any]]:
    """Reads the records of a JSON lines file; a missing file has none.

    Args:
      path: of the file.
      keys: what each record has.
      numeric: keys whose values are numbers.

    Returns:
      The records in order. Lines that are none are left out, with a warning that names file and
      line; a last line cut short by a kill without one.

    Example:
      >>> from pathlib import Path
      >>> from contrastive_jax.train.json_lines import append_line, read_lines
      >>> append_line(Path("trials.jsonl"), {"margin": 1.0})
      >>> read_lines(Path("trials.jsonl"), keys=["margin"])
      [{'margin': 1.0}]
    """
    if not path.exists():
        return []
    return [
        record for _, record in parse_lines(path, keys=keys, numeric=numeric) if record is not None
    ]


def parse_lines(
    path: Path, *, keys: Iterable[str] = (), numeric: Iterable[str] = ()
) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """Yields the lines of a file with their records, without a last line that is cut short.

    Args:
      path: of the file.
      keys: what each record has.
      numeric: keys whose values are numbers.

    Yields:
      The line and its record; None in place of the record where the line is none, with a warning
      that names file and line.

    Example:
      >>> from pathlib import Path
      >>> from contrastive_jax.train.json_lines import append_line, parse_lines
      >>> append_line(Path("trials.jsonl"), {"margin": 1.0})
      >>> [*parse_lines(Path("trials.jsonl"))]
      [(b'{"margin": 1.0}', {'margin': 1.0})]
    """
    *lines, last = path.read_bytes().split(b"\n")
    if parse_record(last) is not None:
        lines.append(last)  # only its end was cut off
    for number, line in enumerate(lines, 1):
        record = parse_record(line, keys, numeric)
        if record is None:
            what = "is blank" if not line.strip() else "is not a record that can be read"
            warnings.warn(
                f"{path}, line {number} {what}: it is left out, and stays in the file",
                stacklevel=4,
            )
        yield line, record


def parse_record(
    line: bytes, keys: Iterable[str] = (), numeric: Iterable[str] = ()
) -> dict[str, Any] | None:
    """Parses a line that is one JSON object; None where it is not, or lacks what it should have.

    Args:
      line: to parse.
      keys: what the record has.
      numeric: keys whose values are numbers.

    Example:
      >>> from contrastive_jax.train.json_lines import parse_record
      >>> parse_record(b'{"margin": 1.0}', keys=["margin"])
      {'margin': 1.0}
      >>> print(parse_record(b'{"mar'))
      None
    """
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not {*keys, *numeric} <= record.keys():
        return None
    if not all(isinstance(record[key], int | float) for key in numeric):
        return None
    return record

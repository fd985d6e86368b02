"""The metrics of a run as they come: a file of JSON lines, and TensorBoard events."""

import contextlib
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from contrastive_jax._extras import needs
from contrastive_jax.train._files import errors_named, replace_file
from contrastive_jax.train.json_lines import append_lines, parse_lines, read_lines

METRICS = "metrics.jsonl"


@contextlib.contextmanager
def open_events(folder: Path, step: int) -> Iterator[Any]:
    """Opens a file of TensorBoard events for what comes after `step` steps.

    TensorBoard drops events of later steps that were written before. Events are written in the
    calling thread: a thread of their own would lose some in a kill, and wait for ever on a full
    disk.

    Args:
      folder: of the run.
      step: steps already taken.

    Yields:
      The writer, for `write_metrics`.

    Example:
      >>> from pathlib import Path
      >>> from contrastive_jax.train.metrics import open_events, read_metrics, write_metrics
      >>> with open_events(Path(), step=0) as events:
      ...     write_metrics(Path(), events, [{"step": 1, "loss": 0.5}])
      >>> read_metrics(Path())
      [{'step': 1, 'loss': 0.5}]
    """
    with needs("train", "writing TensorBoard events"):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

    events = folder / "tensorboard"
    with errors_named(events):
        events.mkdir(exist_ok=True)
        writer = EventsWriter(str(events / "events"), f".{step}")
        start = SessionLog(status=SessionLog.START)
        writer.write_event(Event(wall_time=time.time(), step=step + 1, session_log=start))
        writer.flush()
    try:
        yield writer
    finally:
        # `write_metrics` has flushed: only what it could not write is left.
        with contextlib.suppress(OSError):
            writer.close()


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """Reads the records of `metrics.jsonl`, in order, and warns of lines that are not records.

    A last line cut short by a kill is left out without one.

    Example:
      >>> from pathlib import Path
      >>> from contrastive_jax.train.json_lines import append_line
      >>> from contrastive_jax.train.metrics import read_metrics
      >>> append_line(Path("metrics.jsonl"), {"step": 1, "loss": 0.5})
      >>> read_metrics(Path())
      [{'step': 1, 'loss': 0.5}]
    """
    return read_lines(folder / METRICS, numeric=("step",))


def truncate_metrics(folder: Path, step: int) -> None:
    """Drops the records after `step`, which a resumed run writes again, and a torn last line.

    Other lines that can not be read stay where they are, with a warning.

    Example:
      >>> from pathlib import Path
      >>> from contrastive_jax.train.json_lines import append_line
      >>> from contrastive_jax.train.metrics import read_metrics, truncate_metrics
      >>> append_line(Path("metrics.jsonl"), {"step": 1, "loss": 0.5})
      >>> append_line(Path("metrics.jsonl"), {"step": 2, "loss": 0.4})
      >>> truncate_metrics(Path(), step=1)
      >>> read_metrics(Path())
      [{'step': 1, 'loss': 0.5}]
    """
    path = folder / METRICS
    if not path.exists():
        return
    lines = [line for line, record in parse_lines(path, numeric=("step",)) if _until(record, step)]
    whole = b"".join(line + b"\n" for line in lines)
    if whole != path.read_bytes():
        replace_file(path, whole)


def _until(record: Mapping[str, Any] | None, step: int) -> bool:
    return record is None or record["step"] <= step


def write_metrics(folder: Path, events: Any, records: Iterable[Mapping[str, float]]) -> None:
    """Appends records to `metrics.jsonl` and to the TensorBoard events; both are flushed.

    Args:
      folder: of the run.
      events: writer from `open_events`, or None to write no events.
      records: each with its `step` and any scalars.

    Raises:
      OSError: if they can not be written, as on a full disk.

    Example:
      >>> from pathlib import Path
      >>> from contrastive_jax.train.metrics import open_events, read_metrics, write_metrics
      >>> with open_events(Path(), step=0) as events:
      ...     write_metrics(Path(), events, [{"step": 1, "loss": 0.5}])
      >>> read_metrics(Path())
      [{'step': 1, 'loss': 0.5}]
    """
    # A mean over no pairs is NaN, which JSON does not have.
    finite = [
        {key: value for key, value in record.items() if math.isfinite(value)} for record in records
    ]
    append_lines(folder / METRICS, finite)
    if events is None:
        return
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.summary import scalar

    with errors_named(folder / "tensorboard"):
        for record in finite:
            now, step = time.time(), int(record["step"])
            for key, value in record.items():
                if key != "step":
                    events.write_event(Event(wall_time=now, step=step, summary=scalar(key, value)))
        events.flush()

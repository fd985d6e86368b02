"""The folder of a run: its configuration, and its metrics as they come.

runs/NAME/config.json      every option of the run
          metrics.jsonl    a line for each training step and each validation
          tensorboard/     the same as events
          checkpoints/     the last few states and the best
          results.json     figures on test, and results.md as a table
          embeddings.npz   test embeddings and classes
          figures/         PNG
"""

import itertools
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter


def create_run(runs: Path, name: str | None, default_name: str, config: Mapping[str, Any]) -> Path:
    """Creates the folder of a new run and writes its configuration.

    Args:
      runs: the folder of all runs.
      name: of this one. None takes `default_name-1`, or the next number that is free.
      default_name: what a nameless run is called.
      config: every option, JSON types.

    Returns:
      The folder.

    Raises:
      FileExistsError: if the named folder exists; nothing is touched.
    """
    runs.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        folder = runs / (name or f"{default_name}-{number}")
        try:
            folder.mkdir()
            break
        except FileExistsError:
            if name:
                raise FileExistsError(
                    f"{folder} exists; --resume goes on with it, --overwrite replaces it, another "
                    "--name leaves it alone"
                ) from None
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return folder


def check_resumable(folder: Path, config: Mapping[str, Any], free: Iterable[str]) -> None:
    """Checks that a run can be resumed with these options.

    Args:
      folder: of the run.
      config: every option now asked for.
      free: names of options that may differ, as they do not change the numbers.

    Raises:
      FileNotFoundError: if there is no such run.
      ValueError: if an option differs, naming each with both values.
    """
    path = folder / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"no run to resume: {path} does not exist")
    before = json.loads(path.read_text())
    now = json.loads(json.dumps(config))
    differing = [
        f"{key} was {before.get(key)!r} and is now {now.get(key)!r}"
        for key in sorted({*before, *now} - {*free})
        if before.get(key) != now.get(key)
    ]
    if differing:
        raise ValueError(f"{folder} was started with other options: {'; '.join(differing)}")


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The records of `metrics.jsonl`, in order; a last line cut short by a kill is left out."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def truncate_metrics(folder: Path, step: int) -> None:
    """Drops the records after `step`, which a resumed run writes again."""
    kept = [record for record in read_metrics(folder) if record["step"] <= step]
    path = folder / "metrics.jsonl"
    whole = path.with_suffix(".tmp")
    whole.write_text("".join(json.dumps(record) + "\n" for record in kept))
    whole.replace(path)


def write_metrics(
    folder: Path, events: SummaryWriter, records: Iterable[Mapping[str, float]]
) -> None:
    """Appends records to `metrics.jsonl` and to the TensorBoard events.

    Args:
      folder: of the run.
      events: writer to `folder / "tensorboard"`.
      records: each with its `step` and any scalars.
    """
    with (folder / "metrics.jsonl").open("a") as file:
        for record in records:
            # A mean over no pairs is NaN, which JSON does not have.
            finite = {key: value for key, value in record.items() if math.isfinite(value)}
            file.write(json.dumps(finite) + "\n")
            for key, value in finite.items():
                if key != "step":
                    events.add_scalar(key, value, record["step"])


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Adds a record to a JSON lines file, whose last line a kill may have cut short."""
    whole = not path.exists() or path.read_bytes()[-1:] in (b"", b"\n")
    with path.open("a") as file:
        file.write(("" if whole else "\n") + json.dumps(record) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The complete records of a JSON lines file, none where there is no file."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records

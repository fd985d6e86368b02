"""The folder of a run: its name, its configuration, and its lock.

runs/NAME/config.json      every option of the run
          run.lock         held by the process that works on it
          metrics.jsonl    a line for each training step and each validation
          tensorboard/     the same as events
          checkpoints/     the last few states and the best
          results.json     figures on test, and results.md as a table
          embeddings.npz   test embeddings and classes
          figures/         PNG
"""

import contextlib
import errno
import itertools
import json
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from contrastive_jax import locks
from contrastive_jax.train._files import replace_file
from contrastive_jax.train.json_lines import parse_record

CONFIG = "config.json"
LOCK = "run.lock"
LONGEST_NAME = 100


def check_name(name: str) -> None:
    """Checks that a name is that of one folder, and is safe to join to another.

    Raises:
      ValueError: if it is empty, `.`, `..`, longer than 100 characters, or has others than letters,
        digits, `-`, `_` and `.`.

    Example:
      >>> from contrastive_jax.train.folder import check_name
      >>> check_name("my-run")
    """
    allowed = re.fullmatch(f"[A-Za-z0-9._-]{{1,{LONGEST_NAME}}}", name)
    if not allowed or name in (".", ".."):
        raise ValueError(
            f"--name must be the name of one folder, got {name!r}: 1 to {LONGEST_NAME} letters, "
            "digits, '-', '_' and '.', and neither '.' nor '..'"
        )


def name_after(path: Path) -> str:
    """Returns the name of a run after a file or folder of data, as `check_name` allows it.

    Args:
      path: of the data.

    Example:
      >>> from pathlib import Path
      >>> from contrastive_jax.train.folder import name_after
      >>> name_after(Path("my photos (2024).csv"))
      'my-photos-2024'
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.resolve().stem).strip("-.")
    return name[:60] or "data"


@contextlib.contextmanager
def open_run(
    runs: Path,
    name: str | None,
    default_name: str,
    config: Mapping[str, Any],
    *,
    resume: bool = False,
    overwrite: bool = False,
    free: Iterable[str] = (),
    shared: bool = False,
) -> Iterator[Path]:
    """Creates a run or opens one that there is, for this process alone.

    A run that is resumed records the options anew.

    Args:
      runs: the folder of all runs.
      name: of this one. None takes `default_name-1`, or the next number that is free.
      default_name: what a nameless run is called.
      config: every option, JSON types.
      resume: whether to go on with the run of this name.
      overwrite: whether to replace the run of this name.
      free: names of options that may differ when a run is resumed.
      shared: whether other processes that say the same may work on the run at the same time.

    Yields:
      The folder.

    Raises:
      BlockingIOError: if another process works on the run.
      FileExistsError: if the named folder exists and is not to be replaced, or holds no run.
      FileNotFoundError: if there is no such run to resume.
      ValueError: if the name is not that of one folder, or options differ from those the run was
        begun with.

    Example:
      >>> from pathlib import Path
      >>> from contrastive_jax.train.folder import open_run
      >>> with open_run(Path("runs"), "my-run", "digits", {"margin": 1.0}) as folder:
      ...     print(folder.as_posix())
      runs/my-run
    """
    _check_names(runs, name, resume=resume, overwrite=overwrite)
    if resume:
        folder = runs / str(name)
        check_resumable(folder, config, free)
    else:
        if overwrite:
            remove_run(runs / str(name))
        folder = create_run(runs, name, default_name, config)
    with locks.locked(folder / LOCK, str(folder), shared=shared):
        if resume:
            write_config(folder, config)
        yield folder


def check_run(
    runs: Path, name: str | None, *, resume: bool = False, overwrite: bool = False
) -> None:
    """Checks that a run of this name can be made, replaced or resumed, as far as names tell.

    Args:
      runs: as in `open_run`, and so the others.
      name: of this run.
      resume: whether to go on with it.
      overwrite: whether to replace it.

    Raises:
      FileExistsError: if the named folder exists and is neither to be resumed nor replaced.
      ValueError: if `runs` or the name is not that of a folder, or arguments exclude each other.

    Example:
      >>> from pathlib import Path
      >>> from contrastive_jax.train.folder import check_run
      >>> check_run(Path("runs"), "none-of-this-name")
    """
    _check_names(runs, name, resume=resume, overwrite=overwrite)
    if name is not None and not (resume or overwrite):
        check_new(runs / name)


def _check_names(runs: Path, name: str | None, *, resume: bool, overwrite: bool) -> None:
    if resume and overwrite:
        raise ValueError("--resume and --overwrite exclude each other")
    if (resume or overwrite) and name is None:
        raise ValueError(f"--{'resume' if resume else 'overwrite'} needs the --name of the run")
    if runs.exists() and not runs.is_dir():
        raise ValueError(f"--runs {runs} is not a folder: name one, which is created if need be")
    if name is not None:
        check_name(name)


def check_new(folder: Path) -> None:
    """Checks that there is no folder of this name, before a new run is made there.

    Raises:
      FileExistsError: if there is one.

    Example:
      >>> from pathlib import Path
      >>> from contrastive_jax.train.folder import check_new
      >>> check_new(Path("runs/none-of-this-name"))
    """
    if (folder / CONFIG).exists():
        raise FileExistsError(
            f"{folder} exists; --resume goes on with it, --overwrite replaces it, another --name "
            "leaves it alone"
        )
    if folder.exists():
        raise FileExistsError(
            f"{folder} exists and holds no run (no {CONFIG}); choose another --name, or remove it "
            "yourself"
        )


def create_run(runs: Path, name: str | None, default_name: str, config: Mapping[str, Any]) -> Path:
    """Creates the folder of a new run and writes its configuration.

    The folder is made under another name and renamed, so that it never lacks its configuration.

    Args:
      runs: the folder of all runs.
      name: of this one. None takes `default_name-1`, or the next number that is free.
      default_name: what a nameless run is called; other characters than those of a name become `-`.
      config: every option, JSON types.

    Returns:
      The folder.

    Raises:
      FileExistsError: if the named folder exists; nothing is touched.
      ValueError: if the name is not that of one folder.

    Example:
      >>> from pathlib import Path
      >>> from contrastive_jax.train.folder import create_run
      >>> create_run(Path("runs"), None, "digits", {"margin": 1.0}).as_posix()
      'runs/digits-1'
      >>> create_run(Path("runs"), None, "digits", {"margin": 2.0}).as_posix()
      'runs/digits-2'
    """
    if name is not None:
        check_name(name)
    default_name = re.sub("[^A-Za-z0-9._-]", "-", default_name)[: LONGEST_NAME - 10]
    runs.mkdir(parents=True, exist_ok=True)
    fresh = runs / f".{name or default_name}.new-{uuid.uuid4().hex[:8]}"
    fresh.mkdir()
    try:
        write_config(fresh, config)
        (fresh / LOCK).touch()
        for number in itertools.count(1):
            folder = runs / (name or f"{default_name}-{number}")
            if _renamed(fresh, folder):
                return folder
            if name:
                check_new(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    raise AssertionError  # the count has no end


def _renamed(fresh: Path, folder: Path) -> bool:
    """Renames a folder, unless the name is taken; an empty folder of that name gives way."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        return False
    try:
        fresh.rename(folder)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise
        return False
    return True


def remove_run(folder: Path) -> None:
    """Removes a run, if there is one. It is renamed first, so that it goes as a whole.

    Raises:
      BlockingIOError: if a process works on it.
      FileExistsError: if the folder holds something else than a run; nothing is touched.

    Example:
      >>> from pathlib import Path
      >>> from contrastive_jax.train.folder import create_run, remove_run
      >>> folder = create_run(Path("runs"), "my-run", "digits", {"margin": 1.0})
      >>> remove_run(folder)
      >>> folder.exists()
      False
    """
    if folder.is_symlink():
        raise FileExistsError(
            f"{folder} is a link, and --overwrite removes runs alone; choose another --name, or "
            "remove it yourself"
        )
    if folder.is_dir() and any(folder.iterdir()):
        if not all((folder / name).is_file() for name in (CONFIG, LOCK)):
            raise FileExistsError(
                f"{folder} holds no run (one has a {CONFIG} and a {LOCK}), and --overwrite removes "
                "runs alone; choose another --name, or remove it yourself"
            )
        with locks.locked(folder / LOCK, str(folder)):
            folder.rename(folder.with_name(f".{folder.name}.removed-{uuid.uuid4().hex[:8]}"))
    # Also what a process left that was killed while it removed a run of this name.
    for removed in folder.parent.glob(f".{folder.name}.removed-*"):
        shutil.rmtree(removed)


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Writes the configuration of a run, in place of the one before.

    Example:
      >>> from pathlib import Path
      >>> from contrastive_jax.train.folder import read_config, write_config
      >>> write_config(Path(), {"margin": 1.0})
      >>> read_config(Path())
      {'margin': 1.0}
    """
    replace_file(folder / CONFIG, (json.dumps(config, indent=2) + "\n").encode())


def read_config(folder: Path) -> dict[str, Any]:
    """Reads the configuration of a run.

    Raises:
      FileNotFoundError: if there is none.
      ValueError: if it is damaged.

    Example:
      >>> from pathlib import Path
      >>> from contrastive_jax.train.folder import read_config, write_config
      >>> write_config(Path(), {"margin": 1.0})
      >>> read_config(Path())
      {'margin': 1.0}
    """
    path = folder / CONFIG
    if not path.exists():
        raise FileNotFoundError(f"no run to resume: {path} does not exist")
    config = parse_record(path.read_bytes())
    if config is None:
        raise ValueError(
            f"{path} is damaged: it is not one JSON object; write the options of the run there "
            "again, or replace the run with --overwrite"
        )
    return config


def check_resumable(folder: Path, config: Mapping[str, Any], free: Iterable[str]) -> None:
    """Checks that a run can be resumed with these options.

    Args:
      folder: of the run.
      config: every option now asked for.
      free: names of options that may differ, as they do not change the numbers.

    Raises:
      FileNotFoundError: if there is no such run.
      ValueError: if its configuration is damaged, or an option differs, naming each with both
        values.

    Example:
      >>> from pathlib import Path
      >>> from contrastive_jax.train.folder import check_resumable, write_config
      >>> write_config(Path(), {"margin": 1.0, "steps": 100})
      >>> check_resumable(Path(), {"margin": 1.0, "steps": 200}, free=["steps"])
    """
    before = read_config(folder)
    now = json.loads(json.dumps(config))
    if before.get("data_digest") not in (None, now.get("data_digest")):
        raise ValueError(
            f"the data of {folder} is not what it was started on: examples that were trained on "
            "may be in test now; start a new run, or bring the data back"
        )
    differing = [
        f"{key} was {before.get(key)!r} and is now {now.get(key)!r}"
        for key in sorted({*before, *now} - {*free, "data_digest"})
        if before.get(key) != now.get(key)
    ]
    if differing:
        raise ValueError(f"{folder} was started with other options: {'; '.join(differing)}")

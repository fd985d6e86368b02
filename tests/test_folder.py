"""Run folders: never overwritten, resumed only with the same options, whole after a kill."""

import json
import subprocess
import sys

import pytest

from contrastive_jax import locks
from contrastive_jax.train import folder as runs
from contrastive_jax.train import json_lines, metrics


def test_names_are_given_or_the_next_that_is_free(tmp_path):
    first = runs.create_run(tmp_path / "runs", None, "digits-mlp", {"margin": 1.0})
    second = runs.create_run(tmp_path / "runs", None, "digits-mlp", {"margin": 2.0})
    assert [first.name, second.name] == ["digits-mlp-1", "digits-mlp-2"]
    assert json.loads((first / "config.json").read_text()) == {"margin": 1.0}
    named = runs.create_run(tmp_path / "runs", "mine", "digits-mlp", {"margin": 3.0})
    assert named.name == "mine"
    with pytest.raises(FileExistsError, match=r"mine exists; --resume .* --overwrite"):
        runs.create_run(tmp_path / "runs", "mine", "digits-mlp", {"margin": 4.0})
    assert json.loads((named / "config.json").read_text()) == {"margin": 3.0}


def test_a_run_resumes_with_its_own_options_only(tmp_path):
    folder = runs.create_run(tmp_path, "mine", "", {"margin": 1.0, "keep": 2, "seed": 0})
    runs.check_resumable(folder, {"margin": 1.0, "keep": 9, "seed": 0}, free={"keep"})
    with pytest.raises(ValueError, match=r"margin was 1\.0 and is now 2\.0; new was None"):
        runs.check_resumable(folder, {"margin": 2.0, "keep": 2, "seed": 0, "new": 1}, free=set())
    with pytest.raises(FileNotFoundError, match="no run to resume"):
        runs.check_resumable(tmp_path / "other", {}, free=set())


def test_metrics_are_read_back_and_truncated(tmp_path):
    records = [{"step": k, "loss": 1 / k} for k in range(1, 7)] + [{"step": 6, "map": 0.5}]
    with metrics.open_events(tmp_path, 0) as events:
        metrics.write_metrics(tmp_path, events, records[:3])
        metrics.write_metrics(tmp_path, events, records[3:])
    assert metrics.read_metrics(tmp_path) == records
    assert list((tmp_path / "tensorboard").iterdir())
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')
    assert metrics.read_metrics(tmp_path) == records
    metrics.truncate_metrics(tmp_path, 4)
    assert metrics.read_metrics(tmp_path) == records[:4]


def test_a_mean_over_nothing_is_left_out(tmp_path):
    with metrics.open_events(tmp_path, 0) as events:
        metrics.write_metrics(tmp_path, events, [{"step": 1, "loss": 2.0, "similar": float("nan")}])
    assert metrics.read_metrics(tmp_path) == [{"step": 1, "loss": 2.0}]


def test_a_folder_without_metrics_has_none(tmp_path):
    assert metrics.read_metrics(tmp_path) == []
    metrics.truncate_metrics(tmp_path, 3)
    assert metrics.read_metrics(tmp_path) == []


# Names, and what is removed.

WRONG_NAMES = ["", ".", "..", "a/b", "/tmp/x", "a b", "a\n", "~", "x" * 101, "\u00e9"]


@pytest.mark.parametrize("name", WRONG_NAMES)
def test_a_name_is_that_of_one_folder(tmp_path, name):
    folder = tmp_path / "runs"
    (folder / "other").mkdir(parents=True)
    for options in ({}, {"resume": True}, {"overwrite": True}):
        with (
            pytest.raises(ValueError, match="--name must be the name of one folder, got"),
            runs.open_run(folder, name, "x", {}, **options),
        ):
            pass
    assert [path.name for path in folder.iterdir()] == ["other"]


@pytest.mark.parametrize("name", ["a", "...", "-", "x" * 100, "digits-convnet_2.b"])
def test_names_of_one_folder_are_taken(tmp_path, name):
    with runs.open_run(tmp_path, name, "x", {"seed": 1}) as folder:
        assert folder == tmp_path / name
    with runs.open_run(tmp_path, name, "x", {"seed": 2}, overwrite=True) as folder:
        assert runs.read_config(folder) == {"seed": 2}
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_default_name_is_made_one_of_one_folder(tmp_path):
    folder = runs.create_run(tmp_path, None, "../a/b:1.0.0+x" + "y" * 200, {})
    assert folder.parent == tmp_path
    assert folder.name.startswith("..-a-b-1.0.0-xy")
    runs.check_name(folder.name)


def _something_else(folder):
    """Folders that hold no run, though some look a little like one."""
    yield folder / "plain", ["notes.txt"]
    yield folder / "model", ["config.json", "weights.bin"]
    yield folder / "locked", ["run.lock"]


def test_only_a_run_is_ever_removed(tmp_path):
    for folder, names in _something_else(tmp_path):
        folder.mkdir()
        for name in names:
            (folder / name).write_text("{}")
        with (
            pytest.raises(
                FileExistsError, match=f"{folder.name} holds no run .* remove it yourself"
            ),
            runs.open_run(tmp_path, folder.name, "x", {}, overwrite=True),
        ):
            pass
        assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    with pytest.raises(FileExistsError, match=r"plain exists and holds no run \(no config.json\)"):
        runs.create_run(tmp_path, "plain", "x", {})
    run = runs.create_run(tmp_path, "run", "x", {"seed": 1})
    (tmp_path / "link").symlink_to(run)
    with pytest.raises(FileExistsError, match="link is a link"):
        runs.remove_run(tmp_path / "link")
    assert runs.read_config(run) == {"seed": 1}
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="file exists and holds no run"):
        runs.create_run(tmp_path, "file", "x", {})
    assert (tmp_path / "file").read_text() == "mine"


def test_a_run_is_renamed_before_it_is_removed(tmp_path, monkeypatch):
    run = runs.create_run(tmp_path, "run", "x", {"seed": 1})
    (run / "metrics.jsonl").write_text("{}")
    monkeypatch.setattr(runs.shutil, "rmtree", _killed)
    with pytest.raises(KeyboardInterrupt):
        runs.remove_run(run)
    monkeypatch.undo()
    assert not run.exists()
    (rest,) = tmp_path.iterdir()
    assert rest.name.startswith(".run.removed-")
    # The next takes the name, and removes what is left.
    with runs.open_run(tmp_path, "run", "x", {"seed": 2}, overwrite=True):
        assert [path.name for path in tmp_path.iterdir()] == ["run"]


def _killed(*_, **__):
    raise KeyboardInterrupt


def test_a_kill_while_a_run_is_created_leaves_the_name_free(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "write_config", _killed)
    monkeypatch.setattr(runs.shutil, "rmtree", lambda *_, **__: None)
    with pytest.raises(KeyboardInterrupt):
        runs.create_run(tmp_path, "run", "x", {})
    monkeypatch.undo()
    assert not (tmp_path / "run").exists()
    # As is a folder that was made and never filled.
    (tmp_path / "run").mkdir()
    assert runs.read_config(runs.create_run(tmp_path, "run", "x", {"seed": 1})) == {"seed": 1}


@pytest.mark.parametrize("text", ["", '{"seed": ', "[]", "null", "\xff"])
def test_a_damaged_configuration_is_named(tmp_path, text):
    run = runs.create_run(tmp_path, "run", "x", {"seed": 1})
    (run / "config.json").write_bytes(text.encode("latin-1"))
    with (
        pytest.raises(ValueError, match=r"run/config.json is damaged: .* --overwrite"),
        runs.open_run(tmp_path, "run", "x", {"seed": 1}, resume=True),
    ):
        pass
    with runs.open_run(tmp_path, "run", "x", {"seed": 1}, overwrite=True):
        pass


# Locks.


@pytest.mark.parametrize("options", [{"resume": True}, {"overwrite": True}])
def test_a_run_is_of_one_process_at_a_time(tmp_path, options):
    with (
        runs.open_run(tmp_path, "run", "x", {}) as run,
        pytest.raises(BlockingIOError, match=r"run is in use by process \d+ on .* wait until"),
        runs.open_run(tmp_path, "run", "x", {}, **options),
    ):
        pass
    assert (run / "config.json").exists()
    with (
        pytest.raises(RuntimeError, match="a bug"),
        runs.open_run(tmp_path, "run", "x", {}, **options),
    ):
        raise RuntimeError("a bug")
    with runs.open_run(tmp_path, "run", "x", {}, **options):
        pass


def test_processes_that_share_a_run_keep_out_the_others(tmp_path):
    with runs.open_run(tmp_path, "run", "x", {}, shared=True):
        with runs.open_run(tmp_path, "run", "x", {}, shared=True, resume=True):
            pass
        for options in ({"resume": True}, {"overwrite": True, "shared": True}):
            with (
                pytest.raises(BlockingIOError, match="run is in use by another process"),
                runs.open_run(tmp_path, "run", "x", {}, **options),
            ):
                pass


def test_a_killed_process_holds_no_lock(tmp_path):
    run = runs.create_run(tmp_path, "run", "x", {})
    holder = (
        f"import fcntl; f = open({str(run / 'run.lock')!r}, 'a'); fcntl.flock(f, fcntl.LOCK_EX)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", f"{holder}; print('held', flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        process.stdout.readline()
        with (
            pytest.raises(BlockingIOError, match="in use"),
            locks.locked(run / "run.lock", "the run"),
        ):
            pass
        process.kill()
    with locks.locked(run / "run.lock", "the run"):
        pass


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(locks.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", unsupported)
    with (
        pytest.warns(UserWarning, match=r"without locks \(No locks"),
        locks.locked(tmp_path / "x", "x"),
    ):
        pass


# JSON lines.

BAD_LINES = [b"", b"   ", b'{"step": 2, "lo', b"\xff\xfe", b"[1]", b'{"loss": 1}', b'{"step": "x"}']


@pytest.mark.parametrize("bad", BAD_LINES)
def test_one_bad_line_costs_no_other_and_stays(tmp_path, bad):
    path = tmp_path / "metrics.jsonl"
    good = [json.dumps({"step": step}).encode() for step in (1, 2, 3, 4)]
    path.write_bytes(b"\n".join([good[0], bad, *good[1:], b'{"step": 4, "validati']))
    with pytest.warns(UserWarning, match=r"metrics.jsonl, line 2 is .* stays in the file"):
        assert metrics.read_metrics(tmp_path) == [{"step": step} for step in (1, 2, 3, 4)]
    with pytest.warns(UserWarning, match="line 2"):
        metrics.truncate_metrics(tmp_path, 3)
    assert path.read_bytes() == b"\n".join([good[0], bad, *good[1:3], b""])
    with metrics.open_events(tmp_path, 3) as events:
        metrics.write_metrics(tmp_path, events, [{"step": 4}])
    assert path.read_bytes() == b"\n".join([good[0], bad, *good[1:], b""])


@pytest.mark.parametrize("last", [b'{"step": 3, "lo', b'{"step": 3}', b"\xff", b""])
def test_only_a_torn_last_line_is_repaired(tmp_path, last):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"step": 1}\nspoilt\n' + last)
    json_lines.append_line(path, {"step": 4})
    whole = last + b"\n" if last == b'{"step": 3}' else b""
    assert path.read_bytes() == b'{"step": 1}\nspoilt\n' + whole + b'{"step": 4}\n'
    with pytest.warns(UserWarning, match="line 2 is not a record"):
        assert [line["step"] for line in json_lines.read_lines(path)] == (
            [1, 3, 4] if whole else [1, 4]
        )


def test_lines_lack_nothing_that_is_asked_of_them(tmp_path):
    path = tmp_path / "lines.jsonl"
    for record in ({"a": 1, "b": None}, {"a": 2}):
        json_lines.append_line(path, record)
    with pytest.warns(UserWarning, match="line 2"):
        assert json_lines.read_lines(path, keys=("a", "b")) == [{"a": 1, "b": None}]
    assert len(json_lines.read_lines(path)) == 2
    assert json_lines.read_lines(tmp_path / "none.jsonl") == []


def test_events_are_in_the_file_when_metrics_are(tmp_path):
    with metrics.open_events(tmp_path, 0) as events:
        records = [{"step": k, "loss": 1.0} for k in range(1, 101)]
        metrics.write_metrics(tmp_path, events, records)
        (file,) = (tmp_path / "tensorboard").iterdir()
        assert file.read_bytes().count(b"loss") == 100
    with metrics.open_events(tmp_path, 50) as events:
        assert len([*(tmp_path / "tensorboard").iterdir()]) == 2


def test_what_can_not_be_written_is_named(tmp_path, no_larger_files):
    records = [{"step": k, "loss": 1.0} for k in range(1, 101)]
    for file, size in (("metrics.jsonl", 1000), ("tensorboard", 4000)):
        with (
            metrics.open_events(tmp_path, 0) as events,
            no_larger_files(size),
            pytest.raises(OSError, match="File too large") as error,
        ):
            metrics.write_metrics(tmp_path, events, records)
        assert error.value.filename == str(tmp_path / file)
    with no_larger_files(10), pytest.raises(OSError, match="File too large") as error:
        runs.create_run(tmp_path, "run", "x", {"seed": 1})
    assert error.value.filename.endswith("config.json.new")
    assert not (tmp_path / "run").exists()

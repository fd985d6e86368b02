"""Errors that a user can mend are one line; bugs keep their traceback."""

import errno
import re

import jax
import pytest

from contrastive_jax import cli
from experiments import command, compare_losses, drlim, margin_ablation, search, train


def _noted(error):
    error.add_note("the last good\ncheckpoint is of step 20")
    return error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("--steps must be above 0,\n got -1"), "--steps must be above 0, got -1"),
        (FileExistsError("runs/x exists; --resume"), "runs/x exists; --resume"),
        (BlockingIOError("x is in use"), "x is in use"),
        (MemoryError(), "MemoryError"),
        (
            _noted(FloatingPointError("step 35: loss nan")),
            "step 35: loss nan; the last good checkpoint is of step 20",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "x/y"), "x/y: Permission denied; make"),
        (OSError(errno.EROFS, "Read-only file system", "x"), "x: Read-only file system; it is on"),
        (OSError(errno.ENOSPC, "No space left on device", "x"), "x: No space left on device; free"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "x"), "x: Disk quota exceeded; free"),
        (
            NotADirectoryError(errno.ENOTDIR, "Not a directory", "x"),
            "x: Not a directory; a file is",
        ),
        (OSError(errno.EXDEV, "Invalid link", "x"), "x: Invalid link"),
        (OSError(errno.ENOSPC, "No space left on device"), "a file: No space left on device; free"),
    ],
)
def test_an_error_that_can_be_mended_is_one_line(error, line):
    def fails(config):
        assert config == "options"
        raise error

    with pytest.raises(SystemExit) as ended:
        cli.run(fails, lambda: "options")
    # A text in place of a code goes to stderr, and the code is 1.
    assert ended.value.code.startswith(f"error: {line}")
    assert "\n" not in ended.value.code


def test_what_jax_says_of_tracebacks_and_memory_is_for_users():
    def line_of(fails):
        with pytest.raises(SystemExit) as ended:
            cli.run(fails, train.Config)
        return ended.value.code

    def traced(_):
        def wrong(x):
            raise ValueError("leave --views out")

        jax.eval_shape(wrong, 1.0)

    def too_large(_):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 819200000000 bytes.")

    assert line_of(traced) == "error: leave --views out"
    assert "819200000000 bytes. Take a smaller --batch_size" in line_of(too_large)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--steps", "abc"], "--steps takes a whole number, got 'abc'; --help"),
        (["--width", "1e3"], "--width takes a whole number, got '1e3'; --help"),
        (["--margin", "a"], "--margin takes a number, got 'a'; --help"),
        (
            ["--encoder", "foo"],
            "invalid choice 'foo' for argument '--encoder'. Expected one of convnet, drlim, "
            "linear, mlp, residual, resnet18; --help explains",
        ),
        (["--seed"], "Missing value for argument '--seed'. Expected 1 values; --help explains"),
        (["--loss_options", "a"], "--loss_options: takes NAME=VALUE, as margin=0.3"),
    ],
)
def test_an_option_of_another_type_is_one_line(arguments, line, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.run(train.main, lambda: cli.parse(train.Config, "train", "Trains.", arguments))
    pattern = re.escape(f"error: {line}").replace(r"\.\*", ".*")
    assert re.match(pattern, ended.value.code)
    assert "\n" not in ended.value.code
    assert not capsys.readouterr().err


def test_help_is_shown_as_it_is(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.run(train.main, lambda: cli.parse(train.Config, "train", "Trains.", ["--help"]))
    assert not ended.value.code
    shown = capsys.readouterr().out
    assert "--validate_every" in shown
    assert "--split {classes,examples}" in shown
    assert "--image_size INT" in shown
    assert "None" not in shown


@pytest.mark.parametrize("error", [KeyError("x"), TypeError("x"), RuntimeError("x")])
def test_a_bug_keeps_its_traceback(error):
    def fails(_):
        raise error

    with pytest.raises(type(error)):
        cli.run(fails, lambda: None)


@pytest.mark.parametrize(
    "experiment", [train, margin_ablation, search, compare_losses, drlim], ids=lambda m: m.__name__
)
@pytest.mark.parametrize("name", ["..", ".", "", "a/b"])
def test_no_experiment_takes_a_name_that_is_not_of_one_folder(
    tmp_path, monkeypatch, experiment, name
):
    (tmp_path / "runs" / "other").mkdir(parents=True)
    monkeypatch.setattr(experiment, "load", None, raising=False)  # no data is read for it
    config = experiment.Config(runs=tmp_path / "runs", name=name, overwrite=bool(name))
    with pytest.raises(ValueError, match="--name must be the name of one folder, got"):
        experiment.main(config)
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["other"]


@pytest.mark.parametrize(
    ("message", "named"),
    [
        (
            "steps must be a multiple of log_every, got 3",
            "--steps must be a multiple of --log_every, got 3",
        ),
        ("memory_size must be 0, got 3 steps", "--memory must be 0, got 3 steps"),
        ("no steps: leave memory_size out", "no steps: leave --memory out"),
        ("temperature must be above 0", "temperature must be above 0"),
        ("steps/r1 has taken 4 steps", "steps/r1 has taken 4 steps"),
        ("steps.old is no run", "steps.old is no run"),
    ],
)
def test_errors_of_the_library_name_options(message, named):
    error = _noted(ValueError(message))
    with pytest.raises(ValueError, match=f"^{named}") as caught, command.naming_options(NAMES):
        raise error
    # The note and the traceback stay.
    assert caught.value is error
    assert caught.value.__notes__


NAMES = ("steps", "log_every", "memory")


def test_help_breaks_lines_only_where_they_are_full(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        cli.parse(train.Config, "experiments.train", str(train.__doc__), ["--help"])
    text = capsys.readouterr().out
    assert (
        "digits (the default), fashion_mnist, mnist, idx (IDX files of any other set), or any"
        in (" ".join(text.replace("│", " ").split()))
    )
    assert "(default: None)" not in text
    (line,) = (line for line in text.splitlines() if "Test on classes never seen" in line)
    assert len(line.strip(" │")) > 90

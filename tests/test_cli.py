"""The command line of a program outside of this repository."""

from __future__ import annotations

import dataclasses
import json
import textwrap
import typing
import warnings
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Optional

import pytest

from contrastive_jax import cli


@dataclasses.dataclass(frozen=True, slots=True)
class Config:
    """Options."""

    LIMIT: ClassVar[int] = 3
    """No option."""
    steps: int = 100
    """Training
    steps."""
    mirrored: bool | None = None
    """Mirror images."""
    folder: Optional[Path] = None  # noqa: UP045
    """Folder to read."""
    files: tuple[Path, ...] = ()
    """Files to read."""
    pair: tuple[int, float] | None = None
    """A pair of numbers."""
    mode: Literal["a", "b"] | None = None
    """A mode."""
    rate: Literal["auto"] | float | None = None
    """A rate."""
    tags: Annotated[tuple[str, ...], cli.UseAppendAction] = ()
    """A tag, once for each."""


@dataclasses.dataclass(frozen=True)
class Resumed:
    """Options of a program with runs that go on."""

    runs: Path = Path("runs")
    resume: str | None = None
    name: str | None = None
    steps: int = 100
    margin: float = 1.0
    axes: Annotated[tuple[str, ...], cli.UseAppendAction] = ()


def _parse(arguments, config=Config, doc="A program.\n\nMore."):
    return cli.parse(config, "program", doc, arguments)


def _help(config, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        _parse(["--help"], config)
    return capsys.readouterr().out


@pytest.mark.parametrize(("argument", "value"), [("--mirrored", True), ("--no_mirrored", False)])
def test_switches_have_both_forms(argument, value):
    assert _parse([argument, "--steps", "3"]) == Config(steps=3, mirrored=value)


@pytest.mark.parametrize("doc", [None, "", "\n  One line.\n"])
def test_a_module_may_have_no_docstring(doc):
    assert _parse([], doc=doc) == Config()


def test_help_has_docstrings_in_one_line_and_no_none(capsys, monkeypatch):
    text = _help(Config, capsys, monkeypatch)
    assert "Training steps." in text
    assert "--folder PATH" in text
    assert "--mode {a,b}" in text
    assert "LIMIT" not in text
    assert "A program." in text
    assert "More." not in text


def test_a_derived_class_leaves_its_base_as_it_is():
    @dataclasses.dataclass(frozen=True)
    class Longer(Resumed):
        steps: str = "all"

    assert _parse(["--steps", "some"], Longer).steps == "some"
    assert _parse(["--steps", "3"], Resumed).steps == 3


def test_a_class_of_an_interactive_session_is_read(capsys, monkeypatch):
    source = """
    import dataclasses
    @dataclasses.dataclass
    class Own:
        steps: int = 100
        '''Training steps.'''
    """
    names = {"__name__": "builtins"}
    exec(textwrap.dedent(source), names)
    assert _parse(["--steps", "3"], names["Own"]).steps == 3
    assert "--steps INT" in _help(names["Own"], capsys, monkeypatch)


@dataclasses.dataclass(frozen=True)
class Typed:
    """Options of several types."""

    steps: int | None = None
    """Steps."""
    margins: tuple[float, ...] | None = None
    """Margins."""
    pair: tuple[int, float] | None = None
    """A pair of numbers."""
    rate: Literal["auto"] | float | None = None
    """A rate."""


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--steps", "x"], r"--steps takes a whole number, got 'x'; --help explains the options"),
        (
            ["--margins", "0.5,1"],
            r"--margins takes a number or several, with spaces between, got '0\.5,1'; --help",
        ),
        (["--pair", "x", "y"], r"--pair: no type matching .* from \['x', 'y'\]; --help"),
        (["--rate", "x"], r"--rate: no type matching .* from \['x'\]; --help"),
    ],
)
def test_a_value_of_another_type_is_one_line(arguments, line):
    with pytest.raises(SystemExit, match=f"^error: {line}"):
        cli.run(print, lambda: _parse(arguments, Typed))


def test_a_run_goes_on_with_its_options_and_new_ones(tmp_path):
    before = Resumed(tmp_path, steps=7, axes=("margin=1,2", "width=3"))
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "config.json").write_text(json.dumps(cli.as_saved(before)))
    given = ["--runs", str(tmp_path), "--resume", "one", "--margin", "2", "--axes", "width=4"]
    want = dataclasses.replace(before, resume="one", margin=2.0, axes=("margin=1,2", "width=4"))
    assert _parse(given, Resumed) == want
    assert _parse([*given[:-1], "name"], Resumed).axes == ("name",)
    with pytest.raises(ValueError, match="--name two has no effect with --resume"):
        _parse([*given, "--name", "two"], Resumed)
    # Programs print the path of a run.
    assert _parse(["--runs", str(tmp_path), "--resume", f"{tmp_path}/one/"], Resumed).steps == 7
    assert (
        _parse(["--runs", str(tmp_path), "--resume", f"{tmp_path}/one/"], Resumed).resume == "one"
    )


def test_resume_is_an_option_as_others_without_runs():
    @dataclasses.dataclass(frozen=True)
    class Alone:
        resume: bool = False

    assert _parse(["--resume"], Alone) == Alone(resume=True)


def test_options_are_saved_and_read_again():
    config = Config(7, folder=Path("a"), files=(Path("b"), Path("c")), tags=("d",), mode="a")
    saved = json.loads(json.dumps(cli.as_saved(config)))
    assert cli.from_saved(Config, saved | {"another": 1}) == config


def test_nested_types_are_read_again():
    @dataclasses.dataclass(frozen=True)
    class Nested:
        named: dict[str, Path] = dataclasses.field(default_factory=dict)
        two: tuple[str, Path] = ("", Path())
        rows: tuple[tuple[str, float], ...] = ()
        some: tuple[Path, ...] | None = None

    config = Nested({"a": Path("b")}, ("c", Path("d")), (("e", 1.0),), (Path("f"),))
    assert cli.from_saved(Nested, json.loads(json.dumps(cli.as_saved(config)))) == config


def test_home_folders_are_expanded_in_tuples_too():
    config = cli.expand_home(Config(folder=Path("~/a"), files=(Path("~/b"), Path("/c"))))
    home = Path.home()
    assert (config.folder, config.files) == (home / "a", (home / "b", Path("/c")))


def test_positions_are_no_options():
    @dataclasses.dataclass(frozen=True)
    class Placed:
        source: cli.Positional[str] = ""
        out: str = ""

    with pytest.raises(
        ValueError, match=r"unknown option --sourc; close to it: --out; there are --out; --help"
    ):
        _parse(["x", "--sourc", "y"], Placed)


def test_effects_are_of_the_values_of_any_dataclass():
    effect = cli.Effect("mode", lambda config: config.steps > 9, "{steps} steps have no {option}")
    cli.check_effects(Config(mode="a"), [effect])
    with pytest.raises(ValueError, match=r"^3 steps have no mode: leave --mode out$"):
        cli.check_effects(Config(3, mode="a"), [effect])


@pytest.mark.parametrize(
    ("config", "error", "line"),
    [
        (
            Config(),
            OSError(28, "No space left", "x"),
            "x: No space left; free some space and start",
        ),
        (Resumed(), OSError(28, "No space left", "x"), r"x: .*again; --resume goes on with a run$"),
        (Config(), RuntimeError("RESOURCE_EXHAUSTED: memory."), r"RESOURCE_EXHAUSTED: memory\.$"),
        (Config(), ImportError("no tqdm"), r"no tqdm$"),
    ],
)
def test_a_remedy_is_an_option_that_the_program_has(config, error, line):
    def fails(_):
        raise error

    shown = warnings.showwarning
    with pytest.raises(SystemExit, match=f"^error: {line}") as ended:
        cli.run(fails, lambda: config)
    assert "--resume" not in str(ended.value.code) or hasattr(config, "resume")
    assert warnings.showwarning is shown


def test_help_is_added_once():
    assert _parse([]) == _parse([]) == Config()
    hints = typing.get_type_hints(Config, include_extras=True)
    assert [len(typing.get_args(hints[name])) for name in ("steps", "mode", "tags")] == [2, 2, 3]
    assert typing.get_type_hints(Config)["pair"] == tuple[int, float] | None

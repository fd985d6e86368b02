"""Options of a program, the fields of a dataclass, read from the command line.

tyro reads them. This module adds switches whose default is None, options that are given once for
each value, help without the breaks of a docstring's lines, and runs that go on with their own
options.
"""

import dataclasses
import difflib
import json
import sys
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from contrastive_jax._extras import needs

with needs("train", "contrastive_jax.cli"):
    import tyro
    from tyro.conf import Positional as Positional
    from tyro.conf import UseAppendAction as UseAppendAction
    from tyro.conf import arg as arg
    from tyro.constructors import PrimitiveConstructorSpec

from contrastive_jax.cli._help import write_help
from contrastive_jax.cli._values import values_of
from contrastive_jax.search.texts import parse_numbers
from contrastive_jax.train import folder

Config = TypeVar("Config")

NamedValues = Annotated[
    dict[str, float],
    PrimitiveConstructorSpec(
        nargs="*",
        metavar="[NAME=VALUE [NAME=VALUE ...]]",
        instance_from_str=parse_numbers,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [f"{name}={number:g}" for name, number in value.items()],
    ),
]
"""The type of an option that takes numbers by name, as hyperparameters of a loss."""


def parse(config: type[Config], program: str, doc: str | None, arguments: Any = None) -> Config:
    """Reads the options of a program from the command line.

    A field is an option, and the docstring below it its help; a class of an interactive session,
    whose source can not be read, has the help of `cli.arg(help=...)` alone. A switch with a default
    of None is given as `--name` or `--no_name`.

    Where a program has the options `resume: str | None` and `runs: Path`, the options that the run
    of this name in this folder, or of this path in it, recorded take the place of the defaults. Of
    an option that is given once for each value, in the form NAME=VALUE, names that are given anew
    take new values. Another `name` is an error.

    Args:
      config: dataclass of the options, each with a default.
      program: module that runs.
      doc: text of which the first line describes it, as the docstring of the module.
      arguments: of the command line; by default those of the process.

    Returns:
      The options.

    Raises:
      FileNotFoundError: if there is no run to resume.
      SystemExit: with `--help`, or if an option has a value of another type.
      ValueError: if an option is unknown, with those that are close to it.

    Example:
      >>> import dataclasses
      >>> from contrastive_jax import cli
      >>> @dataclasses.dataclass(frozen=True)
      ... class Config:
      ...     steps: int = 100
      ...     mirrored: bool | None = None
      >>> cli.parse(Config, "my_program", "Trains.", ["--steps", "20", "--no_mirrored"])
      Config(steps=20, mirrored=False)
    """
    write_help(config)
    arguments = expanded(config, sys.argv[1:] if arguments is None else arguments)

    def read(default: Any, *, resumed: bool = False) -> tuple[Any, list[str]]:
        # An option that may be given several times would be added to its default.
        axes = _marked(config, UseAppendAction)
        parsed, unknown = tyro.cli(
            config,
            prog=f"python -m {program}",
            description=(doc or "").strip().partition("\n")[0],
            use_underscores=True,
            args=arguments,
            return_unknown_args=True,
            default=dataclasses.replace(default, **dict.fromkeys(axes, ())),
        )
        values = {name: getattr(parsed, name) or getattr(default, name) for name in axes}
        if resumed:
            values = {name: _renewed(getattr(default, name), values[name]) for name in axes}
        return dataclasses.replace(parsed, **values), unknown

    parsed, unknown = read(config())
    fields = {field.name for field in dataclasses.fields(config)}  # type: ignore[arg-type]
    if unknown:
        positional = _marked(config, Positional)
        names = [f"--{name}" for name in values_of(parsed) if name not in positional]
        name = unknown[0].split("=")[0]
        close = difflib.get_close_matches(name, names, n=3)
        raise ValueError(
            f"unknown option {name}; "
            + (f"close to it: {', '.join(close)}; " if close else "")
            + f"there are {', '.join(names)}; --help explains them"
        )
    if {"resume", "runs"} <= fields and parsed.resume:
        # Programs print the path of a run, and not its name alone.
        path = Path(parsed.resume)
        inside = len(path.parts) > 1 and path.parent.resolve() == parsed.runs.resolve()
        name = path.name if inside else parsed.resume
        before = folder.read_config(parsed.runs / name)
        default = from_saved(config, before.get("given", before))
        # A run is never resumed and replaced at once.
        anew = {"overwrite": False} if "overwrite" in fields else {}
        parsed, _ = read(dataclasses.replace(default, **anew), resumed=True)
        if "name" in fields and parsed.name != default.name:
            raise ValueError(
                f"--name {parsed.name} has no effect with --resume, which names the run: leave one "
                "of them out"
            )
        parsed = dataclasses.replace(parsed, resume=name)
    return typing.cast(Config, parsed)


def _marked(config: type[Any], marker: Any) -> list[str]:
    """Returns the names of the options whose type has a marker of tyro."""
    hints = typing.get_type_hints(config, include_extras=True)
    mark = typing.get_args(marker[int])[-1]
    return [name for name, hint in hints.items() if mark in getattr(hint, "__metadata__", ())]


def _renewed(before: Sequence[Any], now: Sequence[Any]) -> tuple[Any, ...]:
    """Returns the axes of a run, those that are named anew with their new values."""
    if not all(isinstance(axis, str) and "=" in axis for axis in (*before, *now)):
        return tuple(now or before)
    anew = {axis.partition("=")[0]: axis for axis in now}
    old = {axis.partition("=")[0]: axis for axis in before}
    return tuple((old | anew).values()) if len(anew) == len(now) else tuple(now)


def expanded(config: type[Any], arguments: Sequence[str]) -> list[str]:
    """Gives switches with a default of None the value that tyro asks of them.

    Args:
      config: dataclass of the options.
      arguments: of the command line.

    Example:
      >>> import dataclasses
      >>> from contrastive_jax.cli.parsing import expanded
      >>> @dataclasses.dataclass
      ... class Config:
      ...     mirrored: bool | None = None
      >>> expanded(Config, ["--no_mirrored"])
      ['--mirrored', 'False']
    """
    hints = typing.get_type_hints(config)
    switches = {one.name for one in dataclasses.fields(config) if hints[one.name] == bool | None}
    expanded: list[str] = []
    for position, argument in enumerate(arguments):
        following = arguments[position + 1] if position + 1 < len(arguments) else "--"
        name = argument.removeprefix("--").replace("-", "_") if argument.startswith("--") else ""
        if name in switches and following.startswith("--"):
            expanded += [argument, "True"]
        elif name.removeprefix("no_") in switches and name.startswith("no_"):
            expanded += [f"--{name.removeprefix('no_')}", "False"]
        else:
            expanded.append(argument)
    return expanded


def as_saved(config: Any) -> dict[str, Any]:
    """Returns the options of a program as a run records them, JSON types.

    Args:
      config: dataclass of the options: numbers, texts, paths, None, and tuples and dicts of these.

    Example:
      >>> import dataclasses
      >>> from pathlib import Path
      >>> from contrastive_jax.cli import as_saved
      >>> @dataclasses.dataclass
      ... class Config:
      ...     runs: Path = Path("runs")
      >>> as_saved(Config())
      {'runs': 'runs'}
    """
    record: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    return record


def from_saved(config: type[Any], saved: dict[str, Any]) -> Any:
    """Makes options of what a run recorded as JSON.

    Args:
      config: dataclass of the options.
      saved: values by name, of which those of other programs are left out.

    Example:
      >>> import dataclasses
      >>> from pathlib import Path
      >>> from contrastive_jax.cli import from_saved
      >>> @dataclasses.dataclass
      ... class Config:
      ...     data: Path | None = None
      >>> from_saved(Config, {"data": "photos", "steps": 100})
      Config(data=PosixPath('photos'))
    """
    hints = typing.get_type_hints(config)
    values = {}
    for field in dataclasses.fields(config):
        if field.name not in saved:
            continue
        values[field.name] = _read(hints[field.name], saved[field.name])
    return config(**values)


def _read(hint: Any, value: Any) -> Any:
    """Makes a value of a type of what JSON has in its place."""
    args = typing.get_args(hint)
    if typing.get_origin(hint) is Annotated:
        return _read(args[0], value)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        tuples = [kind for kind in args if typing.get_origin(kind) is tuple]
        if isinstance(value, list) and tuples:
            return _read(tuples[0], value)
        return Path(value) if Path in args and isinstance(value, str) else value
    if isinstance(value, list):
        hints = args[:1] * len(value) if args[1:] == (...,) else args
        hints = hints if len(hints) == len(value) else (Any,) * len(value)
        return tuple(_read(kind, one) for kind, one in zip(hints, value, strict=True))
    if isinstance(value, dict) and len(args) == 2:
        return {name: _read(args[1], one) for name, one in value.items()}
    return Path(value) if hint is Path else value


def expand_home(config: Config) -> Config:
    """Expands `~` in the paths among options.

    Args:
      config: dataclass of the options.

    Returns:
      The options with whole paths.

    Raises:
      ValueError: if a path begins with a home folder that is not known.

    Example:
      >>> import dataclasses
      >>> from pathlib import Path
      >>> from contrastive_jax.cli import expand_home
      >>> @dataclasses.dataclass
      ... class Config:
      ...     runs: Path = Path("~/runs")
      >>> expand_home(Config()).runs == Path.home() / "runs"
      True
    """
    whole: dict[str, Any] = {}
    for option, value in values_of(config).items():
        try:
            if isinstance(value, Path):
                whole[option] = value.expanduser()
            elif isinstance(value, tuple):
                whole[option] = tuple(
                    one.expanduser() if isinstance(one, Path) else one for one in value
                )
        except RuntimeError:
            raise ValueError(
                f"--{option} {value} begins with a home folder that is not known: give the "
                "whole path"
            ) from None
    return dataclasses.replace(config, **whole)  # type: ignore[type-var]

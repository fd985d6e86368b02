"""Options of a program, the fields of a dataclass, read from the command line.

tyro reads them. What it leaves to do is here: switches without a default, options that are given
once for each value, help without the breaks of a docstring's lines, and runs that go on with their
own options.
"""

import dataclasses
import difflib
import functools
import json
import sys
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from contrastive_jax._extras import needs

with needs("train", "contrastive_jax.cli"):
    import docstring_parser
    import tyro
    from tyro.conf import Positional as Positional
    from tyro.conf import UseAppendAction as UseAppendAction
    from tyro.conf import arg as arg
    from tyro.constructors import PrimitiveConstructorSpec

from contrastive_jax.search.texts import parse_numbers
from contrastive_jax.train import folder

Config = TypeVar("Config")

Numbers = Annotated[
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


def parse(config: type[Config], program: str, doc: str, arguments: Any = None) -> Config:
    """Reads the options of a program from the command line.

    A field is an option, and the docstring below it its help. Where a program has an option
    `resume`, with one `runs` for the folder of all runs, the options that the run of this name
    recorded take the place of the defaults.

    Args:
      config: dataclass of the options, each with a default.
      program: module that runs.
      doc: text of which the first line describes it.
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
    _join_lines_of_help(config)  # type: ignore[arg-type]
    arguments = expanded(config, sys.argv[1:] if arguments is None else arguments)

    def read(default: Any, *, resumed: bool = False) -> tuple[Any, list[str]]:
        # An option that may be given several times would be added to its default.
        axes = _given_several_times(config)
        parsed, unknown = tyro.cli(
            config,
            prog=f"python -m {program}",
            description=doc.splitlines()[0],
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
    if unknown:
        names = [f"--{field.name}" for field in dataclasses.fields(config)]  # type: ignore[arg-type]
        name = unknown[0].split("=")[0]
        close = difflib.get_close_matches(name, names, n=3)
        raise ValueError(
            f"unknown option {name}; "
            + (f"close to it: {', '.join(close)}; " if close else "")
            + f"there are {', '.join(names)}; --help explains them"
        )
    if getattr(parsed, "resume", None):
        before = folder.read_config(parsed.runs / parsed.resume)
        default = from_saved(config, before.get("given", before))
        parsed, _ = read(dataclasses.replace(default, overwrite=False), resumed=True)
    return typing.cast(Config, parsed)


@functools.cache
def _join_lines_of_help(config: type[Any]) -> None:
    """Makes one line of the docstring of each option, as tyro keeps the breaks of indented lines.

    A default of None is said in the docstring alone.
    """
    hints = typing.get_type_hints(config, include_extras=True)
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for owner in config.__mro__:
        own = vars(owner).get("__annotations__", {})
        try:
            documented = docstring_parser.parse_from_object(owner).params if own else ()
        except (OSError, TypeError):
            continue  # a class of an interactive session has no source to read
        for one in documented:
            name, text = one.arg_name, one.description
            if name in own and text:
                help_of = tyro.conf.arg(
                    help=" ".join(text.split()),
                    help_behavior_hint="" if defaults[name] is None else None,
                    metavar=_values(hints[name]),
                )
                own[name] = typing.Annotated[hints[name], help_of]


def _values(hint: Any) -> str | None:
    """Returns the values of an option that may be None for its help, which leaves None out."""
    if types.NoneType not in typing.get_args(hint):
        return None  # the text of tyro, or its own
    names: list[str] = []
    for kind in typing.get_args(hint):
        if typing.get_origin(kind) is Literal:
            names += map(str, typing.get_args(kind))
        elif typing.get_origin(kind) is tuple:
            value = typing.get_args(kind)[0].__name__.upper()
            return f"[{value} [{value} ...]]"
        elif kind is bool:
            names += ["True", "False"]
        elif kind is not types.NoneType:
            return str(kind.__name__).upper()
    return f"{{{','.join(names)}}}"


def _given_several_times(config: type[Any]) -> list[str]:
    """Returns the names of the options that are given once for each value."""
    hints = typing.get_type_hints(config, include_extras=True)
    append = typing.get_args(UseAppendAction[int])[-1]
    return [name for name, hint in hints.items() if append in getattr(hint, "__metadata__", ())]


def _renewed(before: Sequence[str], now: Sequence[str]) -> tuple[str, ...]:
    """Returns the axes of a run, those that are named anew with their new values."""
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
    switches = {field.name for field in dataclasses.fields(config) if field.type == bool | None}
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
      config: dataclass of the options.

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
        value, hint = saved[field.name], hints[field.name]
        kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        if value is not None and Path in kinds:
            value = Path(value)
        values[field.name] = tuple(value) if isinstance(value, list) else value
    return config(**values)


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
    expanded = {}
    for option, value in vars(config).items():
        if isinstance(value, Path):
            try:
                expanded[option] = value.expanduser()
            except RuntimeError:
                raise ValueError(
                    f"--{option} {value} begins with a home folder that is not known: give the "
                    "whole path"
                ) from None
    return dataclasses.replace(config, **expanded)  # type: ignore[type-var]

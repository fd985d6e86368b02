"""The command line of an experiment: its options, and errors that its user can mend in one line."""

import contextlib
import dataclasses
import difflib
import errno
import functools
import io
import re
import sys
import types
import typing
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from contrastive_jax._extras import needs

with needs("train", "experiments.command"):
    import docstring_parser
    import tyro
    from tyro.conf import Positional as Positional
    from tyro.conf import UseAppendAction as UseAppendAction
    from tyro.conf import arg as arg
    from tyro.constructors import PrimitiveConstructorSpec as PrimitiveConstructorSpec

from contrastive_jax.train import folder

Config = TypeVar("Config")


@dataclasses.dataclass(frozen=True)
class OfRun:
    """Options of a program that takes a trained run."""

    run: Annotated[Positional[Path], arg(metavar="RUN")] = Path()
    """Folder of the run."""


# What options, files and the machine are to blame for. Anything else is a bug, and its traceback
# says where.
MENDABLE = (FloatingPointError, ImportError, MemoryError, OSError, ValueError)
# Remedies by the error of the operating system.
REMEDIES = {
    errno.EACCES: "make it readable and writable for this user, or name another folder",
    errno.EPERM: "make it readable and writable for this user, or name another folder",
    errno.EROFS: "it is on a read-only disk: name another folder",
    errno.ENOSPC: "free some space and start again (--resume goes on with a run)",
    errno.EDQUOT: "free some space and start again (--resume goes on with a run)",
    errno.EFBIG: "allow larger files and start again (--resume goes on with a run)",
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "a file is where a folder should be: remove it, or name another folder",
    errno.EISDIR: "a folder is where a file should be: remove it, or name another folder",
    errno.EIO: "the disk may be failing: copy the run to another one and go on there",
}

# Options by the names of arguments of the library that are called otherwise.
RENAMED = {"memory_size": "memory", "categories": "category", "chosen_by": "shown_by"}


def run(main: Callable[[Config], object], parse: Callable[[], Config]) -> None:
    """Runs an experiment with the options of the command line.

    Args:
      main: the experiment.
      parse: reads the options.

    Raises:
      SystemExit: with code 1 and one line on stderr, if an error ends the experiment that its user
        can mend, as an option of another type is; with code 130 after Ctrl-C.
    """
    # Without the line of code that warns, which tells a user nothing.
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    try:
        main(_parsed(parse))
    except KeyboardInterrupt:
        sys.exit(130)
    except MENDABLE as error:
        sys.exit(f"error: {message_of(error)}")
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        sys.exit(
            f"error: {message_of(error)} Take a smaller --batch_size, or smaller images with "
            "--image_size"
        )


def _parsed(parse: Callable[[], Config]) -> Config:
    """Reads options, with an error of the parser as one line in place of a box.

    Raises:
      ValueError: if an option has a value of another type, or none.
    """
    written = io.StringIO()
    try:
        with contextlib.redirect_stderr(written):
            config = parse()
    except SystemExit as error:
        message = _message_in_box(written.getvalue())
        if error.code and message:
            raise ValueError(f"{message}; --help explains the options") from None
        sys.stderr.write(written.getvalue())
        raise
    sys.stderr.write(written.getvalue())
    return config


def _message_in_box(text: str) -> str:
    """Returns what tyro says in a box, below its title and above the help of the option."""

    lines = [line.strip(" │") for line in text.splitlines()[1:]]
    message: list[str] = []
    for line in lines:
        if (line and not line.strip("─-╰╯")) or line == "Got errors:":
            if message:
                break
        elif line:
            message.append(line)
    text = " ".join(message).rstrip(".").removeprefix("Error parsing ")
    # Choices are those of a set, in no order, and None stands for a default.
    choices = re.search(r"Expected one of \((.*)\)", text)
    if choices:
        names = sorted({*re.findall(r"'([^']*)'", choices[1])} - {"None"})
        text = text.replace(choices[0], f"Expected one of {', '.join(names)}")
    return text


def parse(config: type[Config], program: str, doc: str, arguments: Any = None) -> Config:
    """Reads options from the command line.

    With `--resume NAME` the options of that run take the place of the defaults.

    Args:
      config: dataclass of the options.
      program: module that runs.
      doc: text of which the first line describes it.
      arguments: of the command line; by default those of the process.

    Returns:
      The options.

    Raises:
      FileNotFoundError: if there is no run to resume.
      ValueError: if an option is unknown, with those that are close to it.
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
        for one in docstring_parser.parse_from_object(owner).params if own else ():
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
    """Gives switches with a default of None the value that tyro asks of them."""
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


def from_saved(config: type[Any], saved: dict[str, Any]) -> Any:
    """Makes options of what a run recorded as JSON."""
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


@contextlib.contextmanager
def options_named(names: Iterable[str], **renamed: str) -> Iterator[None]:
    """Names options in errors of the library, which name the arguments of its functions.

    Args:
      names: of the options of the program.
      **renamed: more options by the names of arguments that are called otherwise.
    """
    options = RENAMED | dict(zip(names, names, strict=True)) | renamed

    def option(match: re.Match[str]) -> str:
        return f"--{options[match[0]]}" if match[0] in options else match[0]

    try:
        yield
    except ValueError as error:
        # Not every word that is the name of an argument means it.
        place = (
            r"^|(?<= multiple of )|(?<= times )|(?<=already: )|(?<= leave )|(?<= give )|(?<= no )"
        )
        # Nor does a path that begins like one.
        named = re.sub(rf"(?:{place})[a-z_]+(?![\w./-])", option, str(error))
        if "objective" in options:
            named = named.replace('on="all_pairs"', "--objective all_pairs")
        if named != str(error):
            error.args = (named,)
        if "objective" in options and "images of a batch" in named:
            error.add_note("a batch has two images for each pair of --batch_size")
        raise


def message_of(error: BaseException) -> str:
    """One line on an error: what was wrong, with which file, and what to do."""
    text = str(error)
    if isinstance(error, OSError) and error.errno is not None:
        path = error.filename or "a file"
        remedy = REMEDIES.get(error.errno)
        text = f"{path}: {error.strerror}" + (f"; {remedy}" if remedy else "")
    # JAX notes on errors in traced code that it has shortened their traceback, which is not shown.
    notes = [one for one in getattr(error, "__notes__", ()) if "JAX has removed" not in one]
    parts = [text or type(error).__name__, *notes]
    return "; ".join(" ".join(part.split()) for part in parts)

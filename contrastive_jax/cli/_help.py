"""The help of options, from the docstrings of their fields, as tyro is to show it."""

import dataclasses
import functools
import types
import typing
from typing import Any, Literal

import docstring_parser
import tyro


def write_help(config: Any) -> None:
    """Makes one line of the docstring of each option, as tyro keeps the breaks of indented lines.

    A default of None is said in the docstring alone.
    """
    for owner in config.__mro__:
        if dataclasses.is_dataclass(owner):
            _write_own(typing.cast(Any, owner))


@functools.cache
def _write_own(owner: Any) -> None:
    """Adds the help of the options that a class defines itself to their types."""
    own = vars(owner).get("__annotations__", {})
    defaults = {field.name: field.default for field in dataclasses.fields(owner)}
    hints = typing.get_type_hints(owner, include_extras=True)
    try:
        documented = docstring_parser.parse_from_object(owner).params if own else []
    except (OSError, TypeError):
        return  # a class of an interactive session has no source to read
    for one in documented:
        name, text = one.arg_name, one.description
        if name in own and name in defaults and text:
            help_of = tyro.conf.arg(
                help=" ".join(text.split()),
                help_behavior_hint="" if defaults[name] is None else None,
                metavar=_values(hints[name]),
            )
            own[name] = typing.Annotated[hints[name], help_of]


def _values(hint: Any) -> str | None:
    """Returns the values of an option that may be None for its help, which leaves None out.

    Of a type that is not one of a few simple ones it returns None, for the text of tyro.
    """
    if types.NoneType not in typing.get_args(hint):
        return None
    args = [kind for kind in typing.get_args(hint) if kind is not types.NoneType]
    if all(kind is bool or typing.get_origin(kind) is Literal for kind in args):
        values = [(True, False) if kind is bool else typing.get_args(kind) for kind in args]
        return f"{{{','.join(str(value) for each in values for value in each)}}}"
    if len(args) > 1:
        return None
    if typing.get_origin(args[0]) is tuple:
        kind, *others = typing.get_args(args[0])
        if others == [...] and isinstance(kind, type):
            return f"[{kind.__name__.upper()} [{kind.__name__.upper()} ...]]"
        return None
    return args[0].__name__.upper() if isinstance(args[0], type) else None

"""Axes of a grid, spaces of a search and hyperparameters as text, as a command line gives them."""

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from contrastive_jax.search.space import Range
from contrastive_jax.train import loss_table

Kind = type | Sequence[str]
"""The type of a value, or the names among which it is chosen."""
_NONE: Mapping[str, Kind] = MappingProxyType({})


def parse_numbers(texts: Iterable[str]) -> dict[str, float]:
    """Reads numbers by name, such as `margin=0.3 scale=20`.

    Args:
      texts: each a name, an equals sign and a number.

    Returns:
      Numbers by name.

    Raises:
      ValueError: if one is not of that form, or a name is given twice.

    Example:
      >>> from contrastive_jax.search.texts import parse_numbers
      >>> parse_numbers(["margin=0.3", "scale=20"])
      {'margin': 0.3, 'scale': 20.0}
    """
    values: dict[str, float] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = None
        if not name or not equals or number is None:
            raise ValueError(f"takes NAME=VALUE, as margin=0.3 scale=20, got {text!r}")
        if name in values:
            raise ValueError(f"names {name} twice; leave one of them out")
        values[name] = number
    return values


def parse_axes(
    texts: Iterable[str], types: Mapping[str, Kind] = _NONE, *, option: str = "--grid"
) -> dict[str, list[Any]]:
    """Reads axes of a grid, such as `learning_rate=1e-3,1e-2` or `loss=contrastive,supcon`.

    Args:
      texts: each a name, an equals sign and values.
      types: the type of the values of an axis, or the names among which they are chosen; by default
        values are numbers.
      option: that the axes were given with, for errors.

    Returns:
      Values by name.

    Raises:
      ValueError: if one is not of that form, has no values, the same twice or one of another kind,
        or is named twice.

    Example:
      >>> from contrastive_jax.search.texts import parse_axes
      >>> parse_axes(["learning_rate=1e-3,1e-2", "width=16,64"], {"width": int})
      {'learning_rate': [0.001, 0.01], 'width': [16, 64]}
    """
    axes: dict[str, list[Any]] = {}
    for text in texts:
        name, equals, listed = text.partition("=")
        if not equals or not name or not listed:
            raise ValueError(
                f"{option} takes name=value,value, as learning_rate=1e-3,1e-2, got {text!r}"
            )
        if name in axes:
            raise ValueError(f"{option} names {name} twice; put all its values into one")
        axes[name] = [_value(name, value, types.get(name, float)) for value in listed.split(",")]
        if len({*axes[name]}) < len(axes[name]):
            raise ValueError(f"the values of {name} must differ, got {axes[name]}")
    return axes


def _value(name: str, text: str, kind: Kind) -> Any:
    if name == "loss":
        loss_table.check_name(text)
    if not isinstance(kind, type):
        if text not in kind:
            close = difflib.get_close_matches(text, kind, n=3) or kind
            raise ValueError(
                f"{name} must be one of its choices, such as {', '.join(close)}; got {text!r}"
            )
        return text
    try:
        return kind(text)
    except ValueError:
        expected = {int: "a whole number", float: "a number"}.get(kind, kind.__name__)
        raise ValueError(f"{name} must be {expected}, got {text!r}") from None


def parse_space(
    texts: Iterable[str], types: Mapping[str, Kind] = _NONE, *, option: str = "--space"
) -> dict[str, Range | list[Any]]:
    """Reads a space, such as `margin=0.2:1.8`, `learning_rate=1e-3:1e-2:log` or `width=16,64`.

    Args:
      texts: each a name, an equals sign, and the ends of a range or values.
      types: as in `parse_axes`. What has one has values and no range.
      option: that the space was given with, for errors.

    Returns:
      Ranges and values by name.

    Raises:
      ValueError: if one is not of that form, a range is empty, or a name comes twice.

    Example:
      >>> from contrastive_jax.search.texts import parse_space
      >>> parse_space(["margin=0.2:1.8", "width=16,64"], {"width": int})
      {'margin': Range(low=0.2, high=1.8, logarithmic=False), 'width': [16, 64]}
    """
    space: dict[str, Range | list[Any]] = {}
    for text in texts:
        name, _, rest = text.partition("=")
        if name in space:
            raise ValueError(f"{option} names {name} twice")
        if rest and ":" not in rest:
            space |= parse_axes([text], types, option=option)
            continue
        logarithmic = rest.endswith(":log")
        try:
            if not name:
                raise ValueError
            low, high = map(float, rest.removesuffix(":log").split(":"))
        except ValueError:
            raise ValueError(
                f"{option} takes name=low:high, name=low:high:log or name=value,value, got {text!r}"
            ) from None
        if name in types:
            raise ValueError(
                f"{name} takes values and no range, as {name}=value,value, got {text!r}"
            )
        if not low < high < math.inf:
            raise ValueError(f"the low end of a range must be below its high one, got {text!r}")
        if logarithmic and low <= 0:
            raise ValueError(f"the ends of a logarithmic range must be above 0, got {text!r}")
        space[name] = Range(low, high, logarithmic)
    return space

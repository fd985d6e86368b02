"""The axes of a grid and the space of a search, as the command line names them."""

import difflib
import math
from collections.abc import Iterable, Sequence
from typing import Any

from contrastive_jax.search import Range
from contrastive_jax.train import loss_table
from experiments import options

# Options of a training that are data to a step, and those that change its structure.
HYPERPARAMETERS = (
    "margin",
    "learning_rate",
    "loss_learning_rate",
    "similar_fraction",
    "weight_decay",
    "clip_norm",
    "seed",
)
STRUCTURE: dict[str, type] = {
    "loss": str,
    "encoder": str,
    "width": int,
    "distance": str,
    "objective": str,
    "batch_size": int,
    "group": int,
}
CHOICES: dict[str, tuple[str, ...]] = {
    "loss": loss_table.NAMES,
    "encoder": (*options.ENCODERS,),
    "distance": (*options.DISTANCES,),
    "objective": ("auto", "pairs", "all_pairs"),
}


def parse_axes(named: Iterable[str], option: str = "--grid") -> dict[str, list[Any]]:
    """Reads axes of a grid, such as `learning_rate=1e-3,1e-2` or `loss=contrastive,supcon`.

    Args:
      named: each a name, an equals sign and values.
      option: that they were given with, for errors.

    Returns:
      Values by name.

    Raises:
      ValueError: if one is not of that form, has no values or the same twice, or is named twice.
    """
    axes: dict[str, list[Any]] = {}
    for text in named:
        name, equals, listed = text.partition("=")
        if not equals or not name or not listed:
            raise ValueError(
                f"{option} takes name=value,value, as learning_rate=1e-3,1e-2, got {text!r}"
            )
        if name == "seed":
            raise ValueError(f"--seeds says how many seeds there are: leave them out of {option}")
        if name in axes:
            raise ValueError(f"{option} names {name} twice; put all its values into one")
        axes[name] = [_value(name, value) for value in listed.split(",")]
    for name, values in axes.items():
        if len({*values}) < len(values):
            raise ValueError(f"the values of {name} must differ, got {values}")
    return axes


def _value(name: str, text: str) -> Any:
    convert = STRUCTURE.get(name, float)
    if name == "loss":
        loss_table.check_name(text)
    if name in CHOICES and text not in CHOICES[name]:
        close = difflib.get_close_matches(text, CHOICES[name], n=3) or CHOICES[name]
        raise ValueError(
            f"{name} must be one of its choices, such as {', '.join(close)}; got {text!r}"
        )
    try:
        return convert(text)
    except ValueError:
        expected = {int: "a whole number", float: "a number"}[convert]
        raise ValueError(f"{name} must be {expected}, got {text!r}") from None


def check_axes(axes: Iterable[str], losses: Iterable[str]) -> None:
    """Checks that each axis is one of trainings with these losses.

    Raises:
      ValueError: if one is not, naming those that are.
    """
    for loss in losses:
        loss_table.check_name(loss)
        possible = [*HYPERPARAMETERS[:-1], *STRUCTURE, *_options_of(loss)]
        for name in axes:
            if name not in possible:
                close = difflib.get_close_matches(name, possible, n=3)
                raise ValueError(
                    f"{name} can not be an axis of trainings with {loss}; "
                    + (f"close to it: {', '.join(close)}; " if close else "")
                    + f"possible axes: {', '.join(dict.fromkeys(possible))}"
                )


def _options_of(loss: str) -> dict[str, float]:
    if loss == "contrastive" or loss not in loss_table.NAMES:
        return {}
    return loss_table.hyperparameters_of(loss)


def whole_options(loss: str) -> set[str]:
    """Names of the whole numbers of a loss, which are structure."""
    return {k for k, v in _options_of(loss).items() if isinstance(v, int)} - {*HYPERPARAMETERS}


def parse_space(named: Sequence[str]) -> dict[str, Range | list[Any]]:
    """Reads a space, such as `margin=0.2:1.8`, `learning_rate=1e-3:1e-2:log` or `width=16,64`.

    Args:
      named: each a name, an equals sign, and the ends of a range or values.

    Returns:
      Ranges and values by name.

    Raises:
      ValueError: if one is not of that form, a range is empty, or a name comes twice.
    """
    space: dict[str, Range | list[Any]] = {}
    for text in named:
        name, _, rest = text.partition("=")
        if name in space:
            raise ValueError(f"--space names {name} twice")
        if ":" not in rest:
            space |= parse_axes([text], "--space")
            continue
        logarithmic = rest.endswith(":log")
        try:
            low, high = map(float, rest.removesuffix(":log").split(":"))
        except ValueError:
            raise ValueError(
                f"--space takes name=low:high, name=low:high:log or name=value,value, got {text!r}"
            ) from None
        if not low < high < math.inf or (logarithmic and low <= 0) or name in STRUCTURE:
            raise ValueError(
                "a range must be of a number, its low end below its high one, and above 0 if it is "
                f"logarithmic, got {text!r}"
            )
        space[name] = Range(low, high, logarithmic)
    return space

"""The ranges of the numbers of a training, checked before anything is computed."""

import math
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple


class Limits(NamedTuple):
    """The range of a number."""

    expected: str
    """The range in words, for errors."""
    holds: Callable[[Any], bool]


def at_least(least: int) -> Limits:
    """Returns the range of the numbers that are at least so large.

    Example:
      >>> from contrastive_jax.train.ranges import at_least
      >>> at_least(2).holds(1)
      False
    """
    return Limits(f"at least {least}", lambda x: x >= least)


ABOVE_ZERO = Limits("above 0", lambda x: 0 < x < math.inf)
NOT_NEGATIVE = Limits("at least 0 and finite", lambda x: 0 <= x < math.inf)

RANGES: Mapping[str, Limits] = MappingProxyType(
    {
        "batch_classes": at_least(2),
        "batch_size": at_least(1),
        "clip_norm": ABOVE_ZERO,
        "group": at_least(1),
        "keep": at_least(1),
        "learning_rate": ABOVE_ZERO,
        "log_every": at_least(1),
        "loss_learning_rate": ABOVE_ZERO,
        "max_age": at_least(1),
        "microbatches": at_least(1),
        "save_every": at_least(1),
        "seed": Limits("from 0 to 4294967295 (2^32 - 1)", lambda x: 0 <= x < 2**32),
        "positive_fraction": Limits("in [0, 1]", lambda x: 0 <= x <= 1),
        "steps": at_least(1),
        "steps_per_call": at_least(1),
        "validate_every": at_least(1),
        "views": at_least(1),
        "weight_decay": NOT_NEGATIVE,
    }
)
"""The ranges of arguments of `fit` and `fit_grid`, and of hyperparameters of their optimizers."""


def check_ranges(values: Mapping[str, Any], ranges: Mapping[str, Limits] = RANGES) -> None:
    """Checks that numbers are in their ranges.

    Args:
      values: by name. A value of None, and a name without a range, are not checked.
      ranges: by name.

    Raises:
      ValueError: for the first number that is not, naming it and its range.

    Example:
      >>> from contrastive_jax.train.ranges import check_ranges
      >>> check_ranges({"learning_rate": 1e-3, "steps": 100})
      >>> check_ranges({"learning_rate": 0.0})
      Traceback (most recent call last):
          ...
      ValueError: learning_rate must be above 0, got 0.0
    """
    for name, limits in ranges.items():
        value = values.get(name)
        try:
            holds = value is None or limits.holds(value)
        except TypeError:
            raise ValueError(f"{name} must be a number, {limits.expected}, got {value!r}") from None
        if not holds:
            raise ValueError(f"{name} must be {limits.expected}, got {value}")


def check_multiples(values: Mapping[str, int], units: Iterable[tuple[str, str]]) -> None:
    """Checks that numbers are multiples of others.

    Args:
      values: by name.
      units: pairs of names, of a number and of that which divides it.

    Raises:
      ValueError: for the first number that is not, naming both.

    Example:
      >>> from contrastive_jax.train.ranges import check_multiples
      >>> check_multiples({"save_every": 100, "log_every": 50}, [("save_every", "log_every")])
    """
    for name, unit in units:
        if values[name] % values[unit]:
            raise ValueError(
                f"{name} must be a multiple of {unit}, got {values[name]} and {values[unit]}"
            )

"""Options that have an effect under others alone.

An option that could do nothing is an error and not ignored: it would be recorded as if it had made
the figures.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from contrastive_jax.cli._values import values_of


class Effect(NamedTuple):
    """The condition under which options have an effect, and the error where it does not hold."""

    options: str
    """Names of options, with spaces between them; a program need not have all of them."""
    holds: Callable[[Any], bool]
    """Takes all options."""
    reason: str
    """The reason why the option has no effect, with options of the program in braces."""
    remedy: str = "leave --{option} out"
    """The remedy, in the same form."""


def is_given(config: Any, option: str) -> bool:
    """Returns whether a program has this option, at another value than its default.

    Args:
      config: dataclass of the options, each with a default.
      option: its name.

    Example:
      >>> import dataclasses
      >>> from contrastive_jax.cli import is_given
      >>> @dataclasses.dataclass
      ... class Config:
      ...     steps: int = 100
      >>> is_given(Config(), "steps"), is_given(Config(steps=20), "steps")
      (False, True)
    """
    value = getattr(config, option, None)
    return bool(value != getattr(type(config)(), option, None))


def check_effects(config: Any, effects: Iterable[Effect]) -> None:
    """Checks that every option that is given has an effect under the others.

    Args:
      config: dataclass of the options, each with a default, as they were given.
      effects: conditions, checked in this order. An option without one always has an effect.

    Raises:
      ValueError: for the first option that has none.

    Example:
      >>> import dataclasses
      >>> from contrastive_jax.cli import Effect, check_effects
      >>> @dataclasses.dataclass
      ... class Config:
      ...     memory: int = 0
      ...     max_age: int = 1000
      >>> effect = Effect("max_age", lambda config: config.memory > 0, "there is no memory")
      >>> check_effects(Config(max_age=50), [effect])
      Traceback (most recent call last):
          ...
      ValueError: there is no memory: leave --max_age out
    """
    for names, holds, reason, remedy in effects:
        for option in names.split():
            if is_given(config, option) and not holds(config):
                error = f"{reason}: {remedy}"
                raise ValueError(error.format_map({**values_of(config), "option": option}))

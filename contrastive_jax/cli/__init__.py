"""Programs with options: a dataclass of them, the command line, and errors in one line."""

from contrastive_jax.cli.effects import Effect, check_effects, is_given
from contrastive_jax.cli.errors import options_named, run
from contrastive_jax.cli.parsing import (
    NamedValues,
    Positional,
    UseAppendAction,
    arg,
    as_saved,
    expand_home,
    from_saved,
    parse,
)

__all__ = [
    "Effect",
    "NamedValues",
    "Positional",
    "UseAppendAction",
    "arg",
    "as_saved",
    "check_effects",
    "expand_home",
    "from_saved",
    "is_given",
    "options_named",
    "parse",
    "run",
]

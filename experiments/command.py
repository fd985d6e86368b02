"""Options that programs of a trained run share, and names of options in errors."""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

from contrastive_jax import cli

# Options by the names of arguments of the library that are called otherwise.
RENAMED = {"memory_size": "memory", "categories": "category", "chosen_by": "shown_by"}


@dataclasses.dataclass(frozen=True)
class OfRun:
    """Options of a program that takes a trained run."""

    run: Annotated[cli.Positional[Path], cli.arg(metavar="RUN")] = Path()
    """Folder of the run."""


@contextlib.contextmanager
def naming_options(names: Iterable[str], **renamed: str) -> Iterator[None]:
    """Names options in errors of the library, which name the arguments of its functions.

    Args:
      names: of the options of the program.
      **renamed: more options by the names of arguments that are called otherwise.
    """
    options = RENAMED | dict(zip(names, names, strict=True)) | renamed
    try:
        with cli.options_named(options):
            yield
    except ValueError as error:
        if "objective" in options:
            named = str(error).replace('on="all_pairs"', "--objective all_pairs")
            error.args = (named,)
            if "images of a batch" in named:
                error.add_note("a batch has two images for each pair of --batch_size")
        raise

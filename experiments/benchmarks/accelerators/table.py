"""The table of compiled programs in docs/accelerators.md."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import jax

from experiments.benchmarks.accelerators.catalogue import Program
from experiments.benchmarks.accelerators.check import received
from experiments.benchmarks.accelerators.facts import Facts

PAGE = Path(__file__).parents[3] / "docs" / "accelerators.md"
Platform = Literal["tpu", "cuda"]
_VERSION = "Compiled with JAX "

_HEADER = (
    "| Target | Program | Temporaries, MB | Allowed, MB | Results of collectives | "
    "Compilation, s |\n"
    "| --- | --- | ---: | ---: | --- | ---: |\n"
)


def row(program: Program, facts: Facts) -> str:
    """Writes one row of the table.

    Args:
      program: which was compiled.
      facts: of the compiled program.

    Returns:
      A line of Markdown.
    """
    bytes_by = received(facts.collectives) if program.target.devices > 1 else {}
    brought = [f"{name} {_amount(count)}" for name, count in sorted(bytes_by.items())]
    cells = (
        program.target.name,
        program.name,
        f"{facts.temporaries / 1e6:,.1f}",
        f"{program.design().temporaries / 1e6:,.1f}",
        ", ".join(brought) or "-",
        f"{facts.seconds:.0f}",
    )
    return f"| {' | '.join(cells)} |"


def write(platform: Platform, rows: Sequence[str], page: Path = PAGE) -> None:
    """Puts the rows of a platform into the page, in place of those that are there.

    Args:
      platform: that the rows are of.
      rows: by `row`.
      page: in Markdown, with `<!-- tpu -->` and `<!-- /tpu -->` about the table, or the same of
        `cuda`.

    Raises:
      ValueError: if the page does not have both comments.
    """
    text = page.read_text()
    begin, end = f"<!-- {platform} -->\n", f"<!-- /{platform} -->"
    between = re.compile(f"(?<={re.escape(begin)}).*?(?={re.escape(end)})", re.DOTALL)
    if not between.search(text):
        raise ValueError(f"{page.name} must have {begin.strip()} and {end} about its table")
    table = (
        f"\n{_VERSION}{jax.__version__}.\n\n{_HEADER}"
        + "".join(f"{line}\n" for line in rows)
        + "\n"
    )
    page.write_text(between.sub(lambda _: table, text, count=1))


def temporaries(platform: Platform, page: Path = PAGE) -> dict[tuple[str, str], float]:
    """Reads the temporaries that the page shows, if they are of this version of JAX.

    Args:
      platform: whose table is read.
      page: in Markdown, as `write` leaves it.

    Returns:
      Megabytes by the names of target and program; none where another version compiled them.
    """
    text = (
        page.read_text().partition(f"<!-- {platform} -->")[2].partition(f"<!-- /{platform} -->")[0]
    )
    if f"{_VERSION}{jax.__version__}." not in text:
        return {}
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {(target, name): float(size.replace(",", "")) for target, name, size, *_ in rows[2:]}


def _amount(count: int) -> str:
    """Bytes in a unit that leaves few digits."""
    for size, unit in ((1e6, "MB"), (1e3, "kB")):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count} B"

"""Prints the test figures of runs that differ in their seed alone, with their spread over seeds.

python -m experiments.results runs/digits-0 runs/digits-1 runs/digits-2
"""

import dataclasses
from pathlib import Path

from contrastive_jax import cli
from contrastive_jax.seed_report import table_of_seeds
from experiments.train import FREE


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the table."""

    runs: cli.Positional[tuple[Path, ...]] = ()
    """Folders of runs of `experiments.train`, two at least."""


def main(config: Config) -> str:
    """Prints the table, and returns it."""
    table = table_of_seeds(config.runs, ignored=FREE)
    print(f"{table}\n\nThe mean over seeds, and in brackets the lowest and the highest.")
    return table


if __name__ == "__main__":
    cli.run(main, lambda: cli.parse(Config, "experiments.results", str(__doc__)))

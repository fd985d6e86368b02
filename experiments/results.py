"""Prints the test figures of runs that differ in their seed alone, with their spread over seeds.

python -m experiments.results runs/digits-0 runs/digits-1 runs/digits-2
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from contrastive_jax._extras import needs

with needs("train", "experiments.results"):
    import tyro

from contrastive_jax.evaluation.tables import TITLES, markdown
from contrastive_jax.train.folder import CONFIG
from experiments import command
from experiments.train import FREE


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the table."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of runs of `experiments.train`, two at least."""


def main(config: Config) -> str:
    """Prints a Markdown table with mean, lowest and highest value of each figure, and returns it.

    Raises:
      ValueError: if there are fewer than two runs, one has not ended, two have the same seed, or
        they differ in an option besides the seed.
    """
    if len(config.runs) < 2:
        raise ValueError(
            f"give the folders of two runs or more, got {len(config.runs)}: "
            "their seeds are what the table compares"
        )
    check_seeds(config.runs)
    figures = [_read(folder, "results.json") for folder in config.runs]
    columns = [name for name, one in figures[0].items() if isinstance(one, dict) and "auc" in one]
    rows = [[f"on test, {len(figures)} seeds", *columns]]
    for key, title in TITLES.items():
        if key not in figures[0]["embedding"]:
            continue
        rows.append([title, *[spread([one[name][key] for one in figures]) for name in columns]])
    table = markdown(rows)
    print(f"{table}\n\nThe mean over seeds, and in brackets the lowest and the highest.")
    return table


def spread(values: Sequence[float]) -> str:
    """Mean [lowest, highest]; the value alone where all are equal.

    Example:
      >>> spread([0.9933, 0.9956])
      '0.9945 [0.9933, 0.9956]'
      >>> spread([0.9667, 0.9667])
      '0.9667'
    """
    low, high = min(values), max(values)
    if low == high:
        return f"{low:.4f}"
    return f"{sum(values) / len(values):.4f} [{low:.4f}, {high:.4f}]"


def check_seeds(folders: Sequence[Path]) -> None:
    """Checks that runs differ in their seed, and in nothing else that changes their figures.

    Raises:
      ValueError: if two have the same seed, or they differ in another option.
    """
    configs = [_read(folder, CONFIG) for folder in folders]
    seeds: dict[int, Path] = {}
    for folder, config in zip(folders, configs, strict=True):
        seed = config["seed"]
        if seed in seeds:
            raise ValueError(
                f"{seeds[seed]} and {folder} both have seed {seed}: "
                "leave one out, or train it with another --seed"
            )
        seeds[seed] = folder
        for option in sorted({*configs[0], *config} - FREE - {"seed"}):
            first, other = configs[0].get(option), config.get(option)
            if first != other:
                raise ValueError(
                    f"{folders[0]} has --{option} {first} and {folder} has {other}: "
                    "give runs that differ in --seed alone"
                )


def _read(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(
            f"{path} is missing: give the folder of a run that has ended "
            "(experiments.train with --resume goes on with one that has not)"
        ) from None
    return content


if __name__ == "__main__":
    command.run(
        main,
        lambda: tyro.cli(
            Config,
            prog="python -m experiments.results",
            description=str(__doc__).splitlines()[0],
            use_underscores=True,
        ),
    )

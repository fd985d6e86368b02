"""The test figures of runs that differ in their seed alone, with their spread over seeds."""

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from contrastive_jax.evaluation.tables import TITLES, markdown
from contrastive_jax.train.folder import CONFIG


def table_of_seeds(folders: Sequence[Path], *, ignored: Collection[str] = ()) -> str:
    """Returns a Markdown table with mean, lowest and highest value of each figure on test.

    Args:
      folders: of the runs, two at least, each with its `results.json`.
      ignored: names of options in which runs may differ besides their seed.

    Raises:
      ValueError: if there are fewer than two runs, one has not ended, two have the same seed, or
        they differ in an option besides the seed.

    Example:
      >>> import json
      >>> from pathlib import Path
      >>> from contrastive_jax.seed_report import table_of_seeds
      >>> for seed, auc in enumerate((0.9, 0.96)):
      ...     folder = Path(f"run-{seed}")
      ...     folder.mkdir()
      ...     _ = (folder / "config.json").write_text(json.dumps({"seed": seed}))
      ...     _ = (folder / "results.json").write_text(json.dumps({"embedding": {"auc": auc}}))
      >>> print(table_of_seeds([Path("run-0"), Path("run-1")]))
      | on test, 2 seeds | embedding |
      | --- | ---: |
      | pair ROC AUC | 0.9300 [0.9000, 0.9600] |
    """
    if len(folders) < 2:
        raise ValueError(
            f"give the folders of two runs or more, got {len(folders)}: "
            "their seeds are what the table compares"
        )
    _check_seeds(folders, {*ignored, "seed"})
    figures = [_read(folder, "results.json") for folder in folders]
    columns = [name for name, one in figures[0].items() if isinstance(one, dict) and "auc" in one]
    rows = [[f"on test, {len(figures)} seeds", *columns]]
    for key, title in TITLES.items():
        if key in figures[0]["embedding"]:
            rows.append(
                [title, *[_spread([one[name][key] for one in figures]) for name in columns]]
            )
    return markdown(rows)


def _spread(values: Sequence[float]) -> str:
    """Returns the mean, the lowest and the highest value; one value where all are equal."""
    low, high = min(values), max(values)
    if low == high:
        return f"{low:.4f}"
    return f"{sum(values) / len(values):.4f} [{low:.4f}, {high:.4f}]"


def _check_seeds(folders: Sequence[Path], ignored: Collection[str]) -> None:
    """Checks that runs differ in their seed, and in nothing else that changes their figures."""
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
        for option in sorted({*configs[0], *config} - {*ignored}):
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

"""The table and the figure of a comparison of losses."""

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from scipy import stats

from contrastive_jax import plots
from contrastive_jax.evaluation import baselines
from contrastive_jax.evaluation.tables import markdown
from contrastive_jax.search.loss_trials import CHOSEN_BY, SHOWN, read_finished
from contrastive_jax.train import folder as runs
from contrastive_jax.train import loss_table

SPLITS = ("all classes", "unseen classes")

Means = dict[str, dict[str, tuple[float, float]]]
"""Mean and half of the interval of each figure, by split."""


def splits_of(split: str | None) -> tuple[str, ...]:
    """Returns the splits that are compared: both, or the one that is named.

    Example:
      >>> from contrastive_jax.loss_report import splits_of
      >>> splits_of("classes")
      ('unseen classes',)
    """
    return {None: SPLITS, "examples": SPLITS[:1], "classes": SPLITS[1:]}[split]


def interval(values: Iterable[float]) -> tuple[float, float]:
    """Returns the mean and half of its 95 % interval, by Student's t; NaN of one value.

    Args:
      values: of independent trials.

    Returns:
      Both.

    Example:
      >>> from contrastive_jax.loss_report import interval
      >>> mean, half = interval([0.5, 0.7])
      >>> print(f"{mean:.1f} {half:.2f}")
      0.6 1.27
    """
    array = np.array([*values], np.float64)
    half = float(np.nan)
    if len(array) > 1:
        half = stats.t.ppf(0.975, len(array) - 1) * array.std(ddof=1) / np.sqrt(len(array))
    return float(array.mean()), float(half)


def report(folder: Path) -> None:
    """Writes the table, as Markdown and CSV, and the figure, of the finished losses of a folder.

    Example:
      >>> from pathlib import Path
      >>> from contrastive_jax.loss_report import report
      >>> from contrastive_jax.train.folder import write_config
      >>> write_config(Path(), {"seeds": 3, "split": "examples"})
      >>> report(Path())
      | loss | P@1, all classes | R-precision, all classes | MAP@R, all classes |
      | --- | ---: | ---: | ---: |
    """
    splits = splits_of(runs.read_config(folder).get("split"))
    means, diverged, incomplete = _means(folder, splits)
    order = sorted(means, key=lambda name: means[name][splits[0]][CHOSEN_BY][0], reverse=True)
    columns = [(split, key) for split in splits for key in SHOWN]
    lines = [["loss", *[f"{SHOWN[key]}, {split}" for split, key in columns]]]
    csv = [["loss", *[f"{key} {split} {what}" for split, key in columns for what in ("mean", "±")]]]
    for name in order:
        row = [means[name][split][key] for split, key in columns]
        lines.append([name, *[_text(*entry) for entry in row]])
        csv.append([name, *[f"{value:.6f}" for entry in row for value in entry]])
    table = markdown(lines)
    print(table)
    for why, names in (("diverged", diverged), ("not complete", incomplete)):
        if names:
            print(f"\n{why}, and left out: {', '.join(names)}")
    (folder / "results.md").write_text(table + "\n")
    (folder / "results.csv").write_text("".join(",".join(line) + "\n" for line in csv))
    intervals = {split: {name: means[name][split][CHOSEN_BY] for name in order} for split in splits}
    if order:
        figure = plots.intervals(intervals, f"{SHOWN[CHOSEN_BY]} on test")
        plots.save(figure, folder / "comparison.png")


def _means(folder: Path, splits: Sequence[str]) -> tuple[dict[str, Means], list[str], list[str]]:
    """Returns the means of the losses that are complete, and names those that are left out."""
    seeds = runs.read_config(folder)["seeds"]
    means: dict[str, Means] = {}
    diverged, incomplete = [], []
    for split, name in itertools.product(splits, (*baselines.NAMES, *loss_table.NAMES)):
        lines = read_finished(folder, split=split, loss=name)
        judged = [line for line in lines if line.get("stage", "test") == "test"]
        if any(line["figures"] is None for line in judged):
            diverged.append(f"{name} on {split}")
        elif lines and len(judged) < (1 if name in baselines.NAMES else seeds):
            incomplete.append(f"{name} on {split}")
        elif judged:
            means.setdefault(name, {})[split] = {
                key: interval(line["figures"][key] for line in judged) for key in SHOWN
            }
    complete = {name: by_split for name, by_split in means.items() if len(by_split) == len(splits)}
    return complete, diverged, incomplete


def _text(mean: float, half: float) -> str:
    return f"{100 * mean:.1f}" + (f" ± {100 * half:.1f}" if np.isfinite(half) else "")

"""Tables of the trials of a grid: means over seeds with intervals, and the chosen hyperparameters.

A trial is a mapping with `hyperparameters` (the seed among them), `validation` and `test` (figures
by name) and `diverged` (None where it did not), such as `Trial._asdict()` of `train.fit_grid` or a
line of `trials.jsonl`.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from contrastive_jax.evaluation.intervals import Interval, bootstrap_interval
from contrastive_jax.evaluation.tables import markdown

COLUMNS = {
    "precision_at_1": "P@1",
    "r_precision": "R-precision",
    "map_at_r": "MAP@R",
    "auc": "pair AUC",
}
COLUMNS_OF_PAIRS = {
    "auc": "pair AUC",
    "average_precision": "average precision",
    "accuracy": "accuracy",
}
_MINUS = "\N{MINUS SIGN}"


class Row(NamedTuple):
    """The trials that differ in their seed alone."""

    hyperparameters: dict[str, Any]
    """The values without the seed."""
    trials: list[Mapping[str, Any]]
    """The trials that did not diverge, by seed."""
    diverged: int
    """The number of trials that diverged."""
    validation: float
    """The mean of the figure by which rows are chosen; -inf if a trial diverged."""


def rows_by_hyperparameters(trials: Sequence[Mapping[str, Any]], chosen_by: str) -> list[Row]:
    """Gathers trials that differ in their seed alone.

    Args:
      trials: of a grid.
      chosen_by: the figure on validation by which hyperparameters are chosen.

    Returns:
      The rows, in the order in which each comes first.

    Example:
      >>> from contrastive_jax.evaluation.trial_tables import rows_by_hyperparameters
      >>> trials = [
      ...     {
      ...         "hyperparameters": {"margin": margin, "seed": seed},
      ...         "validation": {"map_at_r": margin},
      ...         "diverged": None,
      ...     }
      ...     for margin in (0.5, 1.0)
      ...     for seed in range(2)
      ... ]
      >>> [row.validation for row in rows_by_hyperparameters(trials, "map_at_r")]
      [0.5, 1.0]
    """
    gathered: dict[str, list[Mapping[str, Any]]] = {}
    for trial in trials:
        gathered.setdefault(repr(_without_seed(trial)), []).append(trial)
    rows = []
    for part in gathered.values():
        part.sort(key=lambda trial: trial["hyperparameters"].get("seed", 0))
        whole = [trial for trial in part if trial["diverged"] is None]
        diverged = len(part) - len(whole)
        validation = -math.inf
        if not diverged:
            validation = sum(trial["validation"][chosen_by] for trial in whole) / len(whole)
        rows.append(Row(_without_seed(part[0]), whole, diverged, validation))
    return rows


def _without_seed(trial: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in trial["hyperparameters"].items() if key != "seed"}


def chosen_row(rows: Sequence[Row]) -> Row | None:
    """Returns the row of the best mean on validation; None where each has a trial that diverged.

    Example:
      >>> from contrastive_jax.evaluation.trial_tables import Row, chosen_row
      >>> chosen_row([Row({"margin": 0.5}, [], 0, 0.6), Row({"margin": 1.0}, [], 0, 0.7)])
      Row(hyperparameters={'margin': 1.0}, trials=[], diverged=0, validation=0.7)
    """
    best = max(rows, key=lambda row: row.validation, default=None)
    return best if best is not None and best.validation > -math.inf else None


def edges(rows: Sequence[Row]) -> dict[str, float]:
    """Returns the axes of which the chosen row has the smallest or the largest value.

    The best value may then lie outside of the grid.

    Args:
      rows: from `rows_by_hyperparameters`.

    Returns:
      A value beyond the edge for each such axis of three numbers or more. It is as far from the
      edge as the next value inside, by their ratio where both are above 0, and otherwise by their
      difference.

    Example:
      >>> from contrastive_jax.evaluation.trial_tables import Row, edges
      >>> rows = [Row({"margin": m, "width": 8}, [], 0, m) for m in (0.25, 0.5, 1.0)]
      >>> edges(rows)
      {'margin': 2.0}
    """
    chosen = chosen_row(rows)
    beyond = {}
    for axis, value in chosen.hyperparameters.items() if chosen else ():
        values = {row.hyperparameters[axis] for row in rows}
        if len(values) < 3 or not all(isinstance(one, int | float) for one in values):
            continue
        ordered = sorted(values, reverse=value == min(values))
        if value != ordered[-1]:
            continue
        inside = ordered[-2]
        positive = value > 0 and inside > 0
        next_value = float(f"{value * value / inside if positive else 2 * value - inside:.3g}")
        if all(isinstance(one, int) for one in values):
            next_value = round(next_value)
            if next_value in values or next_value < 1:
                continue
        beyond[axis] = next_value
    return beyond


def best_rows(rows: Sequence[Row], axis: str) -> dict[Any, Row]:
    """Returns for each value of an axis the row that validation chooses among those that have it.

    Example:
      >>> from contrastive_jax.evaluation.trial_tables import Row, best_rows
      >>> rows = [Row({"margin": m, "width": w}, [], 0, m * w) for m in (0.5, 1.0) for w in (2, 4)]
      >>> [row.hyperparameters["width"] for row in best_rows(rows, "margin").values()]
      [4, 4]
    """
    best: dict[Any, Row] = {}
    for row in rows:
        value = row.hyperparameters[axis]
        if value not in best or row.validation > best[value].validation:
            best[value] = row
    return dict(sorted(best.items()))


def interval_on_test(row: Row, figure: str) -> Interval | None:
    """Returns the mean of a figure on test over seeds with its interval; None where all diverged.

    Example:
      >>> from contrastive_jax.evaluation import trial_tables
      >>> trials = [{"test": {"auc": value}} for value in (0.8, 0.9)]
      >>> interval = trial_tables.interval_on_test(trial_tables.Row({}, trials, 0, 0.5), "auc")
      >>> print(f"{interval.mean:.2f}")
      0.85
    """
    return bootstrap_interval([one["test"][figure] for one in row.trials]) if row.trials else None


def difference(row: Row, chosen: Row | None, figure: str) -> Interval | None:
    """Returns by how much a row is better on test than the chosen one, seed by seed.

    Args:
      row: to compare.
      chosen: from `chosen_row`.
      figure: on test.

    Returns:
      The mean of the differences with its interval; None for the chosen row itself, or without
      common seeds.

    Example:
      >>> from contrastive_jax.evaluation.trial_tables import Row, difference
      >>> def row(value):
      ...     trial = {"hyperparameters": {"seed": 0}, "test": {"auc": value}}
      ...     return Row({}, [trial], 0, value)
      >>> print(f"{difference(row(0.7), row(0.8), 'auc').mean:.2f}")
      -0.10
    """
    if chosen is None or row is chosen:
        return None
    by_seed = {one["hyperparameters"]["seed"]: one["test"][figure] for one in chosen.trials}
    pairs = [
        one["test"][figure] - by_seed[one["hyperparameters"]["seed"]]
        for one in row.trials
        if one["hyperparameters"]["seed"] in by_seed
    ]
    return bootstrap_interval(pairs) if pairs else None


def differs(row: Row, chosen: Row | None, figure: str) -> bool:
    """Tells whether a difference of five seeds or more has an interval without 0.

    Example:
      >>> from contrastive_jax.evaluation.trial_tables import Row, differs
      >>> differs(Row({}, [], 0, 0.5), None, "auc")
      False
    """
    interval = difference(row, chosen, figure)
    return len(row.trials) >= 5 and interval is not None and (interval.low > 0 or interval.high < 0)


def write_tables(folder: Path, rows: Sequence[Row], chosen_by: str) -> str:
    """Writes results.csv, results.md and results.tex.

    Args:
      folder: in which the files are written.
      rows: from `rows_by_hyperparameters`.
      chosen_by: the figure by which hyperparameters are chosen, and whose differences are shown.

    Returns:
      The Markdown table.

    Example:
      >>> from pathlib import Path
      >>> from contrastive_jax.evaluation.trial_tables import Row, write_tables
      >>> figures = dict.fromkeys(("precision_at_1", "r_precision", "map_at_r", "auc"), 0.5)
      >>> trials = [{"hyperparameters": {"margin": 1.0, "seed": 0}, "test": figures}]
      >>> table = write_tables(Path(), [Row({"margin": 1.0}, trials, 0, 0.5)], "map_at_r")
      >>> print(table.splitlines()[2])
      | **1** | **50.0** | **50.0** | **50.0** | **50.00** | chosen | 1 |
    """
    if any(one["test"] is None for row in rows for one in row.trials):
        raise ValueError(
            "trials have no figures on test, which the tables are of: train them with test=True"
        )
    chosen, axes = chosen_row(rows), [*rows[0].hyperparameters]
    on_pairs = all("map_at_r" not in one["test"] for row in rows for one in row.trials)
    columns = dict(COLUMNS_OF_PAIRS if on_pairs and chosen_by in COLUMNS_OF_PAIRS else COLUMNS)
    if chosen_by not in columns:
        columns = {chosen_by: chosen_by} | columns
    _write_csv(folder / "results.csv", rows, chosen, columns, chosen_by)
    head = [*axes, *[f"{name} (%)" for name in columns.values()]]
    head += [f"{columns[chosen_by]}, difference from the chosen", "seeds"]
    body = [_line(row, chosen, columns, chosen_by) for row in rows]
    table = markdown([head, *body])
    note = (
        f"Means on test with 95 % bootstrap intervals over seeds; chosen by the mean {chosen_by} "
        "on validation; differences are seed by seed. From five seeds on one whose interval leaves "
        "out 0 is in bold; of five that happens by chance in 9 of 100 cases, of ten in 5."
    )
    (folder / "results.md").write_text(f"{table}\n\n{note}\n")
    (folder / "results.tex").write_text(_latex(head, body, note))
    return table


def _write_csv(
    path: Path,
    rows: Sequence[Row],
    chosen: Row | None,
    columns: Mapping[str, str],
    chosen_by: str,
) -> None:
    ends = ("mean", "low", "high")
    fields = [*rows[0].hyperparameters, "seeds", "diverged", "chosen"]
    fields += [f"validation {chosen_by} mean"]
    fields += [f"test {key} {end}" for key in columns for end in ends]
    fields += [f"difference in {chosen_by} {end}" for end in ends]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(fields)
        for row in rows:
            line = [*row.hyperparameters.values(), len(row.trials) + row.diverged, row.diverged]
            line += [int(row is chosen), _number(row.validation)]
            intervals = [interval_on_test(row, key) for key in columns]
            for interval in (*intervals, difference(row, chosen, chosen_by)):
                line += [_number(value) for value in interval or [math.nan] * 3]
            writer.writerow(line)


def _line(row: Row, chosen: Row | None, columns: Mapping[str, str], chosen_by: str) -> list[str]:
    """Returns the entries of a row of the table."""
    line = [_plain(value) for value in row.hyperparameters.values()]
    # The area under a curve is near 100 % for all.
    line += [_percent(interval_on_test(row, k), digits=2 if k == "auc" else 1) for k in columns]
    if row is chosen:
        line = [f"**{value}**" for value in line] + ["chosen"]
    else:
        text = _percent(difference(row, chosen, chosen_by), signed=True)
        line.append(f"**{text}**" if differs(row, chosen, chosen_by) else text)
    count = f"{len(row.trials) + row.diverged}"
    return [*line, count + (f", {row.diverged} diverged" if row.diverged else "")]


def _latex(head: Sequence[str], body: Sequence[Sequence[str]], note: str) -> str:
    def escaped(text: str) -> str:
        if text.startswith("**") and text.endswith("**"):
            return rf"\textbf{{{escaped(text[2:-2])}}}"
        for character in "&%#_":
            text = text.replace(character, "\\" + character)
        return text.replace(_MINUS, "$-$")

    def line(texts: Sequence[str]) -> str:
        return " & ".join(escaped(text) for text in texts) + r" \\"

    lines = [
        "% needs \\usepackage{booktabs}",
        rf"\begin{{tabular}}{{{'l' + 'r' * (len(head) - 1)}}}",
        r"\toprule",
        line(head),
        r"\midrule",
        *map(line, body),
        r"\bottomrule",
        r"\end{tabular}",
        f"% {note}",
    ]
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    return f"{value:.6f}" if math.isfinite(value) else ""


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _percent(interval: Interval | None, *, digits: int = 1, signed: bool = False) -> str:
    if interval is None:
        return "-"
    style = f"{'+' if signed else ''}.{digits}f"
    mean, low, high = (f"{100 * value:{style}}".replace("-", _MINUS) for value in interval)
    if not math.isfinite(interval.low):
        return mean
    return f"{mean} [{low}, {high}]"

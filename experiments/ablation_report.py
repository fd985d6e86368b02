"""Tables and figures of an ablation, from the cells that are finished."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from contrastive_jax.evaluation.intervals import Interval, bootstrap_interval

SHOWN = {
    "precision_at_1": "P@1",
    "r_precision": "R-precision",
    "map_at_r": "MAP@R",
    "auc": "pair AUC",
}
SHOWN_OF_PAIRS = {
    "auc": "pair AUC",
    "average_precision": "average precision",
    "accuracy": "accuracy",
}

Cell = dict[str, Any]

_MINUS = "\N{MINUS SIGN}"


class Row(NamedTuple):
    """A setting: all its seeds."""

    setting: dict[str, Any]
    """Without the seed."""
    cells: list[Cell]
    """Those that did not diverge, by seed."""
    diverged: int
    validation: float
    """Mean of what it is chosen by; -inf if a seed diverged."""


def rows_of(cells: Sequence[Cell], shown_by: str) -> list[Row]:
    """Gathers cells by setting, in the order in which each comes first.

    Args:
      cells: finished ones.
      shown_by: the figure by which a setting is chosen.

    Returns:
      A row for each setting.
    """
    gathered: dict[str, list[Cell]] = {}
    for cell in cells:
        setting = {key: value for key, value in cell["setting"].items() if key != "seed"}
        gathered.setdefault(repr(setting), []).append(cell)
    rows = []
    for cells in gathered.values():
        cells.sort(key=lambda cell: cell["setting"]["seed"])
        whole = [cell for cell in cells if cell["diverged"] is None]
        diverged = len(cells) - len(whole)
        validation = -math.inf
        if not diverged:
            validation = sum(cell["validation"][shown_by] for cell in whole) / len(whole)
        setting = {key: value for key, value in cells[0]["setting"].items() if key != "seed"}
        rows.append(Row(setting, whole, diverged, validation))
    return rows


def chosen_of(rows: Sequence[Row]) -> Row | None:
    """The setting of the best mean on validation; None where each has a seed that diverged."""
    best = max(rows, key=lambda row: row.validation, default=None)
    return best if best is not None and best.validation > -math.inf else None


def best_by(rows: Sequence[Row], axis: str) -> dict[Any, Row]:
    """For each value of an axis the row that validation chooses among those that have it."""
    best: dict[Any, Row] = {}
    for row in rows:
        value = row.setting[axis]
        if value not in best or row.validation > best[value].validation:
            best[value] = row
    return dict(sorted(best.items()))


def interval_of(row: Row, key: str) -> Interval | None:
    """Mean on test over seeds with its interval; None where all diverged."""
    return bootstrap_interval([cell["test"][key] for cell in row.cells]) if row.cells else None


def difference_of(row: Row, chosen: Row | None, key: str) -> Interval | None:
    """By how much a setting is better on test than the chosen one, seed by seed."""
    if chosen is None or row is chosen:
        return None
    of_chosen = {cell["setting"]["seed"]: cell["test"][key] for cell in chosen.cells}
    pairs = [
        cell["test"][key] - of_chosen[cell["setting"]["seed"]]
        for cell in row.cells
        if cell["setting"]["seed"] in of_chosen
    ]
    return bootstrap_interval(pairs) if pairs else None


def is_one(row: Row, chosen: Row | None, key: str) -> bool:
    """Tells whether a difference of five seeds or more has an interval without 0."""
    difference = difference_of(row, chosen, key)
    return (
        len(row.cells) >= 5
        and difference is not None
        and (difference.low > 0 or difference.high < 0)
    )


def write_tables(folder: Path, rows: Sequence[Row], shown_by: str) -> str:
    """Writes results.csv, results.md and results.tex.

    Args:
      folder: of the run.
      rows: of settings.
      shown_by: the figure by which a setting is chosen, and of which differences are shown.

    Returns:
      The Markdown table.
    """
    chosen = chosen_of(rows)
    axes = [*rows[0].setting]
    of_pairs = all("map_at_r" not in cell["test"] for row in rows for cell in row.cells)
    columns = dict(SHOWN_OF_PAIRS if of_pairs and shown_by in SHOWN_OF_PAIRS else SHOWN)
    if shown_by not in columns:
        columns = {shown_by: shown_by} | columns
    fields = [*axes, "seeds", "diverged", "chosen", f"validation {shown_by} mean"]
    for key in columns:
        fields += [f"test {key} {what}" for what in ("mean", "low", "high")]
    fields += [f"difference in {shown_by} {what}" for what in ("mean", "low", "high")]
    with (folder / "results.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(fields)
        for row in rows:
            line = [*row.setting.values(), len(row.cells) + row.diverged, row.diverged]
            line += [int(row is chosen), _number(row.validation)]
            for key in columns:
                line += [_number(value) for value in interval_of(row, key) or [math.nan] * 3]
            line += [
                _number(value) for value in difference_of(row, chosen, shown_by) or [math.nan] * 3
            ]
            writer.writerow(line)

    head = [*axes, *[f"{name} (%)" for name in columns.values()]]
    head += [f"{columns[shown_by]}, difference from the chosen", "seeds"]
    body = []
    for row in rows:
        line = [_plain(value) for value in row.setting.values()]
        # The area under a curve is near 100 % for all.
        line += [_percent(interval_of(row, k), digits=2 if k == "auc" else 1) for k in columns]
        if row is chosen:
            line = [f"**{value}**" for value in line] + ["chosen"]
        else:
            difference = _percent(difference_of(row, chosen, shown_by), signed=True)
            line.append(f"**{difference}**" if is_one(row, chosen, shown_by) else difference)
        count = f"{len(row.cells) + row.diverged}"
        body.append([*line, count + (f", {row.diverged} diverged" if row.diverged else "")])
    align = ["---:" if k else "---" for k in range(len(head))]
    table = "\n".join("| " + " | ".join(line) + " |" for line in (head, align, *body))
    note = (
        f"Means on test with 95 % bootstrap intervals over seeds; chosen by the mean {shown_by} on "
        "validation; differences are seed by seed. From five seeds on one whose interval leaves "
        "out 0 is in bold; of five that happens by chance in 9 of 100 cases, of ten in 5."
    )
    (folder / "results.md").write_text(f"{table}\n\n{note}\n")
    (folder / "results.tex").write_text(_latex(head, body, note))
    return table


def _latex(head: Sequence[str], body: Sequence[Sequence[str]], note: str) -> str:
    def cell(text: str) -> str:
        if text.startswith("**") and text.endswith("**"):
            return rf"\textbf{{{cell(text[2:-2])}}}"
        for character in "&%#_":
            text = text.replace(character, "\\" + character)
        return text.replace(_MINUS, "$-$")

    def line(texts: Sequence[str]) -> str:
        return " & ".join(cell(text) for text in texts) + r" \\"

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


def values_by(rows: Mapping[Any, Row], key: str) -> dict[Any, list[float]]:
    """The values on test of all seeds, by the number that is varied."""
    return {x: [cell["test"][key] for cell in row.cells] for x, row in rows.items()}

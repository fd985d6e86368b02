"""The tables and figures of an ablation, from the records of its trials."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from contrastive_jax import ablation_plots, plots
from contrastive_jax.data.datasets import Dataset, PairDataset
from contrastive_jax.evaluation import trial_tables
from contrastive_jax.evaluation.tables import TITLES
from contrastive_jax.evaluation.trial_tables import Row
from contrastive_jax.train import embed, loss_table
from contrastive_jax.train.ranges import RANGES, Limits
from contrastive_jax.train.trial_assembly import AssembledTrials
from contrastive_jax.train.trial_folder import read_trials, restore_trial, trial_key


def figures_of_rows(
    rows: Sequence[Row],
    data: Dataset | PairDataset,
    distance: Callable[..., jax.Array],
    *,
    shown_by: str,
    encoder: Callable[[Mapping[str, Any]], Callable[[np.ndarray], np.ndarray]],
    marked: bool = False,
) -> dict[str, Any]:
    """Draws figures over the margin or the first hyperparameter that varies.

    Args:
      rows: of trials of one structure, from `trial_tables.rows_by_hyperparameters`.
      data: that they were trained on.
      distance: between two embeddings.
      shown_by: the figure on validation by which values are chosen, such as `"map_at_r"`.
      encoder: from the record of a trial to its function from images to embeddings.
      marked: whether the margin is marked among the distances of pairs, where it is varied.

    Returns:
      Figures of Matplotlib by name, which are `curve`, `active` where the share of active pairs was
      logged, and those of `ablation_plots.encoder_figures`. There are none where nothing varies.

    Example:
      >>> import contrastive_jax as cj
      >>> from contrastive_jax.ablation_report import figures_of_rows
      >>> from contrastive_jax.evaluation.trial_tables import Row
      >>> figures = {"precision_at_1": 0.9, "map_at_r": 0.5}
      >>> trial = {"test": figures, "validation": figures, "history": {"step": [10]}}
      >>> rows = [Row({"margin": margin}, [trial], 0, 0.5) for margin in (0.5, 1.0)]
      >>> encoder = lambda trial: lambda images: images.reshape(len(images), -1) / 255
      >>> digits, distance = cj.data.load("digits"), cj.distances.euclidean
      >>> drawn = figures_of_rows(rows, digits, distance, shown_by="map_at_r", encoder=encoder)
      >>> sorted(drawn)
      ['curve', 'distances', 'maps']
    """
    first = rows[0].hyperparameters if rows else {}
    varied = [name for name, value in first.items() if isinstance(value, float)]
    if not varied:
        return {}
    axis = "margin" if "margin" in varied else varied[0]
    quantity = axis.replace("_", " ")
    best = {x: row for x, row in trial_tables.best_rows(rows, axis).items() if row.trials}
    if not best:
        return {}
    if any(one["test"] is None for row in best.values() for one in row.trials):
        raise ValueError("the figures of an ablation need trials that are evaluated on test")
    row = trial_tables.chosen_row([*best.values()])
    chosen = row.hyperparameters[axis] if row else None
    beside = "average_precision" if isinstance(data, PairDataset) else "precision_at_1"
    curves = {
        TITLES[key]: {x: [one["test"][key] for one in row.trials] for x, row in best.items()}
        for key in (beside, shown_by)
    }
    figures = {
        "curve": ablation_plots.metric_curves(
            curves, quantity, chosen=chosen, logarithmic=max(best) > 20 * min(best) > 0
        )
    }
    histories = {
        x: _mean_history([one["history"] for one in row.trials])
        for x, row in best.items()
        if "active_fraction" in row.trials[0]["history"]
    }
    if histories:
        figures["active"] = ablation_plots.active_pairs(histories, quantity)
    encoders = {x: encoder(row.trials[0]) for x, row in best.items()}
    return figures | ablation_plots.encoder_figures(
        encoders, data, distance, quantity, chosen=chosen, marked=marked and axis == "margin"
    )


def figures_of_trials(
    folder: Path, trials: AssembledTrials, rows: Sequence[Row], *, shown_by: str
) -> dict[str, Any]:
    """Draws figures of trials that are finished in a folder, as `figures_of_rows`.

    Args:
      folder: where the trials are stored.
      trials: of one structure.
      rows: of these trials, from `trial_tables.rows_by_hyperparameters`.
      shown_by: the figure on validation by which values are chosen.

    Example:
      >>> from pathlib import Path
      >>> import contrastive_jax as cj
      >>> from contrastive_jax.ablation_report import figures_of_trials
      >>> from contrastive_jax.train.training import Training
      >>> from contrastive_jax.train.trial_assembly import Variant, assemble_trials
      >>> digits, objective = cj.data.load("digits"), cj.train.objective("supcon")
      >>> training = Training(model=cj.models.MLP, data=digits, objective=objective, steps=4)
      >>> trials = assemble_trials(training, [Variant({"seed": 0}, 0, objective)])
      >>> figures_of_trials(Path(), trials, [], shown_by="map_at_r")
      {}
    """

    def encoder(trial: Mapping[str, Any]) -> Callable[[np.ndarray], np.ndarray]:
        state = restore_trial(folder, trial, trials.init(0))
        return partial(embed, trials.parts.network.encode, state.weights)

    return figures_of_rows(
        rows,
        trials.data,
        trials.objective.distance,
        shown_by=shown_by,
        encoder=encoder,
        marked=trials.objective.name in loss_table.BOUNDED,
    )


def write_report(
    folder: Path,
    structures: Mapping[str, AssembledTrials],
    *,
    shown_by: str,
    show: Callable[[str], Any] = print,
) -> list[Row]:
    """Writes the tables and the figures of the trials that are finished in a folder.

    Args:
      folder: where the trials are stored.
      structures: trials of each structure, by its name, which may be empty.
      shown_by: the figure on validation by which values are chosen.
      show: takes the table, and lines that tell how the report goes.

    Returns:
      The rows of the table, of all structures.

    Raises:
      ValueError: if trials were not evaluated on test.

    Example:
      >>> from pathlib import Path
      >>> import contrastive_jax as cj
      >>> from contrastive_jax.ablation_report import write_report
      >>> from contrastive_jax.train.training import Training
      >>> from contrastive_jax.train.trial_assembly import Variant, assemble_trials
      >>> from contrastive_jax.train.trial_loop import Schedule, train_trials
      >>> digits, objective = cj.data.load("digits"), cj.train.objective("supcon")
      >>> training = Training(
      ...     model=cj.models.MLP, data=digits, objective=objective, steps=4, batch_size=32
      ... )
      >>> trials = assemble_trials(training, [Variant({"seed": 0}, 0, objective)])
      >>> train_trials(trials, Path(), Schedule(4, 2, 2), report=lambda line: None)
      >>> show = lambda line: None
      >>> len(write_report(Path(), {"": trials}, shown_by="map_at_r", show=show))
      1
      >>> Path("results.csv").exists()
      True
    """
    lines, rows = read_trials(folder), {}
    for structure, trials in structures.items():
        finished = [lines[key] for key in map(trial_key, trials.recorded) if key in lines]
        rows[structure] = trial_tables.rows_by_hyperparameters(finished, shown_by)
    together = [*itertools.chain(*rows.values())]
    show(trial_tables.write_tables(folder, together, shown_by))
    show("drawing figures, which takes a while")
    (folder / "figures").mkdir(exist_ok=True)
    for structure, trials in structures.items():
        drawn = figures_of_trials(folder, trials, rows[structure], shown_by=shown_by)
        for name, figure in drawn.items():
            path = f"{name}-{structure}.png" if structure else f"{name}.png"
            plots.save(figure, folder / "figures" / path)
    return together


def wider_axes(
    rows: Sequence[Row], ranges: Mapping[str, Limits] = RANGES, *, reach: float = math.inf
) -> dict[str, tuple[str, list[float]]]:
    """Returns values that widen the grid, for each axis whose best value lies at its edge.

    Args:
      rows: from `write_report`.
      ranges: of hyperparameters, which a value beyond the edge may not leave.
      reach: the largest margin that the distance can reach.

    Returns:
      For each such axis a sentence, and its values with one beyond the edge.

    Example:
      >>> from contrastive_jax.ablation_report import wider_axes
      >>> from contrastive_jax.evaluation.trial_tables import Row
      >>> rows = [Row({"margin": m}, [], 0, m) for m in (0.25, 0.5, 1.0)]
      >>> sentence, values = wider_axes(rows)["margin"]
      >>> sentence[:45], values
      ('the chosen margin, 1, is the largest of the g', [0.25, 0.5, 1.0, 2.0])
    """
    wider = {}
    for axis, beyond in trial_tables.edges(rows).items():
        if axis == "margin":
            beyond = min(beyond, reach)
        values = sorted({row.hyperparameters[axis] for row in rows})
        if beyond in values or (axis in ranges and not ranges[axis].holds(beyond)):
            continue
        below = beyond < values[0]
        end, edge = ("smallest", values[0]) if below else ("largest", values[-1])
        sentence = (
            f"the chosen {axis}, {edge:g}, is the {end} of the grid, and a better one may lie "
            "beyond it"
        )
        wider[axis] = sentence, sorted([*values, beyond])
    return wider


def _mean_history(histories: Sequence[Mapping[str, Any]]) -> tuple[Any, Any]:
    """Returns steps and the mean share of active pairs over seeds."""
    shares = np.array([history["active_fraction"] for history in histories], np.float64)
    return histories[0]["step"], shares.mean(axis=0)

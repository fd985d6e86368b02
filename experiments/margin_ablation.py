"""Trains a grid of margins and seeds, and shows which margin to take and how sure that is.

    python -m experiments.margin_ablation                                   # digits, a few minutes
    python -m experiments.margin_ablation --dataset fashion_mnist --margins 0.25 0.5 1 --seeds 5
    python -m experiments.margin_ablation --grid learning_rate=1e-3,4e-3 --grid width=2,64
    python -m experiments.margin_ablation --resume NAME                     # goes on, or adds cells

Numbers are data: all cells that share their structure train from one compilation, one after
another, mapped, or spread over devices, whichever a short trial finds the quickest. The setting is
chosen by the mean over seeds on validation; what is reported is the mean over seeds on test with a
95 % bootstrap interval, and the difference from the setting that was chosen, seed by seed.

runs/NAME/config.json    every option
          cells.jsonl    a line for each finished cell: settings, figures, and its course
          states/        the final state of each
          running/       where the cells that are being trained have got to
          results.csv, results.md, results.tex
          figures/       PNG
"""

import dataclasses
import itertools
import json
import shutil
import time
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np

from contrastive_jax._extras import needs

with needs("train", "experiments.margin_ablation"):
    import tyro
    from tqdm import tqdm

from contrastive_jax import ablation_plots, plots
from contrastive_jax.data import Dataset, PairDataset
from contrastive_jax.evaluation.given_pairs import distances_of_pairs, points_of_pairs
from contrastive_jax.evaluation.summary import drawn_distances
from contrastive_jax.train import (
    Hyperparameters,
    Source,
    TrainState,
    checkpoints,
    embed,
    loss_table,
)
from contrastive_jax.train import folder as runs
from contrastive_jax.train import grid as grids
from experiments import ablation_report, cells, command, evaluate, option_checks, options

MARGINS = (0.1, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
# Of a cell over its steps, means over windows.
COURSE = ("loss", "similar_distance", "dissimilar_distance", "active_fraction")
# What each line of cells.jsonl has.
LINE = ("setting", "diverged", "validation", "test", "course", "seconds", "state")
# More margins, seeds and values of an axis are more cells.
FREE = cells.FREE | {"margins", "seeds", "grid", "save_every"}

Course = dict[str, list[float | None]]


@dataclasses.dataclass(frozen=True)
class Config(cells.Training):
    """Options of an ablation."""

    margins: tuple[float, ...] | None = None
    """The margins; by default 0.1 to 1.5, seven of them, if the loss has one."""
    seeds: int = 5
    """Trainings of each setting, seeds 0, 1, ..."""
    grid: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME=VALUE,VALUE")
    ] = ()
    """One more axis of the grid, once for each: a number of the training or of the loss, or
    encoder, width, loss, distance, objective, batch_size, group."""
    save_every: int = 500
    """Steps between two saves of the cells that are being trained; a multiple of log_every."""


def main(config: Config) -> Path:
    """Runs the ablation and returns its folder."""
    began = time.perf_counter()
    config = option_checks.checked(config)
    axes = axes_of(config)
    _check(config)
    # Before anything runs: JAX starts with the devices it has then.
    devices = cells.devices_of(config)
    groups = cells.groups(cells.base_of(config), cells.product(axes))
    cells.check_groups(groups, devices[: config.devices_per_cell])
    option_checks.warn_of_reach(itertools.chain(*(group.configs for group in groups)))
    data = options.load_data(config)
    config = cells.shown_on(config, data)
    cells.check_data(groups, data, devices[: config.devices_per_cell])
    name, count = f"margin-ablation-{options.data_name(config)}", len(cells.product(axes))
    with cells.open_run(config, name, axes, FREE, devices[0]) as folder:
        done = {cells.key_of(cell["setting"]) for cell in _finished(folder)}
        print(
            f"{folder}: {data.name}, {count} cells of {config.steps:,} steps, {len(groups)} to "
            "compile"
        )
        with tqdm(total=count * config.steps, unit="step", disable=None, smoothing=0.05) as bar:
            for group in groups:
                pending = [
                    place
                    for place, setting in enumerate(group.settings)
                    if cells.key_of(setting) not in done
                ]
                bar.update((len(group.settings) - len(pending)) * config.steps)
                if pending:
                    _train(config, folder, group.part(pending), data, devices, bar)
        report(config, folder, groups, data, devices)
    print(f"{folder} is complete after {time.perf_counter() - began:.0f} s")
    return folder


def axes_of(config: Config) -> dict[str, list[Any]]:
    """The axes of the grid: margins, those named, and seeds.

    Raises:
      ValueError: if an axis is none of the training, or of a loss.
    """
    named = cells.parse_axes(config.grid)
    losses = named.get("loss", [config.loss])
    margins = config.margins
    if margins is not None and "margin" in named:
        raise ValueError("--margins and --grid margin=... name the same axis: leave one out")
    if margins is None and "margin" not in named and {*losses} <= {*loss_table.BOUNDED}:
        margins = MARGINS
    if margins is not None:
        if not margins or len({*margins}) < len(margins):
            raise ValueError(f"--margins must be at least one, all different, got {margins}")
        named = {"margin": [*margins]} | named
    if not named:
        raise ValueError(
            f"nothing is varied: name margins of {', '.join(losses)} with --margins, or another "
            "axis with --grid"
        )
    cells.check_axes(named, losses)
    option_checks.check_axes(config, named, "the grid")
    return named | {"seed": [*range(config.seeds)]}


def _train(
    config: Config,
    folder: Path,
    group: cells.Group,
    data: Dataset | PairDataset,
    devices: Sequence[jax.Device],
    bar: Any,
) -> None:
    """Trains the cells of a group, keeping each when it is finished."""
    prepared = cells.prepare(group, data, devices[: config.devices_per_cell])
    keys = [cells.key_of(setting) for setting in group.settings]
    where = folder / "running" / (cells.structure_of(group) or "cells")
    record = _running(where, folder)
    begun = {key: one for key, one in record["cells"].items() if key in keys} if record else {}
    first = [keys.index(key) for key in begun]
    # All of them now: the first chunk that is trained takes their place.
    restored = {
        k: checkpoints.restore_state(folder / begun[keys[k]]["state"], prepared.init(k))
        for k in first
    }
    grid = cells.compile_grid(
        config, prepared, devices, (record["strategy"], record["at_once"]) if record else None
    )
    source = jax.device_put(prepared.source, grid.shared)
    rest = [k for k in range(len(keys)) if k not in first]
    for part, start in ((first, record["step"] if record else 0), (rest, 0)):
        for at in range(0, len(part), grid.cells):
            chunk = part[at : at + grid.cells]
            these = [begun.get(keys[k], _nothing()) for k in chunk]
            states = [restored[k] if k in restored else prepared.init(k) for k in chunk]
            _train_chunk(
                config, folder, where, group.part(chunk), data, prepared, grid, source, bar,
                [prepared.numbers[k] for k in chunk], states, these, start,
            )  # fmt: skip


def _finished(folder: Path) -> list[dict[str, Any]]:
    """Reads the lines of finished cells; with a warning it leaves out what is none."""
    return runs.read_lines(folder / "cells.jsonl", keys=LINE)


def _running(where: Path, folder: Path) -> dict[str, Any] | None:
    """Reads where the cells of a group have got to: its record, or None.

    Cells whose state is damaged are left out, with a warning, and train from their first step.
    """
    path = where / "record.json"
    if not path.exists():
        return None
    try:
        record = checkpoints.unseal(json.loads(path.read_bytes()))
    except ValueError as error:
        warnings.warn(
            f"{path} is damaged ({error}): its cells train from step 0 again", stacklevel=2
        )
        return None
    whole = {}
    for key, one in record["cells"].items():
        state = folder / one["state"]
        if reason := checkpoints.damage(state):
            warnings.warn(
                f"{state} is damaged ({reason}): cell {key} trains from step 0 again", stacklevel=2
            )
        else:
            whole[key] = one
    return record | {"cells": whole}


def _nothing() -> dict[str, Any]:
    """Returns the record of a cell before its first step."""
    return {"course": {}, "diverged": None, "seconds": 0.0}


def _train_chunk(
    config: Config,
    folder: Path,
    where: Path,
    chunk: cells.Group,
    data: Dataset | PairDataset,
    prepared: cells.Prepared,
    grid: grids.Grid,
    source: Source,
    bar: Any,
    numbers: Sequence[Hyperparameters],
    states: list[TrainState],
    known: list[dict[str, Any]],
    step: int,
) -> None:
    """Trains the cells that fit into one call, from where they have got to."""
    bar.update(step * len(states))
    windows = grids.train_grid(
        grid,
        states.__getitem__,
        source,
        numbers,
        start=step,
        steps=config.steps,
        window=config.log_every,
    )
    began = time.perf_counter()
    for window in windows:
        seconds = (time.perf_counter() - began) / len(states)
        for place, one in enumerate(known):
            one["course"].setdefault("step", []).append(window.step)
            for name in COURSE:
                if name in window.metrics:
                    mean = float(np.mean(window.metrics[name][place]))
                    # JSON has no NaN.
                    one["course"].setdefault(name, []).append(mean if np.isfinite(mean) else None)
            one["diverged"] = one["diverged"] or window.diverged[place]
            one["seconds"] += seconds
        bar.update(len(states) * (window.step - step))
        step = window.step
        over = step == config.steps or all(one["diverged"] for one in known)
        if over or step % config.save_every == 0:
            states = [window.state(place) for place in range(len(states))]
            _save_running(folder, where, chunk, grid, step, known, states)
        began = time.perf_counter()
    bar.update(len(states) * (config.steps - step))
    for setting, state, one in zip(chunk.settings, states, known, strict=True):
        figures = cells.figures_of(prepared, state, data) if one["diverged"] is None else None
        if figures is None:
            one["diverged"] = one["diverged"] or config.steps
        # The state first: a line stands for a whole cell.
        path = cells.state_path(setting)
        checkpoints.save_state(folder / path, state)
        line = {"setting": setting, "diverged": one["diverged"]}
        line |= {part: figures and figures[part] for part in ("validation", "test")}
        line |= {"course": one["course"], "seconds": round(one["seconds"], 2)}
        runs.append_line(folder / "cells.jsonl", line | {"state": path})
    shutil.rmtree(where, ignore_errors=True)


def _save_running(
    folder: Path,
    where: Path,
    chunk: cells.Group,
    grid: grids.Grid,
    step: int,
    known: Sequence[dict[str, Any]],
    states: Sequence[TrainState],
) -> None:
    """Keeps where cells have got to, in place of where they were before."""
    record: dict[str, Any] = {"strategy": grid.strategy, "at_once": grid.cells, "step": step}
    record["cells"] = {}
    for place, (setting, one, state) in enumerate(zip(chunk.settings, known, states, strict=True)):
        path = where / str(step) / str(place)
        checkpoints.save_state(path, state)
        record["cells"][cells.key_of(setting)] = one | {"state": str(path.relative_to(folder))}
    whole = where / "record.tmp"
    whole.write_text(json.dumps(checkpoints.seal(record)))
    whole.replace(where / "record.json")
    for old in where.iterdir():
        if old.is_dir() and old.name != str(step):
            shutil.rmtree(old)


def report(
    config: Config,
    folder: Path,
    groups: Sequence[cells.Group],
    data: Dataset | PairDataset,
    devices: Sequence[jax.Device],
) -> None:
    """Writes tables and figures of the finished cells of this grid."""
    lines = {cells.key_of(cell["setting"]): cell for cell in _finished(folder)}
    finished = [
        [lines[key] for key in map(cells.key_of, group.settings) if key in lines]
        for group in groups
    ]
    rows = [ablation_report.rows_of(part, str(config.shown_by)) for part in finished]
    print(ablation_report.write_tables(folder, [*itertools.chain(*rows)], str(config.shown_by)))
    (folder / "figures").mkdir(exist_ok=True)
    for group, of_group in zip(groups, rows, strict=True):
        structure = cells.structure_of(group)
        for name, figure in _figures(config, folder, group, of_group, data, devices).items():
            path = f"{name}-{structure}.png" if structure else f"{name}.png"
            plots.save(figure, folder / "figures" / path)


def _figures(
    config: Config,
    folder: Path,
    group: cells.Group,
    rows: Sequence[ablation_report.Row],
    data: Dataset | PairDataset,
    devices: Sequence[jax.Device],
) -> dict[str, Any]:
    """Figures of cells of one structure, over the margin or the first number that is varied."""
    numbers = [k for k, v in group.settings[0].items() if isinstance(v, float)]
    if not numbers:
        return {}
    axis = "margin" if "margin" in numbers else numbers[0]
    quantity = axis.replace("_", " ")
    best = {x: row for x, row in ablation_report.best_by(rows, axis).items() if row.cells}
    if not best:
        return {}
    chosen = ablation_report.chosen_of([*best.values()])
    beside = "average_precision" if isinstance(data, PairDataset) else "precision_at_1"
    shown = {key: evaluate.TITLES[key] for key in (beside, str(config.shown_by))}
    figures = {
        "curve": ablation_plots.metric_curves(
            {name: ablation_report.values_by(best, key) for key, name in shown.items()},
            quantity,
            chosen=chosen.setting[axis] if chosen else None,
            logarithmic=max(best) > 20 * min(best) > 0,
        )
    }
    courses = {
        x: _mean_course([cell["course"] for cell in row.cells])
        for x, row in best.items()
        if "active_fraction" in row.cells[0]["course"]
    }
    if courses:
        figures["active"] = ablation_plots.active_pairs(courses, quantity)
    keys = [cells.key_of(setting) for setting in group.settings]
    shown_cells = [row.cells[0] for row in best.values()]
    places = [keys.index(cells.key_of(cell["setting"])) for cell in shown_cells]
    prepared = cells.prepare(group.part(places), data, devices[: config.devices_per_cell])
    embeddings, pairs = {}, {}
    for k, (x, cell) in enumerate(zip(best, shown_cells, strict=True)):
        try:
            state = checkpoints.restore_state(folder / cell["state"], prepared.init(k))
        except ValueError as error:
            error.add_note(
                f"to train the cell anew, remove the line of {cell['setting']} from "
                f"{folder / 'cells.jsonl'} and --resume the run"
            )
            raise
        encode = partial(embed, prepared.assembled.network.encode, state.weights)
        if isinstance(data, PairDataset):
            points = points_of_pairs(encode, data.images, data.test)
            pairs[x] = (distances_of_pairs(points, prepared.distance), points.labels)
        else:
            embeddings[x] = encode(data.test.images)
            pairs[x] = drawn_distances(
                embeddings[x], data.test.classes, prepared.distance, pairs=20_000, seed=0
            )
    marked = axis == "margin" and group.configs[0].loss in loss_table.BOUNDED
    figures["distances"] = ablation_plots.distance_ridge(pairs, quantity, marked=marked)
    if isinstance(data, PairDataset):
        return figures
    five = _five([*best], chosen.setting[axis] if chosen else None)
    figures["maps"] = ablation_plots.maps(
        {x: embeddings[x] for x in five},
        data.test.classes,
        quantity,
        class_names=data.class_names,
    )
    return figures


def _mean_course(courses: Sequence[Course]) -> tuple[Any, Any]:
    shares = np.array([course["active_fraction"] for course in courses], np.float64)
    return courses[0]["step"], shares.mean(axis=0)


def _five(values: list[float], chosen: float | None) -> list[float]:
    """Up to five of them, spread evenly, the chosen one among them."""
    if len(values) <= 5:
        return values
    places = np.linspace(0, len(values) - 1, 5).round().astype(int)
    if chosen is not None and chosen not in [values[k] for k in places]:
        # Not in place of an end.
        inner = places[1:-1]
        inner[np.abs(inner - values.index(chosen)).argmin()] = values.index(chosen)
    return [values[k] for k in sorted({*places.tolist()})]


def _check(config: Config) -> None:
    cells.check(config)
    if config.save_every % config.log_every:
        raise ValueError(
            f"--save_every must be a multiple of --log_every, got {config.save_every} and "
            f"{config.log_every}"
        )


if __name__ == "__main__":
    command.run(main, lambda: command.parse(Config, "experiments.margin_ablation", str(__doc__)))

"""Trains a grid of margins and seeds, and shows which margin to take and how sure that is.

    python -m experiments.margin_ablation                                   # digits, a few minutes
    python -m experiments.margin_ablation --dataset fashion_mnist --margins 0.25 0.5 1 --seeds 5
    python -m experiments.margin_ablation --grid learning_rate=1e-3,4e-3 --grid width=2,64
    python -m experiments.margin_ablation --resume NAME               # goes on, or adds trials

Hyperparameters are data: all trials that share their structure train from one compilation, one
after another, mapped, or spread over devices, whichever a short trial finds the fastest. The value
is chosen by the mean over seeds on validation. The report has the mean over seeds on test with a
95 % bootstrap interval, and the difference from the chosen value, seed by seed.

runs/NAME/config.json    every option
          trials.jsonl   a line for each finished trial: hyperparameters, figures and history
          states/        the final state of each
          running/       the last saved states of the trials that are training
          results.csv, results.md, results.tex
          figures/       PNG
"""

import dataclasses
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from contrastive_jax import cli
from contrastive_jax._extras import needs

with needs("train", "experiments.margin_ablation"):
    from tqdm import tqdm

from contrastive_jax.ablation_report import wider_axes, write_report
from contrastive_jax.evaluation import trial_tables
from contrastive_jax.search.texts import parse_axes
from contrastive_jax.train import diagnostics, loss_table
from contrastive_jax.train.progress import step_bar
from contrastive_jax.train.ranges import check_multiples
from contrastive_jax.train.trial_axes import combinations
from contrastive_jax.train.trial_loop import Schedule, train_pending
from experiments import command, option_checks, options, trials

MARGINS = (0.1, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
# More margins, seeds and values of an axis are more trials.
FREE = trials.FREE | {"margins", "seeds", "grid", "save_every"}


@dataclasses.dataclass(frozen=True)
class Config(trials.Training):
    """Options of an ablation."""

    margins: tuple[float, ...] | None = None
    """The margins; by default 0.1 to 1.5, seven of them, if the loss has one."""
    seeds: int = 5
    """Trials of each combination of hyperparameters, with seeds 0, 1, ..."""
    grid: Annotated[tuple[str, ...], cli.UseAppendAction, cli.arg(metavar="NAME=VALUE,VALUE")] = ()
    """One more axis of the grid, once for each: a hyperparameter of the training or of the loss, or
    encoder, width, loss, distance, objective, batch_size, group."""
    save_every: int = 500
    """Steps between two saves of the trials that are training; a multiple of log_every."""


def main(config: Config) -> Path:
    """Runs the ablation and returns its folder."""
    began = time.perf_counter()
    config = option_checks.checked(config)
    axes = axes_of(config)
    with command.naming_options(vars(config)):
        check_multiples(vars(config), [("save_every", "log_every")])
    rows = combinations(axes)
    config, groups, data, devices = trials.prepared(config, rows)
    name = f"margin-ablation-{options.data_name(config)}"
    record = trials.recorded(config, axes, devices[0], data)
    with options.open_run(config, name, record, free=FREE) as folder:
        print(
            f"{folder}: {data.name}, {len(rows)} trials of {config.steps:,} steps, {len(groups)} "
            "to compile"
        )
        made = {
            group.structure: trials.assembled(group, data, devices[: config.devices_per_trial])
            for group in groups
        }
        schedule = Schedule(config.steps, config.log_every, config.save_every)
        with step_bar(len(rows) * config.steps) as advance:
            for structure, one in made.items():
                train_pending(
                    one,
                    folder,
                    schedule,
                    name=structure or "trials",
                    report=tqdm.write,
                    advance=advance,
                    **trials.grid_options(config, devices),
                )
        rows_shown = write_report(folder, made, shown_by=str(config.shown_by))
        for note in edge_notes(config, folder, rows_shown):
            print(note)
    print(f"{folder} is complete after {time.perf_counter() - began:.0f} s")
    return folder


def axes_of(config: Config) -> dict[str, list[Any]]:
    """Returns the axes of the grid: margins, those named, and seeds."""
    named = parse_axes(config.grid, trials.STRUCTURE)
    if "seed" in named:
        raise ValueError("--seeds says how many seeds there are: leave them out of --grid")
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
    trials.check_axes(config, named, losses, "the grid")
    return named | {"seed": [*range(config.seeds)]}


def edge_notes(config: Config, folder: Path, rows: Sequence[trial_tables.Row]) -> list[str]:
    """Returns a line for each axis whose edge was chosen, with the options that widen the grid."""
    notes = []
    wider = wider_axes(rows, option_checks.RULES, reach=_reach(config))
    for axis, (sentence, values) in wider.items():
        texts = [f"{one:g}" for one in values]
        option = f"--grid {axis}={','.join(texts)}"
        if axis == "margin" and not any(one.startswith("margin=") for one in config.grid):
            option = f"--margins {' '.join(texts)}"
        notes.append(f"{sentence}: --resume {folder.name} {option} adds trials")
    return notes


def _reach(config: Config) -> float:
    """Returns the largest margin that the distance can reach, infinite for other losses."""
    if config.loss != "contrastive":
        return math.inf
    distance = options.DISTANCES[config.distance or "euclidean"]
    return diagnostics.reach(distance, config.width, unit_length=config.normalize)


if __name__ == "__main__":
    cli.run(main, lambda: cli.parse(Config, "experiments.margin_ablation", str(__doc__)))

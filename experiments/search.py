"""Searches for the best hyperparameters of a training, without drawing the whole curve.

    python -m experiments.search                                          # the best margin
    python -m experiments.search --space margin=0.2:1.8 --space learning_rate=1e-3:1e-2:log
    python -m experiments.search --method optuna --space margin=0.2:1.8 --name NAME
    python -m experiments.search --method optuna --resume NAME

`halving` (Jamieson and Talwalkar 2016) starts many trials, trains all a little, keeps the third
that does best on validation, trains these on, and so forth: so many trials cost a few whole ones.
`optuna` asks Optuna for hyperparameters, some at a time, trains with them and tells it the figure
on validation. The study is a file, so that it goes on after an interruption, and several processes
may run the last line above at once, on one machine or on several that share a folder. Either way
the trials are those of a grid: other hyperparameters never compile anew. Then the winner is trained
with new seeds and evaluated on test.

runs/NAME/config.json    every option
          trials.jsonl   a line for each trial each time that it is evaluated
          states/        the states of the trials (halving)
          study.log      the study (optuna)
          results.json   the winner, and its figures on test with their intervals
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax

from contrastive_jax import cli, search
from contrastive_jax._extras import needs
from contrastive_jax.data import Dataset, PairDataset
from contrastive_jax.search import Group, Range, Trainer
from contrastive_jax.search.space import Hyperparameters, Space
from contrastive_jax.search.texts import parse_space
from contrastive_jax.search.winner import write_results
from contrastive_jax.train.loss_table import whole_hyperparameters
from contrastive_jax.train.trial_figures import chosen_figure
from experiments import option_checks, options, trials

FREE = trials.FREE | {"at_once", "seeds"}


@dataclasses.dataclass(frozen=True)
class Config(trials.Training):
    """Options of a search."""

    method: Literal["halving", "optuna"] = "halving"
    """Successive halving, or Optuna's suggestions."""
    space: Annotated[
        tuple[str, ...], cli.UseAppendAction, cli.arg(metavar="NAME=LOW:HIGH[:log]")
    ] = ("margin=0.1:1.8",)
    """A hyperparameter to search, or NAME=VALUE,VALUE of an option that changes the structure; once
    for each. By default margin=0.1:1.8."""
    trials: int = 27
    """Trials in all."""
    keep_one_in: int | None = None
    """Halving keeps one of so many trials each time; 3 by default."""
    at_once: int | None = None
    """Trials that Optuna is asked for at a time; 4 by default."""
    seeds: int = 5
    """Trainings of the winner, with seeds 1, 2, ...; the search has seed 0."""


def main(config: Config) -> Path:
    """Runs the search and returns its folder."""
    config = option_checks.checked(config)
    space = parse_space(config.space, trials.STRUCTURE)
    _check(config, space)
    config, _, data, devices = trials.prepared(config, search.corners(space))
    # A study takes more trials; in halving they are other rungs.
    free = FREE | ({"trials"} if config.method == "optuna" else set())
    name, shared = f"search-{options.data_name(config)}", config.method == "optuna"
    record = trials.recorded(config, space, devices[0], data)
    with options.open_run(config, name, record, free=free, shared=shared) as folder:
        print(f"{folder}: {data.name}, {config.trials} trials of {', '.join(space)}")
        trainer = trainer_of(config, data, devices)
        best = _best(config, trainer, space, folder)
        if best is not None:
            results = search.judge(
                trainer, best, seeds=config.seeds, steps=config.steps, folder=folder
            )
            print(write_results(folder, results))
    return folder


def _best(config: Config, trainer: Trainer, space: Space, folder: Path) -> Hyperparameters | None:
    """Returns what the search finds, None where other processes go on with it."""
    shared: dict[str, Any] = {"trials": config.trials, "steps": config.steps, "folder": folder}
    if config.method == "halving":
        return search.halving(trainer, space, **shared, **_rungs(config))
    return search.by_optuna(trainer, space, **shared, at_once=config.at_once or 4)


def trainer_of(
    config: Config, data: Dataset | PairDataset, devices: Sequence[jax.Device]
) -> Trainer:
    """Returns the trainer of trials with these options."""

    def groups(points: Sequence[Hyperparameters]) -> Iterator[Group]:
        for group in trials.groups(trials.base_of(config), points):
            made = trials.assembled(
                group,
                data,
                devices[: config.devices_per_trial],
                further_seeds=range(config.seeds + 1),
            )
            yield Group(group.structure, group.indices, made)

    return Trainer(
        groups, chosen_figure(data, config.shown_by), trials.grid_options(config, devices)
    )


def _rungs(config: Config) -> dict[str, Any]:
    """Returns the arguments of `rungs` besides trials and steps."""
    unit = math.gcd(config.log_every, config.steps)
    return {"keep_one_in": config.keep_one_in or 3, "unit": unit}


def _check(config: Config, space: Space) -> None:
    if "seed" in space:
        raise ValueError("a seed is not searched: leave it out of --space")
    losses = [str(loss) for loss in space.get("loss", [config.loss])]
    trials.check_axes(config, space, losses, "--space")
    whole = set().union(*map(whole_hyperparameters, losses))
    for name, where in space.items():
        if isinstance(where, Range) and name in whole:
            raise ValueError(f"{name} is a whole number: name values, as {name}=5,10")
    if config.method == "halving":
        search.rungs(config.trials, config.steps, **_rungs(config))
    else:
        with needs("search", "--method optuna"):
            import optuna  # noqa: F401


if __name__ == "__main__":
    cli.run(main, lambda: cli.parse(Config, "experiments.search", str(__doc__)))

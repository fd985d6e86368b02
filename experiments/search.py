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
import itertools
import json
from pathlib import Path
from typing import Annotated, Literal

from contrastive_jax._extras import needs

with needs("train", "experiments.search"):
    import tyro

from contrastive_jax.evaluation.intervals import bootstrap_interval
from contrastive_jax.evaluation.tables import TITLES
from contrastive_jax.train import TrainState, trial_figures
from contrastive_jax.train import folder as runs
from contrastive_jax.train.trial_assembly import AssembledTrials
from contrastive_jax.train.trial_folder import TRIALS, trial_key
from experiments import axes, command, halving, option_checks, options, optuna_study, trials
from experiments.axes import Hyperparameters, Space, text_of
from experiments.trainer import Trainer

FREE = trials.FREE | {"at_once", "seeds"}


@dataclasses.dataclass(frozen=True)
class Config(trials.Training):
    """Options of a search."""

    method: Literal["halving", "optuna"] = "halving"
    """Successive halving, or Optuna's suggestions."""
    space: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME=LOW:HIGH[:log]")
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
    space = axes.parse_space(config.space)
    _check(config, space)
    # Before anything runs: JAX starts with the devices it has then.
    devices = trials.devices_of(config)
    corners = trials.groups(trials.base_of(config), axes.corners(space))
    trials.check_groups(corners, devices[: config.devices_per_trial])
    option_checks.warn_of_reach(itertools.chain(*(group.configs for group in corners)))
    data = options.load_data(config)
    config = trials.shown_on(config, data)
    trials.check_data(corners, data, devices[: config.devices_per_trial])
    # A study takes more trials; in halving they are other rungs.
    free = FREE | ({"trials"} if config.method == "optuna" else set())
    name, shared = f"search-{options.data_name(config)}", config.method == "optuna"
    with trials.open_run(config, name, space, free, devices[0], data, shared=shared) as folder:
        print(f"{folder}: {data.name}, {config.trials} trials of {', '.join(space)}")
        trainer = Trainer(config, data, devices, {})
        search = halving.halving if config.method == "halving" else optuna_study.by_optuna
        best = search(config, folder, space, trainer)
        if best is not None:
            judge(config, folder, best, trainer)
    return folder


def judge(config: Config, folder: Path, best: Hyperparameters, trainer: Trainer) -> None:
    """Trains the winner with new seeds, and writes and prints its figures on test.

    Args:
      config: options.
      folder: of the run.
      best: the winner.
      trainer: of trials.
    """
    points = [best | {"seed": seed} for seed in range(1, config.seeds + 1)]
    judged = {
        trial_key(line["hyperparameters"]): line["test"]
        for line in runs.read_lines(folder / TRIALS, keys=("hyperparameters",))
        if "test" in line
    }
    left = [point for point in points if trial_key(point) not in judged]

    def finished(k: int, made: AssembledTrials, state: TrainState, diverged: int | None) -> None:
        test = None if diverged else trial_figures.on_test(made, state)
        judged[trial_key(left[k])] = test
        runs.append_line(folder / TRIALS, {"hyperparameters": left[k], "test": test})

    trainer.train(left, stop=config.steps, finished=finished)
    by_seed = [judged[trial_key(point)] for point in points]
    whole = [test for test in by_seed if test]
    diverged_seeds = [seed for seed, test in enumerate(by_seed, 1) if not test]
    figures = {}
    if whole:
        figures = {
            key: bootstrap_interval([one[key] for one in whole])._asdict() for key in whole[0]
        }
    hyperparameters = {name: value for name, value in best.items() if name != "seed"}
    results = {"hyperparameters": hyperparameters, "seeds": config.seeds}
    results |= {"diverged": diverged_seeds, "test": figures}
    # JSON has no NaN, which the ends of an interval of one seed are.
    text = json.dumps(results, indent=2).replace("NaN", "null")
    (folder / "results.json").write_text(text + "\n")
    print(f"the winner: {text_of(best)}; on test, means of {len(whole)} new seeds:")
    for key, title in TITLES.items():
        if key in figures:
            text = "  {}: {mean:.4f}" + (" [{low:.4f}, {high:.4f}]" if len(whole) > 1 else "")
            print(text.format(title, **figures[key]))


def _check(config: Config, space: Space) -> None:
    trials.check(config)
    if "seed" in space:
        raise ValueError("a seed is not searched: leave it out of --space")
    losses = [str(loss) for loss in space.get("loss", [config.loss])]
    axes.check_axes(space, losses)
    for name, where in space.items():
        if isinstance(where, axes.Range) and any(
            name in axes.whole_options(loss) for loss in losses
        ):
            raise ValueError(f"{name} is a whole number: name values, as {name}=5,10")
    option_checks.check_axes(config, space, "--space")
    if config.method == "halving":
        halving.rungs(config)
    else:
        with needs("search", "--method optuna"):
            import optuna  # noqa: F401


if __name__ == "__main__":
    command.run(main, lambda: command.parse(Config, "experiments.search", str(__doc__)))

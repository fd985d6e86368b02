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

import contextlib
import dataclasses
import itertools
import json
import math
import os
import socket
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
from scipy import stats

from contrastive_jax._extras import needs

with needs("train", "experiments.search"):
    import tyro

from contrastive_jax.data import Dataset, PairDataset
from contrastive_jax.evaluation.intervals import bootstrap_interval
from contrastive_jax.evaluation.tables import TITLES
from contrastive_jax.train import TrainState, checkpoints, trial_figures
from contrastive_jax.train import folder as runs
from contrastive_jax.train import grid as grids
from contrastive_jax.train.grid_strategy import choice_line, choose_grid
from contrastive_jax.train.trial_assembly import AssembledTrials
from contrastive_jax.train.trial_folder import TRIALS, trial_key
from experiments import command, option_checks, options, trials
from experiments.trials import Hyperparameters

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
    for each."""
    trials: int = 27
    """Trials in all."""
    keep_one_in: int | None = None
    """Halving keeps one of so many trials each time; 3 by default."""
    at_once: int | None = None
    """Trials that Optuna is asked for at a time; 4 by default."""
    seeds: int = 5
    """Trainings of the winner, with seeds 1, 2, ...; the search has seed 0."""


class Range(NamedTuple):
    """The range in which a hyperparameter is searched."""

    low: float
    high: float
    logarithmic: bool


Space = dict[str, Range | list[Any]]


def main(config: Config) -> Path:
    """Runs the search and returns its folder."""
    config = option_checks.checked(config)
    space = parse_space(config.space)
    _check(config, space)
    # Before anything runs: JAX starts with the devices it has then.
    devices = trials.devices_of(config)
    corners = trials.groups(trials.base_of(config), _corners(space))
    trials.check_groups(corners, devices[: config.devices_per_trial])
    option_checks.warn_of_reach(itertools.chain(*(group.configs for group in corners)))
    data = options.load_data(config)
    config = trials.shown_on(config, data)
    trials.check_data(corners, data, devices[: config.devices_per_trial])
    # A study takes more trials; in halving they are other rungs.
    free = FREE | ({"trials"} if config.method == "optuna" else set())
    name, shared = f"search-{options.data_name(config)}", config.method == "optuna"
    with trials.open_run(config, name, space, free, devices[0], shared=shared) as folder:
        print(f"{folder}: {data.name}, {config.trials} trials of {', '.join(space)}")
        trainer = Trainer(config, data, devices, {})
        search = halving if config.method == "halving" else by_optuna
        best = search(config, folder, space, trainer)
        if best is not None:
            judge(config, folder, best, trainer)
    return folder


def parse_space(named: Sequence[str]) -> Space:
    """Reads a space, such as `margin=0.2:1.8`, `learning_rate=1e-3:1e-2:log` or `width=16,64`.

    Args:
      named: each a name, an equals sign, and the ends of a range or values.

    Returns:
      Ranges and values by name.

    Raises:
      ValueError: if one is not of that form, a range is empty, or a name comes twice.
    """
    space: Space = {}
    for text in named:
        name, _, rest = text.partition("=")
        if name in space:
            raise ValueError(f"--space names {name} twice")
        if ":" not in rest:
            space |= trials.parse_axes([text], "--space")
            continue
        logarithmic = rest.endswith(":log")
        try:
            low, high = map(float, rest.removesuffix(":log").split(":"))
        except ValueError:
            raise ValueError(
                f"--space takes name=low:high, name=low:high:log or name=value,value, got {text!r}"
            ) from None
        if not low < high < math.inf or (logarithmic and low <= 0) or name in trials.STRUCTURE:
            raise ValueError(
                "a range must be of a number, its low end below its high one, and above 0 if it is "
                f"logarithmic, got {text!r}"
            )
        space[name] = Range(low, high, logarithmic)
    return space


def spread(space: Space, count: int) -> list[Hyperparameters]:
    """Returns points of a scrambled Sobol sequence, spread evenly over a space, with seed 0.

    A longer list begins with the same points.
    """
    exponent = max(count - 1, 0).bit_length()
    points = stats.qmc.Sobol(len(space), seed=0).random_base2(exponent)[:count]
    return [
        {name: _at(where, share) for (name, where), share in zip(space.items(), point, strict=True)}
        | {"seed": 0}
        for point in points
    ]


def _at(where: Range | list[Any], share: float) -> Any:
    if isinstance(where, list):
        return where[min(int(share * len(where)), len(where) - 1)]
    low, high, logarithmic = where
    value = low * (high / low) ** share if logarithmic else low + (high - low) * share
    # Few digits are enough, and can be typed again.
    return float(f"{value:.4g}")


class Trainer(NamedTuple):
    """The arguments that all trainings share; each structure is compiled once."""

    config: Config
    data: Dataset | PairDataset
    devices: Sequence[jax.Device]
    compiled: dict[str, grids.Grid]

    def train(
        self,
        points: Sequence[Hyperparameters],
        *,
        start: int = 0,
        stop: int,
        resumed: Callable[[int, TrainState], TrainState] | None = None,
        finished: Callable[[int, AssembledTrials, TrainState, int | None], None],
    ) -> None:
        """Trains trials from one step to another.

        Args:
          points: hyperparameters of each trial.
          start: steps already taken.
          stop: steps to have taken.
          resumed: from the index of a trial and its first state to its state at `start`.
          finished: takes the index of each trial, its parts, its state, and the step at which it
            diverged.
        """
        for group in trials.groups(trials.base_of(self.config), points):
            devices = self.devices[: self.config.devices_per_trial]
            made = trials.assembled(group, self.data, devices)
            grid = self._grid(trials.structure_of(group), made)
            states = [made.init(k) for k in range(len(group.indices))]
            if resumed is not None:
                states = [resumed(k, one) for k, one in zip(group.indices, states, strict=True)]
            windows = grids.train_grid(
                grid,
                states.__getitem__,
                jax.device_put(made.source, grid.shared),
                made.hyperparameters,
                start=start,
                steps=stop,
                window=stop,
            )
            for window in windows:
                for index, trial in enumerate(window.trials):
                    state, diverged = window.state(index), window.diverged[index]
                    finished(group.indices[trial], made, state, diverged)

    def _grid(self, structure: str, made: AssembledTrials) -> grids.Grid:
        # A grid of many is a waste for a few, and one for each number is too much to compile.
        size = (len(made.recorded) - 1).bit_length()
        name = f"{size} {structure}"
        if name not in self.compiled:
            choice = choose_grid(made, **trials.grid_options(self.config, self.devices))
            print(choice_line(choice, len(made.recorded)))
            self.compiled[name] = choice.grid
        return self.compiled[name]

    def on_validation(
        self, made: AssembledTrials, state: TrainState, diverged: int | None
    ) -> float:
        """Returns the figure by which trials are chosen; 0, the worst, where one diverged."""
        figures = None if diverged else trial_figures.on_validation(made, state)
        shown_by = str(trials.shown_on(self.config, self.data).shown_by)
        return figures[shown_by] if figures else 0.0


def rungs(config: Config) -> list[tuple[int, int]]:
    """Returns how many trials train to how many steps, until one is left.

    Raises:
      ValueError: if there are too few steps for as many rungs.
    """
    counts, keep_one_in = [config.trials], config.keep_one_in or 3
    while counts[-1] > 1:
        counts.append(math.ceil(counts[-1] / keep_one_in))
    unit, last = _unit(config), len(counts) - 1
    # Whole calls of the compiled step.
    steps = [
        round(config.steps / keep_one_in ** (last - k) / unit) * unit for k in range(len(counts))
    ]
    if steps[0] < 1 or len({*steps}) < len(steps):
        raise ValueError(
            f"--steps {config.steps} are too few for {len(counts)} rungs, of which the first has "
            f"{steps[0]}: take more steps or fewer --trials"
        )
    return [*zip(counts, steps, strict=True)]


def _unit(config: Config) -> int:
    return math.gcd(config.log_every, config.steps)


def halving(config: Config, folder: Path, space: Space, trainer: Trainer) -> Hyperparameters:
    """Searches by successive halving, and goes on from the trials that are stored.

    Args:
      config: options.
      folder: of the run.
      space: to search.
      trainer: of trials.

    Returns:
      The hyperparameters that are left.
    """
    points, start = spread(space, config.trials), 0
    names = {trial_key(point): f"{k:04d}" for k, point in enumerate(points)}
    for number, (count, stop) in enumerate(rungs(config)):
        points = points[:count]
        values = _train_rung(folder, trainer, points, names, number, start, stop)
        points = [points[k] for k in sorted(range(count), key=lambda k: -values[k])]
        print(
            f"{count} trials after {stop:,} steps; the best: {_text(points[0])}, "
            f"{config.shown_by} {max(values):.4f} on validation"
        )
        start = stop
    return points[0]


def _train_rung(
    folder: Path,
    trainer: Trainer,
    points: Sequence[Hyperparameters],
    names: Mapping[str, str],
    number: int,
    start: int,
    stop: int,
) -> list[float]:
    """Trains the trials of a rung from the last rung on, and returns their values on validation."""
    values = {
        trial_key(line["hyperparameters"]): line["value"]
        for line in runs.read_lines(folder / TRIALS, keys=("hyperparameters",))
        if line.get("rung") == number and "value" in line
    }
    left = [point for point in points if trial_key(point) not in values]

    def path(point: Hyperparameters, rung: int) -> Path:
        return folder / "states" / f"{names[trial_key(point)]}-{rung}"

    def resumed(k: int, like: TrainState) -> TrainState:
        where = path(left[k], number - 1)
        state: TrainState = checkpoints.restore_state(where, jax.device_get(like))
        return state

    def finished(k: int, made: AssembledTrials, state: TrainState, diverged: int | None) -> None:
        checkpoints.save_state(path(left[k], number), state)
        value = values[trial_key(left[k])] = trainer.on_validation(made, state, diverged)
        record = {"rung": number, "steps": stop, "hyperparameters": left[k], "value": value}
        runs.append_line(folder / TRIALS, record | {"diverged": diverged})

    damaged = [p for p in left if number and checkpoints.damage(path(p, number - 1))]
    for point in damaged:
        warnings.warn(
            f"{path(point, number - 1)} is damaged: {_text(point)} trains from step 0 again",
            stacklevel=2,
        )
    if damaged:
        trainer.train(
            damaged,
            stop=start,
            finished=lambda k, made, state, diverged: checkpoints.save_state(
                path(damaged[k], number - 1), state
            ),
        )
    trainer.train(
        left, start=start, stop=stop, resumed=resumed if number else None, finished=finished
    )
    return [values[trial_key(point)] for point in points]


def by_optuna(
    config: Config, folder: Path, space: Space, trainer: Trainer
) -> Hyperparameters | None:
    """Searches with the hyperparameters that Optuna suggests, in a study that processes may share.

    Args:
      config: options.
      folder: of the run.
      space: to search.
      trainer: of trials.

    Returns:
      The best hyperparameters on validation; None where other processes are still training, the
      last of which goes on.
    """
    import optuna
    from optuna.trial import TrialState

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = _storage(folder / "study.log")
    try:
        study = optuna.create_study(storage=storage, study_name=config.method, direction="maximize")
        # The first are spread evenly, whichever process takes them.
        for point in spread(space, max(config.trials // 4, 1)):
            study.enqueue_trial({name: point[name] for name in space})
    except optuna.exceptions.DuplicatedStudyError:
        study = optuna.load_study(storage=storage, study_name=config.method)
    _enqueue_killed(study)
    # The first trials, which would be drawn at random, are in the study already.
    study.sampler = optuna.samplers.TPESampler(
        n_startup_trials=max(config.trials // 4, 1), seed=len(study.trials), constant_liar=True
    )
    distributions: dict[str, Any] = {
        name: optuna.distributions.CategoricalDistribution(where)
        if isinstance(where, list)
        else optuna.distributions.FloatDistribution(where.low, where.high, log=where.logarithmic)
        for name, where in space.items()
    }
    # Complete, or being trained by this process or another.
    counted = (TrialState.COMPLETE, TrialState.RUNNING)
    while (left := config.trials - len(study.get_trials(states=counted))) > 0:
        asked = [study.ask(distributions) for _ in range(min(left, config.at_once or 4))]
        for one in asked:
            one.set_user_attr("process", _this_process())
        _train_asked(folder, space, trainer, study, asked)
        print(
            f"{len(study.get_trials(states=counted))} trials; the best: "
            f"{_text(study.best_params)}, {config.shown_by} {study.best_value:.4f} on validation"
        )
    if left_over := len(study.get_trials(states=(TrialState.RUNNING,))):
        print(f"other processes are training {left_over} trials; the last evaluates the winner")
        return None
    return {name: study.best_params[name] for name in space} | {"seed": 0}


def _train_asked(
    folder: Path, space: Space, trainer: Trainer, study: Any, asked: Sequence[Any]
) -> None:
    """Trains with the hyperparameters that a study suggests, and tells it their values."""
    points = [{name: one.params[name] for name in space} | {"seed": 0} for one in asked]

    def finished(k: int, made: AssembledTrials, state: TrainState, diverged: int | None) -> None:
        value = trainer.on_validation(made, state, diverged)
        record = {"trial": asked[k].number, "hyperparameters": points[k], "value": value}
        runs.append_line(folder / TRIALS, record | {"diverged": diverged})
        study.tell(asked[k], value)

    trainer.train(points, stop=trainer.config.steps, finished=finished)


def _storage(log: Path) -> Any:
    """Opens the file of a study; a last line that a kill has cut short is dropped.

    Raises:
      ValueError: if another line can not be read.
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

    lock = JournalFileSymlinkLock(str(log))
    lock.acquire()
    try:
        runs.repair_lines(log)
    finally:
        lock.release()
    try:
        return optuna.storages.JournalStorage(JournalFileBackend(str(log)))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{log} is damaged ({error!r}); restore it from a copy, or begin the study again with "
            "--overwrite"
        ) from error


def _enqueue_killed(study: Any) -> None:
    """Enqueues the trials that processes of this machine were training when they were killed."""
    from optuna.trial import TrialState

    host, _ = _this_process().rsplit(":", 1)
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        their_host, _, process = trial.user_attrs.get("process", "").rpartition(":")
        if their_host == host and not _alive(int(process)):
            study.tell(trial.number, state=TrialState.FAIL)
            study.enqueue_trial(trial.params)


def _this_process() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def _alive(process: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        with contextlib.suppress(PermissionError):  # it is alive, and another user's
            os.kill(process, 0)
        return True
    return False


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
    print(f"the winner: {_text(best)}; on test, means of {len(whole)} new seeds:")
    for key, title in TITLES.items():
        if key in figures:
            print("  {}: {mean:.4f} [{low:.4f}, {high:.4f}]".format(title, **figures[key]))


def _text(point: Hyperparameters) -> str:
    return ", ".join(f"{name} {value}" for name, value in point.items() if name != "seed")


def _corners(space: Space) -> list[Hyperparameters]:
    """Returns all ends of ranges and all values, so that errors come before any training."""
    ends = [
        where if isinstance(where, list) else [where.low, where.high] for where in space.values()
    ]
    return [
        dict(zip(space, corner, strict=True)) | {"seed": 0} for corner in itertools.product(*ends)
    ]


def _check(config: Config, space: Space) -> None:
    trials.check(config)
    if "seed" in space:
        raise ValueError("a seed is not searched: leave it out of --space")
    losses = [str(loss) for loss in space.get("loss", [config.loss])]
    trials.check_axes(space, losses)
    for name, where in space.items():
        if isinstance(where, Range) and any(name in trials.whole_options(loss) for loss in losses):
            raise ValueError(f"{name} is a whole number: name values, as {name}=5,10")
    option_checks.check_axes(config, space, "--space")
    if config.method == "halving":
        rungs(config)
    else:
        with needs("search", "--method optuna"):
            import optuna  # noqa: F401


if __name__ == "__main__":
    command.run(main, lambda: command.parse(Config, "experiments.search", str(__doc__)))

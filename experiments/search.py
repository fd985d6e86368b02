"""Searches for the best numbers of a training, where the whole curve is not asked for.

    python -m experiments.search                                          # the best margin
    python -m experiments.search --space margin=0.2:1.8 --space learning_rate=1e-3:1e-2:log
    python -m experiments.search --method optuna --space margin=0.2:1.8 --name NAME
    python -m experiments.search --method optuna --resume NAME

`halving` (Jamieson and Talwalkar 2016) begins with many settings, trains all a little, keeps the
third that does best on validation, trains these on, and so forth: as many settings cost a few whole
trainings. `optuna` asks Optuna for settings, some at a time, trains them and tells it how they do
on validation; the study is a file, so that it goes on after an interruption, and the last line
above may be run by several processes at once, on one machine or on several that share a folder.
Either way settings are cells of a grid (`experiments.cells`): other numbers never compile anew.
Then the winner is trained with new seeds and judged on test.

runs/NAME/config.json    every option
          cells.jsonl    a line for each setting each time that it is judged
          states/        where settings have got to (halving)
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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
from scipy import stats

from contrastive_jax._extras import needs

with needs("train", "experiments.search"):
    import tyro

from contrastive_jax.data import Dataset, PairDataset
from contrastive_jax.evaluation.intervals import bootstrap_interval
from contrastive_jax.train import TrainState, checkpoints
from contrastive_jax.train import folder as runs
from contrastive_jax.train import grid as grids
from experiments import cells, command, evaluate, option_checks, options

FREE = cells.FREE | {"at_once", "seeds"}


@dataclasses.dataclass(frozen=True)
class Config(cells.Training):
    """Options of a search."""

    method: Literal["halving", "optuna"] = "halving"
    """Successive halving, or Optuna's suggestions."""
    space: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME=LOW:HIGH[:log]")
    ] = ("margin=0.1:1.8",)
    """A number to search, or NAME=VALUE,VALUE of what changes the structure; once for each."""
    trials: int = 27
    """Settings to try in all."""
    keep_one_in: int | None = None
    """Halving keeps one of so many settings each time; 3 by default."""
    at_once: int | None = None
    """Settings that Optuna is asked for at a time; 4 by default."""
    seeds: int = 5
    """Trainings of the winner, with seeds 1, 2, ...; the search has seed 0."""


class Range(NamedTuple):
    """Where a number is searched."""

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
    devices = cells.devices_of(config)
    corners = cells.groups(cells.base_of(config), _corners(space))
    cells.check_groups(corners, devices[: config.devices_per_cell])
    option_checks.warn_of_reach(itertools.chain(*(group.configs for group in corners)))
    data = options.load_data(config)
    config = cells.shown_on(config, data)
    cells.check_data(corners, data, devices[: config.devices_per_cell])
    # A study takes more trials; in halving they are other rungs.
    free = FREE | ({"trials"} if config.method == "optuna" else set())
    name, shared = f"search-{options.data_name(config)}", config.method == "optuna"
    with cells.open_run(config, name, space, free, devices[0], shared=shared) as folder:
        print(f"{folder}: {data.name}, {config.trials} settings of {', '.join(space)}")
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
            space |= cells.parse_axes([text], "--space")
            continue
        logarithmic = rest.endswith(":log")
        try:
            low, high = map(float, rest.removesuffix(":log").split(":"))
        except ValueError:
            raise ValueError(
                f"--space takes name=low:high, name=low:high:log or name=value,value, got {text!r}"
            ) from None
        if not low < high < math.inf or (logarithmic and low <= 0) or name in cells.STRUCTURE:
            raise ValueError(
                "a range must be of a number, its low end below its high one, and above 0 if it is "
                f"logarithmic, got {text!r}"
            )
        space[name] = Range(low, high, logarithmic)
    return space


def spread(space: Space, count: int) -> list[cells.Setting]:
    """Settings spread evenly over a space, points of a scrambled Sobol sequence, with seed 0.

    More of them begin with the same ones.
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
    """The arguments of the trainings of all settings; each structure is compiled once."""

    config: Config
    data: Dataset | PairDataset
    devices: Sequence[jax.Device]
    compiled: dict[str, grids.Grid]

    def train(
        self,
        settings: Sequence[cells.Setting],
        *,
        start: int = 0,
        stop: int,
        begun: Callable[[int, TrainState], TrainState] | None = None,
        finished: Callable[[int, cells.Prepared, TrainState, int | None], None],
    ) -> None:
        """Trains settings from one step to another.

        Args:
          settings: to train.
          start: steps already taken.
          stop: steps to have taken.
          begun: from the place of a setting and its first state to that at `start`.
          finished: takes the place of each setting, what it was made of, its state, and the step at
            which it diverged.
        """
        for group in cells.groups(cells.base_of(self.config), settings):
            prepared = cells.prepare(group, self.data, self.devices[: self.config.devices_per_cell])
            where = group.places
            # A grid of many is a waste for a few, and one for each number too much to compile.
            size = (len(where) - 1).bit_length()
            name = f"{size} {cells.structure_of(group)}"
            if name not in self.compiled:
                self.compiled[name] = cells.compile_grid(self.config, prepared, self.devices)
            grid = self.compiled[name]
            states = [prepared.init(k) for k in range(len(where))]
            if begun is not None:
                states = [begun(where[k], state) for k, state in enumerate(states)]
            windows = grids.train_grid(
                grid,
                states.__getitem__,
                jax.device_put(prepared.source, grid.shared),
                prepared.numbers,
                start=start,
                steps=stop,
                window=stop,
            )
            for window in windows:
                for place, cell in enumerate(window.cells):
                    finished(where[cell], prepared, window.state(place), window.diverged[place])

    def on_validation(
        self, prepared: cells.Prepared, state: TrainState, diverged: int | None
    ) -> float:
        """The figure that settings are chosen by; 0, as bad as can be, if a training diverged."""
        figures = None if diverged else cells.on_validation(prepared, state, self.data)
        shown_by = str(cells.shown_on(self.config, self.data).shown_by)
        return figures[shown_by] if figures else 0.0


def rungs(config: Config) -> list[tuple[int, int]]:
    """How many settings are trained to how many steps, until one is left.

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


def halving(config: Config, folder: Path, space: Space, trainer: Trainer) -> cells.Setting:
    """Successive halving; what is done is not done again.

    Args:
      config: options.
      folder: of the run.
      space: to search.
      trainer: of settings.

    Returns:
      The setting that is left.
    """
    settings = spread(space, config.trials)
    names = {cells.key_of(setting): f"{k:04d}" for k, setting in enumerate(settings)}
    lines, start = folder / "cells.jsonl", 0
    for rung, (count, stop) in enumerate(rungs(config)):
        settings = settings[:count]
        known = {
            cells.key_of(line["setting"]): line["value"]
            for line in runs.read_lines(lines, keys=("setting",))
            if line.get("rung") == rung and "value" in line
        }
        left = [setting for setting in settings if cells.key_of(setting) not in known]

        def path(setting: cells.Setting, rung: int) -> Path:
            return folder / "states" / f"{names[cells.key_of(setting)]}-{rung}"

        def begun(
            k: int,
            like: TrainState,
            left: list[cells.Setting] = left,
            rung: int = rung,
        ) -> TrainState:
            where = path(left[k], rung - 1)
            restored: TrainState = checkpoints.restore_state(where, jax.device_get(like))
            return restored

        def finished(
            k: int,
            prepared: cells.Prepared,
            state: TrainState,
            diverged: int | None,
            left: list[cells.Setting] = left,
            rung: int = rung,
            stop: int = stop,
            known: dict[str, float] = known,
        ) -> None:
            checkpoints.save_state(path(left[k], rung), state)
            value = trainer.on_validation(prepared, state, diverged)
            known[cells.key_of(left[k])] = value
            record = {"rung": rung, "steps": stop, "setting": left[k], "value": value}
            runs.append_line(lines, record | {"diverged": diverged})

        damaged = [s for s in left if rung and checkpoints.damage(path(s, rung - 1))]

        def trained_again(
            k: int,
            prepared: cells.Prepared,
            state: TrainState,
            diverged: int | None,
            damaged: list[cells.Setting] = damaged,
            rung: int = rung,
        ) -> None:
            checkpoints.save_state(path(damaged[k], rung - 1), state)

        for setting in damaged:
            warnings.warn(
                f"{path(setting, rung - 1)} is damaged: {_text(setting)} trains from step 0 again",
                stacklevel=2,
            )
        if damaged:
            trainer.train(damaged, stop=start, finished=trained_again)
        trainer.train(
            left, start=start, stop=stop, begun=begun if rung else None, finished=finished
        )
        values = [known[cells.key_of(setting)] for setting in settings]
        settings = [settings[k] for k in sorted(range(count), key=lambda k: -values[k])]
        print(
            f"{count} settings after {stop:,} steps; the best: {_text(settings[0])}, "
            f"{config.shown_by} {max(values):.4f} on validation"
        )
        start = stop
    return settings[0]


def by_optuna(config: Config, folder: Path, space: Space, trainer: Trainer) -> cells.Setting | None:
    """Settings as Optuna suggests them, from a study that several processes may share.

    Args:
      config: options.
      folder: of the run.
      space: to search.
      trainer: of settings.

    Returns:
      The best setting on validation; None where other processes are still training some, of which
      the last goes on.
    """
    import optuna
    from optuna.trial import TrialState

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = _storage(folder / "study.log")
    try:
        study = optuna.create_study(storage=storage, study_name=config.method, direction="maximize")
        # The first are spread evenly, whichever process takes them.
        for setting in spread(space, max(config.trials // 4, 1)):
            study.enqueue_trial({name: setting[name] for name in space})
    except optuna.exceptions.DuplicatedStudyError:
        study = optuna.load_study(storage=storage, study_name=config.method)
    _give_back(study)
    # What is drawn at random are the first, which are in the study already.
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
        trials = [study.ask(distributions) for _ in range(min(left, config.at_once or 4))]
        settings = []
        for trial in trials:
            trial.set_user_attr("process", _this_process())
            settings.append({name: trial.params[name] for name in space} | {"seed": 0})

        def finished(
            k: int,
            prepared: cells.Prepared,
            state: TrainState,
            diverged: int | None,
            trials: list[Any] = trials,
            settings: list[cells.Setting] = settings,
        ) -> None:
            value = trainer.on_validation(prepared, state, diverged)
            record = {"trial": trials[k].number, "setting": settings[k], "value": value}
            runs.append_line(folder / "cells.jsonl", record | {"diverged": diverged})
            study.tell(trials[k], value)

        trainer.train(settings, stop=config.steps, finished=finished)
        print(
            f"{len(study.get_trials(states=counted))} settings; the best: "
            f"{_text(study.best_params)}, {config.shown_by} {study.best_value:.4f} on validation"
        )
    if left_over := len(study.get_trials(states=(TrialState.RUNNING,))):
        print(f"other processes are training {left_over} settings; the last judges the winner")
        return None
    return {name: study.best_params[name] for name in space} | {"seed": 0}


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


def _give_back(study: Any) -> None:
    """Asks anew for what processes of this machine were training when they were killed."""
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


def judge(config: Config, folder: Path, best: cells.Setting, trainer: Trainer) -> None:
    """Trains the winner with new seeds, and writes and prints its figures on test.

    Args:
      config: options.
      folder: of the run.
      best: the winner.
      trainer: of settings.
    """
    settings = [best | {"seed": seed} for seed in range(1, config.seeds + 1)]
    lines = folder / "cells.jsonl"
    judged = {
        cells.key_of(line["setting"]): line["test"]
        for line in runs.read_lines(lines, keys=("setting",))
        if "test" in line
    }
    left = [setting for setting in settings if cells.key_of(setting) not in judged]

    def finished(k: int, prepared: cells.Prepared, state: TrainState, diverged: int | None) -> None:
        figures = None if diverged else cells.figures_of(prepared, state, trainer.data)
        judged[cells.key_of(left[k])] = figures and figures["test"]
        runs.append_line(lines, {"setting": left[k], "test": figures and figures["test"]})

    trainer.train(left, stop=config.steps, finished=finished)
    by_seed = [judged[cells.key_of(setting)] for setting in settings]
    found = [figures for figures in by_seed if figures]
    diverged_seeds = [seed for seed, figures in enumerate(by_seed, 1) if not figures]
    setting = {name: value for name, value in best.items() if name != "seed"}
    figures = {}
    if found:
        figures = {
            key: bootstrap_interval([one[key] for one in found])._asdict() for key in found[0]
        }
    results = {"setting": setting, "seeds": config.seeds, "diverged": diverged_seeds}
    # JSON has no NaN, which the ends of an interval of one seed are.
    text = json.dumps(results | {"test": figures}, indent=2).replace("NaN", "null")
    (folder / "results.json").write_text(text + "\n")
    print(f"the winner: {_text(best)}; on test, means of {len(found)} new seeds:")
    for key, title in evaluate.TITLES.items():
        if key in figures:
            print("  {}: {mean:.4f} [{low:.4f}, {high:.4f}]".format(title, **figures[key]))


def _text(setting: cells.Setting) -> str:
    return ", ".join(f"{name} {value}" for name, value in setting.items() if name != "seed")


def _corners(space: Space) -> list[cells.Setting]:
    """All ends of ranges and all values: what is out of range shows before any training."""
    ends = [
        where if isinstance(where, list) else [where.low, where.high] for where in space.values()
    ]
    return [
        dict(zip(space, corner, strict=True)) | {"seed": 0} for corner in itertools.product(*ends)
    ]


def _check(config: Config, space: Space) -> None:
    cells.check(config)
    if "seed" in space:
        raise ValueError("a seed is not searched: leave it out of --space")
    losses = [str(loss) for loss in space.get("loss", [config.loss])]
    cells.check_axes(space, losses)
    for name, where in space.items():
        if isinstance(where, Range) and any(name in cells.whole_options(loss) for loss in losses):
            raise ValueError(f"{name} is a whole number: name values, as {name}=5,10")
    option_checks.check_axes(config, space, "--space")
    if config.method == "halving":
        rungs(config)
    else:
        with needs("search", "--method optuna"):
            import optuna  # noqa: F401


if __name__ == "__main__":
    command.run(main, lambda: command.parse(Config, "experiments.search", str(__doc__)))

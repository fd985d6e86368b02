"""A search by Optuna, in a study that is a file and that several processes may share."""

import contextlib
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from contrastive_jax import locks
from contrastive_jax.train import TrainState, json_lines
from contrastive_jax.train.trial_assembly import AssembledTrials
from contrastive_jax.train.trial_folder import TRIALS
from experiments.axes import Hyperparameters, Space, spread, text_of
from experiments.trainer import Trainer

# Locks in a folder of the run, one for each process that works on it.
PROCESSES = "processes"


def by_optuna(config: Any, folder: Path, space: Space, trainer: Trainer) -> Hyperparameters | None:
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
    storage = open_storage(folder / "study.log")
    try:
        study = optuna.create_study(storage=storage, study_name=config.method, direction="maximize")
        # The first are spread evenly, whichever process takes them.
        for point in spread(space, max(config.trials // 4, 1)):
            study.enqueue_trial({name: point[name] for name in space})
    except optuna.exceptions.DuplicatedStudyError:
        study = optuna.load_study(storage=storage, study_name=config.method)
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
    with _process(folder) as process:
        while True:
            with _alone(folder):
                _enqueue_killed(folder, study)
                left = config.trials - len(study.get_trials(states=counted))
                asked = [study.ask(distributions) for _ in range(min(left, config.at_once or 4))]
                for one in asked:
                    one.set_user_attr("process", process)
            if not asked:
                break
            _train_asked(folder, space, trainer, study, asked)
            print(
                f"{len(study.get_trials(states=counted))} trials; the best: "
                f"{text_of(study.best_params)}, {config.shown_by} {study.best_value:.4f} on "
                "validation"
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
        json_lines.append_line(folder / TRIALS, record | {"diverged": diverged})
        study.tell(asked[k], value)

    trainer.train(points, stop=trainer.config.steps, finished=finished)


def open_storage(log: Path) -> Any:
    """Opens the file of a study; a last line that a kill has cut short is dropped.

    Raises:
      ValueError: if another line can not be read.
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend

    lock = _JournalLock(log)
    lock.acquire()
    try:
        json_lines.repair_lines(log)
    finally:
        lock.release()
    try:
        return optuna.storages.JournalStorage(JournalFileBackend(str(log), lock))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{log} is damaged ({error!r}); restore it from a copy, or begin the study again with "
            "--overwrite"
        ) from error


class _JournalLock:
    """The lock of a journal, as Optuna takes it. A link, as Optuna's own lock is, outlives a kill.

    The operating system releases this one however the process ends.
    """

    def __init__(self, log: Path) -> None:
        self._path = log.with_suffix(".lock")
        self._file: IO[str] | None = None

    def acquire(self) -> bool:
        self._file = self._path.open("a")
        locks.take(self._file)
        return True

    def release(self) -> None:
        if self._file is not None:
            self._file.close()


def _enqueue_killed(folder: Path, study: Any) -> None:
    """Enqueues the trials that processes were training when they ended."""
    from optuna.trial import TrialState

    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        if not _alive(folder, trial.user_attrs.get("process")):
            study.tell(trial.number, state=TrialState.FAIL)
            study.enqueue_trial(trial.params)


@contextlib.contextmanager
def _process(folder: Path) -> Iterator[str]:
    """Holds the lock by which other processes, on any host, see that this one lives.

    The operating system releases it however the process ends.
    """
    name = uuid.uuid4().hex
    path = folder / PROCESSES / name
    path.parent.mkdir(exist_ok=True)
    with locks.locked(path, name):
        yield name
    path.unlink(missing_ok=True)


def _alive(folder: Path, name: str | None) -> bool:
    path = folder / PROCESSES / str(name)
    if not path.exists():
        return False
    with path.open("a") as file:
        try:
            locks.take(file, wait=False)
        except BlockingIOError:
            return True
    return False


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keeps other processes out while trials are taken or given back."""
    with (folder / "asking.lock").open("a") as file:
        locks.take(file)
        yield

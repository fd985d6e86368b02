"""A search by Optuna, in a study that is a file and that several processes may share."""

import contextlib
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from contrastive_jax import locks
from contrastive_jax._extras import needs
from contrastive_jax.search.space import Hyperparameters, Range, Space, spread, text_of
from contrastive_jax.search.trainer import Trainer
from contrastive_jax.train import TrainState, json_lines
from contrastive_jax.train.trial_assembly import AssembledTrials
from contrastive_jax.train.trial_folder import TRIALS

# Locks in a folder of the run, one for each process that works on it.
PROCESSES = "processes"
STUDY = "optuna"


def by_optuna(
    trainer: Trainer, space: Space, *, trials: int, steps: int, folder: Path, at_once: int = 4
) -> Hyperparameters | None:
    """Searches with the hyperparameters that Optuna suggests, in a study that processes may share.

    Args:
      trainer: of trials.
      space: to search.
      trials: in all, those of other processes included.
      steps: of each.
      folder: where trials and the study are stored; made if it is not there.
      at_once: trials that Optuna is asked for at a time.

    Returns:
      The best hyperparameters on validation; None where other processes are still training, the
      last of which goes on.

    Raises:
      ImportError: without Optuna, of the extra `search`.
      ValueError: if there is no trial, the file of the study is damaged, or its trials have other
        steps.

    Example:
      >>> from pathlib import Path
      >>> import contrastive_jax as cj
      >>> from contrastive_jax.search import Range, by_optuna, make_trainer
      >>> from contrastive_jax.train.training import Training
      >>> digits, objective = cj.data.load("digits"), cj.train.objective("contrastive")
      >>> training = Training(
      ...     model=cj.models.Linear, data=digits, objective=objective, steps=4, batch_size=32
      ... )
      >>> trainer = make_trainer(training, strategy="sequential", report=lambda line: None)
      >>> space = {"margin": Range(0.5, 1.5)}
      >>> best = by_optuna(trainer, space, trials=1, steps=4, folder=Path())
      >>> 0.5 <= best["margin"] <= 1.5
      True
    """
    with needs("search", "contrastive_jax.search.by_optuna"):
        import optuna
    from optuna.trial import TrialState

    if trials < 1:
        raise ValueError(f"trials must be at least 1, got {trials}")
    folder.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = open_storage(folder / "study.log")
    try:
        study = optuna.create_study(storage=storage, study_name=STUDY, direction="maximize")
        study.set_user_attr("steps", steps)
        # The first are spread evenly, whichever process takes them.
        for point in spread(space, max(trials // 4, 1)):
            study.enqueue_trial({name: point[name] for name in space})
    except optuna.exceptions.DuplicatedStudyError:
        study = optuna.load_study(storage=storage, study_name=STUDY)
        before = study.user_attrs.get("steps", steps)
        if before != steps:
            raise ValueError(
                f"the trials of the study in {folder} have {before} steps, got {steps}: take a new "
                "folder"
            ) from None
    # The first trials, which would be drawn at random, are in the study already.
    study.sampler = optuna.samplers.TPESampler(
        n_startup_trials=max(trials // 4, 1), seed=len(study.trials), constant_liar=True
    )
    distributions: dict[str, Any] = {
        name: optuna.distributions.CategoricalDistribution(where)
        if not isinstance(where, Range)
        else optuna.distributions.FloatDistribution(where.low, where.high, log=where.logarithmic)
        for name, where in space.items()
    }
    # Complete, or being trained by this process or another.
    counted = (TrialState.COMPLETE, TrialState.RUNNING)
    with _process(folder) as process:
        while True:
            with _alone(folder):
                _enqueue_killed(folder, study)
                left = trials - len(study.get_trials(states=counted))
                asked = [study.ask(distributions) for _ in range(min(left, at_once))]
                for one in asked:
                    one.set_user_attr("process", process)
            if not asked:
                break
            _train_asked(folder, space, trainer, study, asked, steps)
            trainer.report(
                f"{len(study.get_trials(states=counted))} trials; the best: "
                f"{text_of(study.best_params)}, {trainer.chosen_by} {study.best_value:.4f} on "
                "validation"
            )
    if left_over := len(study.get_trials(states=(TrialState.RUNNING,))):
        trainer.report(
            f"other processes are training {left_over} trials; the last evaluates the winner"
        )
        return None
    return {name: study.best_params[name] for name in space} | {"seed": 0}


def _train_asked(
    folder: Path, space: Space, trainer: Trainer, study: Any, asked: Sequence[Any], steps: int
) -> None:
    """Trains with the hyperparameters that a study suggests, and tells it their values."""
    points = [{name: one.params[name] for name in space} | {"seed": 0} for one in asked]

    def finished(k: int, made: AssembledTrials, state: TrainState, diverged: int | None) -> None:
        value = trainer.on_validation(made, state, diverged)
        record = {"trial": asked[k].number, "hyperparameters": points[k], "value": value}
        json_lines.append_line(folder / TRIALS, record | {"diverged": diverged})
        study.tell(asked[k], value)

    trainer.train(points, stop=steps, finished=finished)


def open_storage(log: Path) -> Any:
    """Opens the file of a study; a last line that a kill has cut short is dropped.

    Args:
      log: the file.

    Returns:
      The storage, for `optuna.load_study`.

    Raises:
      ValueError: if another line can not be read.

    Example:
      >>> from pathlib import Path
      >>> from contrastive_jax.search.optuna_study import open_storage
      >>> open_storage(Path("study.log")).get_all_studies()
      []
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

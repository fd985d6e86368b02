"""Losses trained alike on a data set, beside baselines that are not trained."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from contrastive_jax import locks
from contrastive_jax.data.datasets import Dataset
from contrastive_jax.evaluation import baselines
from contrastive_jax.search.loss_trials import figures_on, read_finished, train_loss
from contrastive_jax.train import json_lines
from contrastive_jax.train.objectives import Objective
from contrastive_jax.train.trial_assembly import AssembledTrials
from contrastive_jax.train.trial_folder import TRIALS

Assemble = Callable[[str, Sequence[tuple[dict[str, Any], int]]], AssembledTrials]
"""A function of the name of a loss, and of hyperparameters and seeds, to the parts of trials."""


@contextlib.contextmanager
def losses_locked(folder: Path, losses: Iterable[str]) -> Iterator[None]:
    """Locks losses in the folder of a comparison, so that no other process trains them.

    Args:
      folder: of a comparison.
      losses: by name.

    Raises:
      BlockingIOError: if another process trains one of them.

    Example:
      >>> from pathlib import Path
      >>> from contrastive_jax.search.loss_comparison import losses_locked
      >>> with losses_locked(Path(), ["supcon"]):
      ...     print([path.name for path in Path("locks").iterdir()])
      ['supcon']
    """
    (folder / "locks").mkdir(exist_ok=True)
    with contextlib.ExitStack() as held:
        for name in losses:
            held.enter_context(locks.locked(folder / "locks" / name, f"{name} in {folder}"))
        yield


def train_losses(
    losses: Iterable[str],
    assemble: Assemble,
    folder: Path,
    data: Dataset,
    split: str,
    *,
    labelled: Objective | None = None,
    width: int,
    trials: int,
    seeds: int,
    steps: int,
    advance: Callable[[str, int], Any] | None = None,
) -> None:
    """Trains each loss as `train_loss`, and stores a line for each trial and for each baseline.

    Trials and baselines that are finished in the folder are left out.

    Args:
      losses: by name.
      assemble: makes the parts of trials of a loss.
      folder: of the comparison.
      data: to train on and to evaluate.
      split: a name of the split of the data, for the lines.
      labelled: an objective; if it has labels of two rows, the figures of baselines use them, as
        those of the losses do.
      width: entries of an embedding, and of those of the baselines.
      trials: trials that tune a loss, with seed 0.
      seeds: trials on test, with seeds 1, 2, ...
      steps: of each trial.
      advance: takes the name of a loss and the number of its trials that are finished since the
        last call.

    Example:
      >>> from pathlib import Path
      >>> import contrastive_jax as cj
      >>> from contrastive_jax.search.loss_comparison import train_losses
      >>> from contrastive_jax.search.loss_trials import read_finished, trials_of_loss
      >>> from contrastive_jax.train.training import Training
      >>> digits = cj.data.load("digits")
      >>> def assemble(loss, points):
      ...     make = lambda **values: cj.train.objective(loss, **values)
      ...     training = Training(
      ...         model=cj.models.MLP, data=digits, objective=make(), steps=4, batch_size=20
      ...     )
      ...     return trials_of_loss(training, make, points)
      >>> count = {"trials": 1, "seeds": 1, "steps": 4}
      >>> train_losses(["supcon"], assemble, Path(), digits, "all classes", width=64, **count)
      >>> [line["loss"] for line in read_finished(Path())]
      ['raw pixels', 'supcon', 'supcon']
    """
    beside = baselines.baselines(data.train.images, data.train.classes, width=width)
    for name, embed in beside.items():
        line = {"split": split, "loss": name}
        if not read_finished(folder, **line):
            figures = figures_on(embed, data.test, labelled)
            json_lines.append_line(folder / TRIALS, line | {"figures": figures})
    advance = advance or _ignore
    for name in losses:
        rest = trials + seeds
        advance(name, 0)
        counts = {"trials": trials, "seeds": seeds, "steps": steps}
        for line in train_loss(name, partial(assemble, name), folder, split, **counts):
            json_lines.append_line(folder / TRIALS, line)
            advance(name, 1)
            rest -= 1
        advance(name, rest)


def _ignore(loss: str, count: int) -> None:
    """Takes what is finished where no progress is shown."""

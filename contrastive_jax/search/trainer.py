"""The trainer of a search: it trains any points, and compiles each structure once."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from contrastive_jax.data.datasets import PairDataset
from contrastive_jax.search.space import Hyperparameters
from contrastive_jax.train import TrainState, trial_figures
from contrastive_jax.train import grid as grids
from contrastive_jax.train.grid_strategy import choice_line, choose_grid
from contrastive_jax.train.objectives import Objective
from contrastive_jax.train.optimizer import tunable_optimizers
from contrastive_jax.train.preconditions import check_training
from contrastive_jax.train.training import Training
from contrastive_jax.train.trial_assembly import AssembledTrials, assemble_trials
from contrastive_jax.train.trial_axes import check_structure, values_of_axes, variants_of_axes


class Group(NamedTuple):
    """Trials that share their structure."""

    structure: str
    """A name of the structure."""
    indices: Sequence[int]
    """The position of each trial among the points."""
    trials: AssembledTrials


@dataclasses.dataclass(frozen=True)
class Trainer:
    """The arguments that all trainings of a search share."""

    groups: Callable[[Sequence[Hyperparameters]], Iterable[Group]]
    """A function that makes trials of points, one group for each structure."""
    chosen_by: str
    """The figure on validation whose largest value is the best, such as `"map_at_r"`."""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Options of `choose_grid`."""
    report: Callable[[str], Any] = print
    """A function that takes lines which tell how the search goes."""
    compiled: dict[str, grids.Grid] = dataclasses.field(default_factory=dict)
    """The grids that are compiled already."""

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
        for group in self.groups(points):
            made, grid = group.trials, self._grid(group)
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

    def _grid(self, group: Group) -> grids.Grid:
        # A grid of many is a waste for a few, and one for each number is too much to compile.
        count = len(group.indices)
        # Of given pairs, batches of other seeds may need more room for their images.
        room = group.trials.parts.images_per_step
        name = f"{(count - 1).bit_length()} {room} {group.structure}"
        if name not in self.compiled:
            choice = choose_grid(group.trials, **self.options)
            self.report(choice_line(choice, count))
            self.compiled[name] = choice.grid
        return self.compiled[name]

    def on_validation(
        self, made: AssembledTrials, state: TrainState, diverged: int | None
    ) -> float:
        """Returns the figure by which trials are chosen; 0, the worst, where one diverged."""
        figures = None if diverged else trial_figures.on_validation(made, state)
        return figures[self.chosen_by] if figures else 0.0


def make_trainer(
    training: Training,
    objective: Objective | Callable[..., Objective] | None = None,
    *,
    further_seeds: Sequence[int] = (),
    chosen_by: str | None = None,
    report: Callable[[str], Any] = print,
    **options: Any,
) -> Trainer:
    """Makes the trainer of points that differ in hyperparameters alone.

    Args:
      training: the arguments that all trials share.
      objective: whose hyperparameters are searched, or a function that makes it from them; by
        default that of the training.
      further_seeds: of trials beside seed 0, such as those of the winner.
      chosen_by: the figure on validation whose largest value is the best; by default
        `"map_at_r"`, and `"auc"` on given pairs.
      report: takes lines which tell how the search goes.
      **options: of `choose_grid`.

    Returns:
      The trainer, for `halving`, `by_optuna` and `judge`.

    Raises:
      ValueError: if the training or `chosen_by` does not fit the data; from the trainer, if a
        hyperparameter is part of the structure of the program, so that trials can not share it.

    Example:
      >>> import contrastive_jax as cj
      >>> from contrastive_jax.search import make_trainer
      >>> from contrastive_jax.train.training import Training
      >>> digits, objective = cj.data.load("digits"), cj.train.objective("contrastive")
      >>> training = Training(
      ...     model=cj.models.Linear, data=digits, objective=objective, steps=4, batch_size=32
      ... )
      >>> make_trainer(training, strategy="sequential").chosen_by
      'map_at_r'
    """
    check_training(training, log_every=1, validate_every=1, steps_per_call=1)
    chosen_by = trial_figures.chosen_figure(training.data, chosen_by)
    given_pairs = isinstance(training.data, PairDataset)
    tried: dict[str, set[float]] = {}

    def groups(points: Sequence[Hyperparameters]) -> Iterator[Group]:
        if not points:
            return
        for point in points:
            for name, value in point.items():
                tried.setdefault(name, set()).add(value)
        check_structure(objective or training.objective, tried)
        variants = []
        for point in points:
            (variant,) = variants_of_axes(
                training.objective if objective is None else objective,
                values_of_axes({name: [value] for name, value in point.items()}),
                given_pairs=given_pairs,
                own_optimizer=training.optimizer is not None,
            )
            variants.append(variant)
        encoder, loss = tunable_optimizers(
            points[0], training.steps, training.optimizer, training.loss_optimizer
        )
        common = dataclasses.replace(training, optimizer=encoder, loss_optimizer=loss)
        made = assemble_trials(common, variants, further_seeds=further_seeds)
        yield Group("trials", range(len(points)), made)

    return Trainer(groups, chosen_by, options, report)

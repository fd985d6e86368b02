"""Trains any trials of a search; each structure is compiled once."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from contrastive_jax.data import Dataset, PairDataset
from contrastive_jax.train import TrainState, trial_figures
from contrastive_jax.train import grid as grids
from contrastive_jax.train.grid_strategy import choice_line, choose_grid
from contrastive_jax.train.trial_assembly import AssembledTrials
from experiments import trials
from experiments.axes import Hyperparameters


class Trainer(NamedTuple):
    """The arguments that all trainings share; each structure is compiled once."""

    config: Any
    """Options of `experiments.search`."""
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
            made = trials.assembled(
                group, self.data, devices, further_seeds=range(self.config.seeds)
            )
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

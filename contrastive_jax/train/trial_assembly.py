"""The parts of several trials that share their structure, and so their compiled step."""

import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np

from contrastive_jax.data.datasets import Dataset, PairDataset
from contrastive_jax.train.assembly import Assembled, assemble
from contrastive_jax.train.batches import source_of
from contrastive_jax.train.grid import Init
from contrastive_jax.train.objectives import Objective
from contrastive_jax.train.optimizer import check_hyperparameter, with_hyperparameters
from contrastive_jax.train.training import Training
from contrastive_jax.train.types import Hyperparameters, PairSource, Source, TrainState


class Variant(NamedTuple):
    """The values by which one trial differs from the others of its structure."""

    hyperparameters: Mapping[str, Any]
    """The values as they are recorded with its results, JSON types."""
    seed: int
    objective: Objective
    """The objective, whose hyperparameters are those of the trial."""
    optimizer: Mapping[str, float] = {}
    """Values that `optax.inject_hyperparams` has put into the state of the optimizer."""


class AssembledTrials(NamedTuple):
    """Several trials of one structure, ready to train."""

    parts: Assembled
    """The encoder and the step, which all trials share."""
    data: Dataset | PairDataset
    objective: Objective
    """The objective, with the hyperparameters of the first trial."""
    source: Source | PairSource
    """The training data on the host, from which all trials draw their batches."""
    hyperparameters: list[Hyperparameters]
    """The hyperparameters that the step takes, of each trial."""
    init: Init
    """A function of the position of a trial to its state before the first step."""
    recorded: list[dict[str, Any]]
    """The values of each trial as they are recorded with its results."""

    def part(self, trials: Iterable[int]) -> "AssembledTrials":
        """Returns the trials at some positions."""
        chosen = [*trials]
        return self._replace(
            hyperparameters=[self.hyperparameters[k] for k in chosen],
            init=lambda trial: self.init(chosen[trial]),
            recorded=[self.recorded[k] for k in chosen],
        )


def assemble_trials(
    training: Training, variants: Sequence[Variant], *, further_seeds: Sequence[int] = ()
) -> AssembledTrials:
    """Makes the parts of several trials that share their structure.

    Args:
      training: the arguments of all trials. Seeds and objectives are those of the variants.
      variants: the values of each trial. Their objectives differ in hyperparameters alone.
      further_seeds: of other trials that take the compiled step, whose batches of given pairs have
        to fit into it.

    Returns:
      The parts.

    Raises:
      ValueError: if arguments do not fit each other or the data, or the optimizer has no
        hyperparameter that a variant gives it.

    Example:
      >>> import contrastive_jax as cj
      >>> from contrastive_jax.train.trial_assembly import Variant, assemble_trials
      >>> from contrastive_jax.train.training import Training
      >>> digits, objective = cj.data.load("digits"), cj.train.objective
      >>> variants = [
      ...     Variant({"margin": m}, 0, objective("contrastive", margin=m)) for m in (0.5, 1.0)
      ... ]
      >>> training = Training(
      ...     model=cj.models.Linear, data=digits, objective=variants[0].objective, steps=10
      ... )
      >>> trials = assemble_trials(training, variants)
      >>> [one.loss["margin"] for one in trials.hyperparameters]
      [0.5, 1.0]
    """
    own = [replace(training, seed=one.seed, objective=one.objective) for one in variants]
    source = _source_of_all(own)
    seeds = [one.seed for one in own]
    parts = assemble(own[0], seeds=[*seeds, *further_seeds])
    # Trials with the same seed start from the same encoder.
    first_state = functools.cache(parts.init)
    shapes = jax.eval_shape(lambda: parts.init(seeds[0]))
    has_loss = bool(jax.tree.leaves(shapes.params.loss))
    for name in dict.fromkeys(itertools.chain(*(one.optimizer for one in variants))):
        check_hyperparameter(shapes.opt_state, name)

    def init(trial: int) -> TrainState:
        one, state = own[trial], first_state(seeds[trial])
        loss = parts.init_loss(one.objective, one.seed)
        if jax.tree.leaves(loss):
            state = state._replace(params=state.params._replace(loss=loss))
        values = {k: np.array(value, np.float32) for k, value in variants[trial].optimizer.items()}
        changed = with_hyperparameters(state.opt_state, values, has_loss=has_loss)
        return state._replace(opt_state=changed)

    return AssembledTrials(
        parts,
        training.data,
        own[0].objective,
        source,
        [Hyperparameters(one.seed, dict(one.objective.hyperparameters)) for one in own],
        init,
        [dict(one.hyperparameters) for one in variants],
    )


def _source_of_all(trainings: Sequence[Training]) -> Source | PairSource:
    """Returns the data of all trials, having checked that each can draw its share of pairs."""
    by_fraction = {
        one.objective.hyperparameters.get("positive_fraction", 0.5): one for one in trainings
    }
    *_, source = map(source_of, by_fraction.values())
    return source

"""The parts of several trials that share their structure, and so their compiled step."""

import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.typing import ArrayLike

from contrastive_jax.checks import check_seed
from contrastive_jax.data.datasets import Dataset, PairDataset
from contrastive_jax.train.assembly import Assembled, assemble, source_of
from contrastive_jax.train.grid import Init
from contrastive_jax.train.objectives import Objective, of_given_pairs
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
    model: Any,
    data: Dataset | PairDataset,
    variants: Sequence[Variant],
    *,
    categories: ArrayLike | None = None,
    further_seeds: Sequence[int] = (),
    **options: Any,
) -> AssembledTrials:
    """Makes the parts of several trials that share their structure.

    Args:
      model: the encoder, as `train.network` takes it.
      data: from `contrastive_jax.data.load`.
      variants: the values of each trial. Their objectives differ in hyperparameters alone.
      categories: of the training examples, as in `index_by_class`.
      further_seeds: of other trials that take the compiled step, whose batches of given pairs have
        to fit into it.
      **options: others of `assemble`, `seed` and `seeds` excepted.

    Returns:
      The parts.

    Raises:
      ValueError: if options do not fit each other or the data, or the optimizer has no
        hyperparameter that a variant gives it.

    Example:
      >>> import contrastive_jax as cj
      >>> from contrastive_jax.train.trial_assembly import Variant, assemble_trials
      >>> variants = [
      ...     Variant({"margin": m}, 0, cj.train.objective("contrastive", margin=m))
      ...     for m in (0.5, 1.0)
      ... ]
      >>> trials = assemble_trials(cj.models.MLP, cj.data.load("digits"), variants, steps=10)
      >>> [one.loss["margin"] for one in trials.hyperparameters]
      [0.5, 1.0]
    """
    objectives = [one.objective for one in variants]
    if isinstance(data, PairDataset):
        objectives = [*map(of_given_pairs, objectives)]
    seeds = [one.seed for one in variants]
    for seed in seeds:
        check_seed(seed)
    fractions = [one.objective.hyperparameters.get("similar_fraction", 0.5) for one in variants]
    for fraction in dict.fromkeys(fractions):
        source = source_of(data, fraction, categories=categories, objective=objectives[0])
    parts = assemble(
        model, data, objectives[0], seed=seeds[0], seeds=[*seeds, *further_seeds], **options
    )
    # Trials with the same seed start from the same encoder.
    first_state = functools.cache(parts.init)
    shapes = jax.eval_shape(lambda: parts.init(seeds[0]).opt_state)
    for name in dict.fromkeys(itertools.chain(*(one.optimizer for one in variants))):
        if not optax.tree.get_all_with_path(shapes, name):
            raise ValueError(
                f"the optimizer has no hyperparameter {name} in its state: make it with "
                f"optax.inject_hyperparams, or leave {name} out"
            )

    def init(trial: int) -> TrainState:
        one, state = variants[trial], first_state(seeds[trial])
        loss = parts.init_loss(objectives[trial], one.seed)
        if jax.tree.leaves(loss):
            state = state._replace(params=state.params._replace(loss=loss))
        values = {name: np.array(value, np.float32) for name, value in one.optimizer.items()}
        return state._replace(opt_state=optax.tree.set(state.opt_state, **values))

    return AssembledTrials(
        parts,
        data,
        objectives[0],
        source,
        [
            Hyperparameters(seed, dict(objective.hyperparameters))
            for seed, objective in zip(seeds, objectives, strict=True)
        ],
        init,
        [dict(one.hyperparameters) for one in variants],
    )

"""The figures of a trained trial on validation and on test."""

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np

from contrastive_jax.data.datasets import Dataset, PairDataset
from contrastive_jax.evaluation.given_pairs import points_of_pairs, summarize_pairs
from contrastive_jax.evaluation.summary import summarize
from contrastive_jax.train.labelled import rows_and_labels
from contrastive_jax.train.networks import embed
from contrastive_jax.train.trial_assembly import AssembledTrials
from contrastive_jax.train.types import TrainState
from contrastive_jax.train.validation import figures_on_validation

Figures = dict[str, float]


Retrieval = Literal["precision_at_1", "r_precision", "map_at_r", "mean_reciprocal_rank"]
"""The figures on validation by which trials may be chosen, on data with classes."""
Verification = Literal["auc", "average_precision"]
"""Those on given pairs."""


class _NotFiniteError(ValueError):
    """An embedding is not finite."""


def chosen_figure(data: Dataset | PairDataset, name: str | None = None) -> str:
    """Returns the name of the figure on validation by which trials are chosen.

    Args:
      data: that they are trained on.
      name: of `Retrieval` or, on given pairs, of `Verification`; by default `map_at_r` and `auc`.

    Raises:
      ValueError: if it is not one of this data.

    Example:
      >>> import contrastive_jax as cj
      >>> from contrastive_jax.train.trial_figures import chosen_figure
      >>> chosen_figure(cj.data.load("digits"))
      'map_at_r'
    """
    given_pairs = isinstance(data, PairDataset)
    figures = get_args(Verification if given_pairs else Retrieval)
    name = name or ("auc" if given_pairs else "map_at_r")
    if name not in figures:
        raise ValueError(
            f"chosen_by must be one of {', '.join(figures)} on {data.name}, got {name}"
        )
    return name


def on_validation(trials: AssembledTrials, state: TrainState) -> Figures | None:
    """Computes the figures of a trained trial on validation, as `figures_on_validation`.

    Args:
      trials: the trials of which this is one.
      state: after its last step.

    Returns:
      Figures by name; None where an embedding is not finite, as after a training that diverged.

    Example:
      >>> import contrastive_jax as cj
      >>> from contrastive_jax.train.training import Training
      >>> from contrastive_jax.train.trial_assembly import Variant, assemble_trials
      >>> from contrastive_jax.train.trial_figures import on_validation
      >>> variants = [Variant({}, 0, cj.train.objective("supcon"))]
      >>> training = Training(
      ...     model=cj.models.Linear,
      ...     data=cj.data.load("digits"),
      ...     objective=variants[0].objective,
      ...     steps=10,
      ... )
      >>> trials = assemble_trials(training, variants)
      >>> sorted(on_validation(trials, trials.init(0)))[:2]
      ['map_at_r', 'mean_reciprocal_rank']
    """
    try:
        objective = trials.objective
        embedded = _embedding(trials, state)
        return figures_on_validation(embedded, trials.data, objective.distance, objective)[0]
    except _NotFiniteError:
        return None


def on_test(trials: AssembledTrials, state: TrainState) -> Figures | None:
    """Computes the figures of a trained trial on test, as `summarize` and `summarize_pairs`.

    If the objective has labels of two rows, figures use them in place of classes.

    Args:
      trials: the trials of which this is one.
      state: after its last step.

    Returns:
      Figures by name; None where an embedding is not finite.

    Example:
      >>> import contrastive_jax as cj
      >>> from contrastive_jax.train.training import Training
      >>> from contrastive_jax.train.trial_assembly import Variant, assemble_trials
      >>> from contrastive_jax.train import trial_figures
      >>> variants = [Variant({}, 0, cj.train.objective("supcon"))]
      >>> training = Training(
      ...     model=cj.models.Linear,
      ...     data=cj.data.load("digits"),
      ...     objective=variants[0].objective,
      ...     steps=10,
      ... )
      >>> trials = assemble_trials(training, variants)
      >>> figures = trial_figures.on_test(trials, trials.init(0))
      >>> 0 < figures["auc"] < 1
      True
    """
    embedded, data = _embedding(trials, state), trials.data
    distance = trials.objective.distance
    try:
        if isinstance(data, PairDataset):
            splits = [
                points_of_pairs(embedded, data.images, pairs)
                for pairs in (data.validation, data.test)
            ]
            return summarize_pairs(*splits, distance=distance).figures
        validation_rows, labels = rows_and_labels(trials.objective, data.validation)
        test_rows, _ = rows_and_labels(trials.objective, data.test)
        return summarize(
            embedded(data.validation.images),
            validation_rows,
            embedded(data.test.images),
            test_rows,
            distance=distance,
            labels=labels,
            queries=data.test.queries,
        ).figures
    except _NotFiniteError:
        return None


def _embedding(trials: AssembledTrials, state: TrainState) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the function that embeds by a trained trial; it raises _NotFiniteError."""

    def embedded(images: np.ndarray) -> np.ndarray:
        embeddings = embed(trials.parts.network.encode, state.weights, images)
        if not np.isfinite(embeddings).all():
            raise _NotFiniteError
        return embeddings

    return embedded

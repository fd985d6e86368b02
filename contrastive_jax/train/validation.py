"""Validation of an encoder: by retrieval on labelled examples, by verification on given pairs.

Here too are the run of a trained encoder, whose threshold validation chooses, and the warning of a
margin that its embeddings can not reach.
"""

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from contrastive_jax.data.datasets import Dataset, PairDataset
from contrastive_jax.evaluation.calibration import Calibration, calibrate
from contrastive_jax.evaluation.given_pairs import distances_of_pairs, points_of_pairs
from contrastive_jax.evaluation.retrieval import retrieval
from contrastive_jax.evaluation.summary import by_role
from contrastive_jax.evaluation.verification import (
    average_precision,
    best_threshold,
    equal_error_rate,
    roc_auc,
)
from contrastive_jax.train import diagnostics, run
from contrastive_jax.train.labelled import rows_and_labels
from contrastive_jax.train.networks import Network, embed
from contrastive_jax.train.objectives import Objective
from contrastive_jax.train.types import Weights

BEST_BY = "validation/map_at_r"
# The area under the ROC curve does not depend on the share of positive pairs, which need not be
# that of the pairs that the encoder will see.
BEST_BY_OF_PAIRS = "validation/auc"
TITLES = {
    BEST_BY: "MAP@R",
    "validation/precision_at_1": "P@1",
    BEST_BY_OF_PAIRS: "pair AUC",
    "validation/average_precision": "average precision",
}

Embed = Callable[[np.ndarray], np.ndarray]
Distance = Callable[[jax.Array, jax.Array], jax.Array]


def best_by(data: Dataset | PairDataset) -> str:
    """Returns the name of the figure by which the best checkpoint is chosen.

    Example:
      >>> import contrastive_jax as cj
      >>> from contrastive_jax.train.validation import best_by
      >>> best_by(cj.data.load("digits"))
      'validation/map_at_r'
    """
    return BEST_BY_OF_PAIRS if isinstance(data, PairDataset) else BEST_BY


def figures_on_validation(
    embed: Embed,
    data: Dataset | PairDataset,
    distance: Distance,
    objective: Objective | None = None,
) -> tuple[dict[str, float], np.ndarray]:
    """Computes the figures of an encoder on the validation split.

    Args:
      embed: from images to embeddings `[N, D]`.
      data: with a validation split.
      distance: between two embeddings, for given pairs.
      objective: if it has labels of two rows, they define matches; otherwise classes do.

    Returns:
      Figures by name, which are those of `retrieval` on labelled examples and `auc`,
      `average_precision` and `eer` on given pairs, and the embeddings.

    Example:
      >>> import contrastive_jax as cj
      >>> from contrastive_jax.train.validation import figures_on_validation
      >>> digits, distance = cj.data.load("digits"), cj.distances.euclidean
      >>> embed = lambda images: images.reshape(len(images), -1) / 255
      >>> figures, embeddings = figures_on_validation(embed, digits, distance)
      >>> print(f"{figures['precision_at_1']:.2f}")
      0.90
    """
    if not isinstance(data, PairDataset):
        embeddings = embed(data.validation.images)
        split = data.validation
        rows, labels = rows_and_labels(objective, data.validation)
        return retrieval(*by_role(embeddings, rows, split.queries), labels=labels), embeddings
    pair_points = points_of_pairs(embed, data.images, data.validation)
    pairs = (distances_of_pairs(pair_points, distance), pair_points.labels)
    figures = {
        "auc": roc_auc(*pairs),
        "average_precision": average_precision(*pairs),
        "eer": equal_error_rate(*pairs),
    }
    return figures, pair_points.points


def validate(
    embed: Embed,
    data: Dataset | PairDataset,
    distance: Distance,
    objective: Objective | None = None,
) -> dict[str, float]:
    """Evaluates an encoder on validation, and warns where it has collapsed.

    Args:
      embed: from images to embeddings `[N, D]`.
      data: with a validation split.
      distance: between two embeddings, for given pairs.
      objective: as in `figures_on_validation`.

    Returns:
      Those of `figures_on_validation` and the effective rank of the embeddings, by names that begin
      with `validation/`.

    Example:
      >>> import contrastive_jax as cj
      >>> from contrastive_jax.train.validation import validate
      >>> digits = cj.data.load("digits")
      >>> figures = validate(lambda x: x.reshape(len(x), -1) / 255, digits, cj.distances.euclidean)
      >>> print(f"{figures['validation/precision_at_1']:.2f}")
      0.90
    """
    figures, embeddings = figures_on_validation(embed, data, distance, objective)
    rank = diagnostics.effective_rank(embeddings)
    if rank < min(1.5, 0.75 * embeddings.shape[1]):
        diagnostics.warn_collapsed(rank, embeddings.shape[1])
    return {f"validation/{key}": value for key, value in figures.items()} | {
        "validation/effective_rank": rank
    }


def calibrated_on(
    embed: Embed,
    data: Dataset | PairDataset,
    distance: Distance,
    objective: Objective | None = None,
) -> tuple[float, Calibration, Mapping[str, Any]]:
    """Chooses the threshold and fits the calibration on the validation split.

    Args:
      embed: from images to embeddings `[N, D]`.
      data: with a validation split. Of labelled examples pairs are drawn, half of them positive;
        given pairs are taken as they are, and their share of positive pairs is the prior.
      distance: between two embeddings.
      objective: if it has labels of two rows, pairs are drawn by them, and otherwise by class.

    Returns:
      The threshold of the highest accuracy, the calibration, and the embeddings of the split with
      their classes or pairs, by name.

    Example:
      >>> import contrastive_jax as cj
      >>> from contrastive_jax.train.validation import calibrated_on
      >>> digits = cj.data.load("digits")
      >>> embed = lambda images: images.reshape(len(images), -1) / 255
      >>> threshold, calibration, arrays = calibrated_on(embed, digits, cj.distances.euclidean)
      >>> calibration.prior, [*arrays]
      (0.5, ['embeddings', 'classes'])
    """
    if isinstance(data, PairDataset):
        pair_points = points_of_pairs(embed, data.images, data.validation)
        between = distances_of_pairs(pair_points, distance)
        arrays = pair_points._asdict()
        arrays = {"embeddings": arrays.pop("points"), **arrays}
        threshold = best_threshold(between, pair_points.labels)
        return threshold, calibrate(between, pair_points.labels), arrays
    embeddings = embed(data.validation.images)
    rows, labels = rows_and_labels(objective, data.validation)
    threshold, calibration = run.calibrated(distance, embeddings, rows, labels=labels)
    arrays = {"embeddings": embeddings, "classes": data.validation.classes}
    return threshold, calibration, arrays


def trained_run(
    network: Network,
    weights: Weights,
    data: Dataset | PairDataset,
    distance: Distance,
    folder: Path | None = None,
    *,
    objective: Objective | None = None,
) -> tuple[run.Run, Mapping[str, Any]]:
    """Makes the run of a trained encoder, with its threshold and calibration on validation.

    Args:
      network: the encoder.
      weights: after training.
      data: that it was trained on.
      distance: between two embeddings.
      folder: in which the run is stored, if it is.
      objective: if it has labels of two rows, threshold and calibration are for pairs that are
        labelled by them.

    Returns:
      The run, and the embeddings of validation by name.

    Example:
      >>> import contrastive_jax as cj
      >>> from contrastive_jax.train.validation import trained_run
      >>> digits, network = cj.data.load("digits"), cj.train.network(cj.models.Linear, (8, 8, 1))
      >>> run, arrays = trained_run(network, network.weights, digits, cj.distances.euclidean)
      >>> run.image_shape, [*arrays]
      ((8, 8, 1), ['embeddings', 'classes'])
    """
    embedded = partial(embed, network.encode, weights)
    threshold, calibration, arrays = calibrated_on(embedded, data, distance, objective)
    images = _training_images(data)
    names = () if isinstance(data, PairDataset) else data.class_names
    shape, dtype = images.shape[1:], images.dtype.name
    return (
        run.Run(network, weights, shape, dtype, names, distance, threshold, calibration, folder),
        arrays,
    )


def warn_of_margin(network: Network, data: Dataset | PairDataset, objective: Objective) -> None:
    """Warns of a margin that the distance between two embeddings can not reach.

    Args:
      network: the encoder, whose embeddings are of unit length or not.
      data: that it is trained on.
      objective: whose margin is checked, if it is a distance.

    Example:
      >>> import warnings
      >>> import contrastive_jax as cj
      >>> from contrastive_jax.train.validation import warn_of_margin
      >>> digits, network = cj.data.load("digits"), cj.train.network(cj.models.Linear, (8, 8, 1))
      >>> with warnings.catch_warnings(record=True) as caught:
      ...     warnings.simplefilter("always")
      ...     warn_of_margin(network, digits, cj.train.objective("contrastive", margin=3.0))
      >>> print(str(caught[0].message)[:36])
      a margin of 3 is out of reach: the e
    """
    if not objective.bounded:
        return
    two = embed(network.encode, network.weights, _training_images(data)[:2])
    unit_length = bool(np.allclose(np.linalg.norm(two, axis=1), 1, atol=1e-3))
    if text := margin_out_of_reach(objective, two.shape[1], unit_length=unit_length):
        warnings.warn(text, stacklevel=3)


def margin_out_of_reach(objective: Objective, width: int, *, unit_length: bool) -> str:
    """Returns the warning of a margin that the distance between two embeddings can not reach.

    Args:
      objective: whose margin is checked, if it is a distance.
      width: entries of an embedding.
      unit_length: whether embeddings are of unit length.

    Returns:
      The warning, empty where the margin can be reached.

    Example:
      >>> from contrastive_jax import train
      >>> from contrastive_jax.train.validation import margin_out_of_reach
      >>> text = margin_out_of_reach(train.objective(margin=3.0), width=64, unit_length=True)
      >>> print(text[:36])
      a margin of 3 is out of reach: the e
      >>> margin_out_of_reach(train.objective(margin=1.0), width=64, unit_length=True)
      ''
    """
    margin = objective.hyperparameters.get("margin")
    if margin is None or not objective.bounded:
        return ""
    return diagnostics.out_of_reach(
        float(margin),
        objective.distance,
        width,
        unit_length=unit_length,
        boundary=float(objective.hyperparameters.get("boundary", 0.0)),
    )


def _training_images(data: Dataset | PairDataset) -> np.ndarray:
    return data.images if isinstance(data, PairDataset) else data.train.images

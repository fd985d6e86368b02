"""Verification of given pairs, whose images are embedded once each."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from contrastive_jax import distances
from contrastive_jax.data.datasets import GivenPairs
from contrastive_jax.evaluation._row_distances import row_distances
from contrastive_jax.evaluation.summary import Summary
from contrastive_jax.evaluation.verification import best_threshold, verification


class PairPoints(NamedTuple):
    """Embeddings of the images of given pairs, each once, and the pairs as rows of them."""

    points: np.ndarray
    """`[U, D]`."""
    left: np.ndarray
    """`[P]`."""
    right: np.ndarray
    """`[P]`."""
    labels: np.ndarray
    """0 for a positive pair, 1 for a negative one, `[P]`."""


def points_of_pairs(
    embed: Callable[[np.ndarray], np.ndarray], images: np.ndarray, pairs: GivenPairs
) -> PairPoints:
    """Embeds each image that occurs in pairs once.

    Args:
      embed: from images `[U, ...]` to points `[U, D]`.
      images: of all splits.
      pairs: of one split, rows of these images.

    Returns:
      The points, in the order of the images, and the pairs as rows of them.

    Example:
      >>> import numpy as np
      >>> from contrastive_jax.data import GivenPairs
      >>> from contrastive_jax.evaluation.given_pairs import points_of_pairs
      >>> pairs = GivenPairs(np.array([3, 3]), np.array([1, 3]), np.array([1, 0]))
      >>> points = points_of_pairs(lambda images: 2 * images, np.arange(4.0)[:, None], pairs)
      >>> print(points.points.ravel(), points.left, points.right)
      [2. 6.] [1 1] [0 1]
    """
    rows, members = np.unique(np.concatenate([pairs.left, pairs.right]), return_inverse=True)
    left, right = np.split(members.ravel(), 2)
    return PairPoints(embed(images[rows]), left, right, np.asarray(pairs.labels))


def distances_of_pairs(
    points: PairPoints, distance: Callable[[jax.Array, jax.Array], jax.Array] = distances.euclidean
) -> np.ndarray:
    """Computes the distance of each pair.

    Args:
      points: from `points_of_pairs`.
      distance: between two points.

    Returns:
      Distances, `[P]`.

    Example:
      >>> import numpy as np
      >>> from contrastive_jax.evaluation.given_pairs import PairPoints, distances_of_pairs
      >>> points = PairPoints(np.array([[0.0, 0.0], [3.0, 4.0]]), [0, 0], [1, 0], [1, 0])
      >>> print(distances_of_pairs(points))
      [5. 0.]
    """
    left, right = np.asarray(points.left, np.int32), np.asarray(points.right, np.int32)
    return np.asarray(row_distances(jnp.asarray(points.points, jnp.float32), left, right, distance))


def summarize_pairs(
    validation: PairPoints,
    test: PairPoints,
    *,
    distance: Callable[[jax.Array, jax.Array], jax.Array] = distances.euclidean,
) -> Summary:
    """Computes verification on the given pairs of test, with the threshold chosen on validation.

    All pairs count alike: weights are those of training alone.

    Args:
      validation: points and pairs of the validation split.
      test: those of the test split.
      distance: between two points.

    Returns:
      The figures of `verification`, with ten folds or as many as there are pairs of the rarer
      label, the distances and labels of the test pairs, and the threshold.

    Raises:
      ValueError: if validation lacks positive or negative pairs, test has less than two of either,
        or a distance is not finite.

    Example:
      >>> import numpy as np
      >>> from contrastive_jax.evaluation.given_pairs import PairPoints, summarize_pairs
      >>> points = np.array([[0.0], [0.1], [3.0], [3.2]])
      >>> pairs = PairPoints(points, [0, 2, 0, 1], [1, 3, 2, 3], np.array([0, 0, 1, 1]))
      >>> summarize_pairs(pairs, pairs).figures["auc"]
      1.0
    """
    threshold = best_threshold(distances_of_pairs(validation, distance), validation.labels)
    between, labels = distances_of_pairs(test, distance), test.labels
    folds = min(10, int(np.sum(labels == 0)), int(np.sum(labels == 1)))
    return Summary(verification(between, labels, threshold, folds), between, labels, threshold)

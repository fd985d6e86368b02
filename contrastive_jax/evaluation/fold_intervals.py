"""Confidence intervals of the figures of one encoder, from folds of its test set."""

import numpy as np

from contrastive_jax.evaluation.intervals import Interval, bootstrap_interval
from contrastive_jax.evaluation.retrieval import retrieval
from contrastive_jax.evaluation.verification import average_precision, roc_auc

QUERY_FIGURES = ("precision_at_1", "r_precision", "map_at_r", "mean_reciprocal_rank")


def retrieval_intervals(
    points: np.ndarray, classes: np.ndarray, *, folds: int = 10, seed: int = 0
) -> dict[str, Interval]:
    """Computes intervals of the figures of retrieval, from folds of the queries.

    Queries are dealt into folds at random, and each is ranked among all other points. The interval
    tells how much the figures depend on which queries there are; another training has another seed,
    which it does not tell.

    Args:
      points: `[N, D]`.
      classes: `[N]`, -1 for points to ignore.
      folds: number of folds.
      seed: of the deal.

    Returns:
      Intervals of 95 % by the name of the figure.

    Example:
      >>> import numpy as np
      >>> from contrastive_jax.evaluation.fold_intervals import retrieval_intervals
      >>> classes = np.arange(40) % 2
      >>> points = np.random.default_rng(0).normal(size=(40, 2)) + 9 * classes[:, None]
      >>> retrieval_intervals(points, classes)["precision_at_1"]
      Interval(mean=1.0, low=1.0, high=1.0)
    """
    classes = np.asarray(classes)
    # A class of one point has no match.
    names, counts = np.unique(classes[classes >= 0], return_counts=True)
    queries = np.flatnonzero(np.isin(classes, names[counts > 1]))
    ids, shuffled = np.arange(len(points)), np.random.default_rng(seed).permutation(queries)
    figures = [
        retrieval(
            points[fold],
            classes[fold],
            points,
            classes,
            query_ids=ids[fold],
            reference_ids=ids,
        )
        for fold in np.array_split(shuffled, min(folds, len(shuffled)))
    ]
    return {key: bootstrap_interval([one[key] for one in figures]) for key in QUERY_FIGURES}


def pair_intervals(
    distances: np.ndarray, labels: np.ndarray, *, folds: int = 10, seed: int = 0
) -> dict[str, Interval]:
    """Computes intervals of the figures of verification, from folds of the pairs.

    Args:
      distances: `[P]`.
      labels: 0 similar, 1 dissimilar, `[P]`; at least one of each.
      folds: number of folds, each with its share of both labels; fewer where a label is rarer.
      seed: of the deal.

    Returns:
      Intervals of 95 % of `auc` and `average_precision`.

    Example:
      >>> import numpy as np
      >>> from contrastive_jax.evaluation.fold_intervals import pair_intervals
      >>> pair_intervals(np.array([0.1, 0.2, 0.8, 0.9]), np.array([0, 0, 1, 1]))["auc"].mean
      1.0
    """
    labels, generator = np.asarray(labels), np.random.default_rng(seed)
    positive, negative = (
        generator.permutation(np.flatnonzero(labels == label)) for label in (0, 1)
    )
    count = min(folds, len(positive), len(negative))
    parts = zip(np.array_split(positive, count), np.array_split(negative, count), strict=True)
    dealt = [np.concatenate(fold) for fold in parts]
    return {
        name: bootstrap_interval([figure(distances[fold], labels[fold]) for fold in dealt])
        for name, figure in (("auc", roc_auc), ("average_precision", average_precision))
    }

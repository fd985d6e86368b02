"""Verification metrics, from the distances of pairs and their labels.

A pair is accepted, that is taken for a positive one, when its distance is at most a threshold. Two
rates describe a threshold: TAR, the fraction of positive pairs accepted, and FAR, the fraction of
negative pairs accepted. Pairs at equal distance are accepted together, so that no figure depends on
their order.

Everywhere `distances` is [N], finite, and `labels` is [N], 0 for positive and 1 for negative pairs,
both present. A pair whose distance or label is masked (`numpy.ma`) is left out. scikit-learn's
labels are the other way round: its class 1 is label 0 here, and its score is minus the distance.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from contrastive_jax._host_arrays import column_hint, split_mask
from contrastive_jax.checks import check_seed

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class ROC(NamedTuple):
    """Receiver operating characteristic: thresholds and the rates at each, all [T], ascending."""

    thresholds: Floats
    far: Floats
    tar: Floats


def roc_curve(distances: ArrayLike, labels: ArrayLike) -> ROC:
    """Returns FAR and TAR at -inf, where no pair is accepted, and at every distinct distance.

    Args:
      distances: [N], small for positive pairs.
      labels: [N], 0 similar, 1 dissimilar; both present.

    Raises:
      ValueError: shapes other than [N], a distance that is not finite, a label outside {0, 1},
        or pairs of one label only.

    Example:
      >>> from contrastive_jax.evaluation.verification import roc_curve
      >>> distances, labels = [0.1, 0.4, 0.3, 0.9], [0, 0, 1, 1]
      >>> thresholds, far, tar = roc_curve(distances, labels)
      >>> print(far)
      [0.  0.  0.5 0.5 1. ]
      >>> print(tar)
      [0.  0.5 0.5 1.  1. ]
    """
    thresholds, positive, negative = _accepted(*unmasked_pairs(distances, labels))
    return ROC(thresholds, negative / negative[-1], positive / positive[-1])


def roc_auc(distances: ArrayLike, labels: ArrayLike) -> float:
    """Computes the area under the ROC curve, in [0, 1].

    It is the probability that a positive pair is closer than a negative one; a tie counts half.
    Args and Raises are those of `roc_curve`.

    Example:
      >>> from contrastive_jax.evaluation.verification import roc_auc
      >>> roc_auc([0.1, 0.4, 0.3, 0.9], [0, 0, 1, 1])
      0.75
    """
    _, far, tar = roc_curve(distances, labels)
    return float(np.trapezoid(tar, far))


def equal_error_rate(distances: ArrayLike, labels: ArrayLike) -> float:
    r"""Computes the error rate at which FAR equals FRR, the fraction of positive pairs rejected.

    $$\text{FRR} = 1 - \text{TAR}$$

    The crossing is interpolated linearly on the polyline through the points of the ROC curve.
    Args and Raises are those of `roc_curve`.

    Example:
      >>> from contrastive_jax.evaluation.verification import equal_error_rate
      >>> equal_error_rate([0.1, 0.4, 0.3, 0.9], [0, 0, 1, 1])
      0.5
    """
    _, far, tar = roc_curve(distances, labels)
    return float(np.interp(1.0, far + tar, far))


def tar_at_far(distances: ArrayLike, labels: ArrayLike, far: float) -> float:
    """Computes the largest TAR, in [0, 1], among thresholds whose FAR is at most `far`.

    A `far` below 1 / (number of negative pairs) allows no false accept at all. The result is
    then the fraction of positive pairs closer than every negative one: well defined, but resting
    on a single negative pair.

    Args:
      distances: [N], small for positive pairs.
      labels: [N], 0 similar, 1 dissimilar; both present.
      far: the false accept rate allowed, in [0, 1].

    Raises:
      ValueError: as in `roc_curve`, or `far` outside [0, 1].

    Example:
      >>> from contrastive_jax.evaluation.verification import tar_at_far
      >>> tar_at_far([0.1, 0.4, 0.3, 0.9], [0, 0, 1, 1], far=0.1)
      0.5
    """
    if not 0 <= far <= 1:
        raise ValueError(f"far must lie in [0, 1], got {far}.")
    curve = roc_curve(distances, labels)
    return float(curve.tar[np.searchsorted(curve.far, far, side="right") - 1])


def average_precision(distances: ArrayLike, labels: ArrayLike) -> float:
    r"""Computes the precision of accepted pairs, averaged over the steps of recall, in (0, 1].

    $$\sum_t (r_t - r_{t - 1}) p_t$$

    with $r_t$ the recall and $p_t$ the precision at the distinct distances $t$, without
    interpolation, the definition of scikit-learn's `average_precision_score`. Label 0 is its
    positive class.
    Args and Raises are those of `roc_curve`.

    Example:
      >>> from contrastive_jax.evaluation.verification import average_precision
      >>> print(f"{average_precision([0.1, 0.4, 0.3, 0.9], [0, 0, 1, 1]):.3f}")
      0.833
    """
    _, positive, negative = _accepted(*unmasked_pairs(distances, labels))
    precision = positive[1:] / (positive + negative)[1:]
    return float(np.diff(positive) @ precision / positive[-1])


def best_threshold(distances: ArrayLike, labels: ArrayLike) -> float:
    """Returns the threshold with the highest accuracy on these pairs, halfway between distances.

    Among equally accurate thresholds it is the smallest, the one that accepts fewest pairs. Where
    accepting nothing is best it lies just below the smallest distance, where accepting everything
    is best, on the largest. Choose it on validation pairs, judge it on test pairs.
    Args and Raises are those of `roc_curve`.

    Example:
      >>> from contrastive_jax.evaluation.verification import best_threshold
      >>> best_threshold([0.25, 0.5, 1.0, 2.0], [0, 0, 1, 1])
      0.75
    """
    return _best_threshold(*unmasked_pairs(distances, labels))


def accuracy_at(distances: ArrayLike, labels: ArrayLike, threshold: float) -> float:
    """Computes the fraction of correct decisions: pairs that are positive and accepted, or neither.

    Args:
      distances: [N], small for positive pairs.
      labels: [N], 0 similar, 1 dissimilar; both present.
      threshold: pairs at this distance or closer are accepted; chosen on other pairs than these.

    Raises:
      ValueError: as in `roc_curve`, or a NaN threshold.

    Example:
      >>> from contrastive_jax.evaluation.verification import accuracy_at
      >>> accuracy_at([0.1, 0.4, 0.3, 0.9], [0, 0, 1, 1], threshold=0.5)
      0.75
    """
    if np.isnan(threshold):
        raise ValueError("threshold must be a number, got NaN.")
    return _accuracy(*unmasked_pairs(distances, labels), threshold)


def kfold_accuracy(
    distances: ArrayLike, labels: ArrayLike, folds: int | ArrayLike = 10, *, seed: int = 0
) -> tuple[float, float]:
    """Computes accuracy as Labeled Faces in the Wild reports it: mean and standard error of folds.

    Each fold is judged at the `best_threshold` of all the others.

    Args:
      distances: [N], small for positive pairs.
      labels: [N], 0 similar, 1 dissimilar; both present.
      folds: the number K of folds, into which the pairs are dealt at random with equal shares of
        each label (to within one pair); or the fold of each pair, [N] integers, where a benchmark
        prescribes them. A pair whose fold is masked is left out.
      seed: of the random deal, in [0, 2^32).

    Returns:
      The mean accuracy, in [0, 1], and its standard error, which is the standard deviation of the K
      accuracies (with K - 1 degrees of freedom) over the square root of K.

    Raises:
      ValueError: as in `roc_curve`, fewer than two folds, fewer pairs of a label than folds,
        folds that are not integers of shape [] or [N], a fold that holds all pairs of a label, or
        a seed out of its range.

    References:
      Huang, Ramesh, Berg and Learned-Miller (2007), "Labeled Faces in the Wild: A Database for
      Studying Face Recognition in Unconstrained Environments", the protocol of View 2.

    Example:
      >>> from contrastive_jax.evaluation.verification import kfold_accuracy
      >>> kfold_accuracy([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1], folds=2)
      (1.0, 0.0)
    """
    check_seed(seed)
    given, has_fold = split_mask(folds)
    pairs = np.shape(distances)
    if not np.issubdtype(given.dtype, np.integer) or given.shape not in ((), pairs):
        raise ValueError(
            f"folds must be an integer, or one for each of the {math.prod(pairs)} pairs, "
            f"got {given.dtype} of shape {given.shape}{column_hint(folds=given)}."
        )
    distances, positive, rows = _checked_pairs(distances, labels, has_fold if given.ndim else True)
    fold = _fold_of_each(positive, given[rows] if given.ndim else given, seed)
    accuracies = []
    for name in np.unique(fold):
        held_out = fold == name
        threshold = _best_threshold(distances[~held_out], positive[~held_out])
        accuracies.append(_accuracy(distances[held_out], positive[held_out], threshold))
    return float(np.mean(accuracies)), float(np.std(accuracies, ddof=1) / len(accuracies) ** 0.5)


def verification(
    distances: ArrayLike, labels: ArrayLike, threshold: float, folds: int | ArrayLike = 10
) -> dict[str, float]:
    """Computes all metrics of this module for one set of pairs.

    Args:
      distances: [N], small for positive pairs.
      labels: [N], 0 similar, 1 dissimilar; both present.
      threshold: for `accuracy`; it must have been chosen on other pairs (validation), by
        `best_threshold` or otherwise.
      folds: for the k-fold accuracy, as in `kfold_accuracy`.

    Returns:
      `auc`, `eer`, `tar_at_far_0.1`, `tar_at_far_0.01`, `tar_at_far_0.001`, `average_precision`,
      `accuracy`, `kfold_accuracy` and `kfold_standard_error`.

    Raises:
      ValueError: as in `accuracy_at` and `kfold_accuracy`.

    Example:
      >>> from contrastive_jax.evaluation.verification import verification
      >>> figures = verification([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1], threshold=0.5, folds=2)
      >>> figures["auc"], figures["accuracy"]
      (1.0, 1.0)
    """
    accuracy = accuracy_at(distances, labels, threshold)
    kfold_mean, kfold_error = kfold_accuracy(distances, labels, folds)
    return {
        "auc": roc_auc(distances, labels),
        "eer": equal_error_rate(distances, labels),
        **{f"tar_at_far_{far}": tar_at_far(distances, labels, far) for far in (0.1, 0.01, 0.001)},
        "average_precision": average_precision(distances, labels),
        "accuracy": accuracy,
        "kfold_accuracy": kfold_mean,
        "kfold_standard_error": kfold_error,
    }


def _accepted(distances: Floats, positive: Bools) -> tuple[Floats, Floats, Floats]:
    """Returns thresholds, and the counts of positive and negative pairs that each accepts."""
    thresholds, inverse = np.unique(distances, return_inverse=True)
    counts = [
        np.bincount(inverse[kind], minlength=len(thresholds)) for kind in (positive, ~positive)
    ]
    positives_accepted, negatives_accepted = (np.append(0.0, np.cumsum(count)) for count in counts)
    return np.append(-np.inf, thresholds), positives_accepted, negatives_accepted


def _best_threshold(distances: Floats, positive: Bools) -> float:
    thresholds, positives_accepted, negatives_accepted = _accepted(distances, positive)
    # Accuracy is this difference plus a constant.
    best = int(np.argmax(positives_accepted - negatives_accepted))
    if best == len(thresholds) - 1:
        return float(thresholds[best])
    below_next = np.nextafter(thresholds[best + 1], -np.inf)
    if best == 0:
        return float(below_next)
    # The mean of two adjacent floats may round to the upper one, which must not be accepted.
    return float(min((thresholds[best] + thresholds[best + 1]) / 2, below_next))


def _accuracy(distances: Floats, positive: Bools, threshold: float) -> float:
    return float(np.mean((distances <= threshold) == positive))


def _fold_of_each(positive: Bools, folds: NDArray[Any], seed: int) -> NDArray[np.integer[Any]]:
    """Returns the fold of each pair, [N], as given or drawn."""
    number = int(folds) if folds.ndim == 0 else len(np.unique(folds))
    if number < 2:
        raise ValueError(f"folds must be at least 2, got {number}.")
    if folds.ndim == 1:
        for name in np.unique(folds):
            if len(np.unique(positive[folds != name])) < 2:
                raise ValueError(
                    f"fold {name} holds all pairs of a label, which leaves none to choose its "
                    "threshold from."
                )
        return folds
    if min(np.sum(positive), np.sum(~positive)) < number:
        raise ValueError(
            f"{number} folds need at least {number} positive and {number} negative pairs, "
            f"got {np.sum(positive)} and {np.sum(~positive)}."
        )
    shuffled = np.random.default_rng(seed).permutation(len(positive))
    by_label = shuffled[np.argsort(positive[shuffled], kind="stable")]
    dealt = np.empty(len(positive), int)
    dealt[by_label] = np.arange(len(positive)) % number
    return dealt


def unmasked_pairs(distances: ArrayLike, labels: ArrayLike) -> tuple[Floats, Bools]:
    """Returns checked distances and a mask of positive pairs, without the masked pairs.

    Example:
      >>> from contrastive_jax.evaluation.verification import unmasked_pairs
      >>> print(unmasked_pairs([0.5, 1.5], [0, 1])[1])
      [ True False]
    """
    return _checked_pairs(distances, labels)[:2]


def _checked_pairs(
    distances: ArrayLike, labels: ArrayLike, counts: Bools | bool = True
) -> tuple[Floats, Bools, NDArray[np.intp]]:
    """Does the same as `unmasked_pairs` for the pairs that count, and returns their rows too."""
    distances, has_distance = split_mask(distances)
    labels, has_label = split_mask(labels)
    distances = np.asarray(distances, np.float64)
    if distances.ndim != 1 or distances.shape != labels.shape:
        raise ValueError(
            "distances and labels must both be [N], one entry a pair, "
            f"got shapes {distances.shape} and {labels.shape}"
            f"{column_hint(distances=distances, labels=labels)}."
        )
    if labels.dtype == object:
        labels = np.array(labels.tolist())
    if labels.size and labels.dtype.kind in "USTOMm":
        raise ValueError(
            "labels must be the numbers 0 (similar) or 1 (dissimilar), or bools, "
            f"got {labels.dtype}, {str(labels[0])!r} in row 0."
        )
    rows = np.flatnonzero(has_distance & has_label & counts)
    total, distances, labels = len(labels), distances[rows], labels[rows]
    wrong = np.flatnonzero(~np.isfinite(distances))
    if len(wrong):
        raise ValueError(
            f"distances must be finite, got {distances[wrong[0]]} in row {rows[wrong[0]]} "
            f"({len(wrong)} of {total} rows)."
        )
    wrong = np.flatnonzero((labels != 0) & (labels != 1))
    if len(wrong):
        raise ValueError(
            f"labels must be 0 (similar) or 1 (dissimilar), got {labels[wrong[0]]} in row "
            f"{rows[wrong[0]]} ({len(wrong)} of {total} rows)."
        )
    positive = labels == 0
    if positive.all() or not positive.any():
        left_out = f", {total - len(rows)} masked pairs left out" if len(rows) < total else ""
        raise ValueError(
            "both positive (0) and negative (1) pairs are needed, got "
            f"{np.sum(positive)} positive and {np.sum(~positive)} negative{left_out}."
        )
    return distances, positive, rows

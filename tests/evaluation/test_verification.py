from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from contrastive_jax.evaluation import verification as v


@st.composite
def pairs(draw, largest=6):
    """Distances on a coarse grid, so that most of them tie, with both labels present."""
    size = draw(st.integers(2, 60))
    steps = draw(st.lists(st.integers(0, largest), min_size=size, max_size=size))
    labels = draw(st.lists(st.integers(0, 1), min_size=size - 2, max_size=size - 2))
    order = draw(st.permutations([0, 1, *labels]))
    return np.array(steps) * 0.1, np.array(order)


many = settings(deadline=None, max_examples=100, derandomize=True)


def rates(distances, labels):
    """FAR and TAR at every distance, counted pair by pair, and at no acceptance."""
    positive = [d for d, y in zip(distances, labels, strict=True) if y == 0]
    negative = [d for d, y in zip(distances, labels, strict=True) if y == 1]
    points = {(0.0, 0.0)}
    for threshold in distances:
        points.add(
            (
                sum(d <= threshold for d in negative) / len(negative),
                sum(d <= threshold for d in positive) / len(positive),
            )
        )
    return sorted(points)


# Three positive pairs and four negative, with a tie across labels at 0.3.
DISTANCES = [0.1, 0.3, 0.6, 0.3, 0.5, 0.8, 0.9]
LABELS = [0, 0, 0, 1, 1, 1, 1]


def test_figures_worked_by_hand():
    curve = v.roc_curve(DISTANCES, LABELS)
    np.testing.assert_array_equal(curve.thresholds, [-np.inf, 0.1, 0.3, 0.5, 0.6, 0.8, 0.9])
    np.testing.assert_allclose(curve.far, [0, 0, 1 / 4, 2 / 4, 2 / 4, 3 / 4, 1])
    np.testing.assert_allclose(curve.tar, [0, 1 / 3, 2 / 3, 2 / 3, 1, 1, 1])
    # Of 12 comparisons the positive pair is closer in 4 (0.1), 3 + half (0.3) and 2 (0.6).
    assert v.roc_auc(DISTANCES, LABELS) == pytest.approx(9.5 / 12)
    # FRR is 1/3 from FAR 1/4 to FAR 1/2.
    assert v.equal_error_rate(DISTANCES, LABELS) == pytest.approx(1 / 3)
    assert v.tar_at_far(DISTANCES, LABELS, 0.0) == pytest.approx(1 / 3)
    assert v.tar_at_far(DISTANCES, LABELS, 0.24) == pytest.approx(1 / 3)
    assert v.tar_at_far(DISTANCES, LABELS, 0.25) == pytest.approx(2 / 3)
    assert v.tar_at_far(DISTANCES, LABELS, 0.5) == 1
    assert v.average_precision(DISTANCES, LABELS) == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
    # 5 of 7 right between 0.1 and 0.3, between 0.3 and 0.5, and between 0.6 and 0.8.
    assert v.best_threshold(DISTANCES, LABELS) == pytest.approx(0.2)
    assert v.accuracy_at(DISTANCES, LABELS, 0.7) == pytest.approx(5 / 7)
    assert v.accuracy_at(DISTANCES, LABELS, 0.3) == pytest.approx(5 / 7)


def test_equal_error_rate_is_interpolated():
    # From (FAR, FRR) = (0, 1/2) to (1/3, 1/2) to (1/3, 0): they cross where FAR = 1/3.
    assert v.equal_error_rate([1, 2, 3, 4, 5], [0, 1, 0, 1, 1]) == pytest.approx(1 / 3)
    # All tied: from (0, 1) straight to (1, 0).
    assert v.equal_error_rate([2, 2, 2], [0, 1, 1]) == pytest.approx(1 / 2)
    assert v.equal_error_rate([1, 2, 3, 4], [0, 0, 1, 1]) == 0
    assert v.equal_error_rate([1, 2, 3, 4], [1, 1, 0, 0]) == 1


@many
@given(pairs())
def test_equals_scikit_learn(example):
    distances, labels = example
    positive, score = 1 - labels, -distances
    assert v.roc_auc(distances, labels) == pytest.approx(metrics.roc_auc_score(positive, score))
    assert v.average_precision(distances, labels) == pytest.approx(
        metrics.average_precision_score(positive, score)
    )
    fpr, tpr, thresholds = metrics.roc_curve(positive, score, drop_intermediate=False)
    curve = v.roc_curve(distances, labels)
    np.testing.assert_allclose(curve.far, fpr)
    np.testing.assert_allclose(curve.tar, tpr)
    np.testing.assert_allclose(curve.thresholds, -thresholds)
    for far in (0.5, 0.1, 0.01, 0.001):
        assert v.tar_at_far(distances, labels, far) == pytest.approx(tpr[fpr <= far].max())


@many
@given(pairs())
def test_equal_error_rate_lies_where_the_roc_polyline_crosses(example):
    distances, labels = example
    points = rates(distances, labels)
    for (far, tar), (next_far, next_tar) in pairwise(points):
        if next_far + next_tar >= 1:  # FAR is no longer below FRR
            step = (1 - far - tar) / (next_far + next_tar - far - tar)
            expected = far + step * (next_far - far)
            break
    assert v.equal_error_rate(distances, labels) == pytest.approx(expected)


@many
@given(pairs(), st.sampled_from([0.0, 0.001, 0.05, 0.1, 0.2, 0.25, 1 / 3, 0.5, 1.0]))
def test_tar_at_far_is_the_best_of_all_thresholds(example, far):
    distances, labels = example
    expected = max(tar for false_accepts, tar in rates(distances, labels) if false_accepts <= far)
    assert v.tar_at_far(distances, labels, far) == pytest.approx(expected)


@many
@given(pairs(largest=20))
def test_best_threshold_is_the_lowest_of_the_most_accurate(example):
    distances, labels = example
    grid = np.unique(distances)
    candidates = [-1.0, *((grid[:-1] + grid[1:]) / 2), grid[-1]]
    accuracies = [np.mean((distances <= t) == (labels == 0)) for t in candidates]
    best = candidates[int(np.argmax(accuracies))]
    threshold = v.best_threshold(distances, labels)
    assert v.accuracy_at(distances, labels, threshold) == pytest.approx(max(accuracies))
    if best == -1.0:
        assert threshold < distances.min()
        assert threshold == pytest.approx(distances.min())
    else:
        assert threshold == pytest.approx(best)


def test_best_threshold_separates_adjacent_floats():
    # 0.1 + 0.2 is the float after 0.3, and their mean rounds up to it.
    close, far = 0.3, 0.1 + 0.2
    assert far == np.nextafter(close, 1)
    assert (close + far) / 2 in (close, far)
    for low in (close, far):
        distances = [low, np.nextafter(low, 1)]
        assert v.accuracy_at(distances, [0, 1], v.best_threshold(distances, [0, 1])) == 1


def test_kfold_accuracy_worked_by_hand():
    distances = np.array([1.0, 4.0, 1.0, 2.0, 3.0, 4.0])
    labels = np.array([0, 1, 0, 1, 0, 1])
    # Fold 7: the others have 1 and 3 positive, 2 and 4 negative, so 1.5 (3 right of 4, as 3.5 is):
    # both right. Fold 8: others 1, 3 | 4, 4, so 3.5: 1 right, 2 wrong. Fold 9: others 1, 1 | 2, 4,
    # so 1.5: 3 wrong, 4 right.
    mean, error = v.kfold_accuracy(distances, labels, np.array([7, 7, 8, 8, 9, 9]))
    assert mean == pytest.approx(2 / 3)
    assert error == pytest.approx(np.sqrt((1 / 9 + 1 / 36 + 1 / 36) / 2) / np.sqrt(3))


@many
@given(pairs(), st.randoms(use_true_random=False))
def test_kfold_accuracy_chooses_thresholds_on_the_other_folds(example, random):
    distances, labels = example
    folds = np.array([random.randrange(3) for _ in labels])
    outside = [labels[folds != fold] for fold in set(folds.tolist())]
    if len(outside) < 2 or any(len(set(rest.tolist())) < 2 for rest in outside):
        with pytest.raises(ValueError, match="fold"):
            v.kfold_accuracy(distances, labels, folds)
        return
    accuracies = []
    for fold in set(folds.tolist()):
        inside = folds == fold
        threshold = v.best_threshold(distances[~inside], labels[~inside])
        accuracies.append(np.mean((distances[inside] <= threshold) == (labels[inside] == 0)))
    mean, error = v.kfold_accuracy(distances, labels, folds)
    assert mean == pytest.approx(np.mean(accuracies))
    assert error == pytest.approx(np.std(accuracies, ddof=1) / np.sqrt(len(accuracies)))


def test_kfold_accuracy_deals_balanced_folds_from_the_seed():
    rng = np.random.default_rng(3)
    labels = np.array([0] * 34 + [1] * 71)
    distances = rng.normal(size=105) + labels
    dealt = v._fold_of_each(labels == 0, np.asarray(10), 0)
    for label in (0, 1):
        shares = np.bincount(dealt[labels == label], minlength=10)
        assert shares.max() - shares.min() <= 1
    assert np.bincount(dealt).max() - np.bincount(dealt).min() <= 1
    assert v.kfold_accuracy(distances, labels, 10) == v.kfold_accuracy(distances, labels, dealt)
    assert v.kfold_accuracy(distances, labels, 10) != v.kfold_accuracy(
        distances, labels, 10, seed=1
    )


def test_separated_pairs_are_perfect_and_reversed_ones_are_not():
    distances, labels = np.r_[0:20, 40:60] + 0.0, np.repeat([0, 1], 20)
    figures = v.verification(distances, labels, threshold=30)
    assert figures == {
        "auc": 1,
        "eer": 0,
        "tar_at_far_0.1": 1,
        "tar_at_far_0.01": 1,
        "tar_at_far_0.001": 1,
        "average_precision": 1,
        "accuracy": 1,
        "kfold_accuracy": 1,
        "kfold_standard_error": 0,
    }
    assert v.roc_auc(distances, 1 - labels) == 0


@pytest.mark.parametrize("folds", [5, np.arange(80) % 4])
def test_verification_gathers_the_figures(folds):
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat([0, 1], 40))
    distances = rng.normal(size=80) + labels
    figures = v.verification(distances, labels, 0.25, folds)
    assert figures["auc"] == v.roc_auc(distances, labels)
    assert figures["eer"] == v.equal_error_rate(distances, labels)
    for far in (0.1, 0.01, 0.001):
        assert figures[f"tar_at_far_{far}"] == v.tar_at_far(distances, labels, far)
    assert figures["average_precision"] == v.average_precision(distances, labels)
    assert figures["accuracy"] == np.mean((distances <= 0.25) == (labels == 0))
    kfold = figures["kfold_accuracy"], figures["kfold_standard_error"]
    assert kfold == v.kfold_accuracy(distances, labels, folds)


EVERY_FIGURE = [
    v.roc_curve,
    v.roc_auc,
    v.equal_error_rate,
    v.average_precision,
    v.best_threshold,
    v.kfold_accuracy,
    lambda distances, labels: v.tar_at_far(distances, labels, 0.1),
    lambda distances, labels: v.accuracy_at(distances, labels, 0.5),
    lambda distances, labels: v.verification(distances, labels, 0.5),
]


MASKED = np.ma.masked_array([1.0, 2.0, 3.0], mask=[0, 1, 0])


@pytest.mark.parametrize("figure", EVERY_FIGURE)
@pytest.mark.parametrize("hidden", ["distances", "labels", "both"])
def test_masked_pairs_are_left_out(figure, hidden):
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat([0, 1], 40))
    distances, masks = rng.normal(size=80) + labels, rng.random((2, 80)) < 0.2
    if hidden != "both":
        masks[int(hidden == "distances")] = False
    counts = ~masks.any(axis=0)
    given = distances, labels
    # What a mask hides may be anything.
    masked = [
        np.ma.masked_array(np.where(mask, hides, one), mask=mask)
        for one, mask, hides in zip(given, masks, (np.nan, 7), strict=True)
    ]
    want = figure(distances[counts], labels[counts])
    np.testing.assert_array_equal(figure(*masked), want)


def test_pairs_whose_fold_is_masked_are_left_out():
    rng = np.random.default_rng(0)
    labels, folds = rng.permutation(np.repeat([0, 1], 40)), np.arange(80) % 4
    distances, counts = rng.normal(size=80) + labels, np.arange(80) >= 9
    masked = np.ma.masked_array(folds, mask=~counts)
    want = v.kfold_accuracy(distances[counts], labels[counts], folds[counts])
    assert v.kfold_accuracy(distances, labels, masked) == want
    hidden = np.ma.masked_array(distances, mask=~counts)
    assert v.kfold_accuracy(hidden, labels, folds) == want
    with pytest.raises(ValueError, match=r"80 pairs, got int64 of shape \(71,\)"):
        v.kfold_accuracy(hidden, labels, folds[counts])


@pytest.mark.parametrize("figure", EVERY_FIGURE)
@pytest.mark.parametrize(
    ("distances", "labels", "message"),
    [
        ([[1.0, 2.0]], [[0, 1]], r"\[N\].*\(1, 2\)"),
        ([1.0, 2.0, 3.0], [0, 1], r"\(3,\) and \(2,\)"),
        ([1.0, np.nan, np.nan], [0, 1, 1], r"nan in row 1 \(2 of 3"),
        ([1.0, 2.0, np.inf], [0, 1, 1], "inf in row 2"),
        ([1.0, 2.0, 3.0], [0, 1, -1], "-1 in row 2"),
        ([1.0, 2.0], [0, 0.5], "0.5 in row 1"),
        ([1.0, 2.0], [0, 0], "2 positive and 0 negative"),
        ([1.0, 2.0], [1, 1], "0 positive and 2 negative"),
        ([], [], "0 positive and 0 negative"),
        ([1.0, 2.0], ["0", "1"], r"labels must be the numbers 0 .* got <U1, .*'0'.* in row 0"),
        ([1.0, 2.0], [[0], [1]], r"\(2, 1\); squeeze it to \[N\] by labels.squeeze\(1\)"),
        ([[1.0], [2.0]], [0, 1], r"squeeze it to \[N\] by distances.squeeze\(1\)"),
        (MASKED, [0, 1, 5], "5 in row 2"),
        (MASKED, [0, 1, 0], "2 positive and 0 negative, 1 masked pairs left out"),
    ],
)
def test_bad_pairs_are_refused(figure, distances, labels, message):
    with pytest.raises(ValueError, match=message):
        figure(distances, labels)


@pytest.mark.parametrize("far", [-0.1, 1.1, np.nan])
def test_rates_outside_the_unit_interval_are_refused(far):
    with pytest.raises(ValueError, match=f"far .* got {far}"):
        v.tar_at_far(DISTANCES, LABELS, far)


def test_threshold_must_be_a_number():
    with pytest.raises(ValueError, match="NaN"):
        v.verification(DISTANCES, LABELS, np.nan, folds=2)


@pytest.mark.parametrize(
    ("folds", "message"),
    [
        (1, "at least 2, got 1"),
        (4, "4 positive and 4 negative pairs, got 3 and 4"),
        ([5] * 7, "at least 2, got 1"),
        ([0, 1, 0], r"7 pairs, got int64 of shape \(3,\)"),
        ([0.0, 1.0] * 3 + [0.0], "float64"),
        ([3, 3, 3, 0, 0, 1, 1], "fold 3 holds all pairs of a label"),
    ],
)
def test_bad_folds_are_refused(folds, message):
    with pytest.raises(ValueError, match=message):
        v.kfold_accuracy(DISTANCES, LABELS, folds)

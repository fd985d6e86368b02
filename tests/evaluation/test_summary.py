"""The summary: its pairs, its threshold from validation alone."""

import jax.numpy as jnp
import numpy as np
import pytest

from contrastive_jax import distances
from contrastive_jax.evaluation.summary import summarize


def _points(spread, seed):
    generator = np.random.default_rng(seed)
    classes = np.arange(120) % 4
    return (4 * np.eye(4)[classes] + spread * generator.normal(size=(120, 4))), classes


def test_separated_classes_are_perfect():
    (validation, c1), (test, c2) = _points(0.1, 0), _points(0.1, 1)
    summary = summarize(validation, c1, test, c2, pairs=2000)
    for name in ("auc", "accuracy", "precision_at_1", "map_at_r", "tar_at_far_0.001"):
        assert summary.figures[name] == 1
    similar = summary.distances[summary.labels == 0]
    assert len(summary.distances) == 2000
    assert len(similar) == 1000
    assert similar.max() < summary.threshold < summary.distances[summary.labels == 1].min()


def test_the_threshold_is_of_validation_and_no_other():
    (validation, c1), (test, c2) = _points(1.0, 0), _points(1.0, 1)
    near = summarize(validation, c1, test, c2, pairs=2000)
    scaled = summarize(validation, c1, 10 * test, c2, pairs=2000)
    assert scaled.threshold == near.threshold
    np.testing.assert_allclose(scaled.distances, 10 * near.distances, rtol=1e-5)
    np.testing.assert_allclose(scaled.figures["auc"], near.figures["auc"], atol=1e-6)
    assert scaled.figures["accuracy"] < near.figures["accuracy"]


def test_distances_are_those_asked_for():
    (validation, c1), (test, c2) = _points(1.0, 0), _points(1.0, 1)
    plain = summarize(validation, c1, test, c2, pairs=500)
    squared = summarize(validation, c1, test, c2, pairs=500, distance=distances.squared_euclidean)
    np.testing.assert_allclose(squared.distances, plain.distances**2, rtol=1e-5)
    np.testing.assert_allclose(squared.figures["auc"], plain.figures["auc"], atol=1e-9)


@pytest.mark.parametrize("masked", [False, True])
def test_ignored_rows_change_nothing_whatever_they_hold(masked):
    sets = _points(1.0, 0), _points(1.0, 1)
    padded = []
    for points, classes in sets:
        rows = np.concatenate([np.full((9, 4), np.nan), points, np.full((9, 4), 1e60)])
        names = np.pad(classes, 9, constant_values=-1)
        if masked:
            names = np.ma.masked_array(np.maximum(names, 0), mask=names < 0)
        padded += [rows, names]
    want = summarize(*sets[0], *sets[1], pairs=500)
    got = summarize(*padded, pairs=500)
    assert got.figures == want.figures
    assert got.threshold == want.threshold
    np.testing.assert_array_equal(got.distances, want.distances)


def _with_row(value):
    points, _ = _points(1.0, 0)
    points[7] = value
    return points


@pytest.mark.parametrize(
    ("points", "classes", "distance", "message"),
    [
        (_with_row(np.nan), None, distances.euclidean, "test must be finite: row 7, with nan"),
        (_with_row(1e60), None, distances.cosine, r"test .* 3.4e\+38 .*: row 7, with 1e\+60"),
        (_with_row(1e-60), None, distances.cosine, r"test .* 1.18e-38, .*: row 7, with 1e-60"),
        (np.ma.masked_greater(_with_row(99), 98), None, distances.cosine, "masked .*: row 7"),
        (1e-25 * _with_row(1), None, distances.squared_euclidean, "all distances of test are 0"),
        (_with_row(1), None, "cosine", "distance must be a function of two vectors, .*'cosine'"),
        (_with_row(1)[:, 0], None, distances.cosine, r"test must be \[N, D\]"),
        (_with_row(1), np.full(120, -1), distances.cosine, "test_classes leave no row: all 120"),
        (_with_row(1), np.arange(120) - 5, distances.cosine, "test_classes .* got -5 in row 0"),
        (_with_row(1), np.zeros((120, 1), int), distances.cosine, r"test_classes.squeeze\(1\)"),
        (_with_row(1), np.zeros(120), distances.cosine, "test_classes .* or string, got float64"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_what_can_not_be_summarized_is_refused(points, classes, distance, message):
    validation, c1 = _points(1.0, 0)
    classes = c1 if classes is None else classes
    with pytest.raises(ValueError, match=message):
        summarize(validation, c1, points, classes, pairs=500, distance=distance)


def test_takes_jax_arrays():
    (validation, c1), (test, c2) = _points(1.0, 0), _points(1.0, 1)
    arrays = validation.astype(np.float32), c1, test.astype(np.float32), c2
    want = summarize(*arrays, pairs=500)
    assert summarize(*map(jnp.asarray, arrays), pairs=500).figures == want.figures

"""The summary: its pairs, its threshold from validation alone."""

import jax.numpy as jnp
import numpy as np
import pytest

from contrastive_jax import distances, labels
from contrastive_jax.evaluation.retrieval import retrieval
from contrastive_jax.evaluation.summary import drawn_distances, summarize


def _points(spread, seed):
    generator = np.random.default_rng(seed)
    classes = np.arange(120) % 4
    return (4 * np.eye(4)[classes] + spread * generator.normal(size=(120, 4))), classes


def test_separated_classes_are_perfect():
    (validation, c1), (test, c2) = _points(0.1, 0), _points(0.1, 1)
    summary = summarize(validation, c1, test, c2, pairs=2000)
    for name in ("auc", "accuracy", "precision_at_1", "map_at_r", "tar_at_far_0.001"):
        assert summary.figures[name] == 1
    positive = summary.distances[summary.labels == 0]
    assert len(summary.distances) == 2000
    assert len(positive) == 1000
    assert positive.max() < summary.threshold < summary.distances[summary.labels == 1].min()


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


def test_pairs_drawn_by_labels():
    """Each label as often, no ignored pair, and every row as likely to be the first."""
    rng = np.random.default_rng(0)
    classes, groups = rng.integers(-1, 4, 60), rng.integers(0, 3, 60)
    points = np.arange(60.0)[:, None]
    points[classes == -1] = np.nan

    def both(a, b):
        # From a distance one learns which pair it is of.
        return 100 * a[0] + b[0]

    rule = labels.same_class_other_group()
    got = drawn_distances(points, (classes, groups), both, 6000, 0, labels=rule)
    i, j = np.divmod(got[0].astype(int), 100)
    assert (i != j).all()
    np.testing.assert_array_equal(got[1], 1 - np.arange(6000) % 2)
    np.testing.assert_array_equal(got[1], classes[i] != classes[j])
    assert (groups[i] != groups[j])[got[1] == 0].all()
    assert (classes[i] >= 0).all()
    assert (classes[j] >= 0).all()
    table = np.where(classes[:, None] != classes, 1, np.where(groups[:, None] == groups, -1, 0))
    for label in (0, 1):
        able = np.flatnonzero(((table == label) & (classes >= 0)).any(1) & (classes >= 0))
        counts = np.bincount(i[got[1] == label], minlength=60)
        assert set(np.flatnonzero(counts)) == set(able)
        assert counts.max() < 1.7 * 3000 / len(np.flatnonzero(counts))
        # Every row that may be the second of a pair is.
        assert set(np.flatnonzero(np.bincount(j[got[1] == label]))) == set(able)
    again = drawn_distances(points, (classes, groups), both, 6000, 0, labels=rule)
    np.testing.assert_array_equal(again[0], got[0])


def test_summary_by_labels():
    rng = np.random.default_rng(0)
    classes, groups = np.arange(80) % 4, np.arange(80) // 4 % 3
    points = rng.normal(size=(80, 3)) + 3 * np.eye(4)[classes][:, :3]
    rule = labels.same_class_other_group()
    attributes = classes[:40], groups[:40]
    summary = summarize(points[:40], attributes, points[40:], attributes, pairs=200, labels=rule)
    assert summary.figures.items() >= retrieval(points[40:], attributes, labels=rule).items()
    plain = summarize(points[:40], classes[:40], points[40:], classes[:40], pairs=200)
    same = summarize(
        points[:40], classes[:40], points[40:], classes[:40], pairs=200, labels=labels.same_class()
    )
    assert same.figures["precision_at_1"] == plain.figures["precision_at_1"]
    assert abs(same.figures["auc"] - plain.figures["auc"]) < 0.1
    for wrong, name in ((0, "negative"), (1, "positive")):
        with pytest.raises(ValueError, match=f"labels leave no {name} pair among 40 rows"):
            drawn_distances(
                points[:40],
                classes[:40],
                distances.euclidean,
                10,
                0,
                labels=lambda a, b, wrong=wrong: jnp.where(a == b, wrong, wrong),
            )


def test_queries_are_ranked_in_the_gallery_alone():
    rng = np.random.default_rng(0)
    points, classes = rng.normal(size=(40, 3)), np.arange(40) % 5
    queries = np.arange(40) % 4 == 0
    summary = summarize(points, classes, points, classes, pairs=20, queries=queries)
    between = np.linalg.norm(points[queries][:, None] - points[~queries], axis=2)
    right = classes[~queries][between.argmin(1)] == classes[queries]
    assert summary.figures["precision_at_1"] == right.mean()
    with pytest.raises(ValueError, match=r"queries must be a mask of booleans \[40\], got int64"):
        summarize(points, classes, points, classes, queries=np.arange(40))

"""The summary: its pairs, its threshold from validation alone."""

import numpy as np

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

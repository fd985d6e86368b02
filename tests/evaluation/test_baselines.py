"""Baselines of vectors, and intervals from folds of a test set."""

import numpy as np
import pytest
from sklearn.decomposition import PCA

from contrastive_jax.evaluation.baselines import vector_baselines
from contrastive_jax.evaluation.fold_intervals import pair_intervals, retrieval_intervals
from contrastive_jax.evaluation.retrieval import retrieval

RNG = np.random.default_rng(0)
CLASSES = np.arange(300) % 6
CENTERS = RNG.normal(size=(6, 12))
SCALES = np.geomspace(0.1, 10, 12)
VECTORS = (RNG.normal(size=(300, 12)) + CENTERS[CLASSES]) * SCALES


def test_whitened_vectors_have_the_unit_covariance():
    maps = vector_baselines(VECTORS, width=12, unit_length=False)
    assert [*maps] == ["raw vectors", "PCA-whitened"]
    np.testing.assert_allclose(np.cov(maps["PCA-whitened"](VECTORS).T), np.eye(12), atol=1e-4)
    np.testing.assert_allclose(maps["raw vectors"](VECTORS), VECTORS, rtol=1e-6)


def test_points_are_of_unit_length_and_of_the_width_of_the_head():
    maps = vector_baselines(VECTORS, CLASSES, width=3)
    assert {name: map(VECTORS).shape[1] for name, map in maps.items()} == {
        "raw vectors": 12,
        "PCA-whitened": 3,
        "LDA": 3,
    }
    for map_ in maps.values():
        np.testing.assert_allclose(np.linalg.norm(map_(VECTORS), axis=1), 1, rtol=1e-5)


def test_discriminants_undo_the_scale_of_the_entries():
    maps = vector_baselines(VECTORS, CLASSES, width=12)
    figures = {
        name: retrieval(map(VECTORS), CLASSES)["precision_at_1"] for name, map in maps.items()
    }
    assert figures["LDA"] > figures["raw vectors"] + 0.2


def test_ignored_and_few_vectors_are_fitted():
    classes = np.where(CLASSES == 0, -1, CLASSES)
    assert vector_baselines(VECTORS, classes, width=12)["LDA"](VECTORS).shape[1] == 4
    few = vector_baselines(VECTORS[:5], CLASSES[:5] % 2, width=12)
    assert few["PCA-whitened"](VECTORS).shape[1] == 4
    # Of two classes there is one discriminant, whose length is no scale.
    assert len(np.unique(np.abs(few["LDA"](VECTORS)))) > 2


def test_vectors_of_fewer_directions_are_fitted_once(monkeypatch):
    fit, fits = PCA.fit, []
    monkeypatch.setattr(PCA, "fit", lambda self, x: (fits.append(len(x)), fit(self, x))[1])
    flat = VECTORS[:, :4] @ RNG.normal(size=(4, 12))
    whitened = vector_baselines(flat, width=12, unit_length=False)["PCA-whitened"](flat)
    assert fits == [300]
    assert whitened.shape == (300, 4)
    np.testing.assert_allclose(np.cov(whitened.T), np.eye(4), atol=1e-4)


def test_intervals_of_folds_hold_the_figures():
    points = VECTORS / SCALES
    figures, intervals = retrieval(points, CLASSES), retrieval_intervals(points, CLASSES)
    for key, (mean, low, high) in intervals.items():
        # Folds of thirty queries each, so that the mean of their means is that of all.
        assert mean == pytest.approx(figures[key], rel=1e-6)
        assert low < figures[key] < high
    ignored = np.where(np.arange(300) < 30, -1, CLASSES)
    assert 0 < retrieval_intervals(points, ignored)["map_at_r"].mean < 1


def test_pairs_are_dealt_by_label():
    distances = np.concatenate([RNG.normal(0, 1, 40), RNG.normal(1, 1, 400)])
    labels = np.repeat([0, 1], [40, 400])
    intervals = pair_intervals(distances, labels)
    assert intervals["auc"].low < 0.78 < intervals["auc"].high
    assert pair_intervals(distances[:42], labels[:42])["auc"].mean > 0


def test_directions_without_variance_are_not_whitened():
    rng = np.random.default_rng(0)
    few = rng.normal(size=(200, 4)).astype(np.float32)
    vectors = few @ rng.normal(size=(4, 32)).astype(np.float32)
    whitened = vector_baselines(vectors, width=32, unit_length=False)["PCA-whitened"]
    assert whitened(vectors).shape == (200, 4)

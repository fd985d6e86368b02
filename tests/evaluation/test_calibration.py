"""The probability of a pair: a logistic regression, checked against another in float64."""

import numpy as np
import pytest

from contrastive_jax.evaluation.calibration import Calibration, calibrate, probability


def _pairs(positive=300, negative=100, seed=0):
    rng = np.random.default_rng(seed)
    distances = np.concatenate([rng.normal(0.5, 0.2, positive), rng.normal(1.1, 0.3, negative)])
    return distances, np.repeat([0, 1], [positive, negative])


def _newton(distances, target):
    """Slope and intercept of a logistic regression by Newton's method."""
    features = np.stack([-distances, np.ones_like(distances)], 1)
    weights = np.zeros(2)
    for _ in range(50):
        p = 1 / (1 + np.exp(-features @ weights))
        curvature = (features * (p * (1 - p))[:, None]).T @ features
        weights += np.linalg.solve(curvature, features.T @ (target - p))
    return weights


@pytest.mark.parametrize("unit", [1.0, 1e-3, 1e4])
def test_the_fit_is_a_logistic_regression_on_the_targets_of_platt(unit):
    distances, labels = _pairs()
    slope, intercept = _newton(distances, np.where(labels == 0, 301 / 302, 1 / 102))
    got = calibrate(distances * unit, labels)
    np.testing.assert_allclose([got.slope * unit, got.intercept], [slope, intercept], rtol=1e-4)
    assert got.prior == 0.75


def test_probabilities_are_shares_of_positive_pairs():
    rng = np.random.default_rng(0)
    distances = rng.uniform(0, 2, 40_000)
    labels = (rng.uniform(size=40_000) > 1 / (1 + np.exp(4 * distances - 3))).astype(int)
    likely = probability(calibrate(distances, labels), distances)
    for low in np.arange(0.1, 0.9, 0.2):
        inside = (likely >= low) & (likely < low + 0.2)
        assert inside.sum() > 500
        assert abs((labels[inside] == 0).mean() - likely[inside].mean()) < 0.02


def test_pairs_that_a_threshold_separates_have_a_finite_fit():
    calibration = calibrate([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1])
    assert np.isfinite(calibration).all()
    near, far = probability(calibration, [0.1, 0.9])
    # The targets of Platt are 3/4 and 1/4 for two pairs.
    np.testing.assert_allclose([near, far], [0.75, 0.25], atol=0.05)


def test_another_prior_is_bayes_rule():
    calibration = Calibration(slope=3.0, intercept=2.0, prior=0.5)
    distances = np.array([[0.0, 0.5], [1.0, 2.0]])
    odds = np.exp(2.0 - 3.0 * distances)
    np.testing.assert_allclose(probability(calibration, distances), odds / (1 + odds), rtol=1e-12)
    rare = odds * 0.01 / 0.99
    got = probability(calibration, distances, prior=0.01)
    np.testing.assert_allclose(got, rare / (1 + rare), rtol=1e-12)
    quarter = calibration._replace(prior=0.25)
    same = probability(quarter, distances, prior=0.25)
    np.testing.assert_array_equal(same, probability(quarter, distances))


def test_small_probabilities_keep_their_digits():
    calibration = Calibration(slope=1.0, intercept=0.0, prior=0.5)
    np.testing.assert_allclose(probability(calibration, [60.0, 800.0]), [np.exp(-60.0), 0.0])
    np.testing.assert_array_equal(probability(calibration, [-800.0]), [1.0])


@pytest.mark.parametrize("prior", [0.0, 1.0, -0.1, 1.5, np.nan])
def test_a_prior_is_a_share(prior):
    with pytest.raises(ValueError, match=r"prior must be in \(0, 1\), .* got"):
        probability(Calibration(1.0, 0.0, 0.5), [0.5], prior=prior)


def test_both_labels_are_needed():
    with pytest.raises(ValueError, match=r"both positive .* are needed, got 2 positive and 0"):
        calibrate([0.1, 0.2], [0, 0])
    with pytest.raises(ValueError, match="distances"):
        calibrate([0.1, np.nan], [0, 1])

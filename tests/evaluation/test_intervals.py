import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from contrastive_jax.evaluation.intervals import bootstrap_interval


def test_as_scipy_has_it_at_the_expanded_level():
    values = np.random.default_rng(0).normal(size=12)
    actual = bootstrap_interval(values, resamples=100_000)
    tail = stats.norm.cdf(-np.sqrt(12 / 11) * stats.t.ppf(0.975, 11))
    assert 0.005 < tail < 0.025
    want = stats.bootstrap(
        (values,), np.mean, n_resamples=100_000, method="percentile", confidence_level=1 - 2 * tail
    ).confidence_interval
    assert actual.mean == pytest.approx(values.mean())
    np.testing.assert_allclose(actual[1:], want, atol=0.03)


def test_holds_the_true_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    for count, share in ((3, 0.75), (5, 0.91), (10, 0.95)):
        held = 0
        for _ in range(1000):
            _, low, high = bootstrap_interval(rng.normal(size=count), resamples=1000)
            held += low <= 0 <= high
        # Three deviations of a thousand draws.
        assert held / 1000 == pytest.approx(share, abs=3 * np.sqrt(share * (1 - share) / 1000))


def test_two_values_are_their_own_interval():
    assert bootstrap_interval([1.0, 3.0]) == (2.0, 1.0, 3.0)


def test_masked_values_are_left_out():
    values = np.ma.masked_array([1.0, np.nan, 2.0, 4.0], mask=[0, 1, 0, 0])
    assert bootstrap_interval(values) == bootstrap_interval([1.0, 2.0, 4.0])


def test_one_value_has_no_interval():
    mean, low, high = bootstrap_interval([0.25])
    assert mean == 0.25
    assert np.isnan(low)
    assert np.isnan(high)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=9), st.floats(-100, 100))
def test_holds_the_mean_and_moves_with_the_values(values, shift):
    mean, low, high = bootstrap_interval(values, resamples=200)
    assert low - 1e-6 <= mean <= high + 1e-6 or len({*values}) > 1
    assert min(values) - 1e-6 <= low <= high <= max(values) + 1e-6
    moved = bootstrap_interval(np.array(values) + shift, resamples=200)
    np.testing.assert_allclose(moved, np.array([mean, low, high]) + shift, atol=1e-6)


@pytest.mark.parametrize(
    ("values", "options", "words"),
    [
        ([], {}, "at least one"),
        ([1.0, np.nan], {}, "finite"),
        ([[1.0]], {}, r"\[N\]"),
        (np.ma.masked_array([1.0], mask=True), {}, "at least one"),
        ([1.0, 2.0], {"resamples": 0}, "resamples must be a whole number, at least 1, got 0"),
        ([1.0], {"confidence": 1.0}, r"confidence must be in \(0, 1\), got 1.0"),
    ],
)
def test_errors(values, options, words):
    with pytest.raises(ValueError, match=words):
        bootstrap_interval(values, **options)

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from contrastive_jax.evaluation.intervals import bootstrap_interval


def test_as_scipy_has_it():
    values = np.random.default_rng(0).normal(size=12)
    found = bootstrap_interval(values, resamples=40_000)
    want = stats.bootstrap(
        (values,), np.mean, n_resamples=40_000, method="percentile", confidence_level=0.95
    ).confidence_interval
    assert found.mean == pytest.approx(values.mean())
    np.testing.assert_allclose(found[1:], want, atol=0.02)


def test_two_values_resample_to_three_means():
    # Both ends are the values themselves, each of which is a quarter of all resamples.
    assert bootstrap_interval([1.0, 3.0]) == (2.0, 1.0, 3.0)
    # With half of that confidence they are not.
    assert bootstrap_interval([1.0, 3.0], confidence=0.4) == (2.0, 2.0, 2.0)


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
        ([1.0], {"confidence": 1.0}, r"confidence must be in \(0, 1\), got 1.0"),
    ],
)
def test_errors(values, options, words):
    with pytest.raises(ValueError, match=words):
        bootstrap_interval(values, **options)

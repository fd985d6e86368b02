"""Confidence intervals of a mean over seeds."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from contrastive_jax._host_arrays import split_mask
from contrastive_jax.checks import check_seed, check_whole


class Interval(NamedTuple):
    """A mean and the ends of its interval, which are NaN for a single value."""

    mean: float
    low: float
    high: float


def bootstrap_interval(
    values: ArrayLike, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Computes the mean of independent values and its expanded percentile bootstrap interval.

    Percentiles are taken farther out than for many values, by as much as Student's t exceeds the
    normal distribution and samples fall short of the variance. Still no interval can reach beyond
    the values: where these are normal, one of 95 % holds the true mean in 49 of 100 cases of two
    values, in 75 of three, 91 of five, 94 of eight and 95 of ten.

    For paired trainings pass their differences, seed by seed: effects that seeds have in common
    cancel, and the difference is significant where the interval excludes 0.

    Args:
      values: of independent trainings, `[N]`, finite; masked ones (`numpy.ma`) are left out.
      confidence: share of means of resamples that the interval holds, in (0, 1).
      resamples: how many are drawn, at least 1.
      seed: of the resamples, in [0, 2^32); the same seed gives the same interval.

    Returns:
      Mean and interval.

    Raises:
      ValueError: if there are no values or one is not finite, confidence is not in (0, 1),
        resamples is not a whole number from 1, or the seed is out of its range.

    References:
      Hesterberg, What Teachers Should Know About the Bootstrap, The American Statistician 69(4),
      2015 <https://doi.org/10.1080/00031305.2015.1089789>, section 5.3.

    Example:
      >>> from contrastive_jax.evaluation.intervals import bootstrap_interval
      >>> mean, low, high = bootstrap_interval([0.90, 0.92, 0.91, 0.93])
      >>> print(f"{mean:.3f} [{low:.3f}, {high:.3f}]")
      0.915 [0.900, 0.930]
    """
    array, counts = split_mask(values)
    array = array[counts].astype(np.float64) if array.ndim == 1 else array
    if array.ndim != 1 or not array.size or not np.isfinite(array).all():
        raise ValueError(f"values must be [N] finite numbers, at least one, got {values!r}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
    check_seed(seed)
    mean = float(array.mean())
    check_whole(1, resamples=resamples)
    if len(array) == 1:
        return Interval(mean, np.nan, np.nan)
    from scipy import stats

    count = len(array)
    tail = stats.norm.cdf(
        np.sqrt(count / (count - 1)) * stats.t.ppf((1 - confidence) / 2, count - 1)
    )
    drawn = np.random.default_rng(seed).integers(0, count, (int(resamples), count))
    low, high = np.quantile(array[drawn].mean(axis=1), [tail, 1 - tail])
    return Interval(mean, float(low), float(high))

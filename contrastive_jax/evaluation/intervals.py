"""How sure a mean over seeds is."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Interval(NamedTuple):
    """A mean and the ends of its interval, NaN of a single value."""

    mean: float
    low: float
    high: float


def bootstrap_interval(
    values: ArrayLike, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """The mean of independent values with its percentile bootstrap interval (Efron 1979).

    Of paired trainings give their differences, seed by seed: what seeds have in common drops out,
    and a difference is one where the interval leaves out 0. Of few values the interval is somewhat
    narrow: of five it holds the true mean in about 83 of 100 cases, not 95, where values are
    normal.

    Args:
      values: of independent trainings, `[N]`, finite.
      confidence: share of means of resamples that the interval holds, in (0, 1).
      resamples: how many are drawn.
      seed: of the resamples; the same seed gives the same interval.

    Returns:
      Mean and interval.

    Raises:
      ValueError: if there are no values or one is not finite, or confidence is not in (0, 1).
    """
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or not array.size or not np.isfinite(array).all():
        raise ValueError(f"values must be [N] finite numbers, at least one, got {values!r}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
    mean = float(array.mean())
    if len(array) == 1:
        return Interval(mean, np.nan, np.nan)
    drawn = np.random.default_rng(seed).integers(0, len(array), (resamples, len(array)))
    tail = (1 - confidence) / 2
    low, high = np.quantile(array[drawn].mean(axis=1), [tail, 1 - tail])
    return Interval(mean, float(low), float(high))

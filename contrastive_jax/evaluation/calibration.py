"""The probability that a pair is positive, from its distance."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from contrastive_jax.evaluation.verification import Floats, unmasked_pairs


class Calibration(NamedTuple):
    """A logistic regression of labels on distances."""

    slope: float
    """By how much the log-odds of "positive" fall when the distance grows by 1."""
    intercept: float
    """The log-odds of "positive" at distance 0."""
    prior: float
    """The share of positive pairs for which this holds."""


def calibrate(distances: ArrayLike, labels: ArrayLike) -> Calibration:
    """Fits the probability that a pair is positive to the distances of labelled pairs.

    Args:
      distances: `[N]`, finite.
      labels: `[N]`, 0 similar, 1 dissimilar; both present.

    Returns:
      The calibration, whose prior is the share of positive pairs among these.

    Raises:
      ValueError: if shapes, labels or distances do not fit.

    References:
      Lin, Lin and Weng, A Note on Platt's Probabilistic Outputs for Support Vector Machines, 2007
      <https://doi.org/10.1007/s10994-007-5018-6>: targets next to 0 and 1, with which the fit is
      finite for pairs that a threshold separates.

    Example:
      >>> from contrastive_jax.evaluation.calibration import calibrate, probability
      >>> calibration = calibrate([0.1, 0.2, 0.6, 0.4, 0.9, 1.0], [0, 0, 0, 1, 1, 1])
      >>> print(probability(calibration, [0.1, 1.0]).round(2))
      [0.77 0.22]
    """
    from scipy import optimize  # takes a tenth of a second to import

    values, positive = unmasked_pairs(distances, labels)
    positives, negatives = int(positive.sum()), int((~positive).sum())
    target = np.where(positive, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    unit = float(np.std(values)) or 1.0
    scaled = values / unit

    def cost(parameters: Floats) -> tuple[float, Floats]:
        logits = parameters[1] - parameters[0] * scaled
        error = _expit(logits) - target
        value = np.mean(np.logaddexp(0, logits) - target * logits)
        return float(value), np.array([-np.mean(error * scaled), np.mean(error)])

    fitted = optimize.minimize(cost, np.zeros(2), jac=True, method="BFGS")
    slope, intercept = fitted.x
    return Calibration(float(slope / unit), float(intercept), positives / len(values))


def probability(
    calibration: Calibration, distances: ArrayLike, prior: float | None = None
) -> Floats:
    """Computes the probability that pairs are positive.

    Args:
      calibration: from `calibrate`.
      distances: of any shape.
      prior: share of positive pairs where it is used, in (0, 1); by default that of the pairs by
        which it was calibrated.

    Returns:
      Probabilities, of the same shape.

    Raises:
      ValueError: if the prior is not in (0, 1).

    Example:
      >>> from contrastive_jax.evaluation.calibration import Calibration, probability
      >>> calibration = Calibration(slope=4.0, intercept=2.0, prior=0.5)
      >>> print(probability(calibration, [0.0, 0.5, 1.0]).round(2))
      [0.88 0.5  0.12]
      >>> print(probability(calibration, [0.5], prior=0.01).round(2))
      [0.01]
    """
    logits = calibration.intercept - calibration.slope * np.asarray(distances, np.float64)
    if prior is not None:
        if not 0 < prior < 1:
            raise ValueError(f"prior must be in (0, 1), the share of positive pairs, got {prior}")
        logits = logits + _log_odds(prior) - _log_odds(calibration.prior)
    return _expit(logits)


def _log_odds(share: float) -> float:
    return float(np.log(share) - np.log1p(-share))


def _expit(x: Floats) -> Floats:
    # Unlike by a hyperbolic tangent, a small probability is not rounded to 0.
    return np.exp(-np.logaddexp(0, -x))

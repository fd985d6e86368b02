"""The space of hyperparameters that is searched."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from scipy import stats

Hyperparameters = dict[str, Any]
"""The values of a trial by name, the seed included."""


class Range(NamedTuple):
    """The range in which a hyperparameter is searched."""

    low: float
    high: float
    logarithmic: bool = False


Space = Mapping[str, Range | Sequence[Any]]
"""A range or a list of values for each hyperparameter."""


def spread(space: Space, count: int) -> list[Hyperparameters]:
    """Returns points of a scrambled Sobol sequence, spread evenly over a space, with seed 0.

    A longer list begins with the same points.

    Args:
      space: to spread them over.
      count: number of points.

    Returns:
      The points. Their numbers have four digits, which can be typed again.

    Example:
      >>> from contrastive_jax.search import Range, spread
      >>> points = spread({"margin": Range(0.5, 1.5), "width": [16, 64]}, count=2)
      >>> [point["width"] for point in points], 0.5 <= points[0]["margin"] <= 1.5
      ([64, 16], True)
    """
    exponent = max(count - 1, 0).bit_length()
    points = stats.qmc.Sobol(len(space), seed=0).random_base2(exponent)[:count]
    return [
        {name: _at(where, share) for (name, where), share in zip(space.items(), point, strict=True)}
        | {"seed": 0}
        for point in points
    ]


def _at(where: Range | Sequence[Any], share: float) -> Any:
    """Returns the value at a share of a range or of a list."""
    if not isinstance(where, Range):
        return where[min(int(share * len(where)), len(where) - 1)]
    low, high, logarithmic = where
    value = low * (high / low) ** share if logarithmic else low + (high - low) * share
    return float(f"{value:.4g}")


def corners(space: Space) -> list[Hyperparameters]:
    """Returns all combinations of the ends of ranges and of values, to check before any training.

    Example:
      >>> from contrastive_jax.search import Range, corners
      >>> corners({"margin": Range(0.5, 1.5)})
      [{'margin': 0.5, 'seed': 0}, {'margin': 1.5, 'seed': 0}]
    """
    ends = [[*where[:2]] if isinstance(where, Range) else [*where] for where in space.values()]
    return [
        dict(zip(space, corner, strict=True)) | {"seed": 0} for corner in itertools.product(*ends)
    ]


def text_of(point: Hyperparameters) -> str:
    """Returns the values of a trial but for its seed in one line.

    Example:
      >>> from contrastive_jax.search.space import text_of
      >>> text_of({"margin": 1.0, "width": 16, "seed": 0})
      'margin 1.0, width 16'
    """
    return ", ".join(f"{name} {value}" for name, value in point.items() if name != "seed")

"""Signs of trouble in a training: inverted labels, collapse, a margin out of reach."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from contrastive_jax import distances


def warn_inverted(positive_distance: float, negative_distance: float) -> None:
    """Warns that positive pairs stay farther apart than negative ones.

    A single window may be chance. If it stays so, the labels are almost always inverted: here 0 is
    similar and 1 dissimilar, and other libraries often swap the two.

    Args:
      positive_distance: mean distance of positive pairs over a window of steps.
      negative_distance: that of negative pairs.

    Example:
      >>> import warnings
      >>> from contrastive_jax import train
      >>> with warnings.catch_warnings(record=True) as caught:
      ...     warnings.simplefilter("always")
      ...     train.warn_inverted(positive_distance=1.2, negative_distance=0.4)
      >>> len(caught)
      1
    """
    warnings.warn(
        f"positive pairs stay farther apart (mean distance {positive_distance:.3f}) than negative "
        f"ones ({negative_distance:.3f}); are the labels inverted? Here 0 is similar and 1 "
        "dissimilar",
        stacklevel=2,
    )


def effective_rank(embeddings: np.ndarray) -> float:
    """Computes how many directions the embeddings of a set fill.

    This is the exponential of the entropy of the singular values of the embeddings about their
    mean, scaled to sum to 1. It is 0 if all embeddings are the same.

    Args:
      embeddings: `[N, D]`.

    Returns:
      A number in [0, D].

    References:
      Garrido et al., RankMe: Assessing the Downstream Performance of Pretrained Self-Supervised
      Representations by Their Rank, 2023 <https://arxiv.org/abs/2210.02885>, eq. 1.

    Example:
      >>> import numpy as np
      >>> from contrastive_jax.train.diagnostics import effective_rank
      >>> round(effective_rank(np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])), 6)
      2.0
    """
    points = np.asarray(embeddings, np.float64)
    values = np.linalg.svd(points - points.mean(0), compute_uv=False)
    # Differences that float32 can not hold are not directions.
    values = values[values > 1e-6 * np.linalg.norm(points)]
    if not len(values):
        return 0.0
    share = values / values.sum()
    return float(np.exp(-np.sum(share * np.log(share))))


def warn_collapsed(rank: float, width: int) -> None:
    """Warns that all embeddings are about the same, or lie along one line.

    Args:
      rank: from `effective_rank`, of held-out embeddings.
      width: entries of an embedding.

    Example:
      >>> import warnings
      >>> from contrastive_jax import train
      >>> with warnings.catch_warnings(record=True) as caught:
      ...     warnings.simplefilter("always")
      ...     train.warn_collapsed(rank=0.0, width=64)
      >>> len(caught)
      1
    """
    warnings.warn(
        f"the embeddings have collapsed: they fill {rank:.1f} of {width} directions. Lower the "
        "learning rate, raise the margin or the share of negative pairs, or take a loss that "
        "does not mine the hardest pairs alone",
        stacklevel=2,
    )


def reach(distance: Callable[..., Any], width: int, *, unit_length: bool) -> float:
    """Returns the largest distance that two embeddings can have.

    Args:
      distance: of `contrastive_jax.distances`.
      width: entries of an embedding.
      unit_length: whether embeddings are of unit length.

    Returns:
      The distance in its own unit (radians of an angle); infinite where there is no bound.

    Example:
      >>> from contrastive_jax import distances
      >>> from contrastive_jax.train.diagnostics import reach
      >>> reach(distances.euclidean, 64, unit_length=True)
      2.0
    """
    bounds: dict[Callable[..., Any], float] = {distances.cosine: 2.0, distances.angular: math.pi}
    if unit_length:
        bounds |= {
            distances.euclidean: 2.0,
            distances.squared_euclidean: 4.0,
            distances.manhattan: 2 * math.sqrt(width),
            distances.chebyshev: 2.0,
        }
    return bounds.get(distance, math.inf)


def out_of_reach(
    margin: float,
    distance: Callable[..., Any],
    width: int,
    *,
    unit_length: bool,
    boundary: float = 0.0,
) -> str:
    """Describes a margin that no two embeddings can reach.

    Args:
      margin: distance beyond which a negative pair costs nothing.
      distance: of `contrastive_jax.distances`.
      width: entries of an embedding.
      unit_length: whether embeddings are of unit length.
      boundary: distance to which the margin is added.

    Returns:
      The text of a warning, empty where the margin can be reached.

    Example:
      >>> from contrastive_jax import distances
      >>> from contrastive_jax.train.diagnostics import out_of_reach
      >>> out_of_reach(1.2, distances.euclidean, 64, unit_length=True)
      ''
    """
    largest = reach(distance, width, unit_length=unit_length)
    if margin + boundary < largest:
        return ""
    beyond = f"a margin of {margin:g}" + (f" beyond a boundary of {boundary:g}" if boundary else "")
    on_sphere = "" if distance in (distances.cosine, distances.angular) else " of unit length"
    return (
        f"{beyond} is out of reach: the {distance.__name__.replace('_', ' ')} distance between "
        f"embeddings{on_sphere} is at most {largest:.4g}, so every negative pair is pushed "
        "farther to the end; take less"
    )

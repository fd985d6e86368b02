"""Splits of a data set that hold out examples or classes."""

import numpy as np
from jax.typing import ArrayLike

from contrastive_jax.checks import check_seed
from contrastive_jax.data.labels import class_numbers


def hold_out(classes: ArrayLike, fraction: float, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Holds out a fraction of every class.

    Args:
      classes: one for each example, `[N]`, integers, booleans or strings (`class_numbers`).
        Examples of class -1, and those whose class is masked, are in neither part.
      fraction: share to hold out, in (0, 1), rounded class by class. At least one example of each
        class stays, and a class of four or more gives at least two, so that it has a pair.
      seed: of the choice, in [0, 2^32).

    Returns:
      Positions of the other and of the held-out examples, in ascending order.

    Raises:
      ValueError: if the fraction is not in (0, 1), the labels are not classes, or the seed is out
        of its range.

    Example:
      >>> from contrastive_jax.data.splits import hold_out
      >>> rest, held = hold_out([0, 0, 0, 0, 1, 1, 1, 1], 0.5, seed=0)
      >>> len(rest), len(held)
      (4, 4)
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction to hold out must be in (0, 1), got {fraction}")
    check_seed(seed)
    class_ids = class_numbers(classes)
    generator = np.random.default_rng(seed)
    held = np.zeros(len(class_ids), bool)
    for c in np.unique(class_ids[class_ids >= 0]):
        members = generator.permutation(np.flatnonzero(class_ids == c))
        least = 2 if len(members) >= 4 else 0
        held[members[: min(max(round(fraction * len(members)), least), len(members) - 1)]] = True
    return np.flatnonzero(~held & (class_ids >= 0)), np.flatnonzero(held)


def seen_classes(number: int) -> np.ndarray:
    """Returns a mask of the classes to train on, `[C]` bool: the first half, rounded up.

    References:
      Oh Song et al., Deep Metric Learning via Lifted Structured Feature Embedding, 2016
      <https://arxiv.org/abs/1511.06452>.

    Example:
      >>> from contrastive_jax.data.splits import seen_classes
      >>> print(seen_classes(5))
      [ True  True  True False False]
    """
    return np.arange(number) < (number + 1) // 2

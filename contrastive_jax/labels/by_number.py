"""Labels by numbers: rows that are close in age, time or position."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from contrastive_jax.labels._columns import numbers_of_column
from contrastive_jax.labels.types import PairLabels


def within(
    threshold: ArrayLike, apart: ArrayLike | None = None, *, column: str | None = None
) -> PairLabels:
    """Rows are similar if numbers of theirs, such as ages, times or positions, are close.

    Attributes are floating numbers or signed integers `[B]`, or vectors `[B, K]`, whose distance is
    Euclidean. A row with NaN is ignored, and so is one whose integers are all -1, as empty rows of
    a memory are.

    Args:
      threshold: scalar above 0; rows that are closer are similar.
      apart: scalar of at least `threshold`: rows that are no closer than `threshold` and closer
        than `apart` are ignored. By default there are none.
      column: name of the column of the data with the number of each example, `[N]`, or its
        position, `[N, K]`. A row is ignored where it is NaN or infinite, and in a column of one
        integer for each row where it is -1. Without it an objective needs `attributes`.

    Returns:
      The labels, which raise a TypeError for unsigned integers, none of which says that a row is
      ignored.

    Raises:
      ValueError: if a concrete threshold is not above 0, or larger than `apart`.

    References:
      Arandjelovic et al., NetVLAD: CNN Architecture for Weakly Supervised Place Recognition, 2016
      <https://arxiv.org/abs/1511.07247>, sec. 4: images closer than 10 m are potential positives,
      and those farther apart than 25 m are negatives.

    Example:
      >>> from contrastive_jax import labels
      >>> rule = labels.within(10.0, apart=25.0)
      >>> print(rule(0.0, 3.0), rule(0.0, 12.0), rule(0.0, 25.0))
      0 -1 1
    """
    limits = threshold, threshold if apart is None else apart
    concrete = not any(isinstance(limit, jax.core.Tracer) for limit in limits)
    if concrete and not 0 < np.asarray(limits[0]) <= np.asarray(limits[1]):
        raise ValueError(f"expected 0 < threshold <= apart, got {threshold} and {apart}")

    def label(a: ArrayLike, b: ArrayLike) -> jax.Array:
        # Subtracted as they are, the smaller from the larger: times may have more digits than a
        # floating number.
        a, b = _signed(a), _signed(b)
        difference = jnp.ravel(jnp.maximum(a, b) - jnp.minimum(a, b))
        if not jnp.issubdtype(difference.dtype, jnp.floating):
            difference = difference.astype(jnp.float32)
        distance = difference[0] if len(difference) == 1 else jnp.linalg.norm(difference)
        near, far = (jnp.asarray(limit, distance.dtype) for limit in limits)
        return jnp.where(distance < near, 0, jnp.where(distance < far, -1, 1))

    def class_of(row: ArrayLike) -> jax.Array:
        row = _signed(row)
        if jnp.issubdtype(row.dtype, jnp.signedinteger):
            return jnp.where(jnp.all(row == -1), -1, 0)
        return jnp.where(jnp.any(row != row), -1, 0)

    if column is None:
        return PairLabels(label, class_of)
    if not concrete:
        return PairLabels(label, class_of, partial(numbers_of_column, name=column, threshold=0.0))
    near, far = (float(np.asarray(limit)) for limit in limits)
    attributes_of = partial(numbers_of_column, name=column, threshold=near)
    name = f"within={column}:{near:.9g}" + (f":{far:.9g}" if far > near else "")
    return PairLabels(label, class_of, attributes_of, name)


def _signed(row: ArrayLike) -> jax.Array:
    row = jnp.asarray(row)
    if jnp.issubdtype(row.dtype, jnp.unsignedinteger):
        raise TypeError(
            f"within takes floating numbers or signed integers, got {row.dtype}, in which an empty "
            "row of a memory could not be told from 0: give numbers.astype(numpy.int32)"
        )
    return row

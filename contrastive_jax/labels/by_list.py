"""Labels by a list of given pairs."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from contrastive_jax._graphs import components
from contrastive_jax.labels.types import PairLabels


def given_pairs(
    pairs: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    others: Literal["ignored", "dissimilar"] = "ignored",
) -> PairLabels:
    """Given pairs have the labels that are given.

    Attributes are indices of rows in the numbering of `pairs`: integers `[B]`, as of the examples
    of a batch in their data set; -1 where a row is ignored. Where all pairs of interest are given
    and few, `pair_loss` of these alone is faster.

    Args:
      pairs: indices of the rows of each pair, integers from 0, `[P, 2]`, in any order; each pair
        stands for both orders.
      labels: label of each pair, 0, 1 or -1, `[P]`; by default 0, similar.
      others: `"ignored"` or `"dissimilar"`, which is what pairs that are not given are.

    Returns:
      The labels.

    Raises:
      ValueError: if pairs or labels are of another shape or have other values, a row is paired with
        itself, or a pair is given with two labels.

    Example:
      >>> from contrastive_jax import labels
      >>> rule = labels.given_pairs([[0, 7], [7, 3]], others="dissimilar")
      >>> print(rule(7, 0), rule(0, 3))
      0 1
    """
    if others not in ("ignored", "dissimilar"):
        raise ValueError(f"others must be 'ignored' or 'dissimilar', got {others!r}")
    left, right, given = _both_orders(pairs, labels)
    size = int(left.max(initial=-1)) + 1
    starts = np.searchsorted(left, np.arange(size + 1)).astype(np.int32)
    steps = int(np.diff(starts).max(initial=0)).bit_length()
    default = -1 if others == "ignored" else 1

    def label(a: ArrayLike, b: ArrayLike) -> jax.Array:
        first, second = jnp.asarray(a, jnp.int32), jnp.asarray(b, jnp.int32)
        if not size:
            return jnp.full_like(first, default)
        # The partners of a row are sorted: this halves the range in which the other row may be.
        row = jnp.clip(first, 0, size - 1)
        low, end = jnp.asarray(starts)[row], jnp.asarray(starts)[row + 1]
        high = end
        for _ in range(steps):
            middle = (low + high) // 2
            below = (low < high) & (
                jnp.asarray(right)[jnp.minimum(middle, len(right) - 1)] < second
            )
            low, high = jnp.where(below, middle + 1, low), jnp.where(below, high, middle)
        index = jnp.minimum(low, len(right) - 1)
        is_given = (row == first) & (low < end) & (jnp.asarray(right)[index] == second)
        return jnp.where(is_given, jnp.asarray(given)[index], default)

    if others == "ignored":
        return PairLabels(label, lambda row: jnp.where(row < 0, -1, 0))
    component = _components(left, right, given != 1, size)

    def class_of(row: ArrayLike) -> jax.Array:
        index = jnp.asarray(row, jnp.int32)
        if not size:
            return index
        own = jnp.asarray(component)[jnp.clip(index, 0, size - 1)]
        # A row without pairs is in a component of its own.
        return jnp.where((index >= 0) & (index < size), own, index)

    return PairLabels(label, class_of)


def _both_orders(pairs: Any, labels: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns left and right row and label of all pairs in both orders, sorted and checked."""
    pairs = np.asarray(pairs)
    pairs = pairs.reshape(-1, 2).astype(int) if not pairs.size else pairs
    if pairs.ndim != 2 or pairs.shape[1] != 2 or not np.issubdtype(pairs.dtype, np.integer):
        raise ValueError(f"pairs must be integers [P, 2], got {pairs.dtype} of shape {pairs.shape}")
    given = np.zeros(len(pairs), int) if labels is None else np.asarray(labels)
    if given.shape != pairs.shape[:1]:
        raise ValueError(f"labels must be [P], one for each of {len(pairs)} pairs")
    for name, wrong in {
        "labels must be 0, 1 or -1": ~np.isin(given, (0, 1, -1)),
        "pairs must be indices from 0 to 2^31 - 1": ((pairs < 0) | (pairs >= 2**31)).any(axis=1),
        "a row is no pair with itself": pairs[:, 0] == pairs[:, 1],
    }.items():
        if wrong.any():
            k = int(wrong.argmax())
            raise ValueError(f"{name}, got {pairs[k].tolist()} with label {given[k]} in row {k}")
    left, right = np.concatenate([pairs, pairs[:, ::-1]]).T
    both = np.concatenate([given, given])
    order = np.lexsort((both, right, left))
    left, right, both = left[order], right[order], both[order]
    again = (left[1:] == left[:-1]) & (right[1:] == right[:-1])
    differ = again & (both[1:] != both[:-1])
    if differ.any():
        k = int(differ.argmax())
        raise ValueError(
            f"the pair {left[k]}, {right[k]} is given with labels {both[k]} and {both[k + 1]}"
        )
    first = np.concatenate([[True], ~again])[: len(left)]
    return left[first].astype("i4"), right[first].astype("i4"), both[first].astype("i4")


def _components(left: np.ndarray, right: np.ndarray, connects: np.ndarray, size: int) -> np.ndarray:
    """Returns for each row the least row that some pairs connect it with."""
    component = components(left[connects], right[connects], size)
    # As an index of a row no component is that of a row without pairs.
    _, least = np.unique(component, return_index=True)
    own: np.ndarray = least[component].astype(np.int32)
    return own

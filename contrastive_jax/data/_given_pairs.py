"""Given pairs in the order in which they are drawn, and batches of them."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from contrastive_jax.data.datasets import GivenPairs
from contrastive_jax.data.draw import draw_rows_of_pairs


def positives_first(pairs: GivenPairs) -> tuple[GivenPairs, np.int32]:
    """Sorts pairs by their labels, and counts the positive ones.

    Args:
      pairs: of one split.

    Returns:
      The pairs, positive ones first and otherwise in their order, int32 and weights float32; and
      the number of positive pairs.

    Example:
      >>> import numpy as np
      >>> from contrastive_jax.data import GivenPairs
      >>> from contrastive_jax.data._given_pairs import positives_first
      >>> pairs = GivenPairs(np.array([0, 0]), np.array([1, 2]), np.array([1, 0]))
      >>> ordered, positives = positives_first(pairs)
      >>> print(ordered.labels, ordered.right, positives)
      [0 1] [2 1] 1
    """
    order = np.argsort(pairs.labels, kind="stable")
    left, right, labels = (
        np.asarray(column, np.int32)[order] for column in (pairs.left, pairs.right, pairs.labels)
    )
    weights = None if pairs.weights is None else np.asarray(pairs.weights, np.float32)[order]
    return GivenPairs(left, right, labels, weights), np.int32(np.sum(labels == 0))


def draw_given_pairs(
    key: jax.Array,
    left: jax.Array,
    right: jax.Array,
    positives: ArrayLike,
    batch_size: int,
    images: int,
    *,
    balanced: bool,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Draws a batch of given pairs, as rows of the different images that it has.

    Args:
      key: of this batch; the batch is a function of it.
      left: image of the first member of each pair, `[P]`; positive pairs come first.
      right: image of the second member, `[P]`.
      positives: number of positive pairs.
      batch_size: number of pairs to draw, B.
      images: number of images, U, at least as many as the batch has different ones. Where it has
        fewer, its first image comes again.
      balanced: as in `draw_rows_of_pairs`.

    Returns:
      The pairs `[B]`, the images `[U]` in ascending order, and the rows of the first and of the
      second members among these images, `[B]` each, all int32.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from contrastive_jax.data._given_pairs import draw_given_pairs
      >>> left, right = jnp.array([4, 4]), jnp.array([7, 9])
      >>> pairs, images, a, b = draw_given_pairs(
      ...     jax.random.key(0), left, right, positives=1, batch_size=4, images=3, balanced=True
      ... )
      >>> print(pairs, images, a, b)
      [1 0 1 0] [4 7 9] [0 0 0 0] [2 1 2 1]
    """
    pairs = draw_rows_of_pairs(key, positives, len(left), batch_size, balanced=balanced)
    members = jnp.concatenate([left[pairs], right[pairs]])
    encoded, rows = jnp.unique(members, size=images, return_inverse=True)
    first, second = jnp.split(rows.astype(jnp.int32), 2)
    return pairs, encoded, first, second

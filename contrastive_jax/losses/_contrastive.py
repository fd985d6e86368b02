"""The contrastive loss."""

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from contrastive_jax.checks import check_known


def contrastive(distance: ArrayLike, label: ArrayLike, margin: ArrayLike = 1.0) -> jax.Array:
    """Contrastive loss, `(1 - label) distance^2 + label max(0, margin - distance)^2`.

    Similar pairs are pulled together, dissimilar ones pushed apart until they are `margin` apart.
    On unnormalised embeddings the margin only sets the unit of length. On the unit sphere Euclidean
    distances lie in [0, 2], those of random pairs near `sqrt(2)`: margins from 0.5 to 1.5 make
    sense, and above 2 no dissimilar pair is ever far enough.

    Args:
      distance: scalar, at least 0.
      label: scalar, 0 for a similar pair and 1 for a dissimilar one; integer, bool or float.
      margin: scalar above 0, in the unit of `distance`. It may be traced: another margin is no
        reason to compile again.

    Returns:
      Loss in [0, inf), of the dtype of `distance`. With `distances.euclidean` its gradient by the
      first vector is `2 (a - b)` exactly for a similar pair, and 0 for a dissimilar pair that
      coincides, which has no direction to be pushed in.

    Raises:
      AssertionError: if an argument is not a scalar or `distance` not a floating-point one.
      ValueError: if a known label is neither 0 nor 1, or a known margin not above 0 and finite;
        `contrastive_jax.checks` says how to check traced ones.

    References:
      Hadsell, Chopra and LeCun, Dimensionality Reduction by Learning an Invariant Mapping, 2006,
      eq. 4, which has the same labels and halves both terms.
    """
    distance = jnp.asarray(distance)
    chex.assert_rank([distance, label, margin], 0, custom_message="map a batch by jax.vmap")
    chex.assert_type(distance, float)
    check_known(label, margin)
    label, margin = jnp.asarray(label, distance.dtype), jnp.asarray(margin, distance.dtype)
    return (1 - label) * distance**2 + label * jnp.maximum(0, margin - distance) ** 2

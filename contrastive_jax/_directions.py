"""Vectors of unit length, and their cosines."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from contrastive_jax.distances import inverse_power_of_two


def unit(x: jax.Array) -> jax.Array:
    """Scales vectors to unit length.

    Args:
      x: `[..., D]`, in float32 or float64.

    Returns:
      Vectors of length 1. A vector without direction, or one whose entries lie below about 1e-18
      (float32), becomes zero, with derivatives 0, as such vectors are perpendicular to all others
      in `contrastive_jax.distances.cosine`.
    """
    if not x.size:
        return x
    largest = jnp.max(jnp.abs(lax.stop_gradient(x)), axis=-1, keepdims=True)
    none = largest < 8 * math.sqrt(np.finfo(x.dtype).tiny)
    # Scaled by a power of two, which is exact, so that no square over- or underflows.
    x = jnp.where(none, 1, x * inverse_power_of_two(largest))
    return jnp.where(none, 0, x * lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True)))


def cosine_from_product(a: jax.Array, b: jax.Array) -> jax.Array:
    """Computes 1 minus the cosine of two vectors `[D]`, from the product of their directions.

    It is `contrastive_jax.distances.cosine` without its care for close vectors: the absolute error
    is that of a product, whatever the distance. That is all that a formula of cosines needs.
    """
    return 1 - jnp.dot(unit(a), unit(b), precision=lax.Precision.HIGHEST)

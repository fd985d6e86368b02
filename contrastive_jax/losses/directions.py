"""Angles between directions."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def turned(distance: jax.Array, angle: ArrayLike) -> jax.Array:
    """Returns the cosine of an angle, given by its cosine distance, plus another angle."""
    square = distance * (2 - distance)
    flat = square <= 0
    sine = jnp.where(flat, 0, jnp.sqrt(jnp.where(flat, 1, square)))
    return (1 - distance) * jnp.cos(angle) - sine * jnp.sin(angle)

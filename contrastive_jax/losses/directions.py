"""Angles between directions."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def turned(distance: jax.Array, angle: ArrayLike) -> jax.Array:
    """Cosine of the angle that has this cosine distance, turned by another."""
    square = distance * (2 - distance)
    flat = square <= 0
    sine = jnp.where(flat, 0, jnp.sqrt(jnp.where(flat, 1, square)))
    return (1 - distance) * jnp.cos(angle) - sine * jnp.sin(angle)

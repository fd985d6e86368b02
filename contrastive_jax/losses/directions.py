"""Vectors of unit length and their angles."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike


def unit(x: jax.Array) -> jax.Array:
    """Vectors `[..., D]` scaled to unit length; zero where they have no direction."""
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    none = square == 0
    return jnp.where(none, 0, x * lax.rsqrt(jnp.where(none, 1, square)))


def turned(distance: jax.Array, angle: ArrayLike) -> jax.Array:
    """Cosine of the angle that has this cosine distance, turned by another."""
    square = distance * (2 - distance)
    flat = square <= 0
    sine = jnp.where(flat, 0, jnp.sqrt(jnp.where(flat, 1, square)))
    return (1 - distance) * jnp.cos(angle) - sine * jnp.sin(angle)

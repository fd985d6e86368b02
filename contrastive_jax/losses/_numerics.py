"""Scalar functions that several losses use, with finite derivatives."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


@jax.custom_jvp
def softplus(x: jax.Array) -> jax.Array:
    """`log(1 + exp(x))`, in full precision at either end.

    The derivative of `jax.nn.softplus` is made of its value and of one more exponential. This one's
    is the logistic function, by itself, where a pass over all pairs needs the derivative alone.
    """
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


@softplus.defjvp
def _softplus_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    (x,) = primals
    return softplus(x), jax.nn.sigmoid(x) * tangents[0]


def turned(distance: jax.Array, angle: ArrayLike) -> jax.Array:
    """Returns the cosine of an angle, given by its cosine distance, plus another angle."""
    square = distance * (2 - distance)
    flat = square <= 0
    sine = jnp.where(flat, 0, jnp.sqrt(jnp.where(flat, 1, square)))
    return (1 - distance) * jnp.cos(angle) - sine * jnp.sin(angle)

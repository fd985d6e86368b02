"""Random changes to one image that keep its class; batches by `vmap` over keys and images."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

Augment = Callable[[jax.Array, jax.Array], jax.Array]


def flip(key: jax.Array, image: jax.Array) -> jax.Array:
    """Mirrors an image `[H, W, C]` left to right, every other time.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from contrastive_jax.data import augment
      >>> images = jnp.arange(8.0).reshape(2, 2, 2, 1)
      >>> keys = jax.random.split(jax.random.key(0), 2)
      >>> jax.vmap(augment.flip)(keys, images).shape
      (2, 2, 2, 1)
    """
    chex.assert_rank(image, 3)
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


def shift(key: jax.Array, image: jax.Array, pixels: int = 1) -> jax.Array:
    """Moves an image `[H, W, C]` by up to `pixels` in either direction, filling with zeros.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from contrastive_jax.data import augment
      >>> image = jnp.ones((4, 4, 1))
      >>> augment.shift(jax.random.key(0), image, pixels=1).shape
      (4, 4, 1)
    """
    chex.assert_rank(image, 3)
    padded = jnp.pad(image, ((pixels, pixels), (pixels, pixels), (0, 0)))
    row, column = jax.random.randint(key, (2,), 0, 2 * pixels + 1)
    return jax.lax.dynamic_slice(padded, (row, column, 0), image.shape)

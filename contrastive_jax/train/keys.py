"""The keys from which a step draws its random numbers: they follow from its seed and number."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from contrastive_jax.checks import check_seed
from contrastive_jax.train.types import AXIS


def key_of_step(seed: ArrayLike, step: jax.Array) -> jax.Array:
    """Returns the key of a step, from which all its random numbers are drawn.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from contrastive_jax.train.keys import key_of_step
      >>> bool((key_of_step(0, jnp.int32(1)) == key_of_step(0, jnp.int32(2))))
      False
    """
    check_seed(seed)
    return jax.random.fold_in(jax.random.key(seed), step)


def keys_of_rows(seed: ArrayLike, step: jax.Array, share: int) -> jax.Array:
    """Returns two keys for each row of this device, `[share, 2]`, however the batch is sharded.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from contrastive_jax.train import AXIS
      >>> from contrastive_jax.train.keys import keys_of_rows
      >>> def keys(rows):
      ...     return keys_of_rows(0, jnp.int32(0), share=2)
      >>> jax.vmap(keys, axis_name=AXIS)(jnp.zeros(3)).shape  # 3 devices with 2 rows each
      (3, 2, 2)
    """
    row = jax.lax.axis_index(AXIS) * share + jnp.arange(share)
    step_key = jax.random.fold_in(key_of_step(seed, step), 1)
    return jax.vmap(lambda k: jax.random.split(jax.random.fold_in(step_key, k)))(row)


def dropout_key(seed: ArrayLike, step: jax.Array) -> jax.Array:
    """Returns the key of this device from which its encoder draws in a step.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from contrastive_jax.train import AXIS
      >>> from contrastive_jax.train.keys import dropout_key
      >>> def key(row):
      ...     return dropout_key(0, jnp.int32(0))
      >>> jax.vmap(key, axis_name=AXIS)(jnp.zeros(3)).shape
      (3,)
    """
    step_key = jax.random.fold_in(key_of_step(seed, step), 2)
    return jax.random.fold_in(step_key, jax.lax.axis_index(AXIS))

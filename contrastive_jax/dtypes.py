"""Dtypes of computations."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike


def at_least_float32(dtype: DTypeLike) -> np.dtype:
    """The dtype to compute in with values of a dtype: float32, or that dtype where it is wider."""
    # Asked for by name, this is no promotion that `jax_numpy_dtype_promotion="strict"` is to stop.
    with jax.numpy_dtype_promotion("standard"):
        return np.dtype(jnp.promote_types(dtype, jnp.float32))

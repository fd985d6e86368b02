"""Dtypes to compute in, and casts to them whose gradients come back finite."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.typing import ArrayLike, DTypeLike


def at_least_float32(dtype: DTypeLike) -> np.dtype:
    """Returns float32, or a dtype itself where it is wider."""
    # Asked for by name, this is no promotion that `jax_numpy_dtype_promotion="strict"` is to stop.
    with jax.numpy_dtype_promotion("standard"):
        return np.dtype(jnp.promote_types(dtype, jnp.float32))


def widen(x: ArrayLike) -> jax.Array:
    """Casts an array to float32 where its dtype is narrower.

    Args:
      x: floating array of any shape.

    Returns:
      The array in float32, or in float64 if it is. Its gradient has the dtype of `x`; one that
      float16 can not hold, such as that of the direction of a vector of norm 1e-5, becomes the
      largest number of float16 instead of infinity.
    """
    x = jnp.asarray(x)
    if x.dtype == jnp.float16:
        return _from_float16.bind(x)  # type: ignore[no-any-return]
    return x.astype(at_least_float32(x.dtype))


def _to_float16(gradient: jax.Array) -> jax.Array:
    largest = float(np.finfo(np.float16).max)
    clipped = jnp.clip(gradient, -largest, largest)
    # An infinite gradient is a fault to be seen.
    return jnp.where(jnp.isfinite(gradient), clipped, gradient).astype(jnp.float16)


def _cast(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32)


# A cast whose transpose is not the opposite cast: no function of JAX's own can be mapped,
# differentiated in both modes and have a transpose of its own.
_from_float16 = Primitive("widen_float16")


_from_float16.def_impl(jax.jit(_cast))


_from_float16.def_abstract_eval(lambda x: x.update(dtype=jnp.dtype(jnp.float32), weak_type=False))


ad.deflinear2(_from_float16, lambda gradient, x: [_to_float16(gradient)])


batching.defvectorized(_from_float16)


mlir.register_lowering(_from_float16, mlir.lower_fun(_cast, multiple_results=False))


def ignored_value(dtype: DTypeLike) -> float:
    """Returns the entry of a row that is ignored.

    Args:
      dtype: dtype of the classes or attributes of rows.

    Returns:
      -1 for a signed integer, 0 for an unsigned one, NaN for a floating number and False for a
      bool.
    """
    if jnp.issubdtype(dtype, jnp.floating):
        return float("nan")
    return -1 if jnp.issubdtype(dtype, jnp.signedinteger) else 0

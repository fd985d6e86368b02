"""The smooth hinge, in a form that is cheap to compute for many pairs."""

import jax
import jax.numpy as jnp


@jax.custom_jvp
def softplus(x: jax.Array) -> jax.Array:
    """`log(1 + exp(x))`, in full precision at either end.

    The derivative of `jax.nn.softplus` is made of its value and of one more exponential. This one's
    is the logistic function, by itself, where a walk over all pairs needs the derivative alone.
    """
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


@softplus.defjvp
def _softplus_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    (x,) = primals
    return softplus(x), jax.nn.sigmoid(x) * tangents[0]

"""The means that the anchors of a batch add up to a loss."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from contrastive_jax._traced_checks import check_real_scalar
from contrastive_jax.losses.types import Mean

REDUCTIONS = ("mean", "active", "sum", "none")


def check_reduction(reduction: str) -> None:
    """Checks the name of a reduction.

    Args:
      reduction: one of `REDUCTIONS`.

    Raises:
      ValueError: if there is no such reduction.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")


def check_mean(name: str, shape: Any) -> None:
    """Checks that a function returns a mean of scalars."""
    if not isinstance(shape, Mean) or any(one.shape for one in jax.tree.leaves(shape)):
        raise AssertionError(f"{name} must return a Mean of scalars, got {shape}")
    check_real_scalar(name, shape.value)


def check_means(name: str, shape: Any) -> None:
    """Checks that a function returns a mean of scalars, or a tuple of them."""
    means = [shape] if isinstance(shape, Mean) else shape
    for mean in means if isinstance(means, tuple | list) else [means]:
        check_mean(name, mean)


def split_mean(mean: Mean) -> tuple[jax.Array, ...]:
    """Returns value, count and active count; only the value has a derivative."""
    dtype = jnp.asarray(mean.value).dtype
    count, active = jnp.asarray(mean.count, dtype), mean.active
    if active is None:
        active = jnp.where(mean.value != 0, count, 0)
    return mean.value, *(lax.stop_gradient(jnp.asarray(one, dtype)) for one in (count, active))


def total_of_means(means: tuple[Mean, ...]) -> jax.Array:
    """Adds up the means of an anchor, each over its own pairs.

    Args:
      means: values and counts of one anchor, or of each.

    Returns:
      The sum of the quotients, where a count of 0 gives 0.
    """
    quotients = []
    for mean in means:
        value, count, _ = split_mean(mean)
        quotients.append(value / jnp.where(count > 0, count, 1))
    return sum(quotients[1:], start=quotients[0])

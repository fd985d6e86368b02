"""The check of the margins that a caller passes to a pair loss."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from contrastive_jax._carried_checks import carry_check
from contrastive_jax.checks import check_bounds, check_values
from contrastive_jax.losses._distance import carrier


def with_margin_checks(value: Any, loss: Callable[..., jax.Array], margin: Any) -> Any:
    """Checks one margin of a pair loss, or several.

    Args:
      value: array that the program uses.
      loss: the loss, which may carry bounds of its margins.
      margin: scalar or array.

    Returns:
      The value, to be used in its own place. `checkify` checks a traced margin where it is.

    Raises:
      ValueError: for the first concrete margin that is out of bounds, or does not fit the
        hyperparameters that the loss binds.
    """
    bounds = getattr(carrier(loss), "margins", None)
    check = check_values if bounds is None else partial(check_bounds, bounds)
    if isinstance(margin, jax.core.Tracer):
        return carry_check(value, check, margin=margin)
    check(margin=margin)
    if isinstance(loss, partial) and np.size(margin):
        # The least margin stays concrete, so that the loss checks it beside what it binds.
        least = np.asarray(np.min(margin), np.float32)
        pair = jax.ShapeDtypeStruct((), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
        jax.eval_shape(lambda distance, label: loss(distance, label, margin=least), *pair)
    return value

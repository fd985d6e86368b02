"""Sums over all pairs, with the gradient computed in the forward pass.

Reverse mode would store the distances of all pairs until the cotangent of the sums is available.
But each sum is multiplied by one number, its cotangent: so the gradient of each sum, one for each
label, is computed while its distances are at hand, and multiplied in the backward pass.
"""

from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import lax

from contrastive_jax._engine.accumulators import init_carry, input_gradients
from contrastive_jax._engine.derivatives import eager_vjp
from contrastive_jax._engine.layout import arrange, gradients_wanted
from contrastive_jax._engine.problem import (
    Parameters,
    Points,
    Sums,
    Task,
    gradient_by_vectors,
    zero_or_nan,
)
from contrastive_jax._engine.program_cache import program_or_part
from contrastive_jax._engine.sweep import sweep


def pair_sums(task: Task, sides: tuple[Points, ...], parameters: Parameters) -> Sums:
    """Sums over all pairs of two sides, or over all pairs of different rows of one side.

    Every pair of two rows of one side counts in both orders. With an axis name the rows of all
    devices along it are paired; each device gets the sums over all pairs and the gradient of its
    own rows.

    Args:
      task: losses and distances of the pairs.
      sides: rows, and columns where these are others.
      parameters: parameters of the loss and of the distance.

    Returns:
      The sums, of which the first can be differentiated once, in reverse mode, by vectors and
      parameters.
    """
    return cast(Sums, program_or_part(_pair_sums, task)(sides, parameters))


def _pair_sums(task: Task, sides: tuple[Points, ...], parameters: Parameters) -> Sums:
    # A sweep over one side meets a pair once, and it counts in both orders.
    orders = 2 if len(sides) == 1 and len(task.distances) == 1 else 1

    def with_gradient(wanted: Any, sides: tuple[Points, ...], parameters: Parameters) -> Any:
        layout = arrange(task, sides, parameters, gradients_wanted(task, *wanted))
        carry = sweep(layout, init_carry(layout))
        # A NaN or an infinity shows, whatever the loss makes of its distances.
        bad = sum(zero_or_nan(side.vectors) + zero_or_nan(side.weights) for side in layout.sides)
        sums = carry.sums._replace(loss=carry.sums.loss + bad)
        if task.axis_name is not None:
            sums = lax.psum(sums, task.axis_name)
        vectors, by_label = input_gradients(layout, carry)
        gradient: Any = (
            tuple(map(gradient_by_vectors, sides, vectors)),
            jax.tree.map(lambda *each: jnp.stack(each), *by_label)
            if by_label
            else jax.tree.map(lambda _: None, parameters),
        )
        sums, gradient = jax.tree.map(lambda one: orders * one, (sums, gradient))
        return sums.loss, sums[1:], gradient

    loss, counts = eager_vjp(with_gradient, sides, parameters)
    return Sums(loss, *counts)

"""Sums over all pairs, with the gradient computed in the forward pass."""

from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import lax

from contrastive_jax._engine.accumulators import (
    gradients,
    nothing_added,
)
from contrastive_jax._engine.derivatives import (
    differentiable_once,
    empty_like,
    of_marks,
    zero_gradient,
)
from contrastive_jax._engine.layout import Wanted, arranged
from contrastive_jax._engine.problem import Parameters, Side, Sums, Task, zero_or_nan
from contrastive_jax._engine.program_cache import compiled
from contrastive_jax._engine.sharding import axes_of, on_mesh_of_arguments, varying
from contrastive_jax._engine.sweep import walked


def pair_sums(task: Task, x: Side, y: Side | None, parameters: Parameters) -> Sums:
    """Sums over all pairs of a row of `x` and one of `y`, or of two different rows of `x`.

    Every pair of two rows of `x` counts in both orders. With an axis name the rows of all devices
    along it are paired; each device gets the sums over all pairs and the gradient of its own rows.

    Args:
      task: what is summed.
      x: rows.
      y: columns; None for those of `x`.
      parameters: of the loss and of the distance.

    Returns:
      The sums, of which the first can be differentiated once, in reverse mode, by vectors and
      parameters.
    """
    return cast(Sums, compiled(_pair_sums, task)(x, y, parameters))


def _pair_sums(task: Task, x: Side, y: Side | None, parameters: Parameters) -> Sums:
    # A pair of rows is met once and counts in both orders.
    times = 2 if y is None and len(task.distances) == 1 else 1
    kinds = 2 if task.by_label else 1

    @jax.custom_vjp
    @on_mesh_of_arguments
    def sums(x: Side, y: Side | None, parameters: Parameters) -> Sums:
        result, *_ = _walk(task, x, y, parameters, Wanted(False, False, False))
        return cast(Sums, jax.tree.map(lambda total: times * total, result))

    @on_mesh_of_arguments
    def forward(x: Side, y: Side | None, parameters: Parameters) -> Any:
        (x, y, parameters), (of_x, of_y, of) = of_marks((x, y, parameters))
        x, y, parameters = differentiable_once((x, y, parameters))
        # The gradient of parameters that make the points comes through that of the points.
        through = task.product is not None and any(of.distance)
        rows = of_x.vectors or through
        columns = rows if y is None else of_y.vectors or through
        wanted = Wanted(rows, columns, parameters=any(jax.tree.leaves(of)))
        result, *gradients = _walk(task, x, y, parameters, wanted)
        # Residuals keep one structure, whatever is wanted: a compiled program is used again where
        # something else is. So what is not wanted is empty, and dtypes are those of empty arrays.
        empty = jnp.zeros((0, 0, 0), x.vectors.dtype)
        of_x, of_y = (empty if gradient is None else gradient for gradient in gradients[:2])
        none = varying(jax.tree.map(zero_gradient, parameters), axes_of(x.vectors))
        of_parameters = gradients[2] or (none,) * kinds
        like = (
            x.vectors[:0],
            (x if y is None else y).vectors[:0],
            jax.tree.map(empty_like, parameters),
        )
        residuals = of_x, of_y, of_parameters, like
        return jax.tree.map(lambda total: times * total, result), residuals

    @on_mesh_of_arguments
    def backward(residuals: Any, cotangent: Sums) -> Any:
        of_x, of_y, of_parameters, like = residuals
        slope = cotangent.loss
        if isinstance(slope, jax.custom_derivatives.SymbolicZero):
            slope = jnp.zeros(kinds)
        slope = times * slope

        def of_side(gradient: jax.Array, like: jax.Array) -> Side | None:
            if not len(gradient):
                return None
            of_vectors = jnp.einsum("k,knd->nd", slope, gradient).astype(like.dtype)
            return Side(of_vectors, None, None)  # type: ignore[arg-type]

        def of_parameter(like: jax.Array | None, *parts: jax.Array) -> jax.Array | None:
            if like is None:
                return None
            terms = [s * part for s, part in zip(slope, parts, strict=True)]
            return jnp.asarray(sum(terms), like.dtype)

        return (
            of_side(of_x, like[0]),
            of_side(of_y, like[1]),
            jax.tree.map(of_parameter, like[2], *of_parameters, is_leaf=lambda x: x is None),
        )

    sums.defvjp(forward, backward, symbolic_zeros=True)
    arguments = x, y, parameters
    return cast(Sums, sums(*varying(arguments, axes_of(arguments))))


def _walk(
    task: Task, x: Side, y: Side | None, parameters: Parameters, wanted: Wanted
) -> tuple[Sums, jax.Array | None, jax.Array | None, tuple[Parameters, ...]]:
    """Sums over the pairs of all devices, and the gradients of them, `[K, N, D]` and K times."""
    sides, orders, context = arranged(task, (x, y), parameters, wanted)
    carry = walked(context, sides, nothing_added(context, sides))
    # A NaN or an infinity shows, whatever the loss makes of its distances.
    bad = sum(zero_or_nan(side.vectors) + zero_or_nan(side.weights) for side in sides)
    sums = carry.sums._replace(loss=carry.sums.loss + bad)
    if task.axis_name is not None:
        sums = lax.psum(sums, task.axis_name)
    of_sides, of_parameters = gradients(context, sides, orders, carry)
    return sums, of_sides[0], of_sides[1] if y is not None else None, of_parameters

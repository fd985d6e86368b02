"""Derivatives of sums whose gradient is computed along with their value.

A sweep over tiles gives a value and its gradient, but its own operations are not to be
differentiated: it recomputes close pairs, picks the pair of an extreme, and stops gradients. So the
derivative of the gradient is that of another function with the same value, which is written in
plain JAX and slower.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from contrastive_jax._dtypes import at_least_float32
from contrastive_jax._engine.sharding import axes_of, varying

Function = Callable[..., tuple[jax.Array, Any]]


def differentiable(swept: Function, plain: Function, *arguments: Any) -> tuple[jax.Array, Any]:
    """Calls a function that can be differentiated in any mode and any number of times.

    Args:
      swept: takes the arguments and returns a scalar or a vector `[K]`, and a tree of arrays that
        have no derivative. It can be differentiated once, in reverse mode.
      plain: the same function, written so that JAX can differentiate it in any way.
      *arguments: trees of arrays.

    Returns:
      The results of `swept`. Their first derivatives are products with its gradient, and those of
      the gradient are taken of `plain`.
    """
    arguments = varying(arguments, axes_of(arguments))
    leaves, structure = jax.tree.flatten(arguments)

    def of_leaves(function: Function, leaves: list[Any]) -> tuple[jax.Array, Any]:
        return function(*jax.tree.unflatten(structure, leaves))

    @jax.custom_jvp
    def result(leaves: list[Any]) -> tuple[jax.Array, Any]:
        return of_leaves(swept, leaves)

    def derivative(primals: Any, tangents: Any) -> Any:
        (leaves,), (slopes,) = primals, tangents
        wanted = tuple(not isinstance(slope, SymbolicZero) for slope in slopes)
        (value, rest), gradient = with_gradient(wanted, leaves)
        slopes = [slope for slope, is_wanted in zip(slopes, wanted, strict=True) if is_wanted]
        tangent = varying(jnp.zeros_like(value), axes_of(value))
        for one, slope in zip(gradient, slopes, strict=True):
            slope = jnp.expand_dims(jnp.asarray(slope), tuple(range(value.ndim)))
            dtype = one.dtype if jnp.iscomplexobj(one) else value.dtype
            products = jnp.real(one.astype(dtype) * slope.astype(dtype)).astype(value.dtype)
            tangent += jnp.sum(products, axis=tuple(range(value.ndim, one.ndim)))
        none = varying(jax.tree.map(jnp.zeros_like, rest), axes_of(rest))
        return (value, rest), (tangent, none)

    def with_gradient(wanted: tuple[bool, ...], leaves: list[Any]) -> Any:
        @jax.custom_jvp
        def both(leaves: list[Any]) -> Any:
            return _with_gradient(partial(of_leaves, swept), wanted, leaves)

        @both.defjvp
        def second_derivative(primals: Any, tangents: Any) -> Any:
            plainly = partial(_with_gradient, partial(of_leaves, plain), wanted)
            return both(*primals), jax.jvp(plainly, primals, tangents)[1]

        return both(leaves)

    result.defjvp(derivative, symbolic_zeros=True)
    return result(leaves)


def _with_gradient(function: Function, wanted: tuple[bool, ...], leaves: list[Any]) -> Any:
    """Results of a function, and the gradients of each of its values, `[K, ...]` for K of them."""

    def of_wanted(chosen: list[Any]) -> tuple[jax.Array, Any]:
        rest = iter(chosen)
        given = [next(rest) if w else leaf for w, leaf in zip(wanted, leaves, strict=True)]
        return function(given)

    chosen = [leaf for leaf, is_wanted in zip(leaves, wanted, strict=True) if is_wanted]
    value, pull, rest = jax.vjp(of_wanted, chosen, has_aux=True)
    one = jnp.ones_like(value)
    if value.ndim == 0:
        return (value, rest), pull(varying(one, axes_of(value)))[0]
    each = [
        pull(varying(jnp.where(jnp.arange(len(value)) == k, one, 0), axes_of(value)))[0]
        for k in range(len(value))
    ]
    return (value, rest), [jnp.stack(of_values) for of_values in zip(*each, strict=True)]


@jax.custom_jvp
def differentiable_once(tree: Any) -> Any:
    """Returns its argument, and raises where a derivative is taken by it.

    It stands where a gradient is computed along with a value, so it is met by the derivative of
    that gradient alone.
    """
    return tree


@differentiable_once.defjvp
def _no_derivative(primals: Any, tangents: Any) -> Any:
    raise TypeError(
        "the gradient of a sweep over tiles has no derivative here: second derivatives of "
        'anchor_statistics and of losses with an axis_name need method="autodiff", on one device'
    )


def of_marks(marked: Any) -> tuple[Any, Any]:
    """Values, and whether their gradient is asked for, of arguments with symbolic zeros."""
    is_mark = lambda leaf: hasattr(leaf, "perturbed")  # noqa: E731
    values = jax.tree.map(lambda mark: mark.value, marked, is_leaf=is_mark)
    return values, jax.tree.map(lambda mark: mark.perturbed, marked, is_leaf=is_mark)


def empty_like(parameter: jax.Array) -> jax.Array | None:
    """Of its dtype; None for an integer or a key, which have no gradient."""
    inexact = jnp.issubdtype(parameter.dtype, jnp.inexact)
    return jnp.zeros((0,), parameter.dtype) if inexact else None


def zero_gradient(parameter: jax.Array) -> jax.Array:
    """Where its gradient is added up: in float32 at least, and for an integer or a key, nothing."""
    if not jnp.issubdtype(parameter.dtype, jnp.inexact):
        return jnp.zeros(())
    return jnp.zeros(parameter.shape, at_least_float32(parameter.dtype))


def plus(total: jax.Array, more: jax.Array, where: jax.Array | bool = True) -> jax.Array:
    """Adds to a gradient; an integer or a key has none, and its total stays."""
    return total if more.dtype == jax.dtypes.float0 else total + jnp.where(where, more, 0)

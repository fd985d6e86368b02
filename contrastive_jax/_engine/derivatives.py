"""Gradients that are computed in the forward pass, and second derivatives of their values.

A sweep over tiles gives a value and its gradient together. Its own operations are not to be
differentiated: it recomputes close pairs, selects the pair of a maximum, and stops gradients. So
the derivative of the gradient is that of another function with the same value, which is written in
plain JAX and slower.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from contrastive_jax._dtypes import at_least_float32
from contrastive_jax._engine.sharding import axes_of, on_mesh_of_arguments, varying

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

    def on_leaves(function: Function, leaves: list[Any]) -> tuple[jax.Array, Any]:
        return function(*jax.tree.unflatten(structure, leaves))

    @jax.custom_jvp
    def result(leaves: list[Any]) -> tuple[jax.Array, Any]:
        return on_leaves(swept, leaves)

    def derivative(primals: Any, tangents: Any) -> Any:
        (leaves,), (by_leaf,) = primals, tangents
        wanted = tuple(not isinstance(one, SymbolicZero) for one in by_leaf)
        (value, rest), gradient = with_gradient(wanted, leaves)
        by_leaf = [one for one, is_wanted in zip(by_leaf, wanted, strict=True) if is_wanted]
        tangent = varying(jnp.zeros_like(value), axes_of(value))
        for one, leaf_tangent in zip(gradient, by_leaf, strict=True):
            leaf_tangent = jnp.expand_dims(jnp.asarray(leaf_tangent), tuple(range(value.ndim)))
            dtype = one.dtype if jnp.iscomplexobj(one) else value.dtype
            products = jnp.real(one.astype(dtype) * leaf_tangent.astype(dtype)).astype(value.dtype)
            tangent += jnp.sum(products, axis=tuple(range(value.ndim, one.ndim)))
        no_tangent = varying(jax.tree.map(jnp.zeros_like, rest), axes_of(rest))
        return (value, rest), (tangent, no_tangent)

    def with_gradient(wanted: tuple[bool, ...], leaves: list[Any]) -> Any:
        @jax.custom_jvp
        def both(leaves: list[Any]) -> Any:
            return _with_gradient(partial(on_leaves, swept), wanted, leaves)

        @both.defjvp
        def second_derivative(primals: Any, tangents: Any) -> Any:
            plainly = partial(_with_gradient, partial(on_leaves, plain), wanted)
            return both(*primals), jax.jvp(plainly, primals, tangents)[1]

        return both(leaves)

    result.defjvp(derivative, symbolic_zeros=True)
    return result(leaves)


def _with_gradient(function: Function, wanted: tuple[bool, ...], leaves: list[Any]) -> Any:
    """Returns the results of a function, and the gradient of each of its K values, `[K, ...]`."""

    def by_wanted(chosen: list[Any]) -> tuple[jax.Array, Any]:
        rest = iter(chosen)
        return function([next(rest) if w else leaf for w, leaf in zip(wanted, leaves, strict=True)])

    chosen = [leaf for leaf, is_wanted in zip(leaves, wanted, strict=True) if is_wanted]
    value, pull, rest = jax.vjp(by_wanted, chosen, has_aux=True)
    one = jnp.ones_like(value)
    if value.ndim == 0:
        return (value, rest), pull(varying(one, axes_of(value)))[0]
    each = [
        pull(varying(jnp.where(jnp.arange(len(value)) == k, one, 0), axes_of(value)))[0]
        for k in range(len(value))
    ]
    return (value, rest), [jnp.stack(by_value) for by_value in zip(*each, strict=True)]


def eager_vjp(function: Callable[..., tuple[jax.Array, Any, Any]], *arguments: Any) -> Any:
    """Calls a function that computes its gradient in the forward pass.

    The cotangent is not available there, so the gradient is that of each entry of the value, and
    the backward pass multiplies it by the cotangent.

    Args:
      function: takes a tree like `arguments`, True where the gradient is wanted, and the arguments.
        It returns a scalar or a vector `[K]`; a tree of arrays that have no derivative; and a tree
        like `arguments` of gradients, `[...]` or `[K, ...]`, with None, or anything, where none is
        wanted.
      *arguments: trees of arrays.

    Returns:
      The value and the tree. The value can be differentiated once, in reverse mode.
    """
    arguments = varying(arguments, axes_of(arguments))
    leaves, structure = jax.tree.flatten(arguments)
    dtypes = [leaf.dtype for leaf in leaves]

    @jax.custom_vjp
    @on_mesh_of_arguments
    def result(*leaves: jax.Array) -> Any:
        wanted = jax.tree.unflatten(structure, [False] * len(leaves))
        return function(wanted, *jax.tree.unflatten(structure, leaves))[:2]

    @on_mesh_of_arguments
    def forward(*marked: Any) -> Any:
        leaves, wanted = split_marks(marked)
        leaves = differentiable_once(leaves)
        tree = jax.tree.unflatten(structure, wanted)
        value, rest, gradient = function(tree, *jax.tree.unflatten(structure, leaves))
        by_leaf: list[Any] = structure.flatten_up_to(gradient)  # type: ignore[attr-defined]
        # What is wanted shows in the shapes: the residuals keep one structure, as JAX uses the
        # compiled function again where the gradient is wanted of other arguments.
        residuals = [
            one[None] if is_wanted else jnp.zeros(0)
            for one, is_wanted in zip(by_leaf, wanted, strict=True)
        ]
        return (value, rest), residuals

    @on_mesh_of_arguments
    def backward(residuals: list[jax.Array], cotangents: Any) -> Any:
        cotangent = cotangents[0]
        if isinstance(cotangent, SymbolicZero):
            cotangent = jnp.zeros(cotangent.shape, cotangent.dtype)
        return tuple(
            _contracted(cotangent, one[0]).astype(dtype) if len(one) else None
            for one, dtype in zip(residuals, dtypes, strict=True)
        )

    result.defvjp(forward, backward, symbolic_zeros=True)
    return result(*leaves)


def _contracted(cotangent: jax.Array, gradient: jax.Array) -> jax.Array:
    if cotangent.ndim == 0:
        return cotangent * gradient
    if gradient.ndim == 3:
        return jnp.einsum("k,knd->nd", cotangent, gradient, precision=lax.Precision.HIGHEST)
    terms: list[jax.Array] = [one * part for one, part in zip(cotangent, gradient, strict=True)]
    return sum(terms[1:], start=terms[0])


def split_marks(marked: Any) -> tuple[Any, Any]:
    """Splits the arguments of a forward pass with symbolic zeros.

    Args:
      marked: tree of leaves with a `value` and a `perturbed`.

    Returns:
      The tree of values; and one of bools, True where a gradient is wanted. An integer or a key has
      none.
    """

    def is_mark(leaf: Any) -> bool:
        return hasattr(leaf, "perturbed")

    def is_wanted(mark: Any) -> bool:
        return bool(mark.perturbed) and jnp.issubdtype(mark.value.dtype, jnp.inexact)

    values = jax.tree.map(lambda mark: mark.value, marked, is_leaf=is_mark)
    return values, jax.tree.map(is_wanted, marked, is_leaf=is_mark)


@jax.custom_jvp
def differentiable_once(tree: Any) -> Any:
    """Returns its argument, and raises TypeError if it is differentiated.

    It is applied to the arguments of a forward pass that computes a gradient, so that only a
    second derivative raises.
    """
    return tree


@differentiable_once.defjvp
def _no_derivative(primals: Any, tangents: Any) -> Any:
    raise TypeError(
        "this gradient has no derivative: second derivatives of anchor_statistics, of losses with "
        'an axis_name and of anchor_loss with reduction="none" need method="autodiff" on one device'
    )


def substitute(valid: jax.Array, tree: Any, default: float | None = None) -> Any:
    """Replaces the entries for which a mask does not hold by one for which it does.

    A function need not have a finite derivative at an entry that does not count, such as a distance
    between a vector and itself. Masking its result would not help: the derivative of the mask, 0,
    times that of the function would be NaN.

    Args:
      valid: mask, of any shape.
      tree: arrays whose first axes are those of the mask.
      default: replaces all entries if the mask holds nowhere; by default the first entry does.

    Returns:
      The tree, whose derivatives by the entries that are replaced are 0.
    """
    index = jnp.argmax(valid)

    def one(values: jax.Array) -> jax.Array:
        mask = valid.reshape(*valid.shape, *[1] * (values.ndim - valid.ndim))
        entries = lax.stop_gradient(values).reshape(-1, *values.shape[valid.ndim :])
        entry = entries[index]
        if default is not None:
            entry = jnp.where(valid.ravel()[index], entry, default)
        return jnp.where(mask, values, entry)

    return jax.tree.map(one, tree)


def zero_gradient(parameter: jax.Array) -> jax.Array:
    """Returns zeros for a sum of gradients, in float32 at least; a scalar for an integer or key."""
    if not jnp.issubdtype(parameter.dtype, jnp.inexact):
        return jnp.zeros(())
    return jnp.zeros(parameter.shape, at_least_float32(parameter.dtype))


def add_gradient(total: jax.Array, more: jax.Array, where: jax.Array | bool = True) -> jax.Array:
    """Adds to a gradient; an integer or a key has none, and its total stays."""
    return total if more.dtype == jax.dtypes.float0 else total + jnp.where(where, more, 0)

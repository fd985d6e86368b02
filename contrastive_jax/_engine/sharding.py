"""Arrays that differ between devices, and those that `jax.jit` spreads over a mesh."""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from contrastive_jax._compat import check_explicit_axes, pcast_varying, varying_axes
from contrastive_jax._dtypes import ignored_value


def gathered(tree: Any) -> Any:
    """Gathers arrays that are spread over a mesh, so that every device holds them whole.

    A function that compares rows with each other needs them all. Along explicit axes of a mesh JAX
    refuses to mix rows of several devices unasked; along automatic ones it would gather them time
    and again, inside of loops. Gradients come back spread as the arrays were.

    Args:
      tree: tree of arrays. Those that are on no mesh stay as they are, and so do those that
        `jax.shard_map` has split: there each device has rows of its own.

    Returns:
      The tree of gathered arrays.

    Raises:
      ValueError: if the axes are explicit and JAX is older than 0.10.
    """

    def one(x: Any) -> Any:
        mesh = jax.typeof(x).sharding.mesh if isinstance(x, jax.Array) else None
        if mesh is None or mesh.empty:
            return x
        check_explicit_axes(mesh)
        whole = NamedSharding(mesh, PartitionSpec())
        if AxisType.Explicit in mesh.axis_types:
            return jax.sharding.reshard(x, whole)
        if mesh.are_all_axes_auto:
            return lax.with_sharding_constraint(x, whole)
        return x

    return jax.tree.map(one, tree)


def on_mesh_of_arguments(function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes new arrays of a function belong to the mesh of its arguments, if its axes are explicit.

    Outside of `jax.set_mesh` an array of zeros belongs to no mesh, and a loop or an update in place
    that begins with one would not fit what is added to it. The passes of a `jax.custom_vjp` are
    traced apart from their caller, so each of them needs this for itself.

    Args:
      function: function of trees of arrays.

    Returns:
      The same function.
    """

    @functools.wraps(function)
    def on_mesh(*arguments: Any) -> Any:
        # The arguments of a forward pass with symbolic zeros come with a mark about each.
        leaves = [getattr(leaf, "value", leaf) for leaf in jax.tree.leaves(arguments)]
        meshes = [jax.typeof(x).sharding.mesh for x in leaves if isinstance(x, jax.Array)]
        explicit = [mesh for mesh in meshes if AxisType.Explicit in mesh.axis_types]
        if not explicit or not jax.sharding.get_abstract_mesh().empty:
            return function(*arguments)
        with jax.sharding.use_abstract_mesh(explicit[0]):
            return function(*arguments)

    return on_mesh


def evaluated_while_tracing() -> AbstractContextManager[None]:
    """Lets JAX compute with concrete values while it traces, so that Python can branch on them.

    Not on a mesh with explicit axes: whatever is made in the likeness of a traced array is to be on
    its mesh, of which a traced function has no devices. There such values are traced.
    """
    mesh = jax.sharding.get_abstract_mesh()
    explicit = not mesh.empty and AxisType.Explicit in mesh.axis_types
    return nullcontext() if explicit else jax.ensure_compile_time_eval()


def axes_of(tree: Any) -> frozenset[Any]:
    """Returns the axes of a mesh along which some array varies under `jax.shard_map`."""
    return frozenset[Any]().union(*map(varying_axes, jax.tree.leaves(tree)))


def varying(tree: Any, axes: frozenset[Any]) -> Any:
    """Marks arrays as varying along all of these axes, as the results of a loop must be."""

    def one(x: jax.Array) -> jax.Array:
        missing = tuple(axes - axes_of(x))
        return pcast_varying(x, missing) if missing else x

    return jax.tree.map(one, tree)


def psum_once(values: Any, axis_name: Any) -> Any:
    """Sums over the devices, with the gradient on each of its own part.

    Every device computes the same loss from such sums. The gradient of `lax.psum` would count it
    once for each device.

    Args:
      values: tree of arrays.
      axis_name: axis of the devices; None for one device.

    Returns:
      The tree of sums.
    """
    if axis_name is None:
        return values

    @jax.custom_vjp
    def added(values: Any) -> Any:
        return lax.psum(values, axis_name)

    def forward(values: Any) -> Any:
        return added(values), None

    def backward(_: Any, cotangents: Any) -> Any:
        return (varying(cotangents, axes),)

    added.defvjp(forward, backward)
    axes = axes_of(values)
    return added(values)


def gather_rows(axis_name: Any, tree: Any) -> Any:
    """Returns the rows of all devices along an axis, one after the other; None for one device."""
    if axis_name is None:
        return tree
    return jax.tree.map(lambda rows: lax.all_gather(rows, axis_name, tiled=True), tree)


def ring_permute(tree: Any, axis: Any, steps: int) -> Any:
    devices = lax.axis_size(axis)
    route = [(i, (i + steps) % devices) for i in range(devices)]
    return jax.tree.map(lambda x: lax.ppermute(x, axis, route), tree)


def local_shard(rows: tuple[jax.Array, Any], axis_name: Any) -> tuple[jax.Array, Any]:
    """Returns the share of this device of rows that all devices hold, padded by ignored ones.

    Args:
      rows: vectors, and classes or a tree of attributes.
      axis_name: axis of the devices.

    Returns:
      The share of both.
    """
    vectors, classes = rows
    devices = lax.axis_size(axis_name)
    share = -(-len(vectors) // devices)
    padding = share * devices - len(vectors)

    def padded(leaf: jax.Array, value: Any) -> jax.Array:
        ends = [(0, padding)] + [(0, 0)] * (leaf.ndim - 1)
        return jnp.pad(leaf, ends, constant_values=value)

    both = (
        padded(vectors, 0),
        jax.tree.map(lambda leaf: padded(leaf, ignored_value(leaf.dtype)), classes),
    )
    start = lax.axis_index(axis_name) * share
    shares: tuple[jax.Array, Any] = jax.tree.map(
        lambda leaf: lax.dynamic_slice_in_dim(leaf, start, share), both
    )
    return shares

"""Compiles a function of shapes for the devices of a mesh, of which none need be there."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from contrastive_jax.train import AXIS

SHARDED = PartitionSpec(AXIS)
"""Rows are spread over the devices."""
REPLICATED = PartitionSpec()
"""Every device has the whole array."""


def placed(mesh: Mesh, spec: PartitionSpec, tree: Any) -> Any:
    """Describes how arrays lie on a mesh.

    Args:
      mesh: devices to compile for.
      spec: `SHARDED` or `REPLICATED`.
      tree: of whole arrays, or of anything that has a shape and a dtype.

    Returns:
      The tree of `jax.ShapeDtypeStruct`, each with its sharding.
    """
    sharding = NamedSharding(mesh, spec)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def compile_for(
    mesh: Mesh, function: Callable[..., Any], *arguments: Any, results: Any = REPLICATED
) -> jax.stages.Compiled:
    """Compiles a function for a mesh, by `jax.shard_map` where that has several devices.

    Args:
      mesh: devices to compile for.
      function: of the arrays that one device has; it may name `contrastive_jax.train.AXIS` where
        there are several devices.
      *arguments: trees of shapes that `placed` has put on the mesh.
      results: `SHARDED` or `REPLICATED` for each result, a tree that begins as the results do.

    Returns:
      The program. It has `memory_analysis()` and `as_text()`, and can not run without the devices.

    Example:
      >>> x = placed(mesh, SHARDED, jax.ShapeDtypeStruct((8192, 128), jnp.float32))
      >>> program = compile_for(mesh, lambda x: x * x, x, results=SHARDED)
      >>> program.memory_analysis().temp_size_in_bytes
      0
    """
    if mesh.size > 1:
        specs = jax.tree.map(lambda x: x.sharding.spec, arguments)
        function = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=results)
    return jax.jit(function).lower(*arguments).compile()

"""Distances of pairs of rows of one set."""

from collections.abc import Callable
from functools import partial

import jax


@partial(jax.jit, static_argnames="distance")
def row_distances(
    rows: jax.Array,
    i: jax.Array,
    j: jax.Array,
    distance: Callable[[jax.Array, jax.Array], jax.Array],
) -> jax.Array:
    """Returns the distances of rows `i` from rows `j`, `[P]`."""
    # A block at a time: the pairs of raw images would fill the memory of a small machine.
    between: jax.Array = jax.lax.map(
        lambda pair: distance(rows[pair[0]], rows[pair[1]]), (i, j), batch_size=1000
    )
    return between

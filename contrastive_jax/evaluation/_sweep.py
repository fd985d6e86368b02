"""Float32 scores of all references for a block of queries, and which of them float64 must settle.

The score of a reference is its squared distance from the query less the squared norm of the query,
$s = |r|^2 - 2 q \\cdot r$. A sweep over tiles of references computes it in float32, within bounds
that hold for certain, and returns one bit for each reference: whether its rank depends on digits
that float32 does not have, or whether it is among the nearest. All others are merely counted. The
host computes the distances of the references with a bit in float64, so that a sweep on any device
leads to the same ranks. Blocks and tiles have fixed shapes: a program is compiled for each
number of tiles, each width and one of two sizes of the selection.

The bounds. With u = 2^-24, a dot product of D terms in float32, summed in any order, is off by at
most D u |q| |r| (1 + O(D u)), rounding q and r to float32 adds 2 u |q| |r|, and forming the score
adds u (|r|^2 + 2 |q| |r|). As 2 |q| |r| <= |q|^2 + |r|^2, the score is off by at most
c (|q|^2 + |r|^2) with c = (D + 8) u. Twice that is assumed, which leaves room for what is rounded
here once more and for accelerators that compose a float32 product of several in bfloat16. The part
of |r| is added to the norms of the references once, the part of |q| to the thresholds of a query.
What underflows is less than `TINY` for each of D entries, as entries are at most 1.
"""

from collections.abc import Callable, Hashable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec, Sharding
from numpy.typing import NDArray

from contrastive_jax._compat import pcast_varying, varying_axes

Floats = NDArray[np.float64]

QUERIES = 256
"""Queries of a block. With `TILE` references, a block of scores takes 3 MiB and stays in caches."""
TILE = 3072
"""References of a tile, a multiple of `GROUP`."""
GROUP = 24
"""References that share a word: a bit of each, and 8 bits that count up to 24."""
MOST = 64
"""Nearest references that a sweep can be asked for."""
TINY = 2.0**-100


class References(NamedTuple):
    """Tiles of references.

    Attributes:
      points: float32, [tiles, TILE, D].
      lowest: lower bounds of |r|^2, less what rounding may add to a score, [tiles, TILE].
      highest: upper bounds of |r|^2, plus what rounding may add to a score, [tiles, TILE].
    """

    points: Any
    lowest: Any
    highest: Any


class Queries(NamedTuple):
    """A block of queries with their thresholds, scores in float32.

    Attributes:
      points: twice the queries, [Q, D].
      count: how many nearest references are asked for, int32 in [1, `MOST`], [Q].
      reach: upper bounds of the score of the last of those, infinity if none is available, [Q].
      near: references whose upper bound is below are certainly nearer than the target, [Q].
      far: references whose lower bound is above are certainly farther than the target, [Q].
      slack: twice what rounding may add to a score by the norm of the query, [Q].
    """

    points: Any
    count: Any
    reach: Any
    near: Any
    far: Any
    slack: Any


class Swept(NamedTuple):
    """Candidates and counts of a block of queries, the result of a sweep.

    Attributes:
      words: uint32, [tiles, TILE / GROUP, Q]; bit i of word w in tile t is set if reference
        t TILE + w GROUP + i is a candidate: it may be among the nearest that were asked for, or it
        may be nearer than the target or farther.
      nearer: int32, [Q], the number of references that are certainly nearer than the target and
        are no candidates.
    """

    words: Any
    nearer: Any


def sweep(
    queries: Queries, references: References, *, most: int, axis_name: Hashable = None
) -> Swept:
    """Compares a block of queries with tiles of references. A pure function of arrays.

    Over devices, either the queries differ, and nothing is exchanged, or each device has some of
    the tiles, and `axis_name` is the axis over which they are spread: the counts are then those of
    all devices and the words those of the device's own tiles.

    Args:
      queries: as `query_block` makes them.
      references: as `reference_tiles` makes them.
      most: the largest `count` of the queries, for which the program is compiled.
      axis_name: the name of a mapped axis (`jax.shard_map`, `jax.pmap`), or None.

    Returns:
      Words and counts.
    """
    position = lax.rem(lax.iota(jnp.uint32, TILE), jnp.uint32(GROUP))[:, None]
    last = (queries.count - 1)[:, None]

    def grouped(x: jax.Array) -> jax.Array:
        return x.reshape(TILE // GROUP, GROUP, len(queries.points))

    def one_tile(smallest: jax.Array, tile: References) -> tuple[jax.Array, jax.Array]:
        product = lax.dot_general(
            tile.points,
            queries.points,
            (((1,), (1,)), ((), ())),
            precision=lax.Precision.HIGHEST,
            preferred_element_type=jnp.float32,
        )
        highest = tile.highest[:, None] - product
        lowest = tile.lowest[:, None] - product
        # The k-th smallest minimum of disjoint groups is no less than the k-th smallest score.
        minima = jnp.min(grouped(highest), axis=1).T
        smallest = -lax.top_k(-jnp.concatenate([smallest, minima], axis=1), most)[0]
        reach = jnp.take_along_axis(smallest, last, axis=1)[:, 0]
        if axis_name is not None:
            reach = lax.pmin(reach, axis_name)
        reach = jnp.minimum(queries.reach, reach + queries.slack)
        nearest = lowest <= reach
        nearer = highest < queries.near
        unsettled = (lowest <= queries.far) & ~nearer
        candidate = (nearest | unsettled).astype(jnp.uint32)
        counted = (nearer & ~nearest).astype(jnp.uint32)
        word = lax.shift_left(candidate, jnp.broadcast_to(position, candidate.shape))
        word = grouped(word + counted * jnp.uint32(1 << GROUP))
        return smallest, jnp.sum(word, axis=1, dtype=jnp.uint32)

    start = jnp.full((len(queries.points), most), jnp.inf, jnp.float32)
    axes = varying_axes(queries.points) | varying_axes(references.points)
    start = pcast_varying(start, tuple(axes))
    _, words = lax.scan(one_tile, start, references)
    nearer = jnp.sum(words >> GROUP, axis=(0, 1), dtype=jnp.uint32).astype(jnp.int32)
    if axis_name is not None:
        nearer = lax.psum(nearer, axis_name)
    return Swept(words & jnp.uint32((1 << GROUP) - 1), nearer)


@lru_cache(maxsize=8)
def on_devices(
    devices: tuple[jax.Device, ...],
) -> tuple[Callable[[int, Queries, References], Swept], Sharding, Sharding]:
    """Compiles a sweep of tiles that are divided among devices.

    Args:
      devices: one or more.

    Returns:
      The sweep of (`most`, queries, references), and the shardings of the queries and the
      references.
    """
    mesh = jax.make_mesh((len(devices),), ("tiles",), axis_types=(AxisType.Auto,), devices=devices)
    by_tile = PartitionSpec("tiles")

    def over_tiles(most: int, queries: Queries, references: References) -> Swept:
        if len(devices) == 1:
            return sweep(queries, references, most=most)
        mapped: Callable[..., Swept] = jax.shard_map(
            partial(sweep, most=most, axis_name="tiles"),
            mesh=mesh,
            in_specs=(PartitionSpec(), by_tile),
            out_specs=Swept(by_tile, PartitionSpec()),
        )
        return mapped(queries, references)

    shardings = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, by_tile)
    return jax.jit(over_tiles, static_argnums=0), *shardings


def scale_of(*points: Floats) -> float:
    """Returns the power of two that brings the largest entry of all points into [1/2, 1]."""
    largest = max(float(np.max(np.abs(x))) for x in points)
    return float(np.ldexp(1.0, -int(np.frexp(largest)[1])))


def reference_tiles(points: Floats, scale: float, tiles: int) -> References:
    """Makes tiles of references, on the host.

    Args:
      points: references in float64, [M, D].
      scale: as `scale_of` returns it.
      tiles: how many tiles there are to be, enough for all references.

    Returns:
      Tiles in float32, filled up with references that are infinitely far.
    """
    scaled = points * scale
    relative, absolute = _rounding(points.shape[1])
    squared = np.einsum("nd,nd->n", scaled, scaled)
    padding = tiles * TILE - len(points)
    rows = np.zeros((tiles * TILE, points.shape[1]), np.float32)
    rows[: len(points)] = scaled
    lowest, highest = (
        np.pad(bound, (0, padding), constant_values=np.inf).reshape(tiles, TILE)
        for bound in (
            _float32(squared * (1 - relative) - absolute, -np.inf),
            _float32(squared * (1 + relative) + absolute, np.inf),
        )
    )
    return References(rows.reshape(tiles, TILE, -1), lowest, highest)


def query_block(
    points: Floats, scale: float, count: NDArray[Any], bound: Floats, target: Floats
) -> Queries:
    """Makes a block of queries with their thresholds, on the host.

    Args:
      points: queries in float64, [Q, D] with Q at most `QUERIES`.
      scale: as `scale_of` returns it.
      count: how many nearest references are asked for, in [1, `MOST`], [Q].
      bound: a squared distance within which so many lie, infinity if none is available, [Q].
      target: a squared distance with which those of all references are compared, -infinity to
        compare with none, [Q].

    Returns:
      A block of `QUERIES` rows, of which those beyond Q have no candidates.
    """
    padding = (0, QUERIES - len(points))
    scaled = points * scale
    relative, absolute = _rounding(points.shape[1])
    squared = np.einsum("nd,nd->n", scaled, scaled)
    slack = squared * relative + absolute
    reach, goal = (value * scale * scale - squared for value in (bound, target))
    rows = np.zeros((QUERIES, points.shape[1]), np.float32)
    rows[: len(points)] = 2 * scaled
    reach, near, far = (
        np.pad(value, padding, constant_values=-np.inf)
        for value in (
            _float32(reach + slack, np.inf),
            _float32(goal - slack, -np.inf),
            _float32(goal + slack, np.inf),
        )
    )
    return Queries(
        points=rows,
        count=np.pad(count.astype(np.int32), padding, constant_values=1),
        reach=reach,
        near=near,
        far=far,
        slack=np.pad(_float32(2 * slack, np.inf), padding),
    )


def _rounding(width: int) -> tuple[float, float]:
    """Bounds the error of a score of points of this width: relative to squares, and absolute."""
    return 2 * (width + 8) * 2.0**-24, width * TINY


def _float32(values: Floats, towards: float) -> NDArray[np.float32]:
    """Rounds values to float32, towards an infinity."""
    return np.nextafter(values.astype(np.float32), np.float32(towards))

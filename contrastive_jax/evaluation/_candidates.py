"""Ranks in float64 from the candidates of a float32 sweep (`_sweep`).

The host computes the distances of candidates from differences of float64 embeddings, one pair like
another, so that identical references tie exactly. A query with so many candidates that a matrix
product is cheaper, as among duplicates or in a cluster far smaller than the whole set, is crowded:
its ranks are left to the caller.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from contrastive_jax.evaluation import _sweep
from contrastive_jax.evaluation._points import Floats, Indices, Names

ROWS = 1024
"""Pairs whose differences are held at a time."""
FEW, CROWDED = 2**10, 2**13
"""Candidates beyond which a query is crowded: a 16th of the references within these limits."""


class Points(NamedTuple):
    """Embeddings in float64, what is not ranked, and where a sweep runs.

    Attributes:
      queries: [Q, D].
      references: [M, D].
      left_out: for each query the references that are not ranked for it.
      devices: the devices among which the tiles of references are divided; none for points that no
        sweep compares.
    """

    queries: Floats
    references: Floats
    left_out: Sequence[Indices]
    devices: tuple[jax.Device, ...] = ()


class Pairs(NamedTuple):
    """Pairs of a query and a reference, by query, then reference: indices [P]."""

    query: Indices
    reference: Indices


class Block(NamedTuple):
    """Candidates of the queries from `start` to `stop` of those selected.

    `pairs.query` counts from `start`. They are ranked for the query, none is left out for it.
    """

    start: int
    stop: int
    pairs: Pairs
    squared: Floats
    nearer: NDArray[np.int64]
    """References that are nearer than the target and no candidates, [stop - start]."""
    crowded: NDArray[np.bool_]
    """Queries without candidates, as they have too many, [stop - start]."""


class Figures(NamedTuple):
    """Figures of each query, [Q], and which queries are crowded and have none."""

    rank: Floats
    r_precision: Floats
    average_precision: Floats
    crowded: NDArray[np.bool_]


def match_figures(
    points: Points,
    selected: Indices,
    matches: Sequence[Indices],
    names: tuple[Names, Names] | None,
) -> Figures:
    """Computes the rank of the first match, R-precision and average precision at R.

    Args:
      points: embeddings.
      selected: the queries, [Q].
      matches: for each of the selected queries the references of its class, ascending; at least one
        of them is not left out.
      names: classes of all queries and of all references, where equal ones are what makes a match.

    Returns:
      Figures of the selected queries.
    """
    references = len(points.references)
    own, excluded = _pairs_of(matches), _pairs_of([points.left_out[query] for query in selected])
    ranked = ~np.isin(_keys(own, references), _keys(excluded, references))
    own = Pairs(*(side[ranked] for side in own))
    own_keys = _keys(own, references)  # ascending, as matches are
    r = np.bincount(own.query, minlength=len(selected))
    starts = np.cumsum(r) - r
    squared = squared_distances(points, selected[own.query], own.reference)
    target = np.minimum.reduceat(squared, starts)
    is_first = squared == target[own.query]
    first = np.minimum.reduceat(np.where(is_first, own.reference, references), starts)
    bound = np.maximum.reduceat(squared, starts)
    rank, precision_at_r, average = np.zeros((3, len(selected)))
    figures = Figures(rank, precision_at_r, average, np.zeros(len(selected), bool))
    for block in candidates(points, selected, r, bound, target):
        here = slice(block.start, block.stop)
        query, reference = block.pairs
        tied = block.squared == target[here][query]
        before = (block.squared < target[here][query]) | (tied & (reference < first[here][query]))
        size = block.stop - block.start
        figures.rank[here] = 1 + block.nearer + np.bincount(query[before], minlength=size)
        query, position, order = by_distance(block)
        if names is None:
            keys = _keys(Pairs(block.start + query, reference[order]), references)
            nearest_key = np.searchsorted(own_keys, keys)
            hit = own_keys[np.minimum(nearest_key, len(own_keys) - 1)] == keys
        else:
            hit = names[1][reference[order]] == names[0][selected[here][query]]
        hit &= position < r[here][query]
        query, position = query[hit], position[hit]
        hits = np.bincount(query, minlength=size)
        hits_so_far = 1 + np.arange(len(query)) - (np.cumsum(hits) - hits)[query]
        precision = np.bincount(query, weights=hits_so_far / (position + 1), minlength=size)
        figures.r_precision[here] = hits / r[here]
        figures.average_precision[here] = precision / r[here]
        figures.crowded[here] = block.crowded
    return figures


def nearest(points: Points, k: int) -> tuple[Indices, Floats, NDArray[np.bool_]]:
    """Finds the k nearest references of every query.

    Args:
      points: embeddings.
      k: how many there are to be.

    Returns:
      Their indices and squared distances, [Q, k], near first and equal distances by index, and
      which queries are crowded and have none, [Q].
    """
    queries = len(points.queries)
    indices, squared = np.zeros((queries, k), np.intp), np.zeros((queries, k))
    crowded = np.zeros(queries, bool)
    count, infinite = np.full(queries, k), np.full(queries, np.inf)
    for block in candidates(points, np.arange(queries), count, infinite, -infinite):
        query, position, order = by_distance(block)
        among = position < k
        rows, order = block.start + query[among], order[among]
        indices[rows, position[among]] = block.pairs.reference[order]
        squared[rows, position[among]] = block.squared[order]
        crowded[block.start : block.stop] = block.crowded
    return indices, squared, crowded


def by_distance(block: Block) -> tuple[Indices, Indices, Indices]:
    """Sorts candidates by query, then distance, then reference.

    Returns:
      Queries, positions among the candidates of the query from 0, and the order.
    """
    # Pairs come by query and reference, and `lexsort` is stable.
    order = np.lexsort((block.squared, block.pairs.query))
    query = block.pairs.query[order]
    return query, np.arange(len(query)) - np.searchsorted(query, query), order


def candidates(
    points: Points, selected: Indices, count: Indices, bound: Floats, target: Floats
) -> Iterator[Block]:
    """Sweeps all references for the selected queries, in blocks.

    Args:
      points: embeddings.
      selected: the queries, [Q].
      count: how many nearest references are to be among the candidates, without those that are
        left out, [Q].
      bound: a squared distance within which so many lie, infinity if none is available, [Q].
      target: a squared distance; the references that are nearer are counted or are candidates, and
        those that are as near are candidates; -infinity to count none, [Q].

    Yields:
      Candidates of block after block.
    """
    scale = _sweep.scale_of(points.queries, points.references)
    sweep, by_query, by_tile = _sweep.on_devices(points.devices)
    tiles = -(-len(points.references) // (_sweep.TILE * len(points.devices))) * len(points.devices)
    references = jax.device_put(_sweep.reference_tiles(points.references, scale, tiles), by_tile)
    asked = count + np.array([len(points.left_out[query]) for query in selected])
    asked = np.minimum(asked, len(points.references))
    most = 8 if np.max(asked) <= 8 else _sweep.MOST

    def start(first: int) -> tuple[slice, _sweep.Swept]:
        here = slice(first, min(first + _sweep.QUERIES, len(selected)))
        block = _sweep.query_block(
            points.queries[selected[here]], scale, asked[here], bound[here], target[here]
        )
        return here, sweep(most, jax.device_put(block, by_query), references)

    # The device computes the next block while the host settles this one.
    ahead = start(0)
    for first in range(0, len(selected), _sweep.QUERIES):
        here, swept = ahead
        if first + _sweep.QUERIES < len(selected):
            ahead = start(first + _sweep.QUERIES)
        yield _settled(points, here, selected[here], target[here], jax.device_get(swept))


def _settled(
    points: Points, here: slice, queries: Indices, target: Floats, swept: _sweep.Swept
) -> Block:
    """Computes the distances of the candidates of a block of queries."""
    words = swept.words.reshape(-1, _sweep.QUERIES)
    most = min(CROWDED, max(FEW, len(points.references) // 16))
    crowded = np.bitwise_count(words).sum(axis=0) > most
    if crowded.any():
        words = np.where(crowded, np.uint32(0), words)
    pairs = _pairs(words, len(points.references))
    excluded = _pairs_of([points.left_out[query] for query in queries])
    keys = [_keys(each, len(points.references)) for each in (pairs, excluded)]
    # What is left out was counted where it is nearer than the target and no candidate.
    counted = Pairs(*(side[~np.isin(keys[1], keys[0])] for side in excluded))
    squared = squared_distances(points, queries[counted.query], counted.reference)
    less = np.bincount(counted.query[squared < target[counted.query]], minlength=len(queries))
    pairs = Pairs(*(side[~np.isin(keys[0], keys[1])] for side in pairs))
    return Block(
        here.start,
        here.stop,
        pairs,
        squared_distances(points, queries[pairs.query], pairs.reference),
        swept.nearer[: len(queries)].astype(np.int64) - less,
        crowded[: len(queries)],
    )


def _pairs(words: NDArray[np.uint32], references: int) -> Pairs:
    """Lists the pairs whose bit is set, by query, then reference."""
    filled = np.flatnonzero(words)
    word, query = np.divmod(filled, words.shape[1])
    bits = words.ravel()[filled, None] >> np.arange(_sweep.GROUP, dtype=np.uint32) & 1
    row, bit = np.nonzero(bits)
    reference = word[row] * _sweep.GROUP + bit
    key = np.sort((query[row] * references + reference)[reference < references])
    return Pairs(*np.divmod(key, references))


def _pairs_of(references: Sequence[Indices]) -> Pairs:
    """Lists the pairs of queries and their references, given one list of references a query."""
    sizes = [len(own) for own in references]
    return Pairs(np.repeat(np.arange(len(references)), sizes), np.concatenate(references))


def _keys(pairs: Pairs, references: int) -> Indices:
    """Maps each pair to a number of its own."""
    keys: Indices = pairs.query * references + pairs.reference
    return keys


def squared_distances(points: Points, query: Indices, reference: Indices) -> Floats:
    """Computes the squared distances of pairs, [P], from differences."""
    squared = np.empty(len(query))
    for start in range(0, len(query), ROWS):
        some = slice(start, start + ROWS)
        difference = points.references[reference[some]]
        difference -= points.queries[query[some]]
        # `einsum` would round equal rows differently where they are wider than its buffer.
        np.sum(np.square(difference, out=difference), axis=1, out=squared[some])
    return squared

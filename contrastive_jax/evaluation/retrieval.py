r"""Retrieval: are the references nearest to a query of its class?

References are ranked by distance to the query, equal distances by reference index. Within one set
every query is ranked against all the others: left out by its index, so that duplicates of it count.
Identities leave out more: a reference with the identity of the query is not ranked for it. They
serve where queries are among the references of another array, and where duplicates must not count.

Rows of class -1, and rows whose class is masked (`numpy.ma`), are ignored whatever they hold, as
queries and as references.

Distances are compared in float64, of embeddings centred on their median, as $|r|^2 - 2 q \cdot r$
or as sums of squared differences. From `SWEPT_FROM` pairs on, a device first compares them in
float32 within bounds that hold for certain, in blocks, and the host computes in float64 only what
those bounds leave open: results are the same, sooner. The references are divided among the devices
on which they lie, if they are a JAX array, and are put on the default device of JAX if not. Smaller
sets, which would wait for a compilation, and queries with more matches or neighbours than
`_sweep.MOST` are compared in float64 alone, on the host.

Identical references tie exactly. All distances are exact when the embeddings are integers, or
multiples of one power of two, and squared distances stay below $2^{53}$. Otherwise two references
whose squared distances differ by no more than rounding, about 1e-15 of the squared largest norm
after centring, may come in either order; this is finer than float32 embeddings are themselves.
Squares of embeddings must fit float64: beyond the range from 1e-140 to 1e150 they are refused.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from contrastive_jax._host_arrays import checked_classes
from contrastive_jax.evaluation import _candidates
from contrastive_jax.evaluation._candidates import Points
from contrastive_jax.evaluation._labelled import counted_rows, labelled_matches
from contrastive_jax.evaluation._points import (
    Distance,
    Floats,
    Indices,
    Names,
    checked_identities,
    checked_points,
    equal_names,
    require_one_sort,
    row_count,
)
from contrastive_jax.evaluation._selection import smallest
from contrastive_jax.evaluation._sweep import MOST
from contrastive_jax.labels.types import PairLabels

T = TypeVar("T")

# Pairs from which on a sweep in JAX is faster in spite of its compilation, about a second.
SWEPT_FROM = 2**26
# Pairs whose labels are listed at a time.
LISTED = 2**26
DISTANCES_HELD = 2**24  # 128 MiB
THREADS = os.cpu_count() or 1


class Neighbours(NamedTuple):
    """The nearest references of each query, near first, both [Q, k]."""

    indices: Indices
    distances: Floats


def nearest_neighbours(
    queries: ArrayLike,
    references: ArrayLike | None = None,
    *,
    k: int,
    distance: Distance = "euclidean",
    query_ids: ArrayLike | None = None,
    reference_ids: ArrayLike | None = None,
) -> Neighbours:
    """Finds the k references nearest to each query.

    Args:
      queries: embeddings, [Q, D].
      references: embeddings, [M, D]; None to search the queries themselves, each among the others.
      k: from 1 to M, or to Q - 1 within one set; less where identities leave references out.
      distance: "euclidean", or "cosine", 1 - cosine similarity.
      query_ids: identities, integers or strings, [Q]; references with the identity of a query are
        not among its neighbours.
      reference_ids: identities, [M]; None within one set, where those of the queries serve.

    Returns:
      Reference indices and distances, [Q, k]. The distances are computed from differences, so that
      small ones are accurate and the distance of duplicates is 0.

    Raises:
      ValueError: embeddings that are not [N, D], empty, not of one width, not finite, masked or
        beyond the range of the module, rows of zeros under "cosine", identities that do not fit, an
        unknown distance, or k not whole or out of range.

    Example:
      >>> from contrastive_jax.evaluation.retrieval import nearest_neighbours
      >>> points = [[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]]
      >>> indices, distances = nearest_neighbours(points, k=1)
      >>> print(indices.ravel())
      [2 2 0]
      >>> print(distances.ravel().round(2))
      [1.   4.24 1.  ]
    """
    one_set = references is None
    rows = row_count("queries", queries)
    reference_rows = rows if references is None else row_count("references", references)
    ids = checked_identities(query_ids, reference_ids, rows, reference_rows, one_set)
    query_points, reference_points = checked_points(queries, references, distance)
    left_out = _left_out(rows, one_set, ids)
    excluded = max(map(len, left_out))
    available = len(reference_points) - excluded
    if not isinstance(k, int | np.integer) or not 1 <= k <= available:
        raise ValueError(
            f"k must be a whole number in [1, {available}], the number of references that are "
            f"ranked for every query, got {k}."
        )

    def nearest(query: int, scores: Floats) -> tuple[Indices, Floats]:
        indices = smallest(scores, k)
        squared = np.sum((reference_points[indices] - query_points[query]) ** 2, axis=1)
        order = np.lexsort((indices, squared))
        return indices[order], squared[order]

    points = Points(query_points, reference_points, left_out)
    indices, squared = np.empty((rows, k), np.intp), np.empty((rows, k))
    rest = np.arange(rows)
    if k + excluded <= MOST and rows * reference_rows >= SWEPT_FROM:
        swept_points = _on_devices(points, queries if references is None else references)
        indices, squared, crowded = _candidates.nearest(swept_points, k)
        rest = np.flatnonzero(crowded)
    for query, row in zip(rest, _map_scores(nearest, rest, points), strict=True):
        indices[query], squared[query] = row
    return Neighbours(indices, squared / 2 if distance == "cosine" else np.sqrt(squared))


def retrieval(
    queries: ArrayLike,
    query_classes: Any,
    references: ArrayLike | None = None,
    reference_classes: Any = None,
    *,
    labels: PairLabels | Callable[[Any, Any], Any] | None = None,
    ks: Sequence[int] = (1, 5, 10),
    distance: Distance = "euclidean",
    query_ids: ArrayLike | None = None,
    reference_ids: ArrayLike | None = None,
) -> dict[str, float]:
    r"""Measures how well distances rank the references of a query's own class, its matches, first.

    R is the number of matches of a query, and MAP@R the mean over queries of

    $$\frac{1}{R} \sum_{i = 1}^R r_i p_i$$

    with $r_i$ 1 if the $i$-th nearest reference is a match and 0 if not, and $p_i$ the precision at
    rank $i$, the fraction of matches among the $i$ nearest. Queries without any match, such as the
    only member of its class within one set, are left out of the averages and counted. Beside the
    embeddings (six float64 copies) it holds up to $2^{24}$ distances at a time, 128 MiB, or those
    of one query if more. With `labels` the queries are taken some at a time, so that the references
    that match or are not ranked are never listed for all of them.

    Args:
      queries: embeddings, [Q, D].
      query_classes: integers from 0, bools or strings, [Q]; rows of class -1 or of a masked class
        are ignored. With `labels` the attributes of the rows: any tree of arrays [Q, ...].
      references: embeddings, [M, D]; None to rank the queries themselves, each among the others.
      reference_classes: the same of the references, [M]; None exactly where `references` is.
      labels: function of the attributes of a query and a reference that returns 0 (a match), 1, or
        -1 (not ranked for the query), as in `contrastive_jax.all_pairs_loss`;
        `labels.same_class_other_group()` leaves out images of a person by the camera of the query.
        By default references of the class of a query are its matches.
      ks: the k of recall at k, whole numbers from 1; where k reaches the number of references, that
        recall is 1.
      distance: "euclidean", or "cosine", 1 - cosine similarity.
      query_ids: identities, integers or strings, [Q]; references with the identity of a query are
        left out of its ranking.
      reference_ids: identities, [M]; None within one set, where those of the queries serve.

    Returns:
      Averages over the queries with a match, in [0, 1], and two counts.

      - `recall_at_{k}`: 1 if one of the k nearest is a match, else 0;
      - `precision_at_1`: 1 if the nearest is a match, else 0;
      - `r_precision`: the fraction of matches among the R nearest;
      - `map_at_r`: the sum, over the matches among the R nearest, of the precision at their rank,
        over R;
      - `mean_reciprocal_rank`: 1 over the rank of the nearest match;
      - `queries`: Q without the ignored ones; `queries_without_match`: how many of them were left
        out.

    Raises:
      AssertionError: if attributes do not fit the rows.
      ValueError: if embeddings are not [N, D], empty, not of one width, not finite, masked or
        outside of the range of the module; a row is zero and the distance "cosine"; classes, labels
        or identities do not fit; only one of `references` and `reference_classes` is given; the
        distance is unknown; a k is not an integer or below 1; or no query has a match.

    References:
      Musgrave, Belongie and Lim (2020), "A Metric Learning Reality Check", ECCV (R-precision,
      MAP@R) <https://arxiv.org/abs/2003.08505>.

    Example:
      >>> from contrastive_jax.evaluation.retrieval import retrieval
      >>> points = [[0.0], [0.1], [0.3], [5.0], [5.1]]
      >>> figures = retrieval(points, [0, 0, 1, 1, 1])
      >>> print(f"{figures['precision_at_1']:.2f} {figures['map_at_r']:.2f}")
      0.80 0.80
    """
    if (references is None) != (reference_classes is None):
        raise ValueError("references and reference_classes must be given together or not at all.")
    try:
        ks = tuple(ks)
    except TypeError:
        raise ValueError(f"ks must be a sequence such as (1, 5, 10), got {ks!r}.") from None
    for k in ks:
        if not isinstance(k, int | np.integer) or k < 1:
            raise ValueError(f"ks must be whole numbers and at least 1, got {ks}.")
    rows = row_count("queries", queries)
    reference_rows = rows if references is None else row_count("references", references)
    sides = (queries, query_classes), (references, reference_classes)
    ids = query_ids, reference_ids
    if labels is None or rows * reference_rows <= LISTED:
        table, count, ignored = _ranks(*sides, labels, distance, *ids)
    else:
        table, count, ignored = _ranks_by_parts(sides, labels, distance, ids, rows, reference_rows)
    if not len(table):
        rows = sum(ignored)
        remark = f"; {rows} rows of class -1 or of a masked class are ignored" if rows else ""
        raise ValueError(
            f"none of the {count} queries has a reference of its class other than itself{remark}."
        )
    rank, r_precision, average_precision_at_r = table.T
    return {
        **{f"recall_at_{k}": float(np.mean(rank <= k)) for k in ks},
        "precision_at_1": float(np.mean(rank == 1)),
        "r_precision": float(np.mean(r_precision)),
        "map_at_r": float(np.mean(average_precision_at_r)),
        "mean_reciprocal_rank": float(np.mean(1 / rank)),
        "queries": count,
        "queries_without_match": count - len(table),
    }


def _ranks_by_parts(
    sides: tuple[tuple[Any, Any], tuple[Any, Any]],
    labels: Any,
    distance: Distance,
    ids: tuple[Any, Any],
    rows: int,
    reference_rows: int,
) -> tuple[Floats, int, tuple[int, int]]:
    """Computes the results of `_ranks` for a block of queries at a time."""
    (queries, attributes), (references, reference_attributes) = sides
    query_ids, reference_ids = ids
    one_set = references is None
    # Before the parts, so that an error names the set and the row that the caller gave.
    counted = counted_rows(labels, attributes, reference_attributes, rows, reference_rows)
    checked_points(queries, references, distance, *counted)
    if one_set:
        references, reference_attributes = queries, attributes
        # A query is left out of its own ranking by its index.
        query_ids = np.arange(rows) if query_ids is None else np.asarray(query_ids)
        reference_ids = query_ids
    tables, counts, ignored_queries, ignored = [], 0, 0, (0, 0)
    height = max(1, LISTED // reference_rows)
    for start in range(0, rows, height):
        part = slice(start, start + height)
        table, count, ignored = _ranks(
            (np.asarray(queries)[part], jax.tree.map(lambda one, part=part: one[part], attributes)),
            (references, reference_attributes),
            labels,
            distance,
            None if query_ids is None else np.asarray(query_ids)[part],
            reference_ids,
        )
        tables.append(table)
        counts += count
        ignored_queries += ignored[0]
    return np.concatenate(tables), counts, (ignored_queries, 0 if one_set else ignored[1])


def _ranks(
    query_side: tuple[Any, Any],
    reference_side: tuple[Any, Any],
    labels: Any,
    distance: Distance,
    query_ids: Any,
    reference_ids: Any,
) -> tuple[Floats, int, tuple[int, int]]:
    """Ranks the references for each query that has a match.

    Returns:
      Rank of the nearest match, R-precision and average precision at R, `[N, 3]`; the number of
      queries that count; and the numbers of queries and of references that do not.
    """
    (queries, query_classes), (references, reference_classes) = query_side, reference_side
    one_set = references is None
    rows = row_count("queries", queries)
    reference_rows = rows if references is None else row_count("references", references)
    ids = checked_identities(query_ids, reference_ids, rows, reference_rows, one_set)
    sides = query_classes, reference_classes
    counts, reference_counts, matches, left_out, names, itself = (
        _matches_by_class(*sides, rows, reference_rows, ids)
        if labels is None
        else _matches_by_label(labels, *sides, rows, reference_rows, ids)
    )
    ignored = int(np.sum(~counts)), 0 if one_set else int(np.sum(~reference_counts))
    matched = np.flatnonzero([len(own) > itself for own in matches])
    if not len(matched):
        return np.empty((0, 3)), len(matches), ignored
    query_points, reference_points = checked_points(
        queries, references, distance, counts, reference_counts
    )

    def figures(query: int, scores: Floats) -> tuple[float, ...]:
        own = matches[query]
        first = own[np.argmin(scores[own])]
        closer = np.count_nonzero(scores < scores[first])
        tied_before = np.count_nonzero(scores[:first] == scores[first])
        r = len(own) - itself
        nearest = smallest(scores, r)
        is_match = np.isin(nearest, own) if names is None else names[1][nearest] == names[0][query]
        hit_ranks = 1 + np.flatnonzero(is_match)
        precision_at_hits = np.arange(1, len(hit_ranks) + 1) / hit_ranks
        return (
            float(1 + closer + tied_before),
            len(hit_ranks) / r,
            float(np.sum(precision_at_hits)) / r,
        )

    points = Points(query_points, reference_points, left_out)
    table = np.empty((len(matched), 3))
    rest = np.ones(len(matched), bool)
    few = np.array([len(matches[query]) + len(left_out[query]) <= MOST for query in matched])
    if np.sum(few) * len(reference_points) >= SWEPT_FROM:
        selected = matched[few]
        swept_points = _on_devices(points, queries if references is None else references)
        own = [matches[query] for query in selected]
        swept = _candidates.match_figures(swept_points, selected, own, names)
        table[few] = np.stack([swept.rank, swept.r_precision, swept.average_precision], axis=1)
        rest[few] = swept.crowded
    if rest.any():
        table[rest] = _map_scores(figures, matched[rest], points)
    return table, len(matches), ignored


class _Matches(NamedTuple):
    """Which rows count, and for each query that does its matches among references that do."""

    counts: NDArray[np.bool_]
    reference_counts: NDArray[np.bool_]
    matches: list[Indices]
    left_out: list[Indices]
    """The references that are not ranked for a query."""
    names: tuple[Names, Names] | None
    """Classes, where equal ones are what makes a match."""
    itself: bool
    """True if a query is among its own matches."""


def _matches_by_class(
    query_classes: ArrayLike,
    reference_classes: ArrayLike | None,
    rows: int,
    reference_rows: int,
    ids: tuple[Names, Names] | None,
) -> _Matches:
    """Lists the references of the class of each query."""
    one_set = reference_classes is None
    class_of_query, counts = checked_classes("query_classes", query_classes, rows)
    class_of_reference, reference_counts = class_of_query, counts
    if reference_classes is not None:
        class_of_reference, reference_counts = checked_classes(
            "reference_classes", reference_classes, reference_rows
        )
    require_one_sort("classes", class_of_query, class_of_reference)
    names = class_of_query[counts], class_of_reference[reference_counts]
    matches = equal_names(*names)
    if ids is not None:
        ids = ids[0][counts], ids[1][reference_counts]
    left_out = _left_out(len(matches), one_set, ids)
    if ids is not None:
        matches = _without(matches, left_out)
    # Without identities, a query is among its own matches within one set.
    itself = one_set and ids is None
    return _Matches(counts, reference_counts, matches, left_out, names, itself)


def _matches_by_label(
    labels: Any,
    query_attributes: Any,
    reference_attributes: Any,
    rows: int,
    reference_rows: int,
    ids: tuple[Names, Names] | None,
) -> _Matches:
    """Lists the references that a function of two rows says are similar to each query."""
    counts, reference_counts, matches, left_out = labelled_matches(
        labels, query_attributes, reference_attributes, rows, reference_rows
    )
    if ids is not None:
        same = equal_names(ids[0][counts], ids[1][reference_counts])
        left_out = [np.union1d(*both) for both in zip(left_out, same, strict=True)]
        matches = _without(matches, left_out)
    return _Matches(counts, reference_counts, matches, left_out, None, False)


def _without(matches: list[Indices], left_out: list[Indices]) -> list[Indices]:
    return [
        np.setdiff1d(own, same, assume_unique=True)
        for own, same in zip(matches, left_out, strict=True)
    ]


def _left_out(queries: int, one_set: bool, ids: tuple[Names, Names] | None) -> list[Indices]:
    """Lists for each query the references that are not ranked for it."""
    if ids is not None:
        return equal_names(*ids)
    return list(np.arange(queries)[:, None] if one_set else np.empty((queries, 0), np.intp))


def _on_devices(points: Points, references: ArrayLike) -> Points:
    """Adds the devices on which references lie, or else the one on which JAX puts arrays."""
    array = references if isinstance(references, jax.Array) else jnp.zeros(())
    devices: tuple[jax.Device, ...] = tuple(
        sorted(array.sharding.device_set, key=lambda device: device.id)
    )
    return points._replace(devices=devices)


def _map_scores(visit: Callable[[int, Floats], T], selected: Indices, points: Points) -> list[T]:
    """Calls visit(query, scores) for the selected queries, in blocks, on threads.

    scores, [M], order the references: squared distances less the query's squared norm, and infinity
    for those that are left out for the query.
    """
    queries, references, left_out, _ = points
    rows_seen: dict[bytes, int] = {}
    original = np.array([rows_seen.setdefault(r.tobytes(), i) for i, r in enumerate(references)])
    copies = np.flatnonzero(original != np.arange(len(references)))
    right = np.hstack([references, np.sum(references**2, axis=1, keepdims=True)]).T

    def visit_each(block: Indices, scores: Floats) -> list[T]:
        return [visit(int(query), row) for query, row in zip(block, scores, strict=True)]

    def visit_block(block: Indices) -> list[T]:
        scores = np.hstack([-2 * queries[block], np.ones((len(block), 1))]) @ right
        # A matrix product may round equal columns differently.
        scores[:, copies] = scores[:, original[copies]]
        for row, query in zip(scores, block, strict=True):
            row[left_out[query]] = np.inf
        shares = np.array_split(block, THREADS), np.array_split(scores, THREADS)
        return [result for share in pool.map(visit_each, *shares) for result in share]

    rows = max(1, DISTANCES_HELD // len(references))
    blocks = [selected[start : start + rows] for start in range(0, len(selected), rows)]
    with ThreadPoolExecutor(THREADS) as pool:
        return [result for block in blocks for result in visit_block(block)]

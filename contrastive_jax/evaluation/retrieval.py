r"""Retrieval: is what lies nearest to a query of the query's class?

References are ranked by distance to the query, equal distances by reference index. Within one set
every query is ranked against all the others: left out by its index, so that duplicates of it count.

Distances are compared in float64, as $|r|^2 - 2 q \cdot r$ of embeddings centred on their median.
Identical references tie exactly. All distances are exact when the embeddings are integers, or
multiples of one power of two, and squared distances stay below $2^{53}$. Otherwise two references
whose squared distances differ by no more than rounding, about 1e-15 of the squared largest norm
after centring, may come in either order; this is finer than float32 embeddings are themselves.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]
Distance = Literal["euclidean", "cosine"]
T = TypeVar("T")

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
) -> Neighbours:
    """Finds the k references nearest to each query.

    Args:
      queries: embeddings, [Q, D].
      references: embeddings, [M, D]; None to search the queries themselves, each among the others.
      k: from 1 to M, or to Q - 1 within one set.
      distance: "euclidean", or "cosine", 1 - cosine similarity.

    Returns:
      Reference indices and distances, [Q, k]. The distances are computed from differences, so that
      small ones are accurate and the distance of duplicates is 0.

    Raises:
      ValueError: embeddings that are not [N, D], empty, not of one width, or not finite, rows of
        zeros under "cosine", an unknown distance, or k out of range.
    """
    one_set = references is None
    query_points, reference_points = _points(queries, references, distance)
    available = len(reference_points) - one_set
    if not 1 <= k <= available:
        raise ValueError(f"k must lie in [1, {available}], the number of references, got {k}.")

    def nearest(query: int, scores: Floats) -> tuple[Indices, Floats]:
        indices = _first(scores, k)
        squared = np.sum((reference_points[indices] - query_points[query]) ** 2, axis=1)
        order = np.lexsort((indices, squared))
        return indices[order], squared[order]

    every_query = np.arange(len(query_points))
    found = _map_scores(nearest, every_query, query_points, reference_points, one_set)
    indices, squared = (np.stack(column) for column in zip(*found, strict=True))
    return Neighbours(indices, squared / 2 if distance == "cosine" else np.sqrt(squared))


def retrieval(
    queries: ArrayLike,
    query_classes: ArrayLike,
    references: ArrayLike | None = None,
    reference_classes: ArrayLike | None = None,
    *,
    ks: Sequence[int] = (1, 5, 10),
    distance: Distance = "euclidean",
) -> dict[str, float]:
    r"""Measures how well distances rank the references of a query's own class, its matches, first.

    R is the number of matches of a query, and MAP@R the mean over queries of

    $$\frac{1}{R} \sum_{i = 1}^R r_i p_i$$

    with $r_i$ 1 if the $i$-th nearest reference is a match and 0 if not, and $p_i$ the precision at
    rank $i$, the fraction of matches among the $i$ nearest. Queries without any match, such as the
    only member of its class within one set, are left out of the averages and counted. Beside the
    embeddings (six float64 copies) it holds up to $2^{24}$ distances at a time, 128 MiB, or those
    of one query if more.

    Args:
      queries: embeddings, [Q, D].
      query_classes: integers, [Q].
      references: embeddings, [M, D]; None to rank the queries themselves, each among the others.
      reference_classes: integers, [M]; None exactly where `references` is.
      ks: the k of recall at k; where k reaches the number of references, that recall is 1.
      distance: "euclidean", or "cosine", 1 - cosine similarity.

    Returns:
      Averages over the queries with a match, in [0, 1], and two counts.

      - `recall_at_{k}`: whether one of the k nearest is a match;
      - `precision_at_1`: whether the nearest is a match;
      - `r_precision`: the fraction of matches among the R nearest;
      - `map_at_r`: the sum, over the matches among the R nearest, of the precision at their rank,
        over R;
      - `mean_reciprocal_rank`: 1 over the rank of the nearest match;
      - `queries`: Q; `queries_without_match`: how many of them were left out.

    Raises:
      ValueError: embeddings that are not [N, D], empty, not of one width, or not finite, rows of
        zeros under "cosine", classes that are not one integer a row, only one of `references` and
        `reference_classes`, an unknown distance, a k below 1, or no query with a match.

    References:
      Musgrave, Belongie and Lim (2020), "A Metric Learning Reality Check", ECCV (R-precision,
      MAP@R).
    """
    if (references is None) != (reference_classes is None):
        raise ValueError("references and reference_classes must be given together or not at all.")
    if any(k < 1 for k in ks):
        raise ValueError(f"ks must be at least 1, got {tuple(ks)}.")
    one_set = references is None
    query_points, reference_points = _points(queries, references, distance)
    class_of_query = _classes("query_classes", query_classes, len(query_points))
    class_of_reference = (
        class_of_query
        if reference_classes is None
        else _classes("reference_classes", reference_classes, len(reference_points))
    )
    matches = _matches(class_of_query, class_of_reference)
    matched = np.flatnonzero([len(own) > one_set for own in matches])
    if not len(matched):
        raise ValueError(
            f"none of the {len(matches)} queries has a reference of its class other than itself."
        )

    def figures(query: int, scores: Floats) -> tuple[float, ...]:
        own = matches[query]
        first = own[np.argmin(scores[own])]
        closer = np.count_nonzero(scores < scores[first])
        tied_before = np.count_nonzero(scores[:first] == scores[first])
        r = len(own) - one_set
        hit_ranks = 1 + np.flatnonzero(
            class_of_reference[_first(scores, r)] == class_of_query[query]
        )
        precision_at_hits = np.arange(1, len(hit_ranks) + 1) / hit_ranks
        return (
            float(1 + closer + tied_before),
            len(hit_ranks) / r,
            float(np.sum(precision_at_hits)) / r,
        )

    table = _map_scores(figures, matched, query_points, reference_points, one_set)
    rank, r_precision, average_precision_at_r = np.array(table).T
    return {
        **{f"recall_at_{k}": float(np.mean(rank <= k)) for k in ks},
        "precision_at_1": float(np.mean(rank == 1)),
        "r_precision": float(np.mean(r_precision)),
        "map_at_r": float(np.mean(average_precision_at_r)),
        "mean_reciprocal_rank": float(np.mean(1 / rank)),
        "queries": len(matches),
        "queries_without_match": len(matches) - len(matched),
    }


def _map_scores(
    visit: Callable[[int, Floats], T],
    selected: Indices,
    queries: Floats,
    references: Floats,
    one_set: bool,
) -> list[T]:
    """Calls visit(query, scores) for the selected queries, in blocks, on threads.

    scores, [M], order the references: squared distances less the query's squared norm, and infinity
    for the query itself within one set.
    """
    rows_seen: dict[bytes, int] = {}
    original = np.array([rows_seen.setdefault(r.tobytes(), i) for i, r in enumerate(references)])
    copies = np.flatnonzero(original != np.arange(len(references)))
    left = np.hstack([-2 * queries, np.ones((len(queries), 1))])
    right = np.hstack([references, np.sum(references**2, axis=1, keepdims=True)]).T

    def visit_each(block: Indices, scores: Floats) -> list[T]:
        return [visit(int(query), row) for query, row in zip(block, scores, strict=True)]

    def visit_block(block: Indices) -> list[T]:
        scores = left[block] @ right
        # A matrix product may round equal columns differently.
        scores[:, copies] = scores[:, original[copies]]
        if one_set:
            scores[np.arange(len(block)), block] = np.inf
        shares = np.array_split(block, THREADS), np.array_split(scores, THREADS)
        return [result for share in pool.map(visit_each, *shares) for result in share]

    rows = max(1, DISTANCES_HELD // len(references))
    blocks = [selected[start : start + rows] for start in range(0, len(selected), rows)]
    with ThreadPoolExecutor(THREADS) as pool:
        return [result for block in blocks for result in visit_block(block)]


def _first(scores: Floats, count: int) -> Indices:
    """The indices of the `count` smallest scores, ascending, equal ones by index."""
    last = np.partition(scores, count - 1)[count - 1]
    candidates = np.flatnonzero(scores <= last)
    return candidates[np.argsort(scores[candidates], kind="stable")[:count]]


def _matches(class_of_query: Indices, class_of_reference: Indices) -> list[Indices]:
    """The references of each query's class, ascending."""
    names, counts = np.unique(class_of_reference, return_counts=True)
    grouped = np.split(np.argsort(class_of_reference, kind="stable"), np.cumsum(counts)[:-1])
    members = dict(zip(names.tolist(), grouped, strict=True))
    return [members.get(name, np.empty(0, np.intp)) for name in class_of_query.tolist()]


def _points(
    queries: ArrayLike, references: ArrayLike | None, distance: Distance
) -> tuple[Floats, Floats]:
    """Checked embeddings, to be compared by Euclidean distance, with their median at the origin."""
    if distance not in ("euclidean", "cosine"):
        raise ValueError(f'distance must be "euclidean" or "cosine", got {distance!r}.')
    query_points = _embeddings("queries", queries, distance)
    if references is None:
        reference_points = query_points
    else:
        reference_points = _embeddings("references", references, distance)
    if query_points.shape[1] != reference_points.shape[1]:
        raise ValueError(
            "queries and references must be of one width, "
            f"got shapes {query_points.shape} and {reference_points.shape}."
        )
    # Of the centres that keep small distances accurate, this one keeps integers integers.
    middle = len(reference_points) // 2
    centre = np.partition(reference_points, middle, axis=0)[middle]
    # Adding 0 turns -0 into 0, as equal references are found by their bytes.
    return query_points - centre, reference_points - centre + 0.0


def _embeddings(name: str, values: ArrayLike, distance: Distance) -> Floats:
    embeddings = np.asarray(values, np.float64)
    if embeddings.ndim != 2 or not embeddings.size:
        raise ValueError(f"{name} must be [N, D] and not empty, got shape {embeddings.shape}.")
    _require_rows(np.all(np.isfinite(embeddings), axis=1), f"{name} must be finite")
    if distance == "euclidean":
        return embeddings
    _require_rows(np.any(embeddings, axis=1), f"{name} must not be zero, where cosine is undefined")
    normalised: Floats = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    return normalised


def _require_rows(valid: NDArray[np.bool_], requirement: str) -> None:
    wrong = np.flatnonzero(~valid)
    if len(wrong):
        raise ValueError(
            f"{requirement}: row {wrong[0]} is not ({len(wrong)} of {len(valid)} rows)."
        )


def _classes(name: str, values: ArrayLike, rows: int) -> Indices:
    classes = np.asarray(values)
    if classes.shape != (rows,) or not np.issubdtype(classes.dtype, np.integer):
        raise ValueError(
            f"{name} must be one integer for each of {rows} embeddings, "
            f"got {classes.dtype} of shape {classes.shape}."
        )
    return classes

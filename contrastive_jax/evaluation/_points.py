"""Checked embeddings and identities of retrieval, in float64 on the host."""

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from contrastive_jax._host_arrays import checked_names, split_mask

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]
Names = NDArray[Any]
Distance = Literal["euclidean", "cosine"]

# Sums of squares of entries beyond these overflow, or lose digits, in float64.
LEAST, MOST = 1e-140, 1e150


def equal_names(name_of_query: Names, name_of_reference: Names) -> list[Indices]:
    """The references of each query's class, or of its identity, ascending."""
    names, counts = np.unique(name_of_reference, return_counts=True)
    grouped = np.split(np.argsort(name_of_reference, kind="stable"), np.cumsum(counts)[:-1])
    members = dict(zip(names.tolist(), grouped, strict=len(names) > 0))
    return [members.get(name, np.empty(0, np.intp)) for name in name_of_query.tolist()]


def checked_identities(
    query_ids: ArrayLike | None,
    reference_ids: ArrayLike | None,
    queries: int,
    references: int,
    one_set: bool,
) -> tuple[Names, Names] | None:
    """Checked identities of queries and references, or None."""
    if query_ids is None and reference_ids is None:
        return None
    if query_ids is None or (reference_ids is None) != one_set:
        raise ValueError(
            "query_ids and reference_ids must be given together, or query_ids alone within one set."
        )
    query_names = _unmasked_names("query_ids", query_ids, queries)
    if one_set:
        return query_names, query_names
    reference_names = _unmasked_names("reference_ids", reference_ids, references)
    require_one_sort("ids", query_names, reference_names)
    return query_names, reference_names


def _unmasked_names(name: str, values: ArrayLike | None, rows: int) -> Names:
    names, unmasked = checked_names(name, values, rows)
    if not unmasked.all():
        raise ValueError(
            f"{name} must not be masked, as in row {np.argmin(unmasked)}; give each row without an "
            "identity one of its own."
        )
    return names


def require_one_sort(name: str, queries: Names, references: Names) -> None:
    """Refuses integers beside strings, of which none would be equal."""
    if (queries.dtype.kind in "iu") != (references.dtype.kind in "iu") or (
        queries.dtype.kind == "S"
    ) != (references.dtype.kind == "S"):
        raise ValueError(
            f"query_{name} and reference_{name} must both be integers or both strings, "
            f"got {queries.dtype} and {references.dtype}."
        )


def row_count(name: str, values: ArrayLike) -> int:
    """The number of embeddings, whose shape is checked."""
    shape = np.shape(values)
    if len(shape) != 2 or not math.prod(shape):
        raise ValueError(f"{name} must be [N, D] and not empty, got shape {shape}.")
    return int(shape[0])


def checked_points(
    queries: ArrayLike,
    references: ArrayLike | None,
    distance: Distance,
    counts: NDArray[np.bool_] | None = None,
    reference_counts: NDArray[np.bool_] | None = None,
) -> tuple[Floats, Floats]:
    """Checked embeddings that count, with their median at the origin.

    They are to be compared by Euclidean distance.
    """
    if distance not in ("euclidean", "cosine"):
        raise ValueError(f'distance must be "euclidean" or "cosine", got {distance!r}.')
    query_points = _embeddings("queries", queries, distance, counts)
    if references is None:
        reference_points = query_points
    else:
        reference_points = _embeddings("references", references, distance, reference_counts)
    if query_points.shape[1] != reference_points.shape[1]:
        raise ValueError(
            "queries and references must be of one width, "
            f"got shapes {query_points.shape} and {reference_points.shape}."
        )
    # Of the centres that keep small distances accurate, this one keeps integers integers.
    middle = len(reference_points) // 2
    centre = np.partition(reference_points, middle, axis=0)[middle]
    query_points = query_points - centre
    # Adding 0 turns -0 into 0, as equal references are found by their bytes.
    reference_points = reference_points - centre + 0.0
    spread = max(np.max(np.abs(points)) for points in (query_points, reference_points))
    if distance == "euclidean" and 0 < spread < LEAST:
        raise ValueError(
            f"embeddings must differ by at least {LEAST:g} in an entry, or the squares of their "
            f"distances vanish in float64, got at most {spread:.3g} from their median; multiply "
            "all by one number."
        )
    return query_points, reference_points


def _embeddings(
    name: str, values: ArrayLike, distance: Distance, counts: NDArray[np.bool_] | None
) -> Floats:
    given, unmasked = split_mask(values)
    rows = np.arange(len(given)) if counts is None else np.flatnonzero(counts)
    _require_rows(
        np.all(unmasked[rows], axis=1),
        rows,
        f"{name} must be free of masked entries (leave such rows out, or give them class -1)",
    )
    with np.errstate(over="ignore"):
        embeddings = np.asarray(given[rows], np.float64)
    _require_rows(np.all(np.isfinite(embeddings), axis=1), rows, f"{name} must be finite")
    size = np.max(np.abs(embeddings), axis=1)
    _require_rows(size <= MOST, rows, f"{name} must be at most {MOST:g} in size", size)
    if distance == "euclidean":
        return embeddings
    _require_rows(size > 0, rows, f"{name} must not be zero, where cosine is undefined")
    requirement = f"{name} must have an entry of at least {LEAST:g} in size for the cosine"
    _require_rows(size >= LEAST, rows, requirement, size)
    normalised: Floats = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    return normalised


def _require_rows(
    valid: NDArray[np.bool_], rows: Indices, requirement: str, values: Floats | None = None
) -> None:
    """Raises an error that names the first of the rows that is not valid, and its value."""
    wrong = np.flatnonzero(~valid)
    if len(wrong):
        value = "" if values is None else f", with {values[wrong[0]]:.3g},"
        raise ValueError(
            f"{requirement}: row {rows[wrong[0]]}{value} is not ({len(wrong)} of {len(valid)} "
            "rows)."
        )

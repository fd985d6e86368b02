"""Tables of given pairs: which label means similar, the images, and contradictions."""

from typing import Any, NamedTuple

import numpy as np

from contrastive_jax._graphs import components
from contrastive_jax.data._own.rows import Item, Table, is_missing
from contrastive_jax.data._own.tables import contents_of
from contrastive_jax.data.findings import Finding, finding

_SIMILAR = ("similar", "same")
_DISSIMILAR = ("dissimilar", "different")
_BOOLEANS = {"0": 0, "1": 1, "false": 0, "true": 1, "0.0": 0, "1.0": 1}


class PairRows(NamedTuple):
    """Given pairs of images that occur once each, before the images are decoded."""

    items: list[Item] | np.ndarray
    sources: list[str]
    left: np.ndarray
    right: np.ndarray
    labels: np.ndarray
    """0 similar, 1 dissimilar."""
    splits: list[Any] | None
    weights: np.ndarray | None
    indices: np.ndarray
    """The row of each pair in its table."""


def is_pair_table(table: Table) -> bool:
    """Tells whether a table has a column left or right."""
    return bool({"left", "right"} & {str(name).casefold() for name in table.columns})


def read_pairs(table: Table, similar_label: int | None) -> PairRows:
    """Takes the pairs in the columns of a table.

    Raises:
      ValueError: if a column is missing, a label is neither 0 nor 1, or nothing says which label
        means similar.
    """
    columns = {str(name).casefold(): name for name in table.columns}
    for side in ("left", "right"):
        if side not in columns:
            raise ValueError(
                f"{table.where} has no column {side}: its columns are "
                f"{', '.join(map(str, table.columns))}; a table of pairs has both left and right"
            )
    labels = _labels(table, columns, similar_label)
    sides = [_side(table, columns[side]) for side in ("left", "right")]
    items, sources, left, right = _shared(sides[0], sides[1], table.where)
    split = columns.get("split")
    weight = columns.get("weight")
    return PairRows(
        items,
        sources,
        left,
        right,
        labels,
        None if split is None else list(table.columns[split]),
        None if weight is None else _weights(table.columns[weight], table.where),
        np.arange(len(labels)),
    )


def _side(table: Table, column: str) -> tuple[list[Item] | np.ndarray, list[str]]:
    return contents_of(
        table, column, [f"{column} of row {k}" for k in range(len(table.columns[column]))]
    )


def _labels(table: Table, columns: dict[str, Any], similar_label: int | None) -> np.ndarray:
    named = [one for one in (*_SIMILAR, *_DISSIMILAR) if one in columns]
    if len(named) > 1:
        raise ValueError(
            f"{table.where} has two columns of labels, {' and '.join(named)}; keep one"
        )
    if named and similar_label is not None:
        raise ValueError(
            f"--similar_label has no effect on {table.where}, whose column {named[0]} says which "
            "pairs are similar; leave it out"
        )
    if named:
        values = _binary(table.columns[columns[named[0]]], named[0], table.where)
        return 1 - values if named[0] in _SIMILAR else values
    if "label" not in columns:
        raise ValueError(
            f"{table.where} has no labels of its pairs: its columns are "
            f"{', '.join(map(str, table.columns))}; name one similar (1 = similar), dissimilar "
            "(1 = dissimilar), or label with --similar_label"
        )
    if similar_label is None:
        raise ValueError(
            f"{table.where} has a column label, and both meanings of 1 are common: say which label "
            "means a positive pair with --similar_label 0 or --similar_label 1, or name the column "
            "similar or dissimilar"
        )
    values = _binary(table.columns[columns["label"]], "label", table.where)
    return 1 - values if similar_label == 1 else values


def _binary(values: Any, column: str, where: str) -> np.ndarray:
    labels = np.empty(len(values), np.int32)
    for row, value in enumerate(values):
        number = _BOOLEANS.get(str(value).strip().casefold())
        if number is None:
            got = "nothing" if is_missing(value) else repr(value)
            raise ValueError(
                f"row {row} of {where} has {got} as {column}, expected 0, 1, true or false"
            )
        labels[row] = number
    return labels


def _weights(values: Any, where: str) -> np.ndarray:
    weights = np.empty(len(values), np.float32)
    for row, value in enumerate(values):
        try:
            weights[row] = float(value)
        except (TypeError, ValueError):
            weights[row] = np.nan
        if not 0 <= weights[row] < np.inf:
            raise ValueError(
                f"row {row} of {where} has the weight {value!r}, expected a finite number of at "
                "least 0"
            )
    return weights


def _shared(left: Any, right: Any, where: str) -> tuple[Any, list[str], np.ndarray, np.ndarray]:
    """Lists each image of both sides once, in the order of its first row."""
    positions: dict[Any, int] = {}
    sides: list[list[int]] = [[], []]
    items: list[Any] = []
    sources: list[str] = []
    for row in range(len(left[0])):
        for k, (contents, names) in enumerate((left, right)):
            item = contents[row]
            key = item.tobytes() if isinstance(item, np.ndarray) else item
            if key not in positions:
                positions[key] = len(items)
                items.append(item)
                sources.append(names[row])
            sides[k].append(positions[key])
    arrays = [isinstance(contents, np.ndarray) for contents, _ in (left, right)]
    if arrays[0] != arrays[1] or (all(arrays) and left[0].shape != right[0].shape):
        raise ValueError(
            f"{where} has contents of other types or lengths in left than in right; both must be "
            "images, or vectors of one length"
        )
    joined = np.stack(items) if all(arrays) else items
    return joined, sources, np.array(sides[0], np.int32), np.array(sides[1], np.int32)


def without(rows: PairRows, dropped: np.ndarray) -> PairRows:
    """Returns the pairs whose entry in a mask is False."""
    chosen = np.flatnonzero(~dropped)
    return rows._replace(
        left=rows.left[chosen],
        right=rows.right[chosen],
        labels=rows.labels[chosen],
        splits=None if rows.splits is None else [rows.splits[k] for k in chosen],
        weights=None if rows.weights is None else rows.weights[chosen],
        indices=rows.indices[chosen],
    )


def contradictions(rows: PairRows) -> np.ndarray:
    """Masks pairs that occur with both labels, and negative pairs of an image and itself."""
    low, high = np.minimum(rows.left, rows.right), np.maximum(rows.left, rows.right)
    _, pair = np.unique(np.stack([low, high]), axis=1, return_inverse=True)
    pair = pair.ravel()
    has = [np.bincount(pair[rows.labels == k], minlength=pair.max() + 1) > 0 for k in (0, 1)]
    return np.asarray((has[0] & has[1])[pair] | ((low == high) & (rows.labels == 1)))


def pair_findings(rows: PairRows) -> list[Finding]:
    """Notes pairs that can not all be right together, are repeated, or say nothing."""
    similar = rows.labels == 0
    component = components(rows.left[similar], rows.right[similar], len(rows.sources))
    inferred = ~similar & (component[rows.left] == component[rows.right])
    low, high = np.minimum(rows.left, rows.right), np.maximum(rows.left, rows.right)
    _, first = np.unique(np.stack([low, high]), axis=1, return_index=True)
    repeated = np.ones(len(low), bool)
    repeated[first] = False
    return [
        *finding(
            "negative pairs of images that positive pairs connect (A like B, B like C, A unlike C)",
            named(rows, inferred),
        ),
        *finding("pairs that occur again", named(rows, repeated), warns=False),
        *finding("pairs of an image and itself", named(rows, low == high)),
    ]


def named(rows: PairRows, mask: np.ndarray) -> list[str]:
    """Names the pairs of a mask by their images."""
    return [_images_of(rows, k) for k in np.flatnonzero(mask).tolist()]


def named_with_labels(rows: PairRows, mask: np.ndarray) -> list[str]:
    """Names the pairs of a mask by their images, rows and labels, those of two images together."""
    chosen = np.flatnonzero(mask)
    low = np.minimum(rows.left, rows.right)[chosen]
    high = np.maximum(rows.left, rows.right)[chosen]
    meaning = ("similar", "dissimilar")
    return [
        f"{_images_of(rows, k)} (row {rows.indices[k]}, {meaning[rows.labels[k]]})"
        for k in chosen[np.lexsort((chosen, high, low))].tolist()
    ]


def _images_of(rows: PairRows, pair: int) -> str:
    return f"{rows.sources[rows.left[pair]]} and {rows.sources[rows.right[pair]]}"

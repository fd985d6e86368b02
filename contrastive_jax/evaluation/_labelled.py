"""The matches of queries by a function of two rows, computed in blocks on the default device."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from contrastive_jax._engine.pair_labels import checked_attributes
from contrastive_jax.evaluation._points import Indices
from contrastive_jax.labels.types import as_pair_labels

LABELS_HELD = 2**24
"""Labels that are held at a time."""


class LabelledMatches(NamedTuple):
    """Which rows count, and for each query that does its matches among references that do."""

    counts: NDArray[np.bool_]
    reference_counts: NDArray[np.bool_]
    matches: list[Indices]
    """References with label 0, ascending."""
    ignored: list[Indices]
    """References with label -1, ascending; the query itself within one set."""


def labelled_matches(
    labels: Any, query_attributes: Any, reference_attributes: Any, rows: int, reference_rows: int
) -> LabelledMatches:
    """Labels all pairs of a query and a reference.

    Args:
      labels: function of the attributes of two rows, or a `PairLabels`.
      query_attributes: tree of arrays, [Q, ...].
      reference_attributes: tree of arrays, [M, ...]; None to label the queries among each other.
      rows: Q.
      reference_rows: M.

    Returns:
      The matches.

    Raises:
      AssertionError: if attributes do not fit.
      ValueError: if a label is none of 0, 1 and -1.
    """
    rule, one_set = as_pair_labels(labels), reference_attributes is None
    sides = [checked_attributes("query_", query_attributes, rule, (rows,))]
    if not one_set:
        shape = (reference_rows,)
        sides.append(checked_attributes("reference_", reference_attributes, rule, shape))
    counts = [np.asarray(classes) >= 0 for _, classes in sides]
    counted = [
        jax.tree.map(lambda leaf, rows=rows: leaf[rows], side)
        for side, rows in zip(sides, counts, strict=True)
    ]
    queries, references = counted[0], counted[-1]

    def one(a: Any, b: Any) -> jax.Array:
        label = jnp.asarray(rule.function(a[0], b[0]))
        if label.shape or not jnp.issubdtype(label.dtype, jnp.signedinteger):
            raise ValueError(
                "labels must return the integer 0 (a match), 1 or -1 (left out) for two rows, got "
                f"{label.dtype} of shape {label.shape}"
            )
        return jnp.where(a[1] == b[1], jnp.clip(label, -2, 2), 1).astype(jnp.int8)

    label_all = jax.jit(jax.vmap(jax.vmap(one, (None, 0)), (0, None)))
    matches: list[Indices] = []
    ignored: list[Indices] = []
    number = len(queries[1])
    height = max(1, min(number, LABELS_HELD // max(1, len(references[1]))))
    for start in range(0, number, height):
        # The last block has as many rows as the others, so that one program serves all.
        index = np.minimum(np.arange(start, start + height), number - 1)
        block = jax.tree.map(lambda leaf, index=index: leaf[index], queries)
        table = np.array(label_all(block, references))[: number - start]
        wrong = np.abs(table) == 2
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            query = np.flatnonzero(counts[0])[start + row]
            reference = np.flatnonzero(counts[-1])[column]
            raise ValueError(
                "labels must be 0 (a match), 1 or -1 (left out), got another number for query "
                f"{query} and reference {reference}"
            )
        if one_set:
            table[np.arange(len(table)), start + np.arange(len(table))] = -1
        matches += [np.flatnonzero(row == 0) for row in table]
        ignored += [np.flatnonzero(row == -1) for row in table]
    return LabelledMatches(counts[0], counts[-1], matches, ignored)

"""The matches of queries by a function of two rows, computed in blocks on the default device."""

import math
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from contrastive_jax._engine.pair_labels import checked_attributes
from contrastive_jax.evaluation._points import Indices
from contrastive_jax.labels.types import as_pair_labels, branches_explained

LABELS_HELD = 2**24
"""Labels that are held at a time."""
_MOST_CHECKED = 2**28


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
    counts, blocks = _label_blocks(
        labels, query_attributes, reference_attributes, rows, reference_rows
    )
    matches: list[Indices] = []
    ignored: list[Indices] = []
    for _, table in blocks:
        matches += [np.flatnonzero(row == 0) for row in table]
        ignored += [np.flatnonzero(row == -1) for row in table]
    return LabelledMatches(counts[0], counts[-1], matches, ignored)


def counted_rows(
    labels: Any, query_attributes: Any, reference_attributes: Any, rows: int, reference_rows: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Returns which queries and which references count, without labelling a pair.

    Arguments and errors are those of `labelled_matches`.
    """
    counts, _ = _label_blocks(labels, query_attributes, reference_attributes, rows, reference_rows)
    return counts[0], counts[-1]


def _label_blocks(
    labels: Any,
    query_attributes: Any,
    reference_attributes: Any,
    rows: int,
    reference_rows: int,
    selected: Indices | None = None,
) -> tuple[list[NDArray[np.bool_]], Iterator[tuple[Indices, NDArray[np.int8]]]]:
    """Labels pairs of a query and a reference, some queries at a time.

    Args:
      labels: as in `labelled_matches`, and so the next four.
      query_attributes: tree of arrays, [Q, ...].
      reference_attributes: tree of arrays, [M, ...], or None.
      rows: Q.
      reference_rows: M.
      selected: queries to label, among those that count; all of them by default.

    Returns:
      For each side the mask of the rows that count, and an iterator over queries among those that
      count and their labels by the references that do.
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
    chosen = np.arange(len(queries[1])) if selected is None else selected
    number = len(chosen)
    # Attributes of several entries, such as words of bits, are compared entry by entry.
    width = max([1, *(math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(references))])
    height = max(1, min(number, LABELS_HELD // max(1, width * len(references[1]))))

    def blocks() -> Iterator[tuple[Indices, NDArray[np.int8]]]:
        for start in range(0, number, height):
            # The last block has as many rows as the others, so that one program serves all.
            index = chosen[np.minimum(np.arange(start, start + height), number - 1)]
            block = jax.tree.map(lambda leaf, index=index: leaf[index], queries)
            with branches_explained():
                table = np.array(label_all(block, references))[: number - start]
            index = index[: len(table)]
            wrong = np.abs(table) == 2
            if wrong.any():
                row, column = np.argwhere(wrong)[0]
                query = np.flatnonzero(counts[0])[index[row]]
                reference = np.flatnonzero(counts[-1])[column]
                raise ValueError(
                    "labels must be 0 (a match), 1 or -1 (left out), got another number for query "
                    f"{query} and reference {reference}"
                )
            if one_set:
                table[np.arange(len(table)), index] = -1
            yield index, table

    return counts, blocks()


def check_both_labels(labels: Any, attributes: Any, rows: int) -> None:
    """Checks that labels leave a positive and a negative pair, and labels few pairs for it.

    Rows in random order are compared with all others until both are there. Sets of 4,096 rows are
    labelled at once; of larger ones the first 2^24 pairs do as a rule, and 2^28 are the most.

    Args:
      labels: function of the attributes of two rows, or a `PairLabels`.
      attributes: tree of arrays, [N, ...].
      rows: N.

    At most about 2^28 pairs are labelled. If there is none of a label among them, it warns.

    Raises:
      ValueError: if all pairs are labelled and there is no positive or no negative one, or a label
        is none of 0, 1 and -1.
    """
    (counts,), _ = _label_blocks(labels, attributes, None, rows, rows)
    order = np.random.default_rng(0).permutation(counts.sum())
    labelled, lacking = 0, {0: "positive", 1: "negative"}
    for index, table in _label_blocks(labels, attributes, None, rows, rows, order)[1]:
        labelled += len(index)
        lacking = {label: name for label, name in lacking.items() if not (table == label).any()}
        if not lacking or labelled * len(order) > _MOST_CHECKED:
            break
    name = next(iter(lacking.values()), None)
    if name and labelled < len(order):
        warnings.warn(
            f"labels leave no {name} pair between {labelled} rows and all {len(order)}: check that "
            "they are the labels that were meant",
            stacklevel=2,
        )
    elif name:
        raise ValueError(f"labels leave no {name} pair among {len(order)} rows that count")


def check_matches(labels: Any, attributes: Any, queries: NDArray[np.bool_]) -> None:
    """Checks that a query has a match in the gallery.

    Args:
      labels: function of the attributes of two rows, or a `PairLabels`.
      attributes: tree of arrays, [N, ...].
      queries: mask of the rows that are queries, [N]; the others are the gallery.

    Raises:
      ValueError: if none has.
    """
    first, second = (
        jax.tree.map(lambda leaf, at=at: leaf[at], attributes) for at in (queries, ~queries)
    )
    blocks = _label_blocks(labels, first, second, int(queries.sum()), int((~queries).sum()))[1]
    if not any((table == 0).any() for _, table in blocks):
        raise ValueError("labels leave no query a match in the gallery")


def negative_pairs(labels: Any, attributes: Any, rows: int) -> int:
    """Counts the pairs of two rows of a set with label 1.

    Args:
      labels: function of the attributes of two rows, or a `PairLabels`.
      attributes: tree of arrays, [N, ...].
      rows: N.

    Returns:
      The number of pairs.
    """
    blocks = _label_blocks(labels, attributes, None, rows, rows)[1]
    return sum(int((table == 1).sum()) for _, table in blocks) // 2


def drawn_pairs(
    labels: Any, attributes: Any, rows: int, pairs: int, seed: int
) -> tuple[Indices, Indices, NDArray[np.int32]]:
    """Draws pairs of two rows of a set, positive and negative ones in turn.

    The first row of a positive pair is drawn uniformly from the rows that have a positive, and the
    second from its positives; negative pairs are drawn likewise.

    Args:
      labels: function of the attributes of two rows, or a `PairLabels`.
      attributes: tree of arrays, [N, ...].
      rows: N.
      pairs: number of pairs, P.
      seed: of the pairs.

    Returns:
      Indices of the first and of the second rows, and labels (0 similar, 1 dissimilar), [P] each.

    Raises:
      ValueError: if there is no positive or no negative pair.
    """
    (counts,), blocks = _label_blocks(labels, attributes, None, rows, rows)
    # The numbers of rows with each label; which these are is found again for the rows drawn.
    sizes, others = np.zeros((2, counts.sum()), np.intp)
    for index_of_row, table in blocks:
        sizes[index_of_row] = np.sum(table == 0, axis=1)
        others[index_of_row] = np.sum(table == 1, axis=1)
    given = 1 - np.arange(pairs, dtype=np.int32) % 2
    for name, available in (("positive", sizes), ("negative", others)):
        if not (available > 0).any():
            raise ValueError(f"labels leave no {name} pair among {counts.sum()} rows that count")
    rng = np.random.default_rng(seed)
    first, second, rank = (np.zeros(pairs, np.intp) for _ in range(3))
    candidates = [np.flatnonzero(available) for available in (sizes, others)]
    for index, label in enumerate(given.tolist()):
        available = others if label else sizes
        row = candidates[label][rng.integers(len(candidates[label]))]
        first[index], rank[index] = row, rng.integers(available[row])
    order = np.argsort(first, kind="stable")
    firsts, starts = np.unique(first[order], return_index=True)
    drawn = dict(zip(firsts.tolist(), np.split(order, starts[1:]), strict=True))
    for rows_of_block, table in _label_blocks(labels, attributes, None, rows, rows, firsts)[1]:
        for row, by_reference in zip(rows_of_block.tolist(), table, strict=True):
            partners = [np.flatnonzero(by_reference == label) for label in (0, 1)]
            for index in drawn[row]:
                second[index] = partners[given[index]][rank[index]]
    members = np.flatnonzero(counts)
    return members[first], members[second], given

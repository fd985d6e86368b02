"""Given pairs: decoded, split and reported."""

from collections import defaultdict
from pathlib import Path

import numpy as np

from contrastive_jax.data._own import pair_tables, splits
from contrastive_jax.data._own.contents import Contents, digests_of, read_contents
from contrastive_jax.data._own.examples import Choices
from contrastive_jax.data._own.pair_splits import split_pairs
from contrastive_jax.data._own.pair_tables import PairRows, named, without
from contrastive_jax.data._own.rows import Table
from contrastive_jax.data.datasets import GivenPairs, PairDataset
from contrastive_jax.data.findings import Finding, Report, count_splits, finding


def pair_dataset(
    table: Table, similar_label: int | None, choices: Choices
) -> tuple[PairDataset, Report]:
    """Makes a data set of the pairs of a table, and the report of it.

    Raises:
      ValueError: if files are missing, pairs contradict each other, or a split lacks a label.
    """
    rows = pair_tables.read_pairs(table, similar_label)
    if splits.is_train_alone(rows.splits):
        rows = rows._replace(splits=None)
    if choices.split_by and rows.splits is not None:
        raise ValueError(
            f"--split {choices.split_by} has no effect on {table.where}, which has a column split: "
            "leave --split out, or the column"
        )
    skip = choices.on_bad_input == "skip"
    findings = [*table.findings]
    for text, remedy, wrong, names in (
        ("name a file that does not exist", "mend their paths", _missing, named),
        (
            "contradict each other",
            "decide on one label",
            pair_tables.contradictions,
            pair_tables.named_with_labels,
        ),
    ):
        mask = wrong(rows)
        named_pairs = names(rows, mask)
        rows, more = _checked(rows, mask, named_pairs, text, remedy, table.where, skip=skip)
        findings += more
    used = np.union1d(rows.left, rows.right)
    items = (
        rows.items[used] if isinstance(rows.items, np.ndarray) else [rows.items[k] for k in used]
    )
    contents = read_contents(
        items,
        [rows.sources[k] for k in used],
        where=table.where,
        image_size=choices.image_size,
        on_bad_input=choices.on_bad_input,
    )
    unread = np.ones(len(rows.sources), bool)
    unread[used[contents.rows]] = False
    lost = unread[rows.left] | unread[rows.right]
    findings += [
        *contents.findings,
        *finding("pairs that lose an image, which are left out", named(rows, lost)),
    ]
    rows = without(rows, lost)
    if splits.is_train_alone(rows.splits):
        rows = rows._replace(splits=None)
        text = "validation and test that have no pairs left and are made anew"
        findings += finding(text, [table.where])
    parts, rule = split_pairs(
        rows, choices.split_by, choices.validation_fraction, choices.seed, table.where
    )
    findings += [*pair_tables.pair_findings(rows), *_identical(rows, contents, used)]
    findings += _shared_images(rows, parts)
    findings += _identical_in_two_splits(rows, contents, used, parts)
    position = np.zeros(len(rows.sources), np.int32)
    position[used[contents.rows]] = np.arange(len(contents.rows))

    def part(split: str) -> GivenPairs:
        chosen = parts[split]
        return GivenPairs(
            position[rows.left[chosen]],
            position[rows.right[chosen]],
            rows.labels[chosen],
            None if rows.weights is None else rows.weights[chosen],
        )

    sources = np.array([rows.sources[k] for k in used[contents.rows]])
    data = PairDataset(
        table.name, contents.array, part("train"), part("validation"), part("test"), sources
    )
    text = f"{len(rows.labels):,} pairs of {len(contents.rows):,} {contents.text}"
    form = f"{table.form} of pairs"
    return data, Report(table.name, form, text, rule, count_splits(data), tuple(findings))


def _checked(
    rows: PairRows,
    mask: np.ndarray,
    names: list[str],
    text: str,
    remedy: str,
    where: str,
    *,
    skip: bool,
) -> tuple[PairRows, list[Finding]]:
    """Leaves out the pairs of a mask, or raises for them by their names.

    Raises:
      ValueError: if there are such pairs and they are not to be skipped, or no pair is left.
    """
    if not mask.any():
        return rows, []
    if skip and not mask.all():
        return without(rows, mask), finding(f"pairs that {text}, which are left out", names)
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    other = "" if mask.all() else ", or leave them out with --on_bad_input skip"
    raise ValueError(
        f"{len(names):,} of {len(mask):,} pairs {text} in {where}: {shown}; {remedy}{other}"
    )


def _missing(rows: PairRows) -> np.ndarray:
    absent = np.array([isinstance(item, Path) and not item.exists() for item in rows.items], bool)
    return np.asarray(absent[rows.left] | absent[rows.right])


def _identical(rows: PairRows, contents: Contents, used: np.ndarray) -> list[Finding]:
    """Notes negative pairs of files with the same contents."""
    digests = np.zeros(len(rows.sources), "S32")
    digests[used[contents.rows]] = [digest.hex().encode() for digest in contents.digests]
    same = (digests[rows.left] == digests[rows.right]) & (rows.left != rows.right)
    text = "negative pairs of two files with identical contents"
    return finding(text, named(rows, same & (rows.labels == 1)))


def _identical_in_two_splits(
    rows: PairRows, contents: Contents, used: np.ndarray, parts: dict[str, np.ndarray]
) -> list[Finding]:
    """Names images with the same pixels, or vectors with the same entries, in pairs of two splits.

    An image that itself is in pairs of two splits is not among them.
    """
    split_of: dict[int, str] = {}
    for name, chosen in parts.items():
        for row in np.union1d(rows.left[chosen], rows.right[chosen]).tolist():
            split_of.setdefault(row, name)
    copies: dict[bytes, list[int]] = defaultdict(list)
    for row, digest in zip(used[contents.rows].tolist(), digests_of(contents.array), strict=True):
        if row in split_of:
            copies[digest].append(row)
    shared = []
    for first, *others in copies.values():
        other = next((k for k in others if split_of[k] != split_of[first]), None)
        if other is not None:
            two = [f"{rows.sources[k]} ({split_of[k]})" for k in (first, other)]
            shared.append(" and ".join(two))
    return finding("contents that are identical in pairs of two splits", shared)


def _shared_images(rows: PairRows, parts: dict[str, np.ndarray]) -> list[Finding]:
    images = [np.union1d(rows.left[chosen], rows.right[chosen]) for chosen in parts.values()]
    values, count = np.unique(np.concatenate(images), return_counts=True)
    shared = [rows.sources[k] for k in values[count > 1]]
    # Splits that were made say so in their rule.
    return finding("images in pairs of two splits", shared, warns=rows.splits is not None)

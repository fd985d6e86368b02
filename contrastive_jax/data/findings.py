"""The report about data of one's own, made before it is trained on."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from contrastive_jax.data.datasets import Dataset, Examples, GivenPairs, PairDataset

SPLITS = ("train", "validation", "test")
_SHOWN = 3


class Finding(NamedTuple):
    """One thing to know about the data, how often it occurs, and where first."""

    text: str
    """A phrase that names it, such as `classes of one example`."""
    number: int
    """The number of its occurrences."""
    first: tuple[str, ...] = ()
    """The first files, rows, classes or groups."""
    warns: bool = True
    """True for what may spoil a training, and False for what is merely said."""


class SplitCounts(NamedTuple):
    """The size of one split."""

    split: str
    examples: int
    """Examples, or the different images of given pairs."""
    classes: int
    """Classes that have an example; 0 for given pairs."""
    fewest: int
    """Examples of the smallest class; 0 for given pairs."""
    median: float
    """Median of the examples of a class; 0 for given pairs."""
    positives: int
    """Positive pairs: those that are given, or all that the classes allow."""
    negatives: int
    """Negative pairs."""


class Report(NamedTuple):
    """A summary of data of one's own, and of what is wrong with it."""

    name: str
    form: str
    """The form that was recognised, such as `a folder of class folders of images`."""
    contents: str
    """Size and channels of the images, or the width of the vectors."""
    split_rule: str
    """The rule by which the splits were made."""
    splits: tuple[SplitCounts, ...]
    findings: tuple[Finding, ...]


def finding(
    text: str, where: Sequence[str], *, number: int | None = None, warns: bool = True
) -> list[Finding]:
    """Returns a list of one finding, or of none if it occurs nowhere.

    Args:
      text: a phrase that names it.
      where: all files, rows, classes or groups; the first three are stored.
      number: of occurrences; by default the length of `where`.
      warns: whether it may spoil a training.

    Example:
      >>> from contrastive_jax.data.findings import finding
      >>> finding("classes of one example", [])
      []
      >>> finding("classes of one example", ["cat", "dog"])[0].number
      2
    """
    number = len(where) if number is None else number
    return [Finding(text, number, tuple(where[:_SHOWN]), warns)] if number else []


def message(one: Finding) -> str:
    """Writes a finding as one line.

    Example:
      >>> from contrastive_jax.data.findings import Finding, message
      >>> message(Finding("classes of one example", 4, ("cat", "dog", "emu")))
      'classes of one example: 4 (cat, dog, emu, ...)'
    """
    more = ", ..." if one.number > len(one.first) else ""
    return f"{one.text}: {one.number:,}" + (f" ({', '.join(one.first)}{more})" if one.first else "")


def count_splits(data: Dataset | PairDataset) -> tuple[SplitCounts, ...]:
    """Counts examples, classes and pairs of the three splits.

    Example:
      >>> from contrastive_jax.data import load
      >>> from contrastive_jax.data.findings import count_splits
      >>> test = count_splits(load("digits"))[2]
      >>> test.split, test.examples, test.classes, test.positives + test.negatives == 450 * 449 // 2
      ('test', 450, 10, True)
    """
    return tuple(_counts(split, getattr(data, split)) for split in SPLITS)


def _counts(split: str, part: Examples | GivenPairs) -> SplitCounts:
    if isinstance(part, GivenPairs):
        images = len(np.union1d(part.left, part.right))
        positives = int((part.labels == 0).sum())
        return SplitCounts(split, images, 0, 0, 0.0, positives, len(part.labels) - positives)
    sizes = np.unique(part.classes, return_counts=True)[1]
    number = len(part.classes)
    positives = int((sizes * (sizes - 1) // 2).sum())
    return SplitCounts(
        split,
        number,
        len(sizes),
        int(sizes.min(initial=number)),
        float(np.median(sizes)) if number else 0.0,
        positives,
        number * (number - 1) // 2 - positives,
    )


def as_text(report: Report) -> str:
    """Writes a report as a table of the splits, between what was recognised and what was noted.

    Example:
      >>> import numpy as np
      >>> from contrastive_jax.data import from_arrays, load_with_report
      >>> from contrastive_jax.data.findings import Report, as_text, count_splits
      >>> classes = np.repeat(["cat", "dog"], 20)
      >>> data = from_arrays(np.random.default_rng(0).normal(size=(40, 8)), classes)
      >>> print(as_text(Report("pets", "arrays", "vectors of 8 entries", "given",
      ...                      count_splits(data), ())))
      pets: arrays, 40 vectors of 8 entries
                  examples  classes  fewest  median  positive pairs  negative pairs
      train             28        2      14      14             182             196
      validation         4        2       2       2               2               4
      test               8        2       4       4              12              16
      splits: given
    """
    total = sum(one.examples for one in report.splits)
    classes = any(one.classes for one in report.splits)
    counts = f"{total:,} {report.contents}" if classes else report.contents
    title = [
        "",
        "examples" if classes else "images",
        *(("classes", "fewest", "median") if classes else ()),
        "positive pairs",
        "negative pairs",
    ]
    rows = [title]
    for one in report.splits:
        sizes = [f"{one.classes:,}", f"{one.fewest:,}", f"{one.median:g}"] if classes else []
        rows.append(
            [one.split, f"{one.examples:,}", *sizes, f"{one.positives:,}", f"{one.negatives:,}"]
        )
    widths = [max(len(row[k]) for row in rows) for k in range(len(title))]
    lines = [f"{report.name}: {report.form}, {counts}"]
    for first, *others in rows:
        cells = [text.rjust(width) for text, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    lines.append(f"splits: {report.split_rule}")
    lines += [f"{'warning' if one.warns else 'note'}: {message(one)}" for one in report.findings]
    return "\n".join(lines)

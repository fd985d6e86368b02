"""Splits of data of one's own: those that are given, and those that are made."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from contrastive_jax._graphs import components
from contrastive_jax.data._own.rows import is_missing, split_name
from contrastive_jax.data.findings import SPLITS

# Below ten examples of a class a tenth of them is less than one.
_SMALL_CLASS = 10
_MANY_CLASSES = 20
Parts = dict[str, np.ndarray]


def given_splits(values: Sequence[Any], where: str) -> Parts:
    """Returns the rows of each split that a column names.

    Raises:
      ValueError: if a row has no split or one of another name, or no row is of train.
    """
    names = np.array([split_name(value) or "" for value in values])
    unknown = {
        "nothing" if is_missing(value) else str(value)
        for value, name in zip(values, names, strict=True)
        if not name
    }
    if unknown:
        raise ValueError(
            f"{where} has rows with {', '.join(sorted(unknown)[:5])} as split, expected train, "
            "validation or test in every row"
        )
    parts = {split: np.flatnonzero(names == split) for split in SPLITS}
    if not len(parts["train"]):
        raise ValueError(
            f"{where} has no train split, and only {', '.join(sorted({*names}))}; name the split "
            "to train on train, or leave the splits out to have them made"
        )
    return {split: rows for split, rows in parts.items() if len(rows)}


def is_train_alone(values: Sequence[Any] | None) -> bool:
    """Tells whether splits are given and every row is of train: nothing is left to evaluate on."""
    return values is not None and all(split_name(value) == "train" for value in values)


def complete_splits(
    parts: Parts, classes: np.ndarray, groups: np.ndarray | None, fraction: float, seed: int
) -> tuple[Parts, str]:
    """Fills in the validation and the test split that given splits lack.

    As for a data set by name, validation is the test set where there is no other, and a part of
    train is validation then.
    """
    rule = f"as given ({', '.join(parts)})"
    if len(parts) == 3:
        return parts, rule
    test = parts.get("test", parts.get("validation"))
    assert test is not None
    train = parts["train"]
    train_classes, own = classes[train], None if groups is None else groups[train]
    unseen = not np.intersect1d(train_classes, classes[test]).size
    by = "classes" if unseen else "examples"
    split = (_by_classes if unseen else _by_examples)(train_classes, own, (fraction,), seed)
    if split is None:
        raise ValueError(
            f"train has too few {by} to hold out validation: name a validation split, or add {by}"
        )
    if "test" not in parts:
        rule += ", with validation as test"
    rule += f", and {fraction:.0%} of train held out by {by} as validation"
    return {"train": train[split == 0], "validation": train[split == 1], "test": test}, rule


def make_splits(
    classes: np.ndarray,
    groups: np.ndarray | None,
    split_by: str | None,
    fraction: float,
    seed: int,
) -> tuple[Parts, str]:
    """Makes three splits by classes or by examples; groups are never divided.

    By default they are made by classes where there are at least 20 classes with two examples and
    half of those have fewer than ten, and otherwise by examples, unless one of both can not be.

    Raises:
      ValueError: if there are too few classes, examples or groups.
    """
    sizes = np.unique(classes, return_counts=True)[1]
    pairable = sizes[sizes > 1]
    many = len(pairable) >= _MANY_CLASSES and np.median(pairable) < _SMALL_CLASS
    order = ("classes", "examples") if many else ("examples", "classes")
    for by in order if split_by is None else (split_by,):
        make = _by_classes if by == "classes" else _by_examples
        split = make(classes, groups, (2 * fraction, fraction), seed)
        if split is not None:
            parts = {"train": 0, "validation": 2, "test": 1}
            return {one: np.flatnonzero(split == k) for one, k in parts.items()}, _rule(
                by, fraction, groups is not None, chosen=split_by is None
            )
    raise ValueError(_too_few(split_by, sizes, groups))


def _rule(by: str, fraction: float, grouped: bool, *, chosen: bool) -> str:
    text = (
        f"{fraction:.0%} of the classes for validation and {2 * fraction:.0%} for test, never seen "
        "in training"
        if by == "classes"
        else f"{fraction:.0%} of every class for validation and {2 * fraction:.0%} for test"
    )
    text += ", without dividing a group" if grouped else ""
    return f"{text} (--split {by}{', chosen by the sizes of classes' if chosen else ''})"


def _too_few(split_by: str | None, sizes: np.ndarray, groups: np.ndarray | None) -> str:
    needs = {
        "classes": "by classes, train, validation and test need two classes with two examples each",
        "examples": "by examples, validation and test need two classes with four examples each",
    }
    shared = ", and groups that are never divided" if groups is not None else ""
    return (
        f"no validation and test can be split off from {_counted(sizes)}{shared}: "
        + "; ".join(text for by, text in needs.items() if split_by in (None, by))
        + "; add examples, or give splits"
        + (" by examples (--split examples)" if split_by == "classes" else "")
    )


def _counted(sizes: np.ndarray) -> str:
    """Writes how many classes there are, and how many examples they have."""
    number = "1 class" if len(sizes) == 1 else f"{len(sizes)} classes"
    least, most = sizes.min(), sizes.max()
    plural = "s" if most > 1 else ""
    return f"{number} of {least if least == most else f'{least} to {most}'} example{plural}"


def _by_classes(
    classes: np.ndarray, groups: np.ndarray | None, shares: tuple[float, ...], seed: int
) -> np.ndarray | None:
    """Numbers the split of each row, 0 for train; None where there are too few classes.

    Classes that share a group stay together, and those with one example are trained on.
    """
    names, dense, sizes = np.unique(classes, return_inverse=True, return_counts=True)
    component = np.arange(len(names))
    if groups is not None:
        component = components(dense, groups + len(names), len(names) + groups.max() + 1)
        component = component[: len(names)]
    # The number of classes of each component that have a pair.
    weights = np.bincount(component[sizes > 1], minlength=component.max() + 1)
    split_of, enough = hold_out_parts(weights, shares, seed)
    if not enough or weights[split_of == 0].sum() < 2:
        return None
    return split_of[component][dense]


def hold_out_parts(
    weights: np.ndarray, shares: tuple[float, ...], seed: int
) -> tuple[np.ndarray, bool]:
    """Takes parts at random until each split has its share, and at least 2, of all weights.

    No part that holds more than half of everything is taken.

    Args:
      weights: of the parts, integers of at least 0, `[P]`; those of 0 stay in train.
      shares: of the splits that are held out.
      seed: of the choice.

    Returns:
      The split of each part, `[P]`, 0 for train and then as `shares`; and False where parts were
      too few to give every split its share.
    """
    movable = np.flatnonzero((weights > 0) & (weights <= weights.sum() / 2))
    order = iter(np.random.default_rng(seed).permutation(movable).tolist())
    split_of = np.zeros(len(weights), np.int64)
    for k, share in enumerate(shares, start=1):
        taken, wanted = 0, max(2, round(share * weights.sum()))
        while taken < wanted:
            part = next(order, None)
            if part is None:
                return split_of, False
            split_of[part] = k
            taken += weights[part]
    return split_of, True


def _by_examples(
    classes: np.ndarray, groups: np.ndarray | None, shares: tuple[float, ...], seed: int
) -> np.ndarray | None:
    """Numbers the split of each row, 0 for train; None where there are too few examples."""
    if groups is not None and (_class_counts(classes, groups) > 1).any():
        split = _by_groups(groups, shares, seed)
    else:
        split = _by_units(classes, groups, shares, seed)
    return split if split is not None and _can_be_evaluated(split, classes, len(shares)) else None


def _class_counts(classes: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Returns the number of classes of each group."""
    pairs = np.unique(np.stack([groups, classes], axis=1), axis=0)
    return np.unique(pairs[:, 0], return_counts=True)[1]


def _by_units(
    classes: np.ndarray, groups: np.ndarray | None, shares: tuple[float, ...], seed: int
) -> np.ndarray:
    """Holds out examples, or groups that lie within a class, class by class.

    At least two examples are held out of a class that still has two for training. Of two classes
    that have too few for both splits, one gives to the first split and the other to the second.
    """
    generator = np.random.default_rng(seed)
    split = np.zeros(len(classes), np.int64)
    order = np.argsort(classes, kind="stable")
    starts = np.flatnonzero(np.diff(classes[order], prepend=-1))
    turn = 0
    for members in np.split(order, starts[1:]):
        units = np.arange(len(members)) if groups is None else groups[members]
        _, units, sizes = np.unique(units, return_inverse=True, return_counts=True)
        remaining, stay = generator.permutation(len(sizes)).tolist(), []
        split_of = np.zeros(len(sizes), np.int64)
        enough, left = len(members) >= 2 + 2 * len(shares), len(members)
        for k, share in enumerate(shares, start=1):
            if not enough and (len(members) < 4 or turn % len(shares) != k - 1):
                continue
            wanted = left - max(2, round(share * len(members)))
            largest = len(members) / 2
            for unit in remaining:
                if left > wanted and sizes[unit] <= min(largest, left - 2):
                    split_of[unit] = k
                    left -= sizes[unit]
                else:
                    stay.append(unit)
            remaining, stay = stay, []
        split[members] = split_of[units]
        turn += not enough and len(members) >= 4
    return split


def _by_groups(groups: np.ndarray, shares: tuple[float, ...], seed: int) -> np.ndarray | None:
    """Holds out whole groups that have examples of several classes."""
    split_of, enough = hold_out_parts(np.bincount(groups), shares, seed)
    return split_of[groups] if enough else None


def _can_be_evaluated(split: np.ndarray, classes: np.ndarray, count: int) -> bool:
    """Tells whether every part has two classes, one of them with two examples."""
    for k in range(count + 1):
        sizes = np.unique(classes[split == k], return_counts=True)[1]
        if len(sizes) < 2 or sizes.max() < 2:
            return False
    return True

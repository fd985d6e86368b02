"""Splits of given pairs."""

import numpy as np

from contrastive_jax._graphs import components
from contrastive_jax.data._own import splits
from contrastive_jax.data._own.pair_tables import PairRows
from contrastive_jax.data.splits import hold_out

_RULES = {
    "classes": "no image occurs in pairs of two splits",
    "examples": "pairs are held out, and an image may occur in pairs of two splits",
}


def split_pairs(
    rows: PairRows, split_by: str | None, fraction: float, seed: int, where: str
) -> tuple[splits.Parts, str]:
    """Returns the pairs of each split, and how they were made.

    Where no splits are given, images that pairs connect stay together, if every split then has
    both labels; otherwise pairs are held out, label by label.

    Raises:
      ValueError: if a split has no pair, or no positive or no negative one.
    """
    if rows.splits is not None:
        parts = splits.given_splits(rows.splits, where)
        rule = f"as given ({', '.join(parts)})"
        if len(parts) == 2:
            train, held = hold_out(rows.labels[parts["train"]], fraction, seed=seed)
            rule += f", and {fraction:.0%} of the pairs of train held out as validation"
            test = parts.get("test", parts.get("validation"))
            assert test is not None
            indices = parts["train"]
            parts = {"train": indices[train], "validation": indices[held], "test": test}
    else:
        parts, rule = _made(rows, split_by, fraction, seed, where)
    for split, part in parts.items():
        if not len(part):
            raise ValueError(
                f"{where} has {len(rows.labels):,} pairs, too few for a {split} split: add pairs, "
                "or name the split of each in a column split"
            )
        _check_labels(rows.labels[part], f"the {split} split of {where}")
    return parts, rule


def _made(
    rows: PairRows, split_by: str | None, fraction: float, seed: int, where: str
) -> tuple[splits.Parts, str]:
    _check_labels(rows.labels, where)
    shares = {"test": 2 * fraction, "validation": fraction}
    share = f"{fraction:.0%} of the pairs for validation and {2 * fraction:.0%} for test; "
    chosen = ", chosen by the images that pairs share" if split_by is None else ""
    if split_by != "examples":
        parts = _by_image(rows, shares, seed)
        if parts is not None:
            return parts, f"{share}{_RULES['classes']} (--split classes{chosen})"
        if split_by == "classes":
            raise ValueError(
                f"the pairs of {where} connect so many images that they can not be split without "
                "an image in two splits: give --split examples, or a column split"
            )
    left, parts = np.arange(len(rows.labels)), {}
    for split, part in shares.items():
        # A share of all pairs, and not of those that are left.
        stay, held = hold_out(rows.labels[left], part * len(rows.labels) / len(left), seed=seed)
        parts[split] = left[held]
        left = left[stay]
    return {"train": left, **parts}, f"{share}{_RULES['examples']} (--split examples{chosen})"


def _by_image(rows: PairRows, shares: dict[str, float], seed: int) -> splits.Parts | None:
    """Splits the connected components of images, or returns None if a split lacks a label."""
    component = components(rows.left, rows.right, len(rows.sources))
    weights = np.bincount(component[rows.left], minlength=component.max() + 1)
    split_of, _ = splits.hold_out_parts(weights, (*shares.values(),), seed)
    split = split_of[component[rows.left]]
    parts = {name: np.flatnonzero(split == k) for k, name in enumerate(("train", *shares))}
    # A component that holds most of the pairs would leave too few to train on.
    if len(parts["train"]) < len(split) / 2:
        return None
    # Test is evaluated at two pairs of each label at least.
    counts = [np.bincount(rows.labels[part], minlength=2).min() for part in parts.values()]
    return parts if min(counts) >= 2 else None


def _check_labels(labels: np.ndarray, where: str) -> None:
    for label, name in ((0, "positive"), (1, "negative")):
        if not (labels == label).any():
            raise ValueError(
                f"{where} has no {name} pair among {len(labels):,}: training and evaluation "
                f"compare both; add {name} pairs"
            )

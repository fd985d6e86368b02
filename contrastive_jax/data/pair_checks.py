"""Checks that given pairs can be trained on and evaluated, before any of it is done."""

import numpy as np

from contrastive_jax.data.datasets import GivenPairs, PairDataset


def check_given_pairs(data: PairDataset) -> None:
    """Checks the pairs of all splits.

    Args:
      data: images or vectors, and pairs of them.

    Raises:
      ValueError: for the first split that is wrong, saying what is wrong with it and the remedy:
        columns differ in length, a row is not one of the images, a label is neither 0 nor 1, a
        weight is negative or not finite, or the split lacks positive or negative pairs (of test
        there must be two each).

    Example:
      >>> import numpy as np
      >>> from contrastive_jax.data import GivenPairs, PairDataset
      >>> from contrastive_jax.data.pair_checks import check_given_pairs
      >>> pairs = GivenPairs(np.array([0, 0, 1, 2]), np.array([1, 2, 2, 3]), np.array([0, 1, 1, 0]))
      >>> check_given_pairs(PairDataset("four", np.zeros((4, 8, 8, 1)), pairs, pairs, pairs))
    """
    for split in ("train", "validation", "test"):
        name = f"the {split} split of {data.name}"
        pairs: GivenPairs = getattr(data, split)
        lengths = {
            key: len(column) for key, column in pairs._asdict().items() if column is not None
        }
        if len({*lengths.values()}) > 1:
            raise ValueError(f"{name} must have one entry a pair in every column, got {lengths}")
        for side in ("left", "right"):
            rows = np.asarray(getattr(pairs, side))
            wrong = np.flatnonzero((rows < 0) | (rows >= len(data.images)))
            if len(wrong):
                raise ValueError(
                    f"{side} of {name} must be rows of the {len(data.images)} images, got "
                    f"{rows[wrong[0]]} in pair {wrong[0]} ({len(wrong)} of {len(rows)} pairs)"
                )
        labels = np.asarray(pairs.labels)
        wrong = np.flatnonzero((labels != 0) & (labels != 1))
        if len(wrong):
            raise ValueError(
                f"labels of {name} must be 0 (similar) or 1 (dissimilar), got {labels[wrong[0]]} "
                f"in pair {wrong[0]} ({len(wrong)} of {len(labels)} pairs)"
            )
        _check_weights(name, pairs)
        least = 2 if split == "test" else 1
        counts = {"positive": int(np.sum(labels == 0)), "negative": int(np.sum(labels == 1))}
        for label, count in counts.items():
            if count < least:
                raise ValueError(
                    f"{name} has {count} {label} pairs, and at least {least} are needed: add some, "
                    "or divide the pairs into splits anew"
                )


def _check_weights(name: str, pairs: GivenPairs) -> None:
    """Checks that weights are at least 0 and finite, and not all 0."""
    if pairs.weights is None:
        return
    weights = np.asarray(pairs.weights)
    wrong = np.flatnonzero(~((weights >= 0) & np.isfinite(weights)))
    if len(wrong):
        raise ValueError(
            f"weights of {name} must be at least 0 and finite, got {weights[wrong[0]]} in pair "
            f"{wrong[0]} ({len(wrong)} of {len(weights)} pairs)"
        )
    if not weights.any():
        raise ValueError(f"weights of {name} are all 0: leave them out, or give some pair a weight")

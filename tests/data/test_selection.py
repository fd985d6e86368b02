"""Some rows of a split, and classes by name or number."""

import numpy as np
import pytest

from contrastive_jax.data import Dataset, Examples
from contrastive_jax.data.selection import select_rows, trained_numbers

SPLIT = Examples(
    np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1),
    np.array([0, 2, -1, 2, 0], np.int32),
    groups=np.arange(5) + 10,
    queries=np.arange(5) > 2,
    attributes={"sort": np.array(list("abcde"))},
    sources=np.array([f"{k}.png" for k in range(5)]),
)


def test_rows_keep_all_their_columns():
    for rows in (np.array([3, 1]), np.array([False, True, False, True, False])[::1]):
        order = np.arange(5)[rows]
        some = select_rows(SPLIT, rows)
        assert some.images.ravel().tolist() == order.tolist()
        assert some.classes.tolist() == [2, 2]
        assert some.groups.tolist() == (order + 10).tolist()
        assert some.queries.tolist() == (order > 2).tolist()
        assert some.attributes["sort"].tolist() == ["abcde"[k] for k in order]
        assert some.sources.tolist() == [f"{k}.png" for k in order]
    bare = select_rows(Examples(SPLIT.images, SPLIT.classes), np.array([0]))
    assert (bare.groups, bare.queries, bare.sources, bare.attributes) == (None, None, None, {})


def test_classes_are_chosen_by_name_or_number_among_those_trained_on():
    data = Dataset("pets", ("cat", "dog", "7"), SPLIT, SPLIT, SPLIT)
    assert trained_numbers(data).tolist() == [0, 2]
    assert trained_numbers(data, ["7", "cat", "2"]).tolist() == [2, 0, 2]
    for name in ("dog", "1", "cow"):
        words = f"class {name} has no training images in pets, whose classes are cat, 7: leave it"
        with pytest.raises(ValueError, match=words):
            trained_numbers(data, ["cat", name])

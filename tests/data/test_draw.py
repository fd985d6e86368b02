"""Batches: truth of their labels, share, balance, and what can not be drawn."""

from fractions import Fraction

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contrastive_jax.data import draw_balanced, draw_pairs, hold_out, index_by_class
from contrastive_jax.data.labels import class_numbers

DRAW_PAIRS = jax.jit(draw_pairs, static_argnames="batch_size")
DRAW_BALANCED = jax.jit(draw_balanced, static_argnames=("classes", "examples"))

PROFILE = settings(deadline=None, max_examples=15, derandomize=True)


def _draw(classes, batch, fraction, seed=0):
    index = index_by_class(classes, fraction)
    return [np.asarray(x) for x in DRAW_PAIRS(jax.random.key(seed), index, batch, fraction)]


@PROFILE
@given(
    sizes=st.lists(st.integers(1, 5), min_size=2, max_size=6).filter(lambda s: max(s) > 1),
    batch=st.integers(1, 40),
    tenths=st.integers(0, 10),
    seed=st.integers(0, 1000),
)
def test_labels_tell_the_truth(sizes, batch, tenths, seed):
    generator = np.random.default_rng(seed)
    # Class numbers with gaps, in no order.
    classes = generator.permutation(np.repeat(3 * np.arange(len(sizes)) + 1, sizes))
    i, j, labels = _draw(classes, batch, tenths / 10, seed)
    assert i.shape == j.shape == labels.shape == (batch,)
    assert ((i >= 0) & (i < len(classes)) & (j >= 0) & (j < len(classes))).all()
    assert (i != j).all()
    np.testing.assert_array_equal(labels, classes[i] != classes[j])
    positive = (labels == 0).cumsum()
    for k in range(batch):
        assert positive[k] == int(Fraction(tenths, 10) * (k + 1))


def test_classes_and_members_are_balanced_whatever_their_sizes():
    sizes = np.array([1, 2, 30, 300])
    classes = np.repeat(np.arange(4), sizes)
    batch = 24_000
    i, j, labels = _draw(classes, batch, 0.5)
    positive, negative = labels == 0, labels == 1

    def assert_uniform(values, number):
        counts = np.bincount(values, minlength=number)
        expected = len(values) / number
        # Six standard deviations of a binomial count.
        assert np.abs(counts - expected).max() < 6 * np.sqrt(expected)

    # Class 0 has one example and can give no positive pair.
    assert (classes[i][positive] > 0).all()
    assert_uniform(classes[i][positive] - 1, 3)
    ordered = 4 * classes[i][negative] + classes[j][negative]
    assert_uniform(np.unique(ordered, return_inverse=True)[1], 12)
    for members in (i, j):
        assert_uniform(members[negative & (classes[members] == 2)] - 3, 30)
        assert_uniform(members[positive & (classes[members] == 2)] - 3, 30)
    inside = positive & (classes[i] == 2)
    assert_uniform((j - i)[inside] % 30 - 1, 29)


def test_a_function_of_key_and_step_alone():
    classes = np.arange(50) % 7
    first, second = (_draw(classes, 32, 0.5, seed=4) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
    index = index_by_class(classes)
    compiled = jax.jit(draw_pairs, static_argnums=2)(jax.random.key(4), index, 32, 0.5)
    for a, b in zip(first, compiled, strict=True):
        np.testing.assert_array_equal(a, b)
    assert (first[0] != _draw(classes, 32, 0.5, seed=5)[0]).any()


def test_the_share_is_traced():
    index = index_by_class(np.arange(20) % 4)
    draw = jax.jit(draw_pairs, static_argnums=2)
    draw(jax.random.key(0), index, 20, 0.5)
    compiled = draw._cache_size()
    for tenths in range(11):
        _, _, labels = draw(jax.random.key(0), index, 20, tenths / 10)
        assert (np.asarray(labels) == 0).sum() == 2 * tenths
    assert draw._cache_size() == compiled


def test_a_batch_larger_than_the_data_repeats_it():
    classes = np.array([0, 0, 1])
    i, j, labels = _draw(classes, 1000, 0.5)
    assert set(zip(i[labels == 0], j[labels == 0], strict=True)) == {(0, 1), (1, 0)}
    assert set(zip(i[labels == 1], j[labels == 1], strict=True)) == {(0, 2), (1, 2), (2, 0), (2, 1)}


def test_one_class_gives_positive_pairs_alone():
    with pytest.raises(ValueError, match="every example is of class 7"):
        index_by_class(np.full(5, 7))
    i, j, labels = _draw(np.full(5, 7), 100, 1.0)
    assert (labels == 0).all()
    assert (i != j).all()


def test_single_examples_give_negative_pairs_alone():
    with pytest.raises(ValueError, match="all 5 classes have one"):
        index_by_class(np.arange(5))
    i, j, labels = _draw(np.arange(5), 100, 0.0)
    assert (labels == 1).all()
    assert (i != j).all()


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="classes is empty"):
        index_by_class(np.zeros(0, np.int32))
    with pytest.raises(ValueError, match=r"got float64 \[3\]"):
        index_by_class(np.zeros(3))
    with pytest.raises(ValueError, match=r"positive_fraction must be in \[0, 1\], got 1.5"):
        index_by_class(np.arange(4) % 2, 1.5)


@PROFILE
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=5).filter(lambda s: max(s) > 1),
    examples=st.integers(1, 8),
    seed=st.integers(0, 1000),
)
def test_balanced_batches_hold_nothing_twice(sizes, examples, seed):
    generator = np.random.default_rng(seed)
    classes = generator.permutation(np.repeat(3 * np.arange(len(sizes)) + 1, sizes))
    index = index_by_class(classes, 1.0)
    count = 1 + seed % len(sizes)
    positions, labels = map(np.asarray, DRAW_BALANCED(jax.random.key(seed), index, count, examples))
    assert positions.shape == labels.shape == (count * examples,)
    valid = labels >= 0
    assert len(set(positions[valid])) == valid.sum()
    for slots in np.split(np.arange(count * examples), count):
        real = slots[valid[slots]]
        names = set(classes[positions[real]])
        assert len(names) == len(set(labels[real])) == 1
        assert len(real) == min(examples, (classes == names.pop()).sum())
    assert len(set(labels[valid])) == count


def test_balanced_batches_take_each_class_and_member_alike():
    classes = np.repeat([0, 1, 2], [2, 5, 9])
    index = index_by_class(classes)
    keys = jax.random.split(jax.random.key(0), 6000)
    positions, labels = jax.vmap(lambda key: draw_balanced(key, index, 2, 3))(keys)
    valid = np.asarray(labels) >= 0
    drawn = np.bincount(np.asarray(positions)[valid], minlength=16)
    # Two of three classes; of a class of n members min(3, n) are taken.
    expected = np.repeat([4000, 4000 * 3 / 5, 4000 * 3 / 9], [2, 5, 9])
    np.testing.assert_allclose(drawn, expected, rtol=0.08)


def test_balanced_batches_of_too_many_classes_are_refused():
    index = index_by_class(np.repeat([0, 1], 4))
    with pytest.raises(ValueError, match=r"from 1 to 2 classes, .* got 3 classes and 2 examples"):
        draw_balanced(jax.random.key(0), index, 3, 2)


def test_balanced_batches_name_the_classes_of_their_examples():
    """Where a class has one example, its class is drawn too, and no class is another's rank."""
    classes = np.array([0] + [1] * 6 + [2] * 6 + [3] * 6)
    for labels in (classes, 5 * classes + 2, classes[::-1]):
        index = index_by_class(labels)
        keys = jax.random.split(jax.random.key(0), 20)
        positions, drawn = jax.vmap(lambda key, index=index: draw_balanced(key, index, 3, 2))(keys)
        real = np.asarray(drawn) >= 0
        np.testing.assert_array_equal(np.asarray(drawn)[real], labels[np.asarray(positions)[real]])
        assert set(np.asarray(drawn)[real]) == set(labels)


def _ignored(classes):
    """The same classes with rows to ignore among them, marked in both ways."""
    at = np.array([0, 3, 3, 7, len(classes)])
    marked = np.insert(classes, at, -1)
    hidden = np.insert(classes, at, 1)
    return marked, np.ma.masked_array(hidden, mask=marked == -1), np.flatnonzero(marked >= 0)


def test_rows_without_a_class_are_never_drawn():
    classes = np.repeat([1, 2, 4], [1, 5, 6])
    key = jax.random.key(0)
    for labels in _ignored(classes)[:2]:
        rows = _ignored(classes)[2]
        index, plain = index_by_class(labels), index_by_class(classes)
        i, j, same = draw_pairs(key, index, 200, 0.5)
        for got, expected in zip((i, j), draw_pairs(key, plain, 200, 0.5), strict=False):
            np.testing.assert_array_equal(got, rows[np.asarray(expected)])
        np.testing.assert_array_equal(same, draw_pairs(key, plain, 200, 0.5)[2])
        positions, drawn = draw_balanced(key, index, 3, 4)
        expected = draw_balanced(key, plain, 3, 4)
        np.testing.assert_array_equal(positions, rows[np.asarray(expected[0])])
        np.testing.assert_array_equal(drawn, expected[1])
        for part, expected in zip(
            hold_out(labels, 0.4, seed=1), hold_out(classes, 0.4, seed=1), strict=True
        ):
            np.testing.assert_array_equal(part, rows[expected])
    for labels in (np.full(4, -1), np.ma.masked_all(4, int)):
        with pytest.raises(ValueError, match="classes of all 4 are -1 or masked"):
            index_by_class(labels)
    # What is left must be enough for pairs.
    with pytest.raises(ValueError, match="every example is of class 3"):
        index_by_class(np.array([3, -1, 3, -1]))
    with pytest.raises(ValueError, match="all 2 classes have one"):
        index_by_class(np.array([3, -1, 5, -1]))


def test_labels_in_every_form_are_numbered():
    expected = [1, 0, 1, 2, -1]
    for labels in (
        np.array(expected, ">i8"),
        np.ma.masked_array(["b", "a", "b", "c", "zz"], mask=[0, 0, 0, 0, 1]),
        np.ma.masked_array(np.array(["b", "a", "b", "c", None], object), mask=[0, 0, 0, 0, 1]),
        np.ma.masked_array(np.array([1, 0, 1, 2, 255], np.uint8), mask=[0, 0, 0, 0, 1]),
        jax.numpy.array(expected),
        expected,
    ):
        got = class_numbers(labels)
        np.testing.assert_array_equal(got, expected)
        assert got.dtype == np.int32
        assert not isinstance(got, np.ma.MaskedArray)
    np.testing.assert_array_equal(class_numbers(np.array([True, False])), [1, 0])
    for labels, message in (
        (np.array([0, 1, -2]), "got -2 in row 2"),
        (np.array([0, 2**31]), "got 2147483648 in row 1"),
        (np.array([2**64 - 1], np.uint64), "got 18446744073709551615 in row 0"),
        (np.zeros((3, 1), int), r"int64 \[3, 1\]; squeeze it"),
        (np.array([0.0, 1.0]), r"float64 \[2\]"),
        (np.array([0, None]), r"object \[2\]"),
    ):
        for take in (class_numbers, index_by_class, lambda c: hold_out(c, 0.5, seed=0)):
            with pytest.raises(ValueError, match=message):
                take(labels)

"""Functions of labels, each against a loop over pairs, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contrastive_jax import (
    all_pairs_loss,
    all_pairs_sums,
    anchor_loss,
    anchor_statistics,
    labels,
    losses,
    memory,
    proxy_loss,
    statistics,
)
from contrastive_jax.data import Examples
from contrastive_jax.evaluation.retrieval import retrieval

ROWS = 30
RNG = np.random.default_rng(0)
SETS = [RNG.choice(70, RNG.integers(0, 4), replace=False).tolist() for _ in range(ROWS)]
PATHS = RNG.integers(-1, 3, (ROWS, 3))
GROUPS = RNG.integers(0, 3, ROWS)
AGES = RNG.uniform(0, 20, ROWS)
POSITIONS = RNG.uniform(0, 8, (ROWS, 2))
PAIRS = np.array([[0, 4], [4, 9], [20, 3], [9, 0], [3, 29], [3, 5], [3, 20]])
GIVEN = np.array([0, 0, 0, 1, -1, 0, 0])


def _by_pairs(others):
    given = {frozenset(pair.tolist()): label for pair, label in zip(PAIRS, GIVEN, strict=True)}
    return lambda i, j: given.get(frozenset((i, j)), others)


def _near(distance, threshold, apart):
    return 0 if distance < threshold else -1 if distance < apart else 1


INDICES = np.arange(ROWS)
# Labels, attributes, the label of two rows by their indices, and the rows that are ignored.
READY = {
    "same_class": (
        labels.same_class(),
        PATHS[:, 0],
        lambda i, j: int(PATHS[i, 0] != PATHS[j, 0]),
        PATHS[:, 0] == -1,
    ),
    "same_class_other_group": (
        labels.same_class_other_group(),
        (PATHS[:, 0], GROUPS),
        lambda i, j: 1 if PATHS[i, 0] != PATHS[j, 0] else -1 if GROUPS[i] == GROUPS[j] else 0,
        PATHS[:, 0] == -1,
    ),
    "any_shared": (
        labels.any_shared(),
        labels.as_bits(SETS),
        lambda i, j: 0 if {*SETS[i]} & {*SETS[j]} else 1,
        np.array([not one for one in SETS]),
    ),
    "hierarchy": (
        labels.hierarchy(2),
        PATHS,
        lambda i, j: int((PATHS[i, :2] != PATHS[j, :2]).any()),
        (PATHS[:, :2] == -1).any(1),
    ),
    "within": (
        labels.within(2.0, apart=4.0),
        np.where(INDICES == 3, np.nan, AGES),
        lambda i, j: _near(abs(AGES[i] - AGES[j]), 2, 4),
        INDICES == 3,
    ),
    "within_a_plane": (
        labels.within(2.0),
        POSITIONS,
        lambda i, j: _near(np.linalg.norm(POSITIONS[i] - POSITIONS[j]), 2, 2),
        INDICES < 0,
    ),
    "integers": (
        labels.within(3),
        (10 * AGES).astype(np.int16),
        lambda i, j: _near(abs(int(10 * AGES[i]) - int(10 * AGES[j])), 3, 3),
        INDICES < 0,
    ),
    "given_pairs": (
        labels.given_pairs(PAIRS, GIVEN),
        np.where(INDICES == 5, -1, INDICES),
        _by_pairs(-1),
        INDICES == 5,
    ),
    "given_pairs_others_dissimilar": (
        labels.given_pairs(PAIRS[::-1, ::-1], GIVEN[::-1], others="dissimilar"),
        INDICES,
        _by_pairs(1),
        INDICES < 0,
    ),
    "with_mask": (
        labels.with_mask(labels.within(2.0).function),
        (AGES, INDICES % 7 > 0),
        lambda i, j: _near(abs(AGES[i] - AGES[j]), 2, 2),
        INDICES % 7 == 0,
    ),
}


@pytest.mark.parametrize("name", READY)
def test_ready_labels(name):
    rule, attributes, label, ignored = READY[name]
    attributes = jax.tree.map(jnp.asarray, attributes)
    table = jax.vmap(jax.vmap(rule, (None, 0)), (0, None))(attributes, attributes)
    classes = np.asarray(jax.vmap(rule.class_of)(attributes))
    np.testing.assert_array_equal(classes == -1, ignored)
    assert (~ignored).sum() > 5
    for i, j in np.argwhere(~ignored[:, None] & ~ignored & ~np.eye(ROWS, dtype=bool)):
        assert table[i, j] == label(i, j), (i, j)
        assert classes[i] == classes[j] or label(i, j) == 1, (i, j)
    if name in ("hierarchy", "given_pairs_others_dissimilar"):
        assert len({*classes.tolist()}) > 3


def test_bits():
    wide = np.zeros((2, 40), bool)
    wide[0, [0, 33]] = True
    np.testing.assert_array_equal(labels.as_bits(wide), [[1, 2], [0, 0]])
    np.testing.assert_array_equal(labels.as_bits([[0, 33], []], 100), [[1, 2, 0, 0], [0] * 4])
    np.testing.assert_array_equal(labels.as_bits([np.array([31], np.uint8)]), [[2**31]])
    for wrong, number, message in [
        ([[0.5]], None, "labels must be integers from 0, got .* in row 0"),
        ([[1], [-2]], None, "got .*-2.* in row 1"),
        ([[64]], 64, "labels must be below 64, the number of labels, got 64"),
    ]:
        with pytest.raises(ValueError, match=message):
            labels.as_bits(wrong, number)


def test_wrong_rules():
    for wrong, message in [
        (lambda: labels.hierarchy(0), "depth must be a whole number, at least 1, got 0"),
        (lambda: labels.within(0.0), "0 < threshold <= apart, got 0.0"),
        (lambda: labels.within(3.0, apart=2.0), "0 < threshold <= apart, got 3.0 and 2.0"),
        (lambda: labels.given_pairs([[0, 1, 2]]), r"pairs must be integers \[P, 2\]"),
        (lambda: labels.given_pairs([[0.0, 1.0]]), r"pairs must be integers \[P, 2\]"),
        (lambda: labels.given_pairs([[0, 1]], [0, 1]), "one for each of 1 pairs"),
        (lambda: labels.given_pairs([[0, 1]], [2]), "labels must be 0, 1 or -1, got .* in row 0"),
        (lambda: labels.given_pairs([[0, 1], [3, 3]]), "no pair with itself, got .* in row 1"),
        (lambda: labels.given_pairs([[0, -1]]), "indices from 0"),
        (lambda: labels.given_pairs([[5, 2], [2, 5]], [0, 1]), "pair 2, 5 is given with labels 0"),
        (lambda: labels.given_pairs([[0, 1]], others="similar"), "others must be"),
    ]:
        with pytest.raises(ValueError, match=message):
            wrong()
    assert labels.given_pairs(np.zeros((0, 2), int), others="dissimilar")(0, 1) == 1


X = RNG.standard_normal((ROWS, 3)).astype(np.float32)


def _same(a, b):
    return jnp.where(a == b, 0, 1)


def _rule(function, class_of=None):
    return labels.PairLabels(lambda a, b: jnp.where(function(a, b), 0, 1), class_of)


@pytest.mark.parametrize(
    ("raised", "message", "rule", "attributes"),
    [
        (ValueError, "labels must be a function .* got ndarray; pair_loss", np.zeros(3), GROUPS),
        (ValueError, "labels.same_class, is to be called", labels.any_shared, GROUPS),
        (AssertionError, "labels must return 0 .* got .*bool", lambda a, b: a == b, GROUPS),
        (AssertionError, "labels must return 0", lambda a, b: jnp.stack([a, b]), GROUPS),
        (AssertionError, "labels must return 0", lambda a, b: (a, b), GROUPS),
        (
            AssertionError,
            r"classes must be a tree of arrays with one entry for each of 30 rows, .* \(29,\)",
            labels.same_class_other_group(),
            (GROUPS, GROUPS[1:]),
        ),
        (ValueError, "classes must hold an array", labels.same_class(), ()),
        (AssertionError, "classes must be numbers, got <U1", labels.same_class(), ["a"] * ROWS),
        (ValueError, "classes must fit", labels.any_shared(), np.full(ROWS, 2**40, np.uint64)),
        (AssertionError, "class_of must return an integer", _rule(jnp.equal, lambda a: a), AGES),
        (ValueError, "needs paths of at least 4", labels.hierarchy(4), PATHS),
        (TypeError, "signed integers, got uint8", labels.within(3), PATHS[:, 0].astype(np.uint8)),
        (
            ValueError,
            r"takes two attributes, \(classes, groups\) .* got \(\) as shapes",
            labels.same_class_other_group(),
            GROUPS,
        ),
        (
            ValueError,
            r"takes two attributes, .* got \(\(\), \(\), \(\)\)",
            labels.same_class_other_group(),
            (GROUPS, GROUPS, GROUPS),
        ),
        (
            ValueError,
            r"labels must be 0 \(similar\), .* got 2 for rows \d+ and \d+",
            lambda a, b: jnp.abs(a - b),
            GROUPS,
        ),
        (ValueError, r"labels must be -1 or in \[0, 1\]", lambda a, b: jnp.abs(a - b), AGES),
        (ValueError, "the same in both orders", lambda a, b: jnp.where(a < b, 0, 1), AGES),
        (
            ValueError,
            "labels must be 1 where class_of returns different integers, got 0",
            _rule(lambda a, b: a[1] == b[1], lambda a: a[0]),
            (INDICES, GROUPS),
        ),
    ],
)
def test_wrong_labels(raised, message, rule, attributes):
    with pytest.raises(raised, match=message):
        jax.eval_shape(lambda x: all_pairs_loss(x, attributes, labels=rule), X)


@pytest.mark.parametrize(
    "rule",
    [lambda a, b: 0 if a == b else 1, labels.PairLabels(_same, lambda a: 0 if a else 1)],
    ids=["function", "class_of"],
)
def test_a_branch_of_python_is_named_with_its_remedy(rule):
    for use in (
        lambda: all_pairs_loss(X, GROUPS, labels=rule),
        lambda: retrieval(X, GROUPS, labels=rule),
    ):
        with pytest.raises(jax.errors.TracerBoolConversionError) as raised:
            use()
        notes = " ".join(raised.value.__notes__)
        assert "jnp.where(condition, 0, 1) in place of if" in notes


@pytest.mark.parametrize("first", [0, 498])
def test_labels_are_looked_at_in_the_whole_batch(first):
    """Two neighbours of one class, among rows of classes of their own, whose order counts."""
    rows = 500
    classes = np.arange(rows)
    classes[first + 1] = first
    rule = _rule(lambda a, b: (a[0] == b[0]) & (a[1] < b[1]), lambda a: a[0])
    x = np.zeros((rows, 1), np.float32)
    message = rf"both orders .*, got 0 for rows {first} and {first + 1} and 1 for rows"
    with pytest.raises(ValueError, match=message):
        all_pairs_loss(x, (classes, np.arange(rows)), labels=rule)


@pytest.mark.parametrize("dtype", [np.int64, np.uint32, np.uint8])
def test_classes_of_any_integer_type(dtype):
    classes = PATHS[:, 0].clip(0)
    large = (classes * (np.iinfo(dtype).max // 2)).astype(dtype)
    with jax.enable_x64(True):
        got = all_pairs_loss(X, large, labels=labels.same_class())
    np.testing.assert_allclose(got, all_pairs_loss(X, classes), rtol=1e-6)


def test_wrong_uses():
    def grade(a, b):
        return jnp.minimum(jnp.abs(a - b) / 20, 1)

    def statistic(distance, label):
        return statistics.total(distance, label == 0)

    rule, two = labels.same_class(), labels.same_class_other_group()
    uses = [
        (lambda: all_pairs_loss(X, AGES, labels=grade, reduction="active"), 'reduction="mean"'),
        (lambda: all_pairs_loss(X, AGES, labels=grade, reduction="balanced"), 'reduction="mean"'),
        (lambda: all_pairs_sums(X, AGES, labels=grade), 'reduction="mean"'),
        (lambda: anchor_loss(X, AGES, labels=grade, loss=losses.supcon()), "take all_pairs_loss"),
        (
            lambda: anchor_statistics(X, AGES, labels=grade, statistics=(statistic,)),
            "take all_pairs_loss",
        ),
        (
            lambda: proxy_loss(X, GROUPS, X[:3], loss=losses.proxy_nca(), labels=rule),
            "proxy_loss takes no labels",
        ),
        (
            lambda: all_pairs_loss(X, GROUPS, labels=rule, margin=np.ones(3)),
            "a margin of each class is for labels by classes",
        ),
        (
            lambda: all_pairs_loss(X, (GROUPS, GROUPS), X, [GROUPS, GROUPS], labels=two),
            "trees of one structure",
        ),
    ]
    for use, message in uses:
        with pytest.raises(ValueError, match=message):
            use()


def test_sets_that_are_not_packed_and_attributes_without_a_rule_are_refused():
    x = np.eye(4, dtype=np.float32)
    with pytest.raises(TypeError, match=r"labels.as_bits makes of lists of labels, got int32"):
        all_pairs_loss(x, np.zeros((4, 2), np.int32), labels=labels.any_shared())
    with pytest.raises(ValueError, match=r"got a tuple of arrays: .* need labels="):
        all_pairs_loss(x, (np.zeros(4, np.int32), np.zeros(4, np.int32)))


@pytest.mark.parametrize(
    ("text", "column", "attributes"),
    [
        ("any_shared=c", ["red; round", '["round"]', "", "blue"], [[0b110], [0b100], [0], [0b001]]),
        ("any_shared=c", np.array([[3, 5], [5, 5], [7, 7]]), [[0b011], [0b010], [0b100]]),
        ("any_shared=c", ["007", "7", "[7]"], [[0b01], [0b10], [0b10]]),
        ("any_shared=c", np.array([[3, -1], [5, -1], [-1, -1]]), [[0b01], [0b10], [0]]),
        ("any_shared=c", np.array([-1, 4, 4]), [[0], [1], [1]]),
        ("any_shared=c", np.array([np.nan, 4, 7]), [[0], [0b01], [0b10]]),
        ("any_shared=c", np.array(["a", None, np.nan], object), [[1], [0], [0]]),
        ("any_shared=c", ['["a", null]', " ", "a"], [[1], [0], [1]]),
        ("any_shared=c", np.array([[True, False], [True, True]]), [[0b01], [0b11]]),
        ("within=c:5", 0.5 + np.array([3, 0, np.nan, np.inf]), [3, 0, np.nan, np.nan]),
        ("within=c:5", 1.7e9 + np.array([3, 0, np.nan]), [3, 0, -1]),
        ("within=c:5", np.array([-1, 20, 25]), [-1, 0, 5]),
        ("within=c:5", np.array([-128, 127], np.int8), [0, 255]),
        ("within=c:5", np.array([[-30000], [30000]], np.int16), [[0], [60000]]),
        ("within=c:500", np.array([-60000.5, 60000], np.float32), [0, 120000.5]),
        ("within=c:5", np.array([2**64 - 1, 2**64 - 8], np.uint64), [7, 0]),
        ("within=c:5", np.ma.array([1, 99, 4], mask=[False, True, False]), [0, -1, 3]),
        ("within=c:5", np.array([[0.5, np.nan], [0.5, 2]]), [[np.nan, np.nan], [0, 0]]),
        ("within=c:2:3", 2**62 + np.array([-1, 4]), [0, 5]),
        ("within=c:5", np.array([[-1, 10], [2, 8]]), [[0, 2], [3, 0]]),
        ("hierarchy=c,class", ["cat", " ", "ape"], [[2, 0], [-1, 1], [1, 2]]),
        ("hierarchy=c", np.array(["b", None, "a"], object), [[2], [-1], [1]]),
        ("hierarchy=c", np.array([7, -1, np.nan]), [[1], [-1], [-1]]),
    ],
)
def test_columns_are_attributes(text, column, attributes):
    column = np.ma.asarray(column) if np.ma.isMaskedArray(column) else np.asarray(column)
    examples = Examples(
        np.zeros((len(column), 2)), np.arange(len(column)), attributes={"c": column}
    )
    made = labels.by_name(text).attributes_of(examples)
    np.testing.assert_array_equal(made, attributes)
    assert made.dtype.itemsize == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("other", "must be one of class, other_group, any_shared=COLUMN, .* got 'other'"),
        ("any_shared", "must be one of"),
        ("hierarchy=a,", "must be one of"),
        ("within=c", "must be one of"),
        ("within=c:x", "takes numbers after the column, as within=age:5, got 'within=c:x'"),
        ("within=c:5:2", "0 < threshold <= apart"),
        ("any_shared=d", "no column d, which labels take: its columns are class, c, t"),
        ("any_shared=c", "any_shared takes a column of text, .* c has float64"),
        ("any_shared=t", r"""t has '\["a"', which begins as a list does and is none"""),
        ("within=t:1", "within takes a column of numbers, and t has <U4"),
        ("within=class:1", "class holds the names of classes"),
        ("any_shared=b", "any_shared takes a column of text, .* b has bool"),
        ("any_shared=f", "f has only 0 and 1 in 3 entries of a row, which look like flags"),
        ("any_shared=l", r"l has lists of flags, \[true\]: expected lists of labels"),
        ("within=c:1e-9", "c spans 1, in which differences of 1e-09 are not told apart"),
        ("hierarchy=class,c", "hierarchy takes columns of integers or text, and c has float64"),
    ],
)
def test_wrong_names_and_columns_say_what_is_expected(text, message):
    columns = {
        "c": np.array([0.5, 1.5]),
        "t": np.array(['["a"', "b"]),
        "b": np.array([True, False]),
        "f": np.array([[0, 1, 0], [1, 1, 0]]),
        "l": np.array(["[true]", "[]"]),
    }
    examples = Examples(np.zeros((2, 2)), np.arange(2), attributes=columns)
    with pytest.raises(ValueError, match=message):
        labels.by_name(text).attributes_of(examples)


def test_ready_labels_are_named():
    assert labels.by_name("class")(1, 1) == 0
    assert labels.by_name("other_group")((1, 1), (1, 1)) == -1
    assert labels.by_name("hierarchy=a,b")(jnp.array([1, 2, 3]), jnp.array([1, 2, 4])) == 0
    assert labels.by_name("within=a:1:3")(0.0, 2.0) == -1
    with pytest.raises(ValueError, match=r"columns must be names of columns, such as \['genus'\]"):
        labels.hierarchy(1, "genus")
    with pytest.raises(ValueError, match=r"hierarchy\(3\) needs 3 columns, got a, b"):
        labels.hierarchy(3, ["a", "b"])
    for name in ("class", "other_group", "any_shared=t", "within=a:1", "within=a:1:3"):
        assert labels.with_mask(labels.by_name(name)).name == name
    assert labels.hierarchy(1, ["a", "b"]).name == "hierarchy=a"
    assert labels.any_shared().name is labels.within(2.0).name is None
    ids = Examples(np.zeros((5000, 2)), np.arange(5000), attributes={"c": np.arange(5000)})
    with pytest.raises(ValueError, match="c has 5,000 labels, of which any_shared takes at most 4"):
        labels.any_shared("c").attributes_of(ids)
    missing = Examples(np.zeros((2, 2)), np.arange(2), attributes={"c": np.full(2, np.nan)})
    with pytest.raises(ValueError, match="c has none in a whole split"):
        labels.within(1.0, column="c").attributes_of(missing)


def test_empty_rows_of_a_memory_of_integers_are_ignored():
    x, ages = jnp.eye(2), jnp.array([20, 40], jnp.int32)
    bank = memory.empty(4, 2, like=ages)
    loss = functools.partial(all_pairs_loss, margin=10.0, reduction="sum")
    assert loss(x, ages, *memory.references(bank, 0), labels=labels.within(3.0)) == 0

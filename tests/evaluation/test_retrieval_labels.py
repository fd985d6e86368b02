"""Retrieval where a function of two rows says what a match is, against brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contrastive_jax import labels
from contrastive_jax.evaluation import _labelled, _sweep
from contrastive_jax.evaluation import retrieval as module
from contrastive_jax.evaluation.retrieval import retrieval

QUERIES, REFERENCES = 60, 90
RNG = np.random.default_rng(0)
# On a small grid, with ties.
X, Y = (RNG.integers(-2, 3, (size, 3)).astype(float) for size in (QUERIES, REFERENCES))


def _attributes(size):
    rng = np.random.default_rng(size)
    return rng.integers(-1, 6, size), rng.integers(0, 3, size)


def _group_label(a, b):
    if a[0] != b[0]:
        return 1
    return -1 if a[1] == b[1] else 0


def _by_numbers(a, b):
    """Another label in each order: a reference matches a query whose class is not below its own."""
    apart = a[0] - b[0]
    return jnp.where((apart >= 0) & (apart < 2), 0, jnp.where(a[1] == b[1], -1, 1))


def _number_label(a, b):
    if 0 <= a[0] - b[0] < 2:
        return 0
    return -1 if a[1] == b[1] else 1


RULES = {
    "groups": (labels.same_class_other_group(), _group_label, True),
    "numbers": (_by_numbers, _number_label, False),
}


def _brute_force(rule, own, others, query_ids, reference_ids):
    """Figures of the rows that count, in one set where `others` is None."""
    _, label, ignores = RULES[rule]
    queries, references = X, X if others is None else Y
    columns = own if others is None else others
    rows, count = [], 0
    for i, query in enumerate(queries):
        a = own[0][i], own[1][i]
        if ignores and a[0] == -1:
            continue
        count += 1
        squared = ((references - query) ** 2).sum(1)
        ranked = []
        for j in np.argsort(squared, kind="stable"):
            b = columns[0][j], columns[1][j]
            same = others is None and i == j
            if query_ids is not None:
                same |= bool(query_ids[i] == (query_ids if others is None else reference_ids)[j])
            if not same and not (ignores and b[0] == -1) and label(a, b) != -1:
                ranked.append(label(a, b) == 0)
        ranked, r = np.array(ranked, bool), int(np.sum(ranked))
        if not r:
            continue
        precision = np.cumsum(ranked) / (1 + np.arange(len(ranked)))
        rows.append((ranked[0], ranked[:r].mean(), (precision * ranked)[:r].sum() / r))
    means = np.mean(np.array(rows, float), axis=0)
    return (*means, count, count - len(rows))


@pytest.mark.parametrize("swept", [False, True])
@pytest.mark.parametrize("ids", [False, True])
@pytest.mark.parametrize("one_set", [True, False])
@pytest.mark.parametrize("rule", RULES)
def test_figures_equal_brute_force(rule, one_set, ids, swept, monkeypatch):
    if swept:
        monkeypatch.setattr(module, "SWEPT_FROM", 0)
        monkeypatch.setattr(_sweep, "TILE", 48)
        monkeypatch.setattr(_sweep, "QUERIES", 16)
    monkeypatch.setattr(_labelled, "LABELS_HELD", 7 * REFERENCES)  # a last block that is not full
    own, others = _attributes(QUERIES), None if one_set else _attributes(REFERENCES)
    query_ids = RNG.integers(0, 40, QUERIES) if ids else None
    reference_ids = RNG.integers(0, 40, REFERENCES) if ids and not one_set else None
    sets = (X, own) if one_set else (X, own, Y, others)
    options = {"query_ids": query_ids, "reference_ids": reference_ids}
    got = retrieval(*sets, labels=RULES[rule][0], **options)
    names = ("precision_at_1", "r_precision", "map_at_r", "queries", "queries_without_match")
    want = _brute_force(rule, own, others, query_ids, reference_ids)
    np.testing.assert_allclose([got[name] for name in names], want, rtol=1e-12)
    assert 0.01 < want[2] < 0.99


@pytest.mark.parametrize("ids", [False, True])
@pytest.mark.parametrize("one_set", [True, False])
def test_some_queries_at_a_time_give_the_same(one_set, ids, monkeypatch):
    own, others = _attributes(QUERIES), _attributes(REFERENCES)
    sets = (X, own) if one_set else (X, own, Y, others)
    query_ids = RNG.integers(0, 40, QUERIES) if ids else None
    reference_ids = RNG.integers(0, 40, REFERENCES) if ids and not one_set else None
    rule = next(iter(RULES.values()))[0]
    options = {"labels": rule, "query_ids": query_ids, "reference_ids": reference_ids}
    want = retrieval(*sets, **options)
    monkeypatch.setattr(module, "LISTED", 7 * REFERENCES)
    got = retrieval(*sets, **options)
    assert got.keys() == want.keys()
    np.testing.assert_allclose([*got.values()], [*want.values()], rtol=1e-12)


def test_the_same_as_classes():
    classes = _attributes(QUERIES)[0]
    assert retrieval(X, classes, labels=labels.same_class()) == retrieval(X, classes)


def test_wrong_labels():
    classes = np.arange(QUERIES)
    for wrong, message in [
        (lambda a, b: a == b, "must return the integer 0"),
        (lambda a, b: jnp.abs(a - b) / 9, "must return the integer 0"),
        (lambda a, b: a - b, "another number for query 0 and reference 2"),
        (classes, "labels must be a function"),
        (lambda a, b: jnp.where(a == b, 0, 1), "none of the 60 queries has a reference"),
    ]:
        with pytest.raises(ValueError, match=message):
            retrieval(X, classes, labels=wrong)
    with pytest.raises(AssertionError, match="query_classes must be a tree of arrays"):
        retrieval(X, classes[1:], labels=labels.same_class())
    # Attributes on a device, and a tree of them, are taken as they are.
    rule = labels.with_mask(labels.within(2))
    attributes = jax.tree.map(jnp.asarray, (classes % 7, classes > 3))
    assert retrieval(X, attributes, labels=rule)["queries"] == QUERIES - 4


@pytest.mark.parametrize("one_set", [True, False])
def test_an_error_names_the_row_and_the_set_whatever_the_parts(one_set, monkeypatch):
    points, classes = X.copy(), np.arange(QUERIES) % 5
    points[20, 1] = np.nan
    classes[0], points[0] = -1, np.inf  # ignored
    sets = (points, classes) if one_set else (points, classes, Y, np.arange(REFERENCES) % 5)
    monkeypatch.setattr(module, "LISTED", 7 * REFERENCES)
    with pytest.raises(ValueError, match=r"queries .*20") as error:
        retrieval(*sets, labels=labels.same_class())
    monkeypatch.setattr(module, "LISTED", 10**9)
    with pytest.raises(ValueError, match="queries") as whole:
        retrieval(*sets, labels=labels.same_class())
    assert str(error.value) == str(whole.value)


@pytest.mark.parametrize("one_set", [True, False])
def test_an_error_counts_ignored_rows_once(one_set, monkeypatch):
    classes = np.where(np.arange(QUERIES) < 3, -1, np.arange(QUERIES))
    others = np.where(np.arange(REFERENCES) < 5, -1, QUERIES + np.arange(REFERENCES))
    sets = (X, classes) if one_set else (X, classes, Y, others)
    monkeypatch.setattr(module, "LISTED", 7 * REFERENCES)
    with pytest.raises(ValueError, match=f"; {3 if one_set else 8} rows of class -1 "):
        retrieval(*sets, labels=labels.same_class())


def test_few_pairs_are_labelled_to_see_that_both_labels_occur(monkeypatch):
    rows, seen = 60, []
    label_blocks = _labelled._label_blocks

    def counting(*arguments):
        counts, blocks = label_blocks(*arguments)
        return counts, (seen.append(len(block[0])) or block for block in blocks)

    def check(attributes):
        seen.clear()
        _labelled.check_both_labels(labels.same_class(), np.asarray(attributes), rows)
        return sum(seen)

    monkeypatch.setattr(_labelled, "_label_blocks", counting)
    monkeypatch.setattr(_labelled, "LABELS_HELD", 10 * rows)
    assert check(np.arange(rows) // 2) == 10
    # One positive pair is looked for until it is there, and none is an error if all were compared.
    assert 0 < check([0, 0, *range(1, rows - 1)]) <= rows
    with pytest.raises(ValueError, match="leave no positive pair among 60 rows"):
        check(np.arange(rows))
    with pytest.raises(ValueError, match="leave no negative pair among 60 rows"):
        check(np.zeros(rows, int))
    monkeypatch.setattr(_labelled, "_MOST_CHECKED", 25 * rows)
    with pytest.warns(UserWarning, match="no positive pair between 30 rows and all 60"):
        assert check(np.arange(rows)) == 30

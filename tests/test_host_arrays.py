"""Arrays of the host follow one rule for classes, and errors name what is wrong."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from contrastive_jax import (
    all_pairs_loss,
    anchor_loss,
    losses,
    memory,
    mining,
    pair_loss,
    proxy_loss,
    regularizers,
)
from contrastive_jax._host_arrays import as_classes, checked_classes

A = np.float32([[1, 2], [3, 4], [5, 6]])
B = A + np.float32(0.5)
LABELS = np.array([0, 1, 0])


def replaced(x, index, value, dtype=None):
    x = np.array(x, dtype)
    x[index] = value
    return x


# What takes classes on the device, by two rows and their classes.
TAKES_CLASSES = {
    "all_pairs_loss": all_pairs_loss,
    "all_pairs_loss, references": lambda x, c: all_pairs_loss(A[:, :2], LABELS, x, c),
    "anchor_loss": lambda x, c: anchor_loss(x, c, loss=losses.supcon()),
    "anchor_loss, references": lambda x, c: anchor_loss(A, LABELS, x, c, loss=losses.supcon()),
    "proxy_loss": lambda x, c: proxy_loss(x, c, A, loss=losses.arcface()),
    "online_hard_loss": mining.online_hard_loss,
    "memory.push": lambda x, c: memory.push(memory.empty(4, 2), x, c, 0),
    **{
        name: getattr(regularizers, name)
        for name in ("embedding_norm", "koleo", "variance", "covariance")
    },
}
WRONG_CLASSES = {
    "strings": (np.array(["a", "b", "a"]), "classes must be integers, got <U1; numpy.unique"),
    "floats": (np.array([0.0, np.nan, 1.0]), "classes must be integers, got float64"),
    "bools": (np.array([True, False, True]), "classes must be integers, got bool"),
    "column": (LABELS[:, None], r"squeeze it to \[N\] by .*classes.squeeze\(1\)"),
    "masked": (np.ma.masked_equal(LABELS, 1), "classes must not be masked"),
    "masked, in a list": ([0, np.ma.masked, 1], "classes must not be masked"),
    "-5": (replaced(LABELS, 1, -5), "classes must be from 0 .*, got -5 in row 1"),
    "2^31 + 5": (
        replaced(LABELS, 1, 2**31 + 5),
        "classes must be from .*, got 2147483653 in row 1",
    ),
    "2^32": ([0, 2**32, 0], "classes must be from 0 .*, got 4294967296 in row 1"),
}
WRONG_ROWS = {
    "nan": (replaced(A, (1, 0), np.nan), "must be finite, got nan in row 1"),
    "masked": (np.ma.masked_equal(A, 3), "must not be masked"),
    "strings": (A.astype(str), "must be numbers, got <U32"),
    "too large": (replaced(A, (1, 0), 1e300, np.float64), r"must fit float32, got 1e.300 in row 1"),
}


@pytest.mark.parametrize("call", TAKES_CLASSES)
@pytest.mark.parametrize(("classes", "message"), WRONG_CLASSES.values(), ids=WRONG_CLASSES)
def test_wrong_classes_are_named_by_all_that_takes_them(call, classes, message):
    with pytest.raises((ValueError, AssertionError), match=message):
        TAKES_CLASSES[call](A, classes)


@pytest.mark.parametrize("call", TAKES_CLASSES)
@pytest.mark.parametrize(("rows", "message"), WRONG_ROWS.values(), ids=WRONG_ROWS)
def test_wrong_rows_are_named_by_all_that_takes_them(call, rows, message):
    name = "references" if "references" in call else "embeddings"
    with pytest.raises((ValueError, AssertionError), match=f"{name} {message}"):
        TAKES_CLASSES[call](rows, LABELS)


def test_classes_in_every_form_are_the_same():
    want = [
        TAKES_CLASSES[name](A, LABELS) for name in ("all_pairs_loss", "variance", "memory.push")
    ]
    for same in (
        LABELS.tolist(),
        LABELS.astype(">i4"),
        LABELS.astype(np.uint8),
        jnp.asarray(LABELS),
        np.ma.masked_array(LABELS, mask=False),
        [jnp.int32(one) for one in LABELS],
    ):
        np.testing.assert_array_equal(as_classes("classes", same), LABELS)
        got = [
            TAKES_CLASSES[name](A, same) for name in ("all_pairs_loss", "variance", "memory.push")
        ]
        jax.tree.map(np.testing.assert_array_equal, got, want)
    big = A.astype(">f4")
    assert all_pairs_loss(big, LABELS, weights=LABELS.astype(">i2")) == all_pairs_loss(
        A, LABELS, weights=LABELS
    )
    np.testing.assert_array_equal(regularizers.variance(big), regularizers.variance(A))


STRINGS = np.array(["b", "a", "b"])


@pytest.mark.parametrize(
    ("values", "want"),
    [
        (np.ma.masked_array([5, 7, 5], mask=[0, 1, 0]), [5, None, 5]),
        (list(np.ma.masked_array([5, 7, 5], mask=[0, 1, 0])), [5, None, 5]),
        ([np.ma.masked, 7, -1], [None, 7, None]),
        (["b", np.ma.masked, "b"], ["b", None, "b"]),
        (np.ma.masked_array(np.array(["b", None], object), mask=[0, 1]), ["b", None]),
        (STRINGS.astype(object), ["b", "a", "b"]),
        (STRINGS.astype(np.dtypes.StringDType()), ["b", "a", "b"]),
        ([True, False], [1, 0]),
        (np.array([2**63, 3], np.uint64), [2**63, 3]),
        (jnp.array([4, -1], jnp.int8), [4, None]),
        ([], []),
    ],
)
def test_classes_of_the_host(values, want):
    classes, counts = checked_classes("classes", values)
    result = zip(classes.tolist(), counts, strict=True)
    assert [one if valid else None for one, valid in result] == want


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.0, 1.0], r"got float64 \[2\]"),
        (["a", 1], r"got <U\d+ \[2\]"),
        (np.array(["a", None], object), r"got object \[2\]"),
        ([None, 1], r"got object \[2\]"),
        ([[1], [2]], r"got int64 \[2, 1\]; squeeze it to \[N\] by classes.squeeze\(1\)"),
        (
            STRINGS.astype(object)[:, None],
            r"got object \[3, 1\]; squeeze it to \[N\] by classes.squeeze\(1\)",
        ),
        ([0, -2, -7], r"at least 0, or -1 for a row to ignore, got -2 in row 1 \(2 of 3 rows\)"),
    ],
)
def test_what_is_no_class_on_the_host(values, message):
    with pytest.raises(ValueError, match=f"classes must be .*{message}"):
        checked_classes("classes", values)


def test_ignored_rows_may_hold_anything():
    for hidden in (np.nan, 1e300):
        x, c = replaced(A, 1, hidden, np.float64), np.array([0, -1, 1])
        assert regularizers.embedding_norm(x, c) == np.mean([5, 61])
        bank = TAKES_CLASSES["memory.push"](x, c)
        np.testing.assert_array_equal(bank.embeddings[::2], [A[0], A[2]])
        assert all_pairs_loss(x, c) == all_pairs_loss(A, c)


@pytest.mark.parametrize("loss", ["arcface", "proxy_anchor", "soft_triple"])
def test_wrong_proxies_are_called_proxies(loss):
    def of(proxies):
        return proxy_loss(A, LABELS, proxies, loss=getattr(losses, loss)())

    for rows, message in WRONG_ROWS.values():
        with pytest.raises((ValueError, AssertionError), match=f"proxies {message}"):
            of(rows)
    with pytest.raises(ValueError, match="proxies must be finite, got nan in row 1"):
        of(jnp.asarray(replaced(A, (1, 0), np.nan)))
    if loss == "arcface":
        error, _ = jax.jit(checkify.checkify(of))(replaced(A, (1, 0), np.nan))
        with pytest.raises(ValueError, match="proxies must be finite, got nan in row 1"):
            error.throw()


TAKES_DISTANCE = {
    "pair_loss": lambda distance: pair_loss(A, B, LABELS, distance=distance),
    "all_pairs_loss": lambda distance: all_pairs_loss(A, LABELS, distance=distance),
    "anchor_loss": lambda d: anchor_loss(A, LABELS, loss=losses.supcon(), distance=d),
    "a fixed loss": lambda d: anchor_loss(A, LABELS, loss=losses.circle(), distance=d),
    "mean_over_pairs": lambda distance: losses.mean_over_pairs(losses.contrastive, distance),
    "hard": lambda distance: mining.hard(distance=distance),
    "easy_positive": lambda distance: mining.easy_positive(distance=distance),
    "semi_hard": lambda distance: mining.semi_hard(distance=distance),
    "multi_similarity": lambda distance: mining.multi_similarity(distance=distance),
    "online_hard_loss": lambda d: mining.online_hard_loss(A, LABELS, distance=d),
}


@pytest.mark.parametrize("call", TAKES_DISTANCE)
def test_the_name_of_a_distance_is_refused(call):
    with pytest.raises(ValueError, match=r"distance must be a function .*, got 'cosine'"):
        TAKES_DISTANCE[call]("cosine")


def test_tiles_are_whole_numbers_of_any_type():
    assert all_pairs_loss(A, LABELS, tile=np.int64(8)) == all_pairs_loss(A, LABELS, tile=8)
    for wrong in (8.0, np.int64(12), "8", 0):
        with pytest.raises(ValueError, match=f"whole multiple of 8 and above 0, got .*{wrong}"):
            all_pairs_loss(A, LABELS, tile=wrong)


def hyperparameters():
    """Every number of every loss, as a function of it."""

    def of(function, name, *arguments):
        return lambda value: function(*arguments, **{name: value})

    pair = (np.float32(0.5), 1)
    for function in (getattr(losses, name) for name in losses.__all__):
        if inspect.isfunction(function):
            for name, parameter in inspect.signature(function).parameters.items():
                if parameter.default is not parameter.empty and type(parameter.default) is float:
                    takes_pair = "distance" in inspect.signature(function).parameters
                    yield f"{function.__name__} {name}", of(function, name, *pair * takes_pair)
    yield "weighted_sum weight", lambda value: losses.weighted_sum((value, losses.supcon()))
    for name in ("eps", "target"):
        yield f"variance {name}", of(regularizers.variance, name, A)
    yield "semi_hard margin", of(mining.semi_hard, "margin")
    yield "multi_similarity epsilon", of(mining.multi_similarity, "epsilon")
    yield "online_hard_loss margin", of(mining.online_hard_loss, "margin", A, LABELS)
    yield "pair_loss margin", of(pair_loss, "margin", A, B, LABELS)
    yield "all_pairs_loss margin", of(all_pairs_loss, "margin", A, LABELS)
    yield (
        "references max_age",
        lambda value: memory.references(memory.empty(2, 2), 3, max_age=value),
    )


HYPERPARAMETERS = dict(hyperparameters())


def test_all_numbers_are_met():
    assert len(HYPERPARAMETERS) > 45
    assert {"ntxent temperature", "soft_triple gamma", "sigmoid bias"} < {*HYPERPARAMETERS}


@pytest.mark.parametrize("number", HYPERPARAMETERS)
def test_numbers_are_scalars(number):
    of, name = HYPERPARAMETERS[number], number.split()[1]
    column = jnp.full((1,), 0.4)
    with pytest.raises(AssertionError, match=rf"{name} must be a scalar|a scalar {name}"):
        of(column)
    # A learned one is traced.
    with pytest.raises(AssertionError, match=rf"{name} must be a scalar|a scalar {name}"):
        jax.eval_shape(lambda x: (of(x), 0)[1], column)
    with pytest.raises(AssertionError, match=rf"{name} must be a scalar, a real number, got '0.4'"):
        of("0.4")
    with pytest.raises(ValueError, match=f"{name} must be .* got nan"):
        of(np.float32(np.nan))


@pytest.mark.parametrize("bins", [None, np.nan, np.inf, 2.5, 0, "10", [10]])
def test_bins_are_a_whole_number(bins):
    with pytest.raises(ValueError, match="bins must be a whole number, at least 1, got"):
        losses.fast_ap(bins)

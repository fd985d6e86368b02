"""Pair losses carry the distance of their paper, against formulas in float64 NumPy."""

import functools
import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src import test_util
from jax.experimental import checkify

from contrastive_jax import (
    all_pairs_loss,
    all_pairs_sums,
    anchor_loss,
    distances,
    losses,
    mining,
    pair_loss,
)

pytestmark = pytest.mark.usefixtures("unrefined")

CLASSES = np.array([0, 1, 2, 0, 1, 2, -1, 0, 1, 2])
X = np.random.default_rng(0).standard_normal((len(CLASSES), 4)).astype(np.float32)

NUMPY = {
    "euclidean": lambda a, b: np.linalg.norm(a - b, axis=-1),
    "squared_euclidean": lambda a, b: np.sum((a - b) ** 2, axis=-1),
    "manhattan": lambda a, b: np.abs(a - b).sum(-1),
    "cosine": lambda a, b: (
        1 - np.sum(a * b, -1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    ),
}
AT_LEAST_0 = sorted({*distances.__all__} - {"negative_dot"})
# For each loss its own distance, the ones it allows, and its formula of a distance and a label.
CARRIED = {
    "contrastive": (
        "euclidean",
        AT_LEAST_0,
        lambda d, y: np.where(y, np.maximum(0, 1 - d), d) ** 2,
    ),
    "contrastive_halved": (
        "euclidean",
        AT_LEAST_0,
        lambda d, y: np.where(y, np.maximum(0, 1 - d), d) ** 2 / 2,
    ),
    "contrastive_linear": (
        "euclidean",
        AT_LEAST_0,
        lambda d, y: np.where(y, np.maximum(0, 1 - d), d),
    ),
    "cosine_embedding": ("cosine", ["cosine"], lambda d, y: np.where(y, np.maximum(0, 1 - d), d)),
    "sentence_contrastive": (
        "cosine",
        ["cosine", "euclidean", "manhattan"],
        lambda d, y: np.where(y, np.maximum(0, 0.5 - d), d) ** 2 / 2,
    ),
    "sigmoid": (
        "cosine",
        ["cosine"],
        lambda d, y: np.logaddexp(0, np.where(y, 1, -1) * (10 * (1 - d) - 10)),
    ),
    "logistic": (
        "squared_euclidean",
        AT_LEAST_0,
        lambda d, y: np.logaddexp(0, np.where(y, -1, 1) * (d - 1)),
    ),
    "margin_based": (
        "euclidean",
        AT_LEAST_0,
        lambda d, y: np.maximum(0, 0.2 + np.where(y, -1, 1) * (d - 1.2)),
    ),
}


def _distance(name):
    """A distance of the library as a function of two vectors."""
    parameters = {"minkowski": {"order": 3.0}, "mahalanobis": {"factor": np.eye(4, dtype="f")}}
    function = getattr(distances, name)
    return functools.partial(function, **parameters[name]) if name in parameters else function


def _mean_over_pairs(formula, distance, x):
    x = x.astype(float)
    counts = (CLASSES[:, None] >= 0) & (CLASSES >= 0) & ~np.eye(len(x), dtype=bool)
    values = formula(distance(x[:, None], x[None]), CLASSES[:, None] != CLASSES)
    return values[counts].mean()


def test_every_pair_loss_is_here():
    carry = [name for name in losses.__all__ if hasattr(getattr(losses, name), "distances")]
    assert sorted({*carry} - {"PairLoss"}) == sorted(CARRIED)


@pytest.mark.parametrize("name", CARRIED)
def test_distances(name):
    loss, (own, allowed, formula) = getattr(losses, name), CARRIED[name]
    labels = np.array([0, 1, 1, 0, 1])
    assert loss.distance is getattr(distances, own)
    a, b = X[:5].astype(float), X[5:].astype(float)
    want = formula(NUMPY[own](a, b), labels)
    for one in (loss, loss(), functools.partial(loss), functools.wraps(loss)(lambda *d: loss(*d))):
        assert losses.resolve_distance(one) is loss.distance
        np.testing.assert_allclose(
            pair_loss(X[:5], X[5:], labels, loss=one), want, rtol=1e-5, atol=1e-6
        )
    for distance in (getattr(distances, name) for name in allowed):
        assert losses.resolve_distance(loss, distance) is distance
    refused = {*distances.__all__} - {*allowed}
    assert refused
    for other in sorted(refused):
        message = rf"{name} expects .*distance.*, got {other}.*; leave distance out"
        for one in (loss, loss(), functools.partial(loss)):
            with pytest.raises(ValueError, match=message):
                pair_loss(X[:5], X[5:], labels, loss=one, distance=_distance(other))
            with pytest.raises(ValueError, match=message):
                all_pairs_loss(X, CLASSES, loss=one, distance=_distance(other))


@pytest.mark.parametrize("name", ["sigmoid", "cosine_embedding", "sentence_contrastive"])
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["plain", "jit"])
def test_all_pairs_measure_the_cosine_that_the_loss_says(name, transform):
    """In value and, along one direction, in gradient."""
    loss, formula = getattr(losses, name), CARRIED[name][2]
    want = functools.partial(_mean_over_pairs, formula, NUMPY["cosine"])
    value, gradient = transform(
        jax.value_and_grad(lambda x: all_pairs_loss(x, CLASSES, loss=loss))
    )(X)
    np.testing.assert_allclose(value, want(X), rtol=1e-5)
    way = np.random.default_rng(1).standard_normal(X.shape)
    slope = (want(X + 1e-5 * way) - want(X - 1e-5 * way)) / 2e-5
    np.testing.assert_allclose(np.sum(gradient * way), slope, rtol=1e-4)
    euclidean = _mean_over_pairs(formula, NUMPY["euclidean"], X)
    assert abs(euclidean / want(X) - 1) > 0.1


def test_hyperparameters_are_bound_with_the_distance():
    bound = losses.sigmoid(temperature=5.0, bias=-3.0)
    assert bound.distance is distances.cosine
    np.testing.assert_allclose(bound(0.3, 1), losses.sigmoid(0.3, 1, 5.0, -3.0))
    np.testing.assert_allclose(
        bound(distance=0.3, label=1), losses.sigmoid(0.3, label=1, bias=-3.0, temperature=5.0)
    )
    assert losses.resolve_distance(functools.partial(bound, bias=1.0)) is distances.cosine
    assert losses.resolve_distance(pickle.loads(pickle.dumps(bound))) is distances.cosine

    # A learned one is traced, and has its gradient.
    def value(temperature):
        loss = losses.sigmoid(temperature=temperature, bias=-3.0)
        return all_pairs_sums(X, CLASSES, loss=loss).loss.sum()

    slope = (value(5.0 + 0.01) - value(5.0 - 0.01)) / 0.02
    np.testing.assert_allclose(jax.jit(jax.grad(value))(5.0), slope, rtol=1e-3)


def test_equal_losses_compile_once():
    first = all_pairs_loss(X, CLASSES, loss=losses.sigmoid(bias=-2.0))
    with test_util.count_jit_compilation_cache_miss() as compilations:
        again = all_pairs_loss(X, CLASSES, loss=losses.sigmoid(bias=-2.0))
    assert compilations() == 0
    assert first == again != all_pairs_loss(X, CLASSES, loss=losses.sigmoid(bias=-1.0))


def test_wrong_hyperparameters_are_named_where_they_are_bound():
    message = "sigmoid got an unexpected keyword argument 'scale'; its hyperparameters are "
    with pytest.raises(TypeError, match=re.escape(f"{message}temperature, bias")):
        losses.sigmoid(scale=3.0)
    with pytest.raises(ValueError, match="temperature must be above 0 and finite, got -1"):
        all_pairs_loss(X, CLASSES, loss=losses.sigmoid(temperature=-1.0))
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'label'"):
        losses.sigmoid(0.5)


def test_a_bare_function_is_a_loss_of_euclidean_distances():
    def bare(distance, label):
        return losses.sigmoid(distance, label)

    assert losses.resolve_distance(bare) is distances.euclidean
    want = _mean_over_pairs(CARRIED["sigmoid"][2], NUMPY["euclidean"], X)
    np.testing.assert_allclose(all_pairs_loss(X, CLASSES, loss=bare), want, rtol=1e-5)
    # It measures any other that is named.
    want = _mean_over_pairs(CARRIED["sigmoid"][2], NUMPY["manhattan"], X)
    actual = all_pairs_loss(X, CLASSES, loss=bare, distance=distances.manhattan)
    np.testing.assert_allclose(actual, want, rtol=1e-5)


def test_a_loss_of_ones_own_carries_its_distance():
    @losses.with_distance(distances.manhattan, (distances.manhattan, distances.chebyshev))
    def ratio(distance, label, scale=1.0):
        """Documented."""
        return jnp.where(label == 0, distance, scale / (1 + distance))

    assert ratio.__doc__ == "Documented."
    want = _mean_over_pairs(lambda d, y: np.where(y, 2 / (1 + d), d), NUMPY["manhattan"], X)
    np.testing.assert_allclose(all_pairs_loss(X, CLASSES, loss=ratio(scale=2.0)), want, rtol=1e-5)
    message = "ratio expects the manhattan or chebyshev distance, .* got cosine"
    with pytest.raises(ValueError, match=message):
        pair_loss(X, X, 0 * CLASSES, loss=ratio, distance=distances.cosine)
    with pytest.raises(ValueError, match="distance must be a function of two vectors"):
        losses.with_distance("cosine")


def test_the_distances_of_a_loss_hold_its_own():
    for others, names in (((distances.cosine,), "cosine"), ((), "none")):
        message = f"must hold the distance that the loss carries, euclidean, got {names}"
        with pytest.raises(ValueError, match=message):
            losses.with_distance(distances.euclidean, others)
    with pytest.raises(ValueError, match="distance must be a function of two vectors"):
        losses.with_distance(distances.cosine, (distances.cosine, "euclidean"))


# Losses that are made of a pair loss.
MADE = {
    "mean_over_pairs": losses.mean_over_pairs,
    "weighted_sum": lambda loss: losses.weighted_sum((1.0, losses.mean_over_pairs(loss))),
    "hard": mining.hard,
    "easy_positive": mining.easy_positive,
    "semi_hard": mining.semi_hard,
    "multi_similarity": mining.multi_similarity,
    "mined sum": lambda loss: mining.hard(losses.mean_over_pairs(loss)),
}


@pytest.mark.parametrize("name", MADE)
def test_what_is_made_of_a_pair_loss_measures_the_distances_that_fit_it(name):
    make = MADE[name]
    for loss, distance in (
        (losses.contrastive, "negative_dot"),
        (losses.sentence_contrastive, "chebyshev"),
        (losses.sigmoid(bias=-5.0), "euclidean"),
    ):
        message = f"expects .*, got {distance}"
        with pytest.raises(ValueError, match=message):
            anchor_loss(X, CLASSES, loss=make(loss), distance=getattr(distances, distance))
    made = make(losses.sentence_contrastive)
    assert made.distance is distances.cosine
    value = anchor_loss(X, CLASSES, loss=made, distance=distances.euclidean)
    other = make(losses.with_distance(distances.euclidean)(losses.sentence_contrastive))
    np.testing.assert_allclose(value, anchor_loss(X, CLASSES, loss=other), rtol=1e-6)


def test_a_fixed_loss_takes_its_distance_bound_by_partial_and_one_that_can_not_be_compared():
    loss, same = losses.circle(), functools.partial(distances.cosine)
    value = anchor_loss(X, CLASSES, loss=loss)
    other = anchor_loss(X, CLASSES, loss=loss, distance=same)
    np.testing.assert_allclose(other, value, rtol=1e-6)

    class Distance:
        __hash__ = None

        def __call__(self, a, b):
            return jnp.sum(a * b)

        def __eq__(self, other):
            raise TypeError

    for call in (
        lambda: anchor_loss(X, CLASSES, loss=loss, distance=Distance()),
        lambda: mining.hard(loss, Distance()),
        lambda: anchor_loss(
            X,
            CLASSES,
            loss=losses.supcon()._replace(distance=distances.minkowski, fixed=True),
            distance=functools.partial(distances.minkowski, order=3.0),
        ),
    ):
        with pytest.raises(ValueError, match=r"holds for (cosine|minkowski) distances alone, got"):
            call()


@pytest.mark.parametrize("margin", [-0.5, 0.0, 0.4])
def test_a_margin_that_is_a_cosine_may_be_0_or_less(margin):
    def formula(d, y):
        return np.where(y, np.maximum(0, 1 - d - margin), d)

    want = _mean_over_pairs(formula, NUMPY["cosine"], X)
    for one in (margin, np.full(3, margin, np.float32), jnp.float32(margin)):
        value = all_pairs_loss(X, CLASSES, loss=losses.cosine_embedding, margin=one)
        np.testing.assert_allclose(value, want, rtol=1e-5)
    checked = jax.jit(
        checkify.checkify(
            lambda m: all_pairs_loss(X, CLASSES, loss=losses.cosine_embedding, margin=m)
        )
    )
    error, value = checked(margin)
    assert error.get() is None
    np.testing.assert_allclose(value, want, rtol=1e-5)
    assert "margin must be in [-1, 1), got 1.5" in checked(1.5)[0].get()
    labels = np.array([0, 1, 1, 0, 1])
    value = pair_loss(X[:5], X[5:], labels, loss=losses.cosine_embedding(), margin=margin)
    want = formula(NUMPY["cosine"](X[:5].astype(float), X[5:].astype(float)), labels)
    np.testing.assert_allclose(value, want, rtol=1e-5, atol=1e-6)


def test_a_bound_loss_of_ones_own_is_called_with_arrays_alone():
    def own(distance, label, scale, margin):
        label = label.astype(distance.dtype)
        return scale * jnp.where(
            label == 0, distance, jnp.maximum(0, margin.astype(float) - distance)
        )

    bound = functools.partial(own, scale=2.0)
    want = _mean_over_pairs(
        lambda d, y: 2 * np.where(y, np.maximum(0, 1.5 - d), d), NUMPY["euclidean"], X
    )
    np.testing.assert_allclose(all_pairs_loss(X, CLASSES, loss=bound, margin=1.5), want, rtol=1e-5)


@pytest.mark.parametrize(
    ("loss", "margin", "message"),
    [
        (losses.cosine_embedding, 1.5, r"margin must be in \[-1, 1\), got 1.5"),
        (losses.cosine_embedding, -1.5, r"margin must be in \[-1, 1\), got -1.5"),
        (losses.contrastive(positive_margin=2.0), 1.0, r"positive_margin must be in \[0, 1\)"),
        (losses.contrastive, 0.0, "margin must be above 0 and finite, got 0.0"),
        (lambda d, y, margin: d * margin, -1.0, "margin must be above 0 and finite, got -1.0"),
    ],
)
def test_wrong_margins_are_refused_wherever_they_are_passed(loss, margin, message):
    for call in (
        lambda: all_pairs_loss(X, CLASSES, loss=loss, margin=margin),
        lambda: pair_loss(X, X[::-1], np.ones(10, int), loss=loss, margin=margin),
        lambda: mining.online_hard_loss(X, CLASSES, loss=loss, margin=margin),
    ):
        with pytest.raises(ValueError, match=message):
            call()


MARGINS = np.float32([0.5, 2.0, 3.0])


def _by_class(x, margins, reduction, y=None, y_classes=None):
    one_set = y is None
    x = x.astype(float)
    y, y_classes = (x, CLASSES) if one_set else (y.astype(float), y_classes)
    counts = (CLASSES[:, None] >= 0) & (y_classes >= 0)
    if one_set:
        counts &= ~np.eye(len(x), dtype=bool)
    d, apart = NUMPY["euclidean"](x[:, None], y[None]), CLASSES[:, None] != y_classes
    own = margins.astype(float)[np.maximum(CLASSES, 0)][:, None]
    values = np.where(apart, np.maximum(0, own - d), d) ** 2
    if reduction == "sum":
        return values[counts].sum()
    if reduction == "mean":
        return values[counts].mean()
    counts &= values != 0 if reduction == "active" else True
    return values[counts & apart].mean() + values[counts & ~apart].mean()


@pytest.mark.parametrize(
    ("reduction", "tile"), [("mean", None), ("balanced", 8), ("active", 8), ("sum", None)]
)
def test_a_margin_of_each_class(reduction, tile):
    program = jax.jit(
        jax.value_and_grad(
            lambda x, m: all_pairs_loss(x, CLASSES, margin=m, reduction=reduction, tile=tile),
            (0, 1),
        )
    )
    value, (by_x, by_margin) = program(X, MARGINS)
    want = functools.partial(_by_class, reduction=reduction)
    np.testing.assert_allclose(value, want(X, MARGINS), rtol=1e-5)
    rng = np.random.default_rng(2)
    way, along = rng.standard_normal(X.shape), rng.standard_normal(3)
    x, m, h = X.astype(float), MARGINS.astype(float), 1e-6
    slope = (want(x + h * way, m) - want(x - h * way, m)) / (2 * h)
    np.testing.assert_allclose(np.sum(by_x * way), slope, rtol=1e-4)
    slope = (want(x, m + h * along) - want(x, m - h * along)) / (2 * h)
    np.testing.assert_allclose(np.sum(by_margin * along), slope, rtol=1e-4)


def test_a_margin_of_each_class_between_two_sets_and_in_other_ways():
    y, y_classes = X[::-1] + 0.1, CLASSES[::-1]
    actual = all_pairs_loss(X, CLASSES, y, y_classes, margin=MARGINS, reduction="balanced")
    want = _by_class(X, MARGINS, "balanced", y, y_classes)
    np.testing.assert_allclose(actual, want, rtol=1e-5)
    plain = all_pairs_loss(
        X, CLASSES, y, y_classes, margin=MARGINS, reduction="balanced", method="autodiff"
    )
    np.testing.assert_allclose(plain, want, rtol=1e-5)
    # Equal margins are one margin.
    sums = all_pairs_sums(X, CLASSES, margin=np.full(3, 1.5))
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-6),
        sums,
        all_pairs_sums(X, CLASSES, margin=1.5),
    )
    nan = X.copy()
    nan[2] = np.nan
    assert np.isnan(jax.jit(lambda x: all_pairs_loss(x, CLASSES, margin=MARGINS))(nan))


@pytest.mark.long  # margin_by_class, which has data of its anchors too, is spread over devices
def test_a_margin_of_each_class_over_devices():
    x, c = X[:8], CLASSES[:8]

    def loss(x, c, margins, axis_name=None):
        return all_pairs_loss(
            x, c, margin=margins, reduction="balanced", axis_name=axis_name, tile=8
        )

    value, by = jax.jit(jax.value_and_grad(loss, (0, 2)))(x, c, MARGINS)
    mapped = jax.jit(
        jax.vmap(
            jax.value_and_grad(functools.partial(loss, axis_name="d"), (0, 2)),
            (0, 0, None),
            axis_name="d",
        )
    )
    actual, (by_x, by_margin) = mapped(x.reshape(2, 4, 4), c.reshape(2, 4), MARGINS)
    np.testing.assert_allclose(actual, [value, value], rtol=1e-6)
    np.testing.assert_allclose(by_x.reshape(8, 4), by[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(by_margin.sum(0), by[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("margin", "options", "error", "message"),
    [
        (
            MARGINS[:2],
            {},
            AssertionError,
            "a scalar margin or one of each class, got 2 for class 2",
        ),
        (MARGINS[:, None], {}, AssertionError, r"a scalar margin or .* got shape \(3, 1\)"),
        (-MARGINS, {}, ValueError, "margin must be above 0 and finite, got -0.5 in row 0"),
        (MARGINS, {"weights": np.ones(10)}, ValueError, "a margin of each class takes no weights"),
    ],
)
def test_wrong_margins_of_classes(margin, options, error, message):
    with pytest.raises(error, match=message):
        all_pairs_loss(X, CLASSES, margin=margin, **options)


def test_all_pairs_have_no_loss_of_each():
    with pytest.raises(
        ValueError, match=r"got 'none'; anchor_loss\(.*mean_over_pairs.* and pair_loss the"
    ):
        all_pairs_loss(X, CLASSES, reduction="none")

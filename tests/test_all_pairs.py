"""All pairs of a batch against direct float64 NumPy, in every form the walk over them takes."""

import functools
import gc
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contrastive_jax import all_pairs_loss, all_pairs_sums, distances, losses, pair_loss

REDUCTIONS = ["mean", "balanced", "active", "sum"]
FACTOR = np.random.default_rng(7).standard_normal((2, 3))


def _cosine(a, b):
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    parallel = np.divide((a * b).sum(-1), lengths, out=np.zeros_like(lengths), where=lengths > 0)
    return 1 - np.clip(parallel, -1, 1)


# Each distance here, and in float64 NumPy on `[..., D]`.
DISTANCES = {
    "euclidean": (distances.euclidean, lambda a, b: np.linalg.norm(a - b, axis=-1)),
    "squared_euclidean": (distances.squared_euclidean, lambda a, b: ((a - b) ** 2).sum(-1)),
    "cosine": (distances.cosine, _cosine),
    "angular": (distances.angular, lambda a, b: np.arccos(1 - _cosine(a, b))),
    "negative_dot": (distances.negative_dot, lambda a, b: -(a * b).sum(-1)),
    "mahalanobis": (
        functools.partial(distances.mahalanobis, factor=FACTOR.astype(np.float32)),
        lambda a, b: np.linalg.norm((a - b) @ FACTOR.astype(np.float32).astype(float).T, axis=-1),
    ),
    "manhattan": (distances.manhattan, lambda a, b: np.abs(a - b).sum(-1)),
    "chebyshev": (distances.chebyshev, lambda a, b: np.abs(a - b).max(-1)),
    "minkowski": (
        functools.partial(distances.minkowski, order=3.0),
        lambda a, b: (np.abs(a - b) ** 3).sum(-1) ** (1 / 3),
    ),
    # As users write it: without a derivative between a vector and itself.
    "own": (
        lambda a, b: jnp.sqrt(jnp.sum((a - b) ** 2)),
        lambda a, b: np.linalg.norm(a - b, axis=-1),
    ),
    # Another one in each direction.
    "one_sided": (
        lambda a, b: jnp.sum((a - b) ** 2) / (1 + jnp.sum(a**2)),
        lambda a, b: ((a - b) ** 2).sum(-1) / (1 + (a**2).sum(-1)),
    ),
}


def _contrastive(distance, negative, margin):
    return np.where(negative, np.maximum(0, margin - distance) ** 2, distance**2)


def _logistic(distance, label, margin):
    return jax.nn.softplus((1 - 2 * label) * (distance - margin))


def _linear(distance, label, margin):
    """pytorch-metric-learning's form."""
    return jnp.where(label == 0, distance, jnp.maximum(0, margin - distance))


def _own_contrastive(distance, label, margin):
    """The library's own refuses distances below 0, which the sweep takes as it does any other."""
    return losses.contrastive(distance, label, margin)


LOSSES = {
    "contrastive": (_own_contrastive, _contrastive),
    "logistic": (
        _logistic,
        lambda d, y, margin: np.logaddexp(0, np.where(y, -1, 1) * (d - margin)),
    ),
    "linear": (_linear, lambda d, y, margin: np.where(y, np.maximum(0, margin - d), d)),
}


def _expected(
    x,
    classes,
    y=None,
    y_classes=None,
    *,
    distance="euclidean",
    loss="contrastive",
    margin=1.0,
    reduction="mean",
    weights=None,
    y_weights=None,
):
    """Straight from the definition, over the whole matrix."""
    one_set = y is None
    x, classes = np.asarray(x, np.float64), np.asarray(classes)
    y, y_classes = (x, classes) if one_set else (np.asarray(y, np.float64), np.asarray(y_classes))
    weights = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)
    if one_set:
        y_weights = weights
    y_weights = np.ones(len(y)) if y_weights is None else np.asarray(y_weights, np.float64)
    pair = np.where(classes < 0, 0, weights)[:, None] * np.where(y_classes < 0, 0, y_weights)
    if one_set:
        pair = pair * (1 - np.eye(len(x)))
    value = DISTANCES[distance][1](x[:, None], y[None])
    negative = classes[:, None] != y_classes
    f = LOSSES[loss][1](value, negative, margin)
    if reduction == "sum":
        return (pair * f).sum()
    counted = pair * (f != 0) if reduction == "active" else pair
    masks = [np.ones_like(negative)] if reduction == "mean" else [~negative, negative]
    total = 0.0
    for mask in masks:
        count = (counted * mask).sum()
        total += (pair * f * mask).sum() / count if count > 0 else 0.0
    return total


def _numerical(function, x, step=1e-6):
    gradient = np.zeros_like(x)
    for place in np.ndindex(x.shape):
        ahead, behind = x.copy(), x.copy()
        ahead[place] += step
        behind[place] -= step
        gradient[place] = (function(ahead) - function(behind)) / (2 * step)
    return gradient


def _batch(seed, batch, size, classes=3, scale=1.0):
    rng = np.random.default_rng(seed)
    x = (scale * rng.standard_normal((batch, size))).astype(np.float32)
    return x, rng.integers(0, classes, batch)


def test_by_hand():
    # Distances 5 (similar), 1 and 4 (dissimilar), each pair in both orders.
    x, classes = np.float32([[0, 0], [0, 5], [0, 1]]), np.array([0, 0, 1])
    np.testing.assert_allclose(all_pairs_loss(x, classes, margin=3.0), (25 + 4 + 0) / 3)
    for reduction, value in [("balanced", 25 + 4 / 2), ("active", 25 + 4), ("sum", 2 * 29)]:
        actual = all_pairs_loss(x, classes, margin=3.0, reduction=reduction)
        np.testing.assert_allclose(actual, value, rtol=1e-6)
    sums = all_pairs_sums(x, classes, margin=3.0)
    np.testing.assert_allclose(sums.loss, [50, 8], rtol=1e-6)
    np.testing.assert_array_equal(sums.pairs, [2, 4])
    np.testing.assert_array_equal(sums.active, [2, 2])


ROWS = 19


@functools.cache
def _program(distance="euclidean", reduction="mean", loss="contrastive"):
    """Value, and gradients by the embeddings and the margin, of batches of ROWS rows."""

    def value(x, c, margin):
        return all_pairs_loss(
            x,
            c,
            loss=LOSSES[loss][0],
            distance=DISTANCES[distance][0],
            margin=margin,
            reduction=reduction,
            tile=8,
        )

    return jax.jit(jax.value_and_grad(value, argnums=(0, 2)))


def _filled(x, classes):
    """ROWS rows; those that are added do not count."""
    more = ROWS - len(x)
    x = np.concatenate([x, np.ones((more, x.shape[1]), np.float32)])
    return x, np.concatenate([np.asarray(classes), np.full(more, -1)])


# Every reduction and every loss with one distance, and every distance with one reduction.
PROGRAMS = [
    *[("euclidean", reduction, "contrastive") for reduction in REDUCTIONS],
    *[("euclidean", "active", loss) for loss in ("logistic", "linear")],
    *[
        (distance, "balanced", "contrastive")
        for distance in sorted(DISTANCES)
        if distance != "euclidean"
    ],
]
each_program = pytest.mark.parametrize(("distance", "reduction", "loss"), PROGRAMS)


@each_program
@settings(deadline=None, max_examples=10, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    batch=st.sampled_from([1, 2, 5, 8, 19]),
    classes=st.sampled_from([1, 3, 1000]),
    margin=st.sampled_from([0.3, 1.0, 4.0]),
)
def test_values_against_numpy(distance, loss, reduction, seed, batch, classes, margin):
    x, c = _batch(seed, batch, 3, classes)
    actual, _ = _program(distance, reduction, loss)(*_filled(x, c), margin)
    want = _expected(x, c, distance=distance, loss=loss, margin=margin, reduction=reduction)
    np.testing.assert_allclose(actual, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch", [2, 5, 33])
def test_batches_of_other_sizes(batch):
    """They fill a part of a tile, or some tiles and a part."""
    x, c = _batch(batch, batch, 3)
    for distance in ("cosine", "manhattan"):
        actual = all_pairs_loss(x, c, distance=DISTANCES[distance][0], tile=16)
        np.testing.assert_allclose(actual, _expected(x, c, distance=distance), rtol=1e-5, atol=1e-6)


@pytest.mark.long
@settings(deadline=None, max_examples=30, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    batch=st.sampled_from([1, 2, 5, 8, 19, 33]),
    distance=st.sampled_from(sorted(DISTANCES)),
    loss=st.sampled_from(sorted(LOSSES)),
    reduction=st.sampled_from(REDUCTIONS),
    classes=st.sampled_from([1, 3, 1000]),
)
def test_combinations_against_numpy(seed, batch, distance, loss, reduction, classes):
    x, c = _batch(seed, batch, 3, classes)
    options = {"loss": LOSSES[loss][0], "distance": DISTANCES[distance][0]}
    actual = all_pairs_loss(x, c, margin=1.0, reduction=reduction, tile=16, **options)
    want = _expected(x, c, distance=distance, loss=loss, margin=1.0, reduction=reduction)
    np.testing.assert_allclose(actual, want, rtol=1e-5, atol=1e-6)


@each_program
def test_gradients_against_numpy(distance, reduction, loss):
    x, c = _batch(1, ROWS, 3)
    # A loss of zero at the margin, approached linearly, has a corner that differences would feel.
    expected = functools.partial(
        _expected, distance=distance, loss=loss, margin=1.1, reduction=reduction
    )
    value, gradient = _program(distance, reduction, loss)(x, c, 1.1)
    np.testing.assert_allclose(value, expected(x, c), rtol=1e-5)
    want = _numerical(lambda x: expected(x, c), x.astype(float))
    np.testing.assert_allclose(gradient[0], want, rtol=1e-4, atol=2e-5 * abs(want).max())
    by_margin = _numerical(
        lambda m: _expected(x, c, distance=distance, loss=loss, margin=m[0], reduction=reduction),
        np.array([1.1]),
    )
    np.testing.assert_allclose(gradient[1], by_margin[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("distance", "reduction"),
    [
        ("euclidean", "mean"),
        ("cosine", "active"),
        ("negative_dot", "sum"),
        ("one_sided", "balanced"),
    ],
)
def test_two_sets(distance, reduction, longer):
    x, c = _batch(1, 19, 3)
    y, d = _batch(2, 27, 3)
    v, w = np.random.default_rng(3).uniform(0, 2, (2, 27))
    v = v[:19]
    c[4] = d[9] = -1
    options = {"distance": DISTANCES[distance][0], "margin": 1.1, "reduction": reduction}

    def ours(x, y):
        weights = {"weights": v, "reference_weights": w}
        return all_pairs_loss(x, c, y, d, loss=_own_contrastive, tile=16, **weights, **options)

    def want(x, y):
        return _expected(x, c, y, d, weights=v, y_weights=w, **(options | {"distance": distance}))

    value, gradients = jax.jit(jax.value_and_grad(ours, argnums=(0, 1)))(x, y)
    np.testing.assert_allclose(value, want(x, y), rtol=1e-5)
    for gradient, by in [
        (gradients[0], _numerical(lambda x: want(x, y), x.astype(float))),
        (gradients[1], _numerical(lambda y: want(x, y), y.astype(float))),
    ]:
        np.testing.assert_allclose(gradient, by, rtol=1e-4, atol=2e-5 * abs(by).max())
    if distance not in ("euclidean", "one_sided") and not longer:
        return
    # By one of them alone, as where the other is a memory bank: by products and pair by pair.
    for place, gradient in enumerate(gradients):
        alone = jax.jit(jax.grad(ours, place))(x, y)
        np.testing.assert_allclose(alone, gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("distance", ["euclidean", "manhattan"])
def test_ignored_rows_and_weights(distance):
    x, c = _batch(3, 30, 3)
    weights = np.random.default_rng(0).uniform(0, 2, 30).astype(np.float32)
    weights[3] = 0
    c[[0, 7, 8, 29]] = -1
    clean = x.copy()
    x[7], x[8] = np.nan, np.inf
    options = {"margin": 1.5, "weights": weights, "reduction": "balanced"}
    loss = jax.value_and_grad(
        lambda x: all_pairs_loss(x, c, distance=DISTANCES[distance][0], tile=8, **options)
    )
    value, gradient = jax.jit(loss)(x)
    want = functools.partial(_expected, distance=distance, **options)
    np.testing.assert_allclose(value, want(clean, c), rtol=1e-5)
    by = _numerical(lambda x: want(x, c), clean.astype(float))
    np.testing.assert_allclose(gradient, by, rtol=1e-4, atol=2e-5 * abs(by).max())
    assert (np.asarray(gradient)[c == -1] == 0).all()


def test_padding_changes_nothing():
    x, c = _batch(4, 13, 3)
    value, (gradient, _) = _program()(*_filled(x, c), 1.0)
    padded = np.concatenate([x, np.full((ROWS - 13, 3), 1e3, np.float32)])
    classes = np.concatenate([c, np.full(ROWS - 13, -1)])
    more, (longer, _) = _program()(padded, classes, 1.0)
    np.testing.assert_allclose(more, value, rtol=1e-6)
    np.testing.assert_allclose(longer, gradient, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(more, _expected(x, c), rtol=1e-5)
    by = _direct_gradient(x, c, 1.0)
    np.testing.assert_allclose(longer[:13], by, rtol=1e-4, atol=1e-5 * abs(by).max())
    assert (longer[13:] == 0).all()


# Fifteen rows each, which are filled up for the programs of the other tests.
DEGENERATE = {
    "single": (np.full((15, 3), 2, np.float32), [0, *[-1] * 14]),
    "pair": (np.arange(45, dtype=np.float32).reshape(15, 3), [0, 1, *[-1] * 13]),
    "all_ignored": (_batch(0, 15, 3)[0], [-1] * 15),
    "all_equal": (np.ones((15, 3), np.float32), np.arange(15) % 2),
    "all_zero": (np.zeros((15, 3), np.float32), np.arange(15) % 2),
    "one_class": (_batch(0, 15, 3)[0], [0] * 15),
    "all_distinct": (_batch(0, 15, 3)[0], np.arange(15)),
    "duplicates": (np.repeat(_batch(0, 5, 3)[0], 3, axis=0), np.repeat(np.arange(5), 3)),
    "negative_duplicates": (np.repeat(_batch(0, 5, 3)[0], 3, axis=0), np.arange(15)),
}


@pytest.mark.parametrize(
    ("distance", "reduction"),
    [(distance, reduction) for distance, reduction, loss in PROGRAMS if loss == "contrastive"],
)
def test_degenerate_batches(distance, reduction):
    for name, (x, c) in DEGENERATE.items():
        value, (gradient, _) = _program(distance, reduction)(*_filled(x, c), 1.0)
        valid = np.array(c) >= 0
        if valid.sum() > 1:
            want = _expected(x[valid], np.array(c)[valid], distance=distance, reduction=reduction)
        else:
            want = 0.0
        # Where points coincide rounding decides whether the loss of a pair is 0 and so counted.
        if name not in ("all_equal", "duplicates") or distance != "angular":
            np.testing.assert_allclose(value, want, rtol=1e-5, atol=1e-6, err_msg=name)
        assert np.isfinite(gradient).all() or distance == "own", name


def test_a_batch_of_one():
    for x in (np.ones((1, 3), np.float32), np.ones((1, 1), np.float32)):
        value, gradient = jax.value_and_grad(lambda x: all_pairs_loss(x, np.zeros(1, int)))(x)
        assert value == 0
        assert (np.asarray(gradient) == 0).all()


@jax.jit
def _value_and_gradient(x, c, margin):
    return jax.value_and_grad(lambda x: all_pairs_loss(x, c, margin=margin, tile=8))(x)


@settings(deadline=None, max_examples=20, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), exponent=st.integers(-6, 6), size=st.sampled_from([1, 40]))
def test_norms_of_all_sizes(seed, exponent, size):
    x, c = _batch(seed, 20, size, scale=10.0**exponent)
    margin = 1.5 * size**0.5 * 10.0**exponent
    value, gradient = _value_and_gradient(x, c, margin)
    np.testing.assert_allclose(value, _expected(x, c, margin=margin), rtol=1e-5)
    by = _direct_gradient(x, c, margin)
    np.testing.assert_allclose(gradient, by, rtol=1e-4, atol=1e-5 * abs(by).max())


def test_norms_of_all_sizes_in_one_batch():
    x, c = _batch(5, 40, 6)
    x *= (10.0 ** np.linspace(-6, 6, 40))[:, None].astype(np.float32)
    f = jax.value_and_grad(lambda x: all_pairs_loss(x, c, margin=1e-5, reduction="active", tile=8))
    value, _ = f(x)
    want = _expected(x, c, margin=1e-5, reduction="active")
    np.testing.assert_allclose(value, want, rtol=1e-5)


def _direct_gradient(x, classes, margin):
    """Returns that of the mean over all pairs, in float64, pair by pair from differences."""
    x = np.asarray(x, np.float64)
    difference = x[:, None] - x[None]
    distance = np.linalg.norm(difference, axis=-1)
    negative = classes[:, None] != classes
    slope = np.where(negative, -2 * np.maximum(0, margin - distance), 2 * distance)
    with np.errstate(invalid="ignore", divide="ignore"):
        unit = np.where(distance[..., None] > 0, difference / distance[..., None], 0)
    return 2 * (slope[..., None] * unit).sum(1) / (len(x) * (len(x) - 1))


@jax.jit
def _distance_of_one_pair(x, c, longest, positive):
    """The distance of the only pair of one class, or of the only one closer than some distance."""

    def pair_value(distance, label):
        mine = jnp.where(positive, label == 0, distance < longest)
        return jnp.where(mine, distance, 0.0)

    return jax.value_and_grad(
        lambda x: all_pairs_loss(x, c, loss=pair_value, reduction="sum", tile=16) / 2
    )(x)


@pytest.mark.parametrize("length", [1.0, 100.0])
@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize("apart", [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.03, 0.07, 0.2, 0.8, 2.0])
def test_a_distance_keeps_its_digits(apart, positive, length):
    if apart * length == 2.0:
        positive = True  # no pair is farther apart
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 128))
    x *= length / np.linalg.norm(x, axis=1, keepdims=True)
    step = rng.standard_normal(128)
    step -= step @ x[0] * x[0] / length**2
    # Raw vectors need digits of their own for what they differ in.
    wanted = apart if length == 1 or apart > 1e-4 else 1e-4
    angle = 2 * np.arcsin(min(wanted / (2 * length), 1.0))
    x[40] = np.cos(angle) * x[0] + np.sin(angle) * step * length / np.linalg.norm(step)
    x = x.astype(np.float32)
    c = np.arange(64)
    if positive:
        c[40] = c[0]
    true = np.linalg.norm(x[40].astype(float) - x[0])
    value, gradient = _distance_of_one_pair(x, c, 1.1 * max(true, length / 2), positive)
    np.testing.assert_allclose(value, true, rtol=1e-4)
    unit = (x[0].astype(float) - x[40]) / true
    np.testing.assert_allclose(gradient[0], unit, rtol=1e-4, atol=1e-4 * abs(unit).max())
    np.testing.assert_allclose(gradient[40], -unit, rtol=1e-4, atol=1e-4 * abs(unit).max())


@functools.cache
def _near(distance):
    """The sum of the distances that are close to a given one."""

    def near(d, label, wanted):
        return jnp.where((d < 1.01 * wanted) & (d > 0.9 * wanted), d, 0)

    return jax.jit(
        lambda x, c, wanted: all_pairs_loss(
            x,
            c,
            loss=functools.partial(near, wanted=wanted),
            distance=DISTANCES[distance][0],
            reduction="sum",
            tile=8,
        )
    )


@pytest.mark.parametrize("apart", [1e-6, 1e-4, 1e-2])
def test_and_so_do_gradients_of_cosines(apart):
    """Of two close directions, of different classes, against the formula in float64."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 3)).astype(np.float32)
    x[30] = x[0] + apart * rng.standard_normal(3)
    a, b = x[[0, 30]].astype(float)
    true = DISTANCES["cosine"][1](a, b)

    def cosine_gradient(a, b):
        u, v = a / np.linalg.norm(a), b / np.linalg.norm(b)
        # It is (u v) u - v, of which the difference u - v keeps the digits.
        return ((u - v) - (u - v) @ u * u) / np.linalg.norm(a)

    gradient = jax.grad(_near("cosine"))(x, np.arange(40), true) / 2
    for row, expected in ((0, cosine_gradient(a, b)), (30, cosine_gradient(b, a))):
        error = np.linalg.norm(gradient[row] - expected) / np.linalg.norm(expected)
        assert error < 1e-4


@pytest.mark.parametrize("distance", ["cosine", "angular", "mahalanobis"])
@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize("apart", [1e-6, 1e-4, 1e-2])
def test_so_do_distances_of_directions(distance, positive, apart):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 3)).astype(np.float32)
    x[30] = x[0] + apart * rng.standard_normal(3)
    c = np.arange(40)
    c[30] = c[0] if positive else c[30]
    a, b = x[[0, 30]].astype(float)
    true = float(DISTANCES[distance][1](a, b))
    if distance != "mahalanobis":
        sine = np.linalg.norm(np.cross(a, b)) / np.linalg.norm(a) / np.linalg.norm(b)
        true = np.arcsin(sine) if distance == "angular" else 2 * np.sin(np.arcsin(sine) / 2) ** 2
    np.testing.assert_allclose(_near(distance)(x, c, true) / 2, true, rtol=1e-4)


@pytest.mark.parametrize("spread", [1e-6, 1e-4, 1e-2, 1.0])
def test_collapsed_classes(spread):
    """Late in training: classes far apart and hardly any distance within."""
    rng = np.random.default_rng(0)
    c = rng.integers(0, 7, 200)
    x = rng.standard_normal((7, 16))[c] + spread * rng.standard_normal((200, 16))
    x = x.astype(np.float32)
    for reduction in ("mean", "balanced"):
        value = all_pairs_loss(x, c, margin=1.0, reduction=reduction, tile=32)
        want = _expected(x, c, margin=1.0, reduction=reduction)
        np.testing.assert_allclose(value, want, rtol=1e-4, atol=0)
    np.testing.assert_allclose(
        jax.grad(lambda x: all_pairs_loss(x, c, margin=1.0, tile=32))(x),
        _direct_gradient(x, c, 1.0),
        rtol=1e-3,
        atol=1e-4 * abs(_direct_gradient(x, c, 1.0)).max(),
    )


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_computed_in_single(dtype):
    x, c = _batch(6, 30, 8, scale=100.0 if dtype == jnp.float16 else 1.0)
    x = jnp.asarray(x, dtype)
    loss = jax.value_and_grad(lambda x: all_pairs_loss(x, c, margin=300.0, tile=8))
    value, gradient = jax.jit(loss)(x)
    assert value.dtype == np.float32
    assert gradient.dtype == dtype
    want = np.asarray(x.astype(jnp.float32))
    np.testing.assert_allclose(value, _expected(want, c, margin=300.0), rtol=1e-5)
    by = _direct_gradient(want, c, 300.0)
    np.testing.assert_allclose(gradient.astype(float), by, rtol=1e-2, atol=1e-2 * abs(by).max())


def _peers():
    folder = Path(__file__).parent / "reference"
    values = json.loads((folder / "contrastive.json").read_text())
    return values, np.load(folder / "contrastive.npz")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("contrastive_squared", np.float32),
        *[
            pytest.param(name, np.float32, marks=pytest.mark.long)
            for name in ("contrastive_pml", "contrastive_pml_mean")
        ],
        ("contrastive_squared", np.float64),
        ("contrastive_pml", np.float64),
        ("contrastive_pml_mean", np.float64),
    ],
)
def test_agrees_with_pytorch_metric_learning(name, dtype):
    values, arrays = _peers()
    keys = [key for key in values if key.split("/")[1] == name]
    assert len(keys) > 20
    tolerance = 1e-5 if dtype == np.float32 else 1e-10

    def linear(distance, label, margin, positive):
        above, below = jnp.maximum(0, distance - positive), jnp.maximum(0, margin - distance)
        return jnp.where(label == 0, above, below)

    with jax.enable_x64(dtype == np.float64):

        @jax.jit
        def ours(x, classes, margin, positive, unit):
            def value(x):
                x = jnp.where(unit, x / jnp.linalg.norm(x, axis=1, keepdims=True), x)
                if name == "contrastive_squared":
                    return all_pairs_loss(x, classes, margin=margin, tile=16)
                return all_pairs_loss(
                    x,
                    classes,
                    loss=functools.partial(linear, positive=positive),
                    margin=margin,
                    reduction="active" if name == "contrastive_pml" else "balanced",
                    tile=16,
                )

            return jax.value_and_grad(value)(x)

        for key in keys:
            case, _, norm, settings_ = key.split("/")
            options = dict(pair.split("=") for pair in settings_.split(","))
            margin = float(options.get("margin", options.get("neg_margin", 0)))
            positive = float(options.get("pos_margin", 0))
            x, classes = arrays[f"{case}/embeddings"], arrays[f"{case}/labels"]
            # One shape and so one program for all: what is added does not count.
            full = np.pad(x, ((0, 32 - x.shape[0]), (0, 16 - x.shape[1]))).astype(dtype)
            full[len(x) :] = 1
            classes = np.concatenate([classes, np.full(32 - len(x), -1)])
            value, gradient = ours(full, classes, margin, positive, unit=norm == "unit")
            gradient = gradient[: x.shape[0], : x.shape[1]]
            np.testing.assert_allclose(value, values[key], rtol=tolerance, err_msg=key)
            want = arrays[f"{key}/grad"]
            np.testing.assert_allclose(
                gradient, want, rtol=tolerance, atol=tolerance * abs(want).max(), err_msg=key
            )


def test_parameters_that_are_learned():
    """The temperature and bias of SigLIP's sigmoid loss, and the factor of a learned metric."""
    x, c = _batch(8, 20, 3)

    def sigmoid(distance, label, scale, bias):
        return jax.nn.softplus((1 - 2 * label) * (scale * (distance - 1) + bias))

    def direct(scale, bias, x):
        d = _cosine(x[:, None], x[None])
        sign = np.where(c[:, None] != c, -1, 1)
        f = np.logaddexp(0, sign * (scale * (d - 1) + bias))
        return f[~np.eye(20, dtype=bool)].mean()

    def ours(scale, bias, x):
        # Closed over, as a user writes it.
        loss = lambda d, y: sigmoid(d, y, jnp.exp(scale), bias)  # noqa: E731
        return all_pairs_loss(x, c, loss=loss, distance=distances.cosine, tile=8)

    for f in (
        jax.grad(ours, (0, 1)),
        jax.jit(jax.grad(ours, (0, 1))),
        jax.jit(jax.grad(jax.jit(ours), (0, 1))),
    ):
        by_scale, by_bias = f(0.7, -0.3, x)
        want = _numerical(
            lambda p: direct(np.exp(p[0]), p[1], x.astype(float)), np.array([0.7, -0.3])
        )
        np.testing.assert_allclose([by_scale, by_bias], want, rtol=1e-4)

    def metric(factor, *, own):
        distance = functools.partial(distances.mahalanobis, factor=factor)
        if own:
            product = functools.partial(jnp.matmul, precision="highest")
            distance = lambda a, b: jnp.linalg.norm(product(factor, a - b))  # noqa: E731
        return all_pairs_loss(x, c, distance=distance, margin=2.0, tile=8)

    def direct_metric(factor):
        mapped = x.astype(float) @ factor.T
        return _expected(mapped, c, margin=2.0)

    want = _numerical(direct_metric, FACTOR)
    for own in (False, True):
        actual = jax.jit(jax.grad(functools.partial(metric, own=own)))(FACTOR.astype(np.float32))
        np.testing.assert_allclose(actual, want, rtol=1e-3, atol=1e-5)


def test_close_pairs_reach_the_factor_too():
    x, c = _batch(8, 20, 3)
    x[1:] = x[0] + 1e-4 * x[1:]
    c = np.arange(20)

    def ours(factor):
        distance = functools.partial(distances.mahalanobis, factor=factor)
        return all_pairs_loss(x, c, distance=distance, margin=1e-3, tile=8)

    want = _numerical(lambda f: _expected(x.astype(float) @ f.T, c, margin=1e-3), FACTOR, 1e-5)
    actual = jax.grad(ours)(FACTOR.astype(np.float32))
    np.testing.assert_allclose(actual, want, rtol=1e-3, atol=1e-3 * abs(want).max())


def test_one_compilation_for_ten_margins():
    x, c = _batch(9, 20, 3)
    count = 0

    @jax.jit
    def f(x, margin):
        nonlocal count
        count += 1
        return all_pairs_loss(x, c, margin=margin, tile=8)

    for margin in np.linspace(0.1, 2, 10):
        f(x, margin)
    assert count == 1


@pytest.mark.parametrize(
    ("distance", "reduction"), [("euclidean", "mean"), ("manhattan", "balanced")]
)
def test_transformations_agree(distance, reduction, longer):
    x, c = _batch(10, ROWS, 3)
    c[3] = -1
    margins = jnp.array([0.5, 1.0, 2.0])

    def f(x, margin):
        options = {"loss": _own_contrastive, "reduction": reduction, "tile": 8}
        return all_pairs_loss(x, c, distance=DISTANCES[distance][0], margin=margin, **options)

    plain = [_program(distance, reduction)(x, c, margin) for margin in margins]
    plain = jax.tree.map(lambda *p: np.stack(p), *plain)
    both = jax.jit(jax.vmap(jax.value_and_grad(f, (0, 1))))
    results = [both(np.stack([x] * 3), margins)]
    if (
        distance == "euclidean" or longer
    ):  # how they are nested is the same for products and pair by pair
        results.append(jax.jit(jax.vmap(jax.value_and_grad(f, (0, 1)), (None, 0)))(x, margins))
        nested = jax.vmap(lambda m: jax.value_and_grad(jax.jit(f), (0, 1))(x, m))
        results.append(jax.jit(nested)(margins))
        np.testing.assert_allclose(f(x, 1.0), plain[0][1], rtol=1e-6)
    for got in results:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), got, plain
        )


@pytest.mark.parametrize(
    ("distance", "reduction"),
    [("euclidean", "mean"), ("cosine", "sum"), ("own", "active"), ("one_sided", "balanced")],
)
def test_autodiff_gives_the_same(distance, reduction):
    x, c = _batch(11, 13, 3)
    y, d = _batch(12, 9, 3)
    c[2] = -1
    weights = np.linspace(0, 2, 13)
    options = {"reduction": reduction, "weights": weights, "margin": 1.5}

    def ours(x, *others):
        return all_pairs_loss(
            x,
            c,
            *others,
            loss=_own_contrastive,
            distance=DISTANCES[distance][0],
            method="autodiff",
            tile=8,
            **options,
        )

    want = functools.partial(_expected, distance=distance, **options)
    for others in ((), (y, d)):
        value, gradient = jax.jit(jax.value_and_grad(ours))(x, *others)
        np.testing.assert_allclose(value, want(x, c, *others), rtol=1e-5)
        by = _numerical(lambda x, o=others: want(x, c, *o), x.astype(float))
        np.testing.assert_allclose(gradient, by, rtol=1e-5, atol=1e-5 * abs(by).max())


def test_forward_mode_and_second_derivatives():
    x, c = _batch(13, 6, 2)

    def f(x):
        return all_pairs_loss(x, c, margin=2.0, method="autodiff")

    direction = np.random.default_rng(0).standard_normal(x.shape).astype(np.float32)
    gradient = _direct_gradient(x, c, 2.0)
    _, slope = jax.jit(lambda x, way: jax.jvp(f, (x,), (way,)))(x, direction)
    np.testing.assert_allclose(slope, (gradient * direction).sum(), rtol=1e-4)
    hessian = jax.jit(jax.hessian(f))(x).reshape(12, 12)
    want = np.stack(
        [
            (
                _direct_gradient(x.astype(float) + step, c, 2.0)
                - _direct_gradient(x.astype(float) - step, c, 2.0)
            ).ravel()
            / 2e-5
            for step in 1e-5 * np.eye(12).reshape(12, 6, 2)
        ]
    )
    np.testing.assert_allclose(hessian, want, rtol=1e-3, atol=1e-4)


@each_program
def test_nan_does_not_hide(distance, reduction, loss):
    x, c = _batch(14, ROWS, 3)
    x[5, 1] = np.nan
    assert np.isnan(_program(distance, reduction, loss)(x, c, 1.0)[0])


@pytest.mark.parametrize(
    ("distance", "reductions"), [("euclidean", REDUCTIONS), ("manhattan", ["active"])]
)
def test_nan_does_not_hide_where_the_loss_is_constant(distance, reductions):
    x, c = _batch(14, 20, 3)
    x[5, 1] = np.nan

    def quiet(d, y):
        return jnp.where(d < 1, (1 - d) ** 2, 0.0)

    @jax.jit
    def values(x):
        value = functools.partial(
            all_pairs_loss, x, c, loss=quiet, distance=DISTANCES[distance][0], tile=8
        )
        return [value(reduction=reduction) for reduction in reductions]

    assert np.isnan(values(x)).all()


def test_nan_of_a_single_row_does_not_hide():
    x, c = np.full((1, 3), np.nan, np.float32), np.zeros(1, int)
    assert np.isnan(jax.jit(lambda x: all_pairs_loss(x, c))(x))


def test_memory_is_linear(longer):
    def temporary(batch, **options):
        f = jax.jit(
            lambda x, c, m: jax.value_and_grad(
                lambda x: all_pairs_loss(x, c, margin=m, tile=512, **options)
            )(x)
        )
        shapes = [((batch, 128), "float32"), ((batch,), "int32"), ((), "float32")]
        compiled = f.lower(*[jax.ShapeDtypeStruct(*shape) for shape in shapes]).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    # A GPU takes some memory for its products, whatever their size.
    products = 34e6 if jax.default_backend() == "gpu" else 0
    assert temporary(8192) < 32e6 + products
    assert temporary(65536) < 100e6 + products
    others = [{"distance": distances.manhattan}, {"reduction": "active"}]
    for options in others if longer else others[:1]:
        assert temporary(32768, **options) < 4 * temporary(8192, **options) + 8e6


def test_wrong_input():
    x, c = _batch(15, 6, 3)
    below = np.where(np.arange(6) == 2, -2, c)
    for raised, message, arguments, options in [
        (AssertionError, "embeddings", (x[0], c), {}),
        (AssertionError, "classes", (x, c[:3]), {}),
        (AssertionError, "classes must be integers, got float64", (x, c.astype(float)), {}),
        (AssertionError, "classes must be integers, got <U1", (x, np.array([*"abcabc"])), {}),
        (ValueError, "function of two vectors, .* got 'cosine'", (x, c), {"distance": "cosine"}),
        (AssertionError, "float", (x.astype(int), c), {}),
        (AssertionError, "references", (x, c, x[:, :2], c), {}),
        (AssertionError, "loss must return a real scalar", (x, c), {"loss": lambda d, y: d[None]}),
        (
            AssertionError,
            "distance must return a real scalar",
            (x, c),
            {"distance": lambda a, b: a},
        ),
        (ValueError, "references need reference_classes", (x, c, x), {}),
        (ValueError, "need references", (x, c), {"reference_classes": c}),
        (ValueError, "reduction must be one of mean", (x, c), {"reduction": "none"}),
        (ValueError, "method must be one of", (x, c), {"method": "fast"}),
        (ValueError, "tile must be a whole multiple of 8", (x, c), {"tile": 12}),
        (ValueError, "margin must be above 0", (x, c), {"margin": -1.0}),
        (ValueError, r"classes must be from 0 to .* row 2", (x, below), {}),
        (ValueError, "weights must be at least 0", (x, c), {"weights": np.full(6, -1.0)}),
        (ValueError, "one device", (x, c), {"method": "autodiff", "axis_name": "i"}),
    ]:
        with pytest.raises(raised, match=message):
            all_pairs_loss(*arguments, **options)
    x[4, 1] = np.nan
    with pytest.raises(ValueError, match="embeddings must be finite, got nan in row 4"):
        all_pairs_loss(x, c)


def test_value_checks_under_jit_name_the_row():
    from jax.experimental import checkify

    x, c = _batch(16, 20, 3)
    checked = jax.jit(
        checkify.checkify(jax.value_and_grad(lambda x, c: all_pairs_loss(x, c, tile=8)))
    )
    error, (value, _) = checked(x, c)
    error.throw()
    np.testing.assert_allclose(value, _expected(x, c), rtol=1e-5)
    x[11, 2] = np.inf
    error, _ = checked(x, c)
    with pytest.raises(ValueError, match="embeddings must be finite, got inf in row 11"):
        error.throw()


def test_given_pairs_and_all_pairs_agree():
    x, c = _batch(17, 12, 4)
    i, j = np.nonzero(~np.eye(12, dtype=bool))
    given = pair_loss(x[i], x[j], (c[i] != c[j]).astype(int), margin=2.0).mean()
    np.testing.assert_allclose(all_pairs_loss(x, c, margin=2.0), given, rtol=1e-5)


def test_a_loss_with_a_state_is_not_taken_for_what_it_was():
    x, c = _batch(18, 10, 3)

    class Scaled:
        scale = 1.0

        def __call__(self, distance, label):
            return self.scale * distance

        def __eq__(self, other):  # and so without a hash
            return self is other

    loss = Scaled()
    before = all_pairs_loss(x, c, loss=loss, tile=8)
    loss.scale = 10.0
    np.testing.assert_allclose(all_pairs_loss(x, c, loss=loss, tile=8), 10 * before, rtol=1e-6)


def test_pairs_that_do_not_count_leave_no_trace():
    """Losses without a derivative at the distances that stand in for pairs that do not count."""
    x, _ = _batch(19, 20, 3)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    twice = x.copy()
    twice[1] = twice[0]
    alike = np.arange(20) // 4
    ignoring = np.where(np.arange(20) == 7, -1, alike)

    def likelihood(distance, label, margin):
        p = (1 - distance / margin) / 2
        return jnp.where(label == 0, -jnp.log(p), -jnp.log1p(-p))

    def coulomb(distance, label, margin):
        return jnp.where(label == 0, distance**2, margin / jnp.where(label == 0, 1, distance))

    def root(distance, label, margin):
        return margin * jnp.sqrt(distance) * (1 - label)

    @functools.cache
    def program(loss, distance, method):
        options = {"loss": loss, "distance": distance, "method": method, "tile": 8}
        value = lambda x, m, c: all_pairs_loss(x, c, margin=m, **options)  # noqa: E731
        return jax.jit(jax.value_and_grad(value, (0, 1)))

    for x_, c_, loss, distance in [
        (x, np.arange(20), likelihood, distances.negative_dot),
        (x, alike, likelihood, distances.negative_dot),
        (twice, alike, coulomb, distances.manhattan),
        (twice, ignoring, coulomb, distances.euclidean),
        (twice, alike, root, distances.euclidean),
    ]:
        one, other = (
            program(loss, distance, method)(x_, 2.0, c_) for method in ("sweep", "autodiff")
        )
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            assert np.isfinite(a).all()
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * abs(b).max())


def test_parameters_of_any_type():
    x, c = _batch(20, 40, 8)

    def with_scale(scale, count=5):
        loss = lambda d, y: jnp.where(count > 3, scale.astype(jnp.float32) * d, d)  # noqa: E731
        return all_pairs_loss(x, c, loss=loss, tile=16)

    single = jax.grad(with_scale)(jnp.float32(1))
    half = jax.grad(with_scale)(jnp.bfloat16(1))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(float(half), single, rtol=2**-8)
    gc.freeze()  # the check collects garbage at each trace, among all that other tests left
    try:
        with jax.checking_leaks():
            by_jit = jax.jit(jax.grad(with_scale))(jnp.float32(1), 5)
    finally:
        gc.unfreeze()
    np.testing.assert_allclose(by_jit, single, rtol=1e-5)


def test_single_precision_where_double_is_on():
    x, c = _batch(21, 20, 3)
    with jax.enable_x64(True):
        for reduction in REDUCTIONS:
            value = all_pairs_loss(jnp.asarray(x), c, reduction=reduction, tile=8)
            assert value.dtype == np.float32
            np.testing.assert_allclose(value, _expected(x, c, reduction=reduction), rtol=1e-5)


def test_classes_of_any_integer_type():
    x, c = _batch(22, 20, 3)
    want = _expected(x, c)
    for dtype in (np.int8, np.uint8, np.uint32, np.int64):
        np.testing.assert_allclose(all_pairs_loss(x, c.astype(dtype), tile=8), want, rtol=1e-5)
    large = np.where(c == 0, 5, 2**32 + 5)
    with pytest.raises(ValueError, match="classes must be from 0 to"):
        all_pairs_loss(x, large)


def test_a_metric_that_cancels_an_offset():
    rng = np.random.default_rng(0)
    factor = rng.standard_normal((4, 8))
    factor = (factor - factor.mean(1, keepdims=True)).astype(np.float32)
    x = (1000 + 0.01 * rng.standard_normal((40, 8))).astype(np.float32)
    c = np.arange(40)
    c[20] = 0
    true = np.linalg.norm(factor.astype(float) @ (x[0].astype(float) - x[20]))
    value = all_pairs_loss(
        x,
        c,
        loss=lambda d, y: jnp.where(y == 0, d, 0),
        distance=functools.partial(distances.mahalanobis, factor=factor),
        reduction="sum",
        tile=8,
    )
    np.testing.assert_allclose(value / 2, true, rtol=1e-4)


def test_sums_without_a_gradient():
    x, c = _batch(23, 12, 3)
    gradient = jax.grad(lambda x: all_pairs_sums(x, c, tile=8).pairs.sum())(x)
    assert (np.asarray(gradient) == 0).all()


def test_no_rows():
    x, c = _batch(24, 5, 3)
    for method in ("sweep", "autodiff"):
        assert all_pairs_loss(x[:0], c[:0], method=method) == 0
        assert all_pairs_loss(x, c, x[:0], c[:0], method=method) == 0


def test_inexact_close_pairs():
    """The option gives up the digits of close pairs, and nothing else."""
    x, c = _batch(25, 20, 16)
    x[3] = x[1] + 1e-4
    both = [all_pairs_loss(x, c, margin=3.0, refine=exact, tile=8) for exact in (True, False)]
    np.testing.assert_allclose(both[1], both[0], rtol=1e-5)
    c = np.arange(20)
    c[3] = 1
    exact, rough = (
        all_pairs_loss(x, c, loss=lambda d, y: d * (1 - y), reduction="sum", refine=exact, tile=8)
        for exact in (True, False)
    )
    true = np.linalg.norm(x[1].astype(float) - x[3])
    np.testing.assert_allclose(exact / 2, true, rtol=1e-6)
    assert abs(rough / 2 - true) > 1e-3 * true

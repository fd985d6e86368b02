"""The losses of one pair against their formulas in float64."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contrastive_jax import all_pairs_loss, anchor_loss, distances, losses, pair_loss
from contrastive_jax.losses._numerics import softplus as smooth_hinge


def hinge(x):
    return max(0.0, x)


def softplus(x):
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


# For each its formula of a positive and of a negative pair, and the ranges of its numbers.
FORMULAS = {
    "contrastive": (
        lambda d, margin, positive_margin: hinge(d - positive_margin) ** 2,
        lambda d, margin, positive_margin: hinge(margin - d) ** 2,
        {"margin": (0.5, 2), "positive_margin": (0, 0.5)},
    ),
    "contrastive_halved": (
        lambda d, margin, positive_margin: hinge(d - positive_margin) ** 2 / 2,
        lambda d, margin, positive_margin: hinge(margin - d) ** 2 / 2,
        {"margin": (0.5, 2), "positive_margin": (0, 0.5)},
    ),
    "contrastive_linear": (
        lambda d, margin, positive_margin: hinge(d - positive_margin),
        lambda d, margin, positive_margin: hinge(margin - d),
        {"margin": (0.5, 2), "positive_margin": (0, 0.5)},
    ),
    "cosine_embedding": (
        lambda d, margin: d,
        lambda d, margin: hinge(1 - d - margin),
        {"margin": (-1, 1)},
    ),
    "sentence_contrastive": (
        lambda d, margin: d**2 / 2,
        lambda d, margin: hinge(margin - d) ** 2 / 2,
        {"margin": (0.1, 2)},
    ),
    "sigmoid": (
        lambda d, temperature, bias: softplus(-(temperature * (1 - d) + bias)),
        lambda d, temperature, bias: softplus(temperature * (1 - d) + bias),
        {"temperature": (0.1, 20), "bias": (-20, 20)},
    ),
    "logistic": (
        lambda d, threshold, scale: softplus(scale * (d - threshold)),
        lambda d, threshold, scale: softplus(scale * (threshold - d)),
        {"threshold": (0.1, 2), "scale": (0.1, 20)},
    ),
    "margin_based": (
        lambda d, margin, boundary: hinge(margin + d - boundary),
        lambda d, margin, boundary: hinge(margin + boundary - d),
        {"margin": (0.1, 0.5), "boundary": (0.5, 1.5)},
    ),
}
VALUE_AND_SLOPE = {name: jax.jit(jax.value_and_grad(getattr(losses, name))) for name in FORMULAS}


def test_the_smooth_hinge_is_precise_at_either_end():
    """In value and derivatives; those of a walk are of this function alone."""
    x = np.float32(np.linspace(-85, 85, 2001))
    logistic = np.exp(np.minimum(np.float64(x), 0)) / (1 + np.exp(-np.abs(np.float64(x))))
    np.testing.assert_allclose(
        jax.vmap(smooth_hinge)(x), np.logaddexp(0.0, np.float64(x)), rtol=2e-7
    )
    np.testing.assert_allclose(jax.vmap(jax.grad(smooth_hinge))(x), logistic, rtol=2e-7)
    curved = logistic * logistic[::-1]
    np.testing.assert_allclose(jax.vmap(jax.hessian(smooth_hinge))(x), curved, rtol=1e-6, atol=1e-7)
    ends = jnp.array([-jnp.inf, 0, jnp.inf])
    np.testing.assert_allclose(jax.vmap(smooth_hinge)(ends), [0, math.log(2), math.inf], rtol=1e-7)
    np.testing.assert_array_equal(jax.vmap(jax.grad(smooth_hinge))(ends), [0, 0.5, 1])
    assert np.isnan(smooth_hinge(jnp.nan))


@pytest.mark.parametrize("name", FORMULAS)
@settings(deadline=None, max_examples=60, derandomize=True)
@given(data=st.data(), distance=st.floats(0, 2, width=32), label=st.sampled_from([0, 1]))
def test_formulas(name, data, distance, label):
    *formulas, ranges = FORMULAS[name]
    hyper = {key: np.float32(data.draw(st.floats(*ends), key)) for key, ends in ranges.items()}
    exact = {key: float(value) for key, value in hyper.items()}
    value, slope = VALUE_AND_SLOPE[name](np.float32(distance), label, **hyper)
    np.testing.assert_allclose(value, formulas[label](distance, **exact), rtol=2e-5, atol=2e-6)

    step = 1e-6
    below, above = (formulas[label](distance + h, **exact) for h in (-step, step))
    at = formulas[label](distance, **exact)
    # Where it bends as no smooth loss of these numbers does.
    kink = abs((above - at) - (at - below)) > 1e-2 * step
    if not kink:
        np.testing.assert_allclose(slope, (above - below) / (2 * step), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", FORMULAS)
def test_wrong_labels_and_numbers_are_refused(name):
    loss = getattr(losses, name)
    with pytest.raises(ValueError, match="label must be 0"):
        loss(0.5, 2)
    with pytest.raises(AssertionError, match=r"jax\.vmap"):
        loss(np.zeros(3, np.float32), 0)
    for number in ("margin", "temperature", "threshold"):
        if number in FORMULAS[name][2] and name != "cosine_embedding":
            with pytest.raises(ValueError, match=f"{number} must be above 0"):
                loss(0.5, 0, **{number: -1.0})


def test_temperature_and_bias_are_learned():
    """The sigmoid loss over all pairs agrees with the formula differentiated by hand."""
    rng = np.random.default_rng(0)
    x, c = rng.standard_normal((20, 5)), rng.integers(0, 4, 20)

    def value(temperature, bias):
        def loss(distance, label):
            return losses.sigmoid(distance, label, temperature, bias)

        return all_pairs_loss(
            jnp.float32(x), c, loss=loss, distance=distances.cosine, reduction="sum"
        )

    actual, slopes = jax.jit(jax.value_and_grad(value, (0, 1)))(5.0, -3.0)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    s = unit @ unit.T
    z = np.where(c[:, None] == c, 1, -1)
    others = ~np.eye(20, dtype=bool)
    logit = z * (5 * s - 3)
    share = 1 / (1 + np.exp(logit))
    np.testing.assert_allclose(actual, np.logaddexp(0, -logit)[others].sum(), rtol=1e-5)
    np.testing.assert_allclose(slopes[0], -(z * s * share)[others].sum(), rtol=1e-4)
    np.testing.assert_allclose(slopes[1], -(z * share)[others].sum(), rtol=1e-4)


def test_signal_to_noise():
    a, b = np.random.default_rng(0).standard_normal((2, 9))
    want = np.var(a - b) / np.var(a)
    np.testing.assert_allclose(
        distances.signal_to_noise(jnp.float32(a), jnp.float32(b)), want, rtol=1e-6
    )
    flat = np.ones(9, np.float32)
    assert distances.signal_to_noise(flat, np.float32(b)) == 2.0**23
    assert distances.signal_to_noise(flat, 2 * flat) == 0
    gradient = jax.grad(distances.signal_to_noise, (0, 1))(flat, 2 * flat)
    np.testing.assert_array_equal(gradient, np.zeros((2, 9)))


def _filled(x, c):
    """The 20 rows and 6 columns of the other tests' program; what is added changes no ratio."""
    x = np.tile(x, 6 // x.shape[1])
    more = 20 - len(x)
    return np.pad(x, ((0, more), (0, 0))), np.concatenate([c, np.full(more, -1)])


@jax.jit
@functools.partial(jax.value_and_grad, argnums=(0, 1))
def _signal_to_noise_loss(x, margin, c):
    return all_pairs_loss(
        x,
        c,
        loss=losses.contrastive_linear,
        distance=distances.signal_to_noise,
        margin=margin,
        reduction="balanced",
        tile=8,
    )


def _signal_to_noise_expected(x, margin, c):
    terms = [[], []]
    for i in np.flatnonzero(c >= 0):
        for j in np.flatnonzero(c >= 0):
            noise, signal = np.var(x[i] - x[j]), np.var(x[i])
            ratio = min(noise / signal, 2.0**23) if signal > 0 else 2.0**23 * (noise > 0)
            if i != j and c[i] == c[j]:
                terms[0].append(ratio)
            elif i != j:
                terms[1].append(max(0.0, margin - ratio))
    return sum(np.mean(part) if part else 0.0 for part in terms)


@pytest.mark.parametrize(
    "kind", ["random", "clusters", "duplicates", "one_class", "offset", "far_offset"]
)
def test_signal_to_noise_is_met_in_both_directions(kind):
    """By products, with a derivative by the anchor's own signal."""
    rng = np.random.default_rng(1)
    x, c = rng.standard_normal((20, 6)), rng.integers(0, 4, 20)
    c[5] = -1
    if kind == "clusters":
        x = rng.standard_normal((4, 6))[c % 4] + 1e-3 * x
    elif kind == "duplicates":
        x[10:] = x[:10]
        c[10:15] = c[:5]
    elif kind == "one_class":
        c[:] = 0
    elif kind == "offset":
        x += 3
    elif kind == "far_offset":
        x = 1e4 + np.round(64 * (x + 0.02 * rng.standard_normal(x.shape))) / 64
    x, margin = np.float32(x), 1.5
    value, (gradient, by_margin) = _signal_to_noise_loss(x, margin, c)
    x = x.astype(float)
    want = functools.partial(_signal_to_noise_expected, c=c)
    np.testing.assert_allclose(value, want(x, margin), rtol=2e-5)
    if kind == "duplicates":
        assert np.isfinite(gradient).all()
        return
    way = rng.standard_normal(x.shape) * (1e-3 if kind == "clusters" else 1)
    h = 1e-5
    slope = (want(x + h * way, margin) - want(x - h * way, margin)) / (2 * h)
    np.testing.assert_allclose(np.sum(gradient * way), slope, rtol=1e-4, atol=1e-7)
    slope = (want(x, margin + h) - want(x, margin - h)) / (2 * h)
    np.testing.assert_allclose(by_margin, slope, rtol=1e-4, atol=1e-7)


def test_signal_to_noise_of_rows_of_a_tiny_signal_has_a_finite_gradient():
    rng = np.random.default_rng(3)
    x = rng.standard_normal((12, 6)) * 10.0 ** np.arange(0, -24, -2)[:, None]
    x[3] = 1e-3
    for classes in (np.arange(12) % 3, np.arange(12)):
        filled, all_classes = _filled(np.float32(x), classes)
        value, (gradient, _) = _signal_to_noise_loss(filled, 1.5, all_classes)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("devices", [pytest.param(2, marks=pytest.mark.long), 4])
def test_signal_to_noise_over_devices(devices):
    rng = np.random.default_rng(4)
    x, c = np.float32(rng.standard_normal((16, 6))), rng.integers(0, 4, 16)

    def value(x, c):
        options = {"loss": losses.contrastive_linear, "reduction": "balanced", "axis_name": "d"}
        distance = distances.signal_to_noise
        return all_pairs_loss(x, c, distance=distance, margin=1.5, tile=8, **options)

    over = jax.pmap(jax.value_and_grad(value), "d", devices=jax.devices()[:devices])
    values, parts = over(x.reshape(devices, -1, 6), c.reshape(devices, -1))
    filled, classes = _filled(x, c)
    # The program of one device, which is compared with NumPy.
    want, (gradient, _) = _signal_to_noise_loss(filled, 1.5, classes)
    np.testing.assert_allclose(values, np.full(devices, want), rtol=1e-5)
    np.testing.assert_allclose(parts.reshape(16, 6), gradient[:16], rtol=1e-4, atol=1e-6)


def test_signal_to_noise_of_rows_without_a_signal_is_finite():
    x = np.float32([[0, 0, 0], [2, 2, 2], [1, 2, 3], [3, 1, 0]])
    c = np.array([0, 0, 1, 1])
    filled, classes = _filled(x, c)
    value, (gradient, _) = _signal_to_noise_loss(filled, 1.5, classes)
    np.testing.assert_allclose(value, _signal_to_noise_expected(x.astype(float), 1.5, c), rtol=1e-5)
    assert np.isfinite(gradient).all()
    options = {"loss": losses.supcon(), "distance": distances.signal_to_noise}
    assert np.isfinite(jax.jit(lambda x: anchor_loss(x, c, **options))(x))


def test_signal_to_noise_of_anchors_and_two_sets_is_that_of_pairs_one_by_one():
    rng = np.random.default_rng(2)
    sets = [np.float32(rng.standard_normal((12, 5))), rng.integers(0, 3, 12)]
    sets += [np.float32(rng.standard_normal((9, 5))), rng.integers(0, 3, 9)]

    def by_pairs(a, b):
        return distances.signal_to_noise(a, b)

    for batch in (sets[:2], sets):
        actual, want = (
            jax.jit(
                jax.value_and_grad(
                    lambda x, distance=distance, batch=batch: anchor_loss(
                        x, *batch[1:], loss=losses.triplet_hard(0.5), distance=distance, tile=8
                    )
                )
            )(batch[0])
            for distance in (distances.signal_to_noise, by_pairs)
        )
        assert want[0] > 0
        np.testing.assert_allclose(actual[0], want[0], rtol=1e-5)
        np.testing.assert_allclose(actual[1], want[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("name", FORMULAS)
def test_a_far_pair_that_costs_nothing(name, dtype):
    loss = getattr(losses, name)
    largest = float(jnp.finfo(dtype).max)
    for distance in (256.0, 1.01 * largest**0.5, 0.9 * largest, np.inf):
        far = jnp.asarray(distance, dtype)
        value, slope = jax.value_and_grad(loss)(far, 1)
        curvature = jax.grad(jax.grad(loss))(far, 1)
        assert [float(one) for one in (value, slope, curvature)] == [0, 0, 0], distance
        assert value.dtype == slope.dtype == dtype


@pytest.mark.parametrize("width", [2, 6])
def test_far_rows_that_cost_nothing(width):
    x = jnp.array([[0.0, 1.0], [1.0, 0.0], [1e10, 0.0], [-3e19, 0.0]])
    x = jnp.pad(x, ((0, 0), (0, width - 2)))
    classes, labels = jnp.arange(4), jnp.ones(1, int)
    squared = distances.squared_euclidean
    value, gradient = jax.value_and_grad(all_pairs_loss)(x[:3], classes[:3], distance=squared)
    np.testing.assert_array_equal([value, *gradient.ravel()], 0)
    for other in (2, 3):
        value, gradient = jax.value_and_grad(
            lambda a, b: pair_loss(a, b, labels, distance=squared)[0]
        )(x[:1], x[other : other + 1])
        np.testing.assert_array_equal([value, *gradient.ravel()], 0)
    rows = jnp.ones((2, 300), jnp.float16)
    actual = pair_loss(rows, -rows, jnp.ones(2, int), distance=lambda a, b: jnp.sum(jnp.abs(a - b)))
    np.testing.assert_array_equal(actual, 0)


def test_a_sum_over_far_positives_without_a_negative_counts_nothing():
    x = jnp.float32([[3e38], [-3e38], [0.0]])
    value = anchor_loss(
        x,
        np.zeros(3, int),
        loss=losses.margin_by_class(),
        data=(jnp.ones(3),),
        distance=distances.manhattan,
    )
    assert value == 0

"""The contrastive loss against hand-computed numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contrastive_jax.distances import euclidean
from contrastive_jax.losses import contrastive


@pytest.mark.parametrize(
    ("distance", "label", "margin", "expected"),
    [
        (0.5, 0, 1.0, 0.25),
        (0.3, 1, 1.0, 0.49),
        (1.5, 1, 1.0, 0.0),
        (1.5, 0, 1.0, 2.25),
        (0.0, 1, 1.0, 1.0),
        (0.5, 1, 2.0, 2.25),
        (1.0, 1, 1.0, 0.0),
    ],
)
def test_worked_values(distance, label, margin, expected):
    for convert in (int, bool, float, np.int64, np.uint8, np.float64, jnp.int32, jnp.bfloat16):
        value = contrastive(distance, convert(label), margin)
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        assert (value.shape, value.dtype) == ((), np.float32)


@pytest.mark.parametrize(
    ("label", "margin", "message"),
    [
        (2, 1.0, r"label must be 0 \(similar\) or 1 \(dissimilar\), got 2"),
        (0.5, 1.0, "label must be 0"),
        (float("nan"), 1.0, "label must be 0"),
        (1, 0.0, "margin must be above 0 and finite, got 0.0"),
        (1, -1, "margin must be above 0"),
        (jnp.int32(1), jnp.float32(jnp.inf), "margin must be above 0"),
    ],
)
def test_wrong_values_are_refused_where_known(label, margin, message):
    with pytest.raises(ValueError, match=message):
        contrastive(0.5, label, margin)
    jax.jit(lambda *arguments: contrastive(*arguments))(0.5, label, margin)


def test_margin_is_one_by_default():
    np.testing.assert_allclose(contrastive(0.25, 1), 0.5625)


@settings(deadline=None, max_examples=100, derandomize=True)
@given(
    distance=st.floats(0, 1e3, width=32),
    label=st.sampled_from([0, 1]),
    margin=st.floats(2.0**-10, 1e3, width=32),
)
def test_value_and_derivatives(distance, label, margin):
    pull = (distance**2, 2 * distance, 2)
    push = (
        ((margin - distance) ** 2, -2 * (margin - distance), 2) if distance < margin else (0, 0, 0)
    )
    expected = push if label else pull
    value, slope = VALUE_AND_SLOPE(distance, label, margin)
    # Squares below 1e-38 are 0 in float32.
    np.testing.assert_allclose(value, expected[0], rtol=1e-6, atol=1e-37)
    np.testing.assert_allclose(slope, expected[1], rtol=1e-6, atol=1e-37)
    if distance != margin:
        np.testing.assert_allclose(CURVATURE(distance, label, margin), expected[2])


VALUE_AND_SLOPE = jax.jit(jax.value_and_grad(contrastive))
CURVATURE = jax.jit(jax.grad(jax.grad(contrastive)))


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["plain", "jit"])
@pytest.mark.parametrize("scale", [1e-25, 1e-12, 1e-3, 1, 100, 1e10])
def test_gradient_of_a_similar_pair_is_exact(scale, transform):
    a, b = np.float32(scale * np.random.default_rng(0).standard_normal((2, 1000, 17)))
    gradients = jax.vmap(jax.grad(lambda a, b: contrastive(euclidean(a, b), 0), (0, 1)))
    by_a, by_b = transform(gradients)(a, b)
    # The division of a GPU may be off by one unit in the last place.
    rtol = 2.5e-7 if jax.default_backend() == "gpu" else 0
    np.testing.assert_allclose(by_a, 2 * (a - b), rtol=rtol)
    np.testing.assert_allclose(by_b, 2 * (b - a), rtol=rtol)


def test_gradient_of_a_dissimilar_pair():
    # At (3, 4) / 10 from the origin the distance is 0.5, and the slope of (1 - D)^2 is -1.
    a, b = np.float32([[0.3, 0.4], [0.0, 0.0]])
    gradient = jax.grad(lambda a: contrastive(euclidean(a, b), 1))(a)
    np.testing.assert_allclose(gradient, [-0.6, -0.8], rtol=1e-6)
    np.testing.assert_array_equal(jax.grad(lambda a: contrastive(euclidean(a, b), 1))(4 * a), 0)


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("a", [np.zeros(4, np.float32), np.full(4, 0.3, np.float32)])
def test_coincident_pairs_have_zero_gradient(a, label):
    def loss(a, b):
        return contrastive(euclidean(a, b), label)

    np.testing.assert_array_equal(jax.grad(loss)(a, a), 0)
    assert np.isfinite(jax.jit(jax.hessian(loss))(a, a)).all()


def test_dtype_is_that_of_the_distance():
    assert contrastive(np.float32(0.5), np.float64(1), np.float64(1)).dtype == np.float32
    with jax.enable_x64(True):
        assert contrastive(jnp.float32(0.5), np.int64(1), np.float64(1)).dtype == np.float32
        value = contrastive(jnp.float64(0.3), 1, 1.0)
        assert value.dtype == np.float64
        np.testing.assert_allclose(value, 0.49, rtol=1e-15)


def test_one_compilation_serves_all_margins():
    compiled = jax.jit(contrastive)
    values = [compiled(0.5, 1, margin) for margin in np.linspace(1.0, 3.0, 5)]
    np.testing.assert_allclose(values, [0.25, 1, 2.25, 4, 6.25])
    assert compiled._cache_size() == 1


@pytest.mark.parametrize(
    "arguments", [(np.zeros(3), 0, 1.0), (0.5, np.zeros(3), 1.0), (0.5, 0, np.ones(3))]
)
def test_arguments_are_scalars(arguments):
    with pytest.raises(AssertionError, match=r"rank 1 .*jax.vmap"):
        contrastive(*arguments)


def test_distance_is_floating():
    with pytest.raises(AssertionError, match=r"int32 .*distance must be a floating-point number"):
        contrastive(1, 0)

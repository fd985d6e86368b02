"""Regularisers against float64 NumPy, and over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contrastive_jax import regularizers


def _unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def embedding_norm(x):
    return np.mean(np.sum(x**2, axis=1))


def koleo(x):
    x = _unit(x)
    d = np.linalg.norm(x[:, None] - x, axis=-1) + 9 * np.eye(len(x))
    return -np.mean(np.log(d.min(axis=1)))


def variance(x):
    return np.mean(np.maximum(0, 1 - np.sqrt(np.var(x, axis=0, ddof=1) + 1e-4)))


def covariance(x):
    matrix = np.cov(x.T)
    return (np.sum(matrix**2) - np.sum(np.diag(matrix) ** 2)) / len(matrix)


@pytest.mark.parametrize("reference", [embedding_norm, koleo, variance, covariance])
def test_values_gradients_and_devices(reference):
    of = getattr(regularizers, reference.__name__)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((24, 5)) * [1, 0.5, 0.1, 2, 1]
    c = rng.integers(0, 3, 24)
    c[[2, 11]] = -1
    program = jax.jit(jax.value_and_grad(of))
    value, gradient = program(jnp.float32(x), c)
    np.testing.assert_allclose(value, reference(x[c >= 0]), rtol=1e-5)
    np.testing.assert_array_equal(gradient[c < 0], 0)
    np.testing.assert_allclose(jax.jit(of)(jnp.float32(x)), reference(x), rtol=1e-5)

    way = rng.standard_normal(x.shape)
    above, below = (reference((x + h * way)[c >= 0]) for h in (1e-6, -1e-6))
    np.testing.assert_allclose(np.sum(gradient * way), (above - below) / 2e-6, rtol=1e-3)

    values, parts = jax.pmap(
        jax.value_and_grad(lambda x, c: of(x, c, axis_name="d")), "d", devices=jax.devices()[:4]
    )(jnp.float32(x).reshape(4, 6, 5), c.reshape(4, 6))
    np.testing.assert_allclose(values, np.full(4, value), rtol=1e-5)
    np.testing.assert_allclose(parts.reshape(24, 5), gradient, rtol=1e-4, atol=1e-6)

    for few in (np.full(24, -1), np.where(np.arange(24) < 1, 0, -1)):
        value, gradient = program(jnp.float32(x), few)
        assert np.isfinite(gradient).all()
        if reference is not embedding_norm or few[0] < 0:
            assert value == 0
    value, gradient = program(jnp.zeros((24, 5)), c)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_centers():
    w = np.random.default_rng(0).standard_normal((3, 4, 5))
    u = _unit(w)
    between = [
        np.linalg.norm(u[c, i] - u[c, j]) for c in range(3) for j in range(4) for i in range(j)
    ]
    want = sum(between) / (3 * 4 * 3)
    centers = jax.jit(regularizers.centers)
    np.testing.assert_allclose(centers(jnp.float32(w)), want, rtol=1e-5)
    assert centers(jnp.ones((3, 1, 5))) == 0
    np.testing.assert_array_equal(jax.grad(centers)(jnp.ones((3, 2, 5))), 0)


@pytest.mark.parametrize("name", ["embedding_norm", "koleo", "variance", "covariance"])
def test_of_no_rows_is_zero(name):
    value, gradient = jax.value_and_grad(getattr(regularizers, name))(jnp.zeros((0, 4)))
    assert value == 0
    assert gradient.shape == (0, 4)


def test_wrong_proxies_are_named():
    w = np.ones((3, 2, 5), np.float32)
    for wrong, message in (
        (np.where(np.arange(3)[:, None, None] == 2, np.nan, w), "must be finite, got nan in row 2"),
        (np.ma.masked_equal(w, 1), "must not be masked"),
    ):
        with pytest.raises(ValueError, match=f"proxies {message}"):
            regularizers.centers(wrong)


def test_classes_of_another_length_are_refused():
    for classes in (np.zeros(2, int), np.zeros((3, 1), int)):
        with pytest.raises(AssertionError, match=r"expected embeddings: \[B, D\], classes: \[B\]"):
            regularizers.variance(np.ones((3, 2), np.float32), classes)

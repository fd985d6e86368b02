"""Vectors of extreme length, and what goes through their directions."""

import jax
import jax.numpy as jnp
import numpy as np
import numpy_losses
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contrastive_jax import (
    all_pairs_loss,
    anchor_loss,
    distances,
    losses,
    pair_loss,
    proxy_loss,
    regularizers,
)
from contrastive_jax._directions import unit
from contrastive_jax._dtypes import widen

RNG = np.random.default_rng(0)
X = RNG.standard_normal((8, 6)).astype(np.float32)
PROXIES = RNG.standard_normal((4, 6)).astype(np.float32)
CLASSES = np.arange(8) % 4
LENGTHS = [1e-17, 1e-16, 1e-14, 1e-13, 1e-6, 1e6, 1e17]


def _with_length(x, length):
    x = x.astype(np.float64)
    x[3] *= length / np.linalg.norm(x[3])
    return x.astype(np.float32)


PROXY_LOSSES = {
    name: getattr(losses, name)()
    for name in ("normalized_softmax", "proxy_nca", "cosface", "arcface", "proxy_anchor")
}
ROW_LOSSES = {
    "angular": lambda x: anchor_loss(x, CLASSES, loss=losses.angular()),
    "koleo": regularizers.koleo,
    "supcon": lambda x: anchor_loss(x, CLASSES, loss=losses.supcon()),
    "soft_triple": lambda x: proxy_loss(x, CLASSES, PROXIES[:, None], loss=losses.soft_triple()),
}


@settings(deadline=None, max_examples=40)
@given(length=st.sampled_from([*LENGTHS, 1e-30, 1e-40, 0.0, 1e30]), seed=st.integers(0, 9))
def test_unit(length, seed):
    x = np.random.default_rng(seed).standard_normal(5)
    x = np.float32(x * length / np.linalg.norm(x))
    actual, pull = jax.vjp(unit, jnp.asarray(x))
    cotangent = np.float32([1, -2, 0.5, 0, 1])
    (gradient,) = pull(jnp.asarray(cotangent))
    if length < 1e-18:
        np.testing.assert_array_equal([actual, gradient], 0)
        return
    exact = x.astype(np.float64)
    size = np.linalg.norm(exact)
    direction = exact / size
    np.testing.assert_allclose(actual, direction, rtol=1e-6, atol=1e-7)
    across = cotangent - direction * (cotangent @ direction)
    np.testing.assert_allclose(gradient * size, across, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "width"), [(name, 6) for name in (*ROW_LOSSES, *PROXY_LOSSES)] + [("supcon", 3)]
)
def test_the_gradient_of_one_collapsed_row_is_finite(name, width):
    def value(x):
        if name in ROW_LOSSES:
            return ROW_LOSSES[name](x)
        return proxy_loss(x, CLASSES, PROXIES, loss=PROXY_LOSSES[name])

    program = jax.jit(jax.value_and_grad(value))
    values, slopes = [], []
    for length in LENGTHS[:-1]:
        x = _with_length(X[:, :width], length)
        one, gradient = program(x)
        assert np.isfinite(gradient).all(), length
        values.append(one)
        slopes.append(np.linalg.norm(x[3].astype(np.float64)) * np.float64(gradient[3]))
    assert np.isfinite(program(_with_length(X[:, :width], 1e-18))[1]).all()
    if name == "angular":
        return  # Lengths of negatives count there.
    # The direction alone counts: a gradient grows as its row shrinks.
    np.testing.assert_allclose(values, np.full(len(values), values[-1]), rtol=1e-4)
    np.testing.assert_allclose(slopes, np.tile(slopes[-1], (len(slopes), 1)), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["arcface", "proxy_anchor"])
def test_the_gradient_of_one_collapsed_proxy_is_finite(name):
    gradient_of = jax.jit(jax.grad(lambda p: proxy_loss(X, CLASSES, p, loss=PROXY_LOSSES[name])))
    for length in (1e-18, 1e-14):
        assert np.isfinite(gradient_of(_with_length(PROXIES, length))).all()


@pytest.mark.parametrize("length", [1e-13, 1e6, 1e17])
def test_angular_of_rows_of_any_length(length):
    x = _with_length(X, length)
    value, gradient = jax.jit(jax.value_and_grad(ROW_LOSSES["angular"]))(x)
    np.testing.assert_allclose(value, numpy_losses.angular(x, CLASSES, alpha=0.7), rtol=1e-6)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    "value",
    [
        lambda x: pair_loss(x[:4], x[4:], jnp.ones(4, int), distance=distances.cosine)[3],
        lambda x: all_pairs_loss(x, CLASSES, distance=distances.cosine, margin=2.0),
        lambda x: anchor_loss(x, CLASSES, loss=losses.supcon(0.01), reduction="sum"),
        lambda x: proxy_loss(x, CLASSES, x[:4], loss=losses.arcface(), reduction="sum"),
        lambda x: regularizers.koleo(x) * 100,
    ],
    ids=["pairs", "all pairs", "anchors", "proxies", "koleo"],
)
def test_float16_rows_that_nearly_vanish(value):
    x = X.astype(np.float16)
    x[3] = np.float16(1e-5) * np.sign(x[3])
    gradient = jax.jit(jax.grad(value))(x)
    assert gradient.dtype == jnp.float16
    assert np.isfinite(gradient).all()
    assert (gradient[3] != 0).any()


def test_widen():
    x = jnp.float16([1e-5, 2, jnp.inf])
    for transform in (lambda f: f, jax.jit, lambda f: lambda x: jax.vmap(f)(x[None])[0]):
        actual = transform(widen)(x)
        assert actual.dtype == jnp.float32
        np.testing.assert_array_equal(actual, np.float32(x))

        def total(x):
            return jnp.sum(jnp.float32([1e8, 3, -jnp.inf]) * widen(x))

        gradient = transform(jax.grad(total))(x)
        np.testing.assert_array_equal(gradient, np.float16([65504, 3, -np.inf]))
    hessian = jax.hessian(lambda x: jnp.sum(widen(x) ** 2))(x)
    np.testing.assert_array_equal(hessian, 2 * np.eye(3))
    for dtype, wide in ((jnp.bfloat16, jnp.float32), (jnp.float32, jnp.float32)):
        assert widen(jnp.ones(2, dtype)).dtype == wide

"""The loss of each anchor, `reduction="none"`, against float64 NumPy of one anchor at a time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpy_losses
import pytest

from contrastive_jax import all_pairs_loss, anchor_loss, losses, proxy_loss

pytestmark = pytest.mark.usefixtures("unrefined")

CLASSES = np.array([0, 1, 2, 0, 1, 2, -1, 0, 1, 3])
RNG = np.random.default_rng(0)
X = RNG.standard_normal((len(CLASSES), 4)).astype(np.float32)
PROXIES = RNG.standard_normal((4, 4)).astype(np.float32)
WEIGHTS = RNG.uniform(0.5, 1.5, len(CLASSES))
BOUNDARIES = np.linspace(0.5, 3, len(CLASSES)).astype(np.float32)
ANCHORS = {
    "ntxent": {"temperature": 0.5},
    "lifted": {},
    "margin_by_class": {},
    "triplet_all": {"margin": 0.4},
    "smooth_ap": {"temperature": 0.3},
}


def _each(name, x, y=None, y_classes=None, **hyper):
    """The loss of each row as the only anchor, of all others or of references."""
    values = []
    for i, own in enumerate(CLASSES):
        others = np.arange(len(x)) != i
        sets = (x[others], CLASSES[others]) if y is None else (y, y_classes)
        options = dict(hyper)
        if name == "margin_by_class":
            options["boundaries"] = BOUNDARIES[i : i + 1]
        one = getattr(numpy_losses, name)(x[i : i + 1], [own], *sets, **options)
        values.append(one if own >= 0 else 0.0)
    return np.array(values)


@pytest.mark.parametrize("name", ANCHORS)
def test_losses_of_anchors(name):
    hyper = ANCHORS[name]
    data = (BOUNDARIES,) if name == "margin_by_class" else ()

    def weighted(x):
        loss = getattr(losses, name)(**hyper)
        each = anchor_loss(x, CLASSES, loss=loss, data=data, reduction="none", tile=8)
        return jnp.sum(WEIGHTS * each), each

    gradient, each = jax.jit(jax.grad(weighted, has_aux=True))(X)
    want = functools.partial(_each, name, **hyper)
    np.testing.assert_allclose(each, want(X), rtol=2e-5, atol=1e-6)
    way, h, x = RNG.standard_normal(X.shape), 1e-6, X.astype(float)
    slope = WEIGHTS @ (want(x + h * way) - want(x - h * way)) / (2 * h)
    np.testing.assert_allclose(np.sum(gradient * way), slope, rtol=1e-3)


@pytest.mark.parametrize("name", ["ntxent", "triplet_all"])
def test_losses_of_anchors_against_references(name):
    y, y_classes = X[::-1] + np.float32(0.1), CLASSES[::-1]
    loss = getattr(losses, name)(**ANCHORS[name])
    actual = anchor_loss(X, CLASSES, y, y_classes, loss=loss, reduction="none", tile=8)
    want = _each(name, X, y, y_classes, **ANCHORS[name])
    np.testing.assert_allclose(actual, want, rtol=2e-5, atol=1e-6)


def test_a_row_has_the_mean_over_its_pairs():
    each = anchor_loss(
        X, CLASSES, loss=losses.mean_over_pairs(losses.sigmoid), reduction="none", tile=8
    )
    unit = X.astype(float) / np.linalg.norm(X, axis=1, keepdims=True)
    s, z = unit @ unit.T, np.where(CLASSES[:, None] == CLASSES, 1, -1)
    values = np.logaddexp(0, -z * (10 * s - 10))
    counts = (CLASSES[:, None] >= 0) & (CLASSES >= 0) & ~np.eye(len(X), dtype=bool)
    want = np.where(counts, values, 0).sum(1) / np.maximum(counts.sum(1), 1)
    np.testing.assert_allclose(each, want, rtol=1e-5)
    # Every row that counts has as many pairs.
    whole = all_pairs_loss(X, CLASSES, loss=losses.sigmoid, tile=8)
    np.testing.assert_allclose(np.mean(each[CLASSES >= 0]), whole, rtol=1e-5)


def test_terms_of_a_sum_and_second_derivatives():
    parts = losses.ntxent(0.5), losses.supcon(0.5)
    both = losses.weighted_sum((0.3, parts[0]), (2.0, parts[1]))
    of = functools.partial(anchor_loss, X, CLASSES, reduction="none", method="autodiff")
    want = 0.3 * of(loss=parts[0]) + 2 * of(loss=parts[1])
    np.testing.assert_allclose(of(loss=both), want, rtol=1e-5, atol=1e-6)

    def value(x):
        each = anchor_loss(x, CLASSES, loss=parts[1], reduction="none", method="autodiff")
        return jnp.sum(WEIGHTS * each)

    way = jnp.float32(RNG.standard_normal(X.shape))
    _, curved = jax.jit(lambda x, way: jax.jvp(jax.grad(value), (x,), (way,)))(X, way)
    slope = jax.jit(jax.grad(value))
    after, before = (slope(X + s * 1e-2 * way) for s in (1, -1))
    np.testing.assert_allclose(curved, (after - before) / 2e-2, rtol=2e-2, atol=2e-2)


def test_devices_have_the_losses_of_their_own_rows():
    x, c, loss = X[:8], CLASSES[:8], losses.supcon(0.5)

    def value(x, c, weights, axis_name=None):
        each = anchor_loss(x, c, loss=loss, reduction="none", axis_name=axis_name)
        return jnp.sum(weights * each), each

    weights = WEIGHTS[:8].astype(np.float32)
    gradient, each = jax.jit(jax.grad(value, has_aux=True))(x, c, weights)
    over_devices = jax.grad(functools.partial(value, axis_name="d"), has_aux=True)
    mapped = jax.pmap(over_devices, axis_name="d")
    actual, parts = mapped(x.reshape(2, 4, 4), c.reshape(2, 4), weights.reshape(2, 4))
    np.testing.assert_allclose(parts.ravel(), each, rtol=1e-5)
    np.testing.assert_allclose(actual.reshape(8, 4), gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["arcface", "normalized_softmax", "soft_triple"])
def test_losses_of_rows_and_proxies(name):
    proxies = RNG.standard_normal((4, 2, 4)) if name == "soft_triple" else PROXIES
    proxies = proxies.astype(np.float32)
    hyper = {"temperature": 0.5} if name == "normalized_softmax" else {"scale": 8.0}
    loss = getattr(losses, name)(**hyper)

    @jax.jit
    def each(x, proxies):
        return proxy_loss(x, CLASSES, proxies, loss=loss, reduction="none")

    def want(x, proxies):
        row_loss = functools.partial(getattr(numpy_losses, name), y=proxies, **hyper)
        return np.array([row_loss(x[i : i + 1], CLASSES[i : i + 1]) for i in range(len(x))])

    np.testing.assert_allclose(each(X, proxies), want(X, proxies), rtol=2e-5, atol=1e-6)
    gradients = jax.jit(jax.grad(lambda *of: jnp.sum(WEIGHTS * each(*of)), (0, 1)))
    by_x, by_proxies = gradients(X, proxies)
    way, along, h = RNG.standard_normal(X.shape), RNG.standard_normal(proxies.shape), 1e-6
    after, before = (
        WEIGHTS @ want(X.astype(float) + s * way, proxies.astype(float) + s * along)
        for s in (h, -h)
    )
    slope = np.sum(by_x * way) + np.sum(by_proxies * along)
    np.testing.assert_allclose(slope, (after - before) / (2 * h), rtol=1e-3)
    # As a second set, tile by tile.
    if name == "arcface":
        tiled = proxy_loss(X, CLASSES, proxies, loss=loss, reduction="none", tile=8)
        np.testing.assert_allclose(tiled, each(X, proxies), rtol=1e-5, atol=1e-6)


def test_proxies_that_are_anchors_have_each_a_loss():
    loss = losses.proxy_anchor(alpha=4.0)
    actual = proxy_loss(X, CLASSES, PROXIES, loss=loss, reduction="none")
    want = [
        numpy_losses.proxy_anchor(X, CLASSES, PROXIES[k : k + 1], np.array([k]), alpha=4.0)
        for k in range(4)
    ]
    assert actual.shape == (4,)
    np.testing.assert_allclose(actual, want, rtol=1e-5)


def test_none_of_no_rows_and_of_rows_that_are_not_finite():
    for loss in (losses.supcon(), losses.triplet_all()):
        assert anchor_loss(X[:0], CLASSES[:0], loss=loss, reduction="none").shape == (0,)
        bad = jax.jit(lambda x, loss=loss: anchor_loss(x, CLASSES, loss=loss, reduction="none"))
        each = bad(np.where(np.arange(len(X))[:, None] == 2, np.inf, X))
        np.testing.assert_array_equal(np.isnan(each), CLASSES >= 0)
        # Rows of class -1 may hold anything.
        each = bad(np.where(np.arange(len(X))[:, None] == 6, np.nan, X))
        assert np.isfinite(each).all()
        assert each[6] == 0


def test_wrong_reductions():
    with pytest.raises(
        ValueError, match="reduction must be one of mean, active, sum, none, got 'a"
    ):
        anchor_loss(X, CLASSES, loss=losses.supcon(), reduction="all")
    with pytest.raises(
        ValueError, match="reduction must be one of mean, active, sum, none, got 'b"
    ):
        proxy_loss(X, CLASSES, PROXIES, loss=losses.arcface(), reduction="balanced")
    message = "computed on one device: leave axis_name out, or reduce them"
    with pytest.raises(ValueError, match=message):
        anchor_loss(X, CLASSES, loss=losses.triplet_all(), reduction="none", axis_name="devices")

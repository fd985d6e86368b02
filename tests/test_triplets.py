"""Losses of given triplets, against losses of anchors that have these two pairs alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpy_losses
import pytest
from jax.experimental import checkify

from contrastive_jax import anchor_loss, distances, losses, triplet_loss

RNG = np.random.default_rng(0)
X = RNG.standard_normal((9, 4)).astype(np.float32)
A, P, N = X[:3], X[3:6], X[6:]
LOSSES = {
    "ntxent": {},
    "supcon": {},
    "lifted": {},
    "circle": {"scale": 4.0},
    "triplet_hard": {},
    "triplet_semi_hard": {},
    "triplet_all": {"margin": 0.4, "smooth": True},
    "angular": {},
    "smooth_ap": {"temperature": 0.3},
}


def _expected(name, hyper, a, p, n, **options):
    reference = getattr(numpy_losses, name)
    return np.array(
        [
            reference(a[i : i + 1], [0], np.stack([p[i], n[i]]), np.array([0, 1]), **hyper)
            for i in range(len(a))
        ]
    )


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name):
    loss, want = getattr(losses, name)(**LOSSES[name]), functools.partial(_expected, name)
    program = jax.jit(lambda a, p, n: triplet_loss(a, p, n, loss=loss))
    value = program(A, P, N)
    assert value.shape == (3,)
    np.testing.assert_allclose(value, want(LOSSES[name], A, P, N), rtol=1e-4, atol=1e-6)
    if name == "circle":  # its weights are not differentiated
        return
    weights = RNG.uniform(0.5, 1.5, 3)
    gradients = jax.jit(jax.grad(lambda *rows: jnp.sum(weights * program(*rows)), (0, 1, 2)))(
        A, P, N
    )
    rows, h = [one.astype(float) for one in (A, P, N)], 1e-6
    for k, gradient in enumerate(gradients):
        way = RNG.standard_normal(A.shape)
        moved = [[one + s * h * way * (j == k) for j, one in enumerate(rows)] for s in (1, -1)]
        after, before = (weights @ want(LOSSES[name], *one) for one in moved)
        np.testing.assert_allclose(np.sum(gradient * way), (after - before) / (2 * h), rtol=1e-3)


def test_by_hand():
    a, p, n = np.float32([[0, 0]]), np.float32([[3, 4]]), np.float32([[0, 5.5]])
    np.testing.assert_allclose(triplet_loss(a, p, n, loss=losses.triplet_all(1.5)), [1], rtol=1e-6)
    # Of a pair loss the mean over the two pairs: (25 + 0.5^2) / 2.
    loss = losses.contrastive(margin=6.0)
    np.testing.assert_allclose(triplet_loss(a, p, n, loss=loss), [12.625], rtol=1e-6)
    manhattan = triplet_loss(a, p, n, loss=losses.triplet_all(1), distance=distances.manhattan)
    np.testing.assert_allclose(manhattan, [2.5], rtol=1e-6)


def test_indices_are_those_of_rows():
    i, j, k = [0, 0, 4], np.array([1, 2, 5]), jnp.array([8, 8, 0])
    loss = losses.triplet_all(2.0)
    rows = triplet_loss(X[i], X[j], X[np.asarray(k)], loss=loss)
    for transform in (lambda f: f, jax.jit):
        actual = transform(lambda x: triplet_loss(i, j, k, x, loss=loss))(X)
        np.testing.assert_allclose(actual, rows, rtol=1e-6)
    by_x = np.asarray(jax.jit(jax.grad(lambda x: triplet_loss(i, j, k, x, loss=loss).sum()))(X))
    by_rows = jax.jit(jax.grad(lambda a: triplet_loss(a, X[j], X[np.asarray(k)], loss=loss).sum()))(
        X[i]
    )
    # Rows 1 and 2 are positives alone, and row 4 one anchor.
    np.testing.assert_allclose(by_x[4], by_rows[2], rtol=1e-5)
    assert np.abs(by_x[[3, 6, 7]]).max() == 0 < np.abs(by_x[[0, 1, 2, 5, 8]]).max(1).min()


def test_data_of_anchors():
    boundaries = np.float32([0.5, 2, 3])
    loss = losses.margin_by_class(0.4)
    actual = triplet_loss(A, P, N, loss=loss, data=(boundaries,))
    for i in range(3):
        pairs = A[i : i + 1], np.array([0]), np.stack([P[i], N[i]]), np.array([0, 1])
        want = anchor_loss(*pairs, loss=loss, data=(boundaries[i : i + 1],))
        np.testing.assert_allclose(actual[i], want, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((A, P[:2], N), {}, r"\(3, 4\), \(2, 4\)"),
        ((A[0], P, N), {}, r"expected anchors, positives and negatives: \[B, D\]"),
        (([0, 1], [1, 2], [2, 3]), {}, "expected anchors, positives and negatives"),
        ((A, P, N, X), {}, "anchors must be indices of rows of embeddings, .* got float32"),
        (([0], [1], [9], X), {}, "negatives must be indices from 0 to 8, .* got 9"),
        (([0], [-1], [2], X), {}, "positives must be indices from 0 to 8, .* got -1"),
        ((A, P, N * np.nan), {}, "negatives must be finite, got nan in row 0"),
        ((A, P, N), {"loss": losses.arcface()}, "loss must be a function of a distance"),
        ((A, P, N), {"loss": losses.sigmoid, "distance": distances.euclidean}, "sigmoid expects"),
        (
            (A, P, N),
            {"loss": losses.circle(), "distance": distances.euclidean},
            "holds for cosine distances alone, got euclidean",
        ),
        ((A, P, N), {"loss": losses.margin_by_class()}, "needs data: a tuple of a boundary for"),
        ((A, P, N), {"distance": "cosine"}, "distance must be a function of two vectors"),
    ],
)
def test_wrong_arguments(arguments, options, message):
    with pytest.raises((AssertionError, ValueError), match=message):
        triplet_loss(*arguments, **({"loss": losses.triplet_all()} | options))


def test_traced_indices_are_checked():
    def value(k):
        return triplet_loss([0], [1], k, X, loss=losses.triplet_all())

    checked = jax.jit(checkify.checkify(value))
    checked(jnp.array([8]))[0].throw()
    with pytest.raises(ValueError, match=r"negatives must be indices from 0 to 8, .* got 9"):
        checked(jnp.array([9]))[0].throw()

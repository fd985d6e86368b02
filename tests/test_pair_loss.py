"""Batches of given pairs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contrastive_jax import distances, pair_loss
from contrastive_jax.losses import contrastive

A = np.float32([[0, 0], [1, 2], [0.5, 0.5]])
B = np.float32([[3, 4], [1, 2.5], [0.5, 0.5]])
LABELS = np.array([0, 1, 1])


def test_by_hand():
    # Distances 5, 0.5 and 0.
    np.testing.assert_allclose(pair_loss(A, B, LABELS), [25, 0.25, 1], rtol=1e-6)
    np.testing.assert_allclose(pair_loss(A, B, LABELS, margin=2.0), [25, 2.25, 4], rtol=1e-6)


@settings(deadline=None, max_examples=50, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    batch=st.sampled_from([0, 1, 5]),
    size=st.sampled_from([1, 3]),
    margin=st.floats(0.125, 8),
)
def test_against_numpy(seed, batch, size, margin):
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((2, batch, size)).astype(np.float32)
    labels = rng.integers(0, 2, batch)
    distance = np.linalg.norm(a.astype(float) - b, axis=1)
    expected = np.where(labels == 0, distance**2, np.maximum(0, margin - distance) ** 2)
    actual = pair_loss(a, b, labels, margin=margin)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, bool, np.float32])
def test_labels_of_any_type(dtype):
    np.testing.assert_allclose(pair_loss(A, B, LABELS.astype(dtype)), [25, 0.25, 1], rtol=1e-6)


def test_low_precision_embeddings_give_float32_losses():
    values = pair_loss(A.astype(jnp.bfloat16), B.astype(jnp.bfloat16), LABELS)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, [25, 0.25, 1], rtol=1e-6)


def test_user_written_loss_and_distance():
    def ratio(distance, label):
        return jnp.where(label == 0, distance, 1 / (1 + distance))

    def first_entry(a, b):
        return jnp.abs(a[0] - b[0])

    values = pair_loss(A, B, LABELS, loss=ratio, distance=first_entry)
    np.testing.assert_allclose(values, [3, 1, 1])

    def linear(distance, label, margin):
        return jnp.where(label == 0, distance, jnp.maximum(0, margin - distance))

    values = pair_loss(A, B, LABELS, loss=linear, margin=2.0)
    np.testing.assert_allclose(values, [5, 1.5, 2])


def test_distance_with_a_parameter_that_is_learned():
    def loss(factor):
        distance = functools.partial(distances.mahalanobis, factor=factor)
        return jnp.sum(pair_loss(A[:1], B[:1], LABELS[:1], distance=distance))

    # Of |L x|^2 the gradient is 2 L x x^T, with x = (-3, -4).
    factor = np.float32([[1, 0], [0, 2]])
    value, gradient = jax.value_and_grad(loss)(factor)
    np.testing.assert_allclose(value, 9 + 64, rtol=1e-6)
    np.testing.assert_allclose(gradient, 2 * factor @ [[9, 12], [12, 16]], rtol=1e-6)


def test_one_compilation_serves_ten_margins():
    traces = []

    def counted(distance, label, margin):
        traces.append(margin)
        return contrastive(distance, label, margin)

    @jax.jit
    def step(a, b, labels, margin):
        return jax.grad(lambda a: pair_loss(a, b, labels, loss=counted, margin=margin).sum())(a)

    for margin in np.linspace(0.6, 2.4, 10):
        # The second pair lies 0.5 apart along (0, -1).
        gradient = step(A, B, LABELS, margin)
        np.testing.assert_allclose(gradient[1], [0, 2 * (margin - 0.5)], rtol=1e-5)
    assert len(traces) == 1
    assert step._cache_size() == 1


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["plain", "jit"])
def test_a_margin_of_each_pair(transform):
    # Distances 5, 0.5 and 0; by the margin the gradient of a negative pair is 2 (margin - D).
    margins = np.float32([1, 2, 0.25])
    values = transform(lambda margin: pair_loss(A, B, LABELS, margin=margin))(margins)
    np.testing.assert_allclose(values, [25, 2.25, 0.0625], rtol=1e-6)
    gradient = transform(jax.grad(lambda margin: pair_loss(A, B, LABELS, margin=margin).sum()))
    np.testing.assert_allclose(gradient(margins), [0, 3, 0.5], rtol=1e-6)
    np.testing.assert_allclose(pair_loss(A, B, LABELS, margin=[1, 2, 3]), [25, 2.25, 9], rtol=1e-6)


def test_mapped_over_margins():
    margins = np.float32([1, 2, 3])
    values = jax.vmap(lambda margin: pair_loss(A, B, LABELS, margin=margin))(margins)
    np.testing.assert_allclose(values[:, 1], [0.25, 2.25, 6.25], rtol=1e-6)


def test_no_transfers_when_compiled():
    step = jax.jit(lambda a, b, labels, margin: pair_loss(a, b, labels, margin=margin))
    arguments = jax.device_put((A, B, LABELS, np.float32(1)))
    with jax.transfer_guard("disallow"):
        values = step(*arguments)
    np.testing.assert_allclose(values, [25, 0.25, 1], rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((A[0], B[0], LABELS), r"rank 1 .*a: \[B, D\]"),
        ((A, B, LABELS[:, None]), r"rank 2 .*labels: \[B\]"),
        ((A, B[:2], LABELS), r"\(3, 2\), \(2, 2\)"),
        ((A, B, LABELS[:2]), r"\(3,\), \(2,\)"),
        ((A.astype(int), B, LABELS), "int"),
        ((A, B.astype(np.float16), LABELS), "float16 but expected float32"),
    ],
)
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["plain", "jit"])
def test_wrong_arrays(arguments, message, transform):
    with pytest.raises(AssertionError, match=message):
        transform(pair_loss)(*arguments)


def test_lists_and_foreign_byte_orders():
    for labels in (LABELS.tolist(), LABELS.astype(">i8"), [False, True, True]):
        np.testing.assert_allclose(pair_loss(A, B, labels), [25, 0.25, 1], rtol=1e-6)
    big = A.astype(">f4"), B.astype(">f4"), np.ma.masked_array(LABELS, mask=False)
    np.testing.assert_allclose(pair_loss(*big), [25, 0.25, 1], rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((A, B, LABELS[:, None]), r"squeeze it to \[N\] by labels.squeeze\(1\)"),
        ((A, B, ["0", "1", "1"]), "labels must be numbers, got <U1; numpy.unique"),
        ((A, B, np.ma.masked_equal(LABELS, 0)), "labels must not be masked"),
        ((A, np.ma.masked_equal(B, 4), LABELS), "b must not be masked"),
        ((A.astype(float) * 1e300, B, LABELS), r"a must fit float32, got 1e\+300 in row 1"),
        ((A, B, [0, 2**32, 1]), r"labels must be 0 .*, got 4294967296 in row 1"),
    ],
)
def test_arrays_of_the_host_that_are_refused(arguments, message):
    with pytest.raises((AssertionError, ValueError), match=message):
        pair_loss(*arguments)


def test_wrong_margin_and_loss():
    for margin in (np.ones(2), np.ones((3, 1))):
        with pytest.raises(AssertionError, match=r"expected \(3\).*a scalar margin or \[B\]"):
            pair_loss(A, B, LABELS, margin=margin)
    with pytest.raises(ValueError, match=r"margin must be above 0 and finite, got 0.0 in row 1"):
        pair_loss(A, B, LABELS, margin=[1.0, 0.0, 1.0])
    with pytest.raises(AssertionError, match="loss must return a scalar"):
        pair_loss(A, B, LABELS, loss=lambda d, y: d[None])

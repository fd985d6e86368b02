"""Convolution by patches against XLA's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contrastive_jax.convolution import convolution

NHWC = ("NHWC", "HWIO", "NHWC")
CASES = [
    # size, kernel, stride, padding
    (28, 5, 2, "SAME"),
    (14, 3, 2, "SAME"),
    (7, 3, 2, "SAME"),
    (8, 3, 1, "SAME"),
    (28, 4, 4, "SAME"),
    (28, 8, 4, "SAME"),
    (7, 2, 2, "SAME"),
    (9, 4, 2, "VALID"),
    (9, 6, 1, "VALID"),
    (8, 6, 2, ((1, 2), (0, 3))),
    (8, 1, 2, "SAME"),
]


def _by_xla(images, kernel, stride, padding):
    return jax.lax.conv_general_dilated(
        images, kernel, (stride, stride), padding, dimension_numbers=NHWC
    )


def _ours(images, kernel, stride, padding):
    return convolution(images, kernel, (stride, stride), padding, dimension_numbers=NHWC)


def _arrays(size, kernel):
    keys = jax.random.split(jax.random.key(0))
    images = jax.random.normal(keys[0], (3, size, size + 1, 2))
    return images, jax.random.normal(keys[1], (kernel, kernel, 2, 5))


@pytest.mark.parametrize(("size", "kernel", "stride", "padding"), CASES)
def test_values_and_gradients_equal_those_of_xla(size, kernel, stride, padding):
    images, weights = _arrays(size, kernel)

    def value_and_gradients(conv):
        def pulled(x, w):
            value = conv(x, w, stride, padding)
            cotangent = np.random.default_rng(1).standard_normal(value.shape).astype(np.float32)
            return jnp.vdot(value, cotangent), value

        return jax.jit(jax.grad(pulled, (0, 1), has_aux=True))(images, weights)

    gradients, value = value_and_gradients(_ours)
    expected, want = value_and_gradients(_by_xla)
    np.testing.assert_allclose(value, want, rtol=1e-4, atol=1e-4)
    for got, reference in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(got, reference, rtol=1e-4, atol=1e-3)


def test_against_a_sum_written_out():
    images, weights = _arrays(6, 3)
    x, w = np.asarray(images, np.float64), np.asarray(weights, np.float64)
    expected = np.zeros((3, 2, 3, 5))
    for row in range(2):
        for column in range(3):
            window = x[:, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
            expected[:, row, column] = np.einsum("bijc,ijco->bo", window, w)
    np.testing.assert_allclose(_ours(images, weights, 2, "VALID"), expected, rtol=1e-5, atol=1e-5)


def test_the_cpu_program_has_no_convolution_in_it():
    images, weights = _arrays(14, 3)
    gradient = jax.grad(lambda x, w: jnp.sum(_ours(x, w, 2, "SAME") ** 2), argnums=(0, 1))
    text = jax.jit(gradient).lower(images, weights).compile().as_text()
    assert "convolution(" not in text
    assert (
        "convolution("
        in jax.jit(lambda x, w: _by_xla(x, w, 2, "SAME")).lower(images, weights).compile().as_text()
    )


def test_large_grouped_and_dilated_convolutions_are_left_to_xla():
    big = jax.ShapeDtypeStruct((256, 64, 64, 8), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 8, 8), jnp.float32)
    jaxpr = str(jax.make_jaxpr(lambda x, w: _ours(x, w, 1, "SAME"))(big, kernel))
    assert "platform_index" not in jaxpr
    images, weights = _arrays(9, 3)
    dilated = convolution(
        images, weights, (1, 1), "SAME", rhs_dilation=(2, 2), dimension_numbers=NHWC
    )
    expected = jax.lax.conv_general_dilated(
        images, weights, (1, 1), "SAME", rhs_dilation=(2, 2), dimension_numbers=NHWC
    )
    np.testing.assert_array_equal(dilated, expected)


def test_maps_over_kernels():
    images, weights = _arrays(14, 3)
    several = jnp.stack([weights, 2 * weights, -weights])
    mapped = jax.vmap(lambda w: _ours(images, w, 2, "SAME"))(several)
    for got, w in zip(mapped, several, strict=True):
        np.testing.assert_allclose(got, _by_xla(images, w, 2, "SAME"), rtol=1e-4, atol=1e-4)

"""Encoders: shapes, scale, types, gradients."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from contrastive_jax import models
from contrastive_jax.train import network

ALL = [models.MLP, models.DrLIM, models.ConvNet, models.ResNet18]
SHAPES = [(8, 8, 1), (28, 28, 1), (17, 23, 3)]


def _images(shape, count=4):
    return jax.random.randint(jax.random.key(0), (count, *shape), 0, 256).astype(jnp.uint8)


def _shape(encoder):
    """One shape for each encoder, so that tests share its program."""
    return SHAPES[2] if encoder is models.ResNet18 else SHAPES[0]


@functools.cache
def _made_of(encoder, shape, **options):
    module = encoder(shape, 3, rngs=nnx.Rngs(0), **options)
    # Compiled in one piece, as one by one the layers of ResNet18 take ten times as long.
    made = network(module)
    return module, functools.partial(jax.jit(made.encode), made.weights)


def _made(encoder, shape=None, **options):
    """Returns an encoder and its embedding of images, which tests share as it is compiled."""
    return _made_of(encoder, shape or _shape(encoder), **options)


@pytest.mark.parametrize(
    ("encoder", "shape"),
    [*itertools.product(ALL[:-1], SHAPES), (models.ResNet18, SHAPES[2])],
)
def test_embeds_any_image_from_8_by_8_up(encoder, shape):
    embeddings = _made(encoder, shape, normalize=True)[1](_images(shape))
    assert embeddings.shape == (4, 3)
    assert embeddings.dtype == jnp.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-5)
    assert np.ptp(embeddings, axis=0).min() > 0, "different images, the same embedding"


def _low(encoder):
    """In bfloat16: of ResNet18, which takes seconds to compile, the one without a scale."""
    return _made(encoder, normalize=encoder is not models.ResNet18, dtype=jnp.bfloat16)


@pytest.mark.parametrize("encoder", ALL)
def test_raw_embeddings_are_not_scaled(encoder):
    _, embed = _low(encoder) if encoder is models.ResNet18 else _made(encoder, normalize=False)
    norms = np.linalg.norm(embed(_images(_shape(encoder))), axis=1)
    assert np.abs(norms - 1).min() > 1e-3


@pytest.mark.parametrize("encoder", ALL)
def test_computes_in_bfloat16_with_float32_parameters(encoder):
    low, embed_low = _low(encoder)
    _, embed_high = _made(encoder, normalize=True)
    assert {x.dtype for x in jax.tree.leaves(nnx.state(low, nnx.Param))} == {np.dtype("float32")}
    images = _images(_shape(encoder))
    jaxpr = str(jax.make_jaxpr(lambda x: low(x))(images))
    assert "bf16" in jaxpr
    actual = embed_low(images)
    assert actual.dtype == jnp.float32
    actual = actual / np.linalg.norm(actual, axis=1, keepdims=True)
    np.testing.assert_allclose(actual, embed_high(images), atol=0.1)


@pytest.mark.parametrize("encoder", ALL)
def test_integer_images_are_scaled_to_one(encoder):
    _, embed = _made(encoder, normalize=True)
    images = _images(_shape(encoder))
    scaled = embed(images.astype(jnp.float32) / 255)
    np.testing.assert_allclose(embed(images), scaled, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("encoder", ALL)
def test_gradients_reach_every_parameter_and_are_finite_on_blank_images(encoder):
    made = network(encoder((8, 8, 1), 3, normalize=True, rngs=nnx.Rngs(0)))
    directions = jax.random.normal(jax.random.key(1), (4, 3))

    @jax.jit
    def gradient(images):
        return jax.grad(lambda w: jnp.vdot(made.encode(w, images), directions))(made.weights)

    for leaf in jax.tree.leaves(gradient(_images((8, 8, 1)))):
        assert np.abs(leaf).max() > 0
    for leaf in jax.tree.leaves(gradient(jnp.zeros((4, 8, 8, 1), jnp.uint8))):
        assert np.isfinite(leaf).all()


def test_an_example_is_embedded_the_same_in_any_batch():
    for encoder in ALL:
        images = _images(_shape(encoder))
        _, embed = _made(encoder, normalize=True)
        alone = embed(images[2:3])
        np.testing.assert_allclose(embed(images)[2:3], alone, rtol=1e-4, atol=1e-5)


def test_drlim_has_the_shape_of_the_paper():
    module = models.DrLIM((28, 28, 1), rngs=nnx.Rngs(0))
    assert module.c1.kernel.shape == (6, 6, 1, 15)
    assert module.c3.kernel.shape == (9, 9, 15, 30)
    assert module.out.kernel.shape == (3 * 3 * 30, 2)


def test_resnet18_has_eighteen_layers():
    module = models.ResNet18((32, 32, 3), 128, rngs=nnx.Rngs(0))
    kernels = [
        path for path, _ in nnx.to_flat_state(nnx.state(module, nnx.Param)) if path[-1] == "kernel"
    ]
    assert len([path for path in kernels if "shortcut" not in path]) == 18


def test_the_same_seed_gives_the_same_parameters():
    first, second = (
        nnx.state(models.ConvNet((8, 8, 1), rngs=nnx.Rngs(3)), nnx.Param) for _ in range(2)
    )
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize("encoder", ALL)
def test_wrong_shapes_are_refused(encoder):
    with pytest.raises(ValueError, match=r"image_shape .* got \(28, 28\)"):
        encoder((28, 28), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"width of the embedding .* got 0"):
        encoder((28, 28, 1), 0, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"at least 8 x 8 pixels, got \(7, 9, 1\)"):
        models.DrLIM((7, 9, 1), rngs=nnx.Rngs(0))


@pytest.mark.parametrize("model", [models.Linear, models.MLP, models.Residual])
def test_heads_take_vectors_and_images(model):
    vectors = np.random.default_rng(0).normal(size=(5, 12)).astype(np.float32)
    for shape in ((12,), (2, 2, 3)):
        head = model(shape, width=4, rngs=nnx.Rngs(0))
        embeddings = head(vectors.reshape(5, *shape))
        assert embeddings.shape == (5, 4)
        np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("model", [models.DrLIM, models.ConvNet, models.ResNet18])
def test_encoders_of_images_refuse_vectors(model):
    with pytest.raises(ValueError, match="take Linear, MLP or Residual"):
        model((12,), rngs=nnx.Rngs(0))


@pytest.mark.parametrize("width", [12, 20, 6])
def test_a_residual_head_starts_at_the_vectors(width):
    vectors = np.random.default_rng(0).normal(size=(5, 12)).astype(np.float32)
    head = models.Residual((12,), width=width, normalize=False, rngs=nnx.Rngs(0))
    start = np.asarray(head(vectors))
    if width == 12:
        np.testing.assert_array_equal(start, vectors)
        return
    gram = start @ start.T
    if width > 12:
        np.testing.assert_allclose(gram, vectors @ vectors.T, rtol=1e-4, atol=1e-4)
    else:
        kernel = np.asarray(head.projection.kernel[...])
        np.testing.assert_allclose(kernel.T @ kernel, np.eye(6), atol=1e-5)

"""Microbatches bound the memory of a step and leave its gradient as it is."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from contrastive_jax import losses, memory, models, train
from contrastive_jax.train import objectives

pytestmark = pytest.mark.usefixtures("unrefined")

SHAPE, ROWS, WIDTH = (8, 8, 1), 32, 6
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (ROWS, *SHAPE), np.uint8)
CLASSES = np.arange(ROWS, dtype=np.int32) % 4
BATCH = train.Batch(IMAGES, CLASSES)
PAIRS = train.Pairs(
    IMAGES, np.roll(IMAGES, 1, 0), first_classes=CLASSES, second_classes=np.roll(CLASSES, 1)
)
OBJECTIVES = {
    "pairs": objectives.pairs(margin=1.2),
    "groups": objectives.pairs(margin=1.2, group=2),
    "all_pairs": objectives.all_pairs(margin=1.2),
    "anchors": objectives.anchors(losses.supcon, temperature=0.1),
    "triples": objectives.anchors(losses.triplet_all, margin=0.2),
    "proxies": objectives.proxies(losses.normalized_softmax),
    "batches": train.objective("online_hard"),
    "memory": objectives.all_pairs(margin=1.2),
}


# Each objective once, on one device or on four; the other pairs of both are long.
QUICK = {
    *((kind, 1) for kind in ("groups", "proxies", "memory", "triples", "batches")),
    *((kind, 4) for kind in ("pairs", "all_pairs", "anchors")),
}


class Smooth(nnx.Module):
    """Smooth, as next to the kink of a ReLU rounding decides between two gradients."""

    def __init__(self, *, rate=0.0, rngs):
        self.hidden = nnx.Linear(64, 16, rngs=rngs)
        self.dropout = nnx.Dropout(rate, rngs=rngs)
        self.out = nnx.Linear(16, WIDTH, rngs=rngs)

    def __call__(self, images):
        hidden = self.dropout(jnp.tanh(self.hidden(images.reshape(len(images), -1) / 255)))
        embeddings = self.out(hidden)
        return embeddings / jnp.linalg.norm(embeddings, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def encoder():
    return train.network(Smooth, SHAPE)


def _gradient(kind, encoder, devices=1, **options):
    """Loss and gradient of one step: of gradient descent by a rate of 1."""
    objective = OBJECTIVES[kind]
    optimizer = optax.sgd(1.0)
    bank = ()
    if kind == "memory":
        others = np.random.default_rng(1).normal(size=(ROWS, WIDTH))
        bank = memory.push(memory.empty(ROWS, WIDTH), np.float32(others), CLASSES, 0)
    state = train.init_state(encoder, optimizer, objective.init(4, WIDTH, 0), memory=bank)
    step = train.make_step(encoder, optimizer, objective, **options)
    placed = train.parallel(step, "shard_map", jax.devices()[:devices], sharded=(1,))
    batch = PAIRS if objective.separable else BATCH
    after, metrics = placed.step(
        placed.replicate(state), placed.shard(batch), placed.replicate(train.Hyperparameters(0))
    )
    moved = jax.tree.map(lambda a, b: np.asarray(a) - b, state.params, placed.fetch(after).params)
    return float(metrics["loss"]), moved


def _assert_close(got, want):
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(got[1]), jax.tree.leaves(want[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


@pytest.fixture(scope="module")
def whole(encoder):
    """The gradients of the whole batch on one device, each computed once."""
    made = {}

    def of(kind):
        if kind not in made:
            made[kind] = _gradient(kind, encoder)
        return made[kind]

    return of


@pytest.mark.parametrize(
    ("kind", "devices"),
    [
        pytest.param(*case, marks=[] if case in QUICK else pytest.mark.long)
        for case in itertools.product(OBJECTIVES, (1, 2, 4))
    ],
)
def test_the_gradient_is_that_of_the_whole_batch(encoder, whole, kind, devices):
    want = whole(kind)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(want[1].encoder)) > 1e-3
    _assert_close(_gradient(kind, encoder, devices, microbatches=4), want)


def test_activations_that_stay_in_memory_have_the_same_gradient(encoder, whole):
    got = _gradient("all_pairs", encoder, microbatches=4, remat=False)
    _assert_close(got, whole("all_pairs"))


def test_masks_of_dropout_are_drawn_again_as_they_were():
    encoder = train.network(partial(Smooth, rate=0.2))
    want = _gradient("all_pairs", encoder, microbatches=4, remat=False)
    _assert_close(_gradient("all_pairs", encoder, microbatches=4), want)


def _temporaries(kind, batch_size, part, width=8):
    """Bytes of temporaries of a step on one device, by XLA."""
    encoder = train.network(models.MLP(SHAPE, width, hidden=(512,), rngs=nnx.Rngs(0)))
    objective = OBJECTIVES[kind]
    optimizer = optax.sgd(0.1)
    state = train.init_state(encoder, optimizer, objective.init(4, width, 0))
    step = train.make_step(encoder, optimizer, objective, microbatches=batch_size // part)
    placed = train.parallel(step, "shard_map", jax.devices()[:1], sharded=(1,))
    images = jax.ShapeDtypeStruct((batch_size, *SHAPE), jnp.uint8)
    classes = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
    batch = (
        train.Pairs(images, images, classes)
        if objective.separable
        else train.Batch(images, classes)
    )
    compiled = placed.step.lower(state, batch, train.Hyperparameters(0)).compile()
    analysis = compiled.memory_analysis()
    if analysis is None:
        pytest.skip("no analysis of memory here")
    return analysis.temp_size_in_bytes


@pytest.mark.parametrize(
    "kind",
    [
        "pairs",
        "all_pairs",
        *(pytest.param(k, marks=pytest.mark.long) for k in ("anchors", "proxies")),
    ],
)
def test_temporaries_stay_flat_when_the_batch_grows(kind):
    small, large, part = 1024, 16384, 256
    growth = _temporaries(kind, large, part) - _temporaries(kind, small, part)
    # A copy of the images, and some arrays of embeddings with what belongs to a row of them.
    row = 2 * 64 + 16 * (8 * 4 + 8)
    assert growth <= (large - small) * row, (growth / (large - small), row)
    # The activations of a row are larger, or this would show nothing.
    assert 2 * row < 512 * 4

"""Steps under shard_map train as under pmap, though both may overwrite the state they are given."""

import jax
import numpy as np
from flax import nnx

from contrastive_jax import models, train
from contrastive_jax.data import index_by_class
from contrastive_jax.train import objectives, parallel


def test_steps_of_a_convolution_lose_the_same_by_pmap_and_shard_map():
    generator = np.random.default_rng(0)
    images = generator.integers(0, 255, (64, 8, 8, 1)).astype(np.uint8)
    classes = np.arange(64) % 4
    encoder = train.network(models.ConvNet((8, 8, 1), width=32, rngs=nnx.Rngs(0)))
    optimizer = train.make_optimizer(4e-3, 10)
    step = train.draws_pairs(train.make_step(encoder, optimizer, objectives.pairs(group=16)), 64)
    losses = []
    for strategy in ("pmap", "shard_map"):
        placed = parallel(step, strategy, jax.devices()[:1])
        source = placed.replicate(train.Source(images, classes, index_by_class(classes)))
        hyperparameters = placed.replicate(train.Hyperparameters(0, {"margin": 1.2}))
        state = placed.replicate(train.init_state(encoder, optimizer))
        for _ in range(2):
            state, metrics = placed.step(state, source, hyperparameters)
        losses.append(float(metrics["loss"]))  # of the state that the first step left
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)

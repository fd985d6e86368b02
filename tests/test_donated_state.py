"""Steps under shard_map train as under pmap, though both may overwrite the state they are given."""

import jax
import numpy as np
from flax import nnx

from contrastive_jax import encoders, training
from contrastive_jax.data import index_by_class
from contrastive_jax.parallel import parallel


def test_steps_of_a_convolution_lose_the_same_by_pmap_and_shard_map():
    generator = np.random.default_rng(0)
    images = generator.integers(0, 255, (64, 8, 8, 1)).astype(np.uint8)
    classes = np.arange(64) % 4
    encoder = encoders.ConvNet((8, 8, 1), width=32, rngs=nnx.Rngs(0))
    encode, params = training.split_encoder(encoder)
    optimizer = training.make_optimizer(4e-3, 10)
    step = training.make_drawn_step(training.make_pair_step(encode, optimizer, group=16), 64)
    losses = []
    for strategy in ("pmap", "shard_map"):
        placed = parallel(step, strategy, jax.devices()[:1])
        source = placed.replicate(training.Source(images, classes, index_by_class(classes)))
        numbers = placed.replicate(training.Numbers(margin=1.2, seed=0))
        state = placed.replicate(training.init_state(params, optimizer))
        for _ in range(2):
            state, metrics = placed.step(state, source, numbers)
        losses.append(float(metrics["loss"]))  # of the state that the first step left
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)

"""Trains, evaluates, saves and restores with the core dependencies alone."""

import tempfile

import jax
import numpy as np
from flax import nnx

from contrastive_jax import checkpoints, encoders, training
from contrastive_jax.data import index_by_class
from contrastive_jax.evaluation.retrieval import retrieval
from contrastive_jax.parallel import parallel

images = np.random.default_rng(0).integers(0, 256, (32, 4, 4, 1), np.uint8)
classes = np.repeat(np.arange(4, dtype=np.int32), 8)
encoder = encoders.MLP((4, 4, 1), 8, hidden=(8,), rngs=nnx.Rngs(0))
encode, params = training.split_encoder(encoder)
optimizer = training.make_optimizer(1e-3, steps=4)
step = training.make_drawn_step(training.make_pair_step(encode, optimizer), 8)
placed = parallel(step, "shard_map", jax.devices()[:1])
begun = placed.replicate(training.init_state(params, optimizer))
source = placed.replicate(training.Source(images, classes, index_by_class(classes)))
numbers = placed.replicate(training.Numbers(margin=1.0, seed=0))
folder = tempfile.mkdtemp()
with checkpoints.open_checkpoints(folder, best_by="p1") as saved:
    for state, records in training.train(
        lambda state: placed.step(state, source, numbers),
        begun,
        start=0,
        steps=4,
        window=2,
        batch_size=8,
    ):
        embeddings = training.embed(encode, placed.fetch(state).params, images)
        score = retrieval(embeddings, classes)["precision_at_1"]
        checkpoints.save(saved, records[-1]["step"], placed.fetch(state), {"p1": score})
with checkpoints.open_checkpoints(folder, best_by="p1") as saved:
    again = checkpoints.restore(saved, 4, placed.fetch(state))
print(f"trained {again.step} steps, P@1 {score:.2f}, with the core dependencies alone")

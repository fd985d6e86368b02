"""Trains, evaluates, saves and restores with the core dependencies alone."""

import tempfile

import jax
import numpy as np
from flax import nnx

from contrastive_jax import models, train
from contrastive_jax.data import index_by_class
from contrastive_jax.evaluation.retrieval import retrieval
from contrastive_jax.train import checkpoints

images = np.random.default_rng(0).integers(0, 256, (32, 4, 4, 1), np.uint8)
classes = np.repeat(np.arange(4, dtype=np.int32), 8)
encoder = train.network(models.MLP((4, 4, 1), 8, hidden=(8,), rngs=nnx.Rngs(0)))
optimizer = train.make_optimizer(1e-3, steps=4)
objective = train.objective("contrastive", on="pairs", margin=1.0)
step = train.draws_pairs(train.make_step(encoder, optimizer, objective), 8)
placed = train.parallel(step, "shard_map", jax.devices()[:1])
begun = placed.replicate(train.init_state(encoder, optimizer))
source = placed.replicate(train.Source(images, classes, index_by_class(classes)))
hyperparameters = placed.replicate(train.Hyperparameters(seed=0))
folder = tempfile.mkdtemp()
with checkpoints.open_checkpoints(folder, best_by="p1") as saved:
    for state, records in train.windows(
        lambda state: placed.step(state, source, hyperparameters), begun, steps=4, window=2
    ):
        weights = placed.fetch(state).weights
        embeddings = train.embed(encoder.encode, weights, images)
        score = retrieval(embeddings, classes)["precision_at_1"]
        checkpoints.save(saved, records[-1]["step"], placed.fetch(state), {"p1": score})
with checkpoints.open_checkpoints(folder, best_by="p1") as saved:
    again = checkpoints.restore(saved, 4, placed.fetch(state))
print(f"trained {again.step} steps, P@1 {score:.2f}, with the core dependencies alone")

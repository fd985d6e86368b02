"""Seeds: 2^32 of them, each of its own, and no other taken for one of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contrastive_jax import data, distances, models, train
from contrastive_jax.evaluation.intervals import bootstrap_interval
from contrastive_jax.evaluation.summary import drawn_distances, summarize
from contrastive_jax.evaluation.verification import kfold_accuracy
from contrastive_jax.train import grid, parallel


def _takers_of_seeds():
    """Every public function that takes a seed, by its name."""
    classes = np.repeat(np.arange(3, dtype=np.int32), 4)
    points = np.random.default_rng(0).normal(size=(12, 2))
    images = np.zeros((12, 8, 8, 1), np.uint8)
    sets = (points, classes, points, classes)
    placed = parallel(lambda state, hyperparameters: (state, {}), "shard_map", jax.devices()[:1])
    step = train.draws_pairs(lambda state, pairs, hyperparameters: (state, {}), 4)
    state = train.TrainState(jnp.zeros((), jnp.int32), (), ())
    source = train.Source(images, classes, data.index_by_class(classes))

    def stepped(seed):
        mapped = jax.vmap(
            lambda state: step(state, source, train.Hyperparameters(seed)),
            in_axes=None,
            axis_name=train.AXIS,
            axis_size=1,
        )
        return jax.eval_shape(mapped, state)

    return {
        "load": lambda seed: data.load("digits", seed=seed),
        "hold_out": lambda seed: data.hold_out(classes, 0.5, seed=seed),
        "stream_pairs": lambda seed: next(
            data.stream_pairs(images, classes, seed=seed, batch_size=4, positive_fraction=0.5)
        ),
        "bootstrap_interval": lambda seed: bootstrap_interval([1.0, 2.0], seed=seed),
        "kfold_accuracy": lambda seed: kfold_accuracy([0.0, 1.0] * 5, [0, 1] * 5, 2, seed=seed),
        "summarize": lambda seed: summarize(*sets, pairs=20, seed=seed),
        "drawn_distances": lambda seed: drawn_distances(
            points, classes, distances.euclidean, 20, seed
        ),
        "a step": stepped,
        "train_grid": lambda seed: next(
            grid.train_grid(None, None, None, [train.Hyperparameters(seed)], steps=1, window=1)
        ),
        "network": lambda seed: train.network(models.MLP, (8, 8, 1), seed),
        "a loss": lambda seed: train.objective("arcface").init(2, 2, seed),
        "parallel": lambda seed: placed.replicate(train.Hyperparameters(seed)),
    }


@pytest.mark.parametrize("name", _takers_of_seeds())
def test_seeds_that_are_not_distinct_are_refused(name):
    """JAX takes 2^32 for 0 and -1 for 2^32 - 1, without a word."""
    take = _takers_of_seeds()[name]
    for seed in (2**32, np.int64(2**32), -(2**31) - 1, *([] if name == "parallel" else [-1, 0.5])):
        with pytest.raises(ValueError, match=r"seed .* from 0 to 4294967295 \(2\^32 - 1\)"):
            take(seed)


def test_all_seeds_below_2_to_the_32_are_taken_and_distinct():
    takers = _takers_of_seeds()
    for name in ("hold_out", "bootstrap_interval", "a step", "a loss", "parallel"):
        takers[name](2**32 - 1)
        takers[name](np.uint32(2**32 - 1))
    seeds = (0, 1, 2**31 - 1, 2**31, 2**32 - 1)
    placed = parallel(lambda state: (state, {}), "shard_map", jax.devices()[:1])
    keys = {
        tuple(jax.random.key_data(jax.random.key(placed.replicate(seed))).tolist())
        for seed in seeds
    }
    assert keys == {tuple(jax.random.key_data(jax.random.key(seed)).tolist()) for seed in seeds}
    assert len(keys) == len(seeds)

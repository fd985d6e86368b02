"""Everything that holds an encoder works in Flax's tree mode too (`NNX_GRAPH_MODE=false`)."""

import flax
import jax
import numpy as np
import pytest
from flax import nnx

from contrastive_jax import models, train
from contrastive_jax.data import index_by_class
from contrastive_jax.train import checkpoints, grid, objectives, parallel

pytestmark = [
    pytest.mark.usefixtures("tree_mode"),
    pytest.mark.skipif(
        not hasattr(flax.config, "nnx_graph_mode"), reason="this Flax has no tree mode"
    ),
]

IMAGES = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 1), np.uint8)
CLASSES = np.repeat(np.arange(4, dtype=np.int32), 8)
SOURCE = train.Source(IMAGES, CLASSES, index_by_class(CLASSES))
HYPERPARAMETERS = train.Hyperparameters(3, {"margin": 1.0})
NAMES = ("nnx_graph_mode", "nnx_graph_updates")


def _set_graph_mode(value):
    before = [getattr(flax.config, name) for name in NAMES]
    for name, one in zip(NAMES, [value] * 2 if isinstance(value, bool) else value, strict=True):
        flax.config.update(name, one)
    return before


@pytest.fixture
def tree_mode():
    before = _set_graph_mode(False)
    yield
    _set_graph_mode(before)


def _shared():
    """A module that holds one layer twice, which tree mode refuses."""
    module = nnx.Module()
    module.first = module.second = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    return module


def test_the_mode_is_on():
    with pytest.raises(ValueError, match=r"[Dd]uplicate"):
        nnx.split(_shared())


@pytest.mark.parametrize("name", ["MLP", "DrLIM", "ConvNet", "ResNet18"])
def test_an_encoder_is_that_of_graph_mode(name):
    def made():
        return train.network(getattr(models, name)((8, 8, 1), 4, rngs=nnx.Rngs(0)))

    encoder = made()
    before = _set_graph_mode(True)
    by_graph = made()
    jax.tree.map(np.testing.assert_array_equal, encoder.weights, by_graph.weights)
    shapes = jax.eval_shape(encoder.encode, encoder.weights, IMAGES)
    assert shapes == jax.eval_shape(by_graph.encode, by_graph.weights, IMAGES)
    _set_graph_mode(before)
    assert shapes.shape == (32, 4)


@pytest.fixture
def model():
    encoder = train.network(models.MLP((8, 8, 1), 4, hidden=(8,), rngs=nnx.Rngs(0)))
    optimizer = train.make_optimizer(1e-3, steps=4)
    step = train.draws_pairs(train.make_step(encoder, optimizer, objectives.pairs()), 8)
    return step, jax.device_get(train.init_state(encoder, optimizer))


def test_a_training_goes_on_from_its_checkpoint(model, tmp_path):
    step, begun = model
    placed = parallel(step, "shard_map", jax.devices()[:2])
    source, hyperparameters = placed.replicate(SOURCE), placed.replicate(HYPERPARAMETERS)

    def trained(state, start):
        windows = train.windows(
            lambda state: placed.step(state, source, hyperparameters),
            placed.replicate(state),
            start=start,
            steps=4,
            window=2,
            pairs_per_step=8,
        )
        return {records[-1]["step"]: placed.fetch(state) for state, records in windows}

    states = trained(begun, 0)
    with checkpoints.open_checkpoints(tmp_path, best_by="map") as saved:
        checkpoints.save(saved, 2, states[2], {"map": 0.5})
    with checkpoints.open_checkpoints(tmp_path, best_by="map") as saved:
        again = trained(checkpoints.restore(saved, 2, begun), 2)
    assert int(again[4].step) == 4
    jax.tree.map(np.testing.assert_array_equal, again[4], states[4])


def test_a_grid_trains(model):
    step, begun = model
    made = grid.make_grid(
        step,
        begun,
        SOURCE,
        HYPERPARAMETERS,
        "vmap",
        trials=2,
        devices=jax.devices()[:1],
        steps_per_call=2,
    )
    hyperparameters = [HYPERPARAMETERS, HYPERPARAMETERS._replace(loss={"margin": 0.5})]
    source = jax.device_put(SOURCE, made.shared)
    (window,) = grid.train_grid(made, lambda k: begun, source, hyperparameters, steps=2, window=2)
    assert np.isfinite(window.metrics["loss"]).all()
    assert window.state(0).step == 2

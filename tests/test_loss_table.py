"""Every loss that has a name trains, its parameters too."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from contrastive_jax import memory, train
from contrastive_jax.train import loss_table, parallel

pytestmark = pytest.mark.usefixtures("unrefined")

WIDTH, CLASSES, BATCH = 8, 4, 16


def _batch():
    """Classes that a linear map tells apart, under noise that is larger."""
    rng = np.random.default_rng(0)
    classes = np.repeat(np.arange(CLASSES), BATCH // CLASSES).astype(np.int32)
    signal = np.eye(CLASSES)[classes]
    noise = rng.standard_normal((BATCH, 8)) * 1.5
    images = np.concatenate([signal, noise], axis=1).astype(np.float32)
    return train.Batch(images[:, None, :, None], classes)


def _encode(params, images):
    embeddings = images.reshape(len(images), -1) @ params["w"]
    return embeddings / jnp.linalg.norm(embeddings, axis=1, keepdims=True)


@functools.cache
def _made(name, devices, remembered):
    """The objective of a loss, its optimizer and its step, which tests share as it is compiled."""
    objective = train.objective(name)
    optimizer = train.with_loss(optax.adam(0.03), optax.adam(0.03))
    w = np.random.default_rng(1).standard_normal((12, WIDTH)).astype(np.float32)
    encoder = train.network((_encode, {"w": jnp.asarray(w)}))
    step = train.make_step(encoder, optimizer, objective)
    placed = parallel(step, "shard_map", jax.devices()[:devices], sharded=(1,))
    return objective, optimizer, encoder, placed


def _trained(name, steps, devices=1, remembered=0):
    objective, optimizer, encoder, placed = _made(name, devices, remembered)
    params = objective.init(CLASSES, WIDTH, 0)
    bank = memory.empty(remembered, WIDTH) if remembered else ()
    state = train.init_state(encoder, optimizer, params, memory=bank)
    hyperparameters = placed.replicate(train.Hyperparameters(0, dict(objective.hyperparameters)))
    batch, state = placed.shard(_batch()), placed.replicate(state)
    records = []
    for _ in range(steps):
        state, metrics = placed.step(state, batch, hyperparameters)
        records.append({key: float(value) for key, value in metrics.items()})
    # Other hyperparameters compile nothing.
    others = hyperparameters._replace(loss=jax.tree.map(lambda x: 0.9 * x, hyperparameters.loss))
    trained = placed.fetch(state)
    placed.step(state, batch, others)
    assert placed.step._cache_size() == 1
    return params, trained, records


# One loss of each type, and of each way in which the table makes its parameters.
QUICK = {
    "contrastive",
    "sigmoid",
    "signal_to_noise",
    "supcon",
    "multi_similarity",
    "margin_by_class",
    "triplet_semi_hard",
    "angular",
    "mined_hard",
    "online_hard",
    *loss_table.PROXIES,
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else pytest.mark.long)
        for name in loss_table.NAMES
    ],
)
def test_every_loss_trains(name):
    # Embeddings follow proxies only as fast as these move.
    steps = 400 if name in loss_table.PROXIES else 25
    params, state, records = _trained(name, steps)
    assert all(np.isfinite(list(record.values())).all() for record in records)
    assert records[-1]["loss"] < records[0]["loss"]
    first, last = (
        record["positive_distance"] / record["negative_distance"]
        for record in records[:: steps - 1]
    )
    assert last < 0.9 * first
    for before, after in zip(
        jax.tree.leaves(params), jax.tree.leaves(state.params.loss), strict=True
    ):
        assert np.isfinite(after).all()
        assert not np.array_equal(before, after)


@pytest.mark.parametrize("name", sorted({*loss_table.NAMES} - QUICK))
def test_every_loss_has_a_value(name):
    """Traced alone, which takes the loss of the table apart but compiles nothing."""
    objective = train.objective(name)
    batch = _batch()

    def value(params, x, options):
        return objective.value(x, batch, params, None, options)[0]

    mapped = jax.vmap(value, (None, 0, None), axis_name=train.AXIS)
    x = jax.ShapeDtypeStruct((1, BATCH, WIDTH), "float32")
    params = objective.init(CLASSES, WIDTH, 0)
    shaped = jax.eval_shape(mapped, params, x, dict(objective.hyperparameters))
    assert (shaped.shape, shaped.dtype) == ((1,), np.float32)


@pytest.mark.parametrize("name", ["sigmoid", "margin_by_class", "soft_triple", "arcface"])
def test_parameters_of_a_loss_are_the_same_over_devices(name):
    _, one, alone = _trained(name, 3)
    _, many, shared = _trained(name, 3, devices=4)
    for a, b in zip(alone, shared, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_allclose(b[key], a[key], rtol=1e-4, err_msg=key)
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(many.params), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-4)


def test_a_memory_adds_to_the_loss_and_fills():
    _, _, alone = _trained("supcon", 4)
    _, state, remembered = _trained("supcon", 4, remembered=40)
    assert remembered[0]["loss"] == pytest.approx(alone[0]["loss"])
    assert remembered[1]["loss"] > 1.2 * alone[1]["loss"]
    assert (state.memory.classes >= 0).all()
    assert state.memory.next_index == 4 * BATCH % 40
    _, _, shared = _trained("supcon", 4, devices=4, remembered=40)
    for a, b in zip(remembered, shared, strict=True):
        np.testing.assert_allclose(b["loss"], a["loss"], rtol=1e-4)

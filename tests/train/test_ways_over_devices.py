"""The step in every way that docs/devices.md lists, a test a row: the numbers of one device."""

import contextlib
import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from contrastive_jax import models, train
from contrastive_jax.train import objectives

pytestmark = pytest.mark.usefixtures("unrefined")

PAGE = Path(__file__).parents[2] / "docs" / "devices.md"
DEVICES, ROWS, NUMBER = 4, 16, 4
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 255, (ROWS, 6, 6, 1)).astype(np.uint8)
CLASSES = np.arange(ROWS, dtype=np.int32) % NUMBER
HYPERPARAMETERS = train.Hyperparameters(np.uint32(0))
ENCODER = train.network(partial(models.MLP, width=4, hidden=(16,)), IMAGES.shape[1:])
# Where a gradient is counted once too often, plain gradient descent shows it.
OPTIMIZER = optax.sgd(0.1)
ROWS_OF_DEVICES, ALONE = PartitionSpec(train.AXIS), PartitionSpec()
OBJECTIVES = {
    "drawn pairs": objectives.pairs(margin=1.0),
    "all pairs": objectives.all_pairs(margin=1.0),
    "anchors": train.objective("supcon"),
    "proxies": train.objective("normalized_softmax"),
}


def _setup(name):
    objective = OBJECTIVES[name]
    step = train.make_step(ENCODER, OPTIMIZER, objective)
    state = train.init_state(ENCODER, OPTIMIZER, objective.init(NUMBER, 4, 0))
    if objective.separable:
        return step, state, train.Pairs(IMAGES, IMAGES[::-1].copy(), CLASSES % 2)
    return step, state, train.Batch(IMAGES, CLASSES)


def _on_one(step):
    """The step of one device, which has an axis of length 1."""

    def alone(state, batch, hyperparameters):
        batch = jax.tree.map(lambda x: x[None], batch)
        mapped = jax.vmap(step, (None, 0, None), axis_name=train.AXIS)
        return jax.tree.map(lambda x: x[0], mapped(state, batch, hyperparameters))

    return alone


def _on_mesh(kind, step, state, batch):
    if kind == AxisType.Explicit and not (0, 10) <= jax.__version_info__ < (0, 12):
        pytest.skip("jax 0.10 and 0.11 compute a step on explicit axes without jax.shard_map")
    mesh = jax.make_mesh((DEVICES,), (train.AXIS,), axis_types=(kind,))
    rows, alone = (NamedSharding(mesh, spec) for spec in (ROWS_OF_DEVICES, ALONE))
    arguments = (*jax.device_put((state, HYPERPARAMETERS), alone), jax.device_put(batch, rows))
    with jax.set_mesh(mesh) if kind == AxisType.Explicit else contextlib.nullcontext():
        state, hyperparameters, batch = arguments
        return jax.jit(_on_one(step))(state, batch, hyperparameters)


def _under_shard_map(check_vma, step, state, batch):
    mesh = jax.make_mesh((DEVICES,), (train.AXIS,), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(
        step,
        mesh=mesh,
        in_specs=(ALONE, ROWS_OF_DEVICES, ALONE),
        out_specs=ALONE,
        check_vma=check_vma,
    )
    return jax.jit(mapped)(state, batch, HYPERPARAMETERS)


def _under_pmap(step, state, batch):
    batch = jax.tree.map(lambda x: x.reshape(DEVICES, -1, *x.shape[1:]), batch)
    devices = jax.devices()[:DEVICES]
    mapped = jax.pmap(step, train.AXIS, in_axes=(None, 0, None), devices=devices)
    return jax.tree.map(lambda x: x[-1], mapped(state, batch, HYPERPARAMETERS))


def _parallel(strategy, step, state, batch):
    placed = train.parallel(step, strategy, jax.devices()[:DEVICES], sharded=(1,))
    arguments = placed.replicate(state), placed.shard(batch), placed.replicate(HYPERPARAMETERS)
    state, metrics = placed.step(*arguments)
    return placed.fetch(state), metrics


WAYS = {
    '`parallel(step, "shard_map")`': partial(_parallel, "shard_map"),
    '`parallel(step, "pmap")`': partial(_parallel, "pmap"),
    "`jax.shard_map`": partial(_under_shard_map, True),
    "`jax.shard_map(check_vma=False)`": partial(_under_shard_map, False),
    "`jax.pmap`": _under_pmap,
    "`jax.jit`, automatic axes": partial(_on_mesh, AxisType.Auto),
    "`jax.jit`, explicit axes": partial(_on_mesh, AxisType.Explicit),
}


@pytest.fixture(scope="module")
def one_device_results():
    results = {}

    def result(name):
        if name not in results:
            step, state, batch = _setup(name)
            results[name] = jax.jit(_on_one(step))(state, batch, HYPERPARAMETERS)
        return results[name]

    return result


def test_the_page_has_a_row_for_each():
    rows = re.findall(r"^\| (`j?[^|]*[^| ]) +\|", PAGE.read_text(), re.M)
    assert rows == [*WAYS]


QUICK = {"all pairs": [*WAYS], "drawn pairs": ["`jax.shard_map`"], "proxies": [*WAYS][2::4]}


@pytest.mark.parametrize(
    ("name", "way"),
    [
        pytest.param(name, way, marks=[] if way in QUICK.get(name, ()) else pytest.mark.long)
        for name in OBJECTIVES
        for way in WAYS
    ],
)
def test_each_way_is_that_of_one_device(name, way, one_device_results):
    want_state, want = one_device_results(name)
    state, metrics = WAYS[way](*_setup(name))
    for key, value in want.items():
        np.testing.assert_allclose(metrics[key], value, rtol=1e-5, err_msg=key)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        state.params,
        want_state.params,
    )
    before = _setup(name)[1].params
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), want_state.params, before)
    assert max(jax.tree.leaves(moved)) > 1e-3


def test_counters_of_an_encoder_are_counted_once():
    def apply(params, averages, images, key):
        rows = images.reshape(len(images), -1).astype(jnp.float32)
        return rows @ params, {"steps": averages["steps"] + 1}

    weights = train.Weights(jnp.ones((36, 4)) / 36, {"steps": jnp.int32(0)})
    encoder = ENCODER._replace(weights=weights, apply=apply)
    step = train.make_step(encoder, OPTIMIZER, OBJECTIVES["all pairs"])
    state = train.init_state(encoder, OPTIMIZER)
    after, _ = _under_shard_map(True, step, state, train.Batch(IMAGES, CLASSES))
    assert after.averages["steps"] == 1

"""Encoders of any kind as functions of their weights; running averages and dropout in a step."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

from contrastive_jax import models, train
from contrastive_jax.train import objectives, saved_states

pytestmark = pytest.mark.usefixtures("unrefined")

SHAPE, ROWS, STEPS = (4, 6, 1), 8, 3
MOMENTUM = 0.8
CLASSES = np.arange(ROWS, dtype=np.int32) % 2


class Normed(nnx.Module):
    def __init__(self, *, rngs):
        self.hidden = nnx.Linear(24, 5, rngs=rngs)
        self.norm = nnx.BatchNorm(5, momentum=MOMENTUM, rngs=rngs)

    def __call__(self, images):
        return self.norm(self.hidden(images.reshape(len(images), -1)))


class Dropped(nnx.Module):
    def __init__(self, *, rngs):
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, images):
        return self.dropout(images.reshape(len(images), -1))


def _batches(seed=0):
    rng = np.random.default_rng(seed)
    return [
        train.Batch(rng.normal(size=(ROWS, *SHAPE)).astype(np.float32), CLASSES)
        for _ in range(STEPS)
    ]


def _trained(encoder, batches, *, devices=1, strategy="shard_map", state=None, seed=0, rate=0.0):
    """States and metrics of steps on given batches; a rate of 0 leaves parameters as they are."""
    optimizer = optax.sgd(rate)
    step = train.make_step(encoder, optimizer, objectives.all_pairs())
    placed = train.parallel(step, strategy, jax.devices()[:devices], sharded=(1,))
    state = placed.replicate(state or train.init_state(encoder, optimizer))
    hyperparameters = placed.replicate(train.Hyperparameters(seed, {"margin": 1.0}))
    states, records = [], []
    for batch in batches:
        state, metrics = placed.step(state, placed.shard(batch), hyperparameters)
        states.append(placed.fetch(state))
        records.append({name: float(value) for name, value in metrics.items()})
    return states, records


@pytest.fixture(scope="module")
def normed():
    return train.network(Normed, SHAPE, seed=1)


def _running_averages(encoder, batches, devices):
    """Means and variances of the hidden layer after each batch, in float64."""
    hidden = jax.tree.map(np.float64, nnx.to_pure_dict(encoder.weights.params))["hidden"]
    mean, variance = np.zeros(5), np.ones(5)
    for batch in batches:
        rows = np.float64(batch.images).reshape(ROWS, -1) @ hidden["kernel"] + hidden["bias"]
        shares = rows.reshape(devices, -1, 5)
        mean = MOMENTUM * mean + (1 - MOMENTUM) * shares.mean(1).mean(0)
        variance = MOMENTUM * variance + (1 - MOMENTUM) * shares.var(1).mean(0)
        yield mean, variance


@pytest.mark.parametrize(("devices", "strategy"), [(1, "shard_map"), (2, "shard_map"), (2, "pmap")])
def test_running_averages_are_those_of_the_batches_averaged_over_devices(normed, devices, strategy):
    batches = _batches()
    states, _ = _trained(normed, batches, devices=devices, strategy=strategy)
    expected = [*_running_averages(normed, batches, devices)]
    for state, (mean, variance) in zip(states, expected, strict=True):
        norm = nnx.to_pure_dict(state.averages)["norm"]
        np.testing.assert_allclose(norm["mean"], mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(norm["var"], variance, rtol=1e-5)
    # Averages of two shares are not those of the batch.
    (_, alone), (_, apart) = ([*_running_averages(normed, batches, n)][-1] for n in (1, 2))
    assert np.abs(alone / apart - 1).max() > 0.01


@pytest.fixture(scope="module")
def trained(normed):
    return _trained(normed, _batches(), rate=0.05)[0][-1]


def test_an_encoder_is_evaluated_with_its_running_averages(normed, trained):
    images = _batches(1)[0].images
    params, averages = (jax.tree.map(np.float64, nnx.to_pure_dict(x)) for x in trained.weights)
    rows = images.reshape(ROWS, -1) @ params["hidden"]["kernel"] + params["hidden"]["bias"]
    norm, scale = averages["norm"], params["norm"]
    expected = (rows - norm["mean"]) / np.sqrt(norm["var"] + 1e-5) * scale["scale"] + scale["bias"]
    got = train.embed(normed.encode, trained.weights, images)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    # Whatever else is in the batch.
    alone = train.embed(normed.encode, trained.weights, images[:1])
    np.testing.assert_allclose(alone, got[:1], rtol=1e-5, atol=1e-6)


def test_running_averages_are_in_the_checkpoint(normed, trained, tmp_path):
    begun = jax.device_get(train.init_state(normed, optax.sgd(0.05)))
    saved_states.save_state(tmp_path / "state", trained)
    again = saved_states.restore_state(tmp_path / "state", begun)
    jax.tree.map(np.testing.assert_array_equal, again, trained)
    before, after = (jax.tree.leaves(state.averages) for state in (begun, again))
    assert len(after) == 2
    for x, y in zip(before, after, strict=True):
        assert not np.array_equal(x, y)


def test_the_module_of_the_caller_stays_as_it_is():
    module = Normed(rngs=nnx.Rngs(0))
    module.eval()
    before = jax.tree.map(np.array, nnx.state(module))
    encoder = train.network(module)
    _trained(encoder, _batches(), rate=0.05)
    encoder.encode(encoder.weights, _batches()[0].images)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(module), before)
    assert module.norm.use_running_average is True


@pytest.fixture(scope="module")
def dropped():
    return train.network(Dropped, SHAPE)


def _distances(records):
    return [record["negative_distance"] for record in records]


def test_masks_follow_from_seed_and_step(dropped):
    same = [_batches()[0]] * 3
    states, records = _trained(dropped, same, seed=5)
    first = _distances(records)
    assert len({*first}) == 3, "steps share masks"
    assert _distances(_trained(dropped, same, seed=5)[1]) == first
    assert _distances(_trained(dropped, same[:1], seed=6)[1])[0] not in first
    # A run that goes on draws what it would have drawn.
    again = _trained(dropped, same[1:], seed=5, state=states[0])[1]
    assert _distances(again) == first[1:]


def test_devices_and_parts_have_masks_of_their_own(dropped):
    """Two equal images differ in their embeddings by the masks alone."""
    batch = train.Batch(np.ones((2, *SHAPE), np.float32), np.zeros(2, np.int32))
    for devices, microbatches in [(2, 1), (1, 2)]:
        step = train.make_step(
            dropped, optax.sgd(0.0), objectives.all_pairs(margin=1.0), microbatches=microbatches
        )
        placed = train.parallel(step, "shard_map", jax.devices()[:devices], sharded=(1,))
        state = placed.replicate(train.init_state(dropped, optax.sgd(0.0)))
        arguments = state, placed.shard(batch), placed.replicate(train.Hyperparameters(0))
        assert placed.step(*arguments)[1]["positive_distance"] > 0.5


def test_dropout_is_off_after_training(dropped):
    images = _batches()[0].images
    got = dropped.encode(dropped.weights, images)
    np.testing.assert_array_equal(got, images.reshape(ROWS, -1))
    assert dropped.weights.averages == ()


def _linear(params, images):
    return images.reshape(len(images), -1) @ params


def test_a_class_a_partial_an_instance_and_functions_are_one_encoder():
    made = models.MLP(SHAPE, 4, hidden=(3,), rngs=nnx.Rngs(2))
    images = _batches()[0].images
    want = made(images)
    forms = [made, partial(models.MLP, width=4, hidden=(3,))]
    forms.append(lambda image_shape, rngs: models.MLP(image_shape, 4, hidden=(3,), rngs=rngs))
    for model in forms:
        encoder = train.network(model, SHAPE, seed=2)
        np.testing.assert_array_equal(encoder.encode(encoder.weights, images), want)
        assert train.network(encoder) is encoder
    weights = np.eye(24, 2, dtype=np.float32)
    function = train.network((_linear, weights))
    np.testing.assert_array_equal(
        function.encode(function.weights, images), images.reshape(ROWS, -1)[:, :2]
    )
    _, records = _trained(function, _batches()[:1] * 2, rate=0.1)
    assert records[1]["loss"] < records[0]["loss"]


def _linen_encoder():
    module = linen.Dense(2)
    params = module.init(jax.random.key(0), jnp.zeros((1, 24)))
    return lambda params, images: module.apply(params, images.reshape(len(images), -1)), params


def _equinox_encoder():
    eqx = pytest.importorskip("equinox")
    module = eqx.nn.Linear(24, 2, key=jax.random.key(0))
    params, static = eqx.partition(module, eqx.is_array)

    def encode(params, images):
        return jax.vmap(eqx.combine(params, static))(images.reshape(len(images), -1))

    return encode, params


def _haiku_encoder():
    hk = pytest.importorskip("haiku")
    module = hk.without_apply_rng(hk.transform(lambda images: hk.Linear(2)(hk.Flatten()(images))))
    return module.apply, module.init(jax.random.key(0), jnp.zeros((1, *SHAPE)))


@pytest.mark.parametrize("make", [_linen_encoder, _equinox_encoder, _haiku_encoder])
def test_modules_of_other_libraries_train_and_come_back(make, tmp_path):
    encoder = train.network(make())
    states, records = _trained(encoder, _batches()[:1] * STEPS, rate=0.1)
    assert records[-1]["loss"] < records[0]["loss"]
    saved_states.save_state(tmp_path / "weights", states[-1].weights)
    weights = saved_states.restore_state(tmp_path / "weights", encoder.weights)
    images = _batches()[0].images
    got = train.embed(encoder.encode, weights, images)
    np.testing.assert_array_equal(got, train.embed(encoder.encode, states[-1].weights, images))
    assert not np.array_equal(got, train.embed(encoder.encode, encoder.weights, images))


@pytest.mark.parametrize(
    "model",
    ["convnet", None, (_linear,), (_linear, 1, 2), _linear, linen.Dense(2), dict, nnx.relu],
    ids=["name", "none", "one", "three", "function", "linen", "class", "activation"],
)
def test_what_is_no_encoder_is_refused(model):
    with pytest.raises(TypeError, match=r"model must be a Flax NNX module, .* got "):
        train.network(model, SHAPE)


def test_images_that_an_encoder_does_not_take_are_refused():
    small, large = np.zeros((2, 8, 8, 1), np.uint8), np.zeros((2, 9, 9, 1), np.uint8)
    encoder = train.network(models.ConvNet, (8, 8, 1))
    train.check_images(encoder, train=small, test=small)
    with pytest.raises(ValueError, match=r"images of test are \[9, 9, 1\], and those of train"):
        train.check_images(encoder, train=small, test=large)
    with pytest.raises(ValueError, match=r"does not take images of train, uint8 \[9, 9, 1\]"):
        train.check_images(encoder, train=large)
    whole = train.network((lambda params, images: images * params, jnp.ones(())))
    with pytest.raises(ValueError, match=r"of 2 images this one returns \[2, 8, 8, 1\]"):
        train.check_images(whole, train=small)


def test_vectors_that_are_not_finite_are_named():
    encoder = train.network(models.Linear, (3,))
    vectors = np.ones((4, 3), np.float32)
    wrong = vectors.copy()
    wrong[2, 1] = np.nan
    with pytest.raises(ValueError, match=r"must be finite: row 2 is not \(1 of 4"):
        train.check_images(encoder, train=vectors, test=wrong)
    with pytest.raises(ValueError, match="give vectors of one model"):
        train.check_images(encoder, train=vectors, test=vectors[:, :2])


def test_a_run_takes_vectors_of_its_width_alone(tmp_path):
    from contrastive_jax import distances
    from contrastive_jax.evaluation.calibration import Calibration

    encoder, calibration = train.network(models.Linear, (3,)), Calibration(4.0, 2.0, 0.5)
    run = train.Run(
        encoder, encoder.weights, (3,), "float32", (), distances.euclidean, 0.5, calibration
    )
    assert run.embed(np.ones((2, 3), np.float32)).shape == (2, 64)
    with pytest.raises(ValueError, match=r"the shape of the vectors.*a single vector give images"):
        run.embed(np.ones(3, np.float32))
    with pytest.raises(ValueError, match=r"must be \[N, 3\], .* got \[2, 4\]"):
        run.embed(np.ones((2, 4), np.float32))

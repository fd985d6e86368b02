"""The step against an independent one, over devices, in scans; the loop; the optimiser."""

import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from sklearn.datasets import load_digits

from contrastive_jax import losses, train
from contrastive_jax.data import draw_balanced, draw_pairs, index_by_class
from contrastive_jax.data.augment import flip, shift
from contrastive_jax.models import MLP, DrLIM
from contrastive_jax.train import objectives, parallel

BATCH = 32
HYPERPARAMETERS = train.Hyperparameters(3, {"margin": 1.2})


@pytest.fixture(scope="module")
def source():
    digits = load_digits()
    images = np.round(digits.images[:200, ..., None] * 255 / 16).astype(np.uint8)
    classes = digits.target[:200].astype(np.int32)
    return train.Source(images, classes, index_by_class(classes))


def _smooth():
    rng = np.random.default_rng(0)
    params = {
        "hidden": jnp.asarray(rng.normal(size=(64, 32)) / 4, jnp.float32),
        "bias": jnp.zeros(32),
        "out": jnp.asarray(rng.normal(size=(32, 16)) / 4, jnp.float32),
    }

    def encode(params, images):
        flat = images.reshape(len(images), -1) / 255.0
        embeddings = jnp.tanh(flat @ params["hidden"] + params["bias"]) @ params["out"]
        return embeddings / jnp.linalg.norm(embeddings, axis=1, keepdims=True)

    return train.network((encode, params))


def _drlim():
    return train.network(DrLIM((8, 8, 1), 16, normalize=True, rngs=nnx.Rngs(0)))


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(_smooth, id="smooth"),
        pytest.param(_drlim, id="drlim", marks=pytest.mark.long),
    ],
)
def model(request):
    # Smooth: where a ReLU meets its kink, rounding decides between two gradients, and the order of
    # a sum over devices shows in the third digit.
    encoder = request.param()
    optimizer = train.make_optimizer(2e-3, steps=1500, warmup_steps=30, weight_decay=0.1)
    return encoder, optimizer, train.init_state(encoder, optimizer)


def _run(step, state, source, *, strategy="shard_map", devices=1, calls=20):
    placed = parallel(step, strategy, jax.devices()[:devices])
    state, source, hyperparameters = (placed.replicate(x) for x in (state, source, HYPERPARAMETERS))
    losses = []
    for _ in range(calls):
        state, metrics = placed.step(state, source, hyperparameters)
        losses.append(np.atleast_1d(metrics["loss"]))
    return np.concatenate(losses), placed.fetch(state)


@pytest.fixture(scope="module")
def trained(source, model):
    """Losses and the last state of twenty steps of drawn pairs, on one device."""
    encoder, optimizer, state = model
    step = train.draws_pairs(train.make_step(encoder, optimizer, objectives.pairs()), BATCH)
    return _run(step, state, source)


def _assert_close(got, want, tolerance=1e-5):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), got, want
    )


def _linear(weights):
    def encode(params, images):
        return (images.reshape(len(images), -1) / 255.0) @ params["w"]

    return train.network((encode, {"w": jnp.asarray(weights, jnp.float32)}))


def test_a_step_is_the_formula_and_adam_written_out(source):
    """One step of a linear encoder against float64 NumPy."""
    generator = np.random.default_rng(1)
    weights = generator.normal(size=(64, 3))
    rate, margin = 0.01, 4.0
    optimizer = train.make_optimizer(rate, steps=10, warmup_steps=0, clip_norm=1e9)
    encoder = _linear(weights)
    state = train.init_state(encoder, optimizer)
    step = train.draws_pairs(train.make_step(encoder, optimizer, objectives.pairs()), BATCH)
    hyperparameters = train.Hyperparameters(5, {"margin": margin})
    placed = parallel(step, "shard_map", jax.devices()[:1])
    new, metrics = placed.step(*(placed.replicate(x) for x in (state, source, hyperparameters)))

    i, j, labels = draw_pairs(jax.random.fold_in(jax.random.key(5), 0), source.by_class, BATCH, 0.5)
    flat = np.asarray(source.images, np.float64).reshape(200, -1) / 255
    difference = flat[np.asarray(i)] - flat[np.asarray(j)]
    labels = np.asarray(labels)
    distance = np.linalg.norm(difference @ weights, axis=1)
    hinge = np.maximum(0, margin - distance)
    value = np.mean((1 - labels) * distance**2 + labels * hinge**2)
    # d L / d D, then d D / d W = (x_i - x_j) (x_i - x_j)^T W / D.
    slope = (2 * (1 - labels) * distance - 2 * labels * hinge) / distance / BATCH
    gradient = (difference * slope[:, None]).T @ (difference @ weights)
    # The first step of Adam moves every entry by the rate, against the sign of its gradient.
    expected = weights - rate * gradient / (np.abs(gradient) + 1e-8)

    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    np.testing.assert_allclose(metrics["gradient_norm"], np.linalg.norm(gradient), rtol=1e-4)
    np.testing.assert_allclose(
        metrics["positive_distance"], distance[labels == 0].mean(), rtol=1e-5
    )
    np.testing.assert_allclose(
        metrics["negative_distance"], distance[labels == 1].mean(), rtol=1e-5
    )
    np.testing.assert_allclose(metrics["active_fraction"], (hinge[labels == 1] > 0).mean())
    np.testing.assert_allclose(
        placed.fetch(new).params.encoder["w"], expected, rtol=1e-4, atol=1e-6
    )
    assert placed.fetch(new).step == 1


@pytest.mark.parametrize("augment", [pytest.param(None, marks=pytest.mark.long), flip])
def test_eight_devices_equal_one(source, model, augment):
    encoder, optimizer, state = model
    step = train.draws_pairs(
        train.make_step(encoder, optimizer, objectives.pairs(), augment=augment), BATCH
    )
    want = _run(step, state, source)
    assert want[0][-5:].mean() < want[0][:5].mean(), "it does not learn"
    for strategy, devices in [("shard_map", 8), ("pmap", 8), ("pmap", 1)]:
        _assert_close(_run(step, state, source, strategy=strategy, devices=devices), want)


def test_vmap_runs_the_same_step(source, model, trained):
    encoder, optimizer, state = model
    step = train.draws_pairs(train.make_step(encoder, optimizer, objectives.pairs()), BATCH)
    mapped = jax.jit(jax.vmap(step, in_axes=None, out_axes=0, axis_name=train.AXIS, axis_size=4))
    values = []
    for _ in range(20):
        states, metrics = mapped(state, source, HYPERPARAMETERS)
        state = jax.tree.map(lambda x: x[0], states)
        values.append(metrics["loss"][0])
    _assert_close((np.array(values), state), trained)


def test_many_steps_to_a_call_equal_one_step_to_a_call(source, model, trained):
    encoder, optimizer, state = model
    step = train.draws_pairs(train.make_step(encoder, optimizer, objectives.pairs()), BATCH)
    _assert_close(_run(train.repeated(step, 5), state, source, calls=4), trained)


def test_microbatches_equal_the_whole_batch(source, model):
    encoder, optimizer, state = model
    make = partial(train.make_step, encoder, optimizer, objectives.pairs(), augment=shift)
    want = _run(train.draws_pairs(make(), BATCH), state, source)
    got = _run(train.draws_pairs(make(microbatches=4), BATCH), state, source)
    _assert_close(got, want)
    with pytest.raises(ValueError, match="32 pairs and 3 microbatches"):
        _run(train.draws_pairs(make(microbatches=3), BATCH), state, source)


def test_given_pairs_equal_drawn_ones(source, model, trained):
    encoder, optimizer, state = model
    pair_step = train.make_step(encoder, optimizer, objectives.pairs())
    for strategy in ("pmap", "shard_map"):
        placed = parallel(pair_step, strategy, jax.devices(), sharded=(1,))
        moved, hyperparameters = placed.replicate(state), placed.replicate(HYPERPARAMETERS)
        values = []
        for step in range(20):
            i, j, labels = draw_pairs(
                jax.random.fold_in(jax.random.key(HYPERPARAMETERS.seed), step),
                source.by_class,
                BATCH,
                0.5,
            )
            images = source.images
            pairs = train.Pairs(images[i], images[j], labels)
            moved, metrics = placed.step(moved, placed.shard(pairs), hyperparameters)
            values.append(metrics["loss"])
        _assert_close((np.array(values), placed.fetch(moved)), trained)


def test_labels_alone_are_never_compared_across(model):
    """Refused when the step is traced, by every way to run it: nothing is compiled."""
    encoder, optimizer, state = model
    images, zeros = np.zeros((8, 8, 8, 1), np.uint8), np.zeros(8, np.int32)
    labels = np.arange(8, dtype=np.int32) % 2
    grouped = train.make_step(encoder, optimizer, objectives.pairs(group=4))
    single = train.make_step(encoder, optimizer, objectives.pairs())
    by_labels = train.Pairs(images, images, labels)
    by_classes = train.Pairs(images, images, first_classes=zeros, second_classes=labels)
    refused = [
        (grouped, by_labels, "a group of 4 pairs .*: give first_classes and second_classes, or .*"),
        # Zeros and labels where classes were, as the positions of these fields once had it.
        (grouped, train.Pairs(images, images, zeros, labels), "got labels and first_classes"),
        (single, train.Pairs(images, images, zeros, labels), "got labels and first_classes"),
        (single, by_classes._replace(labels=labels), "got labels and first_classes and second"),
        (single, train.Pairs(images, images), "either labels, .* got neither"),
        (single, by_classes._replace(second_classes=None), "got first_classes"),
    ]
    for strategy in ("pmap", "shard_map"):
        for step, pairs, words in refused:
            placed = parallel(step, strategy, jax.devices()[:1], sharded=(1,))
            arguments = (
                placed.replicate(state),
                placed.shard(pairs),
                placed.replicate(HYPERPARAMETERS),
            )
            with pytest.raises(ValueError, match=words):
                placed.step.lower(*arguments)
    one = jax.vmap(single, in_axes=None, out_axes=None, axis_name=train.AXIS, axis_size=1)
    want = jax.eval_shape(one, state, by_classes, HYPERPARAMETERS)
    # By leaves, as a tree of Flax 0.11 does not equal another.
    assert jax.tree.flatten(
        jax.eval_shape(one, state, by_labels, HYPERPARAMETERS)
    ) == jax.tree.flatten(want)


def test_another_margin_or_fraction_compiles_nothing(source, model):
    encoder, optimizer, state = model
    traces = []

    def counted(distance, label, margin):
        traces.append(1)
        return losses.contrastive(distance, label, margin)

    step = train.draws_pairs(train.make_step(encoder, optimizer, objectives.pairs(counted)), BATCH)
    placed = parallel(step, "shard_map", jax.devices()[:1])
    state, data = placed.replicate(state), placed.replicate(source)
    seen = []
    for k in range(10):
        hyperparameters = placed.replicate(
            train.Hyperparameters(k, {"margin": 0.1 + 0.1 * k, "positive_fraction": 0.1 + 0.05 * k})
        )
        state, metrics = placed.step(state, data, hyperparameters)
        seen.append(float(metrics["loss"]))
        if k == 0:
            traced = len(traces)
    assert len(traces) == traced
    assert len(set(seen)) == 10


def test_no_implicit_transfer_in_the_loop(source, model):
    encoder, optimizer, state = model
    step = train.draws_pairs(train.make_step(encoder, optimizer, objectives.pairs()), BATCH)
    for strategy in ("pmap", "shard_map"):
        placed = parallel(step, strategy, jax.devices()[:2])
        arguments = [placed.replicate(x) for x in (state, source, HYPERPARAMETERS)]
        with jax.transfer_guard("disallow"):
            moved, _ = placed.step(*arguments)
            placed.step(moved, *arguments[1:])


@pytest.mark.parametrize("strategy", ["pmap", "shard_map"])
def test_without_its_checks_a_step_has_no_effect(strategy):
    """JAX calls a program with an effect from Python, which takes longer than a small loss."""

    def step(state, hyperparameters):
        margin = hyperparameters.loss["margin"]
        loss = jax.vmap(lambda d: losses.contrastive(d, 1, margin))(state)
        return state, {"loss": jax.lax.pmean(loss.sum(), train.AXIS)}

    placed = parallel(step, strategy, jax.devices()[:1])
    hyperparameters = HYPERPARAMETERS._replace(loss={"margin": 1.0})
    arguments = placed.replicate(jnp.ones(4)), placed.replicate(hyperparameters)
    if jax.__version_info__ < (0, 9):
        pytest.skip("the checks stay in a step before jax 0.9")
    assert not jax.make_jaxpr(placed.step)(*arguments).effects
    assert jax.make_jaxpr(jax.vmap(step, (0, None), axis_name=train.AXIS))(
        jnp.ones((1, 4)), hyperparameters._replace(loss={"margin": jnp.float32(1.0)})
    ).effects


def test_checks_of_a_function_that_was_traced_without_them():
    """JAX keeps what it traced of a compiled function inside of a step."""
    inner = jax.jit(lambda d, m: jnp.sum(jax.vmap(lambda d: losses.contrastive(d, 1, m))(d)))

    def step(state, margin):
        return state, {"loss": jax.lax.pmean(inner(state, margin), train.AXIS)}

    arguments = jnp.ones(4), jnp.float32(-1.0)
    for check_values in (False, True, False):
        placed = parallel(step, "shard_map", jax.devices()[:1], check_values=check_values)
        if check_values:
            with pytest.raises(ValueError, match="margin must be above 0 and finite, got -1"):
                placed.step(*map(placed.replicate, arguments))
        else:
            placed.step(*map(placed.replicate, arguments))


def test_a_batch_that_does_not_divide_is_refused(source, model):
    encoder, optimizer, state = model
    step = train.draws_pairs(train.make_step(encoder, optimizer, objectives.pairs()), 12)
    with pytest.raises(ValueError, match="got 12 pairs for 8 devices"):
        _run(step, state, source, devices=8, calls=1)


def test_an_unknown_strategy_is_refused():
    with pytest.raises(ValueError, match="'pmap' or 'shard_map', got 'xmap'"):
        parallel(lambda state: state, "xmap")


def test_value_checks_in_the_step_name_what_is_wrong(source, model):
    encoder, optimizer, state = model
    step = train.draws_pairs(train.make_step(encoder, optimizer, objectives.pairs()), BATCH)
    strategies = ["pmap", "shard_map"]
    if jax.__version_info__ < (0, 8):
        strategies.remove("pmap")
        with pytest.raises(ValueError, match="checks of values inside of pmap need jax 0"):
            parallel(step, "pmap", jax.devices()[:2], check_values=True)
    _, want = _run(step, state, source, calls=1)
    for strategy in strategies:
        placed = parallel(step, strategy, jax.devices()[:2], check_values=True)
        data = placed.replicate(source)
        good, _ = placed.step(placed.replicate(state), data, placed.replicate(HYPERPARAMETERS))
        _assert_close(placed.fetch(good), want)
        with pytest.raises(ValueError, match=r"margin must be above 0 and finite, got -1"):
            placed.step(
                good, data, placed.replicate(HYPERPARAMETERS._replace(loss={"margin": -1.0}))
            )
        broken = state._replace(params=jax.tree.map(lambda p: p * np.nan, state.params))
        with pytest.raises(ValueError, match="a must be finite, got nan in row 0"):
            placed.step(placed.replicate(broken), data, placed.replicate(HYPERPARAMETERS))


def _rate_at(optimizer, step):
    params = {"w": jnp.ones((2, 2))}
    state = optimizer.init(params)
    for _ in range(step + 1):
        updates, state = optimizer.update({"w": jnp.full((2, 2), 0.1)}, state, params)
    return -float(updates["w"][0, 0])


def test_learning_rate_warms_up_and_decays_to_zero():
    optimizer = train.make_optimizer(0.5, steps=20, warmup_steps=10)
    # A constant gradient makes every step of Adam as long as the rate.
    np.testing.assert_allclose(_rate_at(optimizer, 0), 0, atol=1e-6)
    np.testing.assert_allclose(_rate_at(optimizer, 5), 0.25, rtol=1e-3)
    np.testing.assert_allclose(_rate_at(optimizer, 10), 0.5, rtol=1e-3)
    np.testing.assert_allclose(_rate_at(optimizer, 15), 0.25, rtol=1e-3)
    np.testing.assert_allclose(_rate_at(optimizer, 20), 0, atol=1e-6)
    with pytest.raises(ValueError, match="got 20 of 20"):
        train.make_optimizer(0.5, steps=20, warmup_steps=20)


def test_weight_decay_leaves_biases_alone_and_clipping_bounds_the_gradient():
    optimizer = train.make_optimizer(0.5, steps=20, weight_decay=0.1)
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    nothing = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(nothing, optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.05, rtol=1e-6)
    np.testing.assert_array_equal(updates["bias"], 0)
    huge = jax.tree.map(lambda p: 1e6 * p, params)
    _, state = optimizer.update(huge, optimizer.init(params), params)
    first_moment = optax.tree.get(state, "mu")
    # After one step it is a tenth of the clipped gradient, whose norm is 1.
    np.testing.assert_allclose(optax.tree.norm(first_moment), 0.1, rtol=1e-5)


def _fake_advance(nan_at=None, per_call=1):
    def advance(state):
        steps = state + 1 + np.arange(per_call)
        loss = np.where(steps == nan_at, np.nan, 1.0 / steps)
        return state + per_call, {"loss": loss, "gradient_norm": np.ones(per_call)}

    return advance


@pytest.mark.parametrize(
    ("start", "steps", "window", "per_call", "ends"),
    [(0, 10, 4, 1, [4, 8, 10]), (5, 10, 4, 1, [8, 10]), (0, 8, 4, 2, [4, 8]), (10, 10, 4, 1, [])],
)
def test_windows_and_records(start, steps, window, per_call, ends):
    loop = train.windows(
        _fake_advance(per_call=per_call),
        start,
        start=start,
        steps=steps,
        window=window,
        steps_per_call=per_call,
        pairs_per_step=7,
    )
    states, records = [], []
    for state, window_records in loop:
        states.append(state)
        records += window_records
    assert states == ends
    assert [record["step"] for record in records] == list(range(start + 1, steps + 1))
    for record in records:
        np.testing.assert_allclose(record["loss"], 1 / record["step"])
        assert record["pairs_per_second"] > 0


def test_the_rate_of_the_first_window_leaves_out_what_compiles(monkeypatch):
    now = 0.0
    monkeypatch.setattr("contrastive_jax.train.loop.time.perf_counter", lambda: now)
    fake = _fake_advance()

    def advance(state):
        nonlocal now
        now += 100.0 if state == 0 else 1.0
        return fake(state)

    rates = [
        records[0]["pairs_per_second"]
        for _, records in train.windows(advance, 0, steps=6, window=3, pairs_per_step=7)
    ]
    assert rates == [7.0, 7.0]


def test_nan_stops_the_loop_and_names_the_step():
    loop = train.windows(_fake_advance(nan_at=7), 0, start=0, steps=12, window=4, pairs_per_step=1)
    assert next(loop)[0] == 4
    with pytest.raises(FloatingPointError, match="step 7: loss nan"):
        next(loop)


def test_windows_must_be_whole_calls():
    loop = train.windows(
        _fake_advance(), 0, start=0, steps=12, window=5, steps_per_call=2, pairs_per_step=1
    )
    with pytest.raises(
        ValueError, match="window must be a multiple of steps_per_call, got 5 and 2"
    ):
        next(loop)


def test_inverted_labels_are_warned_of():
    with pytest.warns(UserWarning, match="are the labels inverted"):
        train.warn_inverted(1.5, 0.5)


def test_embed_pads_the_last_batch_and_keeps_the_order():
    images = np.arange(7 * 4, dtype=np.uint8).reshape(7, 2, 2, 1)
    module = MLP((2, 2, 1), 3, rngs=nnx.Rngs(0))
    encoder = train.network(module)
    for batch_size in (1, 3, 7, 100):
        np.testing.assert_allclose(
            train.embed(encoder.encode, encoder.weights, images, batch_size=batch_size),
            module(jnp.asarray(images)),
            rtol=1e-5,
            atol=1e-6,
        )
    with pytest.raises(ValueError, match="no images to embed"):
        train.embed(encoder.encode, encoder.weights, images[:0])


def test_augmentations_keep_what_they_should():
    image = jnp.arange(1, 10, dtype=jnp.uint8).reshape(3, 3, 1)
    keys = jax.random.split(jax.random.key(0), 200)
    flipped = np.asarray(jax.vmap(lambda k: flip(k, image))(keys))
    mirrored = (flipped == np.asarray(image)[:, ::-1]).all((1, 2, 3))
    assert ((flipped == np.asarray(image)).all((1, 2, 3)) ^ mirrored).all()
    assert 70 < mirrored.sum() < 130
    moved = np.asarray(jax.vmap(lambda k: shift(k, image, pixels=1))(keys))
    padded = np.pad(np.asarray(image), ((1, 1), (1, 1), (0, 0)))
    windows = {padded[r : r + 3, c : c + 3].tobytes() for r in range(3) for c in range(3)}
    assert {one.tobytes() for one in moved} == windows


def test_nothing_warns_in_a_good_step(source, model):
    encoder, optimizer, state = model
    step = train.draws_pairs(train.make_step(encoder, optimizer, objectives.pairs()), BATCH)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _run(step, state, source, calls=2)


@pytest.mark.parametrize("group", [2, 4])
def test_groups_compare_every_first_with_every_second_member(source, group):
    """The loss of a linear encoder in groups, written out in float64."""
    weights = np.random.default_rng(1).normal(size=(64, 3))
    optimizer = train.make_optimizer(0.01, steps=10)
    encoder = _linear(weights)
    state = train.init_state(encoder, optimizer)
    step = train.draws_pairs(
        train.make_step(encoder, optimizer, objectives.pairs(group=group), microbatches=2), BATCH
    )
    hyperparameters = train.Hyperparameters(5, {"margin": 4.0, "positive_fraction": 0.25})
    i, j, _ = draw_pairs(jax.random.fold_in(jax.random.key(5), 0), source.by_class, BATCH, 0.25)
    flat = np.asarray(source.images, np.float64).reshape(200, -1) / 255 @ weights
    values, active, negative = [], 0, 0
    for start in range(0, BATCH, group):
        positive_losses, negative_losses = [], []
        for k in np.asarray(i)[start : start + group]:
            for m in np.asarray(j)[start : start + group]:
                distance = np.linalg.norm(flat[k] - flat[m])
                if source.classes[k] == source.classes[m]:
                    positive_losses.append(distance**2)
                else:
                    negative_losses.append(max(0, 4.0 - distance) ** 2)
        value = 0.25 * np.mean(positive_losses) if positive_losses else 0.0
        values.append(value + 0.75 * np.mean(negative_losses))
        active += np.count_nonzero(negative_losses)
        negative += len(negative_losses)
    for devices in (1, 2):
        placed = parallel(step, "shard_map", jax.devices()[:devices])
        _, metrics = placed.step(*(placed.replicate(x) for x in (state, source, hyperparameters)))
        np.testing.assert_allclose(metrics["loss"], np.mean(values), rtol=1e-5)
        np.testing.assert_allclose(metrics["active_fraction"], active / negative, rtol=1e-5)


def test_all_pairs_of_a_batch_are_the_formula(source):
    """The loss of a linear encoder over all pairs of a balanced batch, written out in float64."""
    weights = np.random.default_rng(1).normal(size=(64, 3))
    optimizer = train.make_optimizer(0.01, steps=10, clip_norm=1e9)
    encoder = _linear(weights)
    state = train.init_state(encoder, optimizer)
    step = train.draws_classes(
        train.make_step(encoder, optimizer, objectives.all_pairs(), microbatches=2),
        classes=4,
        examples=5,
    )
    hyperparameters = train.Hyperparameters(5, {"margin": 4.0, "positive_fraction": 0.25})
    positions, classes = draw_balanced(
        jax.random.fold_in(jax.random.key(5), 0), source.by_class, 4, 5
    )
    flat = np.asarray(source.images, np.float64)[np.asarray(positions)].reshape(20, -1) / 255
    i, j = np.triu_indices(20, 1)
    difference = flat[i] - flat[j]
    positive = np.asarray(classes)[i] == np.asarray(classes)[j]
    distance = np.linalg.norm(difference @ weights, axis=1)
    hinge = np.maximum(0, 4.0 - distance)
    value = 0.25 * (distance[positive] ** 2).mean() + 0.75 * (hinge[~positive] ** 2).mean()
    share = np.where(positive, 0.25 / positive.sum(), 0.75 / (~positive).sum())
    slope = share * np.where(positive, 2 * distance, -2 * hinge) / distance
    gradient = (difference * slope[:, None]).T @ (difference @ weights)

    for devices in (1, 2):
        placed = parallel(step, "shard_map", jax.devices()[:devices])
        _, metrics = placed.step(*(placed.replicate(x) for x in (state, source, hyperparameters)))
        np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
        np.testing.assert_allclose(metrics["gradient_norm"], np.linalg.norm(gradient), rtol=1e-4)
        for name, mean in [
            ("positive_distance", distance[positive].mean()),
            ("negative_distance", distance[~positive].mean()),
            ("active_fraction", (hinge[~positive] > 0).mean()),
        ]:
            np.testing.assert_allclose(metrics[name], mean, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("strategy", ["shard_map", pytest.param("pmap", marks=pytest.mark.long)])
def test_all_pairs_on_eight_devices_equal_one(source, model, strategy):
    encoder, optimizer, state = model
    step = train.draws_classes(
        train.make_step(encoder, optimizer, objectives.all_pairs(), augment=flip),
        classes=8,
        examples=4,
    )
    want = _run(step, state, source)
    assert want[0][-5:].mean() < want[0][:5].mean(), "it does not learn"
    _assert_close(_run(step, state, source, strategy=strategy, devices=8), want)


def test_all_pairs_that_do_not_divide_are_refused(source, model):
    encoder, optimizer, state = model
    step = train.draws_classes(train.make_step(encoder, optimizer, objectives.all_pairs()), 3, 3)
    with pytest.raises(ValueError, match="9 images for 2 devices"):
        _run(step, state, source, devices=2)
    parts = train.make_step(encoder, optimizer, objectives.all_pairs(), microbatches=2)
    with pytest.raises(ValueError, match="9 images and 2 microbatches"):
        _run(train.draws_classes(parts, 3, 3), state, source)


def test_a_batch_of_some_classes_has_the_classes_of_its_images():
    """As proxies need them: of a class with one example too, and with gaps between classes."""
    classes = np.repeat([2, 3, 5, 9], [1, 4, 4, 4]).astype(np.int32)
    images = classes.reshape(-1, 1, 1, 1)
    source = train.Source(images, classes, index_by_class(classes))
    step = train.draws_classes(lambda state, batch, _: (state, batch), 4, 3)
    run = jax.vmap(step, axis_name=train.AXIS, in_axes=(0, None, None))
    state = train.TrainState(jnp.zeros(1, jnp.int32), {}, {})
    _, batch = run(state, source, train.Hyperparameters(0))
    real = np.asarray(batch.classes) >= 0
    np.testing.assert_array_equal(
        np.asarray(batch.classes)[real], np.asarray(batch.images)[..., 0, 0, 0][real]
    )
    np.testing.assert_array_equal(np.unique(batch.classes, return_counts=True)[1], [2, 1, 3, 3, 3])

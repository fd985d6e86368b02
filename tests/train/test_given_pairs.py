"""Training on given pairs: the loss of the pairs, each image encoded once, on any devices."""

import itertools
import json
import signal
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import contrastive_jax as cj
from contrastive_jax import losses, models, train
from contrastive_jax.data.datasets import GivenPairs, PairDataset
from contrastive_jax.data.draw import draw_rows_of_pairs
from contrastive_jax.data.stream import stream_given_pairs
from contrastive_jax.evaluation.verification import best_threshold, roc_auc
from contrastive_jax.train import assembly, metrics, objectives
from contrastive_jax.train.draw import most_images
from contrastive_jax.train.training import Training

MODEL = partial(models.MLP, width=4, hidden=(16,))
OPTIONS = {
    "steps": 12,
    "batch_size": 32,
    "log_every": 4,
    "validate_every": 8,
    "devices": jax.devices()[:1],
    "progress": False,
}
CONTRASTIVE = train.objective("contrastive", margin=1.2)


def _pairs(rng, classes, rows, number, weights=False):
    """Pairs of some rows, one in five of them positive."""
    left, right = rng.choice(rows, (2, 20 * number)).astype(np.int32)
    labels = (classes[left] != classes[right]).astype(np.int32)
    order = np.argsort(labels, kind="stable")
    positives = int((labels == 0).sum())
    chosen = rng.permutation(
        np.concatenate([order[: number // 5], order[positives : positives + number - number // 5]])
    )
    return GivenPairs(
        left[chosen],
        right[chosen],
        labels[chosen],
        rng.uniform(0.5, 2, number).astype(np.float32) if weights else None,
    )


def test_a_batch_of_the_pairs_many_times_over_is_refused(few):
    with pytest.raises(ValueError, match="at most 1,024 pairs on the 100 pairs of the train split"):
        train.fit(MODEL, few, CONTRASTIVE, runs=None, **OPTIONS | {"batch_size": 2**21})


@pytest.fixture(scope="module")
def few():
    """Sixteen images `[6, 6, 1]` in a hundred pairs of each split."""
    rng = np.random.default_rng(0)
    classes = np.arange(16) % 4
    images = rng.integers(0, 120, (16, 6, 6, 1), np.uint8)
    images[np.arange(16), classes] += 100
    splits = [_pairs(rng, classes, np.arange(16), 100, weights=k == 0) for k in range(3)]
    return PairDataset("few", images, *splits)


@pytest.fixture(scope="module")
def run(few, tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    return train.fit(MODEL, few, CONTRASTIVE, runs=runs, **OPTIONS)


def _assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def _losses(run):
    return [record["loss"] for record in metrics.read_metrics(run.folder) if "loss" in record]


def _stepped(data, objective, devices=1, strategy="shard_map", model=MODEL, **options):
    """Loss and gradient of one step: of gradient descent by a rate of 1."""
    training = Training(
        model=model,
        data=data,
        objective=objective,
        steps=1,
        batch_size=32,
        optimizer=optax.sgd(1.0),
        devices=devices,
        **options,
    )
    parts = assembly.assemble(training)
    placed = train.parallel(parts.drawn, strategy, jax.devices()[:devices])
    first = parts.init(0)
    hyper = train.Hyperparameters(0, dict(objectives.on_given_pairs(objective).hyperparameters))
    after, metrics = placed.step(*placed.replicate((first, train.pair_source(data), hyper)))
    moved = jax.tree.map(lambda a, b: np.asarray(a) - b, first.params, placed.fetch(after).params)
    return float(metrics["loss"]), moved


def _encoding_all(data, objective, balanced=True, loss=losses.contrastive):
    """The same by encoding both images of every pair."""
    source = train.pair_source(data)
    key = jax.random.fold_in(jax.random.key(0), 0)
    rows = draw_rows_of_pairs(key, source.positives, len(source.labels), 16, balanced=balanced)
    encoder = train.network(MODEL, data.images.shape[1:], 0)
    images = np.concatenate([data.images[source.left[rows]], data.images[source.right[rows]]])
    weights = 1.0 if source.weights is None else source.weights[rows]

    def value(params):
        a, b = jnp.split(encoder.encode(train.Weights(params), images), 2)
        labels = source.labels[rows]
        values = jax.vmap(partial(loss, margin=1.2))(jax.vmap(objective.distance)(a, b), labels)
        return jnp.sum(values * weights) / jnp.sum(weights * jnp.ones(16))

    return jax.jit(jax.value_and_grad(value))(encoder.weights.params)


def _close(a, b):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6), a, b)


@pytest.mark.parametrize("balanced", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_loss_and_gradient_are_those_of_encoding_both_images_of_every_pair(few, balanced, weighted):
    data = few if weighted else few._replace(train=few.train._replace(weights=None))
    value, gradient = _stepped(data, CONTRASTIVE, balanced=balanced)
    expected, slope = _encoding_all(data, CONTRASTIVE, balanced)
    assert value == pytest.approx(float(expected), abs=1e-6)
    _close(gradient.encoder, slope)


@pytest.mark.parametrize(
    ("devices", "strategy", "microbatches", "remat"),
    [(4, "shard_map", 1, True), (4, "pmap", 2, True), (1, "shard_map", 4, False)],
)
def test_devices_and_microbatches_change_nothing(few, devices, strategy, microbatches, remat):
    one = _stepped(few, CONTRASTIVE)
    options = {"microbatches": microbatches, "remat": remat}
    _close(_stepped(few, CONTRASTIVE, devices, strategy, **options), one)


def test_every_image_of_a_batch_is_encoded_once(few):
    encoded = []

    def counting(params, images):
        encoded.append(len(images))
        return images.reshape(len(images), -1) @ params

    model = (counting, np.ones((36, 2), np.float32))
    _stepped(few, CONTRASTIVE, model=model)
    source = train.pair_source(few)
    most = most_images(source, 16, seeds=[0], steps=1, balanced=True)
    key = jax.random.fold_in(jax.random.key(0), 0)
    rows = draw_rows_of_pairs(key, source.positives, 100, 16, balanced=True)
    distinct = len({*source.left[rows].tolist(), *source.right[rows].tolist()})
    assert most == distinct <= 16
    # Of shapes that are inferred alone there are two images, or one.
    assert {*encoded} - {1, 2} == {most}


def test_the_largest_batch_of_a_run_is_counted(few):
    source = train.pair_source(few)
    counts = []
    for seed in (3, 4):
        for step in range(7):
            key = jax.random.fold_in(jax.random.key(seed), step)
            rows = draw_rows_of_pairs(key, source.positives, 100, 3, balanced=False)
            counts.append(len({*source.left[rows].tolist(), *source.right[rows].tolist()}))
    assert len({*counts}) > 1
    assert most_images(source, 3, seeds=[3, 4], steps=7, balanced=False) == max(counts)
    # Also where a caller infers shapes alone.
    shapes = jax.eval_shape(
        lambda: jnp.zeros(most_images(source, 3, seeds=[3, 4], steps=7, balanced=False))
    )
    assert shapes.shape == (max(counts),)


def test_pairs_are_drawn_by_label_or_alike():
    key = jax.random.key(0)
    balanced = np.asarray(draw_rows_of_pairs(key, 10, 1000, 20_000, balanced=True))
    assert np.mean(balanced < 10) == 0.5
    assert {*balanced[balanced < 10]} == {*range(10)}
    assert balanced.max() == 999
    alike = np.asarray(draw_rows_of_pairs(key, 10, 1000, 20_000, balanced=False))
    assert 0.005 < np.mean(alike < 10) < 0.015


@pytest.mark.parametrize("name", sorted(cj.train.loss_table.PAIRS))
def test_every_pair_loss_trains_on_given_pairs(few, name):
    objective = train.objective(name)
    value, gradient = _stepped(few, objective)
    assert np.isfinite(value)
    assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(gradient.encoder))


def test_a_run_learns_and_can_be_used(run, few):
    losses_of = _losses(run)
    assert len(losses_of) == 12
    assert losses_of[-1] < losses_of[0]
    assert (run.class_names, run.image_shape) == ((), (6, 6, 1))
    loaded = cj.load(run.folder)
    pairs = few.validation
    compared = loaded.compare(few.images[pairs.left], few.images[pairs.right])
    assert loaded.threshold == pytest.approx(best_threshold(compared.distance, pairs.labels))
    assert loaded.calibration.prior == pytest.approx(0.2)
    assert loaded.neighbours(few.images, k=2).indices.shape == (16, 2)
    validated = [r for r in metrics.read_metrics(run.folder) if "validation/auc" in r]
    assert [record["step"] for record in validated] == [8, 12]
    best = max(validated, key=lambda record: record["validation/auc"])
    assert json.loads((run.folder / "run.json").read_text())["best_step"] == best["step"]
    assert best["validation/auc"] == pytest.approx(roc_auc(compared.distance, pairs.labels))
    saved = np.load(run.folder / "validation.npz")
    np.testing.assert_array_equal(saved["labels"], pairs.labels)
    np.testing.assert_array_equal(
        saved["embeddings"][saved["left"]], run.embed(few.images)[pairs.left]
    )


def test_a_run_that_goes_on_after_a_stop_ends_in_the_same_bits(run, few, tmp_path, monkeypatch):
    fit = partial(train.fit, MODEL, few, CONTRASTIVE, runs=tmp_path, name="stopped", **OPTIONS)
    write = metrics.write_metrics

    def write_and_stop(*arguments):
        write(*arguments)
        monkeypatch.setattr(metrics, "write_metrics", write)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(metrics, "write_metrics", write_and_stop)
    with pytest.raises(SystemExit):
        fit()
    resumed = fit(resume=True)
    _assert_same(resumed.weights, run.weights)
    assert _losses(resumed) == _losses(run)


def test_pairs_from_the_host_train_to_the_same_bits(few, run, tmp_path):
    streamed = train.fit(MODEL, few, CONTRASTIVE, runs=tmp_path, data_on="host", **OPTIONS)
    _assert_same(streamed.weights, run.weights)
    assert _losses(streamed) == _losses(run)
    assert streamed.threshold == run.threshold


def test_batches_from_the_host_are_those_drawn_on_the_device(few):
    source = train.pair_source(few)
    stream = stream_given_pairs(few, seed=3, batch_size=8, images=14, balanced=False, start_step=5)
    for step, (images, batch) in enumerate(itertools.islice(stream, 3), 5):
        key = jax.random.fold_in(jax.random.key(3), step)
        rows = draw_rows_of_pairs(key, source.positives, 100, 8, balanced=False)
        np.testing.assert_array_equal(images[batch.left], few.images[source.left[rows]])
        np.testing.assert_array_equal(images[batch.right], few.images[source.right[rows]])
        np.testing.assert_array_equal(batch.labels, source.labels[rows])
        np.testing.assert_array_equal(batch.weights, source.weights[rows])


@pytest.mark.parametrize(
    ("objective", "options", "message"),
    [
        (train.objective("supcon"), {}, "take a pair loss"),
        (train.objective(on="pairs", group=4), {}, "leave group out"),
        (CONTRASTIVE, {"batch_classes": 2}, "leave batch_classes out"),
        (CONTRASTIVE, {"data_on": "host", "steps_per_call": 4}, "takes one step per call"),
        (CONTRASTIVE, {"memory_size": 64}, "leave memory_size out"),
        (CONTRASTIVE, {"batch_size": 6, "devices": jax.devices()[:2]}, "3 pairs of a batch"),
    ],
)
def test_what_has_no_effect_on_given_pairs_is_refused(few, objective, options, message):
    with pytest.raises(ValueError, match=message):
        train.fit(MODEL, few, objective, runs=None, **OPTIONS | options)


def test_values_can_be_checked_inside_the_step(few):
    run = train.fit(MODEL, few, CONTRASTIVE, runs=None, check_values=True, **OPTIONS)
    assert np.isfinite(run.threshold)


def test_balanced_is_of_given_pairs(data):
    with pytest.raises(ValueError, match="leave it out"):
        train.fit(MODEL, data, CONTRASTIVE, balanced=False, runs=None, **OPTIONS)


@pytest.mark.parametrize(
    ("split", "changes", "message"),
    [
        ("train", {"left": [0, 99]}, "rows of the 16 images, got 99 in pair 1"),
        ("train", {"labels": [0, 2]}, "must be 0 .similar. or 1 .dissimilar., got 2 in pair 1"),
        ("train", {"labels": [0]}, "one entry a pair in every column"),
        ("train", {"weights": [1.0, -1.0]}, "at least 0 and finite, got -1.0 in pair 1"),
        ("train", {"weights": [0.0, 0.0]}, "are all 0"),
        ("validation", {"labels": [1, 1]}, "has 0 positive pairs"),
        ("test", {}, "the test split of few has 1 positive pairs, and at least 2"),
    ],
)
def test_pairs_that_can_not_be_used_are_named(few, split, changes, message):
    columns = {"left": [0, 1], "right": [2, 3], "labels": [0, 1], "weights": None} | changes
    pairs = GivenPairs(
        **{key: value if value is None else np.array(value) for key, value in columns.items()}
    )
    with pytest.raises(ValueError, match=message):
        train.fit(MODEL, few._replace(**{split: pairs}), CONTRASTIVE, runs=None, **OPTIONS)

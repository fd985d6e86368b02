"""Batches of classes of any size, of one category, and of views of images."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contrastive_jax import models, train
from contrastive_jax.data import augment, draw_balanced, index_by_class
from contrastive_jax.data.datasets import Dataset, Examples
from contrastive_jax.train import assembly, metrics
from contrastive_jax.train.batches import source_of
from contrastive_jax.train.training import Training

pytestmark = pytest.mark.usefixtures("unrefined")

MODEL = partial(models.MLP, width=4, hidden=(8,))
# Sizes 1, 2, 5 and 40, twice.
SIZES = np.array([1, 2, 5, 40] * 2)
CLASSES = np.repeat(np.arange(8), SIZES)
KEYS = jax.random.split(jax.random.key(0), 400)
OPTIONS = {
    "steps": 4,
    "batch_size": 12,
    "log_every": 2,
    "validate_every": 4,
    "devices": jax.devices()[:1],
    "progress": False,
}


def _drawn(index, classes, examples, **options):
    draw = partial(draw_balanced, index=index, classes=classes, examples=examples, **options)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(draw))(KEYS))


def test_small_classes_are_repeated_evenly():
    positions, classes = _drawn(index_by_class(CLASSES), 8, 7, repeat=True)
    assert (classes >= 0).all()
    np.testing.assert_array_equal(CLASSES[positions], classes)
    for batch in positions[:50].reshape(-1, 8, 7):
        for members in batch:
            size = SIZES[CLASSES[members[0]]]
            counts = np.unique(members, return_counts=True)[1]
            assert len(counts) == min(size, 7)
            assert counts.max() - counts.min() <= 1


def test_repetition_changes_no_other_class():
    index = index_by_class(CLASSES)
    positions, classes = _drawn(index, 5, 7)
    repeated, _ = _drawn(index, 5, 7, repeat=True)
    np.testing.assert_array_equal(positions[classes >= 0], repeated[classes >= 0])


def test_classes_are_drawn_by_size():
    index = index_by_class(CLASSES)
    first = _drawn(index, 1, 1, by_size=True)[1].ravel()
    share = np.mean(SIZES[first] == 40)
    assert abs(share - 80 / 96) < 0.06
    several = _drawn(index, 5, 2, by_size=True, repeat=True)[1].reshape(-1, 5, 2)[..., 0]
    assert all(len({*batch}) == 5 for batch in several.tolist())


@pytest.mark.parametrize("by_size", [False, True])
def test_a_batch_is_of_one_category_as_far_as_that_goes(by_size):
    category = np.array(
        ["animal", "plant", "animal", "plant", "stone", "animal", "plant", "animal"]
    )
    index = index_by_class(CLASSES, categories=category[CLASSES])
    drawn = _drawn(index, 3, 1, by_size=by_size)[1]
    named = category[drawn]
    # Of stones there is one class, to which those of another category are added.
    categories = {tuple(sorted({*batch})) for batch in named.tolist()}
    assert categories == {("animal",), ("plant",), ("animal", "stone"), ("plant", "stone")}
    shares = [np.mean((named == name).any(axis=1)) for name in ("animal", "plant", "stone")]
    np.testing.assert_allclose(shares, [1 / 2, 1 / 2, 1 / 3], atol=0.1)
    assert all(len({*batch}) == 3 for batch in drawn.tolist())


def test_a_class_of_two_categories_is_an_error():
    with pytest.raises(ValueError, match=r"in row 3, of class 2, is of b"):
        index_by_class([0, 1, 2, 2], categories=["a", "a", "a", "b"])
    with pytest.raises(ValueError, match="one for each of the 4 examples"):
        index_by_class([0, 1, 2, 2], categories=["a"])


def _change(key, image):
    return augment.shift(key, image, 1)


def test_views_are_of_one_image_each_and_differ(data):
    training = Training(
        model=MODEL, data=data, objective=train.objective("ntxent"), steps=1, batch_size=12, views=2
    )
    parts = assembly.assemble(training)
    assert parts.pairs_per_step == 66

    def look(state, batch, hyperparameters):
        return state, (batch.images, batch.classes)

    step = train.draws_views(look, 6, 2)
    placed = train.parallel(step, "shard_map", jax.devices()[:1])
    state = train.TrainState(jnp.int32(0), (), ())
    source = source_of(training)
    _, (images, rows) = placed.step(*placed.replicate((state, source, train.Hyperparameters(0))))
    np.testing.assert_array_equal(images, data.train.images[rows])
    np.testing.assert_array_equal(rows[::2], rows[1::2])
    assert len(np.unique(rows)) > 3


def test_simclr_learns_without_classes(data, tmp_path):
    options = OPTIONS | {"steps": 60, "batch_size": 24, "log_every": 20, "validate_every": 60}
    run = train.fit(
        MODEL, data, train.objective("ntxent"), runs=tmp_path, views=2, augment=_change, **options
    )
    values = [r["loss"] for r in metrics.read_metrics(run.folder) if "loss" in r]
    assert np.mean(values[-10:]) < 0.9 * np.mean(values[:10])
    # A proxy for each image.
    proxies = train.objective("normalized_softmax")
    training = Training(model=MODEL, data=data, objective=proxies, steps=1, batch_size=12, views=2)
    parts = assembly.assemble(training)
    assert parts.init(0).params.loss.shape == (60, 4)


def test_one_device_or_two_have_the_same_views(data):
    training = Training(
        model=MODEL,
        data=data,
        objective=train.objective("supcon"),
        steps=1,
        batch_size=16,
        views=2,
        augment=_change,
    )
    parts = assembly.assemble(training)
    values = []
    for count in (1, 2):
        placed = train.parallel(parts.drawn, "shard_map", jax.devices()[:count])
        source, hyper = source_of(training), train.Hyperparameters(0, {"temperature": 0.1})
        _, metrics = placed.step(*placed.replicate((parts.init(0), source, hyper)))
        values.append(float(metrics["loss"]))
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_small_classes_are_told_of_once(data):
    few = Examples(data.train.images[:8], np.array([0, 0, 0, 0, 1, 1, 1, 2], np.int32))
    small = Dataset("small", data.class_names, few, data.validation, data.test)
    fit = partial(train.fit, MODEL, small, train.objective("supcon"), runs=None, **OPTIONS)
    with pytest.warns(UserWarning, match="2 of 3 classes have fewer than the 4 examples") as told:
        fit()
    assert len([one for one in told if "repeated" in str(one.message)]) == 1
    fit(repeat=False)


@pytest.mark.parametrize(
    ("objective", "options", "message"),
    [
        ("supcon", {"views": 2}, "views of one image would all be equal"),
        ("supcon", {"views": 5, "augment": _change}, "divide the 12 images"),
        ("supcon", {"views": 2, "augment": _change, "by_size": True}, "by_size has no effect"),
        ("supcon", {"views": 2, "augment": _change, "batch_classes": 2}, "batch_classes has no"),
        ("pairs", {"repeat": False}, "no effect on pairs"),
        ("pairs", {"categories": np.zeros(60)}, "no effect on pairs"),
    ],
)
def test_what_has_no_effect_is_refused(data, objective, options, message):
    made = train.objective(on="pairs") if objective == "pairs" else train.objective(objective)
    with pytest.raises(ValueError, match=message):
        train.fit(MODEL, data, made, runs=None, **OPTIONS | options)


def test_a_run_takes_classes_of_one_category(data):
    categories = np.array(["outer", "inner", "outer"])[data.train.classes]
    fit = partial(train.fit, MODEL, data, train.objective("supcon"), runs=None, **OPTIONS)
    one = fit(categories=categories, batch_classes=2, by_size=True)
    other = fit(batch_classes=2)
    assert any(
        not np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(one.weights), jax.tree.leaves(other.weights), strict=True)
    )


def test_only_classes_that_are_trained_on_have_proxies():
    images = np.zeros((12, 2, 2, 1), np.uint8)
    examples = Examples(images, np.repeat(np.array([3, 9, 5, -1], np.int32), 3))
    data = Dataset("some", tuple("abcdefghij"), examples, examples, examples)
    objective = train.objective("proxy_nca")
    training = Training(
        model=MODEL, data=data, objective=objective, steps=4, batch_size=4, batch_classes=2
    )
    parts = assembly.assemble(training)
    assert parts.init_loss(objective, 0).shape == (3, 4)
    source = source_of(training)
    np.testing.assert_array_equal(source.classes, np.repeat([0, 2, 1, -1], 3))
    np.testing.assert_array_equal(source.by_class.classes, [0, 1, 2])

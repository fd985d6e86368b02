"""Training with labels of two rows: the step against the losses, `fit`, devices and refusals."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contrastive_jax import anchor_loss, distances, labels, losses, memory, mining, models, train
from contrastive_jax.data import GivenPairs, PairDataset
from contrastive_jax.data.datasets import Dataset, Examples
from contrastive_jax.evaluation.retrieval import retrieval
from contrastive_jax.evaluation.summary import drawn_distances
from contrastive_jax.evaluation.verification import best_threshold
from contrastive_jax.train import assembly
from contrastive_jax.train.batches import source_of
from contrastive_jax.train.run import calibrated
from contrastive_jax.train.training import Training
from contrastive_jax.train.validation import figures_on_validation

pytestmark = pytest.mark.usefixtures("unrefined")

ROWS, WIDTH = 12, 4
RNG = np.random.default_rng(0)
X = RNG.normal(size=(ROWS, WIDTH)).astype(np.float32)
X /= np.linalg.norm(X, axis=1, keepdims=True)
CLASSES = np.arange(ROWS, dtype=np.int32) % 3
GROUPS = np.arange(ROWS, dtype=np.int32) // 3 % 2
CLASSES[7] = -1
RULE = labels.same_class_other_group()
BATCH = train.Batch(np.zeros((ROWS, 1, 1, 1)), CLASSES, (CLASSES, GROUPS))
MODEL = partial(models.Linear, width=4)
OPTIONS = {
    "steps": 60,
    "batch_size": 24,
    "log_every": 20,
    "validate_every": 60,
    "devices": jax.devices()[:1],
    "progress": False,
    "runs": None,
}


def _vectors(number, seed):
    """Vectors of 4 classes by 2 cameras, whose camera is stronger than their class."""
    rng = np.random.default_rng(seed)
    classes = np.arange(number, dtype=np.int32) % 4
    groups = (np.arange(number, dtype=np.int32) // 4) % 2
    x = rng.normal(0, 0.3, (number, 8)).astype(np.float32)
    x[np.arange(number), classes] += 1
    x[np.arange(number), 4 + groups] += 4
    ages = (10 * classes + groups).astype(np.float64)
    return Examples(x, classes, groups, attributes={"age": ages})


@pytest.fixture(scope="module")
def cameras():
    splits = [_vectors(number, seed) for seed, number in enumerate((96, 48, 48))]
    return Dataset("cameras", tuple("abcd"), *splits)


def _value_and_gradient(objective, batch=BATCH, references=None):
    params = objective.init(3, WIDTH, 0)

    def over_devices(x):
        value, _ = jax.vmap(
            lambda x: objective.value(
                x, batch, params, references, dict(objective.hyperparameters)
            ),
            axis_name=train.AXIS,
        )(x[None])
        return value[0]

    return jax.jit(jax.value_and_grad(over_devices))(X)


def test_all_pairs_are_the_formula():
    objective = train.objective("contrastive", labels=RULE, margin=0.9, positive_fraction=0.4)
    value, _ = _value_and_gradient(objective)
    i, j = np.triu_indices(ROWS, 1)
    real = (CLASSES[i] >= 0) & (CLASSES[j] >= 0)
    between = np.linalg.norm(np.float64(X[i]) - X[j], axis=1)
    same, one_group = CLASSES[i] == CLASSES[j], GROUPS[i] == GROUPS[j]
    pull = (between**2)[real & same & ~one_group].mean()
    push = (np.maximum(0, 0.9 - between) ** 2)[real & ~same].mean()
    np.testing.assert_allclose(value, 0.4 * pull + 0.6 * push, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("supcon", losses.supcon(temperature=0.1)),
        ("triplet_semi_hard", losses.triplet_semi_hard(margin=0.2)),
        ("mined_hard", mining.hard(losses.contrastive(margin=1.2))),
    ],
)
def test_value_and_gradient_are_those_of_the_loss(name, loss):
    direct = partial(anchor_loss, classes=(CLASSES, GROUPS), labels=RULE, loss=loss)
    value, gradient = jax.jit(jax.value_and_grad(direct))(X)
    ours, our_gradient = _value_and_gradient(train.objective(name, labels=RULE))
    np.testing.assert_allclose(ours, value, rtol=1e-5)
    np.testing.assert_allclose(our_gradient, gradient, atol=1e-6)
    by_class, _ = _value_and_gradient(train.objective(name))
    assert abs(by_class - value) > 1e-4


def test_a_loss_of_a_batch_and_a_boundary_of_each_class_take_labels():
    loss = partial(mining.online_hard_loss, margin=0.8, reduction="active")
    value, _ = _value_and_gradient(train.objective("online_hard", labels=RULE))
    direct = loss(jnp.asarray(X), (CLASSES, GROUPS), labels=RULE)
    np.testing.assert_allclose(value, direct, rtol=1e-5)
    value, _ = _value_and_gradient(train.objective("margin_by_class", labels=RULE))
    assert np.isfinite(value)


def test_memory_holds_attributes_and_forgets_them(cameras):
    objective = train.objective("supcon", labels=RULE)
    options = {"steps": 4, "batch_size": 8, "batch_classes": 4, "memory_size": 16}
    training = Training(model=MODEL, data=cameras, objective=objective, **options, max_age=1)
    parts = assembly.assemble(training)
    placed = train.parallel(parts.drawn, "shard_map", jax.devices()[:1])
    source = source_of(training)
    state, source, hyper = placed.replicate((parts.init(0), source, train.Hyperparameters(0)))
    for _ in range(2):
        state, _ = placed.step(state, source, hyper)
    bank = placed.fetch(state).memory
    (classes, groups), mask = bank.classes
    assert mask.all()
    rows = {*zip(cameras.train.classes.tolist(), cameras.train.groups.tolist(), strict=True)}
    assert {*zip(classes.tolist(), groups.tolist(), strict=True)} <= rows
    _, (_, mask) = memory.references(jax.tree.map(jnp.asarray, bank), 2, max_age=1)
    assert mask.sum() == 8
    value, _ = _value_and_gradient(
        objective, references=(jnp.asarray(X[:5]), ((CLASSES[:5], GROUPS[:5]), CLASSES[:5] >= 0))
    )
    direct = partial(anchor_loss, labels=RULE, loss=losses.supcon(temperature=0.1))
    others = jnp.asarray(X[:5]), (CLASSES[:5], GROUPS[:5])
    np.testing.assert_allclose(value, direct(jnp.asarray(X), (CLASSES, GROUPS), *others), rtol=1e-5)


def test_places_that_no_example_fills_are_ignored(cameras):
    """A batch takes the two examples of a small class, and marks the other two rows."""
    few = cameras.train._replace(
        images=cameras.train.images[:10],
        classes=np.array([0] * 4 + [1] * 4 + [2] * 2, np.int32),
        groups=cameras.train.groups[:10],
    )
    objective = train.objective("contrastive", labels=RULE)
    data = cameras._replace(train=few)
    source = source_of(Training(model=MODEL, data=data, objective=objective, steps=1))

    def look(state, batch, hyperparameters):
        return state, (batch.classes, *batch.attributes, objective.rows(batch)[1])

    step = train.draws_classes(look, classes=3, examples=4)
    placed = train.parallel(step, "shard_map", jax.devices()[:1])
    state = train.TrainState(jnp.int32(0), (), ())
    hyper = train.Hyperparameters(0)
    _, (classes, own, _, mask) = placed.step(*placed.replicate((state, source, hyper)))
    assert mask.sum() == 10
    np.testing.assert_array_equal(mask, classes >= 0)
    np.testing.assert_array_equal(own[mask], classes[mask])


def test_fit_brings_the_cameras_together(cameras):
    """The camera is stronger than the class until training takes it out."""
    rows = cameras.validation.classes, cameras.validation.groups
    one_camera = labels.PairLabels(
        lambda a, b: jnp.where((a[0] == b[0]) & (a[1] == b[1]), 0, 1), class_of=lambda row: row[0]
    )
    by_camera = train.objective(
        "supcon", labels=one_camera, attributes=lambda split: (split.classes, split.groups)
    )
    objective = train.objective("supcon", labels=RULE)
    figures = [retrieval(cameras.validation.images, rows, labels=RULE)["map_at_r"]]
    for one in (by_camera, objective):
        run = train.fit(MODEL, cameras, one, optimizer=train.make_optimizer(0.05, 60), **OPTIONS)
        figures.append(
            retrieval(run.embed(cameras.validation.images), rows, labels=RULE)["map_at_r"]
        )
    assert max(figures[:2]) < 0.3 < 0.8 < figures[2]
    by_labels, x = figures_on_validation(run.embed, cameras, distances.cosine, objective)
    assert by_labels["map_at_r"] == figures[2] != retrieval(x, rows[0])["map_at_r"]
    # The threshold is that of pairs of two cameras.
    between, drawn = drawn_distances(x, rows, distances.cosine, 50_000, 0, labels=RULE)
    assert run.threshold == best_threshold(between, drawn)
    assert (run.threshold, run.calibration) == calibrated(distances.cosine, x, rows, labels=RULE)
    assert run.calibration != calibrated(distances.cosine, x, rows[0])[1]


def test_one_device_or_two_take_the_same_step(cameras):
    objective = train.objective(
        "contrastive",
        labels=labels.within(2.0, apart=15.0),
        attributes=lambda split: split.attributes["age"],
    )
    options = {"steps": 4, "batch_size": 16, "memory_size": 16}
    training = Training(model=MODEL, data=cameras, objective=objective, **options)
    parts = assembly.assemble(training)
    source = source_of(training)
    values = []
    for count in (1, 2):
        placed = train.parallel(parts.drawn, "shard_map", jax.devices()[:count])
        state, data, hyper = placed.replicate((parts.init(0), source, train.Hyperparameters(0)))
        for _ in range(2):
            state, metrics = placed.step(state, data, hyper)
        values.append(float(metrics["loss"]))
    np.testing.assert_allclose(*values, rtol=1e-5)


def test_what_takes_no_labels_says_what_does():
    with pytest.raises(ValueError, match="proxies of their classes, and labels of two"):
        train.objective("proxy_anchor", labels=RULE)
    with pytest.raises(ValueError, match='take on="all_pairs"'):
        train.objective("contrastive", on="pairs", labels=RULE)
    with pytest.raises(ValueError, match="give attributes, a function of the examples"):
        train.objective("supcon", labels=labels.within(3.0))
    with pytest.raises(ValueError, match="attributes are what labels take"):
        train.objective("supcon", attributes=lambda split: split.classes)
    with pytest.raises(ValueError, match="function of the attributes of two rows"):
        train.objective("supcon", labels=labels.same_class)
    batch = BATCH._replace(attributes=None)
    with pytest.raises(ValueError, match="the batch has no attributes"):
        train.objective("supcon", labels=RULE).check_batch(batch)


def test_data_that_does_not_fit_is_refused_before_training(cameras):
    objective = train.objective("supcon", labels=RULE)
    fit = partial(train.fit, MODEL, **OPTIONS)
    ungrouped = cameras._replace(train=cameras.train._replace(groups=None))
    with pytest.raises(ValueError, match="same_class_other_group needs the group"):
        fit(ungrouped, objective)
    one = cameras.validation._replace(groups=np.zeros(48, np.int32))
    with pytest.raises(ValueError, match="leave no positive pair among 48 rows") as raised:
        fit(cameras._replace(validation=one), objective)
    assert "in the validation split of cameras" in raised.value.__notes__
    by_height = train.objective(
        "supcon", labels=labels.within(3.0), attributes=lambda split: split.attributes["height"]
    )
    with pytest.raises(ValueError, match="no column 'height'; its columns are age"):
        fit(cameras, by_height)
    short = train.objective(
        "supcon", labels=labels.within(3.0), attributes=lambda split: split.attributes["age"][:5]
    )
    with pytest.raises(AssertionError, match=r"attributes .* one entry for each of 96 rows"):
        fit(cameras, short)
    with pytest.raises(ValueError, match="labels has no effect with several views"):
        fit(cameras, objective, views=2, augment=lambda key, image: image)
    pairs = GivenPairs(np.array([0, 0, 1, 2]), np.array([1, 2, 2, 3]), np.array([0, 1, 1, 0]))
    given = PairDataset("four", np.zeros((4, 8), np.float32), pairs, pairs, pairs)
    with pytest.raises(ValueError, match="given pairs have a label each"):
        fit(given, train.objective("contrastive", labels=RULE))

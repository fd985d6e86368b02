"""Objectives of each kind: value and what is logged, against NumPy and the public losses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import contrastive_jax as cj
from contrastive_jax import distances, losses, memory, mining, regularizers, train
from contrastive_jax.train import objectives

pytestmark = pytest.mark.usefixtures("unrefined")

ROWS, WIDTH, NUMBER = 12, 4, 3
RNG = np.random.default_rng(0)
X = RNG.normal(size=(ROWS, WIDTH)).astype(np.float32)
X /= np.linalg.norm(X, axis=1, keepdims=True)
CLASSES = np.arange(ROWS, dtype=np.int32) % NUMBER
BATCH = train.Batch(np.zeros((ROWS, 1, 1, 1)), CLASSES)
MEMORY = RNG.normal(size=(5, WIDTH)).astype(np.float32), np.array([0, 1, 2, 0, -1], np.int32)


def _value(objective, embeddings=X, batch=BATCH, references=None, **options):
    """The value of an objective on one device, and what it logs."""
    params = objective.init(NUMBER, WIDTH, 0)
    options = dict(objective.hyperparameters) | options

    def one(x, options):
        return objective.value(x, batch, params, references, options)

    mapped = jax.vmap(one, in_axes=(0, None), axis_name=train.AXIS)
    value, sums = jax.jit(mapped)(jnp.asarray(embeddings)[None], options)
    return float(value[0]), {name: float(total[0]) for name, total in sums.items()}, params


def _pairs_of_rows(x, y=None):
    """Distances and similarity of all pairs of a batch, or of a batch and references."""
    if y is None:
        i, j = np.triu_indices(len(x), 1)
        return np.linalg.norm(np.float64(x[i]) - x[j], axis=1), CLASSES[i] == CLASSES[j]
    others, classes = y
    real = classes >= 0
    between = np.linalg.norm(np.float64(x)[:, None] - others[real], axis=2).ravel()
    return between, (CLASSES[:, None] == classes[real]).ravel()


def _contrastive(between, positive, fraction, margin=0.9):
    hinge = np.maximum(0, margin - between[~positive])
    return fraction * (between[positive] ** 2).mean() + (1 - fraction) * (hinge**2).mean()


def test_all_pairs_are_the_formula():
    between, positive = _pairs_of_rows(X)
    value, sums, _ = _value(objectives.all_pairs(margin=0.9, positive_fraction=0.3))
    np.testing.assert_allclose(value, _contrastive(between, positive, 0.3), rtol=1e-5)
    # Sums are over both orders of a pair.
    assert sums["positive"] == 2 * positive.sum()
    assert sums["negative"] == 2 * (~positive).sum()
    assert sums["active"] == 2 * (between[~positive] < 0.9).sum()
    np.testing.assert_allclose(sums["positive_distance"], 2 * between[positive].sum(), rtol=1e-5)
    np.testing.assert_allclose(sums["negative_distance"], 2 * between[~positive].sum(), rtol=1e-5)


def test_a_memory_with_the_contrastive_loss_is_the_formula():
    objective = objectives.all_pairs(margin=0.9, positive_fraction=0.3)
    value, sums, _ = _value(objective, references=MEMORY)
    expected = _contrastive(*_pairs_of_rows(X, MEMORY), 0.3)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert sums == {}


def test_parameters_of_a_pair_loss_are_bound_to_it():
    objective = train.objective("sigmoid")
    value, _, params = _value(objective, positive_fraction=0.5)
    np.testing.assert_allclose(np.exp(params["log_temperature"]), 10.0, rtol=1e-6)
    cosine = np.float64(X) @ X.T
    i, j = np.triu_indices(ROWS, 1)
    positive = CLASSES[i] == CLASSES[j]
    logits = 10.0 * cosine[i, j] - 10.0
    cost = np.logaddexp(0, np.where(positive, -logits, logits))
    expected = 0.5 * cost[positive].mean() + 0.5 * cost[~positive].mean()
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def _given(group=1, **labels):
    return objectives.pairs(margin=0.9, group=group), train.Pairs(X[:6], X[6:], **labels)


def test_given_pairs_are_the_formula():
    labels = np.array([0, 1, 1, 0, 1, 1], np.int32)
    between = np.linalg.norm(np.float64(X[:6]) - X[6:], axis=1)
    hinge = np.maximum(0, 0.9 - between)
    objective, batch = _given(labels=labels)
    value, sums, _ = _value(objective, batch=batch)
    cost = np.where(labels == 0, between**2, hinge**2)
    np.testing.assert_allclose(value, cost.mean(), rtol=1e-5)
    assert (sums["positive"], sums["negative"]) == (2, 4)
    np.testing.assert_allclose(sums["positive_distance"], between[labels == 0].sum(), rtol=1e-5)
    assert sums["active"] == (hinge[labels == 1] > 0).sum()
    classes = {"first_classes": np.zeros(6, np.int32), "second_classes": labels}
    assert _value(objective, batch=_given(**classes)[1])[0] == value


@pytest.mark.parametrize(
    ("objective", "public"),
    [
        (train.objective("supcon"), lambda: losses.supcon(0.1)),
        (objectives.anchors(losses.ntxent, temperature=0.3), lambda: losses.ntxent(0.3)),
        (train.objective(losses.triplet_all(margin=0.2)), lambda: losses.triplet_all(margin=0.2)),
        (
            train.objective("mined_distance_weighted"),
            lambda: mining.distance_weighted(
                losses.margin_based(margin=0.2, boundary=0.9), dimension=WIDTH
            ),
        ),
    ],
    ids=["name", "anchors", "loss", "width"],
)
def test_anchors_are_the_public_loss(objective, public):
    value, sums, _ = _value(objective)
    np.testing.assert_allclose(value, cj.anchor_loss(X, CLASSES, loss=public()), rtol=1e-5)
    with_memory, logged, _ = _value(objective, references=MEMORY)
    expected = cj.anchor_loss(X, CLASSES, *MEMORY, loss=public())
    np.testing.assert_allclose(with_memory, expected, rtol=1e-5)
    assert logged == {}
    positive = _pairs_of_rows(X)[1]
    assert (sums["positive"], sums["negative"]) == (2 * positive.sum(), 2 * (~positive).sum())


def test_parameters_by_class_are_data_of_the_anchors():
    value, _, params = _value(train.objective("margin_by_class", margin=0.3))
    np.testing.assert_array_equal(params, np.full(NUMBER, 0.9, np.float32))
    expected = cj.anchor_loss(
        X, CLASSES, loss=losses.margin_by_class(0.3), data=(np.full(ROWS, 0.9, np.float32),)
    )
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_proxies_are_the_public_loss_and_a_penalty():
    value, sums, params = _value(objectives.proxies(losses.normalized_softmax, temperature=0.2))
    np.testing.assert_allclose(np.linalg.norm(params, axis=-1), 1, rtol=1e-5)
    expected = cj.proxy_loss(X, CLASSES, params, loss=losses.normalized_softmax(0.2))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    i, j = np.triu_indices(ROWS, 1)
    cosine = 1 - (np.float64(X) @ X.T)[i, j]
    np.testing.assert_allclose(
        sums["positive_distance"], 2 * cosine[CLASSES[i] == CLASSES[j]].sum(), rtol=1e-5
    )
    value, _, params = _value(train.objective("soft_triple"))
    assert params.shape == (NUMBER, 4, WIDTH)
    expected = cj.proxy_loss(X, CLASSES, params, loss=losses.soft_triple())
    np.testing.assert_allclose(value, expected + 0.1 * regularizers.centers(params), rtol=1e-5)


def test_functions_of_a_batch_are_called_as_they_are():
    value, _, _ = _value(train.objective("online_hard", margin=0.7))
    expected = mining.online_hard_loss(X, CLASSES, margin=0.7, reduction="active")
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_hyperparameters_are_arguments():
    for name in ("contrastive", "supcon", "arcface", "online_hard", "mined_hard"):
        objective = train.objective(name)
        values = {k: float(v) * 0.8 for k, v in objective.hyperparameters.items()}
        changed = train.objective(name, **values)
        assert _value(objective, **values)[0] == _value(changed)[0] != _value(objective)[0]


@pytest.mark.parametrize("separable", [True, False])
def test_batches_of_the_other_kind_are_refused(separable):
    batches = {"Pairs": train.Pairs(X, X, CLASSES % 2), "Batch": BATCH}
    expected, other = ("Pairs", "Batch") if separable else ("Batch", "Pairs")
    objective = objectives.pairs() if separable else objectives.all_pairs()
    objective.check_batch(batches[expected])
    with pytest.raises(ValueError, match=f"takes {expected}, got {other}"):
        objective.check_batch(batches[other])
    with pytest.raises(ValueError, match=f"takes {expected}, got tuple"):
        objective.check_batch((X, CLASSES))


@pytest.mark.parametrize(
    ("objective", "batch"),
    [
        (objectives.pairs(margin=1.0), train.Pairs(X, X, CLASSES % 2)),
        (train.objective("proxy_nca"), BATCH),
    ],
    ids=["pairs", "proxies"],
)
def test_a_memory_that_has_no_use_is_refused(objective, batch):
    encoder = train.network((lambda params, images: images * params, jnp.ones(WIDTH)))
    optimizer = optax.sgd(0.1)
    bank = memory.empty(8, WIDTH)
    state = train.init_state(encoder, optimizer, objective.init(3, WIDTH, 0), memory=bank)
    step = jax.vmap(
        train.make_step(encoder, optimizer, objective),
        in_axes=None,
        axis_name=train.AXIS,
        axis_size=1,
    )
    with pytest.raises(ValueError, match="compares with no earlier batches"):
        jax.eval_shape(step, state, batch, train.Hyperparameters(0))


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        (("contrastiv",), {}, "unknown loss contrastiv; close to it: contrastive"),
        (("supcon",), {"margin": 1.0}, "supcon has no margin; its hyperparameters are temperature"),
        (("contrastive",), {"margin": -1.0}, "margin must be above 0"),
        (("contrastive",), {"positive_fraction": 1.5}, r"positive_fraction must be in \[0, 1\]"),
        (("supcon",), {"on": "pairs"}, "supcon compares whole batches"),
        (("arcface",), {"distance": distances.cosine}, "arcface compares whole batches"),
        (("supcon",), {"temperature": 0.0}, "temperature must be above 0"),
        ((losses.supcon(),), {"on": "pairs"}, "AnchorLoss compares whole batches"),
        ((losses.arcface(),), {"margin": 0.1}, "ProxyLoss compares whole batches"),
    ],
)
def test_objectives_that_can_not_be(arguments, options, words):
    with pytest.raises(ValueError, match=words):
        train.objective(*arguments, **options)


def test_what_is_no_loss_is_refused():
    with pytest.raises(TypeError, match=r"loss must be the name of a loss, .* got 3"):
        train.objective(3)

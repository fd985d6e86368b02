"""Sums of the distances of a batch, beside a loss and by themselves, against float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contrastive_jax import all_pairs_sums, anchor_loss, distances, losses, statistics, train
from contrastive_jax.anchors import anchor_loss_and_distances
from contrastive_jax.train import objectives
from contrastive_jax.train._logged_distances import cosine_distances, swept_distances

ROWS, WIDTH, NUMBER = 24, 5, 4
RNG = np.random.default_rng(0)
X = RNG.normal(size=(ROWS, WIDTH)).astype(np.float32)
CLASSES = np.arange(ROWS, dtype=np.int32) % NUMBER
# Rows that coincide or nearly do, one without a direction, and ignored ones that are not finite.
X[5], X[7], X[8] = X[1], 0, X[4] + np.float32(1e-4)
CLASSES[[2, 11]] = -1
X[[2, 11]] = np.nan


def _oracle(distance):
    """The counts of positive and negative pairs, and the sums of their distances."""
    rows = CLASSES >= 0
    x, classes = np.float64(X[rows]), CLASSES[rows]
    if distance == "euclidean":
        between = np.linalg.norm(x[:, None] - x[None], axis=-1)
    else:
        norms = np.linalg.norm(x, axis=1, keepdims=True)
        unit = x / np.where(norms == 0, 1, norms)
        between = 1 - unit @ unit.T
    same = classes[:, None] == classes[None]
    others = ~np.eye(len(x), dtype=bool)
    by_label = [same & others, ~same]
    return [one.sum() for one in by_label], [between[one].sum() for one in by_label]


def _check(sums, distance):
    pairs, between = _oracle(distance)
    np.testing.assert_array_equal(sums.pairs, pairs)
    np.testing.assert_allclose(sums.distance, between, rtol=2e-6)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tile": 8},
        {"method": "autodiff"},
        {"margin": np.full(NUMBER, 1.0, np.float32)},
        {"distance": distances.cosine},
    ],
    ids=["matrix", "sweep", "rows", "margins", "cosine"],
)
def test_sums_over_all_pairs(options):
    def loss_and_sums(x):
        sums = all_pairs_sums(x, CLASSES, **{"margin": 1.0} | options)
        return jnp.sum(sums.loss), sums

    (_, sums), gradient = jax.jit(jax.value_and_grad(loss_and_sums, has_aux=True))(X)
    _check(sums, "cosine" if "distance" in options else "euclidean")
    assert np.isfinite(gradient).all()
    distance_gradient = jax.grad(lambda x: jnp.sum(all_pairs_sums(x, CLASSES, **options).distance))
    np.testing.assert_array_equal(jax.jit(distance_gradient)(X), 0)


def test_sums_of_distances_that_are_no_products():
    """With weights, over two sets, and of another dtype than the embeddings."""

    def between(a, b):
        return jnp.sum(jnp.abs(a - b) * np.array([1.0, 2.0, 1.0, 0.5, 1.0]))

    rows = CLASSES >= 0
    x, classes = X[rows], CLASSES[rows]
    weights = np.linspace(0.5, 2, len(x), dtype=np.float32)
    by_hand = (np.abs(x[:8, None] - x[None, 8:]) * [1, 2, 1, 0.5, 1]).sum(2)
    by_hand *= weights[:8, None] * weights[None, 8:]
    same = classes[:8, None] == classes[None, 8:]
    with jax.enable_x64(True):
        for options in ({}, {"tile": 8}, {"method": "autodiff"}):
            sums = jax.jit(
                lambda a, b, options=options: all_pairs_sums(
                    a,
                    classes[:8],
                    b,
                    classes[8:],
                    weights=weights[:8],
                    reference_weights=weights[8:],
                    distance=between,
                    margin=1.0,
                    **options,
                )
            )(x[:8], x[8:])
            assert sums.distance.dtype == jnp.float32
            want = [by_hand[same].sum(), by_hand[~same].sum()]
            np.testing.assert_allclose(sums.distance, want, rtol=1e-5)


def _positive_total(distance, label):
    return statistics.total(distance, label == 0)


LOSSES = {
    "supcon": losses.supcon(0.5),
    # The first stage is of all pairs, and the second of positive ones alone and takes its result.
    "ntxent": losses.ntxent(0.5),
    # Two stages of all pairs.
    "multi_similarity": losses.multi_similarity(),
    "positives": losses.AnchorLoss(
        lambda total: losses.Mean(total, 1.0), (statistics.PositivesOnly(_positive_total),)
    ),
}


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, {}) for name in LOSSES]
    + [("positives", {"tile": 8}), ("supcon", {"reduction": "none"})]
    # The stages are made alike for tiles and for a matrix.
    + [pytest.param("ntxent", {"tile": 8}, marks=pytest.mark.long)],
)
def test_sums_beside_the_loss_of_anchors(name, options, longer):
    loss = LOSSES[name]
    options = options | {"refine": longer or name == "supcon"}

    def measured(x):
        value, sums = anchor_loss_and_distances(x, CLASSES, loss=loss, **options)
        return jnp.sum(value), (value, sums)

    def alone(x):
        value = anchor_loss(x, CLASSES, loss=loss, **options)
        return jnp.sum(value), value

    (_, (value, sums)), gradient = jax.jit(jax.value_and_grad(measured, has_aux=True))(X)
    (_, expected), plain = jax.jit(jax.value_and_grad(alone, has_aux=True))(X)
    _check(sums, "cosine")
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, plain, rtol=1e-5, atol=1e-7)


def test_sums_of_no_rows_and_of_triplets():
    value, sums = anchor_loss_and_distances(X[:0], CLASSES[:0], loss=losses.supcon())
    assert value == 0
    np.testing.assert_array_equal(sums, np.zeros((2, 2)))
    with pytest.raises(ValueError, match="must be an AnchorLoss"):
        anchor_loss_and_distances(X, CLASSES, loss=losses.triplet_all())


def test_cosines_in_linear_time_are_those_of_the_sweep():
    def on_two_devices(x, classes):
        return cosine_distances(x, classes, NUMBER)

    mapped = jax.jit(jax.vmap(on_two_devices, axis_name=train.AXIS))
    sums = mapped(X.reshape(2, -1, WIDTH), CLASSES.reshape(2, -1))
    swept = swept_distances(X, CLASSES, distances.cosine, None)
    pairs, between = _oracle("cosine")
    for k, name in enumerate(["positive", "negative"]):
        np.testing.assert_array_equal(sums[name], np.full(2, pairs[k]))
        np.testing.assert_allclose(sums[f"{name}_distance"], np.full(2, between[k]), rtol=2e-6)
        np.testing.assert_allclose(swept[f"{name}_distance"], between[k], rtol=2e-5)


@pytest.mark.parametrize(
    ("objective", "sweeps"),
    [
        (objectives.all_pairs(margin=1.0), 1),
        (train.objective("supcon"), 1),
        (train.objective("normalized_softmax"), 0),
        (train.objective("triplet_all"), 2),
    ],
    ids=["pairs", "anchors", "proxies", "triplets"],
)
def test_logging_takes_no_sweep_of_its_own(objective, sweeps, monkeypatch):
    """Only a loss of triplets, whose statistics are those of each positive, has one more."""
    from contrastive_jax._engine import engines

    counted = []

    def counting(call):
        def counted_call(*arguments, **options):
            counted.append(call)
            return call(*arguments, **options)

        return counted_call

    for name in ("SWEEP", "DENSE"):
        engine = getattr(engines, name)
        monkeypatch.setattr(engines, name, engines.Engine(*map(counting, engine)))
    params = objective.init(NUMBER, WIDTH, 0)
    batch = train.Batch(np.zeros((ROWS, 1, 1, 1)), CLASSES)

    def value(x):
        return objective.value(x, batch, params, None, objective.hyperparameters)

    _, sums = jax.eval_shape(jax.vmap(value, axis_name=train.AXIS), X[None])
    assert {"positive_distance", "negative_distance"} <= {*sums}
    assert len(counted) == sweeps

"""Losses of pairs that a function labels, against float64 NumPy, by every engine."""

import itertools
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import numpy_losses
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_all_pairs import _numerical
from test_all_pairs_devices import AXIS, _mapped
from test_anchor_losses import ANCHOR_LOSSES
from test_second_derivatives import _assert_curvature

from contrastive_jax import (
    all_pairs_loss,
    all_pairs_sums,
    anchor_loss,
    distances,
    labels,
    losses,
    mining,
    statistics,
)

ROWS, SIZE, TILE, MARGIN = 24, 6, 8, 1.5
RNG = np.random.default_rng(1)
X = RNG.standard_normal((ROWS, SIZE)).astype(np.float32)
X[7] = X[3] + np.float32(1e-4)
CLASSES, GROUPS = RNG.integers(0, 4, ROWS), RNG.integers(0, 3, ROWS)
CLASSES[[5, 16]] = -1
CLASSES[7], GROUPS[7] = CLASSES[3], GROUPS[3] + 1
AGES = RNG.uniform(0, 20, ROWS).astype(np.float32)
AGES[7] = AGES[3] + np.float32(0.1)
ENGINES = {"dense": {}, "sweep": {"tile": TILE}, "autodiff": {"method": "autodiff"}}


def _by_age(a, b):
    """Ignores pairs of one sign whose ages are neither close nor far apart, without a class.

    A row is positive or negative to itself, a pair that no loss is to meet.
    """
    apart = jnp.abs(a["age"] - b["age"])
    middle = (apart > 4) & (apart < 6) & (a["sign"] == b["sign"])
    similar = (apart < 4) & ((apart > 0) | a["sign"])
    return jnp.where(similar, 0, jnp.where(middle, -1, 1))


def _tables():
    """For each rule the labels of all pairs, -2 where a row is ignored."""
    by_group = np.where(CLASSES[:, None] != CLASSES, 1, 0)
    by_group[(by_group == 0) & (GROUPS[:, None] == GROUPS)] = -1
    by_group[CLASSES == -1] = by_group[:, CLASSES == -1] = -2
    apart = abs(AGES[:, None].astype(float) - AGES)
    by_age = np.where(apart < 4, 0, 1)
    by_age[(apart > 4) & (apart < 6) & (X[:, None, 0] * X[:, 0] > 0)] = -1
    return by_group, by_age


RULES = {
    "groups": (labels.same_class_other_group(), (CLASSES, GROUPS), _tables()[0]),
    "function": (_by_age, {"age": AGES, "sign": X[:, 0] > 0}, _tables()[1]),
}


def _embeddings(rule):
    """Embeddings, of which those of ignored rows hold NaN."""
    return np.where((RULES[rule][2] == -2).all(1)[:, None], np.nan, X).astype(np.float32)


def _sums(x, table, y=None, weights=1.0):
    """Losses, weights, active weights and distances, summed over positive and negative pairs."""
    x = np.asarray(x, np.float64)
    own = np.eye(len(x), dtype=bool) if y is None else False
    distance = np.linalg.norm(x[:, None] - (x if y is None else np.asarray(y, float)), axis=2)
    value = np.where(table == 1, np.maximum(0, MARGIN - distance), distance) ** 2
    weights = np.where((table >= 0) & ~np.asarray(own), weights, 0)
    each = [
        [(w * (table == k)).sum() for k in (0, 1)]
        for w in (weights * value, weights, weights * (value != 0), weights * distance)
    ]
    return np.array(each)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("rule", RULES)
def test_sums_and_their_gradients(rule, engine):
    label, attributes, table = RULES[rule]

    @jax.jit
    def program(x, attributes):
        def sums(x):
            options = ENGINES[engine] | {"labels": label, "margin": MARGIN}
            result = all_pairs_sums(x, attributes, **options)
            return result.loss, result

        _, pull, result = jax.vjp(sums, x, has_aux=True)
        return result, [pull(one)[0] for one in jnp.eye(2)]

    result, gradients = program(_embeddings(rule), attributes)
    np.testing.assert_allclose(result, _sums(X, table), rtol=1e-5)
    assert (_sums(X, table)[1] > 20).all()
    for k, gradient in enumerate(gradients):
        want = _numerical(lambda x, k=k: _sums(x, table)[0, k], X.astype(float))
        np.testing.assert_allclose(gradient, want, rtol=1e-4, atol=2e-5 * abs(want).max())


def test_every_reduction():
    label, attributes, table = RULES["groups"]
    loss, pairs, active, _ = _sums(X, table)
    want = {
        "mean": loss.sum() / pairs.sum(),
        "balanced": (loss / pairs).sum(),
        "active": (loss / active).sum(),
        "sum": loss.sum(),
    }
    for reduction, value in want.items():
        options = {"labels": label, "margin": MARGIN, "reduction": reduction}
        got = all_pairs_loss(_embeddings("groups"), attributes, **options)
        np.testing.assert_allclose(got, value, rtol=1e-5)


@pytest.mark.parametrize("distance", [distances.negative_dot, distances.manhattan])
@pytest.mark.parametrize("engine", ENGINES)
def test_other_distances(engine, distance):
    label, attributes, table = RULES["function"]

    def squared(distance, label):
        # It has no derivative at the distance of a row from itself.
        return jnp.where(label == 0, jnp.sqrt(distance + 9), 2 * jnp.sqrt(distance + 9))

    def value(x):
        options = ENGINES[engine] | {"labels": label, "loss": squared, "reduction": "sum"}
        return all_pairs_loss(x, attributes, distance=distance, **options)

    def want(x):
        is_dot = distance is distances.negative_dot
        apart = -(x @ x.T) if is_dot else abs(x[:, None] - x).sum(2)
        counts = (table >= 0) & ~np.eye(ROWS, dtype=bool)
        return ((1 + (table == 1)) * np.sqrt(np.where(counts, apart + 9, 0)) * counts).sum()

    x = 0.5 * X
    got, gradient = jax.jit(jax.value_and_grad(value))(x)
    np.testing.assert_allclose(got, want(x.astype(float)), rtol=1e-5)
    by = _numerical(want, x.astype(float))
    np.testing.assert_allclose(gradient, by, rtol=1e-3, atol=1e-4 * abs(by).max())


@pytest.mark.parametrize("engine", ENGINES)
def test_two_sets_with_weights(engine):
    label, attributes, table = RULES["groups"]
    weights = RNG.uniform(0.5, 2, ROWS).astype(np.float32)

    def value(x, y):
        return all_pairs_loss(
            x,
            jax.tree.map(lambda leaf: leaf[:9], attributes),
            y,
            jax.tree.map(lambda leaf: leaf[9:], attributes),
            labels=label,
            margin=MARGIN,
            weights=weights[:9],
            reference_weights=weights[9:],
            **ENGINES[engine],
        )

    x, y = _embeddings("groups")[:9], _embeddings("groups")[9:]
    got, gradients = jax.jit(jax.value_and_grad(value, (0, 1)))(x, y)
    both = table[:9, 9:], weights[:9, None].astype(float) * weights[9:]

    def want(x):
        loss, pairs, *_ = _sums(x[:9], both[0], x[9:], both[1])
        return loss.sum() / pairs.sum()

    np.testing.assert_allclose(got, want(X), rtol=1e-5)
    by = _numerical(want, X.astype(float))
    got = np.concatenate(gradients)
    np.testing.assert_allclose(got, by, rtol=1e-4, atol=2e-5 * abs(by).max())


@pytest.mark.parametrize("engine", ENGINES)
def test_grades(engine):
    """Hadsell's formula of a label between 0 and 1."""
    grades = np.minimum(abs(AGES[:, None].astype(float) - AGES) / 10, 1)
    grades = np.where(CLASSES[:, None] != CLASSES, 1, np.where(grades > 0.9, -1, grades))
    counts = (grades >= 0) & ~np.eye(ROWS, dtype=bool) & (CLASSES >= 0) & (CLASSES >= 0)[:, None]
    assert ((grades > 0) & (grades < 1) & counts).sum() > 20

    def grade(a, b):
        own = jnp.minimum(jnp.abs(a[1] - b[1]) / 10, 1)
        return jnp.where(a[0] != b[0], 1, jnp.where(own > 0.9, -1, own))

    rule = labels.PairLabels(grade, lambda row: row[0])

    def value(x, scale):
        def loss(distance, label):
            return scale * losses.contrastive(distance, label, MARGIN)

        return all_pairs_loss(x, (CLASSES, AGES), labels=rule, loss=loss, **ENGINES[engine])

    def want(x):
        distance = np.linalg.norm(x[:, None] - x, axis=2)
        each = (1 - grades) * distance**2 + grades * np.maximum(0, MARGIN - distance) ** 2
        return (each * counts).sum() / counts.sum()

    got, (gradient, by_scale) = jax.jit(jax.value_and_grad(value, (0, 1)))(X, 1.0)
    np.testing.assert_allclose([got, by_scale], want(X.astype(float)), rtol=1e-5)
    by = _numerical(want, X.astype(float))
    np.testing.assert_allclose(gradient, by, rtol=1e-4, atol=2e-5 * abs(by).max())


# One loss of each type; the others, whose formulas take the same way, with `--long`.
QUICK = {
    ("supcon", "dense", "groups"),
    ("supcon", "sweep", "groups"),
    ("multi_similarity", "dense", "function"),
    ("triplet_hard", "dense", "groups"),
    ("triplet_hard", "sweep", "function"),
    ("margin_by_class", "dense", "groups"),
    ("triplet_semi_hard", "dense", "groups"),
    ("triplet_semi_hard", "sweep", "function"),
    ("supcon", "autodiff", "groups"),
    ("triplet_semi_hard", "autodiff", "groups"),
    ("angular", "dense", "function"),
    ("angular", "sweep", "function"),
    ("smooth_ap", "dense", "groups"),
}


@pytest.mark.parametrize(
    ("name", "engine", "rule"),
    [
        pytest.param(*case, marks=[] if case in QUICK else pytest.mark.long)
        for case in itertools.product(ANCHOR_LOSSES, ENGINES, RULES)
    ],
)
def test_losses_of_anchors(name, engine, rule, longer):
    label, attributes, table = RULES[rule]
    loss, data = getattr(losses, name)(), ()
    if isinstance(loss, losses.TripletLoss):
        loss = loss._replace(positives_per_pass=2)  # half the program, and more passes
    if name == "margin_by_class":
        data = (np.full(ROWS, 1.2, np.float32),)
    x = _embeddings(rule)
    clean = np.where((table == -2).all(1)[:, None], 0, X).astype(float)

    def value(x):
        options = ENGINES[engine] | {"labels": label, "data": data}
        options["refine"] = longer or name in ("supcon", "triplet_semi_hard")
        return anchor_loss(x, attributes, loss=loss, **options)

    def want(x):
        further = {"boundaries": data[0]} if data else {}
        further |= {"frozen": clean} if name == "circle" else {}
        return getattr(numpy_losses, name)(x, table, **further)

    got, gradient = jax.jit(jax.value_and_grad(value))(x)
    np.testing.assert_allclose(got, want(clean), rtol=1e-4)
    way = RNG.standard_normal(X.shape) * ~(table == -2).all(1)[:, None]
    slope = (want(clean + 1e-6 * way) - want(clean - 1e-6 * way)) / 2e-6
    assert abs(slope) > 1e-3
    np.testing.assert_allclose((gradient * way).sum(), slope, rtol=2e-3)


def test_a_maximum_whose_value_depends_on_the_label():
    """The gradient of a maximum alone is computed from the labels of the pairs that gave it."""
    label, attributes, table = RULES["function"]

    def farthest(distance, label):
        return statistics.largest(jnp.where(label == 0, 2 * distance, distance))

    loss = losses.AnchorLoss(lambda result: losses.Mean(result, 1.0), (farthest,))
    loss = loss._replace(distance=distances.euclidean)

    def want(x):
        distance = np.linalg.norm(x[:, None] - x, axis=2)
        counts = (table >= 0) & ~np.eye(ROWS, dtype=bool)
        return np.where(counts, (1 + (table == 0)) * distance, 0).max(1).mean()

    def value(x):
        return anchor_loss(x, attributes, labels=label, loss=loss, tile=TILE)

    got, gradient = jax.jit(jax.value_and_grad(value))(X)
    np.testing.assert_allclose(got, want(X.astype(float)), rtol=1e-5)
    by = _numerical(want, X.astype(float))
    np.testing.assert_allclose(gradient, by, rtol=1e-4, atol=1e-5)


@cache
def _table_program():
    """Value and gradient for any labels of all pairs, traced, which the function closes over."""

    @jax.jit
    def program(x, table):
        def sums(x):
            result = all_pairs_sums(
                x, INDICES, labels=lambda a, b: table[a, b], margin=MARGIN, tile=TILE
            )
            return result.loss.sum(), result

        return jax.grad(sums, has_aux=True)(x)

    return program


INDICES = np.arange(ROWS)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    shares=st.sampled_from([(1, 1, 1), (0, 1, 9), (1, 0, 0), (0, 0, 1), (0, 1, 0), (9, 1, 0)]),
    scale=st.sampled_from([1e-4, 1.0]),
)
def test_any_labels(seed, shares, scale):
    rng = np.random.default_rng(seed)
    table = np.triu(rng.choice([-1, 0, 1], (ROWS, ROWS), p=np.array(shares) / sum(shares)))
    table = (np.triu(table, 1) + np.triu(table, 1).T).astype(np.int32)
    x = rng.standard_normal((ROWS, SIZE)).astype(np.float32)
    x[::2] = scale * x[::2] + x[0]
    gradient, result = _table_program()(x, table)
    np.testing.assert_allclose(result, _sums(x, table), rtol=1e-5)
    way = rng.standard_normal(x.shape)
    moved = [_sums(x + by * way, table)[0].sum() for by in (1e-6, -1e-6)]
    slope = (moved[0] - moved[1]) / 2e-6
    np.testing.assert_allclose((gradient * way).sum(), slope, rtol=2e-4, atol=2e-4 * abs(way).sum())


@pytest.mark.parametrize("engine", ["dense", "sweep"])
def test_the_same_as_classes(engine):
    def value(x, **options):
        return all_pairs_loss(x, CLASSES, margin=MARGIN, **ENGINES[engine], **options)

    x = _embeddings("groups")
    by_classes, by_labels = (
        jax.jit(jax.value_and_grad(partial(value, **options)))(x)
        for options in ({}, {"labels": labels.same_class()})
    )
    np.testing.assert_allclose(by_labels[0], by_classes[0], rtol=1e-6)
    np.testing.assert_allclose(by_labels[1], by_classes[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["all pairs", "supcon", "triplet_hard", "triplet_all"])
def test_a_row_without_a_distance_that_is_left_out(name):
    """The distance of a row outside of the Poincare ball is NaN, and so are its derivatives."""
    x = (0.15 * RNG.standard_normal((ROWS, SIZE))).astype(np.float32)
    x[7] *= 20
    counts = np.arange(ROWS) != 7

    def label(a, b):
        differ = (a["class"] != b["class"]).astype(jnp.int32)
        return jnp.where(a["counts"] & b["counts"], differ, -1)

    def value(x, own, label):
        options = {"distance": distances.poincare, "tile": TILE, "labels": label}
        if name == "all pairs":
            return all_pairs_loss(x, own, reduction="mean", **options)
        return anchor_loss(x, own, loss=getattr(losses, name)(), **options)

    attributes = {"class": np.arange(ROWS) % 4, "counts": counts}
    run = jax.jit(jax.value_and_grad(partial(value, label=label)))
    loss, gradient = run(x, jax.tree.map(jnp.asarray, attributes))
    run = jax.jit(jax.value_and_grad(partial(value, label=labels.same_class())))
    expected_loss, expected = run(x[counts], jnp.asarray(attributes["class"][counts]))
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    np.testing.assert_allclose(gradient[counts], expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(gradient[7], 0)


@pytest.mark.parametrize("near", [0, 1])
@pytest.mark.parametrize("engine", ["dense", "sweep"])
def test_distances_keep_their_digits(engine, near):
    """Close pairs of any label, in clusters far from each other."""
    rng = np.random.default_rng(2)
    centres = 10 * rng.standard_normal((3, 16))
    x = (centres[INDICES % 3] + 1e-3 * rng.standard_normal((ROWS, 16))).astype(np.float32)

    def value(x):
        return all_pairs_loss(
            x,
            INDICES % 3,
            labels=lambda a, b: jnp.where(a == b, near, 1 - near),
            loss=lambda distance, label: jnp.where(label == near, distance, 0),
            reduction="sum",
            **ENGINES[engine],
        )

    apart = x[:, None].astype(float) - x
    distance = np.linalg.norm(apart, axis=2) + np.eye(ROWS)
    close = (INDICES[:, None] % 3 == INDICES % 3) & ~np.eye(ROWS, dtype=bool)
    got, gradient = jax.jit(jax.value_and_grad(value))(x)
    np.testing.assert_allclose(got, distance[close].sum(), rtol=1e-5)
    want = 2 * (np.where(close, 1 / distance, 0)[..., None] * apart).sum(1)
    np.testing.assert_allclose(gradient, want, atol=1e-4 * abs(want).max())


def _local(name, x, *attributes, axis_name=None, refine=False):
    """A loss of labelled pairs, of the rows of all devices."""
    options = {"labels": RULES["groups"][0], "axis_name": axis_name, "tile": TILE}
    if name == "pairs":
        return all_pairs_loss(x, attributes, margin=MARGIN, reduction="balanced", **options)
    # Close pairs are measured again on devices in test_anchor_losses.py, and here with --long.
    return anchor_loss(x, attributes, loss=getattr(losses, name)(), refine=refine, **options)


@cache
def _on_one_device(name):
    arguments = _embeddings("groups"), CLASSES, GROUPS
    return jax.jit(jax.value_and_grad(partial(_local, name)))(*arguments)


@pytest.mark.parametrize(
    ("name", "devices", "strategy"),
    [
        ("pairs", 4, "pmap"),
        ("supcon", 4, "shard_map"),
        ("angular", 2, "shard_map"),
        *[
            pytest.param(*case, marks=pytest.mark.long)
            for case in (
                ("pairs", 3, "shard_map"),
                ("pairs", 4, "vmap"),
                ("pairs", 8, "shard_map"),
                ("supcon", 3, "pmap"),
                ("triplet_hard", 4, "pmap"),
                ("triplet_semi_hard", 2, "pmap"),
                ("triplet_semi_hard", 4, "shard_map"),
                ("angular", 4, "pmap"),
            )
        ],
    ],
)
def test_devices_equal_one(name, devices, strategy, longer):
    def local(*arguments):
        own = partial(_local, name, axis_name=AXIS, refine=longer)
        return jax.value_and_grad(own)(*arguments)

    arguments = _embeddings("groups"), CLASSES, GROUPS
    values, gradient = _mapped(local, devices, strategy, arguments)
    want, by = _on_one_device(name)
    np.testing.assert_allclose(values, np.full(devices, want), rtol=1e-5)
    scale = abs(by).max()
    np.testing.assert_allclose(gradient.reshape(by.shape), by, rtol=1e-5, atol=1e-5 * scale)


def test_values_that_devices_share():
    """A table that the labels close over is the same on every device, and is marked for them."""
    table = jnp.asarray(RULES["function"][2], jnp.int32)

    def local(x, indices, axis_name=None):
        def value(x):
            rule = lambda a, b: table[a, b]  # noqa: E731
            options = {"axis_name": axis_name, "tile": TILE, "refine": False}
            return all_pairs_loss(x, indices, labels=rule, **options)

        return jax.value_and_grad(value)(x)

    want, by = jax.jit(local)(X, INDICES)
    values, gradient = _mapped(partial(local, axis_name=AXIS), 2, "shard_map", (X, INDICES))
    np.testing.assert_allclose(values, np.full(2, want), rtol=1e-5)
    np.testing.assert_allclose(gradient.reshape(by.shape), by, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("engine", ["dense", "sweep"])
def test_mapped_over_batches(engine):
    label, (classes, groups), _ = RULES["groups"]
    both = np.stack([classes, np.roll(classes, 3)]), np.stack([groups, np.roll(groups, 3)])
    x = np.stack([X, np.roll(X, 3, axis=0)])

    def value(x, *attributes):
        options = {"labels": label, "margin": MARGIN} | ENGINES[engine]
        return jax.value_and_grad(lambda x: all_pairs_loss(x, attributes, **options))(x)

    values, gradients = jax.jit(jax.vmap(value))(x, *both)
    # The same batch in another order of rows.
    np.testing.assert_allclose(values[1], values[0], rtol=1e-5)
    np.testing.assert_allclose(gradients[1], np.roll(gradients[0], 3, axis=0), atol=1e-6)
    loss, pairs, *_ = _sums(X, RULES["groups"][2])
    np.testing.assert_allclose(values[0], loss.sum() / pairs.sum(), rtol=1e-5)


@pytest.mark.parametrize("name", ["pairs", "supcon", "triplet_semi_hard"])
def test_second_derivatives(name):
    label, attributes, _ = RULES["function"]
    attributes = jax.tree.map(lambda leaf: leaf[:8], attributes)

    def value(x):
        if name == "pairs":
            return all_pairs_loss(x, attributes, labels=label, margin=3.0)
        return anchor_loss(x, attributes, labels=label, loss=getattr(losses, name)())

    with jax.enable_x64(True):
        x = jnp.asarray(RNG.standard_normal((8, 3)))
        _assert_curvature(value, x, np.random.default_rng(0), backward=name == "pairs")


def test_memory_is_linear():
    def temporary(rows, function):
        def value(x, classes, groups):
            return function(x, (classes, groups), labels=RULES["groups"][0])

        shapes = [((rows, 64), "float32"), ((rows,), "int32"), ((rows,), "int32")]
        arguments = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
        compiled = jax.jit(jax.value_and_grad(value)).lower(*arguments).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    temporary = cache(temporary)
    triplets = partial(anchor_loss, loss=losses.triplet_all()._replace(positives_per_pass=1))
    for function in (all_pairs_loss, triplets):
        assert temporary(32768, function) < 4 * temporary(8192, function) + 8e6
    assert temporary(8192, all_pairs_loss) < 32e6


def test_online_hard_loss_and_miners():
    label, attributes, table = RULES["groups"]
    x, clean = _embeddings("groups"), X.astype(float)
    counts = (table >= 0) & ~np.eye(ROWS, dtype=bool)
    distance = np.linalg.norm(clean[:, None] - clean, axis=2)
    positive, negative = (table == 0) & counts, table == 1
    hard = np.where(
        negative,
        distance < distance[positive].max(),
        positive & (distance > distance[negative].min()),
    )
    each = np.where(negative, np.maximum(0, MARGIN - distance), distance) ** 2 * hard
    got = mining.online_hard_loss(
        x, attributes, labels=label, loss=losses.contrastive, margin=MARGIN, tile=TILE
    )
    np.testing.assert_allclose(got, each.sum(), rtol=1e-5)
    value = anchor_loss(x, attributes, labels=label, loss=mining.hard(losses.contrastive))
    farthest = [distance[i][own].max() for i, own in enumerate(positive) if own.any()]
    nearest = [distance[i][own].min() for i, own in enumerate(negative) if own.any()]
    values = [one**2 for one in farthest] + [max(0, 1 - one) ** 2 for one in nearest]
    np.testing.assert_allclose(value, np.mean(values), rtol=1e-5)

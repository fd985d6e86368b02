"""The matrix of all distances of small batches against float64 NumPy, and where it is chosen.

`pytest --dense` runs the tests of the sweep over tiles on it too.
"""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contrastive_jax import (
    all_pairs_loss,
    all_pairs_sums,
    anchor_loss,
    distances,
    losses,
    statistics,
)
from contrastive_jax._engine import (
    close_pairs,
    dense,
    dense_triplets,
    matrix_statistics,
    squared_distances,
)
from contrastive_jax._engine.close_pairs import Rows
from contrastive_jax._engine.distance_matrix import (
    Metric,
    distance_matrix,
)
from contrastive_jax._engine.matmul import as_product

FACTOR = np.random.default_rng(9).standard_normal((5, 6)).astype(np.float32)


def _cosine(a, b):
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    half = a / np.linalg.norm(a, axis=-1)[..., None] - b / np.linalg.norm(b, axis=-1)[..., None]
    return np.where(lengths > 0, (half**2).sum(-1) / 2, 1.0)


DISTANCES = {
    "euclidean": (distances.euclidean, lambda a, b: np.linalg.norm(a - b, axis=-1)),
    "squared_euclidean": (distances.squared_euclidean, lambda a, b: ((a - b) ** 2).sum(-1)),
    "cosine": (distances.cosine, _cosine),
    "mahalanobis": (
        functools.partial(distances.mahalanobis, factor=FACTOR),
        lambda a, b: np.linalg.norm((a - b) @ FACTOR.astype(float).T, axis=-1),
    ),
    "signal_to_noise": (
        distances.signal_to_noise,
        lambda a, b: (a - b).var(-1) / np.broadcast_to(a, (a - b).shape).var(-1),
    ),
}


def _by_difference(chosen):
    """Chooses the way of a GPU for a small batch, or that of other devices."""
    return mock.patch.object(squared_distances, "fit_differences", return_value=chosen)


# As users compile, whatever the tests of this session do: XLA fuses products with sums then.
AS_USERS = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
if jax.__version_info__ < (0, 11):
    AS_USERS["xla_cpu_use_fusion_emitters"] = True


@functools.lru_cache
def _program(name, one_set, by_difference=False, symmetric=False):
    distance, _ = DISTANCES[name]
    product, bound = as_product(distance)
    metric = Metric(getattr(distance, "func", distance), product, True, "highest", symmetric)
    factor = tuple(jnp.asarray(value) for value in bound.values())

    def total(x, y, weights, x_classes, y_classes):
        columns, others = (None, None) if one_set else (y, y_classes)
        matrix = distance_matrix(metric, x, columns, factor, x_classes, others).distances
        return jnp.sum(weights * matrix), matrix

    options = AS_USERS if by_difference else None
    return jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True), compiler_options=options)


@functools.cache
def _by_autodiff(name):
    distance = DISTANCES[name][0]

    def total(a, b, weights):
        return jnp.sum(weights * jax.vmap(jax.vmap(distance, (None, 0)), (0, None))(a, b))

    return jax.jit(jax.grad(total, (0, 1)))


def _derivative(name, x, y, weights):
    """Gradients of a weighted sum of the scalar distances, by autodiff in float64."""
    with jax.enable_x64(True):
        return [
            np.asarray(one) for one in _by_autodiff(name)(x.astype(float), y.astype(float), weights)
        ]


def _assert_right(name, x, y=None, by_difference=False, symmetric=False):
    """Every distance to 1e-4, and the gradient of a weighted sum to 1e-4 of its largest entry."""
    one_set = y is None
    columns = x if one_set else y
    weights = np.random.default_rng(1).uniform(-1, 1, (len(x), len(columns))).astype(np.float32)
    weights = weights + weights.T if symmetric else weights
    weights = weights * ~np.eye(len(x), dtype=bool) if one_set else weights
    classes, others = np.zeros(len(x), np.int32), np.zeros(len(columns), np.int32)
    program = _program(name, one_set, by_difference, symmetric)
    with _by_difference(by_difference):
        (_, matrix), gradient = program(x, columns, weights, classes, others)
    pairs = ~np.eye(len(x), dtype=bool) if one_set else np.ones(matrix.shape, bool)
    expected = DISTANCES[name][1](x.astype(float)[:, None], columns.astype(float)[None])
    # Chords are right from 1e-6 on, and so are cosine distances from half of their square.
    least = 5e-13 if name == "cosine" else 0
    np.testing.assert_allclose(matrix[pairs], expected[pairs], rtol=1e-4, atol=1e-4 * least + 1e-37)
    want = _derivative(name, x, columns, weights.astype(float))
    got = [np.asarray(one, float) for one in gradient]
    if one_set:
        want, got = [want[0] + want[1]], got[:1]
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * np.abs(b).max())


def _plane(rng, size=40):
    """A cloud of two dimensions, in which every point is close to some others."""
    return np.pad(rng.uniform(-1, 1, (size, 2)), ((0, 0), (0, 4)))


def _chain(rng, size=40):
    """Points along a curve, each of which is close to the next."""
    angle = np.linspace(0, 3, size)[:, None]
    curve = [np.cos(angle), np.sin(angle), angle / 3, 0 * angle, 0 * angle, 0 * angle]
    return np.concatenate(curve, axis=1)[rng.permutation(size)] + 2


def _clusters(rng, size=40, spread=1e-4):
    return rng.standard_normal((5, 6))[rng.integers(0, 5, size)] + spread * rng.standard_normal(
        (size, 6)
    )


def _nested(rng, size=40):
    """Clusters of clusters of clusters, down to the last digits."""
    index = rng.integers(0, 3, (3, size))
    return sum(
        scale * rng.standard_normal((3, 6))[one]
        for scale, one in zip((1, 1e-3, 1e-6), index, strict=True)
    ) + 1e-7 * rng.standard_normal((size, 6))


@pytest.mark.parametrize("name", DISTANCES)
@pytest.mark.parametrize("cloud", [_plane, _chain, _clusters, _nested])
def test_distances_and_gradients_keep_their_digits(name, cloud):
    if name == "signal_to_noise" and cloud is _plane:
        pytest.skip("the entries of such points hardly vary")
    rng = np.random.default_rng(3)
    x = cloud(rng).astype(np.float32)
    _assert_right(name, x)
    if name != "signal_to_noise":
        _assert_right(name, x, symmetric=True)
    y = np.concatenate([x[:7] + np.float32(1e-5), cloud(rng).astype(np.float32)[:12]])
    _assert_right(name, x, y)


@pytest.mark.parametrize("one_set", [False, True])
def test_gradients_of_products(one_set):
    rng = np.random.default_rng(3)
    x = rng.standard_normal((9, 6)).astype(np.float32)
    y = x if one_set else rng.standard_normal((12, 6)).astype(np.float32)
    weights = rng.standard_normal((len(x), len(y))).astype(np.float32)
    metric = Metric(
        distances.negative_dot, as_product(distances.negative_dot)[0], True, "highest", False
    )
    classes, others = jnp.zeros(len(x), int), jnp.zeros(len(y), int)

    def total(x, y):
        columns = (None, None) if one_set else (y, others)
        pairs = distance_matrix(metric, x, columns[0], (), classes, columns[1])
        return jnp.sum(weights * jnp.where(pairs.counts, pairs.distances, 0))

    by_x, by_y = jax.jit(jax.grad(total, (0, 1)))(x, y)
    weights = weights.astype(float) * ~np.eye(len(x), dtype=bool) if one_set else weights
    want = -weights @ y.astype(float), -weights.T @ x.astype(float)
    if one_set:
        want = want[0] + want[1], np.zeros_like(by_y)
    np.testing.assert_allclose(by_x, want[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(by_y, want[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["euclidean", "squared_euclidean", "cosine"])
@pytest.mark.parametrize("cloud", [_chain, _nested])
def test_differences_on_a_gpu_keep_their_digits(name, cloud):
    rng = np.random.default_rng(3)
    x = cloud(rng).astype(np.float32)
    _assert_right(name, x, by_difference=True)
    y = np.concatenate([x[:7] + np.float32(1e-5), cloud(rng).astype(np.float32)[:12]])
    _assert_right(name, x, y, by_difference=True)


@pytest.mark.parametrize("name", ["euclidean", "squared_euclidean", "cosine"])
@pytest.mark.parametrize("cloud", [_chain, _clusters, _nested])
@pytest.mark.parametrize("width", [2, 4])
def test_differences_of_few_entries_keep_their_digits(name, cloud, width):
    rng = np.random.default_rng(3)
    x = cloud(rng)[:, :width].astype(np.float32)
    _assert_right(name, x, by_difference=True)
    _assert_right(name, x, by_difference=True, symmetric=True)
    y = np.concatenate([x[:7] + np.float32(1e-5), cloud(rng)[:12, :width].astype(np.float32)])
    _assert_right(name, x, y, by_difference=True)


@pytest.mark.parametrize("loss", [losses.supcon(0.1), losses.triplet_hard(0.2)])
def test_a_map_of_few_entries_has_no_loop(loss):
    """Embeddings in the plane, of which many are close, are computed from their differences."""
    classes = np.arange(20) // 4

    def loops(width):
        x = np.ones((20, width), np.float32)
        program = jax.jit(jax.grad(lambda x: anchor_loss(x, classes, loss=loss)))
        return program.lower(x).as_text().count("while")

    assert loops(2) == loops(4) == 0
    if jax.default_backend() == "cpu":
        assert loops(5) > 0


def test_pairs_as_close_as_the_rounding_of_directions_take_few_rounds():
    """Half of these squares are above the rounding of a direction, and half of them below."""
    rng = np.random.default_rng(2)
    x = rng.standard_normal((1, 64)) + 2.5e-3 * rng.standard_normal((200, 64))
    x = jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), jnp.float32)
    product, _ = as_product(distances.cosine)
    metric = Metric(distances.cosine, product, True, "highest", False)
    rows = Rows(x, product.points(x), None)
    classes = jnp.zeros(200, jnp.int32)
    pairs, residuals = squared_distances._forward(metric, rows, None, (), classes, None, None)
    bound = 128 * np.finfo(np.float32).eps / 2
    share = np.mean(np.asarray(pairs.distances)[~np.eye(200, dtype=bool)] < bound)
    assert 0.1 < share < 0.9
    assert residuals.end_round - close_pairs.FIRST_ROUND in (1, 2, 3)


@pytest.mark.parametrize("width", [3, 6])
def test_a_loss_by_differences(width):
    """Equal rows, vectors without direction, rows that do not count: as by products."""
    x = np.random.default_rng(4).standard_normal((20, width)).astype(np.float32)
    x[3], x[5], x[9] = x[2], 0, 0
    classes = np.arange(20) // 4
    classes[7] = -1

    def value(x):
        by_cosine = anchor_loss(x, classes, loss=losses.supcon(0.1))
        two_sets = anchor_loss(x[:8], classes[:8], x[8:], classes[8:] - 2, loss=losses.nca())
        return by_cosine + two_sets + all_pairs_loss(x, classes, margin=1.5)

    with _by_difference(False):
        both = [jax.jit(jax.value_and_grad(value))(x)]
    with _by_difference(True):
        program = jax.jit(jax.value_and_grad(lambda x: value(x)))
        assert "while" not in program.lower(x).as_text()
        both.append(program(x))
    for a, b in zip(*map(jax.tree.leaves, both), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    spread=st.sampled_from([1.0, 1e-2, 1e-4, 1e-6]),
    offset=st.sampled_from([0.0, 1.0, 30.0]),
    scale=st.sampled_from([1e-9, 1.0, 1e9]),
)
def test_clusters_of_any_size(seed, spread, offset, scale):
    rng = np.random.default_rng(seed)
    x = (scale * (_clusters(rng, spread=spread) + offset)).astype(np.float32)
    _assert_right("euclidean", x)


def test_duplicates_and_a_single_point():
    x = np.repeat(np.random.default_rng(4).standard_normal((4, 6)).astype(np.float32), 10, axis=0)
    weights = np.ones((40, 40), np.float32)
    classes = np.zeros(40, np.int32)
    (_, matrix), gradient = _program("euclidean", True)(x, x, weights, classes, classes)
    same = (np.arange(40)[:, None] // 10 == np.arange(40) // 10) & ~np.eye(40, dtype=bool)
    assert (np.asarray(matrix)[same] == 0).all()
    assert np.isfinite(gradient[0]).all()
    one = jnp.ones((40, 6))
    value, gradient = jax.value_and_grad(lambda x: all_pairs_loss(x, classes, margin=1.0))(one)
    assert value == 0
    assert (np.asarray(gradient) == 0).all()


def _names(function, *arguments):
    """Names of the primitives of a function, inside of others too."""

    def visit(jaxpr):
        for equation in jaxpr.eqns:
            yield equation.primitive.name
            for inner in jax.tree.leaves(
                [*equation.params.values()], is_leaf=lambda leaf: hasattr(leaf, "jaxpr")
            ):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from visit(inner)

    return {*visit(jax.make_jaxpr(function)(*arguments).jaxpr)}


@pytest.mark.sweep
def test_it_is_chosen_by_shape():
    def value(x, classes, *others, **options):
        return all_pairs_loss(x, classes, *others, **options)

    largest = dense.largest_side()
    classes = np.zeros(largest + 1, np.int32)
    x = np.zeros((largest + 1, 8), np.float32)
    small, large = (x[:-1], classes[:-1]), (x, classes)
    assert "sort" not in _names(value, *small)
    assert "sort" not in _names(value, *small, *small)
    assert "sort" in _names(value, *large)
    assert "sort" in _names(value, *small, *large)
    assert "sort" in _names(functools.partial(value, tile=512), *small)
    # The number of pairs counts, on whichever side the rows are.
    few, many = (x[:8], classes[:8]), (np.tile(x[:-1], (4, 1)), np.tile(classes[:-1], 4))
    assert "sort" not in _names(value, *few, *many)
    assert "sort" not in _names(value, *many, *few)
    longest = np.zeros((dense.LONGEST + 1, 8), np.float32), np.zeros(dense.LONGEST + 1, np.int32)
    assert "sort" in _names(value, *few, *longest)
    anchors = functools.partial(anchor_loss, loss=losses.supcon(0.1))
    assert "sort" not in _names(anchors, *small)
    assert "sort" in _names(anchors, *large)
    # A distance without a product needs the differences of all pairs.
    wide = np.zeros((largest, 32), np.float32)
    manhattan = functools.partial(value, distance=distances.manhattan)
    assert "sort" in _names(manhattan, wide, classes[:-1])
    assert "sort" not in _names(manhattan, wide[:256], classes[:256])


@pytest.mark.parametrize("loss", [losses.supcon(0.1), losses.triplet_hard(0.2)])
def test_mapped_and_alone(loss):
    rng = np.random.default_rng(5)
    x = rng.standard_normal((3, 24, 6)).astype(np.float32)
    x[1, 3] = x[1, 2] + np.float32(1e-4)
    classes = np.arange(24) // 3
    each = jax.jit(jax.value_and_grad(lambda x: anchor_loss(x, classes, loss=loss)))
    mapped = jax.jit(jax.vmap(each))(x)
    for k in range(3):
        for a, b in zip(jax.tree.leaves(mapped), jax.tree.leaves(each(x[k])), strict=True):
            np.testing.assert_allclose(a[k], b, rtol=2e-5, atol=1e-6)


def test_the_largest_of_equal_values_is_one():
    """The derivative of an extreme is that of one pair, also where several give it."""
    x = jnp.asarray([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [5.0, 5.0]])
    classes = np.array([0, 0, 0, 1])

    def value(x, **options):
        loss = losses.triplet_hard(9.0)
        return anchor_loss(x, classes, loss=loss, reduction="sum", **options)

    both = [
        jax.jit(jax.grad(functools.partial(value, **options)))(x) for options in ({}, {"tile": 8})
    ]
    norms = [np.linalg.norm(np.asarray(one), axis=1) for one in both]
    np.testing.assert_allclose(np.sort(norms[0][1:3]), np.sort(norms[1][1:3]), rtol=1e-5)


def test_a_first_row_that_does_not_count_leaves_no_trace():
    """Also not in the derivative of a loss that has none at the distance 1."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((8, 4)), jnp.float32)
    classes = np.array([-1, 1, 0, 1, 2, 2, 1, 0])

    def loss(distance, label, margin):
        return jnp.sqrt(jnp.abs(distance - margin))

    def value(margin, **options):
        return all_pairs_loss(x, classes, loss=loss, margin=margin, **options)

    both = [
        jax.jit(jax.grad(functools.partial(value, **options)))(1.0) for options in ({}, {"tile": 8})
    ]
    np.testing.assert_allclose(*both, rtol=1e-5)


@pytest.mark.parametrize(
    "distance", [distances.euclidean, distances.cosine, distances.negative_dot]
)
@pytest.mark.parametrize("classes", [[0, 0, 1, -1], [-1, 2, -1, -1]])
@pytest.mark.parametrize("width", [3, 6])
def test_a_vector_that_is_not_finite_shows(distance, classes, width):
    """Also where it has no partner, or the loss leaves its distances out."""

    def loss(distance, label):
        return jnp.where(distance < 0.5, distance, 0.0)

    x = np.random.default_rng(6).standard_normal((4, width)).astype(np.float32)
    value = functools.partial(all_pairs_loss, loss=loss, distance=distance)
    ignored, counted = x.copy(), x.copy()
    ignored[3], counted[1, 2] = np.nan, np.inf
    assert np.isfinite(jax.jit(value)(jnp.asarray(ignored), jnp.asarray(classes)))
    assert np.isnan(jax.jit(value)(jnp.asarray(counted), jnp.asarray(classes)))


@pytest.mark.parametrize("width", [3, 6])
def test_a_vector_whose_square_overflows(width):
    """It is finite, and farther from the others than the margin."""
    x = np.random.default_rng(6).standard_normal((8, width)).astype(np.float32)
    classes = np.array([0, 0, 1, 2, 1, 3, 4, 4])

    def value(x, classes):
        return all_pairs_loss(x, classes, margin=1.0, reduction="sum")

    both = jax.jit(jax.value_and_grad(value))
    far = x.copy()
    far[3] *= np.float32(1e25)
    others = np.arange(8) != 3
    (got, gradient), (want, without) = both(far, classes), both(x[others], classes[others])
    np.testing.assert_allclose(got, want, rtol=1e-6)
    np.testing.assert_allclose(gradient[others], without, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(gradient[3], 0)


def test_origins_of_the_longest_side():
    size = dense.LONGEST
    related = jnp.zeros((size, 2), bool).at[size - 1].set(True).at[5, 1].set(True)
    for index in (1, 2, 511, size):
        rows, columns = close_pairs.origins_of_round(False, jnp.int32(index), related)
        assert columns[0] == size - 1
        assert columns[1] in (5, size - 1)
        assert rows[size - 1] in (5, size - 1)


def test_an_entry_of_minus_infinity_has_no_derivative():
    """A row of them alone has a largest value that is no distance."""
    value = jnp.array([[-jnp.inf, 1.0], [-jnp.inf, -jnp.inf]])
    where = jnp.array([[True, True], [True, False]])

    def total(value):
        pairs = statistics.largest(value, where)
        return jnp.sum(matrix_statistics._reduced(where, value.dtype, pairs))

    np.testing.assert_array_equal(jax.grad(total)(value), [[0, 1], [0, 0]])


@pytest.mark.parametrize("labels", [None, lambda a, b: jnp.where(a == b, 0, 1)])
def test_a_vector_of_nan_is_no_positive_of_every_anchor(labels):
    """Anchors take as many rounds as they have positives. The label of such a pair is lost."""
    x = np.random.default_rng(3).standard_normal((4, 6)).astype(np.float32)
    x[1] = np.nan
    y = np.random.default_rng(4).standard_normal((24, 6)).astype(np.float32)
    counts = []

    def record(positive):
        jax.debug.callback(counts.append, jnp.max(jnp.sum(positive, axis=1)))
        return numbered(positive)

    numbered = dense_triplets._ordinals_by_row
    with mock.patch.object(dense_triplets, "_ordinals_by_row", record):
        loss = losses.triplet_all(0.21)
        arguments = np.arange(4), y, np.arange(24) // 3
        value = jax.jit(lambda x: anchor_loss(x, *arguments, loss=loss, labels=labels))(x)
        jax.effects_barrier()
    assert np.isnan(value)
    assert counts == [3]


@pytest.mark.sweep
def test_triplets_of_small_batches_take_no_sort():
    x, classes = jnp.ones((24, 6)), jnp.arange(24) // 3
    for loss in (losses.triplet_all(0.2), losses.triplet_semi_hard(0.2), losses.smooth_ap(0.1)):
        value = functools.partial(anchor_loss, loss=loss)
        assert "sort" not in _names(jax.grad(value), x, classes)


@pytest.mark.parametrize("others", [0, 7, 11])
def test_triplets_of_classes_of_several_sizes(others):
    """The positives of each anchor, taken one at a time, are those of a loop over triplets."""
    rng = np.random.default_rng(8)
    x = rng.standard_normal((9, 4)).astype(np.float32)
    classes = np.array([1, 0, 1, 2, -1, 1, 0, 1, 3])
    y = rng.standard_normal((others, 4)).astype(np.float32) if others else x
    columns = np.array([0, 1, -1, 1, 2, 2, 5, 1, 0, 3, 1])[:others] if others else classes
    arguments = (x, classes, y, columns) if others else (x, classes)
    lengths = np.linalg.norm(x[:, None].astype(float) - y[None], axis=2)
    expected = 0.0
    for i, p, n in np.ndindex(len(x), len(y), len(y)):
        is_triplet = classes[i] == columns[p] != columns[n] and (others or i != p)
        if is_triplet and min(classes[i], columns[n]) >= 0:
            expected += max(0, lengths[i, p] - lengths[i, n] + 0.2)
    got = anchor_loss(*arguments, loss=losses.triplet_all(0.2), reduction="sum")
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize("classes", [[0], [-1, -1, 3], [-1, -1]])
def test_no_pair_that_counts(classes):
    def unsafe(a, b):
        return jnp.sqrt(jnp.sum((a - b) ** 2))

    x = jnp.ones((len(classes), 4))
    for distance in (unsafe, distances.euclidean, distances.cosine):
        value, gradient = jax.jit(
            jax.value_and_grad(
                lambda x, d=distance: all_pairs_loss(x, np.array(classes), distance=d, margin=1.0)
            )
        )(x)
        assert value == 0
        assert (np.asarray(gradient) == 0).all()


def test_the_gradient_of_a_factor_far_from_the_origin():
    rng = np.random.default_rng(2)
    x = (rng.standard_normal((12, 6)) + 1e4).astype(np.float32)
    classes = np.arange(12) // 3

    def value(factor, x):
        distance = functools.partial(distances.mahalanobis, factor=factor)
        return all_pairs_loss(x, classes, distance=distance, margin=1.0)

    gradient = jax.jit(jax.grad(value))
    got = gradient(FACTOR, x)
    with jax.enable_x64(True):
        want = gradient(FACTOR.astype(float), x.astype(float))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_cosines_of_the_longest_vectors():
    x = np.random.default_rng(3).standard_normal((8, 4)).astype(np.float32)
    classes = np.arange(8) // 2

    def value(x):
        return all_pairs_loss(x, classes, distance=distances.cosine, margin=1.0)

    np.testing.assert_allclose(value(x * np.float32(1e38) / 4), value(x), rtol=1e-5)


@pytest.mark.parametrize("value", [np.inf, np.nan, -np.nan])
def test_pairs_of_a_vector_that_is_not_finite_keep_their_labels(value):
    """The sign of a NaN is no label."""
    x = np.random.default_rng(1).standard_normal((16, 5)).astype(np.float32)
    x[3] = value
    classes = np.arange(16) // 4
    sums = jax.jit(functools.partial(all_pairs_sums, classes=classes))(x)
    np.testing.assert_array_equal(sums.pairs, [48, 192])


def test_a_log_sum_exp_of_no_pairs_leaves_no_nan():
    """The cotangent of -inf may be NaN, and is that of no pair."""

    def squared(result):
        return losses.Mean(jnp.where(result == -jnp.inf, 0.0, result**2), 1.0)

    def positives(distance, label):
        return statistics.log_sum_exp(-distance, label == 0)

    loss = losses.AnchorLoss(squared, (positives,))
    x, classes = np.float32([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]]), np.array([0, 0, 1])
    value = functools.partial(anchor_loss, classes=classes, loss=loss)
    gradients = [
        jax.jit(jax.grad(functools.partial(value, **options)))(x)
        for options in ({}, {"tile": 8}, {"method": "autodiff"})
    ]
    assert np.isfinite(gradients[0]).all()
    for gradient in gradients[1:]:
        np.testing.assert_allclose(gradients[0], gradient, rtol=1e-5, atol=1e-6)

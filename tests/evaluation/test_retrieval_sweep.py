"""Retrieval as it ranks large sets: a float32 sweep, whose doubts float64 settles."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec
from test_retrieval import brute_force, ranking

from contrastive_jax.evaluation import _candidates, _sweep
from contrastive_jax.evaluation import retrieval as module
from contrastive_jax.evaluation.retrieval import nearest_neighbours, retrieval

TILE, QUERIES, SIZE, WIDTH = 48, 16, 203, 6


@pytest.fixture(autouse=True)
def crowded_queries(monkeypatch):
    """Sweeps sets of any size in small tiles; lists how many queries each block left to float64."""
    crowded = []
    settled = _candidates._settled

    def observed(*args):
        block = settled(*args)
        crowded.append(int(block.crowded.sum()))
        return block

    monkeypatch.setattr(module, "SWEPT_FROM", 0)
    monkeypatch.setattr(_sweep, "TILE", TILE)
    monkeypatch.setattr(_sweep, "QUERIES", QUERIES)
    monkeypatch.setattr(_candidates, "_settled", observed)
    return crowded


def normal(rng):
    return rng.normal(size=(SIZE, WIDTH))


def grid(rng):
    return rng.integers(-1, 2, (SIZE, WIDTH)).astype(float)


def duplicates(rng):
    return rng.normal(size=(40, WIDTH))[rng.integers(0, 40, SIZE)]


def all_equal(rng):
    return np.ones((SIZE, WIDTH))


def clusters(rng, size):
    centres = rng.integers(-16, 17, (12, WIDTH)) / 8
    return centres[rng.integers(0, 12, SIZE)] + size * rng.integers(-8, 9, (SIZE, WIDTH))


def below_float32(rng):
    """Clusters whose distances float32 does not have, and float64 has exactly."""
    return clusters(rng, 2.0**-17)


def below_products(rng):
    """Clusters whose distances float64 has from differences alone."""
    return clusters(rng, 2.0**-40)


def on_a_sphere(rng):
    """References of which all are nearly as far from the queries, most of which are near 0."""
    points = normal(rng)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    points[::3] *= 1e-9
    return points


def one_far(rng):
    points = rng.integers(-99, 100, (SIZE, WIDTH)).astype(float)
    points[100] = 1e15
    return points


def many_sizes(rng):
    points = normal(rng) * 10.0 ** rng.integers(-60, 60, (SIZE, 1))
    points[::2] = 0  # also their median, so that the small ones keep their digits
    return points


def whole_numbers(rng):
    return rng.integers(-(2**20), 2**20, (SIZE, WIDTH))


def huge(rng):
    return 1e149 * normal(rng)


def tiny(rng):
    return 1e-139 * (1 + np.abs(normal(rng)))


SETS = [
    normal,
    grid,
    duplicates,
    all_equal,
    below_float32,
    below_products,
    on_a_sphere,
    one_far,
    many_sizes,
    whole_numbers,
    huge,
    tiny,
]


def labels(rng):
    """Classes of some 5 members each, and rows to ignore."""
    return rng.integers(-1, 40, SIZE)


@pytest.mark.parametrize("points", SETS)
@pytest.mark.parametrize("identities", [False, True])
def test_figures_equal_those_of_float64(crowded_queries, points, identities):
    rng = np.random.default_rng(0)
    x, c, ids = points(rng), labels(rng), rng.integers(0, 60, SIZE)
    options = {"query_ids": ids} if identities else {}
    assert retrieval(x, c, **options) == pytest.approx(brute_force(x, c, **options), abs=1e-12)
    halves = x[:83], c[:83], x[83:], c[83:]
    if identities:
        options = {"query_ids": ids[:83], "reference_ids": ids[83:]}
    expected = brute_force(*halves, **options)
    assert retrieval(*halves, **options) == pytest.approx(expected, abs=1e-12)
    assert crowded_queries
    assert not any(crowded_queries)


@pytest.mark.parametrize("points", SETS)
@pytest.mark.parametrize("k", [1, 40])
def test_neighbours_equal_those_of_float64(crowded_queries, points, k):
    x = points(np.random.default_rng(0))
    one, two = nearest_neighbours(x, k=k), nearest_neighbours(x[:83], x[83:], k=k)
    assert len(crowded_queries) == -(-SIZE // QUERIES) + -(-83 // QUERIES)
    assert not any(crowded_queries)
    for query in range(SIZE):
        order, squared = ranking(x[query], x, query)
        np.testing.assert_array_equal(one.indices[query], order[:k])
        distances = np.sqrt(squared[order[:k]].astype(float))
        np.testing.assert_allclose(one.distances[query], distances, rtol=1e-14)
    for query in range(83):
        order, _ = ranking(x[query], x[83:])
        np.testing.assert_array_equal(two.indices[query], order[:k])


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_a_sweep_changes_nothing(monkeypatch, distance):
    rng = np.random.default_rng(0)
    x, c, ids = (points(rng) for points in (normal, labels, labels))
    x[c == -1] = np.nan
    calls = [
        partial(retrieval, x, c, distance=distance),
        partial(retrieval, x, c, distance=distance, query_ids=ids),
        partial(nearest_neighbours, x[c != -1], k=9, distance=distance),
        partial(nearest_neighbours, x[c != -1], k=9, distance=distance, query_ids=ids[c != -1]),
    ]
    swept = [call() for call in calls]
    monkeypatch.setattr(module, "SWEPT_FROM", np.inf)
    for call, got in zip(calls, swept, strict=True):
        want = call()
        if isinstance(want, dict):
            assert got == pytest.approx(want, abs=1e-12)
        else:
            np.testing.assert_array_equal(got.indices, want.indices)
            np.testing.assert_array_equal(got.distances, want.distances)


@pytest.mark.parametrize("points", [duplicates, below_float32])
def test_queries_with_too_many_candidates_are_ranked_in_float64(
    monkeypatch, crowded_queries, points
):
    monkeypatch.setattr(_candidates, "FEW", 20)
    monkeypatch.setattr(_candidates, "CROWDED", 20)
    rng = np.random.default_rng(0)
    x, c = points(rng), labels(rng)
    assert retrieval(x, c) == pytest.approx(brute_force(x, c), abs=1e-12)
    assert 0 < sum(crowded_queries) < np.sum(c >= 0)
    indices = nearest_neighbours(x, k=10).indices
    expected = [ranking(query, x, own)[0][:10] for own, query in enumerate(x)]
    np.testing.assert_array_equal(indices, expected)


def test_large_classes_are_ranked_in_float64(crowded_queries):
    rng = np.random.default_rng(0)
    # One class is larger than a sweep can be asked for, the others are not.
    x, c = normal(rng), np.where(np.arange(SIZE) < 90, 40, labels(rng))
    assert retrieval(x, c) == pytest.approx(brute_force(x, c), abs=1e-12)
    assert len(crowded_queries) < -(-SIZE // QUERIES)
    k = _sweep.MOST
    indices = nearest_neighbours(x, x, k=k + 1).indices
    assert (indices[:, :k] == nearest_neighbours(x, x, k=k).indices).all()


def test_queries_far_from_the_references_lose_digits_to_their_own_norm(crowded_queries):
    rng = np.random.default_rng(0)
    x = 1e-6 * normal(rng) + rng.integers(0, 2, (SIZE, 1))
    sets = 1000 * normal(rng), labels(rng), x, labels(rng)
    assert retrieval(*sets) == pytest.approx(brute_force(*sets), abs=1e-12)
    nearest = nearest_neighbours(sets[0], x, k=1).indices[:, 0]
    assert nearest.tolist() == [ranking(query, x)[0][0] for query in sets[0]]
    assert crowded_queries
    assert not any(crowded_queries)


def test_left_out_references_that_were_counted_are_not_ranked():
    # The match of the query at 0 is behind 2,000 others, and behind 5 of its own identity.
    references = np.concatenate([1 + np.arange(2000) / 2000, 3 + np.arange(5), [20.0]])[:, None]
    classes = np.array([1] * 2005 + [0])
    ids = np.array([2] * 2000 + [7] * 5 + [8])
    sets = [[0.0]], [0], references, classes
    figures = retrieval(*sets, query_ids=[7], reference_ids=ids)
    assert figures["mean_reciprocal_rank"] == 1 / 2001
    assert retrieval(*sets)["mean_reciprocal_rank"] == 1 / 2006


def test_identical_rows_tie_whatever_their_width():
    x = np.random.default_rng(0).normal(size=(2, 10_000))[[0, 1, 1, 1]]
    squared = _candidates.squared_distances(
        _candidates.Points(x, x, [], ()), np.zeros(66, int), np.repeat([1, 2, 3], 22)
    )
    assert len(set(squared)) == 1


@pytest.mark.parametrize("spread", ["references", "queries"])
def test_devices_share_a_sweep(spread):
    rng = np.random.default_rng(0)
    references, queries = rng.normal(size=(8 * TILE - 5, WIDTH)), rng.normal(size=(QUERIES, WIDTH))
    scale = _sweep.scale_of(references, queries)
    squared = np.sum((queries[:, None] - references) ** 2, axis=2)
    infinite, target = np.full(QUERIES, np.inf), np.sort(squared)[:, 30]
    block = _sweep.query_block(queries, scale, np.full(QUERIES, 2), infinite, target)
    tiles = _sweep.reference_tiles(references, scale, 8)
    mesh, axis = Mesh(np.array(jax.devices()[:8]), "devices"), PartitionSpec("devices")
    if spread == "references":
        sweep = partial(_sweep.sweep, most=8, axis_name="devices")
        specs = (PartitionSpec(), axis), _sweep.Swept(axis, PartitionSpec())
    else:
        sweep = partial(_sweep.sweep, most=8)
        specs = (
            (axis, PartitionSpec()),
            _sweep.Swept(PartitionSpec(None, None, "devices"), axis),
        )
    sharded = jax.jit(jax.shard_map(sweep, mesh=mesh, in_specs=specs[0], out_specs=specs[1]))
    words, nearer = jax.tree.map(np.asarray, sharded(*jax.tree.map(jnp.asarray, (block, tiles))))
    query, reference = _candidates._pairs(words.reshape(-1, QUERIES), len(references))
    candidate = np.zeros(squared.shape, bool)
    candidate[query, reference] = True
    # All that are not candidates are certain: counted if nearer, not among the nearest.
    np.testing.assert_array_equal(nearer, np.sum((squared < target[:, None]) & ~candidate, axis=1))
    assert candidate[np.arange(QUERIES)[:, None], np.argsort(squared, axis=1)[:, :2]].all()
    assert candidate[squared == target[:, None]].all()
    assert candidate.sum() < squared.size / 2

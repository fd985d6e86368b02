"""Ranks by a sweep in float32 equal those of float64, whatever the embeddings are."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from test_retrieval import brute_force, labelled, ranking

from contrastive_jax.evaluation import _candidates, _sweep
from contrastive_jax.evaluation import retrieval as module
from contrastive_jax.evaluation.retrieval import nearest_neighbours, retrieval

some = settings(deadline=None, max_examples=30, derandomize=True)
DEVICES = 8


@pytest.fixture(autouse=True)
def swept(monkeypatch):
    """Sweeps sets of any size."""
    monkeypatch.setattr(module, "SWEPT_FROM", 0)


def in_float64(function, *args, **kwargs):
    """The result without a sweep."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SWEPT_FROM", np.inf)
        return function(*args, **kwargs)


def assert_figures(expected, *args, **kwargs):
    if expected is None:
        with pytest.raises(ValueError, match=r"none of the .* queries has a reference"):
            retrieval(*args, **kwargs)
    else:
        assert retrieval(*args, **kwargs) == pytest.approx(expected, abs=1e-12)


def assert_same_neighbours(*args, **kwargs):
    for swept, wanted in zip(
        nearest_neighbours(*args, **kwargs),
        in_float64(nearest_neighbours, *args, **kwargs),
        strict=True,
    ):
        np.testing.assert_array_equal(swept, wanted)


@some
@given(st.data(), st.booleans(), st.booleans())
def test_integers_with_ties_equal_brute_force(data, one_set, named):
    sets = [data.draw(labelled(2)) for _ in range(1 if one_set else 2)]
    arrays = [array for one in sets for array in one]
    assert_figures(brute_force(*arrays), *arrays)
    ids = [
        np.array(data.draw(st.lists(st.integers(-1, 9), min_size=n, max_size=n)))
        for n in (len(points) for points, _ in sets)
    ]
    if named:
        ids = [one.astype(str) for one in ids]
    options = dict(zip(("query_ids", "reference_ids"), ids, strict=False))
    assert_figures(brute_force(*arrays, **options), *arrays, **options)


@some
@given(st.data())
def test_neighbours_of_integers_equal_brute_force(data):
    (queries, _), (references, _) = data.draw(labelled(2)), data.draw(labelled(2))
    k = data.draw(st.integers(1, len(references)))
    indices, distances = nearest_neighbours(queries, references, k=k)
    for query, row, lengths in zip(queries, indices, distances, strict=True):
        order, squared = ranking(query, references)
        np.testing.assert_array_equal(row, order[:k])
        np.testing.assert_allclose(lengths, np.sqrt(squared[order[:k]]), rtol=1e-15)


def rows_that_differ(rng, name, size, width):
    """Embeddings in float64 that a sweep in float32 could rank wrongly."""
    x = rng.standard_normal((size, width))
    copies = rng.integers(0, size, size // 4)
    x[: len(copies)] = x[copies]
    match name:
        case "nearly equal":  # Eight clusters, in which float32 can not tell distances apart.
            x[:, :3] = 3e-4 * x[:, :3] + rng.integers(0, 2, (size, 3))
            x[:, 3:] *= 3e-4
            return x
        case "queries far off":  # Then it is the norm of the query that digits are lost to.
            return 1e-6 * x + rng.integers(0, 2, (size, width))
        case "far from the origin":
            return (100 + 1e-5 * x).astype(np.float32)
        case "an outlier":
            x[size // 2] = 1e15
            return x
        case "tiny beside large":
            return x * 10.0 ** rng.choice([-30, -12, 0], (size, 1))
        case "huge":
            return x * 1e149
        case "minute":
            return x * 1e-138
        case "coarse":
            return np.round(4 * x).astype(np.int8)
    return x


@pytest.mark.parametrize(
    "name",
    [
        "plain",
        "nearly equal",
        "queries far off",
        "far from the origin",
        "an outlier",
        "tiny beside large",
        "huge",
        "minute",
        "coarse",
    ],
)
def test_embeddings_of_any_size_rank_as_in_float64(name):
    rng = np.random.default_rng(0)
    # Two tiles of references, the last one not full, and two blocks of queries.
    x, c = rows_that_differ(rng, name, 3500, 5), rng.integers(-1, 900, 3500)
    queries = x[:300] + (0 if x.dtype.kind == "i" else 1e-10 * x[:300])
    if name == "queries far off":
        queries = 100 * rng.standard_normal(queries.shape)
    classes = rng.integers(0, 900, 300)
    sets = queries, classes, x, c
    wanted = in_float64(retrieval, *sets)
    assert_figures(wanted, *sets)
    # Beside much larger ones float64 itself does not tell the smallest distances apart.
    if name not in ("an outlier", "tiny beside large", "huge", "minute"):
        assert wanted == pytest.approx(brute_force(*map(np.asarray, map(np.float64, sets))))
    assert_same_neighbours(queries, x, k=10)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_one_set_with_classes_of_every_size(distance):
    rng = np.random.default_rng(1)
    # Pairs, fives, and two classes of which a sweep is not asked for the nearest.
    sizes = [2] * 200 + [5] * 60 + [61, 150, 400]
    c = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    x = rng.standard_normal((len(sizes), 5))[c] + rng.standard_normal((len(c), 5))
    points = x / np.linalg.norm(x, axis=1, keepdims=True) if distance == "cosine" else x
    assert_figures(brute_force(points, c), x, c, distance=distance)
    assert_same_neighbours(x, k=10, distance=distance)
    assert_same_neighbours(x, k=3, distance=distance, query_ids=rng.integers(0, 400, len(c)))


def test_left_out_references_that_were_counted_are_not_ranked():
    # The match of the query at 0 is behind 2,000 others, and behind 5 of its own identity.
    references = np.concatenate([1 + np.arange(2000) / 2000, 3 + np.arange(5), [20.0]])[:, None]
    classes = np.array([1] * 2005 + [0])
    ids = np.array([2] * 2000 + [7] * 5 + [8])
    sets = [[0.0]], [0], references, classes
    figures = retrieval(*sets, query_ids=[7], reference_ids=ids)
    assert figures["mean_reciprocal_rank"] == 1 / 2001
    assert retrieval(*sets)["mean_reciprocal_rank"] == 1 / 2006


def test_queries_with_too_many_candidates_are_ranked_all_the_same(monkeypatch):
    rng = np.random.default_rng(2)
    # The median lies in the first cluster. In the second one float32 can not tell distances apart.
    x = 3e-4 * rng.standard_normal((2400, 3)) + np.repeat([[0], [1]], [1300, 1100], axis=0)
    c = rng.permutation(np.arange(2400) % 800)
    blocks = []
    settled = _candidates._settled
    monkeypatch.setattr(
        _candidates, "_settled", lambda *args: blocks.append(settled(*args)) or blocks[-1]
    )
    assert_figures(brute_force(x, c), x, c)
    crowded = np.concatenate([block.crowded for block in blocks])
    assert crowded[1300:].all()
    assert not crowded[:1300].any()


def on_mesh(x):
    mesh = jax.make_mesh((DEVICES,), ("rows",), axis_types=(AxisType.Auto,))
    return jax.device_put(x, NamedSharding(mesh, PartitionSpec("rows")))


def test_references_over_devices_give_the_figures_of_one():
    rng = np.random.default_rng(3)
    x, c = rng.standard_normal((4000, 5)).astype(np.float32), rng.integers(0, 800, 4000)
    assert retrieval(on_mesh(x), c) == retrieval(x, c) == in_float64(retrieval, x, c)
    for spread, whole in zip(
        nearest_neighbours(x[:50], on_mesh(x), k=5), nearest_neighbours(x[:50], x, k=5), strict=True
    ):
        np.testing.assert_array_equal(spread, whole)


@pytest.mark.parametrize("transformation", ["shard_map", "pmap"])
@pytest.mark.parametrize("spread", ["references", "queries"])
def test_a_sweep_over_devices_settles_the_same_pairs(transformation, spread):
    rng = np.random.default_rng(4)
    references = rng.integers(-9, 9, (DEVICES * _sweep.TILE - 100, 3)).astype(np.float64)
    queries = rng.integers(-9, 9, (DEVICES * _sweep.QUERIES, 3)).astype(np.float64)
    tiles = _sweep.reference_tiles(references, 1 / 16, DEVICES)
    size = _sweep.QUERIES
    blocks = [
        _sweep.query_block(rows, 1 / 16, np.full(size, 4), np.full(size, np.inf), np.full(size, 3))
        for rows in np.split(queries, DEVICES)
    ]
    over = "tiles" if spread == "references" else None

    def sweep(block, own):
        return _sweep.sweep(block, own, most=8, axis_name=over)

    def settled(swept):
        swept = jax.tree.map(np.asarray, swept)
        points = _candidates.Points(queries[:size], references, [np.empty(0, int)] * size, ())
        some, goal = np.arange(size), np.full(size, 3.0)
        block = _candidates._settled(points, slice(0, size), some, goal, swept)
        nearest = _candidates.by_distance(block)[1:]
        nearer = block.nearer + np.bincount(block.pairs.query[block.squared < 3], minlength=size)
        first = nearest[1][nearest[0] < 4]
        return nearer, block.pairs.reference[first], block.crowded

    whole = jax.jit(lambda *arrays: _sweep.sweep(*arrays, most=8))(blocks[0], tiles)
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *blocks)
    by_device = jax.tree.map(lambda leaf: np.split(leaf, DEVICES), tiles)
    by_device = _sweep.References(*map(np.stack, by_device))
    in_axes = (None, 0) if over else (0, None)
    if transformation == "pmap":
        swept = jax.pmap(sweep, axis_name="tiles", in_axes=in_axes)(
            *((blocks[0], by_device) if over else (stacked, tiles))
        )
    else:
        mesh = jax.make_mesh((DEVICES,), ("tiles",), axis_types=(AxisType.Auto,))
        each, every = PartitionSpec("tiles"), PartitionSpec()

        def one(block, own):
            block = block if over else jax.tree.map(lambda leaf: leaf[0], block)
            swept = sweep(block, own)
            return swept if over else jax.tree.map(lambda leaf: leaf[None], swept)

        swept = jax.jit(
            jax.shard_map(
                one,
                mesh=mesh,
                in_specs=(every, each) if over else (each, every),
                out_specs=_sweep.Swept(each, every if over else each),
            )
        )(*((blocks[0], tiles) if over else (stacked, tiles)))
    if over:
        nearer = swept.nearer[0] if transformation == "pmap" else swept.nearer
        swept = _sweep.Swept(swept.words.reshape(whole.words.shape), nearer)
        for got, wanted in zip(settled(swept), settled(whole), strict=True):
            np.testing.assert_array_equal(got, wanted)
    else:
        for got, wanted in zip(swept, whole, strict=True):
            np.testing.assert_array_equal(got[0], wanted)
        assert np.any(np.asarray(swept.nearer[1]) != np.asarray(whole.nearer))


def test_sets_within_a_tile_share_a_program():
    rng = np.random.default_rng(5)
    sweep, *_ = _sweep.on_devices((jax.devices()[0],))
    nearest_neighbours(rng.standard_normal((40, 2)), k=2)
    programs = sweep._cache_size()
    for size in (300, 700):
        nearest_neighbours(rng.standard_normal((size, 2)), k=5)
    assert sweep._cache_size() == programs


def test_a_sweep_holds_a_tile_of_scores():
    sweep, *_ = _sweep.on_devices((jax.devices()[0],))
    one = np.ones(1)
    block = _sweep.query_block(np.ones((1, 2)), 1.0, one, one, one)
    tiles = _sweep.reference_tiles(np.ones((64 * _sweep.TILE, 2)), 1.0, 64)
    temporary = sweep.lower(8, block, tiles).compile().memory_analysis().temp_size_in_bytes
    # Some arrays of the size of a tile of scores, and words of all tiles; all scores are 64 tiles.
    scores = 4 * _sweep.TILE * _sweep.QUERIES
    assert temporary < 8 * scores + 3 * 64 * scores / _sweep.GROUP


def test_small_sets_are_ranked_without_a_program(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(_candidates, "candidates", None)
    rng = np.random.default_rng(6)
    x, c = rng.standard_normal((450, 4)), rng.integers(0, 100, 450)
    assert retrieval(x, c)["queries"] == 450
    assert nearest_neighbours(x, k=3).indices.shape == (450, 3)

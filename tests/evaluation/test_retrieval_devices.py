"""Where retrieval runs: over devices, in few programs, with a tile of scores at a time."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from contrastive_jax.evaluation import _candidates, _sweep
from contrastive_jax.evaluation import retrieval as module
from contrastive_jax.evaluation.retrieval import nearest_neighbours, retrieval

DEVICES, TILE, QUERIES = 8, 48, 16


@pytest.fixture
def swept(monkeypatch):
    """Sweeps sets of any size in small tiles."""
    monkeypatch.setattr(module, "SWEPT_FROM", 0)
    monkeypatch.setattr(_sweep, "TILE", TILE)
    monkeypatch.setattr(_sweep, "QUERIES", QUERIES)


def over_devices(x):
    mesh = jax.make_mesh((DEVICES,), ("rows",), axis_types=(AxisType.Auto,))
    return jax.device_put(x, NamedSharding(mesh, PartitionSpec("rows")))


def test_references_over_devices_give_the_figures_of_one(monkeypatch, swept):
    rng = np.random.default_rng(0)
    x, c = rng.standard_normal((400, 5)).astype(np.float32), rng.integers(0, 80, 400)
    devices = []
    on_devices = _sweep.on_devices
    monkeypatch.setattr(
        _sweep, "on_devices", lambda *args: devices.append(*args) or on_devices(*args)
    )
    figures = retrieval(over_devices(x), c)
    neighbours = nearest_neighbours(x[:50], over_devices(x), k=5)
    assert [len(each) for each in devices] == [DEVICES, DEVICES]
    assert figures == retrieval(x, c)
    assert [len(each) for each in devices] == [DEVICES, DEVICES, 1]
    for spread, whole in zip(neighbours, nearest_neighbours(x[:50], x, k=5), strict=True):
        np.testing.assert_array_equal(spread, whole)


@pytest.mark.parametrize("spread", ["references", "queries"])
def test_a_sweep_inside_of_pmap_settles_the_same_pairs(swept, spread):
    rng = np.random.default_rng(0)
    references = rng.integers(-9, 9, (DEVICES * TILE - 10, 3)).astype(np.float64)
    queries = rng.integers(-9, 9, (DEVICES, QUERIES, 3)).astype(np.float64)
    # Distances of whole numbers are exact in float32 too.
    tiles = _sweep.reference_tiles(references, 1 / 16, DEVICES)
    count, bound, target = (np.full(QUERIES, value) for value in (4, np.inf, 90.0))
    blocks = [_sweep.query_block(rows, 1 / 16, count, bound, target) for rows in queries]
    whole = [
        jax.jit(_sweep.sweep, static_argnames="most")(block, tiles, most=8) for block in blocks
    ]
    if spread == "queries":
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *blocks)
        sweep = jax.pmap(
            lambda block, tiles: _sweep.sweep(block, tiles, most=8),
            axis_name="queries",
            in_axes=(0, None),
        )
        for got, wanted in zip(
            sweep(stacked, tiles), map(np.stack, zip(*whole, strict=True)), strict=True
        ):
            np.testing.assert_array_equal(got, wanted)
        return
    sweep = jax.pmap(
        lambda block, tiles: _sweep.sweep(block, tiles, most=8, axis_name="tiles"),
        axis_name="tiles",
        in_axes=(None, 0),
    )
    words, nearer = jax.device_get(
        sweep(blocks[0], jax.tree.map(lambda leaf: leaf[:, None], tiles))
    )
    assert (nearer == nearer[0]).all()
    settled = [
        _candidates._settled(
            _candidates.Points(queries[0], references, [np.empty(0, np.intp)] * QUERIES, ()),
            slice(0, QUERIES),
            np.arange(QUERIES),
            target,
            each,
        )
        for each in (_sweep.Swept(words, nearer[0]), jax.device_get(whole[0]))
    ]
    results = []
    for block in settled:
        _, position, order = _candidates.by_distance(block)
        among = block.squared < target[0]
        ranks = block.nearer + np.bincount(block.pairs.query[among], minlength=QUERIES)
        results.append((ranks, block.pairs.reference[order[position < 4]]))
    assert results[0][0].any()
    for got, wanted in zip(*results, strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_sets_within_a_tile_share_a_program(swept):
    rng = np.random.default_rng(0)
    sweep, *_ = _sweep.on_devices((jax.devices()[0],))
    nearest_neighbours(rng.standard_normal((20, 2)), k=2)
    programs = sweep._cache_size()
    for size in (40, 48):
        nearest_neighbours(rng.standard_normal((size, 2)), k=5)
    assert sweep._cache_size() == programs
    nearest_neighbours(rng.standard_normal((49, 2)), k=5)
    assert sweep._cache_size() == programs + 1


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
    monkeypatch.setattr(_candidates, "candidates", None)
    rng = np.random.default_rng(0)
    x, c = rng.standard_normal((450, 4)), rng.integers(0, 100, 450)
    assert retrieval(x, c)["queries"] == 450
    assert nearest_neighbours(x, k=3).indices.shape == (450, 3)

"""Losses of anchors, triples and proxies against peers' values and direct float64 NumPy.

What takes time is compiling. So all batches have one shape, to which they are filled up with rows
of class -1 and columns of zeros, and hyperparameters are traced.
"""

import functools
import math
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpy_losses
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, PartitionSpec

from contrastive_jax import (
    all_pairs_loss,
    all_pairs_sums,
    anchor_loss,
    distances,
    losses,
    pair_loss,
    proxy_loss,
    statistics,
)
from contrastive_jax._compat import pcast_varying

ROWS, REFERENCES, SIZE, TILE = 37, 22, 16, 16
PROXIES, CENTERS = 6, 3

# Of each loss the hyperparameters that are traced, and those that are not.
ANCHOR_LOSSES = {
    "ntxent": ({"temperature": 0.1}, {}),
    "supcon": ({"temperature": 0.1}, {}),
    "decoupled": ({"temperature": 0.1}, {}),
    "n_pair": ({}, {}),
    "nca": ({"scale": 0.8}, {}),
    "lifted": ({"margin": 0.9, "positive_margin": 0.1}, {}),
    "multi_similarity": ({"alpha": 2.0, "beta": 20.0, "base": 0.5}, {}),
    "circle": ({"margin": 0.4, "scale": 30.0}, {}),
    "tuplet_margin": ({"margin": 0.1, "scale": 20.0}, {}),
    "margin_by_class": ({"margin": 0.3}, {}),
    "triplet_hard": ({"margin": 0.5}, {}),
    "triplet_semi_hard": ({"margin": 0.5}, {}),
    "triplet_all": ({"margin": 0.5}, {}),
    "angular": ({"alpha": 0.6}, {}),
    "fast_ap": ({}, {"bins": 10}),
    "smooth_ap": ({"temperature": 0.05}, {}),
}
# One of each reduction and of triples; with `--long` two more of log-sum-exps and one of sums.
TWO_SETS = (
    "ntxent",
    "margin_by_class",
    "triplet_hard",
    "triplet_semi_hard",
    "angular",
)
MORE_TWO_SETS = ("multi_similarity", "circle", "fast_ap")
# The same by another name, with what is not traced.
VARIANTS = {
    "supcon_inside": ("supcon", {"log": "inside"}),
    "triplet_hard_smooth": ("triplet_hard", {"smooth": True}),
    "triplet_all_smooth": ("triplet_all", {"smooth": True}),
    "smooth_ap_with_query": ("smooth_ap", {"include_query": True}),
}
PROXY_LOSSES = {
    "normalized_softmax": ({"temperature": 0.1}, {}),
    "proxy_nca": ({"temperature": 0.2}, {}),
    "cosface": ({"margin": 0.3, "scale": 20.0}, {}),
    "arcface": ({"margin": 0.4, "scale": 20.0}, {}),
    "proxy_anchor": ({"margin": 0.1, "alpha": 20.0}, {}),
    "soft_triple": ({"margin": 0.02, "scale": 15.0, "gamma": 0.2}, {}),
}
LOSSES = (
    ANCHOR_LOSSES
    | PROXY_LOSSES
    | {variant: (ANCHOR_LOSSES[name][0], static) for variant, (name, static) in VARIANTS.items()}
)


def _factory(name):
    return getattr(losses, VARIANTS.get(name, (name,))[0])


def _numpy(name):
    return getattr(numpy_losses, VARIANTS.get(name, (name,))[0])


def _value(name, hyper, boundaries, x, classes, *others, **options):
    """The loss by its name; what is traced comes first, for derivatives."""
    loss = _factory(name)(**hyper, **LOSSES[name][1])
    if isinstance(loss, losses.TripletLoss):
        # Fewer in a walk, in half the program and more walks.
        loss = loss._replace(positives_per_pass=2)
    if isinstance(loss, losses.CentersLoss):
        options = {key: options[key] for key in options if key in ("axis_name", "reduction")}
    if name in PROXY_LOSSES:
        return proxy_loss(x, classes, *others, loss=loss, **options)
    data = (boundaries,) if name == "margin_by_class" else ()
    return anchor_loss(x, classes, *others, loss=loss, data=data, **options)


@functools.cache
def _program(name, dtype, two=False, reduction="mean", tile=TILE):
    """Value and gradients, by embeddings and, in float64, by all that has one.

    In float64 close pairs need not be measured again, and the program is half as long.
    """
    options = {"tile": tile, "refine": dtype == "float32", "reduction": reduction}
    argnums = {"hyper": 0, "boundaries": 1, "x": 2, "references": 4}
    names = ["boundaries", "x"] if name == "margin_by_class" else ["x"]
    if dtype == "float64" and not two:
        names = ["hyper", "boundaries", "x"]
    if two or name in PROXY_LOSSES:
        names = [*names, "references"]

    def value(hyper, boundaries, x, classes, *others):
        if name in PROXY_LOSSES:
            others = others[:1]
        return _value(name, hyper, boundaries, x, classes, *others, **options)

    compiled = jax.jit(jax.value_and_grad(value, [argnums[name] for name in names]))

    def run(x, classes, *others, boundaries=None, **hyper):
        floats = functools.partial(np.asarray, dtype=dtype)
        hyper = {k: floats(v) for k, v in (LOSSES[name][0] | hyper).items()}
        boundaries = floats(np.full(len(x), 1.2) if boundaries is None else boundaries)
        others = [floats(o) if np.asarray(o).dtype.kind == "f" else o for o in others]
        with jax.enable_x64(dtype == "float64"):
            result, gradients = compiled(hyper, boundaries, floats(x), classes, *others)
            assert result.dtype == dtype
            gradients = jax.tree.map(np.float64, gradients)
        return float(result), dict(zip(names, gradients, strict=True))

    return run


def _expected(name, *sets, boundaries=None, **hyper):
    hyper = LOSSES[name][0] | LOSSES[name][1] | hyper
    if name == "margin_by_class":
        hyper["boundaries"] = np.full(len(sets[0]), 1.2) if boundaries is None else boundaries
    return _numpy(name)(*sets, **hyper)


def _filled(x, classes, rows=ROWS):
    """As many rows and columns as all have; what is added does not count."""
    full = np.zeros((rows, SIZE))
    full[: x.shape[0], : x.shape[1]] = x
    return full, np.concatenate([classes, np.full(rows - len(x), -1)]).astype(np.int32)


def _in_float32(arrays):
    return [a.astype(np.float32) if a.dtype == float else a for a in arrays]


def _unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def _by_direction(gradient, x):
    """Gradient by `x` from that by its rows of unit length."""
    unit = _unit(x)
    along = (gradient * unit).sum(1, keepdims=True)
    return (gradient - unit * along) / np.linalg.norm(x, axis=1, keepdims=True)


# Peers.

PEERS = dict(np.load(Path(__file__).parent / "reference/peers.npz"))
CASES = ["balanced", "imbalanced", "two_class"]
# Names here, and for each the hyperparameters by those there.
PEER_NAMES = {
    "ntxent": ("ntxent", {"temperature": "temperature"}),
    "supcon": ("supcon", {"temperature": "temperature"}),
    "nca": ("nca", {"scale": "softmax_scale"}),
    "lifted": ("lifted_structure", {"margin": "neg_margin"}),
    "multi_similarity": ("multi_similarity", {k: k for k in ("alpha", "beta", "base")}),
    "circle": ("circle", {"margin": "m", "scale": "gamma"}),
    "tuplet_margin": ("tuplet_margin", {"margin": "margin_deg", "scale": "scale"}),
    "margin_by_class": ("margin", {"margin": "margin"}),
    "triplet_hard": ("triplet_hard_mean", {"margin": "margin"}),
    "triplet_all": ("triplet_all_mean", {"margin": "margin"}),
    "triplet_all_smooth": ("triplet_smooth_mean", {"margin": "margin"}),
    "angular": ("angular", {"alpha": "alpha"}),
    "fast_ap": ("fast_ap", {}),
    "smooth_ap_with_query": ("smooth_ap", {"temperature": "temperature"}),
}
OTHER_PEERS = {
    "contrastive_pml_mean",
    "cosine_embedding_pairs",
    "sentence_transformers_contrastive_pairs",
    "npairs",
    "snr_contrastive",
}


def _peer(wanted):
    """For each value of a peer's loss the key, its case, its form and its hyperparameters."""
    for key in PEERS:
        case, name, *rest = key.removesuffix("/grad").split("/")
        if name == wanted and key.endswith("/grad"):
            options = [one.split("=") for one in rest[-1].split(",") if "=" in one]
            form = rest[0] if len(rest) > 1 else ""
            yield key.removesuffix("/grad"), case, form, {k: float(v) for k, v in options}


def _assert_agrees(key, value, gradient, dtype, loosened=1.0):
    tolerance = loosened * (1e-10 if dtype == "float64" else 1e-5)
    np.testing.assert_allclose(value, PEERS[key], rtol=tolerance, atol=1e-12, err_msg=key)
    want = PEERS[key + "/grad"]
    scale = abs(want).max()
    np.testing.assert_allclose(gradient, want, rtol=0, atol=tolerance * scale, err_msg=key)


def test_every_value_of_a_peer_is_compared():
    names = {key.split("/")[1] for key in PEERS} - {"embeddings", "labels"}
    assert names == {peer for peer, _ in PEER_NAMES.values()} | OTHER_PEERS
    assert sum(key.endswith("/grad") for key in PEERS) == 140


@pytest.fixture(scope="module", params=LOSSES)
def name(request):
    """The scope has pytest run all tests of a loss one after the other."""
    return request.param


def _in_single(name):
    """Returns whether other tests compile the loss in float32 too: one loss of each type."""
    return name in SHARED and name != "circle"


def _tile(name, longer):
    """Tiles for one loss of each type; for the others, without `--long`, the whole matrix.

    The program over the matrix is a third as long, and their formulas are the same.
    """
    return TILE if longer or _in_single(name) else None


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_peers(name, dtype, longer):
    if name not in PEER_NAMES:
        pytest.skip("no peer has it")
    if dtype == "float32" and not (longer or _in_single(name)):
        pytest.skip("float64 does, and float32 with --long")
    peer, hyperparameters = PEER_NAMES[name]
    cases = list(_peer(peer))
    assert cases
    for key, case, form, options in cases:
        raw, classes = PEERS[case + "/embeddings"], PEERS[case + "/labels"]
        hyper = {ours: options[theirs] for ours, theirs in hyperparameters.items()}
        if name in ("tuplet_margin", "angular"):
            angle = next(iter(hyper))
            hyper[angle] = math.radians(hyper[angle])
        if peer == "lifted_structure":
            hyper["positive_margin"] = 0.0
        if peer == "smooth_ap":
            # It takes groups of so many rows for the classes.
            classes = np.arange(len(raw)) // len(set(classes.tolist()))
        directions = form.startswith("unit") or form.endswith("unit")
        x = _unit(raw) if directions else raw
        program = _program(name, dtype, tile=_tile(name, longer))
        value, gradients = program(*_filled(x, classes), **hyper)
        gradient = gradients["x"][: x.shape[0], : x.shape[1]]
        gradient = _by_direction(gradient, raw) if directions else gradient
        # PyTorch's softplus, of which this loss is made, leaves out what is below exp(-20).
        _assert_agrees(key, value, gradient, dtype, loosened=10 if name == "circle" else 1)


# Direct NumPy.

BATCHES = [
    "random",
    "one_class",
    "all_distinct",
    "all_equal",
    "duplicates",
    "zeros",
    "one_row",
    "no_row",
    "narrow",
    "short",
    "long",
]


def _batch(rng, kind, rows, size=5):
    """Rows, some of which do not count, and classes; not yet filled up."""
    rows = {"one_row": 1, "no_row": 0}.get(kind, rows)
    x, classes = rng.standard_normal((rows, size)), rng.integers(0, rng.integers(2, 7), rows)
    if kind == "one_class":
        classes[:] = 2
    elif kind == "all_distinct":
        classes = rng.permutation(rows)
    elif kind == "all_equal":
        x[:] = rng.standard_normal(size)
    elif kind == "narrow":
        x[:, 1:] = 0
    elif kind in ("short", "long"):
        x *= 1e-6 if kind == "short" else 1e6
    elif kind in ("duplicates", "zeros"):
        of = rng.integers(0, rows, rows // 2)
        x[: rows // 2] = 0 if kind == "zeros" else x[of]
        # Of two negatives or positives that are as far as each other it does not matter which is
        # taken; whether a negative is farther than a positive does.
        classes[: rows // 2] = 1 if kind == "zeros" else classes[of]
    if kind not in ("one_row", "no_row"):
        classes[rng.random(rows) < 0.1] = -1
    return x, classes


def _proxies(rng, name):
    return rng.standard_normal((PROXIES, *([CENTERS] if name == "soft_triple" else []), SIZE))


def _sets(rng, name, kind, rows):
    """Arguments of a loss with one set, or with embeddings and proxies."""
    sets = _filled(*_batch(rng, kind, rows))
    return (*sets, _proxies(rng, name)) if name in PROXY_LOSSES else sets


RANDOM_CASES = given(
    seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(BATCHES), rows=st.integers(2, 37)
)
SETTINGS = settings(deadline=None, max_examples=20, derandomize=True)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@SETTINGS
@RANDOM_CASES
def test_values_against_numpy(name, dtype, longer, seed, kind, rows):
    if not longer and (dtype == "float32") != _in_single(name):
        pytest.skip("the other dtype does, and this one with --long")
    rng = np.random.default_rng(seed)
    sets = _in_float32(_sets(rng, name, kind, rows))
    boundaries = rng.uniform(0.5, 2.0, ROWS).astype(np.float32)
    program = _program(name, dtype, tile=_tile(name, longer))
    value, gradients = program(*sets, boundaries=boundaries)
    want = _expected(name, *sets, boundaries=boundaries)
    # Rounding moves points that coincide 1e-8 apart, where close pairs are not measured again.
    tolerance = {"rtol": 1e-5, "atol": 2e-6} if dtype == "float32" else {"rtol": 1e-6, "atol": 1e-6}
    np.testing.assert_allclose(value, want, **tolerance)
    for gradient in jax.tree.leaves(gradients):
        assert np.isfinite(gradient).all()
    assert (gradients["x"][sets[1] == -1] == 0).all()


def _takes_two_sets(name, longer):
    return name in TWO_SETS or (longer and name in MORE_TWO_SETS)


def _reduction(name):
    return {"reduction": "active"} if name == "triplet_all" else {}


@SETTINGS
@RANDOM_CASES
def test_two_sets_against_numpy(name, longer, seed, kind, rows):
    if not _takes_two_sets(name, longer):
        pytest.skip("as those that keep the same kinds of statistics")
    rng = np.random.default_rng(seed)
    sets = *_filled(*_batch(rng, kind, rows)), *_filled(*_batch(rng, kind, 22), REFERENCES)
    boundaries = rng.uniform(0.5, 2.0, ROWS)
    run = _program(name, "float64", two=True, **_reduction(name))
    value, gradients = run(*sets, boundaries=boundaries)
    want = _expected(name, *sets, boundaries=boundaries, **_reduction(name))
    # Rounding moves points that coincide 1e-8 apart, where close pairs are not measured again.
    np.testing.assert_allclose(value, want, rtol=1e-6, atol=1e-6)
    for gradient in gradients.values():
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("name_of", "size"),
    [
        ("supcon", 5),
        pytest.param("n_pair", 1, marks=pytest.mark.long),
        ("triplet_semi_hard", 1),
        ("arcface", 5),
    ],
)
def test_low_precision_and_a_single_entry(name_of, size):
    """Embeddings in bfloat16 are compared in float32, and may have a single entry."""
    rng = np.random.default_rng(5)
    x, classes = _batch(rng, "random", 20, size)
    y = [_proxies(rng, name_of)[:, :size]] if name_of in PROXY_LOSSES else []
    sets = [jnp.asarray(a, jnp.bfloat16) for a in (x, *y)]

    def value(x, *proxies):
        return _value(name_of, LOSSES[name_of][0], None, x, classes, *proxies, tile=8)

    actual, gradient = jax.jit(jax.value_and_grad(value))(*sets)
    first, *others = (np.asarray(a, np.float64) for a in sets)
    np.testing.assert_allclose(actual, _expected(name_of, first, classes, *others), rtol=1e-5)
    assert actual.dtype == jnp.float32
    assert gradient.dtype == jnp.bfloat16
    assert np.isfinite(gradient.astype(jnp.float32)).all()


def _slope(function, step=1e-4):
    """Derivative at 0, by differences of fourth order."""
    near, far = function(step) - function(-step), function(2 * step) - function(-2 * step)
    return (8 * near - far) / (12 * step)


def _direction(rng, like):
    direction = rng.standard_normal(like.shape)
    return direction / np.linalg.norm(direction)


def _assert_slope(gradient, direction, function, what):
    want = _slope(function)
    np.testing.assert_allclose(
        (gradient * direction).sum(), want, rtol=1e-6, atol=1e-9, err_msg=what
    )


@pytest.mark.parametrize("seed", [1, 2])
def test_gradients_against_differences(name, seed, longer):
    if name in VARIANTS:
        pytest.skip("as what they vary")
    rng = np.random.default_rng(seed)
    sets = _sets(rng, name, "random", 25)
    boundaries = rng.uniform(0.5, 2.0, ROWS)
    hyper = LOSSES[name][0]
    program = _program(name, "float64", tile=_tile(name, longer))
    _, gradients = program(*sets, boundaries=boundaries)
    expected = functools.partial(_expected, name, boundaries=boundaries)
    if name == "circle":
        expected = functools.partial(expected, frozen=sets[0])
    by_x = _direction(rng, sets[0])
    _assert_slope(
        gradients["x"], by_x, lambda t: expected(sets[0] + t * by_x, *sets[1:]), "embeddings"
    )
    for one in hyper:
        if (name, one) == ("circle", "margin"):
            continue  # the weights, which are not differentiated, know it too
        _assert_slope(
            gradients["hyper"][one],
            np.ones(()),
            lambda t, one=one: expected(*sets, **{one: hyper[one] + t}),
            one,
        )
    if name in PROXY_LOSSES:
        by_y = _direction(rng, sets[2])
        _assert_slope(
            gradients["references"],
            by_y,
            lambda t: expected(*sets[:2], sets[2] + t * by_y),
            "proxies",
        )
    if name == "margin_by_class":
        by = _direction(rng, boundaries)
        _assert_slope(
            gradients["boundaries"],
            by,
            lambda t: expected(*sets, boundaries=boundaries + t * by),
            "boundaries",
        )


def test_gradients_of_two_sets_against_differences(name, longer):
    if not _takes_two_sets(name, longer):
        pytest.skip("as those that keep the same kinds of statistics")
    rng = np.random.default_rng(3)
    x, classes = _filled(*_batch(rng, "random", 25))
    y, y_classes = _filled(*_batch(rng, "random", 20), REFERENCES)
    _, gradients = _program(name, "float64", two=True, **_reduction(name))(x, classes, y, y_classes)

    def expected(x, y):
        frozen = {"frozen": start} if name == "circle" else {}
        return _expected(name, x, classes, y, y_classes, **frozen, **_reduction(name))

    start = (x, y)
    by_x, by_y = _direction(rng, x), _direction(rng, y)
    _assert_slope(gradients["x"], by_x, lambda t: expected(x + t * by_x, y), "embeddings")
    _assert_slope(gradients["references"], by_y, lambda t: expected(x, y + t * by_y), "references")


def test_a_nan_that_counts_shows(name, longer):
    dtype = "float32" if _in_single(name) else "float64"
    program = _program(name, dtype, tile=_tile(name, longer))
    rng = np.random.default_rng(0)
    x, classes, *others = _sets(rng, name, "random", 30)
    classes[[3, 4]] = -1, 0
    value, gradients = program(x, classes, *others)
    assert value > 0
    x[[3, 36], 1] = np.nan, np.inf
    again, same = program(x, classes, *others)
    assert again == value
    np.testing.assert_array_equal(same["x"], gradients["x"])
    x[4, 2] = np.nan
    assert np.isnan(program(x, classes, *others)[0])
    classes[4] = 99  # of no other row's class
    assert np.isnan(program(x, classes, *others)[0])


# Peers whose losses are of pairs.


@functools.cache
def _pairs_program(loss, distance, dtype):
    """Averages positive and negative pairs apart, and of ratios the active pairs alone."""

    def value(x, classes, margin, positive_margin):
        def pair_value(distance, label):
            return loss(distance, label, margin, positive_margin)

        sums = all_pairs_sums(x, classes, loss=pair_value, distance=distance, tile=TILE)
        counts = sums.active if distance is distances.signal_to_noise else sums.pairs
        return jnp.sum(sums.loss / jnp.maximum(counts, 1))

    compiled = jax.jit(jax.value_and_grad(value))

    def run(x, classes, *margins):
        with jax.enable_x64(dtype == "float64"):
            value, gradient = compiled(x.astype(dtype), classes, *np.array(margins, dtype))
        return float(value), np.float64(gradient)

    return run


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.long), "float64"])
@pytest.mark.parametrize("peer", ["contrastive_pml_mean", "snr_contrastive"])
def test_peers_of_all_pairs(peer, dtype):
    for key, case, form, options in _peer(peer):
        raw, classes = PEERS[case + "/embeddings"], PEERS[case + "/labels"]
        x = raw if form == "raw" else _unit(raw)
        distance = distances.euclidean
        margins = options.get("margin", options.get("neg_margin")), options.get("pos_margin", 0.0)
        if peer == "snr_contrastive":
            # Repeated columns, and no zeros, leave a ratio of variances as it is.
            distance, x = distances.signal_to_noise, np.tile(x, 48 // x.shape[1])
            full = np.zeros((ROWS, 48))
            full[: len(x)] = x
            classes = np.concatenate([classes, np.full(ROWS - len(x), -1)])
        else:
            full, classes = _filled(x, classes)
        run = _pairs_program(losses.contrastive_linear, distance, dtype)
        value, gradient = run(full, classes, *margins)
        gradient = gradient[: len(raw)]
        if peer == "snr_contrastive":
            gradient = gradient.reshape(len(raw), -1, raw.shape[1]).sum(1)
        gradient = gradient[:, : raw.shape[1]]
        gradient = gradient if form == "raw" else _by_direction(gradient, raw)
        _assert_agrees(key, value, gradient, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("peer", "loss"),
    [
        ("cosine_embedding_pairs", losses.cosine_embedding),
        ("sentence_transformers_contrastive_pairs", losses.sentence_contrastive),
    ],
)
def test_peers_of_given_pairs(peer, loss, dtype):
    """A row with an even number and the next one are a pair."""

    @jax.jit
    @jax.value_and_grad
    def program(x, labels, margin):
        return jnp.mean(
            pair_loss(x[::2], x[1::2], labels, loss=loss, distance=distances.cosine, margin=margin)
        )

    for key, case, _, options in _peer(peer):
        x, classes = PEERS[case + "/embeddings"], PEERS[case + "/labels"]
        labels = (classes[::2] != classes[1::2]).astype(int)
        with jax.enable_x64(dtype == "float64"):
            value, gradient = program(x.astype(dtype), labels, np.asarray(options["margin"], dtype))
        _assert_agrees(key, value, gradient, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_peers_n_pairs(dtype):
    """The first two rows of each class, of unit length, are its anchor and its positive."""
    for key, case, _, _ in _peer("npairs"):
        raw, classes = PEERS[case + "/embeddings"], PEERS[case + "/labels"]
        unit, (labels, sizes) = _unit(raw), np.unique(classes, return_counts=True)
        labels = labels[sizes > 1]
        anchors, positives = np.array([np.flatnonzero(classes == c)[:2] for c in labels]).T
        value, gradients = _program("n_pair", dtype, two=True)(
            *_filled(unit[anchors], labels), *_filled(unit[positives], labels, REFERENCES)
        )
        gradient = np.zeros_like(raw)
        count, size = len(labels), raw.shape[1]
        gradient[anchors] = gradients["x"][:count, :size]
        gradient[positives] += gradients["references"][:count, :size]
        _assert_agrees(key, value, _by_direction(gradient, raw), dtype)


# Made of others.


def test_of_pairs():
    rng = np.random.default_rng(0)
    x, classes = _filled(*_batch(rng, "random", 30))
    x = x.astype(np.float32)
    loss = losses.mean_over_pairs(losses.contrastive)
    for reduction, tile in (("mean", TILE), ("sum", None)):

        def value_of(x, reduction=reduction, tile=tile):
            return anchor_loss(x, classes, loss=loss, tile=tile, reduction=reduction)

        def direct(x, reduction=reduction):
            return all_pairs_loss(x, classes, reduction=reduction)

        value, gradient = jax.jit(jax.value_and_grad(value_of))(x)
        want, by = jax.jit(jax.value_and_grad(direct))(x)
        np.testing.assert_allclose(value, want, rtol=1e-6)
        np.testing.assert_allclose(gradient, by, rtol=1e-5, atol=1e-6 * abs(by).max())
    sums = jax.jit(lambda x: all_pairs_sums(x, classes))(x)
    active = jax.jit(lambda x: value_of(x, "active", TILE))(x)
    assert sums.active.sum() < sums.pairs.sum()
    np.testing.assert_allclose(active, sums.loss.sum() / sums.active.sum(), rtol=1e-6)


def test_weighted_sum():
    rng = np.random.default_rng(0)
    x, classes = _filled(*_batch(rng, "random", 30))
    weights = np.array([0.5, 2.0, 0.25])
    parts = [
        losses.ntxent(0.2),
        losses.mean_over_pairs(losses.cosine_embedding, distances.cosine),
        losses.multi_similarity(),
    ]

    def pair_mean(x):
        unit = _unit(x[classes >= 0])
        distance, labels = 1 - unit @ unit.T, classes[classes >= 0]
        values = np.where(labels[:, None] != labels, np.maximum(0, 1 - distance), distance)
        return values[~np.eye(len(labels), dtype=bool)].mean()

    def values(x):
        return np.array(
            [
                numpy_losses.ntxent(x, classes, temperature=0.2),
                pair_mean(x),
                numpy_losses.multi_similarity(x, classes),
            ]
        )

    def together(x, weights):
        loss = losses.weighted_sum(*zip(weights, parts, strict=True))
        return anchor_loss(x, classes, loss=loss, tile=TILE, refine=False)

    nested = losses.weighted_sum((2.0, losses.weighted_sum((0.5, parts[0]))))
    with jax.enable_x64(True):
        value, (by_x, by_weights) = jax.jit(jax.value_and_grad(together, (0, 1)))(x, weights)
        again = jax.jit(lambda x: anchor_loss(x, classes, loss=nested))(x)
        by_x = np.asarray(by_x)
    want = values(x)
    np.testing.assert_allclose(value, weights @ want, rtol=1e-6)
    np.testing.assert_allclose(by_weights, want, rtol=1e-6)
    np.testing.assert_allclose(again, want[0], rtol=1e-6)
    for _ in range(3):
        way = _direction(rng, x)
        _assert_slope(by_x, way, lambda t, way=way: weights @ values(x + t * way), "embeddings")


@pytest.mark.parametrize(
    ("name_of", "proxies_of_a_class"),
    [
        pytest.param("normalized_softmax", 3, marks=pytest.mark.long),
        ("cosface", 1),
        ("arcface", 3),
    ],
)
def test_proxies_met_at_once_equal_those_met_tile_by_tile(name_of, proxies_of_a_class):
    rng = np.random.default_rng(0)
    # More rows than a block has, as 600 proxies leave room for 873 of them or for 291.
    x, classes = rng.standard_normal((1000, 8)), rng.integers(-1, 600, 1000)
    shape = (600, 8) if proxies_of_a_class == 1 else (600, proxies_of_a_class, 8)
    proxies = rng.standard_normal(shape)
    number = {"normalized_softmax": "temperature"}.get(name_of, "scale")

    def value(x, proxies, learned, **options):
        loss = getattr(losses, name_of)(**{number: learned})
        return proxy_loss(x, classes, proxies, loss=loss, reduction="active", **options)

    with jax.enable_x64(True):
        both = [
            jax.jit(jax.value_and_grad(functools.partial(value, **options), (0, 1, 2)))(
                jnp.asarray(x), jnp.asarray(proxies), jnp.float64(0.7)
            )
            for options in ({}, {"tile": 64, "refine": False})
        ]
        chex.assert_trees_all_close(*both, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("tile", [None, 8])
@pytest.mark.parametrize("name_of", ["proxy_anchor", "cosface", "normalized_softmax"])
def test_cosines_of_proxies_are_those_of_one_product(name_of, tile):
    """Embeddings on, close to and opposite to proxies, against care for close pairs in float64."""
    rng = np.random.default_rng(0)
    proxies, classes = rng.standard_normal((4, 16)), np.arange(20, dtype=np.int32) % 4
    x = rng.standard_normal((20, 16))
    x[:4], x[4:8], x[8:10] = proxies, proxies + 1e-4 * x[4:8], -proxies[:2]

    def value(x, proxies, tile, **options):
        loss = getattr(losses, name_of)()
        return proxy_loss(x, classes, proxies, loss=loss, tile=tile, **options)

    with jax.enable_x64(True):
        careful = jax.jit(jax.value_and_grad(functools.partial(value, tile=8, refine=True), (0, 1)))
        want = jax.tree.map(np.asarray, careful(jnp.asarray(x), jnp.asarray(proxies)))
    own = jax.jit(jax.value_and_grad(functools.partial(value, tile=tile), (0, 1)))
    got = own(jnp.asarray(x, jnp.float32), jnp.asarray(proxies, jnp.float32))
    scale = max(np.abs(one).max() for one in want[1])
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
    for one, right in zip(got[1], want[1], strict=True):
        np.testing.assert_allclose(one, right, rtol=1e-4, atol=3e-6 * scale)


def test_the_gradient_of_arcface_keeps_its_digits_by_tiles():
    """An angle of 0.001 to a proxy, whose digits one product of directions does not have."""
    rng = np.random.default_rng(0)
    proxies, classes = rng.standard_normal((4, 16)), np.arange(4, dtype=np.int32)
    x = proxies + 1e-3 * rng.standard_normal((4, 16))

    def value(x, proxies):
        return proxy_loss(x, classes, proxies, loss=losses.arcface(), tile=8)

    with jax.enable_x64(True):
        want = np.asarray(jax.jit(jax.grad(value))(jnp.asarray(x), jnp.asarray(proxies)))
    got = jax.jit(jax.grad(value))(jnp.asarray(x, jnp.float32), jnp.asarray(proxies, jnp.float32))
    np.testing.assert_allclose(got, want, atol=1e-3 * np.abs(want).max())


def test_a_proxy_loss_keeps_its_own_distance():
    rng, classes = np.random.default_rng(0), np.arange(6) % 3
    x = jnp.asarray(rng.standard_normal((6, 4)), jnp.float32)
    by_squares = [losses.ProxyLoss(losses.nca(), by_cosine=one) for one in (False, True)]
    values = [proxy_loss(x, classes, 2 * x[:3], loss=loss) for loss in by_squares]
    assert values[0] == values[1]


@pytest.mark.parametrize("name_of", ["arcface", "soft_triple"])
def test_proxies_met_at_once_under_transformations(name_of):
    rng = np.random.default_rng(0)
    x, classes = rng.standard_normal((10, 4)), rng.integers(-1, 3, 10)
    proxies = rng.standard_normal((3, 2, 4))
    loss = getattr(losses, name_of)()

    def value(x, classes, proxies):
        return proxy_loss(x, classes, proxies, loss=loss)

    def scanned(*arguments):
        return jax.lax.scan(lambda total, _: (total + value(*arguments), None), 0.0, None, 1)[0]

    # In float64, as products of another order differ by more than a small gradient's last digits.
    with jax.enable_x64(True):
        arguments = jnp.asarray(x), jnp.asarray(classes), jnp.asarray(proxies)
        want = jax.jit(jax.grad(value, (0, 2)))(*arguments)
        for function in (jax.jit(value), jax.checkpoint(value), scanned):
            got = jax.jit(jax.grad(function, (0, 2)))(*arguments)
            chex.assert_trees_all_close(got, want, rtol=1e-9, atol=1e-12)
        over_sets = jax.jit(jax.vmap(jax.grad(value, (0, 2)), (0, None, None)))
        mapped = over_sets(arguments[0][None], *arguments[1:])
        got = jax.tree.map(lambda one: one[0], mapped)
        chex.assert_trees_all_close(got, want, rtol=1e-9, atol=1e-12)


@pytest.mark.sweep
@pytest.mark.parametrize("traced", [False, True])
def test_a_tile_without_positive_pairs_measures_none(traced):
    """It computes nothing of a statistic of positive pairs, whether or not that is traced."""
    classes = jnp.repeat(jnp.arange(4), 8)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((32, SIZE)), jnp.float32)

    def exponentials(condition):
        def value(x, scale):
            def of(distance, label):
                return statistics.log_sum_exp(distance * scale, condition(label))

            loss = losses.AnchorLoss(lambda result: losses.Mean(result, 1.0), (of,))
            return anchor_loss(x, classes, loss=loss, tile=8)

        value = value if traced else functools.partial(value, scale=2.0)
        given = (x, 2.0) if traced else (x,)
        return str(jax.make_jaxpr(value)(*given)).count("= exp ")

    # Tiles whose pairs are all negative, all plain ones, and any, in the sweep and for close ones.
    everything = exponentials(lambda label: label >= 0)
    assert exponentials(lambda label: label == 0) < everything
    assert exponentials(lambda label: label == 1) == everything


@pytest.mark.sweep
def test_statistics_are_given_arrays_of_jax():
    """A label that is known while tracing is to be no other kind of value than one that is not."""
    labels = []

    def of(distance, label):
        labels.append(label)
        half = jnp.where(label == 0, 1 / (1 - label), 0.5 * label)
        return statistics.total(half * distance)

    loss = losses.AnchorLoss(lambda result: losses.Mean(result, 1.0), (of,))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((32, SIZE)), jnp.float32)
    classes = jnp.repeat(jnp.arange(4), 8)
    value = jax.jit(lambda x: anchor_loss(x, classes, loss=loss, tile=8))(x)
    assert np.isfinite(value)
    assert all(isinstance(label, jax.Array) and label.dtype == jnp.int32 for label in labels)
    assert not all(isinstance(label, jax.core.Tracer) for label in labels)


def _root(a, b):
    return jnp.sqrt(jnp.sum((a - b) ** 2))  # without a derivative where vectors coincide


@pytest.mark.parametrize("classes", [np.zeros(20, int), np.arange(20)], ids=["one", "of one row"])
def test_an_extreme_of_no_pair_has_no_derivative(classes):
    """There are positive pairs alone, or negative ones, for a loss of both."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((20, 3)), jnp.float32)
    value = functools.partial(anchor_loss, loss=losses.triplet_hard(), distance=_root, tile=8)
    gradient = jax.jit(jax.grad(value))(x, classes)
    np.testing.assert_array_equal(gradient, np.zeros_like(x))


@pytest.mark.parametrize("name", ["supcon", "triplet_hard", "triplet_semi_hard", "angular"])
def test_without_references_a_loss_is_0(name):
    x, classes = jnp.asarray(X, jnp.float32), np.asarray(CLASSES)
    none = jnp.zeros((0, x.shape[1]), x.dtype), np.zeros(0, int)
    loss = getattr(losses, name)()

    def value_of(x, references):
        return anchor_loss(x, classes, references, none[1], loss=loss)

    value, gradients = jax.jit(jax.value_and_grad(value_of, (0, 1)))(x, none[0])
    assert value == 0
    np.testing.assert_array_equal(gradients[0], np.zeros_like(x))
    assert gradients[1].shape == none[0].shape


def test_a_pass_has_a_positive():
    loss = losses.triplet_all()._replace(positives_per_pass=0)
    with pytest.raises(ValueError, match="positives_per_pass must be at least 1, got 0"):
        anchor_loss(X, CLASSES, loss=loss)


@pytest.mark.parametrize("name", ["triplet_semi_hard", "smooth_ap"])
def test_any_number_of_positives_may_share_a_pass(name):
    """Statistics that are extremes, whose pairs alone are differentiated, and sums."""
    x = np.random.default_rng(3).standard_normal((ROWS, SIZE)).astype(np.float32)
    classes = np.array([-1, 6, *np.arange(ROWS - 2) % 5])

    def value_and_gradient(count):
        loss = getattr(losses, name)()._replace(positives_per_pass=count)
        measured = {"distance": _root} if name == "triplet_semi_hard" else {}
        one = functools.partial(anchor_loss, loss=loss, tile=TILE, **measured)
        return jax.jit(jax.value_and_grad(one))(x, classes)

    value, gradient = value_and_gradient(1)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 0
    actual, by_x = value_and_gradient(3)
    np.testing.assert_allclose(actual, value, rtol=1e-6)
    np.testing.assert_allclose(by_x, gradient, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("tile", [None, pytest.param(8, marks=pytest.mark.long)])
def test_without_compiling(tile):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((12, 4)), jnp.float32)
    classes = jnp.repeat(jnp.arange(4), 3)

    def value(x):
        return anchor_loss(x, classes, loss=losses.supcon(), tile=tile)

    want = jax.jit(jax.value_and_grad(value))(x)
    with jax.disable_jit():
        chex.assert_trees_all_close(jax.value_and_grad(value)(x), want, atol=1e-6)


LONG = pytest.mark.long


@pytest.mark.parametrize(
    "name_of",
    [
        "ntxent",
        *[pytest.param(one, marks=LONG) for one in ("multi_similarity", "triplet_all")],
    ],
)
def test_float32_where_float64_is_allowed(name_of):
    rng = np.random.default_rng(0)
    x, classes = _filled(rng.standard_normal((24, 4)), np.repeat(np.arange(6), 4))
    # The program that other tests of the loss compile.
    want, by = _program(name_of, "float64", tile=TILE)(x.astype("float32"), classes)

    def value(x):
        return _value(name_of, LOSSES[name_of][0], None, x, classes, tile=TILE)

    with jax.enable_x64(True):
        actual, gradient = jax.jit(jax.value_and_grad(value))(x.astype("float32"))
    assert actual.dtype == gradient.dtype == jnp.float32
    chex.assert_trees_all_close(
        (np.float64(actual), np.float64(gradient)), (want, by["x"]), atol=2e-6
    )


def test_curvature_of_a_proxy_loss():
    rng = np.random.default_rng(0)
    x, proxies, classes = rng.standard_normal((6, 4)), rng.standard_normal((3, 4)), np.arange(6) % 3
    with jax.enable_x64(True):

        @jax.jit
        def gradient(x):
            return jax.grad(lambda x: proxy_loss(x, classes, proxies, loss=losses.cosface()))(x)

        way = jnp.asarray(rng.standard_normal(x.shape))
        _, actual = jax.jvp(gradient, (jnp.asarray(x),), (way,))
        step = 1e-5
        want = (gradient(x + step * way) - gradient(x - step * way)) / (2 * step)
        np.testing.assert_allclose(actual, want, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("method", ["sweep", "autodiff"])
@pytest.mark.parametrize("of", ["supcon", "triplet_all", "arcface", "proxy_anchor", "soft_triple"])
def test_no_rows_are_worth_nothing(of, method, longer):
    proxies = np.ones((3, 2, 4) if of == "soft_triple" else (3, 4), np.float32)

    def value(x, reduction):
        loss, options = getattr(losses, of)(), {"reduction": reduction, "method": method}
        if of in PROXY_LOSSES:
            return proxy_loss(x, np.zeros(len(x), int), proxies, loss=loss, **options)
        return anchor_loss(x, np.zeros(len(x), int), loss=loss, **options)

    # What is divided by is the same by either method.
    for reduction in ("mean", "active", "sum") if longer or method == "sweep" else ("mean",):
        actual, gradient = jax.value_and_grad(value)(jnp.zeros((0, 4)), reduction)
        assert (actual, gradient.shape) == (0, (0, 4)) or of == "proxy_anchor"
        assert np.isfinite(actual)


def test_reductions():
    rng = np.random.default_rng(0)
    x, classes = _filled(*_batch(rng, "random", 30))
    x += 4 * np.eye(SIZE)[classes] * (classes[:, None] >= 0)
    of = functools.partial(
        anchor_loss, x.astype(np.float32), classes, loss=losses.triplet_hard(0.1), tile=TILE
    )
    mean, active, total = of(), of(reduction="active"), of(reduction="sum")
    values = []
    for d_p, d_n in numpy_losses._distances(numpy_losses.euclidean, x, classes, None, None):
        if len(d_p) and len(d_n):
            values.append(max(0.0, max(d_p) - min(d_n) + 0.1))
    assert 0 in values
    np.testing.assert_allclose(mean, np.mean(values), rtol=1e-5)
    np.testing.assert_allclose(active, np.sum(values) / np.count_nonzero(values), rtol=1e-5)
    np.testing.assert_allclose(total, np.sum(values), rtol=1e-5)


X, CLASSES = np.ones((4, 3), np.float32), np.arange(4)


@pytest.mark.parametrize(
    ("of", "error", "words"),
    [
        (
            lambda: anchor_loss(X, CLASSES, loss=losses.contrastive),
            ValueError,
            "is for all_pairs_loss",
        ),
        (lambda: anchor_loss(X, CLASSES, loss=losses.supcon), ValueError, "is to be called"),
        (
            lambda: anchor_loss(X, CLASSES, loss=losses.supcon(), reduction="balanced"),
            ValueError,
            "reduction must be one of",
        ),
        (
            lambda: anchor_loss(X, CLASSES, loss=losses.triplet_all(), data=(X[:, 0],)),
            ValueError,
            "takes no data",
        ),
        (
            lambda: anchor_loss(X, CLASSES, loss=losses.margin_by_class(), data=(X,)),
            AssertionError,
            r"data must be trees of \[B\]",
        ),
        (
            lambda: anchor_loss(X, CLASSES, loss=losses.margin_by_class(), data=(CLASSES,)),
            AssertionError,
            "input 0 has type int",
        ),
        (
            lambda: anchor_loss(X, CLASSES, loss=losses.AnchorLoss(lambda d: d, (lambda d, y: d,))),
            AssertionError,
            "statistics must return a tree",
        ),
        (
            lambda: anchor_loss(
                X, CLASSES, loss=losses.supcon()._replace(loss=lambda result: result[0])
            ),
            AssertionError,
            "loss must return a Mean",
        ),
        (
            lambda: anchor_loss(
                X,
                CLASSES,
                loss=losses.AnchorLoss(
                    lambda d, result: losses.Mean(result, 1.0),
                    (lambda d, y, t: statistics.log_sum_exp(-d / t),),
                ),
                data=(X[:, 0],),
            ),
            ValueError,
            "take that part out of the statistic",
        ),
        (
            lambda: anchor_loss(
                X,
                CLASSES,
                loss=losses.TripletLoss(
                    lambda p, result: losses.Mean(result, 1.0),
                    (lambda d, y, p: statistics.largest(p - d, y == 1),),
                ),
            ),
            ValueError,
            "take that part out of the statistic",
        ),
        (
            lambda: anchor_loss(X, CLASSES, loss=losses.margin_by_class()),
            ValueError,
            "needs data: a tuple of a boundary for each anchor, got 0",
        ),
        (
            lambda: anchor_loss(X, CLASSES, loss=losses.margin_by_class(), data=X[:, 0]),
            ValueError,
            "data must be a tuple",
        ),
        (
            lambda: anchor_loss(X, CLASSES, loss=losses.circle(), distance=distances.euclidean),
            ValueError,
            "holds for cosine distances alone, got euclidean",
        ),
        (
            lambda: all_pairs_loss(X, CLASSES, loss=losses.supcon()),
            ValueError,
            "is for anchor_loss",
        ),
        (
            lambda: pair_loss(X, X, CLASSES % 2, loss=losses.supcon()),
            ValueError,
            "is for anchor_loss",
        ),
        (losses.weighted_sum, ValueError, "at least one"),
        (lambda: losses.weighted_sum([(1, losses.nca())]), ValueError, "one pair of a weight"),
        (lambda: losses.weighted_sum((1, losses.margin_by_class())), ValueError, "no data"),
        (
            lambda: losses.weighted_sum((1, losses.contrastive)),
            ValueError,
            "mean_over_pairs makes one",
        ),
        (lambda: losses.mean_over_pairs(losses.supcon()), ValueError, "must be a function"),
        (
            lambda: losses.weighted_sum((1, losses.supcon()), (1, losses.nca())),
            ValueError,
            "must have one distance",
        ),
        (lambda: losses.weighted_sum((1, losses.triplet_all())), ValueError, "type AnchorLoss"),
        (lambda: losses.supcon(0.0), ValueError, "temperature must be above 0"),
        (lambda: losses.supcon(log="between"), ValueError, "'outside' or 'inside'"),
        (lambda: losses.triplet_hard(0.0), ValueError, "margin must be above 0"),
        (lambda: losses.fast_ap(0), ValueError, "at least 1, got 0"),
        (lambda: losses.fast_ap(2.5), ValueError, "bins must be a whole number"),
        (lambda: losses.angular(0.0), ValueError, "alpha must be above 0"),
        (lambda: losses.angular(40.0), ValueError, r"alpha must be in \[0, 1.5708\), got 40"),
        (lambda: losses.arcface(28.6), ValueError, r"margin must be in \[0, 3.1416\), got 28.6"),
        (lambda: losses.tuplet_margin(5.73), ValueError, r"margin must be in \[0, 1.5708\)"),
        (lambda: losses.circle(1.5), ValueError, r"margin must be in \[0, 1\)"),
        (lambda: losses.multi_similarity(base=7), ValueError, r"base must be in \[-1, 1\)"),
        (lambda: losses.multi_similarity(alpha=0), ValueError, "alpha must be above 0"),
        (lambda: losses.proxy_anchor(-0.1), ValueError, r"margin must be in \[0, 1\)"),
        (lambda: losses.cosface(math.nan), ValueError, r"margin must be in \[0, 2\), got nan"),
        (lambda: losses.lifted(math.nan), ValueError, "margin must be in"),
        (
            lambda: losses.contrastive(0.5, 0, 1.0, 1.5),
            ValueError,
            r"positive_margin must be in \[0, 1\), got 1.5",
        ),
        (lambda: losses.cosine_embedding(0.5, 0, 1.5), ValueError, r"margin must be in \[-1, 1\)"),
        (lambda: losses.cosface(scale=0.0), ValueError, "scale must be above 0"),
        (
            lambda: proxy_loss(X, CLASSES, X, loss=losses.contrastive),
            ValueError,
            "must be a ProxyLoss, a CentersLoss or an AnchorLoss",
        ),
        (
            lambda: proxy_loss(X, CLASSES, X[:3], loss=losses.cosface()),
            ValueError,
            "classes must be below 3",
        ),
        (
            lambda: proxy_loss(X, CLASSES, X[0], loss=losses.cosface()),
            AssertionError,
            "expected embeddings",
        ),
        (
            lambda: proxy_loss(X, CLASSES, X[:, :2], loss=losses.cosface()),
            AssertionError,
            "expected embeddings",
        ),
        (
            lambda: proxy_loss(X, CLASSES, X, loss=losses.soft_triple(), tile=16),
            ValueError,
            "takes no tile",
        ),
        (
            lambda: proxy_loss(X.astype(int), CLASSES, X, loss=losses.soft_triple()),
            AssertionError,
            "input 0 has type int",
        ),
        (
            lambda: proxy_loss(X, CLASSES, X.astype("float16"), loss=losses.soft_triple()),
            AssertionError,
            "proxies are not of embeddings' dtype",
        ),
    ],
)
def test_errors(of, error, words):
    with pytest.raises(error, match=words):
        of()


# Devices.

AXIS = "ring"
SHARED = {
    "ntxent": ["pmap", "shard_map"],
    "triplet_hard": ["shard_map"],
    "circle": ["pmap"],
    "margin_by_class": ["pmap"],
    "triplet_semi_hard": ["shard_map"],
    "angular": ["pmap"],
    "proxy_anchor": ["shard_map"],
    "arcface": ["shard_map"],
    "soft_triple": ["shard_map"],
}

# One loss of each kind of statistics that numbers are learned in, and one of proxies.
LEARNED_OVER_DEVICES = ("ntxent", "triplet_hard", "arcface")


def _over_devices(strategy, function, split, shared, classes, devices=4):
    """Value, gradients by what is split, and gradients by what is shared."""

    def local(split, shared, classes):
        value, (by_split, by_shared) = jax.value_and_grad(function, (0, 1))(split, shared, classes)
        if strategy == "pmap":
            # Each has the part of its own; `shard_map` adds up by itself.
            by_shared = jax.lax.psum(by_shared, AXIS)
        return value, by_split, by_shared

    if strategy == "pmap":
        split, classes = jax.tree.map(
            lambda a: a.reshape(devices, -1, *a.shape[1:]), (split, classes)
        )
        shared = jax.tree.map(lambda a: np.broadcast_to(a, (devices, *a.shape)), shared)
        mapped = jax.pmap(local, AXIS, devices=jax.devices()[:devices])
        values, by_split, by_shared = mapped(split, shared, classes)
        assert (values == values[0]).all()
        by_split = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), by_split)
        return values[0], by_split, jax.tree.map(lambda a: a[-1], by_shared)
    rows, alone = PartitionSpec(AXIS), PartitionSpec()
    mesh = Mesh(np.array(jax.devices()[:devices]), (AXIS,))
    mapped = jax.shard_map(
        local, mesh=mesh, in_specs=(rows, alone, rows), out_specs=(alone, rows, alone)
    )
    return jax.jit(mapped)(split, shared, classes)


@pytest.mark.parametrize("strategy", ["pmap", "shard_map"])
def test_devices_equal_one(name, strategy, longer):
    """In value, and in gradients by rows, by proxies and by numbers that are learned."""
    if strategy not in SHARED.get(name, ()):
        pytest.skip("as the others")
    others = (("ntxent", "shard_map"), ("circle", "pmap"), ("proxy_anchor", "shard_map"))
    if (name, strategy) in others and not longer:
        pytest.skip("others take sums over devices in this way, and this one with --long")
    rng = np.random.default_rng(0)
    # 36 rows for four devices; the last one does not count.
    x, classes, *proxies = _in_float32(_sets(rng, name, "random", 34))
    boundaries = rng.uniform(0.5, 2.0, ROWS).astype(np.float32)
    want, by = _program(name, "float32", tile=TILE)(x, classes, *proxies, boundaries=boundaries)

    learned = name in LEARNED_OVER_DEVICES
    hyper = jax.tree.map(np.float32, LOSSES[name][0])

    def value(split, shared, classes):
        params = shared[1] if learned else hyper
        if strategy == "shard_map":
            # A number that all devices share is to be marked as differing.
            params = jax.tree.map(lambda number: pcast_varying(number, (AXIS,)), params)
        options = {"axis_name": AXIS, "tile": 8}
        if name in ("margin_by_class", "triplet_semi_hard") and not longer:
            options["refine"] = False  # the others do, and a program is half as long
        return _value(name, params, split[1], split[0], classes, *shared[0], **options)

    actual, (by_x, by_boundaries), (by_proxies, by_numbers) = _over_devices(
        strategy,
        value,
        (x[:36], boundaries[:36]),
        (tuple(proxies), hyper if learned else {}),
        classes[:36],
    )
    np.testing.assert_allclose(actual, want, rtol=1e-5)
    gradients = [(by_x, by["x"][:36])]
    if name == "margin_by_class":
        gradients.append((by_boundaries, by["boundaries"][:36]))
    if proxies:
        gradients.append((by_proxies[0], by["references"]))
    for gradient, wanted in gradients:
        np.testing.assert_allclose(gradient, wanted, rtol=1e-5, atol=1e-5 * abs(wanted).max())
    if learned:
        _, by = _program(name, "float64", tile=TILE)(x, classes, *proxies, boundaries=boundaries)
        for key, wanted in by["hyper"].items():
            assert wanted != 0
            np.testing.assert_allclose(by_numbers[key], wanted, rtol=2e-5, err_msg=key)


@pytest.mark.parametrize("strategy", [pytest.param("pmap", marks=LONG), "shard_map"])
def test_two_sets_over_devices(strategy):
    rng = np.random.default_rng(0)
    x, classes, y, y_classes = _in_float32(
        (
            *_filled(*_batch(rng, "random", 34)),
            *_filled(*_batch(rng, "random", 20), REFERENCES),
        )
    )
    want, by = _program("triplet_hard", "float64", two=True)(x, classes, y, y_classes)

    def value(split, shared, classes):
        hyper = LOSSES["triplet_hard"][0]
        sets = split[0], classes[0], split[1], classes[1]
        return _value("triplet_hard", hyper, None, *sets, axis_name=AXIS, tile=8)

    actual, (by_x, by_y), _ = _over_devices(
        strategy, value, (x[:36], y[:20]), (), (classes[:36], y_classes[:20])
    )
    np.testing.assert_allclose(actual, want, rtol=1e-5)
    for gradient, wanted in ((by_x, by["x"][:36]), (by_y, by["references"][:20])):
        np.testing.assert_allclose(gradient, wanted, rtol=1e-5, atol=1e-5 * abs(wanted).max())


# Memory.


@pytest.mark.parametrize("name_of", ["supcon", pytest.param("triplet_semi_hard", marks=LONG)])
def test_memory_is_linear_in_the_batch(name_of):
    loss = getattr(losses, name_of)()
    step = jax.jit(jax.value_and_grad(lambda x, classes: anchor_loss(x, classes, loss=loss)))

    def temporary(rows):
        of = ((rows, 32), "float32"), ((rows,), "int32")
        compiled = step.lower(*[jax.ShapeDtypeStruct(*shape) for shape in of]).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(32_768) < 8 * temporary(4096)

"""Miners against direct loops in float64; what they leave out has no gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from contrastive_jax import anchor_loss, distances, losses, mining

SIZE = 6


def _batch(seed=0, count=40, classes=5):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, SIZE))
    c = rng.integers(0, classes, count)
    c[3] = -1
    return unit(x), c


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def _kept(x, c, y=None, y_c=None):
    """Of each anchor the distances of its positives and of its negatives."""
    one_set = y is None
    y, y_c = (x, c) if one_set else (y, y_c)
    for i in np.flatnonzero(c >= 0):
        d = np.linalg.norm(y - x[i], axis=1)
        others = (y_c >= 0) & ~(one_set & (np.arange(len(y)) == i))
        yield d[others & (y_c == c[i])], d[others & (y_c != c[i])]


def _pair(d, label, margin=1.0):
    return max(0.0, margin - d) ** 2 if label else d**2


def _mean(values):
    return np.mean(values) if len(values) else 0.0


def hard(*sets):
    return _mean(
        [_pair(p.max(), 0) for p, _ in _kept(*sets) if len(p)]
        + [_pair(n.min(), 1) for _, n in _kept(*sets) if len(n)]
    )


def easy_positive(*sets):
    return _mean(
        [_pair(p.min(), 0) for p, _ in _kept(*sets) if len(p)]
        + [_pair(n.min(), 1) for _, n in _kept(*sets) if len(n)]
    )


def semi_hard(*sets, margin=0.3):
    values = []
    for positives, negatives in _kept(*sets):
        for p in positives:
            farther = negatives[(negatives > p) & (negatives < p + margin)]
            if len(farther):
                values += [_pair(p, 0), _pair(farther.min(), 1)]
    return _mean(values)


def multi_similarity(*sets, epsilon=0.1):
    values = []
    for positives, negatives in _kept(*sets):
        positives, negatives = positives**2 / 2, negatives**2 / 2
        if len(positives) and len(negatives):
            values += [_pair(p, 0) for p in positives if p > negatives.min() - epsilon]
            values += [_pair(n, 1) for n in negatives if n < positives.max() + epsilon]
    return _mean(values)


def distance_weighted(*sets, cutoff=0.5, largest=1.4, frozen=None):
    """The weights are those of `frozen`, as they are not differentiated."""
    values = []
    for (positives, negatives), (_, as_weighed) in zip(
        _kept(*sets), _kept(*(sets if frozen is None else (frozen, *sets[1:]))), strict=True
    ):
        drawn = negatives[as_weighed < largest]
        d = np.maximum(as_weighed[as_weighed < largest], cutoff)
        weights = d ** (2 - SIZE) * (1 - d**2 / 4) ** ((3 - SIZE) / 2)
        of_negatives = [max(0, 0.2 - n + 1.2) for n in drawn]
        negative = np.average(of_negatives, weights=weights) if len(drawn) else 0
        values += [max(0, 0.2 + p - 1.2) + negative for p in positives]
    return _mean(values)


MINERS = {
    "hard": (mining.hard(), hard),
    "easy_positive": (mining.easy_positive(), easy_positive),
    "semi_hard": (mining.semi_hard(margin=0.3), semi_hard),
    "multi_similarity": (mining.multi_similarity(), multi_similarity),
    "distance_weighted": (mining.distance_weighted(dimension=SIZE), distance_weighted),
}
CASES = {
    "random": lambda x, c: (x, c),
    "one class": lambda x, c: (x, 0 * c),
    "distinct": lambda x, c: (x, np.arange(len(c))),
    "nothing": lambda x, c: (x, 0 * c - 1),
    "two rows": lambda x, c: (x, np.where(np.arange(len(c)) < 2, 0, -1)),
    "equal": lambda x, c: (x[:1] + 0 * x, c),
    "duplicates": lambda x, c: (x[np.arange(len(x)) // 2], c[np.arange(len(x)) // 2]),
}


@pytest.mark.parametrize("name", MINERS)
def test_miners(name):
    loss, reference = MINERS[name]
    program = jax.jit(
        jax.value_and_grad(lambda x, c: anchor_loss(x, c, loss=loss, tile=16), allow_int=True)
    )
    for case, change in CASES.items():
        x, c = change(*_batch())
        value, gradient = program(jnp.float32(x), c)
        np.testing.assert_allclose(value, reference(x, c), rtol=2e-5, atol=1e-7, err_msg=case)
        assert np.isfinite(gradient).all(), case
        if case == "nothing":
            np.testing.assert_array_equal(gradient, 0)
    # In one direction, against finite differences of the reference.
    x, c = _batch()
    way = np.random.default_rng(9).standard_normal(x.shape)
    if name == "multi_similarity":
        # Its distances are of vectors scaled to unit length, and so are changes along them.
        way -= np.sum(way * x, axis=1, keepdims=True) * x
    step = 1e-6
    fixed = {"frozen": x} if name == "distance_weighted" else {}
    above, below = (reference(unit(x + h * way), c, **fixed) for h in (step, -step))
    if name != "multi_similarity":
        above, below = (reference(x + h * way, c, **fixed) for h in (step, -step))
    slope = (above - below) / (2 * step)
    gradient = program(jnp.float32(x), c)[1]
    np.testing.assert_allclose(np.sum(gradient * way), slope, rtol=1e-3)


@pytest.mark.parametrize("name", MINERS)
def test_miners_of_two_sets(name):
    loss, reference = MINERS[name]
    sets = *_batch(), *_batch(1, 30)
    x, c, y, y_c = sets
    found = jax.jit(
        lambda x, y: anchor_loss(x, c, y, y_c, loss=loss, tile=16),
    )(jnp.float32(x), jnp.float32(y))
    np.testing.assert_allclose(found, reference(*sets), rtol=2e-5)


def test_multi_similarity_with_its_own_mining():
    """As published: the loss of the pairs that the rule finds."""
    x, c = _batch()
    values = []
    for positives, negatives in _kept(x, c):
        positives, negatives = 1 - positives**2 / 2, 1 - negatives**2 / 2
        near = negatives[negatives > positives.min() - 0.1]
        far = positives[positives < negatives.max() + 0.1]
        values.append(
            np.log1p(np.exp(-2 * (far - 0.5)).sum()) / 2
            + np.log1p(np.exp(20 * (near - 0.5)).sum()) / 20
        )
    mined = mining.multi_similarity(losses.multi_similarity(beta=20))
    found = anchor_loss(jnp.float32(x), c, loss=mined)
    np.testing.assert_allclose(found, np.mean(values), rtol=1e-5)
    assert found < 0.9999 * anchor_loss(jnp.float32(x), c, loss=losses.multi_similarity(beta=20))


def _online(x, c, y, y_c, margin):
    valid = (c[:, None] >= 0) & (y_c >= 0)
    if y is x:
        valid &= ~np.eye(len(c), dtype=bool)
    same, d = c[:, None] == y_c, 1 - x @ y.T
    positive, negative = d[valid & same], d[valid & ~same]
    if not (len(positive) and len(negative)):
        return 0.0
    near, far = negative.min(), positive.max()
    return sum(p**2 for p in positive if p > near) + sum(
        max(0, margin - n) ** 2 for n in negative if n < far
    )


@pytest.mark.parametrize("case", CASES)
def test_online_hard_pairs(case):
    x, c = CASES[case](*_batch())
    value, gradient = jax.value_and_grad(
        lambda x: mining.online_hard_loss(x, c, margin=0.9, tile=16)
    )(jnp.float32(x))
    want = _online(x, c, x, c, 0.9)
    np.testing.assert_allclose(value, want, rtol=1e-5, atol=1e-7)
    assert np.isfinite(gradient).all()
    if want == 0:
        np.testing.assert_array_equal(gradient, 0)


def test_online_hard_pairs_of_two_sets():
    x, c, y, y_c = *_batch(), *_batch(1, 30)
    of = functools.partial(mining.online_hard_loss, margin=0.9, tile=16)
    value, (by_x, by_y) = jax.value_and_grad(lambda x, y: of(x, c, y, y_c), (0, 1))(
        jnp.float32(x), jnp.float32(y)
    )
    np.testing.assert_allclose(value, _online(x, c, y, y_c, 0.9), rtol=1e-5)
    rng = np.random.default_rng(0)
    along, way = rng.standard_normal(x.shape), rng.standard_normal(y.shape)
    along -= np.sum(along * x, axis=1, keepdims=True) * x
    way -= np.sum(way * y, axis=1, keepdims=True) * y
    above, below = (
        _online(unit(x + h * along), c, unit(y + h * way), y_c, 0.9) for h in (1e-7, -1e-7)
    )
    slope = np.sum(by_x * along) + np.sum(by_y * way)
    np.testing.assert_allclose(slope, (above - below) / 2e-7, rtol=1e-3)


@pytest.mark.parametrize("strategy", [pytest.param("pmap", marks=pytest.mark.long), "shard_map"])
def test_online_hard_pairs_of_devices_are_those_of_the_batch(strategy):
    x, c = _batch()
    x = jnp.float32(x)

    def loss(x, c):
        return mining.online_hard_loss(x, c, margin=0.9, axis_name="d")

    value, gradient = jax.value_and_grad(lambda x: mining.online_hard_loss(x, c, margin=0.9))(x)
    devices = jax.devices()[:4]
    if strategy == "pmap":
        found, parts = jax.pmap(jax.value_and_grad(loss), "d", devices=devices)(
            x.reshape(4, 10, SIZE), c.reshape(4, 10)
        )
        found = found[0]
    else:
        rows = PartitionSpec("d")
        found, parts = jax.jit(
            jax.shard_map(
                jax.value_and_grad(loss),
                mesh=Mesh(np.array(devices), ("d",)),
                in_specs=(rows, rows),
                out_specs=(PartitionSpec(), rows),
            )
        )(x, c)
    np.testing.assert_allclose(found, value, rtol=1e-5)
    np.testing.assert_allclose(parts.reshape(x.shape), gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dimension": 2}, "dimension must be at least 3, got 2"),
        ({"dimension": 8, "cutoff": 1.5}, "0 < cutoff < largest <= 2, got 1.5 and 1.4"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        mining.distance_weighted(**options)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: mining.hard(losses.supcon()), "must be a function of a distance and a label"),
        (lambda: mining.multi_similarity(losses.ntxent()), "must take one walk and no data"),
        (lambda: mining.semi_hard(margin=0.0), "margin must be above 0, got 0"),
        (
            lambda: mining.multi_similarity(losses.multi_similarity(), distances.euclidean),
            "of its own distance",
        ),
        (lambda: mining.multi_similarity(epsilon=-1.0), "epsilon must be in"),
    ],
)
def test_wrong_losses_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_miners_take_any_pair_loss():
    x, c = _batch()
    linear = mining.hard(losses.contrastive_linear)
    value = anchor_loss(jnp.float32(x), c, loss=linear)
    kept = list(_kept(x, c))
    want = _mean(
        [p.max() for p, _ in kept if len(p)] + [max(0, 1 - n.min()) for _, n in kept if len(n)]
    )
    np.testing.assert_allclose(value, want, rtol=1e-5)

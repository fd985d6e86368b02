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


def _by_anchor(x, c, y=None, y_c=None):
    """Yields the distances of the positives and of the negatives of each anchor."""
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
        [_pair(p.max(), 0) for p, _ in _by_anchor(*sets) if len(p)]
        + [_pair(n.min(), 1) for _, n in _by_anchor(*sets) if len(n)]
    )


def easy_positive(*sets):
    return _mean(
        [_pair(p.min(), 0) for p, _ in _by_anchor(*sets) if len(p)]
        + [_pair(n.min(), 1) for _, n in _by_anchor(*sets) if len(n)]
    )


def semi_hard(*sets, margin=0.3):
    values = []
    for positives, negatives in _by_anchor(*sets):
        for p in positives:
            farther = negatives[(negatives > p) & (negatives < p + margin)]
            if len(farther):
                values += [_pair(p, 0), _pair(farther.min(), 1)]
    return _mean(values)


def multi_similarity(*sets, epsilon=0.1):
    values = []
    for positives, negatives in _by_anchor(*sets):
        positives, negatives = positives**2 / 2, negatives**2 / 2
        if len(positives) and len(negatives):
            values += [_pair(p, 0) for p in positives if p > negatives.min() - epsilon]
            values += [_pair(n, 1) for n in negatives if n < positives.max() + epsilon]
    return _mean(values)


def distance_weighted(*sets, cutoff=0.5, largest=1.4, frozen=None):
    """The weights are those of `frozen`, as they are not differentiated."""
    values = []
    for (positives, negatives), (_, as_weighed) in zip(
        _by_anchor(*sets),
        _by_anchor(*(sets if frozen is None else (frozen, *sets[1:]))),
        strict=True,
    ):
        drawn = negatives[as_weighed < largest]
        d = np.maximum(as_weighed[as_weighed < largest], cutoff)
        weights = d ** (2 - SIZE) * (1 - d**2 / 4) ** ((3 - SIZE) / 2)
        penalties = [max(0, 0.2 - n + 1.2) for n in drawn]
        negative = np.average(penalties, weights=weights) if len(drawn) else 0
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
def test_miners(name, longer):
    loss, reference = MINERS[name]
    # What a miner selects is the same function over tiles, where one of each type is tested.
    tile = 16 if longer or name in ("hard", "semi_hard") else None
    program = jax.jit(
        jax.value_and_grad(lambda x, c: anchor_loss(x, c, loss=loss, tile=tile), allow_int=True)
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


# One of anchors and one of triples between two sets; what the others select is tested in one set.
LONG = ("easy_positive", "multi_similarity", "distance_weighted")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long if name in LONG else []) for name in MINERS]
)
def test_miners_of_two_sets(name):
    loss, reference = MINERS[name]
    sets = *_batch(), *_batch(1, 30)
    x, c, y, y_c = sets
    actual = jax.jit(
        lambda x, y: anchor_loss(x, c, y, y_c, loss=loss, tile=16),
    )(jnp.float32(x), jnp.float32(y))
    np.testing.assert_allclose(actual, reference(*sets), rtol=2e-5)


def test_multi_similarity_with_its_own_mining():
    """As published: the loss of the pairs that the rule finds."""
    x, c = _batch()
    values = []
    for positives, negatives in _by_anchor(x, c):
        positives, negatives = 1 - positives**2 / 2, 1 - negatives**2 / 2
        near = negatives[negatives > positives.min() - 0.1]
        far = positives[positives < negatives.max() + 0.1]
        values.append(
            np.log1p(np.exp(-2 * (far - 0.5)).sum()) / 2
            + np.log1p(np.exp(20 * (near - 0.5)).sum()) / 20
        )
    mined = mining.multi_similarity(losses.multi_similarity(beta=20))
    actual = anchor_loss(jnp.float32(x), c, loss=mined)
    np.testing.assert_allclose(actual, np.mean(values), rtol=1e-5)
    assert actual < 0.9999 * anchor_loss(jnp.float32(x), c, loss=losses.multi_similarity(beta=20))


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


@jax.jit
def _online_hard(x, c):
    return jax.value_and_grad(lambda x: mining.online_hard_loss(x, c, margin=0.9, tile=16))(x)


@pytest.mark.parametrize("case", CASES)
def test_online_hard_pairs(case):
    x, c = CASES[case](*_batch())
    value, gradient = _online_hard(jnp.float32(x), c)
    want = _online(x, c, x, c, 0.9)
    np.testing.assert_allclose(value, want, rtol=1e-5, atol=1e-7)
    assert np.isfinite(gradient).all()
    if want == 0:
        np.testing.assert_array_equal(gradient, 0)


def test_online_hard_pairs_by_a_function_of_labels_and_of_a_distance_below_0():
    x, c = _batch(2)
    x = jnp.float32(x)
    expected = mining.online_hard_loss(x, c)

    def apart(a, b):
        return jnp.where((a < 0) | (b < 0), -1, (a != b).astype(int))

    np.testing.assert_allclose(mining.online_hard_loss(x, c, labels=apart), expected, rtol=1e-5)
    both = {"references": x, "reference_classes": jnp.asarray(c), "labels": apart}
    np.testing.assert_allclose(
        mining.online_hard_loss(x, jnp.asarray(c), **both),
        mining.online_hard_loss(x, c, x, c),
        rtol=1e-5,
    )
    # The same pairs are hard by the negative product of vectors of unit length.
    product = mining.online_hard_loss(
        x,
        c,
        loss=lambda d, y: losses.contrastive(1 + d, y, margin=0.5),
        distance=distances.negative_dot,
    )
    np.testing.assert_allclose(product, expected, rtol=1e-4)


def test_the_loss_of_each_row_is_the_mean_over_its_hard_pairs():
    x, c = _batch(2)
    d = np.linalg.norm(x[:, None] - x[None], axis=-1)
    counts = (c[:, None] >= 0) & (c[None] >= 0) & ~np.eye(len(x), dtype=bool)
    positive, negative = counts & (c[:, None] == c[None]), counts & (c[:, None] != c[None])
    hard = (positive & (d > d[negative].min())) | (negative & (d < d[positive].max()))
    values = np.where(positive, d, np.maximum(0, 0.9 - d)) ** 2
    sizes = hard.sum(1)
    expected = np.where(sizes, (hard * values).sum(1) / np.maximum(sizes, 1), 0)
    assert 0 < (sizes > 0).sum() < len(x)
    actual = mining.online_hard_loss(
        jnp.float32(x), c, loss=losses.contrastive, margin=0.9, reduction="none"
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


def test_online_hard_pairs_of_two_sets():
    x, c, y, y_c = *_batch(), *_batch(1, 30)
    of = functools.partial(mining.online_hard_loss, margin=0.9, tile=16)
    value, (by_x, by_y) = jax.jit(jax.value_and_grad(lambda x, y: of(x, c, y, y_c), (0, 1)))(
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
def test_online_hard_pairs_of_devices_are_those_of_the_batch(strategy, longer):
    x, c = _batch()
    x = jnp.float32(x)

    def loss(x, c):
        return mining.online_hard_loss(x, c, margin=0.9, axis_name="d", refine=longer)

    value, gradient = jax.jit(
        jax.value_and_grad(lambda x: mining.online_hard_loss(x, c, margin=0.9, refine=longer))
    )(x)
    devices = jax.devices()[:4]
    if strategy == "pmap":
        actual, parts = jax.pmap(jax.value_and_grad(loss), "d", devices=devices)(
            x.reshape(4, 10, SIZE), c.reshape(4, 10)
        )
        actual = actual[0]
    else:
        rows = PartitionSpec("d")
        actual, parts = jax.jit(
            jax.shard_map(
                jax.value_and_grad(loss),
                mesh=Mesh(np.array(devices), ("d",)),
                in_specs=(rows, rows),
                out_specs=(PartitionSpec(), rows),
            )
        )(x, c)
    np.testing.assert_allclose(actual, value, rtol=1e-5)
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


# The Euclidean distance of vectors of unit length, from others.
CHORDS = {
    distances.squared_euclidean: jnp.sqrt,
    distances.cosine: lambda d: jnp.sqrt(2 * d),
    distances.angular: lambda d: 2 * jnp.sin(d / 2),
    distances.negative_dot: lambda d: jnp.sqrt(2 + 2 * d),
}


@pytest.mark.parametrize(
    "distance",
    [
        # A sweep, which compiles in four times the time.
        pytest.param(one, marks=[pytest.mark.long] if one is distances.angular else [])
        for one in CHORDS
    ],
    ids=lambda one: one.__name__,
)
@pytest.mark.parametrize("whole", [False, True], ids=["pairs", "anchors"])
def test_negatives_are_drawn_alike_whichever_distance_the_loss_measures(distance, whole):
    chord = CHORDS[distance]
    margin_based = functools.partial(losses.margin_based, margin=0.3, boundary=1.1)

    def loss_of(measure, chord):
        loss = losses.with_distance(measure, (measure,))(lambda d, y: margin_based(chord(d), y))
        if whole:
            loss = losses.mean_over_pairs(loss)
        return mining.distance_weighted(loss, dimension=6)

    x = jnp.asarray(np.random.default_rng(3).standard_normal((12, 6)), jnp.float32)
    classes = np.arange(12) // 3

    def value(x, loss):
        return anchor_loss(x / jnp.linalg.norm(x, axis=1, keepdims=True), classes, loss=loss)

    results = [
        jax.value_and_grad(value)(x, loss)
        for loss in (loss_of(distance, chord), loss_of(EUCLIDEAN, lambda d: d))
    ]
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", [losses.sigmoid, losses.supcon(), losses.n_pair()])
def test_the_weights_of_negatives_have_no_derivative_where_rows_coincide(loss):
    x = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    x[5] = x[4] = x[0]
    mined = mining.distance_weighted(loss, dimension=4)
    gradient = jax.grad(lambda x: anchor_loss(x, np.arange(8) // 2, loss=mined))(x)
    assert np.isfinite(gradient).all()


A, LABELS = np.float32(np.eye(3)), np.array([0, 0, 1])
EUCLIDEAN = distances.euclidean
MANHATTAN = losses.with_distance(distances.manhattan)(losses.contrastive)
SUM = losses.weighted_sum((1, losses.ntxent()), (1, losses.supcon()))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: mining.hard(losses.arcface()),
            "ProxyLoss compares rows .*: give it to proxy_loss",
        ),
        (lambda: mining.hard(0.5), "must be a function of a distance and a label"),
        (lambda: mining.hard(losses.angular()), "measured from anchor and positive together"),
        (lambda: mining.multi_similarity(losses.angular()), "give its triplets to triplet_loss"),
        (
            lambda: mining.semi_hard(losses.margin_by_class()),
            "needs a boundary for each anchor, which it does not pass on",
        ),
        (
            lambda: mining.hard(losses.sigmoid, distances.euclidean),
            "sigmoid expects the cosine distance, .* got euclidean",
        ),
        (
            lambda: mining.distance_weighted(MANHATTAN, dimension=6),
            "follow from those of euclidean, .*, negative_dot, and this loss measures manhattan",
        ),
        (
            lambda: mining.easy_positive(losses.circle(), distances.euclidean),
            "holds for cosine distances alone, got euclidean",
        ),
        (
            lambda: anchor_loss(A, LABELS, loss=mining.hard(losses.sigmoid), distance=EUCLIDEAN),
            "sigmoid expects the cosine distance, .* got euclidean",
        ),
        (
            lambda: anchor_loss(A, LABELS, loss=mining.semi_hard(SUM)),
            "the loss has 2 means .*: mine the terms of weighted_sum one by one",
        ),
        (
            lambda: mining.online_hard_loss(A, LABELS, loss=losses.ntxent(), margin=0.3),
            "margin is passed to losses of pairs: make this loss with its margin",
        ),
        (lambda: mining.semi_hard(margin=0.0), "margin must be above 0, got 0"),
        (
            lambda: mining.multi_similarity(losses.multi_similarity(), distances.euclidean),
            "holds for cosine distances alone, got euclidean",
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
    pairs = list(_by_anchor(x, c))
    want = _mean(
        [p.max() for p, _ in pairs if len(p)] + [max(0, 1 - n.min()) for _, n in pairs if len(n)]
    )
    np.testing.assert_allclose(value, want, rtol=1e-5)


# Losses of anchors and of triplets, as sum and count over given positives and negatives.


def ntxent_formula(p, n, boundary):
    return sum(np.logaddexp.reduce([0, *(2 * (d - n))]) for d in p), len(p)


def lifted_formula(p, n, boundary):
    farthest = np.logaddexp.reduce(p) if len(p) else 0
    nearest = np.logaddexp.reduce(1 - n) if len(n) else 0
    return max(0, farthest + nearest), 1


def margin_by_class_formula(p, n, boundary):
    values = [max(0, 0.2 + d - boundary) for d in p for _ in n]
    values += [max(0, 0.2 + boundary - d) for d in n for _ in p]
    return sum(values), np.count_nonzero(values)


def triplet_all_formula(p, n, boundary):
    return sum(max(0, d - e + 0.4) for d in p for e in n), len(p) * len(n)


def smooth_ap_formula(p, n, boundary):
    def rank(d, others):
        return 0.5 + np.sum(1 / (1 + np.exp((others - d) / 0.2)))

    values = [1 - rank(d, p) / rank(d, np.concatenate([p, n])) for d in p]
    return (np.mean(values), 1) if len(p) else (0, 0)


BOUNDARIES = np.array([0.6, 0.8, 1.0, 1.2, 1.4])
LOSSES = {
    "ntxent": (losses.ntxent(0.5)._replace(distance=EUCLIDEAN), ntxent_formula),
    "lifted": (losses.lifted(), lifted_formula),
    "margin_by_class": (losses.margin_by_class(), margin_by_class_formula),
    "triplet_all": (losses.triplet_all(0.4), triplet_all_formula),
    "smooth_ap": (losses.smooth_ap(0.2)._replace(distance=EUCLIDEAN), smooth_ap_formula),
}


def _selected(miner, positives, negatives, batch, frozen):
    """Positives, negatives and the weight of each set of them that a miner selects."""
    none = np.zeros(0)
    if miner in ("hard", "easy_positive"):
        extreme = np.max if miner == "hard" else np.min
        yield (
            extreme(positives, keepdims=True) if len(positives) else none,
            np.min(negatives, keepdims=True) if len(negatives) else none,
            1,
        )
    elif miner == "semi_hard":
        for p in positives:
            farther = negatives[(negatives > p) & (negatives < p + 0.3)]
            if len(farther):
                yield np.array([p]), np.array([farther.min()]), 1
    elif miner == "multi_similarity":
        nearest, farthest = np.min(negatives, initial=np.inf), np.max(positives, initial=-np.inf)
        yield positives[positives > nearest - 0.1], negatives[negatives < farthest + 0.1], 1
    elif miner == "online_hard":
        nearest, farthest = batch
        yield positives[positives > nearest], negatives[negatives < farthest], 1
    else:
        drawn = negatives[frozen[1] < 1.4]
        d = np.maximum(frozen[1][frozen[1] < 1.4], 0.5)
        weights = d ** (2 - SIZE) * (1 - d**2 / 4) ** ((3 - SIZE) / 2)
        for p in positives:
            for n, weight in zip(drawn, weights / weights.sum(), strict=True):
                yield np.array([p]), np.array([n]), weight
            if not len(drawn):
                yield np.array([p]), none, 1


def _mined(miner, formula, x, c, frozen=None):
    pairs, as_frozen = list(_by_anchor(x, c)), list(_by_anchor(x if frozen is None else frozen, c))
    batch = (
        min(np.min(n, initial=np.inf) for _, n in pairs),
        max(np.max(p, initial=-np.inf) for p, _ in pairs),
    )
    value = count = 0
    for (p, n), own, boundary in zip(pairs, as_frozen, BOUNDARIES[c[c >= 0]], strict=True):
        for selected in _selected(miner, p, n, batch, own):
            part = formula(*selected[:2], boundary)
            value, count = value + selected[2] * part[0], count + selected[2] * part[1]
    return value / count if count else 0.0


def _program(miner, loss, c, tile=None):
    data = (BOUNDARIES.astype(np.float32)[c],) if getattr(loss, "needs", ()) else ()
    if miner == "online_hard":
        return lambda x: mining.online_hard_loss(x, c, loss=loss, reduction="mean", tile=tile)
    options = {
        "semi_hard": {"margin": 0.3},
        "distance_weighted": {"dimension": SIZE},
    }.get(miner, {})
    mined = getattr(mining, miner)(loss, **options)
    return lambda x: anchor_loss(x, c, loss=mined, data=data, tile=tile)


@pytest.mark.parametrize(
    ("miner", "loss"),
    [
        ("hard", "ntxent"),
        ("hard", "margin_by_class"),
        pytest.param("hard", "smooth_ap", marks=pytest.mark.long),
        ("easy_positive", "triplet_all"),
        pytest.param("semi_hard", "ntxent", marks=pytest.mark.long),
        ("semi_hard", "triplet_all"),
        ("multi_similarity", "ntxent"),
        pytest.param("multi_similarity", "margin_by_class", marks=pytest.mark.long),
        ("multi_similarity", "smooth_ap"),
        pytest.param("distance_weighted", "triplet_all", marks=pytest.mark.long),
        ("distance_weighted", "lifted"),
        ("online_hard", "ntxent"),
        pytest.param("online_hard", "triplet_all", marks=pytest.mark.long),
    ],
)
def test_miners_take_losses_of_anchors_and_of_triplets(miner, loss, longer):
    """Over the matrix of small batches, and over tiles, as `test_miners` has it, with `--long`."""
    loss, formula = LOSSES[loss]
    x, c = _batch(count=24)
    want = functools.partial(_mined, miner, formula, c=c, frozen=x)
    way, h = np.random.default_rng(9).standard_normal(x.shape), 1e-6
    slope = (want(x + h * way) - want(x - h * way)) / (2 * h)
    assert abs(slope) > 1e-3
    for tile in (None, 16) if longer else (None,):
        program = jax.jit(jax.value_and_grad(_program(miner, loss, c, tile)))
        value, gradient = program(jnp.float32(x))
        np.testing.assert_allclose(value, want(x), rtol=2e-5)
        np.testing.assert_allclose(np.sum(gradient * way), slope, rtol=1e-3)


@pytest.mark.parametrize("loss", ["lifted", "smooth_ap"])
def test_miners_of_losses_where_pairs_are_missing(loss):
    """Some anchors have no positive, and none a negative that is selected."""
    x, _ = _batch(count=8)
    loss, formula = LOSSES[loss]
    for miner in ("hard", "multi_similarity"):
        program = jax.jit(lambda x, c, miner=miner: jax.value_and_grad(_program(miner, loss, c))(x))
        for c in (np.array([0, 0, 1, 2, 3, 4, -1, -1]), np.array([0, 0, 0, 0, 0, 0, 0, -1])):
            value, gradient = program(jnp.float32(x), c)
            want = _mined(miner, formula, x, c)
            np.testing.assert_allclose(value, want, rtol=1e-5, atol=1e-6)
            assert np.isfinite(gradient).all()


def test_a_miner_measures_the_distance_of_its_loss():
    x, c = _batch(count=24)
    values = []
    for positives, negatives in _by_anchor(x, c):
        far, near = positives.max() ** 2 / 2, negatives.min() ** 2 / 2
        values += [np.logaddexp(0, -(10 * (1 - far) - 10)), np.logaddexp(0, 10 * (1 - near) - 10)]
    actual = anchor_loss(jnp.float32(3 * x), c, loss=mining.hard(losses.sigmoid), tile=16)
    np.testing.assert_allclose(actual, np.mean(values), rtol=1e-5)


def test_hard_pairs_of_the_batch_keep_the_margin_of_their_loss():
    x, c = _batch(count=24)
    actual = mining.online_hard_loss(jnp.float32(x), c)
    np.testing.assert_allclose(actual, _online(x, c, x, c, 0.5), rtol=1e-5)

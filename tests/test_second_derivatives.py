"""Second derivatives of all losses, in both orders, against differences of first ones."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_anchor_losses import LOSSES, PROXY_LOSSES, VARIANTS, _value

from contrastive_jax import (
    all_pairs_loss,
    anchor_loss,
    anchor_statistics,
    distances,
    losses,
    mining,
    proxy_loss,
    regularizers,
    statistics,
)

CLASSES = np.array([0, 1, 2, 0, 1, 2, -1, 0], np.int32)
STEP = 1e-5


def _arguments(name, rng):
    hyper = {key: jnp.asarray(value) for key, value in LOSSES[name][0].items()}
    x = jnp.asarray(rng.standard_normal((len(CLASSES), 3)))
    boundaries = jnp.asarray(rng.uniform(0.8, 1.5, len(CLASSES)))
    proxies = jnp.asarray(rng.standard_normal((3, 2, 3) if name == "soft_triple" else (3, 3)))
    return hyper, boundaries, x, proxies


def _assert_curvature(value, arguments, rng, plain=None, *, backward=True):
    """Compares products with the Hessian, in both orders, with differences of the gradient.

    A formula that stops gradients is compared with a plain one in place of differences. Without
    `backward` only the derivative of the gradient in a direction is compared.
    """

    gradient = jax.grad(value)

    @jax.jit
    def derivatives(arguments, way):
        first, forward = jax.jvp(gradient, (arguments,), (way,))
        reverse = jax.vjp(gradient, arguments)[1](way)[0] if backward else None
        return first, forward, reverse

    way = jax.tree.map(lambda one: jnp.asarray(rng.standard_normal(one.shape)), arguments)
    moved = [
        jax.tree.map(lambda one, of, by=by: one + by * of, arguments, way) for by in (STEP, -STEP)
    ]
    _, forward, reverse = derivatives(arguments, way)
    after, before = (derivatives(one, way)[0] for one in moved)
    want = jax.tree.map(lambda a, b: (a - b) / (2 * STEP), after, before)
    if plain is not None:
        want = jax.jit(lambda *both: jax.jvp(jax.grad(plain), *((x,) for x in both))[1])(
            arguments, way
        )
    scale = max(float(jnp.abs(one).max()) for one in jax.tree.leaves(want))
    assert scale > 1e-3
    chex.assert_trees_all_close(forward, want, rtol=1e-5, atol=1e-6 * scale)
    if backward:
        chex.assert_trees_all_close(reverse, want, rtol=1e-5, atol=1e-6 * scale)


def _plain_circle(hyper, x):
    """The formula over a matrix, with weights that are not differentiated."""
    unit = x / jnp.linalg.norm(x, axis=1, keepdims=True)
    s, margin, scale = unit @ unit.T, hyper["margin"], hyper["scale"]
    counts = (CLASSES[:, None] >= 0) & (CLASSES >= 0) & ~np.eye(len(CLASSES), dtype=bool)
    same = CLASSES[:, None] == CLASSES
    positive_weights = jax.lax.stop_gradient(jax.nn.relu(1 + margin - s))
    negative_weights = jax.lax.stop_gradient(jax.nn.relu(s + margin))
    positives = jnp.where(counts & same, -scale * positive_weights * (s - 1 + margin), -jnp.inf)
    negatives = jnp.where(counts & ~same, scale * negative_weights * (s - margin), -jnp.inf)
    rows = CLASSES >= 0
    both = jax.nn.logsumexp(positives[rows], axis=1) + jax.nn.logsumexp(negatives[rows], axis=1)
    return jnp.mean(jax.nn.softplus(both))


# One loss of each type and reduction; the formulas of the others are differentiated by JAX alone.
QUICK = (
    "supcon",
    "circle",
    "margin_by_class",
    "triplet_hard",
    "triplet_semi_hard",
    "arcface",
    "soft_triple",
)


# One loss of each way to a gradient: log-sum-exps, sums, positives taken one by one, and proxies.
BOTH_ORDERS = ("supcon", "margin_by_class", "triplet_semi_hard", "arcface", "soft_triple")

# One of anchors and one of triplets over tiles; the others over the matrix of small batches, whose
# program is a third as long, and over tiles with `--long`.
OVER_TILES = ("supcon", "triplet_semi_hard")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else pytest.mark.long)
        for name in LOSSES
        if name not in VARIANTS
    ],
)
def test_every_loss(name, longer):
    rng = np.random.default_rng(0)

    def value(arguments):
        hyper, boundaries, x, proxies = arguments
        sets = (x, CLASSES, proxies) if name in PROXY_LOSSES else (x, CLASSES)
        tile = 8 if longer or name in OVER_TILES else None
        options = {} if name in PROXY_LOSSES else {"refine": False, "tile": tile}
        return _value(name, hyper, boundaries, *sets, **options)

    def plain(arguments):
        return _plain_circle(arguments[0], arguments[2])

    with jax.enable_x64(True):
        arguments = _arguments(name, rng)
        plain_of = plain if name == "circle" else None
        backward = longer or name in BOTH_ORDERS
        _assert_curvature(value, arguments, rng, plain_of, backward=backward)


def _mined(loss, tile=None):
    return lambda x: anchor_loss(x, CLASSES, loss=loss, refine=False, tile=tile)


OTHERS = {
    "hard miner": _mined(mining.hard(losses.logistic)),
    "semi-hard miner": _mined(mining.semi_hard(losses.logistic)),
    "multi-similarity miner": _mined(mining.multi_similarity(losses.multi_similarity()), tile=8),
    "weighted sum": _mined(losses.weighted_sum((0.3, losses.supcon()), (2.0, losses.decoupled()))),
    "online hard": lambda x: mining.online_hard_loss(
        x, CLASSES, margin=1.5, reduction="active", refine=False, tile=8
    ),
    "koleo": regularizers.koleo,
    "all pairs": lambda x: all_pairs_loss(x, CLASSES, margin=3.0, reduction="balanced", tile=8),
    "two sets": lambda x: all_pairs_loss(x[:5], CLASSES[:5], x[5:], CLASSES[5:], refine=False),
    "two sets of anchors": lambda x: anchor_loss(
        x[:5], CLASSES[:5], x[5:], CLASSES[5:], loss=losses.ntxent(0.5), refine=False
    ),
    "one's own distance": lambda x: all_pairs_loss(
        x, CLASSES, distance=lambda a, b: jnp.sum(jnp.cosh(a - b) - 1), tile=8
    ),
}


# Losses of a miner differ in the pairs that they select, and have no derivative by those.
LONG = ("multi-similarity miner", "semi-hard miner")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.long if name in LONG else []) for name in OTHERS],
)
def test_other_losses(name):
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        x = jnp.asarray(rng.standard_normal((len(CLASSES), 3)))
        _assert_curvature(OTHERS[name], x, rng)


X = np.random.default_rng(2).standard_normal((len(CLASSES), 3)).astype(np.float32)


def _logits(distance, label):
    return statistics.log_sum_exp(-distance, label == 1)


FORWARD = {
    "all pairs": lambda x, **k: all_pairs_loss(x, CLASSES, **k),
    "anchors": lambda x, **k: anchor_loss(x, CLASSES, loss=losses.supcon(), **k),
    "triples": lambda x, **k: anchor_loss(x, CLASSES, loss=losses.triplet_all(), **k),
    "proxies": lambda x, **k: proxy_loss(x, CLASSES, X[:3] + 0.5, loss=losses.arcface(), **k),
}


@pytest.mark.parametrize("name", FORWARD)
def test_forward_mode_and_the_plain_method(name):
    value = FORWARD[name]
    results, slopes = zip(
        *[
            jax.jit(functools.partial(jax.jvp, functools.partial(value, method=method)))(
                (X,), (X[::-1],)
            )
            for method in ("sweep", "autodiff")
        ],
        strict=True,
    )
    np.testing.assert_allclose(*results, rtol=1e-5)
    np.testing.assert_allclose(*slopes, rtol=2e-5, atol=1e-6)
    gradients = [
        jax.jit(jax.grad(functools.partial(value, method=m)))(X) for m in ("sweep", "autodiff")
    ]
    chex.assert_trees_all_close(*gradients, rtol=1e-4, atol=1e-6)


def test_what_can_not_be_differentiated_twice_names_the_way():
    def summed(x, method):
        (value,) = anchor_statistics(
            x, CLASSES, statistics=(_logits,), distance=distances.euclidean, method=method
        )
        return jnp.sum(jnp.where(CLASSES >= 0, value, 0) ** 2)

    with pytest.raises(TypeError, match='method="autodiff"'):
        jax.eval_shape(jax.hessian(functools.partial(summed, method="sweep")), X)
    assert np.isfinite(jax.jit(jax.hessian(functools.partial(summed, method="autodiff")))(X)).all()

    def over_devices(x, c):
        return anchor_loss(x, c, loss=losses.supcon(), axis_name="i")

    mapped = jax.vmap(jax.hessian(over_devices), axis_name="i")
    with pytest.raises(TypeError, match='method="autodiff"'):
        jax.eval_shape(mapped, X.reshape(2, 4, 3), CLASSES.reshape(2, 4))
    with pytest.raises(ValueError, match="method must be one of sweep, autodiff, got 'dense'"):
        proxy_loss(X, CLASSES, X[:3], loss=losses.arcface(), method="dense")

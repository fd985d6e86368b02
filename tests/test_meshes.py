"""Arrays on a mesh of devices give the values and gradients of one device."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from contrastive_jax import (
    all_pairs_loss,
    all_pairs_sums,
    anchor_loss,
    anchor_statistics,
    distances,
    labels,
    losses,
    memory,
    mining,
    pair_loss,
    proxy_loss,
    regularizers,
    statistics,
)
from contrastive_jax.data import draw_balanced, draw_pairs, index_by_class

ROWS, SIZE, TILE = 16, 6, 8
RNG = np.random.default_rng(0)
X = RNG.standard_normal((ROWS, SIZE)).astype(np.float32)
CLASSES = np.arange(ROWS) % 4
PROXIES = RNG.standard_normal((4, 2, SIZE)).astype(np.float32)
INDEX = index_by_class(CLASSES)


def _distances(x, c):
    parameters = {
        "minkowski": {"order": 2.5},
        "mahalanobis": {"factor": np.float32(PROXIES[:, 0])},
    }
    x = 0.1 * x
    functions = [
        partial(getattr(distances, name), **parameters.get(name, {})) for name in distances.__all__
    ]
    return sum(jnp.sum(jax.vmap(function)(x, 1.5 * x + 0.01)) for function in functions)


def _drawn(x, c):
    """Numbers that would tell another draw, and depend on the embeddings."""
    index = INDEX._replace(members=jnp.arange(ROWS) + 0 * c)
    first, second, labels = draw_pairs(jax.random.key(0), index, ROWS, 0.5)
    positions, classes = draw_balanced(jax.random.key(1), index, 4, 4)
    weights = first + 2 * second + 3 * labels + 5 * positions + 7 * classes
    return jnp.sum(weights * jnp.sum(x, axis=1))


def _remembered(x, c):
    bank = memory.push(memory.empty(24, SIZE), x, c, 0)
    bank = memory.push(bank, x + 1, c, 1)
    embeddings, classes = memory.references(bank, 2, max_age=1)
    return jnp.sum(jnp.where(classes[:, None] == 1, embeddings, 0)) + jnp.sum(x**2)


def _statistics(x, c):
    def function(distance, label):
        return statistics.total(distance, label == 0), statistics.log_sum_exp(-distance)

    ((totals, others),) = anchor_statistics(x, c, statistics=(function,), tile=TILE)
    return jnp.sum(totals * others)


def _labelled(x, c):
    rule, attributes = labels.same_class_other_group(), (c, jnp.arange(ROWS) // 4)
    options = {"labels": rule, "refine": False}
    pairs = all_pairs_loss(x, attributes, **options)
    return pairs + anchor_loss(x, attributes, loss=losses.triplet_hard(), tile=TILE, **options)


def _anchor_value(loss):
    return lambda x, c: anchor_loss(x, c, loss=loss, tile=TILE, refine=False)


def _proxy_value(loss, **options):
    return lambda x, c: proxy_loss(x, c, PROXIES, loss=loss, **options)


# What looks at rows or at pairs one by one, and is compiled quickly.
SIMPLE = {
    "distances": _distances,
    "pair_loss": lambda x, c: jnp.sum(pair_loss(x, 0.5 * x[::-1], c % 2, margin=2.0)),
    "embedding_norm": regularizers.embedding_norm,
    "variance": regularizers.variance,
    "covariance": regularizers.covariance,
    "centers": lambda x, c: regularizers.centers(x.reshape(ROWS // 2, 2, SIZE)),
    "memory": _remembered,
    "draw": _drawn,
}
# One of each way that pairs are walked; what takes time is compiling them. Close pairs are measured
# again by one function, which statistics and all pairs run here; the others leave it out.
WALKS = {
    "autodiff": lambda x, c: all_pairs_loss(x, c, tile=TILE, method="autodiff"),
    "anchor_statistics": _statistics,
    "triplet_semi_hard": _anchor_value(losses.triplet_semi_hard()._replace(positives_per_pass=1)),
    "margin_by_class": lambda x, c: anchor_loss(
        x, c, loss=losses.margin_by_class(), data=(jnp.abs(x[:, 0]),), tile=TILE
    ),
    "angular": _anchor_value(losses.angular()._replace(positives_per_pass=1)),
    "soft_triple": _proxy_value(losses.soft_triple()),
    "proxy_anchor": _proxy_value(losses.proxy_anchor(), tile=TILE, refine=False),
    "online_hard_loss": lambda x, c: mining.online_hard_loss(x, c, tile=TILE),
    "koleo": regularizers.koleo,
    "labels": _labelled,
}
FUNCTIONS = SIMPLE | WALKS
FUNCTIONS["all_pairs_sums"] = lambda x, c: jnp.sum(
    all_pairs_sums(x, c, tile=TILE, refine=False).loss
)
MESHES = {
    "one axis": ((4,), ("data",), PartitionSpec("data", None)),
    "two axes": ((2, 2), ("data", "model"), PartitionSpec("data", "model")),
    "rows over two axes": ((2, 2), ("data", "model"), PartitionSpec(("data", "model"), None)),
}
AXIS_TYPES = {"explicit": AxisType.Explicit, "automatic": AxisType.Auto}


def _on_mesh(mesh, kind):
    if kind == "explicit" and jax.__version_info__ < (0, 10):
        pytest.skip("arrays along explicit axes need jax 0.10")
    shape, names, spec = MESHES[mesh]
    made = jax.make_mesh(shape, names, axis_types=(AXIS_TYPES[kind],) * len(shape))
    sharding = NamedSharding(made, spec)
    return jax.device_put(X, sharding), jax.device_put(
        CLASSES, NamedSharding(made, PartitionSpec(spec[0]))
    )


def _each(names):
    return jax.jit(lambda x, c: {name: jax.value_and_grad(FUNCTIONS[name])(x, c) for name in names})


@cache
def _on_one_device(names):
    return _each(names)(X, CLASSES)


def _assert_equal_on_mesh(names, mesh, kind):
    x, c = _on_mesh(mesh, kind)
    want, actual = _on_one_device(names), _each(names)(x, c)
    for name, (value, gradient) in want.items():
        np.testing.assert_allclose(actual[name][0], value, rtol=2e-6, err_msg=name)
        atol = 2e-6 * abs(gradient).max()
        np.testing.assert_allclose(actual[name][1], gradient, atol=atol, rtol=2e-6, err_msg=name)
        if kind == "explicit":
            assert actual[name][1].sharding.is_equivalent_to(x.sharding, 2), name


@pytest.mark.parametrize(
    ("mesh", "kind"),
    [
        ("one axis", "explicit"),
        ("two axes", "explicit"),
        pytest.param("two axes", "automatic", marks=pytest.mark.long),
    ],
)
def test_what_goes_row_by_row(mesh, kind):
    _assert_equal_on_mesh(tuple(SIMPLE), mesh, kind)


@pytest.mark.parametrize("kind", AXIS_TYPES)
@pytest.mark.parametrize("mesh", MESHES)
def test_all_pairs(mesh, kind):
    _assert_equal_on_mesh(("all_pairs_sums",), mesh, kind)


# Each goes through the same code as another one here: the picked pairs, the sums of anchors, and
# the triples.
LONG = ("online_hard_loss", "margin_by_class", "triplet_semi_hard")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long if name in LONG else []) for name in WALKS]
)
def test_walks_over_pairs(name):
    _assert_equal_on_mesh((name,), "one axis", "explicit")


def test_within_the_context_of_a_mesh():
    x, c = _on_mesh("one axis", "explicit")
    with jax.set_mesh(x.sharding.mesh):
        value, gradient = jax.value_and_grad(all_pairs_loss)(x, c, tile=TILE)
    want, by = jax.jit(jax.value_and_grad(partial(all_pairs_loss, tile=TILE)))(X, CLASSES)
    np.testing.assert_allclose(value, want, rtol=2e-6)
    np.testing.assert_allclose(gradient, by, rtol=2e-6, atol=1e-8)


def test_given_pairs_stay_on_their_devices():
    x, c = _on_mesh("one axis", "explicit")
    compiled = jax.jit(lambda x, c: pair_loss(x, 2 * x, c % 2)).lower(x, c).compile()
    assert "all-gather" not in compiled.as_text()
    assert compiled(x, c).sharding.spec == PartitionSpec("data")

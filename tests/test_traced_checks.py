"""Under `checkify` traced numbers and classes are errors where known ones are."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from jax.sharding import Mesh, PartitionSpec

from contrastive_jax import (
    all_pairs_loss,
    anchor_loss,
    distances,
    losses,
    mining,
    pair_loss,
    proxy_loss,
)

A = np.float32([[1, 2], [3, 4], [5, 6]])
B = A + np.float32(0.5)
LABELS = np.array([0, 1, 0])
CLASSES = np.array([0, 0, 1])


def _anchors(make, **options):
    return lambda value: anchor_loss(A, CLASSES, loss=make(value), tile=8, refine=False, **options)


def _proxies(make):
    return lambda value: proxy_loss(A, CLASSES, B[:2], loss=make(value))


def _pairs(loss, name):
    """All pairs with a number that the loss is given by a partial function."""
    return lambda value: all_pairs_loss(
        A, CLASSES, loss=functools.partial(loss, **{name: value}), tile=8
    )


# Of each way in which a number enters: the function, a right value, a wrong one and the message.
HYPERPARAMETERS = {
    "ntxent": (_anchors(losses.ntxent), 0.1, -1.0, "temperature must be above 0 and finite, got -"),
    "circle": (_anchors(losses.circle), 0.4, 1.5, r"margin must be in \[0, 1\), got 1.5"),
    "triplet_all": (_anchors(losses.triplet_all), 0.2, 0.0, "margin must be above 0 and finite"),
    "semi_hard": (
        _anchors(lambda margin: mining.semi_hard(margin=margin)),
        0.2,
        0.0,
        "margin must be above 0, got 0",
    ),
    "hard": (
        _anchors(lambda t: mining.hard(functools.partial(losses.sigmoid, temperature=t))),
        10.0,
        -1.0,
        "temperature must be above 0 and finite, got -1",
    ),
    "cosface": (_proxies(losses.cosface), 0.3, 2.0, r"margin must be in \[0, 2\), got 2"),
    "soft_triple": (_proxies(losses.soft_triple), 0.1, -1.0, r"margin must be in \[0, 2\), got -1"),
    "margin": (lambda m: all_pairs_loss(A, CLASSES, margin=m, tile=8), 1.0, -1.0, "margin must be"),
    "sigmoid": (_pairs(losses.sigmoid, "temperature"), 10.0, 0.0, "temperature must be above 0"),
    "cosine_embedding": (
        _pairs(losses.cosine_embedding, "margin"),
        0.5,
        1.0,
        r"margin must be in \[-1, 1\), got 1",
    ),
    "positive_margin": (
        _pairs(losses.contrastive, "positive_margin"),
        0.5,
        -1.0,
        "positive_margin must be in",
    ),
    "minkowski": (
        lambda order: all_pairs_loss(
            A, CLASSES, distance=functools.partial(distances.minkowski, order=order), tile=8
        ),
        2.0,
        0.5,
        "order must be at least 1 and finite, got 0.5",
    ),
    "given pairs": (
        lambda t: jnp.sum(
            pair_loss(A, B, LABELS, loss=functools.partial(losses.sigmoid, temperature=t))
        ),
        10.0,
        -1.0,
        "temperature must be above 0 and finite, got -1",
    ),
}


# One of each function of the library; a check of a value is the same where a gradient is taken.
DERIVED = ("margin", "ntxent", "soft_triple", "given pairs")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.long if name == "triplet_all" else [])
        for name in HYPERPARAMETERS
    ],
)
def test_numbers_of_losses(name, longer):
    function, right, wrong, message = HYPERPARAMETERS[name]
    with pytest.raises(ValueError, match=message):
        function(wrong)
    if longer or name in DERIVED:
        function = jax.value_and_grad(function)
    checked = jax.jit(checkify.checkify(function))
    error, _ = checked(right)
    error.throw()
    error, _ = checked(wrong)
    with pytest.raises(ValueError, match=message):
        error.throw()


WRONG_CLASSES = {
    "without a proxy": (
        lambda c: proxy_loss(A, c, B[:2], loss=losses.arcface()),
        np.array([0, 1, 2]),
        "classes must be below 2, the number of proxies, got 2",
    ),
    "that wrap": (
        lambda c: all_pairs_loss(A, c, tile=8),
        np.array([2**32 - 1, 0, 1], np.uint32),
        r"classes must be from 0 to .*, got 4294967295 in row 0",
    ),
}


@pytest.mark.parametrize("name", WRONG_CLASSES)
def test_wrong_classes(name):
    function, wrong, message = WRONG_CLASSES[name]
    with pytest.raises(ValueError, match=message):
        function(wrong)
    checked = jax.jit(checkify.checkify(function))
    for right in (CLASSES.astype(wrong.dtype), CLASSES.astype(np.uint8), CLASSES - 1):
        checked(right)[0].throw()
    with pytest.raises(ValueError, match=message):
        checked(wrong)[0].throw()


def _with(row, value):
    """Rows of embeddings of which one has a wrong entry."""
    wrong = B.copy()
    wrong[row, 1] = value
    return wrong


WRONG_ARRAYS = {
    "margins of classes": (
        lambda margins: all_pairs_loss(A, CLASSES, margin=margins),
        np.float32([1, 2]),
        np.float32([1, -1]),
        "margin must be above 0 and finite, got -1.0 in row 1",
    ),
    "margins of pairs": (
        lambda margins: jnp.sum(pair_loss(A, B, LABELS, margin=margins)),
        np.float32([1, 2, 3]),
        np.float32([1, 2, np.nan]),
        "margin must be above 0 and finite, got nan in row 2",
    ),
    "weights": (
        lambda weights: all_pairs_loss(A, CLASSES, weights=weights),
        np.float32([1, 0, 2]),
        np.float32([1, -1, 2]),
        "weights must be at least 0 and finite, got -1.0 in row 1",
    ),
    "references": (
        lambda references: all_pairs_loss(A, CLASSES, references, CLASSES),
        B,
        _with(2, np.inf),
        "references must be finite, got inf in row 2",
    ),
    "proxies": (
        lambda proxies: proxy_loss(A, CLASSES, proxies, loss=losses.arcface()),
        B,
        _with(0, np.nan),
        "proxies must be finite, got nan in row 0",
    ),
}


@pytest.mark.parametrize("name", WRONG_ARRAYS)
def test_wrong_arrays(name):
    function, right, wrong, message = WRONG_ARRAYS[name]
    with pytest.raises(ValueError, match=message):
        function(wrong)
    checked = jax.jit(checkify.checkify(function))
    checked(right)[0].throw()
    with pytest.raises(ValueError, match=message):
        checked(wrong)[0].throw()


def test_numbers_of_losses_over_devices():
    """Checked inside of `jax.shard_map`, where the loss is made of a number that all share."""
    mesh = Mesh(np.array(jax.devices()[:3]), ("devices",))
    rows = PartitionSpec("devices")

    def local(x, c, temperature):
        loss = losses.ntxent(temperature)
        return anchor_loss(x, c, loss=loss, axis_name="devices", tile=8, refine=False)

    mapped = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(rows, rows, PartitionSpec()),
        out_specs=PartitionSpec(),
        check_vma=False,
    )
    checked = jax.jit(checkify.checkify(mapped))
    checked(A, CLASSES, 0.1)[0].throw()
    with pytest.raises(ValueError, match="temperature must be above 0 and finite, got -1"):
        checked(A, CLASSES, -1.0)[0].throw()


def test_checks_stay_out_of_walks():
    """Arguments that were checked where they entered are not checked again for every tile."""

    def checks(loss):
        jaxpr = jax.make_jaxpr(lambda x: all_pairs_loss(x, CLASSES, loss=loss, tile=8))(A)
        return str(jaxpr).count("check[")

    assert 0 < checks(losses.contrastive) == checks(lambda distance, label: distance)

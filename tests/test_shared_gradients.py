"""One rule for the gradients of what devices share, as `all_pairs_loss` documents it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from contrastive_jax import all_pairs_loss, anchor_loss, losses, proxy_loss

AXIS = "ring"
RNG = np.random.default_rng(0)
X = RNG.standard_normal((16, 5)).astype(np.float32)
CLASSES = np.arange(16) % 4
SHARED = {
    "encoder": RNG.standard_normal((5, 3)).astype(np.float32),
    "proxies": RNG.standard_normal((4, 3)).astype(np.float32),
    "margin": np.float32(2.0),
}


def _all_pairs(shared, x, c, axis_name=None):
    embeddings, margin = x @ shared["encoder"], shared["margin"]
    return all_pairs_loss(embeddings, c, margin=margin, axis_name=axis_name, refine=False, tile=8)


def _anchors(shared, x, c, axis_name=None):
    options = {"axis_name": axis_name, "refine": False, "tile": 8}
    return anchor_loss(x @ shared["encoder"], c, loss=losses.supcon(), **options)


def _proxies(shared, x, c, axis_name=None):
    embeddings, proxies = x @ shared["encoder"], shared["proxies"]
    return proxy_loss(embeddings, c, proxies, loss=losses.arcface(), axis_name=axis_name)


def _proxies_by_tiles(shared, x, c, axis_name=None):
    embeddings, proxies = x @ shared["encoder"], shared["proxies"]
    options = {"axis_name": axis_name, "refine": False, "tile": 8}
    return proxy_loss(embeddings, c, proxies, loss=losses.proxy_anchor(), **options)


@pytest.mark.parametrize("function", [_all_pairs, _anchors, _proxies, _proxies_by_tiles])
def test_parts_are_added_up_by_jax_where_it_checks(function):
    """By hand without `check_vma`, and not once more with it."""
    mesh = Mesh(np.array(jax.devices()[:4]), (AXIS,))
    rows, alone = PartitionSpec(AXIS), PartitionSpec()

    def local(added_by_hand, shared, x, c):
        gradient = jax.grad(partial(function, axis_name=AXIS))(shared, x, c)
        return jax.lax.psum(gradient, AXIS) if added_by_hand else gradient

    def mapped(check_vma):
        return jax.shard_map(
            partial(local, not check_vma),
            mesh=mesh,
            in_specs=(alone, rows, rows),
            out_specs=alone,
            check_vma=check_vma,
        )

    want = jax.jit(jax.grad(function))(SHARED, X, CLASSES)
    assert jnp.any(want["encoder"] != 0)
    for check_vma in (False, True):
        actual = jax.jit(mapped(check_vma))(SHARED, X, CLASSES)
        for name, gradient in want.items():
            atol = 1e-5 * abs(gradient).max()
            np.testing.assert_allclose(actual[name], gradient, 1e-5, atol, err_msg=name)


def test_the_rule_is_said_once():
    """The other docstrings name it, and none tells to add up on its own."""
    name = "*Shared parameters"
    assert "check_vma" in all_pairs_loss.__doc__[all_pairs_loss.__doc__.index(name) :]
    for function in (anchor_loss, proxy_loss):
        words = " ".join(function.__doc__.split())
        assert name in words
        assert "psum" not in words

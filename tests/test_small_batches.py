"""The benchmark of small batches compares the loss that its name says."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contrastive_jax import losses
from experiments.benchmarks.small_batches import CONTENDERS, make_data


def test_every_loss_is_compared():
    makers = ["weighted_sum", "mean_over_pairs", "with_distance", "resolve_distance"]
    names = {name for name in losses.__all__ if inspect.isfunction(getattr(losses, name))}
    assert {*CONTENDERS} == names - {*makers} | {"pair_loss", "triplet_loss"}


@pytest.mark.long
@pytest.mark.parametrize("name", CONTENDERS)
def test_dense_forms_are_the_losses(name):
    x, classes = make_data(32, 8)
    contender = CONTENDERS[name]
    value, gradient = jax.value_and_grad(contender.ours)(x, classes)
    expected, its_gradient = jax.value_and_grad(contender.dense)(x, classes)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    largest = float(jnp.max(jnp.abs(its_gradient)))
    np.testing.assert_allclose(gradient, its_gradient, rtol=0, atol=1e-5 * largest)

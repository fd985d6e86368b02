"""A hyperparameter that all devices of `jax.shard_map` share, in the last function of a loss."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from contrastive_jax import anchor_loss, losses, statistics

DEVICES, ROWS = 2, 8
X = np.random.default_rng(0).standard_normal((DEVICES * ROWS, 3)).astype(np.float32)
CLASSES = np.tile(np.arange(4), 4)


def _loss(scale, temperature):
    def spread(distance, label):
        return (statistics.total(distance**2, label == 0),)

    return losses.AnchorLoss(
        lambda result: losses.Mean(scale * result[0] ** temperature, 1.0), (spread,)
    )


def _value(x, classes, scale, temperature):
    loss = _loss(scale, temperature)
    options = {"distance": losses.supcon().distance, "tile": 8, "refine": False}
    return anchor_loss(x, classes, loss=loss, **options)


def test_without_an_axis_name_its_gradient_is_the_sum_over_devices():
    mesh = Mesh(np.array(jax.devices()[:DEVICES]), ("devices",))
    rows = PartitionSpec("devices")

    def local(x, classes, scale, temperature):
        value, gradients = jax.value_and_grad(_value, (0, 2, 3))(x, classes, scale, temperature)
        return value[None], gradients

    mapped = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(rows, rows, PartitionSpec(), PartitionSpec()),
        out_specs=(rows, (rows, PartitionSpec(), PartitionSpec())),
    )
    hyper = jnp.float32(0.7), jnp.float32(1.5)
    actual, (by_x, *by_numbers) = jax.jit(mapped)(X, CLASSES, *hyper)

    alone = jax.jit(jax.value_and_grad(_value, (0, 2, 3)))
    parts = [alone(X[k : k + ROWS], CLASSES[k : k + ROWS], *hyper) for k in (0, ROWS)]
    np.testing.assert_allclose(actual, [value for value, _ in parts], rtol=1e-5)
    np.testing.assert_allclose(
        by_x, np.concatenate([gradients[0] for _, gradients in parts]), rtol=1e-5, atol=1e-6
    )
    for k, by_number in enumerate(by_numbers, 1):
        np.testing.assert_allclose(by_number, sum(part[1][k] for part in parts), rtol=1e-5)

"""Optimizers of an encoder and a loss, whose hyperparameters may be part of their state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from contrastive_jax.train.optimizer import OPTIMIZER, make_optimizer, make_optimizers

PARAMS = {"weight": jnp.ones((2, 2)), "bias": jnp.ones(2)}
GRADIENTS = {"weight": jnp.full((2, 2), 3.0), "bias": jnp.full(2, -1.0)}


def _updates(optimizer, **changed):
    """The updates of the first three steps, with hyperparameters changed in the state."""
    state = optimizer.init(PARAMS)
    if changed:
        state = optax.tree.set(state, **{k: jnp.float32(v) for k, v in changed.items()})
    results = []
    for _ in range(3):
        updates, state = optimizer.update(GRADIENTS, state, PARAMS)
        results.append(updates)
    return results


def _assert_same(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), one, other)


@pytest.mark.parametrize("tunable", [(), ("learning_rate",), OPTIMIZER])
def test_a_hyperparameter_in_the_state_gives_the_same_steps(tunable):
    values = {"learning_rate": 1e-2, "weight_decay": 0.3, "clip_norm": 0.5}
    encoder, loss = make_optimizers(
        50, warmup=0.1, loss_learning_rate=2e-2, tunable=tunable, **values
    )
    rate = values.pop("learning_rate")
    _assert_same(_updates(encoder), _updates(make_optimizer(rate, 50, warmup_steps=5, **values)))
    _assert_same(_updates(loss), _updates(make_optimizer(2e-2, 50, warmup_steps=5)))


def test_what_is_tunable_is_changed_in_the_state():
    tunable = (*OPTIMIZER, "loss_learning_rate")
    encoder, loss = make_optimizers(50, tunable=tunable)
    values = {"learning_rate": 1e-2, "weight_decay": 0.3, "clip_norm": 0.5}
    _assert_same(_updates(encoder, **values), _updates(make_optimizers(50, **values)[0]))
    other = make_optimizers(50, loss_learning_rate=0.5)[1]
    _assert_same(_updates(loss, loss_learning_rate=0.5), _updates(other))

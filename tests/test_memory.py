"""The memory is the last rows pushed, whatever the devices, and ages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contrastive_jax import anchor_loss, losses, memory

pytestmark = pytest.mark.usefixtures("quick")

PUSH = jax.jit(memory.push)


@settings(deadline=None, max_examples=20, derandomize=True)
@given(batches=st.integers(0, 7), max_age=st.integers(0, 4))
def test_it_holds_the_last_rows(batches, max_age):
    bank = memory.empty(10, 2)
    rows = []
    for step in range(batches):
        x = np.full((4, 2), step, np.float32) + np.arange(4)[:, None] / 8
        bank = PUSH(bank, x, np.arange(4) + step, step)
        rows += [(*row.tolist(), number + step, step) for number, row in enumerate(x)]
    held, classes = memory.references(bank, batches, max_age=max_age)
    want = {row[:3] for row in rows[-10:] if batches - row[3] <= max_age}
    got = {
        (*x, c)
        for x, c in zip(np.asarray(held).tolist(), np.asarray(classes).tolist(), strict=True)
        if c >= 0
    }
    assert got == want


def test_devices_keep_the_batch_of_all_and_share_the_loss():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 8, 4)).astype(np.float32)
    c = rng.integers(0, 3, (3, 8)).astype(np.int32)
    loss = losses.ntxent(0.5)

    def step(bank, x, c, number, axis_name=None):
        others = memory.references(bank, number, max_age=1, axis_name=axis_name)

        def value_of(x):
            return anchor_loss(x, c, *others, loss=loss, axis_name=axis_name)

        value, gradient = jax.value_and_grad(value_of)(x)
        return memory.push(bank, x, c, number, axis_name=axis_name), value, gradient

    one, many = (
        jax.jit(step),
        jax.pmap(
            lambda *a: step(*a, axis_name="d"),
            "d",
            in_axes=(None, 0, 0, None),
            out_axes=(None, 0, 0),
            devices=jax.devices()[:4],
        ),
    )
    alone = shared = memory.empty(18, 4)
    for number in range(3):
        alone, value, gradient = one(alone, x[number], c[number], number)
        split = x[number].reshape(4, 2, 4), c[number].reshape(4, 2)
        shared, values, parts = many(jax.device_get(shared), *split, number)
        np.testing.assert_allclose(values, np.full(4, value), rtol=1e-5)
        np.testing.assert_allclose(parts.reshape(8, 4), gradient, rtol=1e-4, atol=1e-6)
        for a, b in zip(alone, shared, strict=True):
            np.testing.assert_array_equal(a, b)
    assert value > 0


def test_an_empty_memory_costs_nothing():
    bank = memory.empty(16, 4)
    x, c = jnp.ones((5, 4)), jnp.zeros(5, jnp.int32)
    others = memory.references(bank, 0)
    value, gradient = jax.value_and_grad(
        lambda x: anchor_loss(x, c, *others, loss=losses.supcon())
    )(x)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match="whole and above 0, got 0 and 3"):
        memory.empty(0, 3)
    with pytest.raises(ValueError, match="a memory of 4 embeddings can not keep a batch of 5"):
        memory.push(memory.empty(4, 2), jnp.zeros((5, 2)), jnp.zeros(5, int), 0)
    with pytest.raises(AssertionError):
        memory.push(memory.empty(4, 2), jnp.zeros((3, 5)), jnp.zeros(3, int), 0)

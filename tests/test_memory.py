"""The memory is the last rows pushed, whatever the devices, and ages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental import checkify

from contrastive_jax import anchor_loss, losses, memory

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
    value, gradient = jax.jit(
        jax.value_and_grad(lambda x: anchor_loss(x, c, *others, loss=losses.supcon()))
    )(x)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match="whole and above 0, got 0 and 3"):
        memory.empty(0, 3)
    with pytest.raises(ValueError, match="a memory of 4 embeddings can not hold a batch of 5"):
        memory.push(memory.empty(4, 2), jnp.zeros((5, 2)), jnp.zeros(5, int), 0)
    with pytest.raises(AssertionError):
        memory.push(memory.empty(4, 2), jnp.zeros((3, 5)), jnp.zeros(3, int), 0)
    with pytest.raises(ValueError, match="whole and above 0, got nan and 3"):
        memory.empty(float("nan"), 3)
    with pytest.raises(ValueError, match=r"dtype must be floating, .* got <class 'int'>"):
        memory.empty(4, 2, int)


@pytest.mark.parametrize(
    ("step", "error", "message"),
    [
        (2.5, AssertionError, "step must be an integer and a scalar, got 2.5"),
        (jnp.float32(2), AssertionError, "step must be an integer and a scalar, got 2.0"),
        (np.array([1]), AssertionError, r"step must be an integer and a scalar, got \[1\]"),
        (-1, ValueError, r"step must be from 0 to 2\^31 - 1, got -1"),
        (2**31, ValueError, r"step must be from 0 to 2\^31 - 1, got 2147483648"),
    ],
)
def test_steps_are_whole_numbers(step, error, message):
    with pytest.raises(error, match=message):
        memory.push(memory.empty(4, 2), jnp.zeros((3, 2)), jnp.zeros(3, int), step)
    with pytest.raises(error, match=message):
        memory.references(memory.empty(4, 2), step, max_age=3)


@pytest.mark.parametrize("max_age", [-1, np.nan])
def test_ages_are_not_below_0(max_age):
    with pytest.raises(ValueError, match=f"max_age must be at least 0, got {max_age}"):
        memory.references(memory.empty(4, 2), 5, max_age=max_age)


def test_traced_values_are_checked_when_asked_for():
    checked = jax.jit(checkify.checkify(memory.push))
    bank, x, c = memory.empty(4, 2), np.ones((3, 2), np.float32), np.array([0, -1, 2])
    wrong = np.where(np.arange(3)[:, None] == 1, np.float32(np.nan), x)
    for arguments, message in (
        ((wrong, c, 0), None),
        ((wrong, c + 1, 0), "embeddings must be finite, got nan in row 1"),
        ((x, c - 4, 0), r"classes must be from 0 .*, got -4 in row 0"),
        ((x, c, -1), r"step must be from 0 to 2\^31 - 1, got -1"),
    ):
        error, _ = checked(bank, *arguments)
        if message is None:
            error.throw()
        else:
            with pytest.raises(ValueError, match=message):
                error.throw()

"""The memory is the last rows pushed, whatever the devices, and ages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental import checkify

from contrastive_jax import anchor_loss, labels, losses, memory

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


def test_devices_keep_the_batch_of_all_and_share_the_loss(longer):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 8, 4)).astype(np.float32)
    c = rng.integers(0, 3, (3, 8)).astype(np.int32)
    loss = losses.ntxent(0.5)

    def step(bank, x, c, number, axis_name=None):
        others = memory.references(bank, number, max_age=1, axis_name=axis_name)

        def value_of(x):
            return anchor_loss(x, c, *others, loss=loss, axis_name=axis_name, refine=longer)

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


RULES = {
    "other group": (
        labels.same_class_other_group(),
        lambda step: (np.arange(8) % 3, (np.arange(8) + step) % 4),
    ),
    "sets": (
        labels.any_shared(),
        lambda step: labels.as_bits([[i % 3, 40 + (i + step) % 5] for i in range(8)], 64),
    ),
    "masked": (
        labels.with_mask(labels.within(2.0)),
        lambda step: ((np.arange(8) + 0.5 * step).astype(np.float32), np.arange(8) != 3),
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_attributes_in_place_of_classes(name):
    """The loss against the memory is that against the last batches, whatever is empty or old."""
    rule, attributes = RULES[name]
    batches = np.random.default_rng(1).standard_normal((3, 8, 4)).astype(np.float32)
    bank = memory.empty(20, 4, like=attributes(0))
    loss = losses.ntxent(0.5)

    def value(x, step, others):
        return anchor_loss(x, attributes(step), *others, labels=rule, loss=loss)

    for step, x in enumerate(batches):
        others = memory.references(bank, step, max_age=1)
        if step:
            want = value(x, step, (batches[step - 1], attributes(step - 1)))
            np.testing.assert_allclose(value(x, step, others), want, rtol=1e-5)
            assert want > 0
        bank = PUSH(bank, x, attributes(step), step)


def test_devices_share_attributes():
    rule, attributes = RULES["masked"]
    x = np.random.default_rng(1).standard_normal((8, 4)).astype(np.float32)

    def step(bank, x, attributes, axis_name=None):
        bank = memory.push(bank, x, attributes, 0, axis_name=axis_name)
        others = memory.references(bank, 1, axis_name=axis_name)
        options = {"labels": rule, "loss": losses.ntxent(0.5), "axis_name": axis_name}
        return bank, anchor_loss(x, attributes, *others, **options)

    bank = memory.empty(10, 4, like=attributes(0))
    want = jax.jit(step)(bank, x, attributes(0))
    split = jax.tree.map(lambda leaf: leaf.reshape(4, -1, *leaf.shape[1:]), (x, attributes(0)))
    got = jax.pmap(
        lambda *a: step(*a, axis_name="d"), "d", in_axes=(None, 0, 0), devices=jax.devices()[:4]
    )(bank, *split)
    one_device = jax.tree.map(lambda leaf: leaf[1], got)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), one_device, want)


def test_wrong_attributes():
    bank = memory.empty(8, 2, like=(np.zeros(1, int), np.zeros(1)))
    x = np.zeros((2, 2), np.float32)
    with pytest.raises(ValueError, match="tree like those that the memory was made for"):
        memory.push(bank, x, np.zeros(2, int), 0)
    with pytest.raises(AssertionError, match="expected embeddings"):
        memory.push(bank, x, (np.zeros(2, int), np.zeros((2, 1))), 0)

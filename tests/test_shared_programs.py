"""Tests compile equal programs once, and take no program for another."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src import compiler

X = np.arange(7, dtype=np.float32)


@pytest.fixture
def compiled(monkeypatch):
    """Executables in the order in which JAX asks for them."""
    executables, compile_program = [], compiler.backend_compile_and_load
    if not compile_program.__module__.endswith("shared_programs"):
        pytest.skip("this version of JAX compiles otherwise")

    def recorded(*arguments):
        executables.append(compile_program(*arguments))
        return executables[-1]

    monkeypatch.setattr(compiler, "backend_compile_and_load", recorded)
    return executables


def _sum(factor):
    def total(x):
        return jnp.sum(jnp.sin(x) * factor)

    return total


def test_equal_programs_are_one(compiled):
    values = [jax.jit(_sum(2.0))(X) for _ in range(2)]
    assert values[0] == values[1]
    assert compiled[0] is compiled[1]


@pytest.mark.parametrize(
    "other",
    [
        lambda: jax.jit(_sum(3.0))(X),
        lambda: jax.jit(_sum(2.0))(X[:6]),
        lambda: jax.jit(_sum(2.0))(jax.device_put(X, jax.devices()[1])),
        lambda: jax.jit(_sum(2.0), compiler_options={"xla_embed_ir_in_executable": True})(X),
    ],
    ids=["number", "shape", "device", "option"],
)
def test_other_programs_are_others(compiled, other):
    jax.jit(_sum(2.0))(X)
    other()
    assert compiled[0] is not compiled[-1]


def test_functions_that_are_called_back_are_their_own():
    shape = jax.ShapeDtypeStruct((), np.float32)
    for number in (1.0, 2.0, 3.0):
        called = functools.partial(np.full, (), dtype=np.float32)
        got = jax.jit(lambda x, called=called: jax.pure_callback(called, shape, x))(number)
        assert got == number


def test_constants_are_compared_whole():
    ones = np.ones(1000, np.float32)
    for index in (500, 501):
        weights = np.where(np.arange(1000) == index, 2, 1).astype(np.float32)
        values = np.arange(1000, dtype=np.float32)
        got = jax.jit(lambda x, weights=weights: jnp.sum(x * weights))(values)
        assert got == ones @ values + index

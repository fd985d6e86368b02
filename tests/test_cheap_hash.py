"""The numbers that tests draw: cheap to compile, the same in every way, and as random as needed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest


def test_tests_compile_no_loop_to_draw(pytestconfig):
    if pytestconfig.getoption("optimised") or jax.default_backend() != "cpu":
        pytest.skip("draws by Threefry")
    program = jax.jit(lambda key: jax.random.bits(key, (4,)))
    assert "while" not in program.lower(jax.random.key(0)).as_text()


def test_a_context_draws_by_threefry(threefry):
    # Of Threefry-2x32 with the key (0, 0) and the counters (0, 0), by Random123's known answers.
    assert jax.random.key_data(jax.random.fold_in(jax.random.key(0), 0)).tolist() == [
        0x6B200159,
        0x99BA4EFE,
    ]


def test_a_key_gives_the_same_numbers_in_every_way():
    keys = jax.random.split(jax.random.key(3), 5)
    draw = lambda key: jax.random.bits(key, (7,))  # noqa: E731
    one_by_one = np.stack([draw(key) for key in keys])
    np.testing.assert_array_equal(jax.vmap(draw)(keys), one_by_one)
    np.testing.assert_array_equal(jax.jit(jax.vmap(draw))(keys), one_by_one)
    np.testing.assert_array_equal(jax.pmap(draw)(keys), one_by_one)


def test_no_seed_has_a_key_of_another():
    fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
    keys = fold(jax.vmap(jax.random.key)(jnp.arange(100)), jnp.arange(100))
    assert len(np.unique(jax.random.key_data(keys).reshape(-1, 2), axis=0)) == 10_000


def test_numbers_are_uniform_and_independent():
    keys = jax.random.split(jax.random.key(0), 1000)
    values = np.asarray(jax.vmap(lambda key: jax.random.uniform(key, (100,)))(keys), float)
    counts = np.histogram(values, 100, (0, 1))[0]
    # Six deviations of chi squared with 99 degrees of freedom, and of a correlation.
    assert ((counts - 1000) ** 2 / 1000).sum() < 99 + 6 * np.sqrt(2 * 99)
    for one, other in ((values[1:], values[:-1]), (values[:, 1:], values[:, :-1])):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 6 / np.sqrt(one.size)

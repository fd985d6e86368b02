"""Eager calls compile once for a loss and shapes, and keep no more than a few programs."""

import functools
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src import test_util  # counts compilations as JAX's own tests do

from contrastive_jax import (
    all_pairs_loss,
    anchor_loss,
    distances,
    losses,
    mining,
    proxy_loss,
)
from contrastive_jax._engine import program_cache
from contrastive_jax._engine.program_cache import Identified, Unidentified, compiled, identified

X = np.random.default_rng(0).standard_normal((16, 4)).astype(np.float32)
CLASSES = np.arange(16) // 4


def _losses():
    """Every call makes its loss anew, as code in a loop does."""
    return {
        "pair": lambda x: all_pairs_loss(x, CLASSES, margin=0.7),
        "lambda": lambda x: all_pairs_loss(x, CLASSES, loss=lambda d, y: (1 - y) * d + y / (1 + d)),
        "partial": lambda x: all_pairs_loss(
            x, CLASSES, distance=functools.partial(distances.minkowski, order=3.0)
        ),
        "anchor": lambda x: anchor_loss(x, CLASSES, loss=losses.supcon(0.2)),
        "mined": lambda x: anchor_loss(x, CLASSES, loss=mining.hard(losses.logistic)),
        "triple": lambda x: anchor_loss(x, CLASSES, loss=losses.triplet_semi_hard(0.3)),
        "proxy": lambda x: proxy_loss(x, CLASSES, X[:4], loss=losses.arcface(0.3)),
        "hard pairs": lambda x: mining.online_hard_loss(x, CLASSES, margin=0.7),
        "hard pairs of anchors": lambda x: mining.online_hard_loss(
            x, CLASSES, loss=losses.ntxent(0.2), reduction="mean"
        ),
        "array": lambda x: anchor_loss(x, CLASSES, loss=losses.supcon(jnp.float32(0.2))),
    }


@pytest.mark.parametrize("name", _losses())
def test_eager_calls_compile_once(name):
    for derived in (lambda f: f, jax.grad):
        first = derived(_losses()[name])(X)
        with test_util.count_jit_compilation_cache_miss() as compilations:
            again = derived(_losses()[name])(X)
        assert compilations() == 0
        np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("name", ["anchor", "pair", "proxy", "distance"])
def test_eager_derivatives_by_hyperparameters_compile_once_for_all_values(name):
    function = {
        "anchor": lambda t: anchor_loss(X, CLASSES, loss=losses.supcon(t)),
        "pair": lambda t: all_pairs_loss(X, CLASSES, loss=losses.sigmoid(temperature=10 * t)),
        "proxy": lambda t: proxy_loss(X, CLASSES, X[:4], loss=losses.normalized_softmax(t)),
        "distance": lambda t: all_pairs_loss(
            X, CLASSES, distance=functools.partial(distances.minkowski, order=10 * t)
        ),
    }[name]
    jax.grad(function)(0.2)
    with test_util.count_jit_compilation_cache_miss() as compilations:
        again = jax.grad(function)(0.3)
    assert compilations() == 0
    np.testing.assert_allclose(again, jax.jit(jax.grad(function))(0.3), rtol=1e-5)


def test_one_program_serves_all_numbers_on_a_device():
    def value(temperature, rows=16):
        loss = losses.supcon(temperature)
        return float(anchor_loss(X[:rows], CLASSES[:rows], loss=loss))

    value(jnp.float32(0.2))
    with test_util.count_jit_compilation_cache_miss() as compilations:
        value(jnp.float32(0.3))
    assert compilations() == 0
    for one in (0.2, 0.3):
        np.testing.assert_allclose(value(jnp.float32(one)), value(one), rtol=1e-6)
    # A number of another type is another argument, and none is held after the call.
    np.testing.assert_allclose(value(jnp.float16(0.25)), value(0.25), rtol=1e-3)
    donated = jnp.array(0.7)
    expected = value(donated)
    donated.delete()
    np.testing.assert_allclose(value(jnp.array(0.7)), expected, rtol=1e-6)
    np.testing.assert_allclose(value(jnp.array(0.7), 8), value(0.7, 8), rtol=1e-6)


def test_a_random_key_that_a_loss_closes_over_has_no_identity():
    key = jax.random.key(0)

    def value(rate):
        def loss(distance, label):
            return rate * distance * jax.random.uniform(key)

        return all_pairs_loss(X, CLASSES, loss=loss)

    assert isinstance(identified(_adder(key)), Unidentified)
    expected = float(jax.random.uniform(key)) * all_pairs_loss(X, CLASSES, loss=lambda d, y: d)
    np.testing.assert_allclose(value(1.0), expected, rtol=1e-5)
    np.testing.assert_allclose(jax.grad(value)(2.0), expected, rtol=1e-5)


def test_a_traced_value_takes_the_program_of_its_own_precision():
    factor = jnp.eye(4, dtype=jnp.float32)

    def value(factor):
        return all_pairs_loss(X, CLASSES, distance=lambda a, b: distances.euclidean(factor @ a, b))

    jax.grad(value)(factor)
    with jax.default_matmul_precision("float32"), test_util.count_jit_compilation_cache_miss() as n:
        jax.grad(value)(factor)
    assert n() > 0


def test_other_numbers_and_shapes_compile_again():
    values = {float(anchor_loss(X, CLASSES, loss=losses.supcon(t))) for t in (0.2, 0.3)}
    assert len(values) == 2
    fewer = anchor_loss(X[:8], CLASSES[:8], loss=losses.supcon(0.2))
    np.testing.assert_allclose(
        fewer, jax.jit(lambda x: anchor_loss(x, CLASSES[:8], loss=losses.supcon(0.2)))(X[:8])
    )


def test_a_function_of_a_changed_value_is_another_function():
    scale, array, held = [1.0], np.ones(1), {}

    def loss(distance, label):
        return scale[0] * distance * (1 - label)

    def array_loss(distance, label):
        return array[0] * distance * (1 - label)

    def object_loss(distance, label):
        return held.get("scale", jnp.float32(1)) * distance * (1 - label)

    for function, change in (
        (loss, lambda: scale.__setitem__(0, 2.0)),
        (array_loss, lambda: array.__setitem__(0, 2.0)),
        (object_loss, lambda: held.__setitem__("scale", jnp.float32(2))),
    ):
        before = all_pairs_loss(X, CLASSES, loss=function)
        change()
        np.testing.assert_allclose(all_pairs_loss(X, CLASSES, loss=function), 2 * before, rtol=1e-6)


def test_a_name_that_a_notebook_sets_anew_is_read_anew():
    notebook = {"__name__": "__main__", "rate": 1.0}
    exec("def loss(distance, label):\n    return (lambda d: rate * d)(distance)", notebook)
    before = all_pairs_loss(X, CLASSES, loss=notebook["loss"])
    notebook["rate"] = 3.0
    np.testing.assert_allclose(
        all_pairs_loss(X, CLASSES, loss=notebook["loss"]), 3 * before, rtol=1e-6
    )


def _adder(value):
    return lambda x: x + value


def test_identity():
    assert identified(_adder(1.0)) == identified(_adder(1.0))
    assert hash(identified(_adder((1, "a", None)))) == hash(identified(_adder((1, "a", None))))
    for one, other in ((1, 1.0), (1, True), (0.0, -0.0), ((1,), [1]), ("1", 1)):
        assert identified(_adder(one)) != identified(_adder(other))
    assert identified(_adder(float("nan"))) == identified(_adder(float("nan")))
    assert identified(_adder(_adder(1))) == identified(_adder(_adder(1)))
    assert identified(_adder(_adder(1))) != identified(_adder(_adder(2)))
    assert identified(losses.contrastive) == identified(losses.contrastive)
    assert identified(losses.contrastive) != identified(losses.contrastive_linear)
    assert isinstance(identified(losses.supcon().loss), Identified)
    for value in (np.ones(2), jnp.ones(2), jnp.float32(0.1), np.array(1.0), object(), {1, 2}):
        assert isinstance(identified(_adder(value)), Unidentified)

    def recursive(x):
        return recursive(x - 1) if x else 0

    assert isinstance(identified(recursive), Identified)


def test_programs_are_dropped():
    gc.freeze()  # garbage is looked for among what this test makes, not all that others left
    array = np.ones(1)
    function = lambda f, x: f(x)  # noqa: E731
    program = compiled(function, identified(lambda x: x + array[0]))
    np.testing.assert_array_equal(program(jnp.zeros(2)), [1, 1])
    dropped = weakref.ref(program)
    del program
    gc.collect()
    assert dropped() is None
    limit = program_cache._cached_program.cache_parameters()["maxsize"]
    first = weakref.ref(compiled(function, identified(_adder(-1.0))))
    assert compiled(function, identified(_adder(-1.0))) is first()
    for number in range(limit):
        compiled(function, identified(_adder(number)))
    gc.collect()
    gc.unfreeze()
    assert first() is None


def _changes():
    """Functions, each with a change of a value that it reads, other than in its closure."""
    module = {"__name__": "__main__", "rate": 1.0, "losses": losses, "functools": functools}
    exec(
        "def global_loss(d, y):\n    return rate * d\n"
        "@functools.wraps(losses.contrastive)\n"
        "def wrapped_loss(d, y):\n    return rate * d\n"
        "def attribute_loss(d, y):\n    return attribute_loss.rate * d\n"
        "attribute_loss.rate = 1.0\n"
        "class Settings:\n    rate = 1.0\n"
        "def class_loss(d, y):\n    return Settings.rate * d\n",
        module,
    )
    options = {"rate": 1.0}

    def method_loss(d, y, get=options.get):
        return get("rate") * d

    class Loss:
        rate = 1.0

        def __call__(self, d, y):
            return self.rate * d

        def value(self, d, y):
            return self.rate * d

    loss = Loss()
    return {
        "a global of a notebook": (module["global_loss"], module, "rate"),
        "a global read by a wrapper": (module["wrapped_loss"], module, "rate"),
        "an attribute of the function": (
            module["attribute_loss"],
            vars(module["attribute_loss"]),
            "rate",
        ),
        "a dictionary's method": (method_loss, options, "rate"),
        "a class of a notebook": (module["class_loss"], module["Settings"], "rate"),
        "an object": (loss, vars(loss), "rate"),
        "a method": (loss.value, vars(loss), "rate"),
    }


@pytest.mark.parametrize("name", _changes())
def test_a_function_that_reads_a_changed_value_is_never_taken_for_itself(name):
    function, holder, key = _changes()[name]
    before = identified(function)
    if isinstance(holder, type):
        setattr(holder, key, 2.0)
    else:
        holder[key] = 2.0
    after = identified(function)
    assert isinstance(after, Unidentified) or after != before


def test_an_object_that_reuses_an_address_is_another():
    """A helper under `jax.jit`, made anew and dropped in each turn of a loop."""

    def value(rate):
        helper = jax.jit(lambda d: rate * d)
        return float(all_pairs_loss(X[:4], CLASSES[:4] // 2, loss=lambda d, y: helper(d)))

    first = value(1.0)
    for rate in (2.0, 3.0, 4.0):
        np.testing.assert_allclose(value(rate), rate * first, rtol=1e-6)


def test_a_list_that_holds_itself_has_no_identity():
    held = []
    held.append(held)
    assert isinstance(identified(lambda d, y: len(held) * d), Unidentified)


def test_python_and_complex_numbers_have_derivatives():
    def value(scale):
        return all_pairs_loss(X, CLASSES, loss=lambda d, y: jnp.real(scale * (1 - 2j)) * d)

    total = float(all_pairs_loss(X, CLASSES, loss=lambda d, y: d))
    _, slope = jax.jvp(value, (1.5,), (2.0,))
    np.testing.assert_allclose(slope, 2 * total, rtol=1e-5)
    np.testing.assert_allclose(jax.grad(value)(1 + 1j), (1 - 2j) * total, rtol=1e-5)

"""Wrong values are named, whether known or traced."""

import functools
import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from contrastive_jax import all_pairs_loss, anchor_loss, mining, pair_loss, proxy_loss, train
from contrastive_jax import losses as library
from contrastive_jax.losses import normalized_softmax, supcon

A = np.float32([[1, 2], [3, 4], [5, 6]])
B = A + np.float32(0.5)
LABELS = np.array([0, 1, 0])


def replaced(x, index, value, dtype=None):
    x = np.array(x, dtype)
    x[index] = value
    return x


WRONG = {
    "nan": ((replaced(A, (1, 0), np.nan), B, LABELS, 1.0), "a must be finite, got nan in row 1"),
    "inf": ((A, replaced(B, (2, 1), -np.inf), LABELS, 1.0), "b must be finite, got -inf in row 2"),
    "bfloat16": (
        (A.astype(jnp.bfloat16), replaced(B, (0, 1), np.inf, jnp.bfloat16), LABELS, 1.0),
        "b must be finite, got inf in row 0",
    ),
    "label 2": (
        (A, B, replaced(LABELS, 1, 2), 1.0),
        r"labels must be 0 \(similar\) or 1 \(dissimilar\), got 2 in row 1",
    ),
    "label -1": ((A, B, replaced(LABELS, 2, -1), 1.0), r"labels must be .*, got -1 in row 2"),
    "label 0.5": (
        (A, B, replaced(LABELS, 0, 0.5, np.float32), 1.0),
        r"labels must be .*, got 0.5 in row 0",
    ),
    "label nan": (
        (A, B, replaced(LABELS, 0, np.nan, np.float32), 1.0),
        r"labels must be .*, got nan in row 0",
    ),
    "margin 0": ((A, B, LABELS, 0.0), "margin must be above 0 and finite, got 0"),
    "margin -1": ((A, B, LABELS, -1.0), "margin must be above 0 and finite, got -1"),
    "margin inf": ((A, B, LABELS, np.inf), "margin must be above 0 and finite, got inf"),
    "margin nan": ((A, B, LABELS, np.nan), "margin must be above 0 and finite, got nan"),
}
each_wrong = pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG)


def losses(a, b, labels, margin):
    return pair_loss(a, b, labels, margin=margin)


def total(a, b, labels, margin):
    return jnp.sum(losses(a, b, labels, margin))


TRANSFORMED = {
    "jit": losses,
    "grad": jax.grad(total),
    "grad of grad": jax.hessian(total),
    "remat": jax.grad(jax.checkpoint(total)),
    "vmap": lambda *arguments: jax.vmap(losses)(*(jnp.stack([x, x]) for x in arguments)),
    "scan": lambda *arguments: jax.lax.scan(
        lambda carry, _: (carry, losses(*arguments)), 0.0, length=2
    ),
    "cond": lambda *arguments: jax.lax.cond(True, losses, losses, *arguments),
}


@each_wrong
def test_known_values(arguments, message):
    with pytest.raises(ValueError, match=message):
        losses(*arguments)
    with pytest.raises(ValueError, match=message):
        losses(*(jnp.asarray(x) for x in arguments))


@each_wrong
def test_traced_values_when_asked_for(arguments, message):
    error, _ = jax.jit(checkify.checkify(losses))(*arguments)
    with pytest.raises(ValueError, match=message):
        error.throw()


@pytest.mark.parametrize("transform", TRANSFORMED)
def test_checks_survive_transformations(transform):
    if transform == "remat" and jax.__version_info__ < (0, 8):
        pytest.skip("before jax 0.8 checkify takes no checks out of jax.checkpoint")
    checked = jax.jit(checkify.checkify(TRANSFORMED[transform]))
    error, _ = checked(A, B, LABELS, 1.0)
    error.throw()
    arguments, message = WRONG["nan"]
    error, _ = checked(*arguments)
    with pytest.raises(ValueError, match=message):
        error.throw()


def cost(function):
    """Returns the cost of a fresh function, so that nothing is found in a cache."""
    compiled = jax.jit(lambda *arguments: function(*arguments)).lower(A, B, LABELS, 1.0).compile()
    return compiled.cost_analysis()


@pytest.mark.parametrize("transform", ["jit", "grad", "scan"])
def test_checks_cost_nothing_unless_asked_for(transform, monkeypatch):
    function = TRANSFORMED[transform]
    plain, checked = cost(function), cost(checkify.checkify(function))
    jax.jit(function)(*WRONG["label 2"][0])
    monkeypatch.setattr("contrastive_jax.pairs.with_checks", lambda carrier, **values: carrier)
    assert plain == cost(function)
    assert plain["bytes accessed"] < checked["bytes accessed"]


def test_checks_of_arguments_leave_no_effect():
    """JAX calls a program with an effect from Python, which takes as long as a small batch."""
    functions = (
        lambda a, b, labels: pair_loss(a, b, labels, margin=1.0),
        lambda a, b, labels: all_pairs_loss(a, labels, margin=b[0, 0]),
        lambda a, b, labels: anchor_loss(a, labels, b, labels, loss=supcon(0.1)),
        lambda a, b, labels: proxy_loss(a, labels, b, loss=normalized_softmax(0.1)),
    )
    for function in functions:
        program = jax.make_jaxpr(jax.grad(lambda *arguments, f=function: f(*arguments).sum()))
        assert not program(A, B, LABELS).effects


def test_known_values_inside_traced_code():
    """Known values are checked while tracing, and traced ones are left alone."""
    compiled = jax.jit(lambda a: pair_loss(a, B, np.array([0, 3, 0])))
    with pytest.raises(ValueError, match="got 3 in row 1"):
        compiled(A)
    with pytest.raises(ValueError, match="got 3 in row 1"):
        jax.grad(lambda a: pair_loss(a, B, np.array([0, 3, 0])).sum())(A)
    values = jax.jit(lambda a: pair_loss(a, B, LABELS, margin=2.0))(A)
    assert np.isfinite(values).all()


def test_no_pairs_are_right():
    assert pair_loss(A[:0], B[:0], LABELS[:0]).shape == (0,)
    error, values = jax.jit(checkify.checkify(losses))(A[:0], B[:0], LABELS[:0], 1.0)
    error.throw()
    assert values.shape == (0,)


MAPPED = """
    import jax, jax.numpy as jnp, numpy as np
    from functools import partial
    from jax.experimental import checkify
    from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
    from contrastive_jax import pair_loss

    assert jax.device_count() == 8
    mesh = Mesh(np.array(jax.devices()), ("devices",))
    everywhere, split = NamedSharding(mesh, P()), NamedSharding(mesh, P("devices"))

    def step(state, data, margin):
        a, b, labels = data

        def loss(state):
            return jnp.mean(pair_loss(a * state, b * state, labels, margin=margin))

        value, gradient = jax.lax.pmean(jax.value_and_grad(loss)(state), "devices")
        return state - 0.1 * gradient, {"loss": value}

    rng = np.random.default_rng(0)
    data = [*rng.standard_normal((2, 16, 4)).astype(np.float32), rng.integers(0, 2, 16)]
    wrong = [data[0], data[1], np.where(np.arange(16) == 11, 5, data[2])]
    ones = np.ones(4, np.float32)

    # Eager: the reference.
    state = ones
    for _ in range(3):
        a, b, labels = data
        state = state - 0.1 * jax.grad(
            lambda s: jnp.mean(pair_loss(a * s, b * s, labels, margin=1.5))
        )(state)

    if strategy == "pmap":
        mapped = jax.pmap(step, axis_name="devices", out_axes=(0, None))
        place = partial(jax.device_put, device=split)
        arrange = lambda x: x.reshape(8, 2, *x.shape[1:])
        replicate = lambda x: place(np.broadcast_to(x, (8, *np.shape(x))))
    else:
        mapped = jax.shard_map(
            step, mesh=mesh, in_specs=(P(), P("devices"), P()), out_specs=P(), check_vma=False
        )
        place, arrange = partial(jax.device_put, device=split), lambda x: x
        replicate = partial(jax.device_put, device=everywhere)
    checked = jax.jit(checkify.checkify(mapped), donate_argnums=0)

    current, margin = replicate(ones), replicate(np.float32(1.5))
    good, bad = ([place(arrange(x)) for x in batch] for batch in (data, wrong))
    with jax.transfer_guard("disallow"):
        for _ in range(3):
            error, (current, metrics) = checked(current, good, margin)
            jax.block_until_ready(current)
    error.throw()
    result = np.asarray(current)
    np.testing.assert_allclose(result.reshape(-1, 4)[0], state, rtol=1e-5)

    error, _ = checked(current, bad, margin)
    print(error.get())
    try:
        error.throw()
    except ValueError as raised:
        print(raised)
    assert checked._cache_size() == 1, checked._cache_size()
"""


def test_checks_in_a_step_over_eight_devices():
    # Before jax 0.8 checkify takes no checks out of jax.pmap.
    strategies = ["pmap", "shard_map"][jax.__version_info__ < (0, 8) :]
    code = textwrap.dedent(MAPPED)
    program = f"for strategy in {strategies}:\n    exec({code!r}, {{'strategy': strategy}})"
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env=os.environ
        | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    # Row 11 of the global batch is row 1 of device 5.
    message = "labels must be 0 (similar) or 1 (dissimilar), got 5 in row 1 (`check` failed)"
    lines = [f"at mapped index 5: {message}", message]
    assert result.stdout.splitlines() == lines * len(strategies)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("supcon", "anchor_loss"),
        ("triplet_all", "anchor_loss"),
        ("arcface", "proxy_loss"),
        ("soft_triple", "proxy_loss"),
    ],
)
def test_a_factory_that_was_not_called_is_named(name, function):
    factory, x = getattr(library, name), jnp.eye(4)
    calls = (
        lambda: all_pairs_loss(x, jnp.arange(4), loss=factory),
        lambda: pair_loss(x, x, jnp.zeros(4, int), loss=factory),
        lambda: train.objective(factory),
    )
    for call in calls:
        with pytest.raises(ValueError, match=rf"got {name}, .*give {name}\(\) to {function} or"):
            call()
    with pytest.raises(ValueError, match=rf"got {name}, .*give {name}\(\) to {function} or"):
        pair_loss(x, x, jnp.zeros(4, int), loss=functools.partial(factory))


def test_a_miner_that_was_not_called_is_named():
    with pytest.raises(ValueError, match=r"give multi_similarity\(\) to anchor_loss"):
        all_pairs_loss(jnp.eye(4), jnp.arange(4), loss=mining.multi_similarity)

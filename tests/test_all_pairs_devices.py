"""All pairs of a batch that devices share equal those of one device on the whole batch."""

import itertools
import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from contrastive_jax import all_pairs_loss, distances
from contrastive_jax._compat import pcast_varying

AXIS = "ring"
BATCH, SIZE = 48, 5


def _batch(seed=0, batch=BATCH):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((batch, SIZE)).astype(np.float32)
    x[7] = x[0] + 1e-4  # a close pair, on other devices where there are four
    c = rng.integers(0, 4, batch)
    c[5] = -1
    return x, c


def _mapped(function, devices, strategy, arguments):
    """Values of all devices, `[n]`, and what they return beside, `[n, ...]`."""
    shared = [jnp.ndim(a) == 0 for a in arguments]
    if strategy in ("pmap", "vmap"):
        split = [
            a if s else a.reshape(devices, -1, *a.shape[1:])
            for a, s in zip(arguments, shared, strict=True)
        ]
        axes = tuple(None if s else 0 for s in shared)
        if strategy == "vmap":
            return jax.jit(jax.vmap(function, axes, axis_name=AXIS))(*split)
        return jax.pmap(function, AXIS, in_axes=axes, devices=jax.devices()[:devices])(*split)
    mesh = Mesh(np.array(jax.devices()[:devices]), (AXIS,))
    rows, alone = PartitionSpec(AXIS), PartitionSpec()

    def one(*arguments):
        value, gradient = function(*arguments)
        return value[None], jax.tree.map(lambda g: g[None], gradient)

    return jax.jit(
        jax.shard_map(
            one,
            mesh=mesh,
            in_specs=tuple(alone if s else rows for s in shared),
            out_specs=rows,
            check_vma=strategy == "shard_map",
        )
    )(*arguments)


CASES = {
    "euclidean_mean": {},
    "cosine_active": {"distance": distances.cosine, "reduction": "active"},
    "manhattan_balanced": {"distance": distances.manhattan, "reduction": "balanced"},
    "one_sided_sum": {
        "distance": lambda a, b: jnp.sum((a - b) ** 2) / (1 + jnp.sum(a**2)),
        "reduction": "sum",
    },
}

OTHERS = sorted(CASES.keys() - {"euclidean_mean"})
WEIGHTS = np.linspace(0.5, 1.5, BATCH).astype(np.float32)


def _value(case, x, margin, c, weights, axis_name=None):
    options = {"margin": margin, "weights": weights, "axis_name": axis_name, "tile": 8}
    return all_pairs_loss(x, c, **options, **CASES[case])


@cache
def _on_one_device(case):
    """Value, and gradients by embeddings and margin."""
    x, c = _batch()
    return jax.jit(jax.value_and_grad(partial(_value, case), (0, 1)))(x, 2.0, c, WEIGHTS)


@pytest.mark.parametrize(
    ("devices", "strategy", "case"),
    [
        # Rings of an even and an odd length, and of one device, each in another way.
        (4, "pmap", "euclidean_mean"),
        (3, "shard_map", "euclidean_mean"),
        (1, "shard_map_unchecked", "euclidean_mean"),
        *itertools.product([4], ["shard_map"], OTHERS),
        *[
            pytest.param(*case, marks=pytest.mark.long)
            for case in (
                *itertools.product([2, 8], ["pmap", "shard_map"], ["euclidean_mean"]),
                (1, "shard_map", "euclidean_mean"),
                (4, "shard_map", "euclidean_mean"),
                (3, "shard_map_unchecked", "euclidean_mean"),
                (4, "vmap", "euclidean_mean"),
                *itertools.product([4], ["pmap"], OTHERS),
            )
        ],
    ],
)
def test_devices_equal_one(devices, strategy, case):
    x, c = _batch()

    def local(x, c, weights, margin):
        of = partial(_value, case, axis_name=AXIS)
        return jax.value_and_grad(of, (0, 1))(x, margin, c, weights)

    want, (by_x, by_margin) = _on_one_device(case)
    values, (rows, margins) = _mapped(local, devices, strategy, (x, c, WEIGHTS, jnp.float32(2.0)))
    np.testing.assert_allclose(values, np.full(devices, want), rtol=1e-5)
    scale = abs(by_x).max()
    np.testing.assert_allclose(rows.reshape(BATCH, SIZE), by_x, rtol=1e-5, atol=1e-5 * scale)
    # What the devices share gets from each the part of its rows; checked, `shard_map` adds up.
    total = margins[0] if strategy == "shard_map" else margins.sum()
    np.testing.assert_allclose(total, by_margin, rtol=1e-5)


@pytest.mark.parametrize(
    ("devices", "strategy"),
    [
        (4, "pmap"),
        (8, "shard_map"),
        *[
            pytest.param(*case, marks=pytest.mark.long)
            for case in [(2, "pmap"), (2, "shard_map"), (4, "shard_map"), (8, "pmap")]
        ],
    ],
)
def test_two_sets_over_devices(devices, strategy):
    x, c = _batch()
    y, d = _batch(1, 32)

    def value(x, y, c, d, axis_name=None):
        return all_pairs_loss(x, c, y, d, margin=2.0, axis_name=axis_name, tile=8)

    want, (by_x, by_y) = jax.jit(jax.value_and_grad(value, (0, 1)))(x, y, c, d)

    def local(x, y, c, d):
        return jax.value_and_grad(partial(value, axis_name=AXIS), (0, 1))(x, y, c, d)

    values, (x_gradient, y_gradient) = _mapped(local, devices, strategy, (x, y, c, d))
    np.testing.assert_allclose(values, np.full(devices, want), rtol=1e-5)
    for got, by in ((x_gradient, by_x), (y_gradient, by_y)):
        np.testing.assert_allclose(got.reshape(by.shape), by, rtol=1e-5, atol=1e-5 * abs(by).max())


def test_gradient_from_outside_of_shard_map():
    x, c = _batch()
    mesh = Mesh(np.array(jax.devices()), (AXIS,))
    rows = PartitionSpec(AXIS)
    mapped = jax.shard_map(
        lambda x, c: all_pairs_loss(x, c, axis_name=AXIS, tile=8),
        mesh=mesh,
        in_specs=(rows, rows),
        out_specs=PartitionSpec(),
    )
    value, gradient = jax.jit(jax.value_and_grad(mapped))(x, c)
    want, by = jax.jit(jax.value_and_grad(lambda x: all_pairs_loss(x, c, tile=8)))(x)
    np.testing.assert_allclose(value, want, rtol=1e-5)
    np.testing.assert_allclose(gradient, by, rtol=1e-5, atol=1e-5 * abs(by).max())


def test_own_rows_within_shard_map():
    """Without an axis name a device keeps to its own rows, references that all share included."""
    x, c = _batch()
    y, d = _batch(1, 20)
    mesh = Mesh(np.array(jax.devices()[:4]), (AXIS,))
    rows, alone = PartitionSpec(AXIS), PartitionSpec()

    def local(x, c, y, d, scale):
        def value(x, y, scale):
            scale = pcast_varying(scale, (AXIS,))
            loss = lambda distance, label: scale * (distance - label) ** 2  # noqa: E731
            return all_pairs_loss(x, c, y, d, loss=loss, tile=8, reduction="sum")

        with pytest.raises(ValueError, match=r"loss closes over .* jax\.lax\.p(cast|vary)"):
            all_pairs_loss(x, c, loss=lambda distance, label: scale * distance)
        value, gradients = jax.value_and_grad(value, (0, 1, 2))(x, y, scale)
        return value[None], gradients

    _, (x_gradient, y_gradient, scale_gradient) = jax.jit(
        jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(rows, rows, alone, alone, alone),
            out_specs=(rows, (rows, alone, alone)),
        )
    )(x, c, y, d, jnp.float32(1.5))

    def direct(x, y, scale):
        loss = lambda distance, label: scale * (distance - label) ** 2  # noqa: E731
        return all_pairs_loss(x, c, y, d, loss=loss, tile=8, reduction="sum")

    gradients = jax.jit(jax.grad(direct, (0, 1, 2)))(x, y, 1.5)
    for got, by in zip((x_gradient, y_gradient, scale_gradient), gradients, strict=True):
        np.testing.assert_allclose(got, by, rtol=1e-5, atol=1e-5 * abs(by).max())


def test_nan_on_one_device_reaches_all():
    x, c = _batch()
    x[20, 1] = np.nan

    def local(x, c):
        return all_pairs_loss(x, c, axis_name=AXIS, tile=8), 0 * c

    values, _ = _mapped(local, 8, "pmap", (x, c))
    assert np.isnan(values).all()


@pytest.mark.parametrize("devices", [4, 5])
def test_gradients_in_double_precision(devices):
    """Indices of devices are int32 where all other integers are int64."""
    x, c = _batch(batch=40)
    with jax.enable_x64(True):
        x, c = jnp.asarray(x, float), jnp.asarray(c, jnp.int32)
        whole = jax.grad(lambda x: all_pairs_loss(x, c, tile=8))(x)

        def local(x, c):
            return jax.value_and_grad(lambda x: all_pairs_loss(x, c, axis_name=AXIS, tile=8))(x)

        _, shards = _mapped(local, devices, "vmap", (x, c))
        assert shards.dtype == jnp.float64
        np.testing.assert_allclose(shards.reshape(whole.shape), whole, rtol=1e-9, atol=1e-12)


def _sent(text):
    """Bytes a device sends: of each collective permute, times the turns of the loop it is in."""
    sizes = {"f32": 4, "s32": 4}
    moved = 0
    computation = ""
    loops = dict(
        re.findall(r"while\(.*body=%?([\w.]+).*?known_trip_count\":\{\"n\":\"(\d+)\"", text)
    )
    for line in text.splitlines():
        if line and not line.startswith(" "):
            computation = re.sub(r"^(ENTRY )?%?([\w.]+).*", r"\2", line)
        if not re.search(r"= .* collective-permute(-start)?\(", line):
            continue
        shapes = re.findall(r"(f32|s32)\[([\d,]*)\]", line.split("collective-permute")[0])
        one = sum(sizes[t] * int(np.prod([int(n) for n in s.split(",") if n])) for t, s in shapes)
        moved += one * int(loops.get(computation, 1))
    return moved


def test_bytes_moved_grow_with_rows_and_not_with_pairs():
    def moved(batch, devices):
        mesh = Mesh(np.array(jax.devices()[:devices]), (AXIS,))
        rows = PartitionSpec(AXIS)
        mapped = jax.shard_map(
            jax.value_and_grad(lambda x, c: all_pairs_loss(x, c, axis_name=AXIS)),
            mesh=mesh,
            in_specs=(rows, rows),
            out_specs=(PartitionSpec(), rows),
        )
        shapes = (
            jax.ShapeDtypeStruct((batch, 64), "float32"),
            jax.ShapeDtypeStruct((batch,), "int32"),
        )
        compiled = jax.jit(mapped).lower(*shapes).compile()
        return _sent(compiled.as_text())

    embeddings = 4096 * 64 * 4
    for devices in (2, 8):
        large = moved(4096, devices)
        # Half of them visit, with a gradient each, which comes home: B D (1 + 1 / n) and the rest.
        assert 0.9 * embeddings < large < 1.4 * embeddings * (1 + 1 / devices)
    assert large < 4.2 * moved(1024, devices)

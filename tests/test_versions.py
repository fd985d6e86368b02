"""The versions that are supported, and what stands in for JAX and Flax where they differ."""

import re
import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, PartitionSpec

from contrastive_jax import _compat, all_pairs_loss

ROOT = Path(__file__).parent.parent
VERSIONS = ROOT / ".ci" / "versions"
COLUMNS = ("colab", "python311", "newest")


def _pinned(column):
    text = (VERSIONS / f"{column}.txt").read_text()
    return dict(re.findall(r"^([\w-]+)==([\w.]+)$", text, flags=re.MULTILINE))


def _bounds(requirements):
    return {
        match[1]: match[2]
        for one in requirements
        if (match := re.match(r"([\w-]+)>=([\w.]+)(,<[\w.]+)?$", one))
    }


def test_the_lowest_versions_are_those_of_the_oldest_column():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    core, oldest = _bounds(project["dependencies"]), _pinned("colab")
    assert len(core) == len(project["dependencies"])
    assert core == {name: oldest.get(name) for name in core}
    extras = _bounds(one for extra in project["optional-dependencies"].values() for one in extra)
    assert {"matplotlib", "grain", "scikit-learn", "tensorflow-datasets"} <= {*extras}
    for name in {*extras} & {*oldest}:
        assert extras[name] == oldest[name], name


def test_columns_name_their_python_and_the_same_packages():
    assert {path.stem for path in VERSIONS.glob("*.txt")} == {*COLUMNS, "selection"}
    for column in COLUMNS:
        first = (VERSIONS / f"{column}.txt").read_text().splitlines()[0]
        assert re.fullmatch(r"# Python:( 3\.\d+)+", first)
        assert {*_pinned(column)} == {*_pinned("colab")}


def test_what_is_selected_is_there():
    lines = (VERSIONS / "selection.txt").read_text().splitlines()
    selected = [line for line in lines if not line.startswith("#")]
    assert len(selected) > 20
    for line in selected:
        path, _, test = line.partition("::")
        name = test.partition("[")[0]
        assert not name or f"\ndef {name}(" in (ROOT / path).read_text(), line
        assert (ROOT / path).exists(), line


def _mapped(function):
    mesh = Mesh(np.array(jax.devices()[:2]), ("devices",))
    spec = PartitionSpec("devices")
    return jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec)


def test_the_call_that_errors_name_marks_a_value():
    def function(x):
        value = jnp.ones(())
        assert _compat.varying_axes(value) == frozenset()
        call = _compat.MARK_AS_VARYING.format(("devices",))
        marked = eval(call, {"jax": jax, "value": value})
        assert _compat.varying_axes(marked) == {"devices"}
        return x * marked

    jax.eval_shape(_mapped(function), jnp.ones(2))


def test_explicit_axes_need_a_newer_jax(monkeypatch):
    mesh = jax.make_mesh((2,), ("devices",), axis_types=(AxisType.Explicit,))
    x = jax.device_put(np.zeros((4, 3), np.float32), jax.NamedSharding(mesh, PartitionSpec()))
    monkeypatch.setattr(jax, "__version_info__", (0, 7, 2))
    with pytest.raises(ValueError, match=r"need jax 0\.10 or later, .*AxisType\.Auto,\) \* 1, or"):
        jax.eval_shape(all_pairs_loss, x, np.zeros(4, np.int32))


def test_steps_in_turn_are_those_of_vmap(monkeypatch):
    def step(state, source, number):
        return {"w": state["w"] + number * source.sum()}, number

    states, source, hyper = {"w": jnp.arange(6.0).reshape(3, 2)}, jnp.ones(4), jnp.arange(3.0)
    want = jax.vmap(step, (0, None, 0))(states, source, hyper)
    for version in ((0, 7, 2), (0, 8, 0)):
        monkeypatch.setattr(jax, "__version_info__", version)
        got = _compat.vmap_over_states(step)(states, source, hyper)
        jax.tree.map(np.testing.assert_array_equal, got, want)

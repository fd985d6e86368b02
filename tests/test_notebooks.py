"""The notebooks run from top to bottom, on little, and are what their text says."""

import ast
import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# In place of the values in the cell of parameters.
SMALL = {
    "1_contrastive_loss_explained": {"frames": 5, "steps": 100, "redrawn_every": 50},
    "2_train_on_tpu_or_gpu": {"steps": 40, "checkpoint_every": 20, "storage": "here"},
    "3_margin_ablation": {"margins": (0.5, 1.0), "seeds": 2, "steps": 40, "width": 4},
    "4_write_your_own_loss": {"rows": 1024, "steps": 40},
}


def _named(path):
    return path.stem


def test_there_are_four():
    assert {path.stem for path in NOTEBOOKS} == {*SMALL}


PACKAGE = 'package = ""'
# What the first cell prints: platform, devices, Python, JAX, Flax, the library.
ENVIRONMENT = r"\w+: .+ x \d+, Python [\d.]+, jax [\d.]+, flax [\d.]+, contrastive_jax [\w.]+\n"


def _first_cell(notebook):
    return next(cell for cell in notebook.cells if cell.cell_type == "code")


# .ci/test-colab, a part of .ci/run, runs all four on Colab's packages.
@pytest.mark.long
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_from_top_to_bottom(path, tmp_path, request):
    notebook = nbformat.read(path, 4)
    first = _first_cell(notebook)
    package = request.config.getoption("--package")
    assert first.source.count(PACKAGE) == 1
    first.source = first.source.replace(PACKAGE, f"package = {package!r}")
    tagged = ["parameters" in cell.metadata.get("tags", ()) for cell in notebook.cells]
    assert sum(tagged) == 1
    place = tagged.index(True)
    given = ast.parse(notebook.cells[place].source).body
    assert {*SMALL[path.stem]} <= {name.id for line in given for name in line.targets}
    small = "\n".join(f"{name} = {value!r}" for name, value in SMALL[path.stem].items())
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(small))
    # In a folder of its own, from which only what is installed can be imported.
    client = NotebookClient(
        notebook,
        timeout=300,
        kernel_name=request.config.getoption("--kernel"),
        resources={"metadata": {"path": tmp_path}},
    )
    client.execute()
    assert re.fullmatch(ENVIRONMENT, "".join(output.text for output in first.outputs))
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not [o for o in outputs if o.output_type == "stream" and o.name == "stderr"]
    figures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(figures) >= 2


class _Installed(Exception):
    """Ends a first cell where it calls pip to install."""


@pytest.fixture
def pip_calls(monkeypatch):
    """Hides the library from a first cell, and records its calls of pip in place of making them."""
    calls = []

    def run(command, **_):
        calls.append(command[3:])  # without `python -m pip`
        if command[3] == "install":
            raise _Installed
        return subprocess.CompletedProcess(command, 0, stdout="jax==0.7.2\ntorch==2.8.0+cu126\n")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(subprocess, "run", run)
    return calls


def _run_first_cell(path, package):
    source = _first_cell(nbformat.read(path, 4)).source.replace("%matplotlib inline", "")
    exec(source.replace(PACKAGE, f"package = {package!r}"), {})


@pytest.mark.parametrize("path", NOTEBOOKS, ids=_named)
@pytest.mark.parametrize("package", ["", "nowhere.whl"])
def test_without_the_library_the_first_cell_says_what_to_fill_in(path, package, pip_calls):
    with pytest.raises(
        FileNotFoundError, match=f"package = '{package}' is neither .*: set package"
    ):
        _run_first_cell(path, package)
    assert not pip_calls


@pytest.mark.parametrize("path", NOTEBOOKS, ids=_named)
def test_the_first_cell_installs_beside_what_is_there(path, pip_calls, tmp_path):
    wheel = tmp_path / "contrastive_jax-0.1-py3-none-any.whl"
    wheel.touch()
    address = "git+https://host/contrastive_jax"
    for package, taken_from in ((str(wheel), wheel.as_uri()), (address, address)):
        with pytest.raises(_Installed):
            _run_first_cell(path, package)
        *options, constraints, wanted = pip_calls[-1]
        assert options == ["install", "--constraint"]
        assert Path(constraints).read_text() == "jax==0.7.2\ntorch==2.8.0+cu126\n"
        assert wanted == f"contrastive_jax[train,plots] @ {taken_from}"


def test_first_cells_differ_in_their_devices_alone():
    def lines(path):
        source = _first_cell(nbformat.read(path, 4)).source
        pattern = r"import (os|contextlib)|PJRT_NPROC|no accelerator|num_cpu_devices|suppress\("
        return [line for line in source.splitlines() if line and not re.search(pattern, line)]

    first, *others = map(lines, NOTEBOOKS)
    assert others == [first] * 3


@pytest.mark.parametrize("path", NOTEBOOKS, ids=_named)
def test_text_and_notebook_are_the_same_and_without_outputs(path):
    notebook = nbformat.read(path, 4)
    text = jupytext.read(path.with_suffix(".py"))
    assert [(c.cell_type, c.source) for c in notebook.cells] == [
        (c.cell_type, c.source) for c in text.cells
    ]
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=_named)
def test_needs_nothing_but_the_library_and_what_it_depends_on(path):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    allowed = {re.match(r"[\w-]+", one)[0].replace("-", "_") for one in project["dependencies"]}
    allowed |= {"contrastive_jax", "IPython", "google", *sys.stdlib_module_names}
    source = "\n".join(
        re.sub(r"^%.*", "", cell.source, flags=re.MULTILINE)
        for cell in nbformat.read(path, 4).cells
        if cell.cell_type == "code"
    )
    # Colab's Python may be an earlier one than that of this test.
    tree = ast.parse(source, feature_version=(3, 11))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.split(".")[0])
    assert imported <= allowed

"""The examples in docstrings run, and every public function has one."""

import ast
import doctest

import pytest
from test_docs import _public, _trees

from contrastive_jax.data import load

pytestmark = pytest.mark.usefixtures("few_pairs")

PUBLIC = {module: _public(tree) for module, tree in _trees()}
EXAMPLES = {
    f"{module}.{name}": docstring
    for module, members in PUBLIC.items()
    for name, node in members.items()
    if ">>>" in (docstring := ast.get_docstring(node) or "")
}


def test_every_public_function_has_an_example():
    functions = [
        f"{module}.{name}"
        for module, members in PUBLIC.items()
        for name, node in members.items()
        if isinstance(node, ast.FunctionDef)
    ]
    assert len(functions) > 150
    assert [name for name in functions if name not in EXAMPLES] == []


# Packages of the extras `export` and `search` by the functions that need them.
NEEDED = {
    "flatbuffers": ["export.agreement.verify", "export.folder.write", "stablehlo"],
    "jax2onnx": ["onnx"],
    "optuna": ["by_optuna", "open_storage"],
    "safetensors": ["safetensors"],
}


@pytest.fixture(scope="module")
def prepared_digits():
    """Prepares the data set before an example loads it, as that prints a line the first time."""
    load("digits")


# The figures of a report are drawn in test_train.
@pytest.mark.usefixtures("one_device", "no_figures", "prepared_digits")
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_prints_what_it_says(name, tmp_path, monkeypatch):
    for package, functions in NEEDED.items():
        if name.startswith(("export.", "search.")) and name.endswith(tuple(functions)):
            pytest.importorskip(package, reason="needs the extra export or search")
    monkeypatch.chdir(tmp_path)  # some write files
    example = doctest.DocTestParser().get_doctest(EXAMPLES[name], {}, name, None, 0)
    failures = []
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
    runner.run(example, out=failures.append)
    assert not failures, "".join(failures)


def test_examples_are_sections_of_their_own():
    for name, docstring in EXAMPLES.items():
        before = docstring[: docstring.index(">>>")].rstrip()
        assert before.endswith("\n\nExample:"), name

"""The reference has a place for all that is public, and its formulas can be set."""

import importlib
import importlib.util
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import contrastive_jax
from contrastive_jax import losses

ROOT = Path(__file__).parent.parent
# How pairs are walked, which is nobody's to call.
ENGINE = {"anchors", "losses.directions", "products", "streaming", "tiles", "triples"}


def _modules():
    for info in pkgutil.walk_packages(contrastive_jax.__path__, "contrastive_jax."):
        if not info.ispkg:
            yield info.name


def _documented():
    pages = (ROOT / "docs" / "reference").glob("*.md")
    return [name for page in pages for name in re.findall(r"^::: (\S+)", page.read_text(), re.M)]


def test_every_module_has_one_place():
    engine = {f"contrastive_jax.{name}" for name in ENGINE}
    assert engine <= {*_modules()}
    assert sorted(_documented()) == sorted({*_modules()} - engine)


def test_every_page_is_in_the_table_of_contents():
    listed = re.findall(r"reference/\w+\.md", (ROOT / "mkdocs.yml").read_text())
    pages = [f"reference/{page.name}" for page in (ROOT / "docs" / "reference").glob("*.md")]
    assert sorted(listed) == sorted(pages)


def test_what_the_first_page_of_the_library_names_is_in_a_documented_module():
    found = [
        getattr(package, name) for package in (contrastive_jax, losses) for name in package.__all__
    ]
    functions = [one for one in found if not inspect.ismodule(one)]
    assert len(functions) > 40
    for function in functions:
        assert function.__module__ in _documented(), function
        assert inspect.getdoc(function)


def _formulas():
    sources = [*(ROOT / "contrastive_jax").rglob("*.py"), *(ROOT / "docs").rglob("*.md")]
    for path in sources:
        for block, inline in re.findall(
            r"\$\$(.+?)\$\$|\$([^$\s][^$\n]*?)\$", path.read_text(), re.S
        ):
            yield path.relative_to(ROOT), block or inline, bool(block)


@pytest.mark.skipif(not importlib.util.find_spec("ziamath"), reason="needs the extra docs")
def test_every_formula_can_be_set():
    spec = importlib.util.spec_from_file_location("formulas", ROOT / "docs" / "formulas.py")
    formulas = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(formulas)
    found = [*_formulas()]
    assert len(found) > 40
    for path, latex, block in found:
        drawn = formulas.picture(latex, block, str(path))
        assert 'role="img"' in drawn
        assert "<path" in drawn
        assert block == drawn.startswith("<div")
    with pytest.raises(ValueError, match="of here can not be set"):
        formulas.picture(r"\frac{1", False, "here")

"""The reference has a place for all that is public, and its formulas can be set."""

import importlib
import importlib.util
import inspect
import pkgutil
import re
from pathlib import Path
from types import SimpleNamespace

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


@pytest.fixture(scope="module")
def formulas():
    pytest.importorskip("ziamath", reason="needs the extra docs")
    spec = importlib.util.spec_from_file_location("formulas", ROOT / "docs" / "formulas.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_formula_can_be_set(formulas):
    found = [*_formulas()]
    assert len(found) > 40
    for path, latex, block in found:
        drawn = formulas.picture(latex, block, str(path))
        assert 'role="img"' in drawn
        assert "<path" in drawn
        assert block == drawn.startswith("<div")


@pytest.mark.parametrize(
    "latex",
    [r"\frac{1", r"\begin{matrix}" + r"1 \\" * 12 + r"1\end{matrix}"],
    ids=["broken", "tall"],
)
def test_a_formula_that_can_not_be_set_is_named_with_its_page(formulas, latex):
    with pytest.raises(ValueError, match=r"^formula .* of here can not be set: ") as caught:
        formulas.picture(latex, True, "here")
    assert repr(latex) in str(caught.value)


def test_formulas_of_a_page_are_replaced_where_they_stand(formulas):
    page = SimpleNamespace(file=SimpleNamespace(src_uri="here.md"))
    inline, block = (
        '<p>if <span class="arithmatex">\\(a &lt; b\\)</span>, then</p>',
        '<div class="arithmatex">\\[\na^2\n\\]</div>',
    )
    found = formulas.on_page_content(inline + block, page)
    assert "arithmatex" not in found
    assert re.search(
        r'<p>if <span class="formula"><svg .*aria-label="a &lt; b".*</svg>,</span> t', found
    )
    assert re.search(
        r'</p><div class="formula"><svg .*aria-label="a\^2".*</svg></div>$', found, re.S
    )

"""The reference has a place for all that is public, and its formulas can be set."""

import ast
import importlib.util
import inspect
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

import contrastive_jax
from contrastive_jax import losses

ROOT = Path(__file__).parent.parent


def _trees():
    """The modules of the library but for private ones, as they are written."""
    package = ROOT / "contrastive_jax"
    for path in package.rglob("*.py"):
        if not any(part.startswith("_") for part in path.relative_to(package).parts):
            yield (
                ".".join(path.relative_to(package).with_suffix("").parts),
                ast.parse(path.read_text()),
            )


def _public(tree):
    """Functions and classes of a module: those in its `__all__`, or without an underscore."""
    listed = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    return {
        node.name: node
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and (node.name in listed[0] if listed else not node.name.startswith("_"))
    }


def _documented():
    """Modules on the pages of the reference, and the members that are named there."""
    for page in (ROOT / "docs" / "reference").glob("*.md"):
        for name, options in re.findall(
            r"^::: contrastive_jax\.(\S+)\n((?: {4}.*\n)*)", page.read_text(), re.M
        ):
            members = re.search(r"^ +members: \[(.*)\]$", options, re.M)
            yield name, members and members[1].split(", ")


def test_every_public_function_has_one_place():
    public = {name: _public(tree) for name, tree in _trees()}
    expected = [f"{module}.{name}" for module, names in public.items() for name in names]
    assert len(expected) > 150
    documented = [
        f"{module}.{name}"
        for module, members in _documented()
        for name in (public[module] if members is None else members)
    ]
    assert sorted(documented) == sorted(expected)


def _docstrings():
    for module, tree in _trees():
        for name, node in _public(tree).items():
            yield f"{module}.{name}", ast.get_docstring(node) or ""


def test_docstrings_begin_with_a_plain_sentence():
    # What has no docstring would not be shown.
    assert [name for name, text in _docstrings() if not re.match(r"[^$\\^\n]+(\n\n|$)", text)] == []


def test_docstrings_do_not_begin_with_a_fragment():
    files = [*ROOT.glob("contrastive_jax/**/*.py"), *ROOT.glob("experiments/**/*.py")]
    assert len(files) > 100
    opening = r'"""(?:Of|What|Whether)\b.*'
    assert [one for path in files for one in re.findall(opening, path.read_text())] == []


def _names(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg


def test_names_say_what_a_thing_is():
    """Names such as these say how a value came about or whose it is, and not what it is."""
    vague = re.compile(r"_*(known|found|kept|places|numbers|kinds|of_\w+)")
    folders = ("contrastive_jax", "experiments", "tests", "notebooks", "docs")
    files = [path for folder in folders for path in (ROOT / folder).glob("**/*.py")]
    assert len(files) > 300
    names = [(path.name, name) for path in files for name in _names(ast.parse(path.read_text()))]
    assert [(path, name) for path, name in names if vague.fullmatch(name.lower())] == []


def test_what_is_returned_is_not_read_as_its_type():
    first_line = r"^(?:Returns|Yields):\n.*:( |$)"
    assert [name for name, text in _docstrings() if re.search(first_line, text, re.M)] == []


def test_arguments_are_all_documented_or_none():
    for module, tree in _trees():
        for name, node in _public(tree).items():
            section = re.search(r"^Args:\n((?: .*\n|\n)*)", f"{ast.get_docstring(node)}\n", re.M)
            if section and isinstance(node, ast.FunctionDef):
                arguments = [one.arg for one in ast.walk(node.args) if isinstance(one, ast.arg)]
                documented = re.findall(r"^  \*{0,2}(\w+):", section[1], re.M)
                assert sorted(documented) == sorted(arguments), f"{module}.{name}"


# A technical report that has neither an arXiv number nor a DOI.
WITHOUT_A_LINK = {"evaluation.verification.kfold_accuracy"}


def test_every_paper_has_a_link():
    link = (
        r"<https://(arxiv\.org/abs/\d{4}\.\d{4,5}|doi\.org/10\.\d{4,}/\S+|"
        r"proceedings\.neurips\.cc/paper/\S+|openaccess\.thecvf\.com/\S+|"
        r"www\.jmlr\.org/papers/\S+|pytorch\.org/docs/\S+)>"
    )
    sections = {
        name: re.search(r"^References:\n((?: .*\n?)+)", text, re.M) for name, text in _docstrings()
    }
    named = {name: match[1] for name, match in sections.items() if match}
    assert len(named) > 45
    for name, text in named.items():
        assert len(re.findall(link, text)) == text.count("https://"), name
        assert ("https://" in text) == (name not in WITHOUT_A_LINK), name


def test_every_page_is_in_the_table_of_contents():
    listed = re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text())
    docs = ROOT / "docs"
    pages = [page.relative_to(docs).as_posix() for page in docs.rglob("*.md")]
    assert len(pages) > 25
    notebooks = [f"notebooks/{path.stem}.md" for path in ROOT.glob("notebooks/*.py")]
    assert len(notebooks) == 4
    assert sorted(listed) == sorted(pages + notebooks)


def test_what_the_first_page_of_the_library_names_is_in_a_documented_module():
    exported = [
        getattr(package, name) for package in (contrastive_jax, losses) for name in package.__all__
    ]
    functions = [one for one in exported if not inspect.ismodule(one)]
    assert len(functions) > 40
    modules = {f"contrastive_jax.{name}" for name, _ in _documented()}
    for function in functions:
        assert function.__module__ in modules, function
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
    cases = [*_formulas()]
    assert len(cases) > 40
    for path, latex, block in cases:
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
    html = formulas.on_page_content(inline + block, page)
    assert "arithmatex" not in html
    assert re.search(
        r'<p>if <span class="formula"><svg .*aria-label="a &lt; b".*</svg>,</span> t', html
    )
    assert re.search(
        r'</p><div class="formula"><svg .*aria-label="a\^2".*</svg></div>$', html, re.S
    )

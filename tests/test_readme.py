"""The README and the pages of the site: their code runs, and what they name exists."""

import dataclasses
import importlib
import re
import shlex
from pathlib import Path

import pytest
import tyro

from contrastive_jax.cli.parsing import expanded
from experiments import (
    compare_losses,
    drlim,
    embed,
    export,
    margin_ablation,
    search,
    train,
)

pytestmark = pytest.mark.usefixtures("few_pairs")

ROOT = Path(train.__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page: page.read_text() for page in PAGES}


def _blocks(page):
    return re.findall(r"```python\n(.*?)```", TEXTS[page], flags=re.DOTALL)


# The code of docs/accelerators.md needs a compiler for a TPU: tests/accelerators runs it.
RUNNABLE = [page for page in PAGES if _blocks(page) and page.stem != "accelerators"]


# Packages of the extra `export` by what a block calls; the first that is missing ends a page.
NEEDED = {
    "export": {
        "flatbuffers": ["export.write", "export.deserialize"],
        "jax2onnx": ["to_onnx"],
        "safetensors": ["to_safetensors"],
    }
}


def _name(page):
    return page.relative_to(ROOT).as_posix()


def test_the_readme_is_short():
    assert len(TEXTS[README].splitlines()) <= 220


def test_pages_have_code():
    assert {_name(page) for page in RUNNABLE} == {
        "README.md",
        "docs/ablations.md",
        "docs/all_pairs.md",
        "docs/choose_a_loss.md",
        "docs/devices.md",
        "docs/export.md",
        "docs/heads.md",
        "docs/index.md",
        "docs/labels.md",
        "docs/losses.md",
        "docs/own_data.md",
        "docs/own_loop.md",
        "docs/own_loss.md",
        "docs/quick_start.md",
        "docs/use_a_run.md",
    }


@pytest.fixture(scope="module")
def namespaces():
    return {}


@pytest.mark.page
@pytest.mark.parametrize("page", RUNNABLE, ids=_name)
def test_code_blocks_run_one_after_another(page, namespaces, tmp_path, monkeypatch, request):
    request.getfixturevalue("two_devices" if page.stem == "devices" else "one_device")
    if page == README:
        request.getfixturevalue("threefry")
    monkeypatch.chdir(tmp_path)  # some write files
    namespace = namespaces[page] = {}
    for block in _blocks(page):
        for package in NEEDED.get(page.stem, ()):
            if any(word in block for word in NEEDED[page.stem][package]):
                pytest.importorskip(package, reason="needs the extra export")
        exec(compile(block, _name(page), "exec"), namespace)


@pytest.mark.page
@pytest.mark.usefixtures("threefry")
def test_the_readme_trains_the_encoder_that_it_says(namespaces):
    namespace = namespaces.get(README) or {}
    if not namespace:
        exec(compile(_blocks(README)[0], "README.md", "exec"), namespace)
    said = re.search(r"# ([\d.]+) and ([\d.]+) with this seed", TEXTS[README]).groups()
    spread = re.search(r"0\.98 \((.*?) to (.*?)\) and 0\.94 \((.*?) to (.*?)\);", TEXTS[README])
    ranges = zip(*[map(float, spread.groups())] * 2, strict=True)
    names = "precision_at_1", "map_at_r"
    for name, value, (low, high) in zip(names, said, ranges, strict=True):
        assert namespace["metrics"][name] == pytest.approx(float(value), abs=0.015)
        assert low - 0.015 <= namespace["metrics"][name] <= high + 0.015


def test_the_report_of_ones_own_data_is_what_is_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs" / "own_data.md"
    exec(compile("\n".join(_blocks(page)[:2]), _name(page), "exec"), {})
    printed = capsys.readouterr().out
    assert printed in TEXTS[page], printed


@pytest.mark.parametrize("page", [README, ROOT / "docs" / "index.md"], ids=_name)
def test_comments_of_the_formula_are_what_it_gives(page):
    from contrastive_jax import losses

    lines = re.findall(
        r"^losses\.contrastive\((.*?)\)  # ([\d.]+):", TEXTS[page], flags=re.MULTILINE
    )
    assert len(lines) == 3
    for arguments, value in lines:
        computed = losses.contrastive(*map(float, arguments.split(", ")))
        assert float(computed) == pytest.approx(float(value))


COMMANDS = sorted(
    {
        command
        for text in TEXTS.values()
        for command in re.findall(r"python -m (experiments\.[^\n`#]*[^\n`#) ])", text)
    }
)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_understood(command):
    name, *arguments = shlex.split(command.replace("$seed", "0"))  # of a loop of the shell
    if ".benchmarks." in name:
        # They import their peers or their compilers, which are not installed here.
        path = ROOT / name.replace(".", "/")
        source = (path / "__main__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
        for option in arguments:
            name = option.removeprefix("--").removeprefix("no_")
            assert not option.startswith("--") or f"    {name}: " in source
        return
    config = importlib.import_module(name).Config
    if "--help" not in arguments:
        # As the command line is read, which gives `--flip` its value.
        tyro.cli(config, args=expanded(config, arguments), use_underscores=True)


def test_commands_are_many():
    assert len(COMMANDS) > 10


def test_options_in_the_text_exist():
    fields = {
        field.name
        for module in (
            train,
            margin_ablation,
            search,
            drlim,
            compare_losses,
            embed,
            export,
        )
        for field in dataclasses.fields(module.Config)
    }
    named = {
        option
        for text in TEXTS.values()
        for option in re.findall(r"(?<![\w-])--(?:no_)?([a-z]\w+)", text)
    } - {"help"}
    assert len(named) > 10
    benchmarks = {
        option
        for c in COMMANDS
        if ".benchmarks." in c
        for option in re.findall(r"--(?:no_)?(\w+)", c)
    }
    assert named <= fields | benchmarks


LINKS = [
    (page, link)
    for page in PAGES
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", TEXTS[page], flags=re.S))
]


def _anchors(path):
    """Anchors of a page: its headings, and in the reference the documented objects."""
    text = path.read_text()
    headings = re.findall(r"^#+ (.+)$", text, flags=re.M)
    slugs = {re.sub(r"[^\w -]", "", one).strip().lower().replace(" ", "-") for one in headings}
    return slugs, re.findall(r"^::: (\S+)$", text, flags=re.M)


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_somewhere(page):
    for link in [link for source, link in LINKS if source == page]:
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        if page.parent.name == "docs":
            assert ROOT / "docs" in target.parents, f"{link} is not on the site"
        if not anchor:
            continue
        slugs, modules = _anchors(target)
        module = next((one for one in modules if anchor.startswith(f"{one}.")), None)
        if module is None:
            assert anchor in slugs, link
        else:
            assert hasattr(importlib.import_module(module), anchor.removeprefix(f"{module}."))


def test_links_to_papers_are_arxiv_doi_or_proceedings():
    web = {link for _, link in LINKS if link.startswith("https://")}
    assert len(web) > 20
    for link in web:
        assert re.fullmatch(
            r"https://(arxiv\.org/abs/\d{4}\.\d{4,5}|doi\.org/10\.\d{4,}/\S+|"
            r"proceedings\.neurips\.cc/paper/\d{4}/hash/[0-9a-f]{32}-Abstract\.html|"
            r"openaccess\.thecvf\.com/\S+\.pdf|"
            r"docs\.jax\.dev/en/latest/export/export\.html#compatibility-guarantees|"
            r"pypi\.org/project/jax2onnx/|"
            r"kevinmusgrave\.github\.io/pytorch-metric-learning/)",
            link,
        ), link


def test_the_table_of_the_readme_has_every_loss():
    import contrastive_jax
    from contrastive_jax import losses

    table = TEXTS[README].split("| type | losses, with their papers | call |")[1].split("\n\n")[0]
    rows = [row.split("|")[1:4] for row in table.splitlines()[2:]]
    named = [name for _, names, _ in rows for name in re.findall(r"`(\w+)`", names)]
    # Types have capitals, and these make losses of others or give them a distance.
    others = {"mean_over_pairs", "weighted_sum", "with_distance", "resolve_distance"}
    expected = {name for name in losses.__all__ if name.islower()} - others
    assert sorted(named) == sorted(expected)
    for _, _, calls in rows:
        for name in re.findall(r"`(\w+)`", calls):
            assert name in contrastive_jax.__all__


def test_targets_of_make_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = {
        target
        for text in TEXTS.values()
        for target in re.findall(r"(?:^    |`)make ([\w-]+)", text, flags=re.MULTILINE)
    }
    assert {"train", "test", "docs"} <= targets
    for target in targets:
        assert f"\n{target}:" in makefile
    assert "make train" in TEXTS[README]
    assert "make test" in TEXTS[README]

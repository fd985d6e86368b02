"""Pages that are made while the site is built: notebooks, and the options of every command."""

import dataclasses
import importlib
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMMANDS = re.findall(
    r"<!-- options of (experiments\.\w+) -->", (ROOT / "docs" / "commands.md").read_text()
)


@pytest.fixture(scope="module")
def generated():
    pytest.importorskip("mkdocs", reason="needs the extra docs")
    spec = importlib.util.spec_from_file_location("generated", ROOT / "docs" / "generated.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_command_has_a_place():
    paths = [p for p in (ROOT / "experiments").glob("*.py") if "__main__" in p.read_text()]
    assert sorted(COMMANDS) == sorted(f"experiments.{path.stem}" for path in paths)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained(generated, name):
    page = generated.on_page_markdown(f"# A command\n\n<!-- options of {name} -->\n")
    assert page.startswith(f"# A command\n\n```\nusage: python -m {name}")
    for field in dataclasses.fields(importlib.import_module(name).Config):
        if "Positional" not in str(field.type):
            assert f"--{field.name}" in page


def test_a_notebook_is_shown_with_its_text_and_its_code(generated):
    text = "# ---\n# jupyter:\n# ---\n\n# %% [markdown]\n# # Title\n#\n# Text.\n\n"
    text += "# %%\n# %matplotlib inline\nx = 1\n"
    assert generated.notebook(text) == "# Title\n\nText.\n\n```python\nx = 1\n```\n"

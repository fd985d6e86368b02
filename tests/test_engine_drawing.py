"""The drawing of the page about the engine."""

import importlib.util
import re
from pathlib import Path

import numpy as np

from contrastive_jax import plots

DOCS = Path(__file__).parent.parent / "docs"


def test_the_drawing_has_four_panels_with_a_title(tmp_path):
    spec = importlib.util.spec_from_file_location("engine_drawing", DOCS / "engine_drawing.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    figure = module.draw()
    assert [axes.get_title()[:2] for axes in figure.axes] == ["1.", "2.", "3.", "4."]
    # Rows are sorted, as the page says.
    assert np.all(np.diff(module.CLASSES) >= 0)
    plots.save(figure, tmp_path / "engine.svg")
    page = (DOCS / "engine.md").read_text()
    assert "(engine.svg)" in page
    for axes in figure.axes[1:]:
        assert len(axes.texts) >= 3


def test_the_files_that_the_page_names_exist():
    page = (DOCS / "engine.md").read_text()
    rows = (
        page.split("| file of `contrastive_jax/_engine/` | subject |")[1]
        .split("\n\n")[0]
        .splitlines()
    )
    names = [name for row in rows for name in re.findall(r"`(\w+\.py)`", row)]
    files = {path.name for path in (DOCS.parent / "contrastive_jax" / "_engine").glob("*.py")}
    assert {*names} == files - {"__init__.py"}

"""Pages that are made while the site is built: the notebooks, and the options of commands."""

import contextlib
import importlib
import io
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent


def on_files(files: Any, config: Any, **_: Any) -> Any:
    """Adds a page for each notebook."""
    for path in sorted((ROOT / "notebooks").glob("*.py")):
        page = f"notebooks/{path.stem}.md"
        files.append(File.generated(config, page, content=notebook(path.read_text())))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Shows the options of a command where a page names it in a comment."""
    return re.sub(
        r"<!-- options of (\S+) -->", lambda match: f"```\n{options(match[1])}\n```", markdown
    )


def notebook(text: str) -> str:
    """Returns a notebook in the percent format of Jupytext as Markdown, without its outputs."""
    _, *cells = re.split(r"^# %%", text, flags=re.MULTILINE)
    parts = []
    for cell in cells:
        kind, _, body = cell.partition("\n")
        if "[markdown]" in kind:
            parts.append(re.sub(r"^# ?", "", body.strip(), flags=re.MULTILINE))
        else:
            code = re.sub(r"^# %.*\n", "", body.strip(), flags=re.MULTILINE)
            parts.append(f"```python\n{code}\n```")
    return "\n\n".join(parts) + "\n"


def options(name: str) -> str:
    """Returns the options of a command, as its `--help` prints them."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    cli = importlib.import_module("contrastive_jax.cli")
    module = importlib.import_module(name)
    written = io.StringIO()
    with contextlib.redirect_stdout(written), contextlib.suppress(SystemExit):
        cli.parse(module.Config, name, str(module.__doc__), ["--help"])
    plain = re.sub(r"\x1b\[[\d;]*m", "", written.getvalue())
    return re.sub(r" +$", "", plain, flags=re.MULTILINE).rstrip()

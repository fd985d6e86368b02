"""Prints the lowest versions that pyproject.toml allows, as constraints for pip."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
extras = project["optional-dependencies"]
for requirement in [*project["dependencies"], *extras["test"], *extras["search"]]:
    if found := re.match(r"([\w.-]+)\s*>=\s*([\w.]+)", requirement):
        print(f"{found[1]}=={found[2]}")

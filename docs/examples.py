"""Shows the section `Example:` of a docstring as code and its output."""

import re
from typing import Any

import griffe


class Examples(griffe.Extension):
    """Gives the section the name by which mkdocstrings recognizes examples."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Renames it, once an object has been read."""
        if obj.docstring:
            obj.docstring.value = re.sub(
                "^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE
            )

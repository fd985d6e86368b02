"""The values of options, of a dataclass with or without a dict."""

import dataclasses
from typing import Any


def values_of(config: Any) -> dict[str, Any]:
    """Returns the value of each option by its name."""
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}

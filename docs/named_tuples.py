"""Shows a named tuple by its fields, as a dataclass is, whether or not each has a docstring."""

from typing import Any

import griffe


class NamedTuples(griffe.Extension):
    """Gives named tuples the `__init__` that their fields make."""

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        """Adds it, once the class has been read."""
        if not any(str(base) == "NamedTuple" for base in cls.bases):
            return
        fields = [
            griffe.Parameter(
                name,
                annotation=field.annotation,
                kind=griffe.ParameterKind.positional_or_keyword,
                default=field.value,
            )
            for name, field in cls.attributes.items()
            if field.annotation is not None
        ]
        self_parameter = griffe.Parameter("self", kind=griffe.ParameterKind.positional_or_keyword)
        init = griffe.Function("__init__", parameters=griffe.Parameters(self_parameter, *fields))
        cls.set_member("__init__", init)

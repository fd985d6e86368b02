"""The option `--loss_options NAME=VALUE ...`, numbers of a loss by name."""

from typing import Annotated

from contrastive_jax._extras import needs

with needs("train", "experiments.loss_options"):
    from tyro.constructors import PrimitiveConstructorSpec


def parse_numbers(texts: list[str]) -> dict[str, float]:
    """Reads numbers by name, such as `margin=0.3 scale=20`.

    Args:
      texts: each a name, an equals sign and a number.

    Returns:
      Numbers by name.

    Raises:
      ValueError: if one is not of that form, or a name is given twice.
    """
    numbers: dict[str, float] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = None
        if not name or not equals or number is None:
            raise ValueError(f"takes NAME=VALUE, as margin=0.3 scale=20, got {text!r}")
        if name in numbers:
            raise ValueError(f"names {name} twice; leave one of them out")
        numbers[name] = number
    return numbers


LossOptions = Annotated[
    dict[str, float],
    PrimitiveConstructorSpec(
        nargs="*",
        metavar="[NAME=VALUE [NAME=VALUE ...]]",
        instance_from_str=parse_numbers,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [f"{name}={number:g}" for name, number in value.items()],
    ),
]
"""Type of the field of a configuration."""

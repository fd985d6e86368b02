"""Labels of two rows by a name and the columns that they take, as a command line gives them."""

from typing import TypeVar

from contrastive_jax.labels.by_class import hierarchy, same_class, same_class_other_group
from contrastive_jax.labels.by_number import within
from contrastive_jax.labels.by_set import any_shared
from contrastive_jax.labels.types import PairLabels

__all__ = ["by_name"]

Labels = TypeVar("Labels")

_FORMS = (
    "class, other_group, any_shared=COLUMN, within=COLUMN:THRESHOLD, "
    "within=COLUMN:THRESHOLD:APART, hierarchy=COLUMN,COLUMN"
)


def by_name(text: str) -> PairLabels:
    """Makes labels from text that names them and the columns of the data that they take.

    Args:
      text: `class`, `other_group`, `any_shared=tags`, `within=age:5` or `within=age:5:10`, or
        `hierarchy=family,genus`, which stand for `same_class()`, `same_class_other_group()`,
        `any_shared("tags")`, `within(5, column="age")`, `within(5, apart=10, column="age")` and
        `hierarchy(2, ("family", "genus"))`.

    Returns:
      The labels, with the attributes that they take for training.

    Raises:
      ValueError: if the text has none of these forms, or a number is not in its range.

    Example:
      >>> from contrastive_jax import labels
      >>> rule = labels.by_name("within=age:5")
      >>> print(rule(20.0, 24.0), rule(20.0, 25.0))
      0 1
    """
    name, _, rest = text.partition("=")
    rest = rest.strip()
    parts = [part.strip() for part in rest.split(":")]
    columns = [part.strip() for part in rest.split(",")]
    if text == "class":
        return same_class()
    if text == "other_group":
        return same_class_other_group()
    if name == "any_shared" and rest:
        return any_shared(rest)
    if name == "hierarchy" and all(columns):
        return hierarchy(len(columns), columns)
    if name == "within" and all(parts) and len(parts) in (2, 3):
        try:
            limits = [float(part) for part in parts[1:]]
        except ValueError:
            raise ValueError(
                f"labels: within takes numbers after the column, as within=age:5, got {text!r}"
            ) from None
        return within(*limits, column=parts[0])
    raise ValueError(f"labels must be one of {_FORMS}, got {text!r}")


def from_text(labels: Labels | str) -> Labels | PairLabels | None:
    """Makes labels that may be given as text, None where the text stands for classes.

    Args:
      labels: text that `by_name` takes, or anything else, which is returned as it is.

    Raises:
      ValueError: as `by_name`.

    Example:
      >>> from contrastive_jax.labels.named import from_text
      >>> print(from_text("class"), from_text("any_shared=tags").name)
      None any_shared=tags
    """
    if not isinstance(labels, str):
        return labels
    return None if labels == "class" else by_name(labels)

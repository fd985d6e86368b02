"""Some examples of a split, and some classes of a data set."""

from collections.abc import Iterable

import numpy as np

from contrastive_jax.data.datasets import Dataset, Examples


def select_rows(examples: Examples, rows: np.ndarray) -> Examples:
    """Returns some examples of a split, with all their columns.

    Args:
      examples: of one split.
      rows: their positions, or booleans.

    Example:
      >>> from contrastive_jax.data import load
      >>> from contrastive_jax.data.selection import select_rows
      >>> test = load("digits").test
      >>> len(select_rows(test, test.classes == 4).classes)
      45
    """

    def chosen(column: np.ndarray | None) -> np.ndarray | None:
        return None if column is None else column[rows]

    return Examples(
        examples.images[rows],
        examples.classes[rows],
        chosen(examples.groups),
        chosen(examples.queries),
        {name: column[rows] for name, column in examples.attributes.items()},
        chosen(examples.sources),
    )


def trained_numbers(data: Dataset, names: Iterable[str] | None = None) -> np.ndarray:
    """Returns the numbers of classes that have training images.

    Args:
      data: with classes.
      names: names or numbers of the classes; by default all that have training images.

    Raises:
      ValueError: if one has none, with the classes that have.

    Example:
      >>> from contrastive_jax.data import load
      >>> from contrastive_jax.data.selection import trained_numbers
      >>> trained_numbers(load("digits"), ["4", "9"]).tolist()
      [4, 9]
    """
    present = np.unique(data.train.classes[data.train.classes >= 0])
    if names is None:
        return present
    chosen = []
    for name in names:
        number = int(name) if name.isdecimal() else -1
        number = data.class_names.index(name) if name in data.class_names else number
        if number not in present:
            trained = [data.class_names[k] for k in present]
            more = ", ..." if len(trained) > 10 else ""
            raise ValueError(
                f"class {name} has no training images in {data.name}, whose classes are "
                f"{', '.join(trained[:10])}{more}: leave it out"
            )
        chosen.append(number)
    return np.array(chosen)

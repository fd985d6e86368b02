"""Categories of the training examples: columns by which batches are drawn."""

import numpy as np

from contrastive_jax.data.datasets import Dataset


def categories_of(data: Dataset, category: str) -> np.ndarray:
    """Returns the column of the training examples that has their categories.

    Args:
      data: whose batches are to be of one category each, as `fit(categories=...)` draws them.
      category: `group`, or the name of a column of the table.

    Returns:
      Categories, `[N]`.

    Raises:
      ValueError: if the data has no such column.

    Example:
      >>> import numpy as np
      >>> from contrastive_jax.data import load
      >>> from contrastive_jax.data.categories import categories_of
      >>> digits = load("digits")
      >>> parity = {"parity": digits.train.classes % 2}
      >>> digits = digits._replace(train=digits.train._replace(attributes=parity))
      >>> np.unique(categories_of(digits, "parity")).tolist()
      [0, 1]
    """
    columns = dict(data.train.attributes)
    if data.train.groups is not None:
        columns["group"] = data.train.groups
    if category not in columns:
        raise ValueError(
            f"category must be a column of {data.name}, which has "
            f"{', '.join(columns) or 'none besides images and classes'}, got {category}"
        )
    return columns[category]

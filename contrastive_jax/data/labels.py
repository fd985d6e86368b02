"""Class labels given as integers, booleans or strings."""

from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike

from contrastive_jax._host_arrays import checked_classes

IGNORED = -1
"""The class of an example that is to be ignored."""


def class_numbers(classes: ArrayLike) -> np.ndarray:
    """Turns class labels into numbers, -1 for every example to ignore.

    Args:
      classes: one for each example, `[N]`: integers from 0 to 2^31 - 1, or -1 for an example to
        ignore; booleans, 0 and 1; or strings, which are numbered from 0 in sorted order. A masked
        label of a `numpy.ma.MaskedArray` is an example to ignore, whatever lies under the mask.

    Returns:
      Class numbers, int32, `[N]`.

    Raises:
      ValueError: if the labels are of another shape or type, or an integer is out of range.

    Example:
      >>> from contrastive_jax.data.labels import class_numbers
      >>> print(class_numbers(["cat", "dog", "cat"]))
      [0 1 0]
    """
    values, labelled = checked_classes("classes", classes)
    class_ids = np.full(len(values), IGNORED, np.int32)
    if values.dtype.kind in "US":
        class_ids[labelled] = np.unique(values[labelled], return_inverse=True)[1]
        return class_ids
    wrong = labelled & (values > np.iinfo(np.int32).max)
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(
            "classes must be from 0 to 2^31 - 1, or -1 for an example to ignore, got "
            f"{values[row]} in row {row}; numpy.unique(classes, return_inverse=True) numbers others"
        )
    class_ids[labelled] = values[labelled]
    return class_ids


def check_unmasked(**arguments: Any) -> None:
    """Checks that no entry of an array is masked, where a mask would be lost.

    Args:
      **arguments: arrays, or mappings and sequences of them, by the name that the error gives them.

    Raises:
      ValueError: if an entry is masked.

    Example:
      >>> import numpy as np
      >>> from contrastive_jax.data.labels import check_unmasked
      >>> check_unmasked(distances=np.array([0.5, 0.7]))
    """
    for name, argument in arguments.items():
        for values in jax.tree.leaves(argument):
            if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
                mask = np.ma.getmaskarray(values)
                row = int(np.argwhere(mask)[0, 0]) if mask.ndim else 0
                raise ValueError(
                    f"{name} must not be masked, got {mask.sum()} masked entries, the first in "
                    f"row {row}; leave masked rows out"
                )

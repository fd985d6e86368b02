"""Arrays as callers have them on the host: classes, identities and masked values.

The rule for classes where they are data on the host, in evaluation and in drawing: one integer,
bool or string for each example, `[N]`. An example is ignored if its class is -1 or masked
(`numpy.ma`).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from contrastive_jax._carried_checks import with_checks


def split_mask(values: Any) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Splits values into a plain array and its mask, which `numpy.asarray` would drop.

    Args:
      values: an array or nested lists, masked or not.

    Returns:
      The values as an array, and an array of the same shape, True where a value is not masked.
    """
    if isinstance(values, list | tuple) and any(
        isinstance(value, np.ma.MaskedArray) for value in values
    ):
        mask = [value is np.ma.masked for value in values]
        if not any(mask):
            values = np.ma.array(values)
        else:
            # Another value stands where one is masked, so that the rest keeps its dtype.
            other = next((value for value in values if value is not np.ma.masked), 0)
            array = np.array([other if value is np.ma.masked else value for value in values])
            return array, ~np.array(mask)
    array = np.asarray(values)
    if isinstance(values, np.ma.MaskedArray):
        return array, ~np.ma.getmaskarray(values)
    return array, np.ones(array.shape, bool)


def checked_names(
    name: str, values: Any, rows: int | None = None
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Checks that values name the examples of a set: one integer, bool or string for each.

    Args:
      name: name of the argument, for errors.
      values: the names, `[N]`.
      rows: the number of examples, N; None if any number will do.

    Returns:
      The names, `[N]`, as integers or strings, bools being 0 and 1; and `[N]`, True where a name is
      not masked.

    Raises:
      ValueError: if the values are not integers, bools or strings of shape `[N]`.
    """
    array, counts = split_mask(values)
    if (
        array.dtype.kind in "OT"
        and array.ndim == 1
        and all(isinstance(value, str) for value in array[counts].flat)
    ):
        array = np.array(
            [value if valid else "" for value, valid in zip(array, counts, strict=True)]
        )
    if array.shape == (0,):
        array = array.astype(int)
    named = array.dtype.kind in "biuUS"
    if named and array.dtype.kind in "US" and isinstance(values, list | tuple) and array.ndim == 1:
        # NumPy makes a string of a number that stands among strings.
        named = all(isinstance(value, str | bytes) or value is np.ma.masked for value in values)
    if not named or array.ndim != 1 or len(array) != (len(array) if rows is None else rows):
        shape = column_hint(**{name: array})
        raise ValueError(
            f"{name} must be integers, bools or strings of shape [N], got {array.dtype} "
            f"{list(array.shape)}{shape}"
            if rows is None
            else f"{name} must be one integer for each of {rows} embeddings, or one bool or "
            f"string, got {array.dtype} of shape {array.shape}{shape}."
        )
    return array.astype(int) if array.dtype == bool else array, counts


def checked_classes(
    name: str, values: Any, rows: int | None = None
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Checks classes that are data on the host, by the rule of this module.

    Args:
      name: name of the argument, for errors.
      values: the classes, `[N]`.
      rows: the number of examples, N; None if any number will do.

    Returns:
      The classes, `[N]`, as integers or strings, bools being 0 and 1; and `[N]`, False for the
      examples to ignore.

    Raises:
      ValueError: if the classes are not integers, bools or strings of shape `[N]`, or an integer is
        below -1.
    """
    classes, counts = checked_names(name, values, rows)
    if classes.dtype.kind in "iu":
        wrong = np.flatnonzero(counts & (classes < -1))
        if len(wrong):
            raise ValueError(
                f"{name} must be at least 0, or -1 for a row to ignore, got {classes[wrong[0]]} in "
                f"row {wrong[0]} ({len(wrong)} of {len(classes)} rows)."
            )
        counts &= classes != -1
    return classes, counts


def column_hint(**values: Any) -> str:
    """Ends an error message with the remedy for columns `[N, 1]` where `[N]` is expected.

    Args:
      **values: arrays or lists that are to be `[N]`.

    Returns:
      Text that begins with a semicolon, empty if there is no such column.
    """
    columns = [name for name, x in values.items() if np.ndim(x) == 2 and np.shape(x)[1] == 1]
    return "".join(f"; squeeze it to [N] by {name}.squeeze(1)" for name in columns)


def as_array(name: str, values: Any, expected: str = "numbers", classes: Any = None) -> Any:
    """Makes an array for JAX of values on the host, and refuses those that JAX would change.

    Args:
      name: name of the argument, for errors.
      values: an array of JAX, traced or not, which is returned as it is; an array of NumPy, in any
        byte order; or nested lists of numbers.
      expected: description of the values, for errors.
      classes: classes of the rows; rows of class -1, and rows of traced classes, may be too
        large.

    Returns:
      An array of JAX or of NumPy.

    Raises:
      AssertionError: if the values are not numbers.
      ValueError: if a value is masked, or a finite one does not fit the dtype it has in JAX.
    """
    if isinstance(values, jax.Array):
        return values
    leaves = jax.tree.leaves(values)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        return jnp.asarray(values)
    if any(np.ma.is_masked(leaf) for leaf in leaves):
        raise ValueError(
            f"{name} must not be masked, as JAX has no masked arrays; leave the masked rows out, "
            "or give them class -1 where there are classes"
        )
    array = np.asarray(values)
    if array.dtype.kind in "OSUTMm":
        remedy = f"; numpy.unique({name}, return_inverse=True)[1] numbers strings"
        raise AssertionError(
            f"{name} must be {expected}, got {array.dtype}"
            f"{remedy if array.dtype.kind in 'SU' else ''}"
        )
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    dtype = jax.dtypes.canonicalize_dtype(array.dtype)
    if array.dtype != np.float64 or dtype == np.float64 or not array.size:
        return array
    wrong = np.isfinite(array) & (np.abs(array) > np.finfo(dtype).max)
    if not wrong.any():
        return array
    if isinstance(classes, jax.core.Tracer) or np.shape(classes) not in ((), array.shape[:1]):
        first = None
    else:
        counts = np.asarray(0 if classes is None else classes) >= 0
        first = next(iter(np.argwhere((wrong.T & counts).T)), None)
    if first is not None:
        where = f" in row {first[0]}" if array.ndim else ""
        raise ValueError(
            f"{name} must fit {dtype}, got {array[tuple(first)]:.5g}{where}; scale them, or enable "
            "float64 by jax.config.update('jax_enable_x64', True)"
        )
    with np.errstate(over="ignore"):
        return array.astype(dtype)


def as_classes(name: str, values: Any) -> Any:
    """Makes an array for JAX of classes, and checks them.

    Args:
      name: name of the argument, for errors.
      values: integers, `[N]`, as an array or a list.

    Returns:
      An array of JAX or of NumPy, of integers.

    Raises:
      AssertionError: if the values are not integers.
      ValueError: if one is masked, or a concrete one is not from -1 to 2^31 - 1.
    """
    classes = as_array(name, values, "integers")
    if not jnp.issubdtype(classes.dtype, jnp.integer):
        raise AssertionError(f"{name} must be integers, got {classes.dtype}")
    # Before they become an array of JAX, which may be narrower.
    classes = with_checks(classes, **{name: classes})
    if isinstance(classes, jax.core.Tracer) and jnp.issubdtype(classes.dtype, jnp.unsignedinteger):
        return classes.astype(jnp.int32)
    return classes

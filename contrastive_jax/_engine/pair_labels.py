"""The labels of pairs: by the classes of their rows, or by a function of the rows' attributes."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from contrastive_jax._engine.closures import closure_convert
from contrastive_jax._engine.sharding import (
    axes_of,
    evaluated_while_tracing,
    gathered,
    varying,
)
from contrastive_jax._host_arrays import as_array
from contrastive_jax.labels.types import PairLabels, branches_explained

# Rows whose labels are looked at before anything is computed, in neighbouring twos.
_SAMPLE = 32


class _Label(NamedTuple):
    """A function of two rows whose labels are of one dtype; equal for equal functions."""

    function: Callable[..., Any]
    dtype: Any

    def __call__(self, a: Any, b: Any, *values: jax.Array) -> jax.Array:
        return jnp.asarray(self.function(a, b, *values), self.dtype)


def label_of_pair(labels: Callable[..., Any], values: tuple[Any, ...], a: Any, b: Any) -> jax.Array:
    """Returns the label of one pair.

    Args:
      labels: function of the attributes of two rows.
      values: values that the function closes over.
      a: a row, with `classes` and `attributes`.
      b: the other.

    Returns:
      0, 1 or -1, or a grade, a scalar.
    """
    return jnp.where(a.classes != b.classes, 1, labels(a.attributes, b.attributes, *values))


def labels_of_all(
    labels: Callable[..., Any] | None, values: tuple[Any, ...], x: Any, y: Any
) -> jax.Array:
    """Returns the labels of all pairs of rows of `x` and `y`, `[N, M]`, as `label_of_pair`."""
    differ: jax.Array = x.classes[:, None] != y.classes[None]
    if labels is None:
        return differ.astype(jnp.int32)
    return jnp.where(differ, 1, _by_function(labels, values, x.attributes, y.attributes))


def _by_function(labels: Callable[..., Any], values: tuple[Any, ...], x: Any, y: Any) -> jax.Array:
    def one(a: Any, b: Any) -> Any:
        return labels(a, b, *values)

    table: jax.Array = jax.vmap(jax.vmap(one, (None, 0)), (0, None))(x, y)
    return table


def checked_attributes(
    prefix: str, attributes: Any, labels: PairLabels, shape: tuple[int, ...]
) -> tuple[Any, jax.Array]:
    """Checks the attributes of the rows of a side.

    Args:
      prefix: prefix of the argument in errors.
      attributes: tree of arrays with one entry a row.
      labels: the labels.
      shape: the shape of an array with one entry a row, `[N]`.

    Returns:
      The attributes, arrays of JAX without a derivative, and the class of each row, `[N]`.
    """
    name = f"{prefix}classes"
    rows = shape[0] if shape else 0
    leaves, structure = jax.tree.flatten(attributes, is_leaf=_is_nested_list)
    arrays = [_checked_leaf(name, leaf, rows) for leaf in leaves]
    if not arrays:
        raise ValueError(f"{name} must hold an array with one entry for each of {rows} rows")
    attributes = jax.tree.unflatten(structure, arrays)
    return attributes, varying(_classes(labels, attributes, rows), axes_of(arrays))


def _classes(labels: PairLabels, attributes: Any, rows: int) -> jax.Array:
    """Returns the class of each row, `[N]`."""
    if labels.class_of is None:
        return jnp.zeros(rows, jnp.int32)
    with branches_explained():
        classes: jax.Array = jax.vmap(labels.class_of)(attributes)  # type: ignore[assignment]
    if classes.shape != (rows,) or not jnp.issubdtype(classes.dtype, jnp.integer):
        raise AssertionError(
            f"class_of must return an integer for a row, got {classes.dtype} of shape "
            f"{classes.shape[1:]}"
        )
    largest = np.iinfo(np.int32).max
    if np.iinfo(classes.dtype).max <= largest:
        return classes.astype(jnp.int32)
    # The last 31 bits of a wide integer will do: rows that share them are told apart by the
    # function.
    return jnp.where(classes < 0, -1, (classes & largest).astype(jnp.int32))


def _is_nested_list(tree: Any) -> bool:
    """Returns True for nested lists of numbers, which are one array."""
    return isinstance(tree, list) and not any(hasattr(one, "shape") for one in tree)


def _checked_leaf(name: str, leaf: Any, rows: int) -> jax.Array:
    leaf = as_array(name, leaf)
    if leaf.ndim == 0 or len(leaf) != rows:
        raise AssertionError(
            f"{name} must be a tree of arrays with one entry for each of {rows} rows, got one of "
            f"shape {leaf.shape}"
        )
    dtype = jax.dtypes.canonicalize_dtype(leaf.dtype)
    if isinstance(leaf, np.ndarray) and leaf.dtype != dtype and leaf.dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if leaf.min(initial=0) < limits.min or leaf.max(initial=0) > limits.max:
            raise ValueError(
                f"{name} must fit {dtype}, got {leaf.dtype} with values beyond; split them into "
                "words of 32 bits, as labels.as_bits does, or enable 64 bits by "
                "jax.config.update('jax_enable_x64', True)"
            )
    return lax.stop_gradient(jnp.asarray(leaf, dtype))


def convert_labels(
    labels: PairLabels,
    sides: tuple[Any, ...],
    given: tuple[Any, ...],
    dtype: Any,
    axes: frozenset[Any],
) -> tuple[Callable[..., Any], tuple[jax.Array, ...], jax.Array]:
    """Checks a function of two rows, and turns traced values that it closes over into arguments.

    Args:
      labels: the labels.
      sides: rows, and columns where these are others, with `classes` and `attributes`.
      given: the attributes as given, some of which may be concrete where those of the sides are
        traced.
      dtype: dtype of grades.
      axes: mesh axes along which the sides vary.

    Returns:
      The function, the values of its further arguments, and an example of a label.
    """
    structures: list[Any] = [jax.tree.structure(side.attributes) for side in sides]
    if structures[0] != structures[-1]:
        raise ValueError(
            "classes and reference_classes must be trees of one structure, got "
            f"{structures[0]} and {structures[-1]}"
        )
    rows = [
        jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[1:], leaf.dtype), side.attributes)
        for side in (sides[0], sides[-1])
    ]
    examples = varying((rows[0], rows[1]), axes)
    with branches_explained():
        function, values = closure_convert(
            "labels", labels.function, examples, _check_label, shared=True
        )
    shape = jax.eval_shape(function, *examples, *values)
    graded = jnp.issubdtype(shape.dtype, jnp.floating)
    converted: Any = _Label(function, jnp.dtype(dtype if graded else jnp.int32))
    values = varying(gathered(jax.tree.map(lax.stop_gradient, values)), axes)
    _check_sample(labels, converted, values, given, graded)
    return converted, values, varying(jnp.zeros((), converted.dtype), axes)


def _check_label(name: str, shape: Any) -> None:
    dtype: Any = getattr(shape, "dtype", None)
    if getattr(shape, "shape", None) != () or not (
        jnp.issubdtype(dtype, jnp.signedinteger) or jnp.issubdtype(dtype, jnp.floating)
    ):
        raise AssertionError(
            f"{name} must return 0 (similar), 1 (dissimilar) or -1 (ignored) for two rows, as a "
            f"signed integer, or a floating grade, got {shape}; jnp.where(are_similar, 0, 1) makes "
            "one of a condition"
        )


def _check_sample(
    labels: PairLabels,
    function: Callable[..., Any],
    values: tuple[jax.Array, ...],
    given: tuple[Any, ...],
    graded: bool,
) -> None:
    """Raises ValueError where the labels of some rows are wrong, unless they are traced."""
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((given, values))):
        return
    indices = [_sample_of(one) for one in given]
    with evaluated_while_tracing():
        sides = [
            jax.tree.map(partial(_rows_at, index), one, is_leaf=_is_nested_list)
            for index, one in zip(indices, given, strict=True)
        ]
        table: Any = _by_function(function, values, sides[0], sides[-1])
        if isinstance(table, jax.core.Tracer):
            return
        classes = [_classes(labels, one, len(jax.tree.leaves(one)[0])) for one in sides]
        table, rows, columns = jax.device_get((table, classes[0], classes[-1]))
    counts = (rows >= 0)[:, None] & (columns >= 0)[None]
    if len(given) == 1:
        counts &= ~np.eye(len(rows), dtype=bool)
    valid = (table == -1) | ((table >= 0) & (table <= 1) if graded else np.isin(table, (0, 1)))
    expected = "-1 or in [0, 1]" if graded else "0 (similar), 1 (dissimilar) or -1 (ignored)"
    raise_at = partial(_raise_at, table, (indices[0], indices[-1]))
    raise_at(counts & ~valid, f"labels must be {expected}")
    if labels.class_of is not None:
        apart = rows[:, None] != columns[None]
        message = "labels must be 1 where class_of returns different integers"
        raise_at(counts & apart & (table != 1), message)
    if len(given) == 1:
        message = "labels must be the same in both orders of two rows"
        raise_at(counts & (table != table.T), message)


def _sample_of(attributes: Any) -> np.ndarray:
    """Returns indices of some rows, in neighbouring twos that are evenly spaced."""
    leaves = jax.tree.leaves(attributes, is_leaf=_is_nested_list)
    rows = len(leaves[0]) if leaves else 0
    if rows <= _SAMPLE:
        return np.arange(rows)
    starts = np.linspace(0, rows - 2, _SAMPLE // 2).astype(int)
    return np.unique(np.concatenate([starts, starts + 1]))


def _rows_at(index: np.ndarray, leaf: Any) -> jax.Array:
    if isinstance(leaf, list):
        leaf = np.asarray(leaf)
    rows: jax.Array = jnp.asarray(
        gathered(leaf)[index] if isinstance(leaf, jax.Array) else leaf[index]
    )
    return rows


def _raise_at(
    table: np.ndarray, rows: tuple[np.ndarray, np.ndarray], wrong: np.ndarray, message: str
) -> None:
    if wrong.any():
        i, j = np.argwhere(wrong)[0]
        first, second = rows[0][i], rows[1][j]
        text = f"{message}, got {table[i, j]} for rows {first} and {second}"
        if "orders" in message:
            text += f" and {table[j, i]} for rows {second} and {first}"
        raise ValueError(text)

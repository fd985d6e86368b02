"""Labels by classes: of one level or of a hierarchy, with or without groups."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from contrastive_jax.labels._columns import paths_of_columns
from contrastive_jax.labels.types import PairLabels


def same_class() -> PairLabels:
    """Rows of one class are similar, as without `labels=`.

    Attributes are classes: integers `[B]`, -1 where a row is ignored.

    Returns:
      The labels.

    Example:
      >>> from contrastive_jax import labels
      >>> same = labels.same_class()
      >>> print(same(3, 3), same(3, 5))
      0 1
    """
    return PairLabels(_same, lambda row: row, lambda examples: examples.classes, "class")


def _same(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.where(a == b, 0, 1)


def same_class_other_group() -> PairLabels:
    """Rows of one class are similar; those that are of one group too are ignored.

    It leaves out what one camera, session or recording shows of a subject more than once, as
    re-identification does.

    Attributes are `(classes, groups)`: integers `[B]` each. Rows of class -1 are ignored.

    Returns:
      The labels, which raise a ValueError where the attributes are not two.

    References:
      Zheng et al., Scalable Person Re-identification: A Benchmark, 2015
      <https://doi.org/10.1109/ICCV.2015.133>, sec. 3: images of one person by one camera are left
      out.

    Example:
      >>> from contrastive_jax import labels
      >>> rule = labels.same_class_other_group()
      >>> print(rule((3, 0), (3, 1)), rule((3, 0), (3, 0)), rule((3, 0), (5, 0)))
      0 -1 1
    """

    def label(a: Any, b: Any) -> jax.Array:
        (a_class, a_group), (b_class, b_group) = _two(a), _two(b)
        return jnp.where(a_class == b_class, jnp.where(a_group == b_group, -1, 0), 1)

    return PairLabels(label, lambda row: _two(row)[0], _classes_and_groups, "other_group")


def _two(row: Any) -> tuple[Any, Any]:
    """Returns the class and the group of a row."""
    entries: Any = () if isinstance(row, dict) else row
    try:
        own_class, group = entries
    except (TypeError, ValueError):
        raise ValueError(
            "same_class_other_group takes two attributes, (classes, groups) of integers [B] each, "
            f"got {jax.tree.map(jnp.shape, row)} as shapes of those of a row"
        ) from None
    return own_class, group


def _classes_and_groups(examples: Any) -> tuple[Any, Any]:
    if examples.groups is None:
        raise ValueError(
            "same_class_other_group needs the group of each example, and this data has none: load "
            "a table with a column group, or set groups of its Examples"
        )
    return examples.classes, examples.groups


def hierarchy(depth: int, columns: Sequence[str] = ()) -> PairLabels:
    """Rows are similar if their classes agree down to a level of a hierarchy.

    Attributes are paths from the root: integers `[B, L]`, such as (family, genus, species) of an
    animal. A row with -1 among the first `depth` classes of its path is ignored.

    Args:
      depth: number of classes from the root that must agree, from 1 to L; 2 asks for one genus.
      columns: names of L columns of the data, from the root, such as ("family", "genus"); a row
        with a missing value (NaN, empty text, -1) is ignored. Without them an objective needs
        `attributes`.

    Returns:
      The labels.

    Raises:
      ValueError: if `depth` is not a whole number of at least 1, a path is shorter, or there are
        fewer columns.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import labels
      >>> cat, lion, dog = jnp.array([[0, 0, 0], [0, 1, 0], [1, 0, 0]])
      >>> print(labels.hierarchy(1)(cat, lion), labels.hierarchy(2)(cat, lion))
      0 1
    """
    if not isinstance(depth, int | np.integer) or depth < 1:
        raise ValueError(f"depth must be a whole number, at least 1, got {depth!r}")
    if isinstance(columns, str):
        raise ValueError(
            f"columns must be names of columns, such as [{columns!r}], got {columns!r}"
        )
    if columns and len(columns) < depth:
        raise ValueError(f"hierarchy({depth}) needs {depth} columns, got {', '.join(columns)}")

    def upper(path: ArrayLike) -> jax.Array:
        path = jnp.asarray(path)
        if path.ndim != 1 or len(path) < depth:
            raise ValueError(
                f"hierarchy({depth}) needs paths of at least {depth} classes, [B, L], got one of "
                f"shape {path.shape}"
            )
        return path[:depth]

    def label(a: ArrayLike, b: ArrayLike) -> jax.Array:
        return jnp.where(jnp.all(upper(a) == upper(b)), 0, 1)

    def class_of(row: ArrayLike) -> jax.Array:
        # Two paths of different hashes are different. Those of one hash need not be equal.
        total = jnp.uint32(2166136261)
        for k in range(depth):
            total = (total ^ upper(row)[k].astype(jnp.uint32)) * jnp.uint32(16777619)
            total ^= total >> jnp.uint32(15)
        return jnp.where(jnp.any(upper(row) < 0), -1, (total >> jnp.uint32(1)).astype(jnp.int32))

    if not columns:
        return PairLabels(label, class_of)
    names = tuple(columns)[:depth]
    attributes_of = partial(paths_of_columns, names=names)
    return PairLabels(label, class_of, attributes_of, f"hierarchy={','.join(names)}")

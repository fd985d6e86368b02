"""Batches drawn from class labels, on the device and as a function of a key alone.

An index that is spread over a mesh under `jax.jit` is gathered, and every device draws the same.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from contrastive_jax._engine.sharding import gathered
from contrastive_jax.data.labels import class_numbers


class ClassIndex(NamedTuple):
    """An index of examples by class.

    Classes without examples are left out, and those with two examples or more come first.

    A class has a rank here, its position in `starts`, `sizes` and `classes`.
    """

    members: jax.Array
    """Positions of all examples that have a class, those of a class side by side, `[M]`."""
    starts: jax.Array
    """The position in `members` at which each class begins, `[C]`."""
    sizes: jax.Array
    """Number of its examples, `[C]`."""
    pairable: jax.Array
    """Number of classes with two examples or more, which alone can give a positive pair."""
    classes: jax.Array
    """The class number of each rank, as in the labels, `[C]`."""
    categories: jax.Array | None = None
    """The number of the category that each class is part of, `[C]`; None without categories."""


def index_by_class(
    classes: ArrayLike, positive_fraction: float = 0.5, *, categories: ArrayLike | None = None
) -> ClassIndex:
    """Sorts examples by class, once, for `draw_pairs` and `draw_balanced`.

    Args:
      classes: one for each example, `[N]`, integers, booleans or strings (`class_numbers`).
        Examples of class -1, and those whose class is masked, are never drawn.
      positive_fraction: the share of positive pairs that will be drawn, to check that it can be.
      categories: of the examples, `[N]`, numbers or strings; all examples of a class must have the
        same.

    Returns:
      The index.

    Raises:
      ValueError: if the labels are not classes, no example has a class, or the classes can not give
        such pairs: positive ones need a class with two examples, negative ones need two classes;
        or if a class is of two categories.

    Example:
      >>> from contrastive_jax.data.draw import index_by_class
      >>> index = index_by_class([7, 3, 7, 3, 9])
      >>> print(index.classes, index.sizes)  # class 9 has one example, so it comes last
      [3 7 9] [2 2 1]
      >>> print(index.members)
      [1 3 0 2 4]
    """
    class_ids = class_numbers(classes)
    if not 0 <= positive_fraction <= 1:
        raise ValueError(f"positive_fraction must be in [0, 1], got {positive_fraction}")
    if class_ids.size == 0:
        raise ValueError("no examples to draw pairs from: classes is empty")
    rows = np.flatnonzero(class_ids >= 0)
    if rows.size == 0:
        raise ValueError(
            f"no examples to draw pairs from: the classes of all {class_ids.size} are -1 or "
            "masked, examples to ignore"
        )
    names, dense, count = np.unique(class_ids[rows], return_inverse=True, return_counts=True)
    if len(names) == 1 and positive_fraction < 1:
        raise ValueError(
            f"negative pairs need two classes, and every example is of class {names[0]}; draw "
            "positive pairs alone with positive_fraction 1"
        )
    if count.max() == 1 and positive_fraction > 0:
        raise ValueError(
            f"positive pairs need a class with two examples, and all {len(names)} classes have "
            "one; draw negative pairs alone with positive_fraction 0"
        )
    # Single examples last, so that a class for a positive pair is any of the first `pairable`.
    order = np.argsort(count == 1, kind="stable")
    rank = np.argsort(order)
    members = rows[np.argsort(rank[dense], kind="stable")]
    count = count[order]
    return ClassIndex(
        members=jnp.asarray(members, jnp.int32),
        starts=jnp.asarray(np.cumsum(count) - count, jnp.int32),
        sizes=jnp.asarray(count, jnp.int32),
        pairable=jnp.asarray((count > 1).sum(), jnp.int32),
        classes=jnp.asarray(names[order], jnp.int32),
        categories=None
        if categories is None
        else jnp.asarray(_categories_of(class_ids, categories, names)[order], jnp.int32),
    )


def _categories_of(class_ids: np.ndarray, categories: ArrayLike, names: np.ndarray) -> np.ndarray:
    """Returns the number of the category of each class, `[C]`."""
    array = np.asarray(categories)
    if array.shape != class_ids.shape:
        raise ValueError(
            f"categories must be one for each of the {len(class_ids)} examples, got shape "
            f"{array.shape}"
        )
    rows = np.flatnonzero(class_ids >= 0)
    class_of_row = np.searchsorted(names, class_ids[rows])
    category = np.unique(array[rows], return_inverse=True)[1].ravel()
    by_class = np.zeros(len(names), int)
    by_class[class_of_row[::-1]] = category[::-1]
    wrong = np.flatnonzero(by_class[class_of_row] != category)
    if len(wrong):
        row = rows[wrong[0]]
        raise ValueError(
            f"all examples of a class must be of one category: that in row {row}, of class "
            f"{class_ids[row]}, is of {array[row]!s}, and another one of that class is not"
        )
    return by_class


def draw_pairs(
    key: jax.Array, index: ClassIndex, batch_size: int, positive_fraction: ArrayLike
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Draws a batch of pairs, with replacement from one pair to the next.

    Classes are balanced whatever their sizes: a positive pair is of any class with two examples, a
    negative one of any two classes, each as likely as the other, and every member of a class is
    as likely. No example is paired with itself. The k-th pair is positive where the whole part of
    `k * positive_fraction` grows, so that every batch, and every part of it, has its share.

    Args:
      key: of this batch; the batch is a function of it.
      index: of the examples.
      batch_size: number of pairs, B.
      positive_fraction: share of positive pairs, in [0, 1]; may be traced.

    Returns:
      Positions of the first and of the second members and labels (0 similar, 1 dissimilar), int32,
      `[B]` each.

    Example:
      >>> import jax
      >>> import numpy as np
      >>> from contrastive_jax.data.draw import draw_pairs, index_by_class
      >>> classes = np.array([0, 1, 0, 1])
      >>> first, second, labels = draw_pairs(jax.random.key(0), index_by_class(classes), 4, 0.5)
      >>> print(labels)
      [1 0 1 0]
      >>> print(classes[first] != classes[second])
      [ True False  True False]
    """
    chex.assert_rank(positive_fraction, 0)
    index = gathered(index)
    keys = jax.random.split(key, 4)
    # A float32 product such as 10 * 0.1 may fall just short of the whole number it stands for.
    ranks = jnp.arange(batch_size + 1, dtype=jnp.float32)
    steps = jnp.floor(ranks * jnp.asarray(positive_fraction, jnp.float32) + 1e-4)
    is_positive = steps[1:] > steps[:-1]

    def below(key: jax.Array, bound: ArrayLike) -> jax.Array:
        return jax.random.randint(key, (batch_size,), 0, bound)

    classes = index.sizes.shape[0]
    first = below(keys[0], jnp.where(is_positive, index.pairable, classes))
    # Counting on from the first by 1 to n - 1 reaches each of the others alike.
    other = (first + 1 + below(keys[1], max(classes - 1, 1))) % classes
    second = jnp.where(is_positive, first, other)
    i = below(keys[2], index.sizes[first])
    step = below(keys[3], index.sizes[second] - is_positive.astype(jnp.int32))
    j = jnp.where(is_positive, (i + 1 + step) % index.sizes[second], step)
    return (
        index.members[index.starts[first] + i],
        index.members[index.starts[second] + j],
        1 - is_positive.astype(jnp.int32),
    )


def draw_rows_of_pairs(
    key: jax.Array, positives: ArrayLike, total: int, batch_size: int, *, balanced: bool
) -> jax.Array:
    """Draws a batch of given pairs, with replacement, from pairs with the positive ones first.

    Args:
      key: of this batch; the batch is a function of it.
      positives: number of positive pairs.
      total: number of all pairs, P.
      batch_size: number of pairs to draw, B.
      balanced: whether every other pair is a positive one, each as likely as the others of its
        label. Otherwise every pair is as likely.

    Returns:
      Rows of the pairs, int32 `[B]`.

    Example:
      >>> import jax
      >>> from contrastive_jax.data.draw import draw_rows_of_pairs
      >>> key = jax.random.key(0)
      >>> rows = draw_rows_of_pairs(key, positives=1, total=9, batch_size=4, balanced=True)
      >>> print(rows > 0)
      [ True False  True False]
    """
    if not balanced:
        return jax.random.randint(key, (batch_size,), 0, total)
    is_positive = jnp.arange(batch_size) % 2 == 1
    first = jnp.where(is_positive, 0, positives)
    return first + jax.random.randint(
        key, (batch_size,), 0, jnp.where(is_positive, positives, total - jnp.asarray(positives))
    )


def draw_balanced(
    key: jax.Array,
    index: ClassIndex,
    classes: int,
    examples: int,
    *,
    repeat: bool = False,
    by_size: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Draws a batch of P classes and K examples of each, none of them twice.

    Every set of P classes is as likely, and within a class every set of K members (Floyd's
    sampling: Bentley and Floyd, Programming Pearls: A Sample of Brilliance, 1987). Of a class with
    fewer members all are taken, and then again, or the positions left are marked.

    Where the index has categories, all classes are of one category, whose classes are hard to tell
    apart: one category is drawn, each as likely, and another one where it has too few classes.

    Args:
      key: of this batch; the batch is a function of it.
      index: of the examples.
      classes: number of classes, P.
      examples: number of examples of each, K.
      repeat: whether members of a class with fewer than K are repeated, each as often as the others
        or once more.
      by_size: whether a class is as likely as it has examples, as in the data. By default every
        class is as likely.

    Returns:
      Positions of the examples and their classes, int32, `[P * K]` each, those of a class side by
      side. Without `repeat` the class is -1 where a class had too few members, and the position
      then that of another example.

    Raises:
      ValueError: if there are fewer than P classes.

    Example:
      >>> import jax
      >>> from contrastive_jax.data.draw import draw_balanced, index_by_class
      >>> index = index_by_class([0, 1, 2, 0, 1, 2])
      >>> positions, classes = draw_balanced(jax.random.key(0), index, classes=2, examples=2)
      >>> positions.shape, len(set(classes.tolist()))
      ((4,), 2)
    """
    available = index.sizes.shape[0]
    if not 0 < classes <= available or examples < 1:
        raise ValueError(
            f"a batch must have from 1 to {available} classes, as many as the data, and at least 1 "
            f"example of each, got {classes} classes and {examples} examples"
        )
    index = gathered(index)
    class_key, example_key = jax.random.split(key)
    chosen = _drawn_classes(class_key, index, classes, by_size=by_size)
    sizes = index.sizes[chosen]

    def add(taken: jax.Array, k: jax.Array) -> tuple[jax.Array, None]:
        last = sizes - examples + k
        drawn = jax.random.randint(jax.random.fold_in(example_key, k), sizes.shape, 0, last + 1)
        seen = jnp.any(taken == drawn[:, None], axis=1)
        member = jnp.where(last < 0, -1, jnp.where(seen, last, drawn))
        return taken.at[:, k].set(member), None

    nothing = jnp.full((classes, examples), -1, jnp.int32)
    members, _ = jax.lax.scan(add, nothing, jnp.arange(examples))
    if repeat:
        # All members of a small class are in its last positions, and fill the first ones in turn.
        at = jnp.arange(examples)
        again = (examples - sizes)[:, None] + at % sizes[:, None]
        again = jnp.take_along_axis(members, jnp.maximum(again, 0), axis=1)
        members = jnp.where(members < 0, again, members)
    positions = index.members[index.starts[chosen][:, None] + jnp.maximum(members, 0)]
    class_ids = jnp.where(members < 0, -1, index.classes[chosen][:, None])
    return positions.ravel(), class_ids.ravel()


def _drawn_classes(key: jax.Array, index: ClassIndex, classes: int, *, by_size: bool) -> jax.Array:
    """Draws the ranks of P different classes, `[P]`."""
    available = index.sizes.shape[0]
    if not by_size and index.categories is None:
        return jax.random.permutation(key, available)[:classes].astype(jnp.int32)
    class_key, category_key = jax.random.split(key)
    # The largest of such sums are a sample without replacement, in proportion to the sizes.
    score = jax.random.gumbel(class_key, (available,))
    if by_size:
        score += jnp.log(index.sizes)
    if index.categories is None:
        return jax.lax.top_k(score, classes)[1].astype(jnp.int32)
    order = jax.vmap(lambda c: jax.random.uniform(jax.random.fold_in(category_key, c)))(
        index.categories
    )
    return jnp.lexsort((-score, order))[:classes].astype(jnp.int32)

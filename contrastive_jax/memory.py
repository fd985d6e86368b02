"""Cross-batch memory: embeddings of earlier batches as references.

A ring buffer of the embeddings of the last batches, a part of the state of the training. A loss
takes it as the second set, then the batch goes in:

    others = memory.references(bank, step, max_age=1000)
    value = anchor_loss(x, classes, loss=loss) + anchor_loss(x, classes, *others, loss=loss)
    bank = memory.push(bank, x, classes, step)

With `labels=` the memory stores the attributes of rows in place of classes. Where it is empty they
hold what the functions of `contrastive_jax.labels` ignore: -1 for a signed integer, NaN for a
floating number, 0 for an unsigned integer (the bits of `labels.any_shared`; `labels.within` takes
signed numbers alone) and False for a bool. For a function of your own, `labels.with_mask` takes a
mask beside the attributes.

Wang et al., Cross-Batch Memory for Embedding Learning, 2020
<https://arxiv.org/abs/1912.06798>, sec. 3.3.
"""

from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import lax

from contrastive_jax._carried_checks import with_checks
from contrastive_jax._dtypes import ignored_value
from contrastive_jax._engine.sharding import gathered, local_shard
from contrastive_jax._host_arrays import as_array, as_classes, column_hint
from contrastive_jax._traced_checks import is_whole
from contrastive_jax.checks import check_hyperparameters


class Memory(NamedTuple):
    """Embeddings of earlier batches, the same on every device."""

    embeddings: jax.Array
    """`[M, D]`."""
    classes: Any
    """`[M]`, -1 where the memory is empty; or a tree of attributes, `[M, ...]`."""
    steps: jax.Array
    """`[M]`, the step in which each was stored."""
    next_index: jax.Array
    """The index at which the next embedding is stored."""


def empty(size: int, width: int, dtype: Any = jnp.float32, *, like: Any = None) -> Memory:
    """Creates a memory without embeddings.

    Args:
      size: embeddings to hold, M.
      width: entries of an embedding, D.
      dtype: dtype of the embeddings.
      like: attributes of a batch, a tree of arrays `[B, ...]`, of which shapes and dtypes count; by
        default the memory stores classes.

    Returns:
      The memory.

    Raises:
      ValueError: if a size is not above 0, or the dtype is not floating.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import memory
      >>> bank = memory.empty(size=4, width=2)
      >>> bank.embeddings.shape
      (4, 2)
      >>> print(bank.classes)  # -1: empty
      [-1 -1 -1 -1]
      >>> bank = memory.empty(4, 2, like={"subject": jnp.array([3, 5]), "age": jnp.ones(2)})
      >>> print(bank.classes["age"])
      [nan nan nan nan]
    """
    if not (is_whole(1, size) and is_whole(1, width)):
        raise ValueError(f"size and width must be whole and above 0, got {size} and {width}")
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype must be floating, as embeddings are, got {dtype}")
    size, width = int(size), int(width)
    return Memory(
        jnp.zeros((size, width), dtype),
        jax.tree.map(
            partial(_ignored_rows, size), jnp.zeros(1, jnp.int32) if like is None else like
        ),
        jnp.zeros(size, jnp.int32),
        jnp.zeros((), jnp.int32),
    )


def push(
    memory: Memory,
    embeddings: jax.Array,
    classes: Any,
    step: jax.Array | int,
    *,
    axis_name: Any = None,
) -> Memory:
    """Stores a batch in place of the oldest embeddings.

    Rows that are spread over a mesh under `jax.jit` are gathered, as every device holds the memory.

    Args:
      memory: the memory to add to.
      embeddings: `[B, D]`; not differentiated.
      classes: `[B]`, integers from 0; rows of class -1 are stored too and are ignored later,
        whatever they hold. Or attributes, a tree of arrays `[B, ...]` like those that the memory
        was made for.
      step: number of the batch, an integer from 0.
      axis_name: axis of the devices that share the batch; each stores the rows of all.

    Returns:
      The memory after it.

    Raises:
      AssertionError: if shapes or dtypes do not fit.
      ValueError: if the batch of all devices is larger than the memory, an array is masked, or a
        concrete embedding, class or step has a wrong value; `contrastive_jax.checks` says how to
        check traced ones.

    Example:
      >>> import jax.numpy as jnp
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import memory
      >>> bank = memory.empty(size=4, width=2)
      >>> bank = memory.push(bank, jnp.ones((2, 2)), jnp.array([3, 5]), step=0)
      >>> print(bank.classes)
      [ 3  5 -1 -1]
    """
    size, width = memory.embeddings.shape
    if _stores_classes(memory):
        classes = as_classes("classes", classes)
        embeddings = as_array("embeddings", embeddings, classes=classes)
        hint = column_hint(classes=classes)
    else:
        classes = _checked_attributes(memory, classes)
        embeddings, hint = as_array("embeddings", embeddings), ""
    expected = f"expected embeddings: [B, {width}], classes: [B]{hint}"
    chex.assert_shape(embeddings, (None, width), custom_message=expected)
    for leaf, stored in zip(jax.tree.leaves(classes), jax.tree.leaves(memory.classes), strict=True):
        shape = (len(embeddings), *stored.shape[1:])
        chex.assert_shape(leaf, shape, custom_message=expected)
    chex.assert_type(embeddings, float, custom_message="embeddings must be floating")
    embeddings, classes = jnp.asarray(embeddings), jax.tree.map(jnp.asarray, classes)
    memory, embeddings, classes = gathered((memory, embeddings, classes))
    if _stores_classes(memory):
        counted = jnp.where((classes >= 0)[:, None], embeddings, 0)
        embeddings = with_checks(embeddings, embeddings=counted)
    step = _checked_step(step)
    embeddings = lax.stop_gradient(embeddings).astype(memory.embeddings.dtype)
    classes = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), classes, memory.classes)
    classes = lax.stop_gradient(classes)
    if axis_name is not None:
        embeddings, classes = _gathered((embeddings, classes), axis_name)
    count = len(embeddings)
    if count > size:
        raise ValueError(f"a memory of {size} embeddings can not hold a batch of {count}")
    indices = (memory.next_index + jnp.arange(count)) % size
    return Memory(
        memory.embeddings.at[indices].set(embeddings),
        jax.tree.map(lambda held, new: held.at[indices].set(new), memory.classes, classes),
        memory.steps.at[indices].set(step),
        (memory.next_index + count) % size,
    )


def references(
    memory: Memory,
    step: jax.Array | int,
    *,
    max_age: jax.Array | int | None = None,
    axis_name: Any = None,
) -> tuple[jax.Array, Any]:
    """Returns the stored embeddings, as `references` and `reference_classes` of a loss.

    Args:
      memory: the memory to read.
      step: number of the batch that is compared with it, an integer from 0.
      max_age: steps, at least 0, after which an embedding, made by an encoder of long ago, is
        ignored.
      axis_name: axis of the devices that share the batch; each takes its part, and the loss is of
        all.

    Returns:
      Embeddings `[R, D]` and classes `[R]`, -1 where they are to be ignored, or attributes
      `[R, ...]`; R is M, or the share of a device in it.

    Raises:
      AssertionError: if `step` is not an integer or `max_age` not a scalar.
      ValueError: if a concrete step or age is below 0.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import anchor_loss, losses, memory
      >>> bank = memory.push(memory.empty(size=4, width=2), jnp.eye(2), jnp.array([0, 1]), step=0)
      >>> embeddings, classes = memory.references(bank, step=1, max_age=1000)
      >>> print(classes)
      [ 0  1 -1 -1]
      >>> x = jnp.array([[1.0, 0.2], [0.1, 1.0]])
      >>> value = anchor_loss(x, jnp.array([0, 1]), embeddings, classes, loss=losses.supcon(0.5))
      >>> print(f"{value:.3f}")
      0.172
    """
    step = _checked_step(step)
    embeddings, classes = memory.embeddings, memory.classes
    if max_age is not None:
        check_hyperparameters(max_age=max_age)
        old = step - memory.steps > max_age
        classes = jax.tree.map(partial(_without, old), classes)
    if axis_name is None:
        return embeddings, classes
    return local_shard((embeddings, classes), axis_name)


def _stores_classes(memory: Memory) -> bool:
    """Returns True if the memory stores integers, as classes are, and no other attributes."""
    classes = memory.classes
    return isinstance(classes, jax.Array) and (classes.ndim, classes.dtype) == (1, jnp.int32)


def _ignored_rows(size: int, like: Any) -> jax.Array:
    """Returns the attributes of an empty memory."""
    like = jnp.asarray(like)
    return jnp.full((size, *like.shape[1:]), ignored_value(like.dtype), like.dtype)


def _without(old: jax.Array, leaf: jax.Array) -> jax.Array:
    """Returns attributes of which those of some rows are ignored."""
    old = old.reshape(-1, *[1] * (leaf.ndim - 1))
    return jnp.where(old, jnp.asarray(ignored_value(leaf.dtype), leaf.dtype), leaf)


def _checked_attributes(memory: Memory, attributes: Any) -> Any:
    """Checks that attributes are a tree like those that the memory was made for."""
    expected: Any = jax.tree.structure(memory.classes)
    got: Any = jax.tree.structure(attributes)
    if got != expected:
        raise ValueError(
            f"classes must be a tree like those that the memory was made for, {expected}, got {got}"
        )
    return jax.tree.map(partial(as_array, "classes"), attributes)


def _checked_step(step: Any) -> jax.Array:
    """Checks the number of a batch and returns it as int32."""
    step = as_array("step", step, "an integer")
    if step.ndim or not jnp.issubdtype(step.dtype, jnp.integer):
        raise AssertionError(f"step must be an integer and a scalar, got {step}")
    return jnp.asarray(with_checks(step, step=step), jnp.int32)


def _gathered(tree: Any, axis_name: Any) -> Any:
    """Gathers the rows of all devices; JAX can tell that the result is the same on each."""
    devices, index = lax.axis_size(axis_name), lax.axis_index(axis_name)

    def one(rows: jax.Array) -> jax.Array:
        # A sum of bools is none.
        dtype = jnp.int32 if rows.dtype == bool else rows.dtype
        rows, whole = rows.astype(dtype), rows.dtype
        everywhere = jnp.zeros((devices, *rows.shape), dtype).at[index].set(rows)
        total: jax.Array = lax.psum(everywhere, axis_name)
        return total.reshape(-1, *rows.shape[1:]).astype(whole)

    return jax.tree.map(one, tree)

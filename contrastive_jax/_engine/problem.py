"""What is summed over pairs, checked: the points of each side, the loss and its parameters."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from contrastive_jax._dtypes import at_least_float32, widen
from contrastive_jax._engine.closures import hoisted
from contrastive_jax._engine.matmul import Product, as_product, is_symmetric
from contrastive_jax._engine.sharding import (
    axes_of,
    gathered,
    varying,
)
from contrastive_jax._host_arrays import as_array, as_classes, column_hint
from contrastive_jax.checks import (
    check_distance,
    check_values,
)
from contrastive_jax.statistics import Kind


class Task(NamedTuple):
    """What is summed over pairs: all that a program is compiled for."""

    loss: Callable[..., Any]
    """Of a distance, a label and the parameters of the loss. With anchors it takes before those the
    place of the other row and what is known of the anchor."""
    distances: tuple[Callable[..., jax.Array], ...]
    """Of two vectors and the parameters of the distance; two where the directions differ."""
    product: Product | None
    by_label: bool
    """Whether similar and dissimilar pairs are summed apart."""
    active: bool
    """Whether active pairs are counted, which takes another pass over each tile."""
    exact: bool
    """Whether close pairs are measured again."""
    tile: int
    precision: lax.PrecisionLike
    axis_name: Any
    dense: bool = False
    """Whether the matrix of all pairs is computed at once."""
    weighted: bool = True
    """Whether rows may have weights other than 1."""
    anchors: Literal["none", "rows", "both"] = "none"
    """Whether a pair is seen from an anchor: from none, from its row, or from either side."""
    statistics: tuple[Kind, ...] | None = None
    """Kinds of the statistics that `loss` returns, which are kept for the anchors; None where it
    returns a loss."""
    similar_alone: bool = False
    """Whether dissimilar pairs add nothing."""


class Parameters(NamedTuple):
    """Of the loss and of the distance."""

    loss: tuple[jax.Array, ...]
    distance: tuple[jax.Array, ...]


class Sums(NamedTuple):
    """Weighted sums over pairs, `[K]`: over all, or over the similar and over the dissimilar."""

    loss: jax.Array
    pairs: jax.Array
    """Of ones."""
    active: jax.Array
    """Of ones, over pairs whose loss is not 0; 0 where they are not counted."""


class Side(NamedTuple):
    """The rows on one side of the pairs."""

    vectors: jax.Array
    """`[N, D]`."""
    classes: jax.Array
    """`[N]`, -1 where a row is to be ignored."""
    weights: jax.Array
    """`[N]`."""


def kept(side: Side) -> Side:
    """Rows in float32 at least, with zeros where they are to be ignored, whatever they hold."""
    ignored = (side.classes < 0) | (side.weights == 0)
    dtype = at_least_float32(side.vectors.dtype)
    return Side(
        jnp.where(ignored[:, None], 0, side.vectors.astype(dtype)),
        jnp.where(ignored, -1, side.classes),
        jnp.where(ignored, 0, side.weights.astype(dtype)),
    )


def zero_or_nan(x: jax.Array) -> jax.Array:
    """Returns NaN if an entry is not finite, else 0; without a derivative.

    Args:
      x: floating array of any shape.

    Returns:
      A scalar that makes a loss NaN, whatever that makes of its distances.
    """
    # Scaled, as the sum of finite entries may overflow.
    return 0 * jnp.sum(lax.stop_gradient(x) * 2.0**-32)


def not_finite(x: Side, y: Side | None) -> jax.Array:
    """Returns NaN if an embedding that counts is not finite, else 0; without a derivative.

    Args:
      x: rows.
      y: columns; None for those of `x`.

    Returns:
      A scalar.
    """
    sides = [kept(side) for side in (x, y) if side is not None]
    return cast(jax.Array, sum(zero_or_nan(side.vectors) for side in sides))


Method = Literal["one_walk", "autodiff"]


_METHODS = ("one_walk", "autodiff")


class _Swapped(NamedTuple):
    """A distance in the other direction; equal for equal distances."""

    distance: Callable[..., jax.Array]

    def __call__(self, a: jax.Array, b: jax.Array, *parameters: jax.Array) -> jax.Array:
        return self.distance(b, a, *parameters)


def check_method(method: str, axis_name: Any) -> None:
    """Checks the name of a method, and that it runs over these devices.

    Args:
      method: `"one_walk"` or `"autodiff"`.
      axis_name: of the devices that share the batch.

    Raises:
      ValueError: if there is no such method, or it takes no axis name.
    """
    if method not in _METHODS:
        raise ValueError(f"method must be one of {', '.join(_METHODS)}, got {method!r}")
    if method == "autodiff" and axis_name is not None:
        raise ValueError("method 'autodiff' runs on one device: it takes no axis_name")


def prepared(
    rows: tuple[Any, Any, Any],
    columns: tuple[Any, Any, Any],
    *,
    distance: Callable[..., jax.Array],
    axis_name: Any,
    exact: bool,
    tile: int | None,
    precision: lax.PrecisionLike,
    shared: Any = (),
) -> tuple[Task, Side, Side | None, tuple[jax.Array, ...], tuple[jax.Array, jax.Array]]:
    """Checks what a walk over pairs is given, and makes a task of it that lacks a loss.

    Args:
      rows: vectors, classes and weights.
      columns: the same of the references; None each for one set.
      distance: between two vectors.
      axis_name: of the devices that share the rows.
      exact: whether close pairs are measured again.
      tile: rows and columns of a tile, or None.
      precision: of matrix products.
      shared: what else goes in, of which only the axes that it differs along count.

    Returns:
      The task, rows, columns, the parameters of the distance, and examples of a distance and a
      label as a loss will get them.
    """
    given = tile
    if tile is None:
        # The sizes that were fastest of those measured, on an H200 and on CPUs.
        tile = {"cpu": 512, "gpu": 4096}.get(jax.default_backend(), 2048)
    if not isinstance(tile, int | np.integer) or tile < 8 or tile % 8:
        raise ValueError(f"tile must be a whole multiple of 8 and above 0, got {tile!r}")
    tile = int(tile)
    check_distance(distance)
    x = checked_side("", *rows)
    y = None if columns[0] is None else checked_side("reference_", *columns)
    if y is None and any(column is not None for column in columns):
        raise ValueError("reference_classes and reference_weights need references")
    if y is not None:
        chex.assert_equal_shape_suffix(
            [x.vectors, y.vectors], 1, custom_message="embeddings and references: [B, D], [R, D]"
        )
        chex.assert_type(
            y.vectors, x.vectors.dtype, custom_message="references are not of embeddings' dtype"
        )
    x = x._replace(vectors=widen(x.vectors))
    y = None if y is None else y._replace(vectors=widen(y.vectors))
    dtype = x.vectors.dtype
    product, bound = as_product(distance)
    if bound:
        distance = distance.func  # type: ignore[attr-defined]
    of_distance = tuple(jnp.asarray(value) for value in gathered([*bound.values()]))
    both_ways = y is None and not is_symmetric(distance)
    # Of these only shapes count, and along which axes of a mesh they differ.
    vector, scalar, label = varying(
        (jnp.zeros(x.vectors.shape[1:], dtype), jnp.zeros((), dtype), jnp.int32(0)),
        axes_of((x, y, of_distance, shared)),
    )
    examples = vector, vector, *of_distance
    distance, closed = hoisted("distance", distance, examples, real_scalar)
    of_distance += closed
    task = Task(
        loss=distance,
        distances=(distance, cast(Any, _Swapped(distance))) if both_ways else (distance,),
        product=product,
        by_label=False,
        active=False,
        exact=exact,
        tile=tile,
        precision=precision,
        axis_name=axis_name,
    )
    task = task._replace(
        dense=given is None and axis_name is None,
        weighted=rows[2] is not None or columns[2] is not None,
    )
    return task, x, y, of_distance, (scalar, label)


def checked_side(prefix: str, vectors: Any, classes: Any, weights: Any) -> Side:
    """The rows of a set, checked; those of references have a prefix in the names of errors."""
    name = "references" if prefix else "embeddings"
    if classes is None:
        raise ValueError(f"{name} need {prefix}classes")
    classes = as_classes(f"{prefix}classes", classes)
    vectors = as_array(name, vectors, classes=classes)
    vectors, classes, weights = gathered((vectors, classes, weights))
    vectors, classes = jnp.asarray(vectors), jnp.asarray(classes)
    if weights is not None:
        weights = as_array(f"{prefix}weights", weights)
    given = [] if weights is None else [jnp.asarray(weights)]
    columns = {f"{prefix}classes": classes} | {f"{prefix}weights": one for one in given}
    expected = {
        "custom_message": f"expected {name}: [N, D], {prefix}classes: [N] and weights: [N]"
        f"{column_hint(**columns)}"
    }
    chex.assert_rank([vectors, classes, *given], [2, 1, *[1] * len(given)], **expected)
    chex.assert_equal_shape_prefix([vectors, classes, *given], 1, **expected)
    chex.assert_type(vectors, float, custom_message=f"{name} must be floating")
    chex.assert_axis_dimension_gt(vectors, 1, 0)
    if jnp.issubdtype(classes.dtype, jnp.unsignedinteger):
        classes = classes.astype(jnp.int32)
    # Derived from the classes, so that under `jax.shard_map` they differ where those do.
    ones = (classes == classes).astype(at_least_float32(vectors.dtype))
    side = Side(vectors, classes, given[0] if given else ones)
    values = {f"{prefix}weights": weight for weight in given} | {name: kept(side).vectors}
    check_values(**values)
    return side


def real_scalar(name: str, shape: Any) -> None:
    """Checks what a loss or a distance returns."""
    if getattr(shape, "shape", None) != () or not jnp.isrealobj(shape):
        raise AssertionError(f"{name} must return a real scalar, got {shape}")

"""The problem: which pairs are summed, with which loss and distance, with its arguments checked."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from contrastive_jax._carried_checks import with_checks
from contrastive_jax._dtypes import at_least_float32, widen
from contrastive_jax._engine.closures import closure_convert
from contrastive_jax._engine.matmul import (
    Product,
    as_product,
    depends_on_difference,
    is_differentiable,
    is_symmetric,
)
from contrastive_jax._engine.pair_labels import (
    checked_attributes,
    convert_labels,
    label_of_pair,
    labels_of_all,
)
from contrastive_jax._engine.sharding import axes_of, gathered, varying
from contrastive_jax._host_arrays import as_array, as_classes, column_hint
from contrastive_jax._traced_checks import check_real_scalar
from contrastive_jax.checks import check_distance
from contrastive_jax.labels.types import PairLabels, as_pair_labels
from contrastive_jax.statistics import Op

Method = Literal["sweep", "autodiff"]
_METHODS = ("sweep", "autodiff")

# Rows and columns of a tile by backend. The fastest of several on CPUs. On an H200, tiles of 8,192
# rows are 4 % to 16 % faster, and take four times the memory. That of a TPU is not measured.
DEFAULT_TILES = {"cpu": 512, "gpu": 4096, "tpu": 2048}


class Numerics(NamedTuple):
    """Options of the products over pairs, as the public functions take them."""

    refine: bool
    """True if close pairs are recomputed."""
    tile: int | None
    """Rows and columns of a tile; None for a size that suits the device."""
    precision: lax.PrecisionLike

    @property
    def tile_size(self) -> int:
        """Rows and columns of a tile."""
        if self.tile is not None:
            return self.tile
        return DEFAULT_TILES.get(jax.default_backend(), DEFAULT_TILES["tpu"])


class Task(NamedTuple):
    """Everything that a program over pairs is compiled for, besides shapes."""

    loss: Callable[..., Any]
    """Function of a distance, a label and the parameters of the loss. With anchors it takes before
    the parameters the index of the other row and the data of the anchor."""
    distances: tuple[Callable[..., jax.Array], ...]
    """Function of two vectors and the parameters of the distance; two functions if the distance
    depends on the order, one for each."""
    product: Product | None
    """The formula of the distance from a product; None where it does not follow from one."""
    of_difference: bool
    """True if the distance only depends on the difference of the vectors."""
    differentiable: bool
    """True if the derivatives of the distance are finite for any two vectors."""
    by_label: bool
    """True if positive and negative pairs are summed separately."""
    active: bool
    """True if active pairs are counted, which takes another pass over each tile."""
    measured: bool
    """True if distances are summed too."""
    numerics: Numerics
    axis_name: Any
    weighted: bool = True
    """True if rows may have weights other than 1."""
    anchors: Literal["none", "rows", "both"] = "none"
    """The sides of a pair that are anchors."""
    statistics: tuple[Op, ...] | None = None
    """Reductions of the statistics that `loss` returns for an anchor; None if it returns a loss."""
    positives_only: bool = False
    """True if negative pairs add nothing."""
    labels: Callable[..., Any] | None = None
    """Function of the attributes of two rows and of values; None for labels by classes."""


class Parameters(NamedTuple):
    """Traced hyperparameters of the loss and of the distance."""

    loss: tuple[jax.Array, ...]
    distance: tuple[jax.Array, ...]
    labels: tuple[jax.Array, ...] = ()
    """Values that the labels depend on, without a derivative."""


class Sums(NamedTuple):
    """Weighted sums over pairs, `[K]`: over all, or over positive and over negative ones."""

    loss: jax.Array
    """Sum of the losses."""
    pairs: jax.Array
    """Sum of the weights."""
    active: jax.Array
    """Sum of the weights of pairs whose loss is not 0; 0 where they are not counted."""
    distance: jax.Array
    """Sum of the distances, without a derivative; 0 where they are not summed."""


class Points(NamedTuple):
    """The rows on one side of the pairs."""

    vectors: jax.Array
    """`[N, D]`."""
    classes: jax.Array
    """`[N]`, -1 where a row is to be ignored."""
    weights: jax.Array
    """`[N]`."""
    attributes: Any = ()
    """Tree of arrays with one entry a row, which a function labels pairs by."""


class Problem(NamedTuple):
    """A task and the arrays that it is computed of."""

    task: Task
    sides: tuple[Points, ...]
    """Rows, and columns where these are others: `sides[-1]` are the columns of either. They are
    `masked_points`, so that no engine masks or casts them."""
    parameters: Parameters
    examples: tuple[jax.Array, jax.Array]
    """A distance and a label of the dtypes and mesh axes with which a loss is called."""


def masked_points(side: Points) -> Points:
    """Returns rows in float32 at least, with zeros where they are ignored, whatever they hold."""
    ignored = (side.classes < 0) | (side.weights == 0)
    dtype = at_least_float32(side.vectors.dtype)
    return Points(
        jnp.where(ignored[:, None], 0, widen(side.vectors)),
        jnp.where(ignored, -1, side.classes),
        jnp.where(ignored, 0, side.weights.astype(dtype)),
        side.attributes,
    )


def gradient_by_vectors(side: Points, vectors: Any) -> Points:
    """Returns the gradient by the rows of a side, of which vectors alone have one."""
    none: Any = None
    return Points(vectors, none, none, jax.tree.map(lambda _: None, side.attributes))


def pairs_by_points(task: Task) -> bool:
    """Returns True if pairs one by one are computed from the difference of their points.

    That is so where the vectors are the points, and where the points come with the rest that
    rounding has removed. Else the pairs are computed by the distance itself, from the vectors.
    """
    product = task.product
    return product is not None and (product.points is None or product.rest is not None)


def is_graded(task: Task) -> bool:
    """Returns True if labels are grades."""
    dtype = getattr(task.labels, "dtype", jnp.int32)
    return bool(jnp.issubdtype(dtype, jnp.floating))


def label_of_rows(
    task: Task, parameters: Parameters, x: Points, i: jax.Array, y: Points, j: jax.Array
) -> jax.Array:
    """Returns the label of row `i` of `x` and row `j` of `y`."""
    if task.labels is None:
        return (x.classes[i] != y.classes[j]).astype(jnp.int32)
    a = jax.tree.map(lambda leaf: leaf[i], x)
    b = jax.tree.map(lambda leaf: leaf[j], y)
    label: jax.Array = label_of_pair(task.labels, parameters.labels, a, b)
    return label


def labels_of_row(task: Task, parameters: Parameters, row: Points, columns: Points) -> jax.Array:
    """Returns the labels of a row and all columns, `[M]`."""
    if task.labels is None:
        return (row.classes != columns.classes).astype(jnp.int32)
    rows = jax.tree.map(lambda leaf: leaf[None], row)
    return pair_labels(task, parameters, rows, columns)[0]


def pair_labels(task: Task, parameters: Parameters, x: Any, y: Any) -> jax.Array:
    """Returns the labels of all pairs of rows and columns, `[N, M]`; -1 where one is ignored."""
    return labels_of_all(task.labels, parameters.labels, x, y)


def zero_or_nan(x: jax.Array) -> jax.Array:
    """Returns NaN if an entry is not finite, else 0; without a derivative.

    Args:
      x: floating array of any shape.

    Returns:
      A scalar that makes a loss NaN, whatever the loss makes of its distances.
    """
    # Scaled, as the sum of finite entries may overflow.
    return 0 * jnp.sum(lax.stop_gradient(x) * 2.0**-32)


def zero_or_nan_of(sides: tuple[Points, ...]) -> jax.Array:
    """Returns NaN if an embedding that counts is not finite, else 0; without a derivative."""
    return cast(jax.Array, sum(zero_or_nan(side.vectors) for side in sides))


class _Swapped(NamedTuple):
    """A distance with its vectors swapped; equal for equal distances."""

    distance: Callable[..., jax.Array]

    def __call__(self, a: jax.Array, b: jax.Array, *parameters: jax.Array) -> jax.Array:
        return self.distance(b, a, *parameters)


def check_method(method: str, axis_name: Any) -> None:
    """Checks the name of a method, and that it runs over these devices.

    Args:
      method: `"sweep"` or `"autodiff"`.
      axis_name: axis of the devices that share the batch, or None.

    Raises:
      ValueError: if there is no such method, or it takes no axis name.
    """
    if method not in _METHODS:
        raise ValueError(f"method must be one of {', '.join(_METHODS)}, got {method!r}")
    if method == "autodiff" and axis_name is not None:
        raise ValueError("method 'autodiff' runs on one device: it takes no axis_name")


def make_problem(
    rows: tuple[Any, Any, Any],
    columns: tuple[Any, Any, Any],
    *,
    distance: Callable[..., jax.Array],
    axis_name: Any,
    numerics: Numerics,
    shared: Any = (),
    labels: Any = None,
) -> Problem:
    """Checks the arguments of a loss over pairs, and makes a problem, with a placeholder loss.

    Args:
      rows: vectors, classes and weights; attributes in place of classes where `labels` are given.
      columns: the same of the references; None each for pairs of the rows.
      distance: function of two vectors.
      axis_name: axis of the devices that share the rows, or None.
      numerics: options of the products.
      shared: further arrays, of which only the mesh axes along which they vary count.
      labels: function of the attributes of two rows; None for labels by classes.

    Returns:
      The problem. Its parameters are those of the distance and of the labels.
    """
    tile = numerics.tile
    if tile is not None and (not isinstance(tile, int | np.integer) or tile < 8 or tile % 8):
        raise ValueError(f"tile must be a whole multiple of 8 and above 0, got {tile!r}")
    numerics = numerics._replace(tile=None if tile is None else int(tile))
    check_distance(distance)
    rule = None if labels is None else as_pair_labels(labels)
    sides = _checked_sides(rows, columns, rule)
    dtype = sides[0].vectors.dtype
    product, bound = as_product(distance)
    of_difference, differentiable = depends_on_difference(distance), is_differentiable(distance)
    if bound:
        distance = distance.func  # type: ignore[attr-defined]
    parameters = tuple(jnp.asarray(value) for value in gathered([*bound.values()]))
    both_orders = len(sides) == 1 and not is_symmetric(distance)
    # Of these only shapes count, and along which axes of a mesh they vary.
    axes = axes_of((sides, parameters, shared))
    vector, scalar, label = varying(
        (jnp.zeros(sides[0].vectors.shape[1:], dtype), jnp.zeros((), dtype), jnp.int32(0)), axes
    )
    examples = vector, vector, *parameters
    distance, closed = closure_convert("distance", distance, examples, check_real_scalar)
    label_pair, values = None, cast(tuple[jax.Array, ...], ())
    if rule is not None:
        label_pair, values, label = convert_labels(
            rule, sides, (rows[1], columns[1])[: len(sides)], dtype, axes
        )
    task = Task(
        loss=distance,
        distances=(distance, cast(Any, _Swapped(distance))) if both_orders else (distance,),
        product=product,
        of_difference=of_difference,
        differentiable=differentiable,
        by_label=False,
        active=False,
        measured=False,
        numerics=numerics,
        axis_name=axis_name,
        weighted=rows[2] is not None or columns[2] is not None,
        labels=label_pair,
    )
    return Problem(task, sides, Parameters((), parameters + closed, values), (scalar, label))


def _checked_sides(
    rows: tuple[Any, Any, Any], columns: tuple[Any, Any, Any], labels: PairLabels | None
) -> tuple[Points, ...]:
    """Returns the sides of the pairs, checked, in float32 at least, and zeros in ignored rows."""
    x = checked_points("", *rows, labels=labels)
    if columns[0] is None:
        if any(column is not None for column in columns):
            raise ValueError("reference_classes and reference_weights need references")
        return (masked_points(x),)
    y = checked_points("reference_", *columns, labels=labels)
    chex.assert_equal_shape_suffix(
        [x.vectors, y.vectors], 1, custom_message="embeddings and references: [B, D], [R, D]"
    )
    chex.assert_type(
        y.vectors, x.vectors.dtype, custom_message="references are not of embeddings' dtype"
    )
    return masked_points(x), masked_points(y)


def checked_points(
    prefix: str, vectors: Any, classes: Any, weights: Any, *, labels: PairLabels | None = None
) -> Points:
    """Checks the rows of one side. Errors name the arguments with the prefix."""
    name = "references" if prefix else "embeddings"
    if classes is None:
        raise ValueError(f"{name} need {prefix}classes")
    attributes: Any = ()
    if labels is None:
        several = isinstance(classes, dict) or (
            isinstance(classes, tuple) and any(np.ndim(one) for one in classes)
        )
        if several:
            raise ValueError(
                f"{prefix}classes must be one array [N], got a {type(classes).__name__} of arrays: "
                "rows with several attributes need labels=, such as "
                "labels.same_class_other_group() (contrastive_jax.labels)"
            )
        classes = as_classes(f"{prefix}classes", classes)
        vectors = as_array(name, vectors, classes=classes)
    else:
        vectors = as_array(name, vectors)
        attributes, classes = checked_attributes(
            prefix, gathered(classes), labels, np.shape(vectors)[:1]
        )
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
    # Derived from the classes, so that under `jax.shard_map` they vary where those do.
    ones = (classes == classes).astype(at_least_float32(vectors.dtype))
    side = Points(vectors, classes, given[0] if given else ones, attributes)
    values = {f"{prefix}weights": weight for weight in given} | {name: masked_points(side).vectors}
    return side._replace(vectors=with_checks(side.vectors, **values))

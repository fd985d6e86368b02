"""The problem: which pairs are summed, with which loss and distance, and of which arrays."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import lax

from contrastive_jax._dtypes import at_least_float32, widen
from contrastive_jax._engine.matmul import Product
from contrastive_jax._engine.pair_labels import label_of_pair, labels_of_all
from contrastive_jax.statistics import Op

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
    translation_invariant: bool
    """True if the distance only depends on the difference of the vectors."""
    finite_derivatives: bool
    """True if the derivatives of the distance are finite at any two finite vectors, so that pairs
    that do not count may be replaced after it."""
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
    positives: int = 0
    """The number of positives of an anchor that share a sweep, which data and statistics of an
    anchor then have an axis of, `[N, P]`; 0 where they have none, `[N]`."""
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
    """Returns True if pairs that are computed one by one have a gradient by their points.

    That is so where the vectors are the points, and where the points come with the rest that
    rounding has removed. Else the gradient of such pairs is by the vectors.
    """
    return task.product is not None and task.product.keeps_digits


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

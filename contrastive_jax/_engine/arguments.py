"""The arguments of a loss over pairs, checked and made a problem."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast

import chex
import jax
import jax.numpy as jnp
import numpy as np

from contrastive_jax._carried_checks import with_checks
from contrastive_jax._dtypes import at_least_float32
from contrastive_jax._engine.closures import closure_convert
from contrastive_jax._engine.matmul import (
    as_product,
    has_finite_derivatives,
    is_symmetric,
    is_translation_invariant,
)
from contrastive_jax._engine.pair_labels import checked_attributes, convert_labels
from contrastive_jax._engine.problem import (
    Numerics,
    Parameters,
    Points,
    Problem,
    Task,
    masked_points,
)
from contrastive_jax._engine.sharding import axes_of, gathered, varying
from contrastive_jax._host_arrays import as_array, as_classes, column_hint
from contrastive_jax._traced_checks import check_real_scalar
from contrastive_jax.checks import check_distance
from contrastive_jax.labels.types import PairLabels, as_pair_labels

Method = Literal["sweep", "autodiff"]
_METHODS = ("sweep", "autodiff")


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
    translation_invariant = is_translation_invariant(distance)
    finite_derivatives = has_finite_derivatives(distance)
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
        translation_invariant=translation_invariant,
        finite_derivatives=finite_derivatives,
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
    return masked_points(x), masked_points(_at_least_one_row(y))


def _at_least_one_row(side: Points) -> Points:
    """Returns the rows, or where there are none an ignored one, as engines index their columns."""
    if len(side.classes):
        return side

    def padded(x: jax.Array) -> jax.Array:
        return jnp.pad(x, [(0, 1), *[(0, 0)] * (x.ndim - 1)])

    one: Points = jax.tree.map(padded, side)
    return one._replace(classes=jnp.full(1, -1, side.classes.dtype))


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

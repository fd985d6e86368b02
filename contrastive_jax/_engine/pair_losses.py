"""A value of the sums over all pairs as a function of arrays, evaluated by any engine."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from contrastive_jax._carried_checks import carry_check
from contrastive_jax._dtypes import at_least_float32
from contrastive_jax._engine.arguments import Method, check_method, make_problem
from contrastive_jax._engine.closures import closure_convert
from contrastive_jax._engine.engines import Engine, evaluate
from contrastive_jax._engine.problem import (
    Numerics,
    Parameters,
    Points,
    Sums,
    is_graded,
    zero_or_nan_of,
)
from contrastive_jax._engine.sharding import axes_of, psum_once, varying
from contrastive_jax._engine.stages import Stage
from contrastive_jax._host_arrays import as_array, as_classes
from contrastive_jax._traced_checks import check_real_scalar, check_traced
from contrastive_jax.checks import check_scalars
from contrastive_jax.losses._margins import with_margin_checks
from contrastive_jax.losses.types import resolve_distance
from contrastive_jax.statistics import total

Reduce = Callable[[Sums], tuple[jax.Array, Any]]

# Labels of a positive and of a negative pair.
_LABELS = np.int32(0), np.int32(1)


class _WithMargin(NamedTuple):
    """A loss with its margin as a third argument; equal for equal losses, so compiled once."""

    loss: Callable[..., jax.Array]

    def __call__(
        self, distance: jax.Array, label: jax.Array, margin: jax.Array, *parameters: jax.Array
    ) -> jax.Array:
        return self.loss(distance, label, *parameters, margin=margin)


class _Graded(NamedTuple):
    """A loss of a grade, from those of a positive and a negative pair; equal for equal losses.

    Hadsell's formula is linear in the label, and this is what it gives for a label between 0 and 1.
    """

    loss: Callable[..., jax.Array]

    def __call__(self, distance: jax.Array, grade: jax.Array, *parameters: jax.Array) -> jax.Array:
        positive, negative = (self.loss(distance, label, *parameters) for label in _LABELS)
        grade = jnp.asarray(grade, positive.dtype)
        # A loss need not be finite for a label that the pair does not have.
        pulls = jnp.where(grade < 1, (1 - grade) * positive, 0)
        return pulls + jnp.where(grade > 0, grade * negative, 0)


def reduce_pairs(
    reduce: Reduce,
    rows: tuple[Any, Any, Any],
    columns: tuple[Any, Any, Any],
    *,
    loss: Callable[..., jax.Array],
    distance: Callable[..., jax.Array] | None,
    margin: ArrayLike | None,
    axis_name: Any,
    numerics: Numerics,
    method: Method,
    by_label: bool,
    active: bool,
    measured: bool = False,
    labels: Any = None,
) -> tuple[jax.Array, Any]:
    """Reduces the losses of all pairs.

    Args:
      reduce: takes the sums; returns a value, which is differentiated, and a tree, which is not.
      rows: vectors, classes and weights.
      columns: the same of the references; None each for pairs of the rows.
      loss: scalar function of a distance and a label.
      distance: function of two vectors; None for the one that the loss carries.
      margin: scalar, or one of each class, or None.
      axis_name: axis of the devices that share the rows, or None.
      numerics: options of the products.
      method: `"sweep"` or `"autodiff"`.
      by_label: True for the sums over positive and over negative pairs.
      active: True if active pairs are counted.
      measured: True if distances are summed.
      labels: function of the attributes of two rows; None for labels by classes.

    Returns:
      The results of `reduce`.
    """
    check_method(method, axis_name)
    measure = resolve_distance(loss, distance)
    if margin is not None and np.ndim(margin):
        if labels is not None:
            raise ValueError(
                "a margin of each class is for labels by classes: leave labels out, or pass a "
                "scalar margin"
            )
        margins = _class_margins(loss, margin, rows, columns)
        return _reduce_by_class(
            reduce,
            rows,
            columns,
            loss=loss,
            distance=measure,
            margins=margins,
            axis_name=axis_name,
            numerics=numerics,
            method=method,
            by_label=by_label,
            measured=measured,
        )
    hyperparameters: tuple[jax.Array, ...] = ()
    function: Any = loss
    if margin is not None:
        chex.assert_rank(margin, 0, custom_message="margin must be a scalar")
        check_scalars(margin=margin)
        margin = with_margin_checks(margin, loss, margin)
        dtype = at_least_float32(jnp.asarray(rows[0]).dtype)
        function, hyperparameters = _WithMargin(loss), (jnp.asarray(margin, dtype),)
    problem = make_problem(
        rows,
        columns,
        distance=measure,
        axis_name=axis_name,
        numerics=numerics,
        shared=hyperparameters,
        labels=labels,
    )
    if is_graded(problem.task):
        if by_label:
            raise ValueError(
                "labels returns a grade, which is neither a positive nor a negative pair: take "
                'all_pairs_loss with reduction="mean" or "sum", or return the integers 0, 1 and -1'
            )
        function = _Graded(function)
    examples = *problem.examples, *varying(hyperparameters, axes_of(problem.examples[0]))
    function, closed = closure_convert("loss", function, examples, check_real_scalar)
    task = problem.task._replace(loss=function, by_label=by_label, active=active, measured=measured)
    parameters = problem.parameters._replace(loss=(*hyperparameters, *closed))

    def result(engine: Engine, *arguments: Any) -> tuple[jax.Array, Any]:
        return reduce(engine.pair_sums(task, *arguments))

    return evaluate(problem, method, result, problem.sides, parameters)


class _SumsByClass(NamedTuple):
    """The sums of an anchor with a margin of its own; equal for equal losses."""

    loss: Callable[..., jax.Array]
    measured: bool

    def __call__(
        self, distance: jax.Array, label: jax.Array, margin: jax.Array, *parameters: jax.Array
    ) -> Any:
        value = self.loss(distance, label, margin, *parameters)
        distance = jax.lax.stop_gradient(distance)
        return [
            (
                total(value, where),
                total(1.0, where),
                total(1.0, where & (value != 0)),
                *([total(distance, where)] if self.measured else []),
            )
            for where in (label == 0, label == 1)
        ]


def _class_margins(
    loss: Callable[..., jax.Array], margin: Any, rows: tuple[Any, ...], columns: tuple[Any, ...]
) -> jax.Array:
    """Checks the margins of classes, `[C]`."""
    margins = as_array("margin", margin)
    if np.ndim(margins) != 1:
        raise AssertionError(
            f"expected a scalar margin or one of each class, [C], got shape {np.shape(margins)}"
        )
    if rows[2] is not None or columns[2] is not None:
        raise ValueError(
            "a margin of each class takes no weights: leave weights and reference_weights out, or "
            "pass a scalar margin"
        )
    margins = with_margin_checks(margins, loss, margins)
    message = f"expected a scalar margin or one of each class, got {len(margins)} for class "
    classes = None if rows[1] is None else as_classes("classes", rows[1])
    if isinstance(classes, jax.core.Tracer):

        def check(classes: jax.Array) -> None:
            largest = jnp.max(classes, initial=-1)
            check_traced(largest < len(margins), message + "{largest}", largest=largest)

        margins = carry_check(margins, check, classes=classes)
    elif classes is not None and np.max(np.asarray(classes), initial=-1) >= len(margins):
        raise AssertionError(f"{message}{np.max(np.asarray(classes))}")
    return jnp.asarray(margins)


def _reduce_by_class(
    reduce: Reduce,
    rows: tuple[Any, Any, Any],
    columns: tuple[Any, Any, Any],
    *,
    loss: Callable[..., jax.Array],
    distance: Callable[..., jax.Array],
    margins: jax.Array,
    axis_name: Any,
    numerics: Numerics,
    method: Method,
    by_label: bool,
    measured: bool,
) -> tuple[jax.Array, Any]:
    """Reduces the losses of all pairs, each with the margin of its first row's class."""
    problem = make_problem(
        rows,
        columns,
        distance=distance,
        axis_name=axis_name,
        numerics=numerics,
        shared=margins,
    )
    scalar, label = problem.examples
    margins = varying(margins.astype(scalar.dtype), axes_of(problem.examples))
    with_margin: Any = _WithMargin(loss)
    function, closed = closure_convert(
        "loss", with_margin, (scalar, label, scalar), check_real_scalar
    )
    by_class: Any = _SumsByClass(function, measured)
    stages = (Stage(by_class, len(closed)),)

    def result(
        engine: Engine, sides: tuple[Points, ...], margins: jax.Array, parameters: Parameters
    ) -> Any:
        data = (margins[jnp.maximum(sides[0].classes, 0)],)
        (stats,) = engine.anchor_statistics(problem.task, stages, sides, data, parameters)
        # A NaN or an infinity shows, whatever the loss makes of it.
        bad = zero_or_nan_of(sides)
        sums = jax.tree.map(jnp.sum, stats)
        loss_sums, *counts = (jnp.stack(each) for each in zip(*sums, strict=True))
        if not measured:
            counts.append(jnp.zeros_like(loss_sums))
        totals = psum_once((loss_sums + bad, *counts), axis_name)
        return reduce(Sums(*(one if by_label else jnp.sum(one, keepdims=True) for one in totals)))

    parameters = problem.parameters._replace(loss=closed)
    return evaluate(problem, method, result, problem.sides, margins, parameters)

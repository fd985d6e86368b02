"""The engines, which give the same numbers, and the choice between them.

A sweep over tiles takes memory linear in the number of rows. The dense path computes the matrix of
all pairs, which is faster for small batches. The plain version goes row by row, and JAX can
differentiate it in any way.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax

from contrastive_jax._engine import (
    dense,
    dense_triplets,
    over_all,
    per_anchor,
    per_triplet,
    row_by_row,
)
from contrastive_jax._engine.arguments import Method
from contrastive_jax._engine.derivatives import differentiable
from contrastive_jax._engine.problem import Points, Problem, Sums, Task


class Engine(NamedTuple):
    """Three functions that go over all pairs of a problem."""

    pair_sums: Callable[..., Sums]
    """Takes a task, sides and parameters."""
    anchor_statistics: Callable[..., tuple[Any, ...]]
    """Takes a task, stages, sides, data and parameters."""
    triplet_sums: Callable[..., per_triplet.TripletSums]
    """Takes a task, triplets, sides, parameters of the loss, and parameters."""


def _pair(sides: tuple[Points, ...]) -> tuple[Points, Points | None]:
    return sides[0], sides[1] if len(sides) > 1 else None


def _dense_pair_sums(task: Task, sides: tuple[Points, ...], *rest: Any) -> Sums:
    return dense.pair_sums(task, *_pair(sides), *rest)


def _dense_statistics(task: Task, stages: Any, sides: Any, *rest: Any) -> tuple[Any, ...]:
    return dense.anchor_statistics(task, stages, *_pair(sides), *rest)


def _dense_triplet_sums(
    task: Task, triplets: Any, sides: Any, *rest: Any
) -> per_triplet.TripletSums:
    return dense_triplets.triplet_sums(task, triplets, *_pair(sides), *rest)


SWEEP = Engine(over_all.pair_sums, per_anchor.anchor_statistics, per_triplet.triplet_sums)
DENSE = Engine(_dense_pair_sums, _dense_statistics, _dense_triplet_sums)
ROW_BY_ROW = Engine(row_by_row.pair_sums, row_by_row.anchor_statistics, row_by_row.triplet_sums)


def select_engine(problem: Problem, method: Method) -> Engine:
    """Selects the engine for a problem: by the method, and by the shapes of the sides.

    Args:
      problem: the problem. A given tile size, or an axis name, asks for the sweep.
      method: `"sweep"` or `"autodiff"`.

    Returns:
      The engine.
    """
    task = problem.task
    if method == "autodiff":
        return ROW_BY_ROW
    if task.numerics.tile is not None or task.axis_name is not None:
        return SWEEP
    return DENSE if dense.fits(task, *_pair(problem.sides)) else SWEEP


def evaluate(
    problem: Problem,
    method: Method,
    function: Callable[..., tuple[jax.Array, Any]],
    *arguments: Any,
    reverse_only: bool = False,
) -> tuple[jax.Array, Any]:
    """Calls a function of an engine so that it can be differentiated in any way.

    Args:
      problem: the problem, which selects the engine.
      method: `"sweep"` or `"autodiff"`.
      function: takes an engine and the arguments; returns a scalar or a vector, and a tree of
        arrays that have no derivative.
      *arguments: trees of arrays.
      reverse_only: True if one derivative in reverse mode is enough.

    Returns:
      The results of the function. With an axis name, or `reverse_only`, the sweep can be
      differentiated once, in reverse mode.
    """
    first = partial(function, select_engine(problem, method))
    if method == "autodiff" or problem.task.axis_name is not None or reverse_only:
        return first(*arguments)
    return differentiable(first, partial(function, ROW_BY_ROW), *arguments)

"""Stages: functions of a pair whose statistics take one sweep each, and may use earlier ones.

The function of a stage takes the data of the anchor and the results of all earlier stages. Only its
sums may have derivatives by these, and the same sweep collects them.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Literal

from contrastive_jax._engine.reductions import flatten_statistics, never_holds
from contrastive_jax.statistics import Statistic


class Stage(NamedTuple):
    """Statistics of pairs that take one sweep."""

    function: Callable[..., Any]
    """Takes a distance, a label, the data and earlier results of the anchor, and parameters of its
    own; returns a tree of statistics."""
    parameters: int
    """The number of its own parameters."""
    positives_only: bool = False
    """True if negative pairs add nothing."""


class WeightedStatistic(NamedTuple):
    """The derivative of the loss with respect to a statistic, and what tells the share of a pair in
    it."""

    weight: jax.Array
    """`[N]`, or `[N, P]` for P positives."""
    selector: jax.Array
    """The same shape: index of the row that gave a maximum or a minimum, or value of a
    log-sum-exp."""


def values_of_stage(
    stages: tuple[Stage, ...],
    index: int,
    distance: jax.Array,
    label: jax.Array,
    results: tuple[Any, ...],
    parameters: tuple[Any, ...],
) -> Any:
    """Evaluates the statistics of one stage for a pair.

    Args:
      stages: all stages.
      index: index of the stage.
      distance: distance of the pair.
      label: label of the pair.
      results: data and earlier results of the anchor.
      parameters: parameters of all stages, one after the other.

    Returns:
      A tree of statistics.
    """
    start = sum(stage.parameters for stage in stages[:index])
    own = parameters[start : start + stages[index].parameters]
    return stages[index].function(distance, label, *results, *own)


@dataclasses.dataclass(frozen=True)
class CollectStatistics:
    """The function of a pair for the sweep of one stage; equal for equal stages.

    Calling it returns the statistics of the stage, and for each sum among them the sums of its
    derivatives by data and earlier results.
    """

    stages: tuple[Stage, ...]
    index: int
    derivatives: tuple[tuple[bool, ...], ...] | None
    """For each sum, True for each leaf of the results by which it has a derivative; None if no
    derivatives are wanted."""

    def __call__(
        self, distance: jax.Array, label: jax.Array, other: Any, results: Any, *parameters: Any
    ) -> Any:
        evaluate = partial(values_of_stage, self.stages, self.index, distance, label)
        tree = evaluate(results, parameters)
        if self.derivatives is None:
            return tree, ()
        sums = [one for one in flatten_statistics(tree) if one.op == "sum"]
        values, pull = jax.vjp(lambda results: _sums(evaluate(results, parameters)), results)
        by_results = []
        # One by one, as most sums depend on few of the results: all at once, the zeros would be
        # stacked with the rest, and added up for all pairs.
        for k, has_derivative in enumerate(self.derivatives):
            derivatives = results
            if any(has_derivative):
                (derivatives,) = pull([jnp.full_like(one, i == k) for i, one in enumerate(values)])
            leaves, structure = jax.tree.flatten(derivatives)
            # A sum without a derivative gets a dummy leaf with mask False, so that the structure of
            # the tree stays fixed.
            masks = [sums[k].where if has else np.bool(False) for has in has_derivative]
            leaves = [Statistic("sum", *one) for one in zip(leaves, masks, strict=True)]
            by_results.append(jax.tree.unflatten(structure, leaves))
        return tree, by_results


@dataclasses.dataclass(frozen=True)
class WeightStatistics:
    """A function of a pair whose derivatives are those of the loss by that pair.

    A pair adds its value to a sum, its share to a log-sum-exp, and to a maximum its value if it
    is the pair that gave it, each weighted by the derivative of the loss by the statistic.
    """

    stages: tuple[Stage, ...]
    positives: int = 0
    """Length of the axis of the data of an anchor, over which its parts are summed; 0 for none."""

    def __call__(
        self, distance: jax.Array, label: jax.Array, other: Any, anchor: Any, *parameters: Any
    ) -> jax.Array:
        if not self.positives:
            return self._weighted_value(distance, label, other, anchor, *parameters)
        total = jnp.zeros_like(distance)
        for k in range(self.positives):
            own = jax.tree.map(lambda leaf, k=k: leaf[k], anchor)
            total += self._weighted_value(distance, label, other, own, *parameters)
        return total

    def _weighted_value(
        self, distance: jax.Array, label: jax.Array, other: Any, anchor: Any, *parameters: Any
    ) -> jax.Array:
        results, weighted = anchor
        data_count = len(results) - len(self.stages)
        total = jnp.zeros_like(distance)
        for k, by_stage in enumerate(weighted):
            earlier = lax.stop_gradient(results[: data_count + k])
            tree = values_of_stage(self.stages, k, distance, label, earlier, parameters)
            for one, (weight, selector) in zip(flatten_statistics(tree), by_stage, strict=True):
                if never_holds(one.where):
                    continue
                where, value = one.where & (weight != 0), one.value
                if one.op in ("max", "min"):
                    where &= other == selector
                elif one.op == "log_sum_exp":
                    # No pair exceeds the whole, but one that does not count may.
                    value = jnp.exp(jnp.minimum(jnp.where(where, value - selector, 0), 1))
                total += jnp.where(where, weight * value, 0)
        return total


def _sums(tree: Any) -> list[jax.Array]:
    return [one.value for one in flatten_statistics(tree) if one.op == "sum"]


def sums_with_derivatives(
    stages: tuple[Stage, ...],
    index: int,
    distance: jax.Array,
    label: jax.Array,
    results: Any,
    parameters: tuple[Any, ...],
) -> tuple[tuple[bool, ...], ...]:
    """Tells for each sum of a stage by which leaves of the results it has a derivative."""

    def sums(results: Any, distance: Any, label: Any, parameters: Any) -> list[jax.Array]:
        return _sums(values_of_stage(stages, index, distance, label, results, parameters))

    return has_derivatives(sums, results, distance, label, parameters)


def has_derivatives(
    values: Callable[..., list[jax.Array]], results: Any, *others: Any
) -> tuple[tuple[bool, ...], ...]:
    """Tells by which leaves of a tree values have a derivative that is not 0 everywhere.

    It looks at the program of each derivative: JAX makes a constant of the tangent of a value
    that does not depend on a leaf, or only through `lax.stop_gradient` or a comparison.

    Args:
      values: function of the results and of `others`.
      results: tree of scalars, as an example.
      *others: further arguments, by which no derivatives are of interest.

    Returns:
      For each value a tuple of bools, one for each leaf.
    """
    leaves, structure = jax.tree.flatten(results)

    def tangents(index: int, tangent: jax.Array, leaves: list[Any], *others: Any) -> Any:
        def by_leaf(leaf: jax.Array) -> list[jax.Array]:
            replaced = [*leaves[:index], leaf, *leaves[index + 1 :]]
            return values(jax.tree.unflatten(structure, replaced), *others)

        return jax.jvp(by_leaf, (leaves[index],), (tangent,))[1]

    count = len(jax.eval_shape(values, results, *others))
    by_leaf = [
        _depend_on_first(jax.make_jaxpr(partial(tangents, k))(leaf, leaves, *others).jaxpr)
        for k, leaf in enumerate(leaves)
    ]
    return tuple(tuple(one[value] for one in by_leaf) for value in range(count))


def _depend_on_first(jaxpr: Any) -> list[bool]:
    """Tells which results of a program depend on its first argument."""
    dependent = {jaxpr.invars[0]}
    for equation in jaxpr.eqns:
        inputs = [one for one in equation.invars if not isinstance(one, Literal)]
        if dependent.intersection(inputs):
            dependent.update(equation.outvars)
    return [not isinstance(one, Literal) and one in dependent for one in jaxpr.outvars]

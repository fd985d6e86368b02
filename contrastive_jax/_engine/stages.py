"""Statistics that depend on earlier ones, one sweep each."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from contrastive_jax._engine.reductions import holds_for_none, is_statistic
from contrastive_jax.statistics import Statistic


class Stage(NamedTuple):
    """Statistics of pairs that are kept in one walk."""

    function: Callable[..., Any]
    """Of a distance, a label, what is known of the anchor, and parameters of its own, to a tree of
    statistics."""
    parameters: int
    """How many of its own."""
    similar_alone: bool = False
    """Whether dissimilar pairs add nothing."""


@dataclasses.dataclass(frozen=True)
class Collected:
    """What a pair adds in the walk of a stage."""

    stages: tuple[Stage, ...]
    place: int
    slopes: tuple[tuple[bool, ...], ...] | None
    """Of each sum, by which leaves of what is known it has derivatives, which are added too; None
    where none are asked for."""

    def __call__(
        self, distance: jax.Array, label: jax.Array, other: Any, known: Any, *parameters: Any
    ) -> Any:
        def of(known: Any) -> Any:
            return values_of_stage(self.stages, self.place, distance, label, known, parameters)

        found = of(known)
        if self.slopes is None:
            return found, ()

        def sums(known: Any) -> list[jax.Array]:
            return [one.value for one in flat(of(known)) if one.kind == "sum"]

        where = [one.where for one in flat(found) if one.kind == "sum"]
        values, pull = jax.vjp(sums, known)
        slopes = []
        # One by one, as most sums depend on little of what is known: all at once, the zeros would
        # be stacked with the rest, and added up for all pairs.
        for k, by in enumerate(self.slopes):
            slope = known
            if any(by):
                (slope,) = pull([jnp.full_like(one, i == k) for i, one in enumerate(values)])
            leaves, tree = jax.tree.flatten(slope)
            # Where there is no slope some leaf stands in, of no pair.
            pairs = [where[k] if has else np.bool(False) for has in by]
            added = [Statistic("sum", *one) for one in zip(leaves, pairs, strict=True)]
            slopes.append(jax.tree.unflatten(tree, added))
        return found, slopes


@dataclasses.dataclass(frozen=True)
class Weighed:
    """A function of a pair whose derivatives are those of the loss by that pair."""

    stages: tuple[Stage, ...]

    def __call__(
        self, distance: jax.Array, label: jax.Array, other: Any, anchor: Any, *parameters: Any
    ) -> jax.Array:
        known, weighed = anchor
        first = len(known) - len(self.stages)
        added = jnp.zeros_like(distance)
        for k, of_stage in enumerate(weighed):
            before = lax.stop_gradient(known[: first + k])
            found = flat(values_of_stage(self.stages, k, distance, label, before, parameters))
            for one, (weight, at) in zip(found, of_stage, strict=True):
                if holds_for_none(one.where):
                    continue
                where, value = one.where & (weight != 0), one.value
                if one.kind in ("max", "min"):
                    where &= other == at
                elif one.kind == "log_sum_exp":
                    # No pair exceeds the whole, but one that does not count may.
                    value = jnp.exp(jnp.minimum(jnp.where(where, value - at, 0), 1))
                added += jnp.where(where, weight * value, 0)
        return added


def derived(
    values: Callable[..., list[jax.Array]], known: Any, *others: Any
) -> tuple[tuple[bool, ...], ...]:
    """Of each value, by which leaves of what is known it has a derivative that is not a plain 0.

    Args:
      values: function of what is known and of others.
      known: tree of scalars, as an example.
      others: by which no derivatives are of interest.

    Returns:
      For each value whether it has one by each leaf.
    """
    leaves, tree = jax.tree.flatten(known)
    found = [[False] * len(leaves) for _ in jax.eval_shape(values, known, *others)]

    def probe(value: int, place: int) -> Callable[[jax.Array], jax.Array]:
        @jax.custom_jvp
        def same(x: jax.Array) -> jax.Array:
            return x

        def of_same(primals: Any, tangents: Any) -> Any:
            is_zero = isinstance(tangents[0], jax.custom_derivatives.SymbolicZero)
            found[value][place] = not is_zero
            return primals[0], tangents[0]

        same.defjvp(of_same, symbolic_zeros=True)
        return cast(Callable[[jax.Array], jax.Array], same)

    def probed(place: int, leaf: jax.Array, others: tuple[Any, ...]) -> Any:
        def of_leaf(leaf: jax.Array) -> list[jax.Array]:
            given = [leaf if k == place else other for k, other in enumerate(leaves)]
            of_given = values(jax.tree.unflatten(tree, given), *others)
            return [probe(k, place)(value) for k, value in enumerate(of_given)]

        return jax.jvp(of_leaf, (leaf,), (leaf,))

    for place, leaf in enumerate(leaves):
        jax.eval_shape(partial(probed, place), leaf, others)
    return tuple(map(tuple, found))


def slopes_of(
    stages: tuple[Stage, ...], place: int, examples: tuple[Any, ...]
) -> tuple[tuple[bool, ...], ...]:
    """Of each sum of a stage, by which leaves of what is known it has a derivative."""
    distance, label, _, known, *parameters = examples

    def sums(
        known: Any, distance: jax.Array, label: jax.Array, *parameters: Any
    ) -> list[jax.Array]:
        found = flat(values_of_stage(stages, place, distance, label, known, parameters))
        return [one.value for one in found if one.kind == "sum"]

    return derived(sums, known, distance, label, *parameters)


def values_of_stage(
    stages: tuple[Stage, ...],
    index: int,
    distance: jax.Array,
    label: jax.Array,
    known: tuple[Any, ...],
    parameters: tuple[Any, ...],
) -> Any:
    start = sum(stage.parameters for stage in stages[:index])
    own = parameters[start : start + stages[index].parameters]
    return stages[index].function(distance, label, *known, *own)


def flat(tree: Any) -> list[Statistic]:
    return jax.tree.leaves(tree, is_leaf=is_statistic)


def flat_values(tree: Any) -> list[jax.Array]:
    return jax.tree.leaves(tree)

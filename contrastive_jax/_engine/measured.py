"""Sums of the distances of all pairs, from the sweep that computes the statistics of a loss."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from contrastive_jax._engine.problem import Points
from contrastive_jax._engine.sharding import psum_once
from contrastive_jax._engine.stages import Stage
from contrastive_jax.statistics import total


class DistanceSums(NamedTuple):
    """Sums over positive and over negative pairs, `[2]` each, without a derivative."""

    pairs: jax.Array
    """The number of pairs."""
    distance: jax.Array
    """The sum of their distances."""


def sums_of_anchor(distance: jax.Array, label: jax.Array) -> Any:
    """Returns the statistics whose sums over the anchors are `DistanceSums`."""
    distance = jax.lax.stop_gradient(distance)
    by_label = label == 0, label == 1
    return tuple(
        tuple(total(value, where) for where in by_label)
        for value in (jnp.ones_like(distance), distance)
    )


def measure(stages: tuple[Stage, ...], data_count: int) -> tuple[tuple[Stage, ...], int]:
    """Adds the sums of distances to the first stage that visits all pairs.

    Args:
      stages: of a loss.
      data_count: the number of data of an anchor, which come before the results of the stages.

    Returns:
      The stages, and the index of the one that now returns a tuple of its own result and the sums.
      Where all stages visit positive pairs alone, it is one more, with an empty result of its own.
    """
    everywhere = [k for k, stage in enumerate(stages) if not stage.positives_only]
    if not everywhere:
        return (*stages, Stage(_Measured(_nothing), 0)), len(stages)
    index = everywhere[0]
    own = stages[index]._replace(function=_Measured(stages[index].function))
    later = [
        stage._replace(function=_Unmeasured(stage.function, data_count + index))
        for stage in stages[index + 1 :]
    ]
    return (*stages[:index], own, *later), index


def distance_sums(statistics: Any, sides: tuple[Points, ...], axis_name: Any) -> DistanceSums:
    """Returns the sums over all anchors, from the statistics of `sums_of_anchor` of each."""
    counts = sides[0].classes >= 0
    sums = [
        jnp.stack([jnp.sum(jnp.where(counts, one, 0)) for one in by_label])
        for by_label in jax.lax.stop_gradient(statistics)
    ]
    return DistanceSums(*psum_once(tuple(sums), axis_name))


@dataclasses.dataclass(frozen=True)
class _Measured:
    """A function of pairs that also sums their distances; equal for equal functions."""

    function: Callable[..., Any]

    def __call__(self, distance: jax.Array, label: jax.Array, *results: Any) -> Any:
        return self.function(distance, label, *results), sums_of_anchor(distance, label)


@dataclasses.dataclass(frozen=True)
class _Unmeasured:
    """A function of pairs and results that does not get the sums of distances among them."""

    function: Callable[..., Any]
    index: int
    """The index of the result that has them."""

    def __call__(self, distance: jax.Array, label: jax.Array, *results: Any) -> Any:
        own, _ = results[self.index]
        results = *results[: self.index], own, *results[self.index + 1 :]
        return self.function(distance, label, *results)


def _nothing(distance: jax.Array, label: jax.Array, *results: Any) -> Any:
    return ()

"""Losses of an anchor, one of its positives, and what the anchor keeps of its other pairs.

The positives of all anchors are taken a few at a time: the first of each anchor, the second, and so
on. For these the anchors walk over all pairs (`contrastive_jax.anchors`) knowing how far their
positives are. Time grows with the number of pairs times that of positives, memory with the number
of rows. A gradient is computed along with the loss, so that nothing is kept from walk to walk.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import lax

from contrastive_jax.anchors import Stage, anchor_statistics
from contrastive_jax.derivatives import differentiable_once
from contrastive_jax.program_cache import compiled
from contrastive_jax.sharding import on_mesh_of_arguments
from contrastive_jax.streaming import Side, kept, of_marks
from contrastive_jax.tiles import Parameters, Task, axes_of, varying


class Triples(NamedTuple):
    """What is computed of an anchor and a positive: all that a program is compiled for."""

    loss: Callable[..., Any]
    """Of the distance of a positive, of results, and of parameters, to value, count and active."""
    stages: tuple[Stage, ...]
    """Of functions that know the distance of a positive."""
    joined: Callable[..., jax.Array] | None
    """Of anchor and positive to a vector that walks in place of the anchor."""
    to_positive: Callable[..., jax.Array] | None
    """Distance of anchor and positive; None for that of all pairs."""
    at_once: int
    """Positives of an anchor that share a walk."""


@dataclasses.dataclass(frozen=True)
class _AtOnce:
    """A stage's function for several positives; equal for equal functions, so compiled once."""

    function: Callable[..., Any]
    earlier: int

    def __call__(self, distance: jax.Array, label: jax.Array, *arguments: Any) -> Any:
        known, own = arguments[: self.earlier + 1], arguments[self.earlier + 1 :]
        each = zip(*known, strict=True)
        return tuple(self.function(distance, label, *one, *own) for one in each)


def triple_sums(
    task: Task,
    triples: Triples,
    x: Side,
    y: Side | None,
    of_loss: tuple[jax.Array, ...],
    parameters: Parameters,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sums over all pairs of an anchor and a positive, of the anchors of this device.

    Args:
      task: how the pairs are walked.
      triples: what is computed.
      x: anchors, `[N]` rows.
      y: columns; None for the other rows of `x`.
      of_loss: parameters of the loss.
      parameters: of the stages one after the other, and of the distance.

    Returns:
      Sums of the values, of their counts and of the counts of active ones. The first can be
      differentiated once, in reverse mode, by vectors and parameters.
    """
    run = compiled(_triple_sums, task, triples)
    return cast(tuple[jax.Array, jax.Array, jax.Array], run(x, y, of_loss, parameters))


def _triple_sums(
    task: Task,
    triples: Triples,
    x: Side,
    y: Side | None,
    of_loss: tuple[jax.Array, ...],
    parameters: Parameters,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    def statistics(
        stages: tuple[Stage, ...], x: Side, y: Side | None, data: Any, parameters: Any
    ) -> tuple[Any, ...]:
        return anchor_statistics(task, stages, x, y, data, parameters)

    return triple_sums_of(statistics, task, triples, x, y, of_loss, parameters)


def triple_sums_of(
    statistics: Callable[..., tuple[Any, ...]],
    task: Task,
    triples: Triples,
    x: Side,
    y: Side | None,
    of_loss: tuple[jax.Array, ...],
    parameters: Parameters,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The sums of `triple_sums` by a function that gives the statistics of anchors.

    Args:
      statistics: takes stages, anchors, columns, data and parameters, and returns what
        `anchor_statistics` returns.
      task: how the pairs are walked.
      triples: what is computed.
      x: anchors, `[N]` rows.
      y: columns; None for the other rows of `x`.
      of_loss: parameters of the loss.
      parameters: of the stages one after the other, and of the distance.

    Returns:
      The sums, which can be differentiated once, in reverse mode.
    """
    x, y = kept(x), None if y is None else kept(y)
    arguments = (x, y), of_loss, parameters, _numbered(task, x, y)
    arguments = varying(arguments, axes_of(arguments))
    ranks = [jnp.ndim(leaf) for leaf in jax.tree.leaves(arguments)]
    structure = jax.tree.structure(arguments)
    some = partial(_some, statistics, task, triples)

    @jax.custom_vjp
    @on_mesh_of_arguments
    def sums(*arguments: Any) -> Any:
        value, counts = _looped(triples, lambda k: some(k, *arguments), arguments)
        return value, *counts

    @on_mesh_of_arguments
    def forward(*marked: Any) -> Any:
        arguments, marks = of_marks(marked)
        arguments = differentiable_once(arguments)
        leaves = jax.tree.leaves(arguments)
        wanted = [k for k, mark in enumerate(jax.tree.leaves(marks)) if mark]

        def value_of(chosen: list[jax.Array], k: jax.Array) -> Any:
            given = list(leaves)
            for place, leaf in zip(wanted, chosen, strict=True):
                given[place] = leaf
            return some(k, *jax.tree.unflatten(structure, given))

        chosen = [leaves[k] for k in wanted]
        slope_of = jax.value_and_grad(value_of, has_aux=True)
        (value, counts), slopes = _looped(triples, lambda k: slope_of(chosen, k), arguments)
        # Residuals keep one structure, whatever is wanted: what is not has an axis of length 0.
        gradient = [jnp.zeros((0, *jnp.shape(leaf))) for leaf in leaves]
        for place, slope in zip(wanted, slopes, strict=True):
            gradient[place] = slope
        return (value, *counts), gradient

    @on_mesh_of_arguments
    def backward(gradient: Any, cotangents: Any) -> Any:
        slope = cotangents[0]
        if isinstance(slope, jax.custom_derivatives.SymbolicZero):
            slope = jnp.zeros(())
        of_leaves = [
            (slope * one).astype(one.dtype) if one.ndim == rank else None
            for one, rank in zip(gradient, ranks, strict=True)
        ]
        return jax.tree.unflatten(structure, of_leaves)

    sums.defvjp(forward, backward, symbolic_zeros=True)
    return cast(tuple[jax.Array, jax.Array, jax.Array], sums(*arguments))


class _Numbered(NamedTuple):
    """Where each anchor finds its positives among the columns of all devices."""

    order: jax.Array
    """Columns sorted by class, `[M]`."""
    first: jax.Array
    """Place in that order of the first of the anchor's class, `[N]`."""
    own: jax.Array
    """Place of the anchor itself, `M` where it is not among the columns, `[N]`."""
    sizes: jax.Array
    """Number of positives, `[N]`."""
    most: jax.Array
    """Largest number of positives of an anchor of any device."""


def _numbered(task: Task, x: Side, y: Side | None) -> _Numbered:
    axis = task.axis_name
    classes = _everywhere(task, (x if y is None else y).classes)
    order = jnp.argsort(classes, stable=True)
    ordered = classes[order]
    first = jnp.searchsorted(ordered, x.classes)
    sizes = jnp.searchsorted(ordered, x.classes, side="right") - first
    count = len(x.classes)
    own = jnp.full(count, len(classes))
    if y is None:
        start = 0 if axis is None else lax.axis_index(axis) * count
        own = jnp.argsort(order)[start + jnp.arange(count)]
        sizes -= 1
    sizes = jnp.where(x.classes < 0, 0, sizes)
    most = jnp.max(sizes, initial=0)
    return _Numbered(order, first, own, sizes, most if axis is None else lax.pmax(most, axis))


def _everywhere(task: Task, values: jax.Array) -> jax.Array:
    axis = task.axis_name
    return values if axis is None else lax.all_gather(values, axis, tiled=True)


def _looped(triples: Triples, one: Callable[[jax.Array], Any], arguments: Any) -> Any:
    """Sums over all positives, so many at once."""
    numbered: _Numbered = arguments[3]
    shapes = jax.eval_shape(one, jnp.int32(0))
    nothing = jax.tree.map(lambda like: jnp.zeros(like.shape, like.dtype), shapes)
    trips = -(-numbered.most // triples.at_once)

    def add(state: Any) -> Any:
        k, total = state
        return k + 1, jax.tree.map(jnp.add, total, one(k))

    begun = varying((jnp.int32(0), nothing), axes_of(arguments))
    return lax.while_loop(lambda state: state[0] < trips, add, begun)[1]


def _some(
    statistics: Callable[..., tuple[Any, ...]],
    task: Task,
    triples: Triples,
    k: jax.Array,
    sides: tuple[Side, Side | None],
    of_loss: tuple[jax.Array, ...],
    parameters: Parameters,
    numbered: _Numbered,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Sums over the positives of all anchors from number `k * at_once` on."""
    x, y = sides
    count = len(x.classes)
    candidates = _everywhere(task, (x if y is None else y).vectors)
    number = k * triples.at_once + jnp.arange(triples.at_once)[:, None]
    place = numbered.first[None] + number
    place += (place >= numbered.own[None]).astype(place.dtype)
    place = numbered.order[jnp.minimum(place, len(candidates) - 1)]
    valid = number < numbered.sizes[None]
    # In place of a pair that does not count stands one that does: a distance need not have a
    # derivative between a vector and itself.
    spare = jnp.argmax(valid)
    mark = valid[..., None]
    a = jnp.where(mark, x.vectors[None], x.vectors[None, None, spare % count])
    b = jnp.where(mark, candidates[place], candidates[None, None, place.ravel()[spare]])

    def distance(a: jax.Array, b: jax.Array) -> jax.Array:
        if triples.to_positive is not None:
            return triples.to_positive(a, b)
        return task.distances[0](a, b, *parameters.distance)

    known = tuple(jax.vmap(jax.vmap(distance))(a, b))
    if triples.joined is not None:
        y = x if y is None else y
        x = x._replace(vectors=jax.vmap(triples.joined)(a[0], b[0]))
    stages = tuple(
        Stage(_AtOnce(stage.function, earlier), stage.parameters, stage.similar_alone)
        for earlier, stage in enumerate(triples.stages)
    )
    found = statistics(stages, x, y, (known,), parameters)
    sums = [jnp.zeros((), x.vectors.dtype)] * 3
    for column, counts in enumerate(valid):
        each = known[column], *[stage[column] for stage in found]
        # Where no anchor has so many positives, ones stand in: statistics of no pairs may have no
        # derivative.
        spared = jax.tree.map(
            lambda leaf, counts=counts: jnp.where(
                counts, leaf, jnp.where(jnp.any(counts), leaf[jnp.argmax(counts)], 1)
            ),
            each,
        )
        means = jax.vmap(lambda *known: triples.loss(*known, *of_loss))(*spared)
        sums = [
            total + jnp.sum(jnp.where(counts, one, 0))
            for total, one in zip(sums, means, strict=True)
        ]
    return sums[0], tuple(map(lax.stop_gradient, sums[1:]))

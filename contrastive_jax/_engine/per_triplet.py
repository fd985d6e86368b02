"""Losses of an anchor, one of its positives, and statistics of the anchor's other pairs.

The positives of all anchors are taken a few at a time: the first of each anchor, the second, and so
on. For these the statistics are those of anchors (`per_anchor`), whose data are the distances of
their positives. Time grows with the number of pairs times that of positives, memory with the number
of rows. The gradient is computed in the forward pass, so that nothing is stored between passes.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import lax

from contrastive_jax._engine.derivatives import eager_vjp, substitute
from contrastive_jax._engine.labelled_positives import (
    LabelledPositives,
    indices_of_positives,
    labelled_positives,
)
from contrastive_jax._engine.per_anchor import anchor_statistics
from contrastive_jax._engine.problem import Parameters, Points, Task, masked_points
from contrastive_jax._engine.program_cache import program_or_part
from contrastive_jax._engine.sharding import axes_of, gather_rows, varying
from contrastive_jax._engine.stages import Stage

TripletSums = tuple[jax.Array, jax.Array, jax.Array]


class Triplets(NamedTuple):
    """The functions of an anchor and a positive, which are static arguments of a program."""

    loss: Callable[..., Any]
    """Takes the distance of a positive, results and parameters; returns value, count and active
    count."""
    stages: tuple[Stage, ...]
    """Stages whose functions take the distance of a positive."""
    combine: Callable[..., jax.Array] | None
    """Takes the vectors of anchor and positive; returns a vector that replaces the anchor."""
    positive_distance: Callable[..., jax.Array] | None
    """Distance of anchor and positive; None for that of all pairs."""
    positives_per_pass: int
    """The number of positives of an anchor that share a pass."""


def triplet_sums(
    task: Task,
    triplets: Triplets,
    sides: tuple[Points, ...],
    loss_parameters: tuple[jax.Array, ...],
    parameters: Parameters,
) -> TripletSums:
    """Sums over all pairs of an anchor and a positive, for the anchors of this device.

    Args:
      task: distances of the pairs.
      triplets: functions of an anchor and a positive.
      sides: anchors, `[N]` rows, and columns where these are others.
      loss_parameters: parameters of the loss.
      parameters: parameters of the stages one after the other, and of the distance.

    Returns:
      Sums of the values, of their counts and of the counts of active ones. The first can be
      differentiated once, in reverse mode, by vectors and parameters.
    """
    run = program_or_part(_triplet_sums, task, triplets)
    return cast(TripletSums, run(sides, loss_parameters, parameters))


def _triplet_sums(
    task: Task,
    triplets: Triplets,
    sides: tuple[Points, ...],
    loss_parameters: tuple[jax.Array, ...],
    parameters: Parameters,
) -> TripletSums:
    def statistics(
        stages: tuple[Stage, ...],
        x: Points,
        y: Points | None,
        data: Any,
        parameters: Parameters,
    ) -> tuple[Any, ...]:
        return anchor_statistics(task, stages, (x,) if y is None else (x, y), data, parameters)

    task, sides = without_own_pairs(task, triplets, sides)
    task = task._replace(positives=triplets.positives_per_pass)
    y = sides[1] if len(sides) > 1 else None
    return sums_over_positives(statistics, task, triplets, sides[0], y, loss_parameters, parameters)


class _WithoutSelfPairs(NamedTuple):
    """Labels that ignore the pair of a row with itself; equal for equal labels.

    Attributes come with the index of the row.
    """

    labels: Callable[..., Any]

    def __call__(self, a: Any, b: Any, *values: jax.Array) -> jax.Array:
        return jnp.where(a[1] == b[1], -1, self.labels(a[0], b[0], *values))


def without_own_pairs(
    task: Task, triplets: Triplets, sides: tuple[Points, ...]
) -> tuple[Task, tuple[Points, ...]]:
    """Makes labels ignore the pair of a row with itself, if `labels` and `combine` are given.

    `combine` replaces the anchor by another vector, which is compared with all rows, including the
    anchor. By classes that pair is positive, and statistics with `combine` select negative pairs
    alone. A function of labels may return 1 for it. In all other cases nothing is changed.
    """
    if task.labels is None or triplets.combine is None or len(sides) == 2:
        return task, sides
    count = len(sides[0].classes)
    start = 0 if task.axis_name is None else lax.axis_index(task.axis_name) * count
    indices = start + jnp.arange(count, dtype=jnp.int32)
    x = sides[0]._replace(attributes=(sides[0].attributes, indices))
    labels: Any = _WithoutSelfPairs(task.labels)
    return task._replace(labels=labels), (x,)


def sums_over_positives(
    statistics: Callable[..., tuple[Any, ...]],
    task: Task,
    triplets: Triplets,
    x: Points,
    y: Points | None,
    loss_parameters: tuple[jax.Array, ...],
    parameters: Parameters,
) -> TripletSums:
    """The sums of `triplet_sums` by any function that gives the statistics of anchors.

    Args:
      statistics: takes stages, anchors, columns or None, data and parameters, and returns what
        `anchor_statistics` returns.
      task: distances of the pairs.
      triplets: functions of an anchor and a positive.
      x: anchors, `[N]` rows.
      y: columns; None for the other rows of `x`.
      loss_parameters: parameters of the loss.
      parameters: parameters of the stages one after the other, and of the distance.

    Returns:
      The sums, which can be differentiated once, in reverse mode.
    """
    sides = (x,) if y is None else (x, y)
    positives: Any = (
        _positives_by_anchor(task, sides)
        if task.labels is None
        else labelled_positives(task, parameters, sides)
    )
    arguments = sides, loss_parameters, parameters, positives
    sums_of_pass = partial(_sums_of_pass, statistics, task, triplets)

    def with_gradient(wanted: Any, *arguments: Any) -> Any:
        leaves, structure = jax.tree.flatten(arguments)
        is_wanted = jax.tree.leaves(wanted)
        chosen = [leaf for leaf, w in zip(leaves, is_wanted, strict=True) if w]
        zero = jnp.zeros((), x.vectors.dtype)
        init = zero, (zero, zero)

        def by_chosen(chosen: list[jax.Array], k: jax.Array) -> Any:
            rest = iter(chosen)
            given = [next(rest) if w else leaf for leaf, w in zip(leaves, is_wanted, strict=True)]
            return sums_of_pass(k, *jax.tree.unflatten(structure, given))

        add_passes = partial(_add_passes, triplets, arguments)
        if not chosen:
            value, counts = add_passes(lambda k: sums_of_pass(k, *arguments), init)
            return value, counts, jax.tree.map(lambda _: None, arguments)
        gradient_of = partial(jax.value_and_grad(by_chosen, has_aux=True), chosen)
        zeros = jax.tree.map(jnp.zeros_like, chosen)
        (value, counts), gradient = add_passes(gradient_of, (init, zeros))
        rest = iter(gradient)
        by_leaf = [next(rest) if w else None for w in is_wanted]
        return value, counts, jax.tree.unflatten(structure, by_leaf)

    value, counts = eager_vjp(with_gradient, *arguments)
    return cast(TripletSums, (value, *counts))


class _Positives(NamedTuple):
    """The positives of each anchor among the columns of all devices."""

    order: jax.Array
    """Indices of the columns sorted by class, `[M]`."""
    first: jax.Array
    """Index in that order of the first of the anchor's class, `[N]`."""
    own: jax.Array
    """Index in that order of the anchor itself, `M` where it is not among the columns, `[N]`."""
    sizes: jax.Array
    """Number of positives, `[N]`."""
    most: jax.Array
    """Largest number of positives of an anchor of any device."""


def _positives_by_anchor(task: Task, sides: tuple[Points, ...]) -> _Positives:
    axis = task.axis_name
    x, one_side = sides[0], len(sides) == 1
    classes = gather_rows(task.axis_name, sides[-1].classes)
    order = jnp.argsort(classes, stable=True)
    ordered = classes[order]
    first = jnp.searchsorted(ordered, x.classes)
    sizes = jnp.searchsorted(ordered, x.classes, side="right") - first
    count = len(x.classes)
    own = jnp.full(count, len(classes))
    if one_side:
        start = 0 if axis is None else lax.axis_index(axis) * count
        own = jnp.argsort(order)[start + jnp.arange(count)]
        sizes -= 1
    sizes = jnp.where(x.classes < 0, 0, sizes)
    most = jnp.max(sizes, initial=0)
    return _Positives(order, first, own, sizes, most if axis is None else lax.pmax(most, axis))


def _add_passes(
    triplets: Triplets, arguments: Any, one_pass: Callable[[jax.Array], Any], init: Any
) -> Any:
    """Adds the results of the passes over all positives to those of none."""
    positives: _Positives | LabelledPositives = arguments[3]
    passes = -(-positives.most // triplets.positives_per_pass)

    def add(state: Any) -> Any:
        k, total = state
        return k + 1, jax.tree.map(jnp.add, total, one_pass(k))

    state = varying((jnp.int32(0), init), axes_of(arguments))
    return lax.while_loop(lambda state: state[0] < passes, add, state)[1]


def _sums_of_pass(
    statistics: Callable[..., tuple[Any, ...]],
    task: Task,
    triplets: Triplets,
    k: jax.Array,
    sides: tuple[Points, ...],
    loss_parameters: tuple[jax.Array, ...],
    parameters: Parameters,
    positives: _Positives | LabelledPositives,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Sums over the positives number `k * positives_per_pass` and the next ones of all anchors."""
    x, y = sides[0], sides[1] if len(sides) > 1 else None
    first = k * triplets.positives_per_pass
    number = first + jnp.arange(triplets.positives_per_pass)[:, None]
    if isinstance(positives, LabelledPositives):
        index = indices_of_positives(task, parameters, sides[0], positives, number)
    else:
        index = _indices_by_class(positives, number)
    valid = number < positives.sizes[None]
    own_functions = triplets.positive_distance is not None or triplets.combine is not None
    masked = own_functions or not task.finite_derivatives
    anchors, others = _vectors_of_pass(task, sides, valid if masked else None, index)

    def distance(a: jax.Array, b: jax.Array) -> jax.Array:
        if triplets.positive_distance is not None:
            return triplets.positive_distance(a, b)
        return task.distances[0](a, b, *parameters.distance)

    distances = jax.vmap(jax.vmap(distance))(anchors, others)
    if not masked:
        distances = substitute(valid, distances)
    if triplets.combine is not None:
        y = sides[-1]
        # Masked again, as an ignored anchor was combined like any other.
        combined = jax.vmap(triplets.combine)(anchors[0], others[0])
        x = masked_points(x._replace(vectors=combined))
    by_stage = statistics(triplets.stages, x, y, (distances.T,), parameters)
    results = distances, *jax.tree.map(jnp.transpose, by_stage)
    # Where no anchor has a positive of these numbers, 1 replaces all results: statistics of no
    # pairs may have no derivative.
    results = substitute(valid, results, default=1)

    def loss(*results: Any) -> Any:
        return triplets.loss(*results, *loss_parameters)

    sums = [jnp.sum(jnp.where(valid, one, 0)) for one in jax.vmap(jax.vmap(loss))(*results)]
    value, *counts = (one.astype(x.vectors.dtype) for one in sums)
    return value, tuple(map(lax.stop_gradient, counts))


def _indices_by_class(positives: _Positives, number: jax.Array) -> jax.Array:
    """Returns the columns that are positives of these numbers, `[P, N]`."""
    index = positives.first[None] + number
    index += (index >= positives.own[None]).astype(index.dtype)
    return positives.order[jnp.minimum(index, len(positives.order) - 1)]


def _vectors_of_pass(
    task: Task, sides: tuple[Points, ...], valid: jax.Array | None, index: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the vectors of the anchors and of the positives of a pass.

    Args:
      task: the axis of the devices.
      sides: anchors, `[N]` rows, and columns where these are others.
      valid: mask of the anchors that have these positives, `[P, N]` for P positives of a pass;
        another pair replaces the rest. None to replace no pair.
      index: indices of the positives among the columns of all devices, `[P, N]`.

    Returns:
      Vectors of the anchors and of the positives, `[P, N, D]` each.
    """
    x = sides[0]
    candidates = gather_rows(task.axis_name, sides[-1].vectors)
    if valid is None:
        return jnp.broadcast_to(x.vectors, (*index.shape, x.vectors.shape[1])), candidates[index]
    # A pair that does not count is replaced by one that does, as by `substitute`. It is written out
    # to broadcast the anchors, whose gradient is then a sum over the positives of a pass.
    substitute_index = jnp.argmax(valid)
    mask = valid[..., None]
    row, other = substitute_index % len(x.classes), index.ravel()[substitute_index]
    anchors = jnp.where(mask, x.vectors[None], x.vectors[None, None, row])
    return anchors, jnp.where(mask, candidates[index], candidates[None, None, other])

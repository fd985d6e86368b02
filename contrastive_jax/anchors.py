"""Losses that look at an anchor against all others, in memory linear in the batch."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, cast

import chex
import jax
import jax.numpy as jnp
from jax import lax

from contrastive_jax._engine import dense, row_by_row
from contrastive_jax._engine.closures import hoisted
from contrastive_jax._engine.derivatives import differentiable
from contrastive_jax._engine.per_anchor import anchor_statistics as _anchor_statistics
from contrastive_jax._engine.per_triplet import Triples, triple_sums
from contrastive_jax._engine.problem import (
    Method,
    Parameters,
    Side,
    Task,
    check_method,
    kept,
    not_finite,
    prepared,
)
from contrastive_jax._engine.reductions import is_statistic
from contrastive_jax._engine.sharding import axes_of, gathered, shared_total, varying
from contrastive_jax._engine.stages import Stage, derived
from contrastive_jax.checks import check_distance
from contrastive_jax.distances import cosine
from contrastive_jax.losses._means import check_mean, check_reduction, three, total_of_means
from contrastive_jax.losses.types import AnchorLoss, Mean, TripleLoss
from contrastive_jax.statistics import OfSimilar

AnchorReduction = Literal["mean", "active", "sum", "none"]


def anchor_loss(
    embeddings: jax.Array,
    classes: jax.Array,
    references: jax.Array | None = None,
    reference_classes: jax.Array | None = None,
    *,
    loss: AnchorLoss | TripleLoss,
    distance: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    data: tuple[Any, ...] = (),
    reduction: AnchorReduction = "mean",
    axis_name: Any = None,
    exact: bool = True,
    tile: int | None = None,
    precision: lax.PrecisionLike = lax.Precision.HIGHEST,
    method: Method = "one_walk",
) -> jax.Array:
    """Loss of a batch in which every row is an anchor for all others, or for references.

    Beyond small batches the B x B matrix is never built. Of each anchor the statistics that its
    loss is made of are kept in one walk over tiles of pairs, and one more adds up the gradient; see
    `contrastive_jax.all_pairs_loss` for how small batches, tiles, close pairs and devices are dealt
    with, which is the same here. `contrastive_jax.losses` lists the losses.

    Call it under `jax.jit`. Outside, a program is compiled once for each shape and each loss of
    equal numbers; for a loss that closes over an array, at every call.

    *Devices.* With an axis name every device passes its own rows, of embeddings and of references,
    and gets the loss of the global batch and its gradient by its own rows. For the gradients of
    what the devices share and for sharded arrays under `jax.jit`, whose rows are gathered, see
    *Shared parameters* and *Sharded arrays* in `contrastive_jax.all_pairs_loss`.

    Args:
      embeddings: anchors, `[B, D]`, floating.
      classes: `[B]`, integers from 0; rows of class -1 are ignored, whatever they hold.
      references: what anchors are compared with, `[R, D]`; by default the other embeddings.
      reference_classes: `[R]`.
      loss: one of `contrastive_jax.losses`, or one's own.
      distance: of two vectors; that of the loss by default, which some losses insist on.
      data: what an `AnchorLoss` is to know of each anchor beside, trees of floating `[B]`.
      reduction: `"mean"` as the loss defines it, over anchors or over pairs; `"active"`, the same
        over anchors whose loss is not 0; `"sum"` of the values; `"none"` for the loss of each
        anchor, `[B]`, a mean over its own pairs where the loss defines one. A mean over nothing is
        0, and so is the loss of a row of class -1.
      axis_name: of the devices that share the batch.
      exact: whether close pairs are measured again.
      tile: rows and columns of a tile, a multiple of 8.
      precision: of matrix products.
      method: `"one_walk"`, or `"autodiff"`, which goes row by row through the scalar functions as
        they are, slower and still in linear memory; on one device.

    Returns:
      Loss, a scalar, NaN if an embedding that counts is not finite and 0 of no rows. It can be
      differentiated by embeddings, references, data and whatever the loss closes over, in any mode
      and any number of times; with an axis name once, in reverse mode, and so inside of
      `jax.shard_map` where the last function of an `AnchorLoss` closes over what devices share.
      With `reduction="none"` it is `[B]`, the own rows of each device: of an `AnchorLoss` it can be
      differentiated once, in reverse mode, or in any way with `method="autodiff"`; of a
      `TripleLoss` it is computed as with `method="autodiff"`.

    Raises:
      AssertionError: if ranks, shapes or dtypes do not fit, or the functions of the loss do not
        return statistics and means of scalars.
      TypeError: if a second derivative is taken with an axis name.
      ValueError: if an option is not one of those above, a known value is wrong, or the loss would
        need a derivative that is not taken (see `losses.AnchorLoss`).

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import anchor_loss, losses
      >>> x = jnp.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> classes = jnp.array([0, 0, 1, 1])
      >>> value = anchor_loss(x, classes, loss=losses.supcon(temperature=0.5))
      >>> print(f"{value:.3f}")
      0.430
    """
    check_reduction(reduction)
    if not isinstance(loss, AnchorLoss | TripleLoss):
        raise ValueError(
            f"loss must be an AnchorLoss or a TripleLoss, got {loss!r}; a function of a distance "
            "and a label is for all_pairs_loss, a ProxyLoss for proxy_loss, and a factory such as "
            "losses.supcon is to be called"
        )
    if not isinstance(data, tuple):
        raise ValueError(f"data must be a tuple of trees of [B], got {type(data).__name__}")
    if isinstance(loss, TripleLoss) and data:
        raise ValueError("a TripleLoss takes no data")
    if isinstance(loss, TripleLoss) and reduction == "none" and axis_name is not None:
        raise ValueError(
            "the losses of the anchors of a TripleLoss are computed on one device: leave axis_name "
            "out, or reduce them by mean, active or sum"
        )
    if isinstance(loss, AnchorLoss) and loss.needs and len(data) != len(loss.needs):
        raise ValueError(
            f"the loss needs data: a tuple of {' and '.join(loss.needs)}, got {len(data)} entries"
        )
    check_method(method, axis_name)
    if distance is not None:
        check_distance(distance)
    if loss.fixed and distance not in (None, loss.distance):
        raise ValueError(
            f"the formula of this loss is of {_name(loss.distance)} distances alone, got "
            f"{_name(distance)}"
        )
    data = gathered(data)
    task, x, y, of_distance, examples = prepared(
        (embeddings, classes, None),
        (references, reference_classes, None),
        distance=loss.distance if distance is None else distance,
        axis_name=axis_name,
        exact=exact,
        tile=tile,
        precision=precision,
        shared=data,
    )
    if not len(x.classes):
        return jnp.zeros((0,) if reduction == "none" else (), examples[0].dtype)
    anchored: Any = _anchor_total if isinstance(loss, AnchorLoss) else _triple_total
    total, arguments = anchored(task, loss, x, y, of_distance, examples, data, reduction)
    engine = dense if task.dense and dense.fits(task, x, y) else _sweeps
    # Marked as varying, a value that all devices of `jax.shard_map` share would not fit the program
    # that was traced with it. Not marked, it has a derivative in reverse mode alone.
    shared = isinstance(loss, AnchorLoss) and any(
        axes_of(x) - axes_of(value) for value in arguments[-1]
    )
    if reduction == "none" and isinstance(loss, TripleLoss):
        method = "autodiff"
    if method == "autodiff" or axis_name is not None or shared or reduction == "none":
        return cast(jax.Array, total(row_by_row if method == "autodiff" else engine, *arguments))

    def result(engine: Any, *arguments: Any) -> tuple[jax.Array, tuple[()]]:
        return total(engine, *arguments), ()

    return differentiable(partial(result, engine), partial(result, row_by_row), *arguments)[0]


def _name(function: Any) -> str:
    return str(getattr(function, "__name__", function))


def anchor_statistics(
    embeddings: jax.Array,
    classes: jax.Array,
    references: jax.Array | None = None,
    reference_classes: jax.Array | None = None,
    *,
    statistics: tuple[Callable[..., Any], ...],
    distance: Callable[[jax.Array, jax.Array], jax.Array] = cosine,
    data: tuple[Any, ...] = (),
    axis_name: Any = None,
    exact: bool = True,
    tile: int | None = None,
    precision: lax.PrecisionLike = lax.Precision.HIGHEST,
    method: Method = "one_walk",
) -> tuple[Any, ...]:
    """Statistics that every row keeps of its pairs with all others, or with references.

    Arguments and errors are those of `anchor_loss`, that for a derivative which is not taken among
    them, whether or not one is asked for.

    Args:
      embeddings: anchors, `[B, D]`, floating.
      classes: `[B]`.
      references: `[R, D]`.
      reference_classes: `[R]`.
      statistics: functions of a distance, a label, data and earlier results, as in `AnchorLoss`.
      distance: of two vectors.
      data: trees of floating `[B]`.
      axis_name: of the devices that share the batch.
      exact: whether close pairs are measured again.
      tile: rows and columns of a tile.
      precision: of matrix products.
      method: as in `anchor_loss`.

    Returns:
      For each function the tree it returns, of `[B]`; what no pair adds to for rows of class -1.
      With `method="autodiff"` they can be differentiated in any way, else once, in reverse mode.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import anchor_statistics, distances, statistics
      >>> x = jnp.array([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
      >>> classes = jnp.array([0, 0, 1])
      >>> def extremes(distance, label):
      ...     farthest = statistics.largest(distance, label == 0)
      ...     return farthest, statistics.smallest(distance, label == 1)
      >>> ((farthest, nearest),) = anchor_statistics(
      ...     x, classes, statistics=(extremes,), distance=distances.euclidean
      ... )
      >>> print(farthest)
      [  5.   5. -inf]
      >>> print(nearest.round(2))
      [1.   4.24 1.  ]
    """
    check_method(method, axis_name)
    data = gathered(data)
    task, x, y, of_distance, examples = prepared(
        (embeddings, classes, None),
        (references, reference_classes, None),
        distance=distance,
        axis_name=axis_name,
        exact=exact,
        tile=tile,
        precision=precision,
        shared=data,
    )
    data, stages, values, _ = _staged(statistics, x, data, examples)
    engine = _anchor_statistics
    if method == "autodiff":
        engine = row_by_row.anchor_statistics
    elif task.dense and dense.fits(task, x, y):
        engine = dense.anchor_statistics
    return engine(task, stages, x, y, data, Parameters(values, of_distance))


class _Engine(NamedTuple):
    """Two functions that go through pairs, as the functions of `contrastive_jax._engine.row_by_row` do."""

    anchor_statistics: Callable[..., Any]
    triple_sums: Callable[..., Any]


_sweeps = _Engine(_anchor_statistics, triple_sums)

# A function of an engine and of arguments to the loss, and the arguments.
_Total = tuple[Callable[..., jax.Array], tuple[Any, ...]]


def _anchor_total(
    task: Task,
    loss: AnchorLoss,
    x: Side,
    y: Side | None,
    of_distance: tuple[jax.Array, ...],
    examples: tuple[jax.Array, jax.Array],
    data: tuple[Any, ...],
    reduction: AnchorReduction,
) -> _Total:
    """The loss of anchors as a function of arrays."""
    data, stages, values, of_row = _staged(loss.statistics, x, data, examples)
    # Over devices a value that is the same on all of them may stay so outside of the sweep.
    function, of_loss = loss.loss, cast(tuple[jax.Array, ...], ())
    if task.axis_name is None:
        function, of_loss = hoisted("loss", loss.loss, of_row, _check_means, shared=True)
    else:
        _check_means("loss", jax.eval_shape(partial(function), *of_row))

    def total(
        engine: Any,
        x: Side,
        y: Side | None,
        data: tuple[Any, ...],
        parameters: Parameters,
        of_loss: tuple[jax.Array, ...],
    ) -> jax.Array:
        found = engine.anchor_statistics(task, stages, x, y, data, parameters)
        counts = kept(x).classes >= 0
        # An anchor that does not count takes the results of one that does: a loss of no pairs need
        # not have a derivative.
        substitute = jnp.argmax(counts)
        results = jax.tree.map(
            lambda leaf: jnp.where(counts, leaf, lax.stop_gradient(leaf)[substitute]),
            (*data, *found),
        )
        means = jax.vmap(lambda *results: function(*results, *of_loss))(*results)
        if reduction == "none":
            each = total_of_means((means,) if isinstance(means, Mean) else means)
            each = jnp.broadcast_to(each, counts.shape)
            return jnp.where(counts, each + not_finite(x, y), 0)
        sums = [
            tuple(jnp.sum(jnp.where(counts, one, 0)) for one in three(mean))
            for mean in ([means] if isinstance(means, Mean) else means)
        ]
        return _reduced(sums, x, y, task.axis_name, reduction)

    return total, (x, y, data, Parameters(values, of_distance), of_loss)


def _triple_total(
    task: Task,
    loss: TripleLoss,
    x: Side,
    y: Side | None,
    of_distance: tuple[jax.Array, ...],
    examples: tuple[jax.Array, jax.Array],
    data: tuple[Any, ...],
    reduction: AnchorReduction,
) -> _Total:
    """The loss of anchors and their positives as a function of arrays."""
    scalar = examples[0]
    stages, values, of_row = _stages(loss.statistics, (*examples, scalar))
    function, of_loss = hoisted("loss", loss.loss, of_row, check_mean)
    row = varying(jnp.zeros(x.vectors.shape[1:], scalar.dtype), axes_of(scalar))
    of_two = []
    for name, given in (("joined", loss.joined), ("to_positive", loss.to_positive)):
        if given is not None:
            given, closed = hoisted(name, given, (row, row), lambda *_: None)
            if closed:
                raise ValueError(f"{name} must not close over traced values")
        of_two.append(given)
    at_once = loss.at_once if loss.joined is None else 1
    triples = Triples(_Three(function), stages, of_two[0], of_two[1], at_once)

    def total(
        engine: Any,
        x: Side,
        y: Side | None,
        of_loss: tuple[jax.Array, ...],
        parameters: Parameters,
    ) -> jax.Array:
        if reduction == "none":
            mean = Mean(*engine.triple_sums_by_anchor(task, triples, x, y, of_loss, parameters))
            counts = kept(x).classes >= 0
            return jnp.where(counts, total_of_means((mean,)) + not_finite(x, y), 0)
        sums = engine.triple_sums(task, triples, x, y, of_loss, parameters)
        return _reduced([sums], x, y, task.axis_name, reduction)

    return total, (x, y, of_loss, Parameters(values, of_distance))


def _reduced(
    sums: list[tuple[jax.Array, ...]],
    x: Side,
    y: Side | None,
    axis_name: Any,
    reduction: AnchorReduction,
) -> jax.Array:
    """The loss of sums over the anchors of this device: values, counts and active counts."""
    bad = not_finite(x, y)
    # Of no device in particular, as the loss of all devices is the same on each.
    total = jnp.zeros((), x.vectors.dtype)
    for value, *counts in sums:
        value, count, active = shared_total((value + bad, *counts), axis_name)
        count = active if reduction == "active" else count
        total += value if reduction == "sum" else value / jnp.where(count > 0, count, 1)
    return total


@dataclasses.dataclass(frozen=True)
class _Three:
    """A loss that returns value, count and active; equal for equal losses, so compiled once."""

    loss: Callable[..., Mean]

    def __call__(self, *arguments: Any) -> tuple[jax.Array, ...]:
        return three(self.loss(*arguments))


def _staged(
    statistics: tuple[Callable[..., Any], ...],
    x: Side,
    data: tuple[Any, ...],
    examples: tuple[jax.Array, jax.Array],
) -> tuple[tuple[Any, ...], tuple[Stage, ...], tuple[jax.Array, ...], tuple[Any, ...]]:
    """Checked data, stages, the values that these close over, and results of one anchor."""
    for leaf in jax.tree.leaves(data):
        chex.assert_shape(leaf, x.classes.shape, custom_message="data must be trees of [B]")
        chex.assert_type(leaf, float)
    axes = axes_of(examples)
    data = varying(jax.tree.map(lambda leaf: jnp.asarray(leaf, examples[0].dtype), data), axes)
    of_row = jax.tree.map(lambda leaf: jnp.zeros_like(examples[0]), data)
    return data, *_stages(statistics, (*examples, *of_row))


def _stages(
    statistics: tuple[Callable[..., Any], ...], examples: tuple[Any, ...]
) -> tuple[tuple[Stage, ...], tuple[jax.Array, ...], tuple[Any, ...]]:
    """Stages with the values that they close over, and an example of what is known after them."""
    stages: list[Stage] = []
    values: tuple[jax.Array, ...] = ()
    scalar = examples[0]
    for function in statistics:
        similar_alone = isinstance(function, OfSimilar)
        function, closed = hoisted("statistics", function, examples, _check_statistics)
        _check_known_alone(partial(function), examples, closed)
        stages.append(Stage(function, len(closed), similar_alone))
        values += closed
        shape = jax.eval_shape(partial(function), *examples, *closed)
        found = jax.tree.map(lambda _: jnp.zeros_like(scalar), shape, is_leaf=is_statistic)
        examples = (*examples, found)
    return tuple(stages), values, examples[2:]


def _check_known_alone(
    function: Callable[..., Any], examples: tuple[Any, ...], closed: tuple[jax.Array, ...]
) -> None:
    """Refuses an extreme or a log-sum-exp whose derivative by what is known would be left out."""

    def values(known: tuple[Any, ...], distance: Any, label: Any, *closed: Any) -> list[jax.Array]:
        found = function(distance, label, *known, *closed)
        statistics = jax.tree.leaves(found, is_leaf=is_statistic)
        return [one.value for one in statistics if one.kind != "sum"]

    distance, label, *known = examples
    if any(map(any, derived(values, tuple(known), distance, label, *closed))):
        raise ValueError(
            "the value of a log-sum-exp, a largest or a smallest has a derivative by the data "
            "of the anchor, by an earlier result or by the distance of the positive, which is "
            "not taken: take that part out of the statistic and into the loss, or stop its "
            "gradient (jax.lax.stop_gradient)"
        )


def _check_statistics(name: str, shape: Any) -> None:
    for leaf in jax.tree.leaves(shape, is_leaf=is_statistic):
        if not is_statistic(leaf) or leaf.value.shape or leaf.where.shape:
            raise AssertionError(
                f"{name} must return a tree of contrastive_jax.statistics of scalars, got {leaf}"
            )


def _check_means(name: str, shape: Any) -> None:
    means = [shape] if isinstance(shape, Mean) else shape
    for mean in means if isinstance(means, tuple | list) else [means]:
        check_mean(name, mean)

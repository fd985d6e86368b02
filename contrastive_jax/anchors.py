"""Losses that look at an anchor against all others, in memory linear in the batch."""

import inspect
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from contrastive_jax._engine.anchor_losses import (
    anchor_total,
    check_not_graded,
    checked_data,
    make_stages,
    triplet_total,
)
from contrastive_jax._engine.arguments import Method, check_method, make_problem
from contrastive_jax._engine.engines import evaluate, select_engine
from contrastive_jax._engine.measured import DistanceSums
from contrastive_jax._engine.problem import Numerics
from contrastive_jax._engine.sharding import axes_of, gathered
from contrastive_jax.checks import check_distance
from contrastive_jax.distances import cosine
from contrastive_jax.labels.types import PairLabels
from contrastive_jax.losses._distance import check_fits_statistics
from contrastive_jax.losses._means import check_reduction
from contrastive_jax.losses.types import AnchorLoss, TripletLoss

AnchorReduction = Literal["mean", "active", "sum", "none"]


def anchor_loss(
    embeddings: jax.Array,
    classes: Any,
    references: jax.Array | None = None,
    reference_classes: Any = None,
    *,
    loss: AnchorLoss | TripletLoss,
    distance: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    data: tuple[Any, ...] = (),
    reduction: AnchorReduction = "mean",
    labels: PairLabels | Callable[[Any, Any], ArrayLike] | None = None,
    axis_name: Any = None,
    refine: bool = True,
    tile: int | None = None,
    precision: lax.PrecisionLike = lax.Precision.HIGHEST,
    method: Method = "sweep",
) -> jax.Array:
    """Loss of a batch in which every row is an anchor for all others, or for references.

    Beyond small batches the B x B matrix is never built. One sweep over tiles of pairs for
    each function in the `statistics` of the loss computes them, and one more adds up the gradient.
    Small batches, tiles, close pairs and devices are as in `contrastive_jax.all_pairs_loss`.
    `contrastive_jax.losses` lists the losses.

    Call it under `jax.jit`. Outside, a program is compiled once for each shape and each loss of
    equal hyperparameters; for a loss that closes over an array of several entries, at every call.

    *Devices.* With an axis name every device passes its own rows, of embeddings and of references,
    and gets the loss of the global batch and its gradient by its own rows. For the gradients of
    what the devices share and for sharded arrays under `jax.jit`, whose rows are gathered, see
    *Shared parameters* and *Sharded arrays* in `contrastive_jax.all_pairs_loss`.

    Args:
      embeddings: anchors, `[B, D]`, floating.
      classes: `[B]`, integers from 0; rows of class -1 are ignored, whatever they hold. With
        `labels` the attributes of the rows: any tree of arrays `[B, ...]`.
      references: rows that anchors are compared with, `[R, D]`; by default the other embeddings.
      reference_classes: `[R]`; with `labels` a tree like `classes`, of arrays `[R, ...]`.
      loss: a loss of `contrastive_jax.losses`, or one of your own.
      distance: function of two vectors; that of the loss by default, which some losses insist on.
      data: data of each anchor that an `AnchorLoss` needs, trees of floating `[B]`.
      reduction: `"mean"` as the loss defines it, over anchors or over pairs; `"active"`, the same
        over anchors whose loss is not 0; `"sum"` of the values; `"none"` for the loss of each
        anchor, `[B]`, a mean over its own pairs where the loss defines one. A mean over no pairs
        is 0, and so is the loss of a row of class -1.
      labels: function of the attributes of two rows that returns 0 (similar), 1 (dissimilar) or
        -1 (ignored), as in `contrastive_jax.all_pairs_loss`; `contrastive_jax.labels` has some.
      axis_name: axis of the devices that share the batch.
      refine: True if close pairs are recomputed.
      tile: rows and columns of a tile, a multiple of 8.
      precision: precision of matrix products.
      method: `"sweep"` for the sweep over tiles, or the matrix of a small batch. `"autodiff"` goes
        row by row through the scalar functions as they are: it is slower, takes linear memory too,
        and runs on one device.

    Returns:
      Loss, a scalar, NaN if an embedding that counts is not finite and 0 of no rows. It can be
      differentiated by embeddings, references, data and whatever the loss closes over, in any mode
      and any number of times; with an axis name once, in reverse mode, and likewise inside of
      `jax.shard_map` where the function `loss` of an `AnchorLoss` closes over values that devices
      share. With `reduction="none"` it is `[B]`, the own rows of each device: of an `AnchorLoss` it
      can be differentiated once, in reverse mode, or in any way with `method="autodiff"`; of a
      `TripletLoss` it is computed as with `method="autodiff"`.

    Raises:
      AssertionError: if ranks, shapes or dtypes do not fit, or the functions of the loss do not
        return statistics and means of scalars.
      TypeError: if a second derivative is taken with an axis name.
      ValueError: if an option is not one of those above, a concrete value is wrong, or the loss
        would need a derivative that is not taken (see `losses.AnchorLoss`).

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import anchor_loss, losses
      >>> x = jnp.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> classes = jnp.array([0, 0, 1, 1])
      >>> value = anchor_loss(x, classes, loss=losses.supcon(temperature=0.5))
      >>> print(f"{value:.3f}")
      0.430
    """
    return _evaluated(
        embeddings,
        classes,
        references,
        reference_classes,
        loss=loss,
        distance=distance,
        data=data,
        reduction=reduction,
        labels=labels,
        axis_name=axis_name,
        numerics=Numerics(refine, tile, precision),
        method=method,
    )[0]


def anchor_loss_and_distances(
    embeddings: jax.Array,
    classes: Any,
    references: jax.Array | None = None,
    reference_classes: Any = None,
    *,
    loss: AnchorLoss,
    refine: bool = True,
    tile: int | None = None,
    precision: lax.PrecisionLike = lax.Precision.HIGHEST,
    **options: Any,
) -> tuple[jax.Array, DistanceSums]:
    """Loss of a batch, and the sums of its distances, which training logs.

    It takes the arguments of `anchor_loss` and raises the same errors. The distances are summed in
    the sweep that computes the statistics of the loss, or in one more where all of these are
    `statistics.PositivesOnly`.

    Args:
      embeddings: anchors, `[B, D]`, floating.
      classes: `[B]`.
      references: `[R, D]`.
      reference_classes: `[R]`.
      loss: an `AnchorLoss`; the statistics of a `TripletLoss` are those of each positive.
      refine: True if close pairs are recomputed.
      tile: rows and columns of a tile.
      precision: precision of matrix products.
      **options: `distance`, `data`, `reduction`, `labels`, `axis_name` and `method`, as in
        `anchor_loss`.

    Returns:
      The loss, as `anchor_loss` returns it, and a tuple of two arrays that have no derivative.
      `pairs` counts positive and negative pairs, `[2]`, and `distance` sums their distances, `[2]`.
      Every pair of two rows of a batch counts in both orders.

    Raises:
      TypeError: if an option is not an argument of `anchor_loss`.
      ValueError: if the loss is not an `AnchorLoss`.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import losses
      >>> from contrastive_jax.anchors import anchor_loss_and_distances
      >>> x = jnp.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> classes = jnp.array([0, 0, 1, 1])
      >>> loss = losses.supcon(temperature=0.5)
      >>> value, sums = anchor_loss_and_distances(x, classes, loss=loss)
      >>> positive, negative = sums.distance / sums.pairs
      >>> print(f"{value:.3f} {positive:.1f} {negative:.1f}")
      0.430 0.2 1.0
    """
    if not isinstance(loss, AnchorLoss):
        raise ValueError(f"loss must be an AnchorLoss, got {loss!r:.80}")
    if unknown := options.keys() - inspect.signature(anchor_loss).parameters.keys():
        raise TypeError(f"anchor_loss has no argument {sorted(unknown)[0]}")
    return _evaluated(
        embeddings,
        classes,
        references,
        reference_classes,
        loss=loss,
        numerics=Numerics(refine, tile, precision),
        measured=True,
        **options,
    )


def _evaluated(
    embeddings: jax.Array,
    classes: Any,
    references: jax.Array | None,
    reference_classes: Any,
    *,
    loss: AnchorLoss | TripletLoss,
    numerics: Numerics,
    distance: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    data: tuple[Any, ...] = (),
    reduction: AnchorReduction = "mean",
    labels: PairLabels | Callable[[Any, Any], ArrayLike] | None = None,
    axis_name: Any = None,
    method: Method = "sweep",
    measured: bool = False,
) -> tuple[jax.Array, Any]:
    """Returns the loss of a batch and, where distances are measured, their sums."""
    check_reduction(reduction)
    if not isinstance(loss, AnchorLoss | TripletLoss):
        raise ValueError(
            f"loss must be an AnchorLoss or a TripletLoss, got {loss!r}; a function of a distance "
            "and a label is for all_pairs_loss, a ProxyLoss for proxy_loss, and a factory such as "
            "losses.supcon is to be called"
        )
    if not isinstance(data, tuple):
        raise ValueError(f"data must be a tuple of trees of [B], got {type(data).__name__}")
    if isinstance(loss, TripletLoss) and data:
        raise ValueError("a TripletLoss takes no data")
    if isinstance(loss, TripletLoss) and reduction == "none" and axis_name is not None:
        raise ValueError(
            "the losses of the anchors of a TripletLoss are computed on one device: leave "
            "axis_name out, or reduce them by mean, active or sum"
        )
    if isinstance(loss, AnchorLoss) and loss.needs and len(data) != len(loss.needs):
        raise ValueError(
            f"the loss needs data: a tuple of {' and '.join(loss.needs)}, got {len(data)} entries"
        )
    check_method(method, axis_name)
    if distance is not None:
        check_distance(distance)
        check_fits_statistics(loss, distance)
    data = gathered(data)
    problem = make_problem(
        (embeddings, classes, None),
        (references, reference_classes, None),
        distance=loss.distance if distance is None else distance,
        axis_name=axis_name,
        numerics=numerics,
        shared=data,
        labels=labels,
    )
    check_not_graded(problem)
    x = problem.sides[0]
    if not len(x.classes):
        dtype = problem.examples[0].dtype
        none = jnp.zeros(2, dtype)
        return jnp.zeros((0,) if reduction == "none" else (), dtype), DistanceSums(none, none)
    if isinstance(loss, AnchorLoss):
        total, arguments = anchor_total(problem, loss, data, reduction, measured=measured)
        # Marked as varying, a value that all devices of `jax.shard_map` share would not fit the
        # program that was traced with it. Not marked, it has a derivative in reverse mode alone.
        shared = any(axes_of(x) - axes_of(value) for value in arguments[-1])
    else:
        total, arguments = triplet_total(problem, loss, reduction)
        shared = False
    if isinstance(loss, TripletLoss) and reduction == "none":
        method = "autodiff"
    reverse_only = shared or reduction == "none"
    return evaluate(problem, method, total, *arguments, reverse_only=reverse_only)


def anchor_statistics(
    embeddings: jax.Array,
    classes: Any,
    references: jax.Array | None = None,
    reference_classes: Any = None,
    *,
    statistics: tuple[Callable[..., Any], ...],
    distance: Callable[[jax.Array, jax.Array], jax.Array] = cosine,
    data: tuple[Any, ...] = (),
    labels: PairLabels | Callable[[Any, Any], ArrayLike] | None = None,
    axis_name: Any = None,
    refine: bool = True,
    tile: int | None = None,
    precision: lax.PrecisionLike = lax.Precision.HIGHEST,
    method: Method = "sweep",
) -> tuple[Any, ...]:
    """Statistics of the pairs of each row with all others, or with references.

    It takes the arguments of `anchor_loss`, except for `loss` and `reduction`, and raises the same
    errors. A derivative that is not supported raises ValueError even if no gradient is requested.

    Args:
      embeddings: anchors, `[B, D]`, floating.
      classes: `[B]`.
      references: `[R, D]`.
      reference_classes: `[R]`.
      statistics: functions of a distance, a label, data and earlier results, as in `AnchorLoss`.
      distance: function of two vectors.
      data: trees of floating `[B]`.
      labels: as in `anchor_loss`.
      axis_name: axis of the devices that share the batch.
      refine: True if close pairs are recomputed.
      tile: rows and columns of a tile.
      precision: precision of matrix products.
      method: as in `anchor_loss`.

    Returns:
      For each function the tree it returns, of `[B]`; for rows of class -1 its value over no pairs.
      With `method="autodiff"` they can be differentiated in any way, else once, in reverse mode.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import anchor_statistics, distances, statistics
      >>> x = jnp.array([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
      >>> classes = jnp.array([0, 0, 1])
      >>> def farthest_and_nearest(distance, label):
      ...     farthest = statistics.largest(distance, label == 0)
      ...     return farthest, statistics.smallest(distance, label == 1)
      >>> ((farthest, nearest),) = anchor_statistics(
      ...     x, classes, statistics=(farthest_and_nearest,), distance=distances.euclidean
      ... )
      >>> print(farthest)
      [  5.   5. -inf]
      >>> print(nearest.round(2))
      [1.   4.24 1.  ]
    """
    check_method(method, axis_name)
    data = gathered(data)
    problem = make_problem(
        (embeddings, classes, None),
        (references, reference_classes, None),
        distance=distance,
        axis_name=axis_name,
        numerics=Numerics(refine, tile, precision),
        shared=data,
        labels=labels,
    )
    check_not_graded(problem)
    data = checked_data(problem, data)
    stages, parameters, _ = make_stages(problem, statistics, data)
    engine = select_engine(problem, method)
    return engine.anchor_statistics(
        problem.task, stages, problem.sides, data, problem.parameters._replace(loss=parameters)
    )

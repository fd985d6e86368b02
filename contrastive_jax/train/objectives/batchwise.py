"""Objectives of whole batches: all their pairs, anchors, proxies, and functions of one's own."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from contrastive_jax import losses
from contrastive_jax.all_pairs import all_pairs_sums
from contrastive_jax.anchors import anchor_loss, anchor_loss_and_distances
from contrastive_jax.checks import check_seed
from contrastive_jax.distances import cosine
from contrastive_jax.labels.types import PairLabels
from contrastive_jax.proxies import proxy_loss
from contrastive_jax.train._logged_distances import as_metrics, cosine_distances, swept_distances
from contrastive_jax.train.given_pairs import value_of_given_pairs
from contrastive_jax.train.objectives._values import (
    Options,
    axis_of,
    bound,
    rows_of,
    without_fraction,
)
from contrastive_jax.train.objectives.types import Distance, Objective
from contrastive_jax.train.types import AXIS, Batch, Metrics


def all_pairs(
    loss: Callable[..., jax.Array] = losses.contrastive,
    distance: Distance | None = None,
    *,
    positive_fraction: float = 0.5,
    init: Callable[[int, int, int], Any] | None = None,
    bind: Callable[[Any], Options] | None = None,
    learning_rate: float = 0.0,
    **hyperparameters: float,
) -> Objective:
    """Makes the objective of all pairs of a batch.

    The loss is the mean over positive pairs times `positive_fraction`, plus the mean over negative
    pairs times the rest. With a memory, it is also that of the pairs of a batch and the memory
    (Wang et al. 2020, <https://arxiv.org/abs/1912.06798>).

    Args:
      loss: scalar function of distance, label and hyperparameters.
      distance: between two embeddings; by default that of the loss.
      positive_fraction: weight of positive pairs.
      init: from the number of classes, the width of embeddings and a seed to parameters of the
        loss.
      bind: from these parameters to hyperparameters of the loss.
      learning_rate: of these parameters.
      **hyperparameters: of the loss, such as `margin`.

    Returns:
      The objective, of a `Batch`.

    Raises:
      ValueError: if the distance does not fit the loss.

    Example:
      >>> from contrastive_jax import losses
      >>> from contrastive_jax.train import objectives
      >>> objectives.all_pairs(losses.contrastive, margin=1.2).hyperparameters
      {'positive_fraction': 0.5, 'margin': 1.2}
    """
    measure = losses.resolve_distance(loss, distance)

    def value(
        embeddings: jax.Array,
        batch: Batch,
        params: Any,
        references: Any,
        options: Options,
        labels: PairLabels | None = None,
    ) -> tuple[jax.Array, Metrics]:
        fraction, options = without_fraction(options)
        rows = rows_of(batch, labels)
        sums = all_pairs_sums(
            embeddings,
            rows,
            *references or (),
            labels=labels,
            loss=bound(loss, options if bind is None else {**options, **bind(params)}),
            distance=measure,
            axis_name=axis_of(embeddings),
        )
        means = sums.loss / jnp.maximum(sums.pairs, 1)
        fraction = jnp.asarray(fraction, means.dtype)
        mean = fraction * means[0] + (1 - fraction) * means[1]
        if references is not None:
            return mean, {}
        logged = as_metrics(sums.pairs, sums.distance) | {"active": sums.active[1]}
        return mean, logged

    defaults = {"positive_fraction": positive_fraction} | hyperparameters
    init = init or Objective._field_defaults["init"]
    on_given = value_of_given_pairs(loss, measure, bind)
    return Objective(value, measure, defaults, init, learning_rate, on_given=on_given)


def anchors(
    make: Callable[..., losses.AnchorLoss | losses.TripletLoss],
    *,
    init: Callable[[int, int, int], Any] | None = None,
    learning_rate: float = 0.0,
    distance: Distance | None = None,
    width_as: str | None = None,
    **hyperparameters: float,
) -> Objective:
    """Makes the objective of a loss of each image of a batch and all its pairs.

    Args:
      make: from hyperparameters to a loss for `contrastive_jax.anchor_loss`, such as
        `losses.supcon`.
      init: from the number of classes, the width of embeddings and a seed to one parameter for each
        class, which an anchor takes as its data.
      learning_rate: of these parameters.
      distance: that is logged, and by which the trained encoder compares two images; by default
        that of the loss.
      width_as: name of the argument of `make` that takes the width of embeddings, if there is one;
        the distance must then be given.
      **hyperparameters: of the loss, such as `temperature`.

    Returns:
      The objective, of a `Batch`.

    Example:
      >>> from contrastive_jax import losses
      >>> from contrastive_jax.train import objectives
      >>> objectives.anchors(losses.supcon, temperature=0.1).distance.__name__
      'cosine'
    """
    measure = distance or make(**hyperparameters).distance

    def value(
        embeddings: jax.Array,
        batch: Batch,
        params: Any,
        references: Any,
        options: Options,
        labels: PairLabels | None = None,
    ) -> tuple[jax.Array, Metrics]:
        rows = rows_of(batch, labels)
        data = () if init is None else (params[jnp.maximum(jnp.asarray(batch.classes), 0)],)
        width = {width_as: embeddings.shape[1]} if width_as else {}
        loss, axis = make(**width, **options), axis_of(embeddings)
        shared: Any = {"loss": loss, "data": data, "labels": labels, "axis_name": axis}
        if references is not None:
            return anchor_loss(embeddings, rows, *references, **shared), {}
        if isinstance(loss, losses.AnchorLoss) and loss.distance is measure:
            mean, sums = anchor_loss_and_distances(embeddings, rows, **shared)
            return mean, as_metrics(sums.pairs, sums.distance)
        mean = anchor_loss(embeddings, rows, **shared)
        return mean, swept_distances(embeddings, rows, measure, axis, labels)

    init_ = init or Objective._field_defaults["init"]
    return Objective(value, measure, hyperparameters, init_, learning_rate)


def proxies(
    make: Callable[..., losses.ProxyLoss | losses.CentersLoss],
    *,
    centers: int | None = None,
    regularizer: Callable[[jax.Array], jax.Array] | None = None,
    learning_rate: float = 1e-2,
    **hyperparameters: float,
) -> Objective:
    """Makes the objective of a loss of embeddings and trained proxies of classes.

    Args:
      make: from hyperparameters to a loss for `contrastive_jax.proxy_loss`, such as
        `losses.proxy_anchor`.
      centers: proxies of each class, for losses of several, K.
      regularizer: from the proxies to a penalty that is added to the loss.
      learning_rate: of the proxies.
      **hyperparameters: of the loss, such as `temperature`.

    Returns:
      The objective, of a `Batch`. Its parameters are proxies of unit length, `[C, D]` or
      `[C, K, D]`.

    Example:
      >>> from contrastive_jax import losses
      >>> from contrastive_jax.train import objectives
      >>> objectives.proxies(losses.normalized_softmax).init(10, 64, 0).shape
      (10, 64)
    """

    def init(classes: int, width: int, seed: int) -> jax.Array:
        check_seed(seed)
        shape = (classes, width) if centers is None else (classes, centers, width)
        vectors = jax.random.normal(jax.random.key(seed), shape)
        unit: jax.Array = vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)
        return unit

    def value(
        embeddings: jax.Array, batch: Batch, params: Any, references: Any, options: Options
    ) -> tuple[jax.Array, Metrics]:
        classes = jnp.asarray(batch.classes)
        loss = make(**options)
        mean = proxy_loss(embeddings, classes, params, loss=loss, axis_name=axis_of(embeddings))
        if regularizer is not None:
            # Every device computes the same penalty, and adds its part to the gradient.
            part = regularizer(params) / jax.lax.axis_size(AXIS)
            mean += part + jax.lax.stop_gradient(jax.lax.psum(part, AXIS) - part)
        return mean, cosine_distances(embeddings, classes, len(params))

    return Objective(value, cosine, hyperparameters, init, learning_rate, takes_memory=False)


def batches(
    loss: Callable[..., jax.Array], distance: Distance = cosine, **hyperparameters: float
) -> Objective:
    """Makes the objective of a function of a whole batch, such as `mining.online_hard_loss`.

    Args:
      loss: function `(embeddings, classes, *references, axis_name=..., **hyperparameters)` to the
        loss of the global batch. It takes `labels` too where the objective has them.
      distance: that is logged, and by which the trained encoder compares two images.
      **hyperparameters: of the loss.

    Returns:
      The objective, of a `Batch`.

    Example:
      >>> from contrastive_jax import mining
      >>> from contrastive_jax.train import objectives
      >>> objectives.batches(mining.online_hard_loss, margin=0.8).hyperparameters
      {'margin': 0.8}
    """

    def value(
        embeddings: jax.Array,
        batch: Batch,
        params: Any,
        references: Any,
        options: Options,
        labels: PairLabels | None = None,
    ) -> tuple[jax.Array, Metrics]:
        rows = rows_of(batch, labels)
        labelled = {} if labels is None else {"labels": labels}
        axis = axis_of(embeddings)
        mean = loss(embeddings, rows, *references or (), axis_name=axis, **labelled, **options)
        if references is not None:
            return mean, {}
        return mean, swept_distances(embeddings, rows, distance, axis, labels)

    return Objective(value, distance, hyperparameters)

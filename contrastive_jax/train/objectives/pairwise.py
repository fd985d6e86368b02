"""Objectives of pairs: of those that are drawn by class, and of those that are given."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from contrastive_jax import losses
from contrastive_jax.pairs import pair_loss
from contrastive_jax.train.given_pairs import pair_sums, value_of_given_pairs
from contrastive_jax.train.objectives._values import Options, bound, without_fraction
from contrastive_jax.train.objectives.types import Distance, Objective
from contrastive_jax.train.types import IndexedPairs, Metrics, Pairs


def pairs(
    loss: Callable[..., jax.Array] = losses.contrastive,
    distance: Distance | None = None,
    *,
    group: int = 1,
    positive_fraction: float = 0.5,
    **hyperparameters: float,
) -> Objective:
    """Makes the objective of given pairs, or of pairs that are drawn by class.

    Args:
      loss: scalar function of distance, label and hyperparameters.
      distance: between two embeddings; by default that of the loss.
      group: pairs whose members are compared across, G. With 1 the loss is the mean over the given
        pairs. With G > 1 every first member of a group is compared with every second one, G^2
        pairs for the cost of encoding G; positive and negative pairs are averaged apart in each
        group and weighted by `positive_fraction`. This takes classes: the given pairs do
        not label members of two different ones.
      positive_fraction: share of positive pairs among those drawn, and their weight in groups.
      **hyperparameters: of the loss, such as `margin`.

    Returns:
      The objective, of a batch of `Pairs`.

    Raises:
      ValueError: if the distance does not fit the loss.

    Example:
      >>> from contrastive_jax.train import objectives
      >>> objectives.pairs(margin=1.2, group=8).hyperparameters
      {'positive_fraction': 0.5, 'margin': 1.2}
    """
    measure = losses.resolve_distance(loss, distance)

    def value(
        embeddings: jax.Array, batch: Pairs, params: Any, references: Any, options: Options
    ) -> tuple[jax.Array, Metrics]:
        fraction, options = without_fraction(options)
        a, b = jnp.split(embeddings, 2)
        if batch.labels is not None:
            labels = jnp.asarray(batch.labels)
        else:
            classes: list[Any] = [batch.first_classes, batch.second_classes]
            a, b, first_classes, second_classes = _across(group, [a, b, *classes])
            labels = (first_classes != second_classes).astype(jnp.int32)
        values = pair_loss(a, b, labels, loss=bound(loss, options), distance=measure)
        weights = _weights(labels.reshape(-1, group**2), fraction)
        mean = jnp.mean(values if group == 1 else values * weights.ravel())
        return mean, pair_sums(jax.vmap(measure)(a, b), values, labels)

    defaults = {"positive_fraction": positive_fraction} | hyperparameters
    on_given = value_of_given_pairs(loss, measure)
    return Objective(
        value,
        measure,
        defaults,
        separable=True,
        group=group,
        takes_memory=False,
        on_given=on_given,
    )


def on_given_pairs(objective: Objective) -> Objective:
    """Returns the objective of given pairs that has the loss of another objective.

    Given pairs have labels and no classes: every pair is compared as it is, and the share of
    positive pairs is that with which they are drawn. The objective has no `positive_fraction`.

    Args:
      objective: of a pair loss.

    Returns:
      The objective, of a batch of `IndexedPairs`.

    Raises:
      ValueError: if the loss is one of whole batches, it has labels of two rows, or members of
        pairs are compared across.

    Example:
      >>> from contrastive_jax import train
      >>> from contrastive_jax.train import objectives
      >>> objectives.on_given_pairs(train.objective("contrastive", margin=1.0)).hyperparameters
      {'margin': 1.0}
    """
    if objective.batch is IndexedPairs:
        return objective
    if objective.labels is not None:
        raise ValueError(
            "given pairs have a label each, and the objective has labels of two rows: leave labels "
            "out of it, or take data with one row for each image"
        )
    if objective.on_given is None:
        raise ValueError(
            "the loss compares whole batches by class, and given pairs have labels and no classes: "
            "take a pair loss, such as contrastive"
        )
    if objective.group > 1:
        raise ValueError(
            f"a group of {objective.group} pairs compares members of different pairs, which given "
            "pairs do not label: leave group out"
        )
    options = without_fraction(objective.hyperparameters)[1]
    return objective._replace(
        value=objective.on_given,
        hyperparameters=options,
        separable=False,
        takes_memory=False,
        batch=IndexedPairs,
    )


def _across(group: int, members: list[jax.Array]) -> list[jax.Array]:
    """Repeats first and second members `[B, ...]` so that those of a group meet: `[B * group]`."""
    spread = []
    for k, member in enumerate(members):
        grouped = member.reshape(-1, group, *member.shape[1:])
        axis = 2 - k % 2
        met = jnp.repeat(jnp.expand_dims(grouped, axis), group, axis)
        spread.append(met.reshape(-1, *member.shape[1:]))
    return spread


def _weights(labels: jax.Array, positive_fraction: ArrayLike) -> jax.Array:
    """Returns weights of mean 1 in each row, in which positive pairs have their share."""
    fraction = jnp.asarray(positive_fraction, jnp.float32)
    negative = labels.astype(jnp.float32)
    positive = 1 - negative
    share = fraction * positive / jnp.maximum(positive.sum(1, keepdims=True), 1)
    rest = (1 - fraction) * negative / jnp.maximum(negative.sum(1, keepdims=True), 1)
    return labels.shape[1] * (share + rest)

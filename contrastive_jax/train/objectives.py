"""Objectives: what a training step minimises, as a function of the embeddings of a batch.

An objective has a value, parameters of its own such as proxies, hyperparameters, a distance, and
what a step logs. `contrastive_jax.train.objective` makes one from the name of a loss or from a
loss; the functions below make each kind.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from contrastive_jax import losses
from contrastive_jax.all_pairs import all_pairs_sums
from contrastive_jax.anchors import anchor_loss, anchor_loss_and_distances
from contrastive_jax.checks import check_seed
from contrastive_jax.data.datasets import Examples
from contrastive_jax.distances import cosine
from contrastive_jax.labels.types import PairLabels
from contrastive_jax.pairs import pair_loss
from contrastive_jax.proxies import proxy_loss
from contrastive_jax.train._logged_distances import as_metrics, cosine_distances, swept_distances
from contrastive_jax.train.given_pairs import pair_sums, value_of_given_pairs
from contrastive_jax.train.types import AXIS, Batch, IndexedPairs, Metrics, Pairs

# Rows of a batch up to which one device compares them in one matrix.
_LARGEST_MATRIX = 256

Distance = Callable[..., jax.Array]
Options = Mapping[str, Any]


class Objective(NamedTuple):
    """The quantity that a training step minimises."""

    value: Callable[..., tuple[jax.Array, Metrics]]
    """`value(embeddings, batch, params, references, hyperparameters)` returns the loss of the
    global batch over `AXIS` and sums for logging. `references` are embeddings and classes of a
    memory, or None. For a separable objective the value is the mean over the pairs of a device. One
    that compares the rows of a batch takes `labels=` too."""
    distance: Distance
    """The distance that is logged, and by which the trained encoder compares two images."""
    hyperparameters: Mapping[str, float] = MappingProxyType({})
    """Values that a step takes as arguments, so that another value compiles nothing."""
    init: Callable[[int, int, int], Any] = lambda classes, width, seed: ()
    """A function of the number of classes, the width of embeddings and a seed to the parameters of
    the loss."""
    learning_rate: float = 0.0
    """The learning rate of these parameters; 0 where there are none."""
    separable: bool = False
    """True if the objective takes `Pairs` and is a mean over them, False if it takes a `Batch`."""
    group: int = 1
    """The number of pairs whose members are compared across."""
    name: str = ""
    """The name of the loss, by which a run that is resumed knows it again."""
    bounded: bool = False
    """True if its margin is a distance that two embeddings must be able to reach."""
    takes_memory: bool = True
    """False if it does not compare the embeddings of a batch with each other."""
    on_given: Callable[..., tuple[jax.Array, Metrics]] | None = None
    """The value of a pair loss on `IndexedPairs`; None for a loss of whole batches."""
    batch: type | None = None
    """The type of its batches, where that is neither `Pairs` nor `Batch`."""
    labels: PairLabels | None = None
    """Labels of two rows (`with_labels`); None where rows of one class are similar. They take
    attributes and a mask, as `labels.with_mask` does."""
    attributes: Callable[[Examples], Any] | None = None
    """A function of the examples of a split to their attributes, where there are `labels`."""

    def rows(self, batch: Batch) -> Any:
        """Returns that of the rows of a batch by which their pairs are labelled.

        These are classes or, where there are `labels`, attributes and a mask that leaves out the
        rows of class -1. A memory of earlier batches holds the same.
        """
        return _rows(batch, self.labels)

    def check_batch(self, batch: Any) -> None:
        """Raises ValueError where a batch is not one that the objective takes."""
        expected = self.batch or (Pairs if self.separable else Batch)
        if not isinstance(batch, expected):
            raise ValueError(f"the objective takes {expected.__name__}, got {type(batch).__name__}")
        if isinstance(batch, Pairs):
            _check_pairs(batch, self.group)
        if isinstance(batch, Batch) and self.labels is not None and batch.attributes is None:
            raise ValueError(
                "the objective has labels of two rows, and the batch has no attributes for them: "
                "make it as Batch(images, classes, attributes)"
            )


def pairs(
    loss: Callable[..., jax.Array] = losses.contrastive,
    distance: Distance | None = None,
    *,
    group: int = 1,
    similar_fraction: float = 0.5,
    **hyperparameters: float,
) -> Objective:
    """Makes the objective of given pairs, or of pairs that are drawn by class.

    Args:
      loss: scalar function of distance, label and hyperparameters.
      distance: between two embeddings; by default that of the loss.
      group: pairs whose members are compared across, G. With 1 the loss is the mean over the given
        pairs. With G > 1 every first member of a group is compared with every second one, G^2
        pairs for the cost of encoding G; similar and dissimilar pairs are averaged apart in each
        group and weighted by `similar_fraction`. This takes classes: the labels of the given pairs
        do not say whether members of two of them are similar.
      similar_fraction: share of similar pairs among those drawn, and their weight in groups.
      **hyperparameters: of the loss, such as `margin`.

    Returns:
      The objective, of a batch of `Pairs`.

    Raises:
      ValueError: if the distance does not fit the loss.

    Example:
      >>> from contrastive_jax.train import objectives
      >>> objectives.pairs(margin=1.2, group=8).hyperparameters
      {'similar_fraction': 0.5, 'margin': 1.2}
    """
    measure = losses.resolve_distance(loss, distance)

    def value(
        embeddings: jax.Array, batch: Pairs, params: Any, references: Any, options: Options
    ) -> tuple[jax.Array, Metrics]:
        fraction, options = _without_fraction(options)
        a, b = jnp.split(embeddings, 2)
        if batch.labels is not None:
            labels = jnp.asarray(batch.labels)
        else:
            classes: list[Any] = [batch.first_classes, batch.second_classes]
            a, b, first_classes, second_classes = _across(group, [a, b, *classes])
            labels = (first_classes != second_classes).astype(jnp.int32)
        values = pair_loss(a, b, labels, loss=_bound(loss, options), distance=measure)
        weights = _weights(labels.reshape(-1, group**2), fraction)
        mean = jnp.mean(values if group == 1 else values * weights.ravel())
        return mean, pair_sums(jax.vmap(measure)(a, b), values, labels)

    defaults = {"similar_fraction": similar_fraction} | hyperparameters
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


def all_pairs(
    loss: Callable[..., jax.Array] = losses.contrastive,
    distance: Distance | None = None,
    *,
    similar_fraction: float = 0.5,
    init: Callable[[int, int, int], Any] | None = None,
    bind: Callable[[Any], Options] | None = None,
    learning_rate: float = 0.0,
    **hyperparameters: float,
) -> Objective:
    """Makes the objective of all pairs of a batch.

    The loss is the mean over similar pairs times `similar_fraction`, plus the mean over dissimilar
    pairs times the rest. With a memory, it is also that of the pairs of a batch and the memory
    (Wang et al. 2020, <https://arxiv.org/abs/1912.06798>).

    Args:
      loss: scalar function of distance, label and hyperparameters.
      distance: between two embeddings; by default that of the loss.
      similar_fraction: weight of similar pairs.
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
      {'similar_fraction': 0.5, 'margin': 1.2}
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
        fraction, options = _without_fraction(options)
        rows = _rows(batch, labels)
        sums = all_pairs_sums(
            embeddings,
            rows,
            *references or (),
            labels=labels,
            loss=_bound(loss, options if bind is None else {**options, **bind(params)}),
            distance=measure,
            axis_name=_axis(embeddings),
        )
        means = sums.loss / jnp.maximum(sums.pairs, 1)
        fraction = jnp.asarray(fraction, means.dtype)
        mean = fraction * means[0] + (1 - fraction) * means[1]
        if references is not None:
            return mean, {}
        logged = as_metrics(sums.pairs, sums.distance) | {"active": sums.active[1]}
        return mean, logged

    defaults = {"similar_fraction": similar_fraction} | hyperparameters
    init = init or Objective._field_defaults["init"]
    on_given = value_of_given_pairs(loss, measure, bind)
    return Objective(value, measure, defaults, init, learning_rate, on_given=on_given)


def of_given_pairs(objective: Objective) -> Objective:
    """Returns the objective of given pairs that has the loss of another objective.

    Given pairs have labels and no classes: every pair is compared as it is, and the share of
    similar pairs is that with which they are drawn. The objective has no `similar_fraction`.

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
      >>> objectives.of_given_pairs(train.objective("contrastive", margin=1.0)).hyperparameters
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
            f"a group of {objective.group} pairs compares members of different pairs, and the "
            "labels of given pairs do not say whether those are similar: leave group out"
        )
    options = _without_fraction(objective.hyperparameters)[1]
    return objective._replace(
        value=objective.on_given,
        hyperparameters=options,
        separable=False,
        takes_memory=False,
        batch=IndexedPairs,
    )


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
        rows = _rows(batch, labels)
        data = () if init is None else (params[jnp.maximum(jnp.asarray(batch.classes), 0)],)
        width = {width_as: embeddings.shape[1]} if width_as else {}
        loss, axis = make(**width, **options), _axis(embeddings)
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
        mean = proxy_loss(embeddings, classes, params, loss=loss, axis_name=_axis(embeddings))
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
        rows = _rows(batch, labels)
        labelled = {} if labels is None else {"labels": labels}
        axis = _axis(embeddings)
        mean = loss(embeddings, rows, *references or (), axis_name=axis, **labelled, **options)
        if references is not None:
            return mean, {}
        return mean, swept_distances(embeddings, rows, distance, axis, labels)

    return Objective(value, distance, hyperparameters)


def _axis(embeddings: jax.Array) -> str | None:
    """Returns the axis of devices, None for a small batch on one device.

    Without an axis the batch is compared in one matrix, without tiles, which takes half of the time
    or less. A trained network puts images of a class close together: from some hundred rows on, the
    matrix then takes many rounds to compute close pairs again, and tiles are faster.
    """
    alone = jax.lax.axis_size(AXIS) == 1 and len(embeddings) <= _LARGEST_MATRIX
    return None if alone else AXIS


def _without_fraction(options: Options) -> tuple[Any, dict[str, Any]]:
    """Takes the weight of similar pairs out of the hyperparameters of a loss."""
    rest = dict(options)
    return rest.pop("similar_fraction", 0.5), rest


def _bound(loss: Callable[..., jax.Array], options: Options) -> Callable[..., jax.Array]:
    return partial(loss, **options) if options else loss


def _check_pairs(pairs: Pairs, group: int) -> None:
    """Checks that pairs have labels or classes, and classes where they are compared across."""
    given = [
        name
        for name in ("labels", "first_classes", "second_classes")
        if getattr(pairs, name) is not None
    ]
    if given not in (["labels"], ["first_classes", "second_classes"]):
        raise ValueError(
            "pairs must have either labels, as Pairs(first, second, labels), or the classes of "
            "both members, as Pairs(first, second, first_classes=..., second_classes=...), got "
            f"{' and '.join(given) or 'neither'}"
        )
    if given == ["labels"] and group > 1:
        raise ValueError(
            f"a group of {group} pairs compares every first member with every second one, and the "
            "labels of the given pairs do not say which of those are similar: give first_classes "
            "and second_classes, or make the objective with group=1"
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


def _weights(labels: jax.Array, similar_fraction: ArrayLike) -> jax.Array:
    """Returns weights of mean 1 in each row, in which similar pairs have their share."""
    fraction = jnp.asarray(similar_fraction, jnp.float32)
    dissimilar = labels.astype(jnp.float32)
    similar = 1 - dissimilar
    share = fraction * similar / jnp.maximum(similar.sum(1, keepdims=True), 1)
    rest = (1 - fraction) * dissimilar / jnp.maximum(dissimilar.sum(1, keepdims=True), 1)
    return labels.shape[1] * (share + rest)


def _rows(batch: Batch, labels: PairLabels | None) -> Any:
    """Returns the classes of a batch, or its attributes and the mask of the rows that count."""
    classes = jnp.asarray(batch.classes)
    return classes if labels is None else (batch.attributes, classes >= 0)

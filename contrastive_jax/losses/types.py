"""Types of losses, and the distance that a pair loss carries."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, ParamSpec, Protocol, cast, overload

import jax

from contrastive_jax.checks import check_distance, check_pair_loss
from contrastive_jax.distances import cosine, euclidean
from contrastive_jax.losses._distance import carrier, check_fits, check_names

Distance = Callable[..., jax.Array]


P = ParamSpec("P")


class PairLoss(Protocol[P]):
    """A scalar function of a distance and a label that carries its distance.

    Called with a distance and a label (0 for a positive pair, 1 for a negative one), it returns the
    loss of that pair, a scalar; called with hyperparameters alone, it binds them and returns a loss
    that carries the same distance. `functools.partial` does the latter too.

        losses.sigmoid(0.3, 1, temperature=5.0)  # a scalar
        all_pairs_loss(x, classes, loss=losses.sigmoid(temperature=5.0))  # measures the cosine
    """

    distance: Distance
    """The distance of its paper, measured unless the caller names another."""
    distances: tuple[Distance, ...] | None
    """The distances that fit its formula; None for every distance that is at least 0."""
    margins: tuple[float, float] | None
    """Bounds of its margin, of which the upper one is not allowed itself; None for every number
    above 0."""

    @overload
    def __call__(self, *arguments: P.args, **hyperparameters: P.kwargs) -> jax.Array: ...
    @overload
    def __call__(self, **hyperparameters: Any) -> functools.partial[jax.Array]: ...


def with_distance(
    distance: Distance,
    distances: tuple[Distance, ...] | None = None,
    *,
    margins: tuple[float, float] | None = None,
) -> Callable[[Callable[P, jax.Array]], PairLoss[P]]:
    """Decorates a scalar function of a distance and a label so that it carries its distance.

    A function without this decorator is a loss too, of Euclidean distances.

    Args:
      distance: function of two vectors that the loss measures by default.
      distances: distances that fit its formula, `distance` among them; by default every distance
        that is at least 0, which leaves out `distances.negative_dot` alone.
      margins: the margins that its formula allows, `[low, high)`; by default every number above 0.

    Returns:
      Decorator, from the function to a `PairLoss`.

    Raises:
      ValueError: if a distance is not a function, or `distances` leaves out `distance`.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import distances, losses, pair_loss
      >>> @losses.with_distance(distances.cosine, (distances.cosine,))
      ... def hinge(distance, label, margin=0.5):
      ...     return jnp.where(label == 0, distance, jnp.maximum(0, margin - distance))
      >>> a, b = jnp.array([[2.0, 0.0]]), jnp.array([[3.0, 4.0]])
      >>> value = pair_loss(a, b, jnp.array([1]), loss=hinge(margin=0.6))[0]
      >>> print(f"{value:.1f}")  # the cosine distance is 0.4
      0.2
    """
    for one in (distance, *(distances or ())):
        check_distance(one)
    if distances is not None and not any(one is distance for one in distances):
        names = ", ".join(getattr(one, "__name__", str(one)) for one in distances) or "none"
        raise ValueError(
            "distances must hold the distance that the loss carries, "
            f"{getattr(distance, '__name__', distance)}, got {names}"
        )

    def decorated(function: Callable[P, jax.Array]) -> PairLoss[P]:
        check_pair_loss(function)
        carried = {"distance": distance, "distances": distances, "margins": margins}

        @functools.wraps(function)
        def loss(*arguments: Any, **hyperparameters: Any) -> Any:
            if arguments or {"distance", "label"} & hyperparameters.keys():
                return function(*arguments, **hyperparameters)
            check_names(function, hyperparameters)
            bound = functools.partial(loss, **hyperparameters)
            vars(bound).update(carried)
            return bound

        vars(loss).update(carried)
        return cast(PairLoss[P], loss)

    return decorated


def resolve_distance(loss: Callable[..., jax.Array], distance: Distance | None = None) -> Distance:
    """Returns the distance that a pair loss is to measure.

    Args:
      loss: scalar function `(distance, label)`; a `PairLoss`, or one whose hyperparameters are
        bound by `functools.partial`, carries its distance, and any other measures the Euclidean.
      distance: function of two vectors, or None for that of the loss.

    Returns:
      `distance` where it is given, or that of the loss.

    Raises:
      ValueError: if `loss` or `distance` is not a function, or the distance does not fit the loss.

    Example:
      >>> from contrastive_jax import losses
      >>> print(losses.resolve_distance(losses.sigmoid).__name__)
      cosine
      >>> print(losses.resolve_distance(losses.contrastive).__name__)
      euclidean
    """
    check_pair_loss(loss)
    if distance is not None:
        check_distance(distance)
    carried_by = carrier(loss)
    carries = hasattr(carried_by, "distances")
    if distance is None:
        return cast(Distance, carried_by.distance) if carries else euclidean
    if carries:
        check_fits(carried_by, distance)
    return distance


class Mean(NamedTuple):
    """The contribution of an anchor to a mean: the sum of values over the sum of counts."""

    value: Any
    count: Any
    active: Any = None
    """The count of terms that are not 0, for `reduction="active"`. By default it is `count` where
    `value` is not 0."""


class AnchorLoss(NamedTuple):
    """A loss that is a function of statistics of all pairs of an anchor.

    Each function of `statistics` takes the distance and the label of one pair (0
    positive, 1 negative), the data of the anchor where there are any, and the results of the
    functions before it. It returns a tree of `contrastive_jax.statistics`. `loss` takes the data
    and the results of one anchor and returns a `Mean`, or a tuple of them whose sum is the loss of
    the batch.

    Every function takes a pass over the pairs. A later one may depend on data and on earlier
    results. A sum may have derivatives by them. A log-sum-exp, a maximum or a minimum may select
    its pairs by them, but a value that has a derivative by them is an error.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import anchor_loss, losses, statistics
      >>> def farthest_positive(distance, label):
      ...     return statistics.largest(distance, label == 0), statistics.total(1.0, label == 0)
      >>> def value(result):
      ...     farthest, count = result
      ...     return losses.Mean(jnp.where(count > 0, farthest, 0.0), count > 0)
      >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
      >>> loss = losses.AnchorLoss(value, (farthest_positive,))
      >>> print(anchor_loss(x, jnp.array([0, 0, 1]), loss=loss))
      1.0
    """

    loss: Callable[..., Any]
    statistics: tuple[Any, ...]
    distance: Callable[..., jax.Array] = cosine
    """The distance that is measured unless the caller gives another."""
    fixed: bool = False
    """True if the formula holds for that distance alone."""
    needs: tuple[str, ...] = ()
    """Descriptions of the data, for errors."""
    check_distance: Callable[[Distance], None] | None = None
    """Raises ValueError for a distance that does not fit the formula; None if every one does, or
    where `fixed` tells."""


class TripletLoss(NamedTuple):
    """A loss that is a function of one positive and of statistics of all pairs of its anchor.

    It is like an `AnchorLoss` for each positive of the anchor, whose distance all functions take as
    their data. The rules for derivatives are the same. It takes a pass over the pairs for every
    `positives_per_pass` rows of the largest class.
    """

    loss: Callable[..., Mean]
    statistics: tuple[Any, ...]
    distance: Callable[..., jax.Array] = cosine
    """The distance that is measured unless the caller gives another."""
    combine: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    """A function from the vectors of anchor and positive to a vector that replaces the
    anchor in distances to the other rows. Its statistics must select negative pairs alone."""
    positive_distance: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    """The distance of anchor and positive, by default that of all pairs."""
    positives_per_pass: int = 4
    """The number of positives of an anchor that share a pass; 1 where `combine` is given."""
    fixed: bool = False
    """True if the formula holds for that distance alone."""
    check_distance: Callable[[Distance], None] | None = None
    """Raises ValueError for a distance that does not fit, as that of an `AnchorLoss` does."""


class ProxyLoss(NamedTuple):
    """A loss of embeddings and the proxies of classes, for `contrastive_jax.proxy_loss`."""

    loss: AnchorLoss
    anchors: Literal["embeddings", "proxies"] = "embeddings"
    row_loss: Callable[[jax.Array, jax.Array], Mean] | None = None
    """The same loss as a `CentersLoss`, which is faster for up to a few thousand proxies."""
    by_cosine: bool = False
    """True for a loss of cosine distances in whose statistics the digits of a small distance do not
    count, so that one matrix product gives them."""


class CentersLoss(NamedTuple):
    """A loss of an embedding and several centres of each class, for `contrastive_jax.proxy_loss`.

    `loss` takes the cosines of the embedding with all centres `[C, K]` and its class. Counts have
    no derivative.
    """

    loss: Callable[[jax.Array, jax.Array], Mean]

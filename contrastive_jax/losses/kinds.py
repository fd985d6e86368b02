"""Types of losses of an anchor and of proxies."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax

from contrastive_jax.distances import cosine


class Mean(NamedTuple):
    """The contribution of an anchor to a mean: the sum of values over the sum of counts."""

    value: Any
    count: Any
    active: Any = None
    """The count of terms that are not 0, for `reduction="active"`. By default it is `count` where
    `value` is not 0."""


class AnchorLoss(NamedTuple):
    """A loss that is a function of statistics of all pairs of an anchor.

    Each function of `statistics` takes the distance and the label of one pair (0 similar, 1
    dissimilar), the data of the anchor where there are any, and the results of the functions before
    it. It returns a tree of `contrastive_jax.statistics`. `loss` takes the data and the results of
    one anchor and returns a `Mean`, or a tuple of them whose sum is the loss of the batch.

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
    """The distance that is measured where the caller gives none."""
    fixed: bool = False
    """True if the formula holds for that distance alone."""
    needs: tuple[str, ...] = ()
    """Descriptions of the data, for errors."""


class TripleLoss(NamedTuple):
    """A loss that is a function of one positive and of statistics of all pairs of its anchor.

    It is like an `AnchorLoss` for each positive of the anchor, whose distance all functions take as
    their data. The rules for derivatives are the same. It takes a pass over the pairs for every
    `at_once` rows of the largest class.
    """

    loss: Callable[..., Mean]
    statistics: tuple[Any, ...]
    distance: Callable[..., jax.Array] = cosine
    """The distance that is measured where the caller gives none."""
    joined: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    """A function from the vectors of anchor and positive to a vector that takes the place of the
    anchor in distances to the other rows. Its statistics must select negative pairs alone."""
    to_positive: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    """The distance of anchor and positive, by default that of all pairs."""
    at_once: int = 4
    """The number of positives of an anchor that share a pass; 1 where `joined` is given."""
    fixed: bool = False
    """True if the formula holds for that distance alone."""


class ProxyLoss(NamedTuple):
    """A loss of embeddings and the proxies of classes, for `contrastive_jax.proxy_loss`."""

    loss: AnchorLoss
    anchors: Literal["embeddings", "proxies"] = "embeddings"
    of_row: Callable[[jax.Array, jax.Array], Mean] | None = None
    """The same loss as a `CentersLoss`, which is faster for up to a few thousand proxies."""


class CentersLoss(NamedTuple):
    """A loss of an embedding and several centres of each class, for `contrastive_jax.proxy_loss`.

    `loss` takes the cosines of the embedding with all centres `[C, K]` and its class. Counts have
    no derivative.
    """

    loss: Callable[[jax.Array, jax.Array], Mean]

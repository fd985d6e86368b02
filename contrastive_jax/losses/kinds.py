"""Losses that are made of what an anchor keeps of its pairs."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax

from contrastive_jax.distances import cosine


class Mean(NamedTuple):
    """What an anchor adds to a mean: the batch has the sum of values over the sum of counts."""

    value: Any
    count: Any
    active: Any = None
    """Count of what is not 0, for the mean over that; `count` where `value` is not 0 by default."""


class AnchorLoss(NamedTuple):
    """A loss by what an anchor keeps of its pairs; the functions in it are of one pair or anchor.

    Each function of `statistics` takes a distance, a label (0 similar, 1 dissimilar), the data of
    the anchor where there is any, and the results of the functions before it; it returns a tree of
    `contrastive_jax.statistics`. `loss` takes data and results and returns a `Mean`, or a tuple of
    them, of which the batch has the sum.

    Every function takes a walk over the pairs. A later one may depend on data and on earlier ones;
    derivatives by these are taken in sums. A log-sum-exp or an extreme may depend on them too, in
    which pairs it is of, but a value that has a derivative by them is refused.

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
    """Where the caller names none."""
    fixed: bool = False
    """Whether the formula is of that distance alone."""
    needs: tuple[str, ...] = ()
    """What the data are, for errors."""


class TripleLoss(NamedTuple):
    """A loss of an anchor, one of its positives, and what the anchor keeps of its pairs.

    As `AnchorLoss`, but for each positive of the anchor, whose distance all functions know as their
    datum, with what is said there of derivatives. It takes as many walks as the largest class has
    rows, `at_once` of them together.
    """

    loss: Callable[..., Mean]
    statistics: tuple[Any, ...]
    distance: Callable[..., jax.Array] = cosine
    """Where the caller names none."""
    joined: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    """From the vectors of anchor and positive to one whose distances from the other rows are taken
    in place of the anchor's. Its statistics must be of dissimilar pairs alone."""
    to_positive: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    """Distance of anchor and positive; by default as of all pairs."""
    at_once: int = 4
    """Positives of an anchor that share a walk; 1 where `joined` is given."""
    fixed: bool = False
    """Whether the formula is of that distance alone."""


class ProxyLoss(NamedTuple):
    """A loss of embeddings and the proxies of classes, for `contrastive_jax.proxy_loss`."""

    loss: AnchorLoss
    anchors: Literal["embeddings", "proxies"] = "embeddings"
    of_row: Callable[[jax.Array, jax.Array], Mean] | None = None
    """The same as a `CentersLoss`, which is quicker where there are not too many proxies."""


class CentersLoss(NamedTuple):
    """A loss of an embedding and several centres of each class, for `contrastive_jax.proxy_loss`.

    `loss` takes the cosines of the embedding with all centres `[C, K]` and its class. Counts have
    no derivative.
    """

    loss: Callable[[jax.Array, jax.Array], Mean]

"""All figures of an embedding on a test set, from embeddings and classes."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from contrastive_jax import distances
from contrastive_jax.data.draw import ClassIndex, draw_pairs, index_by_class
from contrastive_jax.evaluation.retrieval import retrieval
from contrastive_jax.evaluation.verification import best_threshold, verification


class Summary(NamedTuple):
    """Figures on test, and the test pairs they come from."""

    figures: dict[str, float]
    distances: np.ndarray
    labels: np.ndarray
    threshold: float


def summarize(
    validation: np.ndarray,
    validation_classes: np.ndarray,
    test: np.ndarray,
    test_classes: np.ndarray,
    *,
    distance: Callable[[jax.Array, jax.Array], jax.Array] = distances.euclidean,
    pairs: int = 50_000,
    seed: int = 0,
) -> Summary:
    """Verification and retrieval on test, with the threshold chosen on validation.

    Half of the pairs are similar and classes are balanced, in both sets; they depend on the seed
    alone. Retrieval ranks by the Euclidean distance.

    Args:
      validation: embeddings or flat images, `[N, D]`.
      validation_classes: `[N]` integers.
      test: `[M, D]`.
      test_classes: `[M]` integers.
      distance: between two rows, for verification.
      pairs: how many to draw from each set.
      seed: of the pairs.

    Returns:
      The figures of `verification` and `retrieval` in one dictionary, the distances and labels of
      the test pairs, and the threshold.

    Raises:
      ValueError: if a set has less than two classes or no class with two members.
    """
    threshold = best_threshold(
        *drawn_distances(validation, validation_classes, distance, pairs, seed)
    )
    between, labels = drawn_distances(test, test_classes, distance, pairs, seed)
    figures = verification(between, labels, threshold) | retrieval(test, test_classes)
    return Summary(figures, between, labels, threshold)


def drawn_distances(
    points: np.ndarray,
    classes: np.ndarray,
    distance: Callable[[jax.Array, jax.Array], jax.Array],
    pairs: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Distances of pairs drawn from a set, half of them similar, with classes balanced.

    Args:
      points: embeddings or flat images, `[N, D]`.
      classes: `[N]` integers.
      distance: between two rows.
      pairs: how many to draw, P.
      seed: of the pairs.

    Returns:
      Distances and labels (0 similar, 1 dissimilar), `[P]` each.

    Raises:
      ValueError: if the set has less than two classes or no class with two members.
    """
    index, rows = index_by_class(classes), jnp.asarray(points, jnp.float32)
    between, labels = _between_drawn(rows, index, distance, pairs, seed)
    return np.asarray(between), np.asarray(labels)


@partial(jax.jit, static_argnames=("distance", "pairs"))
def _between_drawn(
    rows: jax.Array,
    index: ClassIndex,
    distance: Callable[[jax.Array, jax.Array], jax.Array],
    pairs: int,
    seed: int,
) -> tuple[jax.Array, jax.Array]:
    i, j, labels = draw_pairs(jax.random.key(seed), index, pairs, 0.5)
    # A block at a time: the pairs of raw images would fill the memory of a small machine.
    between = jax.lax.map(
        lambda pair: distance(rows[pair[0]], rows[pair[1]]), (i, j), batch_size=1000
    )
    return between, labels

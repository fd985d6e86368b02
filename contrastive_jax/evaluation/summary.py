"""All metrics of an embedding on a test set, from embeddings and classes."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from contrastive_jax import distances
from contrastive_jax._engine.sharding import gathered
from contrastive_jax._host_arrays import checked_classes, split_mask
from contrastive_jax.checks import check_distance, check_seed
from contrastive_jax.data.draw import ClassIndex, draw_pairs, index_by_class
from contrastive_jax.evaluation._labelled import drawn_pairs
from contrastive_jax.evaluation._row_distances import row_distances
from contrastive_jax.evaluation.retrieval import retrieval
from contrastive_jax.evaluation.verification import best_threshold, verification
from contrastive_jax.labels.types import PairLabels


class Summary(NamedTuple):
    """Figures on test, and the test pairs they come from."""

    figures: dict[str, float]
    distances: np.ndarray
    labels: np.ndarray
    threshold: float


def summarize(
    validation: np.ndarray,
    validation_classes: Any,
    test: np.ndarray,
    test_classes: Any,
    *,
    distance: Callable[[jax.Array, jax.Array], jax.Array] = distances.euclidean,
    pairs: int = 50_000,
    seed: int = 0,
    labels: PairLabels | Callable[[Any, Any], Any] | None = None,
    queries: ArrayLike | None = None,
) -> Summary:
    """Computes verification and retrieval on test, with the threshold chosen on validation.

    Half of the pairs are positive and classes are balanced, in both sets; they depend on the seed
    alone. Retrieval ranks by the Euclidean distance. Rows of class -1 or of a masked class
    (`numpy.ma`) are ignored, whatever they hold.

    Args:
      validation: embeddings or flat images, `[N, D]`.
      validation_classes: integers, bools or strings, `[N]`; with `labels` the attributes of the
        rows, any tree of arrays `[N, ...]`.
      test: `[M, D]`.
      test_classes: the same of test, `[M]`.
      distance: between two rows, for verification.
      pairs: how many to draw from each set.
      seed: of the pairs, in [0, 2^32).
      labels: function of the attributes of two rows that returns 0 (similar), 1 (dissimilar) or
        -1 (ignored), as in `contrastive_jax.all_pairs_loss`; pairs are then drawn as
        `drawn_distances` draws them.
      queries: mask of the test rows that are queries, `[M]`; the others are the gallery, in which
        queries are ranked. By default every row is a query and ranks all others.

    Returns:
      The figures of `verification` and `retrieval` in one dictionary, the distances and labels of
      the test pairs, and the threshold.

    Raises:
      ValueError: if a set has less than two classes or no class with two members, classes do not
        fit, `distance` is not a function, the seed is out of its range, or a row that counts is
        masked, not finite or out of the range of float32.

    Example:
      >>> import numpy as np
      >>> from contrastive_jax.evaluation.summary import summarize
      >>> classes = np.arange(40) % 2
      >>> points = np.random.default_rng(0).normal(size=(40, 2)) + 10 * classes[:, None]
      >>> summary = summarize(points[:20], classes[:20], points[20:], classes[20:], pairs=100)
      >>> summary.figures["auc"], summary.figures["precision_at_1"]
      (1.0, 1.0)
    """
    threshold = best_threshold(
        *_drawn(
            ("validation", "validation_classes"),
            validation,
            validation_classes,
            distance,
            pairs,
            seed,
            labels,
        )
    )
    names = "test", "test_classes"
    between, drawn = _drawn(names, test, test_classes, distance, pairs, seed, labels)
    figures = verification(between, drawn, threshold)
    figures |= retrieval(*by_role(test, test_classes, queries), labels=labels)
    return Summary(figures, between, drawn, threshold)


def by_role(points: np.ndarray, classes: Any, queries: ArrayLike | None) -> tuple[Any, ...]:
    """Returns the arguments of `retrieval` for a set of queries and a gallery.

    Args:
      points: `[N, D]`.
      classes: classes or attributes of the rows, a tree of `[N, ...]`.
      queries: mask of the queries, `[N]`; None where every row is a query and ranks all others.

    Returns:
      Points and classes of the queries, and where there is a mask those of the gallery.

    Raises:
      ValueError: if the mask is not of booleans `[N]`.

    Example:
      >>> import numpy as np
      >>> from contrastive_jax.evaluation.retrieval import retrieval
      >>> from contrastive_jax.evaluation.summary import by_role
      >>> points, classes = np.array([[0.0], [0.1], [5.0], [5.2]]), np.array([0, 0, 1, 1])
      >>> queries = np.array([True, False, True, False])
      >>> retrieval(*by_role(points, classes, queries))["precision_at_1"]
      1.0
    """
    if queries is None:
        return points, classes
    mask = np.asarray(queries)
    if mask.shape != (len(points),) or mask.dtype != bool:
        raise ValueError(
            f"queries must be a mask of booleans [{len(points)}], got {mask.dtype} "
            f"{list(mask.shape)}"
        )

    def rows(where: np.ndarray) -> tuple[Any, Any]:
        return points[where], jax.tree.map(lambda leaf: leaf[where], classes)

    return *rows(mask), *rows(~mask)


def drawn_distances(
    points: np.ndarray,
    classes: Any,
    distance: Callable[[jax.Array, jax.Array], jax.Array],
    pairs: int,
    seed: int,
    *,
    labels: PairLabels | Callable[[Any, Any], Any] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Computes distances of pairs drawn from a set, half of them positive, with classes balanced.

    Args:
      points: embeddings or flat images, `[N, D]`.
      classes: integers, bools or strings, `[N]`; rows of class -1 or of a masked class are ignored.
        With `labels` the attributes of the rows: any tree of arrays `[N, ...]`.
      distance: between two rows.
      pairs: how many to draw, P.
      seed: of the pairs, in [0, 2^32).
      labels: function of the attributes of two rows that returns 0 (similar), 1 (dissimilar) or
        -1 (ignored). Every row that has a similar row is then as likely to be the first of a
        positive pair, and every row similar to it the second; negative pairs are drawn alike.

    Returns:
      Distances and labels (0 similar, 1 dissimilar), `[P]` each.

    Raises:
      ValueError: if the set has less than two classes or no class with two members, classes do not
        fit, `distance` is not a function, the seed is out of its range, or a row that counts is
        masked, not finite or out of the range of float32.

    Example:
      >>> import numpy as np
      >>> from contrastive_jax import distances
      >>> from contrastive_jax.evaluation.summary import drawn_distances
      >>> points, classes = np.array([[0.0], [0.0], [3.0], [3.0]]), np.array([0, 0, 1, 1])
      >>> between, labels = drawn_distances(points, classes, distances.euclidean, pairs=4, seed=0)
      >>> print(between, labels)
      [3. 0. 3. 0.] [1 0 1 0]
    """
    return _drawn(("points", "classes"), points, classes, distance, pairs, seed, labels)


def _drawn(
    names: tuple[str, str],
    points: np.ndarray,
    classes: Any,
    distance: Callable[[jax.Array, jax.Array], jax.Array],
    pairs: int,
    seed: int,
    labels: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """Does the same as `drawn_distances`, with the names of the arguments for errors."""
    check_distance(distance)
    check_seed(seed)
    array, unmasked = split_mask(points)
    if array.ndim != 2:
        raise ValueError(f"{names[0]} must be [N, D], got shape {array.shape}")
    if labels is None:
        checked, counts = checked_classes(names[1], classes, len(array))
        rows = np.flatnonzero(counts)
        if not len(rows):
            raise ValueError(f"{names[1]} leave no row: all {len(array)} are -1 or masked")
        index = index_by_class(checked[rows])
        embeddings = gathered(_in_float32(names[0], array[rows], unmasked[rows], rows))
        between, drawn = map(np.asarray, _between_drawn(embeddings, index, distance, pairs, seed))
    else:
        first, second, drawn = drawn_pairs(labels, classes, len(array), pairs, seed)
        rows = np.union1d(first, second)
        embeddings = gathered(_in_float32(names[0], array[rows], unmasked[rows], rows))
        i, j = np.searchsorted(rows, first), np.searchsorted(rows, second)
        between = np.asarray(row_distances(embeddings, i, j, distance))
    if not between.any() and (embeddings != embeddings[0]).any():
        raise ValueError(
            f"all distances of {names[0]} are 0 in float32, though the rows differ: they are too "
            f"small for {getattr(distance, '__name__', distance)}; multiply them by a larger number"
        )
    return between, drawn


def _in_float32(name: str, points: np.ndarray, unmasked: np.ndarray, rows: np.ndarray) -> jax.Array:
    """Checks that embeddings fit into float32, and converts them."""
    limits = np.finfo(np.float32)
    size = np.max(np.abs(points.astype(np.float64)), axis=1, initial=0)
    requirements = (
        (np.all(unmasked, axis=1), "free of masked entries (leave them out, or give class -1)"),
        (np.isfinite(size), "finite"),
        (size <= limits.max, f"at most {limits.max:.3g} in size, to fit float32"),
        ((size == 0) | (size >= limits.tiny), f"0 or at least {limits.tiny:.3g}, to fit float32"),
    )
    for valid, requirement in requirements:
        wrong = np.flatnonzero(~valid)
        if len(wrong):
            raise ValueError(
                f"{name} must be {requirement}: row {rows[wrong[0]]}, with {size[wrong[0]]:.3g}, "
                f"is not ({len(wrong)} of {len(rows)} rows)"
            )
    return jnp.asarray(points, jnp.float32)


@partial(jax.jit, static_argnames=("distance", "pairs"))
def _between_drawn(
    rows: jax.Array,
    index: ClassIndex,
    distance: Callable[[jax.Array, jax.Array], jax.Array],
    pairs: int,
    seed: int,
) -> tuple[jax.Array, jax.Array]:
    i, j, labels = draw_pairs(jax.random.key(seed), index, pairs, 0.5)
    return row_distances(rows, i, j, distance), labels

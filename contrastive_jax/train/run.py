"""A trained encoder, with all that it takes to use it."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from contrastive_jax.evaluation.calibration import Calibration, calibrate, probability
from contrastive_jax.evaluation.retrieval import Neighbours, nearest_neighbours
from contrastive_jax.evaluation.summary import drawn_distances
from contrastive_jax.evaluation.verification import best_threshold
from contrastive_jax.labels.types import PairLabels
from contrastive_jax.train.networks import Network, embed
from contrastive_jax.train.types import Weights


class Comparison(NamedTuple):
    """Pairs of images as an encoder compares them."""

    distance: np.ndarray
    """`[N]`, in the unit of the run's distance."""
    probability: np.ndarray
    """The probability that both are of the same class, `[N]`."""
    same: np.ndarray
    """True where the distance is at most the validated threshold, `[N]`."""


@dataclass(frozen=True)
class Run:
    """A trained encoder and how to use it; from `fit` or `load`.

    Example:
      >>> import contrastive_jax as cj
      >>> digits = cj.data.load("digits")
      >>> run = cj.train.fit(
      ...     cj.models.Linear, digits, cj.train.objective("contrastive"), steps=10, progress=False
      ... )
      >>> run = cj.load(run.folder)
      >>> run.embed(digits.test.images[:3]).shape
      (3, 64)
      >>> run.compare(digits.test.images[:3], digits.test.images[3:6]).same.shape
      (3,)
      >>> run.neighbours(digits.test.images[:10], k=2).indices.shape
      (10, 2)
    """

    def __repr__(self) -> str:
        """Shows where the run is stored and what it takes, without its weights."""
        where = "not stored" if self.folder is None else str(self.folder)
        return (
            f"Run({where}, images {list(self.image_shape)} {self.image_dtype}, "
            f"{len(self.class_names)} classes, threshold {self.threshold:.4g})"
        )

    network: Network
    weights: Weights
    """The weights that were best on validation."""
    image_shape: tuple[int, ...]
    """`(H, W, C)` of one image, or `(V,)` of one vector."""
    image_dtype: str
    """The dtype of images, whose pixels are given as they are in the data set."""
    class_names: tuple[str, ...]
    distance: Callable[[jax.Array, jax.Array], jax.Array]
    """Between two embeddings."""
    threshold: float
    """Two images are taken to be of one class if their distance is at most this, the threshold of
    the highest accuracy on validation."""
    calibration: Calibration
    """From distances to probabilities, fitted on pairs of validation."""
    folder: Path | None = None
    """The folder in which the run is stored."""

    def embed(self, images: ArrayLike, *, batch_size: int = 500) -> np.ndarray:
        """Embeds images.

        Args:
          images: `[N, H, W, C]`, or vectors `[N, V]`, of the shape and dtype that the encoder was
            trained on.
          batch_size: images to a call; the last batch is padded, so that one program serves all.

        Returns:
          Embeddings, `[N, D]`, float32.

        Raises:
          ValueError: if the images are of another shape or dtype, or there are none.
        """
        checked = self._checked("images", images)
        encode, weights = self.network.encode, self.weights
        return embed(encode, weights, checked, batch_size=batch_size)

    def compare(
        self, first: ArrayLike, second: ArrayLike, *, prior: float | None = None
    ) -> Comparison:
        """Compares pairs of images.

        Args:
          first: `[N, H, W, C]`.
          second: as many images.
          prior: share of pairs of one class where the encoder is used, in (0, 1); by default that
            of the calibration, one half.

        Returns:
          Distance, probability of one class, and verdict of each pair.

        Raises:
          ValueError: if the images are of another shape or dtype, or not equal in number.
        """
        a, b = self._checked("first", first), self._checked("second", second)
        if len(a) != len(b):
            raise ValueError(f"first and second must be as many images, got {len(a)} and {len(b)}")
        between = distances_of_rows(self.distance, self.embed(a), self.embed(b))
        likely = probability(self.calibration, between, prior)
        return Comparison(between, likely, between <= self.threshold)

    def neighbours(
        self, images: ArrayLike, k: int = 5, *, gallery: ArrayLike | None = None
    ) -> Neighbours:
        """Searches the nearest images, by the Euclidean distance of embeddings.

        Args:
          images: queries, `[N, H, W, C]`.
          k: neighbours of each.
          gallery: images `[M, H, W, C]` to search in; by default the queries themselves, of which
            none is its own neighbour.

        Returns:
          Indices into the gallery, nearest first, and their distances, `[N, k]` each.

        Raises:
          ValueError: if images are of another shape or dtype, or `k` is not from 1 to the number of
            images to choose from.
        """
        queries = self.embed(self._checked("images", images))
        references = None if gallery is None else self.embed(self._checked("gallery", gallery))
        return nearest_neighbours(queries, references, k=k)

    def _checked(self, name: str, images: ArrayLike) -> np.ndarray:
        """Checks that images are those for which the encoder was made."""
        expected = f"[N, {', '.join(map(str, self.image_shape))}]"
        noun = "vectors" if len(self.image_shape) == 1 else "images"
        if isinstance(images, str | Path):
            raise ValueError(
                f"{name} must be an array of {noun} {expected} {self.image_dtype}, got the path "
                f"{str(images)!r}: python -m experiments.embed embeds files, and "
                f"contrastive_jax.data.load reads a folder or a table, whose {noun} are "
                "data.test.images"
            )
        array = np.asarray(images)
        shape = list(array.shape)
        if array.shape[1:] != self.image_shape or array.ndim != len(self.image_shape) + 1:
            raise ValueError(
                f"{name} must be {expected}, the shape of the {noun} that the encoder was trained "
                f"on, got {shape}{_hint(array.shape, self.image_shape, name)}"
            )
        if np.dtype(self.image_dtype) == np.uint8 and array.dtype != np.uint8:
            raise ValueError(
                f"{name} must be uint8, pixels from 0 to 255, as the encoder was trained on; got "
                f"{array.dtype}: "
                + (
                    f"of pixels in [0, 1], give numpy.uint8(numpy.round(255 * {name}))"
                    if array.dtype.kind == "f"
                    else f"give {name}.astype(numpy.uint8), of pixels in that range"
                )
            )
        if np.dtype(self.image_dtype) != np.uint8 and array.dtype == np.uint8:
            raise ValueError(
                f"{name} must be {self.image_dtype}, as the encoder was trained on, got uint8"
            )
        return array


def _hint(shape: tuple[int, ...], expected: tuple[int, ...], name: str) -> str:
    """Says what may be wrong with the shape of images."""
    if shape == expected:
        noun = "vector" if len(expected) == 1 else "image"
        return f": for a single {noun} give {name}[None]"
    if len(shape) == 3 and (*shape[1:], 1) == expected:
        return f": for grey images without an axis of channels give {name}[..., None]"
    if len(shape) != 4 or len(expected) != 3:
        return ""
    rows, columns, channels = expected
    if shape[1:] == (channels, rows, columns):
        return f": the channels come last, as in numpy.moveaxis({name}, 1, -1)"
    if shape[1:3] == (rows, columns) and channels == 1:
        return ": the encoder takes grey images of one channel"
    if shape[1:3] == (rows, columns):
        return f": the encoder takes images of {channels} channels"
    return ""


@functools.partial(jax.jit, static_argnames="distance")
def _distances(distance: Callable[..., jax.Array], a: jax.Array, b: jax.Array) -> jax.Array:
    return jax.vmap(distance)(a, b)


def distances_of_rows(
    distance: Callable[[jax.Array, jax.Array], jax.Array], a: np.ndarray, b: np.ndarray
) -> np.ndarray:
    """Computes the distance of each row of one array to the same row of another.

    Example:
      >>> import numpy as np
      >>> from contrastive_jax import distances
      >>> from contrastive_jax.train.run import distances_of_rows
      >>> print(distances_of_rows(distances.euclidean, np.zeros((1, 2)), np.array([[3.0, 4.0]])))
      [5.]
    """
    return np.asarray(_distances(distance, jnp.asarray(a), jnp.asarray(b)))


def calibrated(
    distance: Callable[[jax.Array, jax.Array], jax.Array],
    embeddings: np.ndarray,
    classes: Any,
    *,
    pairs: int = 50_000,
    labels: PairLabels | None = None,
) -> tuple[float, Calibration]:
    """Chooses the threshold and fits the calibration on pairs of a validation set.

    Args:
      distance: between two embeddings.
      embeddings: `[N, D]`.
      classes: `[N]`; with `labels` a tree of attributes `[N, ...]`.
      pairs: number of pairs to draw, half of them positive.
      labels: of two rows, by which pairs are drawn in place of classes.

    Returns:
      The threshold of the highest accuracy, and the calibration.

    Example:
      >>> import numpy as np
      >>> from contrastive_jax import distances
      >>> from contrastive_jax.train.run import calibrated
      >>> points, classes = np.array([[0.0], [0.1], [3.0], [3.1]]), np.array([0, 0, 1, 1])
      >>> threshold, calibration = calibrated(distances.euclidean, points, classes, pairs=100)
      >>> 0.1 <= threshold < 2.9
      True
      >>> calibration.prior
      0.5
    """
    between, drawn = drawn_distances(embeddings, classes, distance, pairs, 0, labels=labels)
    return best_threshold(between, drawn), calibrate(between, drawn)

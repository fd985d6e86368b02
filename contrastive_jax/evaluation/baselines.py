"""Vectors of another model without a trained head: as they are, whitened, and by LDA."""

import warnings
from collections.abc import Callable

import numpy as np

from contrastive_jax._extras import needs

Transform = Callable[[np.ndarray], np.ndarray]

NAMES = ("raw pixels", "raw vectors", "PCA-whitened", "LDA")
"""The names of all baselines."""


def vector_baselines(
    vectors: np.ndarray,
    classes: np.ndarray | None = None,
    *,
    width: int,
    unit_length: bool = True,
) -> dict[str, Transform]:
    """Fits the maps that a trained head is compared with.

    Args:
      vectors: those that heads are trained on, `[N, D]`.
      classes: `[N]`, integers, -1 for vectors to ignore; None where there are no classes.
      width: entries of an embedding of the head, the most that the maps give.
      unit_length: whether the results are scaled to unit length, as those of the head are.

    Returns:
      Functions from vectors `[M, D]` to points `[M, K]` by name. These are `raw vectors` (K is D),
      `PCA-whitened` (`sklearn.decomposition.PCA` with `whiten`) and, where there are classes, `LDA`
      (`sklearn.discriminant_analysis.LinearDiscriminantAnalysis`), of one entry less than classes
      at most.

    Raises:
      ImportError: if scikit-learn is not installed.

    Example:
      >>> import numpy as np
      >>> from contrastive_jax.evaluation.baselines import vector_baselines
      >>> vectors, classes = np.random.default_rng(0).normal(size=(60, 8)), np.arange(60) % 3
      >>> maps = vector_baselines(vectors, classes, width=4)
      >>> {name: map(vectors).shape for name, map in maps.items()}
      {'raw vectors': (60, 8), 'PCA-whitened': (60, 4), 'LDA': (60, 2)}
    """
    with needs("train", __name__):
        from sklearn.decomposition import PCA
        from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    count, entries = vectors.shape
    # As many directions as vectors have about their mean; the others have no variance to divide by.
    whitened = PCA(min(width, entries, count - 1), whiten=True, random_state=0).fit(vectors)
    # Whitening would blow rounding up to the size of a direction in which vectors vary.
    variance = whitened.explained_variance_
    floor = np.finfo(np.float32).eps * entries * variance[0]
    rank = max(1, int(np.sum(variance > floor)))
    maps: dict[str, Transform] = {
        "raw vectors": np.asarray,
        "PCA-whitened": lambda points: whitened.transform(points)[:, :rank],
    }
    if classes is not None:
        labelled = np.flatnonzero(np.asarray(classes) >= 0)
        present = len(np.unique(classes[labelled]))
        lda = LinearDiscriminantAnalysis(n_components=min(width, entries, present - 1))
        with warnings.catch_warnings():
            # It drops directions in which vectors do not vary, and says so.
            warnings.filterwarnings("ignore", message="Variables are collinear")
            maps["LDA"] = lda.fit(vectors[labelled], classes[labelled]).transform

    def scaled(transform: Transform) -> Transform:
        def call(points: np.ndarray) -> np.ndarray:
            mapped = np.asarray(transform(points), np.float32)
            # A single entry has its sign alone left.
            if not unit_length or mapped.shape[1] == 1:
                return mapped
            length = np.linalg.norm(mapped, axis=1, keepdims=True)
            return np.asarray(mapped / np.maximum(length, 1e-12))

        return call

    return {name: scaled(transform) for name, transform in maps.items()}


def baselines(
    train: np.ndarray,
    classes: np.ndarray | None = None,
    *,
    width: int,
    unit_length: bool = True,
) -> dict[str, Transform]:
    """Returns what a trained encoder is compared with: raw pixels, or baselines of vectors.

    Args:
      train: images `[N, H, W, C]` or vectors `[N, D]` to train on.
      classes: `[N]`, as in `vector_baselines`.
      width: entries of an embedding.
      unit_length: whether embeddings, and so baselines of vectors, are of unit length.

    Returns:
      Functions from images, or vectors, to points by names out of `NAMES`.

    Example:
      >>> import numpy as np
      >>> from contrastive_jax.evaluation.baselines import baselines
      >>> images = np.zeros((4, 8, 8, 1), np.uint8)
      >>> [(name, embed(images).shape) for name, embed in baselines(images, width=64).items()]
      [('raw pixels', (4, 64))]
    """
    if train.ndim > 2:
        return {"raw pixels": lambda pixels: pixels.reshape(len(pixels), -1) / 255.0}
    return vector_baselines(train, classes, width=width, unit_length=unit_length)

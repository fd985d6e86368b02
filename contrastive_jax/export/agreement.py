"""Comparison of an exported encoder with the encoder, on images."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from contrastive_jax.export.programs import Encode

__all__ = ["Agreement", "verify"]

_BATCH = 256


class Agreement(NamedTuple):
    """The agreement of the embeddings of an artefact with those of the encoder."""

    images: int
    largest_difference: float
    """Largest absolute difference of an entry of an embedding."""
    pairs: int
    changed_verdicts: int
    """Pairs at the threshold, to within rounding, that only one of the two accepts."""


def verify(
    embed: Callable[[np.ndarray], Any],
    encode: Encode,
    params: Any,
    images: np.ndarray,
    *,
    distance: Callable[[jax.Array, jax.Array], jax.Array],
    threshold: float,
    bound: float = 1e-4,
) -> Agreement:
    """Checks that an artefact embeds images as the encoder does, and judges all their pairs alike.

    A pair is accepted when its distance is at most the threshold, as in
    `evaluation.verification`. Rounding may change the verdict on a pair whose distance is the
    threshold to within `bound`; these are counted.

    Args:
      embed: the artefact, from `export.from_stablehlo` or `export.from_onnx`.
      encode: from parameters and images `[B, ...]` to embeddings `[B, D]`.
      params: of the encoder.
      images: `[N, ...]`, at least two, such as those of test.
      distance: between two embeddings, such as `distances.euclidean`.
      threshold: of the distance.
      bound: largest difference that passes: of an entry of an embedding, relative to the largest
        entry where that is above 1, and of a distance to the threshold, relative to the threshold
        where that is above 1.

    Returns:
      The largest difference, and how many verdicts differ.

    Raises:
      ValueError: if an embedding or a verdict differs by more than that, or the images or the
        threshold are unfit.

    Example:
      >>> import numpy as np
      >>> from contrastive_jax import distances, export, models, train
      >>> from flax import nnx
      >>> encoder = train.network(models.MLP((8, 8, 1), width=2, hidden=(4,), rngs=nnx.Rngs(0)))
      >>> encode, params = encoder.encode, encoder.weights
      >>> embed = export.from_stablehlo(export.to_stablehlo(encode, params, (8, 8, 1)))
      >>> images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), np.uint8)
      >>> agreement = export.verify(
      ...     embed, encode, params, images, distance=distances.euclidean, threshold=0.5
      ... )
      >>> agreement.pairs, agreement.changed_verdicts
      (10, 0)
    """
    images = np.asarray(images)
    check_decision(images, threshold, bound)
    expected = embed_in_batches(jax.jit(functools.partial(encode, params)), images)
    return compare(embed, expected, images, distance=distance, threshold=threshold, bound=bound)


def check_decision(images: np.ndarray, threshold: float, bound: float) -> None:
    """Checks the arguments of `verify` that say which pairs are accepted, and how closely."""
    if not math.isfinite(threshold):
        raise ValueError(f"threshold must be a finite number, got {threshold}")
    if not bound > 0:
        raise ValueError(f"bound must be above 0, got {bound}")
    if images.ndim < 2 or len(images) < 2:
        raise ValueError(
            f"images must be at least two, to make a pair, got an array {list(images.shape)}"
        )


def embed_in_batches(embed: Callable[[np.ndarray], Any], images: np.ndarray) -> np.ndarray:
    """Embeds images `[N, ...]` in batches whose activations fit into any memory."""
    parts = [embed(images[start : start + _BATCH]) for start in range(0, len(images), _BATCH)]
    return np.concatenate([np.asarray(part, np.float32) for part in parts])


def compare(
    embed: Callable[[np.ndarray], Any],
    expected: np.ndarray,
    images: np.ndarray,
    *,
    distance: Callable[[jax.Array, jax.Array], jax.Array],
    threshold: float,
    bound: float,
) -> Agreement:
    """Does what `verify` does, given the embeddings `[N, D]` of the encoder."""
    actual = embed_in_batches(embed, images)
    if actual.shape != expected.shape:
        raise ValueError(
            f"the artefact gives embeddings {list(actual.shape)}, and the encoder "
            f"{list(expected.shape)}; export this encoder again"
        )
    difference = float(np.abs(actual - expected).max())
    allowed = bound * max(1.0, float(np.abs(expected).max()))
    if not difference <= allowed:  # NaN is refused too
        raise ValueError(
            f"embeddings of the artefact differ from those of the encoder by {difference:.3g}, "
            f"expected at most {allowed:.3g}; export this encoder again, or give a larger bound if "
            "one of them is computed in lower precision"
        )
    changed, farthest = _changed_verdicts(expected, actual, distance, threshold)
    if not farthest <= bound * max(1.0, abs(threshold)):
        raise ValueError(
            f"the artefact changes the verdict on {changed:,} pairs, one of them at a distance "
            f"{farthest:.3g} away from the threshold {threshold:g}; export this encoder again, or "
            "give a larger bound if one of them is computed in lower precision"
        )
    pairs = len(images) * (len(images) - 1) // 2
    return Agreement(len(images), difference, pairs, changed)


def _changed_verdicts(
    expected: np.ndarray,
    actual: np.ndarray,
    distance: Callable[[jax.Array, jax.Array], jax.Array],
    threshold: float,
) -> tuple[int, float]:
    """Counts the pairs with other verdicts, and gives their largest distance to the threshold."""

    @jax.jit
    def by_row(expected: jax.Array, actual: jax.Array) -> tuple[jax.Array, jax.Array]:
        others = jnp.arange(len(expected))
        to_all = jax.vmap(distance, in_axes=(None, 0))

        def compare(row: jax.Array) -> tuple[jax.Array, jax.Array]:
            before, after = to_all(expected[row], expected), to_all(actual[row], actual)
            differs = (before <= threshold) != (after <= threshold)
            differs &= others > row  # each pair once
            return differs.sum(), jnp.where(differs, jnp.abs(before - threshold), 0).max()

        # A row at a time, as the matrix of all pairs of a test set may not fit into memory.
        counts, farthest = jax.lax.map(compare, others)
        return counts.sum(), farthest.max()

    count, farthest = by_row(jnp.asarray(expected), jnp.asarray(actual))
    return int(count), float(farthest)

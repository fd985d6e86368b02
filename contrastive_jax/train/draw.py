"""Steps that draw their batches on the device, so that the host never waits.

Every device draws the global batch, which costs next to nothing, and takes its own share: the batch
depends on the seed and the step alone, not on the number of devices.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from contrastive_jax.data._given_pairs import draw_given_pairs, positives_first
from contrastive_jax.data.datasets import PairDataset
from contrastive_jax.data.draw import draw_balanced, draw_pairs, draw_rows_of_pairs
from contrastive_jax.train.keys import key_of_step
from contrastive_jax.train.types import (
    AXIS,
    Batch,
    Hyperparameters,
    IndexedPairs,
    Metrics,
    Pairs,
    PairSource,
    Source,
    Step,
    TrainState,
)


def draws_pairs(step: Step, batch_size: int, *, positive_fraction: float = 0.5) -> Step:
    """Makes the step that draws pairs with balanced classes.

    Args:
      step: the step on `Pairs`.
      batch_size: pairs in the global batch, a multiple of the number of devices.
      positive_fraction: share of positive pairs, where the hyperparameters of a call have none.

    Returns:
      `step(state, source, hyperparameters) -> (state, metrics)`.

    Raises:
      ValueError: when traced, if the batch can not be shared equally.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import train
      >>> from contrastive_jax.data import index_by_class
      >>> def share_of_positives(state, pairs, hyperparameters):
      ...     return state, jnp.mean(pairs.first_classes == pairs.second_classes)
      >>> step = train.draws_pairs(share_of_positives, batch_size=4)
      >>> classes = jnp.array([0, 0, 1, 1])
      >>> source = train.Source(jnp.zeros((4, 2, 2, 1)), classes, index_by_class(classes))
      >>> state = train.TrainState(jnp.int32(0), params=(), opt_state=())
      >>> device = train.parallel(step, "shard_map", jax.devices()[:1])
      >>> placed = device.replicate((state, source, train.Hyperparameters(seed=0)))
      >>> print(device.step(*placed)[1])
      0.5
    """

    def drawn(
        state: TrainState, source: Source, hyperparameters: Hyperparameters
    ) -> tuple[TrainState, Metrics]:
        positions = draw_pairs(
            key_of_step(hyperparameters.seed, state.step),
            source.by_class,
            batch_size,
            hyperparameters.loss.get("positive_fraction", positive_fraction),
        )
        i, j, _ = _share(positions, "pairs")
        images, classes = jnp.asarray(source.images), jnp.asarray(source.classes)
        pairs = Pairs(images[i], images[j], first_classes=classes[i], second_classes=classes[j])
        return step(state, pairs, hyperparameters)

    return drawn


def draws_classes(
    step: Step, classes: int, examples: int, *, repeat: bool = False, by_size: bool = False
) -> Step:
    """Makes the step that draws P classes and K examples of each.

    Args:
      step: the step on a `Batch`.
      classes: in a batch, P.
      examples: of each class, K; P times K a multiple of the number of devices.
      repeat: whether examples of a class with fewer than K are repeated; see `draw_balanced`.
      by_size: whether classes are drawn by size; see `draw_balanced`.

    Returns:
      `step(state, source, hyperparameters) -> (state, metrics)`.

    Raises:
      ValueError: when traced, if the batch can not be shared equally or the data has fewer classes.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import train
      >>> from contrastive_jax.data import index_by_class
      >>> def classes_of_batch(state, batch, hyperparameters):
      ...     return state, jnp.sort(batch.classes)
      >>> step = train.draws_classes(classes_of_batch, classes=2, examples=2)
      >>> classes = jnp.array([0, 0, 1, 1])
      >>> source = train.Source(jnp.zeros((4, 2, 2, 1)), classes, index_by_class(classes))
      >>> state = train.TrainState(jnp.int32(0), params=(), opt_state=())
      >>> device = train.parallel(step, "shard_map", jax.devices()[:1])
      >>> placed = device.replicate((state, source, train.Hyperparameters(seed=0)))
      >>> print(device.step(*placed)[1])
      [0 0 1 1]
    """

    def drawn(
        state: TrainState, source: Source, hyperparameters: Hyperparameters
    ) -> tuple[TrainState, Metrics]:
        key = key_of_step(hyperparameters.seed, state.step)
        positions, classes_of_rows = _share(
            draw_balanced(key, source.by_class, classes, examples, repeat=repeat, by_size=by_size),
            "images",
        )
        images, attributes = jax.tree.map(
            lambda leaf: jnp.asarray(leaf)[positions], (source.images, source.attributes)
        )
        return step(state, Batch(images, classes_of_rows, attributes), hyperparameters)

    return drawn


def draws_views(step: Step, images: int, views: int = 2) -> Step:
    """Makes the step that draws images, with replacement, and takes several views of each.

    The class of a view is the row of its image, so that views of one image are similar and those of
    different images dissimilar. It is for a step that augments, which changes each view by a key of
    its own.

    Args:
      step: the step on a `Batch`.
      images: in a batch, each once for every view; their product a multiple of the devices.
      views: of each image.

    Returns:
      `step(state, source, hyperparameters) -> (state, metrics)`.

    Raises:
      ValueError: when traced, if the batch can not be shared equally.

    References:
      Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, 2020
      <https://arxiv.org/abs/2002.05709>.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import train
      >>> from contrastive_jax.data import index_by_class
      >>> def views_of_image(state, batch, hyperparameters):
      ...     return state, jnp.sum(batch.classes == batch.classes[0])
      >>> step = train.draws_views(views_of_image, images=1, views=2)
      >>> classes = jnp.array([0, 0, 1, 1])
      >>> source = train.Source(jnp.zeros((4, 2, 2, 1)), classes, index_by_class(classes))
      >>> state = train.TrainState(jnp.int32(0), params=(), opt_state=())
      >>> device = train.parallel(step, "shard_map", jax.devices()[:1])
      >>> placed = device.replicate((state, source, train.Hyperparameters(seed=0)))
      >>> print(device.step(*placed)[1])
      2
    """

    def drawn(
        state: TrainState, source: Source, hyperparameters: Hyperparameters
    ) -> tuple[TrainState, Metrics]:
        key = key_of_step(hyperparameters.seed, state.step)
        rows = jax.random.randint(key, (images,), 0, len(source.images))
        (rows,) = _share((jnp.repeat(rows, views),), "images")
        return step(state, Batch(jnp.asarray(source.images)[rows], rows), hyperparameters)

    return drawn


def draws_given_pairs(step: Step, batch_size: int, images: int, *, balanced: bool = True) -> Step:
    """Makes the step that draws from given pairs, with replacement.

    Args:
      step: the step on `IndexedPairs`.
      batch_size: pairs in the global batch, a multiple of the number of devices.
      images: different images that a batch may have, from `most_images`, rounded up to a multiple
        of the number of devices. Where a batch has fewer, its first image is encoded again.
      balanced: whether positive and negative pairs are drawn equally often. Otherwise every pair
        is as likely.

    Returns:
      `step(state, source, hyperparameters) -> (state, metrics)`, with a `PairSource`.

    Raises:
      ValueError: when traced, if the batch can not be shared equally.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> from contrastive_jax import train
      >>> from contrastive_jax.data import GivenPairs, PairDataset
      >>> def images_of_batch(state, pairs, hyperparameters):
      ...     return state, pairs.images
      >>> step = train.draws_given_pairs(images_of_batch, batch_size=8, images=3)
      >>> pairs = GivenPairs(np.array([0, 0]), np.array([1, 2]), np.array([1, 0]))
      >>> data = PairDataset("two", np.array([[1.0], [2.0], [3.0]]), pairs, pairs, pairs)
      >>> state = train.TrainState(jnp.int32(0), params=(), opt_state=())
      >>> device = train.parallel(step, "shard_map", jax.devices()[:1])
      >>> source = train.pair_source(data)
      >>> placed = device.replicate((state, source, train.Hyperparameters(seed=0)))
      >>> print(device.step(*placed)[1].ravel())
      [1. 2. 3.]
    """

    def drawn(
        state: TrainState, source: PairSource, hyperparameters: Hyperparameters
    ) -> tuple[TrainState, Metrics]:
        key = key_of_step(hyperparameters.seed, state.step)
        members = jnp.asarray(source.left), jnp.asarray(source.right)
        rows, encoded, left, right = draw_given_pairs(
            key, *members, source.positives, batch_size, images, balanced=balanced
        )
        labels = jnp.asarray(source.labels)[rows]
        weights = () if source.weights is None else (jnp.asarray(source.weights)[rows],)
        pairs = _share((left, right, labels, *weights), "pairs")
        (encoded,) = _share((encoded,), "images")
        return step(
            state, IndexedPairs(jnp.asarray(source.images)[encoded], *pairs), hyperparameters
        )

    return drawn


def pair_source(data: PairDataset) -> PairSource:
    """Makes the source of the training pairs of a data set.

    Example:
      >>> import numpy as np
      >>> from contrastive_jax.data import GivenPairs, PairDataset
      >>> from contrastive_jax.train import pair_source
      >>> pairs = GivenPairs(np.array([0, 0]), np.array([1, 2]), np.array([1, 0]))
      >>> source = pair_source(PairDataset("two", np.zeros((3, 8, 8, 1)), pairs, pairs, pairs))
      >>> print(source.labels, source.right, source.positives)
      [0 1] [2 1] 1
    """
    pairs, positives = positives_first(data.train)
    return PairSource(
        data.images, pairs.left, pairs.right, pairs.labels, np.asarray(positives), pairs.weights
    )


def most_images(
    source: PairSource, batch_size: int, *, seeds: Sequence[int], steps: int, balanced: bool
) -> int:
    """Counts the different images of the batch that has the most of them.

    Args:
      source: the pairs.
      batch_size: pairs in a batch.
      seeds: of the trainings.
      steps: of each training.
      balanced: as in `draws_given_pairs`.

    Returns:
      The number, at most twice the batch size.

    Example:
      >>> import numpy as np
      >>> from contrastive_jax.data import GivenPairs, PairDataset
      >>> from contrastive_jax.train import pair_source
      >>> from contrastive_jax.train.draw import most_images
      >>> pairs = GivenPairs(np.array([0, 0]), np.array([1, 2]), np.array([1, 0]))
      >>> source = pair_source(PairDataset("two", np.zeros((3, 8, 8, 1)), pairs, pairs, pairs))
      >>> most_images(source, batch_size=100, seeds=[0], steps=10, balanced=True)
      3
    """
    if isinstance(jnp.zeros(()), jax.core.Tracer):
        # A traced caller infers shapes alone, for which the most that is possible will do.
        return min(2 * batch_size, len(source.images))
    counts = [
        _most_images(
            np.uint32(seed),
            source.left,
            source.right,
            source.positives,
            batch_size=batch_size,
            steps=steps,
            balanced=balanced,
        )
        for seed in dict.fromkeys(seeds)
    ]
    return max(map(int, counts))


@partial(jax.jit, static_argnames=("batch_size", "steps", "balanced"))
def _most_images(
    seed: jax.Array,
    left: jax.Array,
    right: jax.Array,
    positives: jax.Array,
    *,
    batch_size: int,
    steps: int,
    balanced: bool,
) -> jax.Array:
    def count(step: jax.Array) -> jax.Array:
        key = key_of_step(seed, step)
        rows = draw_rows_of_pairs(key, positives, len(left), batch_size, balanced=balanced)
        members = jnp.sort(jnp.concatenate([left[rows], right[rows]]))
        return 1 + jnp.sum(members[1:] != members[:-1])

    return jnp.max(jax.lax.map(count, jnp.arange(steps), batch_size=min(steps, 256)))


def _share(drawn: tuple[jax.Array, ...], kind: str) -> tuple[jax.Array, ...]:
    """Returns the part of a batch that this device takes."""
    devices = jax.lax.axis_size(AXIS)
    share, remainder = divmod(len(drawn[0]), devices)
    if remainder:
        raise ValueError(
            f"batch_size must be a multiple of the number of devices, got {len(drawn[0])} {kind} "
            f"for {devices} devices"
        )
    start = jax.lax.axis_index(AXIS) * share
    return tuple(jax.lax.dynamic_slice_in_dim(x, start, share) for x in drawn)

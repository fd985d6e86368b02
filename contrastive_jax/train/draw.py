"""Steps that draw their batches on the device, so that the host never waits.

Every device draws the global batch, which costs next to nothing, and takes its own share: the batch
depends on the seed and the step alone, not on the number of devices.
"""

import jax
import jax.numpy as jnp

from contrastive_jax.data.draw import draw_balanced, draw_pairs
from contrastive_jax.train.steps import key_of_step
from contrastive_jax.train.types import (
    AXIS,
    Batch,
    Hyperparameters,
    Metrics,
    Pairs,
    Source,
    Step,
    TrainState,
)


def draws_pairs(step: Step, batch_size: int, *, similar_fraction: float = 0.5) -> Step:
    """Makes the step that draws pairs with balanced classes.

    Args:
      step: the step on `Pairs`.
      batch_size: pairs in the global batch, a multiple of the number of devices.
      similar_fraction: share of similar pairs, where it is not among the hyperparameters of a call.

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
            hyperparameters.loss.get("similar_fraction", similar_fraction),
        )
        i, j, _ = _share(positions, "pairs")
        images, classes = jnp.asarray(source.images), jnp.asarray(source.classes)
        pairs = Pairs(images[i], images[j], first_classes=classes[i], second_classes=classes[j])
        return step(state, pairs, hyperparameters)

    return drawn


def draws_classes(step: Step, classes: int, examples: int) -> Step:
    """Makes the step that draws P classes and K examples of each.

    Args:
      step: the step on a `Batch`.
      classes: in a batch, P.
      examples: of each class, K; P times K a multiple of the number of devices.

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
            draw_balanced(key, source.by_class, classes, examples), "images"
        )
        images = jnp.asarray(source.images)
        return step(state, Batch(images[positions], classes_of_rows), hyperparameters)

    return drawn


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

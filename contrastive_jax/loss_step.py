"""The training step of a loss of a whole batch, with parameters and a memory of its own."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from contrastive_jax import distances, memory
from contrastive_jax.all_pairs import all_pairs_sums
from contrastive_jax.data.augment import Augment
from contrastive_jax.training import (
    AXIS,
    Batch,
    BatchStep,
    Encode,
    Metrics,
    Numbers,
    Params,
    TrainState,
    keys_of_rows,
    updated,
)


class Learned(NamedTuple):
    """All parameters of a training: of the encoder, and of the loss (proxies, boundaries)."""

    encoder: Params
    loss: Params


def make_learned_optimizer(
    encoder: optax.GradientTransformation, loss: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Optimizes encoder and loss separately, each with its own learning rate.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from contrastive_jax.loss_step import Learned, make_learned_optimizer
      >>> optimizer = make_learned_optimizer(optax.sgd(0.1), optax.sgd(1.0))
      >>> params = Learned(encoder=jnp.ones(2), loss=jnp.ones(2))
      >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
      >>> print(updates.encoder, updates.loss)
      [-0.1 -0.1] [-1. -1.]
    """
    return optax.partition(
        {"encoder": encoder, "loss": loss},
        lambda params: Learned(
            jax.tree.map(lambda _: "encoder", params.encoder),
            jax.tree.map(lambda _: "loss", params.loss),
        ),
    )


def make_loss_step(
    encode: Encode,
    optimizer: optax.GradientTransformation,
    value_of: Callable[..., jax.Array],
    *,
    distance: Callable[..., jax.Array] = distances.euclidean,
    augment: Augment | None = None,
    microbatches: int = 1,
    max_age: int | None = None,
) -> BatchStep:
    """Makes the step of a loss of the batch, of which each device along `AXIS` holds a share.

    The parameters of the state are `Learned`. Where the state has a memory
    (`contrastive_jax.memory`), the loss against it is added to that of the batch, and the batch is
    pushed into it.

    Args:
      encode: from parameters and images to embeddings.
      optimizer: applied to the gradient by `Learned` parameters.
      value_of: from embeddings `[B, D]`, classes `[B]`, parameters of the loss, references with
        their classes or None, and the options among `Numbers`, to the loss of the global batch over
        `AXIS`.
      distance: of the means that are recorded.
      augment: from a key and an image to an image.
      microbatches: parts that a device encodes its images in, one after another.
      max_age: steps after which what the memory holds is ignored.

    Returns:
      `step(state, batch, numbers) -> (state, metrics)`; metrics are `loss`, `similar_distance`,
      `dissimilar_distance` and `gradient_norm`.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> import optax
      >>> from contrastive_jax import losses, proxy_loss, training
      >>> from contrastive_jax.loss_step import Learned, make_loss_step
      >>> from contrastive_jax.parallel import parallel
      >>> def encode(params, images):
      ...     return images.reshape(len(images), -1) @ params
      >>> def value_of(embeddings, classes, proxies, references, options):
      ...     loss = losses.normalized_softmax()
      ...     return proxy_loss(embeddings, classes, proxies, loss=loss, axis_name=training.AXIS)
      >>> optimizer = optax.sgd(0.1)
      >>> step = make_loss_step(encode, optimizer, value_of)
      >>> device = parallel(step, "shard_map", jax.devices()[:1])
      >>> state = training.init_state(Learned(jnp.ones((4, 2)), jnp.eye(2)), optimizer)
      >>> images = np.arange(16.0, dtype=np.float32).reshape(4, 2, 2, 1)
      >>> batch = training.Batch(images, np.array([0, 0, 1, 1]))
      >>> placed = device.replicate((state, batch, training.Numbers(margin=1.0, seed=0)))
      >>> state, metrics = device.step(*placed)
      >>> print(sorted(metrics))
      ['dissimilar_distance', 'gradient_norm', 'loss', 'similar_distance']
    """

    def step(state: TrainState, batch: Batch, numbers: Numbers) -> tuple[TrainState, Metrics]:
        images, classes = map(jnp.asarray, batch)
        share = len(classes)
        if share % microbatches:
            raise ValueError(
                f"the images of a device must be a multiple of microbatches, got {share} images "
                f"and {microbatches} microbatches"
            )
        if augment is not None:
            images = jax.vmap(augment)(keys_of_rows(numbers.seed, state.step, share)[:, 0], images)
        parts = images.reshape(microbatches, -1, *images.shape[1:])
        others = None
        if state.memory:
            others = memory.references(state.memory, state.step, max_age=max_age, axis_name=AXIS)

        def value_and_embeddings(params: Learned) -> tuple[jax.Array, jax.Array]:
            embeddings = jax.lax.map(partial(encode, params.encoder), parts)
            embeddings = embeddings.reshape(share, -1)
            value = value_of(embeddings, classes, params.loss, None, numbers.options)
            if others is not None:
                value += value_of(embeddings, classes, params.loss, others, numbers.options)
            return value, embeddings

        # Each device has the gradient of its own rows alone, so parameters take the sum.
        gradient_of = jax.value_and_grad(value_and_embeddings, has_aux=True)
        (value, embeddings), gradient = gradient_of(state.params)
        sums = all_pairs_sums(
            jax.lax.stop_gradient(embeddings),
            classes,
            loss=_distance_itself,
            distance=distance,
            axis_name=AXIS,
            refine=False,
        )
        kinds = {
            "similar": sums.pairs[0],
            "dissimilar": sums.pairs[1],
            "similar_distance": sums.loss[0],
            "dissimilar_distance": sums.loss[1],
        }
        after, metrics = updated(optimizer, state, value, jax.lax.psum(gradient, AXIS), kinds)
        if state.memory:
            kept = memory.push(state.memory, embeddings, classes, state.step, axis_name=AXIS)
            after = after._replace(memory=kept)
        return after, metrics

    return step


def _distance_itself(distance: jax.Array, label: jax.Array) -> jax.Array:
    return distance

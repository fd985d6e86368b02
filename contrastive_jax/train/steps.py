"""The training step, written once against an axis name.

`jax.pmap` and `jax.shard_map` (`contrastive_jax.train.devices`) and `jax.vmap(axis_name=AXIS)` all
run this step, and agree.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from contrastive_jax import memory
from contrastive_jax._engine.sharding import axes_of, varying
from contrastive_jax.data.augment import Augment
from contrastive_jax.train.keys import dropout_key, keys_of_rows
from contrastive_jax.train.networks import Network
from contrastive_jax.train.objectives import Objective
from contrastive_jax.train.types import (
    AXIS,
    Batch,
    Hyperparameters,
    IndexedPairs,
    Metrics,
    Pairs,
    Params,
    Step,
    TrainState,
)


def init_state(
    network: Network,
    optimizer: optax.GradientTransformation,
    loss_params: Any = (),
    *,
    memory: Any = (),
) -> TrainState:
    """Makes the state before the first step.

    Args:
      network: with the initial weights of the encoder.
      optimizer: of `Params`.
      loss_params: those of the loss, from `Objective.init`.
      memory: from `contrastive_jax.memory.empty`, for an objective that compares with earlier
        batches.

    Returns:
      The state.

    Example:
      >>> from contrastive_jax import models
      >>> from contrastive_jax.train import init_state, make_optimizer, network
      >>> encoder = network(models.MLP, (8, 8, 1))
      >>> state = init_state(encoder, make_optimizer(1e-3, steps=100))
      >>> print(state.step)
      0
    """
    params = Params(network.weights.params, loss_params)
    return TrainState(
        jnp.zeros((), jnp.int32),
        params,
        optimizer.init(params),
        memory,
        network.weights.averages,
    )


def make_step(
    network: Network,
    optimizer: optax.GradientTransformation,
    objective: Objective,
    *,
    augment: Augment | None = None,
    microbatches: int = 1,
    remat: bool = True,
    max_age: int | None = None,
) -> Step:
    """Makes the training step of an objective, of whose batch each device along `AXIS` has a share.

    With several microbatches a device encodes its images part by part, so that the activations of
    one part are in memory at a time. For an objective of given pairs, whose loss is a mean over
    pairs, this is gradient accumulation. Every other objective compares embeddings of all parts:
    their embeddings are computed first, and each part is encoded a second time in the backward pass
    (GradCache). The gradient is that of the whole batch. Only batch normalisation, which uses the
    statistics of each part, makes a difference.

    Args:
      network: the encoder.
      optimizer: of `Params`, applied to the gradient of the objective of the global batch.
      objective: from `contrastive_jax.train.objectives`.
      augment: from a key and an image to an image, applied to every image.
      microbatches: number of parts in which a device encodes its images.
      remat: whether a part is encoded again in the backward pass, as described above. Without it,
        activations of all parts stay in memory.
      max_age: steps after which the memory of earlier batches ignores an embedding.

    Returns:
      `step(state, batch, hyperparameters) -> (state, metrics)`. The batch is `Pairs`, `Batch` or
      `IndexedPairs`, as the objective takes. Metrics are those of the global batch before the
      update: `loss`, `gradient_norm`, `positive_distance` and `negative_distance` (means; NaN
      where the batch has no such pair), and for pair losses `active_fraction` (negative pairs
      whose loss is not 0).

    Raises:
      ValueError: when the step is traced, if the batch is not one that the objective takes or does
        not divide into microbatches.

    References:
      Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, 2021
      <https://arxiv.org/abs/2101.06983>: GradCache.

    Example:
      >>> import jax
      >>> import numpy as np
      >>> from contrastive_jax import models, train
      >>> encoder = train.network(models.MLP, (2, 2, 1))
      >>> optimizer = train.make_optimizer(1e-2, steps=100)
      >>> step = train.make_step(encoder, optimizer, train.objective("contrastive", margin=1.0))
      >>> device = train.parallel(step, "shard_map", jax.devices()[:1])
      >>> state = device.replicate(train.init_state(encoder, optimizer))
      >>> images = np.arange(16.0, dtype=np.float32).reshape(4, 2, 2, 1)
      >>> batch = device.replicate(train.Batch(images, np.array([0, 0, 1, 1])))
      >>> hyperparameters = device.replicate(train.Hyperparameters(seed=0))
      >>> state, metrics = device.step(state, batch, hyperparameters)
      >>> print(state.step, sorted(metrics)[:3])
      1 ['active_fraction', 'gradient_norm', 'loss']
    """

    def step(
        state: TrainState, batch: Pairs | Batch | IndexedPairs, hyperparameters: Hyperparameters
    ) -> tuple[TrainState, Metrics]:
        objective.check_batch(batch)
        batch = jax.tree.map(jnp.asarray, batch)
        share = len(batch[0])
        unit = microbatches * objective.group
        if share % unit:
            kind = "pairs" if isinstance(batch, Pairs) else "images"
            expected, got = "microbatches", f"{share} {kind} and {microbatches} microbatches"
            if objective.group > 1:
                expected, got = "microbatches times group", f"{got} of groups of {objective.group}"
            raise ValueError(f"the {kind} of a device must be a multiple of {expected}, got {got}")
        if augment is not None:
            keys = keys_of_rows(hyperparameters.seed, state.step, share)
            batch = _augmented(augment, keys, batch)
        options = dict(objective.hyperparameters) | dict(hyperparameters.loss)
        key = dropout_key(hyperparameters.seed, state.step)
        keys = jax.random.split(key, microbatches)
        # Of indexed pairs the images alone are encoded in parts.
        divided = batch if isinstance(batch, Pairs) else batch.images
        parts = jax.tree.map(lambda x: x.reshape(microbatches, -1, *x.shape[1:]), divided)
        references = None
        if state.memory:
            if not objective.takes_memory:
                raise ValueError(
                    "an objective of given pairs or of proxies compares with no earlier batches: "
                    "leave memory out of the state"
                )
            references = memory.references(
                state.memory, state.step, max_age=max_age, axis_name=AXIS
            )
        gradient_of = _accumulated if objective.separable else _cached
        # With its checks, `jax.shard_map` would add up the gradient by what the devices share, and
        # below it is added up once more. So each device takes that of its own rows.
        axes = axes_of(batch)
        own = state._replace(
            params=varying(state.params, axes), averages=varying(state.averages, axes)
        )
        value, gradient, sums, embeddings, averages = gradient_of(
            network, objective, own, batch, parts, keys, references, options, remat
        )
        value, sums = jax.tree.map(_same_on_all_devices, (value, sums))
        averages = jax.tree.map(_mean_over_devices, averages)
        stored = state.memory
        if stored:
            assert isinstance(batch, Batch)  # of an objective that takes a memory
            rows = objective.rows(batch)
            stored = memory.push(stored, embeddings, rows, state.step, axis_name=AXIS)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": value} | _means(sums) | {"gradient_norm": optax.tree.norm(gradient)}
        after = TrainState(state.step + 1, params, opt_state, stored, averages)
        return after, metrics

    return step


def _accumulated(
    network: Network,
    objective: Objective,
    state: TrainState,
    batch: Any,
    parts: Any,
    keys: jax.Array,
    references: Any,
    options: dict[str, Any],
    remat: bool,
) -> tuple[jax.Array, Any, Metrics, Any, Any]:
    """Adds up the gradients of microbatches, for a loss that is a mean over pairs."""

    def value_of(params: Params, averages: Any, part: Pairs, key: jax.Array) -> tuple[Any, Any]:
        images = jnp.concatenate([part.first, part.second])
        embeddings, averages = network.apply(params.encoder, averages, images, key)
        value, sums = objective.value(embeddings, part, params.loss, None, options)
        return value, (sums, averages)

    def add(carry: Any, part_and_key: Any) -> tuple[Any, None]:
        total, averages = carry
        (value, (sums, averages)), gradient = gradient_of(state.params, averages, *part_and_key)
        return (jax.tree.map(jnp.add, total, (value, gradient, sums)), averages), None

    gradient_of = jax.value_and_grad(value_of, has_aux=True)
    first = jax.tree.map(lambda x: x[0], (parts, keys))
    (value, (sums, _)), gradient = jax.eval_shape(gradient_of, state.params, state.averages, *first)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (value, gradient, sums))
    zeros = varying(zeros, axes_of(parts))
    (total, averages), _ = jax.lax.scan(add, (zeros, state.averages), (parts, keys))
    value, gradient, sums = total
    # Shares and parts are equal, so the mean of means is the mean over the global batch.
    value, gradient = jax.tree.map(lambda x: x / len(keys), jax.lax.pmean((value, gradient), AXIS))
    return value, gradient, jax.lax.psum(sums, AXIS), None, averages


def _cached(
    network: Network,
    objective: Objective,
    state: TrainState,
    batch: Any,
    parts: Any,
    keys: jax.Array,
    references: Any,
    options: dict[str, Any],
    remat: bool,
) -> tuple[jax.Array, Any, Metrics, Any, Any]:
    """Takes the gradient of a loss of all embeddings of a batch."""

    def value_of(params: Params) -> tuple[jax.Array, Any]:
        def one(averages: Any, images_and_key: Any) -> tuple[Any, jax.Array]:
            images, key = images_and_key
            embeddings, averages = network.apply(params.encoder, averages, images, key)
            return averages, embeddings

        several = remat and len(keys) > 1
        averages, embeddings = jax.lax.scan(
            jax.checkpoint(one) if several else one, state.averages, (parts, keys)
        )
        embeddings = embeddings.reshape(len(batch.images), -1)
        value, sums = objective.value(embeddings, batch, params.loss, None, options)
        if references is not None:
            value += objective.value(embeddings, batch, params.loss, references, options)[0]
        return value, (sums, embeddings, averages)

    gradient_of = jax.value_and_grad(value_of, has_aux=True)
    (value, (sums, embeddings, averages)), gradient = gradient_of(state.params)
    # Each device has the gradient of its own rows alone, so parameters take the sum.
    return value, jax.lax.psum(gradient, AXIS), sums, embeddings, averages


def _augmented(
    augment: Augment, keys: jax.Array, batch: Pairs | Batch | IndexedPairs
) -> Pairs | Batch | IndexedPairs:
    """Changes every image of a batch, with a key of its own."""
    if isinstance(batch, Pairs):
        images: tuple[Any, Any] = (batch.first, batch.second)
        first, second = map(jax.vmap(augment), keys.T, images)
        return batch._replace(first=first, second=second)
    return batch._replace(images=jax.vmap(augment)(keys[:, 0], jnp.asarray(batch.images)))


def _same_on_all_devices(x: jax.Array) -> jax.Array:
    # One device computes a small batch without the axis, and JAX takes the results for its own.
    return jax.lax.pmean(x, AXIS) if AXIS in axes_of(x) else x


def _mean_over_devices(x: jax.Array) -> jax.Array:
    if jnp.issubdtype(x.dtype, jnp.inexact):
        x = jax.lax.pmean(x, AXIS)
    elif AXIS in axes_of(x):
        # Counters are the same on all devices, which `jax.shard_map` can not see.
        x = jax.lax.pmax(x, AXIS)
    return x


def _means(sums: Metrics) -> Metrics:
    """Returns the means over positive and over negative pairs that a step logs."""
    metrics = {
        "positive_distance": sums["positive_distance"] / sums["positive"],
        "negative_distance": sums["negative_distance"] / sums["negative"],
    }
    if "active" in sums:
        metrics["active_fraction"] = sums["active"] / sums["negative"]
    return metrics


def repeated(step: Step, count: int) -> Step:
    """Makes one call of `count` steps by `lax.scan`; metrics are stacked, `[count]` each.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import train
      >>> def count(state, source, hyperparameters):
      ...     return state + 1, {"loss": state}
      >>> state, metrics = jax.jit(train.repeated(count, 3))(jnp.int32(0), None, None)
      >>> print(state, metrics["loss"])
      3 [0 1 2]
    """

    def call(
        state: TrainState, source: Any, hyperparameters: Hyperparameters
    ) -> tuple[TrainState, Metrics]:
        return jax.lax.scan(
            lambda state, _: step(state, source, hyperparameters), state, length=count
        )

    return call

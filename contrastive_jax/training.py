"""The training step, written once against an axis name, and the training loop.

`jax.pmap` and `jax.shard_map` (`contrastive_jax.parallel`) and `jax.vmap(axis_name=AXIS)` all run
this step, and agree.
"""

import math
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.typing import ArrayLike

from contrastive_jax import losses
from contrastive_jax.all_pairs import all_pairs_sums
from contrastive_jax.checks import check_seed
from contrastive_jax.data.augment import Augment
from contrastive_jax.data.draw import ClassIndex, draw_balanced, draw_pairs
from contrastive_jax.pairs import pair_loss

AXIS = "devices"

Params = Any
Array = jax.Array | np.ndarray
Metrics = dict[str, jax.Array]
Encode = Callable[[Params, jax.Array], jax.Array]


class TrainState(NamedTuple):
    """The arrays that a step changes and a checkpoint stores."""

    step: jax.Array
    params: Params
    opt_state: optax.OptState
    memory: Any = ()
    """Embeddings of earlier batches (`contrastive_jax.memory`), where a loss takes them."""


class Pairs(NamedTuple):
    """Images `[B, H, W, C]` of the first and of the second members, with labels or with classes.

    A pair is given by its label or by the classes of its members, never by both:

        Pairs(first, second, labels)
        Pairs(first, second, first_classes=first_classes, second_classes=second_classes)

    Labels say nothing about the other pairs of a batch, so they can not be compared across
    (`group` above 1 in `make_pair_step`); classes can.
    """

    first: Array
    second: Array
    labels: Array | None = None
    """0 for a similar pair, 1 for a dissimilar one, `[B]`."""
    first_classes: Array | None = None
    """Integers, `[B]`."""
    second_classes: Array | None = None
    """Integers, `[B]`."""


class Batch(NamedTuple):
    """Images `[B, H, W, C]` and classes `[B]`, -1 where an image is to be ignored."""

    images: Array
    classes: Array


class Source(NamedTuple):
    """A data set on the device: images `[N, H, W, C]`, classes `[N]`, and examples by class."""

    images: Array
    classes: Array
    by_class: ClassIndex


class Numbers(NamedTuple):
    """Hyperparameters that are arguments of a step: another value compiles nothing."""

    margin: ArrayLike
    seed: ArrayLike
    """From 0 to 2^32 - 1."""
    similar_fraction: ArrayLike = 0.5
    """Share of similar pairs: of those drawn, and of the weight where groups are compared."""
    options: Any = ()
    """Hyperparameters of a loss by name, for steps whose loss has some."""


PairStep = Callable[[TrainState, Pairs, Numbers], tuple[TrainState, Metrics]]
BatchStep = Callable[[TrainState, Batch, Numbers], tuple[TrainState, Metrics]]
DrawnStep = Callable[[TrainState, Source, Numbers], tuple[TrainState, Metrics]]


def split_encoder(encoder: nnx.Module) -> tuple[Encode, Params]:
    """Splits an encoder into a pure function and its parameters.

    Args:
      encoder: a module from images `[B, H, W, C]` to embeddings `[B, D]`.

    Returns:
      `encode(params, images)` and `params`.

    Raises:
      ValueError: if the encoder holds variables that are not parameters. Batch statistics would
        depend on how the batch is spread over devices, dropout on a key that no step passes on.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import encoders, training
      >>> from flax import nnx
      >>> encoder = encoders.MLP((8, 8, 1), width=2, hidden=(4,), rngs=nnx.Rngs(0))
      >>> encode, params = training.split_encoder(encoder)
      >>> encode(params, jnp.zeros((3, 8, 8, 1))).shape
      (3, 2)
    """
    graphdef, *states = nnx.split(encoder, nnx.Param, ...)
    params, rest = states
    if rest:
        kinds = sorted({type(variable).__name__ for _, variable in nnx.to_flat_state(rest)})
        raise ValueError(
            f"{type(encoder).__name__} holds variables other than parameters: {', '.join(kinds)}; "
            "normalise by group or layer instead of by batch, and leave dropout out"
        )

    def encode(params: Params, images: jax.Array) -> jax.Array:
        embeddings: jax.Array = nnx.merge(graphdef, params)(images)
        return embeddings

    return encode, params


def check_images(encode: Encode, params: Params, **splits: np.ndarray) -> None:
    """Checks, without computing anything, that the images of all splits can be embedded.

    Args:
      encode: from parameters and images to embeddings.
      params: of the encoder, of which only shapes and dtypes count.
      **splits: images `[N, H, W, C]` of each split, those that are trained on first.

    Raises:
      ValueError: if the encoder does not take images of that shape, or a split has others than the
        first.

    Example:
      >>> import numpy as np
      >>> from contrastive_jax import encoders, training
      >>> from flax import nnx
      >>> encoder = encoders.MLP((8, 8, 1), width=2, hidden=(4,), rngs=nnx.Rngs(0))
      >>> encode, params = training.split_encoder(encoder)
      >>> images = np.zeros((3, 8, 8, 1), np.uint8)
      >>> training.check_images(encode, params, train=images, test=images)
    """
    first, expected = next((name, images.shape[1:]) for name, images in splits.items())
    for name, images in splits.items():
        if images.shape[1:] != expected:
            raise ValueError(
                f"images of {name} are {list(images.shape[1:])}, and those of {first} "
                f"{list(expected)}, for which the encoder is made; scale them to one size, by the "
                "image_size of load"
            )
        batch = jax.ShapeDtypeStruct((1, *expected), images.dtype)
        try:
            jax.eval_shape(encode, params, batch)
        except (TypeError, ValueError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f"the encoder does not take images of {name}, {images.dtype} {list(expected)}: "
                f"{reason}; take another encoder, or scale the images, by the image_size of load"
            ) from error


def make_optimizer(
    learning_rate: float,
    steps: int,
    *,
    warmup_steps: int = 0,
    weight_decay: float = 0.0,
    clip_norm: float = 1.0,
) -> optax.GradientTransformation:
    """Makes AdamW with linear warm-up, cosine decay to zero and clipping by the global norm.

    Args:
      learning_rate: its peak, reached after the warm-up.
      steps: number of steps, the warm-up included; the rate is 0 after the last.
      warmup_steps: steps over which the rate grows from 0.
      weight_decay: decoupled decay (Loshchilov and Hutter 2019), of matrices and kernels alone.
      clip_norm: largest norm of the gradient of all parameters together.

    Returns:
      The optimiser.

    Raises:
      ValueError: if the warm-up is not shorter than the training.

    References:
      Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019
      <https://arxiv.org/abs/1711.05101>.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import training
      >>> optimizer = training.make_optimizer(1e-3, steps=100, warmup_steps=10)
      >>> state = optimizer.init({"weight": jnp.ones((2, 2))})
    """
    if not 0 <= warmup_steps < steps:
        raise ValueError(
            f"warmup_steps must be at least 0 and below steps, got {warmup_steps} of {steps}"
        )
    # Of parts that may be traced, so that `optax.inject_hyperparams` makes data of the numbers.
    schedule = optax.join_schedules(
        [
            optax.linear_schedule(0.0, learning_rate, warmup_steps),
            optax.cosine_decay_schedule(learning_rate, steps - warmup_steps),
        ],
        [warmup_steps],
    )
    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.adamw(
            schedule,
            weight_decay=weight_decay,
            mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
        ),
    )


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """Makes the state before the first step.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import training
      >>> optimizer = training.make_optimizer(1e-3, steps=100)
      >>> state = training.init_state({"weight": jnp.ones((2, 2))}, optimizer)
      >>> print(state.step)
      0
    """
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def make_pair_step(
    encode: Encode,
    optimizer: optax.GradientTransformation,
    *,
    loss: Callable[..., jax.Array] = losses.contrastive,
    distance: Callable[..., jax.Array] | None = None,
    augment: Augment | None = None,
    group: int = 1,
    microbatches: int = 1,
) -> PairStep:
    """Makes the step on given pairs, of which each device along `AXIS` holds an equal share.

    Args:
      encode: from parameters and images to embeddings.
      optimizer: applied to the gradient of the mean loss over the pairs of all devices.
      loss: scalar function of distance, label and margin.
      distance: between two embeddings; by default that of the loss.
      augment: from a key and an image to an image, applied to both members of every pair.
      group: pairs whose members are compared across. With 1 the loss is the mean over the given
        pairs. With G > 1 every first member of a group is compared with every second one, G^2 pairs
        for the cost of encoding G; similar and dissimilar pairs are averaged apart in each group
        and weighted by `similar_fraction`. This takes classes: the labels of the given pairs do not
        say whether members of two of them are similar.
      microbatches: parts that a device takes its pairs in, one after another. The numbers stay the
        same to rounding. More parts take less memory, and on a CPU less time, while a part fills
        the caches (about 64 images of 28 x 28).

    Returns:
      `step(state, pairs, numbers) -> (state, metrics)`. Metrics are those of the global batch,
      before the update: `loss`, `similar_distance` and `dissimilar_distance` (means; NaN where the
      batch has no such pair), `active_fraction` (dissimilar pairs whose loss is not zero) and
      `gradient_norm`.

    Raises:
      ValueError: if the distance does not fit the loss; when the step is traced, if pairs have both
        labels and classes or neither, only labels where `group` is above 1, or do not divide into
        microbatches and groups.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> from contrastive_jax import training
      >>> from contrastive_jax.parallel import parallel
      >>> def encode(params, images):
      ...     return images.reshape(len(images), -1) @ params
      >>> optimizer = training.make_optimizer(1e-2, steps=100)
      >>> step = training.make_pair_step(encode, optimizer)
      >>> device = parallel(step, "shard_map", jax.devices()[:1])
      >>> state = device.replicate(training.init_state(jnp.ones((4, 2)), optimizer))
      >>> images = np.arange(32.0, dtype=np.float32).reshape(2, 4, 2, 2, 1)
      >>> pairs = device.replicate(training.Pairs(*images, labels=np.array([0, 1, 0, 1])))
      >>> numbers = device.replicate(training.Numbers(margin=1.0, seed=0))
      >>> state, metrics = device.step(state, pairs, numbers)
      >>> print(state.step, sorted(metrics))
      1 ['active_fraction', 'dissimilar_distance', 'gradient_norm', 'loss', 'similar_distance']
    """
    measure = losses.resolve_distance(loss, distance)

    def step(state: TrainState, pairs: Pairs, numbers: Numbers) -> tuple[TrainState, Metrics]:
        _check_pairs(pairs, group)
        share = len(pairs.first)
        if share % (microbatches * group):
            raise ValueError(
                "the pairs of a device must be a multiple of microbatches times group, got "
                f"{share} pairs, {microbatches} microbatches and groups of {group}"
            )

        def mean_loss(params: Params, part: Pairs) -> tuple[jax.Array, Metrics]:
            embeddings = encode(params, jnp.concatenate([part.first, part.second]))
            a, b = jnp.split(embeddings, 2)
            if part.labels is not None:
                labels = jnp.asarray(part.labels)
            else:
                classes: list[Any] = [part.first_classes, part.second_classes]
                a, b, first_classes, second_classes = _across(group, [a, b, *classes])
                labels = (first_classes != second_classes).astype(jnp.int32)
            values = pair_loss(a, b, labels, loss=loss, distance=measure, margin=numbers.margin)
            weights = _weights(labels.reshape(-1, group**2), numbers.similar_fraction)
            value = jnp.mean(values if group == 1 else values * weights.ravel())
            return value, _sums(jax.vmap(measure)(a, b), values, labels)

        def add(total: Any, part: Pairs) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, gradient_of(state.params, part)), None

        gradient_of = jax.value_and_grad(mean_loss, has_aux=True)
        pairs = jax.tree.map(jnp.asarray, pairs)
        if augment is not None:
            keys = keys_of_rows(numbers.seed, state.step, share)
            images: tuple[Any, Any] = (pairs.first, pairs.second)
            first, second = map(jax.vmap(augment), keys.T, images)
            pairs = pairs._replace(first=first, second=second)
        parts = jax.tree.map(lambda x: x.reshape(microbatches, -1, *x.shape[1:]), pairs)
        nothing = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype),
            jax.eval_shape(gradient_of, state.params, jax.tree.map(lambda x: x[0], parts)),
        )
        ((value, sums), gradient), _ = jax.lax.scan(add, nothing, parts)
        # Shares and parts are equal, so the mean of means is the mean over the global batch.
        value, gradient = jax.tree.map(
            lambda x: x / microbatches, jax.lax.pmean((value, gradient), AXIS)
        )
        return updated(optimizer, state, value, gradient, jax.lax.psum(sums, AXIS))

    return step


def _check_pairs(pairs: Pairs, group: int) -> None:
    """Checks that pairs have labels or classes, and classes where they are compared across."""
    given = [
        name
        for name in ("labels", "first_classes", "second_classes")
        if getattr(pairs, name) is not None
    ]
    if given not in (["labels"], ["first_classes", "second_classes"]):
        raise ValueError(
            "pairs must have either labels, as Pairs(first, second, labels), or the classes of "
            "both members, as Pairs(first, second, first_classes=..., second_classes=...), got "
            f"{' and '.join(given) or 'neither'}"
        )
    if given == ["labels"] and group > 1:
        raise ValueError(
            f"a group of {group} pairs compares every first member with every second one, and the "
            "labels of the given pairs do not say which of those are similar: give first_classes "
            "and second_classes, or make the step with group=1"
        )


def make_all_pairs_step(
    encode: Encode,
    optimizer: optax.GradientTransformation,
    *,
    loss: Callable[..., jax.Array] = losses.contrastive,
    distance: Callable[..., jax.Array] | None = None,
    augment: Augment | None = None,
    microbatches: int = 1,
) -> BatchStep:
    """Makes the step on all pairs of a batch, of which each device along `AXIS` holds a share.

    The loss is the mean over similar pairs times `similar_fraction` plus the mean over dissimilar
    ones times the rest, over the pairs of the global batch (`contrastive_jax.all_pairs_sums`).

    Args:
      encode: from parameters and images to embeddings.
      optimizer: applied to the gradient of the loss.
      loss: scalar function of distance, label and margin.
      distance: between two embeddings; by default that of the loss.
      augment: from a key and an image to an image.
      microbatches: parts that a device encodes its images in, one after another.

    Returns:
      `step(state, batch, numbers) -> (state, metrics)`, with the metrics of `make_pair_step`.

    Raises:
      ValueError: if the distance does not fit the loss.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> from contrastive_jax import training
      >>> from contrastive_jax.parallel import parallel
      >>> def encode(params, images):
      ...     return images.reshape(len(images), -1) @ params
      >>> optimizer = training.make_optimizer(1e-2, steps=100)
      >>> step = training.make_all_pairs_step(encode, optimizer)
      >>> device = parallel(step, "shard_map", jax.devices()[:1])
      >>> state = device.replicate(training.init_state(jnp.ones((4, 2)), optimizer))
      >>> images = np.arange(16.0, dtype=np.float32).reshape(4, 2, 2, 1)
      >>> batch = device.replicate(training.Batch(images, np.array([0, 0, 1, 1])))
      >>> numbers = device.replicate(training.Numbers(margin=1.0, seed=0))
      >>> state, metrics = device.step(state, batch, numbers)
      >>> print(state.step)
      1
    """
    measure = losses.resolve_distance(loss, distance)

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
        sums_of = partial(all_pairs_sums, distance=measure, axis_name=AXIS)

        def value_of(params: Params) -> tuple[jax.Array, Any]:
            embeddings = jax.lax.map(partial(encode, params), parts)
            embeddings = embeddings.reshape(share, -1)
            sums = sums_of(embeddings, classes, loss=loss, margin=numbers.margin)
            means = sums.loss / jnp.maximum(sums.pairs, 1)
            fraction = jnp.asarray(numbers.similar_fraction, means.dtype)
            return fraction * means[0] + (1 - fraction) * means[1], (sums, embeddings)

        # Each device has the gradient of its own rows alone, so parameters take the sum.
        gradient_of = jax.value_and_grad(value_of, has_aux=True)
        (value, (sums, embeddings)), gradient = gradient_of(state.params)
        distance_sums = sums_of(embeddings, classes, loss=_distance_itself).loss
        return updated(
            optimizer,
            state,
            value,
            jax.lax.psum(gradient, AXIS),
            {
                "similar": sums.pairs[0],
                "dissimilar": sums.pairs[1],
                "similar_distance": distance_sums[0],
                "dissimilar_distance": distance_sums[1],
                "active": sums.active[1],
            },
        )

    return step


def _distance_itself(distance: jax.Array, label: jax.Array) -> jax.Array:
    return distance


def updated(
    optimizer: optax.GradientTransformation,
    state: TrainState,
    value: jax.Array,
    gradient: Params,
    sums: Metrics,
) -> tuple[TrainState, Metrics]:
    """Applies the gradient; returns the new state and the metrics of the step.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from contrastive_jax import training
      >>> optimizer = optax.sgd(0.5)
      >>> state = training.init_state(jnp.ones(2), optimizer)
      >>> sums = dict.fromkeys(
      ...     ("similar", "dissimilar", "similar_distance", "dissimilar_distance"), jnp.float32(2.0)
      ... )
      >>> state, metrics = training.updated(optimizer, state, 0.25, jnp.ones(2), sums)
      >>> print(state.params, metrics["similar_distance"])
      [0.5 0.5] 1.0
    """
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = {
        "loss": value,
        "similar_distance": sums["similar_distance"] / sums["similar"],
        "dissimilar_distance": sums["dissimilar_distance"] / sums["dissimilar"],
        "gradient_norm": optax.tree.norm(gradient),
    }
    if "active" in sums:
        metrics["active_fraction"] = sums["active"] / sums["dissimilar"]
    return state._replace(step=state.step + 1, params=params, opt_state=opt_state), metrics


def _across(group: int, members: list[jax.Array]) -> list[jax.Array]:
    """Repeats first and second members `[B, ...]` so that those of a group meet: `[B * group]`."""
    spread = []
    for k, member in enumerate(members):
        grouped = member.reshape(-1, group, *member.shape[1:])
        axis = 2 - k % 2
        met = jnp.repeat(jnp.expand_dims(grouped, axis), group, axis)
        spread.append(met.reshape(-1, *member.shape[1:]))
    return spread


def _weights(labels: jax.Array, similar_fraction: ArrayLike) -> jax.Array:
    """Returns weights of mean 1 in each row, in which similar pairs have their share."""
    fraction = jnp.asarray(similar_fraction, jnp.float32)
    dissimilar = labels.astype(jnp.float32)
    similar = 1 - dissimilar
    share = fraction * similar / jnp.maximum(similar.sum(1, keepdims=True), 1)
    rest = (1 - fraction) * dissimilar / jnp.maximum(dissimilar.sum(1, keepdims=True), 1)
    return labels.shape[1] * (share + rest)


def keys_of_rows(seed: ArrayLike, step: jax.Array, share: int) -> jax.Array:
    """Returns two keys for each row of this device, `[share, 2]`, however the batch is sharded.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import training
      >>> def keys(rows):
      ...     return training.keys_of_rows(0, jnp.int32(0), share=2)
      >>> jax.vmap(keys, axis_name=training.AXIS)(jnp.zeros(3)).shape  # 3 devices with 2 rows each
      (3, 2, 2)
    """
    pair = jax.lax.axis_index(AXIS) * share + jnp.arange(share)
    of_step = jax.random.fold_in(_key_of_step(seed, step), 1)
    return jax.vmap(lambda k: jax.random.split(jax.random.fold_in(of_step, k)))(pair)


def _key_of_step(seed: ArrayLike, step: jax.Array) -> jax.Array:
    """Returns the key of a step, from which all its random numbers are drawn."""
    check_seed(seed)
    return jax.random.fold_in(jax.random.key(seed), step)


def _sums(distance: jax.Array, values: jax.Array, labels: jax.Array) -> Metrics:
    dissimilar = labels.astype(jnp.float32)
    similar = 1 - dissimilar
    return {
        "similar": jnp.sum(similar),
        "dissimilar": jnp.sum(dissimilar),
        "similar_distance": jnp.sum(similar * distance),
        "dissimilar_distance": jnp.sum(dissimilar * distance),
        "active": jnp.sum(jnp.where(values > 0, dissimilar, 0)),
    }


def make_drawn_step(pair_step: PairStep, batch_size: int) -> DrawnStep:
    """Makes the step that draws its pairs on the device, so that the host never waits.

    Every device draws the pairs of the global batch, which costs next to nothing, and takes its own
    share: the batch depends on the seed and the step alone, not on the number of devices.

    Args:
      pair_step: the step on given pairs.
      batch_size: pairs in the global batch, a multiple of the number of devices.

    Returns:
      `step(state, source, numbers) -> (state, metrics)`.

    Raises:
      ValueError: when traced, if the batch can not be shared equally.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import training
      >>> from contrastive_jax.data import index_by_class
      >>> from contrastive_jax.parallel import parallel
      >>> def share_of_positives(state, pairs, numbers):
      ...     return state, jnp.mean(pairs.first_classes == pairs.second_classes)
      >>> step = training.make_drawn_step(share_of_positives, batch_size=4)
      >>> classes = jnp.array([0, 0, 1, 1])
      >>> source = training.Source(jnp.zeros((4, 2, 2, 1)), classes, index_by_class(classes))
      >>> state = training.TrainState(jnp.int32(0), params=(), opt_state=())
      >>> device = parallel(step, "shard_map", jax.devices()[:1])
      >>> placed = device.replicate((state, source, training.Numbers(margin=1.0, seed=0)))
      >>> print(device.step(*placed)[1])
      0.5
    """

    def step(state: TrainState, source: Source, numbers: Numbers) -> tuple[TrainState, Metrics]:
        drawn = draw_pairs(
            _key_of_step(numbers.seed, state.step),
            source.by_class,
            batch_size,
            numbers.similar_fraction,
        )
        i, j, _ = _share(drawn, "pairs")
        images, classes = jnp.asarray(source.images), jnp.asarray(source.classes)
        pairs = Pairs(images[i], images[j], first_classes=classes[i], second_classes=classes[j])
        return pair_step(state, pairs, numbers)

    return step


def make_balanced_step(batch_step: BatchStep, classes: int, examples: int) -> DrawnStep:
    """Makes the step that draws P classes and K examples of each on the device.

    Args:
      batch_step: the step on all pairs of a batch.
      classes: in a batch, P.
      examples: of each class, K; P times K a multiple of the number of devices.

    Returns:
      `step(state, source, numbers) -> (state, metrics)`, on a batch that depends on the seed and
      the step alone.

    Raises:
      ValueError: when traced, if the batch can not be shared equally or the data has fewer classes.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import training
      >>> from contrastive_jax.data import index_by_class
      >>> from contrastive_jax.parallel import parallel
      >>> def classes_of_batch(state, batch, numbers):
      ...     return state, jnp.sort(batch.classes)
      >>> step = training.make_balanced_step(classes_of_batch, classes=2, examples=2)
      >>> classes = jnp.array([0, 0, 1, 1])
      >>> source = training.Source(jnp.zeros((4, 2, 2, 1)), classes, index_by_class(classes))
      >>> state = training.TrainState(jnp.int32(0), params=(), opt_state=())
      >>> device = parallel(step, "shard_map", jax.devices()[:1])
      >>> placed = device.replicate((state, source, training.Numbers(margin=1.0, seed=0)))
      >>> print(device.step(*placed)[1])
      [0 0 1 1]
    """

    def step(state: TrainState, source: Source, numbers: Numbers) -> tuple[TrainState, Metrics]:
        key = _key_of_step(numbers.seed, state.step)
        drawn = draw_balanced(key, source.by_class, classes, examples)
        positions, numbers_of_classes = _share(drawn, "images")
        images = jnp.asarray(source.images)
        return batch_step(state, Batch(images[positions], numbers_of_classes), numbers)

    return step


def _share(drawn: tuple[jax.Array, ...], kind: str) -> tuple[jax.Array, ...]:
    """Returns the part of a batch that this device takes."""
    share, remainder = divmod(len(drawn[0]), jax.lax.axis_size(AXIS))
    if remainder:
        raise ValueError(
            f"batch_size must be a multiple of the number of devices, got {len(drawn[0])} {kind} "
            f"for {jax.lax.axis_size(AXIS)} devices"
        )
    start = jax.lax.axis_index(AXIS) * share
    return tuple(jax.lax.dynamic_slice_in_dim(x, start, share) for x in drawn)


def repeated(step: DrawnStep, count: int) -> DrawnStep:
    """Makes one call of `count` steps by `lax.scan`; metrics are stacked, `[count]` each.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import training
      >>> def count(state, source, numbers):
      ...     return state + 1, {"loss": state}
      >>> state, metrics = jax.jit(training.repeated(count, 3))(jnp.int32(0), None, None)
      >>> print(state, metrics["loss"])
      3 [0 1 2]
    """

    def call(state: TrainState, source: Source, numbers: Numbers) -> tuple[TrainState, Metrics]:
        return jax.lax.scan(lambda state, _: step(state, source, numbers), state, length=count)

    return call


def train(
    advance: Callable[[TrainState], tuple[TrainState, Metrics]],
    state: TrainState,
    *,
    start: int,
    steps: int,
    window: int,
    steps_per_call: int = 1,
    batch_size: int,
) -> Iterator[tuple[TrainState, list[dict[str, float]]]]:
    """Trains from step `start` to step `steps`, handing the state back after each window.

    Calls are dispatched without waiting for their results; only the end of a window does. The state
    handed back is consumed by the next window, so whoever keeps it must copy it.

    Args:
      advance: one call of a step.
      state: at step `start`; given up to the loop.
      start: steps already taken.
      steps: steps to take in all.
      window: steps between two states handed back; the last window may be shorter.
      steps_per_call: steps of one call of `advance`.
      batch_size: pairs in the global batch, for the rate.

    Yields:
      The state and a record for each step of the window, which has `step` (counted from 1), the
      metrics and `pairs_per_second` (of the whole window).

    Raises:
      ValueError: if windows or steps are not whole calls.
      FloatingPointError: if the loss or the norm of its gradient is NaN or infinite, naming the
        first such step. No state of that window is handed back.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import training
      >>> def advance(state):
      ...     return state / 2, {"loss": state**2, "gradient_norm": 2 * state}
      >>> for state, records in training.train(
      ...     advance, jnp.float32(1.0), start=0, steps=4, window=2, batch_size=1
      ... ):
      ...     print(records[-1]["step"], records[-1]["loss"])
      2 0.25
      4 0.015625
    """
    for name, value in (("window", window), ("steps", steps), ("start", start)):
        if value % steps_per_call:
            raise ValueError(
                f"{name} must be a multiple of steps_per_call, got {value} and {steps_per_call}"
            )
    while start < steps:
        stop = min(start - start % window + window, steps)
        began = time.perf_counter()
        calls = []
        for _ in range(start, stop, steps_per_call):
            state, metrics = advance(state)
            calls.append(metrics)
        fetched = jax.device_get(calls)
        seconds = time.perf_counter() - began
        columns = {
            name: np.concatenate([np.atleast_1d(call[name]) for call in fetched])
            for name in fetched[0]
        }
        finite = np.isfinite(columns["loss"]) & np.isfinite(columns["gradient_norm"])
        if not finite.all():
            bad = int(np.argmin(finite))
            raise FloatingPointError(
                f"step {start + bad + 1}: loss {columns['loss'][bad]}, gradient norm "
                f"{columns['gradient_norm'][bad]}; lower the learning rate, or find the cause with "
                "value checks on (--check_values)"
            )
        rate = batch_size * (stop - start) / seconds
        yield (
            state,
            [
                {"step": start + k + 1}
                | {name: float(column[k]) for name, column in columns.items()}
                | {"pairs_per_second": rate}
                for k in range(stop - start)
            ],
        )
        start = stop


def warn_inverted(similar_distance: float, dissimilar_distance: float) -> None:
    """Warns that similar pairs stay farther apart than dissimilar ones.

    A single window may be chance. If it stays so, the labels are almost always inverted: here 0 is
    similar and 1 dissimilar, and other libraries often swap the two.

    Args:
      similar_distance: mean distance of similar pairs over a window of steps.
      dissimilar_distance: that of dissimilar pairs.

    Example:
      >>> import warnings
      >>> from contrastive_jax import training
      >>> with warnings.catch_warnings(record=True) as caught:
      ...     warnings.simplefilter("always")
      ...     training.warn_inverted(similar_distance=1.2, dissimilar_distance=0.4)
      >>> len(caught)
      1
    """
    warnings.warn(
        f"similar pairs stay farther apart (mean distance {similar_distance:.3f}) than dissimilar "
        f"ones ({dissimilar_distance:.3f}); are the labels inverted? Here 0 is similar and 1 "
        "dissimilar",
        stacklevel=2,
    )


def embed(
    encode: Encode, params: Params, images: np.ndarray, *, batch_size: int = 500
) -> np.ndarray:
    """Embeds images batch by batch, with one compilation.

    Args:
      encode: from parameters and images to embeddings.
      params: of the encoder.
      images: `[N, H, W, C]`.
      batch_size: images to a call; the last batch is padded.

    Returns:
      Embeddings, `[N, D]`, float32.

    Raises:
      ValueError: if there are no images.

    Example:
      >>> import numpy as np
      >>> from contrastive_jax import encoders, training
      >>> from flax import nnx
      >>> encoder = encoders.MLP((8, 8, 1), width=2, hidden=(4,), rngs=nnx.Rngs(0))
      >>> encode, params = training.split_encoder(encoder)
      >>> training.embed(encode, params, np.zeros((5, 8, 8, 1), np.uint8), batch_size=2).shape
      (5, 2)
    """
    if len(images) == 0:
        raise ValueError("no images to embed")
    batch_size = min(batch_size, len(images))
    call = jax.jit(encode)
    padding = math.ceil(len(images) / batch_size) * batch_size - len(images)
    parts = []
    for begin in range(0, len(images), batch_size):
        batch = images[begin : begin + batch_size]
        if len(batch) < batch_size:
            batch = np.concatenate([batch, np.repeat(batch[-1:], padding, axis=0)])
        parts.append(call(params, jax.device_put(batch)))
    return np.concatenate(jax.device_get(parts))[: len(images)]

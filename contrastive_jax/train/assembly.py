"""The parts of a training: encoder, initial states, and steps that draw their batches."""

import hashlib
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.typing import ArrayLike

from contrastive_jax import memory
from contrastive_jax.checks import check_seed
from contrastive_jax.data.augment import Augment
from contrastive_jax.data.datasets import Dataset, PairDataset
from contrastive_jax.data.draw import index_by_class
from contrastive_jax.data.labels import class_numbers
from contrastive_jax.train.draw import (
    draws_classes,
    draws_given_pairs,
    draws_pairs,
    draws_views,
    most_images,
    pair_source,
)
from contrastive_jax.train.labelled import labelled_rows
from contrastive_jax.train.networks import Network, check_images, network
from contrastive_jax.train.objectives import Objective, of_given_pairs
from contrastive_jax.train.optimizer import make_optimizer, with_loss
from contrastive_jax.train.steps import init_state, make_step
from contrastive_jax.train.types import PairSource, Source, Step, TrainState, Weights

# A larger batch would repeat the data, or the same pairs, and say nothing more about it. Small data
# may have any batch that is computed at once.
MOST_REPEATED = 4
MOST_ALWAYS = 1024


class Assembled(NamedTuple):
    """The parts of a training."""

    network: Network
    init: Callable[[int], TrainState]
    """A function of a seed to the state before the first step."""
    init_loss: Callable[[Objective, int], Any]
    """A function of an objective and a seed to the parameters of its loss."""
    step: Step
    """The step on a batch of the objective."""
    drawn: Step
    """The step that draws its batch from a `Source`."""
    pairs_per_step: int
    images_per_step: int = 0
    """Images that a batch of given pairs has room for; 0 where batches are drawn by class."""


def assemble(
    model: Any,
    data: Dataset | PairDataset,
    objective: Objective,
    *,
    steps: int,
    seed: int = 0,
    seeds: Sequence[int] = (),
    batch_size: int = 256,
    batch_classes: int | None = None,
    balanced: bool = True,
    repeat: bool = True,
    by_size: bool = False,
    views: int = 1,
    optimizer: optax.GradientTransformation | None = None,
    loss_optimizer: optax.GradientTransformation | None = None,
    augment: Augment | None = None,
    microbatches: int = 1,
    remat: bool = True,
    memory_size: int = 0,
    max_age: int | None = None,
    weights: Weights | None = None,
    devices: int = 1,
) -> Assembled:
    """Makes the parts of a training, as `fit` does. See there for the arguments.

    Two are other than there: `seeds` are those of all trainings that take the step, by default
    `seed` alone, and `devices` is the number of devices over which a batch is spread. The batches
    of given pairs have room for the images of the largest one of these trainings.

    Returns:
      The encoder, the initial states, and the steps.

    Raises:
      ValueError: if the seed is not in [0, 2^32), the encoder does not take the images, the
        objective takes no memory or no given pairs, classes and images of a batch do not fit, or
        the batch is larger than 1,024 and than four times the data.

    Example:
      >>> import contrastive_jax as cj
      >>> from contrastive_jax.train.assembly import assemble
      >>> digits = cj.data.load("digits")
      >>> parts = assemble(cj.models.MLP, digits, cj.train.objective("supcon"), steps=10)
      >>> parts.pairs_per_step
      32640
    """
    check_seed(seed)
    _check_size(data, batch_size)
    images, classes = _images_of(data), 0
    if isinstance(data, PairDataset):
        objective = of_given_pairs(objective)
    else:
        # Each image is a class of its views.
        own = len(data.train.images) if views > 1 else 0
        classes = own or int(_trained_classes(data).max()) + 1
    shape = images["train"].shape[1:]

    def encoder_of(seed: int) -> Network:
        made = network(model, shape, seed)
        return made if weights is None else made._replace(weights=weights)

    encoder = encoder_of(seed)
    check_images(encoder, **images)
    image = jax.ShapeDtypeStruct((1, *shape), images["train"].dtype)
    width = jax.eval_shape(encoder.encode, encoder.weights, image).shape[1]
    optimizer = optimizer or make_optimizer(
        4e-3, steps, warmup_steps=int(0.02 * steps), weight_decay=0.1
    )

    def init_loss(objective: Objective, seed: int) -> Any:
        return objective.init(classes, width, seed)

    if jax.tree.leaves(jax.eval_shape(lambda: init_loss(objective, seed))):
        rate = objective.learning_rate
        loss_optimizer = loss_optimizer or make_optimizer(
            rate, steps, warmup_steps=int(0.02 * steps)
        )
        optimizer = with_loss(optimizer, loss_optimizer)
    bank: Any = ()
    if memory_size:
        if not objective.takes_memory:
            raise ValueError(
                "an objective of given pairs or of proxies compares with no earlier batches: leave "
                "memory_size out"
            )
        like = None
        if isinstance(data, Dataset) and objective.labels is not None:
            like = labelled_rows(objective, data.train)
        bank = memory.empty(memory_size, width, like=like)
    options: dict[str, Any] = {"augment": augment, "microbatches": microbatches, "remat": remat}
    step = make_step(encoder, optimizer, objective, max_age=max_age, **options)

    def init(own_seed: int) -> TrainState:
        own = encoder if own_seed == seed else encoder_of(own_seed)
        return init_state(own, optimizer, init_loss(objective, own_seed), memory=bank)

    images_per_step = 0
    if isinstance(data, PairDataset):
        drawn, pairs, images_per_step = _drawing_given_pairs(
            step,
            pair_source(data),
            batch_size,
            seeds=seeds or (seed,),
            steps=steps,
            balanced=balanced,
            unit=devices * microbatches,
        )
    else:
        drawn, pairs = _drawing(
            step,
            data,
            objective,
            batch_size,
            batch_classes,
            repeat=repeat,
            by_size=by_size,
            views=views,
        )
    return Assembled(encoder, init, init_loss, step, drawn, pairs, images_per_step)


def _check_size(data: Dataset | PairDataset, batch_size: int) -> None:
    """Checks that a batch is not so large that it would be the data many times over."""
    if isinstance(data, PairDataset):
        count, available, noun = batch_size // 2, len(data.train.labels), "pairs"
    else:
        count, available, noun = batch_size, len(data.train.images), "images"
    most = max(MOST_REPEATED * available, MOST_ALWAYS)
    if count > most:
        raise ValueError(
            f"a batch has at most {most:,} {noun} on the {available:,} {noun} of the train split, "
            f"{MOST_REPEATED} times as many and always {MOST_ALWAYS:,}, got {count:,}: take a "
            "smaller batch_size (--batch_size)"
        )


def _images_of(data: Dataset | PairDataset) -> dict[str, np.ndarray]:
    """Returns the images of each split; those of given pairs are of all splits."""
    if isinstance(data, PairDataset):
        return {"train": data.images}
    return {name: getattr(data, name).images for name in ("train", "validation", "test")}


def source_of(
    data: Dataset | PairDataset,
    similar_fraction: float = 0.5,
    *,
    categories: ArrayLike | None = None,
    objective: Objective | None = None,
) -> Source | PairSource:
    """Returns what batches are drawn from.

    Args:
      data: with a train split.
      similar_fraction: share of similar pairs among those drawn by class, to check that it can be.
      categories: of the training examples, as in `index_by_class`.
      objective: whose labels of two rows, where it has some, take attributes of the examples.

    Raises:
      AssertionError: if an attribute is no array with one number for each example.
      ValueError: if the classes can not give such pairs, or the data lacks the attributes.

    Example:
      >>> import contrastive_jax as cj
      >>> from contrastive_jax.train.assembly import source_of
      >>> source_of(cj.data.load("digits")).images.shape
      (1211, 8, 8, 1)
    """
    if isinstance(data, PairDataset):
        return pair_source(data)
    classes = _trained_classes(data)
    index = index_by_class(classes, similar_fraction, categories=categories)
    attributes = None
    if objective is not None and objective.labels is not None:
        attributes = labelled_rows(objective, data.train)[0]
    return Source(data.train.images, classes, index, attributes)


def recorded(objective: Objective, opt_state: Any) -> dict[str, Any]:
    """Returns what a run records of its objective and optimizer, to be resumed with the same.

    Args:
      objective: of the training.
      opt_state: of the optimizer, or its shapes. A digest of its structure, shapes and dtypes tells
        optimizers of different kinds apart.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import train
      >>> from contrastive_jax.train.assembly import recorded
      >>> recorded(train.objective("supcon"), jnp.zeros(2))["objective"]
      ['supcon', 'cosine']
    """
    leaves, structure = jax.tree.flatten(opt_state)
    text = f"{structure} {[(leaf.shape, str(leaf.dtype)) for leaf in leaves]}"
    return {
        "objective": [objective.name, getattr(objective.distance, "__name__", None)],
        "labels": objective.labels is not None,
        "optimizer": hashlib.sha256(text.encode()).hexdigest()[:16],
    }


def _trained_classes(data: Dataset) -> np.ndarray:
    """Numbers the classes of train from 0 on, in their order.

    A class that train does not have, as where splits are by classes, would get a proxy that no
    example is ever drawn to.
    """
    classes = class_numbers(data.train.classes)
    present, dense = np.unique(classes[classes >= 0], return_inverse=True)
    if len(present) == 0 or present[-1] == len(present) - 1:
        return classes
    numbered = np.full_like(classes, -1)
    numbered[classes >= 0] = dense
    return numbered


def _drawing_given_pairs(
    step: Step,
    source: PairSource,
    batch_size: int,
    *,
    seeds: Sequence[int],
    steps: int,
    balanced: bool,
    unit: int,
) -> tuple[Step, int, int]:
    """Makes the step that draws given pairs, and counts its pairs and the room for images."""
    pairs = _half(batch_size)
    most = most_images(source, pairs, seeds=seeds, steps=steps, balanced=balanced)
    images = math.ceil(most / unit) * unit
    return draws_given_pairs(step, pairs, images, balanced=balanced), pairs, images


def _drawing(
    step: Step,
    data: Dataset,
    objective: Objective,
    batch_size: int,
    batch_classes: int | None,
    *,
    repeat: bool,
    by_size: bool,
    views: int,
) -> tuple[Step, int]:
    """Makes the step that draws its batch by class, or views of images, and counts its pairs."""
    if objective.separable:
        pairs = _half(batch_size)
        fraction = objective.hyperparameters["similar_fraction"]
        return draws_pairs(step, pairs, similar_fraction=fraction), pairs
    compared = batch_size * (batch_size - 1) // 2
    if views > 1:
        return draws_views(step, batch_size // views, views), compared
    counts = np.unique(data.train.classes[data.train.classes >= 0], return_counts=True)[1]
    classes, examples = balance(batch_size, batch_classes, len(counts))
    few = int(np.sum(counts < examples))
    # Where no class is small, the program is the same either way.
    repeat = repeat and few > 0
    if repeat:
        warnings.warn(
            f"{few} of {len(counts)} classes have fewer than the {examples} examples that a batch "
            "takes of a class: theirs are repeated (repeat=False, --no_repeat leaves them out)",
            stacklevel=4,
        )
    drawn = draws_classes(step, classes, examples, repeat=repeat, by_size=by_size)
    return drawn, compared


def _half(batch_size: int) -> int:
    """Returns the pairs of a batch of so many images."""
    pairs, rest = divmod(batch_size, 2)
    if pairs < 1 or rest:
        raise ValueError(
            f"batch_size must be even for an objective of pairs, of two images each, got "
            f"{batch_size}"
        )
    return pairs


def balance(batch_size: int, batch_classes: int | None, available: int) -> tuple[int, int]:
    """Returns the number of classes of a batch, and of examples of each.

    Args:
      batch_size: images in a batch.
      batch_classes: classes in a batch; by default the largest number up to 32 that divides it.
      available: classes of the training data.

    Raises:
      ValueError: if the classes do not divide the batch, or there are not so many.

    Example:
      >>> from contrastive_jax.train.assembly import balance
      >>> balance(256, None, available=10)
      (8, 32)
    """
    classes = batch_classes
    if classes is None:
        most = min(32, available, batch_size)
        classes = max(count for count in range(1, most + 1) if batch_size % count == 0)
    if not 1 < classes <= available or batch_size % classes:
        raise ValueError(
            f"batch_classes must be from 2 to {available}, the classes of the training data, and "
            f"divide the {batch_size} images of a batch, got {classes}"
        )
    return classes, batch_size // classes

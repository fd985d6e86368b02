"""The parts of a training: encoder, initial states, and steps that draw their batches."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from contrastive_jax import memory
from contrastive_jax.data.augment import Augment
from contrastive_jax.data.datasets import Dataset, PairDataset
from contrastive_jax.train.batches import check_size, draws_batches, trained_classes
from contrastive_jax.train.labelled import labelled_rows
from contrastive_jax.train.networks import Network, check_images, network
from contrastive_jax.train.objectives import Objective
from contrastive_jax.train.optimizer import make_optimizers, with_loss
from contrastive_jax.train.steps import init_state, make_step
from contrastive_jax.train.training import Training
from contrastive_jax.train.types import Step, TrainState


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


def assemble(training: Training, *, seeds: Sequence[int] = ()) -> Assembled:
    """Makes the parts of a training, as `fit` does.

    Args:
      training: to make the parts of.
      seeds: of all trainings that take the step, by default that of the training alone. The batches
        of given pairs have room for the images of the largest one of these trainings.

    Returns:
      The encoder, the initial states, and the steps.

    Raises:
      ValueError: if the encoder or the augmentation does not take the images, the objective takes
        no memory, classes and images of a batch do not fit, or the batch is larger than 1,024 and
        than four times the data.

    Example:
      >>> import contrastive_jax as cj
      >>> from contrastive_jax.train.assembly import assemble
      >>> from contrastive_jax.train.training import Training
      >>> digits, objective = cj.data.load("digits"), cj.train.objective("supcon")
      >>> training = Training(model=cj.models.Linear, data=digits, objective=objective, steps=10)
      >>> assemble(training).pairs_per_step
      32640
    """
    check_size(training.data, training.batch_size)
    images, classes = _images_of(training.data), _classes_of(training)
    encoder = _encoder(training, training.seed)
    check_images(encoder, **images)
    image = jax.ShapeDtypeStruct((1, *images["train"].shape[1:]), images["train"].dtype)
    if training.augment is not None:
        _check_augment(training.augment, image)
    width = jax.eval_shape(encoder.encode, encoder.weights, image).shape[1]

    def init_loss(objective: Objective, seed: int) -> Any:
        return objective.init(classes, width, seed)

    shapes = jax.eval_shape(lambda: init_loss(training.objective, training.seed))
    optimizer = _optimizer(training, has_loss_params=bool(jax.tree.leaves(shapes)))
    bank = _memory(training, width)
    step = make_step(
        encoder,
        optimizer,
        training.objective,
        max_age=training.max_age,
        augment=training.augment,
        microbatches=training.microbatches,
        remat=training.remat,
    )

    def init(seed: int) -> TrainState:
        own = encoder if seed == training.seed else _encoder(training, seed)
        return init_state(own, optimizer, init_loss(training.objective, seed), memory=bank)

    drawn, pairs, rows = draws_batches(step, training, seeds or (training.seed,))
    return Assembled(encoder, init, init_loss, step, drawn, pairs, rows)


def _check_augment(augment: Augment, images: Any) -> None:
    """Checks that a random change leaves the shape and dtype of an image as they are."""
    image = jax.ShapeDtypeStruct(images.shape[1:], images.dtype)
    changed = jax.eval_shape(lambda image: augment(jax.random.key(0), image), image)
    if (changed.shape, changed.dtype) != (image.shape, image.dtype):
        raise ValueError(
            f"augment must return images of the same shape and dtype, {image.dtype} "
            f"{list(image.shape)}, got {changed.dtype} {list(changed.shape)}"
        )


def _encoder(training: Training, seed: int) -> Network:
    """Makes the encoder of a seed, or that of the weights with which the training begins."""
    shape = _images_of(training.data)["train"].shape[1:]
    made = network(training.model, shape, seed)
    if training.weights is None:
        return made
    own, given = (_shapes(weights) for weights in (made.weights, training.weights))
    for name in sorted({*own, *given}):
        if own.get(name) != given.get(name):
            wrong = f"{name} has the shape {given.get(name)}, expected {own.get(name)}"
            if name not in given or name not in own:
                wrong = f"{name} is {'missing' if name in own else 'none of it'}"
            raise ValueError(
                f"weights must be those of an encoder of this kind, for images {list(shape)}: "
                f"{wrong}; give the weights of a run on such images"
            )
    return made._replace(weights=training.weights)


def _shapes(weights: Any) -> dict[str, list[int]]:
    """Returns the shape of each array of a tree by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(weights)
    return {jax.tree_util.keystr(path): list(np.shape(leaf)) for path, leaf in leaves}


def _classes_of(training: Training) -> int:
    """Returns the number of classes of which a loss may have parameters."""
    if isinstance(training.data, PairDataset):
        return 0
    if training.views > 1:
        return len(training.data.train.images)  # each image is a class of its views
    return int(trained_classes(training.data).max()) + 1


def _optimizer(training: Training, *, has_loss_params: bool) -> optax.GradientTransformation:
    """Returns the optimizer of the encoder and, where it has parameters, of the loss."""
    encoder, loss = make_optimizers(
        training.steps, loss_learning_rate=training.objective.learning_rate
    )
    optimizer = training.optimizer or encoder
    return with_loss(optimizer, training.loss_optimizer or loss) if has_loss_params else optimizer


def _memory(training: Training, width: int) -> Any:
    """Returns the memory before the first step; `()` where there is none."""
    if not training.memory_size:
        return ()
    data, objective = training.data, training.objective
    if not objective.takes_memory:
        raise ValueError(
            "an objective of given pairs or of proxies compares with no earlier batches: leave "
            "memory_size out"
        )
    like = None
    if isinstance(data, Dataset) and objective.labels is not None:
        like = labelled_rows(objective, data.train)
    return memory.empty(training.memory_size, width, like=like)


def _images_of(data: Dataset | PairDataset) -> dict[str, np.ndarray]:
    """Returns the images of each split; those of given pairs are of all splits."""
    if isinstance(data, PairDataset):
        return {"train": data.images}
    return {name: getattr(data, name).images for name in ("train", "validation", "test")}

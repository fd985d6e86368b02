"""The types that training steps, objectives and loops share."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.typing import ArrayLike

from contrastive_jax.data.draw import ClassIndex

AXIS = "devices"
"""The name of the axis of devices, against which steps are written."""

Array = jax.Array | np.ndarray
Metrics = dict[str, jax.Array]


class Weights(NamedTuple):
    """The arrays that an encoder takes to embed images."""

    params: Any
    averages: Any = ()
    """Running averages, such as those of batch normalisation; `()` where there are none."""


class Params(NamedTuple):
    """All parameters that are trained: those of the encoder and those of the loss."""

    encoder: Any
    loss: Any = ()
    """Proxies, boundaries or a temperature; `()` where the loss has no parameters."""


class TrainState(NamedTuple):
    """The arrays that a step changes and a checkpoint stores."""

    step: jax.Array
    params: Params
    opt_state: optax.OptState
    memory: Any = ()
    """Embeddings of earlier batches (`contrastive_jax.memory`), where a loss takes them."""
    averages: Any = ()
    """Running averages of the encoder."""

    @property
    def weights(self) -> Weights:
        """The arrays that the encoder takes to embed images."""
        return Weights(self.params.encoder, self.averages)


class Pairs(NamedTuple):
    """Images `[B, H, W, C]` of the first and of the second members, with labels or with classes.

    A pair is given by its label or by the classes of its members, never by both:

        Pairs(first, second, labels)
        Pairs(first, second, first_classes=first_classes, second_classes=second_classes)

    Labels say nothing about the other pairs of a batch, so they can not be compared across
    (`group` above 1 in `objectives.pairs`); classes can.
    """

    first: Array
    second: Array
    labels: Array | None = None
    """0 for a positive pair, 1 for a negative one, `[B]`."""
    first_classes: Array | None = None
    """Integers, `[B]`."""
    second_classes: Array | None = None
    """Integers, `[B]`."""


class Batch(NamedTuple):
    """Images `[B, H, W, C]` or vectors `[B, D]`, and classes `[B]`, -1 for those to ignore."""

    images: Array
    classes: Array
    attributes: Any = None
    """Arrays with one entry a row, any tree of them, which the labels of an objective take; None
    where pairs are labelled by class."""


class IndexedPairs(NamedTuple):
    """Pairs as rows of images, so that an image of several pairs is encoded once.

    Of several devices each has its share of the images and of the pairs. The rows are those of the
    images of all devices, one share after another.
    """

    images: Array
    """Images `[U, H, W, C]` or vectors `[U, D]`."""
    left: Array
    """Row of the first member of each pair, `[B]`."""
    right: Array
    """Row of the second member, `[B]`."""
    labels: Array
    """0 for a positive pair, 1 for a negative one, `[B]`."""
    weights: Array | None = None
    """At least 0, `[B]`; None where all are 1."""


class Source(NamedTuple):
    """A data set on the device: images `[N, H, W, C]` or vectors `[N, D]`, and their classes."""

    images: Array
    classes: Array
    """Integers, `[N]`."""
    by_class: ClassIndex
    attributes: Any = None
    """Attributes of the examples, a tree of arrays `[N, ...]`, for an objective that has labels of
    two rows."""


class PairSource(NamedTuple):
    """Given pairs on the device, positive pairs before negative ones, and the images of them."""

    images: Array
    """Each image once, `[N, H, W, C]`, or vectors `[N, D]`."""
    left: Array
    """Row of the first member of each pair, `[P]`."""
    right: Array
    """Row of the second member, `[P]`."""
    labels: Array
    """0 for a positive pair, 1 for a negative one, ascending, `[P]`."""
    positives: Array
    """The number of positive pairs."""
    weights: Array | None = None
    """At least 0, `[P]`; None where all are 1."""


class Hyperparameters(NamedTuple):
    """Hyperparameters that are arguments of a step: another value compiles nothing."""

    seed: ArrayLike
    """From 0 to 2^32 - 1."""
    loss: Mapping[str, ArrayLike] = {}
    """Hyperparameters of the objective by name, such as `margin`; by default its own."""


Step = Callable[[TrainState, Any, Hyperparameters], tuple[TrainState, Metrics]]
"""A function of the state, a batch (`Pairs`, `Batch`, `IndexedPairs`) or a source of batches
(`Source`, `PairSource`), and hyperparameters."""

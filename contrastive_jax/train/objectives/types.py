"""The type of an objective, and the check of its batches."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

from contrastive_jax.data.datasets import Examples
from contrastive_jax.labels.types import PairLabels
from contrastive_jax.train.objectives._values import rows_of
from contrastive_jax.train.types import Batch, Metrics, Pairs

Distance = Callable[..., jax.Array]


class Objective(NamedTuple):
    """The quantity that a training step minimises."""

    value: Callable[..., tuple[jax.Array, Metrics]]
    """`value(embeddings, batch, params, references, hyperparameters)` returns the loss of the
    global batch over `AXIS` and sums for logging. `references` are embeddings and classes of a
    memory, or None. For a separable objective the value is the mean over the pairs of a device. One
    that compares the rows of a batch takes `labels=` too."""
    distance: Distance
    """The distance that is logged, and by which the trained encoder compares two images."""
    hyperparameters: Mapping[str, float] = MappingProxyType({})
    """Values that a step takes as arguments, so that another value compiles nothing."""
    init: Callable[[int, int, int], Any] = lambda classes, width, seed: ()
    """A function of the number of classes, the width of embeddings and a seed to the parameters of
    the loss."""
    learning_rate: float = 0.0
    """The learning rate of these parameters; 0 where there are none."""
    separable: bool = False
    """True if the objective takes `Pairs` and is a mean over them, False if it takes a `Batch`."""
    group: int = 1
    """The number of pairs whose members are compared across."""
    name: str = ""
    """The name of the loss, by which a run that is resumed knows it again."""
    bounded: bool = False
    """True if its margin is a distance that two embeddings must be able to reach."""
    takes_memory: bool = True
    """False if it does not compare the embeddings of a batch with each other."""
    on_given: Callable[..., tuple[jax.Array, Metrics]] | None = None
    """The value of a pair loss on `IndexedPairs`; None for a loss of whole batches."""
    batch: type | None = None
    """The type of its batches, where that is neither `Pairs` nor `Batch`."""
    labels: PairLabels | None = None
    """Labels of two rows (`with_labels`); None where rows of one class are similar. They take
    attributes and a mask, as `labels.with_mask` does."""
    attributes: Callable[[Examples], Any] | None = None
    """A function of the examples of a split to their attributes, where there are `labels`."""

    def rows(self, batch: Batch) -> Any:
        """Returns that of the rows of a batch by which their pairs are labelled.

        These are classes or, where there are `labels`, attributes and a mask that leaves out the
        rows of class -1. A memory of earlier batches holds the same.
        """
        return rows_of(batch, self.labels)

    def check_batch(self, batch: Any) -> None:
        """Raises ValueError where a batch is not one that the objective takes."""
        expected = self.batch or (Pairs if self.separable else Batch)
        if not isinstance(batch, expected):
            raise ValueError(f"the objective takes {expected.__name__}, got {type(batch).__name__}")
        if isinstance(batch, Pairs):
            _check_pairs(batch, self.group)
        if isinstance(batch, Batch) and self.labels is not None and batch.attributes is None:
            raise ValueError(
                "the objective has labels of two rows, and the batch has no attributes for them: "
                "make it as Batch(images, classes, attributes)"
            )


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
            "labels of the given pairs do not say which of those are positive: give first_classes "
            "and second_classes, or make the objective with group=1"
        )

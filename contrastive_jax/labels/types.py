"""The type of labels: a function of two rows, and a class that tells many negative pairs."""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

__all__ = ["PairLabels", "with_mask"]

Labels = Callable[[Any, Any], ArrayLike]

_BRANCHES = (
    "labels are computed for many pairs at once, so their attributes have no single value: write "
    "jnp.where(condition, 0, 1) in place of if, and &, | and ~ in place of and, or and not"
)


class PairLabels(NamedTuple):
    """A function that labels two rows, and a class that tells many negative pairs by itself.

    A function alone is evaluated for every pair. With `class_of` rows are sorted by class, and it
    is evaluated only where a tile of pairs has two rows of one class: labels then cost little more
    than classes do.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import all_pairs_loss, labels
      >>> def next_frame(a, b):  # similar if two frames of one video follow each other
      ...     one_video, apart = a["video"] == b["video"], jnp.abs(a["frame"] - b["frame"])
      ...     return jnp.where(one_video & (apart <= 1), 0, 1)
      >>> rule = labels.PairLabels(next_frame, class_of=lambda row: row["video"])
      >>> x = jnp.array([[0.0], [0.5], [2.0], [2.25]])
      >>> rows = {"video": jnp.array([0, 0, 0, 1]), "frame": jnp.array([0, 1, 2, 0])}
      >>> print(all_pairs_loss(x, rows, labels=rule, reduction="sum"))
      6.125
    """

    function: Labels
    """Takes the attributes of two rows; returns 0, 1 or -1, or a grade in [0, 1] or -1."""
    class_of: Callable[[Any], ArrayLike] | None = None
    """Takes the attributes of a row; returns an integer of at least -1. Rows of two integers are
    dissimilar, and rows of -1 are ignored, whatever their embeddings hold. Without it every pair is
    looked at, and no row is ignored."""
    attributes_of: Callable[[Any], Any] | None = None
    """Takes the examples of a split (`contrastive_jax.data.Examples`); returns the attributes that
    the function takes, for training. None where the columns of a data set do not say them. Values
    of two splits need not be comparable."""
    name: str | None = None
    """Text that `labels.by_name` makes the same labels of, which runs record; None if there is
    none."""

    def __call__(self, a: Any, b: Any) -> ArrayLike:
        return self.function(a, b)


def with_mask(labels: PairLabels | Labels) -> PairLabels:
    """Labels of rows some of which are ignored, as those that fill up a batch.

    Attributes are `(attributes, mask)`: those that `labels` takes, and `[B]`, False where a row is
    ignored, whatever it holds.

    Args:
      labels: a function of two rows, or a `PairLabels`.

    Returns:
      The labels.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import all_pairs_loss, labels
      >>> x = jnp.array([[0.0], [0.5], [jnp.nan]])
      >>> attributes = jnp.array([20.0, 22.0, 0.0]), jnp.array([True, True, False])
      >>> print(all_pairs_loss(x, attributes, labels=labels.with_mask(labels.within(3.0))))
      0.25
    """
    inner = as_pair_labels(labels)

    def label(a: Any, b: Any) -> ArrayLike:
        return inner.function(a[0], b[0])

    def class_of(row: Any) -> jax.Array:
        own = jnp.int32(0) if inner.class_of is None else inner.class_of(row[0])
        return jnp.where(row[1], own, -1)

    return PairLabels(label, class_of, name=inner.name)


@contextlib.contextmanager
def branches_explained() -> Iterator[None]:
    """Adds a remedy to the error for a branch of Python in a function that labels pairs."""
    try:
        yield
    except jax.errors.TracerBoolConversionError as error:
        error.add_note(_BRANCHES)
        raise


def as_pair_labels(labels: Any) -> PairLabels:
    """Returns a function as labels without classes, and labels as they are."""
    if not callable(labels):
        raise ValueError(
            "labels must be a function of the attributes of two rows, or a PairLabels, got "
            f"{type(labels).__name__}; pair_loss takes an array of labels, one for each given pair"
        )
    if isinstance(labels, PairLabels):
        return labels
    try:
        inspect.signature(labels).bind(None, None)
    except TypeError:
        raise ValueError(
            f"labels must be a function of the attributes of two rows, got {labels!r}, which takes "
            "other arguments; what makes labels, such as labels.same_class, is to be called"
        ) from None
    except ValueError:  # A function without a signature.
        pass
    return PairLabels(labels)

"""Parts of the values of objectives."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from contrastive_jax.labels.types import PairLabels
from contrastive_jax.train.types import AXIS, Batch

# Rows of a batch up to which one device compares them in one matrix.
_LARGEST_MATRIX = 256
Options = Mapping[str, Any]


def axis_of(embeddings: jax.Array) -> str | None:
    """Returns the axis of devices, None for a small batch on one device.

    Without an axis the batch is compared in one matrix, without tiles, which takes half of the time
    or less. A trained network puts images of a class close together: from some hundred rows on, the
    matrix then takes many rounds to compute close pairs again, and tiles are faster.
    """
    alone = jax.lax.axis_size(AXIS) == 1 and len(embeddings) <= _LARGEST_MATRIX
    return None if alone else AXIS


def without_fraction(options: Options) -> tuple[Any, dict[str, Any]]:
    """Takes the weight of positive pairs out of the hyperparameters of a loss."""
    rest = dict(options)
    return rest.pop("positive_fraction", 0.5), rest


def bound(loss: Callable[..., jax.Array], options: Options) -> Callable[..., jax.Array]:
    return partial(loss, **options) if options else loss


def rows_of(batch: Batch, labels: PairLabels | None) -> Any:
    """Returns the classes of a batch, or its attributes and the mask of the rows that count."""
    classes = jnp.asarray(batch.classes)
    return classes if labels is None else (batch.attributes, classes >= 0)

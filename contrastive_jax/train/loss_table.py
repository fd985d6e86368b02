"""The losses that have a name, with the hyperparameters that they are trained with.

A new loss is one row here: the function that makes its objective, its defaults, and the ranges in
which they are searched.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

from contrastive_jax import distances, losses, mining
from contrastive_jax.train import loss_names

Range = tuple[float, float]
# Logarithmic ranges that several losses share.
TEMPERATURES = (0.03, 0.5)
MARGINS = (0.5, 1.6)
SLACKS = (0.05, 0.5)
SCALES = (8.0, 64.0)


class Row(NamedTuple):
    """A loss of the table."""

    make: Callable[..., Any]
    """The pair loss itself, or the function that makes a loss from its hyperparameters."""
    hyperparameters: dict[str, float]
    """Values chosen on validation of the digits; the others are the defaults of `make`."""
    ranges: Mapping[str, Range] = MappingProxyType({})
    """Ranges in which the hyperparameters are searched, logarithmically."""
    distance: Callable[..., jax.Array] | None = None
    """The distance of a pair loss, where it is not the one that the loss carries."""
    learning_rate: float = 0.0
    """The learning rate of the parameters of the loss, where it has some."""
    weight_decay: float | None = None
    """The weight decay of the encoder, where that of the data set holds the loss back."""


PAIRS = {
    "contrastive": Row(losses.contrastive, {"margin": 1.2}, {"margin": MARGINS}),
    "contrastive_halved": Row(losses.contrastive_halved, {"margin": 1.2}, {"margin": MARGINS}),
    "contrastive_linear": Row(losses.contrastive_linear, {"margin": 1.2}, {"margin": MARGINS}),
    "cosine_embedding": Row(losses.cosine_embedding, {"margin": 0.3}, {"margin": (0.05, 0.7)}),
    "sentence_contrastive": Row(
        losses.sentence_contrastive, {"margin": 0.8}, {"margin": (0.3, 1.3)}
    ),
    "sigmoid": Row(losses.sigmoid, {}, learning_rate=1e-2),
    # Its hyperparameters were chosen with this distance, and not with the squared one of the paper.
    "logistic": Row(
        losses.logistic,
        {"threshold": 1.0, "scale": 10.0},
        {"threshold": (0.5, 1.4), "scale": (3.0, 30.0)},
        distances.euclidean,
    ),
    "margin_based": Row(
        losses.margin_based,
        {"margin": 0.2, "boundary": 0.9},
        {"margin": SLACKS, "boundary": (0.5, 1.3)},
    ),
    "signal_to_noise": Row(
        losses.contrastive_linear,
        {"margin": 1.5},
        {"margin": (0.5, 2.0)},
        distances.signal_to_noise,
    ),
}
ANCHORS = {
    "ntxent": Row(losses.ntxent, {"temperature": 0.1}, {"temperature": TEMPERATURES}),
    "supcon": Row(losses.supcon, {"temperature": 0.1}, {"temperature": TEMPERATURES}),
    "supcon_inside": Row(
        partial(losses.supcon, log="inside"), {"temperature": 0.1}, {"temperature": TEMPERATURES}
    ),
    "decoupled": Row(losses.decoupled, {"temperature": 0.1}, {"temperature": TEMPERATURES}),
    "n_pair": Row(losses.n_pair, {}),
    "nca": Row(losses.nca, {"scale": 8.0}, {"scale": (2.0, 32.0)}),
    "lifted": Row(losses.lifted, {"margin": 1.0}, {"margin": (0.3, 2.0)}),
    "multi_similarity": Row(
        losses.multi_similarity, {"beta": 20.0}, {"alpha": (1.0, 10.0), "beta": (10.0, 80.0)}
    ),
    "circle": Row(
        losses.circle, {"margin": 0.4, "scale": 32.0}, {"margin": (0.1, 0.6), "scale": SCALES}
    ),
    "tuplet_margin": Row(
        losses.tuplet_margin, {"scale": 32.0}, {"margin": (0.03, 0.3), "scale": SCALES}
    ),
    "margin_by_class": Row(losses.margin_by_class, {}, {"margin": SLACKS}, learning_rate=1e-2),
    "triplet_hard": Row(losses.triplet_hard, {"margin": 0.2}, {"margin": SLACKS}, weight_decay=0.1),
    "triplet_semi_hard": Row(losses.triplet_semi_hard, {"margin": 0.2}, {"margin": SLACKS}),
    "triplet_all": Row(losses.triplet_all, {"margin": 0.2}, {"margin": SLACKS}),
    "angular": Row(losses.angular, {}, {"alpha": (0.4, 1.0)}),
    "fast_ap": Row(losses.fast_ap, {}),
    "smooth_ap": Row(losses.smooth_ap, {"temperature": 0.05}, {"temperature": (0.01, 0.2)}),
}
MINED = {
    "mined_hard": Row(mining.hard, {"margin": 1.2}, {"margin": MARGINS}),
    "mined_semi_hard": Row(mining.semi_hard, {"margin": 1.2}, {"margin": MARGINS}),
    "mined_easy_positive": Row(mining.easy_positive, {"margin": 1.2}, {"margin": MARGINS}),
    "mined_multi_similarity": Row(
        mining.multi_similarity, {"margin": 0.8}, {"margin": (0.3, 1.3)}, distances.cosine
    ),
    "mined_distance_weighted": Row(
        mining.distance_weighted,
        {"margin": 0.2, "boundary": 0.9},
        {"margin": SLACKS, "boundary": (0.5, 1.3)},
    ),
}
PROXIES = {
    "normalized_softmax": Row(
        losses.normalized_softmax, {}, {"temperature": TEMPERATURES}, learning_rate=1e-2
    ),
    "proxy_nca": Row(losses.proxy_nca, {}, {"temperature": (0.05, 1.0)}, learning_rate=1e-2),
    "proxy_anchor": Row(
        losses.proxy_anchor, {}, {"margin": (0.03, 0.3), "alpha": SCALES}, learning_rate=1e-2
    ),
    "cosface": Row(
        losses.cosface, {"scale": 32.0}, {"margin": SLACKS, "scale": SCALES}, learning_rate=1e-2
    ),
    "arcface": Row(
        losses.arcface, {"scale": 32.0}, {"margin": SLACKS, "scale": SCALES}, learning_rate=1e-2
    ),
    "soft_triple": Row(
        losses.soft_triple, {}, {"scale": SCALES, "gamma": (0.05, 0.3)}, learning_rate=1e-2
    ),
}
BATCHES = {
    "online_hard": Row(mining.online_hard_loss, {"margin": 0.8}, {"margin": (0.3, 1.3)}),
}
TABLE = PAIRS | ANCHORS | MINED | PROXIES | BATCHES
NAMES = (*TABLE,)
# Losses whose margin is the distance beyond which a negative pair costs nothing.
BOUNDED = (
    "contrastive",
    "contrastive_halved",
    "contrastive_linear",
    "sentence_contrastive",
    "signal_to_noise",
    "mined_hard",
    "mined_semi_hard",
    "mined_easy_positive",
    "mined_multi_similarity",
    "online_hard",
)
# Losses whose margin is a difference of two distances, or of a distance and a boundary.
SLACK = (
    "margin_based",
    "margin_by_class",
    "triplet_hard",
    "triplet_semi_hard",
    "triplet_all",
    "mined_distance_weighted",
)
POSITIVE_FRACTION = 0.3


def check_name(loss: str) -> None:
    """Checks that the table has a loss of this name.

    Raises:
      ValueError: if it has not, with the names that are close to it.

    Example:
      >>> from contrastive_jax.train.loss_table import check_name
      >>> check_name("supcon")
    """
    loss_names.check_name(loss, NAMES)


def hyperparameters_of(loss: str) -> dict[str, float]:
    """Returns the hyperparameters of a loss of the table, with their defaults.

    Example:
      >>> from contrastive_jax.train.loss_table import hyperparameters_of
      >>> hyperparameters_of("contrastive")
      {'margin': 1.2, 'positive_margin': 0.0, 'positive_fraction': 0.3}
    """
    row = TABLE[loss]
    if loss in MINED:
        return dict(row.hyperparameters)
    fraction = {"positive_fraction": POSITIVE_FRACTION} if loss in PAIRS else {}
    parameters = inspect.signature(row.make).parameters.values()
    defaults = {p.name: p.default for p in parameters if isinstance(p.default, int | float)}
    defaults = {key: value for key, value in defaults.items() if not isinstance(value, bool)}
    return defaults | row.hyperparameters | fraction


def check_hyperparameters(loss: str, names: Iterable[str]) -> None:
    """Checks that a loss of the table has hyperparameters of these names.

    Raises:
      ValueError: if it has not, with the names of those that it has.

    Example:
      >>> from contrastive_jax.train.loss_table import check_hyperparameters
      >>> check_hyperparameters("supcon", ["temperature"])
    """
    own = hyperparameters_of(loss)
    for name in names:
        if name not in own:
            raise ValueError(
                f"{loss} has no {name}; its hyperparameters are {', '.join(own) or 'none'}"
            )


def whole_hyperparameters(loss: str) -> set[str]:
    """Returns the hyperparameters of a loss that are whole numbers, part of a program's structure.

    Example:
      >>> from contrastive_jax.train.loss_table import whole_hyperparameters
      >>> whole_hyperparameters("fast_ap")
      {'bins'}
    """
    return {name for name, value in hyperparameters_of(loss).items() if isinstance(value, int)}

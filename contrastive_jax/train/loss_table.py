"""The losses that have a name, with the hyperparameters that they are trained with.

A new loss is one row here: the function that makes its objective, its defaults, and the ranges in
which they are searched.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from contrastive_jax import distances, losses, mining, regularizers
from contrastive_jax.data.datasets import Examples
from contrastive_jax.labels.types import PairLabels
from contrastive_jax.train import loss_names, objectives
from contrastive_jax.train.labelled import with_labels
from contrastive_jax.train.objectives import Objective

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

# Losses whose margin is the distance beyond which a dissimilar pair costs nothing.
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
SIMILAR_FRACTION = 0.3
# Centres of a class for SoftTriple, and how strongly those not needed are merged.
_CENTERS = 4
_MERGE = 0.1
_BOUNDARY = 0.9


def objective(
    loss: Any = "contrastive",
    *,
    on: Literal["all_pairs", "pairs"] = "all_pairs",
    distance: Callable[..., jax.Array] | None = None,
    group: int = 1,
    labels: PairLabels | Callable[[Any, Any], Any] | None = None,
    attributes: Callable[[Examples], Any] | None = None,
    **hyperparameters: float,
) -> Objective:
    """Makes the objective of a loss, by its name or from the loss itself.

    Args:
      loss: a name of the table of losses, such as `"contrastive"` or `"supcon"`, or a loss: a
        scalar function of distance and label (`losses.contrastive` or one of one's own), an
        `AnchorLoss`, a `TripletLoss`, a `ProxyLoss` or a `CentersLoss`.
      on: `"all_pairs"` compares all images of a batch of some classes with some examples of each;
        `"pairs"` compares pairs that are given, or drawn by class, and takes a pair loss.
      distance: between two embeddings, for a pair loss; by default that of the loss.
      group: with `"pairs"`, the number of pairs whose members are compared across.
      labels: function of the attributes of two rows that labels their pair, as
        `contrastive_jax.labels` has them; by default rows of one class are similar. Batches are
        drawn by class all the same. Validation ranks by these labels too, and the threshold is that
        of pairs drawn by them; figures on test are by class. It takes a loss that compares the rows
        of a batch with each other.
      attributes: function of the examples of a split (`contrastive_jax.data.Examples`) to what
        `labels` takes, such as `lambda examples: examples.attributes["age"]`; by default classes
        for `labels.same_class` and classes and groups for `labels.same_class_other_group`.
      **hyperparameters: of the loss, such as `margin=1.2`, in place of those of the table; and for
        pair losses `similar_fraction`, the share of similar pairs or their weight.

    Returns:
      The objective, for `fit` or `make_step`.

    Raises:
      TypeError: if `loss` is not a loss.
      ValueError: if there is no loss of that name, a hyperparameter is not one of the loss or not
        in its range, an argument has no effect for that loss, or `attributes` are needed.

    Example:
      >>> from contrastive_jax import train
      >>> train.objective("contrastive", margin=1.2).hyperparameters
      {'similar_fraction': 0.3, 'margin': 1.2}
      >>> train.objective("supcon", temperature=0.2).distance.__name__
      'cosine'
      >>> from contrastive_jax import labels
      >>> other_camera = train.objective("supcon", labels=labels.same_class_other_group())
    """
    if isinstance(loss, str):
        check_name(loss)
        made = _of_name(loss, on, distance, group, hyperparameters)
        made = made._replace(name=loss, bounded=loss in (*BOUNDED, *SLACK))
    else:
        made = _of_loss(loss, on, distance, group, hyperparameters)
        made = made._replace(name=_name_of(loss))
    if labels is not None:
        return with_labels(made, labels, attributes)
    if attributes is not None:
        raise ValueError("attributes are what labels take: give labels, or leave attributes out")
    return made


def _name_of(loss: Any) -> str:
    """Returns the name of the function that a loss is, or is made of."""
    while not hasattr(loss, "__qualname__") and (hasattr(loss, "func") or hasattr(loss, "loss")):
        loss = loss.func if hasattr(loss, "func") else loss.loss
    return str(getattr(loss, "__qualname__", type(loss).__qualname__))


def _of_name(
    loss: str,
    on: str,
    distance: Callable[..., jax.Array] | None,
    group: int,
    hyperparameters: Mapping[str, Any],
) -> Objective:
    """Makes the objective of a loss of the table."""
    row, defaults = TABLE[loss], hyperparameters_of(loss)
    for name in hyperparameters:
        if name not in defaults:
            raise ValueError(
                f"{loss} has no {name}; its hyperparameters are {', '.join(defaults) or 'none'}"
            )
    if loss not in PAIRS and (on == "pairs" or distance is not None or group != 1):
        raise ValueError(
            f"{loss} compares whole batches and has a distance of its own: leave on, distance and "
            "group out"
        )
    _check_values(loss, row, {**defaults, **hyperparameters})
    given: dict[str, Any] = {**row.hyperparameters, **hyperparameters}
    # Whole numbers, such as a count of bins, are part of the structure of a program.
    whole = {k: int(given.pop(k)) for k in [*given] if isinstance(defaults[k], int)}
    make = partial(row.make, **whole) if whole else row.make
    if loss in PAIRS:
        return _pair_objective(loss, on, distance or row.distance, group, given)
    if loss in BATCHES:
        return objectives.batches(partial(make, reduction="active"), **given)
    if loss in PROXIES:
        rate = row.learning_rate
        if loss != "soft_triple":
            return objectives.proxies(make, learning_rate=rate, **given)
        return objectives.proxies(
            make, centers=_CENTERS, regularizer=_merged_centers, learning_rate=rate, **given
        )
    if loss == "margin_by_class":
        return objectives.anchors(
            make,
            init=lambda classes, width, seed: jnp.full(classes, _BOUNDARY),
            learning_rate=row.learning_rate,
            **given,
        )
    if loss == "mined_distance_weighted":
        make = partial(_mined, loss)
        return objectives.anchors(make, distance=distances.euclidean, width_as="dimension", **given)
    if loss in MINED:
        make = partial(_mined, loss)
    return objectives.anchors(make, **given)


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
      {'margin': 1.2, 'positive_margin': 0.0, 'similar_fraction': 0.3}
    """
    row = TABLE[loss]
    if loss in MINED:
        return dict(row.hyperparameters)
    fraction = {"similar_fraction": SIMILAR_FRACTION} if loss in PAIRS else {}
    parameters = inspect.signature(row.make).parameters.values()
    defaults = {p.name: p.default for p in parameters if isinstance(p.default, int | float)}
    defaults = {key: value for key, value in defaults.items() if not isinstance(value, bool)}
    return defaults | row.hyperparameters | fraction


def _of_loss(
    loss: Any,
    on: str,
    distance: Callable[..., jax.Array] | None,
    group: int,
    hyperparameters: Mapping[str, Any],
) -> Objective:
    """Makes the objective of a loss that is not in the table."""
    types = (losses.AnchorLoss, losses.TripletLoss, losses.ProxyLoss, losses.CentersLoss)
    if isinstance(loss, types):
        if on == "pairs" or group != 1 or hyperparameters:
            raise ValueError(
                f"a {type(loss).__name__} compares whole batches and has hyperparameters of its "
                "own: leave on, group and hyperparameters out"
            )
        if isinstance(loss, losses.AnchorLoss | losses.TripletLoss):
            return objectives.anchors(lambda: loss, distance=distance)
        return objectives.proxies(lambda: loss)
    if not callable(loss):
        raise TypeError(
            "loss must be the name of a loss, a scalar function of distance and label, or a loss "
            f"of anchors or proxies, got {loss!r}"
        )
    if on == "pairs":
        made = objectives.pairs(loss, distance, group=group, **hyperparameters)
    else:
        made = objectives.all_pairs(loss, distance, **hyperparameters)
    bounded = any(TABLE[name].make is loss for name in BOUNDED if name in PAIRS)
    return made._replace(bounded=bounded)


def _pair_objective(
    name: str,
    on: str,
    distance: Callable[..., jax.Array] | None,
    group: int,
    given: dict[str, Any],
) -> Objective:
    loss = TABLE[name].make
    given = {"similar_fraction": SIMILAR_FRACTION} | given
    if on == "pairs":
        return objectives.pairs(loss, distance, group=group, **given)
    if name != "sigmoid":
        return objectives.all_pairs(loss, distance, **given)
    temperature, bias = given.pop("temperature", 10.0), given.pop("bias", -10.0)
    return objectives.all_pairs(
        loss,
        distance,
        init=lambda classes, width, seed: {
            "log_temperature": jnp.log(jnp.float32(temperature)),
            "bias": jnp.float32(bias),
        },
        bind=lambda params: {
            "temperature": jnp.exp(params["log_temperature"]),
            "bias": params["bias"],
        },
        learning_rate=TABLE[name].learning_rate,
        **given,
    )


def _check_values(name: str, row: Row, values: Mapping[str, Any]) -> None:
    """Has the loss check its hyperparameters while they are concrete; a step traces them."""
    values = dict(values)
    fraction = values.pop("similar_fraction", 0.5)
    if not 0 <= fraction <= 1:
        raise ValueError(f"similar_fraction must be in [0, 1], got {fraction}")
    if name in BATCHES:
        losses.contrastive(1.0, 0, **values)
    elif name in PAIRS:
        row.make(1.0, 0, **values)
    elif name in MINED:
        pair = losses.margin_based if "boundary" in values else losses.contrastive
        pair(1.0, 0, **values)
    else:
        whole = {key for key, value in hyperparameters_of(name).items() if isinstance(value, int)}
        row.make(
            **{k: int(v) if k in whole and float(v).is_integer() else v for k, v in values.items()}
        )


def _mined(name: str, dimension: int | None = None, **hyperparameters: Any) -> Any:
    """Makes a loss of the pairs that a miner of the table selects."""
    row = TABLE[name]
    if dimension is not None:
        return row.make(losses.margin_based(**hyperparameters), dimension=dimension)
    return row.make(losses.contrastive(**hyperparameters), row.distance)


def _merged_centers(proxies: jax.Array) -> jax.Array:
    return _MERGE * regularizers.centers(proxies)

"""The objective of a loss, by its name in the table of losses or from the loss itself."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from contrastive_jax import distances, losses, regularizers
from contrastive_jax.data.datasets import Examples
from contrastive_jax.labels.named import from_text
from contrastive_jax.labels.types import PairLabels
from contrastive_jax.train import loss_table, objectives
from contrastive_jax.train.labelled import with_labels
from contrastive_jax.train.objectives import Objective

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
    labels: PairLabels | Callable[[Any, Any], Any] | str | None = None,
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
        `contrastive_jax.labels` has them, or text that `labels.by_name` takes, such as
        `"any_shared=tags"`; by default, and with `"class"`, rows of one class are similar. Batches
        are drawn by class all the same. Validation ranks by these labels too, and the threshold is
        that of pairs drawn by them. It takes a loss that compares the rows of a batch with each
        other.
      attributes: function of the examples of a split (`contrastive_jax.data.Examples`) to what
        `labels` takes, such as `lambda examples: examples.attributes["age"]`; by default
        the columns that `labels` names.
      **hyperparameters: of the loss, such as `margin=1.2`, in place of those of the table; and for
        pair losses `positive_fraction`, the share of positive pairs or their weight.

    Returns:
      The objective, for `fit` or `make_step`.

    Raises:
      TypeError: if `loss` is not a loss.
      ValueError: if there is no loss of that name, a hyperparameter is not one of the loss or not
        in its range, an argument has no effect for that loss, or `attributes` are needed.

    Example:
      >>> from contrastive_jax import train
      >>> train.objective("contrastive", margin=1.2).hyperparameters
      {'positive_fraction': 0.3, 'margin': 1.2}
      >>> train.objective("supcon", temperature=0.2).distance.__name__
      'cosine'
      >>> from contrastive_jax import labels
      >>> other_camera = train.objective("supcon", labels=labels.same_class_other_group())
      >>> train.objective("supcon", labels="any_shared=tags").labels.name
      'any_shared=tags'
    """
    if isinstance(loss, str):
        loss_table.check_name(loss)
        made = _named_objective(loss, on, distance, group, hyperparameters)
        made = made._replace(name=loss, bounded=loss in (*loss_table.BOUNDED, *loss_table.SLACK))
    else:
        made = _custom_objective(loss, on, distance, group, hyperparameters)
        made = made._replace(name=_name_of(loss))
    labels = from_text(labels)
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


def _named_objective(
    loss: str,
    on: str,
    distance: Callable[..., jax.Array] | None,
    group: int,
    hyperparameters: Mapping[str, Any],
) -> Objective:
    """Makes the objective of a loss of the table."""
    row, defaults = loss_table.TABLE[loss], loss_table.hyperparameters_of(loss)
    loss_table.check_hyperparameters(loss, hyperparameters)
    if loss not in loss_table.PAIRS and (on == "pairs" or distance is not None or group != 1):
        raise ValueError(
            f"{loss} compares whole batches and has a distance of its own: leave on, distance and "
            "group out"
        )
    _check_values(loss, row, {**defaults, **hyperparameters})
    given: dict[str, Any] = {**row.hyperparameters, **hyperparameters}
    # Whole numbers, such as a count of bins, are part of the structure of a program.
    whole = {k: int(given.pop(k)) for k in [*given] if isinstance(defaults[k], int)}
    make = partial(row.make, **whole) if whole else row.make
    if loss in loss_table.PAIRS:
        return _pair_objective(loss, on, distance or row.distance, group, given)
    if loss in loss_table.BATCHES:
        return objectives.batches(partial(make, reduction="active"), **given)
    if loss in loss_table.PROXIES:
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
    if loss in loss_table.MINED:
        make = partial(_mined, loss)
    return objectives.anchors(make, **given)


def _custom_objective(
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
    bounded = any(
        loss_table.TABLE[name].make is loss
        for name in loss_table.BOUNDED
        if name in loss_table.PAIRS
    )
    return made._replace(bounded=bounded)


def _pair_objective(
    name: str,
    on: str,
    distance: Callable[..., jax.Array] | None,
    group: int,
    given: dict[str, Any],
) -> Objective:
    loss = loss_table.TABLE[name].make
    given = {"positive_fraction": loss_table.POSITIVE_FRACTION} | given
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
        learning_rate=loss_table.TABLE[name].learning_rate,
        **given,
    )


def _check_values(name: str, row: loss_table.Row, values: Mapping[str, Any]) -> None:
    """Has the loss check its hyperparameters while they are concrete; a step traces them."""
    values = dict(values)
    fraction = values.pop("positive_fraction", 0.5)
    if not 0 <= fraction <= 1:
        raise ValueError(f"positive_fraction must be in [0, 1], got {fraction}")
    if name in loss_table.BATCHES:
        losses.contrastive(1.0, 0, **values)
    elif name in loss_table.PAIRS:
        row.make(1.0, 0, **values)
    elif name in loss_table.MINED:
        pair = losses.margin_based if "boundary" in values else losses.contrastive
        pair(1.0, 0, **values)
    else:
        whole = {
            key
            for key, value in loss_table.hyperparameters_of(name).items()
            if isinstance(value, int)
        }
        row.make(
            **{k: int(v) if k in whole and float(v).is_integer() else v for k, v in values.items()}
        )


def _mined(name: str, dimension: int | None = None, **hyperparameters: Any) -> Any:
    """Makes a loss of the pairs that a miner of the table selects."""
    row = loss_table.TABLE[name]
    if dimension is not None:
        return row.make(losses.margin_based(**hyperparameters), dimension=dimension)
    return row.make(losses.contrastive(**hyperparameters), row.distance)


def _merged_centers(proxies: jax.Array) -> jax.Array:
    return _MERGE * regularizers.centers(proxies)

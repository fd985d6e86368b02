"""The losses that `--loss` knows by name, with the settings that they are trained with."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from contrastive_jax import anchor_loss, distances, losses, mining, proxy_loss, regularizers
from contrastive_jax._engine.sharding import psum_once
from contrastive_jax.all_pairs import all_pairs_sums
from contrastive_jax.checks import check_hyperparameters, check_seed
from contrastive_jax.training import AXIS

Value = Callable[..., jax.Array]


class Setting(NamedTuple):
    """A loss and how it is trained."""

    make: Callable[..., Any]
    """A pair loss itself, or what makes a loss of its options."""
    options: dict[str, float]
    """Numbers found on validation of the digits; others of `make` are its own."""
    distance: Callable[..., jax.Array] | None = None
    """Of a pair loss, where it is not the one that the loss carries."""
    learning_rate: float = 0.0
    """Of the parameters of the loss, where it has some."""
    weight_decay: float | None = None
    """Of the encoder, where that of the data set holds the loss back."""


class Built(NamedTuple):
    """A loss ready to be trained."""

    value_of: Value
    """Of embeddings, classes, parameters of the loss, references or None, and options; see
    `loss_step`."""
    params: Any
    """Parameters of the loss, `()` where it has none."""
    options: dict[str, float]
    """Numbers that are data to a step."""
    learning_rate: float
    """Of these."""
    distance: Callable[..., jax.Array]
    """Of verification and of what is recorded."""


PAIRS = {
    "contrastive": Setting(losses.contrastive, {"margin": 1.2}),
    "contrastive_halved": Setting(losses.contrastive_halved, {"margin": 1.2}),
    "contrastive_linear": Setting(losses.contrastive_linear, {"margin": 1.2}),
    "cosine_embedding": Setting(losses.cosine_embedding, {"margin": 0.3}),
    "sentence_contrastive": Setting(losses.sentence_contrastive, {"margin": 0.8}),
    "sigmoid": Setting(losses.sigmoid, {}, learning_rate=1e-2),
    # Its settings were chosen with this distance, and not with the squared one of the paper.
    "logistic": Setting(losses.logistic, {"threshold": 1.0, "scale": 10.0}, distances.euclidean),
    "margin_based": Setting(losses.margin_based, {"margin": 0.2, "boundary": 0.9}),
    "signal_to_noise": Setting(
        losses.contrastive_linear, {"margin": 1.5}, distances.signal_to_noise
    ),
}
_ANCHORS = {
    "ntxent": Setting(losses.ntxent, {"temperature": 0.1}),
    "supcon": Setting(losses.supcon, {"temperature": 0.1}),
    "supcon_inside": Setting(partial(losses.supcon, log="inside"), {"temperature": 0.1}),
    "decoupled": Setting(losses.decoupled, {"temperature": 0.1}),
    "n_pair": Setting(losses.n_pair, {}),
    "nca": Setting(losses.nca, {"scale": 8.0}),
    "lifted": Setting(losses.lifted, {"margin": 1.0}),
    "multi_similarity": Setting(losses.multi_similarity, {"beta": 20.0}),
    "circle": Setting(losses.circle, {"margin": 0.4, "scale": 32.0}),
    "tuplet_margin": Setting(losses.tuplet_margin, {"scale": 32.0}),
    "margin_by_class": Setting(losses.margin_by_class, {}, learning_rate=1e-2),
    "triplet_hard": Setting(losses.triplet_hard, {"margin": 0.2}, weight_decay=0.1),
    "triplet_semi_hard": Setting(losses.triplet_semi_hard, {"margin": 0.2}),
    "triplet_all": Setting(losses.triplet_all, {"margin": 0.2}),
    "angular": Setting(losses.angular, {}),
    "fast_ap": Setting(losses.fast_ap, {}),
    "smooth_ap": Setting(losses.smooth_ap, {"temperature": 0.05}),
    "mined_hard": Setting(mining.hard, {"margin": 1.2}),
    "mined_semi_hard": Setting(mining.semi_hard, {"margin": 1.2}),
    "mined_easy_positive": Setting(mining.easy_positive, {"margin": 1.2}),
    "mined_multi_similarity": Setting(mining.multi_similarity, {"margin": 0.8}),
    "mined_distance_weighted": Setting(mining.distance_weighted, {"margin": 0.2, "boundary": 0.9}),
}
PROXIES = {
    "normalized_softmax": Setting(losses.normalized_softmax, {}, learning_rate=1e-2),
    "proxy_nca": Setting(losses.proxy_nca, {}, learning_rate=1e-2),
    "proxy_anchor": Setting(losses.proxy_anchor, {}, learning_rate=1e-2),
    "cosface": Setting(losses.cosface, {"scale": 32.0}, learning_rate=1e-2),
    "arcface": Setting(losses.arcface, {"scale": 32.0}, learning_rate=1e-2),
    "soft_triple": Setting(losses.soft_triple, {}, learning_rate=1e-2),
}
_BATCH = {
    "online_hard": Setting(mining.online_hard_loss, {"margin": 0.8}),
}
NAMES = (*PAIRS, *_ANCHORS, *PROXIES, *_BATCH)

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

# Centres of a class for SoftTriple, and how strongly those not needed are merged.
_CENTERS = 4
_MERGE = 0.1


def options_of(name: str) -> dict[str, float]:
    """The numbers of a loss that may be set, with what they are by default."""
    setting = _setting(name)
    fraction = {"similar_fraction": 0.3} if name in PAIRS else {}
    if name.startswith("mined_"):
        return dict(setting.options)
    parameters = inspect.signature(setting.make).parameters.values()
    known = {p.name: p.default for p in parameters if isinstance(p.default, int | float)}
    known = {key: value for key, value in known.items() if not isinstance(value, bool)}
    return known | setting.options | fraction


def build(name: str, options: dict[str, float], *, classes: int, width: int, seed: int) -> Built:
    """Makes a loss of the table.

    Args:
      name: one of `NAMES`.
      options: numbers in place of its settings.
      classes: number of classes of the training data.
      width: entries of an embedding.
      seed: of proxies, in [0, 2^32).

    Returns:
      The loss.

    Raises:
      ValueError: if an option is not one of the loss, or not in its range, or the seed is not.
    """
    check_seed(seed)
    setting, known = _setting(name), options_of(name)
    for option in options:
        if option not in known:
            raise ValueError(
                f"{name} has no {option}; its numbers are {', '.join(known) or 'none'}"
            )
    _check(name, setting, known | options)
    given = setting.options | options
    # Whole numbers are structure, not data.
    whole = {k: int(given.pop(k)) for k in [*given] if isinstance(known[k], int)}
    make = partial(setting.make, **whole)
    rate = setting.learning_rate
    params: Any = ()
    if name in PAIRS:
        given = {"similar_fraction": known["similar_fraction"]} | given
        distance = losses.resolve_distance(setting.make, setting.distance)
        if name == "sigmoid":
            params = {
                "log_temperature": jnp.log(jnp.float32(given.pop("temperature", 10.0))),
                "bias": jnp.float32(given.pop("bias", -10.0)),
            }
        return Built(partial(_pair_value, setting.make, distance), params, given, rate, distance)
    if name in _BATCH:
        value_of = partial(_batch_value, setting.make)
        return Built(value_of, (), given, rate, distances.cosine)
    if name in PROXIES:
        key = jax.random.key(seed)
        shape = (classes, _CENTERS, width) if name == "soft_triple" else (classes, width)
        proxies = jax.random.normal(key, shape)
        proxies /= jnp.linalg.norm(proxies, axis=-1, keepdims=True)
        return Built(partial(_proxy_value, make), proxies, given, rate, distances.cosine)
    if name == "margin_by_class":
        boundaries = jnp.full(classes, 0.9)
        value_of = partial(_bounded_value, make)
        return Built(value_of, boundaries, given, rate, distances.euclidean)
    if name.startswith("mined_"):
        make = partial(_mined, name, setting.make, width)
    return Built(partial(_anchor_value, make), (), given, rate, make(**given).distance)


def is_learned(name: str) -> bool:
    """Returns whether a loss has parameters that are trained."""
    return _setting(name).learning_rate > 0


def weight_decay_of(name: str) -> float | None:
    """The weight decay that a loss is trained with, where it has one of its own."""
    return _setting(name).weight_decay


def _check(name: str, setting: Setting, numbers: dict[str, float]) -> None:
    """Has the loss see its numbers as they are: traced, as in a step, they are not checked."""
    numbers = dict(numbers)
    fraction = numbers.pop("similar_fraction", 0.5)
    if not 0 <= fraction <= 1:
        raise ValueError(f"similar_fraction must be in [0, 1], got {fraction}")
    if name in _BATCH:
        check_hyperparameters(margin=numbers["margin"])
    elif name in PAIRS:
        setting.make(1.0, 0, **numbers)
    elif name.startswith("mined_"):
        # Of the loss of pairs, that the miner takes.
        pair = losses.margin_based if "boundary" in numbers else losses.contrastive
        pair(1.0, 0, **numbers)
    else:
        whole = {key for key, number in options_of(name).items() if isinstance(number, int)}
        setting.make(
            **{k: int(v) if k in whole and float(v).is_integer() else v for k, v in numbers.items()}
        )


def _setting(name: str) -> Setting:
    return (PAIRS | _ANCHORS | PROXIES | _BATCH)[name]


def _mined(name: str, miner: Callable[..., Any], width: int, **options: Any) -> Any:
    """A pair loss of the pairs that a miner finds."""
    if name == "mined_distance_weighted":
        return miner(losses.margin_based(**options), dimension=width)
    distance = distances.cosine if name == "mined_multi_similarity" else None
    return miner(losses.contrastive(**options), distance)


def _pair_value(
    loss: Callable[..., jax.Array],
    distance: Callable[..., jax.Array],
    embeddings: jax.Array,
    classes: jax.Array,
    params: Any,
    references: Any,
    options: dict[str, Any],
) -> jax.Array:
    """Means over similar and over dissimilar pairs, weighed by the fraction."""
    options = dict(options)
    fraction: jax.Array = options.pop("similar_fraction")
    if params:
        options |= {"temperature": jnp.exp(params["log_temperature"]), "bias": params["bias"]}
    sums = all_pairs_sums(
        embeddings,
        classes,
        *references or (),
        loss=partial(loss, **options),
        distance=distance,
        axis_name=AXIS,
    )
    means = sums.loss / jnp.maximum(sums.pairs, 1)
    return fraction * means[0] + (1 - fraction) * means[1]


def _batch_value(
    loss: Callable[..., jax.Array],
    embeddings: jax.Array,
    classes: jax.Array,
    params: Any,
    references: Any,
    options: dict[str, Any],
) -> jax.Array:
    return loss(
        embeddings, classes, *references or (), reduction="active", axis_name=AXIS, **options
    )


def _anchor_value(
    make: Callable[..., Any],
    embeddings: jax.Array,
    classes: jax.Array,
    params: Any,
    references: Any,
    options: dict[str, Any],
) -> jax.Array:
    loss = make(**options)
    return anchor_loss(embeddings, classes, *references or (), loss=loss, axis_name=AXIS)


def _bounded_value(
    make: Callable[..., Any],
    embeddings: jax.Array,
    classes: jax.Array,
    params: Any,
    references: Any,
    options: dict[str, Any],
) -> jax.Array:
    loss = make(**options)
    boundary = params[jnp.maximum(classes, 0)]
    return anchor_loss(
        embeddings, classes, *references or (), loss=loss, data=(boundary,), axis_name=AXIS
    )


def _proxy_value(
    make: Callable[..., Any],
    embeddings: jax.Array,
    classes: jax.Array,
    params: Any,
    references: Any,
    options: dict[str, Any],
) -> jax.Array:
    if references is not None:
        return jnp.zeros(())
    loss = make(**options)
    value = proxy_loss(embeddings, classes, params, loss=loss, axis_name=AXIS)
    if isinstance(loss, losses.CentersLoss):
        # Every device computes the same, of which each adds its part to the gradient.
        part = regularizers.centers(params) / jax.lax.axis_size(AXIS)
        value += _MERGE * psum_once(part, AXIS)
    return value


def classes_of(labels: np.ndarray) -> int:
    """Number of classes, counted from 0 to the largest label."""
    return int(labels.max()) + 1

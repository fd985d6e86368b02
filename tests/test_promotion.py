"""Every public function under JAX's strict rules for ranks and dtypes.

Both are broken or kept while a function is traced, so nothing is compiled.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from contrastive_jax import (
    all_pairs_loss,
    all_pairs_sums,
    anchor_loss,
    anchor_statistics,
    distances,
    labels,
    losses,
    memory,
    mining,
    models,
    pair_loss,
    proxy_loss,
    regularizers,
    statistics,
    train,
)
from contrastive_jax.data import augment, draw_balanced, draw_pairs, index_by_class
from contrastive_jax.evaluation.summary import drawn_distances
from contrastive_jax.train import objectives
from contrastive_jax.train.objectives import Objective

ROWS, SIZE, TILE = 16, 6, 8
RNG = np.random.default_rng(0)
X = RNG.standard_normal((ROWS, SIZE)).astype(np.float32)
CLASSES = np.arange(ROWS) % 4
PROXIES = RNG.standard_normal((4, 2, SIZE)).astype(np.float32)
IMAGES = RNG.integers(0, 255, (ROWS, 12, 12, 1)).astype(np.uint8)
INDEX = index_by_class(CLASSES)

PAIR_LOSSES = (
    "contrastive",
    "contrastive_halved",
    "contrastive_linear",
    "cosine_embedding",
    "sentence_contrastive",
    "sigmoid",
    "logistic",
    "margin_based",
)
ANCHOR_LOSSES = {
    "ntxent": {"temperature": 0.1},
    "supcon": {"temperature": 0.1},
    "decoupled": {"temperature": 0.1},
    "n_pair": {},
    "nca": {"scale": 0.8},
    "lifted": {"margin": 0.9, "positive_margin": 0.1},
    "multi_similarity": {"alpha": 2.0, "beta": 20.0, "base": 0.5},
    "circle": {"margin": 0.4, "scale": 30.0},
    "tuplet_margin": {"margin": 0.1, "scale": 20.0},
    "margin_by_class": {"margin": 0.3},
    "triplet_hard": {"margin": 0.5},
    "triplet_semi_hard": {"margin": 0.5},
    "triplet_all": {"margin": 0.5},
    "angular": {"alpha": 0.6},
    "fast_ap": {},
    "smooth_ap": {"temperature": 0.05},
}
VARIANTS = {
    "supcon_inside": partial(losses.supcon, log="inside"),
    "triplet_hard_smooth": partial(losses.triplet_hard, smooth=True),
    "triplet_all_smooth": partial(losses.triplet_all, smooth=True),
    "smooth_ap_with_query": partial(losses.smooth_ap, include_query=True),
}
PROXY_LOSSES = {
    "normalized_softmax": {"temperature": 0.1},
    "proxy_nca": {"temperature": 0.2},
    "cosface": {"margin": 0.3, "scale": 20.0},
    "arcface": {"margin": 0.4, "scale": 20.0},
    "proxy_anchor": {"margin": 0.1, "alpha": 20.0},
    "soft_triple": {"margin": 0.02, "scale": 15.0, "gamma": 0.2},
}
MINED = {
    "hard": mining.hard,
    "easy_positive": mining.easy_positive,
    "semi_hard": partial(mining.semi_hard, margin=0.5),
    "mined_multi_similarity": mining.multi_similarity,
    "mined_and_weighted": lambda: mining.multi_similarity(losses.multi_similarity()),
    "distance_weighted": partial(mining.distance_weighted, dimension=SIZE),
    "mean_over_pairs": lambda: losses.mean_over_pairs(losses.contrastive),
    "weighted_sum": lambda: losses.weighted_sum((0.5, losses.supcon()), (2.0, losses.ntxent())),
}


def _hyperparameters(hyper, traced):
    """Hyperparameters as Python has them, or traced beside the embeddings."""
    return {k: jnp.asarray(v, jnp.float32) if traced else v for k, v in hyper.items()}


def _pairs(name, x, traced):
    """Given pairs and all pairs of a loss."""
    loss = getattr(losses, name)
    margin = jnp.float32(0.5) if traced else 0.5
    options = {} if name in ("sigmoid", "logistic") else {"margin": margin}
    given = pair_loss(x, 2 * x[::-1], CLASSES % 2, loss=loss, **options)
    return jnp.sum(given) + all_pairs_loss(x, CLASSES, loss=loss, tile=TILE, **options)


def _anchors(make, hyper, x, traced, both=False, tile=TILE, **options):
    loss = make(**_hyperparameters(hyper, traced))
    if isinstance(loss, losses.AnchorLoss) and loss.needs:
        options["data"] = (jnp.abs(x[:, 0]),)
    one, two = (), (2 * x, CLASSES)
    # Without --long each loss has both types of hyperparameters, and one set and two, once.
    sets = [one, two] if both else [two] if traced else [one]
    return sum(anchor_loss(x, CLASSES, *others, loss=loss, tile=tile, **options) for others in sets)


def _proxies(name, x, traced):
    loss = getattr(losses, name)(**_hyperparameters(PROXY_LOSSES[name], traced))
    values = [proxy_loss(x, CLASSES, x[:4] * PROXIES[:, 0], loss=loss, reduction="active")]
    if not isinstance(loss, losses.CentersLoss):
        values.append(proxy_loss(x, CLASSES, jnp.asarray(PROXIES), loss=loss, tile=TILE))
    return sum(values)


def _own_contrastive(distance, label):
    """The contrastive loss as a function of one's own, which takes negative distances too."""
    return losses.contrastive(distance, label)


def _distances(x, traced):
    order = jnp.float32(2.5) if traced else 2.5
    parameters = {"minkowski": {"order": order}, "mahalanobis": {"factor": PROXIES[:, 0]}}
    total = jnp.zeros(())
    for name in distances.__all__:
        distance = partial(getattr(distances, name), **parameters.get(name, {}))
        x_ = 0.1 * x
        total += jnp.sum(jax.vmap(distance)(x_, 1.5 * x_ + 0.01))
        loss = _own_contrastive
        total += all_pairs_loss(x_, CLASSES, loss=loss, distance=distance, tile=TILE)
    return total


def _reductions(x, traced):
    weights = np.linspace(0.5, 1.5, ROWS).astype(np.float32)
    total = jnp.zeros(())
    for reduction in ("mean", "balanced", "active", "sum"):
        total += all_pairs_loss(x, CLASSES, reduction=reduction, weights=weights, tile=TILE)
    total += all_pairs_loss(x, CLASSES, 2 * x, CLASSES, method="autodiff", weights=weights)
    return total + jnp.sum(all_pairs_sums(x, CLASSES, method="autodiff").loss)


def _statistics(x, traced):
    def function(distance, label):
        positive = label == 0
        return statistics.total(distance, positive), statistics.largest(distance, positive)

    ((totals, farthest),) = anchor_statistics(x, CLASSES, statistics=(function,), tile=TILE)
    return jnp.sum(totals) + jnp.sum(farthest)


def _regularizers(x, traced):
    values = [
        getattr(regularizers, name)(x, classes)
        for name in ("embedding_norm", "koleo", "variance", "covariance")
        for classes in (None, CLASSES)
    ]
    return sum(values) + regularizers.centers(x[:8].reshape(4, 2, SIZE))


def _remembered(x, traced):
    bank = memory.push(memory.empty(24, SIZE), x, CLASSES, 0)
    others = memory.references(bank, 1, max_age=10)
    return anchor_loss(x, CLASSES, *others, loss=losses.supcon(), tile=TILE)


def _within(limit):
    return [
        (labels.within(limit, apart=1.0), X[:, 0]),
        (labels.with_mask(labels.within(limit)), (CLASSES, CLASSES > 0)),
        (lambda a, b: jnp.minimum(jnp.abs(a - b), limit), X[:, 0]),
    ]


def _labelled_by_a_number(x, traced):
    """The rules that have a hyperparameter."""
    limit = jnp.float32(0.5) if traced else 0.5
    return sum(all_pairs_loss(x, attributes, labels=rule) for rule, attributes in _within(limit))


def _labelled(x, traced):
    pairs = np.arange(ROWS).reshape(-1, 2)
    rules = [
        (labels.same_class(), CLASSES),
        (labels.same_class_other_group(), (CLASSES, CLASSES // 2)),
        (labels.any_shared(), labels.as_bits([[one, 40] for one in CLASSES])),
        (labels.hierarchy(2), np.stack([CLASSES, CLASSES], axis=1).astype(np.int8)),
        (labels.given_pairs(pairs, others="dissimilar"), np.arange(ROWS, dtype=np.int16)),
    ]
    total = jnp.zeros(())
    every = ({}, {"tile": TILE}, {"method": "autodiff"})
    # The engines call all rules alike: one of them by each engine, and the others by one.
    for k, (rule, attributes) in enumerate(rules):
        for options in every if k == 1 else every[:1]:
            total += all_pairs_loss(x, attributes, labels=rule, **options)
    rule, attributes = rules[1]
    for loss in (losses.triplet_hard(), losses.triplet_semi_hard(), losses.angular()):
        for options in every if isinstance(loss, losses.AnchorLoss) else every[:1]:
            total += anchor_loss(x, attributes, labels=rule, loss=loss, **options)
    grade, values = _within(0.5)[-1]
    for options in every:
        total += all_pairs_loss(x, values, labels=grade, **options)
    bank = memory.push(memory.empty(24, SIZE, like=attributes), x, attributes, 0)
    others = memory.references(bank, 1, max_age=10)
    return total + anchor_loss(x, attributes, *others, labels=rule, loss=losses.supcon())


def _drawn(x, traced):
    first, second, drawn = draw_pairs(jax.random.key(0), INDEX, ROWS, 0.5)
    positions, classes = draw_balanced(jax.random.key(0), INDEX, 4, 4)
    total = first + second + drawn + positions + classes
    return jnp.sum(x * total.astype(x.dtype)[:, None])


FUNCTIONS = (
    {name: partial(_pairs, name) for name in PAIR_LOSSES}
    | {
        name: partial(_anchors, getattr(losses, name), hyper)
        for name, hyper in ANCHOR_LOSSES.items()
    }
    | {name: partial(_anchors, make, {}) for name, make in (VARIANTS | MINED).items()}
    | {name: partial(_proxies, name) for name in PROXY_LOSSES}
    | {
        "distances": _distances,
        "reductions": _reductions,
        "statistics": _statistics,
        "online_hard_loss": lambda x, traced: mining.online_hard_loss(x, CLASSES, tile=TILE),
        "regularizers": _regularizers,
        "memory": _remembered,
        "labels": _labelled,
        "labels by a number": _labelled_by_a_number,
        "draw": _drawn,
    }
)
# What has no hyperparameter to trace is the same function either way.
SAME_EITHER_WAY = {
    "reductions",
    "statistics",
    "online_hard_loss",
    "regularizers",
    "memory",
    "labels",
    "draw",
}
CASES = [
    (name, traced)
    for name in FUNCTIONS
    for traced in ("known", "traced")
    if traced == "traced" or name not in SAME_EITHER_WAY
]

# One anchor loss of each type: JAX takes the derivative of the formulas of the others alone.
DERIVED = ("supcon", "multi_similarity", "margin_by_class", "triplet_semi_hard", "fast_ap")


@pytest.fixture
def strict():
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize(("name", "way"), CASES)
def test_values_and_gradients(name, way, longer):
    traced = way == "traced"
    function = partial(FUNCTIONS[name], traced=traced)
    if longer and name in {*ANCHOR_LOSSES, *VARIANTS, *MINED}:
        function = partial(function, both=True)
    formula = name in VARIANTS or (name in ANCHOR_LOSSES and name not in DERIVED)
    if formula and not longer:  # the same over the matrix, which is traced in less time
        function = partial(function, tile=None)
    if not longer and (not traced or formula):
        value = jax.eval_shape(function, jnp.asarray(X))
    else:  # derivatives are traced in the same way whatever the hyperparameters are
        value, gradient = jax.eval_shape(jax.value_and_grad(function), jnp.asarray(X))
        assert (gradient.shape, gradient.dtype) == (X.shape, jnp.float32)
    assert (value.shape, value.dtype) == ((), jnp.float32)


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision(dtype):
    def value(x):
        x_ = x.astype(dtype)
        return sum(
            [
                all_pairs_loss(x_, CLASSES, margin=0.5, tile=TILE),
                anchor_loss(x_, CLASSES, loss=losses.supcon(), tile=TILE),
                proxy_loss(x_, CLASSES, jnp.asarray(PROXIES, dtype), loss=losses.arcface()),
                jnp.sum(pair_loss(x_, x_[::-1], CLASSES % 2)).astype(jnp.float32),
                regularizers.variance(x_),
            ]
        )

    jax.eval_shape(jax.value_and_grad(value), jnp.asarray(X))


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("make", [models.MLP, models.ConvNet, models.DrLIM])
def test_encoders(make):
    encoder = train.network(make((12, 12, 1), SIZE, rngs=nnx.Rngs(0)))
    total = jax.grad(lambda weights: jnp.sum(encoder.encode(weights, IMAGES)))
    jax.eval_shape(total, encoder.weights)


@pytest.mark.usefixtures("strict")
def test_training_steps():
    """The steps are of given pairs, of all pairs, and of a loss with parameters and a memory."""
    encoder = train.network(models.ConvNet((12, 12, 1), SIZE, rngs=nnx.Rngs(0)))
    source = train.Source(IMAGES, CLASSES, INDEX)
    # Optax's own Adam takes a float to the power of an integer, which strict dtypes forbid.
    optimizer = optax.sgd(0.1)
    state = train.init_state(encoder, optimizer)

    def value(x, batch, proxies, references, options):
        if references is None:
            return proxy_objective.value(x, batch, proxies, None, {})
        return anchor_objective.value(x, batch, (), references, options)

    proxy_objective = objectives.proxies(losses.soft_triple, centers=2)
    anchor_objective = objectives.anchors(losses.ntxent, temperature=0.1)
    both = train.with_loss(optimizer, optimizer)
    bank = memory.empty(32, SIZE)
    learned = train.init_state(encoder, both, jnp.asarray(PROXIES), memory=bank)
    options = {"augment": augment.shift, "microbatches": 2}
    aged = options | {"max_age": 3}
    steps = [
        (optimizer, objectives.pairs(group=2, margin=0.5), options, state),
        (optimizer, objectives.all_pairs(margin=0.5), options, state),
        (both, Objective(value, distances.cosine, {"temperature": 0.1}), aged, learned),
    ]
    for optimizer, objective, options, before in steps:
        step = train.make_step(encoder, optimizer, objective, **options)
        drawn = (
            train.draws_pairs(step, 8) if objective.separable else train.draws_classes(step, 4, 2)
        )
        hyperparameters = train.Hyperparameters(0, dict(objective.hyperparameters))
        one = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], before)
        mapped = jax.vmap(drawn, (0, None, None), axis_name=train.AXIS)
        jax.eval_shape(mapped, one, source, hyperparameters)


@pytest.mark.usefixtures("strict")
def test_summary_of_drawn_pairs():
    between, _ = drawn_distances(X, CLASSES, distances.euclidean, 6, 0)
    assert np.isfinite(between).all()

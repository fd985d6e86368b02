"""The losses of this library in a few lines of dense `jax.numpy`, as one would write them at hand.

Each takes embeddings `[N, D]` and their classes `[N]`, of which the `k`-th four rows are class `k`,
and returns the mean of its loss. They hold matrices `[N, N]`, and losses of triplets hold
`[N, N, N]`; their gradients are taken by autodiff. They take no care of pairs that are close, of
rows that are to be ignored or of batches in which an anchor has no positive.
"""

import math

import jax
import jax.numpy as jnp


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b.T, precision="highest")


def _unit(x: jax.Array) -> jax.Array:
    return jnp.divide(x, jnp.linalg.norm(x, axis=1, keepdims=True))


def _squared_distances(x: jax.Array) -> jax.Array:
    squares = jnp.sum(x * x, axis=1)
    return squares[:, None] + squares[None] - 2 * _dot(x, x)


def _euclidean(x: jax.Array) -> jax.Array:
    square = _squared_distances(x)
    return jnp.sqrt(jnp.where(square > 0, square, 1e-12))


def _turned(cosine: jax.Array, angle: float) -> jax.Array:
    """Cosine of an angle that is `angle` larger."""
    sine = jnp.sqrt(jnp.maximum(1 - cosine**2, 1e-12))
    return cosine * math.cos(angle) - sine * math.sin(angle)


def _masks(classes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Positive and negative pairs."""
    same = classes[:, None] == classes[None]
    return same & ~jnp.eye(len(classes), dtype=bool), ~same


def _lse(values: jax.Array, mask: jax.Array) -> jax.Array:
    return jax.nn.logsumexp(jnp.where(mask, values, -jnp.inf), axis=-1)


def _mean_over_pairs(classes: jax.Array, pull: jax.Array, push: jax.Array) -> jax.Array:
    """Mean of the first over positive pairs and of the second over negative ones."""
    positive, negative = _masks(classes)
    total = jnp.sum(jnp.where(positive, pull, 0) + jnp.where(negative, push, 0))
    return total / (len(classes) * (len(classes) - 1))


def _mean_where(mask: jax.Array, values: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(mask, values, 0)) / jnp.sum(mask)


def _softmax(own: jax.Array, logits: jax.Array) -> jax.Array:
    """Mean cross entropy, given a mask of the class of each row."""
    chosen = jnp.sum(jnp.where(own, logits, 0), axis=1)
    return jnp.mean(jax.nn.logsumexp(logits, axis=1) - chosen)


def contrastive(x: jax.Array, classes: jax.Array) -> jax.Array:
    distance = _euclidean(x)
    return _mean_over_pairs(classes, distance**2, jnp.maximum(0, 1 - distance) ** 2)


def contrastive_halved(x: jax.Array, classes: jax.Array) -> jax.Array:
    return contrastive(x, classes) / 2


def contrastive_linear(x: jax.Array, classes: jax.Array) -> jax.Array:
    distance = _euclidean(x)
    return _mean_over_pairs(classes, distance, jnp.maximum(0, 1 - distance))


def cosine_embedding(x: jax.Array, classes: jax.Array) -> jax.Array:
    x = _unit(x)
    cosine = _dot(x, x)
    return _mean_over_pairs(classes, 1 - cosine, jnp.maximum(0, cosine))


def sentence_contrastive(x: jax.Array, classes: jax.Array) -> jax.Array:
    x = _unit(x)
    distance = 1 - _dot(x, x)
    return _mean_over_pairs(classes, distance**2 / 2, jnp.maximum(0, 0.5 - distance) ** 2 / 2)


def sigmoid(x: jax.Array, classes: jax.Array) -> jax.Array:
    x, (positive, negative) = _unit(x), _masks(classes)
    logits = 10 * _dot(x, x) - 10
    value = jax.nn.softplus(jnp.where(positive, -logits, logits))
    return jnp.sum(jnp.where(positive | negative, value, 0)) / (len(x) * (len(x) - 1))


def logistic(x: jax.Array, classes: jax.Array) -> jax.Array:
    beyond, (positive, negative) = _squared_distances(x) - 1, _masks(classes)
    value = jax.nn.softplus(jnp.where(positive, beyond, -beyond))
    return jnp.sum(jnp.where(positive | negative, value, 0)) / (len(x) * (len(x) - 1))


def margin_based(x: jax.Array, classes: jax.Array) -> jax.Array:
    beyond = _euclidean(x) - 1.2
    return _mean_over_pairs(classes, jax.nn.relu(0.2 + beyond), jax.nn.relu(0.2 - beyond))


def margin_by_class(x: jax.Array, classes: jax.Array) -> jax.Array:
    beyond, (positive, negative) = _euclidean(x) - 1.2, _masks(classes)
    pull = jnp.where(positive, jax.nn.relu(0.2 + beyond), 0)
    push = jnp.where(negative, jax.nn.relu(0.2 - beyond), 0)
    positives, negatives = jnp.sum(positive, axis=1), jnp.sum(negative, axis=1)
    total = negatives * jnp.sum(pull, axis=1) + positives * jnp.sum(push, axis=1)
    active = negatives * jnp.sum(pull > 0, axis=1) + positives * jnp.sum(push > 0, axis=1)
    return jnp.sum(total) / jnp.sum(active)


def supcon(x: jax.Array, classes: jax.Array) -> jax.Array:
    x, (positive, negative) = _unit(x), _masks(classes)
    logits = _dot(x, x) / 0.1
    log_probability = logits - _lse(logits, positive | negative)[:, None]
    count = jnp.sum(positive, axis=1)
    return -jnp.mean(jnp.sum(jnp.where(positive, log_probability, 0), axis=1) / count)


def ntxent(x: jax.Array, classes: jax.Array) -> jax.Array:
    x, (positive, negative) = _unit(x), _masks(classes)
    logits = _dot(x, x) / 0.07
    others = _lse(logits, negative)[:, None]
    value = jax.nn.softplus(others - logits)
    return _mean_where(positive, value)


def n_pair(x: jax.Array, classes: jax.Array) -> jax.Array:
    logits, (positive, negative) = _dot(x, x), _masks(classes)
    others = _lse(logits, negative)[:, None]
    value = jax.nn.softplus(others - logits)
    return _mean_where(positive, value)


def decoupled(x: jax.Array, classes: jax.Array) -> jax.Array:
    x, (positive, negative) = _unit(x), _masks(classes)
    logits = _dot(x, x) / 0.1
    value = _lse(logits, negative)[:, None] - logits
    return _mean_where(positive, value)


def nca(x: jax.Array, classes: jax.Array) -> jax.Array:
    (positive, negative), logits = _masks(classes), -_squared_distances(x)
    return jnp.mean(_lse(logits, positive | negative) - _lse(logits, positive))


def multi_similarity(x: jax.Array, classes: jax.Array) -> jax.Array:
    x, (positive, negative) = _unit(x), _masks(classes)
    cosine = _dot(x, x) - 0.5
    pull = jnp.log1p(jnp.sum(jnp.where(positive, jnp.exp(-2 * cosine), 0), axis=1)) / 2
    push = jnp.log1p(jnp.sum(jnp.where(negative, jnp.exp(50 * cosine), 0), axis=1)) / 50
    return jnp.mean(pull + push)


def circle(x: jax.Array, classes: jax.Array) -> jax.Array:
    x, (positive, negative) = _unit(x), _masks(classes)
    cosine, margin, scale = _dot(x, x), 0.4, 80.0
    fixed = jax.lax.stop_gradient(cosine)
    pull = -scale * jax.nn.relu(1 + margin - fixed) * (cosine - (1 - margin))
    push = scale * jax.nn.relu(fixed + margin) * (cosine - margin)
    return jnp.mean(jax.nn.softplus(_lse(pull, positive) + _lse(push, negative)))


def tuplet_margin(x: jax.Array, classes: jax.Array) -> jax.Array:
    x, (positive, negative) = _unit(x), _masks(classes)
    cosine = _dot(x, x)
    others = _lse(64 * cosine, negative)[:, None]
    value = jax.nn.softplus(others - 64 * _turned(jnp.where(positive, cosine, 0), -0.1))
    return _mean_where(positive, value)


def lifted(x: jax.Array, classes: jax.Array) -> jax.Array:
    distance, (positive, negative) = _euclidean(x), _masks(classes)
    return jnp.mean(jax.nn.relu(_lse(distance, positive) + _lse(1 - distance, negative)))


def fast_ap(x: jax.Array, classes: jax.Array) -> jax.Array:
    x, (positive, negative) = _unit(x), _masks(classes)
    position = 5 * (1 - _dot(x, x))
    shares = [jax.nn.relu(1 - jnp.abs(position - k)) for k in range(11)]

    def histogram_of(pairs: jax.Array) -> jax.Array:
        return jnp.stack([jnp.sum(jnp.where(pairs, one, 0), axis=1) for one in shares], axis=1)

    positive_histogram, histogram = histogram_of(positive), histogram_of(positive | negative)
    below, seen = jnp.cumsum(positive_histogram, axis=1), jnp.cumsum(histogram, axis=1)
    gained = jnp.where(seen > 0, positive_histogram * below / jnp.where(seen > 0, seen, 1), 0)
    return 1 - jnp.mean(jnp.sum(gained, axis=1) / jnp.sum(positive, axis=1))


def triplet_hard(x: jax.Array, classes: jax.Array) -> jax.Array:
    distance, (positive, negative) = _euclidean(x), _masks(classes)
    farthest = jnp.max(jnp.where(positive, distance, -jnp.inf), axis=1)
    nearest = jnp.min(jnp.where(negative, distance, jnp.inf), axis=1)
    return jnp.mean(jax.nn.relu(farthest - nearest + 0.2))


def triplet_all(x: jax.Array, classes: jax.Array) -> jax.Array:
    distance, (positive, negative) = _euclidean(x), _masks(classes)
    mask = positive[:, :, None] & negative[:, None]
    value = jax.nn.relu(distance[:, :, None] - distance[:, None] + 0.2)
    return _mean_where(mask, value)


def triplet_semi_hard(x: jax.Array, classes: jax.Array) -> jax.Array:
    distance, (positive, negative) = _euclidean(x), _masks(classes)
    farther = negative[:, None] & (distance[:, None] > distance[:, :, None])
    nearest = jnp.min(jnp.where(farther, distance[:, None], jnp.inf), axis=2)
    farthest = jnp.max(jnp.where(negative, distance, -jnp.inf), axis=1)
    other = jnp.where(nearest < jnp.inf, nearest, farthest[:, None])
    value = jax.nn.relu(distance - other + 0.2)
    return _mean_where(positive, value)


def smooth_ap(x: jax.Array, classes: jax.Array) -> jax.Array:
    x, (positive, _) = _unit(x), _masks(classes)
    cosine = _dot(x, x)
    closer = jax.nn.sigmoid((cosine[:, None] - cosine[:, :, None]) / 0.01)
    others = ~jnp.eye(len(x), dtype=bool)
    closer = jnp.where(others[None] & others[:, None], closer, 0)
    rank = 1 + jnp.sum(closer, axis=2)
    rank_among_positives = 1 + jnp.sum(jnp.where(positive[:, None], closer, 0), axis=2)
    precision = jnp.where(positive, rank_among_positives / rank, 0)
    return 1 - jnp.mean(jnp.sum(precision, axis=1) / jnp.sum(positive, axis=1))


def angular(x: jax.Array, classes: jax.Array) -> jax.Array:
    (positive, negative), slope = _masks(classes), jnp.tan(0.7) ** 2
    unit = _unit(x)
    to_all = _dot(unit, x)
    joined = 4 * slope * (to_all[:, None] + to_all[None])
    own = 2 * (1 + slope) * _dot(unit, unit)
    value = jax.nn.softplus(_lse(joined, negative[:, None]) - own)
    return _mean_where(positive, value)


def proxies_of(x: jax.Array) -> jax.Array:
    """One proxy for each class of four rows, `[C, D]`."""
    return x[::4] + 0.1


def centers_of(x: jax.Array) -> jax.Array:
    """Two centres for each class of four rows, `[C, 2, D]`."""
    return x.reshape(-1, 4, x.shape[1])[:, :2] + 0.1


def normalized_softmax(x: jax.Array, classes: jax.Array) -> jax.Array:
    logits = _dot(_unit(x), _unit(proxies_of(x))) / 0.05
    own = jnp.take_along_axis(logits, classes[:, None], axis=1)[:, 0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=1) - own)


def proxy_nca(x: jax.Array, classes: jax.Array) -> jax.Array:
    logits = 18 * (_dot(_unit(x), _unit(proxies_of(x))) - 1)
    own = jnp.take_along_axis(logits, classes[:, None], axis=1)[:, 0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=1) - own)


def cosface(x: jax.Array, classes: jax.Array) -> jax.Array:
    cosine = _dot(_unit(x), _unit(proxies_of(x)))
    own = classes[:, None] == jnp.arange(cosine.shape[1])[None]
    logits = 64 * jnp.where(own, cosine - 0.35, cosine)
    return _softmax(own, logits)


def arcface(x: jax.Array, classes: jax.Array) -> jax.Array:
    cosine = _dot(_unit(x), _unit(proxies_of(x)))
    own = classes[:, None] == jnp.arange(cosine.shape[1])[None]
    logits = 64 * jnp.where(own, _turned(jnp.where(own, cosine, 0), 0.5), cosine)
    return _softmax(own, logits)


def proxy_anchor(x: jax.Array, classes: jax.Array) -> jax.Array:
    cosine = _dot(_unit(proxies_of(x)), _unit(x))
    own = jnp.arange(len(cosine))[:, None] == classes[None]
    pull = jnp.sum(jnp.where(own, jnp.exp(-32 * (cosine - 0.1)), 0), axis=1)
    push = jnp.sum(jnp.where(own, 0, jnp.exp(32 * (cosine + 0.1))), axis=1)
    return jnp.mean(jnp.log1p(pull)) + jnp.mean(jnp.log1p(push))


def soft_triple(x: jax.Array, classes: jax.Array) -> jax.Array:
    centers = centers_of(x)
    count, modes, width = centers.shape
    cosine = _dot(_unit(x), _unit(centers.reshape(-1, width))).reshape(-1, count, modes)
    to_class = jnp.sum(jax.nn.softmax(cosine / 0.1, axis=2) * cosine, axis=2)
    own = classes[:, None] == jnp.arange(count)[None]
    logits = 20 * jnp.where(own, to_class - 0.01, to_class)
    return _softmax(own, logits)


def pair_loss(x: jax.Array, classes: jax.Array) -> jax.Array:
    a, b, label = x[::2], x[1::2], classes[::2] % 2
    distance = jnp.sqrt(jnp.sum((a - b) ** 2, axis=1) + 1e-12)
    value = (1 - label) * distance**2 + label * jnp.maximum(0, 1 - distance) ** 2
    return jnp.mean(value)


def triplet_loss(x: jax.Array, classes: jax.Array) -> jax.Array:
    anchors, positives, negatives = given_triplets(x)

    def distance(others: jax.Array) -> jax.Array:
        return jnp.sqrt(jnp.sum((anchors - others) ** 2, axis=1) + 1e-12)

    return jnp.mean(jax.nn.relu(distance(positives) - distance(negatives) + 0.2))


def given_triplets(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Anchors, positives and negatives of batches with four rows a class, each `[N / 2, D]`."""
    rows = x.reshape(-1, 4, x.shape[1])
    anchors, positives = rows[:, :2], rows[:, 2:]
    negatives = jnp.roll(positives, 1, axis=0)
    shape = -1, x.shape[1]
    return anchors.reshape(shape), positives.reshape(shape), negatives.reshape(shape)

"""Losses of anchors, triples and proxies in float64 NumPy, written out from their definitions.

Each is `name(x, x_classes, y=None, y_classes=None, **hyper)`, a float: without `y` an anchor `i` is
compared with all rows `j != i`, else with every row of `y`. Rows of class -1 are dropped. A mean
over nothing is 0. In place of `x_classes` there may be the labels of all pairs, `[N, M]`: 0, 1, -1
for a pair to ignore, -2 for all pairs of a row to ignore. Of the proxy losses `y` are the proxies
and `y_classes` their classes, 0 to C - 1 by default.
"""

import math

import numpy as np


def cosine(a, b):
    lengths = np.linalg.norm(a) * np.linalg.norm(b)
    return 1 - (0.0 if lengths == 0 else a @ b / lengths)


def euclidean(a, b):
    return np.linalg.norm(a - b)


def squared_euclidean(a, b):
    return ((a - b) ** 2).sum()


def negative_dot(a, b):
    return -(a @ b)


def _unit(a):
    length = np.linalg.norm(a)
    return a / length if length > 0 else 0 * a


def _rows(x, classes):
    classes = np.asarray(classes)
    return np.asarray(x, np.float64)[classes >= 0], classes[classes >= 0]


def _compared(x, x_classes, y, y_classes):
    """For each anchor itself, the rows of its class that it is compared with, and the others."""
    if np.ndim(x_classes) == 2:
        yield from _labelled(np.asarray(x, np.float64), np.asarray(x_classes), y)
        return
    x, x_classes = _rows(x, x_classes)
    one_set = y is None
    y, y_classes = (x, x_classes) if one_set else _rows(y, y_classes)
    for i, (anchor, its_class) in enumerate(zip(x, x_classes, strict=True)):
        others = [j for j in range(len(y)) if not (one_set and i == j)]
        yield (
            anchor,
            [y[j] for j in others if y_classes[j] == its_class],
            [y[j] for j in others if y_classes[j] != its_class],
        )


def _labelled(x, labels, y):
    """The same, by the labels of all pairs."""
    others = x if y is None else np.asarray(y, np.float64)
    for i, anchor in enumerate(x):
        own = np.where((np.arange(len(others)) == i) & (y is None), -1, labels[i])
        if not (labels[i] == -2).all():
            yield anchor, [*others[own == 0]], [*others[own == 1]]


def _distances(distance, *sets):
    """For each anchor the distances of its positives, and of its negatives."""
    for anchor, positives, negatives in _compared(*sets):
        yield (
            np.array([distance(anchor, p) for p in positives]),
            np.array([distance(anchor, n) for n in negatives]),
        )


def _log_sum_exp(values):
    return np.logaddexp.reduce(np.asarray(values, np.float64), initial=-np.inf)


def _mean(values):
    return float(np.mean(values)) if len(values) else 0.0


def _mean_of_active(values):
    return _mean([v for v in values if v != 0])


# A softmax over distances.


def ntxent(x, x_classes, y=None, y_classes=None, *, temperature=0.07, distance=cosine):
    values = []
    for d_p, d_n in _distances(distance, x, x_classes, y, y_classes):
        negatives = np.exp(-d_n / temperature).sum()
        for positive in np.exp(-d_p / temperature):
            values.append(-np.log(positive / (positive + negatives)))
    return _mean(values)


def supcon(x, x_classes, y=None, y_classes=None, *, temperature=0.1, log="outside"):
    values = []
    for d_p, d_n in _distances(cosine, x, x_classes, y, y_classes):
        positives, negatives = np.exp(-d_p / temperature), np.exp(-d_n / temperature)
        probability = positives / (positives.sum() + negatives.sum())
        if len(d_p) and log == "outside":
            values.append(-np.mean(np.log(probability)))
        elif len(d_p):
            values.append(-np.log(np.mean(probability)))
    return _mean(values)


def decoupled(x, x_classes, y=None, y_classes=None, *, temperature=0.1):
    values = []
    for d_p, d_n in _distances(cosine, x, x_classes, y, y_classes):
        if len(d_n):
            negatives = np.exp(-d_n / temperature).sum()
            values += [d / temperature + np.log(negatives) for d in d_p]
    return _mean(values)


def n_pair(x, x_classes, y=None, y_classes=None):
    values = []
    for anchor, positives, negatives in _compared(x, x_classes, y, y_classes):
        for p in positives:
            values.append(_log_sum_exp([0, *[anchor @ n - anchor @ p for n in negatives]]))
    return _mean(values)


def nca(x, x_classes, y=None, y_classes=None, *, scale=1.0, distance=squared_euclidean):
    values = []
    for d_p, d_n in _distances(distance, x, x_classes, y, y_classes):
        if len(d_p):
            values.append(_log_sum_exp([*(-scale * d_p), *(-scale * d_n)]))
            values[-1] -= _log_sum_exp(-scale * d_p)
    return _mean(values)


# Pairs weighed against each other.


def lifted(x, x_classes, y=None, y_classes=None, *, margin=1.0, positive_margin=0.0):
    values = []
    for d_p, d_n in _distances(euclidean, x, x_classes, y, y_classes):
        farthest = _log_sum_exp(d_p - positive_margin) if len(d_p) else 0.0
        nearest = _log_sum_exp(margin - d_n) if len(d_n) else 0.0
        values.append(max(0.0, farthest + nearest))
    return _mean(values)


def multi_similarity(x, x_classes, y=None, y_classes=None, *, alpha=2.0, beta=50.0, base=0.5):
    values = []
    for d_p, d_n in _distances(cosine, x, x_classes, y, y_classes):
        s_p, s_n = 1 - d_p, 1 - d_n
        values.append(
            np.log(1 + np.exp(-alpha * (s_p - base)).sum()) / alpha
            + np.log(1 + np.exp(beta * (s_n - base)).sum()) / beta
        )
    return _mean(values)


def circle(x, x_classes, y=None, y_classes=None, *, margin=0.4, scale=80.0, frozen=None):
    """`frozen` is the `x`, of two sets `(x, y)`, at which the weights are taken; `x` by default."""
    frozen_x, frozen_y = frozen if isinstance(frozen, tuple) else (frozen, y)
    frozen_x = x if frozen is None else frozen_x
    values = []
    for (d_p, d_n), (e_p, e_n) in zip(
        _distances(cosine, x, x_classes, y, y_classes),
        _distances(cosine, frozen_x, x_classes, frozen_y, y_classes),
        strict=True,
    ):
        s_p, s_n = 1 - d_p, 1 - d_n
        w_p, w_n = np.maximum(0, 1 + margin - (1 - e_p)), np.maximum(0, (1 - e_n) + margin)
        positives = np.exp(-scale * w_p * (s_p - (1 - margin))).sum()
        negatives = np.exp(scale * w_n * (s_n - margin)).sum()
        values.append(np.log(1 + negatives * positives))
    return _mean_of_active(values)


def tuplet_margin(x, x_classes, y=None, y_classes=None, *, margin=0.1, scale=64.0):
    values = []
    for d_p, d_n in _distances(cosine, x, x_classes, y, y_classes):
        for angle in np.arccos(np.clip(1 - d_p, -1, 1)):
            values.append(np.log(1 + np.exp(scale * (1 - d_n - np.cos(angle - margin))).sum()))
    return _mean(values)


def margin_by_class(x, x_classes, y=None, y_classes=None, *, boundaries, margin=0.2):
    """`boundaries` are those of the anchors."""
    counts = np.asarray(x_classes)
    counts = (counts != -2).any(1) if counts.ndim == 2 else counts >= 0
    boundaries = np.asarray(boundaries, np.float64)[counts]
    values = []
    for boundary, (d_p, d_n) in zip(
        boundaries, _distances(euclidean, x, x_classes, y, y_classes), strict=True
    ):
        for p in d_p:
            for n in d_n:
                values.append(max(0.0, margin + p - boundary))
                values.append(max(0.0, margin + boundary - n))
    return _mean_of_active(values)


# Triplets.


def _hinge(violation, smooth):
    return np.logaddexp(0, violation) if smooth else max(0.0, violation)


def triplet_hard(x, x_classes, y=None, y_classes=None, *, margin=0.2, smooth=False):
    values = []
    for d_p, d_n in _distances(euclidean, x, x_classes, y, y_classes):
        if len(d_p) and len(d_n):
            values.append(_hinge(max(d_p) - min(d_n) + margin, smooth))
    return _mean(values)


def triplet_semi_hard(x, x_classes, y=None, y_classes=None, *, margin=0.2):
    values = []
    for d_p, d_n in _distances(euclidean, x, x_classes, y, y_classes):
        for positive in d_p if len(d_n) else []:
            farther = [negative for negative in d_n if negative > positive]
            negative = min(farther) if farther else max(d_n)
            values.append(max(0.0, positive - negative + margin))
    return _mean(values)


def triplet_all(
    x, x_classes, y=None, y_classes=None, *, margin=0.2, smooth=False, reduction="mean"
):
    values = []
    for d_p, d_n in _distances(euclidean, x, x_classes, y, y_classes):
        for positive in d_p:
            for negative in d_n:
                values.append(_hinge(positive - negative + margin, smooth))
    return _mean_of_active(values) if reduction == "active" else _mean(values)


def angular(x, x_classes, y=None, y_classes=None, *, alpha=0.7):
    slope = math.tan(alpha) ** 2
    values = []
    for anchor, positives, negatives in _compared(x, x_classes, y, y_classes):
        a = _unit(anchor)
        for positive in positives:
            p = _unit(positive)
            terms = [4 * slope * (a + p) @ n - 2 * (1 + slope) * a @ p for n in negatives]
            values.append(_log_sum_exp([0, *terms]))
    return _mean(values)


# Average precision.


def fast_ap(x, x_classes, y=None, y_classes=None, *, bins=10):
    width = 4 / bins
    values = []
    for d_p, d_n in _distances(cosine, x, x_classes, y, y_classes):
        if not len(d_p):
            continue
        positive_counts, negative_counts = np.zeros(bins + 1), np.zeros(bins + 1)
        for histogram, distances in ((positive_counts, d_p), (negative_counts, d_n)):
            for squared in 2 * distances:  # squared Euclidean distances on the unit sphere
                for k in range(bins + 1):
                    histogram[k] += max(0.0, 1 - abs(squared - k * width) / width)
        precision = 0.0
        for k in range(bins + 1):
            positives = positive_counts[: k + 1].sum()
            everything = positives + negative_counts[: k + 1].sum()
            if everything > 0:
                precision += positive_counts[k] * positives / everything
        values.append(1 - precision / len(d_p))
    return _mean(values)


def smooth_ap(x, x_classes, y=None, y_classes=None, *, temperature=0.01, include_query=False):
    def sigmoid(difference):
        return 0.5 * (1 + math.tanh(difference / temperature / 2))

    def rank(distances, k):
        others = [j for j in range(len(distances)) if j != k]
        return 1 + sum(sigmoid(distances[k] - distances[j]) for j in others)

    values = []
    for d_p, d_n in _distances(cosine, x, x_classes, y, y_classes):
        if not len(d_p):
            continue
        d_p = [*d_p, 0.0] if include_query else list(d_p)
        precisions = [rank(d_p, k) / rank([*d_p, *d_n], k) for k in range(len(d_p))]
        values.append(1 - np.mean(precisions))
    return _mean(values)


# Proxies.


def _proxies(y, y_classes):
    return np.arange(len(y)) if y_classes is None else y_classes


def normalized_softmax(x, x_classes, y, y_classes=None, *, temperature=0.05):
    return nca(x, x_classes, y, _proxies(y, y_classes), scale=1 / temperature, distance=cosine)


def proxy_nca(x, x_classes, y, y_classes=None, *, temperature=1 / 9):
    def distance(a, b):
        return squared_euclidean(_unit(a), _unit(b))

    values = []
    for d_p, d_n in _distances(distance, x, x_classes, y, _proxies(y, y_classes)):
        own, others = np.exp(-d_p / temperature).sum(), np.exp(-d_n / temperature).sum()
        if len(d_p):
            values.append(-np.log(own / (own + others)))
    return _mean(values)


def proxy_anchor(x, x_classes, y, y_classes=None, *, margin=0.1, alpha=32.0):
    pull, push = [], []
    for d_p, d_n in _distances(cosine, y, _proxies(y, y_classes), x, x_classes):
        if len(d_p):
            pull.append(np.log(1 + np.exp(-alpha * (1 - d_p - margin)).sum()))
        push.append(np.log(1 + np.exp(alpha * (1 - d_n + margin)).sum()))
    return _mean(pull) + _mean(push)


def _with_margin(own, similarities, scale):
    """Takes the similarities with the own class and with the others, for each anchor."""
    values = []
    for s_own, s_others in similarities:
        if len(s_own):
            logit = np.exp(scale * own(max(s_own)))
            values.append(-np.log(logit / (logit + np.exp(scale * np.array(s_others)).sum())))
    return _mean(values)


def _similarities(*sets):
    return [(1 - d_p, 1 - d_n) for d_p, d_n in _distances(cosine, *sets)]


def cosface(x, x_classes, y, y_classes=None, *, margin=0.35, scale=64.0):
    similarities = _similarities(x, x_classes, y, _proxies(y, y_classes))
    return _with_margin(lambda s: s - margin, similarities, scale)


def arcface(x, x_classes, y, y_classes=None, *, margin=0.5, scale=64.0):
    def own(s):
        angle = np.arccos(np.clip(s, -1, 1))
        if angle + margin > np.pi:
            return s - margin * np.sin(margin)
        return np.cos(angle + margin)

    similarities = _similarities(x, x_classes, y, _proxies(y, y_classes))
    return _with_margin(own, similarities, scale)


def soft_triple(x, x_classes, y, y_classes=None, *, margin=0.01, scale=20.0, gamma=0.1):
    """`y` are the centres, `[C, K, D]`."""

    def similarity(anchor, centers):
        each = np.array([_unit(anchor) @ _unit(center) for center in centers])
        return (np.exp(each / gamma) / np.exp(each / gamma).sum()) @ each

    x, x_classes = _rows(x, x_classes)
    y, y_classes = _rows(y, _proxies(y, y_classes))
    similarities = []
    for anchor, own in zip(x, x_classes, strict=True):
        each = [similarity(anchor, centers) for centers in y]
        similarities.append(
            (
                [s for s, of in zip(each, y_classes, strict=True) if of == own],
                [s for s, of in zip(each, y_classes, strict=True) if of != own],
            )
        )
    return _with_margin(lambda s: s - margin, similarities, scale)

"""Losses with their gradients at usual batch sizes, beside the few lines of JAX one would write.

    pip install -e '.[bench]'
    python -m experiments.benchmarks.small_batches --results experiments/benchmarks/results

Each row is one loss, here and as dense `jax.numpy` whose gradient is taken by autodiff, of the same
embeddings: float32, unit vectors, four rows a class. Both are compiled by `jax.jit` and called in
turn in one process; times are the least of the rounds, so that other programs count little.
Compilation is tracing and compiling, both in processor seconds, with JAX's caches empty. The dense
form of a loss of triplets takes memory for every triplet and is left out beyond `--triplet_rows`.
The largest difference of values and gradients from the dense form is printed too.
"""

import dataclasses
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from contrastive_jax._extras import needs

with needs("bench", "experiments.benchmarks.small_batches"):
    import tyro

from contrastive_jax import all_pairs_loss, anchor_loss, losses, pair_loss, proxy_loss


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the benchmark."""

    rows: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)
    """Numbers of rows of a batch."""
    width: int = 64
    """Entries of an embedding."""
    rounds: int = 100
    """Rounds, of which the fastest is shown."""
    seconds: float = 1.0
    """Time after which no more rounds of a batch begin."""
    triplet_rows: int = 512
    """Largest number of rows of the dense losses of triplets."""
    only: tuple[str, ...] = ()
    """Names of losses; all by default."""
    results: Path | None = None
    """Folder for the figures as JSON."""


class Contender(NamedTuple):
    """A loss of embeddings and classes, here and in a few lines."""

    ours: Callable[[jax.Array, jax.Array], jax.Array]
    dense: Callable[[jax.Array, jax.Array], jax.Array]
    triplets: bool = False


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b.T, precision="highest")


def _unit(x: jax.Array) -> jax.Array:
    return jnp.divide(x, jnp.linalg.norm(x, axis=1, keepdims=True))


def _euclidean(x: jax.Array) -> jax.Array:
    squares = jnp.sum(x * x, axis=1)
    square = squares[:, None] + squares[None] - 2 * _dot(x, x)
    return jnp.sqrt(jnp.where(square > 0, square, 1e-12))


def _masks(classes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Positive and negative pairs."""
    same = classes[:, None] == classes[None]
    return same & ~jnp.eye(len(classes), dtype=bool), ~same


def _lse(values: jax.Array, mask: jax.Array) -> jax.Array:
    return jax.nn.logsumexp(jnp.where(mask, values, -jnp.inf), axis=-1)


def contrastive(x: jax.Array, classes: jax.Array) -> jax.Array:
    distance, (positive, negative) = _euclidean(x), _masks(classes)
    pull = jnp.where(positive, distance**2, 0)
    push = jnp.where(negative, jnp.maximum(0, 1 - distance) ** 2, 0)
    return jnp.sum(pull + push) / (len(x) * (len(x) - 1))


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
    value = jnp.logaddexp(logits, others) - logits
    return jnp.sum(jnp.where(positive, value, 0)) / jnp.sum(positive)


def nca(x: jax.Array, classes: jax.Array) -> jax.Array:
    (positive, negative), logits = _masks(classes), -(_euclidean(x) ** 2)
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


def triplet_hard(x: jax.Array, classes: jax.Array) -> jax.Array:
    distance, (positive, negative) = _euclidean(x), _masks(classes)
    farthest = jnp.max(jnp.where(positive, distance, -jnp.inf), axis=1)
    nearest = jnp.min(jnp.where(negative, distance, jnp.inf), axis=1)
    return jnp.mean(jax.nn.relu(farthest - nearest + 0.2))


def triplet_all(x: jax.Array, classes: jax.Array) -> jax.Array:
    distance, (positive, negative) = _euclidean(x), _masks(classes)
    mask = positive[:, :, None] & negative[:, None]
    value = jax.nn.relu(distance[:, :, None] - distance[:, None] + 0.2)
    return jnp.sum(jnp.where(mask, value, 0)) / jnp.sum(mask)


def triplet_semi_hard(x: jax.Array, classes: jax.Array) -> jax.Array:
    distance, (positive, negative) = _euclidean(x), _masks(classes)
    farther = negative[:, None] & (distance[:, None] > distance[:, :, None])
    nearest = jnp.min(jnp.where(farther, distance[:, None], jnp.inf), axis=2)
    farthest = jnp.max(jnp.where(negative, distance, -jnp.inf), axis=1)
    other = jnp.where(nearest < jnp.inf, nearest, farthest[:, None])
    value = jax.nn.relu(distance - other + 0.2)
    return jnp.sum(jnp.where(positive, value, 0)) / jnp.sum(positive)


def smooth_ap(x: jax.Array, classes: jax.Array) -> jax.Array:
    x, (positive, _) = _unit(x), _masks(classes)
    cosine = _dot(x, x)
    closer = jax.nn.sigmoid((cosine[:, None] - cosine[:, :, None]) / 0.01)
    others = ~jnp.eye(len(x), dtype=bool)
    closer = jnp.where(others[None] & others[:, None], closer, 0)
    rank = 1 + jnp.sum(closer, axis=2)
    rank_of_positives = 1 + jnp.sum(jnp.where(positive[:, None], closer, 0), axis=2)
    precision = jnp.where(positive, rank_of_positives / rank, 0)
    return 1 - jnp.mean(jnp.sum(precision, axis=1) / jnp.sum(positive, axis=1))


def angular(x: jax.Array, classes: jax.Array) -> jax.Array:
    (positive, negative), slope = _masks(classes), jnp.tan(0.7) ** 2
    unit = _unit(x)
    to_all = _dot(unit, x)
    joined = 4 * slope * (to_all[:, None] + to_all[None])
    own = 2 * (1 + slope) * _dot(unit, unit)
    value = jax.nn.softplus(_lse(joined, negative[:, None]) - own)
    return jnp.sum(jnp.where(positive, value, 0)) / jnp.sum(positive)


def _proxies(x: jax.Array) -> jax.Array:
    """One proxy for each class of four rows."""
    return x[::4] + 0.1


def normalized_softmax(x: jax.Array, classes: jax.Array) -> jax.Array:
    logits = _dot(_unit(x), _unit(_proxies(x))) / 0.05
    own = jnp.take_along_axis(logits, classes[:, None], axis=1)[:, 0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=1) - own)


def arcface(x: jax.Array, classes: jax.Array) -> jax.Array:
    cosine = _dot(_unit(x), _unit(_proxies(x)))
    own = classes[:, None] == jnp.arange(cosine.shape[1])[None]
    angle = jnp.arccos(jnp.clip(jnp.where(own, cosine, 0), -1 + 1e-7, 1 - 1e-7))
    logits = 64 * jnp.where(own, jnp.cos(angle + 0.5), cosine)
    chosen = jnp.sum(jnp.where(own, logits, 0), axis=1)
    return jnp.mean(jax.nn.logsumexp(logits, axis=1) - chosen)


def proxy_anchor(x: jax.Array, classes: jax.Array) -> jax.Array:
    cosine = _dot(_unit(_proxies(x)), _unit(x))
    own = jnp.arange(len(cosine))[:, None] == classes[None]
    pull = jnp.sum(jnp.where(own, jnp.exp(-32 * (cosine - 0.1)), 0), axis=1)
    push = jnp.sum(jnp.where(own, 0, jnp.exp(32 * (cosine + 0.1))), axis=1)
    return jnp.mean(jnp.log1p(pull)) + jnp.mean(jnp.log1p(push))


def given_pairs(x: jax.Array, classes: jax.Array) -> jax.Array:
    a, b, label = x[::2], x[1::2], classes[::2] % 2
    distance = jnp.sqrt(jnp.sum((a - b) ** 2, axis=1) + 1e-12)
    value = (1 - label) * distance**2 + label * jnp.maximum(0, 1 - distance) ** 2
    return jnp.mean(value)


def _ours_of_pairs(x: jax.Array, classes: jax.Array) -> jax.Array:
    return jnp.mean(pair_loss(x[::2], x[1::2], classes[::2] % 2, margin=1.0))


def _anchor_value(loss: Any) -> Callable[..., jax.Array]:
    return functools.partial(anchor_loss, loss=loss)


def _proxy_value(loss: Any) -> Callable[..., jax.Array]:
    return lambda x, classes: proxy_loss(x, classes, _proxies(x), loss=loss)


CONTENDERS = {
    "pair_loss": Contender(_ours_of_pairs, given_pairs),
    "contrastive": Contender(functools.partial(all_pairs_loss, margin=1.0), contrastive),
    "supcon": Contender(_anchor_value(losses.supcon(0.1)), supcon),
    "ntxent": Contender(_anchor_value(losses.ntxent(0.07)), ntxent),
    "nca": Contender(_anchor_value(losses.nca()), nca),
    "multi_similarity": Contender(_anchor_value(losses.multi_similarity()), multi_similarity),
    "circle": Contender(_anchor_value(losses.circle()), circle),
    "triplet_hard": Contender(_anchor_value(losses.triplet_hard(0.2)), triplet_hard),
    "triplet_all": Contender(_anchor_value(losses.triplet_all(0.2)), triplet_all, True),
    "triplet_semi_hard": Contender(
        _anchor_value(losses.triplet_semi_hard(0.2)), triplet_semi_hard, True
    ),
    "smooth_ap": Contender(_anchor_value(losses.smooth_ap(0.01)), smooth_ap, True),
    "angular": Contender(_anchor_value(losses.angular(0.7)), angular, True),
    "normalized_softmax": Contender(
        _proxy_value(losses.normalized_softmax(0.05)), normalized_softmax
    ),
    "arcface": Contender(_proxy_value(losses.arcface()), arcface),
    "proxy_anchor": Contender(_proxy_value(losses.proxy_anchor()), proxy_anchor),
}


def make_data(rows: int, width: int) -> tuple[jax.Array, jax.Array]:
    """Random unit vectors, four of each class, in random order."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, width))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return jnp.asarray(x, jnp.float32), jnp.asarray(np.arange(rows) // 4)


def compiled(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """A compiled program for value and gradient, and the processor seconds that this took."""
    jax.clear_caches()
    start = time.process_time()
    program = jax.jit(jax.value_and_grad(function)).lower(*arguments).compile()
    return program, time.process_time() - start


def measure(contender: Contender, rows: int, config: Config) -> dict[str, float]:
    """Times, compilation and differences of both forms of a loss."""
    data = make_data(rows, config.width)
    forms = [contender.ours]
    if not contender.triplets or rows <= config.triplet_rows:
        forms.append(contender.dense)
    programs = [compiled(form, *data) for form in forms]
    times: list[list[float]] = [[] for _ in programs]
    outputs = [jax.block_until_ready(program(*data)) for program, _ in programs]
    end = time.perf_counter() + config.seconds
    for _ in range(config.rounds):
        if times[0] and time.perf_counter() > end:
            break
        for (program, _), seconds in zip(programs, times, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(program(*data))
            seconds.append(time.perf_counter() - start)
    figures = {"ms": 1e3 * min(times[0]), "compilation": programs[0][1]}
    if len(programs) == 2:
        (value, gradient), (other, its_gradient) = outputs
        figures |= {
            "dense_ms": 1e3 * min(times[1]),
            "dense_compilation": programs[1][1],
            "value_differs": float(abs(value - other) / abs(other)),
            "gradient_differs": float(
                jnp.max(jnp.abs(gradient - its_gradient)) / jnp.max(jnp.abs(its_gradient))
            ),
        }
    return figures


def table(measured: dict[str, dict[int, dict[str, float]]], rows: tuple[int, ...]) -> str:
    """Ratios to the dense form: time, and compilation in brackets; and the crossover."""
    lines = [
        "| loss | " + " | ".join(f"{count:,}" for count in rows) + " | no slower from |",
        "| --- |" + " ---: |" * (len(rows) + 1),
    ]
    for name, by_rows in measured.items():
        cells = []
        for count in rows:
            one = by_rows[count]
            if "dense_ms" in one:
                ratio = one["ms"] / one["dense_ms"]
                compilation = one["compilation"] / one["dense_compilation"]
                cells.append(f"{ratio:.2f} ({compilation:.1f})")
            else:
                cells.append(f"{one['ms']:.1f} ms")
        cells.append(f"{first:,}" if (first := crossover(by_rows)) else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def crossover(by_rows: dict[int, dict[str, float]]) -> int | None:
    """Number of rows from which on none takes longer than the dense form; None if the last does."""
    first = None
    for rows, one in sorted(by_rows.items(), reverse=True):
        if "dense_ms" in one:
            if one["ms"] > one["dense_ms"]:
                break
            first = rows
    return first


def run(config: Config) -> dict[str, dict[int, dict[str, float]]]:
    """Measures every loss and prints the table."""
    measured: dict[str, dict[int, dict[str, float]]] = {}
    for name in config.only or CONTENDERS:
        measured[name] = {rows: measure(CONTENDERS[name], rows, config) for rows in config.rows}
    device = jax.devices()[0]
    print(f"{device.device_kind}, jax {jax.__version__}: times of the dense form (compilation)")
    print(table(measured, config.rows))
    for what in ("value_differs", "gradient_differs"):
        differences = [
            (one[what], name, rows)
            for name, by_rows in measured.items()
            for rows, one in by_rows.items()
            if what in one
        ]
        if differences:
            worst, name, rows = max(differences)
            print(f"{what}: at most {worst:.1e} ({name}, {rows} rows)")
    if config.results:
        kind = "cpu" if device.platform == "cpu" else device.device_kind.replace(" ", "_").lower()
        path = config.results / f"small_batches_{kind}.json"
        content = {
            "device": device.device_kind,
            "jax": jax.__version__,
            "measured": measured,
            "no_slower_from": {name: crossover(by_rows) for name, by_rows in measured.items()},
        }
        path.write_text(json.dumps(content, indent=1))
        print(path)
    return measured


if __name__ == "__main__":
    run(tyro.cli(Config, description=__doc__))

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

from contrastive_jax import (
    all_pairs_loss,
    anchor_loss,
    losses,
    pair_loss,
    proxy_loss,
    triplet_loss,
)
from contrastive_jax.losses import AnchorLoss, ProxyLoss, TripletLoss
from experiments.benchmarks import dense_losses


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


def _pair_loss(x: jax.Array, classes: jax.Array) -> jax.Array:
    return jnp.mean(pair_loss(x[::2], x[1::2], classes[::2] % 2, margin=1.0))


def _triplet_loss(x: jax.Array, classes: jax.Array) -> jax.Array:
    return jnp.mean(triplet_loss(*dense_losses.given_triplets(x), loss=losses.triplet_all(0.2)))


def _margin_by_class(x: jax.Array, classes: jax.Array) -> jax.Array:
    boundaries = jnp.full(len(x), 1.2)
    return anchor_loss(x, classes, loss=losses.margin_by_class(), data=(boundaries,))


def _all_pairs(loss: Callable[..., jax.Array], **options: Any) -> Callable[..., jax.Array]:
    return functools.partial(all_pairs_loss, loss=loss, **options)


def _anchors(loss: AnchorLoss | TripletLoss) -> Callable[..., jax.Array]:
    return functools.partial(anchor_loss, loss=loss)


def _proxies(loss: ProxyLoss) -> Callable[..., jax.Array]:
    return lambda x, classes: proxy_loss(x, classes, dense_losses.proxies_of(x), loss=loss)


def _centers(x: jax.Array, classes: jax.Array) -> jax.Array:
    return proxy_loss(x, classes, dense_losses.centers_of(x), loss=losses.soft_triple())


OURS = {
    "pair_loss": _pair_loss,
    "triplet_loss": _triplet_loss,
    "contrastive": _all_pairs(losses.contrastive, margin=1.0),
    "contrastive_halved": _all_pairs(losses.contrastive_halved, margin=1.0),
    "contrastive_linear": _all_pairs(losses.contrastive_linear, margin=1.0),
    "cosine_embedding": _all_pairs(losses.cosine_embedding),
    "sentence_contrastive": _all_pairs(losses.sentence_contrastive),
    "sigmoid": _all_pairs(losses.sigmoid),
    "logistic": _all_pairs(losses.logistic),
    "margin_based": _all_pairs(losses.margin_based),
    "margin_by_class": _margin_by_class,
    "supcon": _anchors(losses.supcon(0.1)),
    "ntxent": _anchors(losses.ntxent(0.07)),
    "n_pair": _anchors(losses.n_pair()),
    "decoupled": _anchors(losses.decoupled(0.1)),
    "nca": _anchors(losses.nca()),
    "multi_similarity": _anchors(losses.multi_similarity()),
    "circle": _anchors(losses.circle()),
    "tuplet_margin": _anchors(losses.tuplet_margin()),
    "lifted": _anchors(losses.lifted()),
    "fast_ap": _anchors(losses.fast_ap()),
    "triplet_hard": _anchors(losses.triplet_hard(0.2)),
    "triplet_all": _anchors(losses.triplet_all(0.2)),
    "triplet_semi_hard": _anchors(losses.triplet_semi_hard(0.2)),
    "smooth_ap": _anchors(losses.smooth_ap(0.01)),
    "angular": _anchors(losses.angular(0.7)),
    "normalized_softmax": _proxies(losses.normalized_softmax(0.05)),
    "proxy_nca": _proxies(losses.proxy_nca()),
    "cosface": _proxies(losses.cosface()),
    "arcface": _proxies(losses.arcface()),
    "proxy_anchor": _proxies(losses.proxy_anchor()),
    "soft_triple": _centers,
}
TRIPLETS = "triplet_all", "triplet_semi_hard", "smooth_ap", "angular"
CONTENDERS = {
    name: Contender(ours, getattr(dense_losses, name), name in TRIPLETS)
    for name, ours in OURS.items()
}


def make_data(rows: int, width: int) -> tuple[jax.Array, jax.Array]:
    """Random unit vectors, four of each class, one class after another."""
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

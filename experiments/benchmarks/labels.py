"""Labels of two rows beside classes: time of the loss over all pairs with its gradient.

    pip install -e '.[bench]'
    python -m experiments.benchmarks.labels --results experiments/benchmarks/results

All contenders have the same embeddings, float32 unit vectors of ten classes in random order, and
are called in turn in one process. A ratio is that of the least times of the rounds, which other
work on the machine disturbs the least. The first row is the loss by classes, without a function of
labels.
"""

import dataclasses
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from contrastive_jax._extras import needs

with needs("bench", "experiments.benchmarks.labels"):
    import tyro

from contrastive_jax import all_pairs_loss, anchor_loss, labels, losses

CLASSES, GROUPS = 10, 6
LOSSES: dict[str, Callable[..., jax.Array]] = {
    "all_pairs_loss": partial(all_pairs_loss, margin=1.3),
    "anchor_loss": partial(anchor_loss, loss=losses.supcon(0.1)),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the benchmark."""

    rows: int = 8192
    """Rows of a batch."""
    width: int = 128
    """Entries of an embedding."""
    rounds: int = 15
    """Rounds, of which the least times are shown."""
    results: Path | None = None
    """Folder for the figures as JSON."""


def rules(rows: int) -> dict[str, tuple[Any, Any]]:
    """For each contender its labels and attributes."""
    rng = np.random.default_rng(0)
    classes = rng.permutation(np.arange(rows) % CLASSES).astype(np.int32)
    groups = rng.integers(0, GROUPS, rows).astype(np.int32)
    paths = np.stack([classes // 5, classes, groups], axis=1)
    tags = labels.as_bits(
        [[one, CLASSES + group] for one, group in zip(classes, groups, strict=True)], 64
    )
    pairs = np.arange(rows).reshape(-1, 2)
    other_group = labels.same_class_other_group()
    return {
        "classes": (None, classes),
        "same_class": (labels.same_class(), classes),
        "same_class_other_group": (other_group, (classes, groups)),
        "the same without class_of": (other_group.function, (classes, groups)),
        "any_shared, 64 labels": (labels.any_shared(), tags),
        "hierarchy(2)": (labels.hierarchy(2), paths),
        "within": (labels.within(0.1), rng.uniform(0, 1, rows).astype(np.float32)),
        "given_pairs": (labels.given_pairs(pairs), np.arange(rows, dtype=np.int32)),
    }


def measure(loss: Callable[..., jax.Array], config: Config) -> dict[str, float]:
    """Least seconds of a loss with its gradient by the embeddings, for each contender."""
    vectors = np.random.default_rng(1).standard_normal((config.rows, config.width))
    x = jnp.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), jnp.float32)
    calls = {}
    for name, (rule, attributes) in rules(config.rows).items():
        program = jax.jit(jax.value_and_grad(partial(loss, labels=rule)))
        calls[name] = partial(program, x, jax.tree.map(jnp.asarray, attributes))
        jax.block_until_ready(calls[name]())
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(config.rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            times[name].append(time.perf_counter() - start)
    return {name: min(one) for name, one in times.items()}


def run(config: Config) -> dict[str, dict[str, float]]:
    """Measures every contender and prints the table."""
    measured = {name: measure(loss, config) for name, loss in LOSSES.items()}
    device = jax.devices()[0]
    print(
        f"{device.device_kind}, jax {jax.__version__}, {config.rows:,} rows: milliseconds (ratio)"
    )
    print("| labels | " + " | ".join(measured) + " |\n| --- |" + " ---: |" * len(measured))
    for name in measured["all_pairs_loss"]:
        cells = [
            f"{1e3 * one[name]:.0f} ({one[name] / one['classes']:.2f})" for one in measured.values()
        ]
        print(f"| {name} | " + " | ".join(cells) + " |")
    if config.results:
        kind = "cpu" if device.platform == "cpu" else device.device_kind.replace(" ", "_").lower()
        path = config.results / f"labels_{kind}.json"
        record = {"device": device.device_kind, "rows": config.rows, "width": config.width}
        path.write_text(json.dumps(record | {"seconds": measured}, indent=1) + "\n")
        print(path)
    return measured


if __name__ == "__main__":
    run(tyro.cli(Config, description=__doc__))

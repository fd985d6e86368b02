"""Retrieval of a large set, in turn with faiss and pytorch-metric-learning.

    pip install -e '.[bench]'
    python -m experiments.benchmarks.retrieval --results experiments/benchmarks/results

Each of the embeddings (float32, normally distributed about the centre of its class) is a query
among all others. `retrieval` computes all its figures, `nearest_neighbours` the 10 nearest, faiss
(`IndexFlatL2`) the 11 nearest, the query included, and pytorch-metric-learning
(`AccuracyCalculator`) precision at 1, R-precision and MAP@R. Figures here are compared with those
that float64 gives alone. With ten classes R is too large for a sweep, and float64 ranks all. On a
GPU the sweep runs there, and the peers on the processors of the host.
"""

import dataclasses
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from contrastive_jax._extras import needs

with needs("bench", "experiments.benchmarks.retrieval"):
    import faiss
    import torch
    import tyro
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

from contrastive_jax.evaluation import retrieval as module

K = 10
SHARED = {"precision_at_1", "r_precision", "mean_average_precision_at_r"}


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the benchmark."""

    rows: int = 60_000
    """Embeddings."""
    width: int = 128
    """Width of the embeddings."""
    members: int = 4
    """Embeddings of a class."""
    ten_classes: bool = True
    """Times ten classes as well."""
    results: Path | None = None
    """Folder for the figures as JSON."""


def make_data(rows: int, width: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Makes embeddings and their classes."""
    rng = np.random.default_rng(0)
    names = np.arange(rows) % classes
    x = 0.8 * rng.normal(size=(classes, width))[names] + rng.normal(size=(rows, width))
    return x.astype(np.float32), names


def timed(name: str, call: Callable[[], Any], table: list[dict[str, Any]]) -> Any:
    """Calls once, and adds a row with seconds and seconds of all processors to the table."""
    wall, processors = time.perf_counter(), time.process_time()
    result = call()
    row = {
        "call": name,
        "seconds": time.perf_counter() - wall,
        "cpu seconds": time.process_time() - processors,
    }
    table.append(row)
    print(f"| {name} | {row['seconds']:.1f} | {row['cpu seconds']:.1f} |", flush=True)
    return result


def in_float64(call: Callable[[], Any]) -> Any:
    """Calls with a set of any size ranked in float64 alone."""
    swept_from, module.SWEPT_FROM = module.SWEPT_FROM, 2**62
    try:
        return call()
    finally:
        module.SWEPT_FROM = swept_from


def faiss_search(x: np.ndarray) -> np.ndarray:
    """Searches the nearest of each query, itself included."""
    index = faiss.IndexFlatL2(x.shape[1])
    index.add(x)
    indices: np.ndarray = index.search(x, K + 1)[1]
    return indices


def calculator_figures(x: np.ndarray, classes: np.ndarray) -> dict[str, float]:
    """Computes the figures of pytorch-metric-learning."""
    calculator = AccuracyCalculator(include=tuple(SHARED), k="max_bin_count")
    figures: dict[str, float] = calculator.get_accuracy(
        torch.from_numpy(x), torch.from_numpy(classes)
    )
    return figures


def main(config: Config) -> None:
    """Runs the benchmark, prints its table and checks the figures."""
    threads, device = len(os.sched_getaffinity(0)), jax.devices()[0]
    kind = "cpu" if device.platform == "cpu" else device.device_kind.replace(" ", "_").lower()
    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    print(f"{config.rows:,} x {config.rows:,} x {config.width}, {threads} threads, {kind}\n")
    print("| call | seconds | CPU seconds |\n| --- | ---: | ---: |")
    table: list[dict[str, Any]] = []
    x, classes = make_data(config.rows, config.width, -(-config.rows // config.members))
    figures = timed("retrieval, with compilation", lambda: module.retrieval(x, classes), table)
    searched = timed("faiss, 10 nearest", lambda: faiss_search(x), table)
    timed("retrieval", lambda: module.retrieval(x, classes), table)
    nearest = timed("nearest_neighbours", lambda: module.nearest_neighbours(x, k=K), table)
    peer = timed("AccuracyCalculator", lambda: calculator_figures(x, classes), table)
    exact = timed(
        "retrieval in float64", lambda: in_float64(lambda: module.retrieval(x, classes)), table
    )
    error = max(abs(figures[name] - exact[name]) for name in exact)
    seconds = {row["call"]: row["seconds"] for row in table}
    shares = {
        name: seconds["retrieval"] / seconds[name]
        for name in ("faiss, 10 nearest", "AccuracyCalculator", "retrieval in float64")
    }
    report = {
        "rows": config.rows,
        "width": config.width,
        "threads": threads,
        "device": device.device_kind,
        "calls": table,
        "time of retrieval over that of": shares,
        "error of figures": error,
        "difference of MAP@R from AccuracyCalculator": abs(
            figures["map_at_r"] - peer["mean_average_precision_at_r"]
        ),
        "faiss agrees on the nearest": float(np.mean(searched[:, 1] == nearest.indices[:, 0])),
    }
    for name, share in shares.items():
        print(f"retrieval takes {share:.2f} of the time of {name}")
    print(f"error of figures {error:.0e}", flush=True)
    if config.results:
        path = config.results / f"retrieval_{kind}.json"
        path.write_text(json.dumps(report, indent=1) + "\n")
    if error > 1e-12:
        raise ValueError(f"figures must equal those of float64 to 1e-12, got {error:.3g} off")
    if config.ten_classes:
        x, classes = make_data(config.rows, config.width, 10)
        timed("retrieval, ten classes", lambda: module.retrieval(x, classes), table)
        if config.results:
            path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Config, description=str(__doc__).splitlines()[0], use_underscores=True))

"""Losses of large batches on a GPU, beside dense JAX, optax and pytorch-metric-learning.

    pip install -e '.[bench,gpu]'
    python -m experiments.benchmarks.gpu --results experiments/benchmarks/results

Each row is the loss and its gradient by the embeddings, float32 unit vectors of width 128, four
rows a class, all in one process and in turn; times are medians of the rounds. Memory is what a
program of JAX holds beside its arguments, and the peak of PyTorch's allocator. A contender that
does not fit into the memory of the card, or has more rows than `LARGEST` allows, is left out. The
last lines have the time of the sweep by the size of its tiles.
"""

import dataclasses
import functools
import gc
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from contrastive_jax._extras import needs

with needs("bench", "experiments.benchmarks.gpu"):
    import torch
    import tyro
    from pytorch_metric_learning import losses as peers
    from pytorch_metric_learning import miners

from contrastive_jax import all_pairs_loss, anchor_loss, losses
from experiments.benchmarks import small_batches

WIDTH = 128
LARGEST = {"dense": 16_384, "optax": 4096, "pytorch-metric-learning": 4096}
"""Rows beyond which a contender is not tried, as it holds several arrays of all pairs."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the benchmark."""

    rows: tuple[int, ...] = (512, 1024, 2048, 4096, 8192, 16384, 32768)
    """Numbers of rows of a batch."""
    tiles: tuple[int, ...] = (512, 1024, 2048, 4096, 8192)
    """Sizes of tiles of the sweep."""
    tiled_rows: tuple[int, ...] = (8192, 32768)
    """Numbers of rows for which the sizes of tiles are compared."""
    rounds: int = 7
    """Rounds, of which medians are shown."""
    results: Path | None = None
    """Folder for the figures as JSON."""


def _of_jax(loss: Callable[..., jax.Array]) -> Callable[[Any, Any], tuple[Any, float]]:
    """A compiled call of value and gradient, and the memory it holds, in MB."""

    def prepare(x: np.ndarray, classes: np.ndarray) -> tuple[Any, float]:
        arguments = jnp.asarray(x), jnp.asarray(classes)
        program = jax.jit(jax.value_and_grad(loss)).lower(*arguments).compile()
        analysis: Any = program.memory_analysis()
        memory = analysis.temp_size_in_bytes / 1e6
        return lambda: jax.block_until_ready(program(*arguments)), memory

    return prepare


def _of_torch(loss: Any, miner: Any = None) -> Callable[[Any, Any], tuple[Any, float]]:
    def prepare(x: np.ndarray, classes: np.ndarray) -> tuple[Any, float]:
        embeddings = torch.tensor(x, device="cuda", requires_grad=True)
        labels = torch.tensor(classes, device="cuda")

        def call() -> None:
            embeddings.grad = None
            mined = () if miner is None else (miner(embeddings, labels),)
            loss(embeddings, labels, *mined).backward()
            torch.cuda.synchronize()

        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return call, (torch.cuda.max_memory_allocated() - before) / 1e6

    return prepare


def _optax_ntxent(x: jax.Array, classes: jax.Array) -> jax.Array:
    return jnp.asarray(optax.losses.ntxent(x, classes, temperature=0.07))


CONTENDERS: dict[str, dict[str, Callable[..., Any]]] = {
    "contrastive": {
        "here": _of_jax(functools.partial(all_pairs_loss, margin=1.0)),
        "dense": _of_jax(small_batches.contrastive),
        "pytorch-metric-learning": _of_torch(peers.ContrastiveLoss()),
    },
    "supcon": {
        "here": _of_jax(functools.partial(anchor_loss, loss=losses.supcon(0.1))),
        "dense": _of_jax(small_batches.supcon),
        "pytorch-metric-learning": _of_torch(peers.SupConLoss(0.1)),
    },
    "ntxent": {
        "here": _of_jax(functools.partial(anchor_loss, loss=losses.ntxent(0.07))),
        "dense": _of_jax(small_batches.ntxent),
        "optax": _of_jax(_optax_ntxent),
    },
    "triplet_hard": {
        "here": _of_jax(functools.partial(anchor_loss, loss=losses.triplet_hard(0.2))),
        "dense": _of_jax(small_batches.triplet_hard),
        "pytorch-metric-learning": _of_torch(peers.TripletMarginLoss(0.2), miners.BatchHardMiner()),
    },
}


def make_data(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors and classes of four rows."""
    x = np.random.default_rng(0).standard_normal((rows, WIDTH))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x.astype(np.float32), np.arange(rows) // 4


def timed(calls: dict[str, Any], rounds: int) -> dict[str, float]:
    """Median milliseconds of each call, called in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(each) for name, each in seconds.items()}


def measure(contenders: dict[str, Callable[..., Any]], rows: int, rounds: int) -> dict[str, Any]:
    """Milliseconds and MB of all contenders that fit into memory."""
    calls, memory = {}, {}
    for name, prepare in contenders.items():
        try:
            call, memory[name] = prepare(*make_data(rows))
            call()
            calls[name] = call
        except (RuntimeError, ValueError) as error:  # Out of memory, in JAX and in PyTorch.
            print(f"{name} at {rows:,} rows is left out: {str(error).splitlines()[0][:90]}")
    times = timed(calls, rounds)
    del calls
    gc.collect()
    torch.cuda.empty_cache()
    return {name: {"ms": times[name], "mb": memory[name]} for name in times}


def run(config: Config) -> dict[str, Any]:
    """Measures all contenders and prints a line for each."""
    device = jax.devices()[0]
    measured: dict[str, Any] = {}
    for loss, contenders in CONTENDERS.items():
        for rows in config.rows:
            fitting = {
                name: one for name, one in contenders.items() if rows <= LARGEST.get(name, rows)
            }
            figures = measure(fitting, rows, config.rounds)
            measured.setdefault(loss, {})[rows] = figures
            cells = [
                f"{name} {one['ms']:.2f} ms {one['mb']:,.0f} MB" for name, one in figures.items()
            ]
            print(f"{loss}, {rows:,} rows: " + "; ".join(cells), flush=True)
    tiles: dict[str, Any] = {}
    for rows in config.tiled_rows:
        calls = {}
        for tile in config.tiles:
            for name, loss_of in (
                ("contrastive", functools.partial(all_pairs_loss, margin=1.0, tile=tile)),
                ("supcon", functools.partial(anchor_loss, loss=losses.supcon(0.1), tile=tile)),
            ):
                calls[f"{name} {tile}"] = _of_jax(loss_of)(*make_data(rows))[0]
        tiles[str(rows)] = timed(calls, config.rounds)
        print(rows, {name: round(ms, 2) for name, ms in tiles[str(rows)].items()}, flush=True)
    result = {"device": device.device_kind, "jax": jax.__version__, "torch": torch.__version__}
    result |= {"measured": measured, "tiles": tiles}
    if config.results:
        kind = device.device_kind.replace(" ", "_").lower()
        (config.results / f"gpu_{kind}.json").write_text(json.dumps(result, indent=1))
    return result


if __name__ == "__main__":
    run(tyro.cli(Config, description=__doc__))

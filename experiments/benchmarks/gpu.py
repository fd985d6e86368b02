"""Losses of large batches on a GPU, beside dense JAX, optax and pytorch-metric-learning.

    pip install -e '.[bench,gpu]'
    python -m experiments.benchmarks.gpu --results experiments/benchmarks/results

Each row is the loss and its gradient by the embeddings, float32 unit vectors of width 128, four
rows a class, all in one process and in turn; times are medians of the rounds. Rows of a class are
independent, or with `--noise` close together, as a trained network puts them. Memory is what a
program of JAX holds beside its arguments, and the peak of PyTorch's allocator; compilation is in
seconds. A contender that does not fit into the memory of the card, or has more rows than `LARGEST`
allows, is left out. The last lines have the time of the sweep by the size of its tiles. Results are
written after each loss.
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
from experiments.benchmarks import dense_losses

WIDTH = 128
LARGEST = {"dense": 16_384, "optax": 4096, "pytorch-metric-learning": 4096}
"""Rows beyond which a contender is not tried, as it holds several arrays of all pairs."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the benchmark."""

    rows: tuple[int, ...] = (128, 512, 1024, 2048, 4096, 8192, 16384, 32768)
    """Numbers of rows of a batch."""
    losses: tuple[str, ...] = ("contrastive", "supcon", "ntxent", "triplet_hard")
    """Losses that are measured."""
    noise: float | None = None
    """Length of the noise that is added to the direction of a class, of length 1."""
    tiles: tuple[int, ...] = (512, 1024, 2048, 4096, 8192)
    """Sizes of tiles of the sweep."""
    tiled_rows: tuple[int, ...] = (8192, 32768)
    """Numbers of rows for which the sizes of tiles are compared."""
    rounds: int = 7
    """Rounds, of which medians are shown."""
    results: Path | None = None
    """Folder for the figures as JSON."""


def _prepare_jax(loss: Callable[..., jax.Array]) -> Callable[[Any, Any], tuple[Any, float, float]]:
    """Compiles value and gradient; returns the call, its memory in MB and seconds to compile."""

    def prepare(x: np.ndarray, classes: np.ndarray) -> tuple[Any, float, float]:
        arguments = jnp.asarray(x), jnp.asarray(classes)
        start = time.perf_counter()
        program = jax.jit(jax.value_and_grad(loss)).lower(*arguments).compile()
        seconds = time.perf_counter() - start
        analysis: Any = program.memory_analysis()
        memory = analysis.temp_size_in_bytes / 1e6
        return lambda: jax.block_until_ready(program(*arguments)), memory, seconds

    return prepare


def _prepare_torch(loss: Any, miner: Any = None) -> Callable[[Any, Any], tuple[Any, float, float]]:
    def prepare(x: np.ndarray, classes: np.ndarray) -> tuple[Any, float, float]:
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
        return call, (torch.cuda.max_memory_allocated() - before) / 1e6, 0.0

    return prepare


def _optax_ntxent(x: jax.Array, classes: jax.Array) -> jax.Array:
    return jnp.asarray(optax.losses.ntxent(x, classes, temperature=0.07))


CONTENDERS: dict[str, dict[str, Callable[..., Any]]] = {
    "contrastive": {
        "here": _prepare_jax(functools.partial(all_pairs_loss, margin=1.0)),
        "dense": _prepare_jax(dense_losses.contrastive),
        "pytorch-metric-learning": _prepare_torch(peers.ContrastiveLoss()),
    },
    "supcon": {
        "here": _prepare_jax(functools.partial(anchor_loss, loss=losses.supcon(0.1))),
        "dense": _prepare_jax(dense_losses.supcon),
        "pytorch-metric-learning": _prepare_torch(peers.SupConLoss(0.1)),
    },
    "ntxent": {
        "here": _prepare_jax(functools.partial(anchor_loss, loss=losses.ntxent(0.07))),
        "dense": _prepare_jax(dense_losses.ntxent),
        "optax": _prepare_jax(_optax_ntxent),
    },
    "triplet_hard": {
        "here": _prepare_jax(functools.partial(anchor_loss, loss=losses.triplet_hard(0.2))),
        "dense": _prepare_jax(dense_losses.triplet_hard),
        "pytorch-metric-learning": _prepare_torch(
            peers.TripletMarginLoss(0.2), miners.BatchHardMiner()
        ),
    },
}


def make_data(rows: int, noise: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Makes unit vectors and classes of four rows."""
    rng = np.random.default_rng(0)
    x, classes = rng.standard_normal((rows, WIDTH)), np.arange(rows) // 4
    if noise is not None:
        x = rng.standard_normal((rows // 4, WIDTH))[classes] + noise * x
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x.astype(np.float32), classes


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


def measure(
    contenders: dict[str, Callable[..., Any]], data: tuple[np.ndarray, np.ndarray], rounds: int
) -> dict[str, Any]:
    """Measures milliseconds, MB and seconds to compile of all contenders that fit into memory."""
    calls, measured = {}, {}
    for name, prepare in contenders.items():
        try:
            call, memory, seconds = prepare(*data)
            call()
            calls[name], measured[name] = call, {"mb": memory, "compile_s": seconds}
        except (RuntimeError, ValueError) as error:  # Out of memory, in JAX and in PyTorch.
            reason = str(error).splitlines()[0][:90]
            print(f"{name} at {len(data[1]):,} rows is left out: {reason}")
    times = timed(calls, rounds)
    del calls
    gc.collect()
    torch.cuda.empty_cache()
    return {name: {"ms": times[name]} | measured[name] for name in times}


def run(config: Config) -> dict[str, Any]:
    """Measures all contenders, prints a line for each, and stores them after each loss."""
    device = jax.devices()[0]
    result: dict[str, Any] = {"device": device.device_kind, "jax": jax.__version__}
    result |= {"torch": torch.__version__, "noise": config.noise, "measured": {}, "tiles": {}}
    kind = device.device_kind.replace(" ", "_").lower()
    name = f"gpu_{kind}.json" if config.noise is None else f"gpu_{kind}_clusters.json"

    def store() -> None:
        if config.results:
            (config.results / name).write_text(json.dumps(result, indent=1) + "\n")

    for loss in config.losses:
        for rows in config.rows:
            fitting = {
                name: one
                for name, one in CONTENDERS[loss].items()
                if rows <= LARGEST.get(name, rows)
            }
            figures = measure(fitting, make_data(rows, config.noise), config.rounds)
            result["measured"].setdefault(loss, {})[rows] = figures
            cells = [
                f"{name} {one['ms']:.2f} ms {one['mb']:,.0f} MB {one['compile_s']:.1f} s"
                for name, one in figures.items()
            ]
            print(f"{loss}, {rows:,} rows: " + "; ".join(cells), flush=True)
        store()
    for rows in config.tiled_rows:
        calls = {}
        for tile in config.tiles:
            for loss, loss_of in (
                ("contrastive", functools.partial(all_pairs_loss, margin=1.0, tile=tile)),
                ("supcon", functools.partial(anchor_loss, loss=losses.supcon(0.1), tile=tile)),
            ):
                data = make_data(rows, config.noise)
                calls[f"{loss} {tile}"] = _prepare_jax(loss_of)(*data)[0]
        result["tiles"][str(rows)] = timed(calls, config.rounds)
        line = {name: round(ms, 2) for name, ms in result["tiles"][str(rows)].items()}
        print(rows, line, flush=True)
        store()
    return result


if __name__ == "__main__":
    run(tyro.cli(Config, description=__doc__))

"""The loss of all pairs of a batch with its gradient, here and elsewhere: time, memory, digits.

    pip install -e '.[bench]'
    python -m experiments.benchmarks.all_pairs --results experiments/benchmarks/results

Every contender computes the loss over all ordered pairs i != j and its gradient by the embeddings,
in one process, in turn, on unit vectors of width 128 in float32; figures are medians of the rounds.
The yardstick is two matrix products of the same size, `(X X^T) X`. The margin is set from the data
so that a given share of the negative pairs is active, which the table prints: nothing else
flatters a loss as much as a batch without active pairs. A row counts if loss and gradient agree
with float64 to 1e-5 (relative, the gradient to its largest entry), which the table prints too. The
gradient of a linear loss jumps where a pair is at the margin, and in float32 some pair of tens of
millions falls on the wrong side; only where all or none are active is its error that of sums.

Peers: pytorch-metric-learning's ContrastiveLoss, which is linear in the distance, and compared with
the same loss of normalised embeddings, averaged over active pairs, here; `torch.cdist`
with autograd, as most people write it; blocks of rows with the gradient by hand, as a careful user
of PyTorch writes it; KeOps, which streams a formula as this library does. Memory is what XLA's
analysis calls temporary for programs of JAX, and what the process grew by for the others.
"""

import ctypes
import dataclasses
import gc
import json
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from contrastive_jax._extras import needs

with needs("bench", "experiments.benchmarks.all_pairs"):
    import psutil
    import torch
    import tyro
    from pytorch_metric_learning.losses import ContrastiveLoss

from contrastive_jax import all_pairs_loss, plots

WIDTH = 128


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the benchmark."""

    batch: int = 8192
    """Rows of the main table."""
    rounds: int = 7
    """Rounds, of which medians are shown."""
    largest: int = 65_536
    """Largest number of rows of the growth; doubled from 2,048 on."""
    peers_to: int = 8192
    """Largest number of rows of the growth for peers that build the square."""
    keops_batch: int = 0
    """Rows for KeOps, which takes minutes; 0 leaves it out."""
    keops_rounds: int = 1
    """Rounds of KeOps."""
    results: Path | None = None
    """Folder for figures as JSON."""
    picture: Path | None = None
    """File for the picture of the growth, as docs/all_pairs_cpu.png."""


class Data(NamedTuple):
    """Embeddings, classes and the margin for a share of active negative pairs."""

    x: np.ndarray
    classes: np.ndarray
    margin: float
    active: float


class Contender(NamedTuple):
    """A call from embeddings, classes and margin to loss and gradient."""

    name: str
    call: Callable[[Any, Any, float], tuple[Any, Any]]
    place: Callable[[np.ndarray], Any]
    linear: bool = False
    """True if the loss is that of pytorch-metric-learning: linear, over active pairs."""
    temporary: Callable[[int], int] | None = None
    """Temporary bytes, by XLA's analysis."""


def unit(x: np.ndarray) -> np.ndarray:
    """Rows of length 1, float32."""
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), np.float32)


def make_data(batch: int, share: float, clustered: bool) -> Data:
    """Ten classes of random unit vectors, or of clusters of which two and two are close.

    The margin is the quantile of the distances of negative pairs, of a sample of rows.
    """
    rng = np.random.default_rng(0)
    classes = rng.permutation(np.arange(batch) % 10)
    x = rng.standard_normal((batch, WIDTH))
    if clustered:
        centres = rng.standard_normal((10, WIDTH))
        centres[1::2] = centres[::2] + 0.5 * rng.standard_normal((5, WIDTH))
        x = centres[classes] + 0.3 * x
    x = unit(x)
    some = rng.permutation(batch)[:2048]
    distance = np.sqrt(np.maximum(2 - 2 * x[some].astype(float) @ x[some].T.astype(float), 0))
    apart = distance[classes[some][:, None] != classes[some]]
    margin = {0.0: 0.9 * apart.min(), 1.0: 1.1 * apart.max()}.get(share)
    if margin is None:
        margin = float(np.quantile(apart, share))
    margin = float(np.float32(margin))
    return Data(x, classes, margin, float((apart < margin).mean()))


def reference(data: Data, linear: bool) -> tuple[float, np.ndarray]:
    """Loss and gradient in float64, by blocks of rows; the linear one of normalised embeddings."""
    x, margin = data.x.astype(np.float64), data.margin
    norms = (x * x).sum(1)
    sums, counts = np.zeros(2), np.zeros(2)
    parts = [np.zeros_like(x), np.zeros_like(x)]
    for start in range(0, len(x), 1024):
        rows = slice(start, start + 1024)
        own = np.arange(start, min(start + 1024, len(x)))
        square = np.maximum(norms[rows, None] + norms - 2 * x[rows] @ x.T, 0)
        distance = np.sqrt(square)
        for kind, chosen in enumerate(
            (
                data.classes[rows, None] == data.classes,
                data.classes[rows, None] != data.classes,
            )
        ):
            chosen = chosen.copy()
            chosen[own - start, own] = False
            gap = distance if kind == 0 else np.maximum(margin - distance, 0)
            value = np.where(chosen, gap if linear else gap**2, 0)
            slope = (1 if linear else 2 * gap) * (1 if kind == 0 else -1)
            with np.errstate(divide="ignore", invalid="ignore"):
                weight = np.where(chosen & (value > 0), slope / distance, 0)
            sums[kind] += value.sum()
            counts[kind] += (value > 0).sum() if linear else chosen.sum()
            parts[kind][rows] = 2 * (weight.sum(1)[:, None] * x[rows] - weight @ x)
    if not linear:
        counts[:] = counts.sum()
    counts = np.maximum(counts, 1)
    gradient = parts[0] / counts[0] + parts[1] / counts[1]
    if linear:
        gradient -= (gradient * x).sum(1)[:, None] * x
    return float((sums / counts).sum()), gradient


def ours(name: str, *, linear: bool = False, **options: Any) -> Contender:
    """This library."""

    def linear_loss(distance: jax.Array, label: jax.Array, margin: jax.Array) -> jax.Array:
        return jnp.where(label == 0, distance, jnp.maximum(0, margin - distance))

    if linear:
        options |= {"loss": linear_loss, "reduction": "active"}

    def value(x: jax.Array, classes: jax.Array, margin: jax.Array) -> jax.Array:
        if linear:
            x = x / jnp.linalg.norm(x, axis=1, keepdims=True)
        return all_pairs_loss(x, classes, margin=margin, **options)

    call = jax.jit(jax.value_and_grad(value))
    return Contender(name, call, jnp.asarray, linear, lambda batch: temporary(call, batch))


def temporary(call: Any, batch: int) -> int:
    """Temporary bytes of a program, by XLA's analysis."""
    shapes = [((batch, WIDTH), "float32"), ((batch,), "int32"), ((), "float32")]
    compiled = call.lower(*[jax.ShapeDtypeStruct(*shape) for shape in shapes]).compile()
    return int(compiled.memory_analysis().temp_size_in_bytes)


def torch_gradient(loss: Callable[..., Any]) -> Callable[..., tuple[Any, Any]]:
    """Loss and gradient by PyTorch's autograd."""

    def call(x: torch.Tensor, classes: torch.Tensor, margin: float) -> tuple[Any, Any]:
        x = x.detach().requires_grad_()
        value = loss(x, classes, margin)
        value.backward()
        return value.detach(), x.grad

    return call


def cdist(x: torch.Tensor, classes: torch.Tensor, margin: float) -> torch.Tensor:
    """The whole square by `torch.cdist`."""
    distance = torch.cdist(x, x)
    same = classes[:, None] == classes
    value = torch.where(same, distance**2, torch.relu(margin - distance) ** 2)
    keep = ~torch.eye(len(x), dtype=torch.bool)
    return (value * keep).sum() / (len(x) * (len(x) - 1))


def torch_rows(
    x: torch.Tensor, classes: torch.Tensor, margin: float, block: int = 256
) -> tuple[float, torch.Tensor]:
    """Blocks of rows and the gradient by hand: the fastest found in PyTorch."""
    batch = len(x)
    norms = (x * x).sum(1)
    gradient = torch.empty_like(x)
    total = 0.0
    for start in range(0, batch, block):
        rows = x[start : start + block]
        own = torch.arange(start, start + len(rows))
        square = torch.addmm(norms[None], rows, x.T, alpha=-2)
        square += norms[start : start + block, None]
        square.clamp_(min=1e-12)
        distance = square.sqrt()
        hinge = (margin - distance).clamp_(min=0)
        same = classes[start : start + block, None] == classes
        value = torch.where(same, square, hinge * hinge)
        value[own - start, own] = 0
        total += value.sum().item()
        weight = torch.where(same, 2.0, hinge.div_(distance).mul_(-2))
        weight[own - start, own] = 0
        out = gradient[start : start + block]
        torch.addmm(weight.sum(1)[:, None] * rows, weight, x, alpha=-1, out=out)
    pairs = batch * (batch - 1)
    return total / pairs, gradient.mul_(2 / pairs)


def metric_learning(x: torch.Tensor, classes: torch.Tensor, margin: float) -> torch.Tensor:
    """pytorch-metric-learning, with its defaults but for the margin."""
    return ContrastiveLoss(pos_margin=0, neg_margin=margin)(x, classes)


def keops(x: torch.Tensor, classes: torch.Tensor, margin: float) -> tuple[float, torch.Tensor]:
    """The formula in KeOps; by symmetry the gradient of one side is half of the whole."""
    from pykeops.torch import LazyTensor

    x = x.detach().requires_grad_()
    labels = classes.float()
    a, b = LazyTensor(x[:, None]), LazyTensor(x.detach()[None])
    c, d = LazyTensor(labels[:, None, None]), LazyTensor(labels[None, :, None])
    square = ((a - b) ** 2).sum(-1)
    same = (0.5 - (c - d).abs()).step()
    hinge = (margin - (square + 1e-12).sqrt()).relu()
    value = (same * square + (1 - same) * hinge**2).sum(1).sum()
    value.backward()
    pairs = len(x) * (len(x) - 1)
    return value.item() / pairs, 2 * x.grad / pairs


PYTORCH = [
    Contender("PyTorch, rows by hand", torch_rows, torch.from_numpy),
    Contender("torch.cdist", torch_gradient(cdist), torch.from_numpy),
    Contender(
        "pytorch-metric-learning", torch_gradient(metric_learning), torch.from_numpy, linear=True
    ),
]


def give_back() -> None:
    """Hands freed memory back to the system, where it can: else the process would not grow."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def timed(call: Callable[[], Any]) -> tuple[float, int, Any]:
    """Seconds, bytes by which the process grew at most, and the result."""
    process, grown, done = psutil.Process(), [0], threading.Event()
    before = process.memory_info().rss

    def watch() -> None:
        while not done.wait(0.002):
            grown.append(process.memory_info().rss - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        began = time.perf_counter()
        result = jax.block_until_ready(call())
        seconds = time.perf_counter() - began
    finally:
        done.set()
        watcher.join()
    return seconds, max(grown), result


def race(
    contenders: list[Contender], data: Data, rounds: int, products: Any, *, gate: bool = True
) -> list[dict[str, Any]]:
    """Rows of a table: each contender in turn in each round, beside the two products."""
    wanted = {linear: reference(data, linear) for linear in {c.linear for c in contenders} if gate}
    calls, rows = [], []
    for contender in contenders:
        x, classes = contender.place(data.x), contender.place(data.classes)
        call = lambda c=contender, x=x, k=classes: c.call(x, k, data.margin)  # noqa: E731
        give_back()
        _, grown, (value, gradient) = timed(call)
        row: dict[str, Any] = {"contender": contender.name, "active": round(data.active, 3)}
        if gate:
            loss, by_x = wanted[contender.linear]
            row["error of loss"] = abs(float(value) - loss) / abs(loss)
            row["error of gradient"] = float(
                np.abs(np.asarray(gradient) - by_x).max() / np.abs(by_x).max()
            )
        row["memory"] = contender.temporary(len(data.x)) if contender.temporary else grown
        rows.append(row)
        calls.append(call)
    x = jnp.asarray(data.x)
    products(x).block_until_ready()
    yardstick: list[float] = []
    seconds: list[list[float]] = [[] for _ in calls]
    turns: list[tuple[Callable[[], Any], list[float]]] = [(lambda: products(x), yardstick)]
    turns += zip(calls, seconds, strict=True)
    for k in range(rounds):
        # Each round begins with another, and each is called twice: what went before leaves caches
        # and pages behind.
        first = k % len(turns)
        for take, column in turns[first:] + turns[:first]:
            jax.block_until_ready(take())
            column.append(timed(take)[0])
    base = statistics.median(yardstick)
    for row, column in zip(rows, seconds, strict=True):
        row["seconds"] = statistics.median(column)
        row["of two products"] = row["seconds"] / base
    return rows


def table(rows: list[dict[str, Any]], columns: list[str]) -> str:
    """Markdown."""

    def text(name: str, value: Any) -> str:
        if name.endswith("memory"):
            return f"{value / 1e6:,.0f} MB"
        if name.endswith("seconds"):
            return f"{1e3 * value:,.0f} ms" if value < 10 else f"{value:,.1f} s"
        if name.startswith("error"):
            return f"{value:.0e}"
        if name == "active":
            return f"{value:.0%}"
        return (
            f"{value:,.2f}"
            if isinstance(value, float)
            else f"{value:,}"
            if isinstance(value, int)
            else str(value)
        )

    lines = [columns, ["---"] + ["---:"] * (len(columns) - 1)]
    lines += [[text(name, row[name]) if name in row else "" for name in columns] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def digits() -> list[dict[str, Any]]:
    """Largest relative error of the distance of a pair among 1,024 rows, by what it is."""
    rows = []
    rng = np.random.default_rng(0)

    @jax.jit
    def pair_distance(x: jax.Array, classes: jax.Array) -> jax.Array:
        loss = lambda distance, label: jnp.where(label == 0, distance, 0.0)  # noqa: E731
        return all_pairs_loss(x, classes, loss=loss, reduction="sum") / 2

    for length in (1.0, 100.0):
        for apart in (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0):
            if length * apart < 1e-4 and length > 1:
                continue
            errors: dict[str, list[float]] = {
                "contrastive_jax": [],
                "torch.cdist": [],
                "product": [],
            }
            for _ in range(20):
                x = unit(rng.standard_normal((1024, WIDTH))) * np.float32(length)
                x[1] = x[0] + apart * length * unit(rng.standard_normal((1, WIDTH)))[0]
                classes = np.arange(1024)
                classes[1] = 0
                true = np.linalg.norm(x[0].astype(float) - x[1])
                a = torch.from_numpy(x)
                norms = (a * a).sum(1)
                square = norms[0] + norms[1] - 2 * (a @ a.T)[0, 1]
                for name, value in (
                    ("contrastive_jax", float(pair_distance(x, classes))),
                    ("torch.cdist", torch.cdist(a, a)[0, 1].item()),
                    ("product", square.clamp(min=0).sqrt().item()),
                ):
                    errors[name].append(abs(value - true) / true)
            rows.append(
                {"length": length, "distance": f"{apart * length:g}"}
                | {f"error of {name}": max(column) for name, column in errors.items()}
            )
    return rows


def main(config: Config) -> None:
    """Runs the benchmark, prints its tables and draws the growth."""
    torch.set_num_threads(len(psutil.Process().cpu_affinity()))
    products = jax.jit(lambda x: lax.dot(lax.dot(x, x.T), x))
    print(
        f"{torch.get_num_threads()} threads, jax {jax.__version__}, torch {torch.__version__}, "
        f"{config.batch:,} x {WIDTH}, medians of {config.rounds}\n"
    )
    columns = "contender,active,seconds,of two products,memory,error of loss,error of gradient"
    shown = columns.split(",")
    rows = []
    for share, clustered in ((0.0, True), (0.1, True), (0.1, False), (0.5, False), (1.0, False)):
        contenders = [ours("contrastive_jax"), ours("the same, refine=False", refine=False)]
        contenders += [ours("contrastive_jax, linear, active", linear=True)]
        if share in (0.1, 1.0):
            contenders += PYTORCH
        data = make_data(config.batch, share, clustered)
        results = race(contenders, data, config.rounds, products)
        for row in results:
            row["contender"] += ", clustered" if clustered else ""
            row["times ours"] = (
                row["seconds"]
                / results[2 if row["contender"].startswith("pytorch-metric") else 0]["seconds"]
            )
        rows += results
        print(table(results, [*shown, "times ours"]) + "\n", flush=True)

    growth = []
    batch = 2048
    while batch <= config.largest:
        contenders = [ours("contrastive_jax")]
        if batch <= config.peers_to:
            contenders += PYTORCH
        data = make_data(batch, 0.5, False)
        rounds = config.rounds if batch <= 16_384 else 3
        yardstick = products if batch <= 16_384 else (lambda x: x)
        for row in race(contenders, data, rounds, yardstick, gate=False):
            growth.append({"rows": batch} | row)
        batch *= 2
    print(table(growth, ["contender", "rows", "seconds", "memory"]) + "\n", flush=True)

    precision = digits()
    print(table(precision, list(precision[0])) + "\n", flush=True)

    streamed = []
    if config.keops_batch:
        data = make_data(config.keops_batch, 0.5, False)
        contenders = [ours("contrastive_jax"), Contender("KeOps", keops, torch.from_numpy)]
        streamed = race(contenders, data, config.keops_rounds, lambda x: x, gate=False)
        for row in streamed:
            row["rows"] = config.keops_batch
            row["times ours"] = row["seconds"] / streamed[0]["seconds"]
        print(table(streamed, ["contender", "rows", "seconds", "memory", "times ours"]))

    if config.results:
        figures = {"table": rows, "growth": growth, "digits": precision, "keops": streamed}
        path = config.results / "all_pairs_cpu.json"
        path.write_text(json.dumps(figures, indent=1) + "\n")
    if config.picture:
        names = dict.fromkeys(row["contender"] for row in growth)
        curves = {}
        for name in names:
            mine = [row for row in growth if row["contender"] == name]
            sizes, seconds, memory = (
                [row[key] for row in mine] for key in ("rows", "seconds", "memory")
            )
            curves[name] = sizes, seconds, np.maximum(memory, 1e6)
        plots.save(plots.growth(curves), config.picture)


if __name__ == "__main__":
    main(tyro.cli(Config, description=str(__doc__).splitlines()[0], use_underscores=True))

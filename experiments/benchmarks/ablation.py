"""A grid of margins and seeds here, in single runs, and in PyTorch: how long it takes.

    pip install -e '.[bench]'
    python -m experiments.benchmarks.ablation --results experiments/benchmarks/results

Eight margins by four seeds, pairs of random images of Fashion-MNIST's shapes, batches of 128. Four
contenders train the same grid in turn, all without their compilations:

    grid             as `experiments.margin_ablation --strategy auto` does, which a short trial
                     before the race chooses
    each strategy    of the grid
    single runs      one after another as `experiments.train` does, in a process of their own, so
                     that they have all cores and JAX as it comes
    PyTorch          one after another, the network, loss and optimiser of
                     `experiments.benchmarks.training`, batches drawn and gathered as tensors

A ratio is that of two neighbouring rounds; the table shows medians.
"""

import dataclasses
import functools
import itertools
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np
import optax
from flax import nnx

from contrastive_jax._extras import needs

with needs("bench", "experiments.benchmarks.ablation"):
    import torch
    import torch.nn.functional as F
    import tyro

from contrastive_jax import train as training
from contrastive_jax.data import index_by_class
from contrastive_jax.models import MLP, ConvNet
from contrastive_jax.train import grid as grids
from contrastive_jax.train import objectives, parallel
from contrastive_jax.train.assembly import Assembled
from contrastive_jax.train.grid_strategy import Strategy, choose_grid, cores_as_devices
from contrastive_jax.train.trial_assembly import AssembledTrials
from contrastive_jax.train.types import Step
from experiments.benchmarks.training import CLASSES, SHAPE, TorchConvNet

MARGINS = (0.1, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
ENCODERS = {"MLP": MLP, "ConvNet": ConvNet}


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the benchmark."""

    seeds: int = 4
    """Trainings of each of the eight margins."""
    steps: int = 20
    """Steps of each trial in a round, a multiple of 10."""
    batch_size: int = 128
    """Pairs in a batch."""
    rounds: int = 7
    """Rounds of each contender."""
    results: Path | None = None
    """Folder for the figures as JSON."""


def data() -> tuple[np.ndarray, np.ndarray]:
    """Images and classes."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (10_000, *SHAPE), dtype=np.uint8)
    return images, generator.integers(0, CLASSES, 10_000)


def our_step(encoder: str, batch_size: int) -> tuple[Step, Any]:
    """The step of a trial on the pairs drawn, and its optimiser."""
    network = training.network(ENCODERS[encoder], SHAPE)
    make = optax.inject_hyperparams(training.make_optimizer, ("steps", "warmup_steps"))
    optimizer = make(1e-3, 10**6, weight_decay=0.1)
    on_cpu = jax.devices()[0].platform == "cpu"
    microbatches = batch_size // 32 if on_cpu and encoder != "MLP" else 1
    objective = objectives.pairs(margin=1.0)
    step = training.make_step(network, optimizer, objective, microbatches=microbatches)
    return training.draws_pairs(step, batch_size), optimizer


def first_state(encoder: str, optimizer: Any, seed: int) -> training.TrainState:
    """The state of a trial before its first step."""
    return training.init_state(training.network(ENCODERS[encoder], SHAPE, seed), optimizer)


def hyperparameters_of_all(seeds: int) -> list[training.Hyperparameters]:
    """The hyperparameters of all trials."""
    return [
        training.Hyperparameters(seed, {"margin": margin})
        for margin in MARGINS
        for seed in range(seeds)
    ]


def grid_timer(encoder: str, config: Config, strategy: Strategy) -> tuple[Callable[[], float], str]:
    """A function that trains the grid and returns seconds, and how it does."""
    images, classes = data()
    step, optimizer = our_step(encoder, config.batch_size)
    states = {seed: first_state(encoder, optimizer, seed) for seed in range(config.seeds)}
    hyperparameters = hyperparameters_of_all(config.seeds)
    trials = AssembledTrials(
        # The step is all that is used of these.
        Assembled(None, None, None, None, step, 0),  # type: ignore[arg-type]
        None,  # type: ignore[arg-type]
        training.objective("contrastive"),
        training.Source(images, classes, index_by_class(classes)),
        hyperparameters,
        lambda k: states[k % config.seeds],
        [{} for _ in hyperparameters],
    )
    grid, _ = choose_grid(trials, strategy, steps_per_call=10)
    source = jax.device_put(trials.source, grid.shared)

    def take() -> float:
        began = time.perf_counter()
        for _ in grids.train_grid(
            grid, trials.init, source, hyperparameters, steps=config.steps, window=config.steps
        ):
            pass
        return time.perf_counter() - began

    return take, f"{grid.strategy} of {grid.trials}"


def single_runs_timer(encoder: str, config: Config) -> Callable[[], float]:
    """A function that trains the trials one after another and returns seconds."""
    images, classes = data()
    step, optimizer = our_step(encoder, config.batch_size)
    placed = parallel(step, "shard_map", jax.devices()[:1])
    source = placed.replicate(training.Source(images, classes, index_by_class(classes)))
    states = {seed: first_state(encoder, optimizer, seed) for seed in range(config.seeds)}

    def take() -> float:
        began = time.perf_counter()
        for k, own in enumerate(hyperparameters_of_all(config.seeds)):
            begun, own = placed.replicate((states[k % config.seeds], own))
            advance = functools.partial(_advance, placed.step, source, own)
            for _ in training.windows(
                advance,
                begun,
                steps=config.steps,
                window=config.steps,
            ):
                pass
        return time.perf_counter() - began

    return take


def _advance(step: Any, source: Any, hyperparameters: Any, state: Any) -> Any:
    return step(state, source, hyperparameters)


def torch_timer(encoder: str, config: Config) -> Callable[[], float]:
    """A function that trains the trials one after another in PyTorch and returns seconds."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images, classes = data()
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().to(device)
    members = [torch.from_numpy(np.flatnonzero(classes == c)).to(device) for c in range(CLASSES)]
    sizes = torch.tensor([len(m) for m in members], device=device)
    padded = torch.nn.utils.rnn.pad_sequence(members, batch_first=True)
    labels = torch.arange(config.batch_size, device=device) % 2

    def network() -> torch.nn.Module:
        module = ENCODERS[encoder](SHAPE, rngs=nnx.Rngs(0))
        if isinstance(module, ConvNet):
            return TorchConvNet(module).to(device)
        layers: list[torch.nn.Module] = [torch.nn.Flatten()]
        for layer in module.hidden:
            layers += [torch.nn.Linear(layer.in_features, layer.out_features), torch.nn.ReLU()]
        layers.append(torch.nn.Linear(module.out.in_features, module.out.out_features))
        return torch.nn.Sequential(*layers).to(device)

    def drawn() -> tuple[torch.Tensor, torch.Tensor]:
        first = torch.randint(CLASSES, labels.shape, device=device)
        other = (first + 1 + torch.randint(CLASSES - 1, labels.shape, device=device)) % CLASSES
        second = torch.where(labels == 0, first, other)
        return tuple(
            padded[c, (torch.rand(labels.shape, device=device) * sizes[c]).long()]
            for c in (first, second)
        )

    def take() -> float:
        began = time.perf_counter()
        for margin, _ in itertools.product(MARGINS, range(config.seeds)):
            net = network()
            optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.1, fused=True)
            for _ in range(config.steps):
                i, j = drawn()
                x = net(pixels[torch.cat([i, j])].float() / 255)
                a, b = F.normalize(x).split(config.batch_size)
                distance = (a - b).square().sum(1).add(1e-12).sqrt()
                loss = torch.where(labels == 0, distance**2, F.relu(margin - distance) ** 2).mean()
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
                optimizer.step()
            loss.item()
        return time.perf_counter() - began

    return take


def serve(make: Callable[..., Callable[[], float]], arguments: Any, pipe: Connection) -> None:
    """Makes a contender in this process and runs it whenever it is asked to."""
    take = make(*arguments)
    take()
    while True:
        pipe.send(take())
        pipe.recv()


def ask(pipe: Connection) -> float:
    """Has the process at the other end run once, and returns seconds."""
    pipe.send(None)
    return float(pipe.recv())


def main(config: Config) -> None:
    """Runs the benchmark and prints a table."""
    cores_as_devices()
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    context = multiprocessing.get_context("spawn")
    rows = []
    for encoder in ENCODERS:
        contenders: dict[str, Callable[[], float]] = {}
        contenders["grid"], chosen = grid_timer(encoder, config, "auto")
        for strategy in get_args(grids.Strategy):
            take, how = grid_timer(encoder, config, strategy)
            contenders[how] = take
        contenders["PyTorch"] = torch_timer(encoder, config)
        for take in contenders.values():
            take()
        pipe, theirs = context.Pipe()
        process = context.Process(
            target=serve, args=(single_runs_timer, (encoder, config), theirs), daemon=True
        )
        process.start()
        pipe.recv()
        contenders["single runs"] = functools.partial(ask, pipe)
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(config.rounds):
            for name, take in contenders.items():
                seconds[name].append(take())
        process.kill()
        count = len(hyperparameters_of_all(config.seeds))
        for name, taken in seconds.items():
            ratios = [a / b for a, b in zip(taken, seconds["single runs"], strict=True)]
            rows.append(
                {
                    "encoder": encoder,
                    "contender": f"grid, auto: {chosen}" if name == "grid" else name,
                    "seconds": round(statistics.median(taken), 2),
                    "pairs per second": round(
                        count * config.steps * config.batch_size / statistics.median(taken)
                    ),
                    "of single runs": round(statistics.median(ratios), 2),
                    "lowest": round(min(ratios), 2),
                    "highest": round(max(ratios), 2),
                }
            )
    device = jax.devices()[0]
    name = "cpu" if device.platform == "cpu" else device.device_kind
    print(f"{threads} threads, {name}, jax {jax.__version__}, torch {torch.__version__}")
    print("| " + " | ".join(rows[0]) + " |")
    print("| " + " | ".join(["---"] * len(rows[0])) + " |")
    for row in rows:
        print("| " + " | ".join(str(value) for value in row.values()) + " |")
    if config.results:
        path = config.results / f"ablation_{name.lower().replace(' ', '_')}.json"
        path.write_text(json.dumps({"threads": threads, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Config, description=str(__doc__).splitlines()[0], use_underscores=True))

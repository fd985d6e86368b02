"""Training the same ConvNet on pairs, here and in PyTorch with its DataLoader: pairs per second.

    pip install -e '.[bench]'
    python -m experiments.benchmarks.training

Both sides train the same network on the same images (random bytes of Fashion-MNIST's shapes) with
the same loss, batch, optimiser and clipping, in turn within one process: once on the images as they
are and once shifted and mirrored at random, as `experiments.train` does. PyTorch's data set hands
out float tensors one by one, as data sets for its DataLoader do; it is given its best of two memory
formats and of loading in the process or in workers, found beforehand. A ratio is that of two
neighbouring rounds; the table shows medians.
"""

import dataclasses
import json
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from contrastive_jax._extras import needs

with needs("bench", "experiments.benchmarks.training"):
    import torch
    import torch.nn.functional as F
    import tyro

from contrastive_jax import train as training
from contrastive_jax.data import augment, index_by_class
from contrastive_jax.models import ConvNet
from contrastive_jax.train import objectives, parallel

SHAPE = (28, 28, 1)
CLASSES = 10


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the benchmark."""

    batch_size: int = 128
    """Pairs in a batch."""
    steps: int = 100
    """Steps of a round."""
    rounds: int = 7
    """Rounds of either side."""
    threads: int | None = None
    """Threads of PyTorch; as many as this process has cores by default, as XLA takes."""
    results: Path | None = None
    """File to write the figures to, as JSON."""


class PairDataset(torch.utils.data.Dataset[tuple[torch.Tensor, torch.Tensor, int]]):
    """Pairs drawn one at a time: half positive, classes balanced, never an example with itself."""

    def __init__(self, images: torch.Tensor, classes: np.ndarray, length: int, *, change: bool):
        self.images, self.length, self.change = images, length, change
        self.members = [np.flatnonzero(classes == c).tolist() for c in range(CLASSES)]
        self.below = random.Random(0).randrange

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, k: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        label = k % 2
        first = self.below(CLASSES)
        second = (first + label * (1 + self.below(CLASSES - 1))) % CLASSES
        ours, theirs = self.members[first], self.members[second]
        i = self.below(len(ours))
        j = self.below(len(theirs) - (1 - label))
        j += int(label == 0 and j >= i)
        return self.image(ours[i]), self.image(theirs[j]), label

    def image(self, k: int) -> torch.Tensor:
        image = self.images[k].float() / 255
        if self.change:
            row, column = self.below(3), self.below(3)
            image = F.pad(image, (1, 1, 1, 1))[:, row : row + SHAPE[0], column : column + SHAPE[1]]
            image = image.flip(-1) if self.below(2) else image
        return image


class TorchConvNet(torch.nn.Module):
    """`contrastive_jax.encoders.ConvNet`, layer for layer; padding as XLA's SAME."""

    def __init__(self, encoder: ConvNet):
        super().__init__()
        self.paddings = []
        stages = []
        size = SHAPE[0]
        for stage in encoder.stages:
            kernel, _, channels_in, channels = stage.kernel.shape
            stride = 2
            out = -(-size // stride)
            total = max((out - 1) * stride + kernel - size, 0)
            self.paddings.append((total // 2, total - total // 2) * 2)
            stages.append(torch.nn.Conv2d(channels_in, channels, kernel, stride))
            size = out
        self.stages = torch.nn.ModuleList(stages)
        self.hidden = torch.nn.Linear(encoder.hidden.in_features, encoder.hidden.out_features)
        self.out = torch.nn.Linear(encoder.out.in_features, encoder.out.out_features)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images
        for padding, stage in zip(self.paddings, self.stages, strict=True):
            # An even padding goes to the convolution itself, which is quicker than a pad before it.
            even = padding[0] == padding[1]
            stage.padding = (padding[0], padding[0]) if even else (0, 0)
            x = F.relu(stage(x if even else F.pad(x, padding)))
        x = F.relu(self.hidden(x.flatten(1)))
        return F.normalize(self.out(x))


def torch_side(
    config: Config,
    images: np.ndarray,
    classes: np.ndarray,
    *,
    change: bool,
    channels_last: bool,
    workers: int,
) -> Callable[[int], float]:
    """A function that takes some steps in PyTorch and returns pairs per second."""
    encoder = ConvNet(SHAPE, rngs=nnx.Rngs(0))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    net = TorchConvNet(encoder).to(memory_format=layout)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.1, fused=True)
    pairs = PairDataset(
        torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), classes, 10**9, change=change
    )
    loader = torch.utils.data.DataLoader(
        pairs,
        batch_size=config.batch_size,
        sampler=torch.utils.data.SequentialSampler(pairs),
        num_workers=workers,
        persistent_workers=workers > 0,
        # A fork of a process with XLA's threads may hang.
        multiprocessing_context="forkserver" if workers else None,
    )
    batches: Iterator[list[torch.Tensor]] = iter(loader)

    def take(steps: int) -> float:
        began = time.perf_counter()
        for _ in range(steps):
            first, second, labels = next(batches)
            stacked = torch.cat([first, second]).contiguous(memory_format=layout)
            a, b = net(stacked).split(config.batch_size)
            distance = (a - b).square().sum(1).add(1e-12).sqrt()
            loss = torch.where(labels == 0, distance**2, F.relu(1.4 - distance) ** 2).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
        loss.item()
        return config.batch_size * steps / (time.perf_counter() - began)

    return take


def our_side(
    config: Config, images: np.ndarray, classes: np.ndarray, *, change: bool
) -> Callable[[int], float]:
    """A function that takes some steps here and returns pairs per second."""
    network = training.network(ConvNet, SHAPE)
    optimizer = training.make_optimizer(1e-3, 10**6, weight_decay=0.1)
    pair_step = training.make_step(
        network,
        optimizer,
        objectives.pairs(margin=1.4),
        augment=shift_and_flip if change else None,
        microbatches=4,
    )
    step = training.draws_pairs(pair_step, config.batch_size)
    placed = parallel(step, "shard_map", jax.devices()[:1])
    state, source, hyperparameters = placed.replicate(
        (
            training.init_state(network, optimizer),
            training.Source(images, classes, index_by_class(classes)),
            training.Hyperparameters(0),
        )
    )

    def take(steps: int) -> float:
        nonlocal state
        windows = training.windows(
            lambda state: placed.step(state, source, hyperparameters),
            state,
            steps=steps,
            window=steps,
            pairs_per_step=config.batch_size,
        )
        state, records = next(windows)
        return records[-1]["pairs_per_second"]

    return take


def shift_and_flip(key: jax.Array, image: jax.Array) -> jax.Array:
    """The changes that the other side makes to an image."""
    first, second = jax.random.split(key)
    return augment.flip(second, augment.shift(first, image, 1))


def compare(
    config: Config, images: np.ndarray, classes: np.ndarray, *, change: bool
) -> dict[str, Any]:
    """Rates of both sides, taken in turn, and their ratio."""
    variants = {}
    for channels_last in (False, True):
        for workers in (0, 2):
            take = torch_side(
                config,
                images,
                classes,
                change=change,
                channels_last=channels_last,
                workers=workers,
            )
            take(20)
            variants[channels_last, workers] = take(config.steps), take
    (channels_last, workers), (_, theirs) = max(variants.items(), key=lambda item: item[1][0])
    del variants

    ours = our_side(config, images, classes, change=change)
    ours(20)
    rows = [(ours(config.steps), theirs(config.steps)) for _ in range(config.rounds)]
    ratios = [a / b for a, b in rows]
    mine, peer = (statistics.median(column) for column in zip(*rows, strict=True))
    return {
        "images": "shifted and mirrored" if change else "as they are",
        "contrastive_jax": round(mine),
        "PyTorch": round(peer),
        "ratio": round(statistics.median(ratios), 2),
        "lowest": round(min(ratios), 2),
        "highest": round(max(ratios), 2),
        "PyTorch's best": f"{'channels last' if channels_last else 'contiguous'}, "
        f"{workers} workers",
    }


def main(config: Config) -> None:
    """Runs the benchmark and prints a table."""
    threads = config.threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (60_000, *SHAPE), dtype=np.uint8)
    classes = generator.integers(0, CLASSES, 60_000)
    rows = [compare(config, images, classes, change=change) for change in (False, True)]
    print(f"{threads} threads, jax {jax.__version__}, torch {torch.__version__}, pairs per second")
    print("| " + " | ".join(rows[0]) + " |")
    print("| " + " | ".join(["---"] * len(rows[0])) + " |")
    for row in rows:
        print("| " + " | ".join(str(value) for value in row.values()) + " |")
    if config.results:
        config.results.write_text(json.dumps({"threads": threads, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Config, description=str(__doc__).splitlines()[0], use_underscores=True))

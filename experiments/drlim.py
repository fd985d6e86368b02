"""The experiment of Hadsell, Chopra and LeCun (2006, section 4): fours and nines in the plane.

    python -m experiments.drlim                         # digits of scikit-learn, about a minute
    python -m experiments.drlim --dataset mnist         # as in the paper, where its files are
    python -m experiments.drlim --data photos           # all classes of images of your own

A network learns a map to the plane from neighbourhoods alone: similar are an image and its nearest
neighbours by pixels, dissimilar are all other pairs. No class is used to train: classes say which
images are shown, and in which colour. Three maps are learned:

    neighbours    of the images as they are (section 4.1, figure 4)
    copies        of the images and copies moved sideways, neighbours still by pixels: the map shows
                  how far an image was moved (section 4.2, figure 5)
    invariant     the same, but copies of an image, and of its neighbours, are known to be similar:
                  the map forgets how far an image was moved (section 4.2, figure 6)

runs/NAME/map-*.png is each with test images drawn on it, results.md the figures.
"""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from contrastive_jax._extras import needs

with needs("train", "experiments.drlim"):
    from tqdm import tqdm

from contrastive_jax import plots
from contrastive_jax import train as training
from contrastive_jax.data import Dataset, Examples, PairDataset
from contrastive_jax.data.labels import class_numbers
from contrastive_jax.evaluation.retrieval import nearest_neighbours
from contrastive_jax.models import DrLIM
from contrastive_jax.train import folder as runs
from contrastive_jax.train import objectives
from experiments import command, option_checks, options

# Of an image of 28 x 28 in the paper, in pixels to the right.
MOVES = (-6, -3, 3, 6)
# The classes of the paper.
FOURS_AND_NINES = ("4", "9")


@dataclasses.dataclass(frozen=True)
class Config(options.Data):
    """Options of the experiment."""

    dataset: str | None = None
    """digits (the default), of which a few hundred are fours and nines, mnist, or any other name
    that experiments.train takes."""
    data: Path | None = None
    """Images of your own in place of a data set by name, in any form with a class for each image.
    Their copies have borders of zeros."""
    classes: tuple[str, ...] | None = None
    """The classes whose images are trained on and shown, by name or number; by default 4 and 9,
    and with --data all of them."""
    neighbours: int = 5
    """Nearest neighbours of an image that are similar to it."""
    images: int = 6000
    """Training images at most; as many as in the paper. Copies take five times as many, in
    memory."""
    margin: float = 1.0
    """Distance up to which dissimilar pairs push each other."""
    similar_fraction: float = 0.5
    """Share of similar pairs in a batch."""
    steps: int = 3000
    """Training steps of each map."""
    batch_size: int = 128
    """Pairs in a batch."""
    learning_rate: float = 2e-3
    """Peak of the learning rate."""
    seed: int = 0
    """Seed of parameters and pairs; the same seed gives the same numbers."""
    runs: Path = Path("runs")
    """Folder of all runs."""
    name: str | None = None
    """Folder of this run; by default drlim-DATASET-N with the first free N."""
    overwrite: bool = False
    """Replace the run of this name."""


def main(config: Config) -> Path:
    """Learns and draws the three maps, and returns the folder of the run."""
    config = option_checks.checked(config)
    _check(config)
    data = _with_images(options.read_data(config))
    chosen = _class_numbers(config, data)
    train, test = (_chosen(part, chosen) for part in (data.train, data.test))
    train = _first(train, config)
    if len(train.classes) <= config.neighbours:
        raise ValueError(
            f"--neighbours must be below the {len(train.classes)} training images of these classes "
            f"in {data.name}, got {config.neighbours}"
        )
    shown = class_numbers(data.test.classes)
    shown = shown[shown >= 0]
    if len(shown) and not np.isin(shown, class_numbers(data.train.classes)).any():
        raise ValueError(
            f"the test classes of {data.name} are not trained on, and a map shows trained ones: "
            "take --split examples"
        )
    if len(test.classes) < 2:
        raise ValueError(
            f"a map needs 2 test images at least, and {data.name} has {len(test.classes)} of these "
            "classes: name others with --classes"
        )
    encoder = _encoder(config, train.images)
    training.check_images(encoder, train=train.images, test=test.images)
    record = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    with runs.open_run(
        config.runs,
        config.name,
        f"drlim-{options.data_name(config)}",
        record,
        overwrite=config.overwrite,
    ) as folder:
        print(f"{folder}: {len(train.classes):,} training images, {len(test.classes):,} to show")
        _draw_maps(config, folder, data, train, test)
    return folder


def _draw_maps(
    config: Config, folder: Path, data: Dataset, train: Examples, test: Examples
) -> None:
    copied, moved = with_copies(train.images), with_copies(test.images)
    times = len(moved) // len(test.images)
    near = nearest(train.images, config.neighbours)
    maps = {
        "neighbours": (train.images, near, test.images, 1),
        "copies": (copied, nearest(copied, config.neighbours), moved, times),
        "invariant": (copied, related(near, times), moved, times),
    }
    table = [
        "| map | nearest neighbour of the same class | spread of copies |",
        "| --- | ---: | ---: |",
    ]
    for name, (images, similar, shown, copies) in maps.items():
        began = time.perf_counter()
        embeddings = learn(config, images, similar, shown)
        labels = np.tile(test.classes, copies)
        figure = plots.embedding_map(embeddings, labels, images=shown, class_names=data.class_names)
        plots.save(figure, folder / f"map-{name}.png")
        np.savez(folder / f"map-{name}.npz", embeddings=embeddings, classes=labels)
        right = class_of_neighbour(embeddings, labels, copies)
        spread = f"{spread_of_copies(embeddings, copies):.2f}" if copies > 1 else "-"
        table.append(f"| {name} | {right:.3f} | {spread} |")
        print(f"{table[-1]} {time.perf_counter() - began:.0f} s")
    (folder / "results.md").write_text("\n".join(table) + "\n")


def with_copies(images: np.ndarray) -> np.ndarray:
    """The images, and copies of them moved sideways as in the paper, in proportion to their width.

    A border of zeros makes room for the moves.

    Args:
      images: `[N, H, W, C]`.

    Returns:
      The images and then each set of copies, `[N * 5, H + 2 M, W + 2 M, C]`, M the widest move.
    """
    width = images.shape[2]
    moves = [round(move * width / 28) for move in MOVES]
    room = max(moves)
    padded = np.pad(images, ((0, 0), (room, room), (room, room), (0, 0)))
    # What is rolled over is border.
    return np.concatenate([np.roll(padded, move, axis=2) for move in (0, *moves)])


def nearest(images: np.ndarray, count: int) -> np.ndarray:
    """Positions of the nearest neighbours of each image by pixels, `[N, count]`."""
    flat = images.reshape(len(images), -1) / np.float32(255)
    return np.asarray(nearest_neighbours(flat, k=count).indices, np.int32)


def related(near: np.ndarray, copies: int) -> np.ndarray:
    """Returns the images similar to each: its copies, its neighbours, and their copies.

    Args:
      near: positions of the neighbours of each image, `[N, K]`.
      copies: of each image, itself included; those of one kind lie side by side.

    Returns:
      Positions, `[N * copies, (K + 1) * copies - 1]`.
    """
    count = len(near)
    own = np.concatenate([np.arange(count)[:, None], near], axis=1)
    everywhere = np.concatenate([own + k * count for k in range(copies)], axis=1)
    rows = []
    for k in range(copies):
        # Not with itself.
        rows.append(np.delete(everywhere, k * own.shape[1], axis=1))
    return np.concatenate(rows).astype(np.int32)


def draw(
    key: jax.Array, similar: jax.Array, batch_size: int, fraction: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Draws pairs from lists of what is similar to each image.

    Args:
      key: of this batch.
      similar: positions of what is similar to each image, `[N, S]`.
      batch_size: pairs, B.
      fraction: share of pairs drawn from the lists.

    Returns:
      Positions of the first and second members and labels, `[B]` each: 0 where either is in the
      list of the other, or both are one image.
    """
    keys = jax.random.split(key, 3)
    count, listed = similar.shape
    i = jax.random.randint(keys[0], (batch_size,), 0, count)
    chosen = similar[i, jax.random.randint(keys[1], (batch_size,), 0, listed)]
    others = jax.random.randint(keys[2], (batch_size,), 0, count)
    j = jnp.where(jnp.arange(batch_size) < fraction * batch_size, chosen, others)
    either = jnp.any(similar[i] == j[:, None], axis=1) | jnp.any(similar[j] == i[:, None], axis=1)
    return i, j, jnp.where(either | (i == j), 0, 1)


def learn(config: Config, images: np.ndarray, similar: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """Trains a map, and returns where it puts the images to show, `[N, 2]`."""
    encoder = _encoder(config, images)
    optimizer = training.make_optimizer(
        config.learning_rate, config.steps, warmup_steps=config.steps // 50
    )
    pair_step = training.make_step(encoder, optimizer, objectives.pairs(margin=config.margin))

    def step(state: Any, source: Any, hyperparameters: Any) -> Any:
        images, similar = source
        key = jax.random.fold_in(jax.random.key(hyperparameters.seed), state.step)
        i, j, labels = draw(key, similar, config.batch_size, config.similar_fraction)
        return pair_step(state, training.Pairs(images[i], images[j], labels), hyperparameters)

    placed = training.parallel(step, "shard_map", jax.devices()[:1])
    state, source, hyperparameters = placed.replicate(
        (
            training.init_state(encoder, optimizer),
            (images, similar),
            training.Hyperparameters(config.seed),
        )
    )
    windows = training.windows(
        lambda state: placed.step(state, source, hyperparameters),
        state,
        steps=config.steps,
        window=min(100, config.steps),
    )
    with tqdm(total=config.steps, unit="step", disable=None, leave=False) as bar:
        for state, records in windows:  # noqa: B007 (the last is what is wanted)
            bar.update(len(records))
    return training.embed(encoder.encode, placed.fetch(state).weights, shown)


def _encoder(config: Config, images: np.ndarray) -> training.Network:
    return training.network(DrLIM(images.shape[1:], 2, rngs=nnx.Rngs(config.seed)))


def class_of_neighbour(embeddings: np.ndarray, labels: np.ndarray, copies: int) -> float:
    """Share of images whose nearest neighbour, copies of itself left out, is of the same class."""
    count = len(embeddings) // copies
    order = nearest_neighbours(embeddings, k=copies).indices
    others = order % count != np.arange(len(order))[:, None] % count
    first = order[np.arange(len(order)), others.argmax(axis=1)]
    return float(np.mean(labels[first] == labels))


def spread_of_copies(embeddings: np.ndarray, copies: int) -> float:
    """Mean distance of the copies of an image from their mean, over that of all from theirs."""
    grouped = embeddings.reshape(copies, -1, 2)
    of_copies = np.linalg.norm(grouped - grouped.mean(axis=0), axis=2).mean()
    return float(of_copies / np.linalg.norm(embeddings - embeddings.mean(axis=0), axis=1).mean())


def _with_images(data: Dataset | PairDataset) -> Dataset:
    """Returns a data set of images with classes.

    Raises:
      ValueError: if it has given pairs or vectors.
    """
    data = options.with_classes(data)
    if data.train.images.ndim == 2:
        raise ValueError(
            f"{data.name} has vectors, and copies are of images moved sideways: give images, or "
            "train a head on vectors with experiments.train --width 2"
        )
    return data


def _class_numbers(config: Config, data: Dataset) -> np.ndarray:
    """Returns the numbers of the classes that are shown.

    Raises:
      ValueError: if one has no training images.
    """
    present = np.unique(data.train.classes[data.train.classes >= 0])
    if config.classes is None and config.data:
        return present
    numbers = []
    for name in config.classes or FOURS_AND_NINES:
        number = int(name) if name.isdecimal() else -1
        number = data.class_names.index(name) if name in data.class_names else number
        if number not in present:
            names = [data.class_names[k] for k in present]
            more = ", ..." if len(names) > 10 else ""
            raise ValueError(
                f"--classes {name} has no training images in {data.name}, whose classes are "
                f"{', '.join(names[:10])}{more}: leave it out"
            )
        numbers.append(number)
    return np.array(numbers)


def _chosen(part: Examples, numbers: np.ndarray) -> Examples:
    """Returns the images of the classes that are shown."""
    rows = np.flatnonzero(np.isin(part.classes, numbers))
    return Examples(part.images[rows], part.classes[rows])


def _first(train: Examples, config: Config) -> Examples:
    """Returns as many training images as the options say.

    Images of one's own are sorted by class, of which the first ones would be a few.
    """
    rows = np.arange(len(train.classes))
    if config.data:
        rows = np.random.default_rng(config.seed).permutation(rows)
    rows = np.sort(rows[: config.images])
    return Examples(train.images[rows], train.classes[rows])


def _check(config: Config) -> None:
    if config.name is not None:
        runs.check_name(config.name)
    option_checks.check_effects(config)
    if not 0 < config.similar_fraction < 1:
        raise ValueError(f"--similar_fraction must be in (0, 1), got {config.similar_fraction}")
    if config.classes is not None and len({*config.classes}) < max(1, len(config.classes)):
        raise ValueError(f"--classes must be at least one, all different, got {config.classes}")


if __name__ == "__main__":
    command.run(main, lambda: command.parse(Config, "experiments.drlim", str(__doc__)))

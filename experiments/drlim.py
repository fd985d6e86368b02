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
import time
from pathlib import Path

import numpy as np
from flax import nnx

from contrastive_jax import plots
from contrastive_jax import train as training
from contrastive_jax.data import Dataset, Examples, PairDataset
from contrastive_jax.data.labels import class_numbers
from contrastive_jax.data.selection import select_rows, trained_numbers
from contrastive_jax.models import DrLIM
from contrastive_jax.train import neighbourhoods
from experiments import command, option_checks, options

# Of an image of 28 x 28 in the paper, in pixels to the right.
MOVES = (-6, -3, 3, 6)
# The classes of the paper.
FOURS_AND_NINES = ("4", "9")


@dataclasses.dataclass(frozen=True)
class Config(options.NewRuns, options.Data):
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


def main(config: Config) -> Path:
    """Learns and draws the three maps, and returns the folder of the run."""
    config = option_checks.checked(config)
    _check(config)
    data = _with_images(options.read_data(config))
    train, test = _shown(config, data)
    _check_shown(config, data, train, test)
    encoder = _encoder(config, train.images)
    training.check_images(encoder, train=train.images, test=test.images)
    default_name = f"drlim-{options.data_name(config)}"
    with options.open_run(config, default_name, options.recorded(config)) as folder:
        print(f"{folder}: {len(train.classes):,} training images, {len(test.classes):,} to show")
        _draw_maps(config, folder, data, train, test)
    return folder


def _draw_maps(
    config: Config, folder: Path, data: Dataset, train: Examples, test: Examples
) -> None:
    moves = [round(move * train.images.shape[2] / 28) for move in MOVES]
    copied, moved = (neighbourhoods.with_moved_copies(part.images, moves) for part in (train, test))
    times = len(moves) + 1
    near = neighbourhoods.nearest_by_pixels(train.images, config.neighbours)
    maps = {
        "neighbours": (train.images, near, test.images, 1),
        "copies": (
            copied,
            neighbourhoods.nearest_by_pixels(copied, config.neighbours),
            moved,
            times,
        ),
        "invariant": (copied, neighbourhoods.similar_to_copies(near, times), moved, times),
    }
    table = [
        "| map | nearest neighbour of the same class | spread of copies |",
        "| --- | ---: | ---: |",
    ]
    for name, (images, similar, shown, copies) in maps.items():
        began = time.perf_counter()
        encoder = _encoder(config, images)
        weights = neighbourhoods.train_on_similar(
            encoder,
            images,
            similar,
            steps=config.steps,
            margin=config.margin,
            similar_fraction=config.similar_fraction,
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            seed=config.seed,
        )
        embeddings = training.embed(encoder.encode, weights, shown)
        labels = np.tile(test.classes, copies)
        figure = plots.embedding_map(embeddings, labels, images=shown, class_names=data.class_names)
        plots.save(figure, folder / f"map-{name}.png")
        np.savez(folder / f"map-{name}.npz", embeddings=embeddings, classes=labels)
        right = neighbourhoods.nearest_of_class(embeddings, labels, copies)
        spread = f"{neighbourhoods.spread_of_copies(embeddings, copies):.2f}" if copies > 1 else "-"
        table.append(f"| {name} | {right:.3f} | {spread} |")
        print(f"{table[-1]} {time.perf_counter() - began:.0f} s")
    (folder / "results.md").write_text("\n".join(table) + "\n")


def _encoder(config: Config, images: np.ndarray) -> training.Network:
    return training.network(DrLIM(images.shape[1:], 2, rngs=nnx.Rngs(config.seed)))


def _with_images(data: Dataset | PairDataset) -> Dataset:
    """Returns the data set, having checked that it has images with classes."""
    data = options.with_classes(data)
    if data.train.images.ndim == 2:
        raise ValueError(
            f"{data.name} has vectors, and copies are of images moved sideways: give images, or "
            "train a head on vectors with experiments.train --width 2"
        )
    return data


def _shown(config: Config, data: Dataset) -> tuple[Examples, Examples]:
    """Returns the training and the test images of the classes that are shown."""
    names = config.classes or (None if config.data else FOURS_AND_NINES)
    with command.options_named((), **{"class": "classes"}):
        numbers = trained_numbers(data, names)
    train, test = (np.flatnonzero(np.isin(one.classes, numbers)) for one in (data.train, data.test))
    if config.data:
        # Images of one's own are sorted by class, of which the first ones would be a few.
        train = np.random.default_rng(config.seed).permutation(train)
    train = np.sort(train[: config.images])
    return select_rows(data.train, train), select_rows(data.test, test)


def _check_shown(config: Config, data: Dataset, train: Examples, test: Examples) -> None:
    """Checks that there are images to train on and to show."""
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


def _check(config: Config) -> None:
    option_checks.check_effects(config)
    if not 0 < config.similar_fraction < 1:
        raise ValueError(f"--similar_fraction must be in (0, 1), got {config.similar_fraction}")
    if config.classes is not None and len({*config.classes}) < max(1, len(config.classes)):
        raise ValueError(f"--classes must be at least one, all different, got {config.classes}")


if __name__ == "__main__":
    command.run(main, lambda: command.parse(Config, "experiments.drlim", str(__doc__)))

"""The experiment of Hadsell, Chopra and LeCun (2006, section 4): fours and nines in the plane.

    python -m experiments.drlim                         # digits of scikit-learn, about a minute
    python -m experiments.drlim --dataset mnist         # as in the paper, where its files are
    python -m experiments.drlim --data photos           # all classes of images of your own

A network learns a map to the plane from neighbourhoods alone: an image and one of its nearest
neighbours by pixels are a positive pair, any other two a negative one. No class is used to
train: classes say which images are shown, and in which colour. Three maps are learned:

    neighbours    of the images as they are (section 4.1, figure 4)
    copies        of the images and copies moved sideways, neighbours still by pixels: the map shows
                  how far an image was moved (section 4.2, figure 5)
    invariant     the same, but copies of an image, and of its neighbours, are positive pairs:
                  the map forgets how far an image was moved (section 4.2, figure 6)

runs/NAME/map-*.png is each with test images drawn on it, results.md the figures.
"""

import dataclasses
from pathlib import Path

import numpy as np

from contrastive_jax import cli
from contrastive_jax.data import Dataset, Examples
from contrastive_jax.data.evaluable import with_classes
from contrastive_jax.data.selection import select_rows, trained_numbers
from contrastive_jax.neighbourhood_maps import check_examples, write_maps
from experiments import command, option_checks, options

# Options that are arguments of the training of a map.
TRAINING = ("steps", "margin", "positive_fraction", "batch_size", "learning_rate", "seed")
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
    """Distance up to which negative pairs push each other."""
    positive_fraction: float = 0.5
    """Share of positive pairs in a batch."""
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
    data = with_classes(options.read_data(config))
    train, test = _shown(config, data)
    with command.naming_options(["neighbours"]):
        check_examples(train, test, config.neighbours, data=data)
    default_name = f"drlim-{options.data_name(config)}"
    with options.open_run(config, default_name, cli.as_saved(config)) as folder:
        print(f"{folder}: {len(train.classes):,} training images, {len(test.classes):,} to show")
        write_maps(
            folder,
            train,
            test,
            class_names=data.class_names,
            neighbours=config.neighbours,
            **{name: getattr(config, name) for name in TRAINING},
        )
    return folder


def _shown(config: Config, data: Dataset) -> tuple[Examples, Examples]:
    """Returns the training and the test images of the classes that are shown."""
    names = config.classes or (None if config.data else FOURS_AND_NINES)
    with command.naming_options((), **{"class": "classes"}):
        chosen = trained_numbers(data, names)
    train, test = (np.flatnonzero(np.isin(one.classes, chosen)) for one in (data.train, data.test))
    if config.data:
        # Images of one's own are sorted by class, of which the first ones would be a few.
        train = np.random.default_rng(config.seed).permutation(train)
    train = np.sort(train[: config.images])
    return select_rows(data.train, train), select_rows(data.test, test)


def _check(config: Config) -> None:
    cli.check_effects(config, option_checks.EFFECTS)
    if not 0 < config.positive_fraction < 1:
        raise ValueError(f"--positive_fraction must be in (0, 1), got {config.positive_fraction}")
    if config.classes is not None and len({*config.classes}) < max(1, len(config.classes)):
        raise ValueError(f"--classes must be at least one, all different, got {config.classes}")


if __name__ == "__main__":
    cli.run(main, lambda: cli.parse(Config, "experiments.drlim", str(__doc__)))

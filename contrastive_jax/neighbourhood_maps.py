"""The three maps of Hadsell, Chopra and LeCun (2006), learned, drawn and measured."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from contrastive_jax import plots
from contrastive_jax.data.datasets import Dataset, Examples
from contrastive_jax.data.labels import class_numbers
from contrastive_jax.evaluation.tables import markdown
from contrastive_jax.models import DrLIM
from contrastive_jax.train import neighbourhoods
from contrastive_jax.train.networks import check_images, embed, network

# The side of an image of the paper, in pixels.
_SIDE = 28


def check_examples(
    train: Examples, test: Examples, neighbours: int, *, data: Dataset | None = None
) -> None:
    """Checks, without computing anything, that maps can be learned from images and drawn.

    Args:
      train: images to train on.
      test: images to draw.
      neighbours: nearest neighbours of an image that are similar to it.
      data: the data set of the images, for errors, if it is known.

    Raises:
      ValueError: if there are vectors in place of images, too few images, test images of other
        classes than those trained on alone, or images that the network does not take.

    Example:
      >>> import contrastive_jax as cj
      >>> from contrastive_jax.neighbourhood_maps import check_examples
      >>> digits = cj.data.load("digits")
      >>> check_examples(digits.train, digits.test, neighbours=5)
    """
    name = "the data" if data is None else data.name
    if train.images.ndim == 2:
        raise ValueError(
            f"{name} has vectors, and copies are of images moved sideways: give images, or "
            "train a head on vectors with experiments.train --width 2"
        )
    if len(train.classes) <= neighbours:
        raise ValueError(
            f"neighbours must be below the {len(train.classes)} training images of these classes "
            f"in {name}, got {neighbours}"
        )
    if data is not None:
        shown, trained = (class_numbers(part.classes) for part in (data.test, data.train))
        shown = shown[shown >= 0]
        if len(shown) and not np.isin(shown, trained).any():
            raise ValueError(
                f"the test classes of {name} are not trained on, and a map shows trained ones: "
                "take --split examples"
            )
    if len(test.classes) < 2:
        raise ValueError(
            f"a map needs 2 test images at least, and {name} has {len(test.classes)} of these "
            "classes: name others with --classes"
        )
    shape = train.images.shape[1:]
    encoder = network(nnx.eval_shape(lambda: DrLIM(shape, 2, rngs=nnx.Rngs(0))))
    check_images(encoder, train=train.images, test=test.images)


def write_maps(
    folder: str | Path,
    train: Examples,
    test: Examples,
    *,
    class_names: Sequence[str],
    moves: Sequence[int] = (-6, -3, 3, 6),
    neighbours: int = 5,
    steps: int = 3000,
    seed: int = 0,
    report: Callable[[str], Any] = print,
    **training: Any,
) -> None:
    """Learns three maps to the plane from neighbourhoods of images, and draws test images on them.

    Similar are, on the map

    - `neighbours`, an image and its nearest neighbours by pixels;
    - `copies`, the same, of images and copies of them that are moved sideways;
    - `invariant`, an image, its nearest neighbours, and all their copies.

    Each writes `map-NAME.png`, and `map-NAME.npz` with its embeddings and classes. A table of all
    three, in `results.md`, has the share of test images whose nearest neighbour is of the same
    class, and the spread of the copies of an image.

    Args:
      folder: to write to, which is made if need be.
      train: images to train on.
      test: images to draw; their classes give colours and figures, and train nothing.
      class_names: by class.
      moves: of each set of copies, in pixels to the right of an image of 28 pixels.
      neighbours: nearest neighbours of an image that are similar to it.
      steps: training steps of each map.
      seed: of parameters and pairs.
      report: takes a line for each map that is finished.
      **training: more arguments of `train_on_neighbours`, as `margin` and `learning_rate`.

    Raises:
      FloatingPointError: if the loss or its gradient is not finite.
      ValueError: if a number is not in its range, or as `check_examples` does.

    Example:
      >>> from pathlib import Path
      >>> import contrastive_jax as cj
      >>> from contrastive_jax.data.selection import select_rows
      >>> from contrastive_jax.neighbourhood_maps import write_maps
      >>> digits = cj.data.load("digits")
      >>> some = [select_rows(part, range(40)) for part in (digits.train, digits.test)]
      >>> names, ignored = digits.class_names, lambda line: None
      >>> write_maps(Path(), *some, class_names=names, report=ignored, steps=2, batch_size=8)
      >>> sorted(path.name for path in Path().glob("map-*.png"))
      ['map-copies.png', 'map-invariant.png', 'map-neighbours.png']

    References:
      Hadsell, Chopra and LeCun, Dimensionality Reduction by Learning an Invariant Mapping, 2006
      <https://doi.org/10.1109/CVPR.2006.100>, section 4
    """
    check_examples(train, test, neighbours)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    scaled = [round(move * train.images.shape[2] / _SIDE) for move in moves]
    copied, moved = (
        neighbourhoods.with_moved_copies(part.images, scaled) for part in (train, test)
    )
    times = len(moves) + 1
    near = neighbourhoods.nearest_by_pixels(train.images, neighbours)
    maps = {
        "neighbours": (train.images, near, test.images, 1),
        "copies": (copied, neighbourhoods.nearest_by_pixels(copied, neighbours), moved, times),
        "invariant": (copied, neighbourhoods.neighbours_of_copies(near, times), moved, times),
    }
    table = [["map", "nearest neighbour of the same class", "spread of copies"]]
    for name, (images, lists, shown, copies) in maps.items():
        began = time.perf_counter()
        encoder = network(DrLIM(images.shape[1:], 2, rngs=nnx.Rngs(seed)))
        weights = neighbourhoods.train_on_neighbours(
            encoder, images, lists, steps=steps, seed=seed, **training
        )
        embeddings = embed(encoder.encode, weights, shown)
        labels = np.tile(test.classes, copies)
        figure = plots.embedding_map(embeddings, labels, images=shown, class_names=class_names)
        plots.save(figure, folder / f"map-{name}.png")
        np.savez(folder / f"map-{name}.npz", embeddings=embeddings, classes=labels)
        right = neighbourhoods.nearest_of_class(embeddings, labels, copies)
        spread = f"{neighbourhoods.spread_of_copies(embeddings, copies):.2f}" if copies > 1 else "-"
        table.append([name, f"{right:.3f}", spread])
        report(f"{name}: {right:.3f}, {spread}, {time.perf_counter() - began:.0f} s")
    (folder / "results.md").write_text(markdown(table) + "\n")

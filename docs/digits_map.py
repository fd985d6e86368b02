"""Draws docs/digits_map.png: digits in the plane, before and after an encoder is trained.

    python docs/digits_map.py

The encoder has two outputs, which are the coordinates of the figure. It is trained on all pairs of
120 images a step, and the figure shows images of the test split alone.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from flax import nnx
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray

from contrastive_jax import plots
from contrastive_jax import train as training
from contrastive_jax.data import Dataset, index_by_class, load
from contrastive_jax.models import MLP

Array = NDArray[Any]

WIDTH, HEIGHT = 4.9, 3.6
"""Size of a panel in inches."""
DIGIT = 0.17
"""Side of a drawn image in inches."""
LABEL = 0.34
"""Side of the square that a label takes, in inches."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the figure."""

    path: Path = Path("docs/digits_map.png")
    """File to write."""
    steps: int = 600
    """Training steps between the two panels."""
    seed: int = 2
    """Seed of parameters and batches. The classes of seed 2 fill the frame best."""


def main(config: Config) -> None:
    """Trains the encoder, and writes the figure."""
    data = load("digits")
    before, after = embed_before_and_after(data, config.steps, config.seed)
    figure = draw(
        {"before training": before, f"after {config.steps} steps": after},
        data.test.images,
        data.test.classes,
    )
    plots.save(figure, config.path)
    print(f"{config.path}: {len(data.test.classes)} test images")


def embed_before_and_after(data: Dataset, steps: int, seed: int) -> tuple[Array, Array]:
    """Trains an encoder with two outputs on the digits.

    Args:
      data: the digits.
      steps: number of training steps.
      seed: of parameters and batches.

    Returns:
      The embeddings of the test images before the first and after the last step, `[N, 2]` each.
    """
    encoder = training.network(
        MLP(data.train.images.shape[1:], width=2, normalize=False, rngs=nnx.Rngs(seed))
    )
    before = training.embed(encoder.encode, encoder.weights, data.test.images)
    optimizer = training.make_optimizer(3e-3, steps, warmup_steps=steps // 50, weight_decay=0.1)
    objective = training.objective("contrastive", margin=1.0, positive_fraction=0.5)
    step = training.make_step(encoder, optimizer, objective)
    step = training.draws_classes(step, classes=10, examples=12)
    device = training.parallel(step, "shard_map", jax.devices()[:1])
    source = training.Source(
        data.train.images, data.train.classes, index_by_class(data.train.classes)
    )
    source, hyperparameters = device.replicate((source, training.Hyperparameters(seed)))
    state = device.replicate(training.init_state(encoder, optimizer))
    # One window holds all steps, so the loop hands back one state.
    [(trained, _)] = training.windows(
        lambda state: device.step(state, source, hyperparameters),
        state,
        steps=steps,
        window=steps,
    )
    weights = device.fetch(trained).weights
    return before, training.embed(encoder.encode, weights, data.test.images)


def draw(panels: dict[str, Array], images: Array, classes: Array) -> Figure:
    """Draws images at their embeddings, in the colours of their classes.

    Classes are named in the last panel, beside their images. Each panel is turned to the principal
    axes of its points and scaled to them, so that they fill it.

    Args:
      panels: embeddings by the title of the panel, `[N, 2]` each.
      images: `uint8`, `[N, H, W, 1]`, bright on black.
      classes: from 0 to 9, `[N]`.

    Returns:
      The figure.
    """
    gap, title = 0.1, 0.35
    figure = Figure(figsize=(len(panels) * (WIDTH + gap), HEIGHT + title), dpi=150)
    for k, (name, embeddings) in enumerate(panels.items()):
        points = fit(embeddings)
        axes = figure.add_axes(
            (
                (k * (WIDTH + gap) + gap / 2) / figure.get_figwidth(),
                gap / 2 / figure.get_figheight(),
                WIDTH / figure.get_figwidth(),
                (HEIGHT - gap / 2) / figure.get_figheight(),
            ),
            xlim=(0, WIDTH),
            ylim=(0, HEIGHT),
            xticks=[],
            yticks=[],
        )
        axes.grid(visible=False)
        for side in axes.spines.values():
            side.set(visible=True, color="#CCCCCC")
        axes.set_title(name, fontsize=13)
        _draw_digits(axes, points, images, classes)
        if k == len(panels) - 1:
            present = np.unique(classes)
            for c, (x, y) in zip(present, label_positions(points, classes), strict=True):
                color = plots.CLASS_COLORS[c]
                axes.text(x, y, c, color=color, ha="center", va="center", size=21, weight="bold")
    return figure


def fit(embeddings: Array) -> Array:
    """Turns embeddings to their principal axes and scales them to a panel, in inches."""
    centred = embeddings - embeddings.mean(0)
    points = centred @ np.linalg.svd(centred, full_matrices=False)[2].T
    low, high = points.min(0), points.max(0)
    room = np.array([WIDTH, HEIGHT]) - 1.2 * DIGIT
    scale = np.min(room / (high - low))
    moved: Array = (points - (low + high) / 2) * scale + np.array([WIDTH, HEIGHT]) / 2
    return moved


def label_positions(points: Array, classes: Array) -> Array:
    """Chooses a position for the label of each class, clear of all images and other labels.

    Args:
      points: centres of the images in inches, `[N, 2]`.
      classes: `[N]`.

    Returns:
      The clear position nearest to the median of each class, in the order of `np.unique`.
    """
    x, y = np.arange(0.25, WIDTH - 0.25, 0.05), np.arange(0.25, HEIGHT - 0.25, 0.05)
    candidates = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)
    apart = np.abs(candidates[:, None] - points).max(-1).min(1)
    clear = apart > (DIGIT + LABEL) / 2
    chosen: list[Array] = []
    for c in np.unique(classes):
        away = np.linalg.norm(candidates - np.median(points[classes == c], 0), axis=1)
        best = candidates[np.argmin(np.where(clear, away, np.inf))]
        clear &= np.abs(candidates - best).max(1) > LABEL
        chosen.append(best)
    return np.array(chosen)


def _draw_digits(axes: Axes, points: Array, images: Array, classes: Array) -> None:
    for (x, y), image, c in zip(points, images[..., 0], classes, strict=True):
        picture = np.empty((*image.shape, 4))
        picture[..., :3] = to_rgb(plots.CLASS_COLORS[c])
        picture[..., 3] = image / max(image.max(), 1)
        half = DIGIT / 2
        axes.imshow(
            picture,
            extent=(x - half, x + half, y - half, y + half),
            aspect="auto",
            interpolation="bilinear",
            zorder=2,
        )


if __name__ == "__main__":
    main(tyro.cli(Config, description=str(__doc__).splitlines()[0], use_underscores=True))

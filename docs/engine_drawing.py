"""Draws docs/engine.svg, the four ideas of the engine.

python docs/engine_drawing.py
"""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, Rectangle

from contrastive_jax import plots

COLORS = (plots.BLUE, plots.ORANGE, plots.GREEN)
CLASSES = np.repeat([0, 1, 2], [5, 4, 7])
TILE = 4
GREY = "#555555"


def draw() -> Figure:
    """Draws the four panels."""
    figure = Figure(figsize=(10, 8.6), layout="constrained")
    panels = figure.subplots(2, 2).ravel()
    for axes, panel in zip(panels, (sorted_rows, one_tile, close_pairs, half_ring), strict=True):
        axes.set(xticks=[], yticks=[], aspect="equal")
        axes.grid(visible=False)
        for side in axes.spines.values():
            side.set_visible(False)
        panel(axes)
    return figure


def sorted_rows(axes: Axes) -> None:
    """All pairs of sixteen rows in tiles of four, and which tiles a pass visits."""
    count = len(CLASSES)
    axes.set_title("1. Rows sorted by class, pairs in tiles")
    axes.set(xlim=(-3.2, count + 0.4), ylim=(count + 2.2, -2.2))
    for k, c in enumerate(CLASSES):
        for corner in ((-1.4, k), (k, -1.4)):
            axes.add_patch(Rectangle(corner, 1, 1, color=COLORS[c], linewidth=0))
    for i in range(0, count, TILE):
        for j in range(0, count, TILE):
            shared = {*CLASSES[i : i + TILE]} & {*CLASSES[j : j + TILE]}
            color = "white" if j < i else "#FFE0B0" if shared else "#DDE8F2"
            edge = "#BBBBBB" if j < i else GREY
            axes.add_patch(Rectangle((j, i), TILE, TILE, facecolor=color, edgecolor=edge))
    for k, c in enumerate(CLASSES):
        for j in range(k + 1, count):
            if CLASSES[j] == c:
                axes.add_patch(Rectangle((j + 0.2, k + 0.2), 0.6, 0.6, color=COLORS[c]))
    axes.text(-2.3, count / 2, "rows", rotation=90, ha="center", va="center")
    axes.text(count / 2, count + 0.9, "orange: tiles with positive pairs (squares)", ha="center")
    axes.text(count / 2, count + 1.9, "blue: negative pairs alone; white: skipped", ha="center")


def one_tile(axes: Axes) -> None:
    """Draws the work in a tile: one product forwards, two for the gradient."""
    axes.set_title("2. The gradient, computed in the forward pass")
    axes.set(xlim=(0, 12), ylim=(0, 12))
    boxes = {
        "rows X": (0.5, 9.0, 2.6, 1.8),
        "columns Y": (4.6, 9.0, 2.6, 1.8),
        "distances D\nfrom X Yᵀ": (2.0, 5.6, 3.6, 2.0),
        "losses:\nadd to the sum": (0.3, 2.4, 3.6, 2.0),
        "derivatives\nW = ∂L/∂D": (4.5, 2.4, 3.6, 2.0),
        "W Y:\ngradient of X": (8.7, 5.0, 3.1, 2.0),
        "Wᵀ X:\ngradient of Y": (8.7, 1.2, 3.1, 2.0),
    }
    for text, (x, y, width, height) in boxes.items():
        color = "#DDE8F2" if text.startswith(("rows", "columns")) else "white"
        axes.add_patch(Rectangle((x, y), width, height, facecolor=color, edgecolor=GREY))
        axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=9.5)
    for start, end in (
        ((1.8, 9.0), (3.2, 7.65)),
        ((5.9, 9.0), (4.6, 7.65)),
        ((3.2, 5.6), (2.2, 4.45)),
        ((4.6, 5.6), (6.0, 4.45)),
        ((8.1, 3.8), (8.65, 5.2)),
        ((8.1, 3.0), (8.65, 2.4)),
    ):
        _arrow(axes, start, end)
    axes.text(6, 0.2, "The tile is then thrown away.", ha="center")


def close_pairs(axes: Axes) -> None:
    """Two close points of a class, and the differences from which they are recomputed."""
    axes.set_title("3. Close pairs, recomputed from differences")
    axes.set(xlim=(0, 12), ylim=(0, 12))
    centre = np.array([2.0, 2.6])
    first = np.array([8.4, 8.4])
    points = first + np.array([[0, 0], [1.5, 0.6], [1.8, -0.5]])
    axes.plot(*centre, "k+", markersize=12)
    axes.text(*(centre - [0, 0.5]), "centre of all rows", ha="center", va="top")
    for point in points[1:]:
        _arrow(axes, centre, point, color="#AAAAAA", linestyle="--")
        _arrow(axes, first, point, color=plots.VERMILION)
    axes.plot(*points.T, "o", color=plots.GREEN, markersize=9)
    x, y = first
    axes.text(x - 0.3, y + 0.4, "first row\nof the class", ha="right", va="bottom")
    axes.text(
        6.0, 3.9, "|u|² + |v|² - 2 u·v:\nlong vectors, few\ndigits remain", color=GREY, va="center"
    )
    axes.text(
        11.9,
        10.2,
        "short differences,\nall digits remain",
        color=plots.VERMILION,
        ha="right",
        va="bottom",
    )


def half_ring(axes: Axes) -> None:
    """Five devices, and how far the rows of one of them travel."""
    axes.set_title("4. Half a turn of the ring of devices")
    axes.set(xlim=(-6, 6), ylim=(-6, 6))
    angles = np.pi / 2 - np.arange(5) * 2 * np.pi / 5
    centres = 3.9 * np.stack([np.cos(angles), np.sin(angles)], -1)
    for k, (x, y) in enumerate(centres):
        color = "#FFE0B0" if k == 0 else "#DDE8F2" if k <= 2 else "white"
        axes.add_patch(Circle((x, y), 1.05, facecolor=color, edgecolor=GREY, zorder=3))
        axes.text(x, y, f"device\n{k}", ha="center", va="center", fontsize=9.5, zorder=4)
    for k in range(2):
        _arrow(axes, centres[k], centres[k + 1], shrink=35, color=plots.BLUE, linewidth=2)
    _arrow(axes, centres[2], centres[0], shrink=35, color=plots.VERMILION, linestyle="--")
    axes.text(2.6, 4.0, "the rows of 0\nvisit 1 and 2,", color=plots.BLUE)
    axes.text(-0.9, -0.6, "their gradient\ntravels home", color=plots.VERMILION, ha="center")
    axes.text(-5.9, 4.0, "3 and 4 bring\ntheir rows to 0", color=GREY)


def _arrow(
    axes: Axes, start: np.ndarray, end: np.ndarray, *, shrink: float = 2, **line: object
) -> None:
    axes.add_patch(
        FancyArrowPatch(
            tuple(start),
            tuple(end),
            arrowstyle="-|>",
            mutation_scale=13,
            shrinkA=shrink,
            shrinkB=shrink,
            **{"color": GREY, "linewidth": 1.4, **line},
        )
    )


if __name__ == "__main__":
    plots.save(draw(), Path(__file__).with_name("engine.svg"))

"""Figures of a loss, an embedding and a run. Every function returns a `matplotlib` figure.

Similar is blue and drawn in full lines, dissimilar is vermilion and dashed, in every figure, so that
they also differ in grey. Colours are those of Okabe and Ito (2008).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, ParamSpec

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from numpy.typing import ArrayLike

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, YELLOW, BLACK = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#F0E442",
    "#000000",
)
SIMILAR: dict[str, Any] = {"color": BLUE, "linestyle": "-"}
DISSIMILAR: dict[str, Any] = {"color": VERMILION, "linestyle": "--"}
_MARK: dict[str, Any] = {"color": "#555555", "linewidth": 1, "linestyle": ":"}
# Ten classes: seven colours told apart by anyone, then three of them darker or lighter.
_CLASSES = (BLUE, ORANGE, GREEN, VERMILION, SKY, PURPLE, BLACK, "#B8A900", "#7F4A9E", "#8C8C8C")
_MARKERS = "os^Dv<>Pp*"
_STYLE = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E5E5E5",
    "axes.axisbelow": True,
    "lines.linewidth": 2,
    "legend.frameon": False,
    "figure.dpi": 150,
    "savefig.dpi": 150,
    "savefig.bbox": "tight",
    "svg.hashsalt": "contrastive_jax",
}

P = ParamSpec("P")


def _styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with mpl.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return drawn


def save(figure: Figure, path: Any) -> None:
    """Writes a figure to a file whose ending names the format, tightly cropped."""
    with mpl.rc_context(_STYLE):
        figure.savefig(path)


@_styled
def loss_curve(
    loss: Callable[..., jax.Array], margin: float, *, max_distance: float | None = None
) -> Figure:
    """The loss of a similar and of a dissimilar pair over their distance, with the margin marked.

    Args:
      loss: scalar function of distance, label and margin.
      margin: in the unit of the distance.
      max_distance: end of the axis; one and a half margins by default.

    Returns:
      The figure.
    """
    distance = jnp.linspace(0.0, max_distance or 1.5 * margin, 301)
    figure, axes = _one(6.4, 3.8)
    for label, style, name in ((0, SIMILAR, "similar"), (1, DISSIMILAR, "dissimilar")):
        values = jax.vmap(lambda d, label=label: loss(d, label, margin))(distance)
        axes.plot(distance, values, label=f"{name} (Y = {label})", **style)
    _mark(axes, margin, f"margin {margin:g}")
    axes.set(xlabel="distance D", ylabel="loss L(D, Y)", xlim=(0, None), ylim=(0, None))
    axes.legend(loc="upper left")
    return figure


@_styled
def distance_histograms(
    distances: ArrayLike,
    labels: ArrayLike,
    *,
    margin: float | None = None,
    threshold: float | None = None,
) -> Figure:
    """Densities of the distances of similar and of dissimilar pairs.

    Args:
      distances: `[N]`.
      labels: 0 similar, 1 dissimilar, `[N]`.
      margin: marked if given.
      threshold: the chosen one, marked if given.

    Returns:
      The figure.

    Raises:
      ValueError: if the two differ in shape or are empty.
    """
    distances, labels = np.asarray(distances), np.asarray(labels)
    if distances.shape != labels.shape or distances.ndim != 1 or distances.size == 0:
        raise ValueError(
            f"distances and labels must be [N] alike, got {distances.shape} and {labels.shape}"
        )
    figure, axes = _one(6.4, 3.8)
    edges = np.linspace(0, max(distances.max(), margin or 0, 1e-9), 61)
    for label, style, name in ((0, SIMILAR, "similar"), (1, DISSIMILAR, "dissimilar")):
        chosen = distances[labels == label]
        if chosen.size:
            density, _ = np.histogram(chosen, edges, density=True)
            axes.stairs(density, edges, fill=True, alpha=0.25, color=style["color"])
            axes.stairs(density, edges, label=f"{name} pairs", linewidth=1.5, **style)
    axes.set(xlabel="distance", ylabel="density", xlim=(0, edges[-1]), ylim=(0, None))
    if margin is not None:
        _mark(axes, margin, f"margin {margin:.2f}")
    if threshold is not None:
        # On the side away from the margin.
        left = margin is None or threshold <= margin
        _mark(axes, threshold, f"threshold {threshold:.2f}", left=left)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=2)
    return figure


@_styled
def roc(curves: Mapping[str, tuple[ArrayLike, ArrayLike]]) -> Figure:
    """True against false accept rates, the latter on a logarithmic axis down to 1e-4.

    Args:
      curves: `(far, tar)` by name, such as that of an embedding and that of raw pixels.

    Returns:
      The figure.
    """
    figure, axes = _one(6.4, 4.2)
    styles = ("-", "--", "-.", ":")
    for k, (name, (far, tar)) in enumerate(curves.items()):
        color, style = (BLUE, ORANGE, GREEN, PURPLE)[k % 4], styles[k % 4]
        shown = np.maximum(np.asarray(far), 1e-9)
        axes.plot(shown, tar, label=name, color=color, linestyle=style, drawstyle="steps-post")
    chance = np.logspace(-4, 0, 50)
    axes.plot(chance, chance, label="chance", color="#999999", linewidth=1, linestyle=":")
    axes.set(
        xscale="log",
        xlim=(1e-4, 1),
        ylim=(0, 1.02),
        xlabel="false accept rate (dissimilar pairs below the threshold)",
        ylabel="true accept rate",
    )
    axes.legend(loc="best")
    return figure


@_styled
def embedding_map(
    embeddings: ArrayLike,
    classes: ArrayLike,
    *,
    images: ArrayLike | None = None,
    class_names: Sequence[str] | None = None,
) -> Figure:
    """A map of embeddings in the plane; those wider than two by their principal components.

    Args:
      embeddings: `[N, D]`, D at least 2.
      classes: `[N]` integers.
      images: `[N, H, W, C]`; drawn as thumbnails, as many as find room, instead of dots.
      class_names: name of each class number.

    Returns:
      The figure.

    Raises:
      ValueError: if shapes do not fit.
    """
    embeddings, classes = np.asarray(embeddings, np.float64), np.asarray(classes)
    if embeddings.ndim != 2 or embeddings.shape[1] < 2 or classes.shape != embeddings.shape[:1]:
        raise ValueError(
            "embeddings must be [N, D] with D at least 2 and classes [N], got "
            f"{embeddings.shape} and {classes.shape}"
        )
    points, x_label, y_label = _plane(embeddings)
    figure, axes = _one(7.2, 6.4)
    present = np.unique(classes)
    names = {c: class_names[c] if class_names is not None else str(c) for c in present}
    color = {c: _CLASSES[k % 10] for k, c in enumerate(present)}
    few = len(present) <= 10
    low, high = points.min(0), points.max(0)
    margin = 0.04 * np.maximum(high - low, 1e-9)
    axes.set_xlim(low[0] - margin[0], high[0] + margin[0])
    axes.set_ylim(low[1] - margin[1], high[1] + margin[1])
    if images is None:
        for k, c in enumerate(present):
            axes.scatter(
                *points[classes == c].T,
                s=14 if len(points) < 2000 else 6,
                color=color[c],
                marker=_MARKERS[k % 10 if few else k // 10 % 10],
                alpha=0.6,
                linewidths=0,
            )
    else:
        _thumbnails(axes, points, np.asarray(images), [color[c] for c in classes])
    if few:
        handles = [
            Line2D(
                [],
                [],
                color=color[c],
                marker="s" if images is not None else _MARKERS[k],
                linestyle="",
                label=names[c],
            )
            for k, c in enumerate(present)
        ]
        axes.legend(
            handles=handles,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.1),
            ncols=5,
            columnspacing=1.2,
            handletextpad=0.2,
        )
    axes.set(xlabel=x_label, ylabel=y_label)
    return figure


def _plane(embeddings: np.ndarray) -> tuple[np.ndarray, str, str]:
    if embeddings.shape[1] == 2:
        return embeddings, "embedding, first entry", "embedding, second entry"
    centred = embeddings - embeddings.mean(0)
    _, scale, axes = np.linalg.svd(centred, full_matrices=False)
    # The sign of a component is arbitrary: let its largest entry be positive.
    axes = axes * np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])[:, None]
    share = scale**2 / max((scale**2).sum(), 1e-300)
    labels = [f"principal component {k + 1} ({share[k]:.0%} of variance)" for k in range(2)]
    return centred @ axes[:2].T, labels[0], labels[1]


def _thumbnails(
    axes: Axes, points: np.ndarray, images: np.ndarray, colors: Sequence[str], side: int = 30
) -> None:
    """Draws images on a grid, each in the free cell nearest to its point and not far from it."""
    low = np.array([axes.get_xlim()[0], axes.get_ylim()[0]])
    span = np.array([axes.get_xlim()[1], axes.get_ylim()[1]]) - low
    box = axes.get_window_extent()
    zoom = 0.9 * min(box.width, box.height) / side / max(images.shape[1:3])
    zoom *= 72 / axes.figure.get_dpi()
    free = np.ones((side, side), bool)
    cells = np.stack(np.indices(free.shape), -1) + 0.5
    # In an order of their own, lest the classes that come first take the room of the others.
    for k in np.random.default_rng(0).permutation(len(points)):
        away = np.square(cells - (points[k] - low) / span * side).sum(-1)
        away[~free] = np.inf
        where = np.unravel_index(away.argmin(), free.shape)
        if away[where] > 2.5**2:
            continue
        free[where] = False
        axes.add_artist(
            AnnotationBbox(
                OffsetImage(_tinted(images[k], colors[k]), zoom=zoom, interpolation="nearest"),
                tuple(low + cells[where] / side * span),
                pad=0.0,
                bboxprops={"edgecolor": colors[k], "linewidth": 0.8},
            )
        )


def _tinted(image: np.ndarray, color: str) -> np.ndarray:
    """Grey images are drawn in ink of the class's colour on white, others as they are."""
    scaled = image / 255 if np.issubdtype(image.dtype, np.integer) else np.clip(image, 0, 1)
    if image.shape[-1] == 3:
        return scaled
    ink = np.array(mpl.colors.to_rgb(color))
    return 1 - scaled[..., :1] * (1 - ink)


@_styled
def gallery(
    images: ArrayLike,
    classes: ArrayLike,
    neighbours: ArrayLike,
    queries: ArrayLike,
    *,
    class_names: Sequence[str] | None = None,
) -> Figure:
    """Queries and their nearest neighbours; right ones ticked in blue, wrong ones crossed out.

    Args:
      images: `[N, H, W, C]`.
      classes: `[N]` integers.
      neighbours: positions of the nearest neighbours of every example, nearest first, `[N, K]`.
      queries: which examples to show, `[Q]`.
      class_names: name of each class number.

    Returns:
      The figure.

    Raises:
      ValueError: if shapes do not fit.
    """
    images, classes = np.asarray(images), np.asarray(classes)
    neighbours, queries = np.asarray(neighbours), np.asarray(queries)
    if images.ndim != 4 or neighbours.ndim != 2 or not (
        len(images) == len(classes) == len(neighbours)
    ):
        raise ValueError(
            "images [N, H, W, C], classes [N] and neighbours [N, K] must fit, got "
            f"{images.shape}, {classes.shape} and {neighbours.shape}"
        )
    columns = neighbours.shape[1] + 1
    figure = Figure(figsize=(1.05 * columns, 1.3 * len(queries)), layout="constrained")
    grid = np.atleast_2d(figure.subplots(len(queries), columns, squeeze=False))
    for row, query in zip(grid, queries, strict=True):
        for column, (axes, k) in enumerate(zip(row, [query, *neighbours[query]], strict=True)):
            grey = images.shape[-1] == 1
            axes.imshow(images[k].squeeze(-1) if grey else images[k], cmap="gray_r")
            axes.set(xticks=[], yticks=[])
            axes.grid(False)
            right = classes[k] == classes[query]
            name = class_names[classes[k]] if class_names is not None else str(classes[k])
            color = BLACK if column == 0 else BLUE if right else VERMILION
            mark = "" if column == 0 else "✓ " if right else "✗ "
            axes.set_xlabel(mark + name, color=color, fontsize=8.5, labelpad=2)
            for spine in axes.spines.values():
                spine.set(visible=True, color=color, linewidth=2)
                spine.set_linestyle("-" if right else "--")
    for column, axes in enumerate(grid[0]):
        axes.set_title("query" if column == 0 else str(column), fontsize=9.5)
    return figure


@_styled
def training_curves(
    records: Sequence[Mapping[str, float]], *, margin: float | None = None
) -> Figure:
    """Loss, distances, active pairs and validation figures over the steps of a run.

    Args:
      records: lines of `metrics.jsonl`, each with its `step`.
      margin: marked among the distances if given.

    Returns:
      The figure.

    Raises:
      ValueError: if there are no records.
    """
    if not records:
        raise ValueError("no records to draw")
    figure = Figure(figsize=(9, 6), layout="constrained")
    (top_left, top_right), (low_left, low_right) = figure.subplots(2, 2, sharex=True)
    _curve(top_left, records, "loss", "training", SIMILAR)
    top_left.set(ylabel="loss", yscale="log")
    _curve(top_right, records, "similar_distance", "similar pairs", SIMILAR)
    _curve(top_right, records, "dissimilar_distance", "dissimilar pairs", DISSIMILAR)
    if margin is not None:
        top_right.axhline(margin, label="margin", **_MARK)
    top_right.set(ylabel="mean distance", ylim=(0, None))
    _curve(low_left, records, "active_fraction", "active", DISSIMILAR)
    low_left.set(ylabel="dissimilar pairs with a loss", xlabel="step", ylim=(0, 1.02))
    low_left.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0))
    for key, name, color, style in (
        ("validation/precision_at_1", "precision at 1", BLUE, "-"),
        ("validation/r_precision", "R-precision", GREEN, "-."),
        ("validation/map_at_r", "MAP@R", PURPLE, "--"),
    ):
        found = [(record["step"], record[key]) for record in records if key in record]
        if found:
            low_right.plot(
                *zip(*found, strict=True), label=name, color=color, linestyle=style, marker="."
            )
    low_right.set(ylabel="on validation", xlabel="step", ylim=(None, 1))
    for axes in (top_right, low_right):
        axes.legend(loc="best")
    return figure


def _curve(
    axes: Axes,
    records: Sequence[Mapping[str, float]],
    key: str,
    name: str,
    style: Mapping[str, Any],
) -> None:
    found = [(record["step"], record[key]) for record in records if key in record]
    if not found:
        return
    steps, values = (np.array(column) for column in zip(*found, strict=True))
    axes.plot(steps, values, color=style["color"], alpha=0.2, linewidth=0.8)
    width = max(len(values) // 100, 1)
    whole = len(values) // width * width
    steps, values = (x[:whole].reshape(-1, width).mean(1) for x in (steps, values))
    axes.plot(steps, values, label=name, **style)


def _one(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height))
    return figure, figure.subplots()


def _mark(axes: Axes, x: float, text: str, *, left: bool = False) -> None:
    axes.axvline(x, **_MARK)
    axes.annotate(
        text,
        (x, 0.97),
        xycoords=("data", "axes fraction"),
        xytext=(-4 if left else 4, 0),
        textcoords="offset points",
        ha="right" if left else "left",
        va="top",
        fontsize=9.5,
        color="#333333",
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
    )

"""Figures of a loss, an embedding and a run. Every function returns a matplotlib `Figure`.

Positive pairs are blue and drawn in full lines, negative ones vermilion and dashed, in every
figure, so that they differ in grey as well. All colours are those of Okabe and Ito (2008) or
derived from them. Nothing touches `pyplot`: figures need no display, and are freed as other objects
are.

Masked entries, and classes of -1, are errors: leave such rows out.
"""

import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import jax
import numpy as np
from numpy.typing import ArrayLike, NDArray

from contrastive_jax._extras import needs
from contrastive_jax.data.labels import check_unmasked

with needs("plots", __name__):
    from matplotlib import style
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.colors import to_rgb
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.lines import Line2D
    from matplotlib.markers import MarkerStyle
    from matplotlib.patches import Rectangle
    from matplotlib.path import Path as Outline
    from matplotlib.text import Text
    from matplotlib.textpath import text_to_path
    from matplotlib.ticker import PercentFormatter, StrMethodFormatter

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
)
# Ten classes: colours told apart by anyone, then a dark yellow, a dark purple and a grey.
CLASS_COLORS = (BLUE, ORANGE, GREEN, VERMILION, SKY, PURPLE, BLACK, "#B8A900", "#6A3D9A", "#8C8C8C")
_MARKERS = "os^Dv<>Pp*"
_PAIRS: tuple[tuple[int, str, dict[str, Any]], ...] = (
    (0, "positive", {"color": BLUE, "linestyle": "-"}),
    (1, "negative", {"color": VERMILION, "linestyle": "--"}),
)
# Blue and vermilion are taken by the two kinds of pairs.
_LINES: tuple[dict[str, Any], ...] = (
    {"color": GREEN, "linestyle": "-"},
    {"color": PURPLE, "linestyle": "--"},
    {"color": BLACK, "linestyle": "-."},
    {"color": ORANGE, "linestyle": ":"},
)
_MARK: dict[str, Any] = {"color": "#333333", "linewidth": 1.2, "linestyle": ":"}
_VALIDATION = {
    "validation/precision_at_1": "precision at 1",
    "validation/map_at_r": "MAP@R",
    "validation/r_precision": "R-precision",
    "validation/auc": "pair AUC",
    "validation/average_precision": "average precision of pairs",
}
_STYLE: dict[str, Any] = {
    "figure.dpi": 150,
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E5E5E5",
    "lines.linewidth": 2,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "svg.hashsalt": "contrastive_jax",
}

Array = NDArray[Any]
P = ParamSpec("P")


def _styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        check_unmasked(**inspect.signature(draw).bind(*args, **kwargs).arguments)
        with style.context(["default", _STYLE]):
            figure = draw(*args, **kwargs)
            for axes in figure.axes:
                axes.tick_params(which="both", labelsize=10)
            _write_literally(figure)
            # Ticks come into being at the first draw, and take the style of that moment.
            figure.draw_without_rendering()
        return figure

    return drawn


def _write_literally(figure: Figure) -> None:
    """Has texts drawn as they are: a name with two dollars in it is no formula.

    Only matplotlib's own are formulas: powers on logarithmic axes, and the factor of an axis.
    """
    formulas: set[Artist] = set()
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        formulas.add(axis.get_offset_text())
        if axis.get_scale() == "log":
            ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
            formulas.update(label for tick in ticks for label in (tick.label1, tick.label2))
    for text in figure.findobj(Text):
        if text not in formulas:
            text.set_parse_math(False)


def save(figure: Figure, path: str | Path) -> None:
    """Writes a figure to a file, whose ending names the format; the same figure, the same bytes.

    Example:
      >>> from contrastive_jax import losses, plots
      >>> plots.save(plots.loss_curve(losses.contrastive, margin=1.0), "loss.png")
    """
    undated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    with style.context(["default", _STYLE]):
        figure.savefig(path, metadata=undated.get(Path(path).suffix))


@_styled
def loss_curve(
    loss: Callable[..., jax.Array], margin: float, *, max_distance: float | None = None
) -> Figure:
    """Draws the loss of a positive and of a negative pair over their distance.

    Args:
      loss: scalar function `(distance, label, margin)`.
      margin: in the unit of the distance, above 0; marked.
      max_distance: end of the axis, above 0; one and a half margins by default.

    Returns:
      The figure.

    Raises:
      ValueError: if `margin` or `max_distance` is not above 0 and finite, or `loss` does not return
        a scalar.

    Example:
      >>> from contrastive_jax import losses, plots
      >>> figure = plots.loss_curve(losses.contrastive, margin=1.0)
      >>> figure.axes[0].get_xlabel()
      'distance D'
    """
    end = 1.5 * margin if max_distance is None else max_distance
    for name, value in (("margin", margin), ("max_distance", end)):
        if not 0 < value < np.inf:
            raise ValueError(f"{name} must be above 0 and finite, got {value}")
    distance = np.linspace(0.0, end, 301, dtype=np.float32)
    figure, axes = _one_panel(6, 3.7)
    for label, kind, line in _PAIRS:
        values = np.asarray(jax.vmap(loss, (0, None, None))(distance, label, margin))
        if values.shape != distance.shape:
            raise ValueError(f"loss must return a scalar, got shape {values.shape[1:]}")
        axes.plot(distance, values, label=f"{kind} (Y = {label})", **line)
    axes.set(xlabel="distance D", ylabel="loss L(D, Y)", xlim=(0, end))
    if np.nanmin([line.get_ydata() for line in axes.lines]) >= 0:
        axes.set_ylim(bottom=0)
    _mark(axes, {"margin": margin})
    _legend(axes)
    return figure


@_styled
def distance_histograms(
    distances: ArrayLike,
    labels: ArrayLike,
    *,
    margin: float | None = None,
    threshold: float | None = None,
) -> Figure:
    """Draws the densities of the distances of positive and of negative pairs.

    Args:
      distances: `[N]`, finite.
      labels: 0 similar, 1 dissimilar, `[N]`.
      margin: of the loss; marked if given.
      threshold: up to which pairs are accepted; marked if given.

    Returns:
      The figure. Each density integrates to one.

    Raises:
      ValueError: if shapes differ, there are no pairs, a distance, the margin or the threshold is
        not finite, or a label is neither 0 nor 1.

    Example:
      >>> from contrastive_jax import plots
      >>> figure = plots.distance_histograms([0.1, 0.2, 0.9, 1.1], [0, 0, 1, 1], margin=1.0)
      >>> figure.axes[0].get_xlabel()
      'distance'
    """
    distances, labels = np.asarray(distances), np.asarray(labels)
    if distances.shape != labels.shape or distances.ndim != 1 or not distances.size:
        raise ValueError(
            "distances and labels must be [N] alike and not empty, got shapes "
            f"{distances.shape} and {labels.shape}"
        )
    _check_rows("distances", distances, np.isfinite(distances), "finite")
    _check_rows("labels", labels, (labels == 0) | (labels == 1), "0 (similar) or 1 (dissimilar)")
    marks = {"threshold": threshold, "margin": margin}
    given = {name: float(value) for name, value in marks.items() if value is not None}
    for name, value in given.items():
        if not np.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value}")
    low = min([0.0, distances.min(), *given.values()])
    edges = np.linspace(low, max([distances.max(), *given.values(), low + 1e-6]), 61)
    figure, axes = _one_panel(6, 3.7)
    for label, kind, line in _PAIRS:
        chosen = distances[labels == label]
        if chosen.size:
            density, _ = np.histogram(chosen, edges, density=True)
            axes.stairs(density, edges, fill=True, alpha=0.25, color=line["color"])
            axes.stairs(density, edges, label=f"{kind} pairs", linewidth=1.6, **line)
    room = 0.02 * (edges[-1] - edges[0])
    axes.set(
        xlabel="distance",
        ylabel="density (per unit of distance)",
        xlim=(edges[0] - (room if low < 0 else 0), edges[-1] + room),
        ylim=(0, None),
    )
    _mark(axes, given)
    _legend(axes)
    return figure


@_styled
def roc(curves: Mapping[str, tuple[ArrayLike, ArrayLike]], *, logarithmic: bool = True) -> Figure:
    """Draws receiver operating characteristics, several to compare.

    Args:
      curves: false and true accept rates, `[T]` each, ascending in [0, 1], by the name that the
        legend shows.
      logarithmic: whether the false accept rate has a logarithmic axis, down to the decade of its
        smallest value above 0. It shows the strict thresholds, where good embeddings differ.

    Returns:
      The figure.

    Raises:
      ValueError: if there is no curve, or one is not two ascending rates of one shape `[T]`.

    Example:
      >>> from contrastive_jax import plots
      >>> from contrastive_jax.evaluation.verification import roc_curve
      >>> curve = roc_curve([0.1, 0.4, 0.3, 0.9], [0, 0, 1, 1])
      >>> figure = plots.roc({"contrastive": (curve.far, curve.tar)})
      >>> len(figure.axes)
      1
    """
    if not curves:
        raise ValueError("curves must hold at least one, got none")
    figure, axes = _one_panel(6, 4.4)
    smallest = 0.1
    for k, (name, (far, tar)) in enumerate(curves.items()):
        far, tar = np.asarray(far, np.float64), np.asarray(tar, np.float64)
        if far.shape != tar.shape or far.ndim != 1 or not far.size:
            raise ValueError(f"curve {name!r} must be two [T], got {far.shape} and {tar.shape}")
        for rate in (far, tar):
            if not (rate[0] >= 0 and rate[-1] <= 1 and np.all(np.diff(rate) >= 0)):
                raise ValueError(f"the rates of curve {name!r} must ascend within [0, 1]")
        smallest = min(smallest, far[far > 0].min(initial=1))
        line = _LINES[k % len(_LINES)]
        # A rate of zero has no logarithm: it lies beyond the left end of the axis.
        shown = np.maximum(far, 1e-12) if logarithmic else far
        axes.plot(shown, tar, label=name, drawstyle="steps-post", **line)
    low = 10.0 ** np.floor(np.log10(smallest)) if logarithmic else 0
    chance = np.geomspace(low, 1, 200) if logarithmic else np.array([0, 1])
    axes.plot(chance, chance, label="chance", color="#8C8C8C", linewidth=1.2, linestyle=(0, (1, 2)))
    axes.set(
        xscale="log" if logarithmic else "linear",
        xlim=(low, 1),
        ylim=(0, 1.02),
        xlabel="false accept rate (share of negative pairs accepted)",
        ylabel="true accept rate (share of positive pairs)",
    )
    _name_lines(axes, axes.lines, loc="best", frameon=True, framealpha=0.9, edgecolor="none")
    return figure


# Classes of a map that are named.
_MOST_NAMES = 100


@_styled
def embedding_map(
    embeddings: ArrayLike,
    classes: ArrayLike,
    *,
    images: ArrayLike | None = None,
    class_names: Sequence[str] | None = None,
) -> Figure:
    """Draws embeddings in the plane, by their first two principal components if wider than two.

    Both axes have one scale, so that distances can be compared. The name of a class stands beside
    the median of its examples, joined to it by a line; where there is no room for all, the title
    says how many are named. More than a hundred classes are not named, as names would hide the map.

    Args:
      embeddings: `[N, D]`, finite, N and D at least 2.
      classes: `[N]` integers. More than ten share colours, never both colour and marker up to 100.
      images: `[N, H, W, C]`, C 1 or 3; integers to 255 or floats to 1. If given, thumbnails framed
        in the colour of the class stand for dots, as many as find room in the cells of a grid, each
        in its own cell or one beside it. Grey ones are drawn in ink of that colour.
      class_names: name of each class number; the number itself by default.

    Returns:
      The figure.

    Raises:
      ValueError: if shapes do not fit, an embedding is not finite, a class has no name, or pixels
        are out of range.

    Example:
      >>> import numpy as np
      >>> from contrastive_jax import plots
      >>> points = np.array([[0.0, 0.0], [0.1, 0.0], [1.0, 1.0], [1.0, 0.9]])
      >>> figure = plots.embedding_map(points, [0, 0, 1, 1], class_names=["cat", "dog"])
      >>> figure.axes[0].get_xlabel()
      'embedding, first entry'
    """
    embeddings, classes = np.asarray(embeddings, np.float64), np.asarray(classes)
    if embeddings.ndim != 2 or min(embeddings.shape) < 2:
        raise ValueError(
            f"embeddings must be [N, D] with N and D at least 2, got shape {embeddings.shape}"
        )
    _check_rows("embeddings", embeddings, np.isfinite(embeddings), "finite")
    names = _names(classes, class_names, len(embeddings))
    names = {c: _shortened(name, 0.95, 9.5) for c, name in names.items()}
    if images is not None:
        images = _checked_images(images, len(embeddings))
    color = {c: CLASS_COLORS[k % 10] for k, c in enumerate(names)}
    marker = {c: _MARKERS[(k + k // 10) % 10] for k, c in enumerate(names)}

    points, x_label, y_label = _plane(embeddings)
    low, high = points.min(0), points.max(0)
    extent = np.maximum(high - low, 1e-6 * np.max(high - low) or 1.0)
    columns, rows = 25, int(np.ceil(25 * np.clip(extent[1] / extent[0], 0.6, 1)))
    cell = 1.08 * max(extent[0] / columns, extent[1] / rows)
    corner = (low + high - cell * np.array([columns, rows])) / 2
    with_legend = images is None and len(names) <= 10
    figure, axes = _one_panel(7, 0.65 + 6.2 * rows / columns + 0.5 * with_legend)
    axes.set_box_aspect(rows / columns)
    axes.set(
        xlabel=x_label,
        ylabel=y_label,
        xlim=(corner[0], corner[0] + cell * columns),
        ylim=(corner[1], corner[1] + cell * rows),
    )
    if images is None:
        # In random order, or the last class would cover the others.
        order = np.random.default_rng(0).permutation(len(points))
        dots = axes.scatter(
            points[order, 0],
            points[order, 1],
            s=float(np.clip(12_000 / len(points), 7, 28)),
            c=[color[c] for c in classes[order]],
            alpha=0.7,
            linewidths=0,
            rasterized=True,
        )
        dots.set_paths([_outline(marker[c]) for c in classes[order]])
    else:
        taken = _declutter((points - corner) / cell, columns, rows)
        pictures = _pictures(images[list(taken.values())])
        for (place, k), picture in zip(taken.items(), pictures, strict=True):
            edge = color[classes[k]]
            if images.shape[-1] == 1:
                # Somewhat darker than the frame, as thin strokes look lighter.
                picture = 1 - (1 - picture) * (1 - 0.8 * np.array(to_rgb(edge)))
            x, y = corner + cell * (np.array(place) + 0.06)
            _framed(axes, picture, x, y, 0.88 * cell, edgecolor=edge)
    if with_legend:
        handles = [
            Line2D([], [], color=color[c], marker=marker[c], linestyle="", label=name)
            for c, name in names.items()
        ]
        _name_lines(
            figure, handles, loc="outside lower center", ncols=5, fontsize=9.5, handlelength=1
        )
    if len(names) > _MOST_NAMES:
        axes.set_title(f"{len(names):,} classes", loc="right", fontsize=9)
        return figure
    medians = [np.median(points[classes == c], 0) for c in names]
    _place_names(figure, np.array(medians), list(names.values()), list(color.values()))
    return figure


def _plane(embeddings: Array) -> tuple[Array, str, str]:
    if embeddings.shape[1] == 2:
        return embeddings, "embedding, first entry", "embedding, second entry"
    centred = embeddings - embeddings.mean(0)
    _, scale, axes = np.linalg.svd(centred, full_matrices=False)
    # The sign of a component is arbitrary: let its largest entry be positive.
    axes = axes * np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])[:, None]
    share = 100 * scale**2 / max(np.sum(scale**2), 1e-300)
    labels = [f"principal component {k + 1} ({share[k]:.0f} % of variance)" for k in range(2)]
    return centred @ axes[:2].T, labels[0], labels[1]


def _outline(marker: str) -> Outline:
    shape = MarkerStyle(marker)
    return shape.get_path().transformed(shape.get_transform())


def _declutter(positions: Array, columns: int, rows: int) -> dict[tuple[int, int], int]:
    """Assigns examples to cells of a grid: each to its own cell, or to one beside it.

    Places are counted in cells from the lower left corner, `[N, 2]`.
    """
    own = np.floor(positions).astype(int)
    central_first = np.argsort(np.abs(positions - own - 0.5).max(1), kind="stable").tolist()
    shifts = sorted(itertools.product((-1, 0, 1), repeat=2), key=lambda s: s[0] ** 2 + s[1] ** 2)
    taken: dict[tuple[int, int], int] = {}
    placed = set()
    for shift, k in itertools.product(shifts, central_first):
        column, row = (own[k] + shift).tolist()
        inside = 0 <= column < columns and 0 <= row < rows
        if inside and k not in placed and (column, row) not in taken:
            taken[column, row] = k
            placed.add(k)
    return taken


def _place_names(
    figure: Figure, positions: Array, names: Sequence[str], edges: Sequence[str]
) -> None:
    """Writes names beside their positions, where they cover neither a place nor another name."""
    figure.draw_without_rendering()  # Only now is the layout known.
    (axes,) = figure.axes
    size, reach = (9, 96) if len(names) <= 20 else (7, 48)
    scale = 72 / figure.dpi
    low, high = axes.get_window_extent().get_points() * scale
    centres = axes.transData.transform(positions) * scale
    steps = np.arange(-reach, reach + 1, 3)
    offsets = np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2)
    offsets = offsets[np.argsort((offsets**2).sum(1), kind="stable")]
    # Boxes to keep clear of, as lower left and upper right corners; a place needs a dot's room.
    taken = [(centre - 3, centre + 3) for centre in centres]
    for place, centre, name, edge in zip(positions, centres, names, edges, strict=True):
        half = np.array([_text_width(name, size) + 6, size + 6]) / 2
        near, far = centre + offsets - half, centre + offsets + half
        free = (near >= low).all(1) & (far <= high).all(1)
        for other in taken:
            free &= (near > other[1]).any(1) | (far < other[0]).any(1)
        if not free.any():
            continue
        first = int(free.argmax())
        taken.append((near[first], far[first]))
        axes.annotate(
            name,
            place,
            offsets[first],
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=size,
            bbox={"boxstyle": "round,pad=0.2", "fc": "white", "ec": edge, "alpha": 0.9},
            arrowprops={"arrowstyle": "-", "color": edge, "shrinkA": 0, "shrinkB": 0},
        )
    named = len(taken) - len(positions)
    if named < len(names):
        axes.set_title(f"{named} of {len(names)} classes named", loc="right", fontsize=9)


@_styled
def gallery(
    images: ArrayLike,
    classes: ArrayLike,
    neighbours: ArrayLike,
    queries: ArrayLike,
    *,
    class_names: Sequence[str] | None = None,
) -> Figure:
    """Draws queries beside their nearest neighbours, with right and wrong ones marked.

    A neighbour of the query's class has a blue frame and a tick on a disc, one of another class a
    dashed vermilion frame and a cross on a square.

    Args:
      images: `[N, H, W, C]`, C 1 or 3; integers to 255 or floats to 1. Grey ones with black borders
        are drawn inverted, as ink on paper, and a note says so.
      classes: `[N]` integers.
      neighbours: positions of the nearest neighbours of every example, nearest first, `[N, K]`.
      queries: positions of the examples to show, `[Q]`.
      class_names: name of each class number; the number itself by default.

    Returns:
      The figure, a row for each query.

    Raises:
      ValueError: if shapes do not fit, a position or a pixel is out of range, or a class has no
        name.

    Example:
      >>> import numpy as np
      >>> from contrastive_jax import plots
      >>> images, classes = np.zeros((3, 8, 8, 1), np.uint8), [0, 0, 1]
      >>> figure = plots.gallery(images, classes, neighbours=[[1], [0], [1]], queries=[0, 2])
      >>> len(figure.axes)
      1
    """
    classes, neighbours, queries = (np.asarray(x) for x in (classes, neighbours, queries))
    names = _names(classes, class_names, len(classes))
    images = _checked_images(images, len(classes))
    if neighbours.ndim != 2 or len(neighbours) != len(classes) or not neighbours.size:
        raise ValueError(
            f"neighbours must be [N, K] with N = {len(classes)}, got shape {neighbours.shape}"
        )
    if queries.ndim != 1 or not queries.size:
        raise ValueError(f"queries must be [Q] and not empty, got shape {queries.shape}")
    for name, positions in (("neighbours", neighbours), ("queries", queries)):
        inside = np.isin(positions, np.arange(len(classes)))
        _check_rows(name, positions, inside, f"positions from 0 to {len(classes) - 1}")
    shown = np.column_stack([queries, neighbours[queries]])

    # One axes over the whole figure, in inches from the upper left corner.
    side, gap, line, edge = 0.78, 0.1, 0.24, 0.12
    lefts = [edge + k * (side + gap) + (gap if k else 0) for k in range(shown.shape[1])]
    tops = [edge + 2 * line + k * (side + line) for k in range(len(shown))]
    inverted = images.shape[-1] == 1 and _is_white_on_black(images[shown.ravel()])
    width, height = max(lefts[-1] + side + edge, 3), tops[-1] + side + (2.5 + inverted) * line
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()

    def write(x: float, y: float, text: str, ha: str = "center", **style: Any) -> None:
        axes.text(x, y, text, ha=ha, va="center", **{"fontsize": 9, **style})

    def badge(x: float, y: float, right: bool) -> None:
        shape, color = ("circle", BLUE) if right else ("square", VERMILION)
        box = {"boxstyle": f"{shape},pad=0.2", "facecolor": color, "edgecolor": "white"}
        write(x, y, "✓" if right else "✗", color="white", fontsize=8, bbox=box)

    write(lefts[0] + side / 2, edge + 1.5 * line, "query")
    write((lefts[1] + lefts[-1] + side) / 2, edge + line / 2, "nearest neighbours")
    for k, left in enumerate(lefts[1:], 1):
        write(left + side / 2, edge + 1.5 * line, str(k))
    short = {c: _shortened(name, side + gap / 2, 8) for c, name in names.items()}
    pictures = _pictures(images[shown.ravel()]).reshape(*shown.shape, *images.shape[1:3], 3)
    for (row, column), k in np.ndenumerate(shown):
        x, y = lefts[column], tops[row]
        right = bool(classes[k] == classes[queries[row]])
        color = BLACK if column == 0 else BLUE if right else VERMILION
        frame = {"edgecolor": color, "linewidth": 2, "linestyle": "-" if right else "--"}
        _framed(axes, pictures[row, column], x, y, side, **frame)
        write(x + side / 2, y + side + line / 2, short[classes[k]], fontsize=8)
        if column:
            badge(x + side - 0.09, y + 0.09, right)
    below = tops[-1] + side + 2 * line - edge
    for x, right, text in ((edge, True, "same class"), (edge + 1.3, False, "another class")):
        badge(x + 0.09, below, right)
        write(x + 0.24, below, text, ha="left")
    if inverted:
        write(edge, below + line, "images are inverted: they are white on black", ha="left")
    return figure


@_styled
def training_curves(
    records: Sequence[Mapping[str, float]], *, margin: float | None = None
) -> Figure:
    """Draws loss, distances, active pairs and validation figures over the steps of a run.

    Training values are drawn faint, and over them their means over a window of a fiftieth of the
    run, centred so that they do not lag behind.

    Args:
      records: lines of `metrics.jsonl` in order, each with its `step`; of training with `loss`,
        `positive_distance`, `negative_distance` and `active_fraction`, of validation with
        `validation/precision_at_1` and the like. What is missing or not finite is left out.
      margin: of the loss; marked among the distances if given.

    Returns:
      The figure.

    Raises:
      ValueError: if there are no records, or one has no step.

    Example:
      >>> from contrastive_jax import plots
      >>> records = [
      ...     {"step": 1, "loss": 0.5, "positive_distance": 0.7, "negative_distance": 0.8},
      ...     {"step": 2, "loss": 0.4, "positive_distance": 0.5, "negative_distance": 0.9},
      ... ]
      >>> figure = plots.training_curves(records, margin=1.0)
      >>> len(figure.axes)
      4
    """
    if not records:
        raise ValueError("records must hold at least one, got none")
    for row, record in enumerate(records):
        if "step" not in record:
            raise ValueError(f"each record must have a step, row {row} has {sorted(record)}")
    figure = Figure(figsize=(8, 6.4), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    (loss, distance), (active, validation) = figure.subplots(2, 2, sharex=True)
    _curve(loss, records, "loss", "loss", {"color": BLACK})
    values = np.concatenate([line.get_ydata() for line in loss.lines] or [[0]])
    if values.min() > 0:
        loss.set_yscale("log")
    loss.set_ylabel("loss, mean of the batch")
    for _, kind, line in _PAIRS:
        _curve(distance, records, f"{kind}_distance", f"{kind} pairs", line)
    if margin is not None:
        distance.axhline(margin, label=f"margin {margin:g}", **_MARK)
    distance.set_ylabel("distance, mean of the batch")
    _curve(active, records, "active_fraction", "active", _PAIRS[1][2])
    active.set_ylabel("active negative pairs")
    active.set_ylim(0, 1.02)
    active.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    series = {name: _series(records, key) for key, name in _VALIDATION.items()}
    recorded = {name: one for name, one in series.items() if len(one[0])}
    for k, (name, one) in enumerate(recorded.items()):
        validation.plot(*one, label=name, marker="o", markersize=4, **_LINES[k % len(_LINES)])
    validation.set_ylabel("on validation")
    for axes in (active, validation):
        axes.set_xlabel("step")
    for axes in (loss, distance, active, validation):
        if not axes.lines:
            axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center")
        elif axes in (distance, validation):
            _legend(axes, above=0.98)
    return figure


@_styled
def growth(curves: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike]]) -> Figure:
    """Draws time and memory over the size of a batch, both axes logarithmic.

    Args:
      curves: sizes, seconds and bytes, `[S]` each and above 0, by the name that the legend shows.

    Returns:
      The figure, with a line of the slope of B^2 beside the times and of B beside the memory.

    Raises:
      ValueError: if there is no curve, or one is not three `[S]` of numbers above 0.

    Example:
      >>> from contrastive_jax import plots
      >>> figure = plots.growth({"tiles": ([1024, 2048], [0.01, 0.04], [1e6, 2e6])})
      >>> len(figure.axes)
      2
    """
    if not curves:
        raise ValueError("curves must hold at least one, got none")
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    panels = figure.subplots(1, 2)
    titles = ("seconds", "additional memory (MB)")
    for k, (name, curve) in enumerate(curves.items()):
        sizes, seconds, memory = (np.asarray(part, np.float64) for part in curve)
        if not (sizes.shape == seconds.shape == memory.shape and sizes.ndim == 1 and sizes.size):
            shapes = f"{sizes.shape}, {seconds.shape} and {memory.shape}"
            raise ValueError(f"curve {name!r} must be three [S], got {shapes}")
        if min(sizes.min(), seconds.min(), memory.min()) <= 0:
            raise ValueError(f"sizes, seconds and bytes of curve {name!r} must be above 0")
        line = (*_LINES, {"color": BLUE, "linestyle": "-"})[k % 5]
        for axes, values in zip(panels, (seconds, memory / 1e6), strict=True):
            axes.plot(sizes, values, label=name, marker=_MARKERS[k], markersize=4.5, **line)
    for axes, title, power in zip(panels, titles, (2, 1), strict=True):
        first = axes.lines[0]
        sizes, values = (np.asarray(part, np.float64) for part in first.get_data())
        guide = 0.4 * values[-1] * (sizes / sizes[-1]) ** power
        label = "slope of B²" if power == 2 else "slope of B"
        axes.plot(sizes, guide, label=label, color="#8C8C8C", linewidth=1.2, linestyle=(0, (1, 2)))
        axes.set(yscale="log", xlabel="rows of the batch, B", ylabel=title)
        axes.set_xscale("log", base=2)
        axes.margins(x=0.1)
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        box = {"frameon": True, "framealpha": 0.9, "edgecolor": "none"}
        _name_lines(axes, axes.lines, loc="best", fontsize=9, **box)
    return figure


@_styled
def intervals(
    panels: Mapping[str, Mapping[str, tuple[float, float]]], quantity: str, *, percent: bool = True
) -> Figure:
    """Draws means with their intervals, a row for each thing compared and a panel for each setting.

    Args:
      panels: for each setting, by its title, the mean and half of the interval of each thing, by
        its name; the same names in each panel, the first drawn uppermost. Half of an interval may
        be NaN, where none is known.
      quantity: name of the quantity, for the axis.
      percent: whether they are shares, to be drawn as percentages.

    Returns:
      The figure.

    Raises:
      ValueError: if there is no panel, a panel is empty, names differ between panels or a mean is
        not finite.

    Example:
      >>> from contrastive_jax import plots
      >>> panels = {"seen classes": {"contrastive": (0.64, 0.01), "supcon": (0.60, 0.01)}}
      >>> figure = plots.intervals(panels, "MAP@R")
      >>> figure.axes[0].get_title()
      'seen classes'
    """
    rows = [[*panel] for panel in panels.values()]
    if not rows or not rows[0]:
        raise ValueError("panels must hold at least one with at least one mean, got none")
    for title, names in zip(panels, rows, strict=True):
        if {*names} != {*rows[0]}:
            differing = sorted({*names} ^ {*rows[0]})
            raise ValueError(f"panel {title!r} differs from the first in {', '.join(differing)}")
    names = rows[0]
    figure = Figure(figsize=(3.2 + 2.6 * len(panels), 1 + 0.2 * len(names)), layout="constrained")
    drawn = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    heights = np.arange(len(names))
    for axes, (title, panel) in zip(drawn, panels.items(), strict=True):
        mean, half = np.array([panel[name] for name in names], np.float64).T
        if not np.isfinite(mean).all():
            name = names[int(np.argmin(np.isfinite(mean)))]
            raise ValueError(f"the mean of {name!r} in panel {title!r} must be finite")
        axes.errorbar(
            mean,
            heights,
            xerr=np.nan_to_num(half),
            fmt="o",
            color=BLUE,
            markersize=4.5,
            elinewidth=1.6,
        )
        axes.set(title=title, xlabel=quantity)
        axes.margins(y=0.5 / len(names))
        if percent:
            axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    drawn[0].set_yticks(heights, names)
    drawn[0].invert_yaxis()
    return figure


def _series(records: Sequence[Mapping[str, float]], key: str) -> tuple[Array, Array]:
    pairs = [(record["step"], record[key]) for record in records if key in record]
    steps, values = np.array(pairs, np.float64).reshape(-1, 2).T
    finite = np.isfinite(values)
    return steps[finite], values[finite]


def _curve(
    axes: Axes,
    records: Sequence[Mapping[str, float]],
    key: str,
    name: str,
    line: Mapping[str, Any],
) -> None:
    steps, values = _series(records, key)
    if not len(steps):
        return
    position = np.arange(len(values))
    half = len(values) // 100
    first, last = np.maximum(position - half, 0), np.minimum(position + half + 1, len(values))
    total = np.concatenate([[0], np.cumsum(values)])
    smooth = (total[last] - total[first]) / (last - first)
    axes.plot(steps, values, color=line["color"], alpha=0.25, linewidth=0.8, rasterized=True)
    axes.plot(steps, smooth, label=name, **line)


def _one_panel(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _mark(axes: Axes, marks: Mapping[str, float]) -> None:
    """Marks up to two values on the horizontal axis; names close ones to the outer sides."""
    in_order = sorted(marks.items(), key=lambda mark: mark[1])
    close = len(marks) == 2 and in_order[1][1] - in_order[0][1] < 0.3 * axes.viewLim.width
    sides = ("right", "left") if close else ("center", "center")
    for (name, x), side in zip(in_order, sides, strict=False):
        axes.axvline(x, **_MARK)
        axes.annotate(
            f"{name} {x:.3g}",
            (x, 1),
            {"center": (0, 2), "right": (-2, 2), "left": (2, 2)}[side],
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha=side,
            va="bottom",
            fontsize=9.5,
        )


def _legend(axes: Axes, above: float = 1.07, columns: int = 2) -> None:
    """Puts the legend above the axes, where it covers nothing, and above the names of marks."""
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, above), ncols=columns, fontsize=9.5)


def _name_lines(target: Axes | Figure, lines: Sequence[Line2D], **options: Any) -> None:
    """Adds a legend that names each line by its label, as it is.

    matplotlib leaves out a label that begins with an underscore.
    """
    legend = target.legend(lines, ["" for _ in lines], **options)
    for text, line in zip(legend.get_texts(), lines, strict=True):
        text.set(text=str(line.get_label()), parse_math=False)


def _names(classes: Array, class_names: Sequence[str] | None, rows: int) -> dict[int, str]:
    """Returns the name of each class present, in ascending order of its number."""
    if classes.shape != (rows,) or not np.issubdtype(classes.dtype, np.integer) or not rows:
        raise ValueError(
            f"classes must be [{rows}] integers, one a row, got {classes.dtype} of shape "
            f"{classes.shape}"
        )
    present = np.unique(classes).tolist()
    if -1 in present:
        row = int((classes == -1).argmax())
        raise ValueError(
            f"classes must be at least 0, got -1, a row to ignore, in row {row}; leave it out"
        )
    if class_names is None:
        return {c: str(c) for c in present}
    if present[0] < 0 or present[-1] >= len(class_names):
        raise ValueError(
            f"class_names must name classes {present[0]} to {present[-1]}, got {len(class_names)}"
        )
    return {c: class_names[c] for c in present}


def _shortened(name: str, width: float, size: float) -> str:
    """Shortens a name to `width` inches at this size in points."""
    shown = name
    for length in range(len(name) - 1, 0, -1):
        if _text_width(shown, size) <= 72 * width:
            break
        shown = name[:length].rstrip() + "…"
    return shown


def _text_width(text: str, size: float) -> float:
    """Returns the width of a text in points, without a figure."""
    font = FontProperties(size=size)
    return float(text_to_path.get_text_width_height_descent(text, font, ismath=False)[0])


def _checked_images(images: ArrayLike, rows: int) -> Array:
    images = np.asarray(images)
    if images.ndim != 4 or len(images) != rows or images.shape[-1] not in (1, 3):
        raise ValueError(f"images must be [{rows}, H, W, 1 or 3], got shape {images.shape}")
    return images


def _pictures(images: Array) -> Array:
    """Converts images to RGB in [0, 1]; inverts grey ones with black borders, as ink on paper."""
    pixels = images / 255 if np.issubdtype(images.dtype, np.integer) else images
    if not (pixels.min() >= 0 and pixels.max() <= 1):
        raise ValueError(
            f"images must be integers from 0 to 255 or floats from 0 to 1, got {images.dtype} from "
            f"{images.min()} to {images.max()}"
        )
    if images.shape[-1] == 3:
        return pixels
    return np.repeat(1 - pixels if _is_white_on_black(pixels) else pixels, 3, axis=-1)


def _is_white_on_black(images: Array) -> bool:
    borders = np.concatenate([images[:, [0, -1]].ravel(), images[:, :, [0, -1]].ravel()])
    return bool(np.median(borders) == 0)


def _framed(axes: Axes, picture: Array, x: float, y: float, side: float, **line: Any) -> None:
    """Draws a picture in a framed square, given its corner of the smallest coordinates."""
    width, height = side * np.array(picture.shape[1::-1]) / max(picture.shape[:2])
    left, low = x + (side - width) / 2, y + (side - height) / 2
    bounds = (low + height, low) if axes.yaxis_inverted() else (low, low + height)
    axes.imshow(picture, extent=(left, left + width, *bounds), aspect="auto", zorder=2)
    axes.add_patch(Rectangle((x, y), side, side, fill=False, zorder=3, **line))


def _check_rows(name: str, values: Array, valid: Array, expected: str) -> None:
    if not valid.all():
        wrong = tuple(np.argwhere(~valid)[0])
        raise ValueError(f"{name} must be {expected}, got {values[wrong]} in row {wrong[0]}")

"""Figures of an ablation: the effect of a hyperparameter, with its uncertainty.

They look as those of `contrastive_jax.plots`. Values have colours from dark to light, the same in
every figure.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from numpy.typing import ArrayLike

from contrastive_jax._extras import needs
from contrastive_jax.data.datasets import Dataset, PairDataset
from contrastive_jax.evaluation.given_pairs import distances_of_pairs, points_of_pairs
from contrastive_jax.evaluation.intervals import bootstrap_interval
from contrastive_jax.evaluation.summary import drawn_distances
from contrastive_jax.plots import (
    _LINES,
    _MARK,
    _MARKERS,
    _PAIRS,
    CLASS_COLORS,
    _check_rows,
    _name_lines,
    _names,
    _one_panel,
    _outline,
    _plane,
    _styled,
)

with needs("plots", __name__):
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import PercentFormatter


@_styled
def metric_curves(
    metrics: Mapping[str, Mapping[float, ArrayLike]],
    quantity: str = "margin",
    *,
    chosen: float | None = None,
    logarithmic: bool = False,
) -> Figure:
    """Draws metrics against a number: means over seeds, their 95 % bootstrap bands, and each seed.

    Args:
      metrics: for each metric, by the name that the legend shows, the values of all seeds, `[S]`,
        by the number. Numbers without values, all of whose trainings diverged, are left out.
      quantity: name of the hyperparameter, for the axis.
      chosen: the number that validation chose; marked if given.
      logarithmic: whether the number has a logarithmic axis.

    Returns:
      The figure.

    Raises:
      ValueError: if there is no metric, or one has no values.

    Example:
      >>> from contrastive_jax import ablation_plots
      >>> map_at_r = {0.5: [0.75, 0.76], 1.0: [0.74, 0.76]}  # the values of two seeds by margin
      >>> figure = ablation_plots.metric_curves({"MAP@R": map_at_r}, chosen=0.5)
      >>> figure.axes[0].get_xlabel()
      'margin'
    """
    if not metrics:
        raise ValueError("metrics must hold at least one, got none")
    figure, axes = _one_panel(6, 4)
    for k, (name, by_number) in enumerate(metrics.items()):
        by_value = {x: np.asarray(by_number[x], np.float64) for x in sorted(by_number)}
        by_value = {x: values for x, values in by_value.items() if values.size}
        if not by_value:
            raise ValueError(f"metric {name!r} has no values")
        line = _LINES[k % len(_LINES)]
        positions = np.array([*by_value])
        mean, low, high = np.array([bootstrap_interval(values) for values in by_value.values()]).T
        axes.fill_between(positions, low, high, color=line["color"], alpha=0.2, linewidth=0)
        axes.plot(positions, mean, label=name, marker=_MARKERS[k % 10], markersize=4.5, **line)
        for x, values in by_value.items():
            seeds = {"color": line["color"], "s": 9, "alpha": 0.55, "linewidths": 0}
            axes.scatter(np.full(values.size, x), values, **seeds)
    if logarithmic:
        axes.set_xscale("log")
    axes.set(xlabel=quantity, ylabel="on test")
    axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    lines = list(axes.lines)
    if chosen is not None:
        axes.axvline(chosen, **_MARK)
        right = axes.transAxes.inverted().transform(axes.transData.transform((chosen, 0)))[0] > 0.5
        axes.annotate(
            f"chosen on validation: {chosen:.4g}",
            (chosen, 0),
            (-4 if right else 4, 4),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="right" if right else "left",
            fontsize=9,
        )
    _name_lines(axes, lines, loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, fontsize=9.5)
    return figure


@_styled
def distance_ridge(
    pairs: Mapping[float, tuple[ArrayLike, ArrayLike]],
    quantity: str = "margin",
    *,
    marked: bool = True,
) -> Figure:
    """Draws distances of positive and of negative pairs as a ridge, a row for each number.

    Args:
      pairs: distances `[N]` and labels `[N]` (0 similar, 1 dissimilar), by the number.
      quantity: name of the hyperparameter, for the axis.
      marked: whether the number is a distance, a margin, and is marked in its row.

    Returns:
      The figure. Each density is scaled to the height of its row.

    Raises:
      ValueError: if there are no rows, shapes differ or a distance is not finite.

    Example:
      >>> from contrastive_jax import ablation_plots
      >>> pairs = {0.5: ([0.1, 0.6], [0, 1]), 1.0: ([0.2, 1.1], [0, 1])}
      >>> figure = ablation_plots.distance_ridge(pairs)
      >>> figure.axes[0].get_ylabel()
      'margin'
    """
    if not pairs:
        raise ValueError("pairs must hold at least one row, got none")
    rows = sorted(pairs)
    by_value = {}
    for x in rows:
        distances, labels = (np.asarray(part) for part in pairs[x])
        if distances.shape != labels.shape or distances.ndim != 1 or not distances.size:
            raise ValueError(
                f"distances and labels of {x:g} must be [N] alike and not empty, got "
                f"{distances.shape} and {labels.shape}"
            )
        _check_rows(f"distances of {x:g}", distances, np.isfinite(distances), "finite")
        by_value[x] = distances, labels
    end = max(distances.max() for distances, _ in by_value.values())
    if marked:
        end = max(end, rows[-1])
    edges = np.linspace(0, 1.02 * end or 1.0, 91)
    middles = (edges[1:] + edges[:-1]) / 2
    figure, axes = _one_panel(6, 1.2 + 0.55 * len(rows))
    for row, x in enumerate(rows):
        distances, labels = by_value[x]
        for label, kind, line in _PAIRS:
            chosen = distances[labels == label]
            if not chosen.size:
                continue
            height, _ = np.histogram(chosen, edges)
            height = 1.25 * height / max(height.max(), 1)
            axes.fill_between(
                middles, row, row + height, color=line["color"], alpha=0.3, linewidth=0, zorder=-row
            )
            style = {**line, "linewidth": 1.3, "zorder": -row}
            shown = np.convolve(height > 0, (1, 1, 1), "same") > 0
            outline = np.where(shown, row + height, np.nan)
            axes.plot(middles, outline, label=f"{kind} pairs" if row == 0 else None, **style)
        if marked:
            axes.plot([x, x], [row, row + 0.95], **{**_MARK, "linewidth": 1.6, "zorder": 1})
    axes.set_yticks(range(len(rows)), [f"{x:g}" for x in rows])
    axes.set(xlabel="distance", ylabel=quantity, xlim=(0, edges[-1]), ylim=(-0.05, len(rows) + 0.4))
    lines = [line for line in axes.lines if str(line.get_label()).endswith(" pairs")]
    if marked:
        lines.append(Line2D([], [], label=quantity, **_MARK))
    _name_lines(axes, lines, loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=3, fontsize=9.5)
    return figure


@_styled
def maps(
    embeddings: Mapping[float, ArrayLike],
    classes: ArrayLike,
    quantity: str = "margin",
    *,
    class_names: Sequence[str] | None = None,
    most: int = 3000,
) -> Figure:
    """Draws embeddings in the plane side by side, a panel for each number.

    Those wider than two are shown by their first two principal components, each panel by its own.

    Args:
      embeddings: `[N, D]`, finite, D at least 2, by the number.
      classes: `[N]` integers.
      quantity: name of the hyperparameter, for the axis.
      class_names: name of each class number; the number itself by default.
      most: examples that are drawn at most, the same in each panel.

    Returns:
      The figure.

    Raises:
      ValueError: if there is no panel, shapes do not fit, an embedding is not finite, or a class
        has no name.

    Example:
      >>> import numpy as np
      >>> from contrastive_jax import ablation_plots
      >>> points = np.array([[0.0, 0.0], [0.1, 0.0], [1.0, 1.0], [1.0, 0.9]])
      >>> figure = ablation_plots.maps({0.5: points, 1.0: 2 * points}, [0, 0, 1, 1])
      >>> [axes.get_title() for axes in figure.axes]
      ['margin 0.5', 'margin 1']
    """
    if not embeddings:
        raise ValueError("embeddings must hold at least one panel, got none")
    classes = np.asarray(classes)
    names = _names(classes, class_names, len(classes))
    chosen = np.random.default_rng(0).permutation(len(classes))[:most]
    count = len(embeddings)
    figure = Figure(figsize=(0.4 + 2.3 * count, 3.1), layout="constrained")
    panels = figure.subplots(1, count, squeeze=False)[0]
    looks = {c: (CLASS_COLORS[k % 10], _MARKERS[(k + k // 10) % 10]) for k, c in enumerate(names)}
    for axes, x in zip(panels, sorted(embeddings), strict=True):
        points = np.asarray(embeddings[x], np.float64)
        if points.ndim != 2 or len(points) != len(classes) or points.shape[1] < 2:
            raise ValueError(
                f"embeddings of {x:g} must be [{len(classes)}, D] with D at least 2, got "
                f"{points.shape}"
            )
        _check_rows(f"embeddings of {x:g}", points, np.isfinite(points), "finite")
        plane = _plane(points)[0][chosen]
        dots = axes.scatter(
            plane[:, 0],
            plane[:, 1],
            s=float(np.clip(9000 / len(chosen), 4, 16)),
            c=[looks[c][0] for c in classes[chosen]],
            alpha=0.7,
            linewidths=0,
            rasterized=True,
        )
        dots.set_paths([_outline(looks[c][1]) for c in classes[chosen]])
        axes.set(title=f"{quantity} {x:g}", aspect="equal", xticks=[], yticks=[])
        axes.set_adjustable("datalim")
        axes.grid(visible=False)
    handles = [
        Line2D([], [], color=color, marker=marker, linestyle="", label=names[c])
        for c, (color, marker) in looks.items()
    ]
    if len(names) <= 10:
        _name_lines(
            figure, handles, loc="outside lower center", ncols=5, fontsize=9, handlelength=1
        )
    return figure


@_styled
def active_pairs(
    courses: Mapping[float, tuple[ArrayLike, ArrayLike]], quantity: str = "margin"
) -> Figure:
    """Draws the share of active negative pairs over training, a line for each number.

    Args:
      courses: steps `[T]` and shares `[T]` by the number; shares that are not finite are left out.
      quantity: name of the hyperparameter, for the axis.

    Returns:
      The figure.

    Raises:
      ValueError: if there is no line or shapes differ.

    Example:
      >>> from contrastive_jax import ablation_plots
      >>> courses = {0.5: ([0, 100], [0.9, 0.1]), 1.0: ([0, 100], [1.0, 0.2])}
      >>> figure = ablation_plots.active_pairs(courses)
      >>> figure.axes[0].get_xlabel()
      'step'
    """
    if not courses:
        raise ValueError("courses must hold at least one line, got none")
    figure, axes = _one_panel(6, 4)
    colors = mpl.colormaps["viridis"](np.linspace(0, 0.9, len(courses)))
    for k, (x, color) in enumerate(zip(sorted(courses), colors, strict=True)):
        steps, shares = (np.asarray(part, np.float64) for part in courses[x])
        if steps.shape != shares.shape or steps.ndim != 1:
            raise ValueError(f"course of {x:g} must be two [T], got {steps.shape}, {shares.shape}")
        shown = np.isfinite(shares)
        style = ("-", "--", "-.", ":")[k % 4]
        marker = "o" if np.sum(shown) == 1 else ""  # a line of one point is not seen
        line = {"color": color, "linestyle": style, "marker": marker}
        axes.plot(steps[shown], shares[shown], label=f"{x:g}", **line)
    axes.set(xlabel="step", ylabel="active negative pairs", ylim=(0, 1.02))
    axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    axes.legend(title=quantity, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9.5)
    return figure


def encoder_figures(
    encoders: Mapping[float, Callable[[np.ndarray], np.ndarray]],
    data: Dataset | PairDataset,
    distance: Callable[..., jax.Array],
    quantity: str = "margin",
    *,
    chosen: float | None = None,
    marked: bool = True,
) -> dict[str, Figure]:
    """Draws distances and maps of encoders that were trained with different values.

    Args:
      encoders: functions from images to embeddings, by the value of the hyperparameter.
      data: whose test split they embed.
      distance: between two embeddings.
      quantity: name of the hyperparameter.
      chosen: the value that validation chose, which is always among the maps.
      marked: as in `distance_ridge`.

    Returns:
      `distances` by `distance_ridge` and, on data with classes, `maps` of up to five encoders.

    Example:
      >>> import contrastive_jax as cj
      >>> from contrastive_jax import ablation_plots
      >>> flat = lambda images: images.reshape(len(images), -1) / 255
      >>> encoders, digits = {0.5: flat, 1.0: lambda x: 2 * flat(x)}, cj.data.load("digits")
      >>> sorted(ablation_plots.encoder_figures(encoders, digits, cj.distances.euclidean))
      ['distances', 'maps']
    """
    embeddings, pairs = {}, {}
    for x, encode in encoders.items():
        if isinstance(data, PairDataset):
            points = points_of_pairs(encode, data.images, data.test)
            pairs[x] = (distances_of_pairs(points, distance), points.labels)
        else:
            embeddings[x] = encode(data.test.images)
            pairs[x] = drawn_distances(embeddings[x], data.test.classes, distance, 20_000, seed=0)
    figures = {"distances": distance_ridge(pairs, quantity, marked=marked)}
    if not isinstance(data, PairDataset):
        five = {x: embeddings[x] for x in _five([*encoders], chosen)}
        figures["maps"] = maps(five, data.test.classes, quantity, class_names=data.class_names)
    return figures


def _five(values: list[float], chosen: float | None) -> list[float]:
    """Returns up to five of the values, spread evenly, with the chosen one among them."""
    if len(values) <= 5:
        return values
    indices = np.linspace(0, len(values) - 1, 5).round().astype(int)
    if chosen is not None and chosen not in [values[k] for k in indices]:
        # It does not replace an end.
        inner = indices[1:-1]
        inner[np.abs(inner - values.index(chosen)).argmin()] = values.index(chosen)
    return [values[k] for k in sorted({*indices.tolist()})]

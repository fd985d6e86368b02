"""Figures of points in the plane and of how a loss moves them: arrows, and an animation.

They look as those of `contrastive_jax.plots`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from contrastive_jax._extras import needs
from contrastive_jax.data.labels import check_unmasked
from contrastive_jax.plots import (
    _MARK,
    _MARKERS,
    _PAIRS,
    _STYLE,
    BLACK,
    CLASS_COLORS,
    _check_rows,
    _legend,
    _name_lines,
    _names,
    _one_panel,
    _outline,
    _styled,
    _write_literally,
)

with needs("plots", __name__):
    from matplotlib import style
    from matplotlib.animation import FuncAnimation
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Circle

_TRAIL = 8
"""Frames for which a point leaves a trail."""


@_styled
def gradient_arrows(
    points: ArrayLike,
    gradients: ArrayLike,
    labels: ArrayLike,
    *,
    anchor: ArrayLike = (0.0, 0.0),
    margin: float | None = None,
) -> Figure:
    """Draws points about an anchor, with arrows along which gradient descent moves them.

    Args:
      points: `[N, 2]`, finite.
      gradients: of the loss by each point, `[N, 2]`, finite. Arrows point the other way, and their
        lengths are in proportion; a point without a gradient has none.
      labels: of the pair of each point and the anchor, 0 similar, 1 dissimilar, `[N]`.
      anchor: `[2]`, with which every point is compared.
      margin: in the unit of the plane, above 0; drawn as a circle about the anchor if given.

    Returns:
      The figure.

    Raises:
      ValueError: if shapes differ, a number is not finite, a label is neither 0 nor 1, or the
        margin is not above 0.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import pair_loss, plane_plots
      >>> points, labels = jnp.array([[0.5, 0.0], [0.0, 0.5]]), jnp.array([0, 1])
      >>> anchor = jnp.zeros_like(points)
      >>> gradients = jax.grad(lambda points: pair_loss(points, anchor, labels).sum())(points)
      >>> figure = plane_plots.gradient_arrows(points, gradients, labels, margin=1.0)
      >>> len(figure.axes)
      1
    """
    points, gradients = np.asarray(points, np.float64), np.asarray(gradients, np.float64)
    labels, center = np.asarray(labels), np.asarray(anchor, np.float64)
    if points.ndim != 2 or points.shape[1:] != (2,) or not len(points):
        raise ValueError(f"points must be [N, 2] and not empty, got shape {points.shape}")
    for name, array, shape in (
        ("gradients", gradients, points.shape),
        ("labels", labels, (len(points),)),
        ("anchor", center, (2,)),
    ):
        if array.shape != shape:
            raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
    for name, array in (("points", points), ("gradients", gradients)):
        _check_rows(name, array, np.isfinite(array), "finite")
    _check_rows("labels", labels, (labels == 0) | (labels == 1), "0 (similar) or 1 (dissimilar)")
    if margin is not None and not 0 < margin < np.inf:
        raise ValueError(f"margin must be above 0 and finite, got {margin}")
    reach = max(np.abs(points - center).max(), margin or 0.0) * 1.15 or 1.0
    longest = np.linalg.norm(gradients, axis=1).max()
    figure, axes = _one_panel(5.4, 5.6)
    axes.set(
        aspect="equal",
        xlim=(center[0] - reach, center[0] + reach),
        ylim=(center[1] - reach, center[1] + reach),
        xlabel="first entry of the embedding",
        ylabel="second entry",
    )
    if margin is not None:
        axes.add_patch(Circle((center[0], center[1]), margin, fill=False, **_MARK))
        axes.annotate(
            f"margin {margin:g}",
            (center[0], center[1] - margin),
            (0, -3),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=9.5,
        )
    for label, kind, line in _PAIRS:
        chosen = labels == label
        if not chosen.any():
            continue
        axes.scatter(
            points[chosen, 0],
            points[chosen, 1],
            s=42,
            color=line["color"],
            marker="os"[label],
            label=kind,
            zorder=3,
        )
        moved = chosen & (np.linalg.norm(gradients, axis=1) > 1e-3 * longest)
        if moved.any():
            axes.quiver(
                points[moved, 0],
                points[moved, 1],
                *(-gradients[moved] * (0.28 * reach / longest)).T,
                angles="xy",
                scale_units="xy",
                scale=1,
                width=0.006,
                color=line["color"],
                alpha=0.75,
            )
    axes.scatter(center[0], center[1], s=110, color=BLACK, marker="*", label="anchor", zorder=4)
    _legend(axes, above=1.0, columns=3)
    return figure


def descent(
    path: ArrayLike,
    classes: ArrayLike,
    *,
    losses: ArrayLike | None = None,
    steps: ArrayLike | None = None,
    margin: float | None = None,
    class_names: Sequence[str] | None = None,
    frames_per_second: float = 15,
) -> FuncAnimation:
    """Animates points that move in the plane, with the loss beside them.

    In a notebook `IPython.display.HTML(descent(...).to_jshtml())` shows it with controls;
    `descent(...).save("descent.gif")` writes a file.

    Args:
      path: where each point is in each frame, `[T, N, 2]`, finite.
      classes: `[N]` integers.
      losses: the loss in each frame, `[T]`; left out by default.
      steps: the step of training of each frame, `[T]`; 0 to T - 1 by default.
      margin: in the unit of the plane; drawn as a bar of that length if given.
      class_names: name of each class number; the number itself by default.
      frames_per_second: of the animation.

    Returns:
      The animation.

    Raises:
      ValueError: if shapes do not fit, a number of the path is not finite or a class has no name.

    Example:
      >>> import warnings
      >>> import numpy as np
      >>> from contrastive_jax import plane_plots
      >>> path = np.linspace(1, 0, 5)[:, None, None] * np.array([[0.0, 0.0], [1.0, 1.0]])
      >>> animation = plane_plots.descent(path, [0, 1], losses=[1.0, 0.6, 0.3, 0.1, 0.0])
      >>> animation.save("descent.gif", writer="pillow")
    """
    check_unmasked(path=path, classes=classes, losses=losses, steps=steps)
    path, classes = np.asarray(path, np.float64), np.asarray(classes)
    if path.ndim != 3 or path.shape[2:] != (2,) or not path.size:
        raise ValueError(f"path must be [T, N, 2] and not empty, got shape {path.shape}")
    _check_rows("path", path, np.isfinite(path), "finite")
    names = _names(classes, class_names, path.shape[1])
    along = {
        name: np.asarray(values, np.float64)
        for name, values in (
            ("losses", losses),
            ("steps", np.arange(len(path)) if steps is None else steps),
        )
        if values is not None
    }
    for name, values in along.items():
        if values.shape != (len(path),):
            raise ValueError(f"{name} must be [{len(path)}], one a frame, got {values.shape}")
    with style.context(["default", _STYLE]):
        return _animation(path, classes, names, along, margin, frames_per_second)


def _animation(
    path: NDArray[Any],
    classes: NDArray[Any],
    names: dict[int, str],
    along: dict[str, NDArray[Any]],
    margin: float | None,
    frames_per_second: float,
) -> FuncAnimation:
    panels = 1 + ("losses" in along)
    figure = Figure(figsize=(5.2 + 3.4 * (panels - 1), 5.2), dpi=90, layout="constrained")
    axes, *beside = figure.subplots(1, panels, squeeze=False, width_ratios=(1.6, 1)[:panels])[0]
    low, high = path.min((0, 1)), path.max((0, 1))
    half = 0.54 * max(*(high - low), margin or 0.0) or 1.0
    middle = (low + high) / 2
    axes.set(
        aspect="equal",
        xlim=(middle[0] - half, middle[0] + half),
        ylim=(middle[1] - half * (1 if margin is None else 1.16), middle[1] + half),
        xticks=[],
        yticks=[],
    )
    if margin is not None:
        left, bottom = middle - half * np.array([0.96, 1.1])
        axes.plot([left, left + margin], [bottom, bottom], color="#333333", linewidth=2)
        axes.annotate(
            f"margin {margin:g}",
            (left, bottom),
            (0, 3),
            textcoords="offset points",
            fontsize=9.5,
        )
    looks = {c: (CLASS_COLORS[k % 10], _MARKERS[(k + k // 10) % 10]) for k, c in enumerate(names)}
    colors = [looks[c][0] for c in classes]
    trails = axes.add_collection(LineCollection([], colors=colors, alpha=0.35, linewidths=1.2))
    size = float(np.clip(9000 / path.shape[1], 7, 36))
    dots = axes.scatter(
        path[0, :, 0], path[0, :, 1], s=size, c=colors, alpha=0.85, linewidths=0, zorder=3
    )
    dots.set_paths([_outline(looks[c][1]) for c in classes])
    now = None
    for panel in beside:
        panel.plot(along["steps"], along["losses"], color=BLACK)
        panel.set(xlabel="step", ylabel="loss")
        panel.set_ylim(bottom=min(0.0, along["losses"].min()))
        (now,) = panel.plot([], [], color=BLACK, marker="o")
    if len(names) <= 10:
        _name_lines(
            figure,
            [
                Line2D([], [], color=color, marker=marker, linestyle="", label=names[c])
                for c, (color, marker) in looks.items()
            ],
            loc="outside lower center",
            ncols=min(len(names), 10),
            handlelength=1,
            columnspacing=1.2,
            fontsize=9.5,
        )
    title = axes.set_title(f"step {along['steps'][-1]:g}", fontsize=10.5)
    # Ticks and places come into being at the first draw, in the style of that moment; then they
    # stay where they are from frame to frame.
    _write_literally(figure)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")

    def show(frame: int) -> list[Any]:
        dots.set_offsets(path[frame])
        trail = path[max(frame - _TRAIL, 0) : frame + 1]
        trails.set_segments(list(trail.transpose(1, 0, 2)))
        title.set_text(f"step {along['steps'][frame]:g}")
        if now is not None:
            now.set_data([along["steps"][frame]], [along["losses"][frame]])
        return [dots, trails, title]

    return FuncAnimation(figure, show, frames=len(path), interval=1000 / frames_per_second)

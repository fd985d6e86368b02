"""Arrows point where descent goes, and an animation shows the path it was given."""

import re

import numpy as np
import pytest
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.patches import Circle
from matplotlib.quiver import Quiver

from contrastive_jax import plane_plots

POINTS = np.array([[0.5, 0.0], [0.0, -1.0], [0.3, 0.4], [2.0, 0.0]])
LABELS = np.array([0, 0, 1, 1])
# Of the contrastive loss with margin 1: twice the point, and -2 (1 - D) / D times it.
GRADIENTS = np.array([[1.0, 0.0], [0.0, -2.0], [-0.6, -0.8], [0.0, 0.0]])


def test_arrows_go_against_the_gradient_in_proportion():
    (axes,) = plane_plots.gradient_arrows(POINTS, GRADIENTS, LABELS, margin=1.0).axes
    positive, negative = (one for one in axes.collections if isinstance(one, Quiver))
    np.testing.assert_allclose(positive.XY, POINTS[:2])
    # The last point has no gradient, and no arrow.
    np.testing.assert_allclose(negative.XY, POINTS[2:3])
    arrows = np.concatenate([np.stack([one.U, one.V], axis=1) for one in (positive, negative)])
    scale = -arrows[0, 0] / GRADIENTS[0, 0]
    assert scale > 0
    np.testing.assert_allclose(arrows, -scale * GRADIENTS[:3], atol=1e-12)
    (circle,) = (one for one in axes.patches if isinstance(one, Circle))
    assert circle.radius == 1
    for (x, y), (u, v) in zip(POINTS[:3], arrows, strict=True):
        assert axes.viewLim.contains(x + u, y + v)


def test_without_any_gradient_there_are_dots_alone():
    (axes,) = plane_plots.gradient_arrows(POINTS, np.zeros((4, 2)), LABELS).axes
    assert not any(isinstance(one, Quiver) for one in axes.collections)
    assert sum(len(one.get_offsets()) for one in axes.collections) == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points": np.zeros((4, 3))}, "points must be [N, 2]"),
        ({"gradients": np.zeros((3, 2))}, "gradients must have shape (4, 2), got (3, 2)"),
        ({"labels": np.array([0, 1, 2, 0])}, "row 2"),
        ({"gradients": np.where(np.eye(4, 2), np.nan, 0.0)}, "row 0"),
        ({"anchor": (0.0, 0.0, 0.0)}, "anchor must have shape (2,)"),
        ({"margin": 0.0}, "margin must be above 0"),
    ],
)
def test_arrows_say_what_is_wrong(change, message):
    given = {"points": POINTS, "gradients": GRADIENTS, "labels": LABELS, **change}
    with pytest.raises(ValueError, match=re.escape(message)):
        plane_plots.gradient_arrows(**given)


def _path(frames=12, points=7):
    generator = np.random.default_rng(0)
    return generator.normal(size=(frames, points, 2)).cumsum(axis=0), np.arange(points) % 3


def test_each_frame_shows_its_places_its_loss_and_its_step():
    path, classes = _path()
    losses, steps = np.geomspace(1, 0.01, 12), 10 * np.arange(12)
    animation = plane_plots.descent(path, classes, losses=losses, steps=steps, margin=1.0)
    figure = animation._fig
    plane, beside = figure.axes
    (dots,) = (one for one in plane.collections if isinstance(one, PathCollection))
    (trails,) = (one for one in plane.collections if isinstance(one, LineCollection))
    now = beside.lines[-1]
    for frame in (0, 5, 11):
        animation._draw_frame(frame)
        np.testing.assert_allclose(dots.get_offsets(), path[frame])
        ends = [trail[-1] for trail in trails.get_segments()]
        np.testing.assert_allclose(ends, path[frame])
        assert plane.get_title() == f"step {steps[frame]}"
        np.testing.assert_allclose(now.get_xydata(), [[steps[frame], losses[frame]]])
        assert all(plane.viewLim.contains(*place) for place in path[frame])
    (bar,) = (line for line in plane.lines if len(line.get_xdata()) == 2)
    assert np.ptp(bar.get_xdata()) == pytest.approx(1)
    animation._draw_was_started = True  # looked at frame by frame, and not to be warned of


def test_it_can_be_shown_in_a_notebook_and_saved(tmp_path):
    path, classes = _path(frames=3)
    animation = plane_plots.descent(path, classes, class_names=["a", "b", "c"])
    assert animation.to_jshtml().count("data:image/png;base64") == 3
    animation.save(tmp_path / "path.gif", writer="pillow")
    assert (tmp_path / "path.gif").read_bytes().startswith(b"GIF")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": np.zeros((2, 7, 3))}, "path must be [T, N, 2]"),
        ({"path": np.full((12, 7, 2), np.inf)}, "finite"),
        ({"classes": np.arange(3)}, "classes must be [7] integers"),
        ({"losses": np.zeros(3)}, "losses must be [12], one a frame, got (3,)"),
        ({"class_names": ["a"]}, "class"),
    ],
)
def test_an_animation_says_what_is_wrong(change, message):
    path, classes = _path()
    given = {"path": path, "classes": classes, **change}
    with pytest.raises(ValueError, match=re.escape(message)):
        plane_plots.descent(**given)

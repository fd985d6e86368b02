"""Figures show what they were given, inside their bounds and in one style."""

import functools
import subprocess
import sys
from collections import Counter

import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle, StepPatch
from matplotlib.text import Text

from contrastive_jax import plots

BLUE, VERMILION, BLACK = "#0072b2", "#d55e00", "#000000"
FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def _contrastive(distance, label, margin):
    return jnp.where(label == 0, distance**2, jnp.maximum(margin - distance, 0.0) ** 2)


def _clusters(classes, each, width, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), each)
    centres = 5 * rng.normal(size=(classes, width))
    return centres[labels] + rng.normal(size=(len(labels), width)), labels


def _images(count, height, width, channels, seed=0):
    shape = (count, height, width, channels)
    return np.random.default_rng(seed).integers(1, 256, shape, dtype=np.uint8)


def _records(steps=300):
    rng = np.random.default_rng(0)
    for step in range(1, steps + 1):
        yield {
            "step": step,
            "loss": np.exp(-step / 50) + 0.01 * rng.random(),
            "positive_distance": 0.5 + 0.1 * rng.random(),
            "negative_distance": 1.2 + 0.1 * rng.random(),
            "active_fraction": rng.random(),
            "pairs_per_second": 1000.0,
        }
        if step % 100 == 0:
            names = ("precision_at_1", "map_at_r", "r_precision")
            yield {"step": step} | {f"validation/{name}": rng.random() for name in names}


def _map(classes, each, width, image_shape=None, names=None):
    embeddings, labels = _clusters(classes, each, width)
    images = None if image_shape is None else _images(len(labels), *image_shape)
    return plots.embedding_map(embeddings, labels, images=images, class_names=names)


def _gallery(image_shape, k=5, names=None, queries=(0, 3, 7)):
    images, classes = _images(40, *image_shape), np.arange(40) % 10
    neighbours = np.random.default_rng(1).integers(0, 40, (40, k))
    return plots.gallery(images, classes, neighbours, np.array(queries), class_names=names)


def _histograms(margin=1.4, threshold=1.39):
    rng = np.random.default_rng(0)
    distances = np.concatenate([rng.gamma(2.0, 0.1, 500), rng.normal(1.4, 0.1, 700)])
    labels = np.repeat([0, 1], [500, 700])
    return plots.distance_histograms(distances, labels, margin=margin, threshold=threshold)


def _rates(power):
    far = np.linspace(0, 1, 1001)
    return far, far**power


def _roc(**kwargs):
    curves = {"embedding (AUC 0.990)": _rates(0.01), "raw pixels (AUC 0.833)": _rates(0.2)}
    return plots.roc(curves, **kwargs)


def _curves():
    sizes = 2.0 ** np.arange(10, 17)
    return {
        f"contender {k}": (sizes, 10.0**-k * sizes**2, 100 * sizes**power)
        for k, power in enumerate((2, 1, 1), start=6)
    }


def _intervals(rows=30, panels=("all classes", "unseen classes")):
    rng = np.random.default_rng(0)
    return {
        title: {f"loss_number_{k}": (0.9 - 0.01 * k, rng.uniform(0, 0.02)) for k in range(rows)}
        for title in panels
    }


LONG = [f"an exceedingly long name of class {k}" for k in range(100)]
FIGURES = {
    "loss": lambda: plots.loss_curve(_contrastive, 1.0),
    "loss of a tiny margin": lambda: plots.loss_curve(_contrastive, 1e-4),
    "histograms": _histograms,
    "histograms, marks apart": lambda: _histograms(threshold=0.01),
    "histograms, one mark": lambda: _histograms(margin=None),
    "roc": _roc,
    "linear roc": lambda: _roc(logarithmic=False),
    "map": lambda: _map(10, 40, 64, names=FASHION),
    "map of one class": lambda: _map(1, 10, 2),
    "map of 3": lambda: _map(3, 50, 2, names=["cat", "dog", "horse"]),
    "map of 100": lambda: _map(100, 10, 16, names=LONG),
    "map with long names": lambda: _map(10, 10, 3, names=LONG),
    "map with 8 x 8": lambda: _map(10, 40, 64, (8, 8, 1)),
    "map with 28 x 28": lambda: _map(10, 40, 2, (28, 28, 1), FASHION),
    "map with rgb": lambda: _map(3, 20, 8, (12, 16, 3)),
    "gallery of 8 x 8": lambda: _gallery((8, 8, 1)),
    "gallery of 28 x 28": lambda: _gallery((28, 28, 1), 8, FASHION),
    "gallery of rgb": lambda: _gallery((12, 16, 3), names=LONG),
    "smallest gallery": lambda: _gallery((8, 8, 1), 1, queries=(0,)),
    "training": lambda: plots.training_curves(list(_records()), margin=1.4),
    "growth": lambda: plots.growth(_curves()),
    "intervals": lambda: plots.intervals(_intervals(), "MAP@R on test"),
    "intervals of one": lambda: plots.intervals({"all": {"a": (0.5, np.nan)}}, "P@1"),
    "training without validation": lambda: plots.training_curves([{"step": 1, "loss": 0.0}]),
}


def _texts(figure):
    """All text that is drawn; ticks beyond the ends of an axis are not."""
    beyond = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            room = 1e-6 * (low if axis.get_scale() == "log" else high - low)
            beyond |= {
                tick.label1
                for tick in (*axis.majorTicks, *axis.minorTicks)
                if not low - room <= tick.get_loc() <= high + room
            }
    return [
        text
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text() and text not in beyond
    ]


def _annotations(axes):
    return {text.get_text(): text for text in axes.texts}


@functools.cache
def _drawn(name):
    """One of the figures, which tests share as it takes long to draw."""
    figure = FIGURES[name]()
    FigureCanvasAgg(figure).draw()
    return figure


@pytest.fixture(params=FIGURES, scope="module")
def figure(request):
    return _drawn(request.param)


@pytest.mark.parametrize(
    ("background", "channels", "noted"), [(0, 1, True), (255, 1, False), (0, 3, False)]
)
def test_a_gallery_says_that_it_inverts_images(background, channels, noted):
    images = np.full((4, 8, 8, channels), background, np.uint8)
    images[:, 3:5, 3:5] = 100
    figure = plots.gallery(images, [0, 0, 1, 1], [[1], [0], [3], [2]], [0, 2])
    notes = [
        text for text in _texts(figure) if "inverted: they are white on black" in text.get_text()
    ]
    assert len(notes) == noted


def test_all_text_lies_within_the_figure(figure):
    width, height = figure.canvas.get_width_height()
    for text in _texts(figure):
        box = text.get_window_extent()
        assert box.x0 >= -0.5, text
        assert box.y0 >= -0.5, text
        assert box.x1 <= width + 0.5, text
        assert box.y1 <= height + 0.5, text


def test_text_is_legible_at_900_pixels(figure):
    # A letter of 10 pixels, em to em, is about the smallest that reads well on a screen.
    scale = min(1.0, 900 / figure.canvas.get_width_height()[0]) * figure.dpi / 72
    minor = {
        tick
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in axis.get_minorticklabels()
    }
    sizes = [text.get_fontsize() for text in _texts(figure) if text not in minor]
    assert min(sizes) * scale >= 10


def test_panels_have_labelled_axes_and_no_upper_or_right_spine(figure, request):
    for axes in figure.axes:
        if axes.axison:
            # Intervals have names in place of a quantity.
            assert axes.get_ylabel() or "intervals" in request.node.name
            assert axes.get_xlabel() or axes.get_shared_x_axes().get_siblings(axes) != [axes]
            assert not axes.spines["top"].get_visible()
            assert not axes.spines["right"].get_visible()
        legend = axes.get_legend()
        assert legend is None or all(text.get_text() for text in legend.get_texts())


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("histograms", "svg"),
        ("roc", "pdf"),
        ("map of 3", "svg"),
        ("map with rgb", "png"),
        ("gallery of rgb", "pdf"),
        ("training", "png"),
    ],
)
def test_drawing_twice_gives_the_same_file(name, suffix, tmp_path):
    paths = [tmp_path / f"{k}.{suffix}" for k in range(2)]
    for path in paths:
        plots.save(FIGURES[name](), path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[0].stat().st_size > 1000


@pytest.mark.parametrize("name", ["loss", "roc", "map of 3", "smallest gallery", "training"])
def test_style_does_not_depend_on_the_settings_around(name, tmp_path):
    plots.save(FIGURES[name](), tmp_path / "plain.png")
    with mpl.style.context(["dark_background", {"font.size": 20, "axes.grid": False}]):
        before = dict(mpl.rcParams)
        figure = FIGURES[name]()
        assert dict(mpl.rcParams) == before
        figure.savefig(tmp_path / "dark.png", facecolor="white", edgecolor="white")
    assert (tmp_path / "plain.png").read_bytes() == (tmp_path / "dark.png").read_bytes()


def test_pyplot_is_not_touched():
    code = """
import sys
from contrastive_jax import plots
figure = plots.training_curves([{"step": 1, "loss": 1.0}])
plots.embedding_map([[0.0, 1.0], [1.0, 0.0]], [0, 1])
assert type(figure).__name__ == "Figure"
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


# The loss


@pytest.mark.parametrize("margin", [1.0, 2.5])
def test_loss_curve_draws_the_formula_and_the_margin(margin):
    (axes,) = plots.loss_curve(_contrastive, margin).axes
    positive, negative, mark = axes.lines
    distance = np.asarray(positive.get_xdata(), np.float64)
    assert distance[0] == 0
    np.testing.assert_allclose(distance[-1], 1.5 * margin, rtol=1e-6)
    np.testing.assert_allclose(positive.get_ydata(), distance**2, rtol=1e-5)
    np.testing.assert_allclose(
        negative.get_ydata(), np.maximum(0, margin - distance) ** 2, rtol=1e-4, atol=1e-6
    )
    assert list(mark.get_xdata()) == [margin, margin]
    assert f"margin {margin:g}" in _annotations(axes)
    assert (to_hex(positive.get_color()), positive.get_linestyle()) == (BLUE, "-")
    assert (to_hex(negative.get_color()), negative.get_linestyle()) == (VERMILION, "--")
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["positive (Y = 0)", "negative (Y = 1)"]


def test_loss_curve_goes_through_the_worked_values():
    positive, negative = plots.loss_curve(_contrastive, 1.0, max_distance=3.0).axes[0].lines[:2]
    for line, distance, value in (
        (positive, 0.5, 0.25),
        (negative, 0.3, 0.49),
        (negative, 1.5, 0),
    ):
        (at,) = np.flatnonzero(np.isclose(line.get_xdata(), distance))
        np.testing.assert_allclose(line.get_ydata()[at], value, atol=1e-6)


def test_loss_curve_shows_negative_losses():
    (axes,) = plots.loss_curve(lambda d, y, m: (1 - 2 * y) * (d - m), 1.0).axes
    assert axes.get_ylim()[0] <= -1


@pytest.mark.parametrize("margin", [0.0, -1.0, float("nan"), float("inf")])
def test_loss_curve_rejects_a_margin(margin):
    with pytest.raises(ValueError, match=f"margin must be above 0 and finite, got {margin}"):
        plots.loss_curve(_contrastive, margin)


def test_loss_curve_rejects_other_bad_arguments():
    with pytest.raises(ValueError, match="max_distance must be above 0 and finite, got 0"):
        plots.loss_curve(_contrastive, 1.0, max_distance=0)
    with pytest.raises(ValueError, match=r"loss must return a scalar, got shape \(2,\)"):
        plots.loss_curve(lambda d, y, m: jnp.stack([d, d]), 1.0)


# Histograms


@settings(deadline=None, max_examples=25, derandomize=True)
@given(st.lists(st.tuples(st.floats(-3, 10, width=32), st.integers(0, 1)), min_size=1, max_size=60))
def test_histograms_are_densities_of_their_pairs(pairs):
    distances, labels = (np.array(column) for column in zip(*pairs, strict=True))
    (axes,) = plots.distance_histograms(distances, labels).axes
    outlines = [p for p in axes.patches if isinstance(p, StepPatch) and p.get_label()]
    assert [p.get_label() for p in outlines] == [
        f"{name} pairs" for label, name in enumerate(("positive", "negative")) if label in labels
    ]
    for patch in outlines:
        density, edges, _ = patch.get_data()
        chosen = np.sort(distances[labels == (patch.get_label() == "negative pairs")])
        np.testing.assert_allclose(np.sum(density * np.diff(edges)), 1, rtol=1e-9)
        # Up to each inner edge lie the pairs strictly below it.
        below = np.searchsorted(chosen, edges[1:-1], side="left")
        mass = np.cumsum(density * np.diff(edges))[:-1]
        np.testing.assert_allclose(mass * len(chosen), below, atol=1e-6)
        color = VERMILION if patch.get_label() == "negative pairs" else BLUE
        assert to_hex(patch.get_edgecolor()) == color


@pytest.mark.parametrize("threshold", [1.399, 1.401, 1.2, 0.7, 0.01])
def test_histograms_mark_margin_and_threshold_side_by_side(threshold):
    figure = _histograms(margin=1.4, threshold=threshold)
    (axes,) = figure.axes
    assert {line.get_xdata()[0] for line in axes.lines} == {threshold, 1.4}
    first, second = (
        _annotations(axes)[name] for name in (f"threshold {threshold:.3g}", "margin 1.4")
    )
    assert (first.xy[0], second.xy[0]) == (threshold, 1.4)
    figure.draw_without_rendering()
    assert not first.get_window_extent().overlaps(second.get_window_extent())


def test_histograms_without_marks_draw_none():
    (axes,) = plots.distance_histograms([0.1, 0.9], [0, 1]).axes
    assert not axes.lines
    assert not axes.texts


@pytest.mark.parametrize(
    ("distances", "labels", "message"),
    [
        ([0.1, 0.2], [0], r"\[N\] alike and not empty, got shapes \(2,\) and \(1,\)"),
        ([], [], "not empty"),
        ([[0.1]], [[0]], r"got shapes \(1, 1\)"),
        ([0.1, np.nan], [0, 1], "distances must be finite, got nan in row 1"),
        ([0.1, 0.2], [0, 2], r"labels must be 0 \(similar\) or 1 .*, got 2 in row 1"),
    ],
)
def test_histograms_reject(distances, labels, message):
    with pytest.raises(ValueError, match=message):
        plots.distance_histograms(np.array(distances), np.array(labels))


def test_histograms_reject_an_infinite_mark():
    with pytest.raises(ValueError, match="threshold must be finite, got -inf"):
        plots.distance_histograms([0.1, 0.9], [0, 1], threshold=-np.inf)


# ROC


def test_roc_draws_each_curve_down_to_its_first_decade():
    far, tar = np.array([0, 0.002, 0.2, 1]), np.array([0.1, 0.5, 0.9, 1])
    (axes,) = plots.roc({"one": (far, tar), "two": (jnp.array([0, 1.0]), jnp.ones(2))}).axes
    assert axes.get_xscale() == "log"
    np.testing.assert_allclose(axes.get_xlim(), (1e-3, 1))
    one, two, chance = axes.lines
    np.testing.assert_array_equal(one.get_ydata(), tar)
    np.testing.assert_array_equal(one.get_xdata()[1:], far[1:])
    assert 0 < one.get_xdata()[0] < 1e-3  # An accept rate at FAR 0 reaches the end of the axis.
    np.testing.assert_array_equal(chance.get_xdata(), chance.get_ydata())
    assert one.get_drawstyle() == "steps-post"
    assert one.get_color() != two.get_color()
    assert one.get_linestyle() != two.get_linestyle()
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["one", "two", "chance"]


def test_linear_roc():
    (axes,) = plots.roc({"one": ([0, 0.5, 1], [0, 0.9, 1])}, logarithmic=False).axes
    assert axes.get_xscale() == "linear"
    assert axes.get_xlim() == (0, 1)
    np.testing.assert_array_equal(axes.lines[0].get_xdata(), [0, 0.5, 1])


@pytest.mark.parametrize(
    ("curves", "message"),
    [
        ({}, "at least one"),
        ({"a": ([0, 1], [1])}, r"curve 'a' must be two \[T\], got \(2,\) and \(1,\)"),
        ({"a": ([1, 0], [0, 1])}, "curve 'a' must ascend"),
        ({"a": ([0, 1], [0, 1.5])}, "curve 'a' must ascend"),
        ({"a": ([0, np.nan, 1], [0, 0.5, 1])}, "curve 'a' must ascend"),
    ],
)
def test_roc_rejects(curves, message):
    with pytest.raises(ValueError, match=message):
        plots.roc(curves)


# The map


def _dots(figure):
    (dots,) = figure.axes[0].collections
    return np.asarray(dots.get_offsets()), [to_hex(c) for c in dots.get_facecolors()], dots


def test_map_of_width_two_shows_embeddings_as_they_are():
    embeddings, classes = _clusters(3, 20, 2)
    figure = plots.embedding_map(jnp.asarray(embeddings), jnp.asarray(classes))
    points, colors, dots = _dots(figure)
    order = np.lexsort(points.T)
    expected = np.asarray(jnp.asarray(embeddings), np.float64)
    sorted_as = np.lexsort(expected.T)
    np.testing.assert_array_equal(points[order], expected[sorted_as])
    by_class = {}
    outlines = [path.vertices.tobytes() for path in dots.get_paths()]
    for k, c in zip(order, classes[sorted_as], strict=True):
        by_class.setdefault(int(c), set()).add((colors[k], outlines[k]))
    assert all(len(looks) == 1 for looks in by_class.values())
    looks = [looks.pop() for looks in by_class.values()]
    assert len({color for color, _ in looks}) == len({outline for _, outline in looks}) == 3
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["0", "1", "2"]


@pytest.mark.parametrize("count", [2, 10, 12, 100])
def test_no_two_classes_look_alike(count):
    embeddings = np.random.default_rng(0).normal(size=(count, 2))
    points, colors, dots = _dots(plots.embedding_map(embeddings, np.arange(count)))
    outlines = [path.vertices.tobytes() for path in dots.get_paths()]
    assert len(points) == count
    assert len(set(zip(colors, outlines, strict=True))) == count
    assert len(set(colors)) == min(count, 10)


def test_map_projects_on_principal_components():
    embeddings, classes = _clusters(4, 30, 7)
    figure = plots.embedding_map(embeddings, classes)
    points, _, _ = _dots(figure)
    values, vectors = np.linalg.eigh(np.cov(embeddings.T))
    (axes,) = figure.axes
    centred = embeddings - embeddings.mean(0)
    for k, label in ((0, axes.get_xlabel()), (1, axes.get_ylabel())):
        expected = centred @ vectors[:, -1 - k]
        actual = np.sort(points[:, k])
        sign_fits = [np.allclose(actual, np.sort(s * expected), atol=1e-9) for s in (1, -1)]
        assert any(sign_fits)
        share = values[-1 - k] / values.sum()
        assert label == f"principal component {k + 1} ({100 * share:.0f} % of variance)"
    # The two together, not only each by itself.
    plane = centred @ vectors[:, [-1, -2]]
    np.testing.assert_allclose(
        np.sort(np.sum(points**2, 1)), np.sort(np.sum(plane**2, 1)), rtol=1e-9
    )


@pytest.mark.parametrize("seed", range(3))
def test_map_has_one_scale(seed):
    figure = plots.embedding_map(*_clusters(3, 20, 2, seed))
    figure.draw_without_rendering()
    (axes,) = figure.axes
    box = axes.get_window_extent()
    per_unit = (box.width / np.ptp(axes.get_xlim()), box.height / np.ptp(axes.get_ylim()))
    np.testing.assert_allclose(per_unit[0], per_unit[1], rtol=1e-9)


@pytest.mark.parametrize("image_shape", [None, (8, 8, 1)])
def test_map_names_classes_beside_their_medians(image_shape):
    figure = _map(10, 40, 2, image_shape, FASHION)
    embeddings, classes = _clusters(10, 40, 2)
    notes = _annotations(figure.axes[0])
    assert set(notes) == set(FASHION)
    figure.draw_without_rendering()
    positions = {}
    for c, name in enumerate(FASHION):
        median = np.median(embeddings[classes == c], axis=0)
        np.testing.assert_allclose(notes[name].xy, median)
        positions[name] = figure.axes[0].transData.transform(median)
    boxes = {name: note.get_bbox_patch().get_window_extent() for name, note in notes.items()}
    for name, box in boxes.items():
        assert sum(box.overlaps(other) for other in boxes.values()) == 1, name
        assert not any(box.contains(*position) for position in positions.values()), name


def test_map_of_very_many_classes_names_none():
    points = np.random.default_rng(0).normal(size=(202, 2))
    (axes,) = plots.embedding_map(points, np.arange(202) % 101).axes
    assert axes.get_title(loc="right") == "101 classes"
    assert not axes.texts


def test_map_says_how_many_of_many_classes_it_names():
    (axes,) = _drawn("map of 100").axes
    named = len(axes.texts)
    assert 10 < named < 100
    assert axes.get_title(loc="right") == f"{named} of 100 classes named"


def _frames(axes):
    return [patch for patch in axes.patches if isinstance(patch, Rectangle)]


@pytest.mark.parametrize(
    ("classes", "each", "width", "image_shape"),
    [(10, 40, 64, (8, 8, 1)), (10, 100, 2, (28, 28, 1)), (3, 20, 5, (12, 16, 3))],
)
def test_thumbnails_are_near_their_embeddings_and_do_not_overlap(classes, each, width, image_shape):
    figure = _map(classes, each, width, image_shape)
    plain = _map(classes, each, width)
    points, point_colors, _ = _dots(plain)
    (axes,) = figure.axes
    assert axes.get_xlim() == plain.axes[0].get_xlim()
    frames = _frames(axes)
    assert len(frames) == len(axes.images) > 20
    corners = np.array([frame.get_xy() for frame in frames])
    side = frames[0].get_width()
    gaps = np.abs(corners[:, None] - corners).max(-1)
    assert (gaps + 2 * side * np.eye(len(frames)) > side).all()
    low, high = axes.viewLim.get_points()
    assert (corners >= low).all()
    assert (corners + side <= high).all()
    # A frame has the colour of an example at most a cell away; no cell with examples is empty.
    cell = side / 0.88
    for frame, corner in zip(frames, corners, strict=True):
        near = np.abs(points - (corner + side / 2)).max(1) <= 1.5 * cell * (1 + 1e-9)
        assert to_hex(frame.get_edgecolor()) in {point_colors[k] for k in np.flatnonzero(near)}
    away = np.abs(points[:, None] - (corners + side / 2)).max(-1).min(1)
    assert (away <= 0.5 * cell * (1 + 1e-9)).all()


def test_thumbnails_are_of_the_images_with_their_class_frames():
    # Each example far from the others, and each image of one intensity.
    embeddings = np.array([[0.0, 0], [10, 0], [0, 10], [10, 10]])
    intensity = np.array([50, 100, 150, 200], np.uint8)
    rgb = np.ones((4, 6, 6, 3), np.uint8) * intensity[:, None, None, None]
    (axes,) = plots.embedding_map(embeddings, [0, 1, 0, 1], images=rgb).axes
    colors = {}
    for image, frame in zip(axes.images, _frames(axes), strict=True):
        centre = np.array(image.get_extent()).reshape(2, 2).mean(1)
        k = int(np.linalg.norm(embeddings - centre, axis=1).argmin())
        np.testing.assert_allclose(np.asarray(image.get_array()), intensity[k] / 255, rtol=1e-6)
        colors[k] = to_hex(frame.get_edgecolor())
    assert colors[0] == colors[2] != colors[1] == colors[3]


def test_thumbnails_of_grey_images_are_ink_on_white():
    ink = np.zeros((2, 5, 5, 1), np.uint8)
    ink[:, 2, 2] = 255
    (axes,) = plots.embedding_map(np.eye(2), [0, 1], images=ink).axes
    for image, frame in zip(axes.images, _frames(axes), strict=True):
        pixels = np.asarray(image.get_array())
        np.testing.assert_array_equal(pixels[0], 1)
        np.testing.assert_allclose(pixels[2, 2], 0.8 * np.array(frame.get_edgecolor()[:3]))


@pytest.mark.parametrize("embeddings", [np.zeros((5, 2)), np.zeros((5, 4)), 1e-12 * np.eye(5)])
def test_map_of_collapsed_embeddings(embeddings):
    figure = plots.embedding_map(embeddings, np.arange(5))
    points, _, _ = _dots(figure)
    assert np.isfinite(points).all()
    FigureCanvasAgg(figure).draw()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embeddings": np.zeros((4, 1))}, r"embeddings must be \[N, D\].* got shape \(4, 1\)"),
        ({"embeddings": np.zeros(4)}, r"got shape \(4,\)"),
        ({"embeddings": np.array([[0, 0], [0, np.inf], [0, 0], [0, 0]])}, "got inf in row 1"),
        ({"classes": np.zeros(3, int)}, r"classes must be \[4\] integers, .* shape \(3,\)"),
        ({"classes": np.zeros(4)}, "integers, one a row, got float64"),
        ({"class_names": ["a"]}, "class_names must name classes 0 to 1, got 1"),
        ({"images": np.zeros((4, 8, 8))}, r"images must be \[4, H, W, 1 or 3\]"),
        ({"images": np.zeros((3, 8, 8, 1))}, r"got shape \(3, 8, 8, 1\)"),
        ({"images": np.zeros((4, 8, 8, 2))}, r"got shape \(4, 8, 8, 2\)"),
        ({"images": np.full((4, 8, 8, 1), 2.0)}, "floats from 0 to 1, got float64 from 2.0 to 2.0"),
        ({"images": np.full((4, 8, 8, 1), np.nan)}, "floats from 0 to 1"),
    ],
)
def test_map_rejects(change, message):
    arguments = {"embeddings": np.eye(4, 2), "classes": np.array([0, 0, 1, 1])} | change
    with pytest.raises(ValueError, match=message):
        plots.embedding_map(**arguments)


# The gallery


@pytest.mark.parametrize("channels", [1, 3])
def test_gallery_marks_exactly_the_right_and_the_wrong(channels):
    classes = np.array([0, 0, 1, 1, 2])
    neighbours = np.array([[1, 2, 3], [0, 4, 2], [3, 0, 4], [0, 1, 4], [0, 1, 2]])
    queries = np.array([2, 0, 4])
    images = (
        np.zeros((5, 6, 6, channels), np.uint8)
        + np.arange(1, 6, dtype=np.uint8)[:, None, None, None]
    )
    names = ["cat", "dog", "horse"]
    (axes,) = plots.gallery(images, classes, neighbours, queries, class_names=names).axes

    # By hand: query 2 (dog), query 0 (cat), query 4 (horse), each with its neighbours.
    shown = [[2, 3, 0, 4], [0, 1, 2, 3], [4, 0, 1, 2]]
    marks = ["?✓✗✗", "?✓✗✗", "?✗✗✗"]
    expected_names = [
        ["dog", "dog", "cat", "horse"],
        ["cat", "cat", "dog", "dog"],
        ["horse", "cat", "cat", "dog"],
    ]
    frames, pictures = _frames(axes), axes.images
    assert len(frames) == len(pictures) == 12
    grid = sorted(zip(frames, pictures, strict=True), key=lambda pair: pair[0].get_xy()[::-1])
    for (frame, picture), k, mark, name in zip(
        grid,
        np.ravel(shown),
        "".join(marks),
        np.ravel(expected_names),
        strict=True,
    ):
        np.testing.assert_allclose(np.asarray(picture.get_array()), (k + 1) / 255)
        look = (to_hex(frame.get_edgecolor()), frame.get_linestyle())
        assert look == {"?": (BLACK, "-"), "✓": (BLUE, "-"), "✗": (VERMILION, "--")}[mark]
        (x, y), side = frame.get_xy(), frame.get_width()
        inside = [
            text
            for text in axes.texts
            if x <= text.get_position()[0] <= x + side and y <= text.get_position()[1] <= y + side
        ]
        assert "".join(text.get_text() for text in inside) == mark.replace("?", "")
        for text in inside:
            assert to_hex(text.get_bbox_patch().get_facecolor()) == look[0]
        (beneath,) = (
            text
            for text in axes.texts
            if text.get_position()[0] == pytest.approx(x + side / 2)
            and 0 < text.get_position()[1] - (y + side) < 0.2
        )
        assert beneath.get_text() == name
    counts = Counter(text.get_text() for text in axes.texts)
    assert (counts["✓"], counts["✗"]) == (2 + 1, 7 + 1)  # And one of each in the legend.


def test_gallery_shows_images_upright_and_dark_ground_as_paper():
    images = np.zeros((2, 8, 8, 1), np.uint8)
    images[:, 2:4, 3] = 255
    (axes,) = plots.gallery(images, [0, 0], [[1], [0]], [0]).axes
    for picture in axes.images:
        pixels = np.asarray(picture.get_array())
        assert pixels.shape == (8, 8, 3)
        np.testing.assert_array_equal(pixels, np.repeat(1 - images[0] / 255.0, 3, -1))
        assert picture.origin == "upper"
        _, _, bottom, top = picture.get_extent()
        display = axes.transData.transform([[0, bottom], [0, top]])
        assert display[0, 1] < display[1, 1]


def test_gallery_keeps_grey_photographs_and_the_shape_of_images():
    images = _images(3, 6, 12, 1)
    (axes,) = plots.gallery(images, [0, 0, 1], [[1], [0], [0]], [0, 1, 2]).axes
    np.testing.assert_allclose(
        np.asarray(axes.images[0].get_array()), np.repeat(images[0] / 255, 3, -1)
    )
    left, right, bottom, top = axes.images[0].get_extent()
    assert (right - left) == pytest.approx(2 * abs(top - bottom))


def test_gallery_shortens_long_names_to_their_column():
    figure = _gallery((8, 8, 1), names=["W" * 60] * 10)
    figure.draw_without_rendering()
    names = [text for text in figure.axes[0].texts if text.get_text().startswith("W")]
    assert len(names) == 3 * 6
    side = _frames(figure.axes[0])[0].get_width() * figure.dpi
    for text in names:
        assert text.get_text().endswith("…")
        assert 0.5 * side < text.get_window_extent().width < 1.1 * side


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((4, 8, 8))}, r"images must be \[4, H, W, 1 or 3\]"),
        ({"classes": np.zeros(3, int)}, r"images must be \[3, H, W, 1 or 3\]"),
        ({"classes": np.zeros(4)}, "integers"),
        ({"neighbours": np.zeros((3, 2), int)}, r"neighbours must be \[N, K\] with N = 4"),
        ({"neighbours": np.zeros((4, 0), int)}, r"got shape \(4, 0\)"),
        ({"neighbours": np.array([[0], [1], [4], [0]])}, "from 0 to 3, got 4 in row 2"),
        ({"queries": np.array([1, -1])}, "queries must be positions from 0 to 3, got -1 in row 1"),
        ({"queries": np.array([], int)}, r"queries must be \[Q\] and not empty"),
        ({"images": np.full((4, 8, 8, 3), 300)}, "integers from 0 to 255"),
    ],
)
def test_gallery_rejects(change, message):
    arguments = {
        "images": np.zeros((4, 8, 8, 1), np.uint8),
        "classes": np.zeros(4, int),
        "neighbours": np.zeros((4, 2), int),
        "queries": np.array([0]),
    }
    with pytest.raises(ValueError, match=message):
        plots.gallery(**(arguments | change))


# Training


def test_growth_draws_each_contender_beside_the_slopes():
    time, memory = plots.growth(_curves()).axes
    for axes, part, power in ((time, 1, 2), (memory, 2, 1)):
        *drawn, guide = axes.lines
        assert axes.get_xscale() == axes.get_yscale() == "log"
        for line, (name, curve) in zip(drawn, _curves().items(), strict=True):
            assert line.get_label() == name
            np.testing.assert_array_equal(line.get_xdata(), curve[0])
            np.testing.assert_allclose(line.get_ydata(), curve[part] / (1e6 if part == 2 else 1))
        x, y = guide.get_data()
        np.testing.assert_allclose(y[-1] / y[0], (x[-1] / x[0]) ** power)
    looks = {(line.get_color(), line.get_linestyle()) for line in time.lines}
    assert len(looks) == 4


@pytest.mark.parametrize(
    ("curves", "message"),
    [
        ({}, "at least one"),
        ({"a": ([1, 2], [1], [1, 2])}, "curve 'a' must be three"),
        ({"a": ([1], [0], [1])}, "of curve 'a' must be above 0"),
    ],
)
def test_growth_rejects(curves, message):
    with pytest.raises(ValueError, match=message):
        plots.growth(curves)


def test_intervals_draws_means_with_their_halves_in_the_order_given():
    panels = _intervals(3)
    figure = plots.intervals(panels, "MAP@R on test")
    for axes, (title, panel) in zip(figure.axes, panels.items(), strict=True):
        assert axes.get_title() == title
        assert axes.get_xlabel() == "MAP@R on test"
        ((line, _, (bars,)),) = axes.containers
        mean, half = np.array([*panel.values()]).T
        np.testing.assert_allclose(line.get_xdata(), mean)
        np.testing.assert_array_equal(line.get_ydata(), [0, 1, 2])
        ends = np.array(bars.get_segments())[:, :, 0]
        np.testing.assert_allclose(ends, np.stack([mean - half, mean + half], axis=1))
    first, second = figure.axes
    assert first.yaxis_inverted()
    assert second.yaxis_inverted()
    assert [label.get_text() for label in first.get_yticklabels()] == [*panels["all classes"]]


@pytest.mark.parametrize(
    ("panels", "message"),
    [
        ({}, "at least one"),
        ({"a": {}}, "at least one"),
        ({"a": {"x": (1, 0)}, "b": {"y": (1, 0)}}, "panel 'b' differs from the first in x, y"),
        ({"a": {"x": (1, 0), "y": (np.nan, 0)}}, "mean of 'y' in panel 'a' must be finite"),
    ],
)
def test_intervals_rejects(panels, message):
    with pytest.raises(ValueError, match=message):
        plots.intervals(panels, "P@1")


def test_training_curves_smooth_over_the_raw_values():
    records = list(_records(450))
    figure = plots.training_curves(records, margin=1.4)
    training = [record for record in records if "loss" in record]
    loss, distance, active, validation = figure.axes
    drawn = {
        "loss": loss.lines,
        "positive_distance": distance.lines[:2],
        "negative_distance": distance.lines[2:4],
        "active_fraction": active.lines,
    }
    for key, (raw, smooth) in drawn.items():
        values = np.array([record[key] for record in training])
        for line in (raw, smooth):
            np.testing.assert_array_equal(line.get_xdata(), np.arange(1, 451))
        np.testing.assert_array_equal(raw.get_ydata(), values)
        expected = [values[max(k - 4, 0) : k + 5].mean() for k in range(450)]
        np.testing.assert_allclose(smooth.get_ydata(), expected, rtol=1e-9)
        assert raw.get_alpha() < 0.5
    assert [to_hex(line.get_color()) for line in distance.lines[1:4:2]] == [BLUE, VERMILION]
    assert [line.get_linestyle() for line in distance.lines[1:4:2]] == ["-", "--"]
    assert list(distance.lines[4].get_ydata()) == [1.4, 1.4]
    names = [text.get_text() for text in distance.get_legend().get_texts()]
    assert names == ["positive pairs", "negative pairs", "margin 1.4"]
    assert loss.get_yscale() == "log"

    keys = ("precision_at_1", "map_at_r", "r_precision")
    names = [text.get_text() for text in validation.get_legend().get_texts()]
    assert names == ["precision at 1", "MAP@R", "R-precision"]
    for line, key in zip(validation.lines, keys, strict=True):
        np.testing.assert_array_equal(line.get_xdata(), [100, 200, 300, 400])
        expected = [r[f"validation/{key}"] for r in records if f"validation/{key}" in r]
        np.testing.assert_array_equal(line.get_ydata(), expected)
    looks = {(line.get_color(), line.get_linestyle()) for line in validation.lines}
    assert len(looks) == len({look[1] for look in looks}) == 3


def test_training_curves_leave_out_what_is_missing():
    records = [
        {"step": 1, "loss": 0.5, "positive_distance": float("nan")},
        {"step": 2, "loss": 0.0, "positive_distance": 0.25},
    ]
    loss, distance, active, validation = plots.training_curves(records).axes
    assert loss.get_yscale() == "linear"  # A loss of zero has no logarithm.
    np.testing.assert_array_equal(loss.lines[0].get_ydata(), [0.5, 0.0])
    np.testing.assert_array_equal(distance.lines[0].get_xdata(), [2])
    assert "not recorded" not in _annotations(distance)
    for axes in (active, validation):
        assert not axes.lines
        assert set(_annotations(axes)) == {"not recorded"}


@pytest.mark.parametrize(
    ("records", "message"), [([], "at least one"), ([{"step": 1}, {"loss": 1.0}], "row 1 has")]
)
def test_training_curves_reject(records, message):
    with pytest.raises(ValueError, match=message):
        plots.training_curves(records)

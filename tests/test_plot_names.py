"""Figures write names as they are, whatever signs are in them, and take no row without a class."""

import numpy as np
import pytest
from matplotlib.text import Text

from contrastive_jax import ablation_plots, plane_plots, plots

# Signs of formulas, one that is none, and names that legends of matplotlib leave out.
NAMES = ("a$_1$ b", r"$\frac$", "_x^2", r"\$5 \n", "$", "_")
POINTS = np.random.default_rng(0).normal(size=(12, 3))
CLASSES = np.arange(12) % len(NAMES)
LINE = (np.array([0.1, 0.5, 1.0]), np.array([0.2, 0.6, 1.0]))
BY_NAME = dict.fromkeys(NAMES, LINE)
FIGURES = {
    "map": lambda: plots.embedding_map(POINTS, CLASSES, class_names=NAMES),
    "gallery": lambda: plots.gallery(
        np.zeros((12, 4, 4, 1)), CLASSES, CLASSES[:, None], np.arange(6), class_names=NAMES
    ),
    "roc": lambda: plots.roc(BY_NAME),
    "growth": lambda: plots.growth(dict.fromkeys(NAMES, (*LINE, LINE[0]))),
    "intervals": lambda: plots.intervals(
        {title: dict.fromkeys(NAMES, (0.5, 0.1)) for title in NAMES}, NAMES[1]
    ),
    "metric_curves": lambda: ablation_plots.metric_curves(
        {name: {1.0: [0.5, 0.6], 2.0: [0.6, 0.7]} for name in NAMES}, NAMES[1], chosen=1.0
    ),
    "maps": lambda: ablation_plots.maps(
        {1.0: POINTS, 2.0: POINTS}, CLASSES, NAMES[1], class_names=NAMES
    ),
    "descent": lambda: _first_frame(
        plane_plots.descent(np.stack([POINTS[:, :2]] * 2), CLASSES, class_names=NAMES)
    ),
}


def _first_frame(animation):
    animation._draw_was_started = True  # Or it warns that it was never shown.
    return animation._fig


@pytest.mark.parametrize("figure", FIGURES.values(), ids=[*FIGURES])
def test_names_are_written_as_they_are(figure):
    texts = figure().findobj(Text)
    written = [text.get_text() for text in texts if text.get_text() in NAMES]
    assert {*written} == {*NAMES}
    # Nothing that the eye would see is a formula, or has lost a backslash.
    for text in texts:
        if text.get_text() in NAMES:
            assert text._preprocess_math(text.get_text()) == (text.get_text(), False)


@pytest.mark.parametrize(
    "figure",
    [
        lambda quantity: ablation_plots.distance_ridge({1.0: (LINE[0], [0, 1, 1])}, quantity),
        lambda quantity: ablation_plots.active_pairs({1.0: LINE}, quantity),
        lambda quantity: ablation_plots.maps({1.0: POINTS}, CLASSES, quantity),
        lambda quantity: plots.intervals({"a": {"b": (0.5, 0.1)}}, quantity),
    ],
)
@pytest.mark.parametrize("quantity", NAMES[:3])
def test_quantities_are_written_as_they_are(figure, quantity):
    texts = [text for text in figure(quantity).findobj(Text) if quantity in text.get_text()]
    assert texts
    for text in texts:
        assert text._preprocess_math(text.get_text()) == (text.get_text(), False)


def test_powers_on_logarithmic_axes_stay_formulas():
    (axes,) = plots.roc({"a": (np.array([1e-3, 1.0]), np.array([0.5, 1.0]))}).axes
    labels = [label for label in axes.get_xticklabels() if "10" in label.get_text()]
    assert labels
    assert all(label._preprocess_math(label.get_text())[1] for label in labels)


@pytest.mark.parametrize(
    "figure",
    [
        lambda x, c: plots.embedding_map(x, c),
        lambda x, c: plots.gallery(np.zeros((12, 4, 4, 1)), c, CLASSES[:, None], CLASSES),
        lambda x, c: ablation_plots.maps({1.0: x}, c),
        lambda x, c: plane_plots.descent(np.stack([x[:, :2]] * 2), c),
    ],
)
def test_rows_without_a_class_are_refused(figure):
    with pytest.raises(ValueError, match="got -1, a row to ignore, in row 5"):
        figure(POINTS, np.where(np.arange(12) == 5, -1, CLASSES))
    with pytest.raises(ValueError, match=r"classes must not be masked, .* the first in row 5"):
        figure(POINTS, np.ma.masked_array(CLASSES, np.arange(12) == 5))


@pytest.mark.parametrize(
    "figure",
    [
        lambda masked: plots.embedding_map(masked(POINTS), CLASSES),
        lambda masked: plots.distance_histograms(masked(LINE[0]), [0, 1, 1]),
        lambda masked: plots.roc({"a": (masked(LINE[0]), LINE[1])}),
        lambda masked: ablation_plots.distance_ridge({1.0: (masked(LINE[0]), [0, 1, 1])}),
        lambda masked: plane_plots.descent(masked(np.stack([POINTS[:, :2]] * 2)), CLASSES),
    ],
)
def test_masked_numbers_are_refused(figure):
    with pytest.raises(ValueError, match="must not be masked, got 1 masked entries"):
        figure(
            lambda values: np.ma.masked_array(
                values, np.arange(values.size).reshape(values.shape) == 0
            )
        )

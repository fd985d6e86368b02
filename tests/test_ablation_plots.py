import numpy as np
import pytest
from matplotlib.colors import to_rgba

from contrastive_jax import ablation_plots, plots
from contrastive_jax.evaluation.intervals import bootstrap_interval

RNG = np.random.default_rng(0)


def test_metric_curves_show_means_bands_and_seeds():
    values = {1.0: [0.7, 0.8, 0.75], 0.5: [0.6, 0.62, 0.61], 2.0: []}
    figure = ablation_plots.metric_curves({"MAP@R": values}, chosen=1.0)
    (axes,) = figure.axes
    line = next(line for line in axes.lines if line.get_label() == "MAP@R")
    np.testing.assert_allclose(line.get_xdata(), [0.5, 1.0])
    np.testing.assert_allclose(line.get_ydata(), [0.61, 0.75])
    band = axes.collections[0].get_paths()[0].vertices
    for x in (0.5, 1.0):
        _, low, high = bootstrap_interval(values[x])
        at = band[np.isclose(band[:, 0], x), 1]
        assert (at.min(), at.max()) == pytest.approx((low, high))
    dots = np.concatenate([dots.get_offsets() for dots in axes.collections[1:]])
    assert len(dots) == 6
    assert any("chosen on validation: 1" in text.get_text() for text in axes.texts)
    assert axes.get_xlabel() == "margin"


def test_a_single_seed_has_no_band_and_a_rate_a_logarithmic_axis():
    figure = ablation_plots.metric_curves(
        {"MAP@R": {1e-3: [0.5], 1e-1: [0.6]}, "P@1": {1e-3: [0.7], 1e-1: [0.8]}},
        "learning rate",
        logarithmic=True,
    )
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["MAP@R", "P@1"]


def test_a_ridge_has_a_row_for_each_margin_with_its_mark():
    labels = np.repeat([0, 1], 500)
    pairs = {
        m: (np.abs(np.where(labels == 0, 0.2, m) + 0.05 * RNG.standard_normal(1000)), labels)
        for m in (1.5, 0.5, 1.0)
    }
    figure = ablation_plots.distance_ridge(pairs)
    (axes,) = figure.axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["0.5", "1", "1.5"]
    marks = [line for line in axes.lines if line.get_linestyle() == ":"]
    assert [line.get_xdata()[0] for line in marks] == [0.5, 1.0, 1.5]
    # Negative pairs of each row lie at its margin.
    negative = [line for line in axes.lines if line.get_color() == plots.VERMILION]
    for margin, line in zip((0.5, 1.0, 1.5), negative, strict=True):
        assert line.get_xdata()[np.nanargmax(line.get_ydata())] == pytest.approx(margin, abs=0.05)
    assert not any(
        line.get_linestyle() == ":"
        for line in ablation_plots.distance_ridge(pairs, marked=False).axes[0].lines
    )


def test_maps_show_the_same_examples_in_the_same_colours():
    classes = RNG.integers(0, 3, 400)
    embeddings = {m: RNG.standard_normal((400, 8)) for m in (1.0, 0.5)}
    figure = ablation_plots.maps(embeddings, classes, class_names=("a", "b", "c"), most=100)
    first, second = figure.axes
    assert [axes.get_title() for axes in (first, second)] == ["margin 0.5", "margin 1"]
    colors = [axes.collections[0].get_facecolor() for axes in (first, second)]
    assert len(colors[0]) == 100
    np.testing.assert_array_equal(*colors)
    assert {tuple(color[:3]) for color in colors[0]} == {
        to_rgba(color)[:3] for color in plots.CLASS_COLORS[:3]
    }
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b", "c"]


def test_active_pairs_leave_out_what_is_not_known():
    figure = ablation_plots.active_pairs(
        {1.0: ([1, 2, 3], [0.9, np.nan, 0.5]), 0.5: ([1, 2, 3], [0.3, 0.2, 0.1])}
    )
    (axes,) = figure.axes
    assert [line.get_label() for line in axes.lines] == ["0.5", "1"]
    np.testing.assert_allclose(axes.lines[1].get_ydata(), [0.9, 0.5])


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (lambda: ablation_plots.metric_curves({}), "metrics must hold at least one"),
        (lambda: ablation_plots.metric_curves({"a": {1.0: []}}), "metric 'a' has no values"),
        (lambda: ablation_plots.distance_ridge({}), "at least one row"),
        (lambda: ablation_plots.distance_ridge({1.0: ([1.0], [0, 1])}), r"of 1 must be \[N\]"),
        (lambda: ablation_plots.distance_ridge({1.0: ([np.nan], [0])}), "must be finite"),
        (lambda: ablation_plots.maps({}, [0]), "at least one panel"),
        (lambda: ablation_plots.maps({1.0: np.zeros((2, 1))}, [0, 1]), "D at least 2"),
        (lambda: ablation_plots.active_pairs({}), "at least one line"),
        (lambda: ablation_plots.active_pairs({1.0: ([1, 2], [0.1])}), "course of 1 must be two"),
    ],
)
def test_errors(draw, words):
    with pytest.raises(ValueError, match=words):
        draw()

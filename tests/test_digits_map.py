"""The figure of the first page: images and labels stay inside the frame and apart."""

import importlib.util
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

PATH = Path(__file__).parent.parent / "docs" / "digits_map.py"
SPEC = importlib.util.spec_from_file_location("digits_map", PATH)
digits_map = importlib.util.module_from_spec(SPEC)
sys.modules["digits_map"] = digits_map  # as dataclasses ask of a module
SPEC.loader.exec_module(digits_map)
DIGIT, HEIGHT, LABEL, WIDTH = (
    getattr(digits_map, name) for name in ("DIGIT", "HEIGHT", "LABEL", "WIDTH")
)


def _clusters(seed):
    key = np.random.default_rng(seed)
    classes = np.repeat(np.arange(10), 20)
    centres = np.array([[x, y] for x in range(5) for y in range(2)], float)
    return centres[classes] + 0.08 * key.normal(size=(200, 2)), classes


@pytest.mark.parametrize("seed", range(3))
def test_images_fill_the_panel(seed):
    points = digits_map.fit(_clusters(seed)[0])
    assert np.all(points - DIGIT / 2 >= 0)
    assert np.all(points + DIGIT / 2 <= [WIDTH, HEIGHT])
    assert np.max(np.ptp(points, axis=0) / [WIDTH, HEIGHT]) > 0.9


@pytest.mark.parametrize("seed", range(3))
def test_labels_lie_on_no_image_and_no_other_label(seed):
    embeddings, classes = _clusters(seed)
    points = digits_map.fit(embeddings)
    labels = digits_map.label_positions(points, classes)
    assert labels.shape == (10, 2)
    apart = np.abs(labels[:, None] - points).max(-1)
    assert apart.min() > (DIGIT + LABEL) / 2
    between = np.abs(labels[:, None] - labels).max(-1) + 10 * np.eye(10)
    assert between.min() > LABEL
    # Each label is nearest to a point of its own class.
    assert np.array_equal(classes[apart.argmin(1)], np.arange(10))


def test_the_command_writes_both_panels(tmp_path):
    path = tmp_path / "map.png"
    digits_map.main(digits_map.Config(path=path, steps=50))
    height, width = matplotlib.image.imread(path).shape[:2]
    assert width / 150 <= 10
    assert height / 150 <= 5

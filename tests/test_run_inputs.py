"""Pictures and vectors from files as a run takes them, and files of embeddings."""

from functools import partial

import numpy as np
import pytest
from PIL import Image

from contrastive_jax import distances, models
from contrastive_jax.evaluation.calibration import Calibration
from contrastive_jax.train import Run, network
from contrastive_jax.train.run_inputs import read_inputs, save_embeddings


def _run(shape, dtype):
    encoder = network(partial(models.MLP, width=4), shape)
    calibration = Calibration(4, 2, 0.5)
    measure = distances.euclidean
    return Run(encoder, encoder.weights, shape, dtype, (), measure, 0.5, calibration)


@pytest.fixture
def photos(tmp_path):
    for k, name in enumerate(("b.png", "a/c.png")):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), k + 1, np.uint8)).save(path)
    return tmp_path / "photos"


def test_pictures_and_folders_of_them_are_read_and_named(photos):
    run = _run((4, 4, 1), "uint8")
    names, images = read_inputs(run, [photos])
    assert names == ["a/c.png", "b.png"]
    np.testing.assert_array_equal(images[:, 0, 0, 0], [2, 1])
    names, images = read_inputs(run, [photos / "b.png", photos])
    assert names == [f"{photos}/b.png", f"{photos}/a/c.png", f"{photos}/b.png"]
    assert images.shape == (3, 4, 4, 1)
    plain = (photos / "b.png").rename(photos / "b")
    names, images = read_inputs(run, [plain])
    assert (names, images.shape) == ([str(plain)], (1, 4, 4, 1))
    names, images = read_inputs(run, [])
    assert (names, images.shape) == ([], (0, 4, 4, 1))


@pytest.mark.parametrize(
    ("shape", "source", "words"),
    [
        ((4, 4, 1), "none", "none is not a folder of pictures"),
        ((4, 4, 1), "none.png", "there is no picture"),
        ((4, 4, 1), "none.npz", "the run takes images, and .* holds vectors: give pictures"),
        ((3,), "photos", "the run takes vectors of 3 entries: give them in a file"),
        ((3,), "none.npz", "there is no file"),
    ],
)
def test_what_a_run_does_not_take_is_named(photos, shape, source, words):
    run = _run(shape, "uint8" if len(shape) > 1 else "float32")
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        read_inputs(run, [photos.parent / source])


@pytest.mark.parametrize("form", ["npz", "parquet"])
def test_embeddings_that_are_saved_can_be_read_again(tmp_path, form):
    embeddings = np.arange(12, dtype=np.float32).reshape(4, 3)
    path = tmp_path / "new" / f"vectors.{form}"
    save_embeddings(path, ["a", "b", "c", "d"], embeddings)
    assert [one.name for one in path.parent.iterdir()] == [path.name]
    names, vectors = read_inputs(_run((3,), "float32"), [path])
    assert names == ["a", "b", "c", "d"]
    np.testing.assert_array_equal(vectors, embeddings)


def test_files_of_other_endings_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"must end in \.parquet or \.npz, got .*vectors\.csv"):
        save_embeddings(tmp_path / "vectors.csv", ["a"], np.zeros((1, 2)))
    assert not [*tmp_path.iterdir()]

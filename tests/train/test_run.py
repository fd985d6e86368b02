"""A run is loaded as it was trained, says what does not fit it, and compares pairs of images."""

import json
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import contrastive_jax as cj
from contrastive_jax import distances, models
from contrastive_jax.evaluation.calibration import Calibration
from contrastive_jax.train import Run, network
from contrastive_jax.train.run import calibrated
from contrastive_jax.train.run_folder import described, write

SHAPE = (8, 6, 1)
RNG = np.random.default_rng(0)
# A bright row each, so that embeddings lie apart.
IMAGES = RNG.integers(0, 30, (7, *SHAPE), np.uint8)
IMAGES[np.arange(7), np.arange(7)] = 255


def _made(model, shape=SHAPE, dtype="uint8", distance=distances.euclidean):
    encoder = network(model, shape, seed=3)
    names, calibration = ("cat", "dog"), Calibration(4.0, 2.0, 0.5)
    return Run(encoder, encoder.weights, shape, dtype, names, distance, 0.6, calibration)


def _written(folder, model, run=None):
    write(run or _made(model), folder, model, {"data": "pets"})
    return folder


@pytest.fixture(scope="module")
def model():
    return partial(models.MLP, width=4, hidden=(5,), dtype=jnp.bfloat16)


@pytest.fixture(scope="module")
def run(model):
    return _made(model)


@pytest.fixture(scope="module")
def folder(model, run, tmp_path_factory):
    return _written(tmp_path_factory.mktemp("run"), model, run)


def test_what_is_loaded_is_what_was_trained(run, folder):
    loaded = cj.load(folder)
    jax.tree.map(np.testing.assert_array_equal, loaded.weights, run.weights)
    for name in ("image_shape", "image_dtype", "class_names", "distance", "threshold"):
        assert getattr(loaded, name) == getattr(run, name)
    assert loaded.calibration == run.calibration
    assert loaded.folder == folder
    np.testing.assert_array_equal(loaded.embed(IMAGES), run.embed(IMAGES))
    for mine, its in zip(
        run.compare(IMAGES, IMAGES[::-1]), loaded.compare(IMAGES, IMAGES[::-1]), strict=True
    ):
        np.testing.assert_array_equal(mine, its)


def test_what_is_recorded_can_be_read_by_others(folder):
    record = json.loads((folder / "run.json").read_text())
    assert record["encoder"] == {
        "import": "contrastive_jax.models:MLP",
        "arguments": {"width": 4, "hidden": [5], "dtype": "bfloat16"},
    }
    assert record["distance"]["import"] == "contrastive_jax.distances:euclidean"
    assert record["image_shape"] == [8, 6, 1]
    assert "uint8" in record["pixels"]
    assert record["calibration"] == {"slope": 4.0, "intercept": 2.0, "prior": 0.5}
    assert record["versions"]["jax"] == jax.__version__
    assert record["versions"]["flax"] == flax.__version__
    assert record["data"] == "pets"


def test_embeddings_are_padded_and_in_order(run):
    want = run.embed(IMAGES)
    assert (want.shape, want.dtype) == ((7, 4), np.float32)
    for batch_size in (1, 3, 100):
        np.testing.assert_allclose(run.embed(IMAGES, batch_size=batch_size), want, atol=2e-2)


def test_pairs_are_compared(run):
    first, second = IMAGES[:3], IMAGES[3:6]
    got = run.compare(first, second)
    between = np.linalg.norm(run.embed(first) - run.embed(second), axis=1)
    np.testing.assert_allclose(got.distance, between, rtol=1e-5)
    np.testing.assert_allclose(got.probability, 1 / (1 + np.exp(4.0 * between - 2.0)), rtol=1e-5)
    np.testing.assert_array_equal(got.same, between <= 0.6)
    odds = np.exp(2.0 - 4.0 * between) * 0.1 / 0.9
    rare = run.compare(first, second, prior=0.1)
    np.testing.assert_allclose(rare.probability, odds / (1 + odds), rtol=1e-5)
    np.testing.assert_array_equal(rare.same, got.same)
    with pytest.raises(ValueError, match="as many images, got 3 and 2"):
        run.compare(first, second[:2])
    with pytest.raises(ValueError, match=r"second must be \[N, 8, 6, 1\]"):
        run.compare(first, second[0])
    with pytest.raises(ValueError, match=r"prior must be in \(0, 1\)"):
        run.compare(first, second, prior=0)


def test_neighbours_are_the_nearest_others(run):
    points = np.float64(run.embed(IMAGES))
    between = np.linalg.norm(points[:, None] - points, axis=2)
    with_self = run.neighbours(IMAGES, k=2, gallery=IMAGES)
    np.testing.assert_array_equal(with_self.indices[:, 0], np.arange(7))
    np.fill_diagonal(between, np.inf)
    got = run.neighbours(IMAGES, k=2)
    np.testing.assert_array_equal(got.indices, np.argsort(between, axis=1)[:, :2])
    np.testing.assert_allclose(got.distances, np.sort(between, axis=1)[:, :2], rtol=1e-4)
    with pytest.raises(ValueError, match=r"gallery must be \[N, 8, 6, 1\]"):
        run.neighbours(IMAGES, gallery=IMAGES[0])


COLOUR = np.zeros((2, 8, 6, 3), np.uint8)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (IMAGES[0], r"got \[8, 6, 1\]: for a single image give images\[None\]"),
        (np.moveaxis(IMAGES, -1, 1), r"got \[7, 1, 8, 6\]: the channels come last"),
        (COLOUR, r"got \[2, 8, 6, 3\]: the encoder takes grey images of one channel"),
        (IMAGES[..., 0], r"got \[7, 8, 6\]: for grey images .* give images\[..., None\]"),
        (IMAGES[:, :7], r"got \[7, 7, 6, 1\]$"),
        (IMAGES[:0], "no images to embed"),
        (IMAGES / 255, r"must be uint8, .* got float64: .* give numpy.uint8\(numpy.round\(255"),
        (IMAGES.astype(np.int64), r"must be uint8, .* got int64: give images.astype\(numpy.uint8"),
    ],
)
def test_images_that_do_not_fit_are_refused(run, images, words):
    with pytest.raises(ValueError, match=words):
        run.embed(images)


def test_a_path_is_told_from_images(run):
    with pytest.raises(ValueError, match=r"an array of images .* got the path 'photos': python -m"):
        run.embed("photos")
    with pytest.raises(ValueError, match="first must be an array of images"):
        run.compare(Path("a.png"), Path("b.png"))


def test_images_of_other_encoders_that_do_not_fit_are_refused():
    colour = SimpleNamespace(image_shape=(8, 6, 3), image_dtype="float32")
    check = partial(Run._checked, colour, "images")
    with pytest.raises(ValueError, match="the encoder takes images of 3 channels"):
        check(np.zeros((2, 8, 6, 1), np.float32))
    with pytest.raises(
        ValueError, match="must be float32, as the encoder was trained on, got uint8"
    ):
        check(COLOUR)
    assert check(np.float32(COLOUR)).shape == (2, 8, 6, 3)


def _linear(params, images):
    return images.reshape(len(images), -1) @ params


@pytest.mark.parametrize(
    "model",
    [
        models.MLP(SHAPE, 4, hidden=(5,), rngs=nnx.Rngs(0)),
        lambda image_shape, rngs: models.MLP(image_shape, 4, hidden=(5,), rngs=rngs),
        (_linear, np.ones((48, 4), np.float32)),
        partial(models.MLP, hidden=(5,), normalize=nnx.BatchNorm),
    ],
    ids=["instance", "lambda", "functions", "class as an argument"],
)
def test_an_encoder_without_an_import_path_is_given_to_load(model, tmp_path):
    assert described(model) is None
    run = _made(model)
    write(run, tmp_path, model, {})
    with pytest.raises(ValueError, match=r"model .* is not importable, .* model=\.\.\.\)"):
        cj.load(tmp_path)
    loaded = cj.load(tmp_path, model=model)
    np.testing.assert_array_equal(loaded.embed(IMAGES), run.embed(IMAGES))


def test_a_distance_without_an_import_path_is_given_to_load(model, tmp_path):
    def halved(a, b):
        return distances.euclidean(a, b) / 2

    _written(tmp_path, model, _made(model, distance=halved))
    with pytest.raises(ValueError, match=r"distance .* is not importable, .* distance=\.\.\.\)"):
        cj.load(tmp_path)
    assert cj.load(tmp_path, distance=halved).distance is halved


def test_arguments_of_a_partial_come_back(tmp_path):
    distance = partial(distances.minkowski, order=3)
    model = partial(partial(models.MLP, width=4, hidden=(5,)), width=2)
    _written(tmp_path, model, _made(model, distance=distance))
    loaded = cj.load(tmp_path)
    assert loaded.embed(IMAGES).shape == (7, 2)
    assert (loaded.distance.func, loaded.distance.keywords) == (distances.minkowski, {"order": 3})
    assert described(partial(models.MLP, 4)) is None
    assert described(optax.sgd(0.1)) is None


def _changed(folder, tmp_path, **changes):
    shutil.copytree(folder, tmp_path / "run")
    path = tmp_path / "run" / "run.json"
    record = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in record.items() if value != "gone"}))
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"calibration": "gone"}, "run.json is damaged: KeyError 'calibration'"),
        ({"threshold": "near"}, "run.json is damaged: ValueError"),
        ({"calibration": {"slope": 1.0}}, "run.json is damaged: TypeError"),
        ({"image_shape": None}, "run.json is damaged: TypeError"),
        ({"encoder": "gone"}, "run.json is damaged: KeyError 'encoder'"),
        (
            {"encoder": {"import": "contrastive_jax.models:Gone", "arguments": {}}},
            r"contrastive_jax.models:Gone, can not be imported .* give it as model=",
        ),
        (
            {"distance": {"import": "nowhere:far", "arguments": {}}},
            r"nowhere:far, can not be imported .* give it as distance=",
        ),
        (
            {"encoder": {"import": "contrastive_jax.models:ConvNet", "arguments": {}}},
            "is of another encoder",
        ),
    ],
)
def test_damaged_records_are_errors(folder, tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        cj.load(_changed(folder, tmp_path, **changes))


def test_a_record_cut_short_and_damaged_weights_are_errors(folder, tmp_path):
    changed = _changed(folder, tmp_path)
    path = changed / "run.json"
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"run.json is damaged: JSONDecodeError"):
        cj.load(changed)
    path.write_text(whole)
    shutil.rmtree(changed / "encoder")
    with pytest.raises(ValueError, match="is damaged: there is no such folder"):
        cj.load(changed)


def test_runs_that_are_missing_or_not_complete_are_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"run.json does not exist: name the folder of a"):
        cj.load(tmp_path / "nothing")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="it is not complete; go on with it"):
        cj.load(tmp_path)


def test_the_threshold_and_the_calibration_are_those_of_validation_pairs():
    points = np.concatenate([RNG.normal(0, 0.1, (30, 2)), RNG.normal(2, 0.1, (30, 2))])
    classes = np.repeat([0, 1], 30)
    threshold, calibration = calibrated(distances.euclidean, points, classes, pairs=2000)
    assert 0.5 < threshold < 2.5
    assert calibration.prior == 0.5
    between = calibration.intercept / calibration.slope
    assert 0.5 < between < 2.5

"""Data sets: IDX files, digits, and builders of others, without TensorFlow or a network."""

import gzip
import struct
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from contrastive_jax.data import hold_out, load, seen_classes
from contrastive_jax.data.idx import read_idx


def write_idx(path, array):
    array = np.asarray(array, np.uint8)
    header = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    content = header + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture
def raw(tmp_path):
    """IDX files of 60 and 20 images; the first pixel of an image tells which it is."""
    folder = tmp_path / "raw"
    folder.mkdir()
    for prefix, count in (("train", 60), ("t10k", 20)):
        images = np.zeros((count, 9, 8))
        images[:, 0, 0] = np.arange(count)
        write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte", np.arange(count) % 10)
    return folder


@pytest.mark.parametrize("name", ["fashion_mnist", "mnist"])
def test_idx_files(raw, tmp_path, name):
    data = load(name, data_dir=raw, tfds_dir=tmp_path / "tfds", validation_fraction=0.34)
    assert data.train.images.shape == (40, 9, 8, 1)
    assert data.train.images.dtype == np.uint8
    assert data.validation.images.shape == (20, 9, 8, 1)
    assert data.test.images.shape == (20, 9, 8, 1)
    assert len(data.class_names) == 10
    for split in (data.train, data.validation, data.test):
        np.testing.assert_array_equal(split.images[:, 0, 0, 0] % 10, split.classes)
    both = np.concatenate([data.train.images, data.validation.images])[:, 0, 0, 0]
    np.testing.assert_array_equal(np.sort(both), np.arange(60))
    again = load(name, data_dir=raw, tfds_dir=tmp_path / "tfds", validation_fraction=0.34)
    np.testing.assert_array_equal(again.train.images, data.train.images)
    assert "tensorflow" not in sys.modules


def test_other_files_are_not_taken_for_those_prepared_before(raw, tmp_path):
    load("mnist", data_dir=raw, tfds_dir=tmp_path / "tfds")
    write_idx(raw / "t10k-labels-idx1-ubyte", np.zeros(20))
    data = load("mnist", data_dir=raw, tfds_dir=tmp_path / "tfds")
    assert (data.test.classes == 0).all()


def test_a_set_prepared_in_a_format_that_needs_tensorflow_says_so(tmp_path):
    load("digits", tfds_dir=tmp_path)
    (info,) = tmp_path.rglob("dataset_info.json")
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match=r"digits was prepared in .* TensorFlow .*--tfds_dir"):
        load("digits", tfds_dir=tmp_path)


def test_a_missing_file_is_named_with_where_and_how(raw, tmp_path):
    (raw / "t10k-images-idx3-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError) as error:
        load("fashion_mnist", data_dir=raw, tfds_dir=tmp_path)
    for part in ("t10k-images-idx3-ubyte", str(raw), "dataset-fashion-mnist", "--data_dir"):
        assert part in str(error.value)


def test_broken_files_are_refused_by_name(tmp_path):
    path = tmp_path / "x-idx3-ubyte"
    write_idx(path, np.zeros((2, 3, 3)))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(
        ValueError, match=r"x-idx3-ubyte holds 17 values, its header says \[2, 3, 3\]"
    ):
        read_idx(path)
    path.write_bytes(b"\x89PNG" + whole)
    with pytest.raises(ValueError, match=r"not an IDX file .* begins with 89504e47"):
        read_idx(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="begins with nothing"):
        read_idx(path)
    for content in (gzip.compress(whole)[:-9], b"not gzip at all"):
        zipped = tmp_path / "y.gz"
        zipped.write_bytes(content)
        with pytest.raises(ValueError, match=r"y\.gz is not a whole gzip file"):
            read_idx(zipped)


def test_images_and_labels_must_agree(raw, tmp_path):
    write_idx(raw / "train-labels-idx1-ubyte", np.zeros(59))
    with pytest.raises(ValueError, match=r"\(60, 9, 8\) and \(59,\)"):
        load("mnist", data_dir=raw, tfds_dir=tmp_path / "tfds")
    write_idx(raw / "train-labels-idx1-ubyte", np.full(60, 10))
    with pytest.raises(ValueError, match="has label 10, expected at most 9"):
        load("mnist", data_dir=raw, tfds_dir=tmp_path / "tfds")


def test_digits_are_those_of_scikit_learn(tmp_path):
    from sklearn.datasets import load_digits

    data = load("digits", tfds_dir=tmp_path)
    assert [len(s.classes) for s in (data.train, data.validation, data.test)] == [1211, 136, 450]
    ours = {
        (image.tobytes(), int(c))
        for split in (data.train, data.validation, data.test)
        for image, c in zip(split.images, split.classes, strict=True)
    }
    digits = load_digits()
    expected = np.round(digits.images / 16 * 255).astype(np.uint8)
    theirs = {(i.tobytes(), int(c)) for i, c in zip(expected, digits.target, strict=True)}
    assert ours == theirs
    for split in (data.train, data.validation, data.test):
        assert np.bincount(split.classes).min() >= 0.09 * len(split.classes)


def test_class_splits_share_no_class(tmp_path):
    data = load("digits", tfds_dir=tmp_path, split_by="classes")
    assert set(data.train.classes) == set(data.validation.classes) == set(range(5))
    assert set(data.test.classes) == set(range(5, 10))
    np.testing.assert_array_equal(seen_classes(5), [True, True, True, False, False])


class TinyShapes(tfds.core.GeneratorBasedBuilder):
    """Colour images of several sizes, with features under other names and no test split."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "picture": tfds.features.Image(shape=(None, None, 3)),
                    "kind": tfds.features.ClassLabel(names=["round", "square"]),
                    "name": tfds.features.Text(),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(40)}

    def _generate_examples(self, count):
        for k in range(count):
            image = Image.new("RGB", (8 + k % 3, 10), (5 * k, 100, 0))
            yield k, {"picture": image, "kind": k % 2, "name": str(k)}


class TinyText(tfds.core.GeneratorBasedBuilder):
    """A set without images."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(num_classes=2)}
            ),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        yield 0, {"text": "a", "label": 0}


def test_any_builder_with_images_and_labels(tmp_path):
    with pytest.raises(ValueError, match=r"differ in size, from .* --image_size"):
        load("tiny_shapes", tfds_dir=tmp_path)
    data = load("tiny_shapes", tfds_dir=tmp_path, image_size=6)
    assert data.class_names == ("round", "square")
    assert [len(s.classes) for s in (data.train, data.validation, data.test)] == [32, 4, 4]
    reds = []
    for split in (data.train, data.validation, data.test):
        assert split.images.shape[1:] == (6, 6, 3)
        assert (split.images[..., 1] == 100).all()
        np.testing.assert_array_equal(split.images[:, 0, 0, 0] // 5 % 2, split.classes)
        reds += split.images[:, 0, 0, 0].tolist()
    assert sorted(reds) == list(range(0, 200, 5))


def test_sets_without_images_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"0 features of type Image.* features are text, label"):
        load("tiny_text", tfds_dir=tmp_path)


def test_unknown_names_list_the_known(tmp_path):
    with pytest.raises(
        ValueError, match=r"unknown data set 'fashon_mnist'; close to it: fashion_m"
    ):
        load("fashon_mnist", tfds_dir=tmp_path)
    with pytest.raises(ValueError, match="own: digits, fashion_mnist, mnist"):
        load("nothing_like_it", tfds_dir=tmp_path)


def test_a_set_that_needs_tensorflow_says_so(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    if "tensorflow" in sys.modules:
        pytest.skip("TensorFlow is here")
    with pytest.raises(ImportError, match=r"pip install 'contrastive_jax\[tensorflow\]'"):
        load("coco", tfds_dir=tmp_path)


def test_hold_out():
    classes = np.repeat([0, 1, 2, 3], [1, 3, 4, 40])
    remaining, held = hold_out(classes, 0.1, seed=0)
    np.testing.assert_array_equal(np.sort(np.concatenate([remaining, held])), np.arange(48))
    np.testing.assert_array_equal(np.bincount(classes[held], minlength=4), [0, 0, 2, 4])
    assert (hold_out(classes, 0.1, seed=1)[1] != held).any()
    np.testing.assert_array_equal(hold_out(classes, 0.1, seed=0)[1], held)
    for fraction in (0, 1, -0.5):
        with pytest.raises(ValueError, match=r"must be in \(0, 1\)"):
            hold_out(classes, fraction, seed=0)

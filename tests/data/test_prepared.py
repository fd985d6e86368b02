"""Sets of tensorflow-datasets: labels of every form, first runs side by side, damaged files."""

import io
import shutil
import threading
import warnings
from typing import ClassVar

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from contrastive_jax.data import load
from contrastive_jax.data.digits import DigitsSklearn


def _png(level, alpha=255):
    buffer = io.BytesIO()
    Image.new("LA", (3, 3), (level, alpha)).save(buffer, "png")
    return buffer.getvalue()


class TinyForms(tfds.core.GeneratorBasedBuilder):
    """Images whose level tells the label, in a form that a configuration names."""

    VERSION = tfds.core.Version("1.0.0")
    FORMS: ClassVar = {
        "integers": np.int64,
        "bytes": np.uint8,
        "booleans": np.bool_,
        "strings": tfds.features.Text(),
        "hidden": tfds.features.ClassLabel(names=["a", "b", "c"]),
        "all_hidden": tfds.features.ClassLabel(names=["a", "b", "c"]),
        "unlabelled": tfds.features.ClassLabel(names=["a", "b", "c"]),
        "transparent": tfds.features.ClassLabel(names=["a", "b", "c"]),
        "floats": np.float32,
    }
    BUILDER_CONFIGS: ClassVar = [tfds.core.BuilderConfig(name=name) for name in FORMS]

    def _info(self):
        image = tfds.features.Image(shape=(3, 3, 1))
        label = self.FORMS[self.builder_config.name]
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict({"image": image, "label": label, "id": np.int64}),
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in ("train", "validation", "test")}

    @staticmethod
    def label(form, k, split="train"):
        return {
            "integers": (-100, -1, 100)[k % 3],
            "bytes": 7 * (k % 3),
            "booleans": k % 2 == 1,
            "strings": ("zebra", "ärmel", "")[k % 3],
            "hidden": -1 if k % 2 else k % 3,
            "all_hidden": -1 if split == "test" else k % 3,
            "unlabelled": -1,
            "floats": 0.5,
        }.get(form, k % 3)

    def _generate_examples(self, split):
        form = self.builder_config.name
        for k in range(30):
            alpha = 0 if form == "transparent" and k == 0 else 255
            yield k, {"image": _png(k, alpha), "label": self.label(form, k, split), "id": k}


@pytest.mark.parametrize(
    ("form", "names", "left_out"),
    [
        ("integers", ("-100", "100"), "10 of 30 in train, 10 of 30 in validation, 10 of 30 in t"),
        ("bytes", ("0", "7", "14"), None),
        ("booleans", ("False", "True"), None),
        ("strings", ("zebra", "ärmel"), "10 of 30 in train, 10 of 30 in validation, 10 of 30 in t"),
        ("hidden", ("a", "b", "c"), "15 of 30 in train, 15 of 30 in validation, 15 of 30 in test"),
        ("all_hidden", ("a", "b", "c"), "30 of 30 in test, which counts as missing"),
    ],
)
def test_labels_of_every_form_are_classes(tmp_path, form, names, left_out):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = load(f"tiny_forms/{form}", tfds_dir=tmp_path)
    said = [str(one.message) for one in caught if "without a label" in str(one.message)]
    assert len(said) == (left_out is not None)
    assert left_out is None or left_out in said[0]
    assert data.class_names == names
    for split in (data.train, data.validation, data.test):
        assert split.classes.dtype == np.int32
        for level, number in zip(split.images[:, 0, 0, 0].tolist(), split.classes, strict=True):
            assert str(TinyForms.label(form, level)) in (names[number], str(number))
    if form == "all_hidden":
        # Without a test split, validation is the test set, and a part of train is validation.
        assert [len(part.classes) for part in data[2:]] == [24, 6, 30]
    else:
        assert len({len(part.classes) for part in data[2:]}) == 1


def test_labels_that_are_no_classes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="0 features of type ClassLabel"):
        load("tiny_forms/floats", tfds_dir=tmp_path)
    with pytest.raises(ValueError, match=r"no training example with a label in .*: all 30 labels"):
        load("tiny_forms/unlabelled", tfds_dir=tmp_path)


def test_transparent_pixels_are_told_once(tmp_path):
    with pytest.warns(UserWarning, match="3 images of .* transparent .* laid on white") as caught:
        data = load("tiny_forms/transparent", tfds_dir=tmp_path)
    assert len([one for one in caught if "transparent" in str(one.message)]) == 1
    assert sum((split.images == 255).all((1, 2, 3)).sum() for split in data[2:]) == 3


def test_first_runs_side_by_side_read_what_one_wrote(tmp_path, monkeypatch):
    """Both prepare the data set at the same time: one of them moves it to its place first."""
    both = threading.Barrier(2, timeout=60)
    generate = DigitsSklearn._generate_examples

    def together(self, images, labels):
        both.wait()
        yield from generate(self, images, labels)
        both.wait()

    monkeypatch.setattr(DigitsSklearn, "_generate_examples", together)
    results = []

    def run():
        try:
            results.append(load("digits", tfds_dir=tmp_path))
        except BaseException as error:
            results.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first, second = results
    for split in ("train", "validation", "test"):
        for a, b in zip(getattr(first, split), getattr(second, split), strict=True):
            np.testing.assert_array_equal(a, b)
    assert [path.name for path in (tmp_path / "digits_sklearn").iterdir()] == ["1.0.0"]


def test_a_set_prepared_after_its_builder_was_made_is_read(tmp_path, monkeypatch):
    """Another run finishes between this one's look at the folder and its own preparing."""
    prepare = DigitsSklearn.download_and_prepare

    def late(self):
        monkeypatch.setattr(DigitsSklearn, "download_and_prepare", prepare)
        load("digits", tfds_dir=tmp_path)
        prepare(self)

    monkeypatch.setattr(DigitsSklearn, "download_and_prepare", late)
    assert len(load("digits", tfds_dir=tmp_path).train.classes) == 1211


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    load("digits", tfds_dir=folder)
    return folder


def _flipped(content):
    return content[:200] + bytes([content[200] ^ 255]) + content[201:]


@pytest.mark.parametrize("file", ["*train.array_record*", "*test.array_record*", "dataset_info*"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        lambda path: path.write_bytes(_flipped(path.read_bytes())),
        lambda path: path.unlink(),
    ],
    ids=["emptied", "halved", "flipped", "deleted"],
)
def test_damaged_files_are_one_line_with_folder_and_remedy(digits, tmp_path, file, damage):
    shutil.copytree(digits, tmp_path / "copy")
    (path,) = (tmp_path / "copy" / "digits_sklearn" / "1.0.0").glob(file)
    damage(path)
    with pytest.raises(ValueError, match=r"delete .* anew") as error:
        load("digits", tfds_dir=tmp_path / "copy")
    assert str(tmp_path / "copy") in str(error.value)
    assert "\n" not in str(error.value)


def test_an_empty_folder_is_named(tmp_path):
    folder = tmp_path / "digits_sklearn" / "1.0.0"
    folder.mkdir(parents=True)
    with pytest.raises(ValueError, match=r"no training examples in .*; its splits are") as error:
        load("digits", tfds_dir=tmp_path)
    assert str(folder) in str(error.value)
    assert "delete that folder" in str(error.value)


def test_a_folder_that_can_not_be_written_is_named(tmp_path):
    file = tmp_path / "file"
    file.write_text("no folder")
    with pytest.raises(ValueError, match=r"digits could not .*NotADirectory.* --tfds_dir") as error:
        load("digits", tfds_dir=file)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [0, -1])
def test_a_side_without_pixels_is_refused(digits, size):
    with pytest.raises(ValueError, match=f"--image_size must be at least 1 pixel, got {size}"):
        load("digits", tfds_dir=digits, image_size=size)


def test_a_side_beyond_all_memory_is_refused(digits):
    with pytest.raises(ValueError, match=r"1,797 images of 10000000 x .* GiB .* --image_size"):
        load("digits", tfds_dir=digits, image_size=10**7)

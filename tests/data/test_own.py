"""Data of one's own: the same arrays from every form, and splits that keep their promises."""

import json
import warnings
import zlib
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from own_data import (
    assert_same,
    encoded,
    pictures,
    write_arrow,
    write_csv,
    write_folder,
    write_parquet,
    write_saved,
)
from PIL import Image
from pyarrow import parquet

from contrastive_jax.data import as_text, from_arrays, load, load_with_report
from contrastive_jax.data._own.contents import move_rows
from contrastive_jax.data._own.splits import hold_out_parts

WRITERS = {
    "folder": lambda where, images: write_folder(where / "photos", images),
    "csv": lambda where, images: write_csv(where / "table.csv", images),
    "parquet": lambda where, images: write_parquet(where / "table.parquet", images),
    "saved": lambda where, images: write_saved(where / "saved", images),
}


@pytest.fixture
def images():
    return pictures()


@pytest.mark.parametrize("form", ["csv", "parquet", "saved"])
def test_every_form_gives_the_same_arrays(form, tmp_path, images):
    folder = load(write_folder(tmp_path / "photos", images))
    (tmp_path / form).mkdir()
    assert_same(load(WRITERS[form](tmp_path / form, images)), folder)
    assert folder.class_names == ("cat", "dog", "emu")
    assert folder.train.images.shape[1:] == (6, 6, 3)
    given = sorted(image.tobytes() for members in images.values() for image in members)
    parts = [image.tobytes() for part in folder[2:] for image in part.images]
    assert sorted(parts) == given
    for part in folder[2:]:
        for image, number, source in zip(part.images, part.classes, part.sources, strict=True):
            name, file = source.split("/")
            np.testing.assert_array_equal(image, images[name][int(file.removesuffix(".png"))])
            assert folder.class_names[number] == name


def test_arrays_give_the_same_too(tmp_path, images):
    arrays = np.array([image for members in images.values() for image in members])
    data = from_arrays(arrays, np.repeat([*images], 8))
    assert_same(data, load(write_folder(tmp_path / "photos", images)))
    assert from_arrays(arrays[..., 0], np.repeat([*images], 8)).test.images.shape[1:] == (6, 6, 1)


class OfHuggingFace:
    """An object with the methods of a `Dataset` that are used."""

    info = SimpleNamespace(dataset_name="birds")

    def __init__(self, table, **features):
        self.table, self.features = table, features

    def __len__(self):
        return self.table.num_rows

    def with_format(self, form):
        assert form == "arrow"
        return self

    def __getitem__(self, rows):
        assert rows == slice(None)
        return self.table


def test_objects_of_hugging_face_are_read_by_feature_type(tmp_path, images):
    Image_ = type("Image", (), {})
    ClassLabel = type("ClassLabel", (), {"names": [*images]})
    rows = [(encoded(i), k) for k, m in enumerate(images.values()) for i in m]
    table = pa.table(
        {
            "photo": [{"bytes": content, "path": None} for content, _ in rows],
            "species": [number for _, number in rows],
            "age": list(range(len(rows))),
        }
    )
    whole = OfHuggingFace(table, photo=Image_(), species=ClassLabel(), age=type("Value", (), {})())
    data, report = load_with_report(whole)
    assert_same(data, load(write_folder(tmp_path / "photos", images)))
    assert data.name == "birds"
    assert report.form == "an object of Hugging Face datasets of images"
    assert sorted(np.concatenate([part.attributes["age"] for part in data[2:]])) == [*range(24)]
    splits = {
        split: OfHuggingFace(table.take(rows), **whole.features)
        for split, rows in (
            ("train", [0, 1, 2, 8, 9, 10]),
            ("validation", [3, 4, 11, 12]),
            ("test", [5, 6, 13, 14]),
        )
    }
    given = load(splits)
    assert [len(part.classes) for part in given[2:]] == [6, 4, 4]
    assert given.class_names == ("cat", "dog")


def test_saved_splits_are_read(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    labels = np.tile([0, 1], 6)
    features = {"vector": {"_type": "List"}, "label": {"names": ["a", "b"], "_type": "ClassLabel"}}
    for split in ("train", "validation", "test"):
        table = pa.table({"vector": list(vectors), "label": labels})
        write_arrow(tmp_path / "saved" / split, table, features)
    (tmp_path / "saved" / "dataset_dict.json").write_text(
        '{"splits": ["train", "validation", "test"]}'
    )
    with pytest.warns(UserWarning, match="contents that are identical in two splits: 12 "):
        data = load(tmp_path / "saved")
    assert data.class_names == ("a", "b")
    for part in data[2:]:
        assert part.images.dtype == np.float32
        for vector, number in zip(part.images, part.classes, strict=True):
            assert labels[(vectors == vector).all(axis=1)] == number


def test_splits_of_a_folder_are_taken_as_they_are(tmp_path):
    for split, seed in (("train", 0), ("val", 1), ("test", 2)):
        write_folder(tmp_path / "photos" / split, pictures(3, seed=seed))
    data, report = load_with_report(tmp_path / "photos")
    assert [len(part.classes) for part in data[2:]] == [9, 9, 9]
    assert {source.split("/")[0] for source in data.validation.sources} == {"val"}
    assert report.split_rule == "as given (train, validation, test)"
    assert report.form == "a folder of class folders of images by split"


def test_a_missing_validation_split_is_held_out_of_train(tmp_path):
    write_folder(tmp_path / "photos" / "train", pictures(8))
    write_folder(tmp_path / "photos" / "test", pictures(2, seed=1))
    data, report = load_with_report(tmp_path / "photos")
    assert [len(part.classes) for part in data[2:]] == [18, 6, 6]
    assert report.split_rule.endswith("10% of train held out by examples as validation")
    unseen = pictures(2, classes=("fox", "gnu"), seed=1)
    write_folder(tmp_path / "other" / "train", pictures(3, classes="abcdefgh"))
    write_folder(tmp_path / "other" / "test", unseen)
    data, report = load_with_report(tmp_path / "other")
    assert not {*data.train.classes} & {*data.validation.classes}
    assert "by classes as validation" in report.split_rule


def test_hidden_files_are_passed_over_and_links_followed(tmp_path, images):
    folder = write_folder(tmp_path / "photos", images)
    plain = load(folder)
    (folder / ".DS_Store").write_bytes(b"\0")
    (folder / ".hidden").mkdir()
    (folder / "cat" / "._0.png").write_bytes(b"\0")
    moved = (folder / "emu").rename(tmp_path / "elsewhere")
    (folder / "emu").symlink_to(moved)
    _, report = load_with_report(folder)
    assert_same(load(folder), plain)
    assert [one.text for one in report.findings] == ["classes of test that are trained on"]


def test_a_csv_may_have_a_mark_semicolons_quotes_and_absolute_paths(tmp_path, images):
    plain = load(write_csv(tmp_path / "table.csv", images))
    text = (tmp_path / "table.csv").read_text()
    absolute = text.replace("cat/", f"{tmp_path}/cat/")
    quoted = text.replace("path,class", "note,path,class").replace("\n", '\n"a, ""b""",')
    for content, encoding in (
        (text, "utf-8-sig"),
        (text, "utf-16"),
        (text.replace(",", ";"), "utf-8"),
        (text.replace(",", "\t"), "utf-8"),
        (text.replace("\n", "\r\n"), "utf-8"),
        (text.replace("path,class", " Path , Class "), "utf-8"),
        (absolute, "utf-8"),
        (quoted.removesuffix('"a, ""b""",'), "utf-8"),
    ):
        path = tmp_path / "other.csv"
        path.write_bytes(content.encode(encoding))
        data = load(path)
        assert_same(data, plain)
        assert {"note": "note"}.keys() >= data.train.attributes.keys()


def test_columns_of_a_table_are_kept(tmp_path):
    generator = np.random.default_rng(0)
    parquet.write_table(
        pa.table(
            {
                "vector": list(generator.normal(size=(8, 3))),
                "class": [True, False] * 4,
                "split": ["train"] * 4 + ["val"] * 2 + ["test"] * 2,
                "group": ["b", "a"] * 4,
                "role": [None] * 4 + ["query", "gallery"] * 2,
                "age": [1, None, 3, 4, 5, 6, 7, 8],
                "tags": [["x"]] * 8,
                "boxes": [[k] * (k % 3) for k in range(8)],
                "box": [[0, k] for k in range(8)],
                "file": [{"of": k} for k in range(8)],
            }
        ),
        tmp_path / "t.parquet",
    )
    with pytest.raises(ValueError, match="no class has both a query and an example of the gallery"):
        load_with_report(tmp_path / "t.parquet")
    table = parquet.read_table(tmp_path / "t.parquet")
    labels = pa.array([True, False] * 2 + [True] * 2 + [False] * 2)
    parquet.write_table(table.set_column(1, "class", labels), tmp_path / "t.parquet")
    data, report = load_with_report(tmp_path / "t.parquet")
    assert data.class_names == ("False", "True")
    assert data.train.queries is None
    assert sorted(data.test.queries) == [False, True]
    np.testing.assert_array_equal(np.sort(data.train.groups), [0, 0, 1, 1])
    assert {*data.train.attributes} == {"age", "group", "tags", "box", "boxes"}
    ages = dict(zip(data.train.sources, data.train.attributes["age"], strict=True))
    assert ages["row 2"] == 3
    boxes = dict(zip(data.train.sources, data.train.attributes["box"].tolist(), strict=True))
    assert boxes["row 2"] == [0, 2]
    assert np.isnan(ages["row 1"])
    for source, text in zip(data.train.sources, data.train.attributes["boxes"], strict=True):
        number = int(source.removeprefix("row "))
        assert json.loads(text) == [number] * (number % 3)
    texts = [one.text for one in report.findings]
    assert "columns of neither numbers nor strings nor lists of them, which are left out" in texts
    assert "groups in two splits" in texts


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([10, 9, 2], ("2", "9", "10")),
        (["10", "9", "b"], ("10", "9", "b")),
        ([False, True, False], ("False", "True")),
        ([2.0, 1.0, 1.0], ("1", "2")),
    ],
)
def test_labels_are_names(labels, names):
    vectors = np.random.default_rng(0).normal(size=(24, 2))
    data = from_arrays(vectors, np.repeat(labels, 8))
    assert data.class_names == names
    text = [str(int(one)) if isinstance(one, float) else str(one) for one in labels]
    for part in data[2:]:
        for vector, number in zip(part.images, part.classes, strict=True):
            row = int(np.abs(vectors - vector).sum(axis=1).argmin())
            assert names[number] == text[row // 8]


def test_hidden_labels_are_left_out():
    vectors = np.random.default_rng(0).normal(size=(30, 2))
    with pytest.warns(
        UserWarning, match=r"examples without a class, which are left out: 6 \(row 24, row 25"
    ):
        data = from_arrays(vectors, np.repeat([0, 1, -1], [12, 12, 6]))
    masked = np.ma.masked_equal(np.repeat([0, 1, 5], [12, 12, 6]), 5)
    with pytest.warns(UserWarning, match="without a class"):
        assert_same(from_arrays(vectors, masked), data)
    assert data.class_names == ("0", "1")
    assert sum(len(part.classes) for part in data[2:]) == 24


def _vectors(classes, **options):
    classes = np.asarray(classes)
    vectors = np.random.default_rng(0).normal(size=(len(classes), 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return from_arrays(vectors, classes, attributes={"row": np.arange(len(classes))}, **options)


def _rows(data):
    rows = [part.attributes["row"] for part in data[2:]]
    assert sorted(np.concatenate(rows)) == [*range(sum(map(len, rows)))]
    return rows


def test_many_small_classes_are_split_by_class_and_others_by_example():
    data = _vectors(np.repeat(np.arange(40), 3))
    _rows(data)
    seen = [{*part.classes.tolist()} for part in data[2:]]
    assert [len(one) for one in seen] == [28, 4, 8]
    assert not seen[0] & seen[1] and not seen[1] & seen[2] and not seen[0] & seen[2]  # noqa: PT018
    data = _vectors(np.repeat(np.arange(40), 20))
    assert [np.bincount(part.classes).tolist() for part in data[2:]] == [
        [14] * 40,
        [2] * 40,
        [4] * 40,
    ]
    other = _vectors(np.repeat(np.arange(40), 20), seed=1)
    assert [*_rows(data)[0]] != [*_rows(other)[0]]
    data = _vectors(np.repeat(np.arange(40), 20), split_by="classes")
    assert [len({*part.classes.tolist()}) for part in data[2:]] == [28, 4, 8]


def test_classes_too_small_for_both_splits_give_to_one_of_them():
    data = _vectors(np.repeat(np.arange(6), 4))
    assert [np.bincount(part.classes, minlength=6).tolist() for part in data[2:]] == [
        [2] * 6,
        [0, 2] * 3,
        [2, 0] * 3,
    ]


@pytest.mark.parametrize("split_by", ["classes", "examples"])
@pytest.mark.parametrize("within", [True, False])
def test_groups_are_never_divided(split_by, within):
    classes = np.repeat(np.arange(30), 12)
    # Of one class each, or of three classes that have nothing to do with the others.
    groups = np.arange(360) // 3 if within else np.arange(360) // 36 * 12 + np.arange(360) % 12
    data = _vectors(classes, groups=groups, split_by=split_by)
    rows = _rows(data)
    parts = [{*groups[one].tolist()} for one in rows]
    assert all(parts)
    assert sum(map(len, parts)) == len(np.unique(groups))
    if split_by == "classes":
        assert len(np.unique(classes)) == sum(len({*classes[one].tolist()}) for one in rows)


@pytest.mark.parametrize("split_by", ["classes", "examples"])
def test_a_group_of_more_than_half_is_trained_on(split_by):
    # In every class one group of 12 and six of one each; 16 of 24 classes share a group.
    classes = np.repeat(np.arange(24), 18)
    subgroups = np.tile([0] * 12 + [*range(1, 7)], 24)
    groups = np.where((subgroups == 1) & (classes < 16), 0, 1 + classes * 7 + subgroups)
    if split_by == "examples":
        groups = 1 + classes * 7 + subgroups
    for seed in range(5):
        data = _vectors(classes, groups=groups, split_by=split_by, seed=seed)
        rows = _rows(data)
        assert len(rows[0]) > len(classes) / 2
        assert sum(len({*groups[one].tolist()}) for one in rows) == len(np.unique(groups))
        if split_by == "classes":
            assert {*range(16)} <= {*data.train.classes.tolist()}


def test_parts_are_held_out_until_a_share_is_reached():
    weights = np.array([0, 30, 4, 1, 5, 2, 3, 2, 1, 1])
    split, enough = hold_out_parts(weights, (0.2, 0.1), 0)
    assert enough
    assert split[0] == split[1] == 0  # without weight, and more than half of everything
    for k, wanted in ((1, 10), (2, 5)):
        taken = weights[split == k]
        assert wanted <= taken.sum() < wanted + taken.max()
    split, enough = hold_out_parts(weights, (0.3, 0.3), 0)
    assert not enough
    assert weights[split > 0].sum() == 19


def test_the_same_seed_splits_alike_whatever_the_order(tmp_path):
    classes = np.repeat(["a", "b", "c"], 10)
    vectors = np.random.default_rng(0).normal(size=(30, 4))
    order = np.random.default_rng(1).permutation(30)
    assert_same(from_arrays(vectors, classes), from_arrays(vectors[order], classes[order]))


def test_rows_are_moved_in_place():
    rng = np.random.default_rng(0)
    for number in (1, 2, 40):
        array, order = rng.normal(size=(number, 3)), rng.permutation(number)
        expected, before = array[order], array.__array_interface__["data"]
        move_rows(array, order)
        np.testing.assert_array_equal(array, expected)
        assert array.__array_interface__["data"] == before


def test_splits_share_one_array_that_is_not_the_callers():
    images = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 1), np.uint8)
    before = images.copy()
    data = from_arrays(images, np.repeat(["a", "b"], 20))
    bases = {id(part.images.base) for part in (data.train, data.validation, data.test)}
    assert len(bases) == 1
    assert not np.shares_memory(data.train.images, images)
    np.testing.assert_array_equal(images, before)


def test_names_of_data_sets_come_before_folders_and_paths_are_told_by_their_form(
    tmp_path, monkeypatch, images
):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "digits", images)
    write_folder(tmp_path / "photos", images)
    assert len(load("digits", tfds_dir=tmp_path / "tfds").class_names) == 10
    assert load("./digits").class_names == load("photos").class_names == ("cat", "dog", "emu")
    for missing in ("./absent", "~/absent", "absent.csv", tmp_path / "absent"):
        with pytest.raises(FileNotFoundError, match=r"there is no file or folder .*absent"):
            load(missing)
    with pytest.raises(ValueError, match="unknown data set 'absent'"):
        load("absent")


def test_images_of_every_mode_become_rgb_or_grey(tmp_path):
    grey = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    modes = {
        "L": grey,
        "1": grey.convert("1"),
        "LA": grey.convert("LA"),
        "I;16": Image.fromarray(np.asarray(grey).astype(np.uint16) * 257),
    }
    colours = {
        "P": grey.convert("RGB").convert("P"),
        "CMYK": grey.convert("RGB").convert("CMYK"),
        "RGBA": Image.merge("RGBA", [grey] * 4),
    }
    for name, members, channels in (("grey", modes, 1), ("all", modes | colours, 3)):
        for k in range(6):
            for label in ("a", "b"):
                folder = tmp_path / name / label
                folder.mkdir(parents=True, exist_ok=True)
                for mode, image in members.items():
                    kind = "tiff" if mode == "CMYK" else "png"
                    shifted = image.rotate(90 * (k % 4)) if k else image
                    shifted.save(folder / f"{mode.replace(';', '')}{k}.{kind}")
        data, report = load_with_report(tmp_path / name, on_bad_input="error")
        assert data.train.images.shape[1:] == (8, 8, channels)
        texts = [one.text for one in report.findings]
        assert "images of 16 bits, which are scaled to 8" in texts
        assert ("grey images, which become RGB as others have colours" in texts) == (channels == 3)
        assert ("images with transparent pixels, which are laid on white" in texts) == (
            channels == 3
        )


def test_images_of_two_sizes_are_scaled_and_said(tmp_path):
    write_folder(tmp_path / "photos", pictures(8, side=6))
    for k, image in enumerate(pictures(4, side=20, classes=["cat"])["cat"]):
        (tmp_path / "photos" / "cat" / f"large{k}.png").write_bytes(encoded(image))
    data, report = load_with_report(tmp_path / "photos")
    assert data.train.images.shape[1:] == (6, 6, 3)
    assert "scaled from 6 x 6 to 20 x 20" in report.contents
    assert "sizes of images, which are all scaled to 6 x 6 (--image_size takes" in as_text(report)
    data, report = load_with_report(tmp_path / "photos", image_size=9)
    assert data.train.images.shape[1:] == (9, 9, 3)
    assert "sizes of images, which are all scaled to 9 x 9: 2 (6 x 6, 20 x 20)" in as_text(report)


def test_large_images_are_kept_and_warned_of(tmp_path):
    for k in range(24):
        folder = tmp_path / "photos" / "ab"[k % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (160, 130), k).save(folder / f"{k}.png")
    with pytest.warns(UserWarning, match=r"images of more than 128 pixels a side, .*: 24 \(a/0"):
        assert load(tmp_path / "photos").train.images.shape[1:] == (130, 160, 1)
    assert load(tmp_path / "photos", image_size=9).train.images.shape[1:] == (9, 9, 1)


def test_photos_are_turned_as_the_camera_says(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (24, 4, 6, 3), np.uint8)
    for k, image in enumerate(pixels):
        folder = tmp_path / "photos" / "ab"[k % 2]
        folder.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(image).save(folder / f"{k}.png", exif=exif)
    data, report = load_with_report(tmp_path / "photos")
    assert data.train.images.shape[1:] == (6, 4, 3)
    assert "images that are turned as their camera says (EXIF orientation): 24 (" in as_text(report)
    turned = {np.rot90(image, -1).tobytes() for image in pixels}
    assert {image.tobytes() for part in data[2:] for image in part.images} == turned


def _splits_of_saved(where, names):
    vectors = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    for split, own in names.items():
        features = {"vector": {"_type": "List"}, "label": {"names": own, "_type": "ClassLabel"}}
        table = pa.table({"vector": list(vectors + len(split)), "label": np.tile([0, 1], 6)})
        write_arrow(where / split, table, features)
    (where / "dataset_dict.json").write_text(json.dumps({"splits": [*names]}))
    return where


def test_splits_that_name_their_classes_otherwise_are_refused(tmp_path):
    names = {"train": ["cat", "dog"], "test": ["dog", "cat"]}
    with pytest.raises(ValueError, match="name the classes of column label differently, train by"):
        load(_splits_of_saved(tmp_path / "saved", names))


def test_a_class_label_is_the_class_where_another_column_has_that_name(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 60)
    table = pa.table(
        {
            "vector": list(rng.normal(size=(60, 3)).astype(np.float32)),
            "label": labels,
            "class": np.arange(60),
        }
    )
    features = {
        "vector": {"_type": "List"},
        "label": {"names": ["a", "b"], "_type": "ClassLabel"},
        "class": {"_type": "Value"},
    }
    write_arrow(tmp_path / "saved", table, features)
    data = load(tmp_path / "saved")
    assert data.class_names == ("a", "b")
    np.testing.assert_array_equal(labels[data.train.attributes["other_class"]], data.train.classes)


def test_splits_whose_labels_are_hidden_are_made_anew():
    x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    classes = np.where(np.arange(40) < 30, np.arange(40) % 2, -1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.warns(UserWarning, match="have no rows left and are made anew"):
            data = from_arrays(x, classes, splits=["train"] * 30 + ["test"] * 10)
    assert sum(len(part.classes) for part in data[2:]) == 30


def test_fields_of_a_csv_are_stripped_and_identifiers_are_kept(tmp_path, images):
    plain = load(write_csv(tmp_path / "table.csv", images))
    header, *lines = (tmp_path / "table.csv").read_text().splitlines()
    frames = ("1_23", "12_3", "007", "1234567890123456789")
    lines = [line.replace(",", ", ") + f", {frames[k % 4]}, {k}" for k, line in enumerate(lines)]
    (tmp_path / "spaced.csv").write_text("\n".join([f"{header}, frame, number", *lines]))
    data = load(tmp_path / "spaced.csv")
    assert_same(data, plain)
    parts = [data.train, data.validation, data.test]
    assert {*np.concatenate([part.attributes["frame"] for part in parts]).tolist()} == {*frames}
    values = np.concatenate([part.attributes["number"] for part in parts])
    np.testing.assert_array_equal(np.sort(values), np.arange(len(lines)))


def test_long_integers_of_a_csv_stay_apart(tmp_path, images):
    write_csv(tmp_path / "table.csv", images)
    header, *lines = (tmp_path / "table.csv").read_text().splitlines()
    for first, kind in ((1234567890123456789, "i"), (2**70, "U")):
        numbered = [f"{line},{first + k}" for k, line in enumerate(lines)]
        (tmp_path / "long.csv").write_text("\n".join([f"{header},frame", *numbered]))
        data = load(tmp_path / "long.csv")
        frames = np.concatenate([part.attributes["frame"] for part in data[2:]])
        assert frames.dtype.kind == kind
        assert len(np.unique(frames)) == len(lines)


def test_a_png_is_turned_wherever_its_orientation_stands(tmp_path):
    rng = np.random.default_rng(0)
    for k in range(20):
        content = encoded(rng.integers(0, 256, (6, 8), np.uint8))
        exif = b"MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06" + bytes(6)
        chunk = b"eXIf" + exif
        late = len(exif).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
        (tmp_path / "photos" / "ab"[k % 2]).mkdir(parents=True, exist_ok=True)
        end = content.index(b"IEND") - 4
        (tmp_path / "photos" / "ab"[k % 2] / f"{k}.png").write_bytes(
            content[:end] + late + content[end:]
        )
    assert load(tmp_path / "photos").train.images.shape[1:] == (8, 6, 1)

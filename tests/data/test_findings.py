"""The report of data of one's own: what is noted, how often and where first."""

import shutil
import warnings

import numpy as np
import pyarrow as pa
import pytest
from own_data import encoded, pictures, write_csv, write_folder
from PIL import Image
from pyarrow import parquet
from safetensors.numpy import save_file

from contrastive_jax.data import as_text, load, load_with_report


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "photos", pictures(8))


def _texts(report, warns=True):
    return [line for line in as_text(report).splitlines() if line.startswith("warning") == warns]


def test_a_report_is_one_table(folder):
    _, report = load_with_report(folder)
    assert as_text(report).splitlines() == [
        "photos: a folder of class folders of images, 24 images of 6 x 6 pixels, RGB",
        "            examples  classes  fewest  median  positive pairs  negative pairs",
        "train             12        3       4       4              18              48",
        "validation         6        3       2       2               3              12",
        "test               6        3       2       2               3              12",
        "splits: 10% of every class for validation and 20% for test (--split examples, chosen by "
        "the sizes of classes)",
        "note: classes of test that are trained on: 3 (cat, dog, emu)",
    ]


def test_images_that_can_not_be_read_are_skipped_and_named(folder):
    images = pictures(8)
    (folder / "cat" / "3.png").write_bytes(b"")
    (folder / "dog" / "4.png").write_bytes(encoded(images["dog"][4])[:-30])
    with pytest.warns(UserWarning, match=r"left out: 2 \(cat/3.png \(it is empty\), dog/4.png \("):
        data = load(folder, on_bad_input="skip")
    left = [image.tobytes() for part in data[2:] for image in part.images]
    del images["cat"][3], images["dog"][4]
    assert sorted(left) == sorted(image.tobytes() for one in images.values() for image in one)


def test_files_without_a_class_are_named(folder):
    (folder / "cover.png").write_bytes(encoded(pictures()["cat"][0]))
    (folder / "readme.txt").touch()
    (folder / "cat" / "Thumbs.db").touch()
    (folder / "fox").mkdir()
    _, report = load_with_report(folder)
    assert _texts(report) == [
        "warning: images outside of class folders, which are left out: 1 (cover.png)",
        "warning: class folders without images: 1 (fox)",
    ]
    note = "note: files that are no images, which are left out: 2 (readme.txt, cat/Thumbs.db)"
    assert note in _texts(report, warns=False)


def test_identical_files_and_single_examples_are_named(folder):
    data = load(folder)
    train, test = (str(part.sources[0]) for part in (data.train, data.test))
    shutil.copy(folder / "cat" / "0.png", folder / "dog" / "copy.png")
    (folder / "fox").mkdir()
    (folder / "fox" / "0.png").write_bytes(encoded(pictures(1, classes=["fox"], seed=9)["fox"][0]))
    _, report = load_with_report(folder)
    texts = _texts(report)
    assert "warning: classes of one example, which is in no positive pair: 1 (fox)" in texts
    copies = "1 (cat/0.png (cat) and dog/copy.png (dog))"
    assert f"warning: contents that are identical in two classes: {copies}" in texts
    # In one class and in two splits, given by a table.
    lines = ["path,class,split"]
    for split, part in zip(("train", "val", "test"), data[2:], strict=True):
        lines += [f"photos/{source},{source.split('/')[0]},{split}" for source in part.sources]
    lines.append(f"photos/copy.png,{test.split('/')[0]},train")
    shutil.copy(folder / test, folder / "copy.png")
    (folder.parent / "table.csv").write_text("\n".join(lines))
    _, report = load_with_report(folder.parent / "table.csv")
    (text,) = _texts(report)
    assert text.startswith("warning: contents that are identical in two splits: 1 (photos/")
    assert f"photos/{test} (test)" in text
    assert "photos/copy.png (train)" in text
    assert train != test


def test_splits_that_can_not_be_evaluated_are_named(tmp_path):
    rows = [
        *[f"{k},{k % 2},train,," for k in range(6)],
        *["7,0,val,,", "8,1,val,,", "9,1,test,query", "10,1,test,gallery", "11,0,test,query"],
    ]
    lines = [f'"[{row.split(",")[0]}, 1]",{",".join(row.split(",")[1:4])}' for row in rows]
    (tmp_path / "t.csv").write_text("\n".join(["vector,class,split,role", *lines]))
    _, report = load_with_report(tmp_path / "t.csv")
    assert _texts(report) == [
        "warning: splits without a positive pair: 1 (validation)",
        "warning: queries without an example of their class in the gallery: 1 (row 10)",
    ]


def test_classes_never_seen_in_training_are_said(tmp_path):
    path = write_csv(
        tmp_path / "table.csv",
        pictures(3, classes=[f"c{k:02}" for k in range(30)], side=2),
        "{path},{label}",
    )
    _, report = load_with_report(path)
    assert report.split_rule == (
        "10% of the classes for validation and 20% for test, never seen in training (--split "
        "classes, chosen by the sizes of classes)"
    )
    assert report.findings == ()


VECTORS = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
CLASSES = np.repeat([0, 1], 20)


def test_vectors_are_the_same_from_every_file(tmp_path):
    np.savez(tmp_path / "a.npz", embeddings=VECTORS, classes=CLASSES)
    np.savez(tmp_path / "b.npz", vectors=VECTORS.astype(np.float64), labels=CLASSES.astype(str))
    save_file({"embeddings": VECTORS, "labels": CLASSES}, tmp_path / "c.safetensors")
    for folder, names in (
        ("d", ("x", "x_labels")),
        ("e", ("x", "x_classes")),
        ("f", ("x", "labels")),
    ):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / f"{names[0]}.npy", VECTORS)
        np.save(tmp_path / folder / f"{names[1]}.npy", CLASSES)
    for name, kind in (("g", pa.list_(pa.float32())), ("h", pa.list_(pa.float64(), 3))):
        table = pa.table({"vector": pa.array(VECTORS.tolist(), kind), "class": CLASSES})
        # In chunks, as large files are.
        parquet.write_table(table, tmp_path / f"{name}.parquet", row_group_size=7)
    text = [f'"{vector.tolist()}",{c}' for vector, c in zip(VECTORS, CLASSES, strict=True)]
    (tmp_path / "i.csv").write_text("\n".join(["vector,class", *text]))
    first = load(tmp_path / "a.npz")
    assert first.train.images.dtype == np.float32
    paths = [
        tmp_path / name
        for name in (
            *("b.npz", "c.safetensors", "d/x.npy", "e/x.npy", "f/x.npy"),
            *("g.parquet", "h.parquet", "i.csv"),
        )
    ]
    for path in paths:
        data = load(path)
        assert data.class_names == ("0", "1")
        for one, other in zip(first[2:], data[2:], strict=True):
            np.testing.assert_array_equal(one.images, other.images)
            np.testing.assert_array_equal(one.classes, other.classes)


def test_vectors_that_are_not_finite_or_too_long_are_skipped(tmp_path):
    vectors = VECTORS.copy()
    vectors[5] = np.nan
    vectors[7] = 1e30  # whose squared length is not finite in float32
    np.savez(tmp_path / "a.npz", embeddings=vectors, classes=CLASSES, camera=CLASSES)
    with pytest.warns(UserWarning, match=r"not finite or too long, .*: 2 \(row 5, row 7\)"):
        data = load(tmp_path / "a.npz", on_bad_input="skip")
    assert sum(len(part.classes) for part in data[2:]) == 38
    assert {*data.train.attributes} == {"camera"}


def test_embeddings_of_the_command_need_a_column_of_classes_alone(tmp_path):
    """`experiments.embed` writes columns path and vector."""
    paths = [f"{k}.png" for k in range(40)]
    table = pa.table({"path": paths, "vector": VECTORS.tolist(), "class": CLASSES})
    parquet.write_table(table, tmp_path / "vectors.parquet")
    data = load(tmp_path / "vectors.parquet")
    for vector, source in zip(data.test.images, data.test.sources, strict=True):
        np.testing.assert_array_equal(vector, VECTORS[paths.index(source)])


def test_animations_and_photos_give_their_first_frame(tmp_path):
    frames = [Image.fromarray(image) for image in pictures(2, channels=1)["cat"]]
    images = pictures(7, channels=1)
    for kind, name in (("gif", "0.gif"), ("webp", "1.webp"), ("bmp", "2.BMP"), ("tiff", "3.tif")):
        for label, members in images.items():
            path = tmp_path / "photos" / label / name
            path.parent.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(members[int(name[0])])
            more = {"append_images": frames, "save_all": True} if kind in ("gif", "tiff") else {}
            more |= {"lossless": True} if kind == "webp" else {}
            image.save(path, kind, **more)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = load(write_rest(tmp_path / "photos", images))
    given = {np.dstack([i] * 3).tobytes() for m in images.values() for i in m}
    assert {image.tobytes() for part in data[2:] for image in part.images} == given


def write_rest(folder, images):
    for label, members in images.items():
        for k in range(4, 7):
            (folder / label / f"{k}.png").write_bytes(encoded(members[k]))
    return folder


def test_a_broken_image_does_not_decide_size_and_channels(tmp_path):
    rng = np.random.default_rng(0)
    for k in range(20):
        (tmp_path / "photos" / "ab"[k % 2]).mkdir(parents=True, exist_ok=True)
        grey = Image.fromarray(rng.integers(0, 256, (28, 40), np.uint8))
        grey.save(tmp_path / "photos" / "ab"[k % 2] / f"{k}.png")
    whole = encoded(rng.integers(0, 256, (200, 300, 3), np.uint8), "jpeg")
    (tmp_path / "photos" / "a" / "broken.jpg").write_bytes(whole[: len(whole) // 2])
    data, report = load_with_report(tmp_path / "photos", on_bad_input="skip")
    assert data.train.images.shape[1:] == (28, 40, 1)
    assert any("images that can not be read" in one.text for one in report.findings)

"""Tables of given pairs: what similar means, images that occur once, splits and contradictions."""

import warnings

import numpy as np
import pyarrow as pa
import pytest
from own_data import encoded, pictures, write_folder
from pyarrow import parquet

from contrastive_jax.data import PairDataset, as_text, load, load_with_report
from contrastive_jax.data._own.pair_splits import split_pairs
from contrastive_jax.data._own.pair_tables import read_pairs
from contrastive_jax.data._own.rows import Table


@pytest.fixture
def table(tmp_path):
    """Writes 30 positive pairs (k, k + 30) and 30 negative ones (k, k + 31) of 60 images."""
    images = pictures(60, classes=["i"], channels=1)["i"]
    write_folder(tmp_path, {"i": images})
    similar = [(k, k + 30, 1) for k in range(30)]
    dissimilar = [(k, (k + 1) % 30 + 30, 0) for k in range(30)]

    def write(column="similar", rows=(*similar, *dissimilar), more="", line="", flip=False):
        lines = [f"i/{a}.png,i/{b}.png,{1 - y if flip else y}{line}" for a, b, y in rows]
        path = tmp_path / "pairs.csv"
        path.write_text("\n".join([f"left,right,{column}{more}", *lines]) + "\n")
        return path

    write.images = images
    return write


def _pairs(data):
    """The pairs of all splits by the sources of their images, with their labels."""
    return {
        (str(data.sources[a]), str(data.sources[b])): int(y)
        for part in (data.train, data.validation, data.test)
        for a, b, y in zip(part.left, part.right, part.labels, strict=True)
    }


def test_zero_is_similar_whatever_the_column_says(table):
    data, report = load_with_report(table())
    assert isinstance(data, PairDataset)
    assert data.images.shape == (60, 6, 6, 1)
    expected = {(f"i/{k}.png", f"i/{k + 30}.png"): 0 for k in range(30)}
    expected |= {(f"i/{k}.png", f"i/{(k + 1) % 30 + 30}.png"): 1 for k in range(30)}
    assert _pairs(data) == expected
    for image, source in zip(data.images, data.sources, strict=True):
        number = int(source.split("/")[1].removesuffix(".png"))
        np.testing.assert_array_equal(image[..., 0], table.images[number])
    for column, flip in (("same", False), ("dissimilar", True), ("different", True)):
        assert _pairs(load(table(column, flip=flip))) == expected
    assert _pairs(load(table("label"), similar_label=1)) == expected
    assert _pairs(load(table("label", flip=True), similar_label=0)) == expected
    assert as_text(report).splitlines()[0] == (
        "pairs: a table (CSV) of pairs, 60 pairs of 60 images of 6 x 6 pixels, grey"
    )


def test_pairs_are_split_by_image_where_that_can_be(table):
    # Ten rings of three positive and three negative pairs, which share no image.
    rows = [
        (3 * r + k, 30 + 3 * r + (k + d) % 3, 1 - d)
        for r in range(10)
        for k in range(3)
        for d in (0, 1)
    ]
    data, report = load_with_report(table(rows=rows))
    images = [{*part.left.tolist(), *part.right.tolist()} for part in data[2:5]]
    assert [len(part.labels) for part in data[2:5]] == [42, 6, 12]
    assert not images[0] & images[1] | images[0] & images[2] | images[1] & images[2]
    assert "no image occurs in pairs of two splits" in report.split_rule
    one_ring, report = load_with_report(table())
    assert [np.bincount(part.labels).tolist() for part in one_ring[2:5]] == [
        [21, 21],
        [3, 3],
        [6, 6],
    ]
    assert "an image may occur in pairs of two splits" in report.split_rule
    with pytest.raises(ValueError, match=r"connect so many images .* give --split examples"):
        load(table(), split_by="classes")
    assert len(load(table(rows=rows), split_by="examples").test.labels) == 12


def test_splits_and_weights_of_pairs_are_taken(table):
    path = table(more=",split,weight")
    lines = path.read_text().splitlines()
    splits = ["train"] * 20 + ["val"] * 5 + ["test"] * 5
    lines[1:] = [f"{line},{splits[k % 30]},{k / 8}" for k, line in enumerate(lines[1:])]
    path.write_text("\n".join(lines))
    data, report = load_with_report(path)
    assert [len(part.labels) for part in data[2:5]] == [40, 10, 10]
    assert data.test.weights.dtype == np.float32
    np.testing.assert_array_equal(data.test.weights[:2], [25 / 8, 26 / 8])
    (shared,) = [one for one in report.findings if "two splits" in one.text]
    assert shared.number == 3
    assert report.split_rule == "as given (train, validation, test)"


def test_pairs_of_bytes_and_of_vectors_are_read(tmp_path):
    images = [encoded(image) for image in pictures(20, classes=["i"])["i"]]
    vectors = np.random.default_rng(0).normal(size=(20, 3))
    order = np.arange(20)
    for contents, shape in ((images, (20, 6, 6, 3)), (list(vectors), (20, 3))):
        table = {
            "left": [contents[k] for k in order] * 2,
            "right": [contents[k ^ 1] for k in order] + [contents[(k + 2) % 20] for k in order],
            "same": [True] * 20 + [False] * 20,
        }
        parquet.write_table(pa.table(table), tmp_path / "p.parquet")
        data, report = load_with_report(tmp_path / "p.parquet")
        assert data.images.shape == shape
        assert sum(len(part.labels) for part in data[2:5]) == 40
        assert "pairs that occur again: 10" in as_text(report)


def test_pairs_that_contradict_each_other_are_named(table):
    rows = [(k, k + 30, 1) for k in range(20)] + [(k, k + 31, 0) for k in range(20)]
    wrong = [(31, 0, 0), (31, 0, 1), (5, 5, 0)]
    # 0 is like 30, 30 is like 29, and 29 is unlike 0.
    inferred = [(30, 29, 1), (29, 0, 0)]
    repeated = [(0, 30, 1), (8, 8, 1)]
    path = table(rows=[*rows, *wrong, *inferred, *repeated])
    message = (
        r"4 of 47 pairs contradict each other in .*: i/0.png and i/31.png \(row 20, dissimilar\), "
        r"i/31.png and i/0.png \(row 40, dissimilar\), i/31.png and i/0.png \(row 41, similar\), "
        r"\.\.\.; decide on one label, or leave them out with --on_bad_input"
    )
    with pytest.raises(ValueError, match=message):
        load(path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = load(path, on_bad_input="skip")
    messages = [str(one.message) for one in caught]
    assert messages == [
        "pairs: pairs that contradict each other, which are left out: 4 (i/0.png and i/31.png (row "
        "20, dissimilar), i/31.png and i/0.png (row 40, dissimilar), i/31.png and i/0.png (row 41, "
        "similar), ...)",
        "pairs: negative pairs of images that positive pairs connect (A like B, B like C, A "
        "unlike C): 1 (i/29.png and i/0.png)",
        "pairs: pairs of an image and itself: 1 (i/8.png and i/8.png)",
    ]
    assert sum(len(part.labels) for part in data[2:5]) == 43
    _, report = load_with_report(path, on_bad_input="skip")
    assert "pairs that occur again: 1 (i/0.png and i/30.png)" in as_text(report)


def test_copies_in_pairs_of_two_splits_are_named(table, tmp_path):
    """A copy under another name, in another format, of an image of train in a pair of test."""
    path = table(more=",split")
    lines = path.read_text().splitlines()
    splits = ["train"] * 20 + ["val"] * 5 + ["test"] * 5
    lines[1:] = [f"{line},{splits[k % 30]}" for k, line in enumerate(lines[1:])]
    lines[-1] = lines[-1].replace("i/29.png", "copy.bmp")
    path.write_text("\n".join(lines))
    (tmp_path / "copy.bmp").write_bytes(encoded(table.images[3], "bmp"))
    _, report = load_with_report(path)
    (finding,) = [one for one in report.findings if "identical" in one.text]
    assert finding.text == "contents that are identical in pairs of two splits"
    assert finding.first == ("i/3.png (train) and copy.bmp (test)",)


def test_pairs_without_a_file_or_with_a_damaged_one_are_named(table, tmp_path):
    path = table()
    (tmp_path / "i" / "3.png").unlink()
    with pytest.raises(
        ValueError, match=r"2 of 60 pairs name a file that does not exist in .*: i/3"
    ):
        load(path)
    (tmp_path / "i" / "40.png").write_bytes(encoded(table.images[40])[:40])
    whole = [(k, k + 30, 1) for k in (*range(3), *range(4, 30))] + [(30, 31, 0)]
    with pytest.raises(ValueError, match=r"1 of 58 images of .* can not be read: i/40.png \("):
        load(table(rows=whole))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = load(table(), on_bad_input="skip")
    messages = " ".join(str(one.message) for one in caught)
    assert (
        "pairs that name a file that does not exist, which are left out: 2 (i/3.png and" in messages
    )
    assert "images that can not be read, which are left out: 1 (i/40.png (" in messages
    assert (
        "pairs that lose an image, which are left out: 2 (i/10.png and i/40.png, i/9.png"
        in messages
    )
    assert len(_pairs(data)) == 56
    assert len(data.images) == 58
    assert {*range(58)} == {int(k) for part in data[2:5] for k in (*part.left, *part.right)}


def test_arrays_of_pairs_are_of_one_length_and_type(tmp_path):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(30, 4)).astype(np.float32)
    left = rng.integers(0, 30, 200)
    right = (left + rng.integers(1, 30, 200)) % 30
    arrays = {"left": vectors[left], "right": vectors[right].astype(np.float64)}
    arrays["similar"] = (left % 2 == right % 2).astype(int)
    np.savez(tmp_path / "pairs.npz", **arrays)
    data = load(tmp_path / "pairs.npz")
    assert len(data.images) == len(np.union1d(left, right))
    np.savez(tmp_path / "ragged.npz", **arrays | {"right": vectors[right[:-3]]})
    with pytest.raises(ValueError, match=r"has 200 vectors as left, and an array of shape \[197"):
        load(tmp_path / "ragged.npz")


def test_pairs_that_are_held_out_are_shares_of_all():
    rng = np.random.default_rng(0)
    left = rng.integers(0, 60, 1000)
    right = (left + rng.integers(1, 60, 1000)) % 60
    vectors = rng.normal(size=(60, 4)).astype(np.float32)
    table = {"left": vectors[left], "right": vectors[right], "similar": rng.integers(0, 2, 1000)}
    rows = read_pairs(Table("pairs", "arrays", "pairs", table), None)
    parts, _ = split_pairs(rows, "examples", 0.1, 0, "pairs")
    sizes = {name: len(part) for name, part in parts.items()}
    assert sizes["test"] == pytest.approx(200, abs=2)
    assert sizes["validation"] == pytest.approx(100, abs=2)

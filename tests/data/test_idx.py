"""IDX files as archives, browsers and other libraries leave them, and files that are not whole."""

import gzip
import shutil
import struct
import tracemalloc

import numpy as np
import pytest

from contrastive_jax.data import idx, load
from contrastive_jax.data.idx import find_idx, read_idx

STEMS = {
    "train-images": "train-images-idx3-ubyte",
    "train-labels": "train-labels-idx1-ubyte",
    "test-images": "t10k-images-idx3-ubyte",
    "test-labels": "t10k-labels-idx1-ubyte",
}


def _idx(values):
    array = np.asarray(values, np.uint8)
    header = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


def _contents(labels=range(10)):
    labels = np.tile(list(labels), 4)
    images = np.broadcast_to(labels[:, None, None], (len(labels), 3, 2))
    return {
        "train-images": _idx(images),
        "train-labels": _idx(labels),
        "test-images": _idx(images[::-1]),
        "test-labels": _idx(labels[::-1]),
    }


def _write(folder, contents, name=lambda stem: stem, pack=lambda content: content):
    for key, content in contents.items():
        path = folder / name(STEMS[key])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pack(content))


def _dotted(stem):
    return stem.replace("-idx", ".idx")


def _emnist(stem):
    return "emnist-letters-" + stem.replace("t10k", "test") + ".gz"


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        (_dotted, bytes),
        (lambda stem: _dotted(stem) + ".gz", gzip.compress),
        (lambda stem: "MNIST/raw/" + stem, bytes),
        (lambda stem: "raw/" + stem, bytes),
        (lambda stem: f"{stem}/{stem}", bytes),
        (lambda stem: f"{_dotted(stem)}/{stem}", bytes),
        (lambda stem: stem + ".gz", bytes),
        (lambda stem: stem, gzip.compress),
        (_emnist, gzip.compress),
    ],
    ids=[
        "dots",
        "dots gz",
        "torchvision",
        "raw",
        "folder of the name",
        "folder with dots",
        "gz unpacked by a browser",
        "gzip without gz",
        "another set's names",
    ],
)
def test_files_are_taken_as_they_lie(tmp_path, name, pack):
    contents = _contents()
    _write(tmp_path, contents, name, pack)
    files = find_idx("mnist", tmp_path)
    assert [*files] == [*STEMS]
    for key, path in files.items():
        assert _idx(read_idx(path)) == contents[key]


def test_files_of_two_sets_are_never_mixed(tmp_path):
    _write(tmp_path, _contents(), _emnist, gzip.compress)
    _write(tmp_path, _contents(), lambda stem: "qmnist-" + stem)
    with pytest.raises(ValueError, match=r"several data sets: 'emnist-letters-', 'qmnist-'; put"):
        find_idx("mnist", tmp_path)
    # The plain names are those of the set itself.
    _write(tmp_path, _contents())
    assert find_idx("mnist", tmp_path)["train-images"].name == STEMS["train-images"]
    (tmp_path / STEMS["test-images"]).unlink()
    shutil.rmtree(tmp_path / "raw", ignore_errors=True)
    _write(tmp_path / "raw", _contents(range(5)))
    for stem in ("emnist-letters-test-images-idx3-ubyte.gz", "qmnist-" + STEMS["test-images"]):
        (tmp_path / stem).unlink()
    assert {path.parent for path in find_idx("mnist", tmp_path).values()} == {tmp_path / "raw"}


def test_a_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    _write(tmp_path / "files", _contents())
    data = load("mnist", data_dir="~/files", tfds_dir="~/tfds")
    assert data.train.images.shape[1:] == (3, 2, 1)
    assert (tmp_path / "tfds" / "idx").is_dir()
    with pytest.raises(ValueError, match=r"--tfds_dir ~no_such_user/x names no home folder"):
        load("mnist", data_dir=tmp_path / "files", tfds_dir="~no_such_user/x")


def test_other_sets_have_their_labels_for_classes(tmp_path):
    letters = range(1, 27)
    _write(tmp_path / "files", _contents(letters), _emnist, gzip.compress)
    data = load("idx", data_dir=tmp_path / "files", tfds_dir=tmp_path)
    assert data.class_names == tuple(map(str, letters))
    for split in (data.train, data.validation, data.test):
        np.testing.assert_array_equal(split.classes, split.images[:, 0, 0, 0] - 1)
        assert len(np.unique(split.classes)) == 26
    with pytest.raises(ValueError, match="label 26, expected at most 9; --dataset idx takes any"):
        load("mnist", data_dir=tmp_path / "files", tfds_dir=tmp_path)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "idx"])
def test_missing_files_are_named_with_how_to_get_them(tmp_path, name, monkeypatch):
    # The machine of the test may have Debian's packages.
    monkeypatch.setattr(idx, "_ROOTS", (tmp_path / "usr",))
    for folder in (None, tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError) as error:
            find_idx(name, folder)
        message = str(error.value)
        for part in ("train-images-idx3-ubyte", "four files", "--data_dir", str(folder or "")):
            assert part in message
        assert "\n" not in message
        assert "yann.lecun" not in message


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzipped"])
@pytest.mark.parametrize(
    ("shape", "values", "message"),
    [
        ((2, 3, 3), 50_000_000, r"holds (more than 18|50000000) values, .* says \[2, 3, 3\]"),
        ((2**32 - 1,) * 3, 100, r"(holds 100|can not hold \d+) values, .* says \[4294967295, "),
        ((2**32 - 1,) * 200, 100, r"(holds 100|can not hold \d+) values"),
    ],
    ids=["more than the header says", "less", "a header of many dimensions"],
)
def test_nothing_is_unpacked_or_allocated_beyond_the_header(tmp_path, shape, values, message, pack):
    header = b"\0\0\x08" + bytes([len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
    path = tmp_path / "images.gz"
    path.write_bytes(pack(header + bytes(values)))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message):
            read_idx(path)
        assert tracemalloc.get_traced_memory()[1] < 4e6
    finally:
        tracemalloc.stop()


def test_values_beyond_the_memory_of_the_machine_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "images"
    path.write_bytes(_idx(np.zeros((100, 10, 10))))
    monkeypatch.setattr("os.sysconf", {"SC_PAGE_SIZE": 1000, "SC_PHYS_PAGES": 9}.get)
    with pytest.raises(ValueError, match=r"GiB of memory; its header says \[100, 10, 10\]"):
        read_idx(path)


def test_files_that_can_not_be_read_are_named(tmp_path, monkeypatch):
    _write(tmp_path, _contents())
    path = tmp_path / STEMS["train-images"]

    def forbidden(*_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    for method, call in (
        ("pathlib.Path.open", lambda: read_idx(path)),
        ("pathlib.Path.open", lambda: load("mnist", data_dir=tmp_path, tfds_dir=tmp_path)),
        ("pathlib.Path.iterdir", lambda: load("mnist", data_dir=tmp_path, tfds_dir=tmp_path)),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(method, forbidden)
            with pytest.raises(ValueError, match=r"PermissionError: Permission .* --data_dir"):
                call()
    with pytest.raises(ValueError, match="IsADirectoryError"):
        read_idx(tmp_path)

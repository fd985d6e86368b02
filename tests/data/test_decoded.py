"""Images that were decoded before are read, and decoded again when what they are from changes."""

import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from test_datasets import raw, write_idx  # noqa: F401
from test_prepared import TinyForms  # noqa: F401

from contrastive_jax.data import _decoded, _examples, load

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def decoder(monkeypatch):
    """Counts how often images are decoded."""
    calls = []
    decode = _examples.decode_images

    def counted(contents, **options):
        calls.append(options["image_size"])
        return decode(contents, **options)

    monkeypatch.setattr(_examples, "decode_images", counted)
    return calls


def _assert_equal(first, second):
    assert first.class_names == second.class_names
    for one, other in zip(first[2:], second[2:], strict=True):
        for a, b in zip(one[:2], other[:2], strict=True):  # the rest is None
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)


def _stored(folder):
    return sorted(path for path in folder.rglob("*") if "decoded" in path.name)


def test_a_second_load_decodes_nothing(raw, tmp_path, decoder):  # noqa: F811
    first = load("mnist", data_dir=raw, tfds_dir=tmp_path)
    second = load("mnist", data_dir=raw, tfds_dir=tmp_path)
    _assert_equal(first, second)
    assert decoder == [None]
    # What is drawn from the images is not stored with them.
    other = load("mnist", data_dir=raw, tfds_dir=tmp_path, validation_fraction=0.34, seed=3)
    assert len(other.validation.classes) == 20
    assert decoder == [None]


def test_every_size_is_stored(raw, tmp_path, decoder):  # noqa: F811
    for size in (4, None, 6, 4, 6, None):
        images = load("mnist", data_dir=raw, tfds_dir=tmp_path, image_size=size).train.images
        assert images.shape[1:3] == ((size, size) if size else (9, 8))
    assert decoder == [4, None, 6]
    assert [path.name for path in _stored(tmp_path)] == [
        "decoded-4.npz",
        "decoded-6.npz",
        "decoded.npz",
    ]


def test_other_files_are_decoded(raw, tmp_path, decoder):  # noqa: F811
    load("mnist", data_dir=raw, tfds_dir=tmp_path)
    images = np.full((20, 9, 8), 7)
    write_idx(raw / "t10k-images-idx3-ubyte.gz", images)
    data = load("mnist", data_dir=raw, tfds_dir=tmp_path)
    assert (data.test.images == 7).all()
    assert len(decoder) == 2


@pytest.mark.parametrize("change", ["time", "size", "another"])
def test_prepared_files_that_change_are_decoded(raw, tmp_path, decoder, change):  # noqa: F811
    load("mnist", data_dir=raw, tfds_dir=tmp_path)
    (stored,) = _stored(tmp_path)
    folder = stored.parent
    if change == "time":
        (record,) = folder.glob("*train.array_record*")
        os.utime(record, ns=(1, 1))
    elif change == "size":
        # A file that says nothing to those who read the records.
        with (folder / "label.labels.txt").open("a") as file:
            file.write("\n")
    else:
        (folder / "more.array_record").touch()
    load("mnist", data_dir=raw, tfds_dir=tmp_path)
    load("mnist", data_dir=raw, tfds_dir=tmp_path)
    assert len(decoder) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:100],
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        # One pixel, of an array that its header describes rightly.
        lambda content: (
            content[: len(content) // 2]
            + bytes([content[len(content) // 2] ^ 255])
            + content[len(content) // 2 + 1 :]
        ),
        lambda content: b"not an archive" * 100,
    ],
    ids=["emptied", "begun", "halved", "shortened", "flipped", "other"],
)
def test_a_damaged_store_is_written_again(raw, tmp_path, decoder, damage):  # noqa: F811
    first = load("mnist", data_dir=raw, tfds_dir=tmp_path)
    (stored,) = _stored(tmp_path)
    stored.write_bytes(damage(stored.read_bytes()))
    _assert_equal(load("mnist", data_dir=raw, tfds_dir=tmp_path), first)
    _assert_equal(load("mnist", data_dir=raw, tfds_dir=tmp_path), first)
    assert len(decoder) == 2


def test_warnings_are_repeated(tmp_path, decoder):
    said = []
    for _ in range(2):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            load("tiny_forms/hidden", tfds_dir=tmp_path)
            load("tiny_forms/transparent", tfds_dir=tmp_path)
        said.append([(str(one.message), one.filename) for one in caught])
    assert said[0] == said[1]
    assert {file for _, file in said[0]} == {__file__}
    assert any("without a label are left out: 15 of 30 in train" in text for text, _ in said[0])
    assert any("3 images of tiny_forms/transparent have trans" in text for text, _ in said[0])
    assert len(decoder) == 2


def test_a_folder_that_can_not_be_written_is_read(raw, tmp_path, decoder, monkeypatch):  # noqa: F811
    first = load("mnist", data_dir=raw, tfds_dir=tmp_path)
    (stored,) = _stored(tmp_path)
    stored.unlink()
    refused = []

    def open_alone(path, mode="r", *args, **options):
        if "x" in mode or "w" in mode:
            refused.append(path.name)
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, mode, *args, **options)

    opened = Path.open
    monkeypatch.setattr(Path, "open", open_alone)
    _assert_equal(load("mnist", data_dir=raw, tfds_dir=tmp_path), first)
    assert any("decoded" in name for name in refused)
    assert len(decoder) == 2
    assert _stored(tmp_path) == []


def test_a_full_disk_leaves_nothing(raw, tmp_path, no_larger_files):  # noqa: F811
    first = load("mnist", data_dir=raw, tfds_dir=tmp_path)
    _stored(tmp_path)[0].unlink()
    with no_larger_files(1000):
        _assert_equal(load("mnist", data_dir=raw, tfds_dir=tmp_path), first)
    assert _stored(tmp_path) == []


def test_two_write_at_once(raw, tmp_path, decoder, monkeypatch):  # noqa: F811
    expected = load("mnist", data_dir=raw, tfds_dir=tmp_path)
    _stored(tmp_path)[0].unlink()
    both = threading.Barrier(2, timeout=60)
    save = np.savez

    def together(file, **arrays):
        both.wait()
        save(file, **arrays)
        both.wait()

    monkeypatch.setattr(_decoded.np, "savez", together)
    results = []

    def run():
        try:
            results.append(load("mnist", data_dir=raw, tfds_dir=tmp_path))
        except BaseException as error:
            results.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        _assert_equal(result, expected)
    assert [path.name for path in _stored(tmp_path)] == ["decoded.npz"]
    _assert_equal(load("mnist", data_dir=raw, tfds_dir=tmp_path), expected)
    assert len(decoder) == 3


def test_two_processes_at_once(tmp_path):
    code = f"""
from contrastive_jax.data import load
print("ready", flush=True)
input()
data = load("digits", tfds_dir={str(tmp_path)!r})
print(data.train.images.sum(), data.test.images.sum())
"""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    other = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, text=True, **pipes)
    assert other.stdout.readline() == "ready\n", other.communicate()
    other.stdin.write("\n")
    other.stdin.flush()
    data = load("digits", tfds_dir=tmp_path)
    output, errors = other.communicate()
    assert other.returncode == 0, errors
    again = load("digits", tfds_dir=tmp_path)
    sums = f"{data.train.images.sum()} {data.test.images.sum()}"
    assert (
        output.splitlines()[-1] == sums == f"{again.train.images.sum()} {again.test.images.sum()}"
    )
    assert [path.name for path in _stored(tmp_path)] == ["decoded.npz"]


def test_nothing_says_that_it_downloads(raw, tmp_path, capsys):  # noqa: F811
    for name in ("digits", "mnist"):
        load(name, data_dir=raw, tfds_dir=tmp_path)
        said = capsys.readouterr()
        assert "download" not in (said.out + said.err).lower()
        assert said.out.count(f"Preparing {name}") == 1
        load(name, data_dir=raw, tfds_dir=tmp_path)
        assert capsys.readouterr().out == ""

"""The command on data of one's own: the same run from every form, its report and its options."""

import json
from types import SimpleNamespace

import chex
import numpy as np
import orbax.checkpoint as ocp
import pytest
from own_data import pictures, write_csv, write_folder, write_parquet, write_saved
from PIL import Image

from contrastive_jax import cli
from contrastive_jax import load as load_run
from contrastive_jax.data import load
from contrastive_jax.data.pictures import read_pictures
from experiments import compare_losses, evaluate, options, train

TINY = {
    "encoder": "mlp",
    "width": 4,
    "steps": 4,
    "log_every": 2,
    "validate_every": 4,
    "batch_size": 8,
    "devices": 1,
    "group": 2,
    "figures": False,
}


def _params(folder):
    with ocp.PyTreeCheckpointer() as reader:
        return reader.restore(folder / "checkpoints" / "4" / "default")["params"]


def test_a_run_is_the_same_from_every_form(tmp_path, capsys):
    images = pictures()
    (tmp_path / "csv").mkdir()
    paths = [
        write_folder(tmp_path / "my photos", images),
        write_csv(tmp_path / "csv" / "table.csv", images),
        write_parquet(tmp_path / "table.parquet", images),
        write_saved(tmp_path / "saved", images),
    ]
    folders = []
    for path in paths:
        folders.append(train.main(train.Config(data=path, runs=tmp_path / "runs", **TINY)))
        assert capsys.readouterr().out.startswith(f"{path.stem}: a ")
    assert [folder.name for folder in folders] == [
        "my-photos-mlp-1",
        "table-mlp-1",
        "table-mlp-2",
        "saved-mlp-1",
    ]
    first = _params(folders[0])
    for folder in folders[1:]:
        chex.assert_trees_all_equal(_params(folder), first)
    config = json.loads((folders[0] / "config.json").read_text())
    assert config["data"] == str(paths[0])
    assert config["dataset"] is None
    # What a run was trained on is found again.
    again = evaluate.with_data_of_run(evaluate.Config(run=folders[0]))
    assert (again.data, again.dataset) == (paths[0], None)
    resumed = train.main(
        train.Config(data=paths[0], runs=tmp_path / "runs", resume="my-photos-mlp-1", **TINY)
    )
    assert resumed == folders[0]
    # One image less, and the splits are others.
    next(paths[0].rglob("*.png")).unlink()
    results = (folders[0] / "run.json").read_bytes()
    with pytest.raises(ValueError, match="is not what it was started on"):
        train.main(
            train.Config(data=paths[0], runs=tmp_path / "runs", resume="my-photos-mlp-1", **TINY)
        )
    with pytest.raises(ValueError, match=r"is not what it was trained on: .* name it with --data"):
        evaluate.main(evaluate.Config(run=folders[0]))
    assert (folders[0] / "run.json").read_bytes() == results


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "x", "--dataset", "digits"], "--data and --dataset exclude each other"),
        (["--dataset", "./x"], "--dataset takes the name of a data set, got the path"),
        (["--data", "x", "--data_dir", "y"], "--data_dir has no effect with --data"),
        (["--data", "x", "--tfds_dir", "."], "--tfds_dir has no effect with --data"),
        (["--on_bad_input", "skip"], "--on_bad_input is of data of your own"),
        (["--similar_label", "1"], "--similar_label is of data of your own"),
        (["--data", "absent"], "there is no file or folder .*absent"),
    ],
)
def test_options_of_data_are_checked(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        train.main(cli.parse(train.Config, "experiments.train", "Trains.", arguments))
    assert not [*tmp_path.iterdir()]


@pytest.fixture
def pairs(tmp_path):
    """Writes a table of pairs beside images that have splits."""
    write_folder(tmp_path / "photos" / "train", pictures())
    write_folder(tmp_path / "photos" / "test", pictures(seed=1))
    pair = "photos/train/{}/{}.png,photos/train/{}/{}.png,{}"
    lines = [
        pair.format(a, k, b, (k + 1) % 8, int(a == b))
        for a in pictures()
        for b in pictures()
        for k in range(8)
    ]
    (tmp_path / "pairs.csv").write_text("\n".join(["left,right,same", *lines]))
    return tmp_path / "pairs.csv"


def test_a_table_of_pairs_is_trained_on(pairs, tmp_path):
    tiny = TINY | {"group": None}
    train.main(train.Config(data=pairs, runs=tmp_path / "runs", **tiny))
    run = load_run(tmp_path / "runs" / "pairs-mlp-1")
    assert run.class_names == ()
    assert 0 < run.threshold < 2


def test_a_comparison_of_losses_makes_its_splits_of_examples_with_classes(pairs, tmp_path):
    runs = tmp_path / "runs"
    with pytest.raises(ValueError, match="pairs has given pairs, where classes are needed"):
        compare_losses.main(compare_losses.Config(data=pairs, runs=runs))
    with pytest.raises(ValueError, match=r"--split examples has no effect .* or the splits"):
        compare_losses.main(compare_losses.Config(data=tmp_path / "photos", runs=runs))
    assert not runs.exists()
    assert compare_losses._load(
        compare_losses.Config(data=tmp_path / "photos" / "train"), "all classes"
    ).class_names == ("cat", "dog", "emu")


@pytest.mark.parametrize("size", [None, 5])
def test_pictures_of_a_run_are_read_as_those_it_was_trained_on(size, tmp_path):
    folder = tmp_path / "photos"
    generator = np.random.default_rng(0)
    for k in range(24):
        (folder / "ab"[k % 2]).mkdir(parents=True, exist_ok=True)
        values = generator.integers(0, 2**16, (8, 12)).astype(np.uint16)
        colours = generator.integers(0, 256, (200, 300, 3), np.uint8)
        exif = Image.Exif()
        exif[0x0112] = 6
        image = Image.fromarray(colours) if size else Image.fromarray(values)
        kind = "jpeg" if size else "png"
        image.save(folder / "ab"[k % 2] / f"{k}.{kind}", exif=exif)
    data = load(folder, image_size=size).test
    run = SimpleNamespace(image_shape=data.images.shape[1:], image_dtype="uint8")
    assert run.image_shape == ((5, 5, 3) if size else (12, 8, 1))
    paths = [folder / source for source in data.sources]
    np.testing.assert_array_equal(
        read_pictures(paths, run.image_shape, run.image_dtype), data.images
    )
    (folder / "a" / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"text.png can not be read as a picture: it is none"):
        read_pictures([folder / "a" / "text.png"], run.image_shape)


@pytest.mark.parametrize(
    ("path", "name"), [("a b/ü (1).csv", "1"), ("...", "data"), ("x/photos", "photos")]
)
def test_runs_are_named_after_the_file(path, name, tmp_path):
    assert options.data_name(options.Data(data=tmp_path / path)) == name

"""The commands on vectors of another model and on given pairs, and what has no effect there."""

import dataclasses
import json
import types
from functools import partial

import jax
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from contrastive_jax import ablation_report, distances, models, plots, run_report
from contrastive_jax.data.datasets import Dataset, Examples, GivenPairs, PairDataset
from contrastive_jax.evaluation import baselines
from contrastive_jax.evaluation.calibration import Calibration
from contrastive_jax.train import Run, network
from contrastive_jax.train.run_folder import write
from contrastive_jax.train.trial_figures import chosen_figure
from experiments import (
    compare,
    compare_losses,
    embed,
    evaluate,
    margin_ablation,
    option_checks,
    options,
    search,
    train,
    trials,
)

pytestmark = pytest.mark.usefixtures("unrefined", "few_pairs")

RNG = np.random.default_rng(0)
CENTERS = RNG.normal(size=(5, 16))


def _vectors(number):
    """Vectors of five classes in four directions, under noise in twelve others."""
    classes = np.arange(number, dtype=np.int32) % 5
    noise = RNG.normal(size=(number, 16)) * np.repeat([0.3, 2.0], [4, 12])
    return Examples((noise + CENTERS[classes]).astype(np.float32), classes)


def _pairs(classes, rows):
    left, right = RNG.choice(rows, (2, 200)).astype(np.int32)
    return GivenPairs(left, right, (classes[left] != classes[right]).astype(np.int32))


VECTORS = Dataset("vectors", tuple("abcde"), _vectors(200), _vectors(50), _vectors(60))
ALL = _vectors(90)
PAIRS = PairDataset(
    "pairs",
    ALL.images,
    *(_pairs(ALL.classes, np.arange(start, start + 30)) for start in (0, 30, 60)),
)
SHORT = {"width": 4, "steps": 20, "log_every": 10, "batch_size": 32}


@pytest.fixture
def run_on(tmp_path, monkeypatch):
    """Runs a command on data, without drawing its figures."""
    none = {name: lambda *args, **kwargs: None for name in vars(plots)}
    monkeypatch.setattr(run_report, "plots", types.SimpleNamespace(**none))
    monkeypatch.setattr(ablation_report, "figures_of_trials", lambda *arguments, **shown: {})

    def run(data, main, /, **chosen):
        monkeypatch.setattr(options, "load_data", lambda config: data)
        if main is not evaluate:
            chosen = {"runs": tmp_path, "devices": 1} | SHORT | chosen
        return main.main(main.Config(**chosen))

    return run


def test_a_head_on_vectors_stands_beside_its_baselines(run_on):
    folder = run_on(VECTORS, train, validate_every=10, steps=100)
    assert json.loads((folder / "config.json").read_text())["encoder"] == "linear"
    results = json.loads((folder / "results.json").read_text())
    assert {*baselines.NAMES[1:], "embedding"} < {*results}
    raw, lda, learned = (results[name]["map_at_r"] for name in ("raw vectors", "LDA", "embedding"))
    assert raw < min(lda, learned)
    low, high = results["intervals"]["LDA"]["map_at_r"]
    assert low <= lda <= high
    table = (folder / "results.md").read_text()
    assert f"{lda:.4f} [{low:.3f}, {high:.3f}]" in table


def test_given_pairs_are_evaluated_as_pairs(run_on):
    folder = run_on(PAIRS, train, validate_every=10)
    results = json.loads((folder / "results.json").read_text())
    assert "map_at_r" not in results["embedding"]
    assert {"embedding", "raw vectors", "PCA-whitened", "threshold"} < {*results}
    # Pairs share images here.
    assert "intervals" not in results
    saved = np.load(folder / "embeddings.npz")
    assert saved["left"].shape == saved["labels"].shape == (200,)
    assert json.loads((folder / "config.json").read_text())["balanced"] is True


def test_a_run_on_given_pairs_goes_on(run_on):
    folder = run_on(PAIRS, train, validate_every=10, name="pairs")
    again = run_on(PAIRS, train, validate_every=10, resume="pairs")
    assert again == folder


def test_the_share_of_positive_pairs_is_that_of_the_pairs_drawn():
    config = option_checks.checked_training(train.Config())
    balanced = option_checks.for_data(config, PAIRS)
    assert balanced.positive_fraction == 0.5
    config = option_checks.checked_training(train.Config(balanced=False))
    share = float(np.mean(PAIRS.train.labels == 0))
    assert option_checks.for_data(config, PAIRS).positive_fraction == share != 0.5


def test_false_accept_rates_that_test_can_not_resolve_are_left_out(run_on):
    folder = run_on(PAIRS, train, validate_every=10)
    number = int(np.sum(PAIRS.test.labels == 1))
    figures = json.loads((folder / "results.json").read_text())["embedding"]
    assert {name for name in figures if "tar" in name} == {"tar_at_far_0.1", "tar_at_far_0.01"}
    text = (folder / "results.md").read_text()
    assert "| TAR at FAR 0.01 |" in text
    note = "TAR at FAR 0.001 is left out: it takes at least 1,000 different negative pairs, and "
    assert text.endswith(f"\n\n{note}test has {number}.\n")


def test_figures_as_json_have_no_nan_wherever_it_is():
    values = {"a": (np.float32(np.nan), 1.0), "b": [np.float64(np.inf)], "c": np.int32(3)}
    assert run_report._finite(values) == {"a": [None, 1.0], "b": [None], "c": 3}


@pytest.mark.parametrize("data", [VECTORS, PAIRS], ids=["vectors", "pairs"])
def test_margins_are_compared(run_on, data):
    folder = run_on(
        data, margin_ablation, margins=(0.3, 1.2), seeds=1, strategy="sequential", save_every=10
    )
    lines = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    shown = "auc" if data is PAIRS else "map_at_r"
    assert all(0 < line["validation"][shown] <= 1 for line in lines)
    assert f"mean {shown} on" in (folder / "results.md").read_text()


def test_views_and_changes_are_options(run_on):
    images = RNG.integers(0, 256, (60, 6, 6, 1), np.uint8)
    one = Examples(
        images, np.arange(60, dtype=np.int32) % 5, attributes={"sort": np.arange(60) % 5}
    )
    data = Dataset("images", tuple("abcde"), one, one, one)
    views = {"loss": "ntxent", "views": 2, "augment": ("rotate=10", "cutout"), "encoder": "mlp"}
    folder = run_on(data, train, validate_every=10, figures=False, **views)
    record = json.loads((folder / "config.json").read_text())
    assert (record["views"], record["augment"]) == (2, ["rotate=10", "cutout"])
    supcon = {"loss": "supcon", "category": "sort", "encoder": "mlp", "repeat": False}
    run_on(data, train, validate_every=10, figures=False, batch_classes=4, by_size=True, **supcon)
    with pytest.raises(ValueError, match="column of images, which has sort, got genus"):
        run_on(data, train, validate_every=10, **supcon | {"category": "genus"})


def test_pairs_of_one_group_are_left_out(run_on):
    groups = [np.arange(len(one.classes), dtype=np.int32) // 5 % 2 for one in VECTORS[2:]]
    splits = [one._replace(groups=of) for one, of in zip(VECTORS[2:], groups, strict=True)]
    options = {"loss": "supcon", "labels": "other_group", "validate_every": 10, "figures": False}
    folder = run_on(VECTORS._replace(train=splits[0], validation=splits[1]), train, **options)
    assert json.loads((folder / "config.json").read_text())["labels"] == "other_group"
    with pytest.raises(ValueError, match="needs the group of each example"):
        run_on(VECTORS, train, **options)


def _tagged(split):
    """The same examples with two tags each, as a table has them: one of the next class too."""
    names = np.array(list("abcde"))
    tags = [f"{names[k]}; {names[(k + 1) % 5]}" for k in split.classes]
    return split._replace(attributes={"tags": np.array(tags)})


def test_figures_are_by_the_labels_that_a_run_is_trained_by(run_on, tmp_path):
    data = Dataset("tagged", VECTORS.class_names, *map(_tagged, VECTORS[2:]))
    chosen = {"loss": "supcon", "labels": "any_shared=tags", "validate_every": 10}
    folder = run_on(data, train, **chosen)
    results = json.loads((folder / "results.json").read_text())
    with np.load(folder / "embeddings.npz") as arrays:
        x, classes = arrays["embeddings"].astype(np.float64), arrays["classes"]
    squares = ((x[:, None] - x[None]) ** 2).sum(-1)
    np.fill_diagonal(squares, np.inf)
    nearest = classes[squares.argmin(axis=1)]
    shared = np.isin((nearest - classes) % 5, [0, 1, 4])  # a class shares tags with both beside it
    assert results["embedding"]["precision_at_1"] == shared.mean() > (nearest == classes).mean()
    assert {*results["embedding"]} == {*results["raw vectors"]}
    assert results["labels"] == "any_shared=tags"
    assert "Pairs are labelled by any_shared=tags" in (folder / "results.md").read_text()
    # Evaluated later, they are by the same labels, and by class if one asks for it.
    run_on(data, evaluate, run=folder, data=tmp_path, labels="class", out=tmp_path / "o")
    by_class = json.loads((tmp_path / "o" / "results.json").read_text())
    assert by_class["embedding"]["precision_at_1"] == (nearest == classes).mean()
    run_on(data, evaluate, run=folder, data=tmp_path, out=tmp_path / "again")
    assert json.loads((tmp_path / "again" / "results.json").read_text()) == results
    with pytest.raises(ValueError, match=r"^the data has no column tags, which labels take"):
        run_on(VECTORS, train, **chosen)
    # Other data need not have the column, and given pairs have labels.
    run_on(PAIRS, evaluate, run=folder, data=tmp_path, out=tmp_path / "pairs")
    with pytest.raises(ValueError, match="no column tags") as raised:
        run_on(VECTORS, evaluate, run=folder, data=tmp_path, out=tmp_path / "classes")
    assert "--labels class" in raised.value.__notes__[-1]
    apart = data.test.attributes["tags"].copy()
    queries = np.arange(60) < 20
    apart[queries] = [f"q{text}" for text in apart[queries]]
    alone = data.test._replace(attributes={"tags": apart}, queries=queries)
    with pytest.raises(ValueError, match="leave no query a match in the gallery"):
        run_on(data._replace(test=alone), train, **chosen)
    untagged = data._replace(test=VECTORS.test)
    with pytest.raises(ValueError, match="no column tags") as raised:
        run_on(untagged, train, **chosen)
    assert raised.value.__notes__ == ["in the test split of tagged"]


def _grouped(data):
    """The data with two groups a split, and each class in one of two categories."""

    def split(one):
        columns = {"sort": one.classes % 2}
        return one._replace(groups=np.arange(len(one.classes)) // 5 % 2, attributes=columns)

    return Dataset(data.name, data.class_names, *map(split, data[2:]))


def _assembled(program, data, **chosen):
    """The trials of a command of a grid, or of a comparison of losses, without training them."""
    config = option_checks.checked(program.Config(**chosen))
    if program is compare_losses:
        compare_losses.check_data(config, "all classes", data)
        return compare_losses._assembled(
            config, data, "supcon", [({"learning_rate": 1e-3, "options": {}}, 0)]
        )
    (group,) = trials.groups(trials.base_of(config), [{"learning_rate": 1e-3, "seed": 0}])
    trials.check_data([group], data, jax.devices()[:1])
    return trials.assembled(group, data, jax.devices()[:1])


SUPCON = {
    margin_ablation: {"loss": "supcon", "batch_size": 10},
    search: {"loss": "supcon", "batch_size": 10},
    compare_losses: {"losses": ("supcon",), "batch_size": 20},
}


@pytest.mark.parametrize("program", SUPCON)
def test_labels_and_batches_are_options_of_every_program(program):
    data, chosen = _grouped(VECTORS), SUPCON[program]
    made = _assembled(program, data, labels="other_group", **chosen)
    assert made.objective.labels is not None
    np.testing.assert_array_equal(made.source.attributes[1], data.train.groups)
    with pytest.raises(ValueError, match="needs the group of each example"):
        _assembled(program, VECTORS, labels="other_group", **chosen)
    for split in ("train", "test"):
        one = getattr(data, split)
        one = {split: one._replace(groups=np.zeros_like(one.groups))}
        with pytest.raises(ValueError, match="leave no positive pair") as raised:
            _assembled(program, data._replace(**one), labels="other_group", **chosen)
        assert raised.value.__notes__ == [f"in the {split} split of vectors"]
    made = _assembled(program, data, category="sort", batch_classes=2, by_size=True, **chosen)
    assert {*np.asarray(made.source.by_class.categories).tolist()} == {0, 1}
    with pytest.raises(ValueError, match="--category must be a column of vectors"):
        _assembled(program, data, category="genus", batch_classes=2, **chosen)
    with pytest.raises(ValueError, match="leave --augment out"):
        _assembled(program, data, augment=("crop",), **chosen)
    with pytest.raises(ValueError, match=r"--batch_classes must be from 2 to 5"):
        _assembled(program, data, batch_classes=10, **chosen)


def test_changes_that_there_are_not_are_named_at_once():
    with pytest.raises(ValueError, match="no change of an image called 'blur'"):
        option_checks.checked_training(train.Config(augment=("blur",)))


def test_losses_are_compared_on_vectors(tmp_path, monkeypatch):
    monkeypatch.setattr(options, "load", lambda *names, **where: VECTORS)
    monkeypatch.setattr(plots, "save", lambda *arguments: None)
    short = {"losses": ("contrastive",), "trials": 1, "seeds": 1, "steps": 20, "batch_size": 20}
    folder = compare_losses.main(compare_losses.Config(runs=tmp_path, width=4, **short))
    table = (folder / "results.md").read_text()
    assert {line.split(" | ")[0] for line in table.splitlines()[2:]} == {
        f"| {name}" for name in ("contrastive", "raw vectors", "PCA-whitened", "LDA")
    }


@pytest.mark.parametrize(
    ("data", "chosen", "message"),
    [
        (PAIRS, {"loss": "supcon"}, "compares whole batches by class"),
        (PAIRS, {"objective": "all_pairs"}, "leave --objective out"),
        (PAIRS, {"objective": "all_pairs", "batch_classes": 2}, "leave --"),
        (PAIRS, {"group": 4}, "leave --group out"),
        (PAIRS, {"positive_fraction": 0.2}, "leave --positive_fraction out"),
        (PAIRS, {"loss": "sigmoid", "memory": 100}, "leave --memory out"),
        (PAIRS, {"encoder": "convnet"}, "takes images, and the data has vectors"),
        (VECTORS, {"encoder": "drlim"}, "takes images, and the data has vectors"),
        (VECTORS, {"flip": True}, "leave --flip out"),
        (VECTORS, {"shift": 1}, "leave --shift out"),
        (VECTORS, {"augment": ("crop",)}, "leave --augment out"),
        (VECTORS, {"loss": "ntxent", "views": 2}, "leave --views out"),
        (PAIRS, {"loss": "sigmoid", "by_size": True}, "leave --by_size out"),
        (VECTORS, {"balanced": True}, "leave it out"),
    ],
)
def test_options_without_effect_are_errors(data, chosen, message):
    config = option_checks.checked_training(train.Config(**chosen))
    with pytest.raises(ValueError, match=message):
        option_checks.for_data(config, data)


def test_figures_of_other_data_are_refused(monkeypatch):
    monkeypatch.setattr(options, "load", lambda *names, **where: PAIRS)
    config, points = margin_ablation.Config(shown_by="map_at_r"), [{"margin": 1.0, "seed": 0}]
    words = "--shown_by must be one of auc, average_precision on pairs, got map_at_r"
    with pytest.raises(ValueError, match=words):
        trials.prepared(config, points)
    assert chosen_figure(PAIRS) == "auc"
    with pytest.raises(ValueError, match=r"one of precision_at_1, .* on vectors, got auc"):
        chosen_figure(VECTORS, "auc")


def test_seeds_of_a_grid_share_the_images_of_the_largest_batch():
    base = train.Config(width=4, steps=5, batch_size=8, log_every=5, validate_every=5)
    (group,) = trials.groups(base, [{"margin": 1.0, "seed": seed} for seed in range(3)])
    trials.check_data([group], PAIRS, jax.devices()[:2])
    made = trials.assembled(group, PAIRS, jax.devices()[:2])
    assert {one.seed for one in made.hyperparameters} == {0, 1, 2}
    assert "positive_fraction" not in made.hyperparameters[0].loss


@pytest.fixture
def head(tmp_path):
    """The folder of a head on vectors of 16 entries, and the run."""
    encoder, calibration = network(partial(models.Linear, width=4), (16,)), Calibration(4, 2, 0.5)
    measure, folder = distances.euclidean, tmp_path / "runs" / "head"
    folder.mkdir(parents=True)
    run = Run(encoder, encoder.weights, (16,), "float32", (), measure, 0.5, calibration)
    write(run, folder, partial(models.Linear, width=4), {})
    return folder, run


@pytest.mark.parametrize("form", ["npz", "parquet"])
def test_files_of_vectors_are_embedded_and_compared(head, tmp_path, form, capsys):
    (folder, run), vectors = head, VECTORS.test.images[:3]
    source, names = tmp_path / f"vectors.{form}", ["one", "two", "three"]
    if form == "npz":
        np.savez(source, embeddings=vectors, paths=np.array(names))
    else:
        table = {"vector": vectors.tolist(), "path": names}
        parquet.write_table(pa.table(table), source)
    out = embed.main(embed.Config(folder, source, tmp_path / "out.npz"))
    with np.load(out) as saved:
        np.testing.assert_allclose(saved["embeddings"], run.embed(vectors), atol=1e-6)
        assert saved["paths"].tolist() == names
    result = compare.main(compare.Config(folder, (source,)))
    np.testing.assert_allclose(
        result.distance, run.compare(vectors[[0, 0, 1]], vectors[[1, 2, 2]]).distance, atol=1e-6
    )
    assert "one three: distance" in capsys.readouterr().out
    two = compare.main(compare.Config(folder, (source, source)))
    assert len(two.same) == 15
    assert f"vectors.{form} two" in capsys.readouterr().out


def test_nothing_is_written_of_data_that_a_run_does_not_take(head, tmp_path):
    other = PAIRS._replace(images=PAIRS.images[:, :5])
    with pytest.raises(ValueError, match=r"images must be \[N, 16\]"):
        run_report.write_report(
            dataclasses.replace(head[1], folder=head[0]), other, tmp_path / "out"
        )
    assert not (tmp_path / "out").exists()


def test_files_that_a_run_on_vectors_does_not_take_are_named(head, tmp_path):
    folder, _ = head
    np.savez(tmp_path / "short.npz", embeddings=np.zeros((3, 5)))
    np.savez(tmp_path / "none.npz", labels=np.zeros(3))
    np.savez(tmp_path / "nan.npz", vectors=np.full((3, 16), np.nan))
    np.savez(tmp_path / "many.npz", vectors=np.zeros((101, 16)))
    np.savez(tmp_path / "names.npz", vectors=np.zeros((3, 16)), paths=["one", "two"])
    parquet.write_table(pa.table({"a": [1]}), tmp_path / "a.parquet")
    for name, words in (
        ("photos", r"takes vectors of 16 entries: give them in a file \(.npz with an array"),
        ("short.npz", r"takes vectors of 16 entries, and .* has float64 of shape \[3, 5\]"),
        ("none.npz", "has 0 of the arrays embeddings and vectors, expected one; .* labels"),
        ("nan.npz", "3 vectors of .* or their lengths are not finite: row 0 first"),
        ("a.parquet", "has no column vector; its columns are a"),
        ("names.npz", "has 2 paths for 3 vectors"),
        ("missing.npz", "there is no file"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            embed.main(embed.Config(folder, tmp_path / name, tmp_path / "out.npz"))
    with pytest.raises(ValueError, match="of 2 to 100 pictures or vectors, got 101"):
        compare.main(compare.Config(folder, (tmp_path / "many.npz",)))
    assert not (tmp_path / "out.npz").exists()

"""Options of all programs: their ranges, their paths, and under which others they have effects."""

import dataclasses
import math
import types
import typing
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contrastive_jax import data
from contrastive_jax.train import diagnostics, folder, loss_table
from experiments import (
    compare_losses,
    drlim,
    margin_ablation,
    option_checks,
    options,
    search,
    train,
)

PROGRAMS = (train, margin_ablation, search, compare_losses, drlim)
# Checked against the devices there are.
BY_DEVICES = {"devices", "devices_per_trial"}


def _options(program):
    return {field.name: field for field in dataclasses.fields(program.Config)}


def _alternatives(kind):
    return typing.get_args(kind) if isinstance(kind, types.UnionType) else ()


def _programs_with(option):
    return [program for program in PROGRAMS if option in _options(program)]


class Stopped(Exception):
    pass


@pytest.fixture
def no_data(monkeypatch):
    """Ends every program where it would load its data."""

    def load(*arguments, **options):
        raise Stopped

    monkeypatch.setattr(options, "load", load)


def test_every_number_of_every_program_has_a_range():
    for program in PROGRAMS:
        for name, field in _options(program).items():
            if {field.type, *_alternatives(field.type)} & {int, float}:
                assert name in {*option_checks.RULES} | BY_DEVICES, (program.__name__, name)


OUT_OF_RANGE = {
    "learning_rate": (0.0, -1.0, math.inf, math.nan),
    "memory": (-1,),
    "seed": (-1, 2**32, 2**70),
    "seeds": (0, -1),
    "shift": (-1,),
    "positive_fraction": (-0.1, 1.1, math.nan),
    "warmup": (-0.1, 1.0, math.nan),
    "weight_decay": (-0.1, math.inf, math.nan),
    "width": (1, 0, -8),
    "keep_one_in": (1, 0),
    "batch_classes": (1, 0),
}


@pytest.mark.parametrize("option", option_checks.RULES)
@pytest.mark.usefixtures("no_data")
def test_numbers_out_of_range_are_refused_before_data_is_read(option, tmp_path):
    assert _programs_with(option)
    for program in _programs_with(option):
        for value in OUT_OF_RANGE.get(option, (0, -3)):
            config = program.Config(**{"runs": tmp_path / "runs", option: value})
            with pytest.raises(ValueError, match=rf"^--{option} must be .*, got {value}$"):
                program.main(config)
    assert not [*tmp_path.iterdir()]


# For each condition, options under which it does not hold, and what the error says.
WITHOUT_EFFECT = [
    ("data_dir", {"data_dir": Path("mine"), "dataset": "digits"}, "with --dataset digits"),
    ("dataset", {"data": Path("mine"), "dataset": "digits"}, "exclude each other"),
    ("dataset", {"dataset": "./mine"}, "takes the name of a data set, got the path"),
    ("data_dir", {"data": Path("mine"), "data_dir": Path("idx")}, "no effect with --data"),
    ("tfds_dir", {"data": Path("mine"), "tfds_dir": Path()}, "no effect with --data"),
    ("on_bad_input", {"on_bad_input": "skip"}, "give --data"),
    ("similar_label", {"similar_label": 0, "dataset": "digits"}, "give --data"),
    ("overwrite", {"overwrite": True, "name": None}, "--overwrite needs the --name"),
    ("overwrite", {"overwrite": True, "resume": "x", "name": "x"}, "exclude each other"),
    ("keep_one_in", {"keep_one_in": 3, "method": "optuna"}, "with --method optuna"),
    ("keep_one_in", {"keep_one_in": 2, "trials": 1}, "and --trials 1"),
    ("at_once", {"at_once": 4}, "with --method halving"),
    ("loss_learning_rate", {"loss_learning_rate": 0.1}, "contrastive has no parameters"),
    ("loss_learning_rate", {"loss_learning_rate": 0.1, "loss": "supcon"}, "has no parameters"),
    (
        "memory",
        {"memory": 512},
        "--memory is compared .*--objective all_pairs, or another loss",
    ),
    ("memory", {"memory": 512, "loss": "arcface"}, "takes no --memory"),
    ("max_age", {"max_age": 1000}, "without a memory"),
    ("max_age", {"max_age": 5, "loss": "supcon"}, "without a memory"),
    ("objective", {"objective": "pairs", "loss": "supcon"}, "leave --objective"),
    ("distance", {"distance": "cosine", "loss": "supcon"}, "leave --objective and --distance"),
    ("data_on", {"data_on": "host", "loss": "supcon"}, "leave --data_on out"),
    ("data_on", {"data_on": "host", "objective": "all_pairs"}, "leave --data_on out"),
    (
        "margin",
        {"margin": 1.0, "loss": "triplet_all", "loss_options": {"margin": 0.2}},
        "--margin and --loss_options margin name the same",
    ),
    (
        "positive_fraction",
        {"positive_fraction": 0.2, "loss": "supcon"},
        "no share of positive pairs",
    ),
    (
        "positive_fraction",
        {
            "positive_fraction": 0.2,
            "loss": "logistic",
            "loss_options": {"positive_fraction": 0.3},
        },
        "name the same",
    ),
    ("group", {"group": 1, "objective": "all_pairs"}, "leave --group out"),
    ("group", {"group": 8, "loss": "supcon"}, "leave --group out"),
    (
        "batch_classes",
        {"batch_classes": 4, "loss": "contrastive"},
        "--batch_classes is of batches of classes, .*--objective all_pairs",
    ),
    ("views", {"views": 2, "loss": "contrastive"}, "--views is of batches of classes"),
    ("repeat", {"repeat": False, "loss": "contrastive"}, "--repeat is of batches of classes"),
    ("by_size", {"by_size": True, "loss": "contrastive"}, "--by_size is of batches of classes"),
    (
        "category",
        {"category": "sort", "loss": "contrastive"},
        "--category is of batches of classes",
    ),
    (
        "labels",
        {"labels": "other_group", "loss": "contrastive"},
        "drawn by class .* take --objective all_pairs, or leave --labels out",
    ),
    (
        "labels",
        {"labels": "other_group", "loss": "arcface"},
        r"arcface compares .*leave --labels out",
    ),
    *(
        (
            name,
            {name: value, "loss": "supcon", "views": 2},
            rf"--{name} has no effect with several views of one image",
        )
        for name, value in (
            ("batch_classes", 4),
            ("repeat", False),
            ("by_size", True),
            ("category", "sort"),
            ("labels", "other_group"),
        )
    ),
]


def test_every_condition_has_an_example():
    examples = [option for option, _, _ in WITHOUT_EFFECT]
    for option in {option for option, _ in _conditions()}:
        assert examples.count(option) >= sum(name == option for name, _ in _conditions())


def _conditions():
    """Each option with each condition under which it has an effect."""
    effects = option_checks.EFFECTS + option_checks.EFFECTS_OF_TRAINING
    return [(option, effect.holds) for effect in effects for option in effect.options.split()]


@pytest.mark.parametrize(("option", "options", "words"), WITHOUT_EFFECT)
@pytest.mark.usefixtures("no_data")
def test_options_without_effect_are_refused_by_every_program(option, options, words, tmp_path):
    programs = [program for program in PROGRAMS if {*options} <= {*_options(program)}]
    assert programs
    for program in programs:
        defaults = {"runs": tmp_path / "runs"}
        if program is margin_ablation and "margin" not in options:
            defaults |= {"margins": None, "grid": ("clip_norm=0.5,1",)}
        if program is search:
            defaults |= {"space": ("clip_norm=0.5:1",)}
        if program is compare_losses and options.get("name", "x") is None:
            continue  # its runs have a name by default
        with pytest.raises(ValueError, match=words) as error:
            program.main(program.Config(**defaults | options))
        assert f"--{option}" in str(error.value)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    "options",
    [
        {"data_dir": Path("mine"), "dataset": "mnist"},
        {"data": Path("mine"), "on_bad_input": "skip", "similar_label": 0, "split": "classes"},
        {"loss": "arcface", "loss_learning_rate": 0.1, "batch_classes": 4, "margin": 0.3},
        {"loss": "supcon", "memory": 512, "max_age": 10, "loss_options": {"temperature": 0.2}},
        {"loss": "logistic", "positive_fraction": 0.2, "objective": "all_pairs"},
        {"distance": "cosine", "margin": 0.5, "positive_fraction": 0.2, "group": 8},
        {"data_on": "host", "objective": "pairs", "group": 8},
        {"data_on": "host", "loss": "cosine_embedding", "data": Path("pairs.csv")},
        {"objective": "all_pairs", "batch_classes": 4, "positive_fraction": 0.2},
        {"name": "x", "resume": "x"},
        {"objective": "all_pairs", "memory": 512, "max_age": 10},
        {"loss": "supcon", "repeat": False, "by_size": True, "category": "sort"},
        {"loss": "ntxent", "views": 2, "augment": ("crop", "rotate=5")},
    ],
)
def test_options_with_an_effect_are_taken(options):
    option_checks.checked_training(train.Config(**options))


@pytest.mark.parametrize("loss", ["contrastive", "sigmoid"])
def test_a_share_of_positive_pairs_is_recorded_however_it_is_given(loss):
    for given in ({"positive_fraction": 0.4}, {"loss_options": {"positive_fraction": 0.4}}):
        config = option_checks.checked_training(train.Config(loss=loss, **given))
        settled = options.settled(config, jax.devices()[:1])
        assert settled["positive_fraction"] == 0.4
        objective = options.objective_of(config, settled)
        assert objective.hyperparameters["positive_fraction"] == 0.4


def test_classes_stream_with_the_contrastive_loss_alone():
    config = train.Config(loss="cosine_embedding", data_on="host")
    with pytest.raises(ValueError, match="--loss cosine_embedding is of whole batches"):
        option_checks.for_data(option_checks.checked_training(config), data.load("digits"))


@pytest.mark.parametrize(
    ("program", "options"),
    [
        (margin_ablation, {"learning_rate": 0.1, "grid": ("learning_rate=1e-3,1e-2",)}),
        (margin_ablation, {"loss": "supcon", "grid": ("loss=ntxent,contrastive",)}),
        (search, {"width": 8, "space": ("width=2,64",)}),
        (search, {"learning_rate": 0.1, "space": ("learning_rate=1e-3:1e-2",)}),
    ],
)
@pytest.mark.usefixtures("no_data")
def test_what_is_an_axis_is_no_option_too(program, options):
    with pytest.raises(ValueError, match=r"has no effect, as \w+ is an axis of .*: leave one"):
        program.main(program.Config(**options))


@pytest.mark.usefixtures("no_data")
def test_a_loss_or_a_class_named_twice_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--losses names supcon twice"):
        compare_losses.main(compare_losses.Config(losses=("supcon", "nca", "supcon")))
    with pytest.raises(ValueError, match="--classes must be at least one, all different"):
        drlim.main(drlim.Config(classes=("4", "4")))


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({"by_size": True}, "--by_size has no effect where a batch has all classes"),
        ({"category": "sort"}, "--category has no effect where a batch has all classes"),
        (
            {"views": 2, "batch_classes": 4},
            "--batch_classes has no effect with several views of one image",
        ),
        (
            {"views": 2, "labels": "other_group"},
            "--labels has no effect with several views of one image",
        ),
        (
            {"labels": "other_group", "losses": ("arcface",)},
            r"arcface compares .*leave --labels out",
        ),
        ({"views": 7}, "--views must divide the 60 images of a batch"),
        ({"batch_classes": 7}, "--batch_classes must divide the 60 images of a batch"),
        ({"views": 2, "flip": False, "shift": 0}, "views of one image would all be equal"),
        ({"augment": ("blur",)}, "no change of an image called 'blur'"),
    ],
)
@pytest.mark.usefixtures("no_data")
def test_batches_of_a_comparison_are_checked_before_data_is_read(chosen, words, tmp_path):
    config = {"losses": ("supcon",), "runs": tmp_path / "runs"}
    with pytest.raises(ValueError, match=words):
        compare_losses.main(compare_losses.Config(**config | chosen))
    for allowed in ({"views": 2}, {"by_size": True, "batch_classes": 4}, {"labels": "other_group"}):
        with pytest.raises(Stopped):
            compare_losses.main(compare_losses.Config(runs=tmp_path / "runs", **allowed))


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.usefixtures("no_data")
def test_folders_that_are_none_are_refused(program, tmp_path):
    absent, file = tmp_path / "absent", tmp_path / "file"
    file.touch()
    for given, words in (
        ({"tfds_dir": absent}, f"--tfds_dir {absent} is not a folder: create it"),
        ({"tfds_dir": file}, f"--tfds_dir {file} is not a folder: create it"),
        ({"runs": file}, f"--runs {file} is not a folder"),
    ):
        with pytest.raises(ValueError, match=words):
            program.main(program.Config(**given))
    assert not absent.exists()


@pytest.mark.parametrize("program", PROGRAMS)
def test_home_folders_are_expanded_in_every_path(program, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    paths = [
        name
        for name, field in _options(program).items()
        if Path in {field.type, *_alternatives(field.type)}
    ]
    assert {"runs", "data_dir", "tfds_dir"} <= {*paths}
    for name in paths:
        (tmp_path / name).mkdir()
    config = program.Config(**{name: Path("~") / name for name in paths})
    checked = option_checks.checked(config)
    assert {name: getattr(checked, name) for name in paths} == {
        name: tmp_path / name for name in paths
    }
    for name in paths:
        with pytest.raises(ValueError, match=f"--{name} ~nobody-of-this-name/x begins with a home"):
            option_checks.checked(program.Config(**{name: Path("~nobody-of-this-name/x")}))


def test_a_run_in_the_home_folder_lies_there(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)

    def opened(runs, *arguments, **options):
        raise Stopped(runs)

    monkeypatch.setattr(folder, "open_run", opened)
    with pytest.raises(Stopped, match=str(tmp_path / "home" / "x")):
        train.main(train.Config(runs=Path("~/x"), encoder="mlp", width=4))
    assert not (tmp_path / "~").exists()


# Margins and what a distance can reach.


@pytest.mark.parametrize("name", options.DISTANCES)
def test_reach_is_the_largest_distance_there_is(name):
    distance = jax.vmap(options.DISTANCES[name])
    points = np.random.default_rng(0).normal(size=(1000, 4))
    # Along an axis, and along the diagonal, is as far as entries can add up.
    points = np.concatenate([points, np.eye(4), np.ones((1, 4))])
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    points = jnp.asarray(points, jnp.float32)
    opposite = distance(points, -points)
    reach = diagnostics.reach(options.DISTANCES[name], 4, unit_length=True)
    np.testing.assert_allclose(opposite.max(), reach, rtol=1e-5)
    assert distance(points, points[::-1]).max() <= reach * (1 + 1e-5)
    raw = diagnostics.reach(options.DISTANCES[name], 4, unit_length=False)
    assert raw == (reach if name in ("cosine", "angular") else math.inf)
    np.testing.assert_allclose(
        distance(100 * points, -100 * points).max() > 1.01 * reach, math.isinf(raw)
    )


def _warnings(**options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        option_checks.warn_of_reach([option_checks.checked_training(train.Config(**options))] * 2)
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize(
    ("options", "reach"),
    [
        ({}, 2.0),
        ({"distance": "squared_euclidean"}, 4.0),
        ({"distance": "cosine"}, 2.0),
        ({"distance": "angular"}, math.pi),
        ({"distance": "manhattan", "width": 16}, 8.0),
        ({"distance": "chebyshev"}, 2.0),
        ({"distance": "cosine", "normalize": False}, 2.0),
        ({"loss": "contrastive_halved"}, 2.0),
        ({"loss": "sentence_contrastive"}, 2.0),
        ({"loss": "triplet_hard"}, 2.0),
        ({"loss": "mined_hard"}, 2.0),
        ({"loss": "online_hard"}, 2.0),
        ({"loss": "margin_based", "loss_options": {"boundary": 0.5}}, 1.5),
    ],
)
def test_margins_out_of_reach_are_warned_of_once(options, reach):
    assert not _warnings(**options, margin=0.99 * reach)
    (message,) = _warnings(**options, margin=1.01 * reach)
    assert f"a margin of {1.01 * reach:g}" in message
    assert "is out of reach: the" in message
    assert f"is at most {reach + options.get('loss_options', {}).get('boundary', 0):.4g}" in message


def test_margins_without_a_reach_are_not_warned_of():
    assert not _warnings(margin=100.0, normalize=False)
    assert not _warnings(margin=100.0, loss="signal_to_noise")
    for name in loss_table.NAMES:
        assert not _warnings(loss=name)


@pytest.mark.parametrize(
    ("program", "options"),
    [
        (train, {"margin": 3.0}),
        (margin_ablation, {"margins": (0.5, 3.0), "seeds": 2}),
        (margin_ablation, {"grid": ("margin=0.5,3",)}),
        (search, {"space": ("margin=0.1:3", "learning_rate=1e-3:1e-2")}),
        (search, {"space": ("margin=0.5,3",)}),
    ],
)
@pytest.mark.usefixtures("no_data")
def test_every_program_with_margins_warns_before_data_is_read(program, options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(Stopped):
            program.main(program.Config(**options))
    (message,) = [str(one.message) for one in caught if "out of reach" in str(one.message)]
    assert message.startswith(
        "a margin of 3 is out of reach: the euclidean distance between embeddings of unit length"
    )


@pytest.mark.parametrize("program", [train, margin_ablation, search, compare_losses])
@pytest.mark.usefixtures("no_data")
def test_a_name_that_is_taken_is_refused_before_data_is_read(program, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    with pytest.raises(FileExistsError, match="mine exists; --resume goes on with it"):
        program.main(program.Config(runs=tmp_path, name="mine"))

"""The command: from nothing to figures, killed and resumed, and every way to use it wrong."""

import functools
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from contrastive_jax import cli, run_report
from contrastive_jax.train import assembly, checkpoints, loss_table, steps, validation
from contrastive_jax.train import folder as runs
from experiments import option_checks, options, train

ROOT = Path(train.__file__).parent.parent
SMALL = {
    "encoder": "mlp",
    "width": 8,
    "steps": 60,
    "log_every": 10,
    "validate_every": 20,
    "batch_size": 16,
    "devices": 1,
    "group": 2,
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return tmp_path_factory.mktemp("tfds")


@pytest.fixture
def drawn_config(tmp_path, prepared):
    def make(**options):
        if options.get("resume") is True:
            options["resume"] = options["name"]
        return train.Config(**(SMALL | {"runs": tmp_path, "tfds_dir": prepared} | options))

    return make


@pytest.fixture
def config(drawn_config, no_figures):
    return drawn_config


pytestmark = pytest.mark.usefixtures("few_pairs")

DEFAULTS = train.Config()

# The command without figures.
COMMAND = """
import runpy, types
from contrastive_jax import plots, run_report

none = dict.fromkeys(vars(plots), lambda *args, **kwargs: None)
run_report.plots = types.SimpleNamespace(**none)
runpy.run_module("experiments.train", run_name="__main__")
"""


def _eight_virtual_devices():
    """The environment of a user, who gives a flag of XLA and does not know of PJRT_NPROC."""
    environment = {k: v for k, v in os.environ.items() if k != "PJRT_NPROC"}
    flags = environment.get("XLA_FLAGS", "")
    return environment | {"XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count=8"}


def _params(folder, step=60):
    with ocp.PyTreeCheckpointer() as reader:
        return reader.restore(folder / "checkpoints" / str(step) / "default")["params"]


@pytest.mark.usefixtures("threefry")  # its figures are those of a run of a user
def test_a_run_leaves_all_that_it_promises(drawn_config):
    folder = train.main(
        drawn_config(
            batch_size=64,
            group=8,
            steps=200,
            validate_every=100,
            log_every=50,
        )
    )
    options = json.loads((folder / "config.json").read_text())
    assert options["margin"] == 1.2
    assert options["steps"] == 200
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    trained = [record for record in records if "loss" in record]
    assert [record["step"] for record in trained] == list(range(1, 201))
    validated = [record for record in records if "validation/map_at_r" in record]
    assert [record["step"] for record in validated] == [100, 200]
    first, last = (
        np.mean([record["loss"] for record in part]) for part in (trained[:20], trained[-20:])
    )
    assert last < 0.5 * first
    assert list((folder / "tensorboard").iterdir())
    with np.load(folder / "embeddings.npz") as saved:
        assert saved["embeddings"].shape == (450, 8)
        assert saved["classes"].shape == (450,)
    results = json.loads((folder / "results.json").read_text())
    assert results["embedding"]["precision_at_1"] > 0.9
    assert results["embedding"]["map_at_r"] > results["raw pixels"]["map_at_r"] + 0.1
    table = (folder / "results.md").read_text()
    assert f"{results['embedding']['precision_at_1']:.4f}" in table
    figures = {path.stem for path in (folder / "figures").glob("*.png")}
    assert figures == {
        "loss",
        "distances",
        "roc",
        "map",
        "map_classes",
        "gallery",
        "training",
    }


def test_killed_and_resumed_is_uninterrupted(config, tmp_path, pytestconfig):
    """With the defaults of a machine of eight virtual devices, in a process that is killed."""
    # The process draws the numbers that this one draws.
    draws = "" if pytestconfig.getoption("optimised") else "import cheap_hash; cheap_hash.draw()"
    paths = filter(None, [str(ROOT / "tests"), os.environ.get("PYTHONPATH")])
    batch_keys = "batch_size", "devices", "group"
    whole = train.main(config(name="whole", **{key: getattr(DEFAULTS, key) for key in batch_keys}))
    given = {key: value for key, value in SMALL.items() if key not in batch_keys}
    given |= {"runs": tmp_path, "name": "killed", "tfds_dir": config().tfds_dir}
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            draws + COMMAND,
            *(f"--{key}={value}" for key, value in given.items()),
        ],
        cwd=ROOT,
        env=_eight_virtual_devices() | {"PYTHONPATH": os.pathsep.join(paths)},
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "killed" / "checkpoints" / "20").exists():
            assert time.monotonic() < deadline, "no checkpoint within two minutes"
            assert process.poll() is None, "ended before it could be killed"
            time.sleep(0.001)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "killed" / "results.json").exists()
    settled = json.loads((tmp_path / "killed" / "config.json").read_text())
    assert (settled["devices"], settled["group"]) == (8, 16)
    # With its own options, of which none is repeated.
    resumed = ["--resume", "killed", "--runs", str(tmp_path)]
    train.main(cli.parse(train.Config, "experiments.train", "x", resumed))

    jax.tree.map(np.testing.assert_array_equal, _params(tmp_path / "killed"), _params(whole))
    metrics = [
        [
            {key: value for key, value in json.loads(line).items() if key != "pairs_per_second"}
            for line in (folder / "metrics.jsonl").read_text().splitlines()
        ]
        for folder in (whole, tmp_path / "killed")
    ]
    assert metrics[0] == metrics[1]
    assert (tmp_path / "killed" / "results.json").read_text() == (
        whole / "results.json"
    ).read_text()


WAYS = {
    "pmap": {"parallel": "pmap", "devices": 8},
    "shard_map": {"parallel": "shard_map", "devices": 8},
    "host": {"data_on": "host", "devices": 2, "parallel": "pmap"},
    "steps_per_call": {"steps_per_call": 10, "check_values": True},
}


@pytest.mark.parametrize(
    ("encoder", "ways"),
    [
        ("mlp", ["pmap", "host", "steps_per_call"]),
        ("convnet", ["shard_map"]),
        pytest.param("mlp", ["shard_map"], marks=pytest.mark.long),
        pytest.param("convnet", ["pmap", "host", "steps_per_call"], marks=pytest.mark.long),
    ],
)
def test_both_ways_over_devices_and_both_places_of_data_give_the_same(
    config, monkeypatch, encoder, ways
):
    monkeypatch.setattr(run_report, "write_report", lambda *arguments, **by: None)
    # Adam makes whole steps of gradients that are all rounding; a small rate keeps those small.
    common = {"steps": 20, "learning_rate": 1e-4, "warmup": 0.5, "encoder": encoder}
    want = _params(train.main(config(**common)), 20)
    for way in ways:
        got = _params(train.main(config(**(common | WAYS[way]))), 20)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, want)


def test_all_pairs_of_a_batch_are_an_objective(config):
    options = {"objective": "all_pairs", "group": None, "batch_size": 32, "steps": 200}
    folder = train.main(config(**options, width=16, validate_every=100, check_values=True))
    results = json.loads((folder / "results.json").read_text())
    assert results["embedding"]["map_at_r"] > results["raw pixels"]["map_at_r"] + 0.1
    with pytest.raises(ValueError, match=r"--batch_classes must divide the 64 images .* got 11"):
        train.main(config(**options, batch_classes=11))
    with pytest.raises(ValueError, match=r"batch_classes must be from 2 to 10, .* got 16"):
        train.main(config(**options, batch_classes=16))


def test_nan_stops_the_run_and_keeps_the_last_good_checkpoint(config, monkeypatch, tmp_path):
    make = steps.make_step

    def breaking(*args, **kwargs):
        step = make(*args, **kwargs)

        def broken(state, pairs, hyper):
            state, metrics = step(state, pairs, hyper)
            nan = jax.numpy.where(state.step >= 34, np.nan, 1.0)
            params = jax.tree.map(lambda p: p * nan, state.params)
            return state._replace(params=params), metrics

        return broken

    monkeypatch.setattr(assembly, "make_step", breaking)
    with pytest.raises(FloatingPointError, match="step 35: loss nan") as error:
        train.main(config(name="nan"))
    assert error.value.__notes__ == ["the last good checkpoint is of step 20"]
    with checkpoints.open_checkpoints(
        tmp_path / "nan" / "checkpoints", best_by=validation.BEST_BY
    ) as saved:
        assert saved.all_steps() == [20]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(_params(tmp_path / "nan", 20)))


def _relabelled(pairs):
    same = pairs.first_classes == pairs.second_classes
    zeros = jax.numpy.zeros_like(pairs.first_classes)
    return pairs._replace(first_classes=zeros, second_classes=same.astype(zeros.dtype))


def test_inverted_labels_are_warned_of(config, monkeypatch):
    make = steps.make_step

    def inverted(*args, **kwargs):
        step = make(*args, **kwargs)
        return lambda state, pairs, hyper: step(state, _relabelled(pairs), hyper)

    monkeypatch.setattr(assembly, "make_step", inverted)
    monkeypatch.setattr(run_report, "write_report", lambda *arguments, **by: None)
    with pytest.warns(UserWarning, match="are the labels inverted"):
        train.main(config(group=1, learning_rate=1e-4, batch_size=64))


def test_class_splits_train_and_test(config):
    folder = train.main(config(split="classes", steps=20))
    with np.load(folder / "embeddings.npz") as saved:
        assert set(saved["classes"]) == {5, 6, 7, 8, 9}


def _without_rates(folder):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k != "pairs_per_second"} for r in records]


@pytest.mark.parametrize(
    ("loss", "options"),
    [
        ("arcface", {"loss_options": {"margin": 0.3}, "loss_learning_rate": 0.02}),
        ("ntxent", {"memory": 100, "max_age": 5}),
    ],
)
def test_a_loss_of_whole_batches_trains_and_resumes(config, monkeypatch, loss, options):
    monkeypatch.setattr(run_report, "write_report", lambda *arguments, **by: None)
    options = options | {"loss": loss, "group": None, "name": loss}
    folder = train.main(config(**options))
    records, params = _without_rates(folder), _params(folder)
    trained = [record["loss"] for record in records if "loss" in record]
    assert len(trained) == 60
    assert np.mean(trained[-10:]) < np.mean(trained[:10])
    (loss_params,) = jax.tree.leaves(params["loss"]) or [None]
    assert (loss_params is None) == (loss == "ntxent")
    # As if it had been killed before its last checkpoint.
    shutil.rmtree(folder / "checkpoints" / "60")
    train.main(config(**options, resume=True))
    assert _without_rates(folder) == records
    jax.tree.map(np.testing.assert_array_equal, _params(folder), params)


def test_a_damaged_checkpoint_is_passed_over_and_made_again(config, tmp_path, capsys):
    small = {"steps": 20, "log_every": 5, "validate_every": 10, "name": "mine"}
    folder = train.main(config(**small))
    records, results = _without_rates(folder), (folder / "results.json").read_bytes()
    (folder / "checkpoints" / "20" / "metrics" / "metrics").write_bytes(b"")
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    # Nor does a bad line cost any other.
    (folder / "metrics.jsonl").write_text("".join([*lines[:5], "\n", *lines[5:]]))
    with (
        pytest.warns(UserWarning, match="checkpoint 20 is damaged and left out: its metrics"),
        pytest.warns(UserWarning, match=r"metrics.jsonl, line 6 is blank"),
    ):
        train.main(config(**small, resume=True))
    assert f"{folder} goes on from step 10\n" in capsys.readouterr().out
    path = folder / "metrics.jsonl"
    after = path.read_text().splitlines(keepends=True)
    assert after.pop(5) == "\n"
    path.write_text("".join(after))
    assert _without_rates(folder) == records
    assert (folder / "results.json").read_bytes() == results
    shutil.rmtree(folder / "checkpoints")
    train.main(config(**small, resume=True))
    told = f"{folder} goes on from step 0, as there is no good checkpoint\n"
    assert told in capsys.readouterr().out
    assert _without_rates(folder) == records
    assert (folder / "results.json").read_bytes() == results


def test_a_run_in_use_is_refused(config, tmp_path):
    made = config(name="mine", steps=20)
    settled = options.settled(option_checks.checked_training(made), jax.devices()[:1])
    settled = json.loads(json.dumps(settled, default=str))
    with runs.open_run(tmp_path, "mine", "x", settled) as folder:
        for option in ("resume", "overwrite"):
            with pytest.raises(BlockingIOError, match=r"mine is in use by process \d+"):
                train.main(config(name="mine", steps=20, **{option: True}))
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "run.lock"]


@pytest.mark.parametrize("begun", [4, 1])
def test_a_run_goes_on_to_the_same_bits_on_other_devices(config, capsys, monkeypatch, begun):
    """Four devices, and one with four microbatches, for which its own defaults would be others."""
    monkeypatch.setattr(run_report, "write_report", lambda *arguments, **by: None)
    options = {"steps": 40, "group": None, "name": f"on-{begun}"}
    microbatches = 4 // begun
    folder = train.main(config(**options, devices=begun, microbatches=microbatches))
    whole, records = _params(folder, 40), _without_rates(folder)
    # As if it had been killed before its last checkpoint.
    shutil.rmtree(folder / "checkpoints" / "40")
    capsys.readouterr()
    train.main(config(**options, devices=5 - begun, resume=True))
    assert (
        f"begun with --devices {begun} --microbatches {microbatches} and goes on with --devices "
        f"{5 - begun} --microbatches {begun}, which gives the same numbers"
    ) in capsys.readouterr().out
    jax.tree.map(np.testing.assert_array_equal, _params(folder, 40), whole)
    assert _without_rates(folder) == records


def _begun_with(folder, config, **others):
    """The folder of a run, of which there is a configuration alone."""
    folder.mkdir(parents=True)
    settled = options.settled(
        option_checks.checked_training(config), jax.devices()[: config.devices]
    )
    text = json.dumps(settled | others, default=str)
    (folder / "config.json").write_text(text)


@pytest.mark.parametrize(
    ("begun", "now", "words"),
    [
        # Sums of two by two, by another loss, of other parts, are in another order.
        (
            {"devices": 2, "microbatches": 2},
            {"devices": 1},
            "begun with --devices 2 --microbatches 2; on 1 devices .* resume it with --devices 2 "
            "--microbatches 2$",
        ),
        ({"devices": 1}, {"devices": 2}, "resume it with --devices 1 --microbatches 1$"),
        (
            {"devices": 4, "objective": "all_pairs", "group": None},
            {"devices": 1},
            "resume it with --devices 4 --microbatches 1$",
        ),
        ({"devices": 4, "loss": "supcon", "group": None}, {"devices": 1}, "with --devices 4"),
        (
            {"devices": 4},
            {"devices": 2},
            "with --devices 4 --microbatches 1, or with --devices 1 --microbatches 4$",
        ),
        ({"devices": 4}, {"devices": 1, "microbatches": 2}, "or with --devices 1 --microbatches 4"),
        # What differs besides is still found.
        ({"devices": 4}, {"devices": 1, "group": 1}, "group was 2 and is now 1"),
        ({"devices": 4}, {"devices": 1, "margin": 0.5}, r"margin was 1\.2 and is now 0\.5"),
    ],
)
def test_a_run_does_not_go_on_to_other_bits(config, tmp_path, begun, now, words):
    _begun_with(tmp_path / "x", config(**begun))
    with pytest.raises(ValueError, match=words):
        train.main(config(**begun | now, name="x", resume=True))
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["config.json"]


def test_a_damaged_configuration_is_named(config, tmp_path):
    for text in ('{"devices": 4', "[]", ""):
        (tmp_path / "x").mkdir(exist_ok=True)
        (tmp_path / "x" / "config.json").write_text(text)
        with pytest.raises(ValueError, match=r"x/config\.json is damaged: .*--overwrite"):
            train.main(config(name="x", resume=True))


def test_a_folder_is_never_overwritten_without_being_told(config, monkeypatch):
    monkeypatch.setattr(run_report, "write_report", lambda *arguments, **by: None)
    folder = train.main(config(name="mine", steps=20))
    before = (folder / "metrics.jsonl").read_bytes()
    with pytest.raises(FileExistsError, match="--overwrite"):
        train.main(config(name="mine", steps=20))
    with pytest.raises(ValueError, match=r"margin was 1\.2 and is now 0\.5"):
        train.main(config(name="mine", steps=20, resume=True, margin=0.5))
    assert (folder / "metrics.jsonl").read_bytes() == before
    train.main(config(name="mine", steps=20, margin=0.5, overwrite=True))
    assert json.loads((folder / "config.json").read_text())["margin"] == 0.5
    assert train.main(config(steps=20)).name == "digits-mlp-1"


def test_a_run_is_not_resumed_to_fewer_steps_than_it_has_taken(config, monkeypatch):
    monkeypatch.setattr(run_report, "write_report", lambda *arguments, **by: None)
    folder = train.main(config(name="mine", steps=40))
    before = (folder / "config.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(options, "load", None)  # no data is read for it
        with pytest.raises(
            ValueError,
            match=r"has taken 40 steps already: --steps must be at least 40, .* leave --resume",
        ):
            train.main(config(name="mine", steps=20, resume=True))
    assert (folder / "config.json").read_bytes() == before


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "mine"}, "mine exists; --resume goes on with it"),
        ({"init_from": Path("no run")}, "no run/run.json does not exist"),
        ({"loss": "supcon", "views": 3, "flip": True}, "--views must divide the 32 images"),
        ({"loss": "supcon", "views": 2, "flip": False, "shift": 0}, "would all be equal"),
        ({"loss": "supcon", "batch_classes": 5}, "--batch_classes must divide the 32 images"),
    ],
)
def test_options_that_are_wrong_on_any_data_are_refused_before_it_is_read(
    config, tmp_path, monkeypatch, given, message
):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    monkeypatch.setattr(options, "load", None)
    with pytest.raises((ValueError, OSError), match=message):
        train.main(config(**{"group": None} | given))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"margin": 0.0}, "--margin must be above 0, got 0.0"),
        ({"margin": float("nan")}, "--margin must be above 0, got nan"),
        ({"steps": -5}, "--steps must be at least 1, got -5"),
        ({"positive_fraction": 1.5}, r"--positive_fraction must be in \[0, 1\], got 1.5"),
        ({"warmup": 1.0}, r"--warmup must be in \[0, 1\), got 1.0"),
        ({"validate_every": 15}, "--validate_every must be a multiple of --log_every, got 15"),
        ({"batch_size": 12, "devices": 8}, "--batch_size must be a multiple of --devices"),
        ({"steps_per_call": 7}, "--log_every must be a multiple of --steps_per_call"),
        ({"data_on": "host", "steps_per_call": 10}, "give --steps_per_call 1"),
        ({"overwrite": True}, "--overwrite needs the --name"),
        ({"resume": True, "overwrite": True, "name": "x"}, "exclude each other"),
        ({"devices": 99}, "--devices must be from 1 to 8, got 99"),
        ({"devices": 0}, "--devices must be from 1 to 8, got 0"),
        ({"keep": 0}, "--keep must be at least 1, got 0"),
        ({"group": 0}, "--group must be at least 1, got 0"),
        ({"microbatches": 0}, "--microbatches must be at least 1, got 0"),
        (
            {"group": 5},
            "multiple of --devices times --microbatches times --group, got 16 pairs, 1 dev",
        ),
        ({"batch_classes": 4, "group": 1}, "--batch_classes is of .*--objective all_pairs"),
        ({"objective": "all_pairs", "group": 2}, "leave --group out"),
        ({"objective": "all_pairs", "group": None, "data_on": "host"}, "leave --data_on out"),
        ({"width": 1}, "--width must be at least 2, got 1"),
        ({"dataset": "digitz"}, "unknown data set 'digitz'; close to it: digits"),
        ({"loss": "supcom"}, "unknown loss supcom; close to it: supcon"),
        (
            {"loss": "supcon", "loss_options": {"temperatur": 1.0}},
            "its hyperparameters are temperature",
        ),
        ({"loss": "supcon", "loss_options": {"temperature": 0.0}}, "temperature must be above 0"),
        ({"loss_options": {"scale": 1.0}}, "contrastive has no scale; its hyperparameters are mar"),
        # Arguments of `objective` that are no hyperparameters.
        ({"loss_options": {"on": 1.0}}, "contrastive has no on"),
        ({"loss_options": {"group": 4.0}}, "contrastive has no group"),
        ({"loss": "supcon", "loss_options": {"labels": 1.0}}, "supcon has no labels"),
        ({"loss": "supcon", "loss_options": {"loss": 1.0}}, "supcon has no loss"),
        (
            {"margin": 1.0, "loss_options": {"margin": 0.5}},
            "--margin and --loss_options margin name the same number",
        ),
        ({"loss": "mined_hard", "margin": -1.0}, "margin must be above 0"),
        ({"loss": "supcon", "margin": 1.0}, "supcon has no margin"),
        ({"loss": "supcon", "positive_fraction": 0.2}, "leave --positive_fraction out"),
        ({"loss": "supcon", "distance": "cosine"}, "leave --objective and --distance"),
        (
            {"loss": "arcface", "memory": 64, "group": None},
            "arcface compares with proxies and takes no --memory",
        ),
        ({"loss": "supcon", "memory": 8, "group": None}, "at least the 32 images of a batch"),
        ({"memory": 64}, "--memory is compared .*--objective all_pairs, or another loss"),
        ({"batch_size": 4096}, "at most 4,844 images on the 1,211 images of the train split"),
        ({"loss": "arcface", "loss_learning_rate": 0.0}, "--loss_learning_rate must be above 0"),
        ({"loss": "supcon", "loss_learning_rate": 0.1}, "supcon has no parameters"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(config, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        train.main(config(**options))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["pmap", "shard_map"])
def test_defaults_run_on_eight_virtual_devices(tmp_path, prepared, strategy):
    options = "--encoder mlp --steps 20 --log_every 20 --validate_every 20 --name eight"
    folders = ["--runs", str(tmp_path), "--tfds_dir", str(prepared), "--parallel", strategy]
    subprocess.run(
        [sys.executable, "-c", COMMAND, *options.split(), *folders],
        cwd=ROOT,
        env=_eight_virtual_devices(),
        check=True,
        timeout=300,
    )
    options = json.loads((tmp_path / "eight" / "config.json").read_text())
    assert (options["devices"], options["group"]) == (8, 16)


def _ended(*arguments):
    """Returns how the command ends."""
    read = functools.partial(cli.parse, train.Config, "x", str(train.__doc__), arguments)
    with pytest.raises(SystemExit) as ended:
        cli.run(train.main, read)
    return ended.value.code


def test_help_explains_every_option_with_its_default(capsys):
    assert not _ended("--help")
    shown = capsys.readouterr().out
    for field in train.Config.__dataclass_fields__:
        assert f"--{field}" in shown
    assert "default: 0.004" in shown
    words = shown.replace(",", " ").split()
    assert not {*loss_table.NAMES} - {word.rstrip(".") for word in words}


def test_unknown_options_and_encoders_list_the_known():
    with pytest.raises(ValueError, match="unknown option --margn; close to it: --margin") as error:
        cli.parse(train.Config, "x", "x", ["--margn", "1.0"])
    for field in train.Config.__dataclass_fields__:
        assert f"--{field}" in str(error.value)
    assert cli.parse(train.Config, "x", "x", ["--margin", "0.7", "--no_normalize"]).margin == 0.7
    said = _ended("--encoder", "vgg")
    assert all(name in said for name in options.ENCODERS)


def test_errors_are_one_line(tmp_path, monkeypatch, capsys):
    options = ["--runs", str(tmp_path), "--dataset", "fashion_mnist", "--data_dir", "nowhere"]
    monkeypatch.setattr(sys, "argv", [train.__file__, *options])
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(train.__file__, run_name="__main__")  # as `python` does, without a start
    # Python prints a text that it is ended by, and ends with 1.
    assert ended.value.code.startswith("error: fashion_mnist needs train-images-idx3-ubyte.gz")
    assert "\n" not in ended.value.code
    assert not capsys.readouterr().err

import dataclasses
import functools
import itertools
import json
import shutil

import numpy as np
import pytest

from contrastive_jax import locks
from contrastive_jax.data import load
from contrastive_jax.models import MLP
from contrastive_jax.search import make_trainer, optuna_study, rungs, spread
from contrastive_jax.search.texts import parse_space
from contrastive_jax.train import grid as grids
from contrastive_jax.train import json_lines
from contrastive_jax.train import objective as objective_of
from contrastive_jax.train.training import Training
from contrastive_jax.train.trial_folder import trial_key
from experiments import options, search, trials

pytestmark = pytest.mark.usefixtures("few_pairs")

SMALL = {
    "space": ("margin=0.2:1.8", "learning_rate=1e-3:1e-2:log"),
    "trials": 6,
    "seeds": 2,
    "encoder": "mlp",
    "width": 4,
    "batch_size": 16,
    "steps": 18,
    "log_every": 1,
    "devices": 2,
    "strategy": "sequential",
}


@pytest.fixture(scope="module")
def folder_of_tfds(tmp_path_factory):
    return tmp_path_factory.mktemp("tfds")


def _run(tmp_path, folder_of_tfds, **options):
    if options.get("resume") is True:
        options["resume"] = options.get("name", "run")
    config = search.Config(
        **SMALL | {"runs": tmp_path, "tfds_dir": folder_of_tfds, "name": "run"} | options
    )
    return search.main(config)


def _lines(folder, *, judged=False):
    lines = json_lines.read_lines(folder / "trials.jsonl")
    return [line for line in lines if judged or "test" not in line]


@pytest.fixture(scope="module")
def halved(tmp_path_factory, folder_of_tfds, few_pairs):
    return _run(tmp_path_factory.mktemp("runs"), folder_of_tfds)


def test_halving_keeps_the_best_of_each_rung(halved):
    lines = _lines(halved, judged=True)
    by_rung = [[line for line in lines if line.get("rung") == k] for k in range(3)]
    assert [line["hyperparameters"]["seed"] for line in lines[9:]] == [1, 2]
    assert [len(part) for part in by_rung] == [6, 2, 1]
    assert [{line["steps"] for line in part} for part in by_rung] == [{2}, {6}, {18}]
    for before, after in itertools.pairwise(by_rung):
        best = sorted(before, key=lambda line: -line["value"])[: len(after)]
        assert {trial_key(line["hyperparameters"]) for line in best} == {
            trial_key(line["hyperparameters"]) for line in after
        }
    results = json.loads((halved / "results.json").read_text())
    winner = by_rung[2][0]["hyperparameters"]
    assert results["hyperparameters"] | {"seed": 0} == winner
    assert results["seeds"] == 2
    interval = results["test"]["map_at_r"]
    assert interval["low"] <= interval["mean"] <= interval["high"]


def test_halving_trains_on_and_not_anew(halved, tmp_path, folder_of_tfds):
    """A winner's state is that of a training of all steps at once."""
    lines = _lines(halved)
    winner = lines[-1]["hyperparameters"]
    # A space of one point, as good as.
    config = search.Config(
        **SMALL | {"runs": tmp_path, "tfds_dir": folder_of_tfds, "name": "one", "seeds": 1}
    )
    data = options.load_data(config)
    trains = search.trainer_of(config, data, trials.devices_of(config))
    values = []

    def finished(k, made, state, diverged):
        values.append(trains.on_validation(made, state, diverged))

    trains.train([winner], stop=18, finished=finished)
    assert values == [pytest.approx(lines[-1]["value"], abs=1e-6)]


class Killed(Exception):
    pass


@pytest.mark.parametrize("method", ["halving", "optuna"])
def test_goes_on_where_it_was_killed(tmp_path, folder_of_tfds, halved, monkeypatch, method):
    trained, windows = grids.train_grid, 0

    def killed(*arguments, **options):
        nonlocal windows
        for window in trained(*arguments, **options):
            windows += 1
            if windows > 3:
                raise Killed
            yield window

    monkeypatch.setattr(grids, "train_grid", killed)
    with pytest.raises(Killed):
        _run(tmp_path, folder_of_tfds, method=method)
    assert len(_lines(tmp_path / "run")) == 3
    monkeypatch.setattr(grids, "train_grid", trained)
    folder = _run(tmp_path, folder_of_tfds, method=method, resume=True)
    if method == "halving":
        assert _lines(folder) == _lines(halved)
        assert (folder / "results.json").read_text() == (halved / "results.json").read_text()
    else:
        lines = _lines(folder)
        assert len(lines) == 6
        assert len({line["trial"] for line in lines}) == 6
        results = json.loads((folder / "results.json").read_text())
        best = max(lines, key=lambda line: line["value"])
        assert results["hyperparameters"] | {"seed": 0} == best["hyperparameters"]


def test_a_damaged_state_is_trained_again(tmp_path, folder_of_tfds, halved):
    folder = tmp_path / "run"
    shutil.copytree(halved, folder)
    # As if it had been killed before the second rung.
    lines = (folder / "trials.jsonl").read_text().splitlines(keepends=True)
    (folder / "trials.jsonl").write_text("".join(line for line in lines if '"rung": 0' in line))
    again = [path for path in (folder / "states").iterdir() if path.name.endswith("-1")]
    damaged = again[0].with_name(again[0].name.replace("-1", "-0"))
    (damaged / "_CHECKPOINT_METADATA").unlink()
    with pytest.warns(UserWarning, match=f"{damaged.name} is damaged: .* from step 0 again"):
        _run(tmp_path, folder_of_tfds, resume=True)
    assert _lines(folder) == _lines(halved)
    assert (folder / "results.json").read_text() == (halved / "results.json").read_text()


def test_a_study_loses_a_torn_last_line_alone(tmp_path):
    import optuna

    log = tmp_path / "study.log"
    study = optuna.create_study(storage=optuna_study.open_storage(log), study_name="x")
    study.enqueue_trial({"margin": 1.0})
    whole = log.read_bytes()
    log.write_bytes(whole + b'{"op_code": 4, "wor')
    study = optuna.load_study(storage=optuna_study.open_storage(log), study_name="x")
    assert log.read_bytes() == whole
    assert len(study.trials) == 1
    first, _, rest = whole.partition(b"\n")
    for bad in (b"", first[:10], b"[]", b"{}"):
        log.write_bytes(first + b"\n" + bad + b"\n" + rest)
        with pytest.raises(ValueError, match=r"study.log is damaged .* --overwrite"):
            optuna_study.open_storage(log)


def test_optuna_is_told_what_was_found_and_processes_share_a_study(tmp_path, folder_of_tfds):
    import optuna
    from optuna.storages.journal import JournalFileBackend

    folder = _run(tmp_path, folder_of_tfds, method="optuna", trials=3, at_once=2)
    # Another process: more trials of the same study.
    _run(tmp_path, folder_of_tfds, method="optuna", trials=5, at_once=2, resume=True)
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(folder / "study.log")))
    study = optuna.load_study(storage=storage, study_name="optuna")
    lines = _lines(folder)
    assert [trial.number for trial in study.trials] == [*range(5)]
    for line in lines:
        trial = study.trials[line["trial"]]
        assert trial.value == pytest.approx(line["value"])
        assert trial.params == {k: v for k, v in line["hyperparameters"].items() if k != "seed"}
    assert len({line["hyperparameters"]["margin"] for line in lines}) == 5


def test_a_setting_that_diverges_is_worse_than_any(tmp_path, folder_of_tfds):
    folder = _run(
        tmp_path,
        folder_of_tfds,
        space=("learning_rate=1e-3:1e30:log", "margin=0.5:1"),
        trials=8,
        keep_one_in=4,
        seeds=1,
    )
    lines = _lines(folder)
    first = [line for line in lines if line.get("rung") == 0]
    assert sum(line["value"] == 0 for line in first) > 3
    assert all(line["value"] == 0 for line in lines if line["diverged"])
    assert lines[-1]["value"] > 0
    assert json.loads((folder / "results.json").read_text())["hyperparameters"]["learning_rate"] < 1


def test_the_same_setting_twice_is_two_trials(tmp_path, folder_of_tfds):
    folder = _run(
        tmp_path,
        folder_of_tfds,
        method="optuna",
        space=("width=2,3",),
        width=search.Config.width,
        trials=5,
        seeds=1,
        steps=2,
    )
    lines = _lines(folder)
    assert sorted(line["trial"] for line in lines) == [*range(5)]
    by_width = {}
    for line in lines:
        by_width.setdefault(line["hyperparameters"]["width"], set()).add(line["value"])
    assert all(len(values) == 1 for values in by_width.values())


def test_a_process_that_is_not_the_last_does_not_judge(tmp_path, folder_of_tfds, monkeypatch):
    import optuna
    from optuna.storages.journal import JournalFileBackend

    folder = _run(tmp_path, folder_of_tfds, method="optuna", trials=2, steps=2, seeds=1)
    (folder / "results.json").unlink()
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(folder / "study.log")))
    study = optuna.load_study(storage=storage, study_name="optuna")
    other = study.ask()
    other.set_user_attr("process", "another")
    with locks.locked(folder / optuna_study.PROCESSES / "another", "the other process"):
        _run(tmp_path, folder_of_tfds, method="optuna", trials=4, steps=2, seeds=1, resume=True)
    assert len(_lines(folder)) == 3
    assert not (folder / "results.json").exists()


def test_space():
    space = parse_space(
        ["margin=0.2:1.8", "learning_rate=1e-3:1e-1:log", "width=2,64"], trials.STRUCTURE
    )
    assert space == {
        "margin": (0.2, 1.8, False),
        "learning_rate": (1e-3, 1e-1, True),
        "width": [2, 64],
    }
    settings = spread(space, 64)
    assert len(settings) == 64
    assert settings[:5] == spread(space, 5)
    margins = np.array([setting["margin"] for setting in settings])
    rates = np.log10([setting["learning_rate"] for setting in settings])
    # A Sobol sequence has as many points in each quarter.
    assert np.histogram(margins, 4, (0.2, 1.8))[0].tolist() == [16] * 4
    assert np.histogram(rates, 4, (-3, -1))[0].tolist() == [16] * 4
    assert sum(setting["width"] == 2 for setting in settings) == 32


def test_rungs():
    assert rungs(27, 2700, unit=100) == [(27, 100), (9, 300), (3, 900), (1, 2700)]
    assert rungs(1, 50, unit=50) == [(1, 50)]
    for trials_, keep_one_in in ((3, 1), (0, 3)):
        with pytest.raises(ValueError, match="1 trial at least and keeps one of 2 at least"):
            rungs(trials_, 10, keep_one_in=keep_one_in)


def test_a_trainer_refuses_what_its_trials_can_not_share():
    digits = load("digits")
    objective = functools.partial(objective_of, "fast_ap")
    training = Training(model=MLP, data=digits, objective=objective(), steps=4, batch_size=40)
    trainer = make_trainer(training, objective)
    assert len([*trainer.groups([{"bins": 5, "seed": 0}])]) == 1
    with pytest.raises(ValueError, match="bins has no effect, or is part of the structure"):
        [*trainer.groups([{"bins": 9, "seed": 0}])]
    ignored = dataclasses.replace(training, views=2)
    with pytest.raises(ValueError, match="views"):
        make_trainer(ignored, objective)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"space": ("margin=1:a",)}, "--space takes name=low:high"),
        (
            {"space": ("margin=2:1",)},
            "low end of a range must be below its high one",
        ),
        ({"space": ("margin=0:1:log",)}, "ends of a logarithmic range must be above 0"),
        ({"space": ("width=2:64",)}, "width takes values and no range, as width=value,value"),
        ({"space": ("margin",)}, "takes name=low:high, name=low:high:log or name=value,value"),
        ({"space": ("margin=1:2", "margin=2:3")}, "names margin twice"),
        ({"space": ("seed=0:3",)}, "seed"),
        ({"space": ("margin=-1:1",)}, "margin must be above 0"),
        ({"space": ("temperature=0.1:1",)}, "can not be an axis"),
        ({"trials": 0}, "--trials must be at least 1"),
        ({"trials": 100}, "too few for 6 rungs"),
        ({"resume": True}, "no run to resume"),
        ({"space": ("loss=cosine_embedding,contrastive", "margin=0.1:1.8")}, "margin must be in"),
        ({"loss": "fast_ap", "space": ("bins=5:20",)}, "bins is a whole number: name values"),
        ({"loss": "circle", "loss_options": {"margin": 0.3}}, "leave it out of --loss_options"),
    ],
)
def test_errors_come_before_anything_is_written(tmp_path, folder_of_tfds, options, words):
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        _run(tmp_path, folder_of_tfds, **options)
    assert not [*tmp_path.iterdir()]

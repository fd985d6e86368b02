"""`fit_grid`: the same bits as `fit`, trials that diverge or are interrupted, and clear errors."""

from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest

import contrastive_jax as cj
from contrastive_jax import models, train
from contrastive_jax.data.datasets import Dataset, Examples, GivenPairs, PairDataset
from contrastive_jax.evaluation import trial_tables
from contrastive_jax.train import grid as grids
from contrastive_jax.train import trial_folder, trial_loop
from contrastive_jax.train.grid_strategy import Choice
from contrastive_jax.train.training import Training
from contrastive_jax.train.trial_assembly import Variant, assemble_trials
from contrastive_jax.train.trial_loop import Schedule

pytestmark = pytest.mark.usefixtures("unrefined", "few_pairs")

STEPS = 8
MODEL = partial(models.MLP, width=4, hidden=(8,))
CONTRASTIVE = train.objective("contrastive")
OPTIONS = {
    "steps": STEPS,
    "batch_size": 12,
    "devices": jax.devices()[:1],
    "log_every": 4,
    "progress": False,
}


def _rows(number):
    rng = np.random.default_rng(number)
    classes = np.arange(number, dtype=np.int32) % 3
    images = rng.integers(0, 60, (number, 6, 6, 1), dtype=np.uint8)
    images[:, :, :3] += (classes * 60).astype(np.uint8)[:, None, None, None]
    return Examples(images, classes)


DATA = Dataset("rows", tuple("abc"), _rows(60), _rows(24), _rows(30))


def _fit(objective, **options):
    given = OPTIONS | {"validate_every": STEPS, "runs": None} | options
    return train.fit(MODEL, DATA, objective, **given)


def _grid(**options):
    given = OPTIONS | {"strategy": "sequential", "test": False} | options
    return train.fit_grid(
        MODEL, options.pop("data", DATA), given.pop("objective", CONTRASTIVE), **given
    )


def _assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def stored(tmp_path_factory, few_pairs):
    """The trials of two margins and two seeds, and their folder."""
    folder = tmp_path_factory.mktemp("grids") / "margins"
    return _grid(margin=[0.5, 1.2], seed=range(2), folder=folder), folder


@pytest.mark.parametrize(
    ("objective", "axes"),
    [
        (
            CONTRASTIVE,
            {
                "margin": 1.2,
                "seed": 3,
                "learning_rate": 4e-3,
                "weight_decay": 0.1,
                "clip_norm": 1.0,
            },
        ),
        (
            train.objective("contrastive", on="pairs"),
            {"margin": [1.2], "positive_fraction": 0.4},
        ),
        (partial(train.objective, "sigmoid"), {"temperature": 5.0}),
        (partial(train.objective, "arcface"), {"margin": 0.3, "loss_learning_rate": 1e-2}),
    ],
    ids=["all pairs", "pairs", "parameters of a loss", "optimizer of a loss"],
)
def test_a_single_run_is_a_grid_of_one(objective, axes, request):
    (trial,) = _grid(objective=objective, **axes)
    loss = {k: v for k, v in axes.items() if k in ("margin", "positive_fraction", "temperature")}
    loss = {k: v[0] if isinstance(v, list) else v for k, v in loss.items()}
    if isinstance(objective, partial):
        objective = objective(**loss)
    else:
        objective = objective._replace(hyperparameters={**objective.hyperparameters, **loss})
    run = _fit(objective, seed=axes.get("seed", 0))
    if request.config.getoption("optimised"):
        _assert_same(trial.run.weights, run.weights)
        assert trial.run.threshold == run.threshold
    else:
        # Without XLA's optimisations the two programs add up in another order.
        close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
        jax.tree.map(close, trial.run.weights, run.weights)
    assert trial.diverged is None


def test_trials_have_what_a_user_asks_of_them(stored):
    trials, _ = stored
    assert [trial.hyperparameters for trial in trials] == [
        {"margin": margin, "seed": seed} for margin in (0.5, 1.2) for seed in (0, 1)
    ]
    for trial in trials:
        assert trial.test is None
        assert trial.history["step"].tolist() == [4, 8]
        assert np.isfinite(trial.history["loss"]).all()
        assert 0 < trial.validation["map_at_r"] <= 1
        compared = trial.run.compare(DATA.test.images[:2], DATA.test.images[2:4])
        assert compared.distance.shape == (2,)
    assert len({trial.history["loss"][-1] for trial in trials}) == 4
    rows = trial_tables.rows_by_hyperparameters([t._asdict() for t in trials], "map_at_r")
    assert [row.hyperparameters for row in rows] == [{"margin": 0.5}, {"margin": 1.2}]


# test_grid.py compares every number by `vmap`, and test_margin_ablation.py the losses of trials.
@pytest.mark.parametrize(
    "strategy", [pytest.param("vmap", marks=pytest.mark.long), "shard_map", "auto"]
)
def test_strategies_agree(stored, strategy):
    devices = jax.devices()[: 2 if strategy == "shard_map" else 1]
    trials = _grid(margin=[0.5, 1.2], seed=range(2), strategy=strategy, devices=devices)
    for one, expected in zip(trials, stored[0], strict=True):
        assert one.hyperparameters == expected.hyperparameters
        np.testing.assert_allclose(one.history["loss"], expected.history["loss"], rtol=1e-4)
        close = partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4)
        jax.tree.map(close, one.run.weights, expected.run.weights)


def test_a_trial_that_diverges_is_marked(stored):
    bad, good = _grid(margin=1.2, learning_rate=[1e30, 4e-3], test=True)
    assert bad.diverged in range(2, STEPS + 1)
    assert (bad.validation, bad.test, bad.run) == (None, None, None)
    assert good.diverged is None
    assert 0 < good.test["auc"] <= 1
    np.testing.assert_allclose(good.history["loss"], stored[0][2].history["loss"], rtol=1e-5)


class _KilledError(Exception):
    pass


def test_goes_on_where_it_was_killed(stored, tmp_path, monkeypatch):
    trials, _ = stored
    train_grid, taken = grids.train_grid, []

    def killed(*arguments, **options):
        for window in train_grid(*arguments, **options):
            if len(taken) == 3:  # in the middle of the second trial
                raise _KilledError
            taken.append(window.step)
            yield window

    options = {"margin": [0.5, 1.2], "seed": range(2), "folder": tmp_path / "grid"}
    monkeypatch.setattr(grids, "train_grid", killed)
    with pytest.raises(_KilledError):
        _grid(save_every=4, **options)
    taken.append(None)
    again = _grid(save_every=4, resume=True, **options)
    assert len(taken) == 4 + 5  # eight windows, of which three were taken before
    for one, expected in zip(again, trials, strict=True):
        _assert_same(one.run.weights, expected.run.weights)
        _assert_same(one.history, expected.history)
    # More values of an axis are more trials, and finished ones do not train again.
    more = _grid(resume=True, **options | {"margin": [0.5, 0.8, 1.2], "seed": 0})
    assert len(taken) == 9 + 2
    _assert_same(more[2].run.weights, trials[2].run.weights)


def test_given_pairs():
    def pairs(start):
        left = np.arange(start, start + 20, dtype=np.int32)
        right = np.roll(left, 1)
        labels = (DATA.train.classes[left] != DATA.train.classes[right]).astype(np.int32)
        labels[::2] = 0
        return GivenPairs(left, right, labels)

    data = PairDataset("pairs", DATA.train.images, pairs(0), pairs(20), pairs(40))
    trials = train.fit_grid(
        MODEL, data, CONTRASTIVE, margin=[0.5, 1.0], **OPTIONS | {"strategy": "vmap"}
    )
    assert [0 <= trial.test["auc"] <= 1 for trial in trials] == [True, True]
    with pytest.raises(ValueError, match="positive_fraction is no hyperparameter of the objective"):
        train.fit_grid(MODEL, data, CONTRASTIVE, positive_fraction=[0.1, 0.5], **OPTIONS)


def test_values_of_axes_are_in_their_ranges():
    for axis, words in (
        ({"learning_rate": [1e-3, 0.0]}, "learning_rate must be above 0, got 0.0"),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0 and finite, got -0.1"),
        ({"seed": [0, 2**32]}, "seed must be from 0 to 4294967295"),
    ):
        with pytest.raises(ValueError, match=words):
            _grid(**axis)


def test_hyperparameters_of_an_optimizer_of_ones_own():
    sgd = optax.inject_hyperparams(optax.sgd)(0.1, momentum=0.5)
    two = _grid(optimizer=sgd, momentum=[0.1, 0.9])
    assert two[0].history["loss"][-1] != two[1].history["loss"][-1]
    with pytest.raises(ValueError, match="the optimizer has no hyperparameter beta in its state"):
        _grid(optimizer=sgd, beta=[0.1, 0.9])


def _training(**options):
    options = {"objective": CONTRASTIVE} | options
    return Training(model=MODEL, data=DATA, steps=STEPS, batch_size=12, **options)


def test_a_hyperparameter_of_both_optimizers_is_that_of_the_encoder():
    objective = train.objective("proxy_anchor")
    training = _training(
        objective=objective,
        optimizer=optax.inject_hyperparams(optax.sgd)(0.1),
        loss_optimizer=optax.inject_hyperparams(optax.adam)(0.2, b1=0.8),
    )
    variants = [Variant({}, 0, objective, {"learning_rate": 0.5, "b1": 0.25})]
    inner = assemble_trials(training, variants).init(0).opt_state.inner_states
    assert optax.tree.get(inner["encoder"], "learning_rate") == 0.5
    assert optax.tree.get(inner["loss"], "learning_rate") == np.float32(0.2)
    assert optax.tree.get(inner["loss"], "b1") == 0.25


def test_trials_that_have_not_begun_take_the_strategy_that_was_chosen(tmp_path, monkeypatch):
    given = []

    def choose(trials, *, before):
        given.append(before)
        return Choice(SimpleNamespace(strategy="vmap", trials=2, shared=None, bytes=0), {})

    monkeypatch.setattr(trial_loop, "choose_grid", choose)
    monkeypatch.setattr(trial_loop, "_train_chunk", lambda *_: None)
    variants = [Variant({"seed": seed}, seed, CONTRASTIVE) for seed in (0, 1)]
    trials = assemble_trials(_training(), variants)
    for part in (trials, trials.part([1])):
        trial_loop.train_trials(part, tmp_path, Schedule(STEPS, 4, 4), report=lambda line: None)
    assert given == [None, ("vmap", 2)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"margn": [0.5, 1.0]}, "margn is no hyperparameter of the objective; did you mean margin"),
        ({"margin": []}, "margin must be a number or a sequence of numbers, got"),
        ({"margin": ["a"]}, "margin must be a number or a sequence of numbers, got"),
        ({"margin": [1.0, 1.0]}, "the values of margin must differ"),
        ({"margin": [-1.0]}, "margin"),
        ({"seed": [0, 2**32]}, "seed"),
        (
            {"learning_rate": 0.1, "optimizer": optax.sgd(0.1)},
            "has no hyperparameter learning_rate",
        ),
        ({"loss_learning_rate": 0.1}, "the optimizer has no hyperparameter loss_learning_rate"),
        (
            {"objective": partial(train.objective, "fast_ap"), "bins": [5, 10]},
            "bins has no effect, or is part of the structure",
        ),
        ({"objective": partial(train.objective, "supcon"), "margin": 1.0}, "supcon has no margin"),
        ({"resume": True}, "resume goes on in a folder"),
        ({"strategy": "pmap"}, "strategy must be one of"),
        ({"devices_per_trial": 2}, "devices_per_trial must be from 1 to 1"),
        ({"save_every": 6}, "save_every must be a multiple of log_every, got 6 and 4"),
    ],
)
def test_errors_come_before_the_first_step(tmp_path, monkeypatch, options, words):
    monkeypatch.setattr(grids, "train_grid", None)
    with pytest.raises(ValueError, match=words):
        _grid(**options)


def test_a_folder_is_of_one_grid(stored):
    _, folder = stored
    with pytest.raises(FileExistsError, match="exists"):
        _grid(margin=[0.5], folder=folder)
    with pytest.raises(ValueError, match="batch_size was 12 and is now 24"):
        _grid(margin=[0.5], folder=folder, resume=True, batch_size=24)
    other = partial(models.MLP, width=5, hidden=(8,))
    options = OPTIONS | {"test": False, "folder": folder, "resume": True}
    with pytest.raises(ValueError, match="encoder was"):
        train.fit_grid(other, DATA, CONTRASTIVE, margin=[0.5], **options)
    options |= {"margin": [0.5, 1.2], "seed": [0, 1, 2]}
    with pytest.raises(ValueError, match=r"objective was .'contrastive'.*'contrastive_halved'"):
        _grid(**options, objective=train.objective("contrastive_halved", positive_fraction=0.3))
    with pytest.raises(ValueError, match="optimizer was"):
        _grid(**options, optimizer=optax.sgd(0.1))
    with pytest.raises(TypeError, match=r"data must come from contrastive_jax.data.load"):
        train.fit_grid(MODEL, None, CONTRASTIVE, steps=1)
    with pytest.raises(TypeError, match="objective must come from"):
        train.fit_grid(MODEL, DATA, "contrastive", steps=1)


def test_labels_of_two_rows_are_those_of_every_trial(tmp_path):
    rule = cj.labels.same_class_other_group()
    splits = [split._replace(groups=np.arange(len(split.classes)) // 3 % 2) for split in DATA[2:5]]
    data = Dataset("groups", DATA.class_names, *splits)
    objective = train.objective("supcon", labels=rule)
    options = OPTIONS | {"strategy": "sequential", "temperature": [0.1, 0.5], "test": False}
    trials = train.fit_grid(MODEL, data, objective, **options, folder=tmp_path / "grid")
    first = train.fit(MODEL, data, objective, **OPTIONS, validate_every=STEPS, runs=None)
    assert trials[0].run.calibration == pytest.approx(first.calibration, rel=1e-4)
    assert trials[1].history["loss"][-1] != trials[0].history["loss"][-1]


def test_tables_need_figures_on_test(tmp_path, stored):
    rows = trial_tables.rows_by_hyperparameters([one._asdict() for one in stored[0]], "map_at_r")
    with pytest.raises(ValueError, match="train them with test=True"):
        trial_tables.write_tables(tmp_path, rows, "map_at_r")


def test_a_margin_out_of_reach_is_warned_of_once():
    with pytest.warns(UserWarning, match="a margin of 3 is out of reach") as caught:
        _grid(margin=[3.0], seed=range(2), steps=4)
    assert len([one for one in caught if "out of reach" in str(one.message)]) == 1


def test_a_damaged_state_says_what_to_do(tmp_path):
    trial_folder.add_trial(
        tmp_path,
        {"margin": 1.0},
        np.zeros(2),
        dict.fromkeys(("diverged", "validation", "test", "history", "seconds")),
    )
    (line,) = trial_folder.read_trials(tmp_path).values()
    (tmp_path / line["state"] / "_CHECKPOINT_METADATA").unlink()
    with pytest.raises(ValueError, match="damaged") as caught:
        trial_folder.restore_trial(tmp_path, line, np.zeros(2))
    assert "remove the line of {'margin': 1.0}" in caught.value.__notes__[0]


def test_the_library_names_it():
    assert cj.train.fit_grid is train.fit_grid

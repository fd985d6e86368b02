"""`fit`: repeatable, resumed to the bits, the same step as a grid's, and clear where it fails."""

import json
import re
import signal
import sys
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import contrastive_jax as cj
from contrastive_jax import distances, losses, models, train
from contrastive_jax.data import index_by_class
from contrastive_jax.data.augment import shift
from contrastive_jax.data.datasets import Examples
from contrastive_jax.train import assembly, grid, metrics, validation
from contrastive_jax.train.training import Training

pytestmark = pytest.mark.usefixtures("few_pairs")

STEPS = 12
MODEL = partial(models.MLP, width=4, hidden=(8,))
OPTIONS = {
    "steps": STEPS,
    "batch_size": 12,
    "log_every": 4,
    "validate_every": 8,
    "devices": jax.devices()[:1],
    "progress": False,
}
CONTRASTIVE = train.objective("contrastive", margin=1.2)


def _assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def _losses(run):
    return [record["loss"] for record in metrics.read_metrics(run.folder) if "loss" in record]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def printed(data, runs):
    """A run and what it printed."""
    lines = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *words, **_: lines.append(*words))
        run = train.fit(MODEL, data, CONTRASTIVE, runs=runs, **OPTIONS | {"progress": True})
    return run, lines


@pytest.fixture(scope="module")
def run(printed):
    return printed[0]


def test_a_run_without_tensorboard_is_the_same_and_says_so(run, data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX.event_file_writer", None)  # as if missing
    message = r"needs tensorboardX: pip install 'contrastive_jax\[train\]'; metrics.jsonl has the"
    with pytest.warns(UserWarning, match=message) as warned:
        other = train.fit(MODEL, data, CONTRASTIVE, runs=tmp_path, **OPTIONS)
    assert warned[0].filename == __file__
    _assert_same(other.weights, run.weights)
    assert _losses(other) == _losses(run)
    assert not (other.folder / "tensorboard").exists()


def test_a_run_learns_and_holds_what_it_takes_to_use_it(run, data, runs):
    assert run.folder == runs / "rows-mlp-1"
    losses_of = _losses(run)
    assert len(losses_of) == STEPS
    assert losses_of[-1] < losses_of[0]
    assert run.image_shape == (6, 6, 1)
    assert run.class_names == ("top", "middle", "bottom")
    loaded = cj.load(run.folder)
    _assert_same(loaded.weights, run.weights)
    assert loaded.threshold == run.threshold
    saved = np.load(run.folder / "validation.npz")
    np.testing.assert_array_equal(saved["embeddings"], run.embed(data.validation.images))
    np.testing.assert_array_equal(saved["classes"], data.validation.classes)
    record = json.loads((run.folder / "run.json").read_text())
    assert (record["data"], record["steps"]) == ("rows", STEPS)
    validated = [r for r in metrics.read_metrics(run.folder) if validation.BEST_BY in r]
    assert [r["step"] for r in validated] == [8, 12]
    best = max(validated, key=lambda record: record[validation.BEST_BY])
    assert record["best_step"] == best["step"]
    assert 0 < best["validation/effective_rank"] <= 4


def test_lines_tell_how_it_goes(printed):
    run, lines = printed
    assert lines[0] == f"{run.folder}: rows, 60 training images, 12 steps"
    assert lines[1] == "compiling the training step"
    assert [line.partition(":")[0] for line in lines[2:]] == ["step 8", "step 12"]
    for word in ("loss ", "positive ", "negative ", "pairs/s", "active ", "MAP@R ", "P@1 "):
        assert all(word in line for line in lines[2:])


def test_the_same_seed_gives_the_same_run_and_runs_can_be_left_out(
    run, data, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    instance = MODEL((6, 6, 1), rngs=nnx.Rngs(0))
    again = train.fit(instance, data, CONTRASTIVE, runs=None, **OPTIONS)
    _assert_same(again.weights, run.weights)
    assert (again.threshold, again.calibration) == (run.threshold, run.calibration)
    assert again.folder is None
    assert [*tmp_path.iterdir()] == []


def _stopping(monkeypatch, number):
    """Has a signal come after the first window."""
    write = metrics.write_metrics

    def write_and_stop(*arguments):
        write(*arguments)
        monkeypatch.setattr(metrics, "write_metrics", write)
        signal.raise_signal(number)

    monkeypatch.setattr(metrics, "write_metrics", write_and_stop)


def test_a_run_that_goes_on_after_a_stop_ends_in_the_same_bits(run, data, runs, monkeypatch):
    fit = partial(train.fit, MODEL, data, CONTRASTIVE, runs=runs, name="stopped", **OPTIONS)
    _stopping(monkeypatch, signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        fit()
    assert stopped.value.code == 0
    assert [r["step"] for r in metrics.read_metrics(runs / "stopped")] == [1, 2, 3, 4]
    with pytest.raises(FileNotFoundError, match="it is not complete"):
        cj.load(runs / "stopped")
    resumed = fit(resume=True)
    _assert_same(resumed.weights, run.weights)
    assert _losses(resumed) == _losses(run)
    assert resumed.threshold == run.threshold
    # A run that is done has nothing left to do.
    _assert_same(fit(resume=True).weights, run.weights)
    with pytest.raises(ValueError, match="seed"):
        fit(resume=True, seed=1)
    with pytest.raises(ValueError, match="optimizer was"):
        fit(resume=True, optimizer=optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"has taken 12 steps already: steps must be .* got 8"):
        fit(resume=True, steps=8, free=("steps",))


@pytest.mark.parametrize("on", ["pairs", "all_pairs"])
def test_a_grid_of_one_takes_the_same_steps(data, on, request):
    # Without XLA's optimisations the two programs add up in another order.
    rtol, atol = (0, 0) if request.config.getoption("optimised") else (1e-5, 1e-7)
    objective = train.objective("contrastive", on=on, margin=1.2)
    training = Training(model=MODEL, data=data, objective=objective, steps=STEPS, batch_size=12)
    parts = assembly.assemble(training)
    source = train.Source(data.train.images, data.train.classes, index_by_class(data.train.classes))
    given = train.Hyperparameters(0, dict(objective.hyperparameters))
    device = jax.devices()[:1]
    placed = train.parallel(parts.drawn, "shard_map", device)
    first = parts.init(0)
    state, at, hyperparameters = placed.replicate((first, source, given))
    losses_of = []
    for _ in range(4):
        state, metrics = placed.step(state, at, hyperparameters)
        losses_of.append(metrics["loss"])
    made = grid.make_grid(parts.drawn, first, source, given, "sequential", devices=device)
    (window,) = grid.train_grid(
        made, lambda _: first, jax.device_put(source, made.shared), [given], steps=4, window=4
    )
    close = partial(np.testing.assert_allclose, rtol=rtol, atol=atol)
    jax.tree.map(close, window.state(0), placed.fetch(state))
    close(window.metrics["loss"][0], losses_of)


def _linear(params, images):
    embeddings = images.reshape(len(images), -1) / 255 @ params
    return embeddings / jnp.linalg.norm(embeddings, axis=1, keepdims=True)


def test_pairs_with_functions_over_devices(data, runs):
    """Given a tuple, an augmentation, microbatches, several steps a call and two devices."""
    weights = np.random.default_rng(0).normal(size=(36, 4)).astype(np.float32)
    objective = train.objective("contrastive", on="pairs", group=2, margin=1.2)
    options = OPTIONS | {"batch_size": 32, "devices": jax.devices()[:2], "strategy": "pmap"}
    run = train.fit(
        (_linear, weights),
        data,
        objective,
        runs=runs,
        augment=partial(shift, pixels=1),
        microbatches=2,
        steps_per_call=2,
        optimizer=optax.sgd(0.5),
        **options,
    )
    assert run.folder.name == "rows-function-1"
    losses_of = _losses(run)
    assert np.mean(losses_of[-3:]) < np.mean(losses_of[:3])
    loaded = cj.load(run.folder, model=(_linear, weights))
    _assert_same(loaded.weights, run.weights)
    # Another strategy draws the same and ends in the same, to rounding.
    other = train.fit(
        (_linear, weights),
        data,
        objective,
        runs=None,
        augment=partial(shift, pixels=1),
        optimizer=optax.sgd(0.5),
        **options | {"strategy": "shard_map"},
    )
    np.testing.assert_allclose(other.weights.params, run.weights.params, rtol=1e-4, atol=1e-5)


def test_parameters_of_a_loss_and_a_memory_are_trained(data):
    run = train.fit(
        MODEL, data, train.objective("sigmoid"), runs=None, memory_size=24, max_age=2, **OPTIONS
    )
    assert run.distance is distances.cosine
    assert 0 < run.threshold < 2


def test_pairs_are_streamed_from_the_host(data, runs):
    pytest.importorskip("grain")
    objective = train.objective("contrastive", on="pairs", margin=1.2)
    run = train.fit(MODEL, data, objective, runs=runs, name="host", data_on="host", **OPTIONS)
    losses_of = _losses(run)
    assert len(losses_of) == STEPS
    assert np.isfinite(losses_of).all()


def test_a_loss_that_is_not_finite_ends_the_run(data, runs):
    with pytest.raises(FloatingPointError, match=r"step \d+: loss") as stopped:
        train.fit(
            MODEL, data, CONTRASTIVE, runs=runs, optimizer=optax.sgd(np.nan), name="nan", **OPTIONS
        )
    assert "the last good checkpoint is of step 0" in stopped.value.__notes__


def test_collapse_is_warned_of(data):
    one = (lambda params, images: jnp.ones((len(images), 1)) * params, jnp.ones(4))
    options = OPTIONS | {"optimizer": optax.sgd(0.0)}
    with pytest.warns(UserWarning, match=r"embeddings have collapsed: they fill 0.0 of 4"):
        train.fit(one, data, CONTRASTIVE, runs=None, **options)


def test_inverted_labels_are_warned_of(data):
    def inverted(distance, label, margin=1.2):
        return losses.contrastive(distance, 1 - label, margin)

    with pytest.warns(UserWarning, match="are the labels inverted"):
        train.fit(
            MODEL,
            data,
            train.objective(inverted),
            runs=None,
            optimizer=optax.adam(0.02),
            **OPTIONS | {"steps": 24, "validate_every": 24},
        )


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        (train.objective("contrastive", margin=3.0), r"margin of 3 is out of reach: the euclidean"),
        (train.objective("sentence_contrastive", margin=2.5), r"margin of 2.5 is .* the cosine"),
        (
            train.objective("margin_based", margin=1.0, boundary=1.3),
            "margin of 1 beyond a boundary of 1.3 is out of reach",
        ),
    ],
)
def test_margins_out_of_reach_are_warned_of(data, tmp_path, objective, words):
    """Before any step is compiled: there is no run to go on with."""

    def warned(model, objective):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with pytest.raises(FileNotFoundError):
                train.fit(
                    model, data, objective, runs=tmp_path, name="none", resume=True, **OPTIONS
                )
        return [str(one.message) for one in caught]

    (text,) = warned(MODEL, objective)
    assert re.search(words, text)
    within = {**objective.hyperparameters, "margin": 0.3}
    assert warned(MODEL, objective._replace(hyperparameters=within)) == []
    # Raw embeddings may be as far apart as they like, but not by an angle.
    raw = warned(partial(MODEL, normalize=False), objective)
    assert len(raw) == (objective.distance is distances.cosine)


PAIRS = train.objective("contrastive", on="pairs")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seed": -1}, "seed must be an integer from 0"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"keep": 0}, "keep must be at least 1, got 0"),
        ({"steps_per_call": 3}, "log_every must be a multiple of steps_per_call, got 4 and 3"),
        ({"strategy": "xmap"}, "strategy must be one of .*, got 'xmap'"),
        (
            {"microbatches": 5},
            "multiple of devices times microbatches, got .* 1 devices, 5 microbatches",
        ),
        ({"log_every": 0}, "log_every must be at least 1, got 0"),
        ({"steps": "5"}, "steps must be a number, at least 1, got '5'"),
        ({"batch_size": "12"}, "batch_size must be a number, at least 1, got '12'"),
        ({"optimizer": "adam"}, "optimizer must be an optimizer, .* got 'adam'"),
        ({"devices": 2}, r"devices must be a sequence, as jax\.devices\(\)\[:2\], got 2"),
        (
            {"weights": {"kernel": np.ones(3)}},
            r"weights must .*'bias'.* is missing; give",
        ),
        (
            {"objective": train.objective("contrastive", on="pairs"), "batch_size": 2},
            "batch_size must give at least 4 pairs, for .* positive_fraction of 0.3, got 1",
        ),
        (
            {
                "objective": train.objective(losses.contrastive, on="pairs", positive_fraction=0.9),
                "batch_size": 2,
            },
            "batch_size must give at least 2 pairs, for .* positive_fraction of 0.9, got 1",
        ),
        (
            {"objective": train.objective(losses.contrastive, on="pairs", positive_fraction=1.5)},
            "positive_fraction must be in",
        ),
        ({"validate_every": 6}, "validate_every must be a multiple of log_every, got 6 and 4"),
        ({"batch_size": 13}, "divide the 13 images of a batch"),
        ({"batch_classes": 4}, "batch_classes must be from 2 to 3"),
        ({"objective": PAIRS, "batch_size": 13}, "batch_size must be even .* got 13"),
        ({"augment": partial(shift, pixels=6)}, "shift must be below the 6 pixels"),
        ({"augment": lambda key, image: image[:3]}, "augment must return images of the same"),
        ({"max_age": 5}, "max_age has no effect without a memory: give memory_size"),
        ({"batch_classes": 7}, "batch_classes must divide the .* images of a batch, got 7"),
        ({"objective": PAIRS, "memory_size": 8}, "leave memory_size out"),
        ({"objective": train.objective("arcface"), "memory_size": 8}, "leave memory_size out"),
        ({"data_on": "disk"}, "data_on must be 'device' or 'host', got 'disk'"),
        ({"data_on": "host"}, "data_on='host' streams pairs"),
        ({"objective": PAIRS, "data_on": "host", "steps_per_call": 2}, "takes one step per call"),
        ({"resume": True}, "--resume needs the --name of the run"),
        ({"name": "a/b"}, "must be the name of one folder"),
        ({"model": partial(models.DrLIM)}, "at least 8 x 8"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_before_there_is_a_folder(
    data, tmp_path, options, words
):
    given = {"model": MODEL, "objective": CONTRASTIVE, "runs": tmp_path} | OPTIONS | options
    with pytest.raises(ValueError, match=words):
        train.fit(data=data, **given)
    assert [*tmp_path.iterdir()] == []


def test_data_that_can_not_be_evaluated_are_refused(data, tmp_path):
    one_class = data._replace(test=Examples(data.test.images, np.zeros(24, np.int32)))
    with pytest.raises(ValueError, match="the test split of rows can not be evaluated"):
        train.fit(MODEL, one_class, CONTRASTIVE, runs=tmp_path, **OPTIONS)
    with pytest.raises(TypeError, match=r"data must come from .*load, got 'digits'"):
        train.fit(MODEL, "digits", CONTRASTIVE, runs=tmp_path, **OPTIONS)
    with pytest.raises(TypeError, match=r"objective must come from .*objective, got 'supcon'"):
        train.fit(MODEL, data, "supcon", runs=tmp_path, **OPTIONS)
    assert [*tmp_path.iterdir()] == []


def test_a_run_is_not_overwritten_unless_asked(run, data, runs):
    with pytest.raises(FileExistsError, match="rows-mlp-1 exists"):
        train.fit(MODEL, data, CONTRASTIVE, runs=runs, name="rows-mlp-1", **OPTIONS)
    with pytest.raises(ValueError, match="exclude each other"):
        train.fit(
            MODEL, data, CONTRASTIVE, runs=runs, name="x", resume=True, overwrite=True, **OPTIONS
        )
    _assert_same(cj.load(run.folder).weights, run.weights)

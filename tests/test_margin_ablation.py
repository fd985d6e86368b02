import csv
import itertools
import json
import shutil

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure

from contrastive_jax import ablation_plots, ablation_report, cli
from contrastive_jax.data import load
from contrastive_jax.evaluation import trial_tables
from contrastive_jax.train import grid as grids
from contrastive_jax.train import json_lines, saved_states, trial_figures
from contrastive_jax.train.grid_strategy import choose_grid
from contrastive_jax.train.trial_axes import combinations
from contrastive_jax.train.trial_folder import trial_key
from contrastive_jax.train.trial_loop import HISTORY
from experiments import margin_ablation, search, trials

pytestmark = pytest.mark.usefixtures("unrefined", "few_pairs")

SMALL = {
    "margins": (0.5, 1.0),
    "seeds": 2,
    "encoder": "mlp",
    "width": 4,
    "batch_size": 16,
    "steps": 6,
    "log_every": 2,
    "save_every": 2,
    "devices": 2,
    "strategy": "sequential",
}


@pytest.fixture(scope="module")
def folder_of_tfds(tmp_path_factory):
    return tmp_path_factory.mktemp("tfds")


def _run(tmp_path, folder_of_tfds, **options):
    if options.get("resume") is True:
        options["resume"] = options.get("name", "run")
    config = margin_ablation.Config(
        **SMALL | {"runs": tmp_path, "tfds_dir": folder_of_tfds, "name": "run"} | options
    )
    return margin_ablation.main(config)


@pytest.fixture
def no_figures(monkeypatch):
    """Draws nothing, which takes as long as all else."""
    monkeypatch.setattr(ablation_report, "figures_of_trials", lambda *_, **__: {})


def _trials(folder):
    """Returns the content of each line, without what differs from run to run."""
    results = {}
    for line in json_lines.read_lines(folder / "trials.jsonl"):
        same = {k: v for k, v in line.items() if k not in ("seconds", "state")}
        results[trial_key(line["hyperparameters"])] = same
    return results


@pytest.fixture(scope="module")
def whole(tmp_path_factory, folder_of_tfds, few_pairs):
    return _run(tmp_path_factory.mktemp("runs"), folder_of_tfds)


def test_what_a_run_leaves(whole):
    results = _trials(whole)
    assert [json.loads(key) for key in results] == [
        {"margin": margin, "seed": seed} for margin in (0.5, 1.0) for seed in (0, 1)
    ]
    for trial in results.values():
        assert trial["diverged"] is None
        assert trial["history"]["step"] == [2, 4, 6]
        assert 0 < trial["validation"]["map_at_r"] < 1
        assert 0 < trial["test"]["auc"] <= 1
    figures = sorted(path.name for path in (whole / "figures").iterdir())
    assert figures == ["active.png", "curve.png", "distances.png", "maps.png"]
    for path in (whole / "figures").iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")
    assert len([*(whole / "states").iterdir()]) == 4
    assert not [*(whole / "running").glob("*")]
    assert "| 0.5 |" in (whole / "results.md").read_text().replace("**", "")
    assert r"\toprule" in (whole / "results.tex").read_text()


def test_a_table_is_of_the_trials(whole):
    results = list(_trials(whole).values())
    with (whole / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["margin"]) for row in rows] == [0.5, 1.0]
    means = {}
    for row in rows:
        row_trials = [c for c in results if c["hyperparameters"]["margin"] == float(row["margin"])]
        for key in ("map_at_r", "precision_at_1", "auc"):
            mean = np.mean([trial["test"][key] for trial in row_trials])
            assert float(row[f"test {key} mean"]) == pytest.approx(mean, abs=1e-6)
        means[row["margin"]] = np.mean([trial["validation"]["map_at_r"] for trial in row_trials])
    chosen = [row["margin"] for row in rows if row["chosen"] == "1"]
    assert chosen == [max(means, key=means.get)]


# A trial beside one that diverges is compared with the same over `vmap` below.
@pytest.mark.parametrize("strategy", [pytest.param("vmap", marks=pytest.mark.long), "shard_map"])
@pytest.mark.usefixtures("no_figures")
def test_every_number_is_the_same_by_all_strategies(tmp_path, folder_of_tfds, whole, strategy):
    results = _trials(_run(tmp_path, folder_of_tfds, strategy=strategy))
    want = _trials(whole)
    assert results.keys() == want.keys()
    for key, trial in want.items():
        for name in HISTORY:
            np.testing.assert_allclose(
                results[key]["history"][name], trial["history"][name], rtol=1e-4
            )
        for part, figure in itertools.product(("validation", "test"), trial["validation"]):
            # Of a few hundred images one may change its neighbour for a last digit.
            assert results[key][part][figure] == pytest.approx(trial[part][figure], abs=4e-3)


class Killed(Exception):
    pass


@pytest.mark.usefixtures("no_figures")
def test_goes_on_where_it_was_killed(tmp_path, folder_of_tfds, whole, monkeypatch):
    windows, trained, after = 0, grids.train_grid, 5

    def killed(*arguments, **options):
        nonlocal windows
        for window in trained(*arguments, **options):
            windows += 1
            if windows > after:
                raise Killed
            yield window

    monkeypatch.setattr(grids, "train_grid", killed)
    with pytest.raises(Killed):
        _run(tmp_path, folder_of_tfds)
    # Three windows to a trial: finished trials are kept, and of the next where it had got to.
    assert len(_trials(tmp_path / "run")) == 1
    assert [*(tmp_path / "run" / "running").glob("*")]
    # What was being written when the process was killed spoils nothing.
    with (tmp_path / "run" / "trials.jsonl").open("a") as file:
        file.write('{"hyperparameters": {"mar')
    taken = []

    def counted(*arguments, **options):
        for window in trained(*arguments, **options):
            taken.append(window.step)
            yield window

    monkeypatch.setattr(grids, "train_grid", counted)
    folder = _run(tmp_path, folder_of_tfds, resume=True)
    assert len(taken) == 12 - after
    assert _trials(folder) == _trials(whole)
    for path in ("results.csv", "results.md", "results.tex"):
        assert (folder / path).read_text() == (whole / path).read_text()


@pytest.mark.parametrize("damaged", ["record", "state"])
@pytest.mark.usefixtures("no_figures")
def test_damage_costs_the_trial_it_is_in_and_no_other(
    tmp_path, folder_of_tfds, whole, monkeypatch, damaged
):
    """A bad line in the middle of the finished trials, and damage in one that is being trained."""
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    path = folder / "trials.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1][:-3] + b"\n"
    path.write_bytes(b"".join(lines))
    states = {file: file.read_bytes() for file in (folder / "states").rglob("*") if file.is_file()}

    # The trial of the bad line was at step 4.
    trained, taken = grids.train_grid, []
    setting = {"margin": 0.5, "seed": 1}
    (state,) = (
        line["state"]
        for line in json_lines.read_lines(whole / "trials.jsonl")
        if line["hyperparameters"] == setting
    )
    where = folder / "running" / "trials"
    shutil.copytree(folder / state, where / "4" / "0")
    one = {"history": {}, "diverged": None, "seconds": 0.0, "state": "running/trials/4/0"}
    record = {
        "strategy": "sequential",
        "at_once": 1,
        "step": 4,
        "records": {trial_key(setting): one},
    }
    sealed = json.dumps(saved_states.seal(record))
    (where / "record.json").write_text(sealed.replace("4", "2") if damaged == "record" else sealed)
    if damaged == "state":
        (where / "4" / "0" / "_CHECKPOINT_METADATA").write_bytes(b"")

    def counted(*arguments, **options):
        for window in trained(*arguments, **options):
            taken.append(window.step)
            yield window

    monkeypatch.setattr(grids, "train_grid", counted)
    told = "record.json is damaged" if damaged == "record" else "running/trials/4/0 is damaged"
    with (
        pytest.warns(UserWarning, match=r"trials.jsonl, line 2 is not a record"),
        pytest.warns(UserWarning, match=told),
    ):
        _run(tmp_path, folder_of_tfds, resume=True)
    assert taken == [2, 4, 6]
    after = path.read_bytes().splitlines(keepends=True)
    assert after[:4] == lines
    assert len(after) == 5
    path.write_bytes(b"".join([after[0], *after[2:]]))
    assert _trials(folder) == _trials(whole)
    for file, data in states.items():
        if not file.is_relative_to(folder / state):
            assert file.read_bytes() == data


@pytest.mark.usefixtures("no_figures")
def test_more_margins_and_seeds_are_more_trials(tmp_path, folder_of_tfds, whole, monkeypatch):
    folder = _run(tmp_path, folder_of_tfds, margins=(1.0,), seeds=1)
    before = (folder / "trials.jsonl").read_text()
    _run(tmp_path, folder_of_tfds, resume=True)
    assert (folder / "trials.jsonl").read_text().startswith(before)
    assert _trials(folder) == _trials(whole)
    monkeypatch.setattr(grids, "train_grid", None)
    _run(tmp_path, folder_of_tfds, resume=True)  # trains nothing


def test_a_trial_that_diverges_is_marked(tmp_path, folder_of_tfds, whole, capsys):
    folder = _run(tmp_path, folder_of_tfds, grid=("learning_rate=4e-3,1e30",), strategy="vmap")
    results = _trials(folder)
    assert len(results) == 8
    want = {key: trial["history"]["loss"] for key, trial in _trials(whole).items()}
    for trial in results.values():
        setting = dict(trial["hyperparameters"])
        if setting.pop("learning_rate") == 1e30:
            assert trial["diverged"] in range(2, 7)
            assert trial["validation"] is None
            assert trial["test"] is None
        else:
            assert trial["diverged"] is None
            loss = want[trial_key(setting)]
            np.testing.assert_allclose(trial["history"]["loss"], loss, rtol=1e-4)
    assert "2 diverged" in capsys.readouterr().out
    with (folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["diverged"] for row in rows] == ["0", "2", "0", "2"]
    assert rows[1]["test map_at_r mean"] == ""
    assert rows[1]["chosen"] == "0"


def test_structure_makes_groups_and_numbers_of_losses_are_axes(
    tmp_path, folder_of_tfds, capsys, monkeypatch
):
    monkeypatch.setattr(ablation_report, "figures_of_trials", lambda *_, **__: {"curve": Figure()})
    folder = _run(
        tmp_path,
        folder_of_tfds,
        margins=None,
        loss="supcon",
        grid=("temperature=0.1,0.5", "width=2,3"),
        width=margin_ablation.Config.width,
        seeds=1,
    )
    assert "4 trials of 6 steps, 2 to compile" in capsys.readouterr().out
    settings = [trial["hyperparameters"] for trial in _trials(folder).values()]
    assert sorted((s["temperature"], s["width"]) for s in settings) == [
        (0.1, 2),
        (0.1, 3),
        (0.5, 2),
        (0.5, 3),
    ]
    names = sorted(path.name for path in (folder / "figures").iterdir())
    assert names == ["curve-width=2.png", "curve-width=3.png"]


def test_a_grid_is_split_into_chunks_that_fit_and_timed(folder_of_tfds):
    axes = {"margin": [0.5, 1.0], "seed": [0, 1]}
    made = trials.assembled(
        trials.groups(_base(), combinations(axes))[0],
        load("digits", tfds_dir=folder_of_tfds),
        jax.devices()[:1],
    )

    def chosen(strategy, limit, devices=1):
        return choose_grid(
            made,
            strategy,
            devices=jax.devices()[:devices],
            memory_limit=limit,
            steps_per_call=2,
        )

    four, rates = chosen("vmap", 1e12)
    assert (four.trials, rates) == (4, {})
    one, _ = chosen("sequential", 1e12)
    # Memory of two trials, and of less than three.
    two, _ = chosen("vmap", one.bytes + 1.5 * (four.bytes - one.bytes) / 3)
    assert two.trials == 2
    assert one.bytes < two.bytes < four.bytes
    with pytest.raises(MemoryError, match="training 1 trials at once takes"):
        chosen("sequential", 1e3)
    best, rates = chosen("auto", 1e12)
    assert {*rates} == {"sequential of 1", "vmap of 4"}
    assert rates[f"{best.strategy} of {best.trials}"] == max(rates.values()) > 0


def _base(**options):
    return trials.base_of(margin_ablation.Config(**SMALL | options))


# Tables, of trials made up.


def _trial(seed, validation, test, diverged=None, **setting):
    def figures(value):
        return dict.fromkeys(("map_at_r", "precision_at_1", "r_precision", "auc"), value)

    return {
        "hyperparameters": setting | {"seed": seed},
        "diverged": diverged,
        "validation": None if diverged else figures(validation),
        "test": None if diverged else figures(test),
    }


MADE_UP = [
    # The best on test is not the best on validation, and the best seed of all is of neither.
    *[_trial(s, 0.70, t, margin=0.5) for s, t in enumerate((0.60, 0.64, 0.62))],
    *[_trial(s, 0.80, t, margin=1.0) for s, t in enumerate((0.70, 0.71, 0.72))],
    *[_trial(s, 0.75, t, margin=1.5) for s, t in enumerate((0.72, 0.73, 0.74))],
    _trial(0, 0.99, 0.99, margin=2.0),
    _trial(1, None, None, margin=2.0, diverged=3),
]


def test_the_setting_is_chosen_on_validation_by_the_mean():
    rows = trial_tables.rows_by_hyperparameters(MADE_UP, "map_at_r")
    chosen = trial_tables.chosen_row(rows)
    assert chosen.hyperparameters == {"margin": 1.0}
    assert rows[3].diverged == 1
    assert rows[3].validation == -np.inf
    assert trial_tables.interval_on_test(chosen, "map_at_r").mean == pytest.approx(0.71)
    assert trial_tables.chosen_row(rows[3:]) is None
    assert [*trial_tables.best_rows(rows, "margin")] == [0.5, 1.0, 1.5, 2.0]


def test_differences_are_seed_by_seed():
    rows = trial_tables.rows_by_hyperparameters(MADE_UP[::-1], "map_at_r")
    by_margin = {row.hyperparameters["margin"]: row for row in rows}
    chosen = by_margin[1.0]
    # Seed by seed all are 0.02, however the seeds differ.
    np.testing.assert_allclose(
        trial_tables.difference(by_margin[1.5], chosen, "map_at_r"), [0.02] * 3
    )
    mean, low, high = trial_tables.difference(by_margin[0.5], chosen, "map_at_r")
    assert (mean, low, high) == pytest.approx((-0.09, -0.1, -0.07))
    assert trial_tables.difference(chosen, chosen, "map_at_r") is None
    # Of two seeds one diverged: what is left of the pairs is one.
    assert trial_tables.difference(by_margin[2.0], chosen, "map_at_r").mean == pytest.approx(0.29)


def test_tables(tmp_path):
    rows = trial_tables.rows_by_hyperparameters(MADE_UP, "map_at_r")
    table = trial_tables.write_tables(tmp_path, rows, "map_at_r")
    lines = table.splitlines()
    minus = "\N{MINUS SIGN}"
    assert lines[0].startswith("| margin | P@1 (%) | R-precision (%) | MAP@R (%) | pair AUC (%) |")
    assert f"| {minus}9.0 [{minus}10.0, {minus}7.0] | 3 |" in lines[2]
    assert lines[3].startswith("| **1** | **71.0 [70.0, 72.0]** |")
    assert lines[3].endswith("| chosen | 3 |")
    # Three seeds are too few to call a difference one.
    assert lines[4].endswith("| +2.0 [+2.0, +2.0] | 3 |")
    assert lines[5].endswith("| 2, 1 diverged |")
    latex = (tmp_path / "results.tex").read_text()
    assert r"$-$9.0 [$-$10.0, $-$7.0]" in latex
    assert r"\textbf{71.0 [70.0, 72.0]}" in latex
    assert r"(\%)" in latex
    assert latex.count(r"\\") == 5
    text = (tmp_path / "results.csv").read_text()
    assert len(text.splitlines()) == 5


@pytest.mark.parametrize(("seeds", "bold"), [(4, False), (5, True)])
def test_differences_of_five_seeds_are_bold(tmp_path, seeds, bold):
    results = [_trial(s, 0.7 - m, 0.5 + m, margin=m) for m in (0.1, 0.2) for s in range(seeds)]
    rows = trial_tables.rows_by_hyperparameters(results, "map_at_r")
    table = trial_tables.write_tables(tmp_path, rows, "map_at_r")
    assert ("**+10.0 [+10.0, +10.0]**" in table) == bold
    assert "+10.0 [+10.0, +10.0]" in table


# Options.


def test_axes():
    config = margin_ablation.Config(grid=("learning_rate=1e-3,1e-2", "width=2,64"), seeds=1)
    assert margin_ablation.axes_of(config) == {
        "margin": [*margin_ablation.MARGINS],
        "learning_rate": [1e-3, 1e-2],
        "width": [2, 64],
        "seed": [0],
    }
    no_margin = margin_ablation.Config(loss="supcon", grid=("temperature=0.1,0.2",), seeds=2)
    assert [*margin_ablation.axes_of(no_margin)] == ["temperature", "seed"]
    circle = margin_ablation.Config(loss="circle", margins=(0.2,), grid=("scale=32,64",), seeds=1)
    groups = trials.groups(_base(loss="circle"), combinations(margin_ablation.axes_of(circle)))
    assert [config.loss_options for config in groups[0].configs] == [
        {"scale": 32.0, "margin": 0.2},
        {"scale": 64.0, "margin": 0.2},
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"grid": ("learning_rate",)}, "--grid takes name=value,value"),
        ({"grid": ("learning_rat=1",)}, "close to it: learning_rate"),
        ({"grid": ("width=2.5",)}, "width must be a whole number, got '2.5'"),
        ({"grid": ("margin=1,2",)}, "name the same axis"),
        ({"margins": None, "grid": ("margin=1,1",)}, "must differ, got"),
        ({"grid": ("width=2", "width=3")}, "names width twice"),
        ({"grid": ("seed=1",)}, "--seeds says how many"),
        ({"grid": ("temperature=0.1",)}, "temperature can not be an axis .* with contrastive"),
        ({"margins": (1.0, 1.0)}, "--margins must be at least one, all different"),
        ({"margins": (-1.0,)}, "margin"),
        ({"loss": "supcon"}, "supcon has no margin"),
        ({"loss": "supcon", "margins": None}, "nothing is varied: name margins of supcon"),
        ({"loss": "circle", "margins": None}, "nothing is varied: name margins of circle"),
        ({"grid": ("encoder=cnn",)}, "encoder must be one of its choices, such as convnet"),
        ({"grid": ("distance=l2",)}, "distance must be one of its choices, .* got 'l2'"),
        ({"grid": ("objective=allpairs",)}, "as all_pairs, pairs; got 'allpairs'"),
        (
            {"loss": "triplet_all", "loss_options": {"margin": 0.3}},
            "margin is an axis of the grid: leave it out of --loss_options",
        ),
        ({"seeds": 0}, "--seeds must be at least 1"),
        ({"save_every": 3}, "--save_every must be a multiple of --log_every"),
        ({"devices_per_trial": 9}, "--devices_per_trial must be from 1 to 2"),
        ({"devices": 9}, "--devices must be from 1 to 8"),
        ({"memory_limit": 0.0}, "--memory_limit must be above 0"),
        ({"shown_by": "accuracy"}, "--shown_by must be one of precision_at_1"),
    ],
)
def test_errors_come_before_anything_is_written(tmp_path, folder_of_tfds, options, words):
    with pytest.raises(ValueError, match=words):
        _run(tmp_path, folder_of_tfds, **options)
    assert not [*tmp_path.iterdir()]


@pytest.mark.usefixtures("no_figures")
def test_finished_trainings_that_were_not_judged_are_kept(
    tmp_path, folder_of_tfds, whole, monkeypatch
):
    judge, judged = trial_figures.on_test, 0

    def killed(*arguments):
        nonlocal judged
        judged += 1
        if judged > 1:
            raise Killed
        return judge(*arguments)

    monkeypatch.setattr(trial_figures, "on_test", killed)
    with pytest.raises(Killed):
        _run(tmp_path, folder_of_tfds, strategy="vmap")
    assert len(_trials(tmp_path / "run")) == 1
    monkeypatch.setattr(trial_figures, "on_test", judge)
    steps = []
    trained = grids.train_grid
    monkeypatch.setattr(
        grids, "train_grid", lambda *a, **o: (steps.append(w.step) or w for w in trained(*a, **o))
    )
    folder = _run(tmp_path, folder_of_tfds, strategy="vmap", resume=True)
    assert not steps
    assert _trials(folder).keys() == _trials(whole).keys()
    assert all(trial["history"]["step"] == [2, 4, 6] for trial in _trials(folder).values())


@pytest.mark.usefixtures("no_figures")
def test_goes_on_with_fewer_trials_at_once(tmp_path, folder_of_tfds, whole, monkeypatch):
    trained = grids.train_grid

    def killed(*arguments, **options):
        for window in trained(*arguments, **options):
            if window.step > 2:
                raise Killed
            yield window

    monkeypatch.setattr(grids, "train_grid", killed)
    with pytest.raises(Killed):
        _run(tmp_path, folder_of_tfds, strategy="vmap")
    monkeypatch.setattr(grids, "train_grid", trained)
    folder = _run(tmp_path, folder_of_tfds, strategy="sequential", resume=True)
    results, want = _trials(folder), _trials(whole)
    assert results.keys() == want.keys()
    for key, trial in results.items():
        assert trial["history"]["step"] == [2, 4, 6]
        np.testing.assert_allclose(
            trial["history"]["loss"], want[key]["history"]["loss"], rtol=1e-4
        )


def test_resumed_with_other_options(tmp_path, folder_of_tfds, whole):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text((whole / "config.json").read_text())
    with pytest.raises(ValueError, match="steps was 6 and is now 8"):
        _run(tmp_path, folder_of_tfds, steps=8, resume=True)
    with pytest.raises(ValueError, match="axes was"):
        _run(tmp_path, folder_of_tfds, grid=("learning_rate=1e-3,1e-2",), resume=True)
    with pytest.raises(FileExistsError, match="--resume goes on with it"):
        _run(tmp_path, folder_of_tfds)
    path = tmp_path / "run" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"data_digest": "of other images"}))
    with pytest.raises(ValueError, match="is not what it was started on"):
        _run(tmp_path, folder_of_tfds, resume=True)


def test_five_of_the_margins_are_shown_with_the_chosen_one():
    values = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
    for chosen in values:
        five = ablation_plots._five(values, chosen)
        assert len(five) == 5
        assert chosen in five
        assert {0.1, 0.7} < {*five}
    assert ablation_plots._five(values[:4], None) == values[:4]


def test_a_value_on_the_edge_of_the_grid_is_said_with_what_widens_it(tmp_path):
    def notes(values, best, axis="margin", **chosen):
        rows = [trial_tables.Row({axis: x}, [], 0, -abs(x - best)) for x in values]
        return margin_ablation.edge_notes(margin_ablation.Config(**chosen), tmp_path / "run", rows)

    (note,) = notes((0.25, 0.5, 1.0), 1.0)
    assert note.startswith("the chosen margin, 1, is the largest of the grid")
    assert note.endswith("--resume run --margins 0.25 0.5 1 2 adds trials")
    (note,) = notes((0.2, 0.4, 0.8), 0.2)
    assert "is the smallest of the grid" in note
    assert "--margins 0.1 0.2 0.4 0.8" in note
    assert not notes((0.25, 0.5, 1.0), 0.5)
    # Two values have no inside, and the reach of the distance is an end of its own.
    assert not notes((0.25, 0.5), 0.5)
    assert "1.5 2 adds" in notes((0.5, 1.0, 1.5), 1.5)[0]
    assert not notes((0.5, 1.0, 2.0), 2.0)
    (note,) = notes((1e-3, 1e-2, 1e-1), 1e-3, "learning_rate", grid=("learning_rate=1e-3,1e-2",))
    assert "--grid learning_rate=0.0001,0.001,0.01,0.1 adds" in note
    assert not notes((0.25, 0.5, 1.0), 1.0, "positive_fraction")


def test_options_that_are_given_several_times_take_the_place_of_the_default(tmp_path):
    def parsed(program, *arguments):
        return cli.parse(program.Config, "program", "What it does.", [*arguments])

    assert parsed(search).space == ("margin=0.1:1.8",)
    assert parsed(search, "--space", "margin=0.2:1.8").space == ("margin=0.2:1.8",)
    (tmp_path / "run").mkdir()
    axes = ["width=2,4", "learning_rate=1e-3,1e-2"]
    (tmp_path / "run" / "config.json").write_text(json.dumps({"grid": axes, "runs": str(tmp_path)}))
    resumed = ("--resume", "run", "--runs", str(tmp_path))
    assert parsed(margin_ablation, *resumed).grid == tuple(axes)
    more = parsed(margin_ablation, *resumed, "--grid", "learning_rate=1e-3,1e-2,1e-1").grid
    assert more == ("width=2,4", "learning_rate=1e-3,1e-2,1e-1")
    twice = parsed(margin_ablation, *resumed, "--grid", "width=2", "--grid", "width=4")
    with pytest.raises(ValueError, match="names width twice"):
        margin_ablation.axes_of(twice)

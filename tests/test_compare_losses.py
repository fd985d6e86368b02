"""The comparison of losses: what it tunes, chooses and reports, and that it can be interrupted."""

import functools

import numpy as np
import optax
import pytest

import contrastive_jax as cj
from contrastive_jax import cli, loss_report, train
from contrastive_jax.search.loss_trials import (
    LEARNING_RATE,
    best_point,
    read_finished,
    trials_of_loss,
    tuning_points,
)
from contrastive_jax.train import json_lines, loss_table
from contrastive_jax.train.training import Training
from experiments import compare_losses, options

SMALL = {
    "dataset": "digits",
    "losses": ("supcon",),
    "trials": 2,
    "seeds": 2,
    "steps": 20,
    "encoder": "mlp",
}


def _lines(folder):
    order = [(split, stage) for split in loss_report.SPLITS for stage in (None, "tuning", "test")]
    return sorted(
        read_finished(folder),
        key=lambda line: (order.index((line["split"], line.get("stage"))), line.get("number")),
    )


def _timeless(trials):
    return [{key: value for key, value in line.items() if key != "seconds"} for line in trials]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return compare_losses.main(compare_losses.Config(runs=tmp_path_factory.mktemp("runs"), **SMALL))


def test_each_loss_has_its_trials_and_seeds_with_what_validation_chose(folder):
    trials = _lines(folder)
    assert len(trials) == 2 * (1 + 2 + 2)
    for split in loss_report.SPLITS:
        for name in SMALL["losses"]:
            mine = [c for c in trials if (c["split"], c["loss"]) == (split, name)]
            tuned = [c for c in mine if c["stage"] == "tuning"]
            test = [c for c in mine if c["stage"] == "test"]
            assert [c["number"] for c in tuned] == [c["number"] for c in test] == [0, 1]
            assert tuned[0]["options"] == {"temperature": 0.1}
            best = max(tuned, key=lambda c: c["figures"]["map_at_r"])
            for line in test:
                assert line["options"] == best["options"]
                assert line["learning_rate"] == best["learning_rate"]
            assert test[0]["figures"] != test[1]["figures"]


def test_it_goes_on_where_it_was_interrupted(folder):
    before = _lines(folder)
    path = folder / "trials.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:3]) + lines[3][:20])
    table = (folder / "results.md").read_text()
    compare_losses.main(compare_losses.Config(runs=folder.parent, resume="compare_losses", **SMALL))
    assert len(path.read_text().splitlines()) == len(lines)
    assert _timeless(_lines(folder)) == _timeless(before)
    assert (folder / "results.md").read_text() == table
    with pytest.raises(ValueError, match="steps was 20 and is now 21"):
        compare_losses.main(
            compare_losses.Config(
                runs=folder.parent, resume="compare_losses", **SMALL | {"steps": 21}
            )
        )
    with pytest.raises(FileExistsError, match="--resume"):
        compare_losses.main(compare_losses.Config(runs=folder.parent, **SMALL))


def test_the_table_has_means_and_intervals_of_test(folder):
    trials = _lines(folder)
    rows = [line.split(" | ") for line in (folder / "results.md").read_text().splitlines()]
    names = [row[0].strip("| ") for row in rows[2:]]
    assert {*names} == {"raw pixels", "supcon"}
    shown = [float(row[3].split(" ")[0]) for row in rows[2:]]
    assert shown == sorted(shown, reverse=True)
    values = [
        c["figures"]["map_at_r"]
        for c in trials
        if (c["split"], c["loss"], c.get("stage")) == ("all classes", "supcon", "test")
    ]
    # Of two values the deviation is their distance over sqrt(2), and Student's t 12.706.
    half = 12.7062 * abs(values[0] - values[1]) / 2
    want = f"{100 * np.mean(values):.1f} ± {100 * half:.1f}"
    assert rows[2 + names.index("supcon")][3] == want
    assert (folder / "comparison.png").stat().st_size > 10_000


def test_settings_are_within_their_ranges_and_every_range_is_of_a_known_number():
    for name in loss_table.NAMES:
        first, *others = tuning_points(name, 6)
        assert first["learning_rate"] == 4e-3
        defaults = loss_table.hyperparameters_of(name)
        assert first["options"] == {key: defaults[key] for key in others[0]["options"]}
        assert len(others) == 5
        assert len({setting["learning_rate"] for setting in others}) == 5
        for setting in others:
            assert 1e-3 <= setting["learning_rate"] <= 1e-2
            for option, value in setting["options"].items():
                low, high = (
                    dict(loss_table.TABLE[name].ranges) | {"positive_fraction": (0.05, 0.5)}
                )[option]
                assert low <= value <= high
                assert option in defaults
        assert {*loss_table.TABLE[name].ranges} <= {*defaults}


def test_a_training_that_diverged_is_never_chosen_and_has_no_place_in_the_table(tmp_path, capsys):
    assert best_point(
        [
            {"figures": None, "learning_rate": 1.0, "options": {"margin": 1.0}},
            {"figures": {"map_at_r": 0.0}, "learning_rate": 2.0, "options": {"margin": 2.0}},
        ]
    ) == {"learning_rate": 2.0, "options": {"margin": 2.0}}
    figures = {"precision_at_1": 0.5, "r_precision": 0.4, "map_at_r": 0.3}
    for split in loss_report.SPLITS:
        for name, values in (("supcon", figures), ("arcface", None)):
            line = {"split": split, "loss": name, "stage": "test", "number": 0, "figures": values}
            json_lines.append_line(tmp_path / "trials.jsonl", line)
    for k in (0, 0, 1):  # twice, as two processes may
        line = {"split": "all classes", "loss": "nca", "stage": "test", "number": k}
        json_lines.append_line(tmp_path / "trials.jsonl", line | {"figures": figures})
    (tmp_path / "config.json").write_text('{"seeds": 1}')
    loss_report.report(tmp_path)
    printed = capsys.readouterr().out
    assert "| supcon | 50.0 | 40.0 | 30.0 | 50.0 | 40.0 | 30.0 |" in printed
    assert "diverged, and left out: arcface on all classes, arcface on unseen classes" in printed
    (tmp_path / "config.json").write_text('{"seeds": 2}')
    loss_report.report(tmp_path)
    printed = capsys.readouterr().out
    assert "not complete, and left out: supcon on all classes, supcon on unseen" in printed
    (tmp_path / "config.json").write_text('{"seeds": 1, "split": "classes"}')
    loss_report.report(tmp_path)
    printed = capsys.readouterr().out
    assert "| loss | P@1, unseen classes | R-precision, unseen classes | MAP@R, unseen" in printed
    assert "| supcon | 50.0 | 40.0 | 30.0 |\n" in printed
    (tmp_path / "config.json").write_text('{"seeds": 2}')
    assert len(read_finished(tmp_path, loss="nca")) == 2


def test_a_line_cut_short_does_not_spoil_the_next(tmp_path):
    (tmp_path / "trials.jsonl").write_text('{"loss": "supcon", "fig')
    for name in ("nca", "arcface"):
        line = {"split": "all classes", "loss": name, "figures": None}
        json_lines.append_line(tmp_path / "trials.jsonl", line)
    assert [line["loss"] for line in read_finished(tmp_path)] == ["nca", "arcface"]


def test_processes_share_a_run_but_not_a_loss(tmp_path):
    config = compare_losses.Config(runs=tmp_path, **SMALL)
    again = compare_losses.Config(runs=tmp_path, resume="compare_losses", **SMALL)
    anew = compare_losses.Config(runs=tmp_path, overwrite=True, **SMALL)
    with compare_losses._folder(config, ["supcon", "nca"], {}) as folder:
        with compare_losses._folder(again, ["arcface"], {}) as same:
            assert same == folder
        with (
            pytest.raises(BlockingIOError, match=r"nca in .* is in use by process \d+"),
            compare_losses._folder(again, ["arcface", "nca"], {}),
        ):
            pass
        with (
            pytest.raises(BlockingIOError, match="compare_losses is in use"),
            compare_losses._folder(anew, ["arcface"], {}),
        ):
            pass
    with compare_losses._folder(again, ["nca"], {}):
        pass


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"losses": ("supcom",)}, "unknown loss supcom; close to it: supcon"),
        ({"trials": 0}, "--trials must be at least 1, got 0"),
        ({"name": "."}, "--name must be the name of one folder, got '.'"),
        ({"name": ""}, "--name must be the name of one folder, got ''"),
        ({"name": "a/b"}, "--name must be the name of one folder, got 'a/b'"),
        ({"width": 2}, "--width must be at least 3, got 2"),
        ({"batch_size": 55}, "multiple of the 10 classes that are trained on"),
        ({"dataset": "digitz"}, "unknown data set 'digitz'"),
        ({"resume": "compare_losses", "overwrite": True}, "exclude each other"),
    ],
)
def test_errors_come_before_anything_is_written(tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        compare_losses.main(compare_losses.Config(runs=tmp_path, **SMALL | options))
    assert not list(tmp_path.iterdir())


def test_an_encoder_that_is_not_there_is_refused():
    def parse():
        return cli.parse(compare_losses.Config, "compare", "Compares.", ["--encoder", "vit"])

    with pytest.raises(SystemExit) as ended:
        cli.run(compare_losses.main, parse)
    assert "invalid choice 'vit' for argument '--encoder'. Expected one of" in ended.value.code
    assert all(name in ended.value.code for name in options.ENCODERS)


def test_a_learning_rate_scales_the_steps_of_proxies_too():
    make = functools.partial(train.objective, "proxy_nca")
    digits = cj.data.load("digits")
    training = Training(model=cj.models.MLP, data=digits, objective=make(), steps=4, batch_size=20)
    point = {"learning_rate": LEARNING_RATE / 4, "options": {}}
    state = trials_of_loss(training, make, [(point, 0)]).init(0).opt_state
    for name in ("step_size", "loss_step_size"):
        values = [value for _, value in optax.tree.get_all_with_path(state, name)]
        assert values, name
        np.testing.assert_allclose(values, 0.25)

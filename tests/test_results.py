"""The table of several seeds: means, lowest and highest values, of runs that belong together."""

import json

import pytest

from contrastive_jax.evaluation.tables import TITLES
from experiments import results


def _run(folder, seed, precision, **options):
    folder.mkdir()
    config = {"dataset": "digits", "margin": 1.2, "seed": seed, "name": folder.name, **options}
    (folder / "config.json").write_text(json.dumps(config))
    learned = dict.fromkeys(TITLES, 0.5) | {"precision_at_1": precision}
    figures = {"embedding": learned, "raw pixels": dict.fromkeys(TITLES, 0.25)}
    (folder / "results.json").write_text(json.dumps(figures | {"best_step": 500}))
    return folder


@pytest.fixture
def three(tmp_path):
    values = (0.9, 0.96, 0.93)
    return tuple(_run(tmp_path / f"run-{seed}", seed, x) for seed, x in enumerate(values))


def test_gives_mean_lowest_and_highest_over_seeds(three, capsys):
    table = results.main(results.Config(three)).splitlines()
    assert table[0] == "| on test, 3 seeds | embedding | raw pixels |"
    assert table[2] == "| precision at 1 | 0.9300 [0.9000, 0.9600] | 0.2500 |"
    # A figure that is the same for all has no spread.
    assert table[3] == "| R-precision | 0.5000 | 0.2500 |"
    assert len(table) == 2 + len(TITLES)
    assert capsys.readouterr().out.splitlines()[: len(table)] == table


def _refused(folders, message):
    with pytest.raises(ValueError, match=message):
        results.main(results.Config(folders))


def test_refuses_runs_that_do_not_belong_together(three, tmp_path):
    _refused(three[:1], "two runs or more, got 1")
    _refused((*three, _run(tmp_path / "same", 1, 0.9)), "run-1 and .*same both have seed 1")
    other = _run(tmp_path / "other", 3, 0.9, margin=0.5)
    _refused((*three, other), r"run-0 has --margin 1\.2 and .*other has 0\.5")
    # An option that one of two versions of the code does not have differs too.
    later = _run(tmp_path / "later", 4, 0.9, added=True)
    _refused((*three, later), "run-0 has --added None and .*later has True")
    (three[2] / "results.json").unlink()
    _refused(three, r"run-2/results\.json is missing")

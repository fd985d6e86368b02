"""Run folders: never overwritten, resumed only with the same options, whole after a kill."""

import json

import pytest
from tensorboardX import SummaryWriter

from contrastive_jax import runs


def test_names_are_given_or_the_next_that_is_free(tmp_path):
    first = runs.create_run(tmp_path / "runs", None, "digits-mlp", {"margin": 1.0})
    second = runs.create_run(tmp_path / "runs", None, "digits-mlp", {"margin": 2.0})
    assert [first.name, second.name] == ["digits-mlp-1", "digits-mlp-2"]
    assert json.loads((first / "config.json").read_text()) == {"margin": 1.0}
    named = runs.create_run(tmp_path / "runs", "mine", "digits-mlp", {"margin": 3.0})
    assert named.name == "mine"
    with pytest.raises(FileExistsError, match=r"mine exists; --resume .* --overwrite"):
        runs.create_run(tmp_path / "runs", "mine", "digits-mlp", {"margin": 4.0})
    assert json.loads((named / "config.json").read_text()) == {"margin": 3.0}


def test_a_run_resumes_with_its_own_options_only(tmp_path):
    folder = runs.create_run(tmp_path, "mine", "", {"margin": 1.0, "keep": 2, "seed": 0})
    runs.check_resumable(folder, {"margin": 1.0, "keep": 9, "seed": 0}, free={"keep"})
    with pytest.raises(ValueError, match=r"margin was 1\.0 and is now 2\.0; new was None"):
        runs.check_resumable(folder, {"margin": 2.0, "keep": 2, "seed": 0, "new": 1}, free=set())
    with pytest.raises(FileNotFoundError, match="no run to resume"):
        runs.check_resumable(tmp_path / "other", {}, free=set())


def test_metrics_are_read_back_and_truncated(tmp_path):
    records = [{"step": k, "loss": 1 / k} for k in range(1, 7)] + [{"step": 6, "map": 0.5}]
    with SummaryWriter(str(tmp_path / "tensorboard")) as events:
        runs.write_metrics(tmp_path, events, records[:3])
        runs.write_metrics(tmp_path, events, records[3:])
    assert runs.read_metrics(tmp_path) == records
    assert list((tmp_path / "tensorboard").iterdir())
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')
    assert runs.read_metrics(tmp_path) == records
    runs.truncate_metrics(tmp_path, 4)
    assert runs.read_metrics(tmp_path) == records[:4]


def test_a_mean_over_nothing_is_left_out(tmp_path):
    with SummaryWriter(str(tmp_path / "tensorboard")) as events:
        runs.write_metrics(tmp_path, events, [{"step": 1, "loss": 2.0, "similar": float("nan")}])
    assert runs.read_metrics(tmp_path) == [{"step": 1, "loss": 2.0}]


def test_a_folder_without_metrics_has_none(tmp_path):
    assert runs.read_metrics(tmp_path) == []
    runs.truncate_metrics(tmp_path, 3)
    assert runs.read_metrics(tmp_path) == []

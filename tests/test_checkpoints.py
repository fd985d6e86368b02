"""Checkpoints: exact, the last and the best kept, wrong shapes refused, damage never restored."""

import contextlib
import shutil
import warnings

import jax
import ml_dtypes
import numpy as np
import optax
import pytest

from contrastive_jax import train
from contrastive_jax.train import checkpoints, saved_states


def _state(scale, width=3):
    params = {"w": np.full((2, width), scale, np.float32), "b": np.full(width, scale, np.float32)}
    encoder = train.network((lambda params, images: images @ params["w"], params))
    return jax.device_get(train.init_state(encoder, optax.adam(1e-3)))


def test_a_state_comes_back_bit_for_bit(tmp_path):
    state = _state(np.float32(1 / 3))._replace(step=np.int32(7))
    with checkpoints.open_checkpoints(tmp_path, best_by="map") as saved:
        checkpoints.save(saved, 7, state, {"map": 0.5})
    with checkpoints.open_checkpoints(tmp_path, best_by="map") as saved:
        assert saved.latest_step() == 7
        back = checkpoints.restore(saved, 7, _state(0.0))
    assert jax.tree.structure(back) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, back, state)


def test_the_last_few_and_the_best_are_kept(tmp_path):
    scores = {10: 0.1, 20: 0.9, 30: 0.3, 40: 0.2, 50: 0.4}
    with checkpoints.open_checkpoints(tmp_path, keep=2, best_by="map") as saved:
        for step, score in scores.items():
            checkpoints.save(saved, step, _state(step), {"map": score, "other": -score})
    with checkpoints.open_checkpoints(tmp_path, keep=2, best_by="map") as saved:
        assert sorted(saved.all_steps()) == [20, 40, 50]
        assert saved.best_step() == 20
        assert saved.latest_step() == 50
        np.testing.assert_array_equal(
            checkpoints.restore(saved, 20, _state(0.0)).params.encoder["w"], np.full((2, 3), 20)
        )


def test_another_encoder_is_refused(tmp_path):
    with checkpoints.open_checkpoints(tmp_path, best_by="map") as saved:
        checkpoints.save(saved, 1, _state(1.0), {"map": 0.5})
        saved.wait_until_finished()
        with pytest.raises(ValueError, match=r"of shape \(3,\), expected \(4,\): .* encoder"):
            checkpoints.restore(saved, 1, _state(1.0, width=4))


def test_at_least_one_is_kept(tmp_path):
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        checkpoints.open_checkpoints(tmp_path, keep=0, best_by="map")


def test_a_state_of_all_types_comes_back_on_its_device(tmp_path):
    device = jax.devices()[3]
    state = {
        "half": np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16),
        "tuple": (np.array([True, False]), np.int32(3), None, ()),
        "list": [jax.device_put(np.float32(1 / 3), device)],
    }
    saved_states.save_state(tmp_path / "state", state)
    back = saved_states.restore_state(tmp_path / "state", state)
    assert jax.tree.structure(back) == jax.tree.structure(state)
    for got, want in zip(jax.tree.leaves(back), jax.tree.leaves(state), strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)
    assert back["list"][0].devices() == {device}
    with pytest.raises(ValueError, match=r"state differs from the expected state in more: it is"):
        saved_states.restore_state(tmp_path / "state", state | {"more": np.zeros(2)})


# Damage. Whatever happens to a file, what is restored is what was saved, or an older checkpoint.

SCORES = {10: 0.9, 20: 0.1, 30: 0.2}
DAMAGES = ("emptied", "halved", "deleted", "flipped")


def _damage(path, how, seed=0):
    data = path.read_bytes()
    if how == "deleted":
        path.unlink()
    elif how == "flipped":
        flipped = bytearray(data)
        bit = int(np.random.default_rng(seed).integers(8 * len(data)))
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
    else:
        path.write_bytes(data[: len(data) // 2] if how == "halved" else b"")


def _files(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def _equal(got, want):
    jax.tree.map(np.testing.assert_array_equal, got, want)


@contextlib.contextmanager
def _opened(folder):
    """The checkpoints, and the warnings that opening them gave."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with checkpoints.open_checkpoints(folder, best_by="map") as saved:
            yield saved, [str(warning.message) for warning in told]


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    with checkpoints.open_checkpoints(folder, keep=2, best_by="map") as saved:
        for step, score in SCORES.items():
            checkpoints.save(saved, step, _state(step / 7), {"map": score})
    return folder


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("step", [10, 30])
def test_a_damaged_checkpoint_is_left_out_or_does_no_harm(tmp_path, good, step, how):
    passed_over = set()
    for number, file in enumerate(_files(good / str(step))):
        folder = tmp_path / str(number)
        shutil.copytree(good, folder)
        _damage(folder / str(step) / file, how, seed=number)
        with _opened(folder) as (saved, messages):
            latest, best = saved.latest_step(), saved.best_step()
            for at in {latest, best}:
                _equal(checkpoints.restore(saved, at, _state(0.0)), _state(at / 7))
        if messages:
            assert len(messages) == 1
            assert f"checkpoint {step} is damaged and left out: " in messages[0]
            assert str(folder / "damaged" / str(step)) in messages[0]
            assert (folder / "damaged" / str(step)).is_dir()
            left = {at: score for at, score in SCORES.items() if at != step}
            assert (latest, best) == (max(left), max(left, key=left.get))
            passed_over.add(file.parts[0] if len(file.parts) == 1 else file.parts[:2])
        else:
            assert (latest, best) == (30, 10)
    # The digests, the metrics and the arrays.
    assert {"_CHECKPOINT_METADATA", ("metrics", "metrics"), ("default", "d")} <= passed_over


def test_checkpoints_go_on_after_the_damaged_ones(tmp_path, good):
    shutil.copytree(good, tmp_path / "run")
    for again in ("", "-2"):
        for step in (20, 30):
            _damage(tmp_path / "run" / str(step) / "metrics" / "metrics", "emptied")
        with _opened(tmp_path / "run") as (saved, messages):
            assert "checkpoint 20 is damaged" in messages[0]
            assert messages[1].endswith(f"damaged/30{again}")
            assert saved.all_steps() == [10]
            for step in (20, 30):
                checkpoints.save(saved, step, _state(step / 7), {"map": SCORES[step]})
        with checkpoints.open_checkpoints(tmp_path / "run", best_by="map") as saved:
            assert sorted(saved.all_steps()) == [10, 20, 30]
            _equal(checkpoints.restore(saved, 30, _state(0.0)), _state(30 / 7))


@pytest.mark.parametrize("key", ["item_handlers", "commit_timestamp_nsecs", "custom_metadata"])
def test_damaged_metadata_of_one_checkpoint_keeps_no_other(tmp_path, good, key):
    shutil.copytree(good, tmp_path / "run")
    path = tmp_path / "run" / "20" / "_CHECKPOINT_METADATA"
    path.write_text(path.read_text().replace(key, key[:-1] + "x"))
    with _opened(tmp_path / "run") as (saved, messages):
        assert len(messages) == 1
        assert sorted(saved.all_steps()) == [10, 30]


def test_without_a_good_checkpoint_there_is_none(tmp_path, good):
    shutil.copytree(good, tmp_path / "run")
    for step in SCORES:
        shutil.rmtree(tmp_path / "run" / str(step) / "default")
    with _opened(tmp_path / "run") as (saved, messages):
        assert len(messages) == 3
        assert saved.latest_step() is None
        assert saved.best_step() is None


def test_damage_after_opening_is_an_error(tmp_path, good):
    shutil.copytree(good, tmp_path / "run")
    with checkpoints.open_checkpoints(tmp_path / "run", best_by="map") as saved:
        (data,) = (tmp_path / "run" / "10" / "default" / "d").iterdir()
        _damage(data, "halved")
        with pytest.raises(
            ValueError, match=r"checkpoint 10 is damaged: .* can not be read"
        ) as error:
            checkpoints.restore(saved, 10, _state(0.0))
    assert "--resume" in error.value.__notes__[0]


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_state_is_an_error_or_comes_back_whole(tmp_path, how):
    values = np.random.default_rng(0).normal(size=(64, 64))
    state = _state(1.0)._replace(params=values)
    saved_states.save_state(tmp_path / "good", state)
    refused = []
    for number, file in enumerate(_files(tmp_path / "good")):
        for seed in range(6 if how == "flipped" and "d" in file.parts else 1):
            path = tmp_path / f"{number}-{seed}"
            shutil.copytree(tmp_path / "good", path)
            _damage(path / file, how, seed)
            if reason := saved_states.damage(path):
                refused.append(reason)
                with pytest.raises(ValueError, match=f"{path} is damaged: "):
                    saved_states.restore_state(path, state)
            else:
                _equal(saved_states.restore_state(path, state), state)
    assert len(refused) >= 3
    # Orbax alone reads some of these without an error.
    assert ("params has not the digest that was saved" in refused) == (how == "flipped")


def test_a_state_that_is_missing_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="nothing is damaged: there is no such folder"):
        saved_states.restore_state(tmp_path / "nothing", _state(1.0))


class Killed(BaseException):
    pass


def test_a_killed_deletion_leaves_whole_checkpoints_alone(tmp_path, monkeypatch):
    removed = []

    def killed(path, **_):
        if path.exists():
            removed.append(path)
            raise Killed

    def saves():
        with checkpoints.open_checkpoints(tmp_path, best_by="map") as saved:
            monkeypatch.setattr(shutil, "rmtree", killed)
            for step in range(1, 9):
                checkpoints.save(saved, step, _state(step), {"map": -step})

    with pytest.raises(Killed):
        saves()
    monkeypatch.undo()
    # All that is removed has been renamed first.
    assert removed == [tmp_path / "deleted"]
    (tmp_path / "9.orbax-checkpoint-tmp").mkdir()
    with checkpoints.open_checkpoints(tmp_path, best_by="map") as saved:
        assert saved.latest_step() > 2
        assert saved.best_step() == 1
        for step in saved.all_steps():
            _equal(checkpoints.restore(saved, step, _state(0.0)), _state(step))
    assert {path.name for path in tmp_path.iterdir()} == {str(step) for step in saved.all_steps()}


def test_a_full_disk_is_one_error_that_names_the_folder(tmp_path, capfd, no_larger_files):
    with checkpoints.open_checkpoints(tmp_path / "run", best_by="map") as saved:
        checkpoints.save(saved, 1, _state(1.0), {"map": 0.5})
        saved.wait_until_finished()
        with no_larger_files(1000), pytest.raises(OSError, match="File too large") as error:
            checkpoints.save(saved, 2, _state(2.0), {"map": 0.5})
        assert error.value.filename == str(tmp_path / "run")
        assert saved.all_steps() == [1]
        with no_larger_files(1000), pytest.raises(OSError, match="File too large"):
            saved_states.save_state(tmp_path / "state", _state(2.0))
    assert not (tmp_path / "state").exists()
    assert capfd.readouterr().err == ""


def test_a_sealed_record_is_the_one_that_was_sealed():
    sealed = saved_states.seal({"step": 4})
    assert saved_states.unseal(sealed) == {"step": 4}
    for changed in (None, [], {}, sealed | {"record": sealed["record"].replace("4", "5")}):
        with pytest.raises(ValueError, match="is not the one"):
            saved_states.unseal(changed)

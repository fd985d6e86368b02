"""Checkpoints: exact, the last and the best kept, wrong shapes refused."""

import jax
import numpy as np
import optax
import pytest

from contrastive_jax import checkpoints, training


def _state(scale, width=3):
    params = {"w": np.full((2, width), scale, np.float32), "b": np.full(width, scale, np.float32)}
    return jax.device_get(training.init_state(params, optax.adam(1e-3)))


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
            checkpoints.restore(saved, 20, _state(0.0)).params["w"], np.full((2, 3), 20)
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

import functools

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from contrastive_jax import train
from contrastive_jax.data import index_by_class
from contrastive_jax.models import ConvNet
from contrastive_jax.train import grid as grids
from contrastive_jax.train import grid_strategy, objectives, parallel

SHAPE = (8, 8, 1)
RATES = (1e-3, 3e-3, 1e-3, 1e-2, 2e-3)
HYPERPARAMETERS = [
    train.Hyperparameters(k % 3, {"margin": 0.4 + 0.2 * k, "positive_fraction": 0.5})
    for k in range(len(RATES))
]


class Setup:
    """A step of which is counted how often it is traced."""

    def __init__(self):
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (40, *SHAPE), dtype=np.uint8)
        classes = np.arange(40) % 4
        self.source = train.Source(images, classes, index_by_class(classes))
        tunable = optax.inject_hyperparams(train.make_optimizer, ("steps", "warmup_steps"))
        self.optimizer = tunable(1e-3, 8, warmup_steps=1, weight_decay=0.1)
        objective = objectives.pairs(group=2)
        pair_step = train.make_step(self.encoder(0), self.optimizer, objective)
        drawn = train.draws_pairs(pair_step, 8)
        self.traced = 0

        def step(state, source, hyperparameters):
            self.traced += 1
            return drawn(state, source, hyperparameters)

        self.step = step
        # Tests share what takes long to make: first states, and grids, which are compiled.
        self.begun, self.grid = functools.cache(self._begun), functools.cache(self._grid)

    def encoder(self, seed):
        return train.network(ConvNet(SHAPE, 4, channels=(4, 6), hidden=8, rngs=nnx.Rngs(seed)))

    def _begun(self, seed):
        # On the host, where no program can take its buffers.
        return jax.device_get(train.init_state(self.encoder(seed), self.optimizer))

    def init(self, trial, rates=RATES):
        state = self.begun(int(HYPERPARAMETERS[trial].seed))
        tuned = optax.tree.set(state.opt_state, learning_rate=np.float32(rates[trial]))
        return state._replace(opt_state=tuned)

    def _grid(self, strategy, **options):
        return grids.make_grid(
            self.step, self.init(0), self.source, HYPERPARAMETERS[0], strategy, **options
        )

    def train(self, grid, init=None, hyperparameters=HYPERPARAMETERS, start=0, steps=6, window=4):
        """The last states, the metrics of all steps, and where trials diverged, by trial."""
        states, metrics, diverged = {}, {}, {}
        source = jax.device_put(self.source, grid.shared)
        for one in grids.train_grid(
            grid,
            init or self.init,
            source,
            hyperparameters,
            start=start,
            steps=steps,
            window=window,
        ):
            for place, trial in enumerate(one.trials):
                states[trial] = one.state(place)
                columns = {name: column[place] for name, column in one.metrics.items()}
                metrics.setdefault(trial, []).append(columns)
                diverged[trial] = one.diverged[place]
        joined = {
            trial: {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            for trial, parts in metrics.items()
        }
        return states, joined, diverged


@pytest.fixture(scope="module")
def setup():
    return Setup()


@pytest.fixture(scope="module")
def one_after_another(setup):
    return setup.train(setup.grid("sequential"))


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        ("sequential", {"steps_per_call": 2}),
        pytest.param("vmap", {"trials": 3}, marks=pytest.mark.long),
        ("vmap", {"trials": 5, "steps_per_call": 2}),
        pytest.param("shard_map", {"trials": 4, "devices": 4}, marks=pytest.mark.long),
        ("shard_map", {"trials": 4, "devices": 2}),
        ("shard_map", {"trials": 2, "devices": 8, "devices_per_trial": 4}),
        ("sequential", {"devices": 8, "devices_per_trial": 2}),
        ("vmap", {"trials": 5, "devices": 2, "devices_per_trial": 2}),
    ],
)
def test_strategies_give_the_same_numbers(setup, one_after_another, strategy, options):
    options = dict(options)
    if "devices" in options:
        options["devices"] = tuple(jax.devices()[: options["devices"]])
    states, metrics, diverged = setup.train(setup.grid(strategy, **options))
    want_states, want_metrics, _ = one_after_another
    assert [*states] == [*range(5)]
    assert diverged == dict.fromkeys(range(5))
    for trial in range(5):
        jax.tree.map(
            lambda got, want: np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-5),
            (states[trial], metrics[trial]),
            (want_states[trial], want_metrics[trial]),
        )
        assert states[trial].step == 6
        assert metrics[trial]["loss"].shape == (6,)


def test_trials_are_single_runs(setup, one_after_another):
    placed = parallel(setup.step, "shard_map", jax.devices()[:1])
    trial = 3
    state, source, hyperparameters = placed.replicate(
        (setup.init(trial), setup.source, HYPERPARAMETERS[trial])
    )
    ((state, records),) = train.windows(
        lambda state: placed.step(state, source, hyperparameters),
        state,
        start=0,
        steps=6,
        window=6,
        pairs_per_step=8,
    )
    states, metrics, _ = one_after_another
    losses = [record["loss"] for record in records]
    np.testing.assert_allclose(metrics[trial]["loss"], losses, rtol=1e-5)
    jax.tree.map(
        lambda got, want: np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6),
        states[trial].params,
        placed.fetch(state).params,
    )
    # And trials differ, or all of this would show nothing.
    assert len({float(metrics[k]["loss"][-1]) for k in range(5)}) == 5


def test_numbers_never_compile_again():
    setup = Setup()
    grid = setup.grid("vmap", trials=2)
    once = setup.traced
    assert once >= 1
    setup.train(grid)
    setup.train(
        grid,
        hyperparameters=[
            n._replace(loss={"margin": 9.0, "positive_fraction": 0.25}) for n in HYPERPARAMETERS
        ],
    )
    assert setup.traced == once


@pytest.mark.parametrize("strategy", ["sequential", "vmap", "shard_map"])
def test_a_trial_that_diverges_leaves_the_others_alone(setup, strategy):
    two = {"trials": 4, "devices": tuple(jax.devices()[:2])}
    options = {"sequential": {}, "vmap": {"trials": 5}, "shard_map": two}[strategy]
    grid = setup.grid(strategy, **options)
    want, _, _ = setup.train(grid)
    rates = [rate if k != 2 else np.nan for k, rate in enumerate(RATES)]
    got, metrics, diverged = setup.train(grid, lambda trial: setup.init(trial, rates))
    # The first loss is of the parameters before any step.
    assert diverged == {0: None, 1: None, 2: 2, 3: None, 4: None}
    assert np.isnan(metrics[2]["loss"][1])
    for trial in (0, 1, 3, 4):
        jax.tree.map(np.testing.assert_array_equal, got[trial], want[trial])


def test_a_trial_that_its_last_step_spoils_has_diverged(setup):
    rates = [rate if k != 1 else np.nan for k, rate in enumerate(RATES)]
    grid = setup.grid("vmap", trials=5)
    _, metrics, diverged = setup.train(grid, lambda trial: setup.init(trial, rates), steps=1)
    assert np.isfinite(metrics[1]["loss"]).all()
    assert diverged == {0: None, 1: 1, 2: None, 3: None, 4: None}


def test_a_chunk_of_which_all_diverged_is_not_trained_on(setup):
    grid = setup.grid("sequential")
    windows = [
        (one.trials, one.step)
        for one in grids.train_grid(
            grid,
            lambda trial: setup.init(trial, [np.nan, 1e-3, *RATES[2:]]),
            jax.device_put(setup.source, grid.shared),
            HYPERPARAMETERS[:2],
            steps=6,
            window=2,
        )
    ]
    assert windows == [([0], 2), ([1], 2), ([1], 4), ([1], 6)]


def test_going_on_gives_the_same_bits(setup):
    grid = setup.grid("vmap", trials=5)
    want, _, _ = setup.train(grid, steps=8)
    half, _, _ = setup.train(grid, steps=4)
    got, metrics, _ = setup.train(grid, half.__getitem__, start=4, steps=8)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert metrics[0]["loss"].shape == (4,)


def test_memory_grows_with_the_trials_by_less_than_the_data(setup):
    one, four = (setup.grid("vmap", trials=trials).bytes for trials in (1, 4))
    own = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(setup.init(0)))
    assert four - one >= 3 * own
    assert four < 4 * one  # the data are shared


def test_chunks_fit_and_are_alike():
    tried = []

    def make(trials):
        tried.append(trials)
        return grids.Grid("vmap", trials, 1, 100 + 10 * trials, None, None, None)

    assert grid_strategy.largest_grid(make, 32, 1, 1000).trials == 32
    assert tried == [32]
    # At most 20 fit, and two calls of 16 are as many as one of 20 and one of 12.
    assert grid_strategy.largest_grid(make, 32, 1, 300).trials == 16
    assert grid_strategy.largest_grid(make, 30, 4, 300).trials == 16
    assert grid_strategy.largest_grid(make, 3, 4, 1000).trials == 4
    with pytest.raises(MemoryError, match=r"training 4 trials at once takes 140 .* on each device"):
        grid_strategy.largest_grid(
            lambda trials: make(trials)._replace(bytes=(100 + 10 * trials) * 2**20),
            8,
            4,
            100 * 2**20,
        )


def test_the_rate_is_of_steps_and_leaves_the_states_alone(setup):
    grid = setup.grid("vmap", trials=2)
    states = jax.device_put([setup.init(0), setup.init(1)])
    source = jax.device_put(setup.source, grid.shared)
    assert grid_strategy.time_grid(grid, states.__getitem__, source, HYPERPARAMETERS) > 0
    assert [int(state.step) for state in states] == [0, 0]


@pytest.mark.parametrize(
    ("strategy", "options", "words"),
    [
        ("pmap", {}, "strategy must be one of .*'shard_map'.*, got 'pmap'"),
        ("sequential", {"trials": 2}, "must be 1 if .*, got 2 with sequential"),
        ("vmap", {"trials": 0}, "got 0 with vmap"),
        ("shard_map", {"trials": 3, "devices": 2}, "a multiple of the 2 groups of devices, got 3"),
        ("vmap", {"devices_per_trial": 9}, "devices_per_trial must be from 1 to 8, .* got 9"),
    ],
)
def test_errors_of_a_grid(setup, strategy, options, words):
    options = dict(options)
    if "devices" in options:
        options["devices"] = tuple(jax.devices()[: options["devices"]])
    with pytest.raises(ValueError, match=words):
        setup.grid(strategy, **options)


def test_windows_are_whole_calls(setup):
    grid = setup.grid("sequential", steps_per_call=2)
    with pytest.raises(ValueError, match="window must be a multiple of steps_per_call, got 3 and"):
        next(grids.train_grid(grid, setup.init, setup.source, HYPERPARAMETERS, steps=4, window=3))

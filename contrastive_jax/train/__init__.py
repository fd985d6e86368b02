"""Training: objectives, one step, one loop, grids of trials, and runs to use afterwards."""

from contrastive_jax.train import objectives
from contrastive_jax.train.devices import Parallel, parallel
from contrastive_jax.train.diagnostics import warn_collapsed, warn_inverted
from contrastive_jax.train.draw import (
    draws_classes,
    draws_given_pairs,
    draws_pairs,
    draws_views,
    pair_source,
)
from contrastive_jax.train.fitting import fit
from contrastive_jax.train.loop import windows
from contrastive_jax.train.loss_objectives import objective
from contrastive_jax.train.networks import Network, check_images, embed, network
from contrastive_jax.train.objectives import Objective
from contrastive_jax.train.optimizer import make_optimizer, with_loss
from contrastive_jax.train.run import Comparison, Run
from contrastive_jax.train.run_folder import load
from contrastive_jax.train.steps import init_state, make_step, repeated
from contrastive_jax.train.trials import Trial, fit_grid
from contrastive_jax.train.types import (
    AXIS,
    Batch,
    Hyperparameters,
    IndexedPairs,
    Pairs,
    PairSource,
    Params,
    Source,
    TrainState,
    Weights,
)

__all__ = [
    "AXIS",
    "Batch",
    "Comparison",
    "Hyperparameters",
    "IndexedPairs",
    "Network",
    "Objective",
    "PairSource",
    "Pairs",
    "Parallel",
    "Params",
    "Run",
    "Source",
    "TrainState",
    "Trial",
    "Weights",
    "check_images",
    "draws_classes",
    "draws_given_pairs",
    "draws_pairs",
    "draws_views",
    "embed",
    "fit",
    "fit_grid",
    "init_state",
    "load",
    "make_optimizer",
    "make_step",
    "network",
    "objective",
    "objectives",
    "pair_source",
    "parallel",
    "repeated",
    "warn_collapsed",
    "warn_inverted",
    "windows",
    "with_loss",
]

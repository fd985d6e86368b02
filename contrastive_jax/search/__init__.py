"""The search for hyperparameters: spaces, successive halving, and studies of Optuna."""

from contrastive_jax.search.optuna_study import by_optuna
from contrastive_jax.search.space import Range, corners, spread
from contrastive_jax.search.successive_halving import halving, rungs
from contrastive_jax.search.trainer import Group, Trainer, make_trainer
from contrastive_jax.search.winner import judge

__all__ = [
    "Group",
    "Range",
    "Trainer",
    "by_optuna",
    "corners",
    "halving",
    "judge",
    "make_trainer",
    "rungs",
    "spread",
]

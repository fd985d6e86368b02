"""Objectives: what a training step minimises, as a function of the embeddings of a batch.

An objective has a value, parameters of its own such as proxies, hyperparameters, a distance, and
what a step logs. `contrastive_jax.train.objective` makes one from the name of a loss or from a
loss; the functions here make each kind.
"""

from contrastive_jax.train.objectives.batchwise import all_pairs, anchors, batches, proxies
from contrastive_jax.train.objectives.pairwise import on_given_pairs, pairs
from contrastive_jax.train.objectives.types import Distance, Objective

__all__ = [
    "Distance",
    "Objective",
    "all_pairs",
    "anchors",
    "batches",
    "on_given_pairs",
    "pairs",
    "proxies",
]

"""Metric learning from pairs in JAX.

A pair loss is a scalar function of a distance and a label; everything else is a transformation of
it. Label 0 is similar, 1 is dissimilar, everywhere.

    distances       distances between two vectors, with safe gradients
    losses          losses of a pair, of an anchor, of triplets and of proxies
    pair_loss       a batch of given pairs
    triplet_loss    a batch of given triplets
    all_pairs_loss  all pairs of a batch, or of a batch and references
    anchor_loss     losses of an anchor and all its pairs
    proxy_loss      losses of embeddings and learned proxies of classes
    labels          which pairs are similar, where one class of each row does not say
    statistics      sums, extremes and log-sum-exps over the pairs of an anchor
    mining          rules that select pairs
    memory          embeddings of earlier batches as references
    regularizers    penalties on embeddings, whatever their classes
    models          networks from images to embeddings
    data            labelled images and the pairs drawn from them
    train           objectives, the step, the loop, and runs
    load            a trained encoder
    search          the search for hyperparameters
    evaluation      verification and retrieval
    plots           figures
    export          encoders as StableHLO, ONNX and safetensors
    cli             programs with options
"""

import importlib
from typing import TYPE_CHECKING, Any

from contrastive_jax import distances, labels, losses, memory, mining, regularizers, statistics
from contrastive_jax.all_pairs import all_pairs_loss, all_pairs_sums
from contrastive_jax.anchors import anchor_loss, anchor_statistics
from contrastive_jax.pairs import pair_loss
from contrastive_jax.proxies import proxy_loss
from contrastive_jax.triplets import triplet_loss

if TYPE_CHECKING:
    from contrastive_jax import data, evaluation, models, plots, search, train
    from contrastive_jax.train.run_folder import load

__all__ = [
    "all_pairs_loss",
    "all_pairs_sums",
    "anchor_loss",
    "anchor_statistics",
    "data",
    "distances",
    "evaluation",
    "labels",
    "load",
    "losses",
    "memory",
    "mining",
    "models",
    "pair_loss",
    "plots",
    "proxy_loss",
    "regularizers",
    "search",
    "statistics",
    "train",
    "triplet_loss",
]
__version__ = "0.1.0.dev0"


def __getattr__(name: str) -> Any:
    """Imports what takes long to import, Flax and Matplotlib among it, when it is first used."""
    if name in ("data", "evaluation", "models", "plots", "search", "train"):
        return importlib.import_module(f"contrastive_jax.{name}")
    if name == "load":
        return importlib.import_module("contrastive_jax.train.run_folder").load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Metric learning from pairs in JAX.

A pair loss is a scalar function of a distance and a label; everything else is a transformation of
it. Label 0 is similar, 1 is dissimilar, everywhere.

    distances       distances between two vectors, with safe gradients
    losses          losses of a distance and a label
    pair_loss       a batch of given pairs
    all_pairs_loss  all pairs of a batch, or of a batch and references
    encoders        networks from images to embeddings
    data            labelled images and the pairs drawn from them
    training        the step, the optimiser, the loop
    parallel        the step over devices
    evaluation      verification and retrieval
    plots           figures
"""

from contrastive_jax import distances, losses
from contrastive_jax.all_pairs import all_pairs_loss, all_pairs_sums
from contrastive_jax.pairs import pair_loss

__all__ = ["all_pairs_loss", "all_pairs_sums", "distances", "losses", "pair_loss"]
__version__ = "0.1.0.dev0"

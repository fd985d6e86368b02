"""Labelled images, and the pairs and batches drawn from them."""

from contrastive_jax.data.datasets import Dataset, Examples, GivenPairs, PairDataset, load
from contrastive_jax.data.draw import ClassIndex, draw_balanced, draw_pairs, index_by_class
from contrastive_jax.data.evaluable import check_evaluable
from contrastive_jax.data.labels import class_numbers
from contrastive_jax.data.splits import hold_out, seen_classes
from contrastive_jax.data.stream import stream_pairs

__all__ = [
    "ClassIndex",
    "Dataset",
    "Examples",
    "GivenPairs",
    "PairDataset",
    "check_evaluable",
    "class_numbers",
    "draw_balanced",
    "draw_pairs",
    "hold_out",
    "index_by_class",
    "load",
    "seen_classes",
    "stream_pairs",
]

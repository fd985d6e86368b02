"""Labelled images and vectors, and the pairs and batches drawn from them."""

from contrastive_jax.data.datasets import Dataset, Examples, GivenPairs, PairDataset, load
from contrastive_jax.data.draw import ClassIndex, draw_balanced, draw_pairs, index_by_class
from contrastive_jax.data.evaluable import check_evaluable
from contrastive_jax.data.findings import Report, as_text
from contrastive_jax.data.labels import class_numbers
from contrastive_jax.data.own import from_arrays, load_with_report
from contrastive_jax.data.splits import hold_out, seen_classes
from contrastive_jax.data.stream import stream_given_pairs, stream_pairs

__all__ = [
    "ClassIndex",
    "Dataset",
    "Examples",
    "GivenPairs",
    "PairDataset",
    "Report",
    "as_text",
    "check_evaluable",
    "class_numbers",
    "draw_balanced",
    "draw_pairs",
    "from_arrays",
    "hold_out",
    "index_by_class",
    "load",
    "load_with_report",
    "seen_classes",
    "stream_given_pairs",
    "stream_pairs",
]

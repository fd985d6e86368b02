"""Measures of an embedding, on pairs (`verification`) and on neighbours (`retrieval`).

Both give the results of float64, with ties resolved exactly, and take NumPy or JAX arrays.
"""

from contrastive_jax.evaluation import retrieval, verification

__all__ = ["retrieval", "verification"]

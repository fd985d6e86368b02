"""Losses of a distance and a label."""

from contrastive_jax.losses._contrastive import contrastive

__all__ = ["contrastive"]

"""Sums over the pairs of two sets of rows, and their gradients."""

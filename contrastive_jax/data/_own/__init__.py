"""Readers of data of one's own: what a path holds, and its rows before images are decoded."""

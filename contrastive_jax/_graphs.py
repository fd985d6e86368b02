"""Connected components of graphs."""

import numpy as np


def components(first: np.ndarray, second: np.ndarray, count: int) -> np.ndarray:
    """Numbers the connected components of a graph of `count` nodes and these edges."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ones = np.ones(len(first), bool)
    graph = coo_array((ones, (first, second)), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1])

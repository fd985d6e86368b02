"""Maps learned from neighbourhoods: lists of the images that are similar to each image.

No class is used. Pairs in a list are positive and all others negative, as in the experiments of
Hadsell, Chopra and LeCun, Dimensionality Reduction by Learning an Invariant Mapping, 2006
<https://doi.org/10.1109/CVPR.2006.100>.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from contrastive_jax.evaluation.retrieval import nearest_neighbours
from contrastive_jax.train import objectives
from contrastive_jax.train.devices import parallel
from contrastive_jax.train.loop import windows
from contrastive_jax.train.networks import Network
from contrastive_jax.train.optimizer import make_optimizer
from contrastive_jax.train.progress import step_bar
from contrastive_jax.train.ranges import check_ranges
from contrastive_jax.train.steps import init_state, make_step
from contrastive_jax.train.types import Hyperparameters, Pairs, Weights


def with_moved_copies(images: np.ndarray, moves: Sequence[int]) -> np.ndarray:
    """Returns the images, and copies of them moved sideways.

    A border of zeros makes room for the moves.

    Args:
      images: `[N, H, W, C]`.
      moves: of each set of copies, in pixels to the right.

    Returns:
      The images and then each set of copies, `[N * (len(moves) + 1), H + 2 M, W + 2 M, C]`, M the
      widest move.

    Example:
      >>> import numpy as np
      >>> from contrastive_jax.train.neighbourhoods import with_moved_copies
      >>> with_moved_copies(np.ones((3, 8, 8, 1), np.uint8), moves=[-2, 2]).shape
      (9, 12, 12, 1)
    """
    room = max(map(abs, moves), default=0)
    padded = np.pad(images, ((0, 0), (room, room), (room, room), (0, 0)))
    # Only the border is rolled over.
    return np.concatenate([np.roll(padded, move, axis=2) for move in (0, *moves)])


def nearest_by_pixels(images: np.ndarray, count: int) -> np.ndarray:
    """Returns the positions of the nearest neighbours of each image by its pixels, `[N, count]`.

    Args:
      images: `[N, H, W, C]`, pixels up to 255.
      count: neighbours of each image, which is none of its own.

    Example:
      >>> import numpy as np
      >>> from contrastive_jax.train.neighbourhoods import nearest_by_pixels
      >>> images = np.array([0, 10, 12, 200], np.uint8).reshape(4, 1, 1, 1)
      >>> nearest_by_pixels(images, 1).ravel().tolist()
      [1, 2, 1, 2]
    """
    flat = images.reshape(len(images), -1) / np.float32(255)
    return np.asarray(nearest_neighbours(flat, k=count).indices, np.int32)


def neighbours_of_copies(neighbours: np.ndarray, copies: int) -> np.ndarray:
    """Returns the images similar to each: its copies, its neighbours, and their copies.

    Args:
      neighbours: positions of the neighbours of each image, `[N, K]`.
      copies: sets of copies, the images themselves included, as `with_moved_copies` returns them.

    Returns:
      Positions, `[N * copies, (K + 1) * copies - 1]`.

    Example:
      >>> import numpy as np
      >>> from contrastive_jax.train.neighbourhoods import neighbours_of_copies
      >>> neighbours_of_copies(np.array([[1], [0]]), copies=2).tolist()
      [[1, 2, 3], [0, 3, 2], [0, 1, 3], [1, 0, 2]]
    """
    count = len(neighbours)
    own = np.concatenate([np.arange(count)[:, None], neighbours], axis=1)
    everywhere = np.concatenate([own + k * count for k in range(copies)], axis=1)
    # An image is not in its own list.
    rows = [np.delete(everywhere, k * own.shape[1], axis=1) for k in range(copies)]
    return np.concatenate(rows).astype(np.int32)


def draw_neighbours(
    key: jax.Array, neighbours: jax.Array, batch_size: int, positive_fraction: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Draws pairs from lists of the images that are similar to each.

    Args:
      key: of this batch.
      neighbours: positions of the images similar to each image, `[N, S]`.
      batch_size: pairs, B.
      positive_fraction: share of pairs drawn from the lists.

    Returns:
      Positions of the first and second members and labels, `[B]` each. A label is 0 where either
      image is in the list of the other, or both are one image, and otherwise 1.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from contrastive_jax.train.neighbourhoods import draw_neighbours
      >>> neighbours = jnp.array([[1], [0], [3], [2]])
      >>> i, j, labels = draw_neighbours(jax.random.key(0), neighbours, 8, positive_fraction=0.5)
      >>> labels[:4].tolist()
      [0, 0, 0, 0]
    """
    keys = jax.random.split(key, 3)
    count, listed = neighbours.shape
    i = jax.random.randint(keys[0], (batch_size,), 0, count)
    chosen = neighbours[i, jax.random.randint(keys[1], (batch_size,), 0, listed)]
    others = jax.random.randint(keys[2], (batch_size,), 0, count)
    j = jnp.where(jnp.arange(batch_size) < positive_fraction * batch_size, chosen, others)
    either = jnp.any(neighbours[i] == j[:, None], axis=1) | jnp.any(
        neighbours[j] == i[:, None], axis=1
    )
    return i, j, jnp.where(either | (i == j), 0, 1)


def train_on_neighbours(
    encoder: Network,
    images: np.ndarray,
    neighbours: np.ndarray,
    *,
    steps: int,
    margin: float = 1.0,
    positive_fraction: float = 0.5,
    batch_size: int = 128,
    learning_rate: float = 2e-3,
    seed: int = 0,
    progress: bool = True,
) -> Weights:
    """Trains an encoder with the contrastive loss of pairs from lists of similar images.

    Args:
      encoder: the network, from `train.network`.
      images: `[N, H, W, C]`.
      neighbours: positions of the images similar to each image, `[N, S]`.
      steps: training steps.
      margin: distance up to which negative pairs push each other.
      positive_fraction: share of pairs drawn from the lists.
      batch_size: pairs in a batch.
      learning_rate: its peak, after a warm-up of 2 % of the steps.
      seed: of the pairs.
      progress: whether to show a bar of the steps on a terminal.

    Returns:
      The weights after training.

    Raises:
      FloatingPointError: if the loss or its gradient is not finite.
      ValueError: if a number is not in its range, or `neighbours` has not a row for each image.

    Example:
      >>> import contrastive_jax as cj
      >>> from contrastive_jax.train.neighbourhoods import nearest_by_pixels, train_on_neighbours
      >>> images = cj.data.load("digits").train.images[:100]
      >>> encoder = cj.train.network(cj.models.MLP, images.shape[1:])
      >>> weights = train_on_neighbours(encoder, images, nearest_by_pixels(images, 5), steps=4)
      >>> cj.train.embed(encoder.encode, weights, images).shape
      (100, 64)
    """
    check_ranges(
        {
            "steps": steps,
            "margin": margin,
            "positive_fraction": positive_fraction,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "seed": seed,
        }
    )
    if neighbours.ndim != 2 or len(neighbours) != len(images):
        raise ValueError(
            f"neighbours must be [N, S] with a row for each of the {len(images)} images, got "
            f"{list(neighbours.shape)}"
        )
    optimizer = make_optimizer(learning_rate, steps, warmup_steps=steps // 50)
    pair_step = make_step(encoder, optimizer, objectives.pairs(margin=margin))

    def step(state: Any, source: Any, hyperparameters: Any) -> Any:
        images, neighbours = source
        key = jax.random.fold_in(jax.random.key(hyperparameters.seed), state.step)
        i, j, labels = draw_neighbours(key, neighbours, batch_size, positive_fraction)
        return pair_step(state, Pairs(images[i], images[j], labels), hyperparameters)

    placed = parallel(step, "shard_map", jax.devices()[:1])
    state, source, hyperparameters = placed.replicate(
        (init_state(encoder, optimizer), (images, neighbours), Hyperparameters(seed))
    )
    parts = windows(
        lambda state: placed.step(state, source, hyperparameters),
        state,
        steps=steps,
        window=min(100, steps),
    )
    with step_bar(steps, shown=progress) as advance:
        for state, records in parts:  # noqa: B007 (the last is what is wanted)
            advance(len(records))
    weights: Weights = placed.fetch(state).weights
    return weights


def nearest_of_class(embeddings: np.ndarray, classes: np.ndarray, copies: int = 1) -> float:
    """Returns the share of images whose nearest neighbour is of the same class.

    Args:
      embeddings: `[N * copies, D]`, of the images and then of each set of copies.
      classes: `[N * copies]`.
      copies: sets of copies, the images themselves included. Copies of an image are none of its
        neighbours.

    Example:
      >>> import numpy as np
      >>> from contrastive_jax.train.neighbourhoods import nearest_of_class
      >>> points = np.array([[0.0, 0.0], [0.1, 0.0], [5.0, 0.0], [5.1, 0.0]])
      >>> nearest_of_class(points, np.array([0, 0, 1, 1]))
      1.0
    """
    count = len(embeddings) // copies
    order = nearest_neighbours(embeddings, k=copies).indices
    others = order % count != np.arange(len(order))[:, None] % count
    first = order[np.arange(len(order)), others.argmax(axis=1)]
    return float(np.mean(classes[first] == classes))


def spread_of_copies(embeddings: np.ndarray, copies: int) -> float:
    """Returns the mean distance of the copies of an image from their mean, over that of all points.

    Args:
      embeddings: `[N * copies, D]`, of the images and then of each set of copies.
      copies: sets of copies, the images themselves included.

    Returns:
      About 1 where copies of an image lie as far apart as any points, and 0 where they coincide.

    Example:
      >>> import numpy as np
      >>> from contrastive_jax.train.neighbourhoods import spread_of_copies
      >>> points = np.array([[0.0, 0.0], [5.0, 0.0]])
      >>> spread_of_copies(np.concatenate([points, points]), copies=2)
      0.0
    """
    grouped = embeddings.reshape(copies, -1, embeddings.shape[1])
    spread = np.linalg.norm(grouped - grouped.mean(axis=0), axis=2).mean()
    return float(spread / np.linalg.norm(embeddings - embeddings.mean(axis=0), axis=1).mean())

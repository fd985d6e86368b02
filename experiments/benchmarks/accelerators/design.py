"""Memory and bytes between devices that the design of the library allows a program.

The figures follow from shapes, and not from what a compiler has made of them. Arrays count without
the padding that a device may add.

    one set      rows sorted by class and their gradient, linear in the rows, and a few tiles
    a ring       rows visit every other device by half a turn and bring their gradient home
    a step       what autodiff keeps of the encoder, and one sum of the gradient over the devices
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from contrastive_jax._engine.matmul import as_product
from contrastive_jax.losses import AnchorLoss, TripletLoss
from experiments.benchmarks.accelerators.programs import (
    GRID_IMAGE,
    IMAGE,
    IMAGES,
    TRIALS,
    WIDTH,
    Encoder,
    abstract_network,
)
from experiments.benchmarks.accelerators.targets import Target

Image = tuple[int, int, int]
"""Height, width and channels."""
_WORD = 4
"""Bytes of a float32 and of an int32."""
_ROW = 16
"""Scalars of a row in a sweep: class, weight, index, order, norm, rounding, and sums of its own."""
_STATISTICS = 48
"""Scalars of an anchor beside these, at most: fast_ap has 23 sums, and a derivative by each."""
_TILES = {"tpu": 2, "cuda": 8}
"""Arrays of the size of a tile that live at once. XLA for TPUs fuses all but the operands of matrix
products, the distances and the weights of the pairs. XLA for GPUs fuses nothing into a product, so
distance, label, loss and derivatives are written to memory too."""
_NEAR = 2 * 2**19
"""Entries of close pairs that are measured again at once, and of their derivatives."""
_COSINES = 2**19
"""Cosines of rows and centres at once."""
_LARGEST_SCATTER = 8
"""Devices up to which XLA for TPUs has a reduce-scatter. Of those compiled for, it makes an
all-reduce of one over 256, also where a program is nothing else than `lax.psum_scatter`."""
_SCALARS = 256
"""Words of sums, counts and metrics that are added up over the devices."""


class Design(NamedTuple):
    """Bounds of a program."""

    temporaries: int
    """Most bytes of temporaries on a device."""
    received: dict[str, tuple[int, int]]
    """Fewest and most bytes that a device receives, by the collective that brings them. Any other
    collective is against the design."""


def all_pairs(target: Target, rows: int, tile: int) -> Design:
    """The design of `programs.all_pairs`."""
    if target.devices == 1:
        return Design(_sweep_memory(target, rows, tile**2, 2), {})
    # Own rows and a visitor, each with its gradient, and the next visitor while this one leaves.
    return Design(_sweep_memory(target, rows, tile**2, 6), _ring(target.devices, rows))


def anchors(target: Target, rows: int, tile: int, loss: AnchorLoss | TripletLoss) -> Design:
    """The design of `programs.anchors`."""
    # Rows, and the points that a distance makes of them or the rows that extremes pick, each with
    # its gradient, and two more for the gradient by way of the points. A ring adds a visitor, and
    # the next visitor while this one leaves.
    arrays = 6 if target.devices == 1 else 14
    received = {}
    product, _ = as_product(loss.distance)
    has_points = product is not None and product.points is not None
    # The vectors have a gradient of their own where points alone do not give that of a close pair.
    by_vectors = product is not None and not product.keeps_digits
    if target.devices > 1:
        received = _ring(
            target.devices,
            rows,
            points=2 if has_points else 1,
            sweeps=len(loss.statistics),
            gradients=2 if by_vectors else 1,
            scalars=_STATISTICS,
            joined=isinstance(loss, TripletLoss) and loss.combine is not None,
        )
    if isinstance(loss, TripletLoss):
        # Anchors and positives side by side, with their gradients.
        arrays += 4 * loss.positives_per_pass
        if target.devices > 1:
            # Any row may be a positive: all are gathered, and the gradients of all added up.
            everywhere = target.devices * rows
            arrays += 3 * target.devices
            most = everywhere * (WIDTH + _ROW) * _WORD
            received["all-gather"] = (everywhere * WIDTH * _WORD, most)
            if target.devices <= _LARGEST_SCATTER:
                received["reduce-scatter"] = (rows * WIDTH * _WORD, rows * (WIDTH + _ROW) * _WORD)
            else:
                received["all-reduce"] = (everywhere * WIDTH * _WORD, most)
    return Design(_sweep_memory(target, rows, tile**2, arrays, _STATISTICS), received)


def with_centers(target: Target, rows: int, centers: int) -> Design:
    """The design of `programs.with_proxies` where a row meets all centres at once."""
    # Rows, their directions and the gradients of both; the same of the centres.
    memory = _sweep_memory(target, rows, _COSINES, 4) + 4 * centers * WIDTH * _WORD
    return Design(memory, _sum_over_devices(target.devices, centers * WIDTH))


def proxies_as_anchors(target: Target, rows: int, proxies: int, pairs: int) -> Design:
    """The design of `programs.with_proxies` where proxies are anchors and rows visit them.

    So many pairs are computed at once.
    """
    devices = target.devices
    memory = _sweep_memory(target, rows, pairs, 4 if devices == 1 else 8, _STATISTICS)
    memory += _sweep_memory(target, proxies, 0, 6, _STATISTICS)
    if devices == 1:
        return Design(memory, {})
    # Points alone give the cosines: they go round once for the statistics, and once with the
    # gradients of points and rows.
    wide = devices * 4 * rows * WIDTH * _WORD
    narrow = devices * 2 * rows * (_ROW + _STATISTICS) * _WORD
    received = _sum_over_devices(devices, proxies * WIDTH)
    return Design(memory, received | {"collective-permute": (wide, wide + narrow)})


def pair_step(target: Target, encoder: Encoder) -> Design:
    """The design of `programs.pair_step`."""
    memory = _training_memory(encoder, IMAGE, IMAGES) + _sweep_memory(target, IMAGES, 0, 4)
    return Design(memory, _sum_over_devices(target.devices, _parameters(encoder, IMAGE)))


def all_pairs_step(target: Target, encoder: Encoder) -> Design:
    """The design of `programs.all_pairs_step`, whose mean distances come from the same sweep."""
    return _all_pairs_step(target, target.devices, encoder, IMAGE, IMAGES)


def grid(target: Target) -> Design:
    """The design of `programs.grid`: trials side by side, on one device or each on some."""
    if target.devices == 1:
        one = _all_pairs_step(target, 1, "ConvNet", GRID_IMAGE, IMAGES)
        most = {name: (TRIALS * few, TRIALS * many) for name, (few, many) in one.received.items()}
        return Design(TRIALS * one.temporaries, most)
    devices = target.devices // TRIALS
    return _all_pairs_step(target, devices, "ConvNet", GRID_IMAGE, IMAGES // devices)


def _all_pairs_step(
    target: Target, devices: int, encoder: Encoder, image: Image, rows: int
) -> Design:
    # Positive and negative pairs have a gradient each.
    received = _ring(devices, rows, gradients=2)
    for name, (few, many) in _sum_over_devices(devices, _parameters(encoder, image)).items():
        least, most = received.get(name, (0, 0))
        received[name] = (least + few, most + many)
    memory = _training_memory(encoder, image, rows) + _sweep_memory(target, rows, rows**2, 8)
    return Design(memory, received)


def _sweep_memory(target: Target, rows: int, tile: int, arrays: int, statistics: int = 0) -> int:
    """Bytes of so many arrays `[rows, WIDTH]`, of scalars, and of tiles of so many pairs."""
    pairs = _TILES[target.platform] * min(tile, rows**2)
    return _WORD * (rows * (arrays * WIDTH + _ROW + statistics) + pairs + _NEAR)


def _ring(
    devices: int,
    rows: int,
    *,
    points: int = 1,
    sweeps: int = 0,
    gradients: int = 1,
    scalars: int = 0,
    joined: bool = False,
) -> dict[str, tuple[int, int]]:
    """Bytes of a ring in which each pair of devices meets once, or each device meets all others.

    Args:
      devices: in the ring; one sends to itself.
      rows: of a device.
      points: arrays `[rows, WIDTH]` that a row consists of.
      sweeps: turns without a gradient, before that with one.
      gradients: arrays `[rows, WIDTH]` of the gradient of a row.
      scalars: of a row beside `_ROW`.
      joined: True if anchors are other vectors than the rows that they meet, so that these go
        round the whole ring and arrive at home with their gradient.
    """
    turns = devices if joined else devices // 2
    home = 0 if joined else 1
    wide = points * turns * (sweeps + 1) + gradients * (turns + home)
    narrow = (turns * (sweeps + 1) + home) * (_ROW + scalars)
    # Where there is a single turn XLA sees that all sweeps send the same rows, and sends them once.
    merged = points * sweeps if turns == 1 else 0
    row = WIDTH * _WORD
    centre = (sweeps + 1) * row
    return {
        "collective-permute": (rows * (wide - merged) * row, rows * (wide * row + narrow * _WORD)),
        "all-reduce": (0, centre + _SCALARS * _WORD),
    }


def _sum_over_devices(devices: int, words: int) -> dict[str, tuple[int, int]]:
    """Bytes of one sum of so many words, with a few scalars."""
    if devices == 1:
        return {}
    return {"all-reduce": (words * _WORD, (words + WIDTH + _SCALARS) * _WORD)}


def _parameters(encoder: Encoder, image: Image) -> int:
    """Entries of the parameters of an encoder, which are float32."""
    weights = abstract_network(encoder, image).weights
    return sum(math.prod(one.shape) for one in jax.tree.leaves(weights))


def _training_memory(encoder: Encoder, image: Image, images: int) -> int:
    """Bytes that a step takes beside the loss.

    They are what autodiff keeps of the forward pass, the gradients of the two largest arrays in it,
    and of the parameters a gradient, its update and both moments of the optimiser.
    """
    abstract = abstract_network(encoder, image)

    def residuals(weights: Any, batch: jax.Array) -> Any:
        return jax.vjp(lambda weights: abstract.encode(weights, batch), weights)[1]

    batch = jax.ShapeDtypeStruct((images, *image), jnp.uint8)
    sizes: list[int] = [
        math.prod(one.shape) * one.dtype.itemsize
        for one in jax.tree.leaves(jax.eval_shape(residuals, abstract.weights, batch))
    ]
    return sum(sizes) + 2 * max(sizes) + 4 * _parameters(encoder, image) * _WORD

"""Which program is compiled for which target, and what the design allows each."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from contrastive_jax import losses
from contrastive_jax._engine.problem import DEFAULT_TILES as TILES
from contrastive_jax.losses import AnchorLoss, TripletLoss
from experiments.benchmarks.accelerators import design, programs
from experiments.benchmarks.accelerators.design import Design
from experiments.benchmarks.accelerators.targets import BACKENDS, H100, TARGETS, Target

ROWS = 8192
"""Rows of a device."""
TILE = 512
"""Rows of a tile where a program does not take the default of its device, with which one for a TPU
takes several times as long to compile."""
PROXIES = 1024
CENTERS = 3


class Program(NamedTuple):
    """A program and the target that it is compiled for."""

    name: str
    target: Target
    compiled: Callable[[Mesh], jax.stages.Compiled]
    design: Callable[[], Design]
    """Made when asked for, as that of a training step traces the encoder."""


_ANCHORS: dict[str, AnchorLoss | TripletLoss] = {
    "supcon": losses.supcon(),  # sums and log-sum-exps
    "tuplet_margin": losses.tuplet_margin(),  # a second sweep that depends on the first
    "triplet_hard": losses.triplet_hard(),  # extremes
    "fast_ap": losses.fast_ap(),  # histograms
    "margin_by_class": losses.margin_by_class(),  # data of each anchor
    "triplet_semi_hard": losses.triplet_semi_hard(),  # positives one by one, extremes
    "angular": losses.angular(),  # positives one by one, joined with the anchor
    "smooth_ap": losses.smooth_ap(),  # positives one by one, sums
}


def _all_pairs(target: Target, rows: int = ROWS) -> Program:
    tile = None if target.devices == 1 else TILE
    return Program(
        f"all_pairs_loss, {rows:,} rows a device",
        target,
        partial(programs.all_pairs, rows=rows, tile=tile),
        partial(design.all_pairs, target, rows, tile or TILES[BACKENDS[target.platform]]),
    )


def _anchors(target: Target, name: str) -> Program:
    loss = _ANCHORS[name]
    return Program(
        f"anchor_loss, {name}",
        target,
        partial(programs.anchors, rows=ROWS, tile=TILE, loss=loss),
        partial(design.anchors, target, ROWS, TILE, loss),
    )


def _softmax(target: Target) -> Program:
    shape = (PROXIES, programs.WIDTH)
    return Program(
        "proxy_loss, normalized_softmax",
        target,
        partial(programs.with_proxies, rows=ROWS, loss=losses.normalized_softmax(), proxies=shape),
        partial(design.with_centers, target, ROWS, PROXIES),
    )


def _centers(target: Target) -> Program:
    shape = (PROXIES, CENTERS, programs.WIDTH)
    return Program(
        "proxy_loss, soft_triple",
        target,
        partial(programs.with_proxies, rows=ROWS, loss=losses.soft_triple(), proxies=shape),
        partial(design.with_centers, target, ROWS, PROXIES * CENTERS),
    )


def _proxies_as_anchors(target: Target) -> Program:
    shape, loss = (PROXIES, programs.WIDTH), losses.proxy_anchor()
    # On a GPU so few pairs are one matrix.
    tile, pairs = (TILE, TILE**2) if target.platform == "tpu" else (None, ROWS * PROXIES)
    return Program(
        "proxy_loss, proxy_anchor",
        target,
        partial(programs.with_proxies, rows=ROWS, loss=loss, proxies=shape, tile=tile),
        partial(design.proxies_as_anchors, target, ROWS, PROXIES, pairs),
    )


def _pair_step(target: Target, encoder: programs.Encoder) -> Program:
    return Program(
        f"training step of {encoder} on pairs",
        target,
        partial(programs.pair_step, encoder=encoder),
        partial(design.pair_step, target, encoder),
    )


def _all_pairs_step(target: Target, encoder: programs.Encoder) -> Program:
    return Program(
        f"training step of {encoder} on all pairs",
        target,
        partial(programs.all_pairs_step, encoder=encoder),
        partial(design.all_pairs_step, target, encoder),
    )


def _grid(target: Target) -> Program:
    return Program(
        f"step of a grid of {programs.TRIALS} ConvNets",
        target,
        programs.grid,
        partial(design.grid, target),
    )


def _programs(target: Target) -> tuple[Program, ...]:
    """Every program, for one target."""
    rows = (ROWS, 2**20) if target is H100 else (ROWS,)
    steps = _pair_step, _all_pairs_step
    return (
        *[_all_pairs(target, count) for count in rows],
        *[_anchors(target, name) for name in _ANCHORS],
        _softmax(target),
        _centers(target),
        _proxies_as_anchors(target),
        *[step(target, name) for name in programs.ENCODERS for step in steps],
        _grid(target),
    )


PROGRAMS = tuple(program for target in TARGETS for program in _programs(target))

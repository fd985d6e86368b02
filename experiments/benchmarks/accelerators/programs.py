"""Builds the programs for accelerators: losses with their gradients, training steps, a grid.

Each function compiles one program for a mesh (`targets.mesh`) from shapes alone.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from contrastive_jax import all_pairs_loss, anchor_loss, proxy_loss
from contrastive_jax.data import ClassIndex
from contrastive_jax.losses import AnchorLoss, CentersLoss, ProxyLoss, TripletLoss
from contrastive_jax.models import ConvNet, ResNet18
from contrastive_jax.train import (
    AXIS,
    Batch,
    Hyperparameters,
    Network,
    Pairs,
    Source,
    TrainState,
    Weights,
    draws_classes,
    init_state,
    make_optimizer,
    make_step,
    network,
    objectives,
    parallel,
)
from contrastive_jax.train.grid import make_grid
from experiments.benchmarks.accelerators.compile_for import REPLICATED, SHARDED, compile_for, placed

WIDTH = 128
"""Entries of an embedding."""
IMAGES = 512
"""Images of a device in a training step: rows enough for a tile of their own, whatever its size."""
IMAGE = (32, 32, 3)
GRID_IMAGE = (28, 28, 1)
"""A grid draws from a whole data set. With three channels XLA for TPUs copies it to another layout
first, of four times its size."""
TRIALS = 4
"""Trials of the grid."""

Encoder = Literal["ConvNet", "ResNet18"]
ENCODERS: tuple[Encoder, ...] = get_args(Encoder)
Struct = jax.ShapeDtypeStruct


def all_pairs(mesh: Mesh, rows: int, tile: int | None) -> jax.stages.Compiled:
    """Value and gradient of `all_pairs_loss`, of so many rows a device."""

    def value_of(x: jax.Array, classes: jax.Array) -> jax.Array:
        return all_pairs_loss(x, classes, axis_name=_axis(mesh), tile=tile)

    return _value_and_gradient(mesh, rows, value_of)


def anchors(
    mesh: Mesh, rows: int, tile: int, loss: AnchorLoss | TripletLoss
) -> jax.stages.Compiled:
    """Value and gradient of `anchor_loss`, with data for each anchor where the loss needs them."""
    needs = len(loss.needs) if isinstance(loss, AnchorLoss) else 0
    data = [placed(mesh, SHARDED, Struct((mesh.size * rows,), jnp.float32))] * needs

    def value_of(x: jax.Array, classes: jax.Array, *data: jax.Array) -> jax.Array:
        axis = _axis(mesh)
        return anchor_loss(x, classes, loss=loss, data=data, axis_name=axis, tile=tile)

    return _value_and_gradient(mesh, rows, value_of, *data)


def with_proxies(
    mesh: Mesh, rows: int, loss: ProxyLoss | CentersLoss, proxies: tuple[int, ...], **options: Any
) -> jax.stages.Compiled:
    """Value and gradient of `proxy_loss`, by embeddings and by proxies that all devices share."""
    shared = placed(mesh, REPLICATED, Struct(proxies, jnp.float32))

    def value_of(x: jax.Array, classes: jax.Array, proxies: jax.Array) -> jax.Array:
        return proxy_loss(x, classes, proxies, loss=loss, axis_name=_axis(mesh), **options)

    return _value_and_gradient(mesh, rows, value_of, shared)


def pair_step(mesh: Mesh, encoder: Encoder) -> jax.stages.Compiled:
    """A training step on given pairs."""
    abstract, optimizer = abstract_network(encoder, IMAGE), _optimizer()
    count = mesh.size * IMAGES // 2
    pairs = Pairs(_images(count), _images(count), _integers(count))
    step = make_step(abstract, optimizer, objectives.pairs(margin=1.0))
    return _training(mesh, step, _state(abstract, optimizer), pairs)


def all_pairs_step(mesh: Mesh, encoder: Encoder) -> jax.stages.Compiled:
    """A training step on all pairs of a batch."""
    abstract, optimizer = abstract_network(encoder, IMAGE), _optimizer()
    count = mesh.size * IMAGES
    batch = Batch(_images(count), _integers(count))
    step = make_step(abstract, optimizer, objectives.all_pairs(margin=1.0))
    return _training(mesh, step, _state(abstract, optimizer), batch)


def grid(mesh: Mesh) -> jax.stages.Compiled:
    """A step of four trainings at once, on batches of all pairs that each draws on the device.

    On one device the step is mapped over the trials. On several each trial has a group of them,
    which share its batch.
    """
    abstract, optimizer = abstract_network("ConvNet", GRID_IMAGE), _optimizer()
    step = make_step(abstract, optimizer, objectives.all_pairs(margin=1.0))
    count, classes = 60_000, 10
    index = ClassIndex(
        members=_integers(count),
        starts=_integers(classes),
        sizes=_integers(classes),
        pairable=_integers(),
        classes=_integers(classes),
    )
    source = Source(_images(count, GRID_IMAGE), _integers(count), index)
    made = make_grid(
        draws_classes(step, 8, IMAGES // 8),
        _state(abstract, optimizer),
        source,
        _hyperparameters(),
        "vmap" if mesh.size == 1 else "shard_map",
        trials=TRIALS,
        devices=[*mesh.devices.flat],
        devices_per_trial=max(1, mesh.size // TRIALS),
    )
    program: Any = made.step
    assert isinstance(program, jax.stages.Compiled)
    return program


@cache
def abstract_network(encoder: Encoder, image: tuple[int, int, int]) -> Network:
    """Makes an encoder in bfloat16, with the shapes of its weights in their place."""
    make = {"ConvNet": ConvNet, "ResNet18": ResNet18}[encoder]
    networks = []

    def weights() -> Weights:
        networks.append(network(make(image, WIDTH, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))))
        made: Weights = networks[-1].weights
        return made

    shapes = jax.eval_shape(weights)
    return networks[0]._replace(weights=shapes)


def _images(count: int, image: tuple[int, int, int] = IMAGE) -> Any:
    return Struct((count, *image), jnp.uint8)


def _integers(*shape: int) -> Any:
    return Struct(shape, jnp.int32)


def _axis(mesh: Mesh) -> str | None:
    return AXIS if mesh.size > 1 else None


def _value_and_gradient(
    mesh: Mesh, rows: int, value_of: Callable[..., jax.Array], *more: Any
) -> jax.stages.Compiled:
    """Compiles a value with its gradient by embeddings and by every argument after the classes."""
    count = mesh.size * rows
    x, classes = Struct((count, WIDTH), jnp.float32), Struct((count,), jnp.int32)
    arguments = (*placed(mesh, SHARDED, (x, classes)), *more)
    by = (0, *range(2, len(arguments)))
    gradients = tuple(arguments[k].sharding.spec for k in by)
    function = jax.value_and_grad(value_of, by)
    return compile_for(mesh, function, *arguments, results=(REPLICATED, gradients))


def _training(
    mesh: Mesh, step: Callable[..., Any], state: TrainState, batch: Any
) -> jax.stages.Compiled:
    mapped = parallel(step, "shard_map", [*mesh.devices.flat], sharded=(1,))
    arguments = (
        placed(mesh, REPLICATED, state),
        placed(mesh, SHARDED, batch),
        placed(mesh, REPLICATED, _hyperparameters()),
    )
    program: jax.stages.Compiled = mapped.step.lower(*arguments).compile()  # type: ignore[attr-defined]
    return program


def _optimizer() -> optax.GradientTransformation:
    return make_optimizer(1e-3, steps=1000, warmup_steps=100, weight_decay=1e-4)


def _state(abstract: Network, optimizer: optax.GradientTransformation) -> TrainState:
    def made(weights: Weights) -> TrainState:
        return init_state(abstract._replace(weights=weights), optimizer)

    state: TrainState = jax.eval_shape(made, abstract.weights)
    return state


def _hyperparameters() -> Hyperparameters:
    one: Any = Struct((), jnp.float32)
    seed: Any = Struct((), jnp.uint32)
    return Hyperparameters(seed, {"margin": one, "positive_fraction": one})

"""Encoders of any kind as pure functions of their weights."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from contrastive_jax.checks import check_seed
from contrastive_jax.train.types import Weights


class Network(NamedTuple):
    """An encoder as two pure functions, and its initial weights."""

    apply: Callable[[Any, Any, jax.Array, jax.Array], tuple[jax.Array, Any]]
    """`apply(params, averages, images, key)` returns embeddings `[B, D]` and new averages, as in
    training: batch normalisation uses the statistics of the batch, dropout draws from the key."""
    encode: Callable[[Any, jax.Array], jax.Array]
    """`encode(weights, images)` returns embeddings `[B, D]`, as after training."""
    weights: Weights


def network(model: Any, image_shape: tuple[int, ...] | None = None, seed: int = 0) -> Network:
    """Makes pure functions of an encoder.

    Args:
      model: an encoder from images `[B, H, W, C]` or vectors `[B, V]` to embeddings `[B, D]`:
        a Flax NNX module, whose own parameters are the initial ones; a class of modules, or
        `functools.partial` of one, which is called as
        `model(image_shape=..., rngs=nnx.Rngs(seed))`, without `image_shape` where it takes none; or
        a tuple of a function `(params, images)` and its parameters, in which form modules of Linen,
        Haiku and Equinox come.
      image_shape: `(H, W, C)` of one image or `(V,)` of one vector, for a class.
      seed: of the parameters that a class creates, from 0 to 2^32 - 1.

    Returns:
      The encoder.

    Raises:
      TypeError: if `model` is none of these.
      ValueError: if the seed is not in [0, 2^32).

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import models
      >>> from contrastive_jax.train.networks import network
      >>> encoder = network(models.ConvNet, (8, 8, 1), seed=0)
      >>> encoder.encode(encoder.weights, jnp.zeros((3, 8, 8, 1))).shape
      (3, 64)
      >>> linear = network((lambda params, images: images.reshape(len(images), -1) @ params,
      ...                   jnp.ones((64, 2))))
      >>> linear.encode(linear.weights, jnp.zeros((3, 8, 8, 1))).shape
      (3, 2)
    """
    if isinstance(model, Network):
        return model
    if isinstance(model, nnx.Module):
        return _from_module(model)
    if isinstance(model, tuple) and len(model) == 2 and callable(model[0]):
        return _from_function(*model)
    if callable(model) and "rngs" in (parameters := _parameters(model)):
        check_seed(seed)
        shape = {"image_shape": image_shape} if "image_shape" in parameters else {}
        return _from_module(model(**shape, rngs=nnx.Rngs(seed)))
    raise TypeError(
        "model must be a Flax NNX module, a class of them or a function that takes rngs (and "
        "image_shape), or a tuple of a function (params, images) and its parameters, got "
        f"{model!r}"
    )


def _parameters(model: Any) -> list[str]:
    """Returns the names of the arguments with which a module is made."""
    while isinstance(model, partial):
        model = model.func
    # Flax gives classes of modules a signature that says nothing.
    made_by = vars(model).get("__init__", model) if isinstance(model, type) else model
    return [*inspect.signature(made_by).parameters]


def _from_function(function: Callable[[Any, jax.Array], jax.Array], params: Any) -> Network:
    def apply(
        params: Any, averages: Any, images: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, Any]:
        return function(params, images), averages

    return Network(apply, lambda weights, images: function(weights.params, images), Weights(params))


def _from_module(module: nnx.Module) -> Network:
    # A copy, as the mode is an attribute of the module, which stays as the caller has it.
    module = nnx.clone(module)
    module.eval()
    evaluated = nnx.graphdef(module)
    module.train()
    trained, *states = nnx.split(module, nnx.Param, nnx.RngState, ...)
    params, randomness, rest = states
    averages: Any = rest if jax.tree.leaves(rest) else ()

    def apply(
        params: Any, averages: Any, images: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, Any]:
        copy: Any = nnx.merge(trained, params, _keyed(randomness, key), averages or {})
        embeddings = copy(images)
        _, *states = nnx.split(copy, nnx.Param, nnx.RngState, ...)
        return embeddings, states[2] if jax.tree.leaves(states[2]) else ()

    def encode(weights: Weights, images: jax.Array) -> jax.Array:
        copy: Any = nnx.merge(evaluated, weights.params, randomness, weights.averages or {})
        embeddings: jax.Array = copy(images)
        return embeddings

    return Network(apply, encode, Weights(params, averages))


def _keyed(randomness: Any, key: jax.Array) -> Any:
    """Starts each stream of random numbers of a module anew from one key."""
    leaves, structure = jax.tree.flatten(randomness)
    return jax.tree.unflatten(
        structure,
        [
            jax.random.fold_in(key, k)
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            else jnp.zeros_like(leaf)
            for k, leaf in enumerate(leaves)
        ],
    )


def check_images(network: Network, **splits: np.ndarray) -> None:
    """Checks, without computing anything, that the images of all splits can be embedded.

    Args:
      network: of whose weights only shapes and dtypes count.
      **splits: images `[N, H, W, C]` or vectors `[N, V]` of each split, those that are trained on
        first.

    Raises:
      ValueError: if the encoder does not take images of that shape, does not return embeddings
        `[B, D]`, a split has other images than the first, or a vector is not finite.

    Example:
      >>> import numpy as np
      >>> from contrastive_jax import models
      >>> from contrastive_jax.train.networks import check_images, network
      >>> images = np.zeros((3, 8, 8, 1), np.uint8)
      >>> check_images(network(models.ConvNet, (8, 8, 1)), train=images, test=images)
    """
    first, expected = next((name, images.shape[1:]) for name, images in splits.items())
    for name, images in splits.items():
        noun = "vectors" if len(expected) == 1 else "images"
        if images.shape[1:] != expected:
            remedy = "scale them to one size, by the image_size of load"
            raise ValueError(
                f"{noun} of {name} are {list(images.shape[1:])}, and those of {first} "
                f"{list(expected)}, for which the encoder is made; "
                + ("give vectors of one model" if noun == "vectors" else remedy)
            )
        if len(expected) == 1 and not (finite := np.isfinite(images).all(axis=1)).all():
            raise ValueError(
                f"vectors of {name} must be finite: row {int(np.argmin(finite))} is not "
                f"({int(np.sum(~finite))} of {len(images)} rows)"
            )
        batch = jax.ShapeDtypeStruct((2, *expected), images.dtype)
        try:
            shape = jax.eval_shape(network.encode, network.weights, batch).shape
        except (TypeError, ValueError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            remedy = ", or scale the images, by the image_size of load" * (noun == "images")
            raise ValueError(
                f"the encoder does not take {noun} of {name}, {images.dtype} {list(expected)}: "
                f"{reason}; take another encoder{remedy}"
            ) from error
        if len(shape) != 2 or shape[0] != 2:
            raise ValueError(
                "an encoder must return embeddings [B, D], one for each of its inputs; of 2 "
                f"{noun} this one returns {list(shape)}"
            )


def embed(
    encode: Callable[[Any, jax.Array], jax.Array],
    weights: Any,
    images: np.ndarray,
    *,
    batch_size: int = 500,
) -> np.ndarray:
    """Embeds images batch by batch, with one compilation.

    Args:
      encode: from weights and images to embeddings.
      weights: of the encoder.
      images: `[N, H, W, C]`, or vectors `[N, V]`.
      batch_size: images to a call; the last batch is padded.

    Returns:
      Embeddings, `[N, D]`, float32.

    Raises:
      ValueError: if there are no images.

    Example:
      >>> import numpy as np
      >>> from contrastive_jax import models
      >>> from contrastive_jax.train.networks import embed, network
      >>> encoder = network(models.ConvNet, (8, 8, 1))
      >>> images = np.zeros((5, 8, 8, 1), np.uint8)
      >>> embed(encoder.encode, encoder.weights, images, batch_size=2).shape
      (5, 64)
    """
    if len(images) == 0:
        raise ValueError("no images to embed")
    batch_size = min(batch_size, len(images))
    call = jax.jit(encode)
    # To the device once, and not with every batch.
    weights = jax.tree.map(jnp.array, weights)
    padding = -len(images) % batch_size
    parts = []
    for begin in range(0, len(images), batch_size):
        batch = images[begin : begin + batch_size]
        if len(batch) < batch_size:
            batch = np.concatenate([batch, np.repeat(batch[-1:], padding, axis=0)])
        parts.append(call(weights, jax.device_put(batch)))
    return np.concatenate(jax.device_get(parts))[: len(images)]

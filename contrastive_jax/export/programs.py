"""Encoders as StableHLO and ONNX programs.

A program takes images and gives embeddings. It holds the parameters and the preprocessing of the
encoder, and the number of images is free.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jax.custom_batching import custom_vmap
from jax.typing import DTypeLike

from contrastive_jax._extras import needs

Encode = Callable[[Any, Any], Any]
PLATFORMS = ("cpu", "cuda", "tpu")


def embedding_width(
    encode: Encode, params: Any, image_shape: Sequence[int], image_dtype: DTypeLike = np.uint8
) -> int:
    """Returns the number of entries of an embedding, without computing one.

    Args:
      encode: from parameters and images `[B, ...]` to embeddings `[B, D]`.
      params: of the encoder.
      image_shape: shape of one image, such as `(H, W, C)`.
      image_dtype: dtype of images.

    Returns:
      D.

    Raises:
      ValueError: if a size of `image_shape` is below 1, the encoder does not take such images, or
        does not give one floating-point vector for each.

    Example:
      >>> from contrastive_jax import export, models, train
      >>> from flax import nnx
      >>> encoder = train.network(models.MLP((8, 8, 1), width=2, hidden=(4,), rngs=nnx.Rngs(0)))
      >>> export.embedding_width(encoder.encode, encoder.weights, (8, 8, 1))
      2
    """
    shape, dtype = tuple(image_shape), jnp.dtype(image_dtype)
    if not shape or any(not isinstance(size, int) or size < 1 for size in shape):
        raise ValueError(
            f"image_shape must be the shape of one image, such as (28, 28, 1), got {shape}"
        )
    try:
        embeddings = jax.eval_shape(encode, params, jax.ShapeDtypeStruct((2, *shape), dtype))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the encoder does not take images [B, {', '.join(map(str, shape))}] of {dtype}: "
            f"{_first_line(error)}; give the image_shape and image_dtype that it was trained on"
        ) from error
    one_each = getattr(embeddings, "shape", ())[:1] == (2,) and len(embeddings.shape) == 2
    if not one_each or not jnp.issubdtype(embeddings.dtype, jnp.floating):
        raise ValueError(
            f"encode must give floating-point embeddings [B, D] of images [B, ...], got "
            f"{embeddings} for B = 2"
        )
    return int(embeddings.shape[1])


def to_stablehlo(
    encode: Encode,
    params: Any,
    image_shape: Sequence[int],
    image_dtype: DTypeLike = np.uint8,
    *,
    platforms: Sequence[str] = PLATFORMS,
) -> bytes:
    """Exports an encoder as one StableHLO program for any batch, by `jax.export`.

    Args:
      encode: from parameters and images `[B, ...]` to embeddings `[B, D]`.
      params: of the encoder; the program holds them.
      image_shape: shape of one image, such as `(H, W, C)`.
      image_dtype: dtype of images.
      platforms: that the program runs on, of those of `jax.export`.

    Returns:
      The serialized program. `jax.export.deserialize` reads it, and so does `from_stablehlo`.

    Raises:
      ImportError: if packages of the extra `export` are missing.
      ValueError: as in `embedding_width`, or if the encoder needs the batch to be a number.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import export, models, train
      >>> from flax import nnx
      >>> encoder = train.network(models.MLP((8, 8, 1), width=2, hidden=(4,), rngs=nnx.Rngs(0)))
      >>> encode, params = encoder.encode, encoder.weights
      >>> program = export.to_stablehlo(encode, params, (8, 8, 1))
      >>> embed = export.from_stablehlo(program)
      >>> embed(jnp.zeros((3, 8, 8, 1), jnp.uint8)).shape
      (3, 2)
    """
    _import_flatbuffers()
    embedding_width(encode, params, image_shape, image_dtype)
    (batch,) = export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *image_shape), image_dtype)
    traced = export.export(
        jax.jit(lambda images: encode(params, images)), platforms=tuple(platforms)
    )
    try:
        with _without_locations():
            return bytes(traced(images).serialize())
    except Exception as error:  # jax.export has errors of several types for what it can not express
        raise ValueError(
            f"the encoder can not be exported with a symbolic batch: {type(error).__name__}: "
            f"{_first_line(error)}; its operations must not depend on the number of images"
        ) from error


def from_stablehlo(content: bytes) -> Callable[[Any], jax.Array]:
    """Reads a program from `to_stablehlo`.

    Args:
      content: of the artefact.

    Returns:
      A function from images `[B, ...]`, B at least 1, to embeddings `[B, D]`, which `jax.jit` and
      `jax.vmap` transform. It has no derivative. It raises ValueError if images have another shape
      or dtype than the program, or the platform is not one of those exported for.

    Raises:
      ImportError: if packages of the extra `export` are missing.
      ValueError: if this version of JAX does not read it.

    Example:
      >>> from contrastive_jax import export
      >>> program = export.to_stablehlo(lambda scale, x: x * scale, 0.5, (2,), "float32")
      >>> print(export.from_stablehlo(program)([[1.0, 2.0]]))
      [[0.5 1. ]]
    """
    _import_flatbuffers()
    try:
        program = export.deserialize(bytearray(content))
    except Exception as error:  # flatbuffers raise struct.error, IndexError and others
        raise ValueError(
            f"not a StableHLO program that jax {jax.__version__} reads ({type(error).__name__}: "
            f"{_first_line(error)}): it is damaged, or older than six months; export it again"
        ) from error
    expected = program.in_avals[0]

    @custom_vmap
    def call(images: jax.Array) -> jax.Array:
        embeddings: jax.Array = program.call(images)
        return embeddings

    # `jax.export` has no rule for vmap, and the batch is free: the mapped axis becomes part of it.
    @call.def_vmap
    def _(_: int, __: list[bool], images: jax.Array) -> tuple[jax.Array, bool]:
        embeddings = call(images.reshape(-1, *images.shape[2:]))
        return embeddings.reshape(*images.shape[:2], -1), True

    compiled = jax.jit(call)

    def embed(images: Any) -> jax.Array:
        images = images if hasattr(images, "dtype") else np.asarray(images, expected.dtype)
        fits = images.shape[1:] == expected.shape[1:] and images.dtype == expected.dtype
        if not fits or images.shape[:1] == (0,):
            sizes = ", ".join(map(str, expected.shape[1:]))
            raise ValueError(
                f"the program takes images [B, {sizes}] of {expected.dtype} with B at least 1, got "
                f"{list(images.shape)} of {images.dtype}; a single image is a batch of one, "
                "images[None]"
            )
        embeddings: jax.Array = compiled(images)
        return embeddings

    return embed


def to_onnx(
    encode: Encode, params: Any, image_shape: Sequence[int], image_dtype: DTypeLike = np.uint8
) -> bytes:
    """Converts an encoder to an ONNX model for any batch, by jax2onnx.

    Its input is called `images`, `[batch, ...]`, and its output `embeddings`, `[batch, D]`.

    Args:
      encode: from parameters and images `[B, ...]` to embeddings `[B, D]`.
      params: of the encoder; the model holds them.
      image_shape: shape of one image, such as `(H, W, C)`.
      image_dtype: dtype of images.

    Returns:
      The serialized model, to be written to a file of the suffix `.onnx`.

    Raises:
      ImportError: if packages of the extra `export` are missing.
      ValueError: as in `embedding_width`, or if jax2onnx can not convert an operation.

    Example:
      >>> import numpy as np
      >>> from contrastive_jax import export, models, train
      >>> from flax import nnx
      >>> encoder = train.network(models.MLP((8, 8, 1), width=2, hidden=(4,), rngs=nnx.Rngs(0)))
      >>> model = export.to_onnx(encoder.encode, encoder.weights, (8, 8, 1))
      >>> export.from_onnx(model)(np.zeros((3, 8, 8, 1), np.uint8)).shape
      (3, 2)
    """
    with needs("export", __name__), _without_notes_of_jax2onnx():
        import jax2onnx

    embedding_width(encode, params, image_shape, image_dtype)
    images = jax.ShapeDtypeStruct(("batch", *image_shape), image_dtype)
    try:
        with _without_notes_of_jax2onnx():
            model = jax2onnx.to_onnx(
                lambda images: encode(params, images),
                [images],
                input_names=["images"],
                output_names=["embeddings"],
            )
    except Exception as error:  # it raises whatever the conversion of an operation meets
        raise ValueError(
            f"jax2onnx can not convert the encoder: {type(error).__name__}: {_first_line(error)}; "
            "export it as StableHLO"
        ) from error
    content: bytes = model.SerializeToString()
    return content


def from_onnx(content: bytes) -> Callable[[Any], np.ndarray]:
    """Loads an ONNX model from `to_onnx` into onnxruntime, on the CPU.

    Args:
      content: of the artefact.

    Returns:
      A function from images `[B, ...]` to embeddings `[B, D]`, as NumPy arrays. It raises
      ValueError if images have another shape or dtype than the model.

    Raises:
      ImportError: if packages of the extra `export` are missing.
      ValueError: if the model is damaged, or onnxruntime lacks one of its operators.

    Example:
      >>> import numpy as np
      >>> from contrastive_jax import export
      >>> model = export.to_onnx(lambda scale, x: x * scale, 0.5, (2,), "float32")
      >>> print(export.from_onnx(model)(np.array([[1, 2]], np.float32)))
      [[0.5 1. ]]
    """
    with needs("export", __name__):
        import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors alone: it names each constant that it folds
    try:
        session = onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])
        (entry,) = session.get_inputs()
    except Exception as error:  # its errors derive from Exception alone
        raise ValueError(
            f"not an ONNX model that onnxruntime {onnxruntime.__version__} reads: "
            f"{type(error).__name__}: {_first_line(error)}; export it again, and an encoder that "
            "computes in bfloat16 as StableHLO"
        ) from error

    def embed(images: Any) -> np.ndarray:
        images = np.asarray(images)
        try:
            embeddings: np.ndarray = session.run(None, {entry.name: images})[0]
        except Exception as error:
            raise ValueError(
                f"the model takes images {entry.shape} as {entry.type}, got {list(images.shape)} "
                f"of {images.dtype}: {_first_line(error)}"
            ) from error
        return embeddings

    return embed


def _import_flatbuffers() -> None:
    """Names the extra where `jax.export` can not serialize."""
    with needs("export", __name__):
        import flatbuffers  # noqa: F401


@contextmanager
def _without_locations() -> Iterator[None]:
    """Keeps names of source files out of a program, as they tell of the machine that wrote it."""
    option = "jax_traceback_in_locations_limit"
    limit = getattr(jax.config, option)
    jax.config.update(option, 0)
    try:
        yield
    finally:
        jax.config.update(option, limit)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or ["no message"])[0]


@contextmanager
def _without_notes_of_jax2onnx() -> Iterator[None]:
    """Silences jax2onnx about plugins that it can not load and about calls of its own."""
    loggers = [logging.getLogger(name) for name in ("jax2onnx", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

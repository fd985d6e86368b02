"""A folder with an exported encoder, and what its users need to know beside it."""

import functools
import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from contrastive_jax.export.agreement import check_decision, compare, embed_in_batches
from contrastive_jax.export.parameters import from_safetensors, to_safetensors
from contrastive_jax.export.programs import (
    Encode,
    embedding_width,
    from_onnx,
    from_stablehlo,
    to_onnx,
    to_stablehlo,
)

FORMATS = ("stablehlo", "onnx", "safetensors")
DESCRIPTION = "encoder.json"
_PACKAGES = ("contrastive_jax", "jax", "jaxlib", "flax", "jax2onnx", "onnx", "safetensors")


def describe(
    *,
    image_shape: Sequence[int],
    image_dtype: DTypeLike,
    width: int,
    distance: Callable[..., jax.Array],
    threshold: float,
    preprocessing: str | None = None,
) -> dict[str, Any]:
    """Describes an encoder to those who use its export, as entries of a JSON file.

    Args:
      image_shape: shape of one image, such as `(H, W, C)`.
      image_dtype: dtype of images.
      width: number of entries of an embedding.
      distance: between two embeddings: a function of `distances`, or one with arguments bound by
        `functools.partial`.
      threshold: largest distance of a pair that is accepted.
      preprocessing: what images hold and what the encoder does to them; by default what the
        encoders of this library do to images of that dtype.

    Returns:
      Shapes, dtypes, preprocessing, distance, threshold, how to decide, and versions. It has no
      date, so that the same export gives the same file.

    Raises:
      ValueError: if the distance has no name.

    Example:
      >>> from contrastive_jax import distances, export
      >>> entries = export.describe(
      ...     image_shape=(28, 28, 1),
      ...     image_dtype="uint8",
      ...     width=64,
      ...     distance=distances.euclidean,
      ...     threshold=0.7,
      ... )
      >>> entries["decision"]["distance"], entries["embeddings"]["shape"]
      ('euclidean', ['batch', 64])
    """
    dtype = jnp.dtype(image_dtype)
    if preprocessing is None and jnp.issubdtype(dtype, jnp.integer):
        preprocessing = "pixels from 0 to 255, as they are; the encoder divides them by 255"
    elif preprocessing is None:
        preprocessing = "pixels as in training, usually in [0, 1]; the encoder does not scale them"
    name, options = _name_and_options(distance)
    return {
        "images": {
            "shape": ["batch", *image_shape],
            "dtype": dtype.name,
            "preprocessing": preprocessing,
        },
        "embeddings": {"shape": ["batch", width], "dtype": "float32"},
        "decision": {
            "distance": name,
            "options": options,
            "threshold": float(threshold),
            "rule": "a pair is similar if the distance of its embeddings is at most the threshold",
        },
        "versions": _versions(),
    }


def _name_and_options(distance: Callable[..., jax.Array]) -> tuple[str, dict[str, Any]]:
    options: dict[str, Any] = {}
    function: Any = distance
    while isinstance(function, functools.partial):
        options, function = {**function.keywords, **options}, function.func
    name = getattr(function, "__name__", "<unnamed>")
    if name.startswith("<"):
        raise ValueError(
            f"distance must be a function with a name, to be found by it, got {distance!r}; take "
            "one of contrastive_jax.distances, bind arguments of it by functools.partial, or write "
            "a function with def"
        )
    return name, {key: np.asarray(value).tolist() for key, value in options.items()}


def _versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def write(
    folder: Path | str,
    encode: Encode,
    params: Any,
    *,
    image_shape: Sequence[int],
    image_dtype: DTypeLike = np.uint8,
    distance: Callable[[jax.Array, jax.Array], jax.Array],
    threshold: float,
    images: np.ndarray,
    formats: Sequence[str] = FORMATS,
    preprocessing: str | None = None,
    bound: float = 1e-4,
) -> dict[str, Any]:
    """Exports an encoder to a folder, once every artefact has been read back and verified.

    The folder gets `encoder.stablehlo`, `encoder.onnx` and `encoder.safetensors`, and
    `encoder.json` with what `describe` says, and the digest and the agreement of each. Files of an
    earlier export are replaced, or removed if their format is not asked for now. Nothing is written
    unless all artefacts agree with the encoder.

    Args:
      folder: that is created where there is none.
      encode: from parameters and images `[B, ...]` to embeddings `[B, D]`.
      params: of the encoder.
      image_shape: shape of one image, such as `(H, W, C)`.
      image_dtype: dtype of images.
      distance: between two embeddings, as in `describe`.
      threshold: largest distance of a pair that is accepted.
      images: `[N, ...]`, at least two, to verify with, such as those of test. All their pairs are
        compared.
      formats: of `"stablehlo"`, `"onnx"` and `"safetensors"`.
      preprocessing: as in `describe`.
      bound: as in `verify`.

    Returns:
      The content of `encoder.json`.

    Raises:
      ImportError: if packages of the extra `export` are missing.
      OSError: if the folder can not be written.
      ValueError: if a format is unknown, images do not fit, an artefact can not be made or does not
        agree with the encoder.

    Example:
      >>> import numpy as np
      >>> from contrastive_jax import distances, export, models, train
      >>> from flax import nnx
      >>> encoder = train.network(models.MLP((8, 8, 1), width=2, hidden=(4,), rngs=nnx.Rngs(0)))
      >>> report = export.write(
      ...     "exported",
      ...     encoder.encode,
      ...     encoder.weights,
      ...     image_shape=(8, 8, 1),
      ...     distance=distances.euclidean,
      ...     threshold=0.5,
      ...     images=np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), np.uint8),
      ...     formats=["stablehlo"],
      ... )
      >>> report["files"]["stablehlo"]["agreement"]["changed_verdicts"]
      0
    """
    unknown = sorted({*formats} - {*FORMATS})
    if unknown or not formats:
        raise ValueError(
            f"formats must be some of {', '.join(FORMATS)}, got {', '.join(unknown) or 'none'}"
        )
    images = np.asarray(images)
    check_decision(images, threshold, bound)
    if images.shape[1:] != tuple(image_shape) or images.dtype != jnp.dtype(image_dtype):
        raise ValueError(
            f"images to verify with must be [N, {', '.join(map(str, image_shape))}] of "
            f"{jnp.dtype(image_dtype)}, got {list(images.shape)} of {images.dtype}"
        )
    # On the CPU, on which every artefact runs, and where float32 is not rounded to fewer bits.
    params = jax.device_get(params)
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        description = describe(
            image_shape=image_shape,
            image_dtype=image_dtype,
            width=embedding_width(encode, params, image_shape, image_dtype),
            distance=distance,
            threshold=threshold,
            preprocessing=preprocessing,
        )
        contents = {
            one: _MAKE[one](encode, params, image_shape, image_dtype)
            for one in FORMATS
            if one in formats
        }
        expected = embed_in_batches(jax.jit(functools.partial(encode, params)), images)
        agreements = {
            one: compare(
                _READ_BACK[one](content, encode, params),
                expected,
                images,
                distance=distance,
                threshold=threshold,
                bound=bound,
            )
            for one, content in contents.items()
        }
    description["files"] = {
        one: {
            "name": f"encoder.{one}",
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "agreement": agreements[one]._asdict(),
        }
        for one, content in contents.items()
    }
    _write_files(Path(folder), contents, description)
    return description


_MAKE: dict[str, Callable[..., bytes]] = {
    "stablehlo": to_stablehlo,
    "onnx": to_onnx,
    "safetensors": lambda encode, params, *image: to_safetensors(params),
}
_READ_BACK: dict[str, Callable[..., Callable[[np.ndarray], Any]]] = {
    "stablehlo": lambda content, encode, params: from_stablehlo(content),
    "onnx": lambda content, encode, params: from_onnx(content),
    "safetensors": lambda content, encode, params: jax.jit(
        functools.partial(encode, from_safetensors(content, params))
    ),
}


def _write_files(
    folder: Path, contents: Mapping[str, bytes], description: Mapping[str, Any]
) -> None:
    """Writes all files under other names, then renames them, the description last."""
    text = json.dumps(description, indent=2, allow_nan=False) + "\n"
    files = {f"encoder.{one}": content for one, content in contents.items()}
    files[DESCRIPTION] = text.encode()
    folder.mkdir(parents=True, exist_ok=True)
    parts = {folder / name: folder / f".{name}.new" for name in files}
    try:
        for part, content in zip(parts.values(), files.values(), strict=True):
            part.write_bytes(content)
        for one in FORMATS:
            if one not in contents:
                (folder / f"encoder.{one}").unlink(missing_ok=True)
        for path, part in parts.items():
            part.replace(path)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)

"""Parameters as safetensors, which hold tensors by name and no code."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from contrastive_jax._extras import needs

_DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "I32": "int32",
    "U32": "uint32",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
}


def to_safetensors(params: Any) -> bytes:
    """Writes parameters as safetensors, by their path in the tree, as `params.stages.0.kernel`.

    Args:
      params: tree of arrays, such as the weights from `train.network`.

    Returns:
      Content of a file of the suffix `.safetensors`.

    Raises:
      ImportError: if packages of the extra `export` are missing.
      ValueError: if two parameters have one path, or one is of a dtype without a name there.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import export
      >>> params = {"layers": [{"kernel": jnp.ones((2, 3))}]}
      >>> content = export.to_safetensors(params)
      >>> print(export.from_safetensors(content, params)["layers"][0]["kernel"].shape)
      (2, 3)
    """
    with needs("export", __name__):
        from safetensors.numpy import save

    tensors = {name: np.asarray(leaf, order="C") for name, leaf in _by_name(params).items()}
    for name, tensor in tensors.items():
        if tensor.dtype.name not in _DTYPES.values():
            raise ValueError(
                f"parameter {name} is of {tensor.dtype}, expected one of "
                f"{', '.join(_DTYPES.values())}"
            )
    content: bytes = save(tensors)
    return content


def from_safetensors(content: bytes, like: Any) -> Any:
    """Reads parameters from `to_safetensors`.

    Args:
      content: of the artefact.
      like: tree of arrays, or of `jax.ShapeDtypeStruct`, of the same structure; only its shapes and
        dtypes count.

    Returns:
      A tree like it, with the values of the artefact.

    Raises:
      ImportError: if packages of the extra `export` are missing.
      ValueError: if the content is damaged, or names, shapes or dtypes differ from those of `like`.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import export
      >>> content = export.to_safetensors({"bias": jnp.array([1.0, 2.0])})
      >>> print(export.from_safetensors(content, {"bias": jnp.zeros(2)})["bias"])
      [1. 2.]
    """
    with needs("export", __name__):
        from safetensors import SafetensorError, deserialize

    try:
        tensors = dict(deserialize(content))
    except SafetensorError as error:
        raise ValueError(f"not whole safetensors: {error}; write them again") from error
    expected = _by_name(like)
    missing, others = sorted(expected - tensors.keys()), sorted(tensors.keys() - expected)
    if missing or others:
        raise ValueError(
            f"the parameters are not those of this encoder: {', '.join(missing) or 'none'} "
            f"missing, {', '.join(others) or 'none'} unexpected; make the encoder as it was made "
            "for the export"
        )
    leaves = []
    for name, leaf in expected.items():
        tensor = tensors[name]
        dtype, shape = _DTYPES.get(tensor["dtype"], tensor["dtype"]), tuple(tensor["shape"])
        if (shape, dtype) != (jnp.shape(leaf), jnp.result_type(leaf).name):
            raise ValueError(
                f"parameter {name} is {dtype} {list(shape)}, expected "
                f"{jnp.result_type(leaf).name} {list(jnp.shape(leaf))}; make the encoder as it was "
                "made for the export"
            )
        leaves.append(jnp.asarray(np.frombuffer(tensor["data"], jnp.dtype(dtype)).reshape(shape)))
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _by_name(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a tree by their path, without the attribute of a Flax variable."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    names = [
        jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")
        for path, _ in leaves
    ]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(
            f"several parameters are called {', '.join(twice)}; rename one, or take keys without a "
            "dot"
        )
    return {name: leaf for name, (_, leaf) in zip(names, leaves, strict=True)}

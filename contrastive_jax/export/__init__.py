"""Export of encoders to programs that run without this library.

| format | runs with | lasts |
| --- | --- | --- |
| StableHLO | JAX, on CPUs, CUDA GPUs and TPUs, without this library and Flax | six months |
| ONNX | onnxruntime and other runtimes, without JAX | while they support its operators |
| safetensors | an encoder made by the same code: these are parameters alone | without limit |

JAX guarantees that an exported program runs with versions of JAX up to six months newer, and three
weeks older, than the version that exported it
(<https://docs.jax.dev/en/latest/export/export.html#compatibility-guarantees>). Keep the parameters
as safetensors or a checkpoint, and export again after that.
"""

from contrastive_jax.export.agreement import Agreement, verify
from contrastive_jax.export.folder import describe, write
from contrastive_jax.export.parameters import from_safetensors, to_safetensors
from contrastive_jax.export.programs import (
    embedding_width,
    from_onnx,
    from_stablehlo,
    to_onnx,
    to_stablehlo,
)

__all__ = [
    "Agreement",
    "describe",
    "embedding_width",
    "from_onnx",
    "from_safetensors",
    "from_stablehlo",
    "to_onnx",
    "to_safetensors",
    "to_stablehlo",
    "verify",
    "write",
]

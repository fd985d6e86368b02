"""Convolution for `flax.nnx.Conv` that is quick on a CPU too, in loops and under `vmap` as well."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

# Patches of a 3 x 3 kernel are nine times the input. Past this size the copy costs more than it
# saves, and the backward pass would hold one for each layer.
_MAX_PATCH_BYTES = 64 * 2**20


def convolution(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    **unused: Any,
) -> jax.Array:
    """Two-dimensional NHWC convolution, with the signature of `lax.conv_general_dilated`.

    Pass it to a module as `nnx.Conv(..., conv_general_dilated=convolution)`. On accelerators it is
    `lax.conv_general_dilated`. On a CPU the patches are gathered and multiplied with the kernel in
    one matrix product: XLA computes the gradient of a convolution there about half as fast, an
    eighth as fast inside `lax.scan` (jax issue 12868), and by a grouped convolution under `vmap`
    over kernels. Results agree to rounding. A symbolic batch, of `jax.export`, is left to XLA.

    Args:
      lhs: images, `[B, H, W, C]`.
      rhs: kernel, `[h, w, C, O]`.
      window_strides: stride along height and width.
      padding: `"SAME"`, `"VALID"` or the pixels added at either end of height and width.
      lhs_dilation: dilation of the images.
      rhs_dilation: dilation of the kernel.
      dimension_numbers: as in `lax.conv_general_dilated`; NHWC is what Flax asks for.
      feature_group_count: number of groups.
      precision: of the product.
      preferred_element_type: type of the result.
      **unused: further arguments of `lax.conv_general_dilated`, passed on.

    Returns:
      `[B, H', W', O]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from contrastive_jax.convolution import convolution
      >>> layer = nnx.Conv(1, 4, (3, 3), conv_general_dilated=convolution, rngs=nnx.Rngs(0))
      >>> layer(jnp.ones((2, 8, 8, 1))).shape
      (2, 8, 8, 4)
    """

    def by_xla(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            lhs,
            rhs,
            window_strides,
            padding,
            lhs_dilation=lhs_dilation,
            rhs_dilation=rhs_dilation,
            dimension_numbers=dimension_numbers,
            feature_group_count=feature_group_count,
            precision=precision,
            preferred_element_type=preferred_element_type,
            **unused,
        )

    def by_patches(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        patches, kernel = _by_patches(lhs, rhs, window_strides, padding)
        # Held transposed, the kernel gets its gradient as a product over rows of the cotangent and
        # not over columns, which XLA computes up to half as fast again.
        kernel = jax.lax.optimization_barrier(kernel.T)
        return jax.lax.dot_general(
            patches,
            kernel,
            (((3,), (1,)), ((), ())),
            precision=precision,
            preferred_element_type=preferred_element_type,
        )

    dilated = any(d != 1 for d in (*(lhs_dilation or ()), *(rhs_dilation or ())))
    # Patches of a batch of any size have no bound.
    symbolic = any(export.is_symbolic_dim(size) for size in lhs.shape)
    if dilated or symbolic or feature_group_count != 1:
        return by_xla(lhs, rhs)
    patches, _ = jax.eval_shape(lambda x, k: _by_patches(x, k, window_strides, padding), lhs, rhs)
    if patches.size * patches.dtype.itemsize > _MAX_PATCH_BYTES:
        return by_xla(lhs, rhs)
    result: jax.Array = jax.lax.platform_dependent(lhs, rhs, cpu=by_patches, default=by_xla)
    return result


def _by_patches(
    images: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
) -> tuple[jax.Array, jax.Array]:
    """Patches `[B, H', W', P]` and the kernel `[P, O]` they are to be multiplied with."""
    batch, height, width, channels = images.shape
    rows, columns = kernel.shape[:2]
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads((height, width), (rows, columns), strides, padding)
    (top, bottom), (left, right) = padding
    images = jnp.pad(images, ((0, 0), (top, bottom), (left, right), (0, 0)))
    down = (height + top + bottom - rows) // strides[0] + 1
    across = (width + left + right - columns) // strides[1] + 1
    if rows % strides[0] == 0 and columns % strides[1] == 0:
        # A kernel of whole strides is a kernel of stride one on blocks of pixels: fewer, longer
        # runs of memory to copy.
        kernel = _blocks(kernel[None], strides)[0]
        tall, wide = down - 1 + kernel.shape[0], across - 1 + kernel.shape[1]
        images = _blocks(images[:, : tall * strides[0], : wide * strides[1]], strides)
        rows, columns, channels = *kernel.shape[:2], images.shape[-1]
        strides = (1, 1)
    stop = (down - 1) * strides[0] + 1, (across - 1) * strides[1] + 1
    patches = [
        jax.lax.slice(
            images,
            (0, i, j, 0),
            (batch, i + stop[0], j + stop[1], channels),
            (1, *strides, 1),
        )
        for i in range(rows)
        for j in range(columns)
    ]
    return jnp.concatenate(patches, axis=-1), kernel.reshape(-1, kernel.shape[-1])


def _blocks(images: jax.Array, block: Sequence[int]) -> jax.Array:
    """`[B, H, W, C, ...]` to `[B, H / h, W / w, h * w * C, ...]`."""
    batch, height, width, channels, *rest = images.shape
    h, w = block
    split = images.reshape(batch, height // h, h, width // w, w, channels, *rest)
    return jnp.swapaxes(split, 2, 3).reshape(
        batch, height // h, width // w, h * w * channels, *rest
    )

"""Networks from images, or from vectors of another model, to embeddings (Flax NNX).

Each encoder maps `[B, H, W, C]` to `[B, width]`; `Linear`, `MLP` and `Residual` also map vectors
`[B, D]`. Images are `uint8`, scaled to [0, 1] on the way in, or floating and taken as they are.
Parameters are float32; `dtype` is the type of the computation; embeddings come out in float32.

On the unit sphere (`normalize=True`) distances lie in [0, 2], so the margin has a meaning of its
own: random directions lie about sqrt(2) apart, margins from about 0.5 to 1.4 make sense, and a
margin above 2 can never be met. On raw embeddings (`normalize=False`) the margin only sets a scale:
the last layer is linear, and scaling its output and the margin by c scales the loss by c^2 and
changes nothing else, so a larger margin is a larger embedding, not a better one.
"""

import math
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from contrastive_jax._compat import list_of_modules
from contrastive_jax.convolution import convolution

_Conv = partial(nnx.Conv, conv_general_dilated=convolution)


class Linear(nnx.Module):
    """A linear map, the head to train first on vectors of another model.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import models
      >>> from flax import nnx
      >>> head = models.Linear((512,), width=64, rngs=nnx.Rngs(0))
      >>> head(jnp.zeros((3, 512))).shape
      (3, 64)
    """

    def __init__(
        self,
        image_shape: tuple[int, ...],
        width: int = 64,
        *,
        normalize: bool = True,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Creates the parameters.

        Args:
          image_shape: `(D,)` of one vector, or `(H, W, C)` of one image.
          width: number of entries of an embedding.
          normalize: whether embeddings are scaled to unit length.
          dtype: type of the computation.
          rngs: source of the initial parameters.
        """
        entries = math.prod(_checked(image_shape, width, vectors=True))
        self.out = nnx.Linear(entries, width, dtype=dtype, rngs=rngs)
        self.normalize, self.dtype = normalize, dtype

    def __call__(self, images: jax.Array) -> jax.Array:
        """Embeds vectors `[B, D]` or images `[B, H, W, C]`; returns `[B, width]`."""
        x = _pixels(images, self.dtype).reshape(images.shape[0], -1)
        return _embedding(self.out(x), self.normalize)


class Residual(nnx.Module):
    """A correction of vectors of another model, which starts at the vectors themselves.

    The embedding is the vector plus a layer of ReLU and a linear map, whose initial weights are
    zero: before the first step embeddings are the vectors, and training departs from what they
    already tell. Where an embedding has another width than a vector, a trained projection with
    orthonormal rows or columns takes the place of the vector. It preserves all distances where the
    width is larger, and on average up to a factor where it is smaller.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import models
      >>> from flax import nnx
      >>> head = models.Residual((2,), width=2, normalize=False, rngs=nnx.Rngs(0))
      >>> print(head(jnp.array([[0.5, -2.0]])))
      [[ 0.5 -2. ]]
    """

    def __init__(
        self,
        image_shape: tuple[int, ...],
        width: int = 64,
        *,
        hidden: int = 512,
        normalize: bool = True,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Creates the parameters.

        Args:
          image_shape: `(D,)` of one vector, or `(H, W, C)` of one image.
          width: number of entries of an embedding.
          hidden: width of the layer of ReLU.
          normalize: whether embeddings are scaled to unit length.
          dtype: type of the computation.
          rngs: source of the initial parameters.
        """
        entries = math.prod(_checked(image_shape, width, vectors=True))
        linear = partial(nnx.Linear, dtype=dtype, rngs=rngs)
        orthonormal = nnx.initializers.orthogonal()
        self.projection = (
            None
            if entries == width
            else linear(entries, width, use_bias=False, kernel_init=orthonormal)
        )
        self.hidden = linear(entries, hidden)
        self.out = linear(hidden, width, kernel_init=nnx.initializers.zeros)
        self.normalize, self.dtype = normalize, dtype

    def __call__(self, images: jax.Array) -> jax.Array:
        """Embeds vectors `[B, D]` or images `[B, H, W, C]`; returns `[B, width]`."""
        x = _pixels(images, self.dtype).reshape(images.shape[0], -1)
        start = x if self.projection is None else self.projection(x)
        return _embedding(start + self.out(nnx.relu(self.hidden(x))), self.normalize)


class MLP(nnx.Module):
    """Fully connected network with ReLU, for vectors, small images and quick ablations.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import models
      >>> from flax import nnx
      >>> encoder = models.MLP((8, 8, 1), width=16, hidden=(32,), rngs=nnx.Rngs(0))
      >>> embeddings = encoder(jnp.zeros((3, 8, 8, 1), jnp.uint8))
      >>> embeddings.shape
      (3, 16)
    """

    def __init__(
        self,
        image_shape: tuple[int, ...],
        width: int = 64,
        *,
        hidden: tuple[int, ...] = (512, 256),
        normalize: bool = True,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Creates the parameters.

        Args:
          image_shape: `(H, W, C)` of one image, or `(D,)` of one vector.
          width: number of entries of an embedding.
          hidden: width of each hidden layer.
          normalize: whether embeddings are scaled to unit length.
          dtype: type of the computation.
          rngs: source of the initial parameters.
        """
        sizes = (math.prod(_checked(image_shape, width, vectors=True)), *hidden)
        self.hidden = list_of_modules(
            [nnx.Linear(i, o, dtype=dtype, rngs=rngs) for i, o in pairwise(sizes)]
        )
        self.out = nnx.Linear(sizes[-1], width, dtype=dtype, rngs=rngs)
        self.normalize, self.dtype = normalize, dtype

    def __call__(self, images: jax.Array) -> jax.Array:
        """Embeds images `[B, H, W, C]` or vectors `[B, D]`; returns `[B, width]`."""
        x = _pixels(images, self.dtype).reshape(images.shape[0], -1)
        for layer in self.hidden:
            x = nnx.relu(layer(x))
        return _embedding(self.out(x), self.normalize)


class DrLIM(nnx.Module):
    """The convolutional network of Hadsell, Chopra and LeCun (2006), section 3.

    15 maps of 6 x 6 kernels, subsampling by two with a trained gain and bias for each map, 30 maps
    of 9 x 9 kernels, and a full connection to the embedding, with tanh in between. On images below
    28 x 28 the kernels shrink in proportion, down to 8 x 8 images.

    References:
      Hadsell, Chopra and LeCun, Dimensionality Reduction by Learning an Invariant Mapping, 2006
      <https://doi.org/10.1109/CVPR.2006.100>, section 3.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import models
      >>> from flax import nnx
      >>> encoder = models.DrLIM((8, 8, 1), width=2, rngs=nnx.Rngs(0))
      >>> encoder(jnp.zeros((3, 8, 8, 1), jnp.uint8)).shape
      (3, 2)
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        width: int = 2,
        *,
        normalize: bool = False,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Creates the parameters.

        Args:
          image_shape: `(H, W, C)` of one image, at least 8 x 8.
          width: number of entries of an embedding; 2 in the paper.
          normalize: whether embeddings are scaled to unit length; not in the paper.
          dtype: type of the computation.
          rngs: source of the initial parameters.
        """
        rows, columns, channels = _checked(image_shape, width, smallest=8)
        side = min(rows, columns, 28)
        first = max(2, round(6 * side / 28))
        subsampled = [(size - first + 1) // 2 for size in (rows, columns)]
        second = max(1, min(round(9 * side / 28), *subsampled))
        conv = partial(_Conv, padding="VALID", dtype=dtype, rngs=rngs)
        self.c1 = conv(channels, 15, (first, first))
        self.gain = nnx.Param(jnp.ones(15))
        self.bias = nnx.Param(jnp.zeros(15))
        self.c3 = conv(15, 30, (second, second))
        rows, columns = (size - second + 1 for size in subsampled)
        self.out = nnx.Linear(rows * columns * 30, width, dtype=dtype, rngs=rngs)
        self.normalize, self.dtype = normalize, dtype

    def __call__(self, images: jax.Array) -> jax.Array:
        """Embeds images `[B, H, W, C]`; returns `[B, width]`."""
        x = jnp.tanh(self.c1(_pixels(images, self.dtype)))
        # The sum, as `nnx.avg_pool` divides by an integer array, which strict dtypes forbid.
        x = nnx.pool(x, 0.0, jax.lax.add, (2, 2), (2, 2), "VALID") / 4
        gain, bias = (one.astype(x.dtype)[None, None, None] for one in (self.gain, self.bias))
        x = jnp.tanh(x * gain + bias)
        x = jnp.tanh(self.c3(x))
        return _embedding(self.out(x.reshape(x.shape[0], -1)), self.normalize)


class ConvNet(nnx.Module):
    """A small network of strided convolutions, the default for images of 8 x 8 to 64 x 64.

    Every stage halves the image and nothing is pooled: the gradient of max-pooling is the slowest
    part of such a network on a CPU.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import models
      >>> from flax import nnx
      >>> encoder = models.ConvNet((8, 8, 1), channels=(4, 8), hidden=32, rngs=nnx.Rngs(0))
      >>> encoder(jnp.zeros((3, 8, 8, 1), jnp.uint8)).shape
      (3, 64)
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        width: int = 64,
        *,
        channels: tuple[int, ...] | None = None,
        hidden: int = 256,
        normalize: bool = True,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Creates the parameters.

        Args:
          image_shape: `(H, W, C)` of one image.
          width: number of entries of an embedding.
          channels: maps of each stage; by default 16, 32 and 64, and below 16 pixels, where a
            third stage would leave a single one, 64 and 128.
          hidden: width of the layer between the last stage and the embedding.
          normalize: whether embeddings are scaled to unit length.
          dtype: type of the computation.
          rngs: source of the initial parameters.
        """
        rows, columns, channels_in = _checked(image_shape, width)
        if channels is None:
            channels = (16, 32, 64) if min(rows, columns) >= 16 else (64, 128)
        kernels = [(5, 5), *[(3, 3)] * (len(channels) - 1)]
        self.stages = list_of_modules(
            [
                _Conv(i, o, kernel, strides=2, dtype=dtype, rngs=rngs)
                for (i, o), kernel in zip(pairwise((channels_in, *channels)), kernels, strict=True)
            ]
        )
        for _ in channels:
            rows, columns = -(-rows // 2), -(-columns // 2)
        self.hidden = nnx.Linear(rows * columns * channels[-1], hidden, dtype=dtype, rngs=rngs)
        self.out = nnx.Linear(hidden, width, dtype=dtype, rngs=rngs)
        self.normalize, self.dtype = normalize, dtype

    def __call__(self, images: jax.Array) -> jax.Array:
        """Embeds images `[B, H, W, C]`; returns `[B, width]`."""
        x = _pixels(images, self.dtype)
        for stage in self.stages:
            x = nnx.relu(stage(x))
        x = nnx.relu(self.hidden(x.reshape(x.shape[0], -1)))
        return _embedding(self.out(x), self.normalize)


class ResNet18(nnx.Module):
    """ResNet-18 (He et al. 2016) with GroupNorm (Wu and He 2018) in place of batch statistics.

    Group statistics belong to one example, so the embedding of an image depends neither on the
    batch nor on the number of devices. Images up to 64 x 64 get the 3 x 3 stem used for CIFAR,
    larger ones the 7 x 7 stem with stride 2 and max-pooling.

    References:
      He et al., Deep Residual Learning for Image Recognition, 2016
      <https://arxiv.org/abs/1512.03385>. Wu and He, Group Normalization, 2018
      <https://arxiv.org/abs/1803.08494>.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        width: int = 128,
        *,
        normalize: bool = True,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Creates the parameters.

        Args:
          image_shape: `(H, W, C)` of one image.
          width: number of entries of an embedding.
          normalize: whether embeddings are scaled to unit length.
          dtype: type of the computation.
          rngs: source of the initial parameters.
        """
        rows, columns, channels = _checked(image_shape, width)
        self.small = max(rows, columns) <= 64
        kernel, stride = ((3, 3), 1) if self.small else ((7, 7), 2)
        self.stem = _Conv(
            channels, 64, kernel, strides=stride, use_bias=False, dtype=dtype, rngs=rngs
        )
        self.stem_norm = _group_norm(64, dtype, rngs)
        plan = [(64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)]
        inputs = [64, *[maps for maps, _ in plan[:-1]]]
        self.blocks = list_of_modules(
            [
                _ResidualBlock(i, o, stride, dtype=dtype, rngs=rngs)
                for i, (o, stride) in zip(inputs, plan, strict=True)
            ]
        )
        self.out = nnx.Linear(512, width, dtype=dtype, rngs=rngs)
        self.normalize, self.dtype = normalize, dtype

    def __call__(self, images: jax.Array) -> jax.Array:
        """Embeds images `[B, H, W, C]`; returns `[B, width]`."""
        x = nnx.relu(self.stem_norm(self.stem(_pixels(images, self.dtype))))
        if not self.small:
            x = nnx.max_pool(x, window_shape=(3, 3), strides=(2, 2), padding="SAME")
        for block in self.blocks:
            x = block(x)
        return _embedding(self.out(x.mean(axis=(1, 2))), self.normalize)


class _ResidualBlock(nnx.Module):
    def __init__(
        self, channels_in: int, channels: int, stride: int, *, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        conv = partial(_Conv, use_bias=False, dtype=dtype, rngs=rngs)
        self.conv1 = conv(channels_in, channels, (3, 3), strides=stride)
        self.norm1 = _group_norm(channels, dtype, rngs)
        self.conv2 = conv(channels, channels, (3, 3))
        self.norm2 = _group_norm(channels, dtype, rngs)
        self.shortcut = (
            conv(channels_in, channels, (1, 1), strides=stride)
            if (channels_in, stride) != (channels, 1)
            else None
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.norm2(self.conv2(nnx.relu(self.norm1(self.conv1(x)))))
        return nnx.relu(y + (x if self.shortcut is None else self.shortcut(x)))


def _group_norm(channels: int, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.GroupNorm:
    return nnx.GroupNorm(channels, num_groups=32, dtype=dtype, rngs=rngs)


def _checked(
    image_shape: tuple[int, ...], width: int, smallest: int = 1, *, vectors: bool = False
) -> tuple[int, ...]:
    if len(image_shape) == 1 and not vectors:
        raise ValueError(
            f"this encoder takes images, and image_shape {tuple(image_shape)} is that of a vector: "
            "take Linear, MLP or Residual"
        )
    dimensions = (1, 3) if vectors else (3,)
    if (
        len(image_shape) not in dimensions
        or min(image_shape) < 1
        or min(image_shape[:2]) < smallest
    ):
        raise ValueError(
            f"image_shape must be (height, width, channels) of at least {smallest} x {smallest} "
            f"pixels{', or (entries,) of a vector' if vectors else ''}, got {tuple(image_shape)}"
        )
    if width < 1:
        raise ValueError(f"width of the embedding must be at least 1, got {width}")
    return image_shape


def _pixels(images: jax.Array, dtype: DTypeLike) -> jax.Array:
    if jnp.issubdtype(images.dtype, jnp.integer):
        return images.astype(dtype) / 255
    return images.astype(dtype)


def _embedding(x: jax.Array, normalize: bool) -> jax.Array:
    x = x.astype(jnp.float32)
    if not normalize:
        return x
    # The bound keeps the gradient of an embedding of zeros finite.
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))

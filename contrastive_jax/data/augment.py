"""Random changes to one image that keep its class; batches by `vmap` over keys and images.

Each is a function of a key and an image `[H, W, C]` to an image of the same shape and dtype. Pixels
that are integers are rounded and stay in [0, 255]. Floating ones are not bounded.
"""

import difflib
from collections.abc import Callable, Sequence
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np

Augment = Callable[[jax.Array, jax.Array], jax.Array]


def flip(key: jax.Array, image: jax.Array) -> jax.Array:
    """Mirrors an image `[H, W, C]` left to right, every other time.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from contrastive_jax.data import augment
      >>> images = jnp.arange(8.0).reshape(2, 2, 2, 1)
      >>> keys = jax.random.split(jax.random.key(0), 2)
      >>> jax.vmap(augment.flip)(keys, images).shape
      (2, 2, 2, 1)
    """
    chex.assert_rank(image, 3)
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


def shift(key: jax.Array, image: jax.Array, pixels: int = 1) -> jax.Array:
    """Moves an image `[H, W, C]` by up to `pixels` in either direction, filling with zeros.

    Raises:
      ValueError: if the image is not as wide.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from contrastive_jax.data import augment
      >>> image = jnp.ones((4, 4, 1))
      >>> augment.shift(jax.random.key(0), image, pixels=1).shape
      (4, 4, 1)
    """
    chex.assert_rank(image, 3)
    if pixels >= (side := min(image.shape[:2])):
        raise ValueError(f"shift must be below the {side} pixels of an image's side, got {pixels}")
    padded = jnp.pad(image, ((pixels, pixels), (pixels, pixels), (0, 0)))
    row, column = jax.random.randint(key, (2,), 0, 2 * pixels + 1)
    return jax.lax.dynamic_slice(padded, (row, column, 0), image.shape)


def crop(key: jax.Array, image: jax.Array, smallest: float = 0.5) -> jax.Array:
    """Cuts out a part of an image and scales it to the whole.

    Args:
      key: of this image.
      image: `[H, W, C]`.
      smallest: share of the area that is cut out at least, in (0, 1]. The aspect ratio changes by a
        factor from 3/4 to 4/3.

    Returns:
      The image.

    References:
      Szegedy et al., Going Deeper with Convolutions, 2015 <https://arxiv.org/abs/1409.4842>.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from contrastive_jax.data import augment
      >>> augment.crop(jax.random.key(0), jnp.ones((8, 8, 3), jnp.uint8)).shape
      (8, 8, 3)
    """
    chex.assert_rank(image, 3)
    area_key, ratio_key, place_key = jax.random.split(key, 3)
    side = jnp.sqrt(jax.random.uniform(area_key, minval=smallest, maxval=1.0))
    ratio = jnp.exp(jax.random.uniform(ratio_key, minval=np.log(3 / 4), maxval=np.log(4 / 3)) / 2)
    # Shares of height and width, which can not exceed the image.
    shares = jnp.minimum(side * jnp.stack([ratio, 1 / ratio]), 1.0)
    start = jax.random.uniform(place_key, (2,)) * (1 - shares)
    size = jnp.array(image.shape[:2], jnp.float32)
    scaled = jax.image.scale_and_translate(
        image.astype(jnp.float32),
        image.shape,
        (0, 1),
        1 / shares,
        -start * size / shares,
        method="linear",
    )
    return _restored(scaled, image)


def scale(key: jax.Array, image: jax.Array, factor: float = 1.2) -> jax.Array:
    """Scales an image about its centre by up to `factor`, up or down, filling with zeros.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from contrastive_jax.data import augment
      >>> augment.scale(jax.random.key(0), jnp.ones((8, 8, 1)), factor=1.1).shape
      (8, 8, 1)
    """
    chex.assert_rank(image, 3)
    by = jnp.exp(jax.random.uniform(key, minval=-1.0, maxval=1.0) * np.log(factor))
    return _mapped(image, jnp.eye(2) / by)


def rotate(key: jax.Array, image: jax.Array, degrees: float = 10.0) -> jax.Array:
    """Rotates an image about its centre by up to `degrees` either way, filling with zeros.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from contrastive_jax.data import augment
      >>> augment.rotate(jax.random.key(0), jnp.ones((8, 8, 1)), degrees=10).shape
      (8, 8, 1)
    """
    chex.assert_rank(image, 3)
    angle = jnp.deg2rad(jax.random.uniform(key, minval=-degrees, maxval=degrees))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return _mapped(image, jnp.array([[cos, -sin], [sin, cos]]))


def cutout(key: jax.Array, image: jax.Array, side: float = 0.25) -> jax.Array:
    """Sets a square of an image to zero, at a random place, which may reach beyond the border.

    Args:
      key: of this image.
      image: `[H, W, C]`.
      side: of the square, as a share of the shorter side of the image, in (0, 1].

    Returns:
      The image.

    References:
      DeVries and Taylor, Improved Regularization of Convolutional Neural Networks with Cutout, 2017
      <https://arxiv.org/abs/1708.04552>.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from contrastive_jax.data import augment
      >>> image = augment.cutout(jax.random.key(0), jnp.ones((8, 8, 1)), side=0.5)
      >>> bool(image.min() == 0)
      True
    """
    chex.assert_rank(image, 3)
    rows, columns = image.shape[:2]
    length = max(1, round(side * min(rows, columns)))
    centre = jax.random.randint(key, (2,), 0, jnp.array([rows, columns]))
    near_row, near_column = (
        (jnp.arange(size) >= c - length // 2) & (jnp.arange(size) < c - length // 2 + length)
        for size, c in zip((rows, columns), centre, strict=True)
    )
    inside = near_row[:, None] & near_column[None, :]
    return jnp.where(inside[..., None], jnp.zeros((), image.dtype), image)


def brightness(key: jax.Array, image: jax.Array, by: float = 0.2) -> jax.Array:
    """Multiplies all pixels by a factor in [1 - `by`, 1 + `by`].

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from contrastive_jax.data import augment
      >>> image = augment.brightness(jax.random.key(0), jnp.full((2, 2, 1), 100, jnp.uint8), by=0.2)
      >>> bool((image >= 80).all() & (image <= 120).all())
      True
    """
    return _blended(key, image, jnp.zeros(()), by)


def contrast(key: jax.Array, image: jax.Array, by: float = 0.2) -> jax.Array:
    """Multiplies the differences of pixels from their mean by a factor in [1 - `by`, 1 + `by`].

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from contrastive_jax.data import augment
      >>> image = augment.contrast(jax.random.key(0), jnp.array([[[0.0], [1.0]]]), by=0.2)
      >>> print(image.mean().round(3))
      0.5
    """
    return _blended(key, image, image.astype(jnp.float32).mean(), by)


def colour(key: jax.Array, image: jax.Array, by: float = 0.2) -> jax.Array:
    """Multiplies the differences of channels from their mean by a factor in [1 - `by`, 1 + `by`].

    This changes the saturation of an image of colours, and leaves an image of one channel as it is.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from contrastive_jax.data import augment
      >>> image = augment.colour(jax.random.key(0), jnp.array([[[0.0, 0.5, 1.0]]]), by=0.2)
      >>> print(image.mean().round(3))
      0.5
    """
    return _blended(key, image, image.astype(jnp.float32).mean(axis=-1, keepdims=True), by)


def chain(*changes: Augment) -> Augment:
    """Makes one change of several, in their order, each with a key of its own.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from contrastive_jax.data import augment
      >>> change = augment.chain(augment.rotate, augment.cutout)
      >>> change(jax.random.key(0), jnp.ones((8, 8, 1))).shape
      (8, 8, 1)
    """

    def change(key: jax.Array, image: jax.Array) -> jax.Array:
        keys = jax.random.split(key, len(changes))
        for own_key, one in zip(keys, changes, strict=True):
            image = one(own_key, image)
        return image

    return change


# The name of the amount of each change, and the range in which it must be.
_AMOUNTS: dict[str, tuple[Callable[..., jax.Array], str, float, float]] = {
    "crop": (crop, "smallest", 0.01, 1.0),
    "scale": (scale, "factor", 1.0, 4.0),
    "rotate": (rotate, "degrees", 0.0, 180.0),
    "brightness": (brightness, "by", 0.0, 1.0),
    "contrast": (contrast, "by", 0.0, 1.0),
    "colour": (colour, "by", 0.0, 1.0),
    "cutout": (cutout, "side", 0.01, 1.0),
}
NAMES = (*_AMOUNTS,)


def by_names(texts: Sequence[str]) -> list[Augment]:
    """Reads changes such as `rotate=15` or `cutout`.

    Args:
      texts: each the name of a change, and its amount where that is not the default.

    Returns:
      The changes, in the order of `NAMES`, which begins with geometry and ends with cut-out.

    Raises:
      ValueError: if there is no change of a name, one is named twice, or an amount is not a number
        in its range.

    Example:
      >>> from contrastive_jax.data import augment
      >>> [change.func.__name__ for change in augment.by_names(["cutout", "rotate=15"])]
      ['rotate', 'cutout']
    """
    changes: dict[str, Augment] = {}
    for text in texts:
        name, equals, amount = text.partition("=")
        if name not in _AMOUNTS:
            close = difflib.get_close_matches(name, NAMES, n=1)
            raise ValueError(
                f"there is no change of an image called {name!r}"
                + (f"; close to it is {close[0]}" if close else "")
                + f"; there are {', '.join(NAMES)}"
            )
        if name in changes:
            raise ValueError(f"{name} is named twice; leave one of them out")
        function, argument, low, high = _AMOUNTS[name]
        try:
            given = {argument: float(amount)} if equals else {}
        except ValueError:
            given = {argument: float("nan")}
        if not all(low <= value <= high for value in given.values()):
            raise ValueError(
                f"{name} takes a number from {low:g} to {high:g}, as {name}={high:g}, got {text!r}"
            )
        changes[name] = partial(function, **given)
    return [changes[name] for name in NAMES if name in changes]


def from_options(
    names: Sequence[str] = (), *, flip: bool = False, shift: int = 0
) -> Augment | None:
    """Makes one change of those of `by_names`, and then of a shift and a reflection.

    Args:
      names: as `by_names` takes them.
      flip: whether images are mirrored at random.
      shift: pixels by which images are moved at random, 0 for none.

    Returns:
      The change, None where there is none; errors are those of `by_names`.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from contrastive_jax.data import augment
      >>> change = augment.from_options(["rotate=15"], flip=True, shift=1)
      >>> change(jax.random.key(0), jnp.ones((8, 8, 1))).shape
      (8, 8, 1)
    """
    named = by_names(names)
    moved = partial(_moved_and_mirrored, mirror=flip, pixels=shift)
    if not named:
        return moved if flip or shift else None
    return chain(*named, *([moved] if flip or shift else []))


def _moved_and_mirrored(
    key: jax.Array, image: jax.Array, *, mirror: bool, pixels: int
) -> jax.Array:
    first, second = jax.random.split(key)
    image = shift(first, image, pixels) if pixels else image
    return flip(second, image) if mirror else image


def _mapped(image: jax.Array, inverse: jax.Array) -> jax.Array:
    """Maps an image linearly about its centre, from the inverse of the map, `[2, 2]`."""
    rows, columns = image.shape[:2]
    grid = jnp.stack(jnp.meshgrid(jnp.arange(rows), jnp.arange(columns), indexing="ij"))
    centre = jnp.array([rows - 1, columns - 1], jnp.float32)[:, None, None] / 2
    at = jnp.einsum("ij,jrc->irc", inverse, grid - centre, precision="highest") + centre

    def map_channel(channel: jax.Array) -> jax.Array:
        mapped: jax.Array = jax.scipy.ndimage.map_coordinates(channel, [at[0], at[1]], order=1)
        return mapped

    mapped = jax.vmap(map_channel, in_axes=-1, out_axes=-1)(image.astype(jnp.float32))
    return _restored(mapped, image)


def _blended(key: jax.Array, image: jax.Array, other: jax.Array, by: float) -> jax.Array:
    """Moves an image away from another one, or towards it, by a random factor."""
    chex.assert_rank(image, 3)
    factor = jax.random.uniform(key, minval=1 - by, maxval=1 + by)
    return _restored(other + factor * (image.astype(jnp.float32) - other), image)


def _restored(values: jax.Array, image: jax.Array) -> jax.Array:
    """Returns changed pixels in the dtype of the image."""
    if jnp.issubdtype(image.dtype, jnp.integer):
        values = jnp.clip(jnp.round(values), 0, 255)
    restored: jax.Array = values.astype(image.dtype)
    return restored

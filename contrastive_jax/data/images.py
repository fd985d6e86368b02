"""Pictures of encoded files as arrays of pixels."""

import io
import math
from collections.abc import Mapping, Sequence

import numpy as np

from contrastive_jax._extras import needs
from contrastive_jax.data.sizes import check_fits

with needs("train", __name__):
    from PIL import Image, ImageOps, UnidentifiedImageError


def decode_images(
    contents: Mapping[str, Sequence[bytes]], *, grey: bool, image_size: int | None
) -> tuple[dict[str, np.ndarray], int]:
    """Decodes pictures to pixels of 8 bits, all of one size.

    Pixels of 16 bits are scaled to 8. A picture with transparent pixels is laid on white.

    Args:
      contents: encoded pictures of each split by its name, at least one.
      grey: whether to give one channel, of grey, or three, of colours.
      image_size: side in pixels to which pictures are scaled; without it they keep their size.

    Returns:
      Pixels of each split, `uint8` `[N, H, W, 1 or 3]`, and how many pictures have transparent
      pixels.

    Raises:
      ValueError: if the pictures differ in size, take more memory than the machine has, or one of
        them is damaged or has pixels that are not integers.

    Example:
      >>> import numpy as np
      >>> from contrastive_jax.data.idx import png
      >>> from contrastive_jax.data.images import decode_images
      >>> picture = png(np.zeros((8, 8), np.uint8))
      >>> pixels, transparent = decode_images({"train": [picture]}, grey=True, image_size=None)
      >>> pixels["train"].shape, transparent
      ((1, 8, 8, 1), 0)
    """
    rows = [(split, row) for split, part in contents.items() for row in range(len(part))]
    if image_size:
        width = height = image_size
    else:
        width, height = _opened(contents, *rows[0]).size
    shape = (height, width, 1 if grey else 3)
    check_fits(
        len(rows) * math.prod(shape),
        f"{len(rows):,} images of {height} x {width} pixels",
        "give a smaller --image_size",
    )
    pixels = {split: np.empty((len(part), *shape), np.uint8) for split, part in contents.items()}
    transparent = 0
    for split, row in rows:
        image = _opened(contents, split, row)
        if not image_size and image.size != (width, height):
            sizes = sorted({_opened(contents, *each).size[::-1] for each in rows})
            raise ValueError(
                f"images differ in size, from {sizes[0]} to {sizes[-1]}; scale them to one size "
                "with --image_size"
            )
        try:
            pixels[split][row], seen_through = _pixels(
                image, grey, (height, width) if image_size else None
            )
        except Exception as error:  # Pillow raises SyntaxError, OSError, struct.error and others.
            raise ValueError(_unreadable(split, row, error)) from error
        transparent += seen_through
    return pixels, transparent


def read_picture(
    content: bytes, *, grey: bool, size: tuple[int, int] | None
) -> tuple[np.ndarray, bool]:
    """Decodes one picture to pixels of 8 bits, turned as its camera says.

    A JPEG that is much larger than `size` is decoded at a fraction of its size.

    Args:
      content: the encoded picture; of several frames the first.
      grey: whether to give one channel, of grey, or three, of colours.
      size: height and width in pixels to which the picture is scaled; without it the picture keeps
        its size.

    Returns:
      Pixels, `uint8` `[H, W, 1 or 3]`, and whether the picture has transparent pixels, which are
      laid on white.

    Raises:
      ValueError: if it is empty, has more pixels than Pillow's limit, or pixels that are not
        integers of 8 or 16 bits. Damaged pictures raise the errors of Pillow.

    Example:
      >>> import numpy as np
      >>> from contrastive_jax.data.idx import png
      >>> from contrastive_jax.data.images import read_picture
      >>> picture = png(np.zeros((4, 6), np.uint8))
      >>> pixels, transparent = read_picture(picture, grey=False, size=None)
      >>> pixels.shape, transparent
      ((4, 6, 3), False)
    """
    image = open_picture(content)
    if size:
        image.draft(None, (2 * max(size), 2 * max(size)))
    return _pixels(ImageOps.exif_transpose(image), grey, size)


def open_picture(content: bytes) -> Image.Image:
    """Opens a picture and reads its header alone.

    Raises:
      ValueError: if it is empty, or has more pixels than Pillow's limit. Damaged pictures raise the
        errors of Pillow.

    Example:
      >>> import numpy as np
      >>> from contrastive_jax.data.idx import png
      >>> from contrastive_jax.data.images import open_picture
      >>> open_picture(png(np.zeros((4, 6), np.uint8))).size
      (6, 4)
    """
    if not content:
        raise ValueError("it is empty")
    image = Image.open(io.BytesIO(content))
    limit = Image.MAX_IMAGE_PIXELS
    if limit and image.width * image.height > limit:
        raise ValueError(
            f"its {image.width} x {image.height} pixels are more than Pillow's limit of "
            f"{limit:,}, which guards against decompression bombs"
        )
    return image


def _pixels(
    image: Image.Image, grey: bool, size: tuple[int, int] | None
) -> tuple[np.ndarray, bool]:
    """Converts an opened picture to pixels of 8 bits, and says if it has transparent ones."""
    image, transparent = _on_white(_to_8_bits(image))
    image = image.convert("L" if grey else "RGB")
    if size:
        image = image.resize(size[::-1], Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(image.height, image.width, -1), transparent


def _opened(contents: Mapping[str, Sequence[bytes]], split: str, row: int) -> Image.Image:
    """Opens a picture and reads its header alone."""
    content = contents[split][row]
    try:
        return Image.open(io.BytesIO(content))
    except UnidentifiedImageError:
        cause = ValueError(f"it is no picture, and begins with {content[:8].hex() or 'nothing'}")
        raise ValueError(_unreadable(split, row, cause)) from None
    except Exception as error:
        raise ValueError(_unreadable(split, row, error)) from error


def _unreadable(split: str, row: int, error: Exception) -> str:
    cause = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
    return f"image {row} of split {split} can not be read: {cause}"


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scales grey pixels of 16 bits to 8; Pillow clips them. It reads colours of 16 bits as 8."""
    if image.mode == "F":
        raise ValueError("its pixels are floats, and must be integers of 8 or 16 bits")
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(
            f"its pixels are from {values.min()} to {values.max()}, and must be integers of 8 or "
            "16 bits"
        )
    return Image.fromarray(np.round(values / 257).astype(np.uint8))


def _on_white(image: Image.Image) -> tuple[Image.Image, bool]:
    """Lays a picture on white, and says if it has transparent pixels."""
    if image.mode not in ("LA", "PA", "RGBA") and "transparency" not in image.info:
        return image, False
    image = image.convert("RGBA")
    transparent = bool((np.asarray(image.getchannel("A")) < 255).any())
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image), transparent

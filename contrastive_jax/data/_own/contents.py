"""Images and vectors of data of one's own as arrays, with those left out that can not be used."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from contrastive_jax.data._own.rows import Item
from contrastive_jax.data._own.vectors import in_float32
from contrastive_jax.data.findings import Finding, finding


class Contents(NamedTuple):
    """Images or vectors, and which of the items they are."""

    array: np.ndarray
    """Images, `uint8` `[N, H, W, C]`, or vectors, `float32` `[N, D]`, in memory of their own."""
    rows: np.ndarray
    """The position of each among the items, `[N]`."""
    digests: list[bytes]
    """Digests of the encoded images, or of the arrays, N."""
    text: str
    """Size and channels, or width."""
    findings: list[Finding]


def read_contents(
    items: Sequence[Item] | np.ndarray,
    sources: Sequence[str],
    *,
    where: str,
    image_size: int | None,
    on_bad_input: str,
) -> Contents:
    """Decodes encoded images, and checks arrays.

    Raises:
      ImportError: if there are images to decode and Pillow is not installed.
      ValueError: if something can not be read or is not finite and `on_bad_input` is `error`, or an
        array is neither of images nor of vectors.
    """
    if not isinstance(items, np.ndarray):
        from contrastive_jax.data._own.decode import decode

        return decode(items, sources, where=where, image_size=image_size, on_bad_input=on_bad_input)
    if items.ndim in (3, 4):
        return _images(items, where)
    if image_size is not None:
        raise ValueError(
            f"--image_size has no effect on {where}, which holds vectors: leave it out"
        )
    return _vectors(items, sources, where, on_bad_input)


def digests_of(array: np.ndarray) -> list[bytes]:
    """Returns a digest of each row."""
    rows = np.ascontiguousarray(array)
    return [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows]


def move_rows(array: np.ndarray, order: np.ndarray) -> None:
    """Moves the rows of an array to another order in place, without a second copy of all.

    Args:
      array: `[N, ...]`, which is `array[order]` afterwards.
      order: a permutation of its rows, `[N]`.
    """
    sources = order.tolist()
    for start in range(len(sources)):
        if sources[start] < 0:  # moved as a part of an earlier cycle
            continue
        row, first = start, array[start].copy()
        while sources[row] != start:
            following = sources[row]
            array[row] = array[following]
            sources[row] = -1
            row = following
        array[row] = first
        sources[row] = -1


def _images(items: np.ndarray, where: str) -> Contents:
    images = items[..., None] if items.ndim == 3 else items
    if images.dtype != np.uint8:
        remedy = "scale images in [0, 1] with (255 * images).round().astype('uint8')"
        if images.dtype.kind in "iu":
            remedy = "give images.astype('uint8')"
        raise ValueError(
            f"the images of {where} are {images.dtype}, expected uint8 from 0 to 255; {remedy}"
        )
    if images.shape[3] not in (1, 3) or 0 in images.shape:
        raise ValueError(
            f"the images of {where} have the shape {list(items.shape)}, expected [N, H, W] or "
            "[N, H, W, C] with 1 or 3 channels; images.transpose(0, 2, 3, 1) moves channels last"
        )
    height, width, channels = images.shape[1:]
    text = f"images of {height} x {width} pixels, {'grey' if channels == 1 else 'RGB'}"
    # A copy, as the rows are moved in place later on.
    return Contents(images.copy(), np.arange(len(images)), digests_of(images), text, [])


def _vectors(items: np.ndarray, sources: Sequence[str], where: str, on_bad_input: str) -> Contents:
    if items.ndim != 2 or not items.shape[1]:
        raise ValueError(
            f"the vectors of {where} have the shape {list(items.shape)}, expected [N, D], one row "
            "for each example"
        )
    if items.dtype.kind not in "fiu":
        raise ValueError(f"the vectors of {where} are {items.dtype}, expected numbers")
    vectors, finite = in_float32(items)
    bad = [sources[k] for k in np.flatnonzero(~finite).tolist()]
    if bad and (on_bad_input == "error" or not finite.any()):
        shown = ", ".join(bad[:3]) + (", ..." if len(bad) > 3 else "")
        raise ValueError(
            f"{len(bad):,} of {len(items):,} vectors of {where} are not finite in float32, or "
            f"their lengths are not: {shown}; mend or remove them, or leave them out with "
            "--on_bad_input skip"
        )
    rows = np.flatnonzero(finite)
    if len(rows) > 1 and not np.any(vectors[rows] != vectors[rows[:1]]):
        raise ValueError(f"the vectors of {where} are all the same: give those of the examples")
    text = "vectors that are not finite or too long, which are left out"
    return Contents(
        vectors[rows],
        rows,
        digests_of(vectors[rows]),
        f"vectors of {items.shape[1]} entries",
        finding(text, bad),
    )

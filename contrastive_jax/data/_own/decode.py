"""Parallel decoding of images in files or bytes, with those that can not be read named."""

import hashlib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import numpy as np

from contrastive_jax._extras import needs
from contrastive_jax.data._own.contents import Contents
from contrastive_jax.data._own.rows import Item
from contrastive_jax.data.findings import Finding, finding
from contrastive_jax.data.images import open_picture, read_picture
from contrastive_jax.data.sizes import check_fits

with needs("train", __name__):
    from PIL import Image, UnidentifiedImageError
    from tqdm import tqdm

_LARGEST_DEFAULT = 64
# A progress bar for fewer images would be gone before it is read.
_WITH_A_BAR = 1000
# A convolutional network trains for hours on larger images.
_LARGE = 128
_GREY = ("1", "L", "LA", "La", "I", "F")
_ORIENTATION = 0x0112
_MISSING = "there is no such file"
T = TypeVar("T")


class Header(NamedTuple):
    """Size and mode of an image, read from its beginning, and a digest of all its bytes."""

    height: int
    width: int
    mode: str
    turned: bool
    """True if the camera says that the pixels are to be turned or mirrored."""
    digest: bytes


def decode(
    items: Sequence[Item],
    sources: Sequence[str],
    *,
    where: str,
    image_size: int | None,
    on_bad_input: str,
) -> Contents:
    """Decodes images to one size and one number of channels.

    Images are grey if all of them are, and RGB otherwise. Without `image_size` images of one size
    keep it, and others are scaled to squares of the median of their shorter sides, at most 64.

    Raises:
      ValueError: if images can not be read and `on_bad_input` is `error`, if none can be read, or
        if they take more memory than the machine has.
    """
    headers, bad = _split_bad(_each(lambda k: _header(items[k]), len(items), f"{where}: headers"))
    if len(bad) == len(items):
        raise ValueError(_unreadable(bad, sources, len(items), where))
    rows = np.array(sorted(headers), np.int64)
    shapes = {(one.height, one.width) for one in headers.values()}
    grey = all(_is_grey(one.mode) for one in headers.values())
    side = image_size or (_default_side(headers.values()) if len(shapes) > 1 else None)
    size = (side, side) if side else None
    shape = (*(size or min(shapes)), 1 if grey else 3)
    check_fits(
        len(rows) * int(np.prod(shape)),
        f"{len(rows):,} images of {shape[0]} x {shape[1]} pixels",
        "give a smaller --image_size",
    )
    images = np.empty((len(rows), *shape), np.uint8)

    def store(position: int) -> bool:
        content = _content(items[rows[position]])
        images[position], transparent = read_picture(content, grey=grey, size=size)
        return transparent

    transparent, broken = _split_bad(_each(store, len(rows), where))
    bad |= {int(rows[position]): reason for position, reason in broken.items()}
    if bad and (on_bad_input == "error" or len(bad) == len(items)):
        raise ValueError(_unreadable(bad, sources, len(items), where))
    unread = finding(
        "images that can not be read, which are left out",
        [f"{sources[k]} ({reason})" for k, reason in sorted(bad.items())],
    )
    if broken:
        # They must not decide the size and the channels of the others.
        good = np.array([row for position, row in enumerate(rows) if position not in broken])
        again = decode(
            [items[k] for k in good],
            [sources[k] for k in good],
            where=where,
            image_size=image_size,
            on_bad_input=on_bad_input,
        )
        return again._replace(rows=good[again.rows], findings=[*unread, *again.findings])
    laid_on_white = [sources[rows[k]] for k, seen_through in transparent.items() if seen_through]
    used = [headers[int(k)] for k in rows]
    names = [sources[k] for k in rows]
    findings = _findings(used, names, grey=grey, side=side, given=image_size is not None)
    findings += finding(
        "images with transparent pixels, which are laid on white",
        laid_on_white,
        warns=False,
    )
    return Contents(
        images,
        rows,
        [one.digest for one in used],
        _text(shape, shapes, side),
        unread + findings,
    )


def _text(shape: tuple[int, ...], shapes: set[tuple[int, int]], side: int | None) -> str:
    channels = "grey" if shape[2] == 1 else "RGB"
    text = f"images of {shape[0]} x {shape[1]} pixels, {channels}"
    if side and shapes != {(side, side)}:
        small, large = min(shapes), max(shapes)
        text += f", scaled from {small[0]} x {small[1]}"
        text += f" to {large[0]} x {large[1]}" if small != large else ""
    return text


def _findings(
    headers: list[Header], names: list[str], *, grey: bool, side: int | None, given: bool
) -> list[Finding]:
    shapes = {(one.height, one.width) for one in headers}
    return [
        *finding(
            f"sizes of images, which are all scaled to {side} x {side}"
            + ("" if given else " (--image_size takes another side)"),
            [f"{height} x {width}" for height, width in sorted(shapes)],
            number=len(shapes) if len(shapes) > 1 else 0,
            warns=False,
        ),
        *finding(
            f"images of more than {_LARGE} pixels a side, which train slowly (--image_size scales "
            "them)",
            [] if side or min(min(shapes)) <= _LARGE else names,
        ),
        *finding(
            "grey images, which become RGB as others have colours",
            [] if grey else [n for n, h in zip(names, headers, strict=True) if _is_grey(h.mode)],
            warns=False,
        ),
        *finding(
            "images of 16 bits, which are scaled to 8",
            [n for n, h in zip(names, headers, strict=True) if h.mode.startswith("I")],
            warns=False,
        ),
        *finding(
            "images that are turned as their camera says (EXIF orientation)",
            [n for n, h in zip(names, headers, strict=True) if h.turned],
            warns=False,
        ),
    ]


def _is_grey(mode: str) -> bool:
    return mode in _GREY or mode.startswith("I;")


def _default_side(headers: Iterable[Header]) -> int:
    sides = [min(one.height, one.width) for one in headers]
    return max(1, min(_LARGEST_DEFAULT, int(np.median(sides))))


def _each(function: Callable[[int], T], count: int, title: str) -> list[T | Exception]:
    """Maps a function over positions in threads, with a progress bar, and returns its errors too.

    Pillow decodes without holding the lock of the interpreter.
    """

    def attempt(position: int) -> T | Exception:
        try:
            return function(position)
        except Exception as error:  # Pillow raises SyntaxError, OSError, struct.error and others.
            return error

    # None shows a bar on a terminal alone.
    hidden = None if count >= _WITH_A_BAR else True
    with _quiet(), ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
        try:
            results = pool.map(attempt, range(count))
            bar = tqdm(results, title, total=count, unit="image", disable=hidden, leave=False)
            return list(bar)
        except BaseException:  # Ctrl-C leaves at once
            pool.shutdown(cancel_futures=True)
            raise


def _split_bad(results: list[Any]) -> tuple[dict[int, Any], dict[int, str]]:
    """Separates results by position from the reasons why others are missing."""
    good = {k: one for k, one in enumerate(results) if not isinstance(one, Exception)}
    bad = {k: _reason(one) for k, one in enumerate(results) if isinstance(one, Exception)}
    return good, bad


def _unreadable(bad: dict[int, str], sources: Sequence[str], count: int, where: str) -> str:
    first = [f"{sources[k]} ({bad[k]})" for k in sorted(bad)[:3]]
    remedy = "mend or remove them, or leave them out with --on_bad_input skip"
    if len(bad) == count:
        remedy = "none is left to train on"
    if len(bad) == count and {*bad.values()} == {_MISSING}:
        remedy += "; write paths relative to the folder of the table, with / between folders"
    return (
        f"{len(bad):,} of {count:,} images of {where} can not be read: {', '.join(first)}"
        f"{', ...' if len(bad) > len(first) else ''}; {remedy}"
    )


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return _MISSING
    if isinstance(error, UnidentifiedImageError):
        return "it is no image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences warnings of Pillow: its limit of pixels is an error here, and others say little."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def _content(item: Item) -> bytes:
    return item if isinstance(item, bytes) else item.read_bytes()


def _header(item: Item) -> Header:
    content = _content(item)
    image = open_picture(content)
    # A PNG may have it after the pixels, which are all decoded to look for it.
    has_one = image.format != "PNG" or b"eXIf" in content
    orientation = image.getexif().get(_ORIENTATION, 1) if has_one else 1
    height, width = image.height, image.width
    if orientation in (5, 6, 7, 8):
        height, width = width, height
    digest = hashlib.blake2b(content, digest_size=16).digest()
    return Header(height, width, image.mode, orientation in range(2, 9), digest)

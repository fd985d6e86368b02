"""Pictures of every depth, with and without transparency, become pixels of 8 bits."""

import io

import numpy as np
import pytest
from PIL import Image

from contrastive_jax.data.images import decode_images

GREY = np.array([[0, 128], [200, 255]], np.uint8)


def _file(image, kind="png"):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def _decoded(*files, grey=True, image_size=None):
    pixels, transparent = decode_images({"train": files}, grey=grey, image_size=image_size)
    return pixels["train"], transparent


def test_16_bits_are_scaled_and_not_clipped():
    exact = GREY.astype(int) * 257
    for values in (exact, exact + 100):
        file = _file(Image.fromarray(np.minimum(values, 65535).astype(np.uint16)))
        pixels, _ = _decoded(file)
        np.testing.assert_array_equal(pixels[0, ..., 0], GREY)
        np.testing.assert_array_equal(_decoded(file, grey=False)[0][0], np.dstack([GREY] * 3))
    assert _decoded(file, image_size=5)[0].shape == (1, 5, 5, 1)


def test_transparent_pixels_are_laid_on_white():
    alpha = np.array([[0, 255], [127, 255]], np.uint8)
    # Of a pixel v with opacity a, v * a + 255 * (1 - a) is seen.
    seen = np.round(GREY * (alpha / 255) + 255 * (1 - alpha / 255))
    two = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(alpha)])
    four = two.convert("RGBA")
    for image in (two, four):
        for grey in (True, False):
            pixels, transparent = _decoded(_file(image), grey=grey)
            assert transparent == 1
            np.testing.assert_allclose(pixels[0], np.broadcast_to(seen[..., None], pixels[0].shape))
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.info["transparency"] = 1
    pixels, transparent = _decoded(_file(palette), grey=False)
    np.testing.assert_array_equal(pixels[0, 0], [[10, 20, 30], [255] * 3])
    assert transparent == 1


def test_opaque_pictures_are_what_they_were():
    colours = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    opaque = np.dstack([colours, np.full((2, 2), 255, np.uint8)])
    for image in (Image.fromarray(colours), Image.fromarray(opaque)):
        pixels, transparent = _decoded(_file(image), grey=False)
        np.testing.assert_array_equal(pixels[0], colours)
        assert transparent == 0
        np.testing.assert_array_equal(
            _decoded(_file(image))[0][0, ..., 0], np.asarray(Image.fromarray(colours).convert("L"))
        )


def test_a_picture_that_is_no_picture_is_named():
    good = _file(Image.fromarray(GREY))
    for bad in (b"", b"not a picture", good[:40], good[:-24], good[:45] + b"\xff" + good[46:]):
        with pytest.raises(ValueError, match="image 1 of split train can not be read: ") as error:
            _decoded(good, bad)
        assert "object at" not in str(error.value)
    floats = Image.fromarray(GREY.astype(np.float32))
    with pytest.raises(ValueError, match=r"image 0 .* pixels are floats"):
        _decoded(_file(floats, "tiff"))
    wide = Image.fromarray(np.array([[70_000]], np.int32))
    with pytest.raises(ValueError, match=r"image 0 .* pixels are from 70000 to 70000"):
        _decoded(_file(wide, "tiff"))


def test_pictures_of_two_sizes_are_refused_across_splits():
    small, large = _file(Image.new("L", (3, 2))), _file(Image.new("L", (5, 4)))
    for contents in ({"train": [small, large]}, {"train": [small], "test": [large]}):
        with pytest.raises(ValueError, match=r"from \(2, 3\) to \(4, 5\); .* --image_size"):
            decode_images(contents, grey=True, image_size=None)
        assert decode_images(contents, grey=True, image_size=4)[0]["train"].shape[1:] == (4, 4, 1)


def test_sizes_beyond_the_memory_of_the_machine_are_refused():
    file = _file(Image.new("L", (3, 2)))
    with pytest.raises(ValueError, match=r"2 images of 10000000 x .* GiB .* --image_size"):
        decode_images({"train": [file], "test": [file]}, grey=False, image_size=10**7)

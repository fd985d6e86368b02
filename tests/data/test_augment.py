"""Random changes of images: what they keep, how far they go, and how they are named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contrastive_jax.data import augment

KEYS = jax.random.split(jax.random.key(0), 40)
GREY = np.random.default_rng(0).integers(0, 256, (12, 10, 1), np.uint8)
COLOURS = np.random.default_rng(1).integers(0, 256, (12, 10, 3), np.uint8)


def _changed(change, image):
    return np.asarray(jax.vmap(change, (0, None))(KEYS, jnp.asarray(image)))


@pytest.mark.parametrize("name", augment.NAMES)
@pytest.mark.parametrize("image", [GREY, COLOURS / np.float32(255)], ids=["uint8", "float32"])
def test_shape_and_dtype_stay_and_every_key_changes_the_image_anew(name, image):
    (change,) = augment.by_names([name])
    images = _changed(change, image)
    assert images.shape[1:] == image.shape
    assert images.dtype == image.dtype
    again = _changed(change, image)
    np.testing.assert_array_equal(images, again)
    if name != "colour" or image.shape[-1] == 3:
        assert len(np.unique(images, axis=0)) > 5


@pytest.mark.parametrize(
    ("name", "nothing"),
    [("crop", 1.0), ("scale", 1.0), ("rotate", 0.0), ("brightness", 0.0), ("contrast", 0.0)],
)
def test_the_least_amount_leaves_the_image(name, nothing):
    (change,) = augment.by_names([f"{name}={nothing}"])
    images = _changed(change, COLOURS)
    if name == "crop":  # the aspect ratio still changes
        assert np.mean(np.abs(images.astype(int) - COLOURS)) < np.mean(COLOURS)
        return
    np.testing.assert_array_equal(images, np.broadcast_to(COLOURS, images.shape))


def test_a_quarter_turn_is_that_of_numpy(monkeypatch):
    square = COLOURS[:10]
    monkeypatch.setattr(jax.random, "uniform", lambda key, **_: jnp.float32(90.0))
    turned = np.asarray(augment.rotate(KEYS[0], jnp.asarray(square)))
    ways = [np.rot90(square, k) for k in (1, 3)]
    assert any(np.array_equal(turned, way) for way in ways)


def test_a_crop_is_a_part_of_the_image():
    rows, columns = np.mgrid[0:1:40j, 0:1:40j].astype(np.float32)
    image = np.stack([rows, columns], axis=-1)
    for smallest in (0.25, 0.6):
        crops = _changed(lambda k, x, s=smallest: augment.crop(k, x, s), image)
        assert crops.min() > -0.02
        assert crops.max() < 1.02
        spans = crops[:, -1, -1] - crops[:, 0, 0]
        assert (spans < 1.02).all()
        area = spans.prod(axis=1)
        assert area.min() > 0.8 * smallest
        assert area.min() < smallest + 0.2


def test_cutout_zeroes_one_square():
    images = _changed(lambda k, x: augment.cutout(k, x, 0.5), np.ones((12, 10, 3), np.float32))
    zeros = (images == 0).all(axis=-1)
    assert zeros.sum(axis=(1, 2)).max() == 25
    assert zeros.any(axis=(1, 2)).all()
    for one in zeros:
        assert one.sum() == one.any(axis=1).sum() * one.any(axis=0).sum()


def test_pixels_move_within_the_amount_and_stay_pixels():
    bright = _changed(lambda k, x: augment.brightness(k, x, 0.5), GREY).astype(float)
    assert bright.max() == 255
    low, high = np.floor(0.5 * GREY), np.minimum(np.ceil(1.5 * GREY), 255)
    assert ((low <= bright) & (bright <= high)).all()
    flat = _changed(lambda k, x: augment.contrast(k, x, 1.0), GREY.astype(np.float32))
    np.testing.assert_allclose(flat.mean(axis=(1, 2, 3)), GREY.mean(), rtol=1e-4)
    vivid = _changed(lambda k, x: augment.colour(k, x, 1.0), COLOURS.astype(np.float32))
    np.testing.assert_allclose(
        vivid.mean(-1), np.broadcast_to(COLOURS.mean(-1), (40, 12, 10)), 1e-3
    )
    grey = _changed(augment.colour, GREY)
    np.testing.assert_array_equal(grey, np.broadcast_to(GREY, grey.shape))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["rotat=3"], "close to it is rotate; there are crop, scale"),
        (["rotate=200"], "from 0 to 180"),
        (["rotate=x"], "from 0 to 180"),
        (["crop", "crop=0.2"], "named twice"),
        (["flip"], "no change of an image called 'flip'"),
    ],
)
def test_names_that_are_none_are_explained(texts, message):
    with pytest.raises(ValueError, match=message):
        augment.by_names(texts)


def test_changes_by_name_come_before_a_shift_and_a_reflection():
    change = augment.from_options(["cutout=0.5"], flip=True, shift=2)
    first, last = jax.random.split(KEYS[0])
    shift_key, flip_key = jax.random.split(last)
    image = jnp.asarray(GREY[0] if GREY.ndim == 4 else GREY)
    want = augment.flip(
        flip_key, augment.shift(shift_key, augment.cutout(first, image, 0.5), pixels=2)
    )
    np.testing.assert_array_equal(change(KEYS[0], image), want)
    assert augment.from_options() is None
    flipped = augment.from_options(flip=True)(KEYS[1], image)
    np.testing.assert_array_equal(flipped, augment.flip(jax.random.split(KEYS[1])[1], image))


def test_a_shift_leaves_some_of_the_image():
    image = jnp.ones((4, 6, 1))
    assert augment.shift(KEYS[0], image, pixels=3).shape == (4, 6, 1)
    with pytest.raises(ValueError, match="shift must be below the 4 pixels of an image's side"):
        augment.shift(KEYS[0], image, pixels=4)

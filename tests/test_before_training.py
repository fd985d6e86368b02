"""Every program refuses data that can not be trained or evaluated before its first step."""

import numpy as np
import pytest

from contrastive_jax.data import Dataset, Examples
from contrastive_jax.train import check_images, loop, neighbourhoods, network
from contrastive_jax.train import grid as grids
from experiments import compare_losses, drlim, margin_ablation, options, search, train

SMALL = {"encoder": "mlp", "width": 4, "steps": 8, "batch_size": 8}
OPTIONS = {
    train: SMALL | {"log_every": 4, "validate_every": 4, "devices": 1},
    margin_ablation: SMALL | {"margins": (1.0,), "seeds": 1, "log_every": 4, "save_every": 4},
    search: SMALL | {"trials": 2, "seeds": 1, "log_every": 1, "space": ("margin=0.5:1",)},
    compare_losses: SMALL | {"losses": ("supcon",), "trials": 1, "seeds": 1},
    drlim: {"steps": 8, "batch_size": 8, "classes": ("a", "b"), "neighbours": 2},
}


def _examples(classes, side=8):
    classes = np.array(classes, np.int32)
    images = np.random.default_rng(0).integers(
        0, 256, (len(classes), side, side, 1), dtype=np.uint8
    )
    return Examples(images, classes)


def _dataset(**splits):
    whole = {
        "train": _examples([0, 1] * 4),
        "validation": _examples([0, 0, 1]),
        "test": _examples([0, 0, 1]),
    }
    return Dataset("toy", ("a", "b"), **whole | splits)


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs a program on a data set made up, and fails where it takes a step."""

    def step(*arguments, **options):
        pytest.fail("a step is taken")

    for module in (loop, neighbourhoods):
        monkeypatch.setattr(module, "windows", step)
    monkeypatch.setattr(grids, "train_grid", step)

    def run(program, data):
        monkeypatch.setattr(options, "load", lambda *arguments, **options: data)
        program.main(program.Config(runs=tmp_path / "runs", **OPTIONS[program]))

    return run


UNFIT = {
    "a test set of larger images": ({"test": _examples([0, 0, 1], side=12)}, "images of"),
    "a validation set of smaller images": (
        {"validation": _examples([0, 0, 1], side=4)},
        "images of",
    ),
    "one class in test": ({"test": _examples([1, 1, 1])}, "negative pairs need two classes"),
    "one class in validation": ({"validation": _examples([0, 0])}, "negative pairs need two"),
    "no class twice in test": ({"test": _examples([0, 1])}, "positive pairs need a class with two"),
    "no labels in test": ({"test": _examples([-1, -1, -1])}, "no example with a class"),
    "no labels in validation": ({"validation": _examples([-1, -1])}, "no example with a class"),
    "one class in train": ({"train": _examples([1] * 8)}, "negative pairs need two classes"),
    "no labels in train": ({"train": _examples([-1] * 8)}, "the train split of toy has no example"),
}
# The maps are learned and shown without classes, and of train and test alone.
FIT_FOR_MAPS = {
    "a validation set of smaller images",
    "one class in test",
    "one class in validation",
    "no class twice in test",
    "no labels in validation",
    "no labels in train",
    "one class in train",
}


@pytest.mark.parametrize(
    ("program", "unfit"),
    [
        (program, unfit)
        for program in OPTIONS
        for unfit in UNFIT
        if program is not drlim or unfit not in FIT_FOR_MAPS
    ],
)
def test_what_can_not_be_evaluated_is_found_before_the_first_step(run, tmp_path, program, unfit):
    splits, words = UNFIT[unfit]
    if program is drlim and unfit == "no labels in test":
        words = "a map needs 2 test images at least"
    with pytest.raises(ValueError, match=words):
        run(program, _dataset(**splits))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("program", OPTIONS)
def test_an_encoder_that_takes_no_such_images_is_found_before_the_first_step(
    run, tmp_path, monkeypatch, program
):
    tiny = {split: _examples([0, 0, 1, 1], side=4) for split in ("train", "validation", "test")}
    if program is not drlim:
        monkeypatch.setitem(OPTIONS[program], "encoder", "drlim")
    with pytest.raises(ValueError, match="8 x 8"):
        run(program, _dataset(**tiny))
    assert not (tmp_path / "runs").exists()


def test_images_that_an_encoder_fails_on_are_named():
    def encode(params, images):
        return images.reshape(len(images), -1) @ params

    images = np.zeros((5, 2, 2, 1), np.float32)
    check_images(network((encode, np.zeros((4, 3)))), train=images, test=images[:0])
    with pytest.raises(ValueError, match=r"does not take images of train, float32 \[2, 2, 1\]: "):
        check_images(network((encode, np.zeros((5, 3)))), train=images)
    with pytest.raises(ValueError, match=r"images of test are \[4, 1, 1\], and those of train \["):
        check_images(
            network((encode, np.zeros((4, 3)))), train=images, test=images.reshape(5, 4, 1, 1)
        )


def test_shifts_beyond_the_images_are_refused(run, monkeypatch):
    monkeypatch.setitem(OPTIONS[train], "shift", 8)
    with pytest.raises(ValueError, match="--shift must be below the 8 pixels of an image's side"):
        run(train, _dataset())


def test_classes_that_are_not_there_are_refused(run, monkeypatch):
    monkeypatch.setitem(OPTIONS[drlim], "classes", ("a", "b", "7"))
    with pytest.raises(ValueError, match="--classes 7 has no training images"):
        run(drlim, _dataset())


def test_the_smallest_test_set_that_can_be_evaluated_is(monkeypatch, tmp_path):
    monkeypatch.setattr(options, "load", lambda *arguments, **options: _dataset())
    folder = train.main(train.Config(runs=tmp_path, **OPTIONS[train]))
    assert (folder / "figures" / "gallery.png").exists()

"""Data that can not be evaluated are refused before anything is trained."""

import numpy as np
import pytest

from contrastive_jax.data import Dataset, Examples, check_evaluable
from experiments import compare_losses, margin_ablation, options, search, train

GOOD = (0, 0, 1, 1, 2)


def _data(size=4, **splits):
    def examples(classes, size=4):
        return Examples(np.zeros((len(classes), size, size, 1), np.uint8), np.ma.asarray(classes))

    parts = {name: examples(GOOD) for name in ("train", "validation", "test")}
    parts |= {name: examples(*given) for name, given in splits.items()}
    return Dataset("some set", ("a", "b", "c"), **parts)


def test_splits_with_pairs_of_both_kinds_pass():
    check_evaluable(_data())
    # One class is enough for positive pairs to train on.
    check_evaluable(_data(train=([0, 0],), test=([-1, 0, 0, 1],)))


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (np.zeros(0, int), "no example with a class"),
        ([-1, -1, -1], "all 3 are -1 or masked"),
        (np.ma.masked_all(3, int), "all 3 are -1 or masked"),
        ([1, 1, 1], "all 3 examples are of class 1"),
        ([1, 1, -1, -1], "all 2 examples are of class 1"),
        (np.ma.masked_array([1, 1, 0, 0], mask=[0, 0, 1, 1]), "all 2 examples are of class 1"),
        ([0, 1, 2], "all 3 classes have one"),
        ([0, 1, -1, -1], "all 2 classes have one"),
        ([0.0, 1.0], "float64"),
    ],
)
def test_splits_without_them_are_named(split, classes, message):
    with pytest.raises(ValueError, match=message) as error:
        check_evaluable(_data(**{split: (classes,)}))
    assert "\n" not in str(error.value)
    if "float" not in message:
        assert f"the {split} split of some set" in str(error.value)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_images_of_another_size_are_named(split):
    with pytest.raises(ValueError, match=rf"the {split} split .* \[5, 5, 1\], .* \[4, 4, 1\]"):
        check_evaluable(_data(**{split: (GOOD, 5)}))


def test_images_and_classes_must_be_as_many():
    data = _data()
    data = data._replace(test=Examples(data.test.images[:3], data.test.classes))
    with pytest.raises(ValueError, match="test split of some set has 3 images and 5 classes"):
        check_evaluable(data)
    with pytest.raises(ValueError, match="the train split of some set has no example"):
        check_evaluable(_data(train=([-1, -1],)))


@pytest.mark.parametrize(
    "program",
    [train, margin_ablation, search, compare_losses],
    ids=["train", "margin_ablation", "search", "compare_losses"],
)
def test_programs_tell_it_before_they_write_or_train(tmp_path, monkeypatch, program):
    data = _data(train=(np.repeat([0, 1], 8),), test=([2, 2, 2],))
    monkeypatch.setattr(options, "load", lambda *_, **__: data)
    with pytest.raises(ValueError, match="the test split of some set can not be evaluated"):
        program.main(program.Config(runs=tmp_path, name="run"))
    assert not list(tmp_path.iterdir())

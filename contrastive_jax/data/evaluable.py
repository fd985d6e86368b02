"""Checks that a data set can be trained on and evaluated, before any of it is done."""

import numpy as np

from contrastive_jax.data.datasets import Dataset, PairDataset
from contrastive_jax.data.labels import class_numbers
from contrastive_jax.data.pair_checks import check_given_pairs


def check_evaluable(data: Dataset | PairDataset) -> None:
    """Checks that the splits of a data set can be evaluated, before the first step is taken.

    Figures on validation and test are of positive and of negative pairs, so each needs two classes
    and two examples of one of them. Examples of class -1, and those whose class is masked, do not
    count. `index_by_class` checks the same of the examples that are trained on. Given pairs are
    checked by `check_given_pairs`.

    Args:
      data: from `load`, or made by hand.

    Raises:
      ValueError: for the first split that is wrong, saying what is wrong with it and the remedy:
        images and classes differ in number, images differ in size from those of train, there are no
        examples with a class, or (of validation and test) one class alone, or no class twice.

    Example:
      >>> from contrastive_jax.data import load
      >>> from contrastive_jax.data.evaluable import check_evaluable
      >>> check_evaluable(load("digits"))
    """
    if isinstance(data, PairDataset):
        check_given_pairs(data)
        return
    shape = data.train.images.shape[1:]
    for split in ("train", "validation", "test"):
        images, classes = getattr(data, split)[:2]
        name = f"the {split} split of {data.name}"
        if len(images) != len(classes):
            raise ValueError(f"{name} has {len(images)} images and {len(classes)} classes")
        class_ids = class_numbers(classes)
        present, counts = np.unique(class_ids[class_ids >= 0], return_counts=True)
        if not len(present):
            raise ValueError(
                f"{name} has no example with a class: all {len(class_ids)} are -1 or masked, as "
                "where labels are hidden; take another data set, or label some of them"
            )
        if images.shape[1:] != shape:
            raise ValueError(
                f"images of {name} are {list(images.shape[1:])}, and those of train {list(shape)}; "
                "scale them to one size with --image_size"
            )
        if split == "train":
            continue
        if len(present) == 1:
            raise ValueError(
                f"{name} can not be evaluated: negative pairs need two classes, and all "
                f"{counts[0]} examples are of class {present[0]}; add examples of another class, "
                "or where classes are split (--split classes), do not split them"
            )
        if counts.max() == 1:
            raise ValueError(
                f"{name} can not be evaluated: positive pairs need a class with two examples, and "
                f"all {len(present)} classes have one; add examples"
            )


def with_classes(data: Dataset | PairDataset) -> Dataset:
    """Returns a data set, having checked that it has classes and not given pairs.

    Args:
      data: from `load`, or made by hand.

    Raises:
      ValueError: if it has given pairs.

    Example:
      >>> from contrastive_jax.data import load
      >>> from contrastive_jax.data.evaluable import with_classes
      >>> with_classes(load("digits")).name
      'digits'
    """
    if isinstance(data, PairDataset):
        raise ValueError(
            f"{data.name} has given pairs, where classes are needed: give examples with classes"
        )
    return data

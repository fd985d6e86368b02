"""Objectives whose pairs are labelled by a function of two rows, and the attributes that it takes.

Batches are drawn by class as ever. Beside the classes they carry the attributes of their rows.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from contrastive_jax._engine.pair_labels import checked_attributes
from contrastive_jax.data.datasets import Dataset, Examples
from contrastive_jax.data.labels import class_numbers
from contrastive_jax.evaluation._labelled import check_both_labels, check_matches
from contrastive_jax.labels.types import PairLabels, as_pair_labels, with_mask
from contrastive_jax.train.objectives import Objective
from contrastive_jax.train.types import IndexedPairs


def with_labels(
    objective: Objective,
    labels: PairLabels | Callable[[Any, Any], Any],
    attributes: Callable[[Examples], Any] | None = None,
) -> Objective:
    """Returns an objective whose pairs are labelled by a function of two rows.

    Args:
      objective: of all pairs of a batch, of anchors, or of a function of a whole batch.
      labels: function of the attributes of two rows that returns 0 (similar), 1 (dissimilar) or -1
        (ignored), such as those of `contrastive_jax.labels`.
      attributes: function of the examples of a split to the attributes that `labels` takes: any
        tree of arrays with one entry for each example. By default those of the columns that
        `labels` names, as `same_class_other_group()` and `any_shared("tags")` do.

    Returns:
      The objective. Rows of class -1 are ignored, whatever their attributes are.

    Raises:
      ValueError: if the objective compares with proxies or pairs that are drawn or given, `labels`
        is no function of two rows, or it does not name its attributes and none are given.

    Example:
      >>> from contrastive_jax import labels, train
      >>> from contrastive_jax.train.labelled import with_labels
      >>> objective = with_labels(train.objective("supcon"), labels.same_class_other_group())
      >>> objective.labels is None
      False
    """
    if objective.separable or objective.batch is IndexedPairs:
        raise ValueError(
            "this objective is of pairs that are drawn by class or given with a label, and labels "
            'of two rows are of all pairs of a batch: take on="all_pairs", or leave labels out'
        )
    if not objective.takes_memory:
        raise ValueError(
            f"{objective.name or 'this objective'} compares examples with proxies of their "
            "classes, and labels of two rows are of pairs of examples: take a pair loss with "
            'on="all_pairs", or a loss of anchors such as supcon, or leave labels out'
        )
    rule = as_pair_labels(labels)
    attributes = attributes or rule.attributes_of
    if attributes is None:
        raise ValueError(
            "these labels do not say which attributes of the data they take: name a column, as "
            'any_shared("tags") does, or give attributes, a function of the examples of a split, '
            "such as "
            'attributes=lambda examples: examples.attributes["age"]'
        )
    masked = with_mask(rule)
    value = partial(objective.value, labels=masked)
    return objective._replace(value=value, labels=masked, attributes=attributes)


def labelled_rows(objective: Objective, examples: Examples) -> tuple[Any, Any]:
    """Returns the attributes of the examples of a split, and the mask of those that count.

    Args:
      objective: with labels of two rows.
      examples: of one split, N.

    Returns:
      A tree of arrays `[N, ...]`, and booleans `[N]`.

    Raises:
      AssertionError: if an attribute is no array with one number for each example.
      ValueError: if the split lacks the attributes.

    Example:
      >>> from contrastive_jax import data, labels, train
      >>> from contrastive_jax.train.labelled import labelled_rows
      >>> objective = train.objective("supcon", labels=labels.same_class())
      >>> classes, mask = labelled_rows(objective, data.load("digits").test)
      >>> classes.shape, bool(mask.all())
      ((450,), True)
    """
    assert objective.labels is not None
    assert objective.attributes is not None
    return rows_by(objective.labels, objective.attributes, examples)


def rows_by(
    labels: PairLabels, attributes_of: Callable[[Examples], Any], examples: Examples
) -> tuple[Any, Any]:
    """Returns the attributes of the examples of a split, and the mask of those that count.

    Args:
      labels: of two rows with a mask, as `labels.with_mask` makes them.
      attributes_of: function of the examples of a split to the attributes.
      examples: of one split, N.

    Returns:
      A tree of arrays `[N, ...]`, and booleans `[N]`.

    Raises:
      AssertionError: if an attribute is no array with one number for each example.
      ValueError: if the split lacks the attributes.

    Example:
      >>> from contrastive_jax import data, labels
      >>> from contrastive_jax.train.labelled import rows_by
      >>> rule = labels.same_class()
      >>> test = data.load("digits").test
      >>> classes, mask = rows_by(labels.with_mask(rule), rule.attributes_of, test)
      >>> classes.shape, bool(mask.all())
      ((450,), True)
    """
    try:
        attributes = attributes_of(examples)
    except KeyError as error:
        raise ValueError(
            f"the data has no column {error}; its columns are "
            f"{', '.join(examples.attributes) or 'none besides images and classes'}"
        ) from None
    mask = class_numbers(examples.classes) >= 0
    rows = (attributes, mask)
    checked: tuple[Any, Any] = checked_attributes(
        "attributes in place of ", rows, labels, mask.shape
    )[0]
    return checked


def rows_and_labels(objective: Objective | None, examples: Examples) -> tuple[Any, Any]:
    """Returns the rows of a split and the labels of two of them, as evaluation takes them.

    Args:
      objective: with or without labels of two rows; None is without.
      examples: of one split, N.

    Returns:
      The rows of `labelled_rows` and the labels of the objective; or the classes of the examples,
      `[N]`, and None.

    Raises:
      AssertionError: if an attribute is no array with one number for each example.
      ValueError: if the split lacks the attributes.

    Example:
      >>> from contrastive_jax import data, train
      >>> from contrastive_jax.train.labelled import rows_and_labels
      >>> classes, rule = rows_and_labels(train.objective("supcon"), data.load("digits").test)
      >>> classes.shape, rule
      ((450,), None)
    """
    if objective is None or objective.labels is None:
        return examples.classes, None
    return labelled_rows(objective, examples), objective.labels


def check_labels(
    objective: Objective, data: Dataset, splits: Sequence[str] = ("train", "validation")
) -> None:
    """Checks that the labels of an objective leave positive and negative pairs in the data.

    Of 4,096 examples or fewer all pairs are labelled; of more some examples are compared with all
    others, until there is a pair of either label, or 2^28 pairs have none, of which it warns.

    Args:
      objective: with or without labels of two rows.
      data: with these splits.
      splits: names of the splits to check.

    Raises:
      AssertionError: if an attribute is no array with one number for each example.
      ValueError: if a label has a wrong value, there are no positive or no negative pairs, or no
        query has a match in the gallery.

    Example:
      >>> from contrastive_jax import data, labels, train
      >>> from contrastive_jax.train.labelled import check_labels
      >>> objective = train.objective("supcon", labels=labels.same_class())
      >>> check_labels(objective, data.load("digits"))
    """
    if objective.labels is None:
        return
    for name in splits:
        examples: Examples = getattr(data, name)
        try:
            rows = labelled_rows(objective, examples)
            check_both_labels(objective.labels, rows, len(examples.classes))
            if examples.queries is not None:
                check_matches(objective.labels, rows, examples.queries)
        except (AssertionError, ValueError) as error:
            error.add_note(f"in the {name} split of {data.name}")
            raise

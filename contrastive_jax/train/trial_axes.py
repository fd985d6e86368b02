"""The axes of a grid: the values of each hyperparameter that is varied."""

import difflib
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from contrastive_jax.train.objectives import Objective, on_given_pairs
from contrastive_jax.train.optimizer import OPTIMIZER
from contrastive_jax.train.ranges import check_ranges
from contrastive_jax.train.trial_assembly import Variant
from contrastive_jax.train.types import AXIS, Batch, IndexedPairs, Pairs

# Entries of the embeddings on which hyperparameters are checked.
_WIDTH = 8


def values_of_axes(axes: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Returns the values of each axis, one or several of which are given.

    Args:
      axes: for each hyperparameter a number or a sequence of numbers.

    Raises:
      ValueError: if an axis has no value, the same value twice, one that is not a number, or one
        that is out of its range.

    Example:
      >>> from contrastive_jax.train.trial_axes import values_of_axes
      >>> values_of_axes({"margin": 1.0, "seed": range(2)})
      {'margin': [1.0], 'seed': [0, 1]}
    """
    lists = {}
    for name, given in axes.items():
        array = np.asarray(given if np.ndim(given) else [given])
        if array.ndim != 1 or array.dtype.kind not in "iuf" or not len(array):
            raise ValueError(f"{name} must be a number or a sequence of numbers, got {given!r:.80}")
        # As floats, so that a trial has one key whichever values it stands beside.
        lists[name] = (array if name == "seed" else array.astype(np.float64)).tolist()
        for value in lists[name]:
            check_ranges({name: value})
        if len({*lists[name]}) < len(array):
            raise ValueError(f"the values of {name} must differ, got {lists[name]}")
    return lists


def check_axes(axes: Iterable[str], possible: Iterable[str], loss: str) -> None:
    """Checks the names of axes of trainings.

    Args:
      axes: names of what is varied.
      possible: names of what can be.
      loss: with which trainings are, for the error.

    Raises:
      ValueError: for the first name that is not possible, with those that are close to it.

    Example:
      >>> from contrastive_jax.train.trial_axes import check_axes
      >>> check_axes(["margin"], ["margin", "learning_rate"], "contrastive")
    """
    possible = [*dict.fromkeys(possible)]
    for name in axes:
        if name not in possible:
            close = difflib.get_close_matches(name, possible, n=3)
            raise ValueError(
                f"{name} can not be an axis of trainings with {loss}; "
                + (f"close to it: {', '.join(close)}; " if close else "")
                + f"possible axes: {', '.join(possible)}"
            )


def combinations(axes: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Returns all combinations of the values of axes, with the last axis fastest.

    Example:
      >>> from contrastive_jax.train.trial_axes import combinations
      >>> combinations({"margin": [0.5], "seed": [0, 1]})
      [{'margin': 0.5, 'seed': 0}, {'margin': 0.5, 'seed': 1}]
    """
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def _with_hyperparameters(objective: Objective, **values: float) -> Objective:
    """Returns an objective with other hyperparameters, which its loss checks."""
    for name in values:
        if name not in objective.hyperparameters:
            raise ValueError(_unknown(name, objective.hyperparameters))
    made = objective._replace(hyperparameters={**objective.hyperparameters, **values})
    if values:
        _trace(made)
    return made


def _unknown(name: str, expected: Iterable[str]) -> str:
    """Returns the error of an axis that the objective does not have."""
    names = [*expected]
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {close[0]}?" if close else f", which has {', '.join(names) or 'none'}."
    return (
        f"{name} is no hyperparameter of the objective{hint} Where the loss has it with a default, "
        "give a function that makes the objective, such as "
        "functools.partial(train.objective, 'arcface')"
    )


def _trace(objective: Objective) -> None:
    """Traces the value on a small batch, where losses check hyperparameters that are concrete."""
    if objective.batch not in (None, IndexedPairs) or objective.labels is not None:
        return  # attributes of rows are those of the data
    classes = jnp.repeat(jnp.arange(2), 2)
    embeddings, count = jnp.zeros((4, _WIDTH)), objective.group
    batch: Any = Batch(embeddings, classes)
    if objective.separable:
        rows, own = jnp.zeros((count, 1)), jnp.arange(count)
        batch = Pairs(rows, rows, first_classes=own, second_classes=own)
        embeddings = jnp.zeros((2 * count, _WIDTH))
    elif objective.batch is IndexedPairs:
        batch = IndexedPairs(embeddings, classes, classes, classes)
    params = objective.init(2, _WIDTH, 0)

    def value(embeddings: jax.Array) -> Any:
        return objective.value(embeddings, batch, params, None, objective.hyperparameters)[0]

    jax.eval_shape(jax.vmap(value, axis_name=AXIS), embeddings[None])


def variants_of_axes(
    objective: Objective | Callable[..., Objective],
    values: Mapping[str, Sequence[Any]],
    *,
    given_pairs: bool = False,
    own_optimizer: bool = False,
) -> list[Variant]:
    """Makes the trials of all combinations of values.

    Args:
      objective: whose hyperparameters are varied, or a function that makes it from them.
      values: of each axis, with one for `seed`.
      given_pairs: whether the data are given pairs.
      own_optimizer: whether the optimizer is not the default one, so that its hyperparameters may
        have any name.

    Returns:
      The trials, with the last axis fastest.

    Raises:
      ValueError: if the loss does not take a value, or an axis is no hyperparameter of the
        objective or would change the structure of the program.

    Example:
      >>> from contrastive_jax import train
      >>> from contrastive_jax.train.trial_axes import variants_of_axes
      >>> values = {"margin": [0.5, 1.0], "learning_rate": [1e-3], "seed": [0]}
      >>> one, _ = variants_of_axes(train.objective("contrastive"), values)
      >>> one.objective.hyperparameters["margin"], one.optimizer
      (0.5, {'learning_rate': 0.001})
    """
    names = {*OPTIMIZER, "loss_learning_rate"}
    make: Callable[..., Objective]
    if isinstance(objective, Objective):
        if given_pairs:
            objective = on_given_pairs(objective)
        make = partial(_with_hyperparameters, objective)
        if own_optimizer:
            names |= {*values}
        names -= {*objective.hyperparameters}
    else:
        make = _pair_factory(objective) if given_pairs else objective
    loss = {name: column for name, column in values.items() if name not in {*names, "seed"}}
    check_structure(make, loss)
    objectives = {tuple(row.values()): make(**row) for row in combinations(loss)}
    return [
        Variant(
            row,
            row["seed"],
            objectives[tuple(row[name] for name in loss)],
            {name: value for name, value in row.items() if name in names and name != "seed"},
        )
        for row in combinations(values)
    ]


def _pair_factory(make: Callable[..., Objective]) -> Callable[..., Objective]:
    """Returns the function that makes objectives of given pairs."""
    return lambda **hyperparameters: on_given_pairs(make(**hyperparameters))


def check_structure(
    objective: Objective | Callable[..., Objective], values: Mapping[str, Iterable[float]]
) -> None:
    """Checks that trials which differ in these values can share a compiled step.

    They can if a value is a hyperparameter of the objective, or sets the parameters of its loss
    before the first step. The values of the optimizer and seeds are left out.

    Args:
      objective: the objective of the trials, whose hyperparameters need no check, or a function
        that makes it.
      values: the values of each hyperparameter.

    Raises:
      ValueError: if a value changes the structure of the program.

    Example:
      >>> from functools import partial
      >>> from contrastive_jax import train
      >>> from contrastive_jax.train.trial_axes import check_structure
      >>> check_structure(partial(train.objective, "supcon"), {"temperature": [0.1, 0.2]})
    """
    if isinstance(objective, Objective):
        return
    make = objective
    others = {*OPTIMIZER, "loss_learning_rate", "seed"}
    axes = {name: [*column] for name, column in values.items() if name not in others}
    first = {name: column[0] for name, column in axes.items()}
    for name, column in axes.items():
        one = make(**first)
        if len(column) == 1 or name in one.hyperparameters:
            continue
        other = make(**first | {name: column[-1]})
        begin, end = (jax.tree.leaves(made.init(2, _WIDTH, 0)) for made in (one, other))
        if all(np.array_equal(a, b) for a, b in zip(begin, end, strict=True)):
            raise ValueError(
                f"{name} has no effect, or is part of the structure of the program: leave it out, "
                "or train a grid for each value"
            )

"""The arguments of a training, which `fit` and a grid of trials share."""

import dataclasses
import hashlib
from typing import Any

import jax
import optax
from jax.typing import ArrayLike

from contrastive_jax.checks import check_seed
from contrastive_jax.data.augment import Augment
from contrastive_jax.data.datasets import Dataset, PairDataset
from contrastive_jax.train.objectives import Objective, on_given_pairs
from contrastive_jax.train.types import Weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """The arguments of `fit` that its steps depend on. See there for what each of them means.

    Raises:
      TypeError: if `data` or `objective` is not of its type.
      ValueError: if the seed is not in [0, 2^32), or the objective takes no given pairs.

    Example:
      >>> import contrastive_jax as cj
      >>> from contrastive_jax.train.training import Training
      >>> training = Training(
      ...     model=cj.models.Linear,
      ...     data=cj.data.load("digits"),
      ...     objective=cj.train.objective("supcon"),
      ...     steps=10,
      ... )
      >>> training.batch_size
      256
    """

    model: Any
    data: Dataset | PairDataset
    objective: Objective
    """That of given pairs, where the data has them."""
    steps: int
    seed: int = 0
    batch_size: int = 256
    batch_classes: int | None = None
    balanced: bool = True
    repeat: bool = True
    by_size: bool = False
    categories: ArrayLike | None = None
    views: int = 1
    optimizer: optax.GradientTransformation | None = None
    loss_optimizer: optax.GradientTransformation | None = None
    augment: Augment | None = None
    microbatches: int = 1
    remat: bool = True
    memory_size: int = 0
    max_age: int | None = None
    weights: Weights | None = None
    devices: int = 1
    """The number of devices over which a batch is spread."""

    def __post_init__(self) -> None:
        if not isinstance(self.data, Dataset | PairDataset):
            raise TypeError(f"data must come from contrastive_jax.data.load, got {self.data!r:.80}")
        if not isinstance(self.objective, Objective):
            raise TypeError(
                "objective must come from contrastive_jax.train.objective, got "
                f"{self.objective!r:.80}"
            )
        check_seed(self.seed)
        if isinstance(self.data, PairDataset):
            # A frozen dataclass has no other way to set a field.
            object.__setattr__(self, "objective", on_given_pairs(self.objective))


def recorded(training: Training, opt_state: Any) -> dict[str, Any]:
    """Returns the options of a training that a run records, to be resumed with the same.

    Args:
      training: the training.
      opt_state: of the optimizer, or its shapes. A digest of its structure, shapes and dtypes tells
        optimizers of different kinds apart.

    Returns:
      Options by name, JSON types. The seed and the hyperparameters of the objective are left out,
      as those of trials are recorded with each trial.

    Example:
      >>> import contrastive_jax as cj
      >>> import jax.numpy as jnp
      >>> from contrastive_jax.train.training import Training, recorded
      >>> digits, objective = cj.data.load("digits"), cj.train.objective("supcon")
      >>> training = Training(model=cj.models.Linear, data=digits, objective=objective, steps=10)
      >>> recorded(training, jnp.zeros(2))["objective"]
      ['supcon', 'cosine']
    """
    names = ["steps", "batch_size", "batch_classes", "balanced", "repeat", "by_size", "views"]
    names += ["microbatches", "memory_size", "max_age"]
    objective = training.objective
    leaves, structure = jax.tree.flatten(opt_state)
    text = f"{structure} {[(leaf.shape, str(leaf.dtype)) for leaf in leaves]}"
    return {name: getattr(training, name) for name in names} | {
        "categories": training.categories is not None,
        "objective": [objective.name, getattr(objective.distance, "__name__", None)],
        "labels": objective.labels is not None and (objective.labels.name or True),
        "optimizer": hashlib.sha256(text.encode()).hexdigest()[:16],
    }

"""Hyperparameters of a training that were chosen on validation, for each data set."""

from typing import Any

_RECIPES: dict[str, dict[str, Any]] = {
    "digits": {
        "steps": 1500,
        "flip": False,
        "shift": 1,
        "group": 32,
        "positive_fraction": 0.3,
        "weight_decay": 1.0,
    },
    "mnist": {
        "steps": 3000,
        "flip": False,
        "shift": 1,
        "group": 32,
        "positive_fraction": 0.05,
        "weight_decay": 0.1,
    },
    "fashion_mnist": {
        "steps": 20_000,
        "flip": True,
        "shift": 1,
        "group": 32,
        "positive_fraction": 0.05,
        "weight_decay": 0.1,
    },
}


def recipe(dataset: str | None = None) -> dict[str, Any]:
    """Returns hyperparameters that do well on a data set, with the contrastive loss of pairs.

    Args:
      dataset: the name of a data set; that of one without a recipe gives the recipe of
        `fashion_mnist`. None stands for data of one's own, which may be characters or signatures:
        images are not mirrored.

    Returns:
      `steps`; `flip` and `shift`, for `augment.from_options`; `group` and `positive_fraction`, for
      `objective`; and `weight_decay`, for `make_optimizers`.

    Example:
      >>> from contrastive_jax.train.recipes import recipe
      >>> recipe("digits")["steps"], recipe()["steps"]
      (1500, 2000)
    """
    if dataset is None:
        return _RECIPES["mnist"] | {"steps": 2000}
    return dict(_RECIPES.get(dataset, _RECIPES["fashion_mnist"]))

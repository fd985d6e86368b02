"""Optimizers of an encoder and of the parameters of its loss."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import optax
from jax.typing import ArrayLike

from contrastive_jax.train.types import Params

OPTIMIZER = ("learning_rate", "weight_decay", "clip_norm")
"""The hyperparameters of `make_optimizer` that a grid may vary."""


def make_optimizer(
    learning_rate: float,
    steps: int,
    *,
    warmup_steps: int = 0,
    weight_decay: float = 0.0,
    clip_norm: float = 1.0,
) -> optax.GradientTransformation:
    """Makes AdamW with linear warm-up, cosine decay to zero and clipping by the global norm.

    Args:
      learning_rate: its peak, reached after the warm-up.
      steps: number of steps, the warm-up included; the rate is 0 after the last.
      warmup_steps: steps over which the rate grows from 0.
      weight_decay: decoupled decay (Loshchilov and Hutter 2019), of matrices and kernels alone.
      clip_norm: largest norm of the gradient of all parameters together.

    Returns:
      The optimiser.

    Raises:
      ValueError: if the warm-up is not shorter than the training.

    References:
      Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019
      <https://arxiv.org/abs/1711.05101>.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax.train.optimizer import make_optimizer
      >>> optimizer = make_optimizer(1e-3, steps=100, warmup_steps=10)
      >>> state = optimizer.init({"weight": jnp.ones((2, 2))})
    """
    if not 0 <= warmup_steps < steps:
        raise ValueError(
            f"warmup_steps must be at least 0 and below steps, got {warmup_steps} of {steps}"
        )
    # Schedules of traced values, so that `optax.inject_hyperparams` can make arguments of them.
    schedule = optax.join_schedules(
        [
            optax.linear_schedule(0.0, learning_rate, warmup_steps),
            optax.cosine_decay_schedule(learning_rate, steps - warmup_steps),
        ],
        [warmup_steps],
    )
    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.adamw(
            schedule,
            weight_decay=weight_decay,
            mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
        ),
    )


def make_optimizers(
    steps: int,
    *,
    learning_rate: float = 4e-3,
    weight_decay: float = 0.1,
    clip_norm: float = 1.0,
    warmup: float = 0.02,
    loss_learning_rate: float = 1e-2,
    tunable: Iterable[str] = (),
) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
    """Makes the optimizers of an encoder and of the parameters of its loss.

    By default they are those of `fit`.

    Args:
      steps: of the training.
      learning_rate: of the encoder, as in `make_optimizer`.
      weight_decay: of the encoder.
      clip_norm: of the encoder.
      warmup: share of the steps over which learning rates grow.
      loss_learning_rate: of the parameters of the loss.
      tunable: names of the hyperparameters, of `OPTIMIZER` and `loss_learning_rate`, that are part
        of the state, by `optax.inject_hyperparams`: trials that differ in them share a compiled
        step.

    Returns:
      The optimizers of the encoder and of the loss.

    Raises:
      ValueError: if the warm-up is not shorter than the training.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from contrastive_jax.train.optimizer import make_optimizers
      >>> encoder, loss = make_optimizers(100, tunable=["learning_rate", "loss_learning_rate"])
      >>> print(optax.tree.get(encoder.init(jnp.ones(2)), "learning_rate"))
      0.004
      >>> print(optax.tree.get(loss.init(jnp.ones(2)), "loss_learning_rate"))
      0.01
    """
    names, static = {*tunable}, ["steps", "warmup_steps"]
    make: Callable[..., optax.GradientTransformation] = make_optimizer
    make_loss: Callable[..., optax.GradientTransformation] = _loss_optimizer
    if names & {*OPTIMIZER}:
        fixed = [name for name in OPTIMIZER if name not in names]
        make = optax.inject_hyperparams(make, static_args=(*static, *fixed))
    if "loss_learning_rate" in names:
        make_loss = optax.inject_hyperparams(make_loss, static_args=(*static,))
    warmup_steps = int(warmup * steps)
    encoder = make(
        learning_rate,
        steps,
        warmup_steps=warmup_steps,
        weight_decay=weight_decay,
        clip_norm=clip_norm,
    )
    return encoder, make_loss(loss_learning_rate, steps, warmup_steps=warmup_steps)


def _loss_optimizer(
    loss_learning_rate: float, steps: int, *, warmup_steps: int
) -> optax.GradientTransformation:
    return make_optimizer(loss_learning_rate, steps, warmup_steps=warmup_steps)


def tunable_optimizers(
    names: Iterable[str],
    steps: int,
    optimizer: optax.GradientTransformation | None,
    loss_optimizer: optax.GradientTransformation | None,
) -> tuple[optax.GradientTransformation | None, optax.GradientTransformation | None]:
    """Returns optimizers that have the hyperparameters which are varied in their state.

    Args:
      names: of all that is varied.
      steps: of the training.
      optimizer: of the encoder, None for the default one.
      loss_optimizer: of the loss, None for the default one.

    Returns:
      Those of the encoder and of the loss. One that is given, or of which nothing is varied, comes
      back as it is.

    Example:
      >>> from contrastive_jax.train.optimizer import tunable_optimizers
      >>> encoder, loss = tunable_optimizers(["margin", "learning_rate"], 100, None, None)
      >>> encoder is None, loss is None
      (False, True)
    """
    varied = {*names}
    encoder, loss = make_optimizers(steps, tunable=varied)
    if optimizer is None and varied & {*OPTIMIZER}:
        optimizer = encoder
    if loss_optimizer is None and "loss_learning_rate" in varied:
        loss_optimizer = loss
    return optimizer, loss_optimizer


def with_loss(
    encoder: optax.GradientTransformation, loss: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Combines two optimizers: one of the encoder, and one of the parameters of the loss.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from contrastive_jax.train.optimizer import with_loss
      >>> from contrastive_jax.train.types import Params
      >>> optimizer = with_loss(optax.sgd(0.1), optax.sgd(1.0))
      >>> params = Params(encoder=jnp.ones(2), loss=jnp.ones(2))
      >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
      >>> print(updates.encoder, updates.loss)
      [-0.1 -0.1] [-1. -1.]
    """
    return optax.partition(
        {"encoder": encoder, "loss": loss},
        lambda params: Params(
            jax.tree.map(lambda _: "encoder", params.encoder),
            jax.tree.map(lambda _: "loss", params.loss),
        ),
    )


def check_hyperparameter(opt_state: Any, name: str) -> None:
    """Checks that an optimizer has a hyperparameter in its state.

    Args:
      opt_state: of the optimizer, or its shapes.
      name: of the hyperparameter.

    Raises:
      ValueError: if it has not.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax.train.optimizer import check_hyperparameter, make_optimizers
      >>> state = make_optimizers(100, tunable=["learning_rate"])[0].init(jnp.ones(2))
      >>> check_hyperparameter(state, "learning_rate")
    """
    if not optax.tree.get_all_with_path(opt_state, name):
        raise ValueError(
            f"the optimizer has no hyperparameter {name} in its state: make it with "
            f"optax.inject_hyperparams, or leave {name} out"
        )


def with_hyperparameters(opt_state: Any, values: Mapping[str, ArrayLike], *, has_loss: bool) -> Any:
    """Returns the state of an optimizer with other hyperparameters.

    Args:
      opt_state: of an optimizer of `optax.inject_hyperparams`, or one that holds such.
      values: of the hyperparameters by name. Of a name that the optimizers of the encoder and of
        the loss both have, that of the encoder changes alone.
      has_loss: whether the optimizer is one of `with_loss`.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from contrastive_jax.train.optimizer import with_hyperparameters, with_loss
      >>> from contrastive_jax.train.types import Params
      >>> sgd = optax.inject_hyperparams(optax.sgd)
      >>> optimizer = with_loss(sgd(0.1), sgd(1.0))
      >>> params = Params(encoder=jnp.ones(2), loss=jnp.ones(2))
      >>> values = {"learning_rate": jnp.float32(0.5)}
      >>> state = with_hyperparameters(optimizer.init(params), values, has_loss=True)
      >>> updates, _ = optimizer.update(params, state, params)
      >>> print(updates.encoder, updates.loss)
      [-0.5 -0.5] [-1. -1.]
    """
    if not has_loss:
        return optax.tree.set(opt_state, **values)
    inner = dict(opt_state.inner_states)
    for name, value in values.items():
        owner = "encoder" if optax.tree.get_all_with_path(inner["encoder"], name) else "loss"
        inner[owner] = optax.tree.set(inner[owner], **{name: value})
    return opt_state._replace(inner_states=inner)

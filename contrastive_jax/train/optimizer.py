"""Optimizers of an encoder and of the parameters of its loss."""

from collections.abc import Sequence

import jax
import optax

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


def tunable_optimizer(steps: int, names: Sequence[str]) -> optax.GradientTransformation:
    """Makes the default optimizer of `fit` with some of its hyperparameters in its state.

    Trials that differ in them share a compiled step.

    Args:
      steps: of the training.
      names: of the hyperparameters, of `OPTIMIZER`.

    Returns:
      The optimizer, of `optax.inject_hyperparams`.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from contrastive_jax.train.optimizer import tunable_optimizer
      >>> state = tunable_optimizer(100, ["learning_rate"]).init(jnp.ones(2))
      >>> print(optax.tree.get(state, "learning_rate"))
      0.004
    """
    fixed = [name for name in OPTIMIZER if name not in names]
    make = optax.inject_hyperparams(make_optimizer, static_args=("steps", "warmup_steps", *fixed))
    return make(4e-3, steps, warmup_steps=int(0.02 * steps), weight_decay=0.1, clip_norm=1.0)


def tunable_loss_optimizer(steps: int, rate: float = 1e-2) -> optax.GradientTransformation:
    """Makes the default optimizer of a loss with `loss_learning_rate` in its state.

    Args:
      steps: of the training.
      rate: the learning rate at its peak, which trials may replace.

    Returns:
      The optimizer, of `optax.inject_hyperparams`.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from contrastive_jax.train.optimizer import tunable_loss_optimizer
      >>> state = tunable_loss_optimizer(100).init(jnp.ones(2))
      >>> print(optax.tree.get(state, "loss_learning_rate"))
      0.01
    """

    def make(
        loss_learning_rate: float, steps: int, *, warmup_steps: int
    ) -> optax.GradientTransformation:
        return make_optimizer(loss_learning_rate, steps, warmup_steps=warmup_steps)

    tunable = optax.inject_hyperparams(make, static_args=("steps", "warmup_steps"))
    return tunable(rate, steps, warmup_steps=int(0.02 * steps))


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

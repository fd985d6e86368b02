"""The distance that a pair loss measures, and others that its formula allows."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, Protocol, cast, overload

import jax

from contrastive_jax.checks import check_distance, check_pair_loss
from contrastive_jax.distances import euclidean, negative_dot

Distance = Callable[..., jax.Array]
P = ParamSpec("P")


class PairLoss(Protocol[P]):
    """A scalar function of a distance and a label that carries its distance.

    Called with a distance and a label (0 similar, 1 dissimilar), it returns the loss of that pair,
    a scalar; called with hyperparameters alone, it binds them and returns a loss that carries the
    same distance. `functools.partial` does the latter too.

        losses.sigmoid(0.3, 1, temperature=5.0)  # a scalar
        all_pairs_loss(x, classes, loss=losses.sigmoid(temperature=5.0))  # measures the cosine
    """

    distance: Distance
    """The distance of its paper, measured where the caller names none."""
    distances: tuple[Distance, ...] | None
    """The distances that fit its formula; None for every distance that is at least 0."""

    @overload
    def __call__(self, *arguments: P.args, **hyperparameters: P.kwargs) -> jax.Array: ...
    @overload
    def __call__(self, **hyperparameters: Any) -> functools.partial[jax.Array]: ...


def with_distance(
    distance: Distance, distances: tuple[Distance, ...] | None = None
) -> Callable[[Callable[P, jax.Array]], PairLoss[P]]:
    """Decorates a scalar function of a distance and a label so that it carries its distance.

    A function without this decorator is a loss too, of Euclidean distances.

    Args:
      distance: function of two vectors that the loss measures by default.
      distances: distances that fit its formula, `distance` among them; by default every distance
        that is at least 0, which leaves out `distances.negative_dot` alone.

    Returns:
      Decorator, from the function to a `PairLoss`.

    Raises:
      ValueError: if `distance` is not a function.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import distances, losses, pair_loss
      >>> @losses.with_distance(distances.cosine, (distances.cosine,))
      ... def hinge(distance, label, margin=0.5):
      ...     return jnp.where(label == 0, distance, jnp.maximum(0, margin - distance))
      >>> a, b = jnp.array([[2.0, 0.0]]), jnp.array([[3.0, 4.0]])
      >>> value = pair_loss(a, b, jnp.array([1]), loss=hinge(margin=0.6))[0]
      >>> print(f"{value:.1f}")  # the cosine distance is 0.4
      0.2
    """
    check_distance(distance)

    def decorated(function: Callable[P, jax.Array]) -> PairLoss[P]:
        check_pair_loss(function)
        carried = {"distance": distance, "distances": distances}

        @functools.wraps(function)
        def loss(*arguments: Any, **hyperparameters: Any) -> Any:
            if arguments or {"distance", "label"} & hyperparameters.keys():
                return function(*arguments, **hyperparameters)
            _check_names(function, hyperparameters)
            bound = functools.partial(loss, **hyperparameters)
            vars(bound).update(carried)
            return bound

        vars(loss).update(carried)
        return cast(PairLoss[P], loss)

    return decorated


def resolve_distance(loss: Callable[..., jax.Array], distance: Distance | None = None) -> Distance:
    """Returns the distance that a pair loss is to measure.

    Args:
      loss: scalar function `(distance, label)`; a `PairLoss`, or one whose hyperparameters are
        bound by `functools.partial`, carries its distance, and any other measures the Euclidean.
      distance: function of two vectors, or None for that of the loss.

    Returns:
      `distance` where it is given, or that of the loss.

    Raises:
      ValueError: if `loss` or `distance` is not a function, or the distance does not fit the loss.

    Example:
      >>> from contrastive_jax import losses
      >>> print(losses.resolve_distance(losses.sigmoid).__name__)
      cosine
      >>> print(losses.resolve_distance(losses.contrastive).__name__)
      euclidean
    """
    check_pair_loss(loss)
    if distance is not None:
        check_distance(distance)
    carrier = _carrier(loss)
    carries = hasattr(carrier, "distances")
    if distance is None:
        return cast(Distance, carrier.distance) if carries else euclidean
    if carries:
        _check_fits(carrier, distance)
    return distance


def is_fixed(loss: Callable[..., jax.Array]) -> bool:
    """Returns whether the formula of a pair loss fits the distances alone that it names.

    Args:
      loss: scalar function `(distance, label)`.

    Returns:
      False for one that takes every distance that is at least 0, or that carries none.
    """
    return getattr(_carrier(loss), "distances", None) is not None


def _carrier(loss: Callable[..., jax.Array]) -> Any:
    """Returns what carries the distance of a loss: itself, or the function that it binds."""
    return loss if hasattr(loss, "distances") else _unbound(loss)


def _check_names(function: Callable[..., Any], hyperparameters: dict[str, Any]) -> None:
    """Raises TypeError where a loss has no hyperparameter of a name."""
    try:
        inspect.signature(function).bind_partial(**hyperparameters)
    except TypeError as error:
        names = ", ".join([*inspect.signature(function).parameters][2:]) or "none"
        message = f"{function.__name__} {error}; its hyperparameters are {names}"
        raise TypeError(message) from None


def _check_fits(loss: Any, distance: Distance) -> None:
    """Raises ValueError where a distance is not one that the formula of a loss allows."""
    name = _name(loss)
    remedy = (
        f"leave distance out, or pass a function of your own that calls {name} to measure it all "
        "the same"
    )
    if loss.distances is None:
        if _unbound(distance) is negative_dot:
            raise ValueError(
                f"{name} expects a distance of at least 0, got negative_dot, which takes values "
                f"below 0; {remedy}"
            )
    # By identity, as a user's distance need not be comparable.
    elif not any(distance is one or _unbound(distance) is one for one in loss.distances):
        names = [_name(one) for one in loss.distances]
        expected = f"{', '.join(names[:-1])} or {names[-1]}" if names[1:] else names[0]
        raise ValueError(
            f"{name} expects the {expected} distance, for which its formula is written, got "
            f"{_name(distance)}; {remedy}"
        )


def _name(function: Any) -> str:
    """Returns the name of a loss or a distance for an error."""
    return str(getattr(_unbound(function), "__name__", function))


def _unbound(function: Any) -> Any:
    """Returns the function that `functools.partial` bound arguments of."""
    while isinstance(function, functools.partial):
        function = function.func
    return function

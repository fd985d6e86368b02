"""The distance that a loss carries, and the check that another fits its formula."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax

from contrastive_jax.distances import negative_dot

Distance = Callable[..., jax.Array]


def carrier(loss: Callable[..., jax.Array]) -> Any:
    """Returns the carrier of the distance of a loss: itself, or the function that it binds."""
    return loss if hasattr(loss, "distances") else _unbound(loss)


def check_names(function: Callable[..., Any], hyperparameters: dict[str, Any]) -> None:
    """Raises TypeError where a loss has no hyperparameter of a name."""
    try:
        inspect.signature(function).bind_partial(**hyperparameters)
    except TypeError as error:
        names = ", ".join([*inspect.signature(function).parameters][2:]) or "none"
        message = f"{function.__name__} {error}; its hyperparameters are {names}"
        raise TypeError(message) from None


def rule_of_pairs(loss: Callable[..., jax.Array]) -> Callable[[Distance], None] | None:
    """Returns the check that a distance fits a pair loss; None for a function that carries none.

    A loss that is made of a pair loss has it as its field `check_distance`.
    """
    own = carrier(loss)
    return functools.partial(check_fits, own) if hasattr(own, "distances") else None


def check_fits_statistics(loss: Any, distance: Distance) -> None:
    """Raises ValueError where a distance does not fit an `AnchorLoss` or a `TripletLoss`."""
    bare = distance
    if isinstance(distance, functools.partial) and not (distance.args or distance.keywords):
        bare = distance.func
    # By identity, as a user's distance need not be comparable.
    if loss.fixed and bare is not loss.distance:
        raise ValueError(
            f"the formula of this loss holds for {_name(loss.distance)} distances alone, got "
            f"{_name(distance)}: leave distance out"
        )
    if loss.check_distance is not None:
        loss.check_distance(distance)


def check_fits(loss: Any, distance: Distance) -> None:
    """Raises ValueError where a distance is not one that the formula of a pair loss allows."""
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

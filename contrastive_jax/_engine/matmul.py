"""Distances that follow from the inner product of two points, and the matrix products they take."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from contrastive_jax import distances
from contrastive_jax._directions import cosine_from_product


class Product(NamedTuple):
    """The formula by which a distance follows from a product of points."""

    points: Callable[..., jax.Array] | None
    """Maps vectors `[N, D]` and the parameters of the distance to points `[N, E]`; None if the
    vectors are the points."""
    to_distance: Callable[..., jax.Array]
    """Maps the squared distance of two points, or their product, to the distance; with `by_anchor`
    it takes the squared length of the first point too."""
    squared: bool
    """True if `to_distance` takes the squared distance."""
    on_sphere: bool = False
    """True if points have length 1, or 0 where a vector has no direction."""
    bends_at_antipodes: bool = False
    """True if the distance has a corner where the squared distance is 4."""
    linear: bool = False
    """True if points are linear in the vectors, by factors that are the parameters."""
    by_anchor: bool = False
    """True if the distance depends on the length of the first point."""
    additive: bool = False
    """True if the difference of two points is the point of the difference of the vectors."""
    rest: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    """Maps scaled vectors and their points to the part of the points that rounding removed,
    `[N, E]`."""
    scaled: Callable[[jax.Array], jax.Array] | None = None
    """Maps vectors to the scaled ones that `rest` takes."""

    @property
    def keeps_digits(self) -> bool:
        """True if the difference of two close points, with their rest, keeps its digits."""
        return self.points is None or self.rest is not None


def as_product(distance: Callable[..., jax.Array]) -> tuple[Product | None, dict[str, Any]]:
    """Recognises the distances of `contrastive_jax.distances` that come from a product.

    Args:
      distance: between two vectors; `mahalanobis` with its factor bound by `functools.partial`.

    Returns:
      The product, or None, and the bound parameters of the distance by name.
    """
    if isinstance(distance, functools.partial):
        factor_alone = not distance.args and [*distance.keywords] == ["factor"]
        if distance.func is distances.mahalanobis and factor_alone:
            return _MAHALANOBIS, dict(distance.keywords)
        return None, {}
    # By identity, as a user's distance need not be hashable.
    return next((product for one, product in _PRODUCTS if one is distance), None), {}


def is_symmetric(distance: Callable[..., jax.Array]) -> bool:
    """Returns True for a distance of this library that is the same in both orders."""
    return _is_of_library(distance, other_than=distances.signal_to_noise)


def has_finite_derivatives(distance: Callable[..., jax.Array]) -> bool:
    """Returns True for a distance of this library with finite derivatives at any finite vectors."""
    # That of vectors outside of the Poincare ball is NaN.
    return _is_of_library(distance, other_than=distances.poincare)


def is_translation_invariant(distance: Callable[..., jax.Array]) -> bool:
    """Returns True for a distance of this library that only depends on `a - b`."""
    distance = _without_bound(distance)
    return any(distance is one for one in _TRANSLATION_INVARIANT)


def _is_of_library(
    distance: Callable[..., jax.Array], *, other_than: Callable[..., jax.Array]
) -> bool:
    distance = _without_bound(distance)
    if distance is other_than:
        return False
    return getattr(distances, getattr(distance, "__name__", ""), None) is distance


def _without_bound(distance: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    while isinstance(distance, functools.partial):
        distance = distance.func
    return distance


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def matmul(precision: lax.PrecisionLike, a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns `a @ b`, whose gradients are computed by products that are fast on a CPU."""
    return jnp.matmul(a, b, precision=precision)


def _matmul_forward(precision: lax.PrecisionLike, a: jax.Array, b: jax.Array) -> Any:
    # Not by the function itself: the derivative of a gradient goes through here.
    return jnp.matmul(a, b, precision=precision), (a, b)


def _matmul_backward(precision: lax.PrecisionLike, operands: Any, cotangent: jax.Array) -> Any:
    a, b = operands
    by_a = jnp.matmul(cotangent, b.T, precision=precision)
    return by_a, matmul_over_rows(precision, a, cotangent)


matmul.defvjp(_matmul_forward, _matmul_backward)


def matmul_over_rows(precision: lax.PrecisionLike, a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns `a.T @ b` of a narrow matrix `a`, `[N, E]`, and a large one `b`, `[N, M]`."""
    # Without the barriers XLA leaves a as it is, or transposes b where the result is transposed: a
    # product over the rows of a large matrix takes a CPU up to three times as long.
    product = jnp.matmul(lax.optimization_barrier(a.T), b, precision=precision)
    return cast(jax.Array, lax.optimization_barrier(product))


@jax.custom_jvp
def _root(square: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.maximum(square, 0))


@_root.defjvp
def _root_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    root = _root(primals[0])
    # Selected last, so that an infinite derivative of a loss by a distance of 0 is left out.
    return root, jnp.where(root > 0, tangents[0] * (0.5 / jnp.where(root > 0, root, 1)), 0)


@jax.custom_jvp
def _arc(square: jax.Array) -> jax.Array:
    """Returns the angle that a chord of this squared length subtends on the unit sphere."""
    return 2 * jnp.arcsin(jnp.sqrt(jnp.clip(square, 0, 4)) / 2)


@_arc.defjvp
def _arc_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    (square,) = primals
    slope = square * (4 - square)
    return _arc(square), jnp.where(slope > 0, lax.rsqrt(slope), 0) * tangents[0]


def _scaled(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns vectors scaled by a power of two, one over the scaled lengths, and the power.

    They are `[N, D]`, `[N, 1]` and `[N, 1]`. The largest entry of a scaled vector is near 1. A
    vector without direction is 0.
    """
    size = jnp.max(jnp.abs(x), axis=1, keepdims=True)
    # As `distances.cosine` does: so short a vector counts as one without direction.
    none = size < 8 * math.sqrt(np.finfo(x.dtype).tiny)
    power = distances.inverse_power_of_two(size)
    scaled = jnp.where(none, 0, x * power)
    square = jnp.sum(jnp.square(scaled), axis=1, keepdims=True)
    return scaled, jnp.where(none, 0, lax.rsqrt(jnp.where(none, 1, square))), power


def _scaled_alone(x: jax.Array) -> jax.Array:
    return _scaled(x)[0]


@jax.custom_vjp
def _directions(x: jax.Array) -> jax.Array:
    scaled, inverse, _ = _scaled(x)
    return scaled * inverse


def _directions_forward(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    scaled, inverse, power = _scaled(x)
    return scaled * inverse, (scaled * inverse, inverse * power)


def _directions_backward(residuals: Any, cotangent: jax.Array) -> tuple[jax.Array]:
    directions, inverse = residuals
    # Twice, as the rounding of the first projection leaves a part along the direction.
    for _ in range(2):
        along = jnp.sum(directions * cotangent, axis=1, keepdims=True)
        cotangent = cotangent - along * directions
    return (inverse * cotangent,)


_directions.defvjp(_directions_forward, _directions_backward)


def _rest_of_directions(x: jax.Array, points: jax.Array) -> jax.Array:
    """Returns the difference of the exact directions and the rounded ones, to first order.

    Args:
      x: scaled vectors, `[N, D]`.
      points: their rounded directions.
    """
    half = (np.finfo(x.dtype).nmant + 1) // 2
    coarse = functools.partial(distances.rounded, bits=half - 1)
    length = jnp.sum(x * points, axis=1, keepdims=True)
    # The products of halves are exact, so that x - length * points is.
    a, b = coarse(length), coarse(points)
    across = ((x - a * b) - a * (points - b)) - (length - a) * points
    across /= jnp.where(length == 0, 1, length)
    grid = 2.0 ** -(np.finfo(x.dtype).nmant // 2)
    c = jnp.round(points / grid) * grid
    # Squares on a grid add up exactly.
    excess = (jnp.sum(c * c, axis=1) - 1) + jnp.sum((points + c) * (points - c), axis=1)
    along = jnp.sum(points * across, axis=1) + excess / 2
    return jnp.where(length == 0, 0, across - points * along[:, None])


def _signals(x: jax.Array) -> jax.Array:
    """Points whose squared length is the variance of the entries of a vector."""
    x = x - jnp.mean(x, axis=1, keepdims=True)
    # Once more, as the rounding of a mean far above the spread would stay in all entries.
    x = x - jnp.mean(x, axis=1, keepdims=True)
    return x / math.sqrt(x.shape[1])


def _mapped(x: jax.Array, factor: jax.Array) -> jax.Array:
    return jnp.matmul(x, factor.astype(x.dtype).T, precision=lax.Precision.HIGHEST)


_MAHALANOBIS = Product(_mapped, _root, squared=True, linear=True, additive=True)
_PRODUCTS: tuple[tuple[Callable[..., jax.Array], Product], ...] = (
    (distances.euclidean, Product(None, _root, squared=True)),
    (distances.squared_euclidean, Product(None, lambda square: square, squared=True)),
    (
        distances.cosine,
        Product(
            _directions,
            lambda square: square / 2,
            squared=True,
            on_sphere=True,
            rest=_rest_of_directions,
            scaled=_scaled_alone,
        ),
    ),
    (
        distances.angular,
        Product(_directions, _arc, squared=True, on_sphere=True, bends_at_antipodes=True),
    ),
    (
        distances.signal_to_noise,
        Product(_signals, distances.noise_over_signal, squared=True, by_anchor=True, additive=True),
    ),
    (distances.negative_dot, Product(None, lambda product: -product, squared=False)),
    (cosine_from_product, Product(_directions, lambda product: 1 - product, squared=False)),
)
_TRANSLATION_INVARIANT: tuple[Callable[..., jax.Array], ...] = (
    distances.chebyshev,
    distances.euclidean,
    distances.mahalanobis,
    distances.manhattan,
    distances.minkowski,
    distances.squared_euclidean,
)

"""Distances between two vectors, accurate near zero and with finite derivatives everywhere.

Each function takes two floating-point vectors of one shape `[D]` and dtype and returns a scalar;
`jax.vmap` makes the rest. Float16 and bfloat16 are computed and returned in float32. Sums are
element-wise rather than dot products, which some accelerators round to fewer bits.

A norm is not differentiable at zero. There its first and second derivatives are 0: of all
subgradients the shortest, and the one that leaves a coincident pair alone.
"""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from contrastive_jax._dtypes import widen
from contrastive_jax._traced_checks import check_traced

__all__ = [
    "angular",
    "chebyshev",
    "cosine",
    "euclidean",
    "mahalanobis",
    "manhattan",
    "minkowski",
    "negative_dot",
    "poincare",
    "signal_to_noise",
    "squared_euclidean",
]


def euclidean(a: ArrayLike, b: ArrayLike) -> jax.Array:
    r"""Euclidean distance.

    $$\sqrt{\sum_k (a_k - b_k)^2}$$

    The square neither overflows nor underflows on the way: vectors 1e-25 or 1e30 apart are as
    accurate as others.

    Args:
      a: vector, `[D]`.
      b: vector, `[D]`, of the same dtype.

    Returns:
      Distance in [0, inf). Its gradient is the unit vector along `a - b`. At `a = b` first and
      second derivatives are 0.

    Raises:
      AssertionError: if `a` and `b` are not floating-point vectors of one shape and dtype.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import distances
      >>> print(distances.euclidean(jnp.array([0.0, 0.0]), jnp.array([3.0, 4.0])))
      5.0
    """
    a, b = _vectors(a, b)
    return _norm(a - b)


def squared_euclidean(a: ArrayLike, b: ArrayLike) -> jax.Array:
    r"""Squared Euclidean distance.

    $$\sum_k (a_k - b_k)^2$$

    Args:
      a: vector, `[D]`.
      b: vector, `[D]`, of the same dtype.

    Returns:
      Squared distance in [0, inf), smooth everywhere.

    Raises:
      AssertionError: if `a` and `b` are not floating-point vectors of one shape and dtype.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import distances
      >>> print(distances.squared_euclidean(jnp.array([0.0, 0.0]), jnp.array([3.0, 4.0])))
      25.0
    """
    a, b = _vectors(a, b)
    return jnp.sum(jnp.square(a - b))


def cosine(a: ArrayLike, b: ArrayLike) -> jax.Array:
    r"""Cosine distance.

    $$1 - \frac{a \cdot b}{|a| |b|}$$

    Computed from the sine of the angle, as $\sin^2 / (1 + \cos)$ up to a right angle, so that the
    distance of almost parallel vectors is not what is left of 1 - 1.

    Args:
      a: vector, `[D]`.
      b: vector, `[D]`, of the same dtype.

    Returns:
      Distance in [0, 2], smooth wherever the vectors have a direction. A zero vector has none, nor
      has one whose entries lie below about 1e-18 (float32): it counts as perpendicular to
      everything, at distance 1 with derivatives 0.

    Raises:
      AssertionError: if `a` and `b` are not floating-point vectors of one shape and dtype.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import distances
      >>> print(distances.cosine(jnp.array([1.0, 0.0]), jnp.array([0.0, 2.0])))
      1.0
      >>> print(distances.cosine(jnp.array([1.0, 0.0]), jnp.array([-3.0, 0.0])))
      2.0
    """
    a, b = _vectors(a, b)
    a, b, size = _directions(a, b)
    aa, ab, bb = jnp.sum(a * a), jnp.sum(a * b), jnp.sum(b * b)
    p = _perpendicular(a, b)
    is_obtuse = ab < 0
    # The smaller of 1 - cos and 1 + cos. The absolute value has no derivative at a right angle.
    cos = jnp.where(is_obtuse, -ab, ab) / jnp.sqrt(aa * bb)
    small = jnp.sum(p * p) / (bb * (1 + cos))
    return jnp.where(size == 0, 1, jnp.where(is_obtuse, 2 - small, small))


def angular(a: ArrayLike, b: ArrayLike) -> jax.Array:
    r"""Angle between two vectors.

    $$\arccos \frac{a \cdot b}{|a| |b|}$$

    Computed from sine and cosine together, accurate at every angle.

    Args:
      a: vector, `[D]`.
      b: vector, `[D]`, of the same dtype.

    Returns:
      Angle in radians, in [0, pi]. Parallel and antiparallel vectors have derivatives 0. A zero
      vector, or one whose entries lie below about 1e-18 (float32), counts as perpendicular to
      everything: pi / 2 with derivatives 0.

    Raises:
      AssertionError: if `a` and `b` are not floating-point vectors of one shape and dtype.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import distances
      >>> right = distances.angular(jnp.array([1.0, 0.0]), jnp.array([0.0, 2.0]))
      >>> print(f"{right:.3f}")
      1.571
    """
    a, b = _vectors(a, b)
    a, b, size = _directions(a, b)
    p = _perpendicular(a, b)
    # Second derivatives grow with the inverse of this; before they overflow all are set to 0.
    flat = _norm(p) * jnp.minimum(size, 1) ** 2 < 64 * np.finfo(a.dtype).tiny
    p = jnp.where(flat, lax.stop_gradient(p), p)
    angle = jnp.arctan2(_norm(p) * _norm(a), jnp.sum(a * b))
    return jnp.where(size == 0, math.pi / 2, angle)


def manhattan(a: ArrayLike, b: ArrayLike) -> jax.Array:
    r"""Manhattan distance.

    $$\sum_k |a_k - b_k|$$

    Args:
      a: vector, `[D]`.
      b: vector, `[D]`, of the same dtype.

    Returns:
      Distance in [0, inf). The derivative by an entry in which `a` and `b` are equal is 0.

    Raises:
      AssertionError: if `a` and `b` are not floating-point vectors of one shape and dtype.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import distances
      >>> print(distances.manhattan(jnp.array([0.0, 0.0]), jnp.array([3.0, 4.0])))
      7.0
    """
    a, b = _vectors(a, b)
    return jnp.sum(_absolute(a - b))


def chebyshev(a: ArrayLike, b: ArrayLike) -> jax.Array:
    r"""Chebyshev distance.

    $$\max_k |a_k - b_k|$$

    Args:
      a: vector, `[D]`.
      b: vector, `[D]`, of the same dtype.

    Returns:
      Distance in [0, inf). Entries that share the maximum share its derivative equally; at `a = b`
      it is 0.

    Raises:
      AssertionError: if `a` and `b` are not floating-point vectors of one shape and dtype.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import distances
      >>> print(distances.chebyshev(jnp.array([0.0, 0.0]), jnp.array([3.0, 4.0])))
      4.0
    """
    a, b = _vectors(a, b)
    return jnp.max(_absolute(a - b))


def minkowski(a: ArrayLike, b: ArrayLike, order: float | jax.Array) -> jax.Array:
    r"""Minkowski distance.

    $$\big(\sum_k |a_k - b_k|^p\big)^{1 / p}$$

    with $p$ the order.

    Args:
      a: vector, `[D]`.
      b: vector, `[D]`, of the same dtype.
      order: at least 1 and finite; may be traced and differentiated.

    Returns:
      Distance in [0, inf). At `a = b` first and second derivatives are 0, as are those by an entry
      in which `a` and `b` are equal; for `1 < order < 2` the second one there is in truth infinite.

    Raises:
      AssertionError: if `a` and `b` are not floating-point vectors of one shape and dtype, or
        `order` is not a scalar.
      ValueError: if `order` is concrete and below 1, infinite or NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import distances
      >>> a, b = jnp.array([0.0, 0.0]), jnp.array([3.0, 4.0])
      >>> print(f"{distances.minkowski(a, b, 1.0):.3f} {distances.minkowski(a, b, 2.0):.3f}")
      7.000 5.000
    """
    a, b = _vectors(a, b)
    chex.assert_rank(order, 0)
    message = (
        "order must be at least 1 and finite, got {order}; the limit of infinite order is the "
        "chebyshev distance"
    )
    if isinstance(order, jax.core.Tracer):
        check_traced((order >= 1) & (order < math.inf), message, order=order)
    elif not 1 <= order < math.inf:
        raise ValueError(message.format(order=order))
    return _power_norm(a - b, jnp.asarray(order, a.dtype))


def mahalanobis(a: ArrayLike, b: ArrayLike, factor: ArrayLike) -> jax.Array:
    """Mahalanobis distance of a metric that is given by a factor of it.

    $$|F (a - b)|$$

    with $F$ the factor and $F^T F$ the metric.

    Args:
      a: vector, `[D]`.
      b: vector, `[D]`, of the same dtype.
      factor: `[K, D]`, the factor $F$ of the metric $F^T F$ (the inverse of a covariance, or
        learned).

    Returns:
      Distance in [0, inf). Where `factor (a - b)` is zero first and second derivatives are 0.

    Raises:
      AssertionError: if `a` and `b` are not floating-point vectors of one shape and dtype, or
        `factor` is not a floating-point matrix of as many columns.

    References:
      Weinberger and Saul, Distance Metric Learning for Large Margin Nearest Neighbor
      Classification, 2009 <https://www.jmlr.org/papers/v10/weinberger09a.html>, eq. 2.

    Example:
      >>> from functools import partial
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import distances
      >>> factor = jnp.array([[2.0, 0.0], [0.0, 1.0]])
      >>> distance = partial(distances.mahalanobis, factor=factor)
      >>> print(distance(jnp.array([0.0, 0.0]), jnp.array([2.0, 3.0])))
      5.0
    """
    a, b = _vectors(a, b)
    factor = jnp.asarray(factor)
    chex.assert_shape(factor, (None, a.shape[0]))
    chex.assert_type(factor, float, custom_message="factor must be floating")
    return _norm(jnp.matmul(widen(factor), a - b, precision=lax.Precision.HIGHEST))


def poincare(a: ArrayLike, b: ArrayLike) -> jax.Array:
    r"""Distance in the Poincare ball.

    $$2 \, \text{arsinh} \frac{|a - b|}{\sqrt{(1 - |a|^2) (1 - |b|^2)}}$$

    Equal to $\text{arcosh}(1 + 2 |a - b|^2 / ((1 - |a|^2) (1 - |b|^2)))$ of the paper, and accurate
    near zero, where that one is not, and near the boundary.

    Args:
      a: vector of norm below 1, `[D]`.
      b: vector of norm below 1, `[D]`, of the same dtype.

    Returns:
      Distance in [0, inf). At `a = b` first and second derivatives are 0. Traced vectors on the
      boundary or outside give NaN.

    Raises:
      AssertionError: if `a` and `b` are not floating-point vectors of one shape and dtype.
      ValueError: if the values are concrete and a norm is not below 1.

    References:
      Nickel and Kiela, Poincare Embeddings for Learning Hierarchical Representations, 2017
      <https://arxiv.org/abs/1705.08039>, eq. 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import distances
      >>> distance = distances.poincare(jnp.array([0.0, 0.0]), jnp.array([0.5, 0.0]))
      >>> print(f"{distance:.3f}")
      1.099
    """
    a, b = _vectors(a, b)
    gap_a, gap_b = _gap(a), _gap(b)
    for name, x, gap in (("a", a, gap_a), ("b", b, gap_b)):
        if not isinstance(gap, jax.core.Tracer) and jnp.isnan(gap):
            raise ValueError(
                f"{name} must lie strictly inside the unit ball, got a vector of norm {_norm(x)}"
            )
    return 2 * jnp.arcsinh(_norm(a - b) / (jnp.sqrt(gap_a) * jnp.sqrt(gap_b)))


def negative_dot(a: ArrayLike, b: ArrayLike) -> jax.Array:
    r"""Negative inner product: small where `a` and `b` agree, but not a metric.

    $$-\sum_k a_k b_k$$

    Args:
      a: vector, `[D]`.
      b: vector, `[D]`, of the same dtype.

    Returns:
      A number in (-inf, inf), smooth everywhere. On the unit sphere it is `cosine` less 1.

    Raises:
      AssertionError: if `a` and `b` are not floating-point vectors of one shape and dtype.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import distances
      >>> print(distances.negative_dot(jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0])))
      -11.0
    """
    a, b = _vectors(a, b)
    return -jnp.sum(a * b)


def signal_to_noise(a: ArrayLike, b: ArrayLike) -> jax.Array:
    r"""Inverse signal-to-noise ratio: not symmetric.

    $$\frac{\text{var}(a - b)}{\text{var}(a)}$$

    with variances over the entries.

    Args:
      a: anchor, the signal, `[D]`.
      b: what is compared with it, `[D]`, of the same dtype.

    Returns:
      A number in [0, 1 / eps], eps that of the dtype, beyond which no ratio can be told. An anchor
      whose entries are all equal carries no signal: 1 / eps, or 0 if `a - b` carries none either,
      with derivatives 0.

    Raises:
      AssertionError: if `a` and `b` are not floating-point vectors of one shape and dtype.

    References:
      Yuan et al., Signal-to-Noise Ratio: A Robust Distance Metric for Deep Metric Learning, 2019
      <https://arxiv.org/abs/1904.02616>, eq. 3.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import distances
      >>> a, b = jnp.array([1.0, -1.0]), jnp.array([2.0, -1.0])
      >>> print(f"{distances.signal_to_noise(a, b):.3f} {distances.signal_to_noise(b, a):.3f}")
      0.250 0.111
    """
    a, b = _vectors(a, b)
    return noise_over_signal(jnp.var(a - b), jnp.var(a))


def noise_over_signal(noise: jax.Array, signal: jax.Array) -> jax.Array:
    """The ratio of two variances, at most 1 / eps, and that where the second alone vanishes."""
    info = np.finfo(noise.dtype)
    # Of a smaller variance the square, by which the derivative divides, is no number any more.
    least = 8 * math.sqrt(info.tiny)
    beyond = (signal < least) | (noise * info.eps >= signal)
    ratio = jnp.where(beyond, 1 / info.eps, noise / jnp.where(beyond, 1, signal))
    return jnp.where(beyond & (noise < least), 0, ratio)


def _vectors(a: ArrayLike, b: ArrayLike) -> tuple[jax.Array, jax.Array]:
    a, b = jnp.asarray(a), jnp.asarray(b)
    chex.assert_rank([a, b], 1, custom_message="map a batch by jax.vmap")
    chex.assert_equal_shape([a, b])
    chex.assert_type([a, b], float, custom_message="a and b must be floating")
    chex.assert_type(b, a.dtype, custom_message="a and b must have one dtype")
    chex.assert_axis_dimension_gt(a, 0, 0)
    return widen(a), widen(b)


def _absolute(x: jax.Array) -> jax.Array:
    return jnp.sign(x) * x  # of which, unlike jnp.abs, the derivative at 0 is 0


def rounded(x: jax.Array, bits: int) -> jax.Array:
    """Rounds to `bits` bits after the leading one."""
    return lax.reduce_precision(x, np.finfo(x.dtype).nexp, bits)


def inverse_scale(x: jax.Array) -> jax.Array:
    """The power of two nearest to the inverse of the largest entry; 1 if that is 0.

    To multiply by it is exact. Dividing by its inverse would not be safe: XLA turns repeated
    division into division by a product, which may underflow.
    """
    return inverse_power_of_two(jnp.max(jnp.abs(x)))


def inverse_power_of_two(largest: jax.Array) -> jax.Array:
    """The power of two nearest to the inverse of numbers at least 0; 1 where they are 0."""
    tiny = float(np.finfo(largest.dtype).tiny)
    inverse = rounded(1 / jnp.clip(largest, tiny, 1 / tiny), 0)
    return lax.stop_gradient(jnp.where(largest == 0, 1, inverse))


@jax.custom_jvp
def _norm(x: jax.Array) -> jax.Array:
    inverse = inverse_scale(x)
    return _scaled_norm(x * inverse) / inverse


@_norm.defjvp
def _norm_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    (x,), (dx,) = primals, tangents
    norm = _norm(x)
    # Scaled, so that no power of the norm under- or overflows; divided last, so that backwards the
    # 2 |x| of a square is divided by |x| first and its gradient is 2 x to the last bit.
    unit = x * inverse_scale(x)
    slope = jnp.sum(unit * dx) / jnp.where(norm == 0, 1, _scaled_norm(unit))
    return norm, jnp.where(norm == 0, 0, slope)


@jax.custom_jvp
def _scaled_norm(x: jax.Array) -> jax.Array:
    """The norm of a vector whose largest entry is near 1, or of 0."""
    return jnp.sqrt(jnp.sum(jnp.square(x)))


@_scaled_norm.defjvp
def _scaled_norm_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    (x,), (dx,) = primals, tangents
    norm = _scaled_norm(x)
    slope = jnp.sum(x * dx) / jnp.where(norm == 0, 1, norm)
    return norm, jnp.where(norm == 0, 0, slope)


@jax.custom_jvp
def _power_norm(x: jax.Array, order: jax.Array) -> jax.Array:
    largest = jnp.max(jnp.abs(x))
    w = jnp.abs(x) / jnp.where(largest == 0, 1, largest)
    return largest * jnp.sum(w**order) ** (1 / order)


@_power_norm.defjvp
def _power_norm_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    (x, order), (dx, dorder) = primals, tangents
    norm = _power_norm(x, order)
    unit = x * inverse_scale(x)
    w = jnp.abs(unit) / jnp.where(norm == 0, 1, _power_norm(unit, order))
    zero = w == 0
    w = jnp.where(zero, 1, w)
    by_entry = jnp.where(zero, 0, jnp.sign(x) * w ** (order - 1))
    by_order = jnp.where(zero, 0, w**order * jnp.log(w))
    return norm, jnp.sum(by_entry * dx) + norm / order * jnp.sum(by_order) * dorder


def _directions(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Both vectors with entries of the order of 1, and the largest entry of the shorter one.

    Second derivatives of an angle grow with the inverse square of a vector: where that would
    overflow, a vector counts as zero. With a zero vector the result is ones and 0.
    """
    size = jnp.minimum(*(lax.stop_gradient(jnp.max(jnp.abs(x))) for x in (a, b)))
    zero = size < 8 * math.sqrt(np.finfo(a.dtype).tiny)
    a, b = (jnp.where(zero, 1, x * inverse_scale(x)) for x in (a, b))
    return a, b, jnp.where(zero, 0, size)


def _perpendicular(a: jax.Array, b: jax.Array) -> jax.Array:
    """The part of `b` that is perpendicular to `a`."""
    # That part of b - ratio a is the same for every ratio. For the one that makes this difference
    # small at a small angle it comes out accurate. Rounded to half the bits, the ratio and both
    # halves of a have products that are exact.
    half = (np.finfo(a.dtype).nmant - 1) // 2
    aa, ab, bb = jnp.sum(a * a), jnp.sum(a * b), jnp.sum(b * b)
    ratio = lax.stop_gradient(rounded(jnp.sign(ab) * jnp.sqrt(bb / aa), half))
    low = lax.stop_gradient(a - rounded(a, half))
    difference = (b - ratio * (a - low)) - ratio * low
    return difference - a * (jnp.sum(a * difference) / aa)


def _gap(x: jax.Array) -> jax.Array:
    """`1 - |x|^2`, accurate where `|x|` is close to 1; NaN unless it is positive."""
    # Squares of x rounded to a grid add up without rounding, so the 1 cancels against exact digits.
    grid = 2.0 ** -(np.finfo(x.dtype).nmant // 2)
    coarse = lax.stop_gradient(jnp.round(x / grid) * grid)
    gap = (1 - jnp.sum(coarse * coarse)) - jnp.sum((x + coarse) * (x - coarse))
    return jnp.where(gap > 0, gap, jnp.nan)

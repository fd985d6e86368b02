"""Distances against exact arithmetic, and their derivatives against closed forms."""

import functools
import itertools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contrastive_jax import distances

FACTOR = np.array([[1.0, -2.0, 0.5], [0.0, 0.25, 3.0]], np.float32)

DISTANCES = {
    "euclidean": distances.euclidean,
    "squared_euclidean": distances.squared_euclidean,
    "cosine": distances.cosine,
    "angular": distances.angular,
    "manhattan": distances.manhattan,
    "chebyshev": distances.chebyshev,
    "minkowski_1": functools.partial(distances.minkowski, order=1),
    "minkowski_1.5": functools.partial(distances.minkowski, order=1.5),
    "minkowski_3": functools.partial(distances.minkowski, order=3),
    "mahalanobis": functools.partial(distances.mahalanobis, factor=FACTOR),
    "poincare": distances.poincare,
    "negative_dot": distances.negative_dot,
}
each_distance = pytest.mark.parametrize("name", DISTANCES)


def dot(x, y):
    """Exact for floats, since these become fractions."""
    return sum((Fraction(p) * Fraction(q) for p, q in zip(x, y, strict=True)), Fraction(0))


def exact_angle(a, b):
    """Sine times, cosine times, and the product of the lengths."""
    aa, ab, bb = dot(a, a), dot(a, b), dot(b, b)
    return math.sqrt(aa * bb - ab * ab), float(ab), math.sqrt(aa * bb)


def exact_cosine(a, b):
    sine, cosine, product = exact_angle(a, b)
    if product == 0:
        return 1.0
    return sine**2 / product / (product + cosine) if cosine > 0 else 1 - cosine / product


def exact_angular(a, b):
    sine, cosine, product = exact_angle(a, b)
    return math.atan2(sine, cosine) if product else math.pi / 2


def exact_poincare(a, b):
    gaps = (1 - dot(a, a)) * (1 - dot(b, b))
    difference = [Fraction(p) - Fraction(q) for p, q in zip(a, b, strict=True)]
    return 2 * math.asinh(math.sqrt(dot(difference, difference) / gaps))


def power(order):
    return lambda a, b: float(np.sum(np.abs(np.subtract(a, b)) ** order) ** (1 / order))


REFERENCES = {
    "euclidean": lambda a, b: math.dist(a, b),
    "squared_euclidean": lambda a, b: math.dist(a, b) ** 2,
    "cosine": exact_cosine,
    "angular": exact_angular,
    "manhattan": power(1),
    "chebyshev": lambda a, b: float(np.max(np.abs(np.subtract(a, b)))),
    "minkowski_1": power(1),
    "minkowski_1.5": power(1.5),
    "minkowski_3": power(3),
    "mahalanobis": lambda a, b: math.hypot(*(FACTOR.astype(float) @ np.subtract(a, b))),
    "poincare": exact_poincare,
    "negative_dot": lambda a, b: -float(dot(a, b)),
}


def reference(name, a, b):
    """In float64 or better, of the values that the vectors hold."""
    return REFERENCES[name](np.asarray(a, np.float64).tolist(), np.asarray(b, np.float64).tolist())


@functools.cache
def compiled(name):
    return jax.jit(DISTANCES[name])


ORDERS = {
    "gradient": lambda f: jax.jacrev(f, (0, 1)),
    "forward over reverse": lambda f: jax.jacfwd(jax.jacrev(f, (0, 1)), (0, 1)),
    "reverse over reverse": lambda f: jax.jacrev(jax.jacrev(f, (0, 1)), (0, 1)),
    "forward over forward": lambda f: jax.jacfwd(jax.jacfwd(f, (0, 1)), (0, 1)),
}


def derivatives_of(name, orders=tuple(ORDERS)):
    """First derivatives `[2, D]`, and second ones `[2, 2, D, D]` in three ways."""
    # Compiled, so that it is traced once for all orders.
    orders = {order: ORDERS[order](compiled(name)) for order in orders}
    return lambda a, b: {
        order: jnp.stack([jnp.stack(x) if isinstance(x, tuple) else x for x in function(a, b)])
        for order, function in orders.items()
    }


@functools.cache
def derivatives(name):
    return jax.jit(derivatives_of(name))


sizes = st.floats(2.0**-10, 1024, width=32)
entries = sizes | sizes.map(lambda x: -x) | st.just(0.0)


@st.composite
def vector_pairs(draw):
    """Vectors that are unrelated, equal, opposite, stretched, almost equal, or zero."""
    a, other = (np.array(draw(st.tuples(*[entries] * 3)), np.float32) for _ in range(2))
    stretch = np.float32(draw(st.sampled_from([1, -1, 0, 0.7, -3.3])))
    offset = np.float32(draw(st.sampled_from([0, 1e-6, 1e-3, 1])))
    return a, stretch * a + offset * other


@each_distance
@settings(deadline=None, max_examples=100, derandomize=True)
@given(pair=vector_pairs())
def test_value(name, pair):
    a, b = pair
    if name == "poincare":  # into the ball, by a power of two
        a, b = (np.float32(x / 16384) for x in (a, b))
    expected = reference(name, a, b)
    # The sum of the terms, for the two functions in which terms of opposite sign cancel.
    terms = {"negative_dot": np.abs(a * b).sum(), "mahalanobis": np.abs(FACTOR * (a - b)).sum()}
    # An angle is known to 3e-11 radians; the derivative of the cosine is the sine.
    sine = math.sqrt(2 * expected) if name == "cosine" else 0
    absolute = {"angular": 3e-11, "cosine": 3e-11 * sine + 1e-20}
    np.testing.assert_allclose(
        compiled(name)(a, b),
        expected,
        rtol=1e-6,
        atol=absolute.get(name, 4e-7 * terms.get(name, 0)),
    )


@pytest.mark.parametrize("size", [1, 2, 300])
@pytest.mark.parametrize("name", [name for name in DISTANCES if name != "mahalanobis"])
def test_value_at_other_sizes(name, size):
    rng = np.random.default_rng(0)
    a, b = (np.float32(rng.uniform(-1, 1, size) / math.sqrt(size)) for _ in range(2))
    np.testing.assert_allclose(compiled(name)(a, b), reference(name, a, b), rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("exponent", range(-30, 31, 6))
@pytest.mark.parametrize("name", ["euclidean", "minkowski_1.5", "minkowski_3", "mahalanobis"])
def test_no_overflow_or_underflow(name, exponent):
    rng = np.random.default_rng(exponent + 100)
    a, b = (np.float32(10.0**exponent * rng.standard_normal(3)) for _ in range(2))
    np.testing.assert_allclose(compiled(name)(a, b), reference(name, a, b), rtol=1e-6)


@pytest.mark.parametrize("norm", [1, 100])
@pytest.mark.parametrize("separation", [1e-6, 1e-4, 1e-2, 1, 1.9])
def test_unit_and_raw_vectors(norm, separation):
    rng = np.random.default_rng(0)
    for _ in range(20):
        x, y = np.linalg.qr(rng.standard_normal((64, 2)))[0].T
        angle = 2 * math.asin(separation / 2)
        a = np.float32(norm * x)
        b = np.float32(norm * (math.cos(angle) * x + math.sin(angle) * y))
        for name in ("euclidean", "cosine", "angular"):
            np.testing.assert_allclose(compiled(name)(a, b), reference(name, a, b), rtol=1e-6)


def test_angle_of_vectors_of_different_length():
    rng = np.random.default_rng(0)
    for angle, length in itertools.product([1e-6, 1e-3, 1, 3, math.pi - 1e-3], [7e-9, 3.3, 2e9]):
        x, y = np.linalg.qr(rng.standard_normal((64, 2)))[0].T
        a = np.float32(x)
        b = np.float32(length * (math.cos(angle) * x + math.sin(angle) * y))
        for name, rtol in (("cosine", 3e-6), ("angular", 1e-6)):
            np.testing.assert_allclose(compiled(name)(a, b), reference(name, a, b), rtol=rtol)


@pytest.mark.parametrize("gap", [1e-2, 1e-4, 1e-5])
def test_poincare_near_the_boundary(gap):
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.standard_normal((2, 8))
        a, b = (np.float32((1 - gap) * x / np.linalg.norm(x)) for x in (a, b))
        np.testing.assert_allclose(
            compiled("poincare")(a, b), reference("poincare", a, b), rtol=1e-6
        )


@each_distance
def test_double_precision(name):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        for offset in (1e-8, 1e-3, 1):
            a = 0.3 * rng.uniform(-1, 1, 3)
            b = (1 + offset) * a + 0.3 * offset * rng.uniform(-1, 1, 3)
            value = jax.jit(DISTANCES[name])(a, b)
            assert value.dtype == np.float64
            np.testing.assert_allclose(value, reference(name, a, b), rtol=1e-12)


@each_distance
@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_low_precision_is_computed_in_float32(name, dtype):
    a, b = np.array([[300, -300, 12.5], [-300, 299, 300]], dtype)
    if name == "poincare":
        a, b = (x / np.asarray(1024, dtype) for x in (a, b))
    value, gradient = jax.jit(jax.value_and_grad(DISTANCES[name]))(a, b)
    assert value.dtype == np.float32
    assert gradient.dtype == dtype
    np.testing.assert_allclose(value, reference(name, a, b), rtol=1e-6)


def test_minkowski_of_large_order_is_chebyshev():
    a, b = np.float32([[3e20, -2e20, 0], [0, 1e20, 1e20]])
    np.testing.assert_allclose(distances.minkowski(a, b, 1000.0), 3e20 * 2**1e-3, rtol=1e-6)


@each_distance
def test_nan_is_passed_on(name):
    a, b = np.float32([[0.1, np.nan, 0.2], [0.3, 0.1, 0.0]])
    assert np.isnan(compiled(name)(a, b))
    assert np.isnan(compiled(name)(b, a))
    assert np.isnan(derivatives(name)(a, b)["gradient"]).any()


BASE = np.array([0.25, -0.5, 0.125], np.float32)
BASIS = np.eye(3, dtype=np.float32)
# Every point against every other: equal, opposite, parallel, zero, and closer than they are long.
POINTS = np.float32(
    [
        BASE,
        -BASE,
        2**-0.5 * BASE,
        0 * BASE,
        BASE + 1e-20 * BASIS[1],
        BASE * (1 + 1e-6),
        BASIS[0] / 2,
        BASIS[1] / 2,
        -BASIS[0] / 2 + 1e-30 * BASIS[2],
        *(BASIS[0] / 2 + s * BASIS[1] for s in (1e-10, 1e-20, 1e-30, 1e-37)),
        *(s * BASE for s in (1e-12, 1e-17, 1e-18, 1e-20, 1e-25, 1e-37)),
        1e-17 * BASIS[0] + 1e-30 * BASIS[1],
        0.57735 * np.ones(3),  # norm 1 - 5e-7
    ]
)
LARGE = np.float32([1e10 * BASE, 1e18 * BASE, 1e30 * BASE, 1e36 * BASIS[0]])


@each_distance
def test_derivatives_are_finite_everywhere(name):
    points = POINTS if name == "poincare" else np.concatenate([POINTS, LARGE])
    for a, b in itertools.product(points, repeat=2):
        for order, values in derivatives(name)(a, b).items():
            assert np.isfinite(values).all(), f"{order} at {a}, {b}: {values}"


EQUAL = [(BASE, BASE), (0 * BASE, 0 * BASE)]
SINGULAR = dict.fromkeys(DISTANCES, EQUAL) | {
    "squared_euclidean": [],
    "negative_dot": [],
    "cosine": [EQUAL[1], (BASE, 0 * BASE)],
    "angular": [*EQUAL, (BASE, 0 * BASE), (BASE, 2 * BASE), (BASE, -BASE)],
}


@pytest.mark.parametrize(("name", "a", "b"), [(n, *pair) for n in SINGULAR for pair in SINGULAR[n]])
def test_derivatives_at_singular_points_are_zero(name, a, b):
    for values in derivatives(name)(a, b).values():
        np.testing.assert_array_equal(values, 0)


@functools.cache
def numeric(name):
    """The distance of a stacked pair, in extended precision where the machine has it."""

    def function(x):
        a, b = x.reshape(2, -1)
        norm = lambda y: np.sqrt(np.sum(y * y))  # noqa: E731
        angle = 2 * np.arctan2(norm(a / norm(a) - b / norm(b)), norm(a / norm(a) + b / norm(b)))
        return {
            "euclidean": lambda: norm(a - b),
            "squared_euclidean": lambda: norm(a - b) ** 2,
            "cosine": lambda: 2 * np.sin(angle / 2) ** 2,
            "angular": lambda: angle,
            "manhattan": lambda: np.sum(abs(a - b)),
            "chebyshev": lambda: np.max(abs(a - b)),
            "minkowski_1": lambda: np.sum(abs(a - b)),
            "minkowski_1.5": lambda: np.sum(abs(a - b) ** 1.5) ** (1 / np.longdouble(1.5)),
            "minkowski_3": lambda: np.sum(abs(a - b) ** 3) ** (1 / np.longdouble(3)),
            "mahalanobis": lambda: norm(FACTOR.astype(np.longdouble) @ (a - b)),
            "poincare": lambda: (
                2 * np.arcsinh(norm(a - b) / np.sqrt((1 - norm(a) ** 2) * (1 - norm(b) ** 2)))
            ),
            "negative_dot": lambda: -np.sum(a * b),
        }[name]()

    return function


def together(name, *orders):
    derivatives = derivatives_of(name, orders)
    return lambda a, b: (compiled(name)(a, b), derivatives(a, b))


TRANSFORMED = {
    "jit": lambda name, a, b: (compiled(name)(a, b), derivatives(name)(a, b)),
    "vmap": lambda name, a, b: first(
        jax.jit(jax.vmap(together(name, "gradient", "forward over reverse")))(a[None], b[None])
    ),
    "pmap": lambda name, a, b: first(
        jax.pmap(together(name, "gradient"), devices=jax.devices()[:1])(a[None], b[None])
    ),
}


def first(tree):
    return jax.tree.map(lambda x: x[0], tree)


@functools.cache
def numeric_derivatives(name):
    """A generic point, and by central differences the value, gradient and Hessian there."""
    a, b = np.float32([[0.25, -0.5, 0.13], [0.47, 0.22, -0.38]])
    f, x, step = numeric(name), np.longdouble(np.concatenate([a, b])), np.eye(6) * 1e-4
    gradient = [(f(x + h) - f(x - h)) / 2e-4 for h in step]
    hessian = [
        [(f(x + h + k) - f(x + h - k) - f(x - h + k) + f(x - h - k)) / 4e-8 for k in step]
        for h in step
    ]
    return a, b, *(np.float64(value) for value in (f(x), gradient, hessian))


@each_distance
@pytest.mark.parametrize("transform", TRANSFORMED)
def test_derivatives_under_transformations(name, transform):
    a, b, value, gradient, hessian = numeric_derivatives(name)
    actual, actual_derivatives = TRANSFORMED[transform](name, a, b)
    np.testing.assert_allclose(actual, value, rtol=1e-6)
    for order, derivative in actual_derivatives.items():
        if order == "gradient":
            np.testing.assert_allclose(derivative.ravel(), gradient, rtol=1e-5, atol=1e-6)
        else:
            square = np.moveaxis(derivative, 2, 1).reshape(6, 6)
            np.testing.assert_allclose(square, hessian, rtol=1e-4, atol=1e-5, err_msg=order)


@pytest.mark.parametrize("scale", [1e-30, 1e-25, 1e-19, 1e-6, 1, 1e10, 1e30])
def test_euclidean_derivatives_at_any_scale(scale):
    """Gradient u and Hessian (I - u u^T) / D, of the unit vector u along a - b."""
    x = np.float32(scale * np.random.default_rng(0).standard_normal(3))
    distance = math.hypot(*x.tolist())
    u = x.astype(np.float64) / distance
    hessian = (np.eye(3) - np.outer(u, u)) / distance
    values = derivatives("euclidean")(x, np.zeros_like(x))
    np.testing.assert_allclose(values.pop("gradient"), [u, -u], rtol=1e-6)
    for value in values.values():
        expected = [[hessian, -hessian], [-hessian, hessian]]
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6 / distance)


@functools.cache
def gradient_of(distance):
    return jax.jit(jax.grad(distance))


@pytest.mark.parametrize("angle", [1e-6, 1e-4, 1e-2])
def test_gradients_of_small_angles(angle):
    rng = np.random.default_rng(0)
    x, y = np.linalg.qr(rng.standard_normal((16, 2)))[0].T
    a, b = np.float32(x), np.float32(math.cos(angle) * x + math.sin(angle) * y)
    exact_a = [Fraction(value) for value in a.tolist()]
    exact_b = [Fraction(value) for value in b.tolist()]
    aa, ab, bb = dot(exact_a, exact_a), dot(exact_a, exact_b), dot(exact_b, exact_b)
    # Of b the part perpendicular to a, along which the angle shrinks.
    p = [q - ab / aa * r for q, r in zip(exact_b, exact_a, strict=True)]
    cosine = [float(-v) / math.sqrt(aa * bb) for v in p]
    angular = [float(-v) / math.sqrt(dot(p, p) * aa) for v in p]
    for function, expected in ((distances.cosine, cosine), (distances.angular, angular)):
        actual = gradient_of(function)(a, b)
        error = np.linalg.norm(actual - np.array(expected)) / np.linalg.norm(expected)
        assert error < 2e-6


@functools.cache
def derivatives_by_order():
    first = jax.grad(distances.minkowski, 2)
    second = [outer(first, 2) for outer in (jax.grad, jax.jacfwd)]
    return jax.jit(lambda *arguments: [function(*arguments) for function in (first, *second)])


@pytest.mark.parametrize("order", [1.0, 1.5, 2.0, 7.0])
def test_minkowski_derivatives_by_order(order):
    a, b = np.float32([[0.3, -0.7, 0.4, 0.2], [0.1, 0.1, 0.4, -0.5]])

    def function(p):
        differences = np.abs(np.longdouble(a) - b)
        return np.sum(differences**p) ** (1 / p)

    step, p = 1e-4, np.longdouble(order)
    first = (function(p + step) - function(p - step)) / (2 * step)
    second = (function(p + step) - 2 * function(p) + function(p - step)) / step**2
    value, *values = derivatives_by_order()(a, b, order)
    np.testing.assert_allclose(value, float(first), rtol=1e-5)
    for value in values:
        np.testing.assert_allclose(value, float(second), rtol=1e-4)


def test_mahalanobis_learns_its_factor():
    a, b = np.float32([[1, 2, 3], [3, 2, 2]])
    # FACTOR (a - b) is (-1.5, 3); the gradient is that vector's unit times (a - b).
    unit = np.array([-1.5, 3.0]) / math.hypot(1.5, 3)
    gradient = jax.grad(distances.mahalanobis, 2)(a, b, FACTOR)
    np.testing.assert_allclose(gradient, np.outer(unit, [-2, 0, 1]), rtol=1e-6)
    singular = np.float32([[0, 1, 0]])
    hessian = jax.jit(jax.hessian(distances.mahalanobis, (0, 2)))
    for value in jax.tree.leaves(hessian(a, b, singular)):
        np.testing.assert_array_equal(value, 0)


@each_distance
@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32), "rank 2.*jax.vmap"),
        (np.zeros(3, np.float32), np.zeros(4, np.float32), r"\(3,\).*\(4,\)"),
        (np.zeros(3, np.int32), np.zeros(3, np.float32), "int32"),
        (np.zeros(3, np.float32), np.zeros(3, np.float16), "float16 but expected float32"),
        (np.zeros(0, np.float32), np.zeros(0, np.float32), "greater than '0'"),
    ],
)
def test_wrong_arrays(name, a, b, message):
    with pytest.raises(AssertionError, match=message):
        DISTANCES[name](a, b)
    with pytest.raises(AssertionError, match=message):
        jax.jit(DISTANCES[name])(a, b)


@pytest.mark.parametrize("order", [0.5, 0, -1, math.inf, math.nan, np.float64(0.9)])
def test_wrong_order(order):
    a = np.ones(3, np.float32)
    with pytest.raises(ValueError, match=r"order must be at least 1 and finite.*chebyshev"):
        distances.minkowski(a, a, order)


def test_wrong_factor():
    a = np.ones(3, np.float32)
    with pytest.raises(AssertionError, match=r"\(2, 4\)"):
        distances.mahalanobis(a, a, np.ones((2, 4), np.float32))
    with pytest.raises(AssertionError, match="int"):
        distances.mahalanobis(a, a, np.ones((2, 3), np.int32))


@pytest.mark.parametrize("outside", [[1.0, 0.0], [0.8, 0.7]])
def test_poincare_outside_the_ball(outside):
    inside, outside = np.float32([0.1, 0.2]), np.float32(outside)
    with pytest.raises(ValueError, match=r"a must lie strictly inside the unit ball.*norm 1"):
        distances.poincare(outside, inside)
    with pytest.raises(ValueError, match=r"b must lie strictly inside the unit ball.*norm 1"):
        distances.poincare(inside, outside)
    assert np.isnan(jax.jit(distances.poincare)(inside, outside))
    assert np.isnan(jax.jit(distances.poincare)(outside, outside))


@each_distance
def test_no_nan_on_the_way(name):
    with jax.debug_nans(True):
        for a, b in ((BASE, BASE), (BASE, 0 * BASE), (0 * BASE, 0 * BASE)):
            derivatives(name)(a, b)

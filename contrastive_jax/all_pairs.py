"""The loss over all pairs of a batch, in memory linear in its size."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, cast

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from contrastive_jax import autodiff
from contrastive_jax._compat import MARK_AS_VARYING
from contrastive_jax._engine import dense
from contrastive_jax.anchors import Stage, anchor_statistics, shared_total
from contrastive_jax.checks import (
    CheckedBefore,
    check_closed_over,
    check_distance,
    check_scalars,
    check_traced,
    check_values,
    checked_before,
)
from contrastive_jax.derivatives import differentiable
from contrastive_jax.dtypes import at_least_float32
from contrastive_jax.host_arrays import as_array, as_classes, column_hint
from contrastive_jax.losses import contrastive, resolve_distance
from contrastive_jax.products import as_product, is_symmetric
from contrastive_jax.program_cache import Unidentified, identified
from contrastive_jax.sharding import gathered
from contrastive_jax.statistics import total
from contrastive_jax.streaming import Side, kept, not_finite, pair_sums
from contrastive_jax.tiles import Parameters, Sums, Task, axes_of, varying
from contrastive_jax.widening import widen

Reduction = Literal["mean", "balanced", "active", "sum"]
Method = Literal["one_walk", "autodiff"]

_REDUCTIONS = ("mean", "balanced", "active", "sum")
_METHODS = ("one_walk", "autodiff")


def all_pairs_loss(
    embeddings: jax.Array,
    classes: jax.Array,
    references: jax.Array | None = None,
    reference_classes: jax.Array | None = None,
    *,
    loss: Callable[..., jax.Array] = contrastive,
    distance: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    margin: ArrayLike | None = None,
    reduction: Reduction = "mean",
    weights: jax.Array | None = None,
    reference_weights: jax.Array | None = None,
    axis_name: Any = None,
    exact: bool = True,
    tile: int | None = None,
    precision: lax.PrecisionLike = lax.Precision.HIGHEST,
    method: Method = "one_walk",
) -> jax.Array:
    """Loss over all pairs of a batch, or over all pairs between a batch and references.

    Two rows are a similar pair (label 0) if they are of one class, and a dissimilar one (label 1)
    if not. In one set a row is not paired with itself, and every pair counts in both orders.

    *Memory.* Up to 1,024 rows a side on one device (4,096 on a GPU) the matrix of all pairs is
    computed at once. Beyond, or where a tile is given, it is never built: the pairs are walked tile
    by tile, loss and gradient come out of one walk, and `loss` and `distance` are differentiated
    inside it.

    *Precision.* Euclidean, squared Euclidean, cosine, angular, Mahalanobis distance, negative dot
    product and signal-to-noise ratio of `contrastive_jax.distances` use matrix products. The
    distance of two points that lie close would lose digits there, so close pairs are done again:
    pairs of one class by a product of their differences from one member of it, the remaining ones
    by the distance itself.
    The relative error of a distance stays below 1e-4 in float32, from 1e-6 to 2 on unit vectors and
    likewise on longer ones. The squares of the entries must neither over- nor underflow: norms lie
    within 1e-15 and 1e15 in float32. Any other distance is computed pair by pair, as `pair_loss`
    does, and so are pairs of different classes that are closer than a twentieth of what the batch
    extends to (with the signal-to-noise ratio, of the length of the embeddings): where most are,
    the walk takes as long as for such a distance.

    *Derivatives.* Gradients, by embeddings, references, the margin and whatever `loss` and
    `distance` close over, are exact; weights are constants. Forward mode and second derivatives, in
    either order, are exact too: the gradient is differentiated as `method="autodiff"` computes it.
    With an axis name the loss can be differentiated once, in reverse mode.

    *Eager calls.* Called outside of `jax.jit`, the loss is compiled once for each shape and each
    code and values of `loss` and `distance`. One that closes over an array or an object is compiled
    at every call.

    *Devices.* With an axis name, of `jax.pmap`, `jax.shard_map` or `jax.vmap`, each device passes
    its own rows and the pairs are those of all rows together, which visit each other in a ring. The
    loss returned is that of the global batch, the same on every device, and its gradient by a
    device's rows is that of the global loss: differentiate inside the mapped function.

    *Shared parameters.* What the devices share, such as the parameters of an encoder, proxies or a
    learned margin, gets a gradient from each device, the part of its own rows. Under `jax.pmap`,
    `jax.vmap` and `jax.shard_map` with `check_vma=False` add these parts up (`jax.lax.psum`), do
    not average them. Under `jax.shard_map` with its default `check_vma=True` JAX has added them up
    already: adding them again gives n times the gradient. What `loss` or `distance` closes over
    must be marked as varying there (`jax.lax.pcast`; `jax.lax.pvary` before jax 0.8.2).

    *Sharded arrays.* Without an axis name, arrays under `jax.jit` may be spread over a mesh of
    `jax.make_mesh`, along automatic axes or, from jax 0.10 on, explicit ones. Their rows are
    gathered: every device holds all of them and computes the whole loss. Along explicit axes the
    gradient comes back spread as the rows were. An axis name under `jax.shard_map` over the same
    mesh shares memory and work.

    Args:
      embeddings: `[B, D]`, floating.
      classes: `[B]`, integers from 0; rows of class -1 are ignored, whatever they hold.
      references: a second set, `[R, D]` of the same dtype: proxies, a memory bank.
      reference_classes: `[R]`.
      loss: scalar function `(distance, label)`, or `(distance, label, margin)` where a margin is
        given.
      distance: function of two vectors `[D]` to a scalar; by default the one that the loss carries,
        or the Euclidean distance for a function that carries none. The first vector is of
        `embeddings`. In one set it may differ with the order, which takes twice the time of one of
        `contrastive_jax.distances`, known not to. Parameters are bound by `functools.partial`.
      margin: scalar above 0, passed to `loss` as a keyword; without it `loss` keeps its default.
        Under `jax.jit` pass it as an argument, and one compilation serves all margins. Or one of
        each class, `[C]`: a pair has that of its first row, as with the boundaries of
        `losses.margin_by_class`, so that in one set, where it counts in both orders, it has the
        mean of two losses. These take no weights.
      reduction: `"mean"` over all pairs; `"balanced"`, the mean over similar plus the mean over
        dissimilar pairs, so that the few similar ones are not drowned; `"active"`, the same over
        the pairs whose loss is not 0, the default of pytorch-metric-learning; `"sum"`. A mean over
        no pairs is 0.
      weights: `[B]`, at least 0; a pair weighs the product of those of its rows.
      reference_weights: `[R]`.
      axis_name: of the devices that share the batch.
      exact: whether close pairs are measured again. Without, the walk takes a tenth less time, and
        distances below about a twentieth of what the batch extends to lose digits.
      tile: rows and columns of a tile, a multiple of 8; by default 512 on a CPU, 4096 on a GPU and
        2048 on a TPU, or no tiles at all up to 1,024 rows a side (4,096 on a GPU) on one device.
      precision: of matrix products. The default keeps a GPU from TF32, which loses the digits that
        small distances need.
      method: `"one_walk"`, or `"autodiff"`, which goes row by row through the scalar functions as
        they are, slower and still in linear memory; on one device.

    Returns:
      Loss, a scalar. It is NaN if an embedding that counts is not finite.

    Raises:
      AssertionError: if ranks, shapes or dtypes do not fit, or `loss` or `distance` does not return
        a scalar.
      TypeError: if a second derivative is taken with an axis name.
      ValueError: if an option is not one of those above, or a known value is wrong;
        `contrastive_jax.checks` says how to check traced ones.

    References:
      Hadsell, Chopra and LeCun, Dimensionality Reduction by Learning an Invariant Mapping, 2006
      <https://doi.org/10.1109/CVPR.2006.100>, eq. 1: the sum over all pairs. Musgrave, Belongie and
      Lim, PyTorch Metric Learning, 2020 <https://arxiv.org/abs/2008.09164>: the mean over active
      pairs.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import all_pairs_loss
      >>> x = jnp.array([[0.0, 0.0], [0.5, 0.0], [0.0, 0.75]])
      >>> classes = jnp.array([0, 0, 1])
      >>> value, gradient = jax.value_and_grad(all_pairs_loss)(x, classes, margin=1.0)
      >>> print(f"{value:.4f}")
      0.1074
      >>> gradient.shape
      (3, 2)
    """
    if reduction not in _REDUCTIONS:
        remedy = (
            '; anchor_loss(..., loss=losses.of_pairs(loss), reduction="none") returns the mean of '
            "each row, and pair_loss the loss of each given pair"
        )
        raise ValueError(
            f"reduction must be one of {', '.join(_REDUCTIONS)}, got {reduction!r}"
            f"{remedy if str(reduction) == 'none' else ''}"
        )

    def reduced(sums: Sums) -> tuple[jax.Array, tuple[()]]:
        if reduction == "sum":
            return sums.loss[0], ()
        counts = sums.active if reduction == "active" else sums.pairs
        return jnp.sum(sums.loss / jnp.where(counts > 0, counts, 1)), ()

    return _reduced(
        reduced,
        (embeddings, classes, weights),
        (references, reference_classes, reference_weights),
        loss=loss,
        distance=distance,
        margin=margin,
        axis_name=axis_name,
        exact=exact,
        tile=tile,
        precision=precision,
        method=method,
        by_label=reduction in ("balanced", "active"),
        active=reduction == "active",
    )[0]


def all_pairs_sums(
    embeddings: jax.Array,
    classes: jax.Array,
    references: jax.Array | None = None,
    reference_classes: jax.Array | None = None,
    *,
    loss: Callable[..., jax.Array] = contrastive,
    distance: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    margin: ArrayLike | None = None,
    weights: jax.Array | None = None,
    reference_weights: jax.Array | None = None,
    axis_name: Any = None,
    exact: bool = True,
    tile: int | None = None,
    precision: lax.PrecisionLike = lax.Precision.HIGHEST,
    method: Method = "one_walk",
) -> Sums:
    """Sums over the similar and over the dissimilar pairs, for reductions of one's own.

    Arguments and errors are those of `all_pairs_loss`.

    Returns:
      `loss`, the sums of losses, `pairs` and `active`, the numbers of pairs and of those whose loss
      is not 0 (with weights, their sums); `[2]` each, of similar and of dissimilar pairs. `loss` is
      differentiable in any way, with an axis name once in reverse mode.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import all_pairs_sums
      >>> x = jnp.array([[0.0, 0.0], [0.5, 0.0], [0.0, 0.75]])
      >>> sums = all_pairs_sums(x, jnp.array([0, 0, 1]), margin=1.0)
      >>> print(sums.pairs)  # positive and negative pairs, both orders of each
      [2. 4.]
      >>> print(sums.loss.round(2))
      [0.5  0.14]
    """
    loss_sums, counts = _reduced(
        lambda sums: (sums.loss, (sums.pairs, sums.active)),
        (embeddings, classes, weights),
        (references, reference_classes, reference_weights),
        loss=loss,
        distance=distance,
        margin=margin,
        axis_name=axis_name,
        exact=exact,
        tile=tile,
        precision=precision,
        method=method,
        by_label=True,
        active=True,
    )
    return Sums(loss_sums, *counts)


class _WithMargin(NamedTuple):
    """A loss with its margin as a third argument; equal for equal losses, so compiled once."""

    loss: Callable[..., jax.Array]

    def __call__(
        self, distance: jax.Array, label: jax.Array, margin: jax.Array, *parameters: jax.Array
    ) -> jax.Array:
        return self.loss(distance, label, *parameters, margin=margin)


class _Swapped(NamedTuple):
    """A distance in the other direction; equal for equal distances."""

    distance: Callable[..., jax.Array]

    def __call__(self, a: jax.Array, b: jax.Array, *parameters: jax.Array) -> jax.Array:
        return self.distance(b, a, *parameters)


def _reduced(
    reduce: Callable[[Sums], tuple[jax.Array, Any]],
    rows: tuple[Any, Any, Any],
    columns: tuple[Any, Any, Any],
    *,
    loss: Callable[..., jax.Array],
    distance: Callable[..., jax.Array] | None,
    margin: ArrayLike | None,
    axis_name: Any,
    exact: bool,
    tile: int | None,
    precision: lax.PrecisionLike,
    method: Method,
    by_label: bool,
    active: bool,
) -> tuple[jax.Array, Any]:
    """A value of the sums over all pairs, which is differentiated, and what is not."""
    check_method(method, axis_name)
    measure = resolve_distance(loss, distance)
    of_loss: tuple[jax.Array, ...] = ()
    of_pair: Any = loss
    if margin is not None and np.ndim(margin):
        margins = _class_margins(margin, rows, columns)
        options: dict[str, Any] = {"distance": measure, "axis_name": axis_name, "exact": exact}
        options |= {"tile": tile, "precision": precision}
        return _reduced_by_class(reduce, rows, columns, loss, margins, method, by_label, **options)
    if margin is not None:
        chex.assert_rank(margin, 0, custom_message="margin must be a scalar")
        check_scalars(margin=margin)
        check_values(margin=margin)
        dtype = at_least_float32(jnp.asarray(rows[0]).dtype)
        of_pair, of_loss = _WithMargin(loss), (jnp.asarray(margin, dtype),)
    task, x, y, of_distance, (scalar, label) = prepared(
        rows,
        columns,
        distance=measure,
        axis_name=axis_name,
        exact=exact,
        tile=tile,
        precision=precision,
        shared=of_loss,
    )
    examples = scalar, label, *varying(of_loss, axes_of(scalar))
    of_pair, closed = hoisted("loss", of_pair, examples, real_scalar)
    task = task._replace(loss=of_pair, by_label=by_label, active=active)
    parameters = Parameters((*of_loss, *closed), of_distance)

    def result_of(engine: Callable[..., Sums], *arguments: Any) -> tuple[jax.Array, Any]:
        return reduce(engine(task, *arguments))

    engine = dense.pair_sums if task.dense else pair_sums
    swept, plain = partial(result_of, engine), partial(result_of, autodiff.pair_sums)
    if method == "autodiff" or axis_name is not None:
        return (plain if method == "autodiff" else swept)(x, y, parameters)
    return differentiable(swept, plain, x, y, parameters)


class _ByClass(NamedTuple):
    """Sums that an anchor adds up with its own margin; equal for equal losses."""

    loss: Callable[..., jax.Array]

    def __call__(
        self, distance: jax.Array, label: jax.Array, margin: jax.Array, *parameters: jax.Array
    ) -> Any:
        value = self.loss(distance, label, margin, *parameters)
        return [
            (total(value, where), total(1.0, where), total(1.0, where & (value != 0)))
            for where in (label == 0, label == 1)
        ]


def _class_margins(margin: Any, rows: tuple[Any, ...], columns: tuple[Any, ...]) -> jax.Array:
    """Checks the margins of classes, `[C]`."""
    margins = as_array("margin", margin)
    if np.ndim(margins) != 1:
        raise AssertionError(
            f"expected a scalar margin or one of each class, [C], got shape {np.shape(margins)}"
        )
    if rows[2] is not None or columns[2] is not None:
        raise ValueError(
            "a margin of each class takes no weights: leave weights and reference_weights out, or "
            "pass a scalar margin"
        )
    check_values(margin=margins)
    message = f"expected a scalar margin or one of each class, got {len(margins)} for class "
    classes = None if rows[1] is None else as_classes("classes", rows[1])
    if isinstance(classes, jax.core.Tracer):
        largest = jnp.max(classes, initial=-1)
        check_traced(largest < len(margins), message + "{largest}", largest=largest)
    elif classes is not None and np.max(np.asarray(classes), initial=-1) >= len(margins):
        raise AssertionError(f"{message}{np.max(np.asarray(classes))}")
    return jnp.asarray(margins)


def _reduced_by_class(
    reduce: Callable[[Sums], tuple[jax.Array, Any]],
    rows: tuple[Any, Any, Any],
    columns: tuple[Any, Any, Any],
    loss: Callable[..., jax.Array],
    margins: jax.Array,
    method: Method,
    by_label: bool,
    **options: Any,
) -> tuple[jax.Array, Any]:
    """A value of the sums over all pairs, each with the margin of its first row's class."""
    task, x, y, of_distance, examples = prepared(rows, columns, **options, shared=margins)
    axes = axes_of(examples)
    margins = varying(margins.astype(examples[0].dtype), axes)
    with_margin: Any = _WithMargin(loss)
    of_pair, closed = hoisted("loss", with_margin, (*examples, examples[0]), real_scalar)
    by_class: Any = _ByClass(of_pair)
    stages = (Stage(by_class, len(closed)),)

    def result_of(engine: Any, x: Side, y: Side | None, margins: Any, parameters: Any) -> Any:
        data = (margins[jnp.maximum(x.classes, 0)],)
        (stats,) = engine(task, stages, x, y, data, parameters)
        # A NaN or an infinity shows, whatever the loss makes of it.
        bad = not_finite(x, y)
        sums = jax.tree.map(jnp.sum, stats)
        loss_sums, *counts = (jnp.stack(each) for each in zip(*sums, strict=True))
        totals = shared_total((loss_sums + bad, *counts), task.axis_name)
        return reduce(Sums(*(one if by_label else jnp.sum(one, keepdims=True) for one in totals)))

    arguments = x, y, margins, Parameters(closed, of_distance)
    engine = dense.anchor_statistics if task.dense else anchor_statistics
    swept, plain = (partial(result_of, one) for one in (engine, autodiff.anchor_statistics))
    if method == "autodiff" or task.axis_name is not None:
        run = plain if method == "autodiff" else swept
        return cast(tuple[jax.Array, Any], run(*arguments))
    return differentiable(swept, plain, *arguments)


def check_method(method: str, axis_name: Any) -> None:
    """Checks the name of a method, and that it runs over these devices.

    Args:
      method: `"one_walk"` or `"autodiff"`.
      axis_name: of the devices that share the batch.

    Raises:
      ValueError: if there is no such method, or it takes no axis name.
    """
    if method not in _METHODS:
        raise ValueError(f"method must be one of {', '.join(_METHODS)}, got {method!r}")
    if method == "autodiff" and axis_name is not None:
        raise ValueError("method 'autodiff' runs on one device: it takes no axis_name")


def prepared(
    rows: tuple[Any, Any, Any],
    columns: tuple[Any, Any, Any],
    *,
    distance: Callable[..., jax.Array],
    axis_name: Any,
    exact: bool,
    tile: int | None,
    precision: lax.PrecisionLike,
    shared: Any = (),
) -> tuple[Task, Side, Side | None, tuple[jax.Array, ...], tuple[jax.Array, jax.Array]]:
    """Checks what a walk over pairs is given, and makes a task of it that lacks a loss.

    Args:
      rows: vectors, classes and weights.
      columns: the same of the references; None each for one set.
      distance: between two vectors.
      axis_name: of the devices that share the rows.
      exact: whether close pairs are measured again.
      tile: rows and columns of a tile, or None.
      precision: of matrix products.
      shared: what else goes in, of which only the axes that it differs along count.

    Returns:
      The task, rows, columns, the parameters of the distance, and examples of a distance and a
      label as a loss will get them.
    """
    given = tile
    if tile is None:
        # The sizes that were fastest of those measured, on an H200 and on CPUs.
        tile = {"cpu": 512, "gpu": 4096}.get(jax.default_backend(), 2048)
    if not isinstance(tile, int | np.integer) or tile < 8 or tile % 8:
        raise ValueError(f"tile must be a whole multiple of 8 and above 0, got {tile!r}")
    tile = int(tile)
    check_distance(distance)
    x = checked_side("", *rows)
    y = None if columns[0] is None else checked_side("reference_", *columns)
    if y is None and any(column is not None for column in columns):
        raise ValueError("reference_classes and reference_weights need references")
    if y is not None:
        chex.assert_equal_shape_suffix(
            [x.vectors, y.vectors], 1, custom_message="embeddings and references: [B, D], [R, D]"
        )
        chex.assert_type(
            y.vectors, x.vectors.dtype, custom_message="references are not of embeddings' dtype"
        )
    x = x._replace(vectors=widen(x.vectors))
    y = None if y is None else y._replace(vectors=widen(y.vectors))
    dtype = x.vectors.dtype
    product, bound = as_product(distance)
    if bound:
        distance = distance.func  # type: ignore[attr-defined]
    of_distance = tuple(jnp.asarray(value) for value in gathered([*bound.values()]))
    both_ways = y is None and not is_symmetric(distance)
    # Of these only shapes count, and along which axes of a mesh they differ.
    vector, scalar, label = varying(
        (jnp.zeros(x.vectors.shape[1:], dtype), jnp.zeros((), dtype), jnp.int32(0)),
        axes_of((x, y, of_distance, shared)),
    )
    examples = vector, vector, *of_distance
    distance, closed = hoisted("distance", distance, examples, real_scalar)
    of_distance += closed
    task = Task(
        loss=distance,
        distances=(distance, cast(Any, _Swapped(distance))) if both_ways else (distance,),
        product=product,
        by_label=False,
        active=False,
        exact=exact,
        tile=tile,
        precision=precision,
        axis_name=axis_name,
    )
    task = task._replace(
        dense=_is_dense(task, x, y, given),
        weighted=rows[2] is not None or columns[2] is not None,
    )
    return task, x, y, of_distance, (scalar, label)


def _is_dense(task: Task, x: Side, y: Side | None, tile: int | None) -> bool:
    """Returns whether all pairs are computed at once, which devices and a given tile rule out."""
    return tile is None and task.axis_name is None and dense.fits(task, x, y)


def checked_side(prefix: str, vectors: Any, classes: Any, weights: Any) -> Side:
    """The rows of a set, checked; those of references have a prefix in the names of errors."""
    name = "references" if prefix else "embeddings"
    if classes is None:
        raise ValueError(f"{name} need {prefix}classes")
    classes = as_classes(f"{prefix}classes", classes)
    vectors = as_array(name, vectors, classes=classes)
    vectors, classes, weights = gathered((vectors, classes, weights))
    vectors, classes = jnp.asarray(vectors), jnp.asarray(classes)
    if weights is not None:
        weights = as_array(f"{prefix}weights", weights)
    given = [] if weights is None else [jnp.asarray(weights)]
    columns = {f"{prefix}classes": classes} | {f"{prefix}weights": one for one in given}
    expected = {
        "custom_message": f"expected {name}: [N, D], {prefix}classes: [N] and weights: [N]"
        f"{column_hint(**columns)}"
    }
    chex.assert_rank([vectors, classes, *given], [2, 1, *[1] * len(given)], **expected)
    chex.assert_equal_shape_prefix([vectors, classes, *given], 1, **expected)
    chex.assert_type(vectors, float, custom_message=f"{name} must be floating")
    chex.assert_axis_dimension_gt(vectors, 1, 0)
    if jnp.issubdtype(classes.dtype, jnp.unsignedinteger):
        classes = classes.astype(jnp.int32)
    # Derived from the classes, so that under `jax.shard_map` they differ where those do.
    ones = (classes == classes).astype(at_least_float32(vectors.dtype))
    side = Side(vectors, classes, given[0] if given else ones)
    values = {f"{prefix}weights": weight for weight in given} | {name: kept(side).vectors}
    check_values(**values)
    return side


def real_scalar(name: str, shape: Any) -> None:
    """Checks what a loss or a distance returns."""
    if getattr(shape, "shape", None) != () or not jnp.isrealobj(shape):
        raise AssertionError(f"{name} must return a real scalar, got {shape}")


def hoisted(
    name: str,
    function: Callable[..., Any],
    examples: tuple[Any, ...],
    check: Callable[[str, Any], None],
    *,
    shared: bool = False,
) -> tuple[Callable[..., Any], tuple[jax.Array, ...]]:
    """Turns traced values that a function closes over into arguments after its own.

    The result can be compared with other functions (`contrastive_jax.program_cache`), so that no
    program that was compiled for an earlier state of the function is taken for it.

    Args:
      name: of the function, for errors.
      function: of arrays or trees of them.
      examples: its arguments.
      check: takes the name and the shape of what the function returns.
      shared: whether it may close over values that do not vary along the axes of its arguments.

    Returns:
      The function with further arguments, and the values of these.
    """
    with checked_before():
        # A function of its own, as JAX would not trace one again that closes over other values now.
        trace = jax.make_jaxpr(lambda *arguments: function(*arguments), return_shape=True)
        closed, shape = trace(*examples)
    check(name, shape)
    consts = closed.consts
    traced = [k for k, value in enumerate(consts) if isinstance(value, jax.core.Tracer)]
    if not traced:
        return CheckedBefore(identified(function)), ()
    check_closed_over(function, *examples)
    axes = axes_of(examples[0])
    for k in traced:
        # A collective of JAX's own would else stand inside of loops that end at different times.
        if not shared and (missing := axes - axes_of(consts[k])):
            raise ValueError(
                f"{name} closes over a value {jax.typeof(consts[k])} that is the same along "
                f"{', '.join(map(str, missing))}, where the embeddings differ; close over "
                f"{MARK_AS_VARYING.format(tuple(missing))} instead"
            )
    # Of the constants only those that are known may be kept.
    jaxpr, own_count = closed.jaxpr, len(examples)
    known = [None if k in traced else value for k, value in enumerate(consts)]
    tree = jax.tree.structure(shape)

    def with_values(*arguments: Any) -> Any:
        own, values = arguments[:own_count], list(known)
        for k, value in zip(traced, arguments[own_count:], strict=True):
            values[k] = value
        return jax.tree.unflatten(tree, jax.core.eval_jaxpr(jaxpr, values, *jax.tree.leaves(own)))

    return Unidentified(with_values), tuple(consts[k] for k in traced)

"""The loss over all pairs of a batch, in memory linear in its size."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from contrastive_jax._engine.arguments import Method
from contrastive_jax._engine.pair_losses import reduce_pairs
from contrastive_jax._engine.problem import Numerics, Sums
from contrastive_jax.labels.types import PairLabels
from contrastive_jax.losses import contrastive

Reduction = Literal["mean", "balanced", "active", "sum"]


_REDUCTIONS = ("mean", "balanced", "active", "sum")


def all_pairs_loss(
    embeddings: jax.Array,
    classes: Any,
    references: jax.Array | None = None,
    reference_classes: Any = None,
    *,
    loss: Callable[..., jax.Array] = contrastive,
    distance: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    margin: ArrayLike | None = None,
    reduction: Reduction = "mean",
    weights: jax.Array | None = None,
    reference_weights: jax.Array | None = None,
    labels: PairLabels | Callable[[Any, Any], ArrayLike] | None = None,
    axis_name: Any = None,
    refine: bool = True,
    tile: int | None = None,
    precision: lax.PrecisionLike = lax.Precision.HIGHEST,
    method: Method = "sweep",
) -> jax.Array:
    """Loss over all pairs of a batch, or over all pairs between a batch and references.

    Two rows are a positive pair (label 0, similar) if they are of one class, and a negative one
    (label 1, dissimilar) if not, or as `labels` says. Without references a row is not paired with
    itself, and every pair counts in both orders.

    *Memory.* Up to 2^20 pairs on one device (2^24 on a GPU), as many as a batch of 1,024 rows
    (4,096) has, the matrix of all pairs is computed at once. With more pairs or more than 16,384
    rows of a side, a `tile`, an axis name or `distances.angular`, or with more than 2^24
    differences, B R D, of a distance without a matrix product, it is never built: a sweep over
    tiles of pairs computes loss and gradient together.

    *Precision.* Euclidean, squared Euclidean, cosine, angular, Mahalanobis distance, negative dot
    product and signal-to-noise ratio of `contrastive_jax.distances` use matrix products. The
    distance of two close points would lose digits there, so close pairs are recomputed: pairs of
    one class by a product of their differences from one of its rows, the remaining ones pair by
    pair.
    In float32 the relative error is below 1e-4 for unit vectors at distances from 1e-6 to 2, and
    this range scales with the length of the vectors. Norms must lie between 1e-15 and 1e15, so that
    squares of entries neither overflow nor underflow. Any other distance is computed pair by pair,
    as `pair_loss` does. A sweep computes pair by pair, too, the pairs of different classes that are
    closer than a twentieth of the extent of the batch (with the signal-to-noise ratio, of the
    length of the embeddings): if most pairs are so close, it takes as long as for any other
    distance.

    *Derivatives.* Gradients with respect to embeddings, references, the margin and whatever `loss`
    and `distance` close over are exact; weights are constants. Forward mode and second derivatives,
    in either order, are exact too: the gradient is differentiated as `method="autodiff"` computes
    it. With an axis name the loss can be differentiated once, in reverse mode.

    *Eager calls.* Called outside of `jax.jit`, the loss is compiled once for each shape and for
    each code and values of `loss` and `distance`; one program serves all values of the variables
    that are differentiated. A function that closes over an array of several entries or an object is
    compiled at every call.

    *Devices.* With an axis name, of `jax.pmap`, `jax.shard_map` or `jax.vmap`, each device passes
    its own rows and the pairs are those of all rows together, which the devices pass on in a ring.
    The loss returned is that of the global batch, the same on every device, and its gradient by a
    device's rows is that of the global loss: differentiate inside the mapped function.

    *Shared parameters.* Values that all devices share, such as the parameters of an encoder,
    proxies or a learned margin, get a gradient from each device, the part of its own rows. Under
    `jax.pmap`, `jax.vmap` and `jax.shard_map` with `check_vma=False` add these parts up
    (`jax.lax.psum`), do not average them. Under `jax.shard_map` with its default `check_vma=True`
    JAX has added them up already: adding them again gives n times the gradient. Values that `loss`
    or `distance` closes over must be marked as varying there (`jax.lax.pcast`; `jax.lax.pvary`
    before jax 0.8.2).

    *Sharded arrays.* Without an axis name, arrays under `jax.jit` may be spread over a mesh of
    `jax.make_mesh`, along automatic axes or, from jax 0.10 on, explicit ones. Their rows are
    gathered: every device holds all of them and computes the whole loss. Along explicit axes the
    gradient comes back spread as the rows were. An axis name under `jax.shard_map` over the same
    mesh shares memory and work.

    Args:
      embeddings: `[B, D]`, floating.
      classes: `[B]`, integers from 0; rows of class -1 are ignored, whatever they hold. With
        `labels` the attributes of the rows: any tree of arrays `[B, ...]`.
      references: rows to pair with, `[R, D]` of the same dtype, such as proxies or a memory bank.
      reference_classes: `[R]`; with `labels` a tree like `classes`, of arrays `[R, ...]`.
      loss: scalar function `(distance, label)`, or `(distance, label, margin)` where a margin is
        given.
      distance: function of two vectors `[D]` to a scalar; by default the one that the loss carries,
        or the Euclidean distance for a function that carries none. The first vector is of
        `embeddings`. Without references it may depend on the order, which takes twice the time of
        the symmetric ones of `contrastive_jax.distances`. Parameters are bound by
        `functools.partial`.
      margin: scalar, above 0 unless `loss` has other bounds, as `losses.cosine_embedding` does. It
        is passed to `loss` as a keyword; without it `loss` keeps its default.
        Under `jax.jit` pass it as an argument, and one compilation serves all margins. It may also
        be an array with one margin for each class, `[C]`. A pair then takes the margin of the class
        of its first row, as with the boundaries of `losses.margin_by_class`; without references it
        counts in both orders, so its loss is the mean of two. Margins of classes cannot be combined
        with `weights`.
      reduction: `"mean"` over all pairs; `"balanced"`, the mean over positive plus the mean over
        negative pairs, so that the few positive ones are not drowned; `"active"`, the
        mean over positive plus the mean over negative pairs whose loss is not 0, the default of
        pytorch-metric-learning; `"sum"`. A mean over no pairs is 0.
      weights: `[B]`, at least 0; the weight of a pair is the product of those of its rows.
      reference_weights: `[R]`.
      labels: function of the attributes of two rows that returns 0 (similar), 1 (dissimilar) or
        -1 (ignored), or with the reductions `"mean"` and `"sum"` a grade in [0, 1];
        `contrastive_jax.labels` has some. It is the same in both orders of two rows of a batch. By
        default rows of one class are similar.
      axis_name: axis of the devices that share the batch.
      refine: True if close pairs are recomputed. Otherwise the sweep takes a tenth less time, and
        distances below about a twentieth of the extent of the batch lose digits.
      tile: rows and columns of a tile, a multiple of 8; by default 512 on a CPU, 4096 on a GPU and
        2048 on a TPU, or no tiles at all up to 2^20 pairs (2^24 on a GPU) on one device.
      precision: precision of matrix products. The default keeps a GPU from TF32, which loses the
        digits that small distances need.
      method: `"sweep"` for the sweep over tiles, or the matrix of a small batch (*Memory*).
        `"autodiff"` goes row by row through the scalar functions as they are: it is slower, takes
        linear memory too, and runs on one device.

    Returns:
      Loss, a scalar. It is NaN if an embedding that counts is not finite.

    Raises:
      AssertionError: if ranks, shapes or dtypes do not fit, or `loss` or `distance` does not return
        a scalar.
      TypeError: if a second derivative is taken with an axis name.
      ValueError: if an option is not one of those above, a concrete value is wrong
        (`contrastive_jax.checks` says how to check traced ones), or `labels` returns a
        wrong value for two rows of a sample, of up to 32 rows.

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
            '; anchor_loss(..., loss=losses.mean_over_pairs(loss), reduction="none") returns '
            "the mean of each row, and pair_loss the loss of each given pair"
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

    return reduce_pairs(
        reduced,
        (embeddings, classes, weights),
        (references, reference_classes, reference_weights),
        loss=loss,
        distance=distance,
        margin=margin,
        axis_name=axis_name,
        numerics=Numerics(refine, tile, precision),
        method=method,
        labels=labels,
        by_label=reduction in ("balanced", "active"),
        active=reduction == "active",
    )[0]


def all_pairs_sums(
    embeddings: jax.Array,
    classes: Any,
    references: jax.Array | None = None,
    reference_classes: Any = None,
    *,
    loss: Callable[..., jax.Array] = contrastive,
    distance: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    margin: ArrayLike | None = None,
    weights: jax.Array | None = None,
    reference_weights: jax.Array | None = None,
    labels: PairLabels | Callable[[Any, Any], ArrayLike] | None = None,
    axis_name: Any = None,
    refine: bool = True,
    tile: int | None = None,
    precision: lax.PrecisionLike = lax.Precision.HIGHEST,
    method: Method = "sweep",
) -> Sums:
    """Sums over the positive and over the negative pairs, for reductions of one's own.

    It takes the arguments of `all_pairs_loss` but `reduction`, and raises the same errors. Labels
    must be 0, 1 or -1, and not grades.

    Returns:
      Sums `[2]`, over positive and over negative pairs. `loss` and `distance` add up losses and
      distances, `pairs` counts all pairs and `active` those whose loss is not 0. With weights every
      pair counts as often as its weight says. `loss` is differentiable in any way,
      with an axis name once in reverse mode; the others have no derivative.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import all_pairs_sums
      >>> x = jnp.array([[0.0, 0.0], [0.5, 0.0], [0.0, 0.75]])
      >>> sums = all_pairs_sums(x, jnp.array([0, 0, 1]), margin=1.0)
      >>> print(sums.pairs)  # positive and negative pairs, both orders of each
      [2. 4.]
      >>> print(sums.loss.round(2))
      [0.5  0.14]
      >>> print((sums.distance / sums.pairs).round(2))  # mean distances
      [0.5  0.83]
    """
    loss_sums, counts = reduce_pairs(
        lambda sums: (sums.loss, sums[1:]),
        (embeddings, classes, weights),
        (references, reference_classes, reference_weights),
        loss=loss,
        distance=distance,
        margin=margin,
        axis_name=axis_name,
        numerics=Numerics(refine, tile, precision),
        method=method,
        labels=labels,
        by_label=True,
        active=True,
        measured=True,
    )
    return Sums(loss_sums, *counts)

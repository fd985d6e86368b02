"""Pairs of a tile by their distance itself, some rows at a time."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from contrastive_jax._engine.accumulators import (
    Carry,
    add_losses,
    add_statistics,
    added,
    added_at,
    with_label,
)
from contrastive_jax._engine.derivatives import plus
from contrastive_jax._engine.layout import Context, Rows, block_of
from contrastive_jax._engine.pair_values import seen_by, seen_over
from contrastive_jax._engine.problem import Parameters

# Entries of the differences between vectors that are held at once where a distance is computed
# pair by pair.
_DIFFERENCES = 2**19


def add_by_pairs(
    context: Context,
    rows: Rows,
    columns: Rows,
    left: jax.Array,
    labels: jax.Array,
    weights: jax.Array,
    carry: Carry,
) -> Carry:
    """Adds pairs by their distance itself, some rows at a time, and only rows that have any."""
    task, parameters, wanted, *_ = context
    x, y = rows.vectors, columns.vectors
    (height, size), width = x.shape, len(y)
    step = 1
    while height % (2 * step) == 0 and 2 * step * width * size <= _DIFFERENCES:
        step *= 2
    kinds = len(carry.sums.loss)
    exact = task.product is not None and task.product.points is None

    def add(start: jax.Array, carry: Carry) -> Carry:
        of_rows, some_labels, some = block_of((rows, labels, weights), start, step)
        part = of_rows.vectors
        # In place of a pair that does not count stands one that does: a distance need not have a
        # derivative between a vector and itself, nor a loss where they are equal.
        spare = jnp.argmax(some > 0)
        stand_in = part[spare // width], y[spare % width]
        their_labels = jnp.where(some > 0, some_labels, some_labels.ravel()[spare])

        def seen(part: jax.Array, y: jax.Array, parameters: Parameters) -> list[Any]:
            def one(label: Any, of_row: Any, of_column: Any, weight: Any) -> list[Any]:
                (row, (a, as_row)), (column, (b, as_column)) = of_row, of_column
                a = jnp.where(weight > 0, a, stand_in[0])
                b = jnp.where(weight > 0, b, stand_in[1])
                found = [distance(a, b, *parameters.distance) for distance in task.distances]
                known = (row, as_row), (column, as_column)
                return seen_by(task, found, label, *known, parameters.loss)

            with_vectors = (
                of_rows._replace(anchors=(part, of_rows.anchors)),
                columns._replace(anchors=(y, columns.anchors)),
            )
            found: list[Any] = seen_over(one, *with_vectors, their_labels, some)
            return found

        def losses(part: jax.Array, y: jax.Array, parameters: Parameters) -> jax.Array:
            return jnp.stack(seen(part, y, parameters)).astype(weights.dtype)

        if task.statistics is not None:
            return add_statistics(
                carry, seen(part, y, parameters), some > 0, of_rows, columns, left, start
            )
        if any(wanted):
            found, pull = jax.vjp(losses, part, y, parameters)
        else:
            found = losses(part, y, parameters)
        if task.anchors == "none":
            for values in found:
                carry = add_losses(task, carry, values, some_labels, some)
        if not any(wanted):
            return carry
        of_row, of_column, of_parameters = carry.rows, carry.columns, list(carry.parameters)
        for k in range(kinds):
            kind = with_label(k, kinds, some_labels, some)
            of_part, of_y, more = pull(jnp.broadcast_to(kind, found.shape))
            if of_row is not None:
                old = of_row.points if exact else of_row.vectors
                now = old.at[k].set(added(old[k].T, of_part.T, start).T)
                of_row = of_row._replace(**{"points" if exact else "vectors": now})
            if of_column is not None:
                old = of_column.points if exact else of_column.vectors
                now = added_at(old, k, of_y.T, left)
                of_column = of_column._replace(**{"points" if exact else "vectors": now})
            if wanted.parameters:
                of_parameters[k] = jax.tree.map(plus, of_parameters[k], more)
        return carry._replace(rows=of_row, columns=of_column, parameters=tuple(of_parameters))

    def next_part(state: Any) -> Any:
        left_over, carry = state
        part = jnp.argmax(left_over)
        return left_over.at[part].set(False), add(part * step, carry)

    some = jnp.any(weights.reshape(height // step, -1) > 0, axis=1)
    return lax.while_loop(lambda state: jnp.any(state[0]), next_part, (some, carry))[1]

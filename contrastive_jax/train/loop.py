"""The training loop: an iterator over windows of steps."""

import time
from collections.abc import Callable, Iterator

import jax
import numpy as np

from contrastive_jax.train.types import Metrics, TrainState


def windows(
    advance: Callable[[TrainState], tuple[TrainState, Metrics]],
    state: TrainState,
    *,
    start: int = 0,
    steps: int,
    window: int,
    steps_per_call: int = 1,
    pairs_per_step: int = 0,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[TrainState, list[dict[str, float]]]]:
    """Trains from step `start` to step `steps`, handing the state back after each window.

    Calls are dispatched without waiting for their results; only the end of a window does. The state
    handed back is consumed by the next window, so whoever keeps it must copy it.

    Args:
      advance: one call of a step.
      state: at step `start`; given up to the loop.
      start: steps already taken.
      steps: steps to take in all.
      window: steps between two states handed back; the last window may be shorter.
      steps_per_call: steps of one call of `advance`.
      pairs_per_step: pairs that a step compares, for `pairs_per_second` in the records.
      stop: called after each call of `advance`; once it returns True, the window ends there and is
        the last.

    Yields:
      The state and a record for each step of the window, which has `step` (counted from 1), the
      metrics and `pairs_per_second` of the whole window. The first window leaves out its first
      call, which compiles, where it has another one.

    Raises:
      ValueError: if windows or steps are not whole calls.
      FloatingPointError: if the loss or the norm of its gradient is NaN or infinite, naming the
        first such step. No state of that window is handed back.

    Example:
      >>> import jax.numpy as jnp
      >>> from contrastive_jax import train
      >>> def advance(state):
      ...     return state / 2, {"loss": state**2, "gradient_norm": 2 * state}
      >>> for state, records in train.windows(advance, jnp.float32(1.0), steps=4, window=2):
      ...     print(records[-1]["step"], records[-1]["loss"])
      2 0.25
      4 0.015625
    """
    for name, value in (("window", window), ("steps", steps), ("start", start)):
        if value % steps_per_call:
            raise ValueError(
                f"{name} must be a multiple of steps_per_call, got {value} and {steps_per_call}"
            )
    stopped = compiled = False
    while start < steps and not stopped:
        end = min(start - start % window + window, steps)
        began, untimed = time.perf_counter(), 0
        calls: list[Metrics] = []
        while start + len(calls) * steps_per_call < end and not stopped:
            state, metrics = advance(state)
            calls.append(metrics)
            stopped = stop()
            if not compiled and not stopped and start + steps_per_call < end:
                jax.block_until_ready(metrics)
                began, untimed = time.perf_counter(), steps_per_call
            compiled = True
        fetched = jax.device_get(calls)
        seconds = time.perf_counter() - began
        columns = {
            name: np.concatenate([np.atleast_1d(call[name]) for call in fetched])
            for name in fetched[0]
        }
        finite = np.isfinite(columns["loss"]) & np.isfinite(columns["gradient_norm"])
        if not finite.all():
            bad = int(np.argmin(finite))
            raise FloatingPointError(
                f"step {start + bad + 1}: loss {columns['loss'][bad]}, gradient norm "
                f"{columns['gradient_norm'][bad]}; lower the learning rate, or find the cause with "
                "value checks on (--check_values)"
            )
        count = len(finite)
        rate = pairs_per_step * (count - untimed) / seconds
        yield (
            state,
            [
                {"step": start + k + 1}
                | {name: float(column[k]) for name, column in columns.items()}
                | {"pairs_per_second": rate}
                for k in range(count)
            ],
        )
        start += count

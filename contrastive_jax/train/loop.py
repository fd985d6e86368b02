"""The training loop: an iterator over windows of steps, and `fit`, which does all of it."""

import contextlib
import itertools
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import numpy as np
import optax
from jax.typing import ArrayLike

from contrastive_jax.data._digest import digest
from contrastive_jax.data.augment import Augment
from contrastive_jax.data.datasets import Dataset, PairDataset
from contrastive_jax.data.stream import stream_given_pairs, stream_pairs
from contrastive_jax.train import checkpoints, diagnostics, folder, run
from contrastive_jax.train.assembly import Assembled, assemble, recorded, source_of
from contrastive_jax.train.devices import Parallel, Strategy, parallel
from contrastive_jax.train.interruption import interruption, leave
from contrastive_jax.train.networks import embed
from contrastive_jax.train.objectives import Objective, of_given_pairs
from contrastive_jax.train.preconditions import check_training
from contrastive_jax.train.progress import Progress
from contrastive_jax.train.run import Run
from contrastive_jax.train.steps import repeated
from contrastive_jax.train.types import (
    Hyperparameters,
    IndexedPairs,
    Metrics,
    Pairs,
    PairSource,
    Source,
    TrainState,
    Weights,
)
from contrastive_jax.train.validation import best_by, trained_run, validate, warn_of_margin

SHOWN = ("loss", "similar_distance", "dissimilar_distance", "active_fraction", "pairs_per_second")
# Means over this many windows in a row are no longer chance.
INVERTED_WINDOWS = 3


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


def fit(
    model: Any,
    data: Dataset | PairDataset,
    objective: Objective,
    *,
    steps: int,
    seed: int = 0,
    batch_size: int = 256,
    batch_classes: int | None = None,
    balanced: bool = True,
    repeat: bool = True,
    by_size: bool = False,
    categories: ArrayLike | None = None,
    views: int = 1,
    optimizer: optax.GradientTransformation | None = None,
    loss_optimizer: optax.GradientTransformation | None = None,
    augment: Augment | None = None,
    microbatches: int = 1,
    remat: bool = True,
    memory_size: int = 0,
    max_age: int | None = None,
    weights: Weights | None = None,
    devices: Sequence[jax.Device] | None = None,
    strategy: Strategy = "shard_map",
    steps_per_call: int | None = None,
    data_on: Literal["device", "host"] = "device",
    check_values: bool = False,
    log_every: int = 100,
    validate_every: int = 500,
    keep: int = 2,
    runs: str | Path | None = "runs",
    name: str | None = None,
    default_name: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    config: Mapping[str, Any] | None = None,
    free: Sequence[str] = (),
    progress: bool = True,
) -> Run:
    """Trains an encoder, and returns it with all that it takes to use it.

    The weights returned are those of the highest MAP@R on validation or, of given pairs, of the
    largest area under the ROC curve. The run is stored in a folder of its own, from which
    `contrastive_jax.load` reads it. Ctrl-C and SIGTERM save the training at
    the end of the step; `resume=True` goes on from there, to the same bits.

    Args:
      model: the encoder, as `network` takes it: a class of Flax NNX modules, a module, or a tuple
        of a function `(params, images)` and its parameters.
      data: with train, validation and test splits, from `contrastive_jax.data.load`. Of a
        `PairDataset` its pairs are trained on, with their weights, and each image of a batch is
        encoded once, however many pairs it is in.
      objective: from `objective`; for given pairs that of a pair loss, whose `similar_fraction`
        has no part in it. Where it has labels of two rows, batches are drawn by class and carry the
        attributes of their rows, and so does the memory; validation is by these labels.
      steps: training steps in all.
      seed: of parameters, batches, augmentation and dropout, in [0, 2^32).
      batch_size: images in a batch, over all devices; an objective of pairs draws half as many
        pairs. At most four times the images, or given pairs, of train, or 1,024.
      batch_classes: classes in a batch, each with as many examples; by default the largest number
        up to 32 that divides the images.
      balanced: for given pairs, whether similar and dissimilar ones are drawn equally often, so
        that every batch has both however rare one of them is. With False every pair is as likely
        to be drawn.
      repeat: whether examples of a class that has fewer than a batch takes are repeated. Otherwise
        the places left are ignored.
      by_size: whether classes of a batch are drawn in proportion to their examples; by default
        every class is as likely.
      categories: of the training examples, such as `data.train.groups` or a column of
        `data.train.attributes`, where all classes of a batch are to be of one category, which makes
        negatives hard; see `draw_balanced`.
      views: with 2 or more, a batch has so many views of each of its images, changed by `augment`,
        and only views of the same image are similar; classes serve validation alone. With
        `objective("ntxent")` this is SimCLR.
      optimizer: any optax optimizer; by default `make_optimizer(4e-3, steps)` with a warm-up of 2 %
        of the steps and a weight decay of 0.1.
      loss_optimizer: of the parameters of the loss, where it has some; by default
        `make_optimizer(objective.learning_rate, steps)` with the same warm-up.
      augment: from a key and an image to an image.
      microbatches: parts in which a device encodes its images, to bound memory; see `make_step`.
      remat: whether parts are encoded again in the backward pass; see `make_step`.
      memory_size: embeddings of earlier batches that a batch is compared with too (XBM).
      max_age: steps after which the memory ignores an embedding.
      weights: initial weights of the encoder, such as those of another run, in place of its own.
      devices: all local devices by default.
      strategy: `"shard_map"` or `"pmap"`; the numbers are the same.
      steps_per_call: steps of one compiled call; by default 1 on a CPU and `log_every` elsewhere.
      data_on: `"device"` holds the training images there; `"host"` streams pairs, given ones or
        those of an objective of pairs drawn by class, whose images do not fit.
      check_values: whether labels, margins and embeddings are checked inside the step; slower.
      log_every: steps between two records on disk.
      validate_every: steps between two validations, each with a checkpoint; a multiple of
        `log_every`.
      keep: checkpoints to keep besides the best.
      runs: folder of all runs, or None to store nothing.
      name: folder of this run; by default `default_name` with a free number.
      default_name: by default the names of data set and encoder.
      resume: whether to go on with the run of this name.
      overwrite: whether to replace the run of this name.
      config: more options to record, JSON types; those of a resumed run must be the same.
      free: names of options that may differ when a run is resumed.
      progress: whether to show progress: a bar on a terminal, a line at each validation elsewhere.

    Returns:
      The run.

    Raises:
      AssertionError: if attributes that labels of two rows take are not arrays of numbers.
      BlockingIOError: if another process works on the run.
      FileExistsError: if the named folder exists.
      FileNotFoundError: if there is no such run to resume.
      FloatingPointError: if the loss or its gradient is not finite; checkpoints stay.
      TypeError: if `data` or `objective` is not of its type.
      ValueError: if arguments do not fit each other or the data.

    Example:
      >>> import contrastive_jax as cj
      >>> digits = cj.data.load("digits")
      >>> objective = cj.train.objective("contrastive", margin=1.2)
      >>> run = cj.train.fit(cj.models.MLP, digits, objective, steps=20, progress=False)
      >>> run.folder.as_posix()
      'runs/digits-mlp-1'
    """
    if not isinstance(data, Dataset | PairDataset):
        raise TypeError(f"data must come from contrastive_jax.data.load, got {data!r:.80}")
    if not isinstance(objective, Objective):
        raise TypeError(
            f"objective must come from contrastive_jax.train.objective, got {objective!r:.80}"
        )
    if isinstance(data, PairDataset):
        objective = of_given_pairs(objective)
    devices = list(devices or jax.devices())
    if steps_per_call is None:
        # XLA computes convolutions inside of a loop on a CPU by an unoptimised path.
        one = data_on == "host" or devices[0].platform == "cpu"
        steps_per_call = 1 if one else math.gcd(log_every, steps)
    batch: dict[str, Any] = {
        "batch_size": batch_size,
        "batch_classes": batch_classes,
        "balanced": balanced,
        "repeat": repeat,
        "by_size": by_size,
        "views": views,
    }
    if strategy not in get_args(Strategy):
        raise ValueError(f"strategy must be one of {get_args(Strategy)}, got {strategy!r}")
    check_training(
        data,
        objective,
        schedule={
            "steps": steps,
            "log_every": log_every,
            "validate_every": validate_every,
            "steps_per_call": steps_per_call,
            "keep": keep,
        },
        batch=batch | {"categories": categories, "augment": augment},
        data_on=data_on,
        devices=len(devices),
        microbatches=microbatches,
    )
    fraction = objective.hyperparameters.get("similar_fraction", 0.5)
    source = source_of(data, fraction, categories=categories, objective=objective)
    memory: dict[str, Any] = {"memory_size": memory_size, "max_age": max_age}
    parts = assemble(
        model,
        data,
        objective,
        steps=steps,
        seed=seed,
        optimizer=optimizer,
        loss_optimizer=loss_optimizer,
        augment=augment,
        microbatches=microbatches,
        remat=remat,
        weights=weights,
        devices=len(devices),
        **batch,
        **memory,
    )
    warn_of_margin(parts.network, data, objective)
    options = (
        {"steps": steps, "seed": seed, "microbatches": microbatches}
        | batch
        | memory
        | {
            "hyperparameters": {k: float(v) for k, v in objective.hyperparameters.items()},
            "devices": len(devices),
            "categories": categories is not None,
        }
        | recorded(objective, jax.eval_shape(lambda: parts.init(seed)).opt_state)
    )
    record = dict(options if config is None else config) | {"data_digest": digest(data)}
    record = json.loads(json.dumps(record, default=str))
    with contextlib.ExitStack() as stack:
        stored = runs is not None
        if runs is None:
            runs, name = Path(stack.enter_context(tempfile.TemporaryDirectory())), "run"
        where = stack.enter_context(
            folder.open_run(
                Path(runs),
                name,
                default_name or f"{data.name}-{_name_of(model)}",
                record,
                resume=resume,
                overwrite=overwrite,
                free=free,
            )
        )
        if (taken := checkpoints.steps_taken(where / "checkpoints")) > steps:
            raise ValueError(
                f"{where} has taken {taken:,} steps already: steps must be at least that, got "
                f"{steps:,}"
            )
        if resume:
            folder.write_config(where, record)
        saved = stack.enter_context(
            checkpoints.open_checkpoints(where / "checkpoints", keep=keep, best_by=best_by(data))
        )
        start = saved.latest_step() or 0
        events = stack.enter_context(folder.open_events(where, start)) if stored else None
        stop = stack.enter_context(interruption())
        show = Progress(where, data, steps, start, shown=progress, resumed=resume)
        state = first = parts.init(seed)
        if start:
            state = checkpoints.restore(saved, start, jax.device_get(state))
        folder.truncate_metrics(where, start)
        call = repeated(parts.drawn, steps_per_call) if steps_per_call > 1 else parts.drawn
        streamed = data_on == "host"
        placed = parallel(
            parts.step if streamed else call,
            strategy,
            devices,
            sharded=(1,) if streamed else (),
            check_values=check_values,
        )
        batches = _batches(
            placed,
            parts,
            data,
            objective,
            source,
            seed=seed,
            data_on=data_on,
            start=start,
            balanced=balanced,
        )
        hyperparameters = Hyperparameters(seed, dict(objective.hyperparameters))
        state, hyperparameters = placed.replicate((state, hyperparameters))
        every = windows(
            lambda state: placed.step(state, next(batches), hyperparameters),
            state,
            start=start,
            steps=steps,
            window=log_every,
            steps_per_call=steps_per_call,
            pairs_per_step=parts.pairs_per_step,
            stop=stop,
        )
        try:
            _take_windows(
                every, parts, data, objective, placed, saved, show, stop, where, events,
                steps=steps, validate_every=validate_every,
            )  # fmt: skip
        except FloatingPointError as error:
            error.add_note(f"the last good checkpoint is of step {saved.latest_step() or 0}")
            raise
        finally:
            show.close()
        if stop.signal is not None and saved.latest_step() != steps:
            message = f"{where} is saved at step {saved.latest_step():,}; resume it to go on"
            print(message, file=sys.stderr)
            leave(stop.signal, message)
        best = saved.best_step()
        best_weights = checkpoints.restore(saved, best, jax.device_get(first)).weights
        trained, arrays = trained_run(
            parts.network,
            best_weights,
            data,
            objective.distance,
            where if stored else None,
            objective=objective,
        )
        if stored:
            details = {"data": data.name, "best_step": best, "steps": steps}
            run.write(trained, where, model, details)
            np.savez(where / "validation.npz", **arrays)
        return trained


def _take_windows(
    every: Iterator[tuple[TrainState, list[dict[str, float]]]],
    parts: Assembled,
    data: Dataset | PairDataset,
    objective: Objective,
    placed: Parallel,
    saved: Any,
    show: Progress,
    stop: Callable[[], bool],
    where: Path,
    events: Any,
    *,
    steps: int,
    validate_every: int,
) -> None:
    """Takes the steps of a training, and validates and saves its state when that is due."""
    inverted = 0
    for latest, records in every:
        folder.write_metrics(where, events, records)
        now = int(records[-1]["step"])
        means = {key: _mean(records, key) for key in SHOWN if key in records[0]}
        show.window(now, means)
        far = means["similar_distance"] > means["dissimilar_distance"]
        inverted = inverted + 1 if far else 0
        if inverted == INVERTED_WINDOWS:
            diagnostics.warn_inverted(means["similar_distance"], means["dissimilar_distance"])
        if now % validate_every == 0 or now == steps:
            one = placed.fetch(latest)
            encoder = partial(embed, parts.network.encode, one.weights)
            figures = validate(encoder, data, objective.distance, objective)
            folder.write_metrics(where, events, [{"step": now} | figures])
            checkpoints.save(saved, now, one, figures)
            show.validation(now, figures)
        elif stop():
            # Never the best, as nothing was validated.
            checkpoints.save(saved, now, placed.fetch(latest), {best_by(data): -1.0})
        if stop():
            break


def _mean(records: Sequence[Mapping[str, float]], key: str) -> float:
    """Returns the mean of a metric over the steps that have it."""
    values = np.array([record[key] for record in records])
    # A batch without similar pairs has no mean distance of them.
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else math.nan


def _name_of(model: Any) -> str:
    """Returns a short name of an encoder, for the name of a run."""
    while hasattr(model, "func"):
        model = model.func
    name = getattr(model, "__name__", type(model).__name__)
    return "function" if isinstance(model, tuple) else str(name).lower()


def _batches(
    placed: Parallel,
    parts: Assembled,
    data: Dataset | PairDataset,
    objective: Objective,
    source: Source | PairSource,
    *,
    seed: int,
    data_on: str,
    start: int,
    balanced: bool,
) -> Iterator[Any]:
    """Returns what each call takes: the whole data, or the next pairs from the host."""
    if data_on == "device":
        return itertools.repeat(placed.replicate(source))
    if isinstance(data, PairDataset):
        given = stream_given_pairs(
            data,
            seed=seed,
            batch_size=parts.pairs_per_step,
            images=parts.images_per_step,
            balanced=balanced,
            start_step=start,
        )
        return (placed.shard(IndexedPairs(images, *batch)) for images, batch in given)
    pairs = stream_pairs(
        data.train.images,
        data.train.classes,
        seed=seed,
        batch_size=parts.pairs_per_step,
        similar_fraction=objective.hyperparameters["similar_fraction"],
        start_step=start,
    )
    return (
        placed.shard(Pairs(first, second, first_classes=classes, second_classes=others))
        for first, second, classes, others in pairs
    )

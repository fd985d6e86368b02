"""The training loop: an iterator over windows of steps, and `fit`, which does all of it."""

import contextlib
import itertools
import json
import math
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import jax
import numpy as np
import optax

from contrastive_jax import memory
from contrastive_jax.checks import check_seed
from contrastive_jax.data.augment import Augment
from contrastive_jax.data.datasets import Dataset
from contrastive_jax.data.draw import index_by_class
from contrastive_jax.data.evaluable import check_evaluable
from contrastive_jax.data.stream import stream_pairs
from contrastive_jax.evaluation.retrieval import retrieval
from contrastive_jax.train import checkpoints, diagnostics, folder, run
from contrastive_jax.train.devices import Strategy, parallel
from contrastive_jax.train.draw import draws_classes, draws_pairs
from contrastive_jax.train.interruption import interruption, leave
from contrastive_jax.train.networks import Network, check_images, embed, network
from contrastive_jax.train.objectives import Objective
from contrastive_jax.train.optimizer import make_optimizer, with_loss
from contrastive_jax.train.run import Run
from contrastive_jax.train.steps import init_state, make_step, repeated
from contrastive_jax.train.types import (
    Hyperparameters,
    Metrics,
    Pairs,
    Source,
    Step,
    TrainState,
    Weights,
)

BEST_BY = "validation/map_at_r"
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
      metrics and `pairs_per_second` (of the whole window).

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
    stopped = False
    while start < steps and not stopped:
        end = min(start - start % window + window, steps)
        began = time.perf_counter()
        calls: list[Metrics] = []
        while start + len(calls) * steps_per_call < end and not stopped:
            state, metrics = advance(state)
            calls.append(metrics)
            stopped = stop()
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
        rate = pairs_per_step * count / seconds
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


class Assembled(NamedTuple):
    """The parts of a training."""

    network: Network
    init: Callable[[int], TrainState]
    """A function of a seed to the state before the first step."""
    init_loss: Callable[[Objective, int], Any]
    """A function of an objective and a seed to the parameters of its loss."""
    step: Step
    """The step on a batch of the objective."""
    drawn: Step
    """The step that draws its batch from a `Source`."""
    pairs_per_step: int


def assemble(
    model: Any,
    data: Dataset,
    objective: Objective,
    *,
    steps: int,
    seed: int = 0,
    batch_size: int = 256,
    batch_classes: int | None = None,
    optimizer: optax.GradientTransformation | None = None,
    loss_optimizer: optax.GradientTransformation | None = None,
    augment: Augment | None = None,
    microbatches: int = 1,
    remat: bool = True,
    memory_size: int = 0,
    max_age: int | None = None,
    weights: Weights | None = None,
) -> Assembled:
    """Makes the parts of a training, as `fit` does. See there for the arguments.

    Returns:
      The encoder, the initial states, and the steps.

    Raises:
      ValueError: if the seed is not in [0, 2^32), the encoder does not take the images, the
        objective takes no memory, or classes and images of a batch do not fit.

    Example:
      >>> import contrastive_jax as cj
      >>> from contrastive_jax.train.loop import assemble
      >>> digits = cj.data.load("digits")
      >>> parts = assemble(cj.models.MLP, digits, cj.train.objective("supcon"), steps=10)
      >>> parts.pairs_per_step
      32640
    """
    check_seed(seed)

    def encoder_of(seed: int) -> Network:
        made = network(model, data.train.images.shape[1:], seed)
        return made if weights is None else made._replace(weights=weights)

    encoder = encoder_of(seed)
    check_images(
        encoder,
        train=data.train.images,
        validation=data.validation.images,
        test=data.test.images,
    )
    image = jax.ShapeDtypeStruct((1, *data.train.images.shape[1:]), data.train.images.dtype)
    width = jax.eval_shape(encoder.encode, encoder.weights, image).shape[1]
    optimizer = optimizer or make_optimizer(
        4e-3, steps, warmup_steps=int(0.02 * steps), weight_decay=0.1
    )

    def init_loss(objective: Objective, seed: int) -> Any:
        return objective.init(int(data.train.classes.max()) + 1, width, seed)

    if jax.tree.leaves(jax.eval_shape(lambda: init_loss(objective, seed))):
        rate = objective.learning_rate
        loss_optimizer = loss_optimizer or make_optimizer(
            rate, steps, warmup_steps=int(0.02 * steps)
        )
        optimizer = with_loss(optimizer, loss_optimizer)
    bank: Any = ()
    if memory_size:
        if not objective.takes_memory:
            raise ValueError(
                "an objective of given pairs or of proxies compares with no earlier batches: leave "
                "memory_size out"
            )
        bank = memory.empty(memory_size, width)
    step = make_step(
        encoder,
        optimizer,
        objective,
        augment=augment,
        microbatches=microbatches,
        remat=remat,
        max_age=max_age,
    )

    def init(own_seed: int) -> TrainState:
        own = encoder if own_seed == seed else encoder_of(own_seed)
        return init_state(own, optimizer, init_loss(objective, own_seed), memory=bank)

    if objective.separable:
        pairs, rest = divmod(batch_size, 2)
        if pairs < 1 or rest:
            raise ValueError(
                f"batch_size must be even for an objective of pairs, of two images each, got "
                f"{batch_size}"
            )
        fraction = objective.hyperparameters["similar_fraction"]
        drawn = draws_pairs(step, pairs, similar_fraction=fraction)
        return Assembled(encoder, init, init_loss, step, drawn, pairs)
    available = len(np.unique(data.train.classes[data.train.classes >= 0]))
    classes, examples = balance(batch_size, batch_classes, available)
    images = classes * examples
    drawn = draws_classes(step, classes, examples)
    pairs = images * (images - 1) // 2
    return Assembled(encoder, init, init_loss, step, drawn, pairs)


def balance(batch_size: int, batch_classes: int | None, available: int) -> tuple[int, int]:
    """Returns the number of classes of a batch, and of examples of each.

    Args:
      batch_size: images in a batch.
      batch_classes: classes in a batch; by default the largest number up to 32 that divides it.
      available: classes of the training data.

    Raises:
      ValueError: if the classes do not divide the batch, or there are not so many.

    Example:
      >>> from contrastive_jax.train.loop import balance
      >>> balance(256, None, available=10)
      (8, 32)
    """
    classes = batch_classes
    if classes is None:
        most = min(32, available, batch_size)
        classes = max(count for count in range(1, most + 1) if batch_size % count == 0)
    if not 1 < classes <= available or batch_size % classes:
        raise ValueError(
            f"batch_classes must be from 2 to {available}, the classes of the training data, and "
            f"divide the {batch_size} images of a batch, got {classes}"
        )
    return classes, batch_size // classes


def fit(
    model: Any,
    data: Dataset,
    objective: Objective,
    *,
    steps: int,
    seed: int = 0,
    batch_size: int = 256,
    batch_classes: int | None = None,
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

    The weights returned are those of the highest MAP@R on validation. The run is stored in a folder
    of its own, from which `contrastive_jax.load` reads it. Ctrl-C and SIGTERM save the training at
    the end of the step; `resume=True` goes on from there, to the same bits.

    Args:
      model: the encoder, as `network` takes it: a class of Flax NNX modules, a module, or a tuple
        of a function `(params, images)` and its parameters.
      data: with train, validation and test splits, from `contrastive_jax.data.load`.
      objective: from `objective`.
      steps: training steps in all.
      seed: of parameters, batches, augmentation and dropout, in [0, 2^32).
      batch_size: images in a batch, over all devices; an objective of pairs draws half as many
        pairs.
      batch_classes: classes in a batch, each with as many examples; by default the largest number
        up to 32 that divides the images.
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
      data_on: `"device"` holds the training images there; `"host"` streams pairs, for an objective
        of pairs whose images do not fit.
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
    if not isinstance(data, Dataset):
        raise TypeError(f"data must come from contrastive_jax.data.load, got {data!r:.80}")
    if not isinstance(objective, Objective):
        raise TypeError(
            f"objective must come from contrastive_jax.train.objective, got {objective!r:.80}"
        )
    devices = list(devices or jax.devices())
    options = {
        "steps": steps,
        "seed": seed,
        "batch_size": batch_size,
        "batch_classes": batch_classes,
        "microbatches": microbatches,
        "memory_size": memory_size,
        "max_age": max_age,
        "hyperparameters": {k: float(v) for k, v in objective.hyperparameters.items()},
        "devices": len(devices),
    }
    if data_on not in ("device", "host"):
        raise ValueError(f"data_on must be 'device' or 'host', got {data_on!r}")
    if data_on == "host" and not objective.separable:
        raise ValueError(
            "data_on='host' streams pairs: take an objective of pairs, as objective(..., "
            "on='pairs'), or data_on='device'"
        )
    if steps_per_call is None:
        # XLA computes convolutions inside of a loop on a CPU by an unoptimised path.
        one = data_on == "host" or devices[0].platform == "cpu"
        steps_per_call = 1 if one else math.gcd(log_every, steps)
    _check_schedule(
        steps=steps,
        log_every=log_every,
        validate_every=validate_every,
        steps_per_call=steps_per_call,
        keep=keep,
    )
    if data_on == "host" and steps_per_call != 1:
        raise ValueError(f"data_on='host' takes one step per call, got {steps_per_call}")
    if strategy not in get_args(Strategy):
        raise ValueError(f"strategy must be one of {get_args(Strategy)}, got {strategy!r}")
    check_evaluable(data)
    index = index_by_class(
        data.train.classes, objective.hyperparameters.get("similar_fraction", 0.5)
    )
    parts = assemble(
        model,
        data,
        objective,
        steps=steps,
        seed=seed,
        batch_size=batch_size,
        batch_classes=batch_classes,
        optimizer=optimizer,
        loss_optimizer=loss_optimizer,
        augment=augment,
        microbatches=microbatches,
        remat=remat,
        memory_size=memory_size,
        max_age=max_age,
        weights=weights,
    )
    _check_shares(objective, batch_size, len(devices), microbatches)
    _warn_of_margin(parts, data, objective)
    record = options if config is None else dict(config)
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
        if resume:
            folder.write_config(where, record)
        saved = stack.enter_context(
            checkpoints.open_checkpoints(where / "checkpoints", keep=keep, best_by=BEST_BY)
        )
        start = saved.latest_step() or 0
        events = stack.enter_context(folder.open_events(where, start)) if stored else None
        stop = stack.enter_context(interruption())
        show = _Progress(where, data, steps, start, shown=progress, resumed=resume)
        state = first = parts.init(seed)
        if start:
            state = checkpoints.restore(saved, start, jax.device_get(state))
        folder.truncate_metrics(where, start)
        advance, state, fetch = _placed(
            parts,
            state,
            data,
            index,
            objective,
            seed=seed,
            devices=devices,
            strategy=strategy,
            steps_per_call=steps_per_call,
            data_on=data_on,
            check_values=check_values,
            start=start,
        )
        inverted = 0
        try:
            for latest, records in windows(
                advance,
                state,
                start=start,
                steps=steps,
                window=log_every,
                steps_per_call=steps_per_call,
                pairs_per_step=parts.pairs_per_step,
                stop=stop,
            ):
                folder.write_metrics(where, events, records)
                now = int(records[-1]["step"])
                means = {
                    key: float(np.mean([record[key] for record in records]))
                    for key in SHOWN
                    if key in records[0]
                }
                show.window(now, means)
                far = means["similar_distance"] > means["dissimilar_distance"]
                inverted = inverted + 1 if far else 0
                if inverted == INVERTED_WINDOWS:
                    diagnostics.warn_inverted(
                        means["similar_distance"], means["dissimilar_distance"]
                    )
                if now % validate_every == 0 or now == steps:
                    one = fetch(latest)
                    figures = _validation(parts.network, one.weights, data)
                    folder.write_metrics(where, events, [{"step": now} | figures])
                    checkpoints.save(saved, now, one, figures)
                    show.validation(now, figures)
                elif stop():
                    # Never the best, as nothing was validated.
                    checkpoints.save(saved, now, fetch(latest), {BEST_BY: -1.0})
                if stop():
                    break
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
        weights = checkpoints.restore(saved, best, jax.device_get(first)).weights
        validation = embed(parts.network.encode, weights, data.validation.images)
        threshold, calibration = run.calibrated(
            objective.distance, validation, data.validation.classes
        )
        trained = Run(
            parts.network,
            weights,
            data.train.images.shape[1:],
            data.train.images.dtype.name,
            data.class_names,
            objective.distance,
            threshold,
            calibration,
            where if stored else None,
        )
        if stored:
            details = {"data": data.name, "best_step": best, "steps": steps}
            run.write(trained, where, model, details)
            np.savez(
                where / "validation.npz", embeddings=validation, classes=data.validation.classes
            )
        return trained


def _check_schedule(**arguments: int) -> None:
    """Checks how often something is done, before anything is written.

    Raises:
      ValueError: if a number is below 1, or one is not a multiple of another that divides it.
    """
    for name, value in arguments.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    for name, unit in (
        ("validate_every", "log_every"),
        ("log_every", "steps_per_call"),
        ("steps", "steps_per_call"),
    ):
        if arguments[name] % arguments[unit]:
            raise ValueError(
                f"{name} must be a multiple of {unit}, got {arguments[name]} and {arguments[unit]}"
            )


def _check_shares(objective: Objective, batch_size: int, devices: int, microbatches: int) -> None:
    """Checks that a batch divides into devices and microbatches, as the step will."""
    count, kind = (batch_size // 2, "pairs") if objective.separable else (batch_size, "images")
    unit = devices * microbatches * objective.group
    if microbatches < 1 or count % unit:
        groups = f" and groups of {objective.group}" if objective.group > 1 else ""
        raise ValueError(
            f"the {count} {kind} of a batch must divide into {devices} devices with {microbatches} "
            f"microbatches each{groups}"
        )


def _name_of(model: Any) -> str:
    """Returns a short name of an encoder, for the name of a run."""
    while hasattr(model, "func"):
        model = model.func
    name = getattr(model, "__name__", type(model).__name__)
    return "function" if isinstance(model, tuple) else str(name).lower()


def _warn_of_margin(parts: Assembled, data: Dataset, objective: Objective) -> None:
    """Warns of a margin that the distance can not reach."""
    margin = objective.hyperparameters.get("margin")
    if margin is None or not objective.bounded:
        return
    two = embed(parts.network.encode, parts.network.weights, data.train.images[:2])
    unit_length = bool(np.allclose(np.linalg.norm(two, axis=1), 1, atol=1e-3))
    text = diagnostics.out_of_reach(
        float(margin),
        objective.distance,
        two.shape[1],
        unit_length=unit_length,
        boundary=float(objective.hyperparameters.get("boundary", 0.0)),
    )
    if text:
        warnings.warn(text, stacklevel=3)


def _validation(network: Network, weights: Weights, data: Dataset) -> dict[str, float]:
    """Evaluates an encoder on validation, and warns where it has collapsed."""
    embeddings = embed(network.encode, weights, data.validation.images)
    figures = retrieval(embeddings, data.validation.classes)
    rank = diagnostics.effective_rank(embeddings)
    if rank < min(1.5, 0.75 * embeddings.shape[1]):
        diagnostics.warn_collapsed(rank, embeddings.shape[1])
    return {f"validation/{key}": value for key, value in figures.items()} | {
        "validation/effective_rank": rank
    }


def _placed(
    parts: Assembled,
    state: TrainState,
    data: Dataset,
    index: Any,
    objective: Objective,
    *,
    seed: int,
    devices: Sequence[jax.Device],
    strategy: Strategy,
    steps_per_call: int,
    data_on: str,
    check_values: bool,
    start: int,
) -> tuple[Callable[[TrainState], tuple[TrainState, Metrics]], TrainState, Callable[[Any], Any]]:
    """Puts a training on its devices: returns one call, the state, and what fetches a state."""
    if data_on == "device":
        call = repeated(parts.drawn, steps_per_call) if steps_per_call > 1 else parts.drawn
        placed = parallel(call, strategy, devices, check_values=check_values)
        source = placed.replicate(Source(data.train.images, data.train.classes, index))
        batches: Iterator[Any] = itertools.repeat(source)
    else:
        placed = parallel(parts.step, strategy, devices, sharded=(1,), check_values=check_values)
        pairs = stream_pairs(
            data.train.images,
            data.train.classes,
            seed=seed,
            batch_size=parts.pairs_per_step,
            similar_fraction=objective.hyperparameters["similar_fraction"],
            start_step=start,
        )
        batches = (
            placed.shard(Pairs(first, second, first_classes=classes, second_classes=others))
            for first, second, classes, others in pairs
        )
    hyperparameters = Hyperparameters(seed, dict(objective.hyperparameters))
    state, hyperparameters = placed.replicate((state, hyperparameters))
    return (
        lambda state: placed.step(state, next(batches), hyperparameters),
        state,
        placed.fetch,
    )


class _Progress:
    """A progress bar on a terminal, and a line at each validation elsewhere."""

    def __init__(
        self, where: Path, data: Dataset, steps: int, start: int, *, shown: bool, resumed: bool
    ):
        self.shown, self.steps, self.bar = shown, steps, None
        if not shown:
            return
        print(f"{where}: {data.name}, {len(data.train.classes):,} training images, {steps:,} steps")
        if start or resumed:
            without = "" if start else ", as there is no good checkpoint"
            print(f"{where} goes on from step {start:,}{without}")
        if sys.stderr.isatty():
            with contextlib.suppress(ImportError):
                from tqdm import tqdm

                self.bar = tqdm(total=steps, initial=start, unit="step", desc="compiling")
        if self.bar is None:
            print("compiling the training step", flush=True)

    def window(self, now: int, means: Mapping[str, float]) -> None:
        self.last = means
        if self.bar is not None:
            self.bar.set_description("")
            self.bar.update(now - self.bar.n)
            self.bar.set_postfix_str(_line(means))

    def validation(self, now: int, figures: Mapping[str, float]) -> None:
        if not self.shown:
            return
        text = (
            f"step {now:,}: {_line(self.last)}; validation MAP@R "
            f"{figures[BEST_BY]:.4f}, P@1 {figures['validation/precision_at_1']:.4f}"
        )
        if self.bar is not None:
            self.bar.write(text)
        else:
            print(text, flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def _line(means: Mapping[str, float]) -> str:
    return (
        "loss {loss:.4f}, similar {similar_distance:.2f}, dissimilar {dissimilar_distance:.2f}, "
        "{pairs_per_second:,.0f} pairs/s".format(**means)
        + (f", active {means['active_fraction']:.0%}" if "active_fraction" in means else "")
    )

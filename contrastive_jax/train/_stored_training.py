"""A training that is stored as it goes: its metrics, its checkpoints, and the run at its end."""

import contextlib
import itertools
import math
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from contrastive_jax.data.datasets import Dataset, PairDataset
from contrastive_jax.data.stream import stream_given_pairs, stream_pairs
from contrastive_jax.train import checkpoints, diagnostics, metrics, run_folder
from contrastive_jax.train.assembly import Assembled
from contrastive_jax.train.devices import Parallel
from contrastive_jax.train.interruption import interruption, leave
from contrastive_jax.train.loop import windows
from contrastive_jax.train.networks import embed
from contrastive_jax.train.progress import Progress
from contrastive_jax.train.run import Run
from contrastive_jax.train.training import Training
from contrastive_jax.train.types import (
    Hyperparameters,
    IndexedPairs,
    Pairs,
    PairSource,
    Source,
    TrainState,
)
from contrastive_jax.train.validation import best_by, trained_run, validate

SHOWN = ("loss", "positive_distance", "negative_distance", "active_fraction", "pairs_per_second")
# Means over this many windows in a row are no longer chance.
INVERTED_WINDOWS = 3


class Files(NamedTuple):
    """The files to which a training writes, and the signal that stops it."""

    folder: Path
    checkpoints: Any
    events: Any
    """None where the run is not stored, or tensorboardX is not installed."""
    start: int
    """The steps that were taken before."""
    stop: Any


@contextlib.contextmanager
def open_files(
    where: Path, data: Dataset | PairDataset, *, keep: int, stored: bool
) -> Iterator[Files]:
    """Opens the checkpoints and the events of a run, and minds signals meanwhile."""
    with contextlib.ExitStack() as stack:
        saved = stack.enter_context(
            checkpoints.open_checkpoints(where / "checkpoints", keep=keep, best_by=best_by(data))
        )
        start = saved.latest_step() or 0
        events = None
        if stored:
            try:
                events = stack.enter_context(metrics.open_events(where, start))
            except ImportError as error:  # The metrics are stored without them too.
                message = f"{error}; {metrics.METRICS} has the metrics without them"
                warnings.warn(message, stacklevel=5)  # where fit was called
        yield Files(where, saved, events, start, stack.enter_context(interruption()))


def train_stored(
    training: Training,
    parts: Assembled,
    placed: Parallel,
    source: Source | PairSource,
    files: Files,
    show: Progress,
    *,
    log_every: int,
    validate_every: int,
    steps_per_call: int,
    data_on: str,
) -> None:
    """Trains from the step that the run has reached, until it is done or stopped."""
    state = parts.init(training.seed)
    if files.start:
        state = checkpoints.restore(files.checkpoints, files.start, jax.device_get(state))
    metrics.truncate_metrics(files.folder, files.start)
    if data_on == "host":
        batches = _streamed(placed, training, parts, files.start)
    else:
        batches = itertools.repeat(placed.replicate(source))
    given = Hyperparameters(training.seed, dict(training.objective.hyperparameters))
    state, hyperparameters = placed.replicate((state, given))
    every = windows(
        lambda state: placed.step(state, next(batches), hyperparameters),
        state,
        start=files.start,
        steps=training.steps,
        window=log_every,
        steps_per_call=steps_per_call,
        pairs_per_step=parts.pairs_per_step,
        stop=files.stop,
    )
    try:
        _take_windows(every, training, parts, placed, files, show, validate_every)
    except FloatingPointError as error:
        latest = files.checkpoints.latest_step() or 0
        error.add_note(f"the last good checkpoint is of step {latest}")
        raise
    finally:
        show.close()
    latest = files.checkpoints.latest_step()
    if files.stop.signal is not None and latest != training.steps:
        message = (
            f"{files.folder} is saved at step {latest:,}; resume it to go on, by --resume "
            f"{files.folder.name} or fit(..., name={files.folder.name!r}, resume=True)"
        )
        print(message, file=sys.stderr)
        leave(files.stop.signal, message)


def _streamed(placed: Parallel, training: Training, parts: Assembled, start: int) -> Iterator[Any]:
    """Returns the pairs of each step, from the host."""
    data = training.data
    if isinstance(data, PairDataset):
        given = stream_given_pairs(
            data,
            seed=training.seed,
            batch_size=parts.pairs_per_step,
            images=parts.images_per_step,
            balanced=training.balanced,
            start_step=start,
        )
        return (placed.shard(IndexedPairs(images, *batch)) for images, batch in given)
    pairs = stream_pairs(
        data.train.images,
        data.train.classes,
        seed=training.seed,
        batch_size=parts.pairs_per_step,
        positive_fraction=training.objective.hyperparameters["positive_fraction"],
        start_step=start,
    )
    return (
        placed.shard(Pairs(first, second, first_classes=classes, second_classes=others))
        for first, second, classes, others in pairs
    )


def _take_windows(
    every: Iterator[tuple[TrainState, list[dict[str, float]]]],
    training: Training,
    parts: Assembled,
    placed: Parallel,
    files: Files,
    show: Progress,
    validate_every: int,
) -> None:
    """Takes the steps of a training, and validates and saves its state when that is due."""
    inverted, data, objective = 0, training.data, training.objective
    for latest, records in every:
        metrics.write_metrics(files.folder, files.events, records)
        now = int(records[-1]["step"])
        means = {key: _mean(records, key) for key in SHOWN if key in records[0]}
        show.window(now, means)
        far = means["positive_distance"] > means["negative_distance"]
        inverted = inverted + 1 if far else 0
        if inverted == INVERTED_WINDOWS:
            diagnostics.warn_inverted(means["positive_distance"], means["negative_distance"])
        if now % validate_every == 0 or now == training.steps:
            one = placed.fetch(latest)
            encoder = partial(embed, parts.network.encode, one.weights)
            figures = validate(encoder, data, objective.distance, objective)
            metrics.write_metrics(files.folder, files.events, [{"step": now} | figures])
            checkpoints.save(files.checkpoints, now, one, figures)
            show.validation(now, figures)
        elif files.stop():
            # Never the best, as nothing was validated.
            checkpoints.save(files.checkpoints, now, placed.fetch(latest), {best_by(data): -1.0})
        if files.stop():
            break


def _mean(records: Sequence[Mapping[str, float]], key: str) -> float:
    """Returns the mean of a metric over the steps that have it."""
    values = np.array([record[key] for record in records])
    # A batch without positive pairs has no mean distance of them.
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else math.nan


def finished_run(
    training: Training, parts: Assembled, files: Files, like: TrainState, *, stored: bool
) -> Run:
    """Returns the run of the best weights, and writes what it takes to load it."""
    best = files.checkpoints.best_step()
    trained, arrays = trained_run(
        parts.network,
        checkpoints.restore(files.checkpoints, best, like).weights,
        training.data,
        training.objective.distance,
        files.folder if stored else None,
        objective=training.objective,
    )
    if stored:
        details = {"data": training.data.name, "best_step": best, "steps": training.steps}
        run_folder.write(trained, files.folder, training.model, details)
        np.savez(files.folder / "validation.npz", **arrays)
    return trained

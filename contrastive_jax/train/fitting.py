"""`fit`: a training from data to a run that is stored."""

import contextlib
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import optax
from jax.typing import ArrayLike

from contrastive_jax.data._digest import digest
from contrastive_jax.data.augment import Augment
from contrastive_jax.data.datasets import Dataset, PairDataset
from contrastive_jax.train import folder
from contrastive_jax.train._stored_training import finished_run, open_files, train_stored
from contrastive_jax.train.assembly import assemble
from contrastive_jax.train.batches import source_of
from contrastive_jax.train.devices import Strategy, check_strategy, parallel
from contrastive_jax.train.objectives import Objective
from contrastive_jax.train.preconditions import check_training, check_types
from contrastive_jax.train.progress import Progress
from contrastive_jax.train.resumption import check_steps
from contrastive_jax.train.run import Run
from contrastive_jax.train.steps import repeated
from contrastive_jax.train.training import Training, recorded
from contrastive_jax.train.types import (
    TrainState,
    Weights,
)
from contrastive_jax.train.validation import warn_of_margin


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
      objective: from `objective`; for given pairs that of a pair loss, whose `positive_fraction`
        has no part in it. Where it has labels of two rows, batches are drawn by class and carry the
        attributes of their rows, and so does the memory; validation is by these labels.
      steps: training steps in all.
      seed: of parameters, batches, augmentation and dropout, in [0, 2^32).
      batch_size: images in a batch, over all devices; an objective of pairs draws half as many
        pairs. At most four times the images, or given pairs, of train, or 1,024.
      batch_classes: classes in a batch, each with as many examples; by default the largest number
        up to 32 that divides the images.
      balanced: for given pairs, whether positive and negative ones are drawn equally often, so
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
        and only views of one image are positive pairs; classes serve validation alone. With
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
      devices: all devices by default.
      strategy: `"shard_map"` or `"pmap"`; the numbers are the same.
      steps_per_call: steps of one compiled call; by default 1 on a CPU and with `data_on="host"`,
        and elsewhere the largest number that divides `log_every` and `steps`.
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
      >>> run = cj.train.fit(cj.models.MLP, digits, objective, steps=10, progress=False)
      >>> run.folder.as_posix()
      'runs/digits-mlp-1'
    """
    optimizers = {"optimizer": optimizer, "loss_optimizer": loss_optimizer}
    counts = {"steps": steps, "log_every": log_every, "batch_size": batch_size}
    check_types(devices, optimizers, counts)
    devices = list(devices or jax.devices())
    training = Training(
        model=model,
        data=data,
        objective=objective,
        steps=steps,
        seed=seed,
        batch_size=batch_size,
        batch_classes=batch_classes,
        balanced=balanced,
        repeat=repeat,
        by_size=by_size,
        categories=categories,
        views=views,
        optimizer=optimizer,
        loss_optimizer=loss_optimizer,
        augment=augment,
        microbatches=microbatches,
        remat=remat,
        memory_size=memory_size,
        max_age=max_age,
        weights=weights,
        devices=len(devices),
    )
    if steps_per_call is None:
        # XLA computes convolutions inside of a loop on a CPU by an unoptimised path.
        one = data_on == "host" or devices[0].platform == "cpu"
        steps_per_call = 1 if one else math.gcd(log_every, steps)
    check_strategy(strategy, get_args(Strategy), len(devices))
    schedule: dict[str, Any] = {"log_every": log_every, "validate_every": validate_every}
    schedule |= {"steps_per_call": steps_per_call, "data_on": data_on}
    check_training(training, keep=keep, **schedule)
    source, parts = source_of(training), assemble(training)
    warn_of_margin(parts.network, data, training.objective)
    like = jax.eval_shape(lambda: parts.init(seed))
    record = dict(_recorded(training, like) if config is None else config)
    record = json.loads(json.dumps(record | {"data_digest": digest(data)}, default=str))
    with contextlib.ExitStack() as stack:
        stored = runs is not None
        if runs is None:
            runs, name = stack.enter_context(tempfile.TemporaryDirectory()), "run"
        default_name = default_name or f"{data.name}-{_name_of(model)}"
        if resume and name is not None:
            check_steps(Path(runs) / name, steps)
        opened = folder.open_run(
            Path(runs), name, default_name, record, resume=resume, overwrite=overwrite, free=free
        )
        where = stack.enter_context(opened)
        files = stack.enter_context(open_files(where, data, keep=keep, stored=stored))
        show = Progress(where, data, steps, files.start, shown=progress, resumed=resume)
        call = repeated(parts.drawn, steps_per_call) if steps_per_call > 1 else parts.drawn
        placed = parallel(
            parts.step if data_on == "host" else call,
            strategy,
            devices,
            sharded=(1,) if data_on == "host" else (),
            check_values=check_values,
        )
        train_stored(training, parts, placed, source, files, show, **schedule)
        return finished_run(training, parts, files, like, stored=stored)


def _recorded(training: Training, like: TrainState) -> dict[str, Any]:
    """Returns the options that a run records, where its config is not given."""
    hyperparameters = training.objective.hyperparameters
    return recorded(training, like.opt_state) | {
        "seed": training.seed,
        "hyperparameters": {name: float(value) for name, value in hyperparameters.items()},
        "devices": training.devices,
    }


def _name_of(model: Any) -> str:
    """Returns a short name of an encoder, for the name of a run."""
    while hasattr(model, "func"):
        model = model.func
    name = getattr(model, "__name__", type(model).__name__)
    return "function" if isinstance(model, tuple) else str(name).lower()

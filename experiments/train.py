"""Trains a siamese encoder on pairs, evaluates it on held-out data and draws what it learned.

python -m experiments.train                          # digits, under a minute
python -m experiments.train --dataset fashion_mnist  # under ten minutes on two cores
"""

import dataclasses
import difflib
import itertools
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import numpy as np
import optax
from flax import nnx

from contrastive_jax._extras import needs

with needs("train", "experiments.train"):
    import tyro
    from tqdm import tqdm

from contrastive_jax import (
    checkpoints,
    distances,
    encoders,
    losses,
    memory,
    plots,
    runs,
    training,
)
from contrastive_jax.data import (
    ClassIndex,
    Dataset,
    augment,
    check_evaluable,
    index_by_class,
    load,
    stream_pairs,
)
from contrastive_jax.evaluation.retrieval import nearest_neighbours, retrieval
from contrastive_jax.evaluation.summary import Summary, summarize
from contrastive_jax.evaluation.verification import roc_curve
from contrastive_jax.loss_step import Learned, make_learned_optimizer, make_loss_step
from contrastive_jax.parallel import Strategy, parallel
from experiments import command, loss_table, option_checks

ENCODERS = {
    "mlp": encoders.MLP,
    "drlim": encoders.DrLIM,
    "convnet": encoders.ConvNet,
    "resnet18": encoders.ResNet18,
}
DISTANCES = {
    "euclidean": distances.euclidean,
    "squared_euclidean": distances.squared_euclidean,
    "cosine": distances.cosine,
    "angular": distances.angular,
    "manhattan": distances.manhattan,
    "chebyshev": distances.chebyshev,
}
# Found on validation.
RECIPES: dict[str, dict[str, Any]] = {
    "digits": {
        "steps": 1500,
        "flip": False,
        "shift": 1,
        "group": 32,
        "similar_fraction": 0.3,
        "weight_decay": 1.0,
    },
    "mnist": {
        "steps": 3000,
        "flip": False,
        "shift": 1,
        "group": 32,
        "similar_fraction": 0.05,
        "weight_decay": 0.1,
    },
    "fashion_mnist": {
        "steps": 20_000,
        "flip": True,
        "shift": 1,
        "group": 32,
        "similar_fraction": 0.05,
        "weight_decay": 0.1,
    },
}
BEST_BY = "validation/map_at_r"
SHOWN = (
    "loss",
    "similar_distance",
    "dissimilar_distance",
    "active_fraction",
    "pairs_per_second",
)
# Means over this many windows in a row are no longer chance.
INVERTED_WINDOWS = 3
TITLES = {
    "precision_at_1": "precision at 1",
    "r_precision": "R-precision",
    "map_at_r": "MAP@R",
    "mean_reciprocal_rank": "mean reciprocal rank",
    "recall_at_5": "recall at 5",
    "recall_at_10": "recall at 10",
    "auc": "pair ROC AUC",
    "average_precision": "pair average precision",
    "eer": "equal error rate",
    "tar_at_far_0.1": "TAR at FAR 0.1",
    "tar_at_far_0.01": "TAR at FAR 0.01",
    "tar_at_far_0.001": "TAR at FAR 0.001",
    "accuracy": "accuracy at the validation threshold",
    "kfold_accuracy": "10-fold accuracy",
}
# Options that may differ when a run is resumed: they do not change the numbers.
FREE = {"resume", "overwrite", "name", "runs", "keep", "check_values", "data_dir", "tfds_dir"}


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of a run."""

    dataset: str = "digits"
    """digits, fashion_mnist, mnist, idx (IDX files of any other set), or any name in
    tensorflow-datasets with images and labels."""
    data_dir: Path | None = None
    """Folder of the raw IDX files of fashion_mnist, mnist or idx; Debian's by default."""
    tfds_dir: Path | None = None
    """Folder of prepared data sets; that of tensorflow-datasets by default."""
    image_size: int | None = None
    """Side to which images are scaled; needed where they differ in size."""
    split_classes: bool = False
    """Train on the first half of the classes and test on the other half, never seen."""

    encoder: Literal["mlp", "drlim", "convnet", "resnet18"] = "convnet"
    """Network from images to embeddings."""
    width: int = 64
    """Number of entries of an embedding."""
    normalize: bool = True
    """Scale embeddings to unit length: distances lie in [0, 2] and the margin has a meaning."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the computation; auto is bfloat16 on accelerators and float32 on a CPU."""

    loss: Annotated[
        str,
        tyro.conf.arg(
            metavar="NAME",
            help="The loss. contrastive is of drawn pairs or of all pairs of a batch, the others "
            "are of whole batches, with numbers of their own: " + ", ".join(loss_table.NAMES) + ".",
        ),
    ] = "contrastive"
    loss_options: dict[str, float] = dataclasses.field(default_factory=dict)
    """Numbers of the loss in place of those it is trained with, as `temperature 0.1`."""
    loss_learning_rate: float | None = None
    """Learning rate of the parameters of a loss, its proxies or boundaries; 0.01 by default."""
    memory: int = 0
    """Embeddings of earlier batches that a batch is compared with too (XBM); not with proxies."""
    max_age: int | None = None
    """Steps after which the memory ignores an embedding; 1,000 by default."""
    objective: Literal["auto", "pairs", "all_pairs"] = "auto"
    """Compare drawn pairs, or all images of a batch of some classes with some examples of each;
    auto is pairs for the contrastive loss and all_pairs for the others."""
    distance: (
        Literal["euclidean", "squared_euclidean", "cosine", "angular", "manhattan", "chebyshev"]
        | None
    ) = None
    """Distance of the contrastive loss and of verification, euclidean by default; retrieval ranks
    by the Euclidean distance. Other losses have their own."""
    margin: float | None = None
    """Distance beyond which a dissimilar pair costs nothing, 1.2 by default; on the unit sphere
    below 2. Of other losses that have a margin, this."""
    similar_fraction: float | None = None
    """Share of similar pairs, in number and, in groups and with all_pairs, in weight; by default
    0.3 on digits and 0.05 elsewhere."""
    group: int | None = None
    """Pairs whose members are compared across, G^2 pairs for the cost of G; 1 compares the drawn
    pairs alone. 32 by default, less where a device has fewer pairs."""
    flip: bool | None = None
    """Mirror training images at random; by default unless the data set is of digits."""
    shift: int | None = None
    """Move training images at random by up to so many pixels; 1 by default."""

    batch_size: int = 128
    """Pairs in a batch, over all devices; with all_pairs half the number of images."""
    batch_classes: int | None = None
    """Classes in a batch of all_pairs; by default the largest number up to 32 that divides the
    images."""
    microbatches: int | None = None
    """Parts that a device takes its pairs in; by default 1, and on a CPU parts of 32 pairs but for
    the MLP."""
    steps: int | None = None
    """Training steps; by default 1,500 on digits, 3,000 on mnist, 20,000 elsewhere."""
    learning_rate: float = 4e-3
    """Peak of the learning rate: linear warm-up, then cosine decay to zero."""
    warmup: float = 0.02
    """Share of the steps over which the learning rate grows."""
    weight_decay: float | None = None
    """Decoupled weight decay of matrices and kernels; by default 1 on digits, of which there are
    few, and 0.1 elsewhere and with triplet_hard."""
    clip_norm: float = 1.0
    """Largest norm of the gradient."""
    seed: int = 0
    """Seed of parameters and pairs; the same seed gives the same numbers."""

    parallel: Strategy = "shard_map"
    """How a step runs over devices; the numbers are the same."""
    devices: int | None = None
    """Number of devices; all by default."""
    steps_per_call: int | None = None
    """Steps of one compiled call; 1 on a CPU and log_every on accelerators by default."""
    data_on: Literal["device", "host"] = "device"
    """Where images live: on the device, or on the host (streamed) when they do not fit there."""
    check_values: bool = False
    """Check labels, margin and embeddings inside the compiled step; slower."""

    log_every: int = 100
    """Steps between two updates of the progress bar and of the metrics on disk."""
    validate_every: int = 500
    """Steps between two validations, each with a checkpoint; a multiple of log_every."""
    keep: int = 2
    """Checkpoints to keep besides the best by validation."""
    runs: Path = Path("runs")
    """Folder of all runs."""
    name: str | None = None
    """Folder of this run; by default dataset-encoder-N with the first free N."""
    resume: bool = False
    """Go on with the run of this name from its last checkpoint."""
    overwrite: bool = False
    """Replace the run of this name."""


def main(config: Config) -> Path:
    """Runs an experiment and returns its folder."""
    began = time.perf_counter()
    if config.name is not None:
        runs.check_name(config.name)
    config = resolved(config)
    option_checks.warn_of_reach([config])
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        # Virtual devices that wait for each other hold threads of XLA's pool, one to a core by
        # default: more devices than cores would wait for ever.
        os.environ.setdefault("PJRT_NPROC", "64")
    devices = jax.devices()
    if config.devices is not None:
        if not 0 < config.devices <= len(devices):
            raise ValueError(f"--devices must be from 1 to {len(devices)}, got {config.devices}")
        devices = devices[: config.devices]
    begun: dict[str, Any] = {}
    if config.resume:
        config, begun = as_begun(config, len(devices))
    options = settled(config, devices)
    steps, steps_per_call = options["steps"], options["steps_per_call"]

    # Data
    data = load(
        config.dataset,
        data_dir=config.data_dir,
        tfds_dir=config.tfds_dir,
        image_size=config.image_size,
        split_classes=config.split_classes,
    )
    check_evaluable(data)

    # Encoder, optimiser, step
    built = built_loss(config, options, data.train.classes)
    index = index_by_class(data.train.classes, options["similar_fraction"])
    assembled = assemble(config, options, data, index, built)
    encode, distance = assembled.encode, assembled.distance
    state = assembled.init(config.seed, built)

    with (
        _folder(config, options | begun) as folder,
        checkpoints.open_checkpoints(
            folder / "checkpoints", keep=config.keep, best_by=BEST_BY
        ) as saved,
        runs.open_events(folder, saved.latest_step() or 0) as events,
    ):
        start = saved.latest_step() or 0
        images = len(data.train.classes)
        print(f"{folder}: {data.name}, {images:,} training images, {steps:,} steps")
        if config.resume:
            without = "" if start else ", as there is no good checkpoint"
            print(f"{folder} goes on from step {start:,}{without}")
        if begun:
            print(
                f"it was begun with --devices {begun['devices']} --microbatches "
                f"{begun['microbatches']} and goes on with --devices {options['devices']} "
                f"--microbatches {options['microbatches']}, which gives the same numbers"
            )
        if start:
            state = checkpoints.restore(saved, start, jax.device_get(state))
        runs.truncate_metrics(folder, start)

        # Devices
        numbers = numbers_of(config, options, built)
        if config.data_on == "device":
            call = assembled.step
            if steps_per_call > 1:
                call = training.repeated(call, steps_per_call)
            placed = parallel(call, config.parallel, devices, check_values=config.check_values)
            source = placed.replicate(training.Source(*data.train, index))
            arguments: Iterator[Any] = itertools.repeat(source)
        else:
            assert assembled.pair_step is not None  # of batches that are drawn on the device
            placed = parallel(
                assembled.pair_step,
                config.parallel,
                devices,
                sharded=(1,),
                check_values=config.check_values,
            )
            pairs = stream_pairs(
                data.train.images,
                data.train.classes,
                seed=config.seed,
                batch_size=config.batch_size,
                similar_fraction=options["similar_fraction"],
                start_step=start,
            )
            arguments = (
                placed.shard(
                    training.Pairs(
                        first, second, first_classes=first_classes, second_classes=second_classes
                    )
                )
                for first, second, first_classes, second_classes in pairs
            )
        state, numbers = placed.replicate((state, numbers))

        # Training
        windows = training.train(
            lambda state: placed.step(state, next(arguments), numbers),
            state,
            start=start,
            steps=steps,
            window=config.log_every,
            steps_per_call=steps_per_call,
            batch_size=assembled.pairs,
        )
        inverted = 0
        try:
            with tqdm(total=steps, initial=start, unit="step", disable=None) as bar:
                for state, records in windows:
                    runs.write_metrics(folder, events, records)
                    now = int(records[-1]["step"])
                    means = {
                        key: float(np.mean([record[key] for record in records]))
                        for key in SHOWN
                        if key in records[0]
                    }
                    bar.update(now - bar.n)
                    bar.set_postfix_str(
                        "loss {loss:.4f}, similar {similar_distance:.2f}, dissimilar "
                        "{dissimilar_distance:.2f}, {pairs_per_second:,.0f} pairs/s".format(**means)
                        + (f", active {means['active_fraction']:.0%}" if built is None else "")
                    )
                    far = means["similar_distance"] > means["dissimilar_distance"]
                    inverted = inverted + 1 if far else 0
                    if inverted == INVERTED_WINDOWS:
                        training.warn_inverted(
                            means["similar_distance"], means["dissimilar_distance"]
                        )
                    if now % config.validate_every and now != steps:
                        continue
                    one = placed.fetch(state)
                    embeddings = training.embed(
                        encode, of_encoder(one.params), data.validation.images
                    )
                    figures = retrieval(embeddings, data.validation.classes)
                    validation = {f"validation/{key}": value for key, value in figures.items()}
                    runs.write_metrics(folder, events, [{"step": now} | validation])
                    checkpoints.save(saved, now, one, validation)
        except FloatingPointError as error:
            error.add_note(f"the last good checkpoint is of step {saved.latest_step() or 0}")
            raise

        # Evaluation, by the best state on validation
        best = saved.best_step()
        params = of_encoder(checkpoints.restore(saved, best, placed.fetch(state)).params)
        embedded = {
            split: training.embed(encode, params, getattr(data, split).images)
            for split in ("validation", "test")
        }
        _report(config, distance, folder, data, embedded, options | {"best_step": best})
    print(f"{folder} is complete after {time.perf_counter() - began:.0f} s")
    return folder


def as_begun(config: Config, devices: int) -> tuple[Config, dict[str, Any]]:
    """Spreads the batch of a resumed run so that its numbers stay the same on other devices.

    The sum over N devices with one microbatch each, and that over N microbatches on one device, add
    up the same parts in the same order. Any other change of the number of devices adds them up in
    another order, which gives other last digits.

    Args:
      config: what was asked for, from `resolved`.
      devices: how many there are now.

    Returns:
      The options to go on with, and those of the begun run that may differ from them, none where
      the number of devices is the same.

    Raises:
      FileNotFoundError: if there is no such run.
      ValueError: if its configuration is damaged, or its numbers would not stay the same.
    """
    folder = config.runs / str(config.name)
    before = runs.read_config(folder)
    begun = {key: before.get(key) for key in ("devices", "microbatches")}
    # Without them the run is none of this program, which the comparison of all options will say.
    if begun["devices"] == devices or None in begun.values():
        return config, {}
    swapped = {"devices": begun["microbatches"], "microbatches": begun["devices"]}
    ways = [begun]
    if config.objective == "pairs" and 1 in swapped.values() and swapped != begun:
        ways.append(swapped)
    now = {"devices": devices, "microbatches": config.microbatches or swapped["microbatches"]}
    if now not in ways:
        named = ["--devices {devices} --microbatches {microbatches}".format(**way) for way in ways]
        raise ValueError(
            f"{folder} was begun with {named[0]}; on {devices} devices its sums would come out in "
            "another order, and its numbers differ in the last digits: resume it with "
            + ", or with ".join(named)
        )
    group = config.group
    if group is None:
        group = before.get("group")
    return dataclasses.replace(config, microbatches=now["microbatches"], group=group), begun


def settled(config: Config, devices: Sequence[jax.Device]) -> dict[str, Any]:
    """All options, with defaults that depend on data set, loss and devices filled in.

    Args:
      config: what was asked for, from `resolved`.
      devices: over which a batch is spread.

    Returns:
      Every option by its name.

    Raises:
      ValueError: if options do not fit each other.
    """
    on_cpu = devices[0].platform == "cpu"
    recipe = dict(RECIPES.get(config.dataset, RECIPES["fashion_mnist"]))
    if (decay := loss_table.weight_decay_of(config.loss)) is not None:
        recipe["weight_decay"] = decay
    recipe |= {key: getattr(config, key) for key in recipe if getattr(config, key) is not None}
    # XLA computes convolutions inside a loop on a CPU by an unoptimised path.
    steps_per_call = 1 if on_cpu else config.log_every
    if config.steps_per_call is not None:
        steps_per_call = config.steps_per_call
    share = config.batch_size // len(devices)
    fits = share // 32 if share % 32 == 0 else 1
    # An MLP is all weights, which each part would read again.
    microbatches = max(fits, 1) if on_cpu and config.encoder != "mlp" else 1
    if config.microbatches is not None:
        microbatches = config.microbatches
    if config.group is None:
        recipe["group"] = math.gcd(recipe["group"], share // max(microbatches, 1)) or 1
    if config.objective == "all_pairs" and config.group is None:
        recipe["group"] = 1
    options = dataclasses.asdict(config) | recipe
    options |= {
        "dtype": {"auto": "float32" if on_cpu else "bfloat16"}.get(config.dtype, config.dtype),
        "microbatches": microbatches,
        "steps_per_call": steps_per_call,
        "devices": len(devices),
    }
    _check(options)
    return options


def built_loss(
    config: Config, options: dict[str, Any], labels: np.ndarray
) -> loss_table.Built | None:
    """The loss of whole batches that is asked for, or None of the contrastive one."""
    if config.loss == "contrastive":
        return None
    takes_fraction = "similar_fraction" in loss_table.options_of(config.loss)
    fraction = {"similar_fraction": options["similar_fraction"]} if takes_fraction else {}
    return loss_table.build(
        config.loss,
        fraction | config.loss_options,
        classes=loss_table.classes_of(labels),
        width=config.width,
        seed=config.seed,
    )


def numbers_of(
    config: Config, options: dict[str, Any], built: loss_table.Built | None
) -> training.Numbers:
    """What is data to the step."""
    return training.Numbers(
        config.margin or 1.0,
        config.seed,
        options["similar_fraction"],
        () if built is None else built.options,
    )


class Assembled(NamedTuple):
    """A step and what belongs to it."""

    encode: training.Encode
    init: Callable[[int, loss_table.Built | None], training.TrainState]
    """From a seed and a loss to the first state."""
    step: training.DrawnStep
    pair_step: training.PairStep | None
    """The step on given pairs, where there is one."""
    distance: Callable[..., jax.Array]
    pairs: int
    """Pairs that a batch compares."""


def assemble(
    config: Config,
    options: dict[str, Any],
    data: Dataset,
    index: ClassIndex,
    built: loss_table.Built | None,
    *,
    tunable: bool = False,
) -> Assembled:
    """Makes encoder, optimiser and step.

    Args:
      config: what was asked for, from `resolved`.
      options: from `settled`.
      data: to train on.
      index: of its training examples by class.
      built: from `built_loss`.
      tunable: whether learning rates, weight decay and norm of the gradient are data, kept in the
        state of the optimiser.

    Returns:
      All of these.

    Raises:
      ValueError: if classes and images of a batch, shifts or the encoder do not fit the data.
    """
    classes, examples = _balance(config, len(index.sizes))
    side = min(data.train.images.shape[1:3])
    if options["shift"] >= side:
        raise ValueError(
            f"--shift must be below the {side} pixels of an image's side, got {options['shift']}"
        )

    def parameters(seed: int) -> tuple[training.Encode, training.Params]:
        encoder = ENCODERS[config.encoder](
            data.train.images.shape[1:],
            config.width,
            normalize=config.normalize,
            dtype=options["dtype"],
            rngs=nnx.Rngs(seed),
        )
        return training.split_encoder(encoder)

    def make(factory: Callable[..., Any], learning_rate: float, **numbers: float) -> Any:
        if tunable:
            factory = optax.inject_hyperparams(factory, static_args=("steps", "warmup_steps"))
        steps = options["steps"]
        return factory(learning_rate, steps, warmup_steps=int(config.warmup * steps), **numbers)

    encode, params = parameters(config.seed)
    training.check_images(encode, params, **images_of(data))
    optimizer = make(
        training.make_optimizer,
        config.learning_rate,
        weight_decay=options["weight_decay"],
        clip_norm=config.clip_norm,
    )
    distance = DISTANCES[config.distance or "euclidean"] if built is None else built.distance
    if built is not None:
        rate = config.loss_learning_rate or built.learning_rate
        optimizer = make_learned_optimizer(optimizer, make(_optimizer_of_loss, rate))
    shared: dict[str, Any] = {
        "distance": distance,
        "augment": augmentation(options["flip"], options["shift"]),
        "microbatches": options["microbatches"],
    }
    pair_step, pairs = None, config.batch_size
    if config.objective == "all_pairs":
        if built is None:
            batch_step = training.make_all_pairs_step(encode, optimizer, **shared)
        else:
            batch_step = make_loss_step(
                encode, optimizer, built.value_of, max_age=config.max_age, **shared
            )
        step = training.make_balanced_step(batch_step, classes, examples)
        pairs = classes * examples * (classes * examples - 1) // 2
    else:
        pair_step = training.make_pair_step(encode, optimizer, group=options["group"], **shared)
        step = training.make_drawn_step(pair_step, config.batch_size)

    def init(seed: int, built: loss_table.Built | None) -> training.TrainState:
        params = parameters(seed)[1]
        if built is not None:
            params = Learned(params, built.params)
        state = training.init_state(params, optimizer)
        if config.memory:
            state = state._replace(memory=memory.empty(config.memory, config.width))
        return state

    return Assembled(encode, init, step, pair_step, distance, pairs)


def images_of(data: Dataset) -> dict[str, np.ndarray]:
    """The images of each split by its name, those that are trained on first."""
    return {
        "train": data.train.images,
        "validation": data.validation.images,
        "test": data.test.images,
    }


def _optimizer_of_loss(
    loss_learning_rate: float, steps: int, *, warmup_steps: int
) -> optax.GradientTransformation:
    return training.make_optimizer(loss_learning_rate, steps, warmup_steps=warmup_steps)


def of_encoder(params: Any) -> Any:
    """The parameters of the encoder, of those that a loss may have some among."""
    return params.encoder if isinstance(params, Learned) else params


def resolved(config: Config) -> Config:
    """Fills in the options whose defaults depend on the loss.

    Raises:
      ValueError: if an option has a wrong value, or no effect under the others.
    """
    config = option_checks.checked(config)
    option_checks.check_effects(config)
    if config.loss == "contrastive":
        option_checks.check_effects(config, option_checks.EFFECTS_OF_TRAINING)
        return dataclasses.replace(
            config,
            objective="pairs" if config.objective == "auto" else config.objective,
            distance=config.distance or "euclidean",
            margin=1.2 if config.margin is None else config.margin,
        )
    if config.loss not in loss_table.NAMES:
        close = difflib.get_close_matches(config.loss, loss_table.NAMES, n=3)
        raise ValueError(
            f"unknown loss {config.loss}; "
            + (f"close to it: {', '.join(close)}; " if close else "")
            + f"known: {', '.join(loss_table.NAMES)}"
        )
    options = dict(config.loss_options)
    if config.margin is not None:
        options["margin"] = config.margin
    # Before anything is read or written; the classes are not known yet.
    loss_table.build(config.loss, options, classes=2, width=config.width, seed=0)
    option_checks.check_effects(config, option_checks.EFFECTS_OF_TRAINING)
    return dataclasses.replace(
        config,
        objective="all_pairs",
        loss_options=options,
        margin=None,
        max_age=(config.max_age or 1000) if config.memory else None,
    )


def _check(options: dict[str, Any]) -> None:
    """Checks what options say together, before any data is read."""
    for name, unit in (
        ("batch_size", "devices"),
        ("validate_every", "log_every"),
        ("log_every", "steps_per_call"),
        ("steps", "steps_per_call"),
    ):
        if options[name] % options[unit]:
            raise ValueError(
                f"--{name} must be a multiple of --{unit}, got {options[name]} and {options[unit]}"
            )
    share, parts = options["batch_size"] // options["devices"], options["microbatches"]
    if share % (parts * options["group"]):
        raise ValueError(
            "the pairs of a device (--batch_size over --devices) must be a multiple of "
            f"--microbatches times --group, got {share} pairs, {parts} microbatches and groups of "
            f"{options['group']}"
        )
    if options["data_on"] == "host" and options["steps_per_call"] != 1:
        raise ValueError("--data_on host takes one step to a call: give --steps_per_call 1")
    if options["memory"] and options["memory"] < 2 * options["batch_size"]:
        raise ValueError(
            f"--memory must be 0 or at least the {2 * options['batch_size']} images of a batch "
            f"(twice --batch_size), got {options['memory']}"
        )


def _balance(config: Config, known: int) -> tuple[int, int]:
    """Classes in a batch of all pairs, and examples of each."""
    images = 2 * config.batch_size
    classes = config.batch_classes
    if classes is None:
        classes = max(count for count in range(1, min(32, known) + 1) if images % count == 0)
    if config.objective == "all_pairs" and (not 1 < classes <= known or images % classes):
        raise ValueError(
            f"--batch_classes must be from 2 to {known}, the classes of the training data, and "
            f"divide the {images} images of a batch (twice --batch_size), got {classes}"
        )
    return classes, images // classes


def augmentation(mirror: bool, pixels: int) -> augment.Augment | None:
    """Moves an image at random by up to so many pixels, and mirrors it or not; None for neither."""
    if not mirror and not pixels:
        return None

    def change(key: jax.Array, image: jax.Array) -> jax.Array:
        first, second = jax.random.split(key)
        image = augment.shift(first, image, pixels) if pixels else image
        return augment.flip(second, image) if mirror else image

    return change


def _folder(config: Config, options: dict[str, Any]) -> AbstractContextManager[Path]:
    return runs.open_run(
        config.runs,
        config.name,
        f"{config.dataset}-{config.encoder}",
        json.loads(json.dumps(options, default=str)),
        resume=config.resume,
        overwrite=config.overwrite,
        free=FREE,
    )


def _report(
    config: Config,
    distance: Any,
    folder: Path,
    data: Dataset,
    embedded: dict[str, np.ndarray],
    options: dict[str, Any],
) -> None:
    """Writes the figures on test, as numbers and as pictures, beside those of raw pixels."""
    test, validation = data.test, data.validation

    def summary(of_validation: np.ndarray, of_test: np.ndarray) -> Summary:
        return summarize(
            of_validation,
            validation.classes,
            of_test,
            test.classes,
            distance=distance,
        )

    pixels = [split.images.reshape(len(split.images), -1) / 255.0 for split in (validation, test)]
    summaries = {
        "embedding": summary(embedded["validation"], embedded["test"]),
        "raw pixels": summary(*pixels),
    }
    table = _table(summaries)
    print(table)
    (folder / "results.md").write_text(table + "\n")
    (folder / "results.json").write_text(
        json.dumps(
            {name: one.figures for name, one in summaries.items()}
            | {"best_step": options["best_step"]},
            indent=2,
        )
        + "\n"
    )
    np.savez(folder / "embeddings.npz", embeddings=embedded["test"], classes=test.classes)

    learned = summaries["embedding"]
    neighbours = nearest_neighbours(embedded["test"], k=min(8, len(test.classes) - 1)).indices
    figures = {
        "distances": plots.distance_histograms(
            learned.distances, learned.labels, margin=config.margin, threshold=learned.threshold
        ),
        "roc": plots.roc(
            {
                f"{name} (AUC {one.figures['auc']:.3f})": roc_curve(one.distances, one.labels)[1:]
                for name, one in summaries.items()
            }
        ),
        "map": plots.embedding_map(
            embedded["test"], test.classes, images=test.images, class_names=data.class_names
        ),
        "map_classes": plots.embedding_map(
            embedded["test"], test.classes, class_names=data.class_names
        ),
        "gallery": plots.gallery(
            test.images,
            test.classes,
            neighbours,
            _instructive(neighbours, test.classes),
            class_names=data.class_names,
        ),
        "training": plots.training_curves(runs.read_metrics(folder), margin=config.margin),
    }
    if config.loss == "contrastive" and config.margin is not None:
        figures["loss"] = plots.loss_curve(losses.contrastive, config.margin)
    (folder / "figures").mkdir(exist_ok=True)
    for name, figure in figures.items():
        plots.save(figure, folder / "figures" / f"{name}.png")


def _instructive(neighbours: np.ndarray, classes: np.ndarray, count: int = 4) -> np.ndarray:
    """Queries for the gallery: some with the right nearest neighbour and some with a wrong one."""
    right = classes[neighbours[:, 0]] == classes
    shuffled = np.random.default_rng(0).permutation(len(classes))
    return np.concatenate([shuffled[right[shuffled]][:count], shuffled[~right[shuffled]][:count]])


def _table(summaries: dict[str, Summary]) -> str:
    rows = [["on test", *summaries], ["---", *["---:"] * len(summaries)]]
    for key, title in TITLES.items():
        rows.append([title, *[f"{one.figures[key]:.4f}" for one in summaries.values()]])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def parse(arguments: list[str] | None = None) -> Config:
    """Reads options from the command line; an unknown one is an error that lists the known."""
    config, unknown = tyro.cli(
        Config,
        prog="python -m experiments.train",
        description=str(__doc__).splitlines()[0],
        use_underscores=True,
        args=arguments,
        return_unknown_args=True,
    )
    if unknown:
        known = [f"--{field.name}" for field in dataclasses.fields(Config)]
        name = unknown[0].split("=")[0]
        close = difflib.get_close_matches(name, known, n=3)
        raise ValueError(
            f"unknown option {name}; "
            + (f"close to it: {', '.join(close)}; " if close else "")
            + f"known: {', '.join(known)}; --help explains them"
        )
    return config


if __name__ == "__main__":
    command.run(main, parse)

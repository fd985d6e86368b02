"""Options that several programs have, and what they mean for a training."""

import contextlib
import dataclasses
import math
import typing
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import jax

from contrastive_jax import cli, distances, models, train
from contrastive_jax.data import Dataset, PairDataset, as_text, augment, load, load_with_report
from contrastive_jax.data.categories import categories_of
from contrastive_jax.data.evaluable import check_evaluable, with_classes
from contrastive_jax.train import folder, loss_table, preconditions, ranges
from contrastive_jax.train.optimizer import make_optimizers
from contrastive_jax.train.recipes import recipe
from experiments import command

Encoder = Literal["linear", "mlp", "residual", "drlim", "convnet", "resnet18"]
ENCODERS = {
    "linear": models.Linear,
    "mlp": models.MLP,
    "residual": models.Residual,
    "drlim": models.DrLIM,
    "convnet": models.ConvNet,
    "resnet18": models.ResNet18,
}
# The encoders that take vectors; they are all weights, which each part of a batch would read again.
ENCODERS_OF_VECTORS = ("linear", "mlp", "residual")
STEPS_ON_VECTORS = 2000
# Options of programs that may differ when a run is resumed: they do not change its numbers.
FREE = {"resume", "overwrite", "name", "runs", "data_dir", "tfds_dir"}
Distance = Literal["euclidean", "squared_euclidean", "cosine", "angular", "manhattan", "chebyshev"]
DISTANCES = {name: getattr(distances, name) for name in typing.get_args(Distance)}


@dataclasses.dataclass(frozen=True)
class Data:
    """Options of the data set."""

    dataset: str | None = None
    """digits (the default), fashion_mnist, mnist, idx (IDX files of any other set), or any name in
    tensorflow-datasets with images and labels."""
    data: Path | None = None
    """Data of your own in place of a data set by name: a folder of class folders of images, a table
    (CSV, Parquet), vectors (npz, npy, safetensors), or a folder of Hugging Face datasets."""
    data_dir: Path | None = None
    """Folder of the raw IDX files of fashion_mnist, mnist or idx; Debian's by default."""
    tfds_dir: Path | None = None
    """Folder of prepared data sets; that of tensorflow-datasets by default."""
    image_size: int | None = None
    """Side to which images are scaled; with --dataset needed where they differ in size, with --data
    at most 64 there by default."""
    split: Literal["classes", "examples"] | None = None
    """Test on classes never seen in training, or on other examples of every class. By default
    examples; with --data classes where they are many and small, and splits that it has as they
    are."""
    on_bad_input: Literal["error", "skip"] = "error"
    """Stop at images of --data that can not be read and at pairs that contradict each other, or
    leave them out."""
    similar_label: Literal[0, 1] | None = None
    """The label of positive pairs, for a table of pairs with a column label."""


@dataclasses.dataclass(frozen=True)
class Training:
    """Options of the encoder, the objective and the optimizer."""

    encoder: Encoder | None = None
    """Network from images to embeddings; by default convnet, and linear on vectors, which linear,
    mlp and residual take."""
    width: int = 64
    """Number of entries of an embedding."""
    normalize: bool = True
    """Scale embeddings to unit length: distances lie in [0, 2] and the margin has a meaning."""
    loss: Annotated[
        str,
        cli.arg(
            metavar="NAME",
            help="The loss. Pair losses such as contrastive compare drawn pairs or all pairs of a "
            "batch, the others are of whole batches: " + ", ".join(loss_table.NAMES) + ".",
        ),
    ] = "contrastive"
    loss_options: cli.NamedValues = dataclasses.field(default_factory=dict)
    """Hyperparameters of the loss in place of those it is trained with, as temperature=0.1."""
    objective: Literal["auto", "pairs", "all_pairs"] = "auto"
    """Compare drawn pairs, or all images of a batch of some classes with some examples of each;
    auto is pairs for the contrastive loss and all_pairs for the others."""
    distance: Distance | None = None
    """Distance of the contrastive loss and of verification, euclidean by default; retrieval ranks
    by the Euclidean distance. Other losses have their own."""
    positive_fraction: float | None = None
    """Share of positive pairs, in number and, in groups and with all_pairs, in weight; by default
    0.3 on digits and 0.05 elsewhere."""
    group: int | None = None
    """Pairs whose members are compared across, G^2 pairs for the cost of G; 1 compares the drawn
    pairs alone. 32 by default, less where a device has fewer pairs."""
    batch_size: int = 128
    """Pairs in a batch, over all devices; with all_pairs half the number of images."""
    balanced: bool | None = None
    """Draw positive and negative given pairs equally often, the default, or every pair as
    often."""
    learning_rate: float = 4e-3
    """Peak of the learning rate: linear warm-up, then cosine decay to zero."""
    weight_decay: float | None = None
    """Decoupled weight decay of matrices and kernels; by default 1 on digits, of which there are
    few, and 0.1 elsewhere and with triplet_hard."""


@dataclasses.dataclass(frozen=True)
class Batches:
    """Options of a batch: the images that it has, how they are changed, and which are similar."""

    flip: bool | None = None
    """Mirror training images at random; by default on data sets by name, but those of
    digits."""
    shift: int | None = None
    """Move training images at random by up to so many pixels; 1 by default."""
    augment: tuple[str, ...] = ()
    """More random changes of training images, as rotate=10 cutout=0.3: crop (least share of the
    area), scale (factor), rotate (degrees), brightness, contrast, colour (share) and cutout (side),
    each with or without its amount."""
    views: int = 1
    """Views of each image in a batch, changed at random, of which those of one image alone are
    similar; 2 with ntxent is SimCLR. The batch is as large as without views."""
    repeat: bool = True
    """Repeat examples of classes that have fewer than a batch takes; otherwise it has fewer."""
    by_size: bool = False
    """Draw classes in proportion to their examples, and not each as often."""
    category: str | None = None
    """Draw all classes of a batch from one category, which makes negatives hard: group, or the name
    of a column of the table."""
    labels: str = "class"
    """Which images are similar, by columns of a table: class, those of one class; other_group, the
    same but for those of one group, such as a camera, which are left out; any_shared=COLUMN, those
    that share one of several labels, as red; round; within=COLUMN:THRESHOLD, those whose numbers
    are closer, with :APART beyond which they are dissimilar; hierarchy=COLUMN,COLUMN, those that
    agree in all. Validation and test use the same labels; batches are drawn by class."""
    batch_classes: int | None = None
    """Classes in a batch of all_pairs; by default the largest number up to 32 that divides the
    images."""


@dataclasses.dataclass(frozen=True)
class NewRuns:
    """Options of the folder of a run that is not resumed."""

    runs: Path = Path("runs")
    """Folder of all runs."""
    name: str | None = None
    """Folder of this run; by default named after program, data set and encoder, with the first
    free number."""
    overwrite: bool = False
    """Replace the run of this name."""


@dataclasses.dataclass(frozen=True)
class Runs(NewRuns):
    """Options of the folder of a run."""

    resume: str | None = None
    """Go on with the run of this name, with its own options."""


def open_run(
    config: Any, default_name: str, record: dict[str, Any], **options: Any
) -> contextlib.AbstractContextManager[Path]:
    """Creates the run that the options name, or opens it where it is resumed.

    Args:
      config: options of a program.
      default_name: the name of a nameless run.
      record: every option, JSON types.
      **options: `free` and `shared`, as in `contrastive_jax.train.folder.open_run`.
    """
    resume, overwrite = getattr(config, "resume", None), config.overwrite
    options |= {"resume": resume is not None, "overwrite": overwrite}
    return folder.open_run(config.runs, resume or config.name, default_name, record, **options)


def read_data(config: Data) -> Dataset | PairDataset:
    """Loads the data set that the options name, and prints a report of data of one's own."""
    if config.data is None:
        return load(
            data_name(config),
            data_dir=config.data_dir,
            tfds_dir=config.tfds_dir,
            image_size=config.image_size,
            split_by=config.split,
        )
    data, report = load_with_report(
        config.data,
        image_size=config.image_size,
        split_by=config.split,
        similar_label=config.similar_label,
        on_bad_input=config.on_bad_input,
    )
    print(as_text(report))
    return data


def load_data(config: Data) -> Dataset | PairDataset:
    """Loads a data set as `read_data`, and checks that its splits can be evaluated."""
    data = read_data(config)
    check_evaluable(data)
    return data


def data_name(config: Data) -> str:
    """Returns the name of the data set, or one after the file or folder of data of one's own."""
    if config.data is None:
        return config.dataset or "digits"
    return folder.name_after(config.data)


def resolved(config: Any) -> Any:
    """Fills in the options of a training whose defaults depend on the loss, which checks them."""
    loss_table.check_name(config.loss)
    loss_table.check_hyperparameters(config.loss, config.loss_options)
    if config.loss in loss_table.PAIRS:
        fraction = config.loss_options.get("positive_fraction", config.positive_fraction)
        config = dataclasses.replace(config, positive_fraction=fraction)
    if config.memory and config.max_age is None:
        config = dataclasses.replace(config, max_age=1000)
    if config.loss == "contrastive":
        return dataclasses.replace(
            config,
            objective="pairs" if config.objective == "auto" else config.objective,
            distance=config.distance or "euclidean",
            margin=config.loss_options.get("margin", config.margin or 1.2),
        )
    margin = {} if config.margin is None else {"margin": config.margin}
    loss_options = config.loss_options | margin
    train.objective(config.loss, **loss_options)
    return dataclasses.replace(
        config, objective="all_pairs", loss_options=loss_options, margin=None
    )


def devices_of(config: Any) -> list[jax.Device]:
    """Returns as many devices as the options say, by default all."""
    devices = jax.devices()
    if config.devices is not None and not 0 < config.devices <= len(devices):
        raise ValueError(f"--devices must be from 1 to {len(devices)}, got {config.devices}")
    return devices[: config.devices]


def recipe_of(config: Data) -> dict[str, Any]:
    """Returns the defaults of options that depend on the data set."""
    return recipe(None if config.data else data_name(config))


def settled(config: Any, devices: Sequence[jax.Device]) -> dict[str, Any]:
    """Fills in the defaults that depend on data set, loss and devices.

    Args:
      config: options from `resolved`.
      devices: over which a batch is spread.

    Returns:
      Every option by its name, checked against the others.
    """
    on_cpu = devices[0].platform == "cpu"
    share, microbatches = config.batch_size // len(devices), config.microbatches
    if microbatches is None:
        in_parts = on_cpu and config.encoder not in ENCODERS_OF_VECTORS and share % 32 == 0
        microbatches = max(share // 32, 1) if in_parts else 1
    chosen = recipe_of(config)
    chosen["group"] = math.gcd(chosen["group"], share // max(microbatches, 1)) or 1
    if config.objective == "all_pairs":
        chosen["group"] = 1
    if (decay := loss_table.TABLE[config.loss].weight_decay) is not None:
        chosen["weight_decay"] = decay
    chosen |= {key: getattr(config, key) for key in chosen if getattr(config, key) is not None}
    options = dataclasses.asdict(config) | chosen
    options |= {
        "dtype": {"auto": "float32" if on_cpu else "bfloat16"}.get(config.dtype, config.dtype),
        "microbatches": microbatches,
        "devices": len(devices),
    }
    with command.naming_options(options):
        _check(config, options)
    return options


def _check(config: Any, options: dict[str, Any]) -> None:
    """Checks what options say together, before any data is read."""
    steps_per_call = options["steps_per_call"] or 1
    units = [("batch_size", "devices"), *preconditions.SCHEDULE]
    ranges.check_multiples(options | {"steps_per_call": steps_per_call}, units)
    if options["data_on"] == "host" and steps_per_call != 1:
        raise ValueError("--data_on host takes one step to a call: give --steps_per_call 1")
    batch, objective = batch_of_training(config, options), objective_of(config, options)
    preconditions.check_batches(objective, **batch, categories=config.category)
    shares = {key: options[key] for key in ("devices", "microbatches")}
    preconditions.check_shares(objective, batch_size=batch["batch_size"], **shares)


def objective_of(config: Any, options: Mapping[str, Any] | None = None) -> train.Objective:
    """Makes the objective that the options name.

    Args:
      config: options from `resolved`.
      options: from `settled`; by default pairs and their share are those of the loss.
    """
    takes_fraction = "positive_fraction" in loss_table.hyperparameters_of(config.loss)
    values = (
        {"positive_fraction": options["positive_fraction"]} if options and takes_fraction else {}
    )
    if config.loss == "contrastive":
        values |= {
            "on": config.objective,
            "distance": DISTANCES[config.distance],
            "group": options["group"] if options and config.objective == "pairs" else 1,
            "margin": config.margin,
        }
    return train.objective(config.loss, labels=config.labels, **values | config.loss_options)


def batch_of(config: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `train.fit` that say how a batch is made, but for categories."""
    names = ("batch_size", "batch_classes", "repeat", "by_size", "views")
    flip, shift = options["flip"], options["shift"]
    changed = augment.from_options(config.augment, flip=flip, shift=shift)
    return {name: getattr(config, name) for name in names} | {"augment": changed}


def batch_of_training(config: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `batch_of` for a training, whose batch is counted in pairs."""
    memory = {"memory_size": config.memory, "max_age": config.max_age}
    return batch_of(config, options) | {"batch_size": 2 * config.batch_size} | memory


def training_of(
    config: Any, options: dict[str, Any], data: Dataset | PairDataset, tunable: Sequence[str] = ()
) -> dict[str, Any]:
    """Returns the arguments of `train.fit` that its steps depend on, as the options name them.

    Args:
      config: options from `option_checks.for_data`.
      options: from `settled`.
      data: to train on.
      tunable: hyperparameters of the optimizers that are part of their state.
    """
    objective = objective_of(config, options)
    encoder, loss = make_optimizers(
        options["steps"],
        learning_rate=config.learning_rate,
        weight_decay=options["weight_decay"],
        clip_norm=config.clip_norm,
        warmup=config.warmup,
        loss_learning_rate=config.loss_learning_rate or objective.learning_rate,
        tunable=tunable,
    )
    return {
        "model": partial(
            ENCODERS[config.encoder],
            width=config.width,
            normalize=config.normalize,
            dtype=options["dtype"],
        ),
        "data": data,
        # The margin was checked before data was read: `fit` need not warn of it again.
        "objective": objective._replace(bounded=False),
        "steps": options["steps"],
        "seed": config.seed,
        "balanced": options["balanced"] is not False,
        "categories": config.category and categories_of(with_classes(data), config.category),
        "microbatches": options["microbatches"],
        "remat": config.microbatches is not None,
        "optimizer": encoder,
        "loss_optimizer": loss,
    } | batch_of_training(config, options)

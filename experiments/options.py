"""Options that several programs have, and what they mean for a training."""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import optax

from contrastive_jax._extras import needs

with needs("train", "experiments.options"):
    import tyro

from contrastive_jax import distances, labels, models, train
from contrastive_jax.data import (
    Dataset,
    PairDataset,
    as_text,
    augment,
    check_evaluable,
    load,
    load_with_report,
)
from contrastive_jax.data.pair_checks import check_given_pairs
from contrastive_jax.train import loss_table
from contrastive_jax.train.batches import balance
from contrastive_jax.train.labelled import with_labels
from experiments.loss_options import LossOptions

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
DISTANCES = {
    "euclidean": distances.euclidean,
    "squared_euclidean": distances.squared_euclidean,
    "cosine": distances.cosine,
    "angular": distances.angular,
    "manhattan": distances.manhattan,
    "chebyshev": distances.chebyshev,
}
# Chosen on validation.
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
# Images of one's own may be characters or signatures, which are others in a mirror.
OWN_RECIPE = RECIPES["mnist"] | {"steps": 2000}


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
    """The label of similar pairs, for a table of pairs with a column label."""


@dataclasses.dataclass(frozen=True)
class Training:
    """Options of the encoder, the objective and the optimizer."""

    encoder: Literal["linear", "mlp", "residual", "drlim", "convnet", "resnet18"] | None = None
    """Network from images to embeddings; by default convnet, and linear on vectors, which linear,
    mlp and residual take."""
    width: int = 64
    """Number of entries of an embedding."""
    normalize: bool = True
    """Scale embeddings to unit length: distances lie in [0, 2] and the margin has a meaning."""
    loss: Annotated[
        str,
        tyro.conf.arg(
            metavar="NAME",
            help="The loss. Pair losses such as contrastive compare drawn pairs or all pairs of a "
            "batch, the others are of whole batches: " + ", ".join(loss_table.NAMES) + ".",
        ),
    ] = "contrastive"
    loss_options: LossOptions = dataclasses.field(default_factory=dict)
    """Hyperparameters of the loss in place of those it is trained with, as temperature=0.1."""
    objective: Literal["auto", "pairs", "all_pairs"] = "auto"
    """Compare drawn pairs, or all images of a batch of some classes with some examples of each;
    auto is pairs for the contrastive loss and all_pairs for the others."""
    distance: (
        Literal["euclidean", "squared_euclidean", "cosine", "angular", "manhattan", "chebyshev"]
        | None
    ) = None
    """Distance of the contrastive loss and of verification, euclidean by default; retrieval ranks
    by the Euclidean distance. Other losses have their own."""
    similar_fraction: float | None = None
    """Share of similar pairs, in number and, in groups and with all_pairs, in weight; by default
    0.3 on digits and 0.05 elsewhere."""
    group: int | None = None
    """Pairs whose members are compared across, G^2 pairs for the cost of G; 1 compares the drawn
    pairs alone. 32 by default, less where a device has fewer pairs."""
    batch_size: int = 128
    """Pairs in a batch, over all devices; with all_pairs half the number of images."""
    balanced: bool | None = None
    """Draw similar and dissimilar given pairs equally often, the default, or every pair as
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
class Runs:
    """Options of the folder of a run."""

    runs: Path = Path("runs")
    """Folder of all runs."""
    name: str | None = None
    """Folder of this run; by default named after program, data set and encoder, with the first
    free number."""
    resume: str | None = None
    """Go on with the run of this name, with its own options."""
    overwrite: bool = False
    """Replace the run of this name."""


def read_data(config: Data) -> Dataset | PairDataset:
    """Loads the data set that the options name, and prints a report of data of one's own.

    Raises:
      FileNotFoundError, ImportError, ValueError: as `contrastive_jax.data.load`.
    """
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
    """Loads the data set that the options name, as `read_data`, to train on it and to evaluate.

    Raises:
      FileNotFoundError, ImportError, ValueError: as `read_data`, or if its splits can not be
        evaluated.
    """
    data = read_data(config)
    if isinstance(data, PairDataset):
        check_given_pairs(data)
    else:
        check_evaluable(data)
    return data


def with_classes(data: Dataset | PairDataset) -> Dataset:
    """Returns a data set that has classes.

    Raises:
      ValueError: if it has given pairs.
    """
    if isinstance(data, PairDataset):
        raise ValueError(
            f"{data.name} has given pairs, which this program does not train on: give examples "
            "with classes"
        )
    return data


def data_name(config: Data) -> str:
    """Returns the name of the data set, or of the file or folder of data of one's own.

    A run is named after it, so that it has letters, digits, `-`, `_` and `.` alone.
    """
    if config.data is None:
        return config.dataset or "digits"
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", config.data.resolve().stem).strip("-.")
    return name[:60] or "data"


def images_of(data: Dataset | PairDataset) -> np.ndarray:
    """Returns the images, or vectors, that a data set trains on."""
    return data.images if isinstance(data, PairDataset) else data.train.images


def resolved(config: Any) -> Any:
    """Fills in the options whose defaults depend on the loss.

    Args:
      config: options of a single training.

    Raises:
      ValueError: if there is no such loss, or one of its hyperparameters has a wrong value.
    """
    loss_table.check_name(config.loss)
    loss_options = dict(config.loss_options)
    if config.loss == "contrastive":
        return dataclasses.replace(
            config,
            objective="pairs" if config.objective == "auto" else config.objective,
            distance=config.distance or "euclidean",
            margin=1.2 if config.margin is None else config.margin,
            max_age=(config.max_age or 1000) if config.memory else None,
        )
    if config.margin is not None:
        loss_options["margin"] = config.margin
    train.objective(config.loss, **loss_options)
    return dataclasses.replace(
        config,
        objective="all_pairs",
        loss_options=loss_options,
        margin=None,
        max_age=(config.max_age or 1000) if config.memory else None,
    )


def recipe_of(config: Data) -> dict[str, Any]:
    """Returns the defaults of options that depend on the data set."""
    if config.data:
        return dict(OWN_RECIPE)
    return dict(RECIPES.get(data_name(config), RECIPES["fashion_mnist"]))


def settled(config: Any, devices: Sequence[jax.Device]) -> dict[str, Any]:
    """Fills in the defaults that depend on data set, loss and devices.

    Args:
      config: options from `resolved`.
      devices: over which a batch is spread.

    Returns:
      Every option by its name.

    Raises:
      ValueError: if options do not fit each other.
    """
    on_cpu = devices[0].platform == "cpu"
    recipe = recipe_of(config)
    if (decay := loss_table.TABLE[config.loss].weight_decay) is not None:
        recipe["weight_decay"] = decay
    recipe |= {key: getattr(config, key) for key in recipe if getattr(config, key) is not None}
    # XLA computes convolutions inside of a loop on a CPU by an unoptimised path.
    steps_per_call = 1 if on_cpu or config.data_on == "host" else config.log_every
    if config.steps_per_call is not None:
        steps_per_call = config.steps_per_call
    share = config.batch_size // len(devices)
    fits = share // 32 if share % 32 == 0 else 1
    in_parts = on_cpu and config.encoder not in ENCODERS_OF_VECTORS
    microbatches = max(fits, 1) if in_parts else 1
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
    images, views = 2 * options["batch_size"], options["views"]
    for name in ("views", "batch_classes"):
        if (value := options[name]) and images % value:
            raise ValueError(
                f"--{name} must divide the {images} images of a batch (twice --batch_size), got "
                f"{value}"
            )
    check_views(views, augmentation(options["flip"], options["shift"], options["augment"]))
    if options["data_on"] == "host" and options["steps_per_call"] != 1:
        raise ValueError("--data_on host takes one step to a call: give --steps_per_call 1")
    if options["memory"] and options["memory"] < 2 * options["batch_size"]:
        raise ValueError(
            f"--memory must be 0 or at least the {2 * options['batch_size']} images of a batch "
            f"(twice --batch_size), got {options['memory']}"
        )


def check_views(views: int, change: augment.Augment | None) -> None:
    """Checks that the views of an image differ.

    Raises:
      ValueError: if there are several and nothing changes an image.
    """
    if views > 1 and change is None:
        raise ValueError("views of one image would all be equal: give --augment, --flip or --shift")


def model_of(config: Any, options: dict[str, Any]) -> Callable[..., Any]:
    """Returns the encoder that the options name, as `train.network` takes it."""
    return partial(
        ENCODERS[config.encoder],
        width=config.width,
        normalize=config.normalize,
        dtype=options["dtype"],
    )


def objective_of(config: Any, options: dict[str, Any]) -> train.Objective:
    """Makes the objective that the options name, with its labels of two rows if they name some.

    Args:
      config: options from `resolved`.
      options: from `settled`.
    """
    return labelled(_objective_by_class(config, options), config.labels)


def labelled(objective: train.Objective, by: str) -> train.Objective:
    """Returns an objective with the labels of two rows that `--labels` names.

    Raises:
      ValueError: if it takes none.
    """
    rule = labels_named(by)
    return objective if rule is None else with_labels(objective, rule)


def labels_named(by: str) -> labels.PairLabels | None:
    """Returns the labels of two rows that `--labels` names, None for those by class."""
    return None if by == "class" else labels.by_name(by)


def _objective_by_class(config: Any, options: dict[str, Any]) -> train.Objective:
    if config.loss == "contrastive":
        return train.objective(
            "contrastive",
            on=config.objective,
            distance=DISTANCES[config.distance],
            group=options["group"] if config.objective == "pairs" else 1,
            margin=config.margin,
            similar_fraction=options["similar_fraction"],
        )
    takes_fraction = "similar_fraction" in loss_table.hyperparameters_of(config.loss)
    fraction = {"similar_fraction": options["similar_fraction"]} if takes_fraction else {}
    return train.objective(config.loss, **fraction | config.loss_options)


def optimizers_of(
    config: Any, options: dict[str, Any], objective: train.Objective, *, tunable: bool = False
) -> dict[str, optax.GradientTransformation]:
    """Makes the optimizers of the encoder and of the parameters of the loss.

    Args:
      config: options from `resolved`.
      options: from `settled`.
      objective: from `objective_of`.
      tunable: whether learning rates, weight decay and the norm of the gradient are part of the
        state, so that another value compiles nothing.
    """
    steps = options["steps"]

    def make(factory: Callable[..., Any], learning_rate: float, **values: float) -> Any:
        if tunable:
            factory = optax.inject_hyperparams(factory, static_args=("steps", "warmup_steps"))
        return factory(learning_rate, steps, warmup_steps=int(config.warmup * steps), **values)

    rate = config.loss_learning_rate or objective.learning_rate
    return {
        "optimizer": make(
            train.make_optimizer,
            config.learning_rate,
            weight_decay=options["weight_decay"],
            clip_norm=config.clip_norm,
        ),
        "loss_optimizer": make(_optimizer_of_loss, rate),
    }


def _optimizer_of_loss(
    loss_learning_rate: float, steps: int, *, warmup_steps: int
) -> optax.GradientTransformation:
    return train.make_optimizer(loss_learning_rate, steps, warmup_steps=warmup_steps)


def batch_of(config: Any, options: dict[str, Any], data: Dataset | PairDataset) -> dict[str, Any]:
    """Returns the arguments of `train.fit` that say how a batch is made.

    Raises:
      ValueError: if shifts, or classes and images of a batch, do not fit the data.
    """
    check_shift(options["shift"], data)
    if config.objective == "all_pairs" and isinstance(data, Dataset):
        try:
            balance(
                2 * config.batch_size, config.batch_classes, len({*data.train.classes.tolist()})
            )
        except ValueError as error:
            raise ValueError(f"--{error} (twice --batch_size)") from None
    return {
        "batch_size": 2 * config.batch_size,
        "batch_classes": config.batch_classes,
        "balanced": options["balanced"] is not False,
        "augment": augmentation(options["flip"], options["shift"], config.augment),
        "views": config.views,
        "repeat": config.repeat,
        "by_size": config.by_size,
        "categories": categories_of(config.category, data),
        "microbatches": options["microbatches"],
        "remat": config.microbatches is not None,
        "memory_size": config.memory,
        "max_age": config.max_age,
    }


def check_shift(pixels: int, data: Dataset | PairDataset) -> None:
    """Checks that images can be moved by so many pixels.

    Raises:
      ValueError: if they are not as wide.
    """
    side = min(images_of(data).shape[1:3])
    if pixels and pixels >= side:
        raise ValueError(
            f"--shift must be below the {side} pixels of an image's side, got {pixels}"
        )


def categories_of(column: str | None, data: Dataset | PairDataset) -> Any:
    """Returns the column of the training examples that an option names, None without one.

    Raises:
      ValueError: if the data has no such column.
    """
    if column is None or isinstance(data, PairDataset):
        return None
    columns = dict(data.train.attributes)
    if data.train.groups is not None:
        columns["group"] = data.train.groups
    if column not in columns:
        raise ValueError(
            f"--category must be a column of {data.name}, which has "
            f"{', '.join(columns) or 'none besides images and classes'}, got {column}"
        )
    return columns[column]


def augmentation(mirror: bool, pixels: int, changes: Sequence[str] = ()) -> augment.Augment | None:
    """Makes the random change of an image that the options name.

    Args:
      mirror: whether it may be mirrored.
      pixels: by how many it may be moved.
      changes: others, as `augment.by_names` takes them, which come first.

    Returns:
      The change, None where there is none.
    """
    others = augment.by_names(changes)
    moved = _moved_and_mirrored(mirror, pixels)
    if not others:
        return moved
    return augment.chain(*others, *([] if moved is None else [moved]))


def _moved_and_mirrored(mirror: bool, pixels: int) -> augment.Augment | None:
    if not mirror and not pixels:
        return None

    def change(key: jax.Array, image: jax.Array) -> jax.Array:
        first, second = jax.random.split(key)
        image = augment.shift(first, image, pixels) if pixels else image
        return augment.flip(second, image) if mirror else image

    return change

"""A trained encoder, with all that it takes to use it, and the folder it is loaded from.

runs/NAME/run.json    encoder, image shape, class names, distance, threshold, calibration, versions
          encoder/    weights of the encoder
"""

import functools
import importlib
import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from contrastive_jax.evaluation.calibration import Calibration, calibrate, probability
from contrastive_jax.evaluation.retrieval import Neighbours, nearest_neighbours
from contrastive_jax.evaluation.summary import drawn_distances
from contrastive_jax.evaluation.verification import best_threshold
from contrastive_jax.labels.types import PairLabels
from contrastive_jax.train import checkpoints
from contrastive_jax.train.networks import Network, embed, network
from contrastive_jax.train.types import Weights

RUN = "run.json"
ENCODER = "encoder"


class Comparison(NamedTuple):
    """Pairs of images as an encoder compares them."""

    distance: np.ndarray
    """`[N]`, in the unit of the run's distance."""
    probability: np.ndarray
    """The probability that both are of the same class, `[N]`."""
    same: np.ndarray
    """True where the distance is at most the validated threshold, `[N]`."""


@dataclass(frozen=True)
class Run:
    """A trained encoder and how to use it; from `fit` or `load`.

    Example:
      >>> import contrastive_jax as cj
      >>> digits = cj.data.load("digits")
      >>> run = cj.train.fit(
      ...     cj.models.MLP, digits, cj.train.objective("contrastive"), steps=20, progress=False
      ... )
      >>> run = cj.load(run.folder)
      >>> run.embed(digits.test.images[:3]).shape
      (3, 64)
      >>> run.compare(digits.test.images[:3], digits.test.images[3:6]).same.shape
      (3,)
      >>> run.neighbours(digits.test.images[:10], k=2).indices.shape
      (10, 2)
    """

    def __repr__(self) -> str:
        """Shows where the run is stored and what it takes, without its weights."""
        where = "not stored" if self.folder is None else str(self.folder)
        return (
            f"Run({where}, images {list(self.image_shape)} {self.image_dtype}, "
            f"{len(self.class_names)} classes, threshold {self.threshold:.4g})"
        )

    network: Network
    weights: Weights
    """The weights that were best on validation."""
    image_shape: tuple[int, ...]
    """`(H, W, C)` of one image, or `(V,)` of one vector."""
    image_dtype: str
    """The dtype of images, whose pixels are given as they are in the data set."""
    class_names: tuple[str, ...]
    distance: Callable[[jax.Array, jax.Array], jax.Array]
    """Between two embeddings."""
    threshold: float
    """Two images are taken to be of one class if their distance is at most this, the threshold of
    the highest accuracy on validation."""
    calibration: Calibration
    """From distances to probabilities, fitted on pairs of validation."""
    folder: Path | None = None
    """The folder in which the run is stored."""

    def embed(self, images: ArrayLike, *, batch_size: int = 500) -> np.ndarray:
        """Embeds images.

        Args:
          images: `[N, H, W, C]`, or vectors `[N, V]`, of the shape and dtype that the encoder was
            trained on.
          batch_size: images to a call; the last batch is padded, so that one program serves all.

        Returns:
          Embeddings, `[N, D]`, float32.

        Raises:
          ValueError: if the images are of another shape or dtype, or there are none.
        """
        checked = self._checked("images", images)
        encode, weights = self.network.encode, self.weights
        return embed(encode, weights, checked, batch_size=batch_size)

    def compare(
        self, first: ArrayLike, second: ArrayLike, *, prior: float | None = None
    ) -> Comparison:
        """Compares pairs of images.

        Args:
          first: `[N, H, W, C]`.
          second: as many images.
          prior: share of pairs of one class where the encoder is used, in (0, 1); by default that
            of the calibration, one half.

        Returns:
          Distance, probability of one class, and verdict of each pair.

        Raises:
          ValueError: if the images are of another shape or dtype, or not equal in number.
        """
        a, b = self._checked("first", first), self._checked("second", second)
        if len(a) != len(b):
            raise ValueError(f"first and second must be as many images, got {len(a)} and {len(b)}")
        between = distances_of_rows(self.distance, self.embed(a), self.embed(b))
        likely = probability(self.calibration, between, prior)
        return Comparison(between, likely, between <= self.threshold)

    def neighbours(
        self, images: ArrayLike, k: int = 5, *, gallery: ArrayLike | None = None
    ) -> Neighbours:
        """Searches the nearest images, by the Euclidean distance of embeddings.

        Args:
          images: queries, `[N, H, W, C]`.
          k: neighbours of each.
          gallery: images `[M, H, W, C]` to search in; by default the queries themselves, of which
            none is its own neighbour.

        Returns:
          Indices into the gallery, nearest first, and their distances, `[N, k]` each.

        Raises:
          ValueError: if images are of another shape or dtype, or `k` is not from 1 to the number of
            images to choose from.
        """
        queries = self.embed(self._checked("images", images))
        references = None if gallery is None else self.embed(self._checked("gallery", gallery))
        return nearest_neighbours(queries, references, k=k)

    def _checked(self, name: str, images: ArrayLike) -> np.ndarray:
        """Checks that images are those for which the encoder was made."""
        expected = f"[N, {', '.join(map(str, self.image_shape))}]"
        noun = "vectors" if len(self.image_shape) == 1 else "images"
        if isinstance(images, str | Path):
            raise ValueError(
                f"{name} must be an array of {noun} {expected} {self.image_dtype}, got the path "
                f"{str(images)!r}: python -m experiments.embed embeds files, and "
                f"contrastive_jax.data.load reads a folder or a table, whose {noun} are "
                "data.test.images"
            )
        array = np.asarray(images)
        shape = list(array.shape)
        if array.shape[1:] != self.image_shape or array.ndim != len(self.image_shape) + 1:
            raise ValueError(
                f"{name} must be {expected}, the shape of the {noun} that the encoder was trained "
                f"on, got {shape}{_hint(array.shape, self.image_shape, name)}"
            )
        if np.dtype(self.image_dtype) == np.uint8 and array.dtype != np.uint8:
            raise ValueError(
                f"{name} must be uint8, pixels from 0 to 255, as the encoder was trained on; got "
                f"{array.dtype}: "
                + (
                    f"of pixels in [0, 1], give numpy.uint8(numpy.round(255 * {name}))"
                    if array.dtype.kind == "f"
                    else f"give {name}.astype(numpy.uint8), of pixels in that range"
                )
            )
        if np.dtype(self.image_dtype) != np.uint8 and array.dtype == np.uint8:
            raise ValueError(
                f"{name} must be {self.image_dtype}, as the encoder was trained on, got uint8"
            )
        return array


def _hint(shape: tuple[int, ...], expected: tuple[int, ...], name: str) -> str:
    """Says what may be wrong with the shape of images."""
    if shape == expected:
        noun = "vector" if len(expected) == 1 else "image"
        return f": for a single {noun} give {name}[None]"
    if len(shape) == 3 and (*shape[1:], 1) == expected:
        return f": for grey images without an axis of channels give {name}[..., None]"
    if len(shape) != 4 or len(expected) != 3:
        return ""
    rows, columns, channels = expected
    if shape[1:] == (channels, rows, columns):
        return f": the channels come last, as in numpy.moveaxis({name}, 1, -1)"
    if shape[1:3] == (rows, columns) and channels == 1:
        return ": the encoder takes grey images of one channel"
    if shape[1:3] == (rows, columns):
        return f": the encoder takes images of {channels} channels"
    return ""


@functools.partial(jax.jit, static_argnames="distance")
def _distances(distance: Callable[..., jax.Array], a: jax.Array, b: jax.Array) -> jax.Array:
    return jax.vmap(distance)(a, b)


def distances_of_rows(
    distance: Callable[[jax.Array, jax.Array], jax.Array], a: np.ndarray, b: np.ndarray
) -> np.ndarray:
    """Computes the distance of each row of one array to the same row of another.

    Example:
      >>> import numpy as np
      >>> from contrastive_jax import distances
      >>> from contrastive_jax.train.run import distances_of_rows
      >>> print(distances_of_rows(distances.euclidean, np.zeros((1, 2)), np.array([[3.0, 4.0]])))
      [5.]
    """
    return np.asarray(_distances(distance, jnp.asarray(a), jnp.asarray(b)))


def calibrated(
    distance: Callable[[jax.Array, jax.Array], jax.Array],
    embeddings: np.ndarray,
    classes: Any,
    *,
    pairs: int = 50_000,
    labels: PairLabels | None = None,
) -> tuple[float, Calibration]:
    """Chooses the threshold and fits the calibration on pairs of a validation set.

    Args:
      distance: between two embeddings.
      embeddings: `[N, D]`.
      classes: `[N]`; with `labels` a tree of attributes `[N, ...]`.
      pairs: number of pairs to draw, half of them similar.
      labels: of two rows, by which pairs are drawn in place of classes.

    Returns:
      The threshold of the highest accuracy, and the calibration.

    Example:
      >>> import numpy as np
      >>> from contrastive_jax import distances
      >>> from contrastive_jax.train.run import calibrated
      >>> points, classes = np.array([[0.0], [0.1], [3.0], [3.1]]), np.array([0, 0, 1, 1])
      >>> threshold, calibration = calibrated(distances.euclidean, points, classes, pairs=100)
      >>> 0.1 <= threshold < 2.9
      True
      >>> calibration.prior
      0.5
    """
    between, drawn = drawn_distances(embeddings, classes, distance, pairs, 0, labels=labels)
    return best_threshold(between, drawn), calibrate(between, drawn)


def write(run: Run, folder: Path, model: Any, details: Mapping[str, Any]) -> None:
    """Writes what `load` reads.

    Args:
      run: to write.
      folder: of the run.
      model: that was trained, from which `load` makes the encoder anew: a class, or
        `functools.partial` of one.
      details: more to record, JSON types.

    Example:
      >>> from pathlib import Path
      >>> import numpy as np
      >>> from contrastive_jax import distances, models
      >>> from contrastive_jax.evaluation.calibration import Calibration
      >>> from contrastive_jax.train import Run, load, network
      >>> from contrastive_jax.train.run import write
      >>> encoder, calibration = network(models.MLP, (8, 8, 1)), Calibration(4.0, 2.0, 0.5)
      >>> names, measure = ("cat", "dog"), distances.euclidean
      >>> run = Run(
      ...     encoder, encoder.weights, (8, 8, 1), "uint8", names, measure, 0.5, calibration
      ... )
      >>> write(run, Path(), models.MLP, {})
      >>> load(".").class_names
      ('cat', 'dog')
    """
    checkpoints.save_state(folder / ENCODER, run.weights)
    import flax
    import optax

    import contrastive_jax

    record = {
        "encoder": described(model),
        "image_shape": run.image_shape,
        "image_dtype": run.image_dtype,
        "pixels": (
            "uint8 from 0 to 255, as they are; the encoder scales them"
            if run.image_dtype == "uint8"
            else "floating, as the data set has them"
        ),
        "class_names": run.class_names,
        "distance": described(run.distance),
        "threshold": run.threshold,
        "calibration": run.calibration._asdict(),
        "versions": {
            "python": platform.python_version(),
            "contrastive_jax": contrastive_jax.__version__,
            "jax": jax.__version__,
            "flax": flax.__version__,
            "optax": optax.__version__,
        },
    } | dict(details)
    path = folder / RUN
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(record, indent=2) + "\n")
    fresh.replace(path)


def load(folder: str | Path, *, model: Any = None, distance: Any = None) -> Run:
    """Loads a trained encoder from the folder of its run, without data set and optimizer.

    Args:
      folder: of the run, such as `"runs/digits-convnet-1"`.
      model: the encoder, as `train.network` takes it, where the run was trained with one that is
        not a class of an installed module; only its structure counts.
      distance: the distance, where it is not a function of an installed module.

    Returns:
      The run.

    Raises:
      FileNotFoundError: if there is no such run, or it is not complete.
      ValueError: if its files are damaged, or `model` or `distance` must be given.

    Example:
      >>> import contrastive_jax as cj
      >>> digits = cj.data.load("digits")
      >>> objective = cj.train.objective("contrastive")
      >>> run = cj.train.fit(cj.models.MLP, digits, objective, steps=20, progress=False)
      >>> cj.load(run.folder).threshold == run.threshold
      True
    """
    folder = Path(folder).expanduser()
    path = folder / RUN
    if not path.exists():
        remedy = (
            "it is not complete; go on with it (--resume), until it is trained"
            if (folder / "config.json").exists()
            else "name the folder of a run, such as runs/digits-convnet-1"
        )
        raise FileNotFoundError(f"{path} does not exist: {remedy}")
    try:
        record = json.loads(path.read_bytes())
        shape, calibration = tuple(record["image_shape"]), Calibration(**record["calibration"])
        names = tuple(record["class_names"])
        threshold, dtype = float(record["threshold"]), str(record["image_dtype"])
        saved_model, saved_distance = record["encoder"], record["distance"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {type(error).__name__} {error}") from None
    model = _made("model", model, saved_model, path)
    encoder = network(model, shape)
    weights = checkpoints.restore_state(folder / ENCODER, encoder.weights)
    measure = _made("distance", distance, saved_distance, path)
    return Run(encoder, weights, shape, dtype, names, measure, threshold, calibration, folder)


def described(function: Any) -> dict[str, Any] | None:
    """Returns the import path of a class or function, and arguments bound to it, as JSON types.

    None where it can not be imported, as a lambda or a module that is an instance.

    Example:
      >>> from functools import partial
      >>> from contrastive_jax import models
      >>> from contrastive_jax.train.run import described
      >>> described(partial(models.MLP, width=8))
      {'import': 'contrastive_jax.models:MLP', 'arguments': {'width': 8}}
    """
    arguments: dict[str, Any] = {}
    while isinstance(function, functools.partial):
        if function.args:
            return None
        arguments = function.keywords | arguments
        function = function.func
    try:
        path = f"{function.__module__}:{function.__qualname__}"
        plain = {name: _plain(value) for name, value in arguments.items()}
        if _imported(path) is function:
            return {"import": path, "arguments": plain}
    except (AttributeError, ImportError, TypeError, ValueError):
        pass
    return None


def _plain(value: Any) -> Any:
    """Returns a value as a JSON type: a dtype as its name, a tuple as a list."""
    if isinstance(value, str | bool | int | float | None):
        return value
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if (dtype := np.dtype(value)).kind == "O":  # as that of any class
        raise TypeError(f"{value!r} is not a JSON type")
    return dtype.name


def _imported(path: str) -> Any:
    module, _, name = path.partition(":")
    if module == "__main__":
        raise ValueError("what is defined in a notebook or script can not be imported elsewhere")
    return functools.reduce(getattr, name.split("."), importlib.import_module(module))


def _made(name: str, given: Any, saved: dict[str, Any] | None, path: Path) -> Any:
    """Returns what was given, or imports what was saved."""
    if given is not None:
        return given
    if saved is None:
        raise ValueError(
            f"the {name} of {path.parent} is not importable, as it was defined in a notebook, as a "
            f"lambda or as an instance: give it, as load({str(path.parent)!r}, {name}=...)"
        )
    try:
        function = _imported(saved["import"])
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"the {name} of {path.parent}, {saved['import']}, can not be imported ({error}): "
            f"install its module, or give it as {name}="
        ) from None
    arguments = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in saved["arguments"].items()
    }
    return functools.partial(function, **arguments) if arguments else function

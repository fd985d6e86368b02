"""The folder that a trained encoder is written to, and loaded from.

runs/NAME/run.json    encoder, image shape, class names, distance, threshold, calibration, versions
          encoder/    weights of the encoder
"""

import functools
import importlib
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from contrastive_jax.evaluation.calibration import Calibration
from contrastive_jax.train.folder import read_config
from contrastive_jax.train.networks import network
from contrastive_jax.train.run import Run
from contrastive_jax.train.saved_states import restore_state, save_state

RUN = "run.json"
ENCODER = "encoder"


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
      >>> from contrastive_jax.train.run_folder import write
      >>> encoder, calibration = network(models.MLP, (8, 8, 1)), Calibration(4.0, 2.0, 0.5)
      >>> names, measure = ("cat", "dog"), distances.euclidean
      >>> run = Run(
      ...     encoder, encoder.weights, (8, 8, 1), "uint8", names, measure, 0.5, calibration
      ... )
      >>> write(run, Path(), models.MLP, {})
      >>> load(".").class_names
      ('cat', 'dog')
    """
    save_state(folder / ENCODER, run.weights)
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


def check_data(folder: Path, data_digest: str) -> None:
    """Checks that data is what a run was trained on.

    Args:
      folder: of the run.
      data_digest: of the data.

    Raises:
      FileNotFoundError: if there is no such run.
      ValueError: if its configuration is damaged, or it recorded another digest.

    Example:
      >>> from pathlib import Path
      >>> from contrastive_jax.train.folder import write_config
      >>> from contrastive_jax.train.run_folder import check_data
      >>> write_config(Path(), {"data_digest": "a1"})
      >>> check_data(Path(), "a1")
    """
    if read_config(folder).get("data_digest") not in (None, data_digest):
        raise ValueError(
            f"the data of {folder} is not what it was trained on: images, classes or columns have "
            "changed, and examples that were trained on may be in test now; bring the data back, "
            "or name it with --data or --dataset to evaluate on it as it is"
        )


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
      >>> run = cj.train.fit(cj.models.Linear, digits, objective, steps=10, progress=False)
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
    weights = restore_state(folder / ENCODER, encoder.weights)
    measure = _made("distance", distance, saved_distance, path)
    return Run(encoder, weights, shape, dtype, names, measure, threshold, calibration, folder)


def described(function: Any) -> dict[str, Any] | None:
    """Returns the import path of a class or function, and arguments bound to it, as JSON types.

    None where it can not be imported, as a lambda or a module that is an instance.

    Example:
      >>> from functools import partial
      >>> from contrastive_jax import models
      >>> from contrastive_jax.train.run_folder import described
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


def read_labels(folder: Path) -> str:
    """Returns the name of the labels of two rows by which a run was trained.

    Args:
      folder: of the run.

    Returns:
      The name, as `contrastive_jax.labels.by_name` takes it; `"class"` for classes.

    Raises:
      ValueError: if the labels are of a function that has no name.

    Example:
      >>> from pathlib import Path
      >>> from contrastive_jax.train.folder import write_config
      >>> from contrastive_jax.train.run_folder import read_labels
      >>> write_config(Path(), {"labels": "other_group"})
      >>> read_labels(Path())
      'other_group'
    """
    trained = read_config(folder).get("labels", "class")
    if trained is True:  # by a function, in Python
        raise ValueError(
            f"{folder} was trained by labels of two rows that have no name: give --labels, or "
            "--labels class for figures by class"
        )
    return trained if isinstance(trained, str) else "class"

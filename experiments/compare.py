"""Compares pictures or vectors by a trained run: distance, probability of one class, and verdict.

python -m experiments.compare runs/digits-convnet-1 first.png second.png
python -m experiments.compare runs/digits-convnet-1 first.png second.png third.png --prior 0.01
python -m experiments.compare runs/features-linear-1 two.npz
"""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np

from contrastive_jax._extras import needs

with needs("train", "experiments.compare"):
    import tyro

from contrastive_jax import load
from contrastive_jax.data.pictures import read_pictures
from contrastive_jax.train import Comparison, Run
from experiments import command, vector_files

# Every two of these are a line each.
_MOST = 100


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of a comparison."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")] = Path()
    """Folder of the run."""
    images: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="PICTURE")] = ()
    """Pictures, two or more; for a run on vectors files of them, .npz with an array embeddings or
    .parquet with a column vector. Every two are compared."""
    prior: float | None = None
    """Share of pairs of one class where the encoder is used; 0.5 by default."""


def main(config: Config) -> Comparison:
    """Compares every two of the pictures or vectors, and prints a table."""
    run = load(config.run)
    names, images = _read(config.images, run)
    if not 2 <= len(names) <= _MOST:
        raise ValueError(
            f"every two are compared, of 2 to {_MOST} pictures or vectors, got {len(names)}; "
            "experiments.embed embeds more, and Run.compare compares arrays of them"
        )
    pairs = [*itertools.combinations(range(len(names)), 2)]
    first, second = (images[[pair[k] for pair in pairs]] for k in (0, 1))
    result = run.compare(first, second, prior=config.prior)
    prior = run.calibration.prior if config.prior is None else config.prior
    print(f"threshold {run.threshold:.4f}; probabilities are for a share of {prior:g} of one class")
    for (i, j), distance, probability, same in zip(pairs, *result, strict=True):
        verdict = "same" if same else "different"
        print(
            f"{names[i]} {names[j]}: distance {distance:.4f}, probability "
            f"{probability:.4f}, {verdict}"
        )
    return result


def _read(paths: Sequence[Path], run: Run) -> tuple[list[str], np.ndarray]:
    """Reads pictures, or the vectors of files, and names them."""
    if len(run.image_shape) > 1 or not paths:
        return [str(path) for path in paths], read_pictures(paths, run.image_shape, run.image_dtype)
    parts = [vector_files.read(path, run) for path in paths]
    several = len(parts) > 1
    names = [
        f"{path} {name}" if several else name
        for path, (of_file, _) in zip(paths, parts, strict=True)
        for name in of_file
    ]
    return names, np.concatenate([vectors for _, vectors in parts])


if __name__ == "__main__":
    command.run(main, lambda: command.parse(Config, "experiments.compare", str(__doc__)))

"""Compares pictures by a trained run: distance, probability of one class, and verdict.

python -m experiments.compare runs/digits-convnet-1 first.png second.png
python -m experiments.compare runs/digits-convnet-1 first.png second.png third.png --prior 0.01
"""

import dataclasses
import itertools
from pathlib import Path
from typing import Annotated

from contrastive_jax._extras import needs

with needs("train", "experiments.compare"):
    import tyro

from contrastive_jax import load
from contrastive_jax.data.pictures import read_pictures
from contrastive_jax.train import Comparison
from experiments import command


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of a comparison."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")] = Path()
    """Folder of the run."""
    images: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="PICTURE")] = ()
    """Pictures, two or more; every two of them are compared."""
    prior: float | None = None
    """Share of pairs of one class where the encoder is used; 0.5 by default."""


def main(config: Config) -> Comparison:
    """Compares every two of the pictures, and prints a table."""
    if len(config.images) < 2:
        raise ValueError(f"two pictures or more are compared, got {len(config.images)}")
    run = load(config.run)
    pairs = [*itertools.combinations(range(len(config.images)), 2)]
    images = read_pictures(config.images, run.image_shape, run.image_dtype)
    first, second = (images[[pair[k] for pair in pairs]] for k in (0, 1))
    result = run.compare(first, second, prior=config.prior)
    prior = run.calibration.prior if config.prior is None else config.prior
    print(f"threshold {run.threshold:.4f}; probabilities are for a share of {prior:g} of one class")
    for (i, j), distance, probability, same in zip(pairs, *result, strict=True):
        verdict = "same" if same else "different"
        print(
            f"{config.images[i]} {config.images[j]}: distance {distance:.4f}, probability "
            f"{probability:.4f}, {verdict}"
        )
    return result


if __name__ == "__main__":
    command.run(main, lambda: command.parse(Config, "experiments.compare", str(__doc__)))

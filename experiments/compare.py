"""Compares pictures or vectors by a trained run: distance, probability of one class, and verdict.

python -m experiments.compare runs/digits-convnet-1 first.png second.png
python -m experiments.compare runs/digits-convnet-1 first.png second.png third.png --prior 0.01
python -m experiments.compare runs/features-linear-1 two.npz
"""

import dataclasses
import itertools
from pathlib import Path
from typing import Annotated

from contrastive_jax import cli, load
from contrastive_jax.train import Comparison
from contrastive_jax.train.run_inputs import read_inputs
from experiments import command

# Every two of these are a line each.
_MOST = 100


@dataclasses.dataclass(frozen=True)
class Config(command.OfRun):
    """Options of a comparison."""

    images: Annotated[cli.Positional[tuple[Path, ...]], cli.arg(metavar="PICTURE")] = ()
    """Pictures, two or more; for a run on vectors files of them, .npz with an array embeddings or
    .parquet with a column vector. Every two are compared."""
    prior: float | None = None
    """Share of pairs of one class where the encoder is used; 0.5 by default."""


def main(config: Config) -> Comparison:
    """Compares every two of the pictures or vectors, and prints a table."""
    run = load(config.run)
    names, images = read_inputs(run, config.images)
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


if __name__ == "__main__":
    cli.run(main, lambda: cli.parse(Config, "experiments.compare", str(__doc__)))

"""Embeds all pictures of a folder, or all vectors of a file, by a trained run.

python -m experiments.embed runs/digits-convnet-1 photos --out vectors.parquet
python -m experiments.embed runs/digits-convnet-1 photos --out vectors.npz
python -m experiments.embed runs/features-linear-1 features.parquet --out vectors.parquet
"""

import dataclasses
from pathlib import Path
from typing import Annotated

from contrastive_jax import cli, load
from contrastive_jax.train.run_inputs import check_embeddings_file, read_inputs, save_embeddings
from experiments import command


@dataclasses.dataclass(frozen=True)
class Config(command.OfRun):
    """Options of an embedding."""

    source: Annotated[cli.Positional[Path | None], cli.arg(metavar="SOURCE")] = None
    """Folder of pictures; for a run on vectors a file of them, .npz or .safetensors with an array
    embeddings, .parquet with a column vector, or .npy."""
    out: Path = Path("vectors.parquet")
    """File to write: .parquet with columns path and vector, or .npz with arrays paths and
    embeddings."""


def main(config: Config) -> Path:
    """Embeds the pictures or vectors, and returns the file that it wrote."""
    with command.naming_options((), path="out"):
        check_embeddings_file(config.out)
    if config.source is None:
        raise ValueError("name a folder of pictures or a file of vectors behind the run")
    run = load(config.run)
    names, images = read_inputs(run, [config.source])
    embeddings = run.embed(images)
    save_embeddings(config.out, names, embeddings)
    print(f"{config.out}: {len(names):,} vectors of {embeddings.shape[1]} entries")
    return config.out


if __name__ == "__main__":
    cli.run(main, lambda: cli.parse(Config, "experiments.embed", str(__doc__)))

"""Embeds all pictures of a folder, or all vectors of a file, by a trained run.

python -m experiments.embed runs/digits-convnet-1 photos --out vectors.parquet
python -m experiments.embed runs/digits-convnet-1 photos --out vectors.npz
python -m experiments.embed runs/features-linear-1 features.parquet --out vectors.parquet
"""

import dataclasses
import os
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from contrastive_jax._extras import needs

with needs("train", "experiments.embed"):
    import tyro

from contrastive_jax import load
from contrastive_jax.data._own.vectors import SUFFIXES
from contrastive_jax.data.pictures import pictures_in, read_pictures
from experiments import command, vector_files


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of an embedding."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")] = Path()
    """Folder of the run."""
    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SOURCE")] = Path()
    """Folder of pictures; for a run on vectors a file of them, .npz or .safetensors with an array
    embeddings, .parquet with a column vector, or .npy."""
    out: Path = Path("vectors.parquet")
    """File to write: .parquet with columns path and vector, or .npz with arrays paths and
    embeddings."""


def main(config: Config) -> Path:
    """Embeds the pictures or vectors, and returns the file that it wrote."""
    if config.out.suffix not in (".parquet", ".npz"):
        raise ValueError(f"--out must end in .parquet or .npz, got {config.out}")
    if config.out.suffix == ".parquet":
        with needs("train", "writing Parquet"):
            import pyarrow.parquet  # noqa: F401
    run = load(config.run)
    if len(run.image_shape) == 1 or config.source.suffix in SUFFIXES:
        names, images = vector_files.read(config.source, run)
    else:
        paths = pictures_in(config.source)
        names, images = (
            [path.relative_to(config.source).as_posix() for path in paths],
            read_pictures(paths, run.image_shape, run.image_dtype),
        )
    embeddings = run.embed(images)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    # Renamed when it is whole, so that a file of this name is never half written.
    fresh = config.out.with_name(f".{config.out.name}.{os.getpid()}{config.out.suffix}")
    _write(fresh, names, embeddings)
    fresh.replace(config.out)
    print(f"{config.out}: {len(names):,} vectors of {embeddings.shape[1]} entries")
    return config.out


def _write(path: Path, names: list[str], embeddings: np.ndarray) -> None:
    if path.suffix == ".npz":
        np.savez(path, paths=np.array(names), embeddings=embeddings)
        return
    import pyarrow as pa
    from pyarrow import parquet

    vectors: Any = pa.FixedSizeListArray.from_arrays(embeddings.ravel(), embeddings.shape[1])
    parquet.write_table(pa.table({"path": names, "vector": vectors}), path)


if __name__ == "__main__":
    command.run(main, lambda: command.parse(Config, "experiments.embed", str(__doc__)))

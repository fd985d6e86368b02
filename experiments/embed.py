"""Embeds all pictures of a folder by a trained run.

python -m experiments.embed runs/digits-convnet-1 photos --out vectors.parquet
python -m experiments.embed runs/digits-convnet-1 photos --out vectors.npz
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
from contrastive_jax.data.pictures import pictures_in, read_pictures
from experiments import command


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of an embedding."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")] = Path()
    """Folder of the run."""
    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")] = Path()
    """Folder of pictures."""
    out: Path = Path("vectors.parquet")
    """File to write: .parquet with columns path and vector, or .npz with arrays paths and
    embeddings."""


def main(config: Config) -> Path:
    """Embeds the pictures, and returns the file of their vectors."""
    if config.out.suffix not in (".parquet", ".npz"):
        raise ValueError(f"--out must end in .parquet or .npz, got {config.out}")
    if config.out.suffix == ".parquet":
        with needs("train", "writing Parquet"):
            import pyarrow.parquet  # noqa: F401
    run = load(config.run)
    paths = pictures_in(config.folder)
    embeddings = run.embed(read_pictures(paths, run.image_shape, run.image_dtype))
    names = [path.relative_to(config.folder).as_posix() for path in paths]
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

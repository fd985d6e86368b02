"""Exports the encoder of a trained run to StableHLO, ONNX and safetensors, and verifies each.

python -m experiments.export runs/digits-convnet-1
python -m experiments.export runs/digits-convnet-1 --formats onnx --out model
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from contrastive_jax import cli, export, load
from contrastive_jax.data import PairDataset
from experiments import command, evaluate, options


@dataclasses.dataclass(frozen=True)
class Config(options.Data, command.OfRun):
    """Options of an export, which test images of a data set verify; by default that of the run."""

    dataset: str | None = None
    """Another data set than that of the run, of images of the same shape."""
    out: Path | None = None
    """Folder to write to; `export` in that of the run by default."""
    formats: tuple[Literal["stablehlo", "onnx", "safetensors"], ...] = (
        "stablehlo",
        "onnx",
        "safetensors",
    )
    """Formats to write."""


def main(config: Config) -> dict[str, Any]:
    """Exports a run, prints what was verified, and returns it."""
    run = load(config.run)
    data = options.load_data(evaluate.with_data_of_run(config))
    where = config.out or config.run / "export"
    report = export.write(
        where,
        run.network.encode,
        run.weights,
        image_shape=run.image_shape,
        image_dtype=run.image_dtype,
        distance=run.distance,
        threshold=run.threshold,
        images=(data.images if isinstance(data, PairDataset) else data.test.images)[:500],
        formats=config.formats,
    )
    print(f"{where}:")
    for name, value in report.items():
        print(f"  {name}: {value}")
    return report


if __name__ == "__main__":
    cli.run(main, lambda: cli.parse(Config, "experiments.export", str(__doc__)))

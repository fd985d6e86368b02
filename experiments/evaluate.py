"""Evaluates a trained run on test data: figures, a table beside raw pixels, and pictures.

python -m experiments.evaluate runs/digits-convnet-1
python -m experiments.evaluate runs/digits-convnet-1 --dataset mnist --image_size 8
"""

import dataclasses
from pathlib import Path
from typing import Any

from contrastive_jax import cli, labels, load, run_report
from contrastive_jax.data import PairDataset
from contrastive_jax.data._digest import digest
from contrastive_jax.train import folder
from contrastive_jax.train.run_folder import check_data, read_labels
from experiments import command, options


@dataclasses.dataclass(frozen=True)
class Config(options.Data, command.OfRun):
    """Options of an evaluation. Without a data set, it is that of the run."""

    dataset: str | None = None
    """Another data set than that of the run, of images of the same shape."""
    labels: str | None = None
    """The labels of two images that figures are by, in the form that experiments.train takes; those
    of the run by default."""
    out: Path | None = None
    """Folder to write to; that of the run by default."""


def main(config: Config) -> Path:
    """Evaluates a run, and returns the folder of what was written."""
    run = load(config.run)
    by = config.labels or read_labels(config.run)
    labels.by_name(by)  # an error of theirs comes before data is read
    data = options.load_data(with_data_of_run(config))
    if isinstance(data, PairDataset) and config.labels is None:
        by = "class"  # given pairs have labels of their own
    if not (config.dataset or config.data):
        check_data(config.run, digest(data))
    where = config.out or config.run
    print("evaluating on test and drawing figures", flush=True)
    try:
        print(run_report.write_report(run, data, where, labels=by))
    except ValueError as error:
        if by != "class" and config.labels is None:
            error.add_note(
                f"figures are by the labels of the run, {by}: --labels class ranks by class"
            )
        raise
    print(f"figures and pictures are in {where}")
    return where


def with_data_of_run(config: Any) -> Any:
    """Fills in the options of the data set of a run, where no other is given."""
    if config.dataset or config.data:
        return config
    begun = cli.from_saved(options.Data, folder.read_config(config.run))
    if not (begun.dataset or begun.data):
        raise ValueError(f"{config.run} does not say its data set: give --dataset or --data")
    fields = {k: one for k, one in vars(begun).items() if not cli.is_given(config, k)}
    return dataclasses.replace(config, **fields)


if __name__ == "__main__":
    cli.run(main, lambda: cli.parse(Config, "experiments.evaluate", str(__doc__)))

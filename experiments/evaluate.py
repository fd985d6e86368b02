"""Evaluates a trained run on test data: figures, a table beside raw pixels, and pictures.

python -m experiments.evaluate runs/digits-convnet-1
python -m experiments.evaluate runs/digits-convnet-1 --dataset mnist --image_size 8
"""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from contrastive_jax._extras import needs

with needs("train", "experiments.evaluate"):
    import tyro

from contrastive_jax import load, losses, plots
from contrastive_jax.data import Dataset
from contrastive_jax.evaluation.retrieval import nearest_neighbours
from contrastive_jax.evaluation.summary import Summary, summarize
from contrastive_jax.evaluation.verification import roc_curve
from contrastive_jax.train import Run, folder
from experiments import command, options

TITLES = {
    "precision_at_1": "precision at 1",
    "r_precision": "R-precision",
    "map_at_r": "MAP@R",
    "mean_reciprocal_rank": "mean reciprocal rank",
    "recall_at_5": "recall at 5",
    "recall_at_10": "recall at 10",
    "auc": "pair ROC AUC",
    "average_precision": "pair average precision",
    "eer": "equal error rate",
    "tar_at_far_0.1": "TAR at FAR 0.1",
    "tar_at_far_0.01": "TAR at FAR 0.01",
    "tar_at_far_0.001": "TAR at FAR 0.001",
    "accuracy": "accuracy at the validation threshold",
    "kfold_accuracy": "10-fold accuracy",
}


@dataclasses.dataclass(frozen=True)
class Config(options.Data):
    """Options of an evaluation. Without a data set, it is that of the run."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")] = Path()
    """Folder of the run."""
    dataset: str | None = None
    """Another data set than that of the run, of images of the same shape."""
    out: Path | None = None
    """Folder to write to; that of the run by default."""


def main(config: Config) -> Path:
    """Evaluates a run, and returns the folder of what was written."""
    run = load(config.run)
    data = options.load_data(with_data_of_run(config))
    where = config.out or config.run
    where.mkdir(parents=True, exist_ok=True)
    report(run, data, where)
    print(f"figures and pictures are in {where}")
    return where


def with_data_of_run(config: Any) -> Any:
    """Fills in the options of the data set of a run, where no other is given."""
    if config.dataset or config.data:
        return config
    begun = folder.read_config(config.run)
    given = {}
    for field in dataclasses.fields(options.Data):
        if getattr(config, field.name) == field.default and begun.get(field.name) is not None:
            is_path = field.name in ("data", "data_dir", "tfds_dir")
            given[field.name] = Path(begun[field.name]) if is_path else begun[field.name]
    if not {"dataset", "data"} & given.keys():
        raise ValueError(f"{config.run} does not say which data set it was trained on: give one")
    return dataclasses.replace(config, **given)


def report(run: Run, data: Dataset, where: Path | None = None) -> None:
    """Writes the figures of a run on test, as numbers and as pictures, beside those of raw pixels.

    Args:
      run: trained.
      data: with validation and test splits.
      where: folder to write to; that of the run by default.
    """
    where = where or run.folder
    assert run.folder is not None
    assert where is not None
    test, validation = data.test, data.validation
    embedded = {"validation": run.embed(validation.images), "test": run.embed(test.images)}

    def summary(first: np.ndarray, second: np.ndarray) -> Summary:
        return summarize(first, validation.classes, second, test.classes, distance=run.distance)

    pixels = [split.images.reshape(len(split.images), -1) / 255.0 for split in (validation, test)]
    summaries = {
        "embedding": summary(embedded["validation"], embedded["test"]),
        "raw pixels": summary(*pixels),
    }
    table = _table(summaries)
    print(table)
    (where / "results.md").write_text(table + "\n")
    learned = summaries["embedding"]
    results = {name: one.figures for name, one in summaries.items()} | {
        "threshold": learned.threshold,
        "best_step": json.loads((run.folder / "run.json").read_text())["best_step"],
    }
    (where / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    np.savez(
        where / "embeddings.npz",
        embeddings=embedded["test"],
        classes=test.classes,
        validation_embeddings=embedded["validation"],
        validation_classes=validation.classes,
    )
    begun = folder.read_config(run.folder)
    margin = begun.get("margin")
    neighbours = nearest_neighbours(embedded["test"], k=min(8, len(test.classes) - 1)).indices
    figures = {
        "distances": plots.distance_histograms(
            learned.distances, learned.labels, margin=margin, threshold=learned.threshold
        ),
        "roc": plots.roc(
            {
                f"{name} (AUC {one.figures['auc']:.3f})": roc_curve(one.distances, one.labels)[1:]
                for name, one in summaries.items()
            }
        ),
        "map": plots.embedding_map(
            embedded["test"], test.classes, images=test.images, class_names=data.class_names
        ),
        "map_classes": plots.embedding_map(
            embedded["test"], test.classes, class_names=data.class_names
        ),
        "gallery": plots.gallery(
            test.images,
            test.classes,
            neighbours,
            _instructive(neighbours, test.classes),
            class_names=data.class_names,
        ),
        "training": plots.training_curves(folder.read_metrics(run.folder), margin=margin),
    }
    if begun.get("loss") == "contrastive" and margin is not None:
        figures["loss"] = plots.loss_curve(losses.contrastive, margin)
    (where / "figures").mkdir(exist_ok=True)
    for name, figure in figures.items():
        plots.save(figure, where / "figures" / f"{name}.png")


def _instructive(neighbours: np.ndarray, classes: np.ndarray, count: int = 4) -> np.ndarray:
    """Selects queries with the right nearest neighbour, and queries with a wrong one."""
    right = classes[neighbours[:, 0]] == classes
    shuffled = np.random.default_rng(0).permutation(len(classes))
    return np.concatenate([shuffled[right[shuffled]][:count], shuffled[~right[shuffled]][:count]])


def _table(summaries: dict[str, Summary]) -> str:
    rows = [["on test", *summaries], ["---", *["---:"] * len(summaries)]]
    for key, title in TITLES.items():
        rows.append([title, *[f"{one.figures[key]:.4f}" for one in summaries.values()]])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


if __name__ == "__main__":
    command.run(main, lambda: command.parse(Config, "experiments.evaluate", str(__doc__)))

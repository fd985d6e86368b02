"""Evaluates a trained run on test data: figures, a table beside raw pixels, and pictures.

python -m experiments.evaluate runs/digits-convnet-1
python -m experiments.evaluate runs/digits-convnet-1 --dataset mnist --image_size 8
"""

import dataclasses
import json
import math
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np

from contrastive_jax._extras import needs

with needs("train", "experiments.evaluate"):
    import tyro

from contrastive_jax import load, losses, plots
from contrastive_jax.data import Dataset, Examples, PairDataset
from contrastive_jax.data._digest import digest
from contrastive_jax.data.findings import count_splits
from contrastive_jax.evaluation.baselines import Transform, vector_baselines
from contrastive_jax.evaluation.fold_intervals import pair_intervals, retrieval_intervals
from contrastive_jax.evaluation.given_pairs import points_of_pairs, summarize_pairs
from contrastive_jax.evaluation.intervals import Interval
from contrastive_jax.evaluation.retrieval import nearest_neighbours
from contrastive_jax.evaluation.summary import Summary, summarize
from contrastive_jax.evaluation.verification import roc_curve
from contrastive_jax.train import Run, folder
from experiments import command, options

BESIDE = ("raw pixels", "raw vectors", "PCA-whitened", "LDA")
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
    "kfold_accuracy": "accuracy over at most ten folds",
}
FARS = (0.1, 0.01, 0.001)


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
    if not (config.dataset or config.data):
        _check_unchanged(config.run, data)
    where = config.out or config.run
    where.mkdir(parents=True, exist_ok=True)
    report(run, data, where)
    print(f"figures and pictures are in {where}")
    return where


def _check_unchanged(run: Path, data: Dataset | PairDataset) -> None:
    """Checks that the data of a run is what it was trained on."""
    begun = folder.read_config(run)
    if begun.get("data_digest") not in (None, digest(data)):
        raise ValueError(
            f"the data of {run} is not what it was trained on: examples that were trained on may "
            "be in test now; bring the data back, or name it with --data or --dataset to evaluate "
            "on it as it is"
        )


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


def report(run: Run, data: Dataset | PairDataset, where: Path | None = None) -> None:
    """Writes the figures of a run on test, as numbers and as pictures, beside what needs no run.

    Beside the embedding stand the raw pixels or, of vectors, the baselines of `vector_baselines`
    and intervals over folds of the test set.

    Args:
      run: trained.
      data: with validation and test splits.
      where: folder to write to; that of the run by default.
    """
    where = where or run.folder
    assert run.folder is not None
    assert where is not None
    if isinstance(data, PairDataset):
        evaluated = _evaluated_pairs(run, data)
    else:
        evaluated = _evaluated(run, data)
    dissimilar = count_splits(data)[2].dissimilar
    evaluated = evaluated._replace(summaries=_resolved(evaluated.summaries, dissimilar))
    table = _table(evaluated.summaries, evaluated.intervals) + _note_on_fars(dissimilar)
    print(table)
    (where / "results.md").write_text(table + "\n")
    learned = evaluated.summaries["embedding"]
    results: dict[str, Any] = {name: one.figures for name, one in evaluated.summaries.items()}
    results |= {
        "threshold": learned.threshold,
        "best_step": json.loads((run.folder / "run.json").read_text())["best_step"],
    }
    if evaluated.intervals:
        results["intervals"] = {
            name: {key: [one.low, one.high] for key, one in intervals.items()}
            for name, intervals in evaluated.intervals.items()
        }
    (where / "results.json").write_text(json.dumps(_finite(results), indent=2) + "\n")
    np.savez(where / "embeddings.npz", **evaluated.arrays)
    (where / "figures").mkdir(exist_ok=True)
    for name, figure in (_figures(run, evaluated.summaries) | evaluated.figures).items():
        plots.save(figure, where / "figures" / f"{name}.png")


def _finite(values: Any) -> Any:
    """Returns figures as JSON has them: None in place of NaN and of infinities."""
    if isinstance(values, dict):
        return {key: _finite(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_finite(value) for value in values]
    if isinstance(values, np.generic):
        return _finite(values.item())
    return None if isinstance(values, float) and not math.isfinite(values) else values


class Evaluated(NamedTuple):
    """A run on test."""

    summaries: dict[str, Summary]
    """Figures of the embedding and of the baselines beside it."""
    intervals: dict[str, dict[str, Interval]]
    """Intervals of each of them, by the name of the figure; empty for images."""
    arrays: dict[str, Any]
    """Embeddings, and their classes or pairs."""
    figures: dict[str, Any]
    """Pictures that need classes."""


def _evaluated(run: Run, data: Dataset) -> Evaluated:
    """Evaluates a run on examples with classes."""
    test, validation = data.test, data.validation
    maps = {"embedding": run.embed} | _beside(run, data.train)
    summaries, intervals = {}, {}
    embedded = {"validation": run.embed(validation.images), "test": run.embed(test.images)}
    for name, embed in maps.items():
        first, second = embedded.values()
        if name != "embedding":
            first, second = embed(validation.images), embed(test.images)
        summaries[name] = summarize(
            first,
            validation.classes,
            second,
            test.classes,
            distance=run.distance,
            queries=test.queries,
        )
        if test.images.ndim == 2 and test.queries is None:
            # Pairs that are drawn share their images, so that folds of them would agree too well.
            intervals[name] = retrieval_intervals(second, test.classes)
    embeddings = embedded["test"]
    arrays = {
        "embeddings": embeddings,
        "classes": test.classes,
        "validation_embeddings": embedded["validation"],
        "validation_classes": validation.classes,
    }
    figures = {
        "map_classes": plots.embedding_map(embeddings, test.classes, class_names=data.class_names)
    }
    if test.images.ndim > 2:
        neighbours = _neighbours(embeddings, test.queries)
        figures["map"] = plots.embedding_map(
            embeddings, test.classes, images=test.images, class_names=data.class_names
        )
        figures["gallery"] = plots.gallery(
            test.images,
            test.classes,
            neighbours,
            _instructive(neighbours, test.classes, test.queries),
            class_names=data.class_names,
        )
    return Evaluated(summaries, intervals, arrays, figures)


def _evaluated_pairs(run: Run, data: PairDataset) -> Evaluated:
    """Evaluates a run on given pairs."""
    rows = np.unique(np.concatenate([data.train.left, data.train.right]))
    summaries, intervals, arrays = {}, {}, {}
    for name, embed in ({"embedding": run.embed} | _beside(run, data.images[rows])).items():
        validation, test = (
            points_of_pairs(embed, data.images, pairs) for pairs in (data.validation, data.test)
        )
        summaries[name] = one = summarize_pairs(validation, test, distance=run.distance)
        # Folds of pairs that share images would agree too well.
        members = np.concatenate([data.test.left, data.test.right])
        if data.images.ndim == 2 and len(np.unique(members)) == len(members):
            intervals[name] = pair_intervals(one.distances, one.labels)
        if name == "embedding":
            arrays = dict(zip(("embeddings", "left", "right", "labels"), test, strict=True))
    return Evaluated(summaries, intervals, arrays, {})


def _beside(run: Run, train: Examples | np.ndarray) -> dict[str, Transform]:
    """Returns what a run is compared with, of the width and length of its embeddings."""
    images = train if isinstance(train, np.ndarray) else train.images
    embeddings = run.embed(images[:100])
    unit_length = bool(np.allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-3))
    return beside(train, width=embeddings.shape[1], unit_length=unit_length)


def beside(
    train: Examples | np.ndarray, *, width: int, unit_length: bool = True
) -> dict[str, Transform]:
    """Returns what trained encoders are compared with: raw pixels, or baselines of vectors.

    Args:
      train: images or vectors to train on, with their classes where there are any.
      width: entries of an embedding.
      unit_length: whether embeddings, and so baselines of vectors, are of unit length.

    Returns:
      Functions from images, or vectors, to points by names out of `BESIDE`.
    """
    images, classes = (train, None) if isinstance(train, np.ndarray) else train[:2]
    if images.ndim > 2:
        return {"raw pixels": lambda pixels: pixels.reshape(len(pixels), -1) / 255.0}
    return vector_baselines(images, classes, width=width, unit_length=unit_length)


def _figures(run: Run, summaries: dict[str, Summary]) -> dict[str, Any]:
    """Draws the pictures of pairs and of the training."""
    assert run.folder is not None
    learned, begun = summaries["embedding"], folder.read_config(run.folder)
    margin = begun.get("margin")
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
        "training": plots.training_curves(folder.read_metrics(run.folder), margin=margin),
    }
    if begun.get("loss") == "contrastive" and margin is not None:
        figures["loss"] = plots.loss_curve(losses.contrastive, margin)
    return figures


def _neighbours(embeddings: np.ndarray, queries: np.ndarray | None) -> np.ndarray:
    """Returns the nearest rows of each query, `[N, k]`; rows of the gallery have themselves."""
    if queries is None:
        return np.asarray(nearest_neighbours(embeddings, k=min(8, len(embeddings) - 1)).indices)
    gallery = np.flatnonzero(~queries)
    nearest = nearest_neighbours(embeddings[queries], embeddings[gallery], k=min(8, len(gallery)))
    neighbours = np.repeat(np.arange(len(embeddings))[:, None], nearest.indices.shape[1], axis=1)
    neighbours[queries] = gallery[nearest.indices]
    return neighbours


def _instructive(
    neighbours: np.ndarray, classes: np.ndarray, queries: np.ndarray | None, count: int = 4
) -> np.ndarray:
    """Selects queries with the right nearest neighbour, and queries with a wrong one."""
    right = classes[neighbours[:, 0]] == classes
    shuffled = np.random.default_rng(0).permutation(len(classes))
    if queries is not None:
        shuffled = shuffled[queries[shuffled]]
    return np.concatenate([shuffled[right[shuffled]][:count], shuffled[~right[shuffled]][:count]])


def _unresolved(dissimilar: int) -> list[float]:
    """Returns the false accept rates below that of one of the dissimilar pairs."""
    return [far for far in FARS if far * dissimilar < 1]


def _resolved(summaries: dict[str, Summary], dissimilar: int) -> dict[str, Summary]:
    """Leaves out figures of false accept rates that so many dissimilar pairs can not resolve."""
    left_out = {f"tar_at_far_{far}" for far in _unresolved(dissimilar)}
    return {
        name: one._replace(figures={k: v for k, v in one.figures.items() if k not in left_out})
        for name, one in summaries.items()
    }


def _note_on_fars(dissimilar: int) -> str:
    """Says below the table which false accept rates are left out of it, and why."""
    fars = _unresolved(dissimilar)
    if not fars:
        return ""
    return (
        f"\n\nTAR at FAR {' and '.join(map(str, fars))} is left out: it takes at least "
        f"{round(1 / fars[0]):,} different dissimilar pairs, and test has {dissimilar:,}."
    )


def _table(
    summaries: dict[str, Summary], intervals: dict[str, dict[str, Interval]] | None = None
) -> str:
    """Returns the table of all figures, with the intervals that there are."""
    rows = [["on test", *summaries], ["---", *["---:"] * len(summaries)]]
    for key, title in TITLES.items():
        if key not in summaries["embedding"].figures:
            continue
        row = [title]
        for name, one in summaries.items():
            text, interval = f"{one.figures[key]:.4f}", (intervals or {}).get(name, {}).get(key)
            bounds = f" [{interval.low:.3f}, {interval.high:.3f}]" if interval else ""
            row.append(text + bounds)
        rows.append(row)
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


if __name__ == "__main__":
    command.run(main, lambda: command.parse(Config, "experiments.evaluate", str(__doc__)))

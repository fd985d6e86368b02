"""The report of a trained run on test data: figures, a table beside baselines, and pictures.

results.md, results.json    figures of the run and of the baselines
embeddings.npz              embeddings of the test split
figures/                    PNG
"""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from contrastive_jax import losses, plots
from contrastive_jax.data.datasets import Dataset, Examples, PairDataset
from contrastive_jax.data.findings import count_splits
from contrastive_jax.evaluation._labelled import negative_pairs
from contrastive_jax.evaluation.baselines import Transform, baselines
from contrastive_jax.evaluation.fold_intervals import pair_intervals, retrieval_intervals
from contrastive_jax.evaluation.given_pairs import points_of_pairs, summarize_pairs
from contrastive_jax.evaluation.intervals import Interval
from contrastive_jax.evaluation.retrieval import nearest_neighbours
from contrastive_jax.evaluation.summary import Summary, summarize
from contrastive_jax.evaluation.tables import figure_table
from contrastive_jax.evaluation.verification import roc_curve
from contrastive_jax.labels.named import from_text
from contrastive_jax.labels.types import PairLabels, with_mask
from contrastive_jax.train import folder as runs
from contrastive_jax.train import metrics
from contrastive_jax.train.labelled import rows_by
from contrastive_jax.train.loss_table import BOUNDED
from contrastive_jax.train.run import Run

FARS = (0.1, 0.01, 0.001)


def write_report(
    run: Run,
    data: Dataset | PairDataset,
    folder: str | Path | None = None,
    *,
    labels: PairLabels | str | None = None,
) -> str:
    """Writes the figures of a run on test, as numbers and as pictures.

    Beside the embedding stand the raw pixels or, of vectors, the baselines of `vector_baselines`
    and intervals over folds of the test set.

    Args:
      run: trained and stored in a folder, by `train.fit`.
      data: with validation and test splits.
      folder: to write to; that of the run by default.
      labels: labels of two rows that name the columns they take, such as
        `labels.any_shared("tags")`, or their text for `labels.by_name`. Figures and the pictures of
        pairs are by them in place of classes; maps and the gallery show classes. None and
        `"class"` stand for classes.

    Returns:
      The Markdown table of figures.

    Raises:
      ValueError: if the run is not stored, the data lacks what the labels take, these do not say
        what that is, or the data has given pairs.

    Example:
      >>> import contrastive_jax as cj
      >>> from contrastive_jax.run_report import write_report
      >>> digits, objective = cj.data.load("digits"), cj.train.objective("contrastive", margin=1.2)
      >>> run = cj.train.fit(cj.models.Linear, digits, objective, steps=10, progress=False)
      >>> print(write_report(run, digits).splitlines()[0])
      | on test | embedding | raw pixels |
    """
    if run.folder is None:
        raise ValueError("the run is not stored: train it with runs='runs', or load it")
    labels = from_text(labels)
    where = Path(folder or run.folder)
    if isinstance(data, PairDataset):
        if labels is not None:
            raise ValueError("given pairs have labels of their own: leave labels out")
        evaluated = _evaluated_pairs(run, data)
    else:
        evaluated = _evaluated(run, data, labels)
    negatives = evaluated.negatives
    evaluated = evaluated._replace(summaries=_resolved(evaluated.summaries, negatives))
    table = figure_table(evaluated.summaries, evaluated.intervals) + _note_on_fars(negatives)
    labels_name = None if labels is None else labels.name or "a function of two rows"
    if labels_name:
        table += f"\n\nPairs are labelled by {labels_name}, in place of classes."
    where.mkdir(parents=True, exist_ok=True)
    (where / "results.md").write_text(table + "\n")
    learned = evaluated.summaries["embedding"]
    results: dict[str, Any] = {name: one.figures for name, one in evaluated.summaries.items()}
    results |= {
        "threshold": learned.threshold,
        "best_step": json.loads((run.folder / "run.json").read_text())["best_step"],
    }
    if labels_name:
        results["labels"] = labels_name
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
    return table


def _finite(values: Any) -> Any:
    """Returns figures as JSON has them: None in place of NaN and of infinities."""
    if isinstance(values, dict):
        return {key: _finite(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_finite(value) for value in values]
    if isinstance(values, np.generic):
        return _finite(values.item())
    return None if isinstance(values, float) and not math.isfinite(values) else values


class _Evaluated(NamedTuple):
    """A run on test."""

    summaries: dict[str, Summary]
    """Figures of the embedding and of the baselines beside it."""
    intervals: dict[str, dict[str, Interval]]
    """Intervals of each of them, by the name of the figure; empty for images."""
    arrays: dict[str, Any]
    """Embeddings, and their classes or pairs."""
    figures: dict[str, Any]
    """Pictures that need classes."""
    negatives: int
    """Number of different negative pairs on test."""


def _evaluated(run: Run, data: Dataset, labels: PairLabels | None) -> _Evaluated:
    """Evaluates a run on examples with classes."""
    test, validation = data.test, data.validation
    rule = None if labels is None else with_mask(labels)
    rows, test_rows = (_rows(split, labels) for split in (validation, test))
    negatives = count_splits(data)[2].negatives
    if rule is not None:
        negatives = negative_pairs(rule, test_rows, len(test.classes))
    maps = {"embedding": run.embed} | _baselines(run, data.train.images, data.train.classes)
    summaries, intervals = {}, {}
    embedded = {"validation": run.embed(validation.images), "test": run.embed(test.images)}
    for name, embed in maps.items():
        first, second = embedded.values()
        if name != "embedding":
            first, second = embed(validation.images), embed(test.images)
        summaries[name] = summarize(
            first,
            rows,
            second,
            test_rows,
            distance=run.distance,
            queries=test.queries,
            labels=rule,
        )
        if test.images.ndim == 2 and test.queries is None and labels is None:
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
    return _Evaluated(summaries, intervals, arrays, figures, negatives)


def _rows(split: Examples, labels: PairLabels | None) -> Any:
    """Returns the classes of a split, or the attributes that labels take and which rows count."""
    if labels is None:
        return split.classes
    if labels.attributes_of is None:
        raise ValueError(
            "these labels do not say which columns of the data they take: name them, as "
            'labels.any_shared("tags") does'
        )
    return rows_by(with_mask(labels), labels.attributes_of, split)


def _evaluated_pairs(run: Run, data: PairDataset) -> _Evaluated:
    """Evaluates a run on given pairs."""
    rows = np.unique(np.concatenate([data.train.left, data.train.right]))
    summaries, intervals, arrays = {}, {}, {}
    for name, embed in ({"embedding": run.embed} | _baselines(run, data.images[rows])).items():
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
    return _Evaluated(summaries, intervals, arrays, {}, count_splits(data)[2].negatives)


def _baselines(
    run: Run, train: np.ndarray, classes: np.ndarray | None = None
) -> dict[str, Transform]:
    """Returns the baselines of the width and length of a run's embeddings."""
    embeddings = run.embed(train[:100])
    unit_length = bool(np.allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-3))
    return baselines(train, classes, width=embeddings.shape[1], unit_length=unit_length)


def _figures(run: Run, summaries: dict[str, Summary]) -> dict[str, Any]:
    """Draws the pictures of pairs and of the training."""
    assert run.folder is not None
    learned, options = summaries["embedding"], runs.read_config(run.folder)
    margin = options.get("margin", options.get("hyperparameters", {}).get("margin"))
    loss = options.get("loss") or (options.get("objective") or [None])[0]
    if loss not in BOUNDED:
        margin = None  # that of an angle or of a difference is no distance to mark
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
        "training": plots.training_curves(metrics.read_metrics(run.folder), margin=margin),
    }
    if loss == "contrastive" and margin is not None:
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


def _unresolved(negatives: int) -> list[float]:
    """Returns the false accept rates below that of one of the negative pairs."""
    return [far for far in FARS if far * negatives < 1]


def _resolved(summaries: dict[str, Summary], negatives: int) -> dict[str, Summary]:
    """Leaves out figures of false accept rates that so many negative pairs can not resolve."""
    left_out = {f"tar_at_far_{far}" for far in _unresolved(negatives)}
    return {
        name: one._replace(figures={k: v for k, v in one.figures.items() if k not in left_out})
        for name, one in summaries.items()
    }


def _note_on_fars(negatives: int) -> str:
    """Says below the table which false accept rates are left out of it, and why."""
    fars = _unresolved(negatives)
    if not fars:
        return ""
    return (
        f"\n\nTAR at FAR {' and '.join(map(str, fars))} is left out: it takes at least "
        f"{round(1 / fars[0]):,} different negative pairs, and test has {negatives:,}."
    )

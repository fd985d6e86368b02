"""The figures of an evaluation: their titles, and a table of several encoders."""

from collections.abc import Mapping, Sequence

from contrastive_jax.evaluation.intervals import Interval
from contrastive_jax.evaluation.summary import Summary

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
"""Titles of the figures of `summarize` and `summarize_pairs`, in the order of a table."""


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Returns rows as a Markdown table, whose entries but for the first column are on the right.

    Args:
      rows: the head and the others, of as many entries each.

    Example:
      >>> from contrastive_jax.evaluation.tables import markdown
      >>> print(markdown([["loss", "MAP@R"], ["supcon", "0.9"]]))
      | loss | MAP@R |
      | --- | ---: |
      | supcon | 0.9 |
    """
    head, *body = rows
    align = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, align, *body))


def figure_table(
    summaries: Mapping[str, Summary],
    intervals: Mapping[str, Mapping[str, Interval]] | None = None,
) -> str:
    """Returns the Markdown table of all figures of several encoders on test.

    Args:
      summaries: by the name of the encoder.
      intervals: of some figures, by the name of the encoder and of the figure.

    Example:
      >>> import numpy as np
      >>> from contrastive_jax import distances
      >>> from contrastive_jax.evaluation.summary import summarize
      >>> from contrastive_jax.evaluation.tables import figure_table
      >>> points, classes = np.array([[0.0], [0.1], [3.0], [3.1]]), np.array([0, 0, 1, 1])
      >>> summary = summarize(points, classes, points, classes, distance=distances.euclidean)
      >>> print(figure_table({"embedding": summary}).splitlines()[2])
      | precision at 1 | 1.0000 |
    """
    first = next(iter(summaries.values()))
    rows = [["on test", *summaries]]
    for key, title in TITLES.items():
        if key not in first.figures:
            continue
        row = [title]
        for name, one in summaries.items():
            interval = (intervals or {}).get(name, {}).get(key)
            bounds = f" [{interval.low:.3f}, {interval.high:.3f}]" if interval else ""
            row.append(f"{one.figures[key]:.4f}{bounds}")
        rows.append(row)
    return markdown(rows)

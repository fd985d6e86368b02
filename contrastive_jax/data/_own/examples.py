"""Examples with classes: decoded, sorted, split and reported."""

from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np

from contrastive_jax.data._own import splits
from contrastive_jax.data._own.contents import digests_of, move_rows, read_contents
from contrastive_jax.data._own.rows import Rows, is_missing, numbered, take
from contrastive_jax.data.datasets import Dataset, Examples
from contrastive_jax.data.findings import SPLITS, Finding, Report, count_splits, finding


class Choices(NamedTuple):
    """The options of `load_with_report`."""

    image_size: int | None
    split_by: str | None
    on_bad_input: str
    validation_fraction: float
    seed: int


_EMPTIED = "validation and test that have no rows left and are made anew"


def dataset(rows: Rows, choices: Choices) -> tuple[Dataset, Report]:
    """Makes a data set of rows with labels, and the report of it."""
    if splits.is_train_alone(rows.splits):
        rows = rows._replace(splits=None)
    if choices.split_by and rows.splits is not None:
        raise ValueError(
            f"--split {choices.split_by} has no effect on {rows.where}, which has splits of its "
            "own: leave --split out, or the splits"
        )
    labelled, findings = _labelled(rows)
    contents = read_contents(
        labelled.items,
        labelled.sources,
        where=rows.where,
        image_size=choices.image_size,
        on_bad_input=choices.on_bad_input,
    )
    # The contents are read, and need not be moved along with the rows.
    rest = take(labelled._replace(items=np.empty(len(labelled.labels))), contents.rows)
    if splits.is_train_alone(rest.splits):
        rest = rest._replace(splits=None)
        findings = [*findings, *finding(_EMPTIED, [rows.where])]
    names, classes = numbered(rest.labels, rest.sources, rows.where)
    keys = zip(classes.tolist(), digests_of(contents.array), rest.sources, strict=True)
    order = np.array([k for _, k in sorted((key, k) for k, key in enumerate(keys))])
    rest, classes = take(rest, order), classes[order]
    groups = None if rest.groups is None else _group_numbers(rest.groups)
    parts, rule = _split(rest, classes, groups, choices)
    # Images are moved in place, so that memory holds them once, and each split has a part of them.
    move_rows(contents.array, order[np.concatenate([parts[split] for split in SPLITS])])
    ends = np.cumsum([len(parts[split]) for split in SPLITS]).tolist()
    images = dict(zip(SPLITS, np.split(contents.array, ends[:2]), strict=True))
    queries = _queries(rest)
    sources = np.array(rest.sources)

    def part(split: str) -> Examples:
        chosen = parts[split]
        return Examples(
            images[split],
            classes[chosen],
            None if groups is None else groups[chosen].astype(np.int32),
            _queries_of(queries, classes, chosen, f"the {split} split of {rows.where}"),
            {name: values[chosen] for name, values in rest.attributes.items()},
            sources[chosen],
        )

    data = Dataset(rows.name, names, *map(part, SPLITS))
    if np.bincount(data.train.classes).max() < 2:
        raise ValueError(
            f"the train split of {rows.where} has no class with two examples, and positive pairs "
            "need one; add examples"
        )
    digests = [contents.digests[k] for k in order]
    findings += [
        *contents.findings,
        *_not_evaluable(data),
        *_single(names, classes),
        *_identical(digests, classes, names, rest.sources, parts),
        *_shared_groups(rest, groups, parts),
        *_shared_classes(names, classes, parts),
    ]
    report = Report(
        rows.name, rows.form, contents.text, rule, count_splits(data), (*rows.findings, *findings)
    )
    return data, report


def _labelled(rows: Rows) -> tuple[Rows, list[Finding]]:
    """Leaves out the rows whose label is hidden."""
    if not rows.labels:
        raise ValueError(f"{rows.where} has no examples")
    hidden = numbered(rows.labels, rows.sources, rows.where)[1] < 0
    if hidden.all():
        raise ValueError(
            f"{rows.where} has no example with a class: all {len(hidden):,} are empty or -1; name "
            "the class of each"
        )
    if not hidden.any():
        return rows, []
    left_out = [rows.sources[k] for k in np.flatnonzero(hidden)]
    return take(rows, np.flatnonzero(~hidden)), finding(
        "examples without a class, which are left out", left_out
    )


def _split(
    rows: Rows, classes: np.ndarray, groups: np.ndarray | None, choices: Choices
) -> tuple[splits.Parts, str]:
    fraction, seed = choices.validation_fraction, choices.seed
    if rows.splits is None:
        return splits.make_splits(classes, groups, choices.split_by, fraction, seed)
    given = splits.given_splits(rows.splits, rows.where)
    return splits.complete_splits(given, classes, groups, fraction, seed)


def _group_numbers(groups: list[Any]) -> np.ndarray:
    """Numbers groups in the order of their names; a row without one is a group of its own."""
    missing = np.array([is_missing(value) for value in groups])
    names, indices = np.unique([str(value) for value in groups], return_inverse=True)
    indices = indices.astype(np.int64)
    indices[missing] = len(names) + np.arange(missing.sum())
    return indices


def _queries(rows: Rows) -> list[bool | None] | None:
    if rows.roles is None:
        return None
    meaning = {"query": True, "gallery": False}
    queries: list[bool | None] = []
    for role, source in zip(rows.roles, rows.sources, strict=True):
        query = meaning.get(str(role).strip().casefold())
        if query is None and not is_missing(role):
            raise ValueError(
                f"{source} of {rows.where} has the role {role!r}, expected query, "
                "gallery or nothing"
            )
        queries.append(query)
    return queries


def _queries_of(
    queries: list[bool | None] | None, classes: np.ndarray, chosen: np.ndarray, where: str
) -> np.ndarray | None:
    """Returns the mask of the queries of a split, or None if no example of it has a role."""
    roles = [] if queries is None else [queries[k] for k in chosen]
    if all(one is None for one in roles):
        return None
    if None in roles:
        raise ValueError(
            f"{where} has {roles.count(None):,} examples without a role beside others with one; "
            "write query or gallery for all of a split, or for none"
        )
    mask = np.array(roles, bool)
    query_classes, gallery_classes = classes[chosen][mask], classes[chosen][~mask]
    if not np.intersect1d(query_classes, gallery_classes).size:
        raise ValueError(
            f"{where} can not be evaluated: no class has both a query and an example of the gallery"
        )
    return mask


def _not_evaluable(data: Dataset) -> list[Finding]:
    """Notes splits without a positive or a negative pair, and queries that find nothing."""
    counts = count_splits(data)
    lonely = []
    for split in SPLITS:
        part: Examples = getattr(data, split)
        if part.queries is not None and part.sources is not None:
            gallery = part.classes[~part.queries]
            alone = part.queries & ~np.isin(part.classes, gallery)
            lonely += part.sources[alone].tolist()
    return [
        *finding(
            "splits without a positive pair", [one.split for one in counts if not one.positives]
        ),
        *finding(
            "splits without a negative pair", [one.split for one in counts if not one.negatives]
        ),
        *finding("queries without an example of their class in the gallery", lonely),
    ]


def _single(names: tuple[str, ...], classes: np.ndarray) -> list[Finding]:
    single = np.flatnonzero(np.bincount(classes, minlength=len(names)) == 1)
    text = "classes of one example, which is in no positive pair"
    return finding(text, [names[k] for k in single])


def _identical(
    digests: list[bytes],
    classes: np.ndarray,
    names: tuple[str, ...],
    sources: list[str],
    parts: splits.Parts,
) -> list[Finding]:
    """Notes identical files in two classes, or in two splits."""
    split = np.full(len(classes), "", "<U10")
    for name, chosen in parts.items():
        split[chosen] = name
    copies = defaultdict(list)
    for row, digest in enumerate(digests):
        copies[digest].append(row)
    shared: dict[str, list[str]] = {"classes": [], "splits": []}
    for rows in copies.values():
        if len(rows) == 1:
            continue
        for by, values in (("classes", classes), ("splits", split)):
            if len({*values[rows].tolist()}) > 1:
                first, second = rows[0], next(k for k in rows if values[k] != values[rows[0]])
                labels = [names[v] if by == "classes" else v for v in values[[first, second]]]
                shared[by].append(
                    f"{sources[first]} ({labels[0]}) and {sources[second]} ({labels[1]})"
                )
    return [
        *finding("contents that are identical in two classes", shared["classes"]),
        *finding("contents that are identical in two splits", shared["splits"]),
    ]


def _shared_groups(rows: Rows, groups: np.ndarray | None, parts: splits.Parts) -> list[Finding]:
    if groups is None or rows.groups is None:
        return []
    shared = _in_two(groups, parts)
    first = {int(number): str(rows.groups[k]) for k, number in enumerate(groups)}
    return finding("groups in two splits", [first[int(number)] for number in shared])


def _shared_classes(
    names: tuple[str, ...], classes: np.ndarray, parts: splits.Parts
) -> list[Finding]:
    """Says how many classes of test are seen in training."""
    seen = np.intersect1d(classes[parts["train"]], classes[parts["test"]])
    unseen = np.setdiff1d(classes[parts["test"]], seen)
    text = "classes of test that are trained on"
    text += f", beside {len(unseen):,} that are not" if len(unseen) else ""
    return finding(text, [names[k] for k in seen], warns=False)


def _in_two(values: np.ndarray, parts: splits.Parts) -> np.ndarray:
    """Returns the values that occur in two splits."""
    present = np.concatenate([np.unique(values[chosen]) for chosen in parts.values()])
    unique, count = np.unique(present, return_counts=True)
    return unique[count > 1]

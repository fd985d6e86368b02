import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contrastive_jax.evaluation import retrieval as module
from contrastive_jax.evaluation.retrieval import nearest_neighbours, retrieval

many = settings(deadline=None, max_examples=100, derandomize=True)


def ranking(query, references, own_index=None):
    """All references but the query itself, near first, ties by index; and squared distances."""
    squared = np.sum((references - query) ** 2, axis=1)
    order = np.argsort(squared, kind="stable")
    return order[order != own_index], squared


def brute_force(queries, query_classes, references=None, reference_classes=None, ks=(1, 5, 10)):
    one_set = references is None
    if one_set:
        references, reference_classes = queries, query_classes
    rows = []
    for i, query in enumerate(queries):
        order, _ = ranking(query, references, i if one_set else None)
        relevant = reference_classes[order] == query_classes[i]
        r = int(relevant.sum())
        if r == 0:
            continue
        average_precision = 0.0
        for rank in range(1, r + 1):
            if relevant[rank - 1]:
                average_precision += relevant[:rank].sum() / rank
        first = list(relevant).index(True) + 1
        rows.append(
            {
                **{f"recall_at_{k}": float(relevant[:k].any()) for k in ks},
                "precision_at_1": float(relevant[0]),
                "r_precision": relevant[:r].sum() / r,
                "map_at_r": average_precision / r,
                "mean_reciprocal_rank": 1 / first,
            }
        )
    if not rows:
        return None
    figures = {name: np.mean([row[name] for row in rows]) for name in rows[0]}
    return figures | {"queries": len(queries), "queries_without_match": len(queries) - len(rows)}


@st.composite
def labelled(draw, width):
    """Embeddings on a small integer grid, with duplicates and ties, and few or many classes."""
    size = draw(st.integers(1, 25))
    span = draw(st.sampled_from([0, 1, 3, 1000]))
    values = st.integers(-span, span)
    rows = draw(
        st.lists(st.lists(values, min_size=width, max_size=width), min_size=size, max_size=size)
    )
    classes = draw(
        st.lists(st.integers(-2, draw(st.integers(-2, 8))), min_size=size, max_size=size)
    )
    return np.array(rows, np.float64), np.array(classes)


def assert_figures(expected, *args, **kwargs):
    if expected is None:
        with pytest.raises(ValueError, match=r"none of the .* queries has a reference"):
            retrieval(*args, **kwargs)
    else:
        assert retrieval(*args, **kwargs) == pytest.approx(expected, abs=1e-12)


@many
@given(st.data(), st.sampled_from([1, 2, 5]), st.sampled_from([1.0, 0.25]))
def test_one_set_equals_brute_force_with_ties(data, width, scale):
    embeddings, classes = data.draw(labelled(width))
    expected = brute_force(embeddings * scale, classes)
    assert_figures(expected, embeddings * scale, classes)


@many
@given(st.data(), st.sampled_from([1, 2, 5]))
def test_two_sets_equal_brute_force_with_ties(data, width):
    sets = *data.draw(labelled(width)), *data.draw(labelled(width))
    assert_figures(brute_force(*sets, ks=(2, 3)), *sets, ks=(2, 3))


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("centre", "spread"), [(0.0, 1.0), (100.0, 1e-5)])
def test_real_embeddings_with_duplicates_equal_brute_force(distance, dtype, centre, spread):
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 12, 203)
    embeddings = rng.normal(size=(12, 7))[classes] + 2 * rng.normal(size=(203, 7))
    embeddings = (centre + spread * embeddings).astype(dtype)
    embeddings[rng.integers(0, 203, 50)] = embeddings[rng.integers(0, 203, 50)]
    points = embeddings.astype(np.float64)
    if distance == "cosine":
        points /= np.linalg.norm(points, axis=1, keepdims=True)
    assert_figures(brute_force(points, classes), embeddings, classes, distance=distance)
    assert_figures(
        brute_force(points[:60], classes[:60], points[60:], classes[60:]),
        embeddings[:60],
        classes[:60],
        embeddings[60:],
        classes[60:],
        distance=distance,
    )


@pytest.mark.parametrize("width", [1, 7, 17, 64])
@pytest.mark.parametrize("size", [5, 31, 203])
@pytest.mark.parametrize("number", [1, 2, 40])
def test_identical_references_tie_wherever_they_stand(width, size, number):
    rng = np.random.default_rng(0)
    references = rng.normal(size=(2, width))[rng.integers(0, 2, size)]
    references[:, : width // 2] = rng.choice([0.0, -0.0], (size, width // 2))
    queries = rng.normal(size=(number, width))
    for k in (1, size // 4, size // 2):
        expected = [ranking(query, references)[0][:k] for query in queries]
        np.testing.assert_array_equal(nearest_neighbours(queries, references, k=k)[0], expected)


def test_figures_worked_by_hand():
    # On a line, classes a a b a b, c alone.
    embeddings = np.array([[0.0], [1.0], [3.0], [6.0], [7.0], [100.0]])
    classes = np.array([-1, -1, 4, -1, 4, 9])
    # Matches (1) by rank: 0: 1 0 1 0 0;  1: 1 0 1 0 0;  3 (class 4): ranks 1, 3, 0, 4 -> 0 0 0 1 0;
    # 6: ranks 4, 2, 1, 0 -> 0 0 1 1 0;  7: ranks 3, 2 -> 0 1 0 0 0.
    assert retrieval(embeddings, classes, ks=(1, 2, 3, 50)) == pytest.approx(
        {
            "recall_at_1": 2 / 5,
            "recall_at_2": 3 / 5,
            "recall_at_3": 4 / 5,
            "recall_at_50": 1,
            "precision_at_1": 2 / 5,
            "r_precision": (1 / 2 + 1 / 2 + 0 + 0 + 0) / 5,
            "map_at_r": (1 / 2 + 1 / 2 + 0 + 0 + 0) / 5,
            "mean_reciprocal_rank": (1 + 1 + 1 / 4 + 1 / 3 + 1 / 2) / 5,
            "queries": 6,
            "queries_without_match": 1,
        }
    )


def test_map_at_r_weighs_the_rank_of_matches():
    # Among the R = 3 nearest, matches at ranks 1 and 3 and at ranks 2 and 3.
    references = np.array([[1.0], [2.0], [3.0], [4.0]])
    first = retrieval([[0.0]], [1], references, [1, 0, 1, 1])
    second = retrieval([[0.0]], [1], references, [0, 1, 1, 1])
    assert first["r_precision"] == second["r_precision"] == pytest.approx(2 / 3)
    assert first["map_at_r"] == pytest.approx((1 + 2 / 3) / 3)
    assert second["map_at_r"] == pytest.approx((1 / 2 + 2 / 3) / 3)


@many
@given(st.data(), st.sampled_from([1, 2, 5]))
def test_nearest_neighbours_equal_brute_force_with_ties(data, width):
    (queries, _), (references, _) = data.draw(labelled(width)), data.draw(labelled(width))
    k = data.draw(st.integers(1, len(references)))
    found = nearest_neighbours(queries, references, k=k)
    for query, indices, distances in zip(queries, *found, strict=True):
        order, squared = ranking(query, references)
        np.testing.assert_array_equal(indices, order[:k])
        np.testing.assert_allclose(distances, np.sqrt(squared[order[:k]]), rtol=1e-15)


def test_nearest_neighbours_leave_out_the_query_but_not_its_duplicates():
    embeddings = np.array([[2.0, 0.0], [0.0, 1.0], [2.0, 0.0], [2.0, 0.0]])
    indices, distances = nearest_neighbours(embeddings, k=3)
    assert indices.tolist() == [[2, 3, 1], [0, 2, 3], [0, 3, 1], [0, 2, 1]]
    far = np.sqrt(5)
    np.testing.assert_array_equal(
        distances, [[0, 0, far], [far, far, far], [0, 0, far], [0, 0, far]]
    )


def test_small_distances_are_accurate():
    rng = np.random.default_rng(0)
    base = rng.normal(size=(40, 16))
    direction = rng.normal(size=(40, 16))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    found = nearest_neighbours(base, base + 1e-6 * direction, k=1)
    np.testing.assert_array_equal(found.indices[:, 0], np.arange(40))
    np.testing.assert_allclose(found.distances[:, 0], 1e-6, rtol=1e-8)


def test_distances_ascend_where_they_differ_by_rounding_alone():
    rng = np.random.default_rng(0)
    references = rng.normal(size=(200, 5))
    references /= np.linalg.norm(references, axis=1, keepdims=True)
    _, distances = nearest_neighbours(np.zeros((1, 5)), references, k=200)
    assert len(np.unique(distances)) > 1
    assert np.all(np.diff(distances) >= 0)


def test_cosine_distances():
    found = nearest_neighbours(
        [[2.0, 0.0]], [[-3.0, 0.0], [0.0, 5.0], [9.0, 0.0]], k=3, distance="cosine"
    )
    assert found.indices.tolist() == [[2, 1, 0]]
    np.testing.assert_allclose(found.distances, [[0, 1, 2]], atol=1e-15)


@pytest.mark.parametrize("held", [1, 100, 1000])
@pytest.mark.parametrize("threads", [1, 3])
def test_blocks_and_threads_change_nothing(monkeypatch, held, threads):
    rng = np.random.default_rng(1)
    embeddings, classes = rng.integers(0, 3, (83, 4)), rng.integers(0, 5, 83)
    expected = retrieval(embeddings, classes), nearest_neighbours(embeddings, k=7)
    monkeypatch.setattr(module, "DISTANCES_HELD", held)
    monkeypatch.setattr(module, "THREADS", threads)
    assert (
        retrieval(embeddings, classes)
        == expected[0]
        == pytest.approx(brute_force(embeddings, classes))
    )
    for found, whole in zip(nearest_neighbours(embeddings, k=7), expected[1], strict=True):
        np.testing.assert_array_equal(found, whole)


def test_takes_jax_arrays():
    rng = np.random.default_rng(2)
    embeddings, classes = rng.normal(size=(50, 4)).astype(np.float32), rng.integers(0, 5, 50)
    half = jnp.asarray(embeddings, jnp.bfloat16)
    assert retrieval(jnp.asarray(embeddings), jnp.asarray(classes)) == pytest.approx(
        brute_force(embeddings.astype(np.float64), classes)
    )
    assert retrieval(half, jnp.asarray(classes)) == pytest.approx(
        brute_force(np.asarray(half, np.float64), classes)
    )


ROWS, CLASSES = np.eye(3), np.array([0, 0, 1])


@pytest.mark.parametrize(
    ("queries", "references", "message"),
    [
        (np.ones(3), None, r"queries .* \[N, D\].* \(3,\)"),
        (np.ones((0, 3)), None, r"queries .* not empty, got shape \(0, 3\)"),
        (np.ones((3, 0)), None, r"queries .* not empty, got shape \(3, 0\)"),
        (ROWS, np.ones((0, 3)), r"references .* not empty, got shape \(0, 3\)"),
        (ROWS, np.ones((4, 2)), r"one width, got shapes \(3, 3\) and \(4, 2\)"),
        ([[0.0, 1.0], [np.nan, 0.0], [0.0, np.inf]], None, r"queries .* finite: row 1 .*\(2 of 3"),
        (ROWS, [[0.0, 0.0, -np.inf]], "references must be finite: row 0"),
    ],
)
def test_bad_embeddings_are_refused(queries, references, message):
    with pytest.raises(ValueError, match=message):
        nearest_neighbours(queries, references, k=1)
    classes = None if references is None else np.zeros(len(references), int)
    with pytest.raises(ValueError, match=message):
        retrieval(queries, np.zeros(len(queries), int), references, classes)


def test_cosine_refuses_zero_rows():
    with pytest.raises(ValueError, match=r"references must not be zero.*: row 1 .*1 of 2"):
        nearest_neighbours([[1.0, 0.0]], [[1.0, 2.0], [0.0, 0.0]], k=1, distance="cosine")


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([0, 0], r"query_classes must be one integer for each of 3 .* shape \(2,\)"),
        (np.eye(3, dtype=int), r"shape \(3, 3\)"),
        ([0.0, 0.0, 1.0], "float64"),
        ([0, 1, 2], "none of the 3 queries"),
    ],
)
def test_bad_classes_are_refused(classes, message):
    with pytest.raises(ValueError, match=message):
        retrieval(ROWS, classes)


def test_bad_reference_classes_are_refused():
    with pytest.raises(ValueError, match=r"reference_classes .* 2 embeddings, .* shape \(3,\)"):
        retrieval(ROWS, CLASSES, ROWS[:2], CLASSES)
    with pytest.raises(ValueError, match="together"):
        retrieval(ROWS, CLASSES, ROWS)
    with pytest.raises(ValueError, match="together"):
        retrieval(ROWS, CLASSES, reference_classes=CLASSES)


@pytest.mark.parametrize(("references", "k", "largest"), [(None, 3, 2), (ROWS, 4, 3), (ROWS, 0, 3)])
def test_nearest_neighbours_refuse_k_out_of_range(references, k, largest):
    with pytest.raises(ValueError, match=rf"\[1, {largest}\].* got {k}"):
        nearest_neighbours(ROWS, references, k=k)


def test_unknown_options_are_refused():
    with pytest.raises(ValueError, match=r"at least 1, got \(1, 0\)"):
        retrieval(ROWS, CLASSES, ks=(1, 0))
    with pytest.raises(ValueError, match='"euclidean" or "cosine", got \'manhattan\''):
        retrieval(ROWS, CLASSES, distance="manhattan")

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


def brute_force(
    queries,
    query_classes,
    references=None,
    reference_classes=None,
    ks=(1, 5, 10),
    query_ids=None,
    reference_ids=None,
):
    """Figures in float64 of the rows whose class is not -1; equal identities are not ranked."""
    one_set = references is None
    if one_set:
        references, reference_classes, reference_ids = queries, query_classes, query_ids
    if query_ids is None:
        query_ids = np.arange(len(queries))
        reference_ids = query_ids if one_set else -1 - np.arange(len(references))
    queries, query_ids, query_classes = (
        one[query_classes != -1] for one in (queries, query_ids, query_classes)
    )
    references, reference_ids, reference_classes = (
        one[reference_classes != -1] for one in (references, reference_ids, reference_classes)
    )
    rows = []
    for query, identity, name in zip(queries, query_ids, query_classes, strict=True):
        order, _ = ranking(query, references)
        order = order[reference_ids[order] != identity]
        relevant = reference_classes[order] == name
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
        st.lists(st.integers(-1, draw(st.integers(-1, 8))), min_size=size, max_size=size)
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


@many
@given(st.data(), st.sampled_from([1, 2]), st.booleans(), st.booleans())
def test_identities_equal_brute_force_with_ties(data, width, one_set, named):
    sets = [data.draw(labelled(width)) for _ in range(1 if one_set else 2)]
    ids = [
        np.array(data.draw(st.lists(st.integers(-1, 9), min_size=n, max_size=n)))
        for n in (len(points) for points, _ in sets)
    ]
    if named:
        ids = [one.astype(str) for one in ids]
    options = dict(zip(("query_ids", "reference_ids"), ids, strict=False))
    arrays = [array for one in sets for array in one]
    assert_figures(brute_force(*arrays, **options), *arrays, **options)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_queries_that_are_in_the_gallery_are_left_out_by_identity(distance):
    rng = np.random.default_rng(0)
    x, classes, ids = rng.normal(size=(40, 3)), rng.integers(0, 5, 40), rng.permutation(40)
    options = {"query_ids": ids, "reference_ids": ids, "distance": distance}
    assert retrieval(x, classes, x, classes, distance=distance)["precision_at_1"] == 1
    assert retrieval(x, classes, x, classes, **options) == retrieval(x, classes, distance=distance)
    for got, want in zip(
        nearest_neighbours(x, x, k=39, **options),
        nearest_neighbours(x, k=39, distance=distance),
        strict=True,
    ):
        np.testing.assert_array_equal(got, want)


def test_duplicates_with_one_identity_do_not_count():
    x, classes = np.array([[0.0], [0.0], [5.0], [1.0]]), np.array([0, 0, 0, 1])
    assert retrieval(x, classes, ks=())["precision_at_1"] == 2 / 3
    same = retrieval(x, classes, ks=(), query_ids=["a", "a", "b", "c"])
    assert same["precision_at_1"] == 0
    indices = nearest_neighbours(x, k=2, query_ids=["a", "a", "b", "c"]).indices
    assert indices.tolist() == [[3, 2], [3, 2], [3, 0], [0, 1]]
    with pytest.raises(ValueError, match=r"whole number in \[1, 2\].* got 3"):
        nearest_neighbours(x, k=3, query_ids=["a", "a", "b", "c"])


IDS = np.arange(3)


@pytest.mark.parametrize(
    ("query_ids", "reference_ids", "message"),
    [
        (IDS, None, "query_ids and reference_ids must be given together"),
        (None, IDS, "query_ids and reference_ids must be given together"),
        (IDS[:2], IDS, r"query_ids must be one integer for each of 3 .* shape \(2,\)"),
        (
            IDS,
            IDS[:, None],
            r"reference_ids .* shape \(3, 1\); squeeze it to \[N\] by reference_ids.squeeze\(1\)",
        ),
        (IDS, IDS + 0.5, r"reference_ids .*, or one bool or string, got float64"),
        (IDS, ["a", "b", "c"], "both be integers or both strings, got int64 and <U1"),
        (np.ma.masked_equal(IDS, 1), IDS, "query_ids must not be masked, as in row 1"),
    ],
)
def test_bad_identities_are_refused(query_ids, reference_ids, message):
    options = {"query_ids": query_ids, "reference_ids": reference_ids}
    with pytest.raises(ValueError, match=message):
        retrieval(ROWS, CLASSES, ROWS, CLASSES, **options)
    with pytest.raises(ValueError, match=message):
        nearest_neighbours(ROWS, ROWS, k=1, **options)
    with pytest.raises(ValueError, match="query_ids alone within one set"):
        retrieval(ROWS, CLASSES, query_ids=IDS, reference_ids=IDS)


def padded(rng, embeddings, classes, fill):
    """Rows to ignore among those that count, and their positions."""
    ignored = np.sort(rng.choice(len(classes) + 20, 20, replace=False))
    counts = ~np.isin(np.arange(len(classes) + 20), ignored)
    rows, names = np.full((len(counts), embeddings.shape[1]), fill), np.full(len(counts), -1)
    rows[counts], names[counts] = embeddings, classes
    return rows, names, counts


@pytest.mark.parametrize("fill", [0.0, np.nan, 1e200])
@pytest.mark.parametrize("masked", [False, True])
def test_ignored_rows_change_nothing_whatever_they_hold(fill, masked):
    rng = np.random.default_rng(0)
    x, c = rng.normal(size=(60, 4)), rng.integers(0, 6, 60)
    y, d = rng.normal(size=(50, 4)), rng.integers(0, 6, 50)
    (more_x, more_c, _), (more_y, more_d, _) = padded(rng, x, c, fill), padded(rng, y, d, fill)
    if masked:
        # The value under a mask counts for nothing.
        more_c, more_d = (
            np.ma.masked_array(np.where(one < 0, 2, one), mask=one < 0) for one in (more_c, more_d)
        )
    assert retrieval(more_x, more_c) == retrieval(x, c)
    assert retrieval(more_x, more_c, more_y, more_d) == retrieval(x, c, y, d)
    ids, more_ids = rng.integers(0, 9, 60), np.full(80, 4)
    more_ids[~np.ma.getmaskarray(more_c) & (np.asarray(more_c) >= 0)] = ids
    assert retrieval(more_x, more_c, query_ids=more_ids) == retrieval(x, c, query_ids=ids)


def test_classes_of_every_sort_give_the_same_figures():
    rng = np.random.default_rng(0)
    x, c = rng.normal(size=(30, 4)), rng.integers(0, 2, 30)
    want = retrieval(x, c)
    names = np.array(["cat", "dog"])[c]
    for same in (
        c.tolist(),
        c.astype(">i4"),
        c.astype(np.uint8),
        c == 1,
        names,
        names.tolist(),
        names.astype(object),
        names.astype("S"),
        c + 2**40,
        jnp.asarray(c),
        np.ma.masked_array(names, mask=False),
    ):
        assert retrieval(x, same) == want
        assert retrieval(x, same, x, same) == retrieval(x, c, x, c)


@pytest.mark.parametrize(
    ("rows", "distance", "message"),
    [
        ([[1.0], [1e160], [2.0]], "euclidean", r"queries .* 1e\+150 .*: row 1, with 1e\+160"),
        ([[1.0], [1e160], [2.0]], "cosine", r"queries .* 1e\+150 .*: row 1, with 1e\+160"),
        ([[1.0], [3.0], [1e-170]], "cosine", r"queries .* 1e-140 .*: row 2, with 1e-170"),
        ([[1e-170], [2e-170], [0.0]], "euclidean", r"1e-140 .* got at most 1e-170 from"),
        ([[1.0], [np.longdouble("1e400")], [2.0]], "euclidean", "queries must be finite: row 1"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_embeddings_whose_squares_do_not_fit_are_refused(rows, distance, message):
    with pytest.raises(ValueError, match=message):
        nearest_neighbours(rows, k=1, distance=distance)
    with pytest.raises(ValueError, match=message):
        retrieval(rows, CLASSES, distance=distance)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.filterwarnings("error")
def test_figures_do_not_depend_on_scale(distance, dtype):
    rng = np.random.default_rng(0)
    # Odd whole numbers below 2^16, exact in either dtype however small.
    x, c = (2 * rng.integers(-(2**14), 2**14, (80, 3)) + 1).astype(dtype), rng.integers(0, 4, 80)
    want = retrieval(x, c, distance=distance)
    for power in (-149, 112) if dtype == np.float32 else (-464, 482):
        scaled = np.ldexp(x, power)
        assert np.isfinite(scaled).all()
        assert retrieval(scaled, c, distance=distance) == want


def test_masked_embeddings_are_refused_where_they_count():
    x = np.ma.masked_array(np.arange(8.0).reshape(4, 2), mask=False)
    x[2, 1] = np.ma.masked
    message = r"queries must be free of masked entries .*: row 2 is not \(1 of 4 rows\)"
    with pytest.raises(ValueError, match=message):
        nearest_neighbours(x, k=1)
    with pytest.raises(ValueError, match=message):
        retrieval(x, [0, 0, 1, 1])
    rows = [0, 1, 3]
    assert retrieval(x, [0, 0, -1, 0]) == retrieval(np.asarray(x)[rows], [0, 0, 0])


def test_figures_worked_by_hand():
    # On a line, classes a a b a b, c alone.
    embeddings = np.array([[0.0], [1.0], [3.0], [6.0], [7.0], [100.0]])
    classes = np.array([0, 0, 4, 0, 4, 9])
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
    neighbours = nearest_neighbours(queries, references, k=k)
    for query, indices, distances in zip(queries, *neighbours, strict=True):
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
    neighbours = nearest_neighbours(base, base + 1e-6 * direction, k=1)
    np.testing.assert_array_equal(neighbours.indices[:, 0], np.arange(40))
    np.testing.assert_allclose(neighbours.distances[:, 0], 1e-6, rtol=1e-8)


def test_distances_ascend_where_they_differ_by_rounding_alone():
    rng = np.random.default_rng(0)
    references = rng.normal(size=(200, 5))
    references /= np.linalg.norm(references, axis=1, keepdims=True)
    _, distances = nearest_neighbours(np.zeros((1, 5)), references, k=200)
    assert len(np.unique(distances)) > 1
    assert np.all(np.diff(distances) >= 0)


def test_cosine_distances():
    neighbours = nearest_neighbours(
        [[2.0, 0.0]], [[-3.0, 0.0], [0.0, 5.0], [9.0, 0.0]], k=3, distance="cosine"
    )
    assert neighbours.indices.tolist() == [[2, 1, 0]]
    np.testing.assert_allclose(neighbours.distances, [[0, 1, 2]], atol=1e-15)


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
    for actual, whole in zip(nearest_neighbours(embeddings, k=7), expected[1], strict=True):
        np.testing.assert_array_equal(actual, whole)


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
        (CLASSES[:, None], r"shape \(3, 1\); squeeze it to \[N\] by query_classes.squeeze\(1\)"),
        ([0, 0, -5], r"query_classes must be at least 0, or -1 .*, got -5 in row 2 \(1 of 3"),
        (["a", "a", 1], "one integer for each of 3 embeddings, or one bool or string"),
        ([-1, -1, -1], "none of the 0 queries .*; 3 rows of class -1 or of a masked class"),
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


@pytest.mark.parametrize(
    ("references", "k", "largest"), [(None, 3, 2), (ROWS, 4, 3), (ROWS, 0, 3), (None, 1.5, 2)]
)
def test_nearest_neighbours_refuse_k_out_of_range(references, k, largest):
    with pytest.raises(ValueError, match=rf"\[1, {largest}\].* got {k}"):
        nearest_neighbours(ROWS, references, k=k)


def test_unknown_options_are_refused():
    with pytest.raises(ValueError, match=r"at least 1, got \(1, 0\)"):
        retrieval(ROWS, CLASSES, ks=(1, 0))
    with pytest.raises(ValueError, match=r"ks must be a sequence such as \(1, 5, 10\), got 5"):
        retrieval(ROWS, CLASSES, ks=5)
    with pytest.raises(ValueError, match=r"ks must be whole numbers .*, got \(2.5,\)"):
        retrieval(ROWS, CLASSES, ks=(2.5,))
    assert "recall_at_2" in retrieval(ROWS, CLASSES, ks=(k for k in np.array([1, 2])))
    with pytest.raises(ValueError, match='"euclidean" or "cosine", got \'manhattan\''):
        retrieval(ROWS, CLASSES, distance="manhattan")

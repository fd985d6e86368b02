"""Tables of trials: the values that an edge of a grid asks for."""

import pytest

from contrastive_jax.evaluation import trial_tables


@pytest.mark.parametrize(
    ("values", "best", "expected"),
    [
        ((0.25, 0.5, 1.0), 1.0, {"axis": 2.0}),
        ((0.25, 0.5, 1.0), 0.5, {}),
        ((10, 30, 64), 10, {"axis": 3}),
        ((1, 2, 3), 1, {}),
        ((64, 96, 128), 64, {"axis": 43}),
    ],
)
def test_a_value_beyond_an_edge_is_one_of_its_type(values, best, expected):
    rows = [trial_tables.Row({"axis": x}, [], 0, float(x == best)) for x in values]
    beyond = trial_tables.edges(rows)
    assert beyond == expected
    assert all(type(x) is type(values[0]) for x in beyond.values())

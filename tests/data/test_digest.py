"""The digest of data: other for every change that could change a run, and the same otherwise."""

import json

import jax
import numpy as np
import pytest

from contrastive_jax.data import Dataset, Examples, GivenPairs, PairDataset, load_with_report
from contrastive_jax.data._digest import digest
from contrastive_jax.train.run_folder import check_data
from experiments import options, search, trials

TABLE = """vector,class,group,role,ink,sort
"[0, 1]",a,3,query,7,x
"[1, 1]",a,4,gallery,8,yy
"[2, 1]",b,3,query,7,x
"[3, 1]",b,4,gallery,9,x
"""
# A change of one field of the table.
CHANGES = {
    "vector": ("[3, 1]", "[3, 2]"),
    "class": ('[1, 1]",a', '[1, 1]",b'),
    "group": ("b,4", "b,3"),
    "role": ("a,4,gallery", "a,4,query"),
    "number": (",9,x", ",10,x"),
    "text": ('7,x\n"[1', '7,z\n"[1'),
    "name of a column": ("sort", "kind"),
}


def _loaded(path, text):
    rows = text.splitlines()
    head, rows = rows[0], rows[1:]
    splits = [f"{row},{split}" for split in ("train", "validation", "test") for row in rows]
    path.write_text("\n".join([f"{head},split", *splits]))
    return load_with_report(path)[0]


@pytest.mark.parametrize("change", CHANGES)
def test_every_column_is_in_the_digest(tmp_path, change):
    before = digest(_loaded(tmp_path / "one.csv", TABLE))
    assert digest(_loaded(tmp_path / "other name.csv", TABLE)) == before
    assert TABLE.count(CHANGES[change][0]) == 1
    assert digest(_loaded(tmp_path / "one.csv", TABLE.replace(*CHANGES[change]))) != before


def test_masks_objects_and_weights_are_in_the_digest():
    images, classes = np.zeros((3, 2)), np.ma.array([0, 1, 1], mask=[True, False, False])

    def data(classes, **columns):
        one = Examples(images, classes, **columns)
        return Dataset("data", ("a", "b"), one, one, one)

    assert digest(data(classes)) == digest(data(classes.copy()))
    assert digest(data(classes)) != digest(data(np.ma.array(classes.data, mask=False)))
    objects = [np.array(values, object) for values in (["x", 1, None], ["x", 2, None])]
    one, same, other = (
        digest(data(classes, attributes={"sort": values}))
        for values in (objects[0], objects[0].copy(), objects[1])
    )
    assert one == same != other
    pairs = GivenPairs(np.array([0]), np.array([1]), np.array([0]))
    weighted = pairs._replace(weights=np.array([0.5], np.float32))
    digests = {digest(PairDataset("data", images, one, pairs, pairs)) for one in (pairs, weighted)}
    assert len(digests) == 2


def test_a_changed_attribute_group_or_role_is_refused(tmp_path):
    begun = _loaded(tmp_path / "one.csv", TABLE)
    config = search.Config(runs=tmp_path / "runs", name="run")
    resumed = search.Config(runs=tmp_path / "runs", resume="run")
    device = jax.devices()[0]

    def opened(config, data):
        record = trials.recorded(config, (), device, data)
        return options.open_run(config, "", record, free=trials.FREE)

    with opened(config, begun) as folder:
        pass
    assert "data_digest" in json.loads((folder / "config.json").read_text())
    with opened(resumed, begun):
        check_data(folder, digest(begun))
    for change in ("group", "role", "number", "text"):
        data = _loaded(tmp_path / "one.csv", TABLE.replace(*CHANGES[change]))
        with (
            pytest.raises(ValueError, match="is not what it was started on"),
            opened(resumed, data),
        ):
            pass
        with pytest.raises(ValueError, match="is not what it was trained on"):
            check_data(folder, digest(data))

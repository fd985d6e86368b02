"""Data of one's own for tests: the same images in every form."""

import io
import json

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet

CLASSES = ("cat", "dog", "emu")


def pictures(per_class=8, side=6, classes=CLASSES, channels=3, seed=0):
    """Returns images by class, `{class: [image, ...]}`."""
    generator = np.random.default_rng(seed)
    shape = (side, side, channels)[: 3 if channels > 1 else 2]
    return {
        name: [generator.integers(0, 256, shape, np.uint8) for _ in range(per_class)]
        for name in classes
    }


def encoded(image, kind="png"):
    buffer = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(buffer, kind)
    return buffer.getvalue()


def write_folder(folder, images):
    for name, members in images.items():
        (folder / name).mkdir(parents=True)
        for k, image in enumerate(members):
            (folder / name / f"{k}.png").write_bytes(encoded(image))
    return folder


def rows_of(images):
    """Returns path, class and bytes of every image, in an order that is not sorted."""
    rows = [
        (f"{name}/{k}.png", name, encoded(image))
        for name, members in images.items()
        for k, image in enumerate(members)
    ]
    return [rows[k] for k in np.random.default_rng(1).permutation(len(rows))]


def write_csv(path, images, line="{path},{label}", header="path,class"):
    write_folder(path.parent, images)
    lines = [line.format(path=name, label=label) for name, label, _ in rows_of(images)]
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def write_parquet(path, images):
    _, labels, contents = zip(*rows_of(images), strict=True)
    parquet.write_table(pa.table({"image": list(contents), "class": list(labels)}), path)
    return path


def write_saved(folder, images):
    """Writes a folder as `save_to_disk` of Hugging Face `datasets` does."""
    rows = rows_of(images)
    # Other numbers than those of sorted names.
    names = sorted(images, reverse=True)
    table = pa.table(
        {
            "picture": [{"bytes": content, "path": path} for path, _, content in rows],
            "kind": pa.array([names.index(label) for _, label, _ in rows], pa.int64()),
        }
    )
    features = {
        "picture": {"_type": "Image"},
        "kind": {"names": names, "_type": "ClassLabel"},
    }
    write_arrow(folder, table, features)
    return folder


def write_arrow(folder, table, features):
    folder.mkdir(parents=True)
    file = "data-00000-of-00001.arrow"
    with pa.OSFile(str(folder / file), "wb") as out, pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": file}]}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))


def assert_same(first, second):
    assert first.class_names == second.class_names
    for one, other in zip(first[2:], second[2:], strict=True):
        for a, b in zip(one[:2], other[:2], strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)

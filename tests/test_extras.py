"""The core trains without any extra, and whatever needs one names it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from contrastive_jax.data import load

ROOT = Path(__file__).parent.parent
DATA = ("tensorflow_datasets", "importlib_resources", "tqdm")
TRAIN = (*DATA, "grain", "sklearn", "PIL", "tyro", "tensorboardX")
BENCH = ("torch", "pytorch_metric_learning", "pykeops", "psutil")
EXPORT = ("flatbuffers", "jax2onnx", "onnxruntime", "safetensors")
HIDDEN = (*TRAIN, *BENCH, *EXPORT, "matplotlib", "optuna")
MARK = "--- "
HIDE = """
import sys


class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {hidden!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)


sys.meta_path.insert(0, Hidden())
"""


def _run(code, hidden=HIDDEN):
    """Runs code in a process that finds none of the hidden packages."""
    code = HIDE.format(hidden=hidden) + code
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


EVERY_MODULE = """
import importlib, json, pkgutil
import contrastive_jax, experiments, experiments.benchmarks

errors = {}
for package in (contrastive_jax, experiments):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        try:
            importlib.import_module(module.name)
        except ImportError as error:
            errors[module.name] = str(error)
print(json.dumps(errors))
"""
MODULES = {
    "contrastive_jax.ablation_plots": "contrastive_jax.plots needs matplotlib: [plots]",
    "contrastive_jax.ablation_report": "contrastive_jax.plots needs matplotlib: [plots]",
    "contrastive_jax.cli": "contrastive_jax.cli needs tyro: [train]",
    "contrastive_jax.data._examples": "contrastive_jax.data.images needs PIL: [train]",
    "contrastive_jax.data._own.decode": "contrastive_jax.data.images needs PIL: [train]",
    "contrastive_jax.data._local": "contrastive_jax.data._local needs tensorflow_datasets: [train]",
    "contrastive_jax.data.digits": "contrastive_jax.data._local needs tensorflow_datasets: [train]",
    "contrastive_jax.data.idx": "contrastive_jax.data._local needs tensorflow_datasets: [train]",
    "contrastive_jax.data.images": "contrastive_jax.data.images needs PIL: [train]",
    "contrastive_jax.data.pictures": "contrastive_jax.data.images needs PIL: [train]",
    "contrastive_jax.loss_report": "contrastive_jax.plots needs matplotlib: [plots]",
    "contrastive_jax.neighbourhood_maps": "contrastive_jax.plots needs matplotlib: [plots]",
    "contrastive_jax.plane_plots": "contrastive_jax.plots needs matplotlib: [plots]",
    "contrastive_jax.plots": "contrastive_jax.plots needs matplotlib: [plots]",
    "contrastive_jax.train.run_inputs": "contrastive_jax.data.images needs PIL: [train]",
    "contrastive_jax.run_report": "contrastive_jax.plots needs matplotlib: [plots]",
    "experiments.benchmarks.ablation": "experiments.benchmarks.ablation needs torch: [bench]",
    "experiments.benchmarks.all_pairs": "experiments.benchmarks.all_pairs needs psutil: [bench]",
    "experiments.benchmarks.gpu": "experiments.benchmarks.gpu needs torch: [bench]",
    "experiments.benchmarks.labels": "experiments.benchmarks.labels needs tyro: [bench]",
    "experiments.benchmarks.losses": "experiments.benchmarks.losses needs psutil: [bench]",
    "experiments.benchmarks.retrieval": "experiments.benchmarks.retrieval needs faiss: [bench]",
    "experiments.benchmarks.small_batches": (
        "experiments.benchmarks.small_batches needs tyro: [bench]"
    ),
    "experiments.benchmarks.training": "experiments.benchmarks.training needs torch: [bench]",
    "experiments.command": "contrastive_jax.cli needs tyro: [train]",
    "experiments.compare": "contrastive_jax.cli needs tyro: [train]",
    "experiments.compare_losses": "experiments.compare_losses needs tqdm: [train]",
    "experiments.drlim": "contrastive_jax.cli needs tyro: [train]",
    "experiments.embed": "contrastive_jax.cli needs tyro: [train]",
    "experiments.evaluate": "contrastive_jax.cli needs tyro: [train]",
    "experiments.export": "contrastive_jax.cli needs tyro: [train]",
    "experiments.margin_ablation": "contrastive_jax.cli needs tyro: [train]",
    "experiments.option_checks": "contrastive_jax.cli needs tyro: [train]",
    "experiments.options": "contrastive_jax.cli needs tyro: [train]",
    "experiments.results": "contrastive_jax.cli needs tyro: [train]",
    "experiments.search": "contrastive_jax.cli needs tyro: [train]",
    "experiments.train": "contrastive_jax.cli needs tyro: [train]",
    "experiments.trials": "contrastive_jax.cli needs tyro: [train]",
}


def test_modules_that_need_an_extra_name_it_and_all_others_do_without():
    shown = {
        name: error.replace("[", "pip install 'contrastive_jax[").replace("]", "]'")
        for name, error in MODULES.items()
    }
    assert json.loads(_run(EVERY_MODULE)) == shown


CALLS = """
import numpy as np
from contrastive_jax import data

for call in (
    lambda: data.load("digits"),
    lambda: next(data.stream_pairs(
        np.zeros((4, 2, 2, 1), np.uint8), np.array([0, 0, 1, 1]),
        seed=0, batch_size=2, positive_fraction=0.5,
    )),
):
    try:
        call()
    except ImportError as error:
        print(error)
"""


def test_calls_that_need_an_extra_name_it(printed):
    assert printed["calls"] == [
        "contrastive_jax.data.images needs PIL: pip install 'contrastive_jax[train]'",
        "contrastive_jax.data.stream needs grain: pip install 'contrastive_jax[train]'",
    ]


@pytest.mark.parametrize("package", DATA)
def test_each_package_of_the_data_sets_is_named_where_it_alone_is_missing(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    message = f"data.datasets needs {package}: pip install 'contrastive_jax\\[train\\]'"
    with pytest.raises(ImportError, match=message):
        load("digits")


FILES = """
import pathlib
from contrastive_jax import data

for name in ("x.parquet", "x.safetensors"):
    pathlib.Path({folder!r}, name).write_bytes(b"")
    try:
        data.load(pathlib.Path({folder!r}, name))
    except ImportError as error:
        print(error)
try:
    data.load(pathlib.Path({folder!r}))
except ImportError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """Returns what each code that needs none of the extras prints, by name, in one process."""
    folder = tmp_path_factory.mktemp("extras")
    (folder / "cat").mkdir()
    (folder / "cat" / "0.png").touch()
    vectors = VECTORS.format(path=str(tmp_path_factory.mktemp("vectors") / "x.npz"))
    codes = {
        "calls": CALLS,
        "files": FILES.format(folder=str(folder)),
        "vectors": vectors,
        "exports": EXPORTS,
    }
    parts = "".join(f"print({MARK + name!r})\n{code}\n" for name, code in codes.items())
    _, *shown = _run(parts, (*HIDDEN, "pyarrow")).split(MARK)
    return {name: lines for name, *lines in (part.splitlines() for part in shown)}


def test_files_of_ones_own_name_the_extra_that_reads_them(printed):
    assert printed["files"] == [
        "reading Parquet needs pyarrow: pip install 'contrastive_jax[train]'",
        "reading safetensors needs safetensors: pip install 'contrastive_jax[export]'",
        "contrastive_jax.data.images needs PIL: pip install 'contrastive_jax[train]'",
    ]


VECTORS = """
import numpy as np
from contrastive_jax import data

path = {path!r}
np.savez(path, embeddings=np.arange(80.0).reshape(40, 2), classes=np.arange(40) % 2)
print(data.load(path).train.images.shape)
"""


def test_vectors_of_numpy_need_no_extra(printed):
    assert printed["vectors"] == ["(28, 2)"]


EXPORTS = """
import jax.numpy as jnp
from contrastive_jax import export

for call in (
    lambda: export.to_stablehlo(lambda p, x: p * x, 1.0, (2,), "float32"),
    lambda: export.from_stablehlo(b""),
    lambda: export.to_onnx(lambda p, x: p * x, 1.0, (2,), "float32"),
    lambda: export.from_onnx(b""),
    lambda: export.to_safetensors({}),
    lambda: export.from_safetensors(b"", {}),
):
    try:
        call()
    except ImportError as error:
        print(error)
"""


def test_exports_name_their_extra(printed):
    packages = ["flatbuffers", "flatbuffers", "jax2onnx", "onnxruntime"] + ["safetensors"] * 2
    modules = ["programs"] * 4 + ["parameters"] * 2
    assert printed["exports"] == [
        f"contrastive_jax.export.{module} needs {package}: pip install 'contrastive_jax[export]'"
        for module, package in zip(modules, packages, strict=True)
    ]


def test_digits_that_are_not_prepared_and_a_search_by_optuna_name_their_extras(tmp_path):
    code = f"""
from contrastive_jax import data
from experiments import search

try:
    data.load("digits", tfds_dir={str(tmp_path)!r})
except ImportError as error:
    print(error)

try:
    search.main(search.Config(space=("margin=0.5:1",), method="optuna"))
except ImportError as error:
    print(error)
"""
    assert _run(code, ("sklearn", "optuna")).splitlines()[-2:] == [
        "contrastive_jax.data.digits needs sklearn: pip install 'contrastive_jax[train]'",
        "--method optuna needs optuna: pip install 'contrastive_jax[search]'",
    ]


def test_training_needs_no_extra():
    assert _run((ROOT / ".ci" / "train_with_core.py").read_text()).startswith("trained 4 steps")

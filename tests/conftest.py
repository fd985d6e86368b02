"""Eight host devices for every test, and programs that are compiled quickly.

Most of the time of a test goes to compiling a program that then runs for milliseconds. Tests
therefore compile without XLA's optimisations, which takes a third of the time, compile equal
programs once (shared_programs.py), and draw random numbers with a cheap hash (cheap_hash.py).
`--optimised` compiles and draws as users do; `--long` adds the tests that are marked as long.
`make test-all` does both. `--pages` adds the code of the README and of the pages of the site, as
`make docs` does. `--dense` and `--products` test one way to compute the pairs by the tests of
another, as `make test-dense` does. `--kernel` and `--package` run the notebooks in another
environment, as .ci/test-colab does.
"""

import contextlib
import gc
import os
import resource
import types

import cheap_hash
import jax
import pytest
import shared_programs

os.environ.setdefault("PJRT_NPROC", "64")  # the devices wait for each other, each in a thread
jax.config.update("jax_num_cpu_devices", 8)
if not hasattr(jax, "enable_x64"):  # before jax 0.8
    from jax.experimental import enable_x64

    jax.enable_x64 = enable_x64

QUICKLY = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
# A program in one piece: to split it for threads takes longer, where tests have a worker a core.
QUICKLY += " --xla_cpu_parallel_codegen_split_count=1"
if jax.__version_info__ < (0, 11):  # later versions end at a flag that they do not have any more
    QUICKLY += " --xla_cpu_use_fusion_emitters=false"

# Tracing makes many objects that live long; collecting them as often as by default takes a tenth of
# its time.
gc.set_threshold(100_000, 20, 20)


def pytest_addoption(parser):
    parser.addoption("--optimised", action="store_true", help="compile and draw as users do")
    parser.addoption("--long", action="store_true", help="run the tests marked as long too")
    parser.addoption(
        "--pages", action="store_true", help="run the code of the README and of the site too"
    )
    parser.addoption(
        "--accelerators", action="store_true", help="compile for TPUs and GPUs that are not there"
    )
    parser.addoption(
        "--dense", action="store_true", help="compute the matrix of all pairs where a tile is given"
    )
    parser.addoption(
        "--products", action="store_true", help="take products for points of few entries too"
    )
    parser.addoption("--kernel", default="python3", help="Jupyter kernel that runs the notebooks")
    parser.addoption(
        "--package", default="", help="what their first cell installs the library from"
    )


def pytest_configure(config):
    if os.path.exists("/dev/nvidia0") or os.path.exists("/dev/nvidiactl"):
        # Sums of scattered entries in one order, so that programs can be compared to the bit.
        os.environ["XLA_FLAGS"] = (
            f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true"
        )
    if not config.getoption("optimised"):
        # Workers and the programs that tests start inherit it.
        given = os.environ.get("XLA_FLAGS", "")
        if QUICKLY not in given:
            os.environ["XLA_FLAGS"] = f"{given} {QUICKLY}".strip()
        cheap_hash.draw()
    shared_programs.share()


def pytest_collection_modifyitems(config, items):
    left_out = [
        mark
        for mark, option in (
            ("long", not config.getoption("long")),
            ("page", not config.getoption("pages")),
            ("sweep", config.getoption("dense")),
        )
        if option
    ]
    for mark in left_out:
        marked = [item for item in items if item.get_closest_marker(mark)]
        config.hook.pytest_deselected(items=marked)
        items[:] = [item for item in items if not item.get_closest_marker(mark)]


def pytest_collection_finish(session):
    # What imports left is not looked through again at each collection.
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def dense_whatever_tile(request):
    """With `--dense`, tests of the sweep over tiles test the matrix of all pairs instead."""
    if not request.config.getoption("dense"):
        yield
        return
    from contrastive_jax import anchors
    from contrastive_jax._engine import engines

    select = engines.select_engine

    def without_tile(problem, method):
        task = problem.task
        task = task._replace(numerics=task.numerics._replace(tile=None))
        return select(problem._replace(task=task), method)

    with pytest.MonkeyPatch.context() as patch:
        for module in (engines, anchors):
            patch.setattr(module, "select_engine", without_tile)
        yield


@pytest.fixture(scope="session", autouse=True)
def products_whatever_width(request):
    """With `--products`, tests with few entries test what longer embeddings take."""
    if not request.config.getoption("products"):
        yield
        return
    from contrastive_jax._engine import differences

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(differences, "NARROW", 0)
        yield


@pytest.fixture(scope="session")
def longer(request):
    """Returns whether `--long` was given: every loss then runs in both dtypes and over tiles."""
    return request.config.getoption("long")


@pytest.fixture
def one_device(monkeypatch):
    """Programs take one device by default, as on most machines: one for eight compiles longer."""
    _take_first(1, monkeypatch)


@pytest.fixture
def two_devices(monkeypatch):
    """Programs take two devices by default: a ring of two compiles in a third of the time."""
    _take_first(2, monkeypatch)


@pytest.fixture
def threefry():
    """JAX draws as users do, for figures that a page promises."""
    with cheap_hash.threefry():
        yield


@pytest.fixture(scope="module")
def few_pairs(longer):
    """Runs are verified by at most 2,000 pairs a split, which takes a twentieth of the time.

    `--long` verifies by as many as users do.
    """
    from contrastive_jax.evaluation import summary

    draw = summary._drawn

    def drawn(names, points, classes, distance, pairs, *rest):
        return draw(names, points, classes, distance, pairs if longer else min(pairs, 2000), *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(summary, "_drawn", drawn)
        yield


@pytest.fixture(scope="module")
def unrefined(longer):
    """Sets `refine=False` in losses over pairs, in modules that test something else.

    Refinement is up to half of what is compiled for a small batch. `--long` refines.
    """
    from contrastive_jax import all_pairs, anchors

    numerics = all_pairs.Numerics
    with pytest.MonkeyPatch.context() as patch:
        for module in () if longer else (all_pairs, anchors):
            patch.setattr(module, "Numerics", lambda refine, *others: numerics(False, *others))
        yield


@pytest.fixture
def no_figures(monkeypatch):
    """Reports of runs have no figures, which take longer than all the rest of a small run."""
    from contrastive_jax import plots, run_report

    none = dict.fromkeys(vars(plots), lambda *args, **kwargs: None)
    monkeypatch.setattr(run_report, "plots", types.SimpleNamespace(**none))


def _take_first(number, monkeypatch):
    first = jax.devices()[:number]
    for name in ("devices", "local_devices"):
        monkeypatch.setattr(jax, name, lambda *_, **__: first)


@pytest.fixture
def no_larger_files():
    """Makes a context in which writing beyond a size fails, as on a full disk."""

    @contextlib.contextmanager
    def limited(size):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited

"""Eight host devices for every test, and threads enough for them to wait for each other.

`--kernel` and `--package` run the notebooks in another environment, as .ci/test-colab does.
"""

import contextlib
import os
import resource

import jax
import pytest

os.environ.setdefault("PJRT_NPROC", "64")
jax.config.update("jax_num_cpu_devices", 8)
if not hasattr(jax, "enable_x64"):  # before jax 0.8
    from jax.experimental import enable_x64

    jax.enable_x64 = enable_x64


def pytest_addoption(parser):
    parser.addoption("--kernel", default="python3", help="Jupyter kernel that runs the notebooks")
    parser.addoption(
        "--package", default="", help="what their first cell installs the library from"
    )


@pytest.fixture(scope="module")
def quick():
    """Compiles without optimising, which does not pay for programs that run for milliseconds."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    # What was compiled so, of JAX's own functions too, differs in last digits.
    jax.clear_caches()


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

"""Keeps these tests to `make test-accelerators`: they change the platforms that JAX looks for."""


def pytest_ignore_collect(config):
    return None if config.getoption("accelerators") else True

"""Keeps these tests out where no compiler for an accelerator is installed, as for `make test`."""

import importlib.util

collect_ignore_glob = []
if not any(map(importlib.util.find_spec, ("libtpu", "jax_cuda12_plugin"))):
    collect_ignore_glob.append("test_*.py")

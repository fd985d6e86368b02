"""Accelerators that a program can be compiled for where none is attached.

XLA compiles ahead of time for a topology that is only described. This takes the compiler of the
platform, libtpu or the CUDA plugin of JAX, and neither a device nor a driver.
"""

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from typing import Literal, NamedTuple
from unittest import mock

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from contrastive_jax.train import AXIS

# What XLA would ask the driver. The figures are those of an H100 SXM with 80 GB.
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  device_memory_size: 84978434048
  cuda_compute_capability { major: 9 minor: 0 }
}
platform_name: "CUDA"
runtime_version { major: 12 minor: 9 }
dnn_version_info { major: 9 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""

# libtpu asks the machine which TPU it is, unless it is told.
_TPU_MACHINE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
_PLUGINS = {"tpu": "libtpu", "cuda": "jax_cuda12_plugin"}


class Target(NamedTuple):
    """Devices to compile for."""

    name: str
    platform: Literal["tpu", "cuda"]
    topology: str
    """Name of the topology that has the devices."""
    devices: int
    """The number of its devices that a program uses."""


BACKENDS = {"tpu": "tpu", "cuda": "gpu"}

V5E = Target("TPU v5e, 1 chip", "tpu", "v5e:2x2", 1)
V5E_HOST = Target("TPU v5e, 2 x 4 chips", "tpu", "v5e:2x4", 8)
V5E_POD = Target("TPU v5e, 16 x 16 chips", "tpu", "v5e:16x16", 256)
H100 = Target("H100", "cuda", "1x1x1", 1)
TARGETS = (V5E, V5E_HOST, V5E_POD, H100)


def is_available(target: Target) -> bool:
    """Tells whether this Python has the compiler of a target."""
    return importlib.util.find_spec(_PLUGINS[target.platform]) is not None


def mesh(target: Target) -> Mesh:
    """Makes a mesh over the devices of a target, of the axis that training steps are written for.

    Args:
      target: devices to compile for.

    Returns:
      A mesh of one axis, `contrastive_jax.train.AXIS`. Programs compile for its devices, which
      hold no arrays.

    Raises:
      RuntimeError: if this Python does not have the compiler.
    """
    if not is_available(target):
        raise RuntimeError(
            f"compiling for {target.name} needs {_PLUGINS[target.platform]}, which this Python "
            "does not have; use the one that make test-accelerators installs in build/accelerators"
        )
    # A plugin would otherwise be the default backend, and look for a device.
    jax.config.update("jax_platforms", "cpu")
    if target.platform == "cuda":
        topology = topologies.get_topology_desc(
            platform="cuda", topology_name="", target_config=_H100, topology=target.topology
        )
    else:
        for name, value in _TPU_MACHINE.items():
            os.environ.setdefault(name, value)
        topology = topologies.get_topology_desc(platform="tpu", topology_name=target.topology)
    return Mesh(np.array(topology.devices[: target.devices]), (AXIS,))


@contextlib.contextmanager
def default_backend(platform: Literal["tpu", "cuda"]) -> Iterator[None]:
    """Lets the library choose as it does where a device of this platform is the default.

    The size of tiles and of the largest matrix depend on `jax.default_backend()`, which is the CPU
    that compiles.
    """
    with mock.patch.object(jax, "default_backend", return_value=BACKENDS[platform]):
        yield

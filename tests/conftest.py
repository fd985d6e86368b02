"""Eight host devices for every test, and threads enough for them to wait for each other."""

import os

import jax

os.environ.setdefault("PJRT_NPROC", "64")
jax.config.update("jax_num_cpu_devices", 8)

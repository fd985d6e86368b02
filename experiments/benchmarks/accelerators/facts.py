"""Facts about a compiled program: memory, collectives, types and calls of the host."""

from time import process_time
from typing import NamedTuple

from experiments.benchmarks.accelerators import hlo
from experiments.benchmarks.accelerators.catalogue import Program
from experiments.benchmarks.accelerators.hlo import Collective
from experiments.benchmarks.accelerators.targets import default_backend, mesh


class Facts(NamedTuple):
    """The facts of one compiled program."""

    temporaries: int
    """Bytes of a device, beside arguments and results."""
    arguments: int
    """Bytes of a device."""
    collectives: list[Collective]
    dtypes: set[str]
    host_calls: list[str]
    seconds: float
    """Time that all cores together took to trace and to compile, whatever else they were doing."""


def facts(program: Program) -> Facts:
    """Compiles a program and reads it.

    Args:
      program: one of `catalogue.PROGRAMS`.

    Returns:
      What it takes.

    Raises:
      RuntimeError: if this Python does not have the compiler of the target.
    """
    devices = mesh(program.target)
    began = process_time()
    with default_backend(program.target.platform):
        compiled = program.compiled(devices)
    seconds = process_time() - began
    memory, text = compiled.memory_analysis(), compiled.as_text()
    assert memory is not None
    assert text is not None
    return Facts(
        memory.temp_size_in_bytes,
        memory.argument_size_in_bytes,
        hlo.collectives(text),
        hlo.dtypes(text),
        hlo.host_calls(text),
        seconds,
    )

"""Compiles all programs that this Python has a compiler for, and writes docs/accelerators.md.

    make test-accelerators  # installs the compilers
    build/accelerators/tpu/bin/python -m experiments.benchmarks.accelerators
    build/accelerators/cuda/bin/python -m experiments.benchmarks.accelerators

A program that breaks the design is named, and nothing is written.
"""

import sys

from experiments.benchmarks.accelerators.catalogue import PROGRAMS
from experiments.benchmarks.accelerators.check import faults
from experiments.benchmarks.accelerators.facts import facts
from experiments.benchmarks.accelerators.table import Platform, row, write
from experiments.benchmarks.accelerators.targets import is_available


def main() -> int:
    """Writes the table.

    Returns:
      The exit status: 0, or 1 where a program breaks the design or there is no compiler.
    """
    rows: dict[Platform, list[str]] = {}
    broken = 0
    for program in (one for one in PROGRAMS if is_available(one.target)):
        compiled = facts(program)
        line = row(program, compiled)
        print(line, flush=True)
        rows.setdefault(program.target.platform, []).append(line)
        for fault in faults(compiled, program.design()):
            broken += 1
            print(f"{program.target.name}: {program.name}: {fault}", file=sys.stderr, flush=True)
    if not rows:
        print(
            "this Python has neither libtpu nor jax_cuda12_plugin, expected one of them; run make "
            "test-accelerators, then the Python in build/accelerators/tpu or .../cuda",
            file=sys.stderr,
        )
    if broken or not rows:
        return 1
    for platform, lines in rows.items():
        write(platform, lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())

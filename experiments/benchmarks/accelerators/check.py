"""Compares what a program takes with what the design allows it."""

from collections import defaultdict

from experiments.benchmarks.accelerators.design import Design
from experiments.benchmarks.accelerators.facts import Facts
from experiments.benchmarks.accelerators.hlo import Collective


def received(collectives: list[Collective]) -> dict[str, int]:
    """Adds up what a device receives.

    Args:
      collectives: of a program.

    Returns:
      Bytes by opcode.
    """
    total: dict[str, int] = defaultdict(int)
    for one in collectives:
        total[one.opcode] += one.bytes * one.times
    return dict(total)


def faults(facts: Facts, design: Design) -> list[str]:
    """Lists where a program breaks the design.

    Args:
      facts: of the compiled program.
      design: what the program may take.

    Returns:
      One line for each break: memory, collectives and their bytes, float64, calls of the host.
    """
    lines = []
    if facts.temporaries > design.temporaries:
        lines.append(
            f"temporaries take {facts.temporaries:,} bytes, expected at most {design.temporaries:,}"
        )
    total = received(facts.collectives)
    for opcode in sorted({*total, *design.received}):
        least, most = design.received.get(opcode, (0, 0))
        if not least <= total.get(opcode, 0) <= most:
            lines.append(
                f"{opcode} brings {total.get(opcode, 0):,} bytes to a device, expected from "
                f"{least:,} to {most:,}"
            )
    if wide := facts.dtypes & {"f64", "c128"}:
        lines.append(f"arrays are of type {', '.join(sorted(wide))}, expected 32 bits at most")
    if facts.host_calls:
        lines.append(f"the program calls its host by {', '.join(facts.host_calls)}, expected none")
    return lines

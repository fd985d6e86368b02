"""Reads a compiled program: the collectives that it runs, and what it asks of its host.

The text is that of `jax.stages.Compiled.as_text`. Programs for TPUs and for GPUs spell the same
things differently: an asynchronous collective is a start and a done there and a computation of its
own here, and the number of turns of a loop stands in its configuration or in its condition.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)
_FEED = re.compile(r"(infeed|outfeed)(-done)?$")
_TRANSFER = re.compile(r"(send|recv)(-done)?$")
_HOST_TARGET = re.compile(r"callback|host", re.IGNORECASE)

_HEADER = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\) -> .*\{$")
_NAME = re.compile(r"\s+(ROOT )?%?([\w.-]+) = ")
_OPCODE = re.compile(r" ([a-z][\w-]*)\(")
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.-]+)"
    r"|\b(?:branch_computations|called_computations|calls)=\{([^}]*)\}"
)
_CONDITION = re.compile(r"\bcondition=%?([\w.-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONSTANT = re.compile(r" constant\((\d+)\)")
_TARGET = re.compile(r'custom_call_target="([^"]*)"')


class Collective(NamedTuple):
    """A collective operation of a program."""

    opcode: str
    """One of `COLLECTIVES`."""
    bytes: int
    """Size of its result on one device."""
    times: int
    """The number of times it runs; a loop whose turns depend on the data counts as one turn."""


class Instruction(NamedTuple):
    """One line of a program."""

    opcode: str
    shape: str
    line: str
    root: bool


def collectives(text: str) -> list[Collective]:
    """Lists the collectives that a program runs, in the order of their calls.

    Args:
      text: of a compiled program.

    Returns:
      One entry for each place from which a collective is run. Of a conditional all branches count.

    Raises:
      ValueError: if the text is not that of a compiled program.

    Example:
      >>> [one.bytes for one in collectives(compiled.as_text()) if one.opcode == "all-gather"]
      []
    """
    entry, program = _computations(text)
    return [*_run(program, entry, 1)]


def host_calls(text: str) -> list[str]:
    """Lists what a program asks of its host while it runs.

    Args:
      text: of a compiled program.

    Returns:
      The opcode of each infeed, outfeed and transfer with the host, and the target of each custom
      call that names a callback or the host. Empty where the devices run alone.

    Raises:
      ValueError: if the text is not that of a compiled program.
    """
    _, program = _computations(text)
    asked = []
    for instruction in (one for lines in program.values() for one in lines):
        target = _TARGET.search(instruction.line)
        with_host = "is_host_transfer=true" in instruction.line
        if _FEED.match(instruction.opcode) or (_TRANSFER.match(instruction.opcode) and with_host):
            asked.append(instruction.opcode)
        elif target and _HOST_TARGET.search(target[1]):
            asked.append(target[1])
    return asked


def dtypes(text: str) -> set[str]:
    """The element types of all arrays of a program, such as `f32`.

    Args:
      text: of a compiled program.

    Returns:
      Their names in HLO.
    """
    return {array[1] for array in _ARRAY.finditer(text)}


def size(shape: str) -> int:
    """Bytes of the arrays of a shape, without the padding of a layout.

    Args:
      shape: as HLO writes it, of an array or of a tuple.

    Returns:
      Their sum.

    Example:
      >>> size("(f32[8,128]{1,0:T(8,128)}, pred[8])")
      4104
    """
    total = 0
    for array in _ARRAY.finditer(shape):
        elements = math.prod(int(dim) for dim in array[3].split(",") if dim)
        # A truth value takes a byte. So does what is smaller, unless it is packed.
        total += elements * max(8, int(array[2] or 8)) // 8
    return total


def _computations(text: str) -> tuple[str, dict[str, list[Instruction]]]:
    """The name of the computation that runs first, and the instructions of all by name."""
    entry, name = "", ""
    program: dict[str, list[Instruction]] = {}
    for line in text.splitlines():
        if header := _HEADER.match(line):
            name = header[2]
            program[name] = []
            entry = name if header[1] else entry
        elif name and (start := _NAME.match(line)):
            rest = line[start.end() :]
            shape = _first_shape(rest)
            if opcode := _OPCODE.match(rest, len(shape)):
                program[name].append(Instruction(opcode[1], shape, line, bool(start[1])))
    if not entry:
        raise ValueError(
            f"text must be that of a compiled program, with an ENTRY, got {text[:40]!r}; take it "
            "from compiled.as_text()"
        )
    return entry, program


def _first_shape(text: str) -> str:
    """The shape at the start of a text. Tuples have spaces in them, and layouts parentheses."""
    depth = 0
    for k, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if character == " " and not depth:
            return text[:k]
    return text


def _run(program: dict[str, list[Instruction]], name: str, times: int) -> Iterator[Collective]:
    """Collectives of a computation that runs so often, with those of what it calls."""
    for instruction in program.get(name, []):
        opcode, shape, line, _ = instruction
        # The shape of a start holds operands too, that of a done the result alone.
        if opcode.removesuffix("-done") in COLLECTIVES:
            yield Collective(opcode.removesuffix("-done"), size(shape), times)
        inner = times * _turns(program, line) if opcode == "while" else times
        for called in _CALLED.finditer(line):
            for one in (called[1] or called[2]).replace("%", "").split(","):
                yield from _run(program, one.strip(), inner)


def _turns(program: dict[str, list[Instruction]], line: str) -> int:
    """Returns the number of turns of a loop, 1 if its text does not say."""
    if turns := _TRIPS.search(line):
        return int(turns[1])
    condition = _CONDITION.search(line)
    lines = program.get(condition[1], []) if condition else []
    # A loop of a fixed number of turns counts them from 0, and its condition is `turn < constant`.
    constants = [match for one in lines if (match := _CONSTANT.search(one.line))]
    root = next((one for one in lines if one.root), None)
    if root is None or root.opcode != "compare" or "direction=LT" not in root.line:
        return 1
    return int(constants[0][1]) if len(constants) == 1 and len(lines) <= 4 else 1

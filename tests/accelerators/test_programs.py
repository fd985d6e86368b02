"""Programs compile for accelerators, and take the memory and the collectives of their design.

`make test-accelerators` runs this in environments that have a compiler for TPUs or for GPUs.
"""

import functools
import re

import pytest

from experiments.benchmarks.accelerators.catalogue import PROGRAMS, ROWS
from experiments.benchmarks.accelerators.check import faults
from experiments.benchmarks.accelerators.facts import facts
from experiments.benchmarks.accelerators.programs import TRIALS, WIDTH
from experiments.benchmarks.accelerators.table import PAGE, temporaries
from experiments.benchmarks.accelerators.targets import H100, V5E, V5E_HOST, V5E_POD, is_available

# A program takes seconds to minutes to compile, and several tests read it.
compiled = functools.cache(facts)


# Programs for several chips that are not `long`. These, and those for one chip, compile all that
# the others are made of: a loss on fewer chips, or a training step of the smaller encoder.
SHORT = {
    (V5E_HOST, "anchor_loss, supcon"),
    (V5E_HOST, "anchor_loss, angular"),
    (V5E_HOST, "training step of ConvNet on pairs"),
    (V5E_HOST, "training step of ConvNet on all pairs"),
    (V5E_HOST, f"step of a grid of {TRIALS} ConvNets"),
    (V5E_POD, "anchor_loss, supcon"),
    (V5E_POD, f"step of a grid of {TRIALS} ConvNets"),
}
# Programs for one chip that take a minute or more of two cores.
LONG = {
    *[(V5E, f"training step of ResNet18 on {pairs}") for pairs in ("pairs", "all pairs")],
    (V5E, f"step of a grid of {TRIALS} ConvNets"),
}


def is_long(program):
    """Tells whether a program is left to `make test-accelerators`."""
    key = program.target, program.name
    if program.target.devices == 1:
        return key in LONG
    return key not in SHORT and program.name.startswith(("anchor_loss", "training", "step"))


def case(program):
    """A program as a parameter. Tests that share it run in one process, and compile it once."""
    name = f"{program.target.name}: {program.name}"
    marks = [pytest.mark.xdist_group(name)]
    if is_long(program):
        marks.append(pytest.mark.long)
    return pytest.param(program, id=name, marks=marks)


available = [case(one) for one in PROGRAMS if is_available(one.target)]
all_pairs = [one for one in PROGRAMS if one.name.startswith("all_pairs_loss")]
rings = [case(one) for one in all_pairs if one.target in (V5E_HOST, V5E_POD)]


def skip_without_compiler(target):
    if not is_available(target):
        pytest.skip(f"no compiler for {target.name}")


def test_the_example_of_the_page_compiles(capsys):
    skip_without_compiler(V5E_HOST)
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    exec(compile(block, PAGE.name, "exec"), {})
    assert int(capsys.readouterr().out) > 0


@pytest.mark.parametrize("program", available)
def test_a_program_takes_what_its_design_allows(program):
    assert faults(compiled(program), program.design()) == []


@pytest.mark.parametrize("program", available)
def test_the_page_shows_what_a_program_takes(program):
    shown = temporaries(program.target.platform)
    if not shown:
        pytest.skip("the page is of another version of JAX")
    actual = compiled(program).temporaries / 1e6
    assert actual == pytest.approx(shown[program.target.name, program.name], rel=0.1, abs=1)


@pytest.mark.parametrize("program", rings)
def test_a_ring_gathers_nothing(program):
    skip_without_compiler(program.target)
    opcodes = {one.opcode for one in compiled(program).collectives}
    assert opcodes == {"all-reduce", "collective-permute"}


@pytest.mark.parametrize("program", rings)
def test_in_half_a_turn_of_a_ring_rows_travel_with_their_gradient(program):
    skip_without_compiler(program.target)
    block, turns = ROWS * WIDTH * 4, program.target.devices // 2
    travelled = [
        (one.bytes, one.times)
        for one in compiled(program).collectives
        if one.opcode == "collective-permute" and one.bytes >= block
    ]
    # Rows and gradient from device to device, and the gradient once more, home.
    assert sorted(travelled) == sorted([(block, turns)] * 2 + [(block, 1)])


def test_memory_grows_with_rows_and_not_with_pairs():
    skip_without_compiler(H100)
    few, many = (compiled(one) for one in all_pairs if one.target == H100)
    # Rows, gradient and the scalars of a row; it would be 2 MB a row if all pairs were there.
    by_row = (many.temporaries - few.temporaries) / (2**20 - ROWS)
    assert by_row <= (2 * WIDTH + 16) * 4

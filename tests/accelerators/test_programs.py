"""Programs compile for accelerators, and take the memory and the collectives of their design.

`make test-accelerators` runs this in environments that have a compiler for TPUs or for GPUs.
"""

import functools

import pytest

from experiments.accelerators.catalogue import PROGRAMS, ROWS
from experiments.accelerators.check import faults, received
from experiments.accelerators.facts import facts
from experiments.accelerators.programs import WIDTH
from experiments.accelerators.targets import H100, V5E, V5E_HOST, V5E_POD, is_available

# A program takes seconds to a minute to compile, and several tests read it.
compiled = functools.cache(facts)
available = [one for one in PROGRAMS if is_available(one.target)]


def of(target, name):
    """What a program takes, by the beginning of its name."""
    if not is_available(target):
        pytest.skip(f"no compiler for {target.name}")
    return compiled(
        next(one for one in PROGRAMS if one.target == target and one.name.startswith(name))
    )


@pytest.mark.parametrize(
    "program", available, ids=[f"{one.target.name}: {one.name}" for one in available]
)
def test_a_program_takes_what_its_design_allows(program):
    assert faults(compiled(program), program.design()) == []


@pytest.mark.parametrize("target", [V5E_HOST, V5E_POD], ids=lambda target: target.name)
def test_a_ring_gathers_nothing(target):
    collectives = of(target, "all_pairs_loss").collectives
    assert {one.opcode for one in collectives} == {"all-reduce", "collective-permute"}


@pytest.mark.parametrize("target", [V5E_HOST, V5E_POD], ids=lambda target: target.name)
def test_in_half_a_turn_of_a_ring_rows_travel_with_their_gradient(target):
    block = ROWS * WIDTH * 4
    turns = target.devices // 2
    travelled = [
        (one.bytes, one.times)
        for one in of(target, "all_pairs_loss").collectives
        if one.opcode == "collective-permute" and one.bytes >= block
    ]
    # Rows and gradient from device to device, and the gradient once more, home.
    assert sorted(travelled) == sorted([(block, turns)] * 2 + [(block, 1)])


def test_the_memory_of_a_ring_does_not_grow_with_its_devices():
    of_host, of_pod = (of(target, "all_pairs_loss") for target in (V5E_HOST, V5E_POD))
    assert of_pod.temporaries == pytest.approx(of_host.temporaries, rel=0.05)


def test_memory_grows_with_rows_and_not_with_pairs():
    few, many = (of(H100, f"all_pairs_loss, {rows:,} rows") for rows in (ROWS, 2**20))
    # Rows and gradient, and the scalars of a row; 4 TB if the pairs were all there.
    by_row = (many.temporaries - few.temporaries) / (2**20 - ROWS)
    assert by_row <= (2 * WIDTH + 16) * 4


@pytest.mark.parametrize("encoder", ["ConvNet", "ResNet18"])
def test_a_training_step_adds_gradients_up_once(encoder):
    step = of(V5E_HOST, f"training step of {encoder} on all pairs")
    program = next(one for one in PROGRAMS if one.target == V5E_HOST and encoder in one.name)
    least, _ = program.design().received["all-reduce"]
    total = received(step.collectives)["all-reduce"]
    assert least <= total < 2 * least


def test_one_chip_waits_for_no_other():
    assert of(V5E, "all_pairs_loss").collectives == []

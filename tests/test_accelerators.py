"""Tests of what a compiled program may take, and of the page that says what it takes.

The programs themselves are compiled in tests/accelerators.
"""

import re

import pytest

from experiments.benchmarks.accelerators import design, table, targets
from experiments.benchmarks.accelerators.catalogue import PROGRAMS, Program
from experiments.benchmarks.accelerators.check import faults, received
from experiments.benchmarks.accelerators.design import Design
from experiments.benchmarks.accelerators.facts import Facts
from experiments.benchmarks.accelerators.hlo import Collective
from experiments.benchmarks.accelerators.targets import H100, TARGETS, V5E, V5E_HOST, V5E_POD

ALLOWED = Design(1000, {"all-reduce": (400, 500), "collective-permute": (80, 90)})
FINE = Facts(
    temporaries=1000,
    arguments=10,
    collectives=[
        Collective("all-reduce", 450, 1),
        Collective("collective-permute", 20, 4),
        Collective("collective-permute", 5, 1),
    ],
    dtypes={"f32", "bf16", "s32"},
    host_calls=[],
    seconds=1.0,
)


def test_what_a_device_receives_is_added_up_over_turns():
    assert received(FINE.collectives) == {"all-reduce": 450, "collective-permute": 85}


def test_a_program_within_its_design_has_no_faults():
    assert faults(FINE, ALLOWED) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"temporaries": 1001}, "temporaries take 1,001 bytes, expected at most 1,000"),
        (
            {"collectives": [*FINE.collectives, Collective("all-gather", 7, 1)]},
            "all-gather brings 7 bytes to a device, expected from 0 to 0",
        ),
        (
            {"collectives": [*FINE.collectives, Collective("all-reduce", 450, 1)]},
            "all-reduce brings 900 bytes to a device, expected from 400 to 500",
        ),
        (
            {"collectives": FINE.collectives[1:]},
            "all-reduce brings 0 bytes to a device, expected from 400 to 500",
        ),
        ({"dtypes": {"f32", "f64"}}, "arrays are of type f64, expected 32 bits at most"),
        ({"host_calls": ["infeed"]}, "the program calls its host by infeed, expected none"),
    ],
)
def test_each_break_of_the_design_is_named(changes, expected):
    assert faults(FINE._replace(**changes), ALLOWED) == [expected]


def test_memory_allowed_is_linear_in_rows():
    one, two, four = (design.all_pairs(H100, rows, 512).temporaries for rows in (4096, 8192, 16384))
    assert four - two == 2 * (two - one)
    # Rows and gradient [4096, 128] and 16 scalars a row, in float32.
    assert two - one == 4096 * (2 * 128 + 16) * 4
    assert design.all_pairs(H100, 2**20, 2048).temporaries < 2**20 * 2**20 * 4 / 1000


@pytest.mark.parametrize(("target", "turns"), [(V5E_HOST, 4), (V5E_POD, 128)])
def test_a_ring_may_bring_each_row_with_its_gradient_half_way_round(target, turns):
    least, most = design.all_pairs(target, 8192, 512).received["collective-permute"]
    assert least == (2 * turns + 1) * 8192 * 128 * 4
    assert most < 1.1 * least


def test_a_step_may_add_up_its_gradient_once():
    allowed = design.pair_step(V5E_HOST, "ConvNet").received
    # Kernels and biases of three stages, and of two layers, on images of 32 x 32 x 3.
    sizes = [75 * 16 + 16, 144 * 32 + 32, 288 * 64 + 64, 1024 * 256 + 256, 256 * 128 + 128]
    assert {*allowed} == {"all-reduce"}
    assert allowed["all-reduce"][0] == 4 * sum(sizes)
    assert allowed["all-reduce"][1] < 1.01 * 4 * sum(sizes)


def test_a_missing_compiler_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setattr(targets, "is_available", lambda target: False)
    with pytest.raises(RuntimeError, match=r"H100 needs jax_cuda12_plugin.*make test-accel"):
        targets.mesh(H100)


def _program(target):
    return Program("a loss", target, lambda mesh: None, lambda: ALLOWED)


def test_a_row_names_memory_collectives_and_seconds():
    facts = FINE._replace(temporaries=1_234_567, seconds=12.4)
    expected = "| TPU v5e, 2 x 4 chips | a loss | 1.2 | 0.0 | all-reduce 450 B, "
    assert table.row(_program(V5E_HOST), facts) == (f"{expected}collective-permute 85 B | 12 |")
    # One device that sends to itself receives nothing from others.
    assert table.row(_program(V5E), facts).split(" | ")[4] == "-"


def test_a_table_takes_the_place_of_the_one_before(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- tpu -->\nold\n<!-- /tpu -->\nb\n<!-- cuda -->\nkept\n<!-- /cuda -->\n")
    table.write("tpu", ["| new |"], page)
    text = page.read_text()
    assert "old" not in text
    between = r"\n\nCompiled with JAX [\d.]+.*\.\n\n\| Target .*\|\n\| --- .*\|\n\| new \|\n\n"
    assert re.search(f"^a\n<!-- tpu -->{between}<!--", text)
    assert text.endswith("b\n<!-- cuda -->\nkept\n<!-- /cuda -->\n")


def test_temporaries_are_read_from_a_page_of_the_same_version(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("<!-- tpu -->\n<!-- /tpu -->\n<!-- cuda -->\n<!-- /cuda -->\n")
    facts = FINE._replace(temporaries=1_234_567_890)
    table.write("cuda", [table.row(_program(H100), facts)], page)
    assert table.temporaries("cuda", page) == {("H100", "a loss"): 1234.6}
    assert table.temporaries("tpu", page) == {}
    monkeypatch.setattr(table.jax, "__version__", "0.1")
    assert table.temporaries("cuda", page) == {}


def test_a_page_without_a_place_for_the_table_is_refused(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("nothing")
    with pytest.raises(ValueError, match=r"^page.md must have <!-- tpu --> and <!-- /tpu -->"):
        table.write("tpu", [], page)


def _rows():
    """The rows of the tables on the page, cell by cell."""
    for line in table.PAGE.read_text().splitlines():
        if line.startswith(("| TPU", "| H100")):
            yield line.strip("| ").split(" | ")


def test_the_page_has_every_program_and_no_other():
    expected = [(program.target.name, program.name) for program in PROGRAMS]
    assert [tuple(row[:2]) for row in _rows()] == expected
    assert len({*expected}) == len(expected)


def test_what_the_page_allows_is_the_design_of_today():
    losses = [program for program in PROGRAMS if "_loss" in program.name]
    allowed = {tuple(row[:2]): row[3] for row in _rows()}
    assert len(losses) > 25
    for program in losses:
        expected = f"{program.design().temporaries / 1e6:,.1f}"
        assert allowed[program.target.name, program.name] == expected, program


def test_what_the_page_says_of_programs_is_within_the_design():
    for target, name, taken, allowed, received_, seconds in _rows():
        assert float(taken.replace(",", "")) <= float(allowed.replace(",", "")), name
        assert float(seconds.replace(",", "")) > 0
        assert (received_ == "-") == (target in (V5E.name, H100.name))
        # Any row may be a positive of one on another device.
        takes_positives = name.endswith(("triplet_semi_hard", "angular", "smooth_ap"))
        assert ("all-gather" in received_) == (takes_positives and received_ != "-")


def test_each_type_of_loss_is_compiled_for_each_target():
    for target in TARGETS:
        names = " ".join(program.name for program in PROGRAMS if program.target == target)
        for name in ("all_pairs_loss", "anchor_loss", "proxy_loss", "ConvNet on pairs", "grid"):
            assert name in names

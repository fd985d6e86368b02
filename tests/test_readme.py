"""What the README shows runs, and what it says of options is so."""

import re
from pathlib import Path

import pytest

from experiments import drlim, margin_ablation, search, train

README = (Path(train.__file__).parent.parent / "README.md").read_text()


def test_code_blocks_run_one_after_another():
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) >= 4
    namespace = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
    assert namespace["value"].shape == ()


def test_comments_of_the_formula_are_what_it_gives():
    from contrastive_jax import losses

    lines = re.findall(r"^losses\.contrastive\((.*?)\)  # ([\d.]+):", README, flags=re.MULTILINE)
    assert len(lines) == 3
    for arguments, value in lines:
        found = losses.contrastive(*map(float, arguments.split(", ")))
        assert float(found) == pytest.approx(float(value))


@pytest.mark.parametrize(
    ("module", "config"),
    [
        ("train", train.Config),
        ("margin_ablation", margin_ablation.Config),
        ("search", search.Config),
        ("drlim", drlim.Config),
    ],
)
def test_options_of_commands_exist(module, config):
    commands = re.findall(rf"python -m experiments\.{module}\b(.*)", README)
    assert commands
    for command in commands:
        for option in re.findall(r"--(\w+)", command):
            assert option == "help" or hasattr(config(), option), option

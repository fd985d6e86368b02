"""What the README shows runs, and what it says of options is so."""

import dataclasses
import importlib
import re
import shlex
from pathlib import Path

import pytest
import tyro

from experiments import drlim, margin_ablation, search, train

ROOT = Path(train.__file__).parent.parent
README = (ROOT / "README.md").read_text()


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


COMMANDS = sorted({*re.findall(r"python -m (experiments\.[^\n`#]*[^\n`#) ])", README)})


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_understood(command):
    name, *arguments = shlex.split(command.replace("$seed", "0"))  # of a loop of the shell
    if ".benchmarks." in name:
        # They import their peers, which are not installed here.
        source = (ROOT / f"{name.replace('.', '/')}.py").read_text()
        for option in arguments:
            assert not option.startswith("--") or f"    {option[2:]}: " in source
        return
    config = importlib.import_module(name).Config
    if "--help" not in arguments:
        tyro.cli(config, args=arguments, use_underscores=True)


def test_options_in_the_text_exist():
    fields = {
        field.name
        for module in (train, margin_ablation, search, drlim)
        for field in dataclasses.fields(module.Config)
    }
    found = {*re.findall(r"(?<!\w)--(?:no_)?([a-z]\w+)", README)} - {"help"}
    assert len(found) > 10
    benchmarks = {
        option for c in COMMANDS if ".benchmarks." in c for option in re.findall(r"--(\w+)", c)
    }
    assert found <= fields | benchmarks


def test_what_is_linked_is_there():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(links) > 8
    for link in links:
        assert link.startswith("https://") or (ROOT / link).exists(), link


def test_targets_of_make_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = {*re.findall(r"(?:^    |`)make ([\w-]+)", README, flags=re.MULTILINE)}
    assert {"train", "test"} <= targets
    for target in targets:
        assert f"\n{target}:" in makefile

"""The workflow has the jobs of .ci/run, and each is a target of make."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
RUN = (ROOT / ".ci" / "run").read_text()
JOBS = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]


def test_workflow_and_script_run_the_same_targets():
    lines = dict(re.findall(r"^(make (\S+).*)$", RUN, flags=re.MULTILINE))
    assert len(lines) > 4
    commands = {
        name: [step["run"] for step in job["steps"] if "run" in step] for name, job in JOBS.items()
    }
    assert commands == {target: [line] for line, target in lines.items()}


def test_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in JOBS:
        assert f"\n{target}:" in makefile


def test_every_job_has_a_time_limit():
    for job in JOBS.values():
        assert 0 < job["timeout-minutes"] <= 60

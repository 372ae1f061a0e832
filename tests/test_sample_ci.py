"""The workflow of the CI sample: GitHub would understand it, and its commands do what it says on the digits."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import yaml

from masksparse_deploy.core.config import Gates
from masksparse_deploy.pipeline.config_file import read_gates
from tests.requirements import REPOSITORY

CI = REPOSITORY / "samples" / "ci"
DIGITS = REPOSITORY / "samples" / "digits"
# The keys that GitHub knows, as far as a workflow like this may need them; PyYAML reads the key `on` as True.
TOP = {"name", True, "permissions", "env", "defaults", "concurrency", "jobs"}
JOB = {"name", "needs", "if", "runs-on", "permissions", "env", "defaults", "timeout-minutes", "strategy", "steps"}
STEP = {"id", "name", "if", "uses", "with", "run", "env", "shell", "working-directory", "continue-on-error", "timeout-minutes"}


def workflow() -> dict[Any, Any]:
    content: dict[Any, Any] = yaml.safe_load((CI / "workflow.yml").read_text(encoding="utf-8"))
    return content


def mistakes(content: dict[Any, Any]) -> list[str]:
    """What GitHub would refuse, or what would let a failed step go unseen."""
    found = [f"key {key}" for key in content.keys() - TOP]
    found += [f"no {key}" for key in {True, "jobs"} - content.keys()]
    for name, job in content.get("jobs", {}).items():
        found += [f"{name}: key {key}" for key in job.keys() - JOB]
        found += [f"{name}: no {key}" for key in {"runs-on", "steps"} - job.keys()]
        for number, step in enumerate(job.get("steps", [])):
            found += [f"{name}.{number}: key {key}" for key in step.keys() - STEP]
            if ("run" in step) == ("uses" in step):
                found.append(f"{name}.{number}: either run or uses")
            if "uses" in step and "@v" not in step["uses"]:
                found.append(f"{name}.{number}: no version of {step['uses']}")
            if "continue-on-error" in step or "|| true" in step.get("run", ""):
                found.append(f"{name}.{number}: hides a failure")
    return found


def commands(content: dict[Any, Any]) -> dict[str, str]:
    """Name of a step -> the commands that it runs."""
    return {step["name"]: step["run"] for step in content["jobs"]["gates"]["steps"] if "run" in step}


def test_github_understands_the_workflow() -> None:
    assert mistakes(workflow()) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("jobs:", "job:"),
        ("runs-on:", "run-on:"),
        ("        run: masksparse deploy", "        runs: masksparse deploy"),
        ("actions/checkout@v4", "actions/checkout"),
        ("--junit out/junit.xml", "--junit out/junit.xml || true"),
    ],
)
def test_a_mistake_in_the_workflow_is_caught(old: str, new: str) -> None:
    text = (CI / "workflow.yml").read_text(encoding="utf-8")
    assert old in text
    assert mistakes(yaml.safe_load(text.replace(old, new))) != []


def test_the_cpu_build_of_the_pinned_torch_is_installed_first() -> None:
    first, second = (shlex.split(line) for line in commands(workflow())["Install"].splitlines())
    (pinned,) = (line for line in (REPOSITORY / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))
    assert first == ["pip", "install", pinned, "--index-url", "https://download.pytorch.org/whl/cpu"]
    assert second[:2] == ["pip", "install"]


def test_every_gate_is_in_the_sample() -> None:
    """Those that are commented out, too, are options with values that can be read."""
    text = (CI / "gates.yaml").read_text(encoding="utf-8")
    offered = [line.removeprefix("# ") for line in text.splitlines() if ": " in line.split("  ")[0] and not line.endswith(":")]
    gates = Gates.model_validate(yaml.safe_load("\n".join(offered)))
    # the others say how to measure
    judging = {name for name in Gates.model_fields if not name.startswith(("confidence", "conformal"))}
    assert gates.model_fields_set == judging
    assert read_gates(CI / "gates.yaml").model_fields_set == {"accuracy_drop_points", "flip_rate", "layerwise_violations"}


@pytest.mark.slow
def test_its_commands_judge_the_digits(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    for file in (*DIGITS.glob("*.py"), DIGITS / "model.safetensors", *CI.glob("*.yaml")):
        shutil.copy(file, tmp_path)

    def step(name: str) -> subprocess.CompletedProcess[str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
        command = ["bash", "-e", "-o", "pipefail", "-c", commands(workflow())[name]]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    deployed = step("Deploy and judge")
    assert deployed.returncode == 0, deployed.stdout + deployed.stderr
    suites = {suite.get("name"): suite for suite in ET.parse(tmp_path / "out" / "junit.xml").getroot()}
    assert next(iter(suites["masksparse stages"])).get("name") == "learn"
    assert suites["masksparse checks"].get("failures") == "0"
    released = step("Judge by the stricter gates of a release")
    assert released.returncode == 0, released.stdout + released.stderr

    # a gate that is not met turns the step red, and says why
    changed = json.loads((tmp_path / "out" / "validation.json").read_text())["accuracy"]["disagreement_count"]
    assert changed > 0
    (tmp_path / "release-gates.yaml").write_text("flip_rate: 0\n")
    refused = step("Judge by the stricter gates of a release")
    assert refused.returncode == 1, refused.stderr
    assert "more than the gate of 0 allows" in refused.stdout
    failures = ET.parse(tmp_path / "out" / "junit-release.xml").getroot().iter("failure")
    assert any(f"{changed} of 599 predictions changed" in failure.get("message", "") for failure in failures)

"""Commands of the how-to pages run on the digits as they are shown, and find what the pages say."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from masksparse_deploy.cli.main import run
from masksparse_deploy.core.masks import read_mask_set
from tests.requirements import REPOSITORY
from tests.test_docs import commands


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the sample, as the working folder."""
    pytest.importorskip("sklearn")
    copy = tmp_path / "digits"
    shutil.copytree(REPOSITORY / "samples" / "digits", copy, ignore=shutil.ignore_patterns("out", "__pycache__"))
    monkeypatch.chdir(copy)
    return copy


def commands_of(page: str) -> list[str]:
    return commands((REPOSITORY / "docs" / page).read_text(encoding="utf-8"))


@pytest.mark.slow
def test_the_recipe_stops_once_batch_norm_has_been_estimated_again(folder: Path) -> None:
    (line,) = (line for line in commands_of("learn.md") if "--method auto" in line)
    assert run(shlex.split(line)[1:]) == 0
    learned = json.loads((folder / "out" / "auto" / "learn.json").read_text())
    stages = {stage["name"]: stage for stage in learned["recipe"]}
    # Learning is not needed, so it was not done.
    assert list(stages) == ["dense", "magnitude", "permutation", "batch norm"]
    assert learned["history"] == []
    passed = stages.pop("batch norm")
    assert passed["passed"] and not any(stage["passed"] for name, stage in stages.items() if name != "dense")
    kept = learned["accuracies"][-1]
    assert kept["method"] == learned["method"] and kept["correct"] == passed["correct"]
    assert stages["dense"]["correct"] - passed["correct"] <= 0.01 * passed["total"]
    assert learned["decided_on"] == "test"


@pytest.mark.slow
def test_select_then_learn(folder: Path) -> None:
    lines = commands_of("select.md")
    assert [line.split()[1] for line in lines] == ["select", "learn"]
    for line in lines:
        assert run(shlex.split(line)[1:]) == 0

    selection = json.loads((folder / "out" / "select" / "selection.json").read_text())
    chosen = sorted(name for name, layer in selection["assignment"].items() if layer["pattern"] == "1:4")
    # The page shows 8 of 10; another processor may move the line by an image, which is worth a layer or two.
    assert 6 <= len(chosen) <= 9
    assert selection["joint"]["drop_points"] <= 1
    assert len(selection["layers"]) == 10
    assert selection["macs"]["masked"] / selection["macs"]["total"] > 0.5

    learned = json.loads((folder / "out" / "select" / "learn.json").read_text())
    assert sorted(layer["name"] for layer in learned["layers"]) == chosen
    assert learned["accuracies"][-1]["correct"] == selection["joint"]["correct"]
    reasons = {layer["name"]: layer["reason"] for layer in learned["skipped"]}
    dense = {layer["name"] for layer in selection["layers"]} - set(chosen)
    assert all(reasons[name].startswith("not chosen in selection.json (over the budget") for name in dense)


@pytest.mark.slow
def test_sparse_training_from_the_checkpoint_and_from_scratch(folder: Path) -> None:
    page = (REPOSITORY / "docs" / "sparse_training.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    of_checkpoint, from_scratch = commands_of("sparse_training.md")
    dense = (folder / "model.safetensors").read_bytes()
    for line, out in ((of_checkpoint, "sparse"), (from_scratch, "scratch")):
        # A fifth of the epochs of the page is enough to see that it works.
        epochs = ["--epochs", "2" if out == "sparse" else "6"]
        assert run([*shlex.split(line)[1:], *epochs]) == 0
        learned = json.loads((folder / "out" / out / "learn.json").read_text())
        accuracies = {entry["method"]: entry["correct"] / entry["total"] for entry in learned["accuracies"]}
        masks = read_mask_set(folder / "out" / out / "masks.safetensors")
        assert len(masks.layers) == 10 and len(masks.weights) == 35
        # The page has 99.3 and 99.2 %.
        assert accuracies["sparse-training"] > 0.97
        assert accuracies["transposable"] < 0.6
    assert (folder / "model.safetensors").read_bytes() == dense


@pytest.mark.slow
def test_training_under_blocks_from_the_checkpoint_and_from_scratch(folder: Path) -> None:
    of_checkpoint, from_scratch = commands_of("block_training.md")
    for line, out in ((of_checkpoint, "subp"), (from_scratch, "scratch")):
        # Fewer epochs than on the page are enough to see that it works.
        assert run([*shlex.split(line)[1:], "--epochs", "4"]) == 0
        learned = json.loads((folder / "out" / out / "learn.json").read_text())
        accuracies = {entry["method"]: entry["correct"] / entry["total"] for entry in learned["accuracies"]}
        assert learned["pattern"] == "1x16@0.5/16"
        assert len(read_mask_set(folder / "out" / out / "masks.safetensors").layers) == 6
        # The page has 99.0 and 98.7 %, and 11.9 % without training.
        assert accuracies["subp"] > 0.9
        assert accuracies["magnitude"] < 0.6


@pytest.mark.slow
def test_fitting_kept_weights(folder: Path) -> None:
    (line,) = commands_of("adaprune.md")
    assert run(shlex.split(line)[1:]) == 0
    learned = json.loads((folder / "out" / "adaprune" / "learn.json").read_text())
    right = {entry["method"]: entry["correct"] / entry["total"] for entry in learned["accuracies"]}
    # The page has 18.4, 97.5, 69.6 and 99.0 %.
    assert right["magnitude"] < 0.3 < 0.5 < right["adaprune"]
    assert learned["method"] == "adaprune + batch norm"
    assert right["adaprune + batch norm"] > 0.98 > 0.9 < right["magnitude + batch norm"]
    masks = read_mask_set(folder / "out" / "adaprune" / "masks.safetensors")
    assert len(masks.weights) == len(masks.layers) == 10


@pytest.mark.slow
def test_a_forecast_times_nothing_without_a_gpu(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = (line for line in commands_of("forecast.md") if "digits_net" in line)
    code = run(shlex.split(line)[1:])
    found = json.loads((folder / "out" / "forecast" / "forecast.json").read_text())
    assert code == (0 if found["worthwhile"] else 1)
    assert found["precision"] == "int8" and len(found["skipped"]) >= 2
    if found["backend"] == "onnxruntime":
        assert "this runtime has no 2:4 kernels" in " ".join(capsys.readouterr().out.split())
        assert found["kinds"] == [] and found["network_ms"] is None

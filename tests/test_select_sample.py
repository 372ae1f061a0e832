"""The commands of docs/select.md run on the digits as they are shown, and find what the page says."""

import json
import shlex
import shutil
from pathlib import Path

import pytest

from masksparse_deploy.cli.main import run
from tests.requirements import REPOSITORY
from tests.test_docs import commands


@pytest.mark.slow
def test_select_then_learn_on_the_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    folder = tmp_path / "digits"
    shutil.copytree(REPOSITORY / "samples" / "digits", folder, ignore=shutil.ignore_patterns("out", "__pycache__"))
    monkeypatch.chdir(folder)
    lines = commands((REPOSITORY / "docs" / "select.md").read_text(encoding="utf-8"))
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

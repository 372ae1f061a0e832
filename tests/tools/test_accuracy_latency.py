import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from masksparse_deploy.core.any_pattern import parse_pattern
from masksparse_deploy.core.config import RewriteOptions
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.masks import MaskSet
from masksparse_deploy.core.samples import Samples
from masksparse_deploy.learn.eligibility import survey_layers
from masksparse_deploy.learn.magnitude import Magnitude
from masksparse_deploy.learn.model import state_fingerprint
from masksparse_deploy.learn.probe import probe_model
from tests.models.cifar_resnet import wide_resnet8
from tools import accuracy_latency

PATTERN = "1x32@0.5"


def result(method: str, seed: int, correct: int) -> dict[str, Any]:
    return {
        "network": "wide_resnet8",
        "method": method,
        "seed": seed,
        "epochs": 1,
        "held_out": 0,
        "correct": correct,
        "total": 1000,
        "dense_correct": 950,
        "kept_share": 0.5,
        "options": {"pattern": PATTERN},
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two runs of fixed blocks and a dense one; of the second, the mask set is there."""
    torch.manual_seed(0)
    model = wide_resnet8().eval().requires_grad_(False)
    save_file(model.state_dict(), tmp_path / "wide.safetensors")
    (tmp_path / "results").mkdir()
    for name, found in {
        "b0": result("blocks", 0, 900),
        "b1": result("blocks", 1, 880),
        "dense": result("dense", 0, 950),
    }.items():
        (tmp_path / "results" / f"{name}.json").write_text(json.dumps(found))
    pattern = parse_pattern(PATTERN)
    layers = survey_layers(model, probe_model(model, (3, 32, 32)), pattern=pattern).eligible
    masks = Magnitude(pattern=pattern).sparsify(model, layers, Samples(torch.zeros(1, 3, 32, 32).numpy())).masks
    masks_file = MaskSet(layers=masks, source_sha256=state_fingerprint(model), method="blocks")
    masks_file.write(tmp_path / "results" / "b1.safetensors")
    return tmp_path


def run(folder: Path) -> None:
    accuracy_latency.main(
        [
            *("--results", str(folder / "results"), "--data", str(folder), "--out", str(folder / "out"), "--rounds", "10"),
            *("--checkpoint", str(folder / "wide.safetensors")),
        ]
    )


@pytest.mark.slow
def test_a_row_is_timed_once_and_drawn(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("plotly")
    # Timing every form of every layer is what tests/rewrite does.
    monkeypatch.setattr(accuracy_latency, "RewriteOptions", partial(RewriteOptions, mode="always", rounds=10))
    run(folder)
    printed = capsys.readouterr()
    assert printed.err.splitlines() == ["timing b1"]
    lines = {line.split(" | ")[1]: line for line in printed.out.splitlines()[2:]}
    assert set(lines) == {"dense", f"blocks, {PATTERN}"}
    assert lines["dense"] == "| wide_resnet8 | dense | 95.00 % |  | 1.00x | 0 |"
    assert re.search(r"\| 89\.00 % \| 1\.41 \| \d\.\d\dx \| \d+ \|", lines[f"blocks, {PATTERN}"])
    page = (folder / "out" / "wide_resnet8.html").read_text()
    assert "CIFAR-10, wide_resnet8" in page and PATTERN in page
    # What is in the file is what the table says: a planted time is read, not measured again.
    path = folder / "out" / "b1.json"
    planted = json.loads(path.read_text()) | {"speedup": 7.25}
    path.write_text(json.dumps(planted))
    run(folder)
    printed = capsys.readouterr()
    assert printed.err == "" and "| 7.25x |" in printed.out


def test_without_a_mask_set_there_is_no_time(folder: Path) -> None:
    (folder / "results" / "b1.safetensors").unlink()
    with pytest.raises(UsageError, match=r"holds no mask set of b0; remove its \.json and run it again"):
        run(folder)
    for path in (folder / "results").iterdir():
        path.unlink()
    with pytest.raises(UsageError, match=re.escape("holds no results; run tools/block_accuracy.py first")):
        run(folder)

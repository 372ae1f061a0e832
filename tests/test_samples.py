"""Each sample runs from its folder as its README says, and keeps what the project promises."""

import json
from pathlib import Path

import pytest

from tests.project import masksparse
from tests.requirements import REPOSITORY

DIGITS = REPOSITORY / "samples" / "digits"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_digits_from_checkpoint_to_verdict(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    checkpoint = (DIGITS / "model.safetensors").read_bytes()
    assert len(checkpoint) < 2_000_000
    result = masksparse("deploy", DIGITS / "deploy.yaml", "--out", tmp_path / "out", timeout=500)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "PASS" in result.stdout

    learned = json.loads((tmp_path / "out" / "learn.json").read_text())
    assert learned["weights_sha256_before"] == learned["weights_sha256_after"]
    assert (DIGITS / "model.safetensors").read_bytes() == checkpoint
    convolutions = [layer for layer in learned["layers"] if len(layer["shape"]) == 4]
    assert len(convolutions) >= 8
    assert all(size % 16 == 0 for layer in convolutions for size in layer["shape"][:2])
    assert any(layer["shape"][2:] == [1, 1] for layer in convolutions)

    accuracy = json.loads((tmp_path / "out" / "validation.json").read_text())["accuracy"]
    assert accuracy["dense_correct"] / accuracy["total"] >= 0.99
    assert accuracy["drop_points"] <= 0.5

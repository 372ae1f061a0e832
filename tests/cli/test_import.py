"""masksparse import, and what bake makes of its files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.learn.foreign_models import State, along_taps, asp, plain, planted
from tests.models.tiny_cnn import example_images
from tests.project import masksparse

FACTORY = ("--factory", "tests.models.tiny_cnn:tiny_cnn")
SHAPE = ("--image-shape", "3", "8", "8")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "asp.pth"
    torch.save(asp(planted()), path)
    return path


def test_imported_masks_are_baked(checkpoint: Path, tmp_path: Path) -> None:
    result = masksparse("import", *FACTORY, "--weights", checkpoint, *SHAPE, "--out", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert "source: ASP. Usable by sparse kernels: 4 of 5 layers, 80.6% of MACs." in result.stdout
    assert "3 input channels, not a multiple of 4" in result.stdout
    np.savez(tmp_path / "test.npz", images=example_images(4), labels=np.arange(4))
    files = ["--weights", tmp_path / "out" / "weights.safetensors", "--masks", tmp_path / "out" / "masks.safetensors"]
    baked = masksparse("bake", *FACTORY, *files, "--data", tmp_path / "test.npz", "--out", tmp_path / "out")
    assert baked.returncode == 0, baked.stderr
    assert "4 layers conform, none lost" in baked.stdout
    linted = masksparse("lint", tmp_path / "out" / "sparse.onnx", "--json")
    assert [layer["state"] for layer in json.loads(linted.stdout)["layers"]].count("conforming") == 4


def test_exit_code_1_when_nothing_is_usable(tmp_path: Path) -> None:
    state: State = plain(planted(along_taps, ["block.conv1", "block.conv2"]))
    torch.save(state, tmp_path / "taps.pth")
    arguments = ["import", *FACTORY, "--weights", tmp_path / "taps.pth", *SHAPE, "--out", tmp_path / "out"]
    result = masksparse(*arguments)
    assert result.returncode == 1, result.stderr
    assert "groups run along kernel taps" in result.stdout
    assert "no masks were written" in result.stdout
    report = json.loads(masksparse(*arguments, "--json").stdout)
    assert report["kind"] == "import report"
    assert report["mask_set_sha256"] is None


def test_a_damaged_file_exits_4_and_a_wrong_pattern_2(checkpoint: Path, tmp_path: Path) -> None:
    arguments = ["import", *FACTORY, "--weights", checkpoint, *SHAPE, "--out", tmp_path / "out"]
    wrong = masksparse(*arguments, "--pattern", "4:2")
    assert wrong.returncode == 2
    assert "pattern 4:2" in wrong.stderr
    checkpoint.write_bytes(checkpoint.read_bytes()[:-500])
    damaged = masksparse(*arguments)
    assert damaged.returncode == 4
    assert "asp.pth is damaged" in damaged.stderr
    assert not (tmp_path / "out").exists()

import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

from masksparse_deploy.core.artifacts.learning import LearnReport
from masksparse_deploy.core.config import DataOptions, MaskOptions, ModelOptions, SelectOptions
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.masks import read_mask_set
from masksparse_deploy.learn.run import MASKS, REPORT, learn
from masksparse_deploy.learn.selection import select
from tests.learn.networks import labelled_by_network
from tests.models.tiny_cnn import tiny_cnn

TINY = ModelOptions(factory="tests.models.tiny_cnn:tiny_cnn", weights="model.safetensors")
DATA = DataOptions(train="train.npz", test="test.npz")
MASK = MaskOptions(method="subp", pattern="1x8@0.5", channel_block=4, epochs=2, batch_size=32, calibration_count=64)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file(tiny_cnn().state_dict(), tmp_path / "model.safetensors")
    for name, count, seed in (("train", 96, 1), ("test", 64, 2)):
        samples = labelled_by_network(count, seed)
        np.savez(tmp_path / f"{name}.npz", images=samples.images, labels=samples.labels)
    return tmp_path


def run(folder: Path, mask: MaskOptions = MASK) -> LearnReport:
    return learn(TINY, DATA, mask, folder=folder, out=folder / "out")


@pytest.mark.parametrize("method", ["subp", "blocks"])
def test_masks_of_blocks_and_their_report(folder: Path, method: str) -> None:
    report = run(folder, MASK.model_copy(update={"method": method}))
    assert [a.method for a in report.accuracies] == ["dense", "magnitude", "magnitude + batch norm", method]
    assert report.pattern == "1x8@0.5/4"
    assert [(layer.name, layer.pattern, layer.density) for layer in report.layers] == [
        ("block.conv1", "1x8@0.5/4", 0.5),
        ("block.conv2", "1x8@0.5/4", 0.5),
    ]
    assert all(layer.weight_change is not None and layer.weight_change > 0 for layer in report.layers)
    assert {layer.name for layer in report.skipped} == {"conv", "block.shortcut.0", "fc"}
    masked_macs = sum(layer.mac_count for layer in report.layers)
    assert report.amdahl_limit == pytest.approx(report.macs.total / (report.macs.total - masked_macs / 2))
    assert report.weights_sha256_before != report.weights_sha256_after
    assert LearnReport.read(folder / "out" / REPORT) == report
    masks = read_mask_set(folder / "out" / MASKS)
    assert masks.digest == report.mask_set_sha256
    assert {str(mask.pattern) for mask in masks.layers.values()} == {"1x8@0.5/4"}


def test_the_same_seed_gives_the_same_bytes(folder: Path) -> None:
    files = []
    for seed in (0, 0, 1):
        run(folder, MASK.model_copy(update={"seed": seed}))
        files.append([(folder / "out" / name).read_bytes() for name in (MASKS, REPORT)])
    assert files[0] == files[1] != files[2]


def test_what_does_not_go_together_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=re.escape("asks for 1xN blocks, and method 'adaprune' does not find any")):
        run(tmp_path, MASK.model_copy(update={"method": "adaprune"}))
    message = "mask.pattern 1x8@0.5 asks for 1xN blocks, and select measures layers under N:M masks"
    with pytest.raises(UsageError, match=re.escape(message)):
        select(TINY, DATA, MASK, SelectOptions(), folder=tmp_path, out=tmp_path / "out")


def test_layers_chosen_for_other_masks_are_refused(folder: Path) -> None:
    select(TINY, DATA, MaskOptions(calibration_count=64), SelectOptions(points=100), folder=folder, out=folder / "out")
    path = folder / "out" / "selection.json"
    assert json.loads(path.read_text())["pattern"] == "2:4"
    with pytest.raises(UsageError, match=re.escape("was made for the pattern 2:4, mask.pattern is 1x8@0.5/4")):
        run(folder, MASK.model_copy(update={"assignment": "out/selection.json"}))

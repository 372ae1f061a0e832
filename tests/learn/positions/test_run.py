"""The learn stage with masks of positions."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from masksparse_deploy.core.artifacts.learning import LearnReport, PositionedLayer, Share
from masksparse_deploy.core.config import DataOptions, MaskOptions, ModelOptions
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.masks import read_mask_set
from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.core.samples import Samples
from masksparse_deploy.learn.evaluation import count_correct, substitutes
from masksparse_deploy.learn.positions.apply import masked_positions
from masksparse_deploy.learn.run import CHECKPOINT, MASKS, REPORT, learn
from tests.learn.networks import labelled_by_network
from tests.learn.positions.networks import LAYERS, flat
from tests.models.tiny_cnn import example_images, tiny_cnn

MASK = MaskOptions(method="positions", position_rate=0.3, epochs=3, batch_size=32, calibration_count=64, learning_rate=0.1)
MACS = {"conv": 8 * 3 * 9 * 64, "block.conv1": 16 * 8 * 9 * 16, "block.conv2": 16 * 16 * 9 * 16}
ALL_MACS = sum(MACS.values()) + 16 * 8 * 16 + 160
# Of 16 positions, 5 are dropped.
SAVED_MACS = 5 / 16 * (MACS["block.conv1"] + MACS["block.conv2"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file(tiny_cnn().state_dict(), tmp_path / "model.safetensors")
    for name, count, seed in (("train", 96, 1), ("test", 64, 2)):
        samples = labelled_by_network(count, seed)
        np.savez(tmp_path / f"{name}.npz", images=samples.images, labels=samples.labels)
    return tmp_path


def run(folder: Path, change: dict[str, object] | None = None, progress: Progress = silent) -> LearnReport:
    model = ModelOptions(factory="tests.models.tiny_cnn:tiny_cnn", weights="model.safetensors")
    data, mask = DataOptions(train="train.npz", test="test.npz"), MASK.model_copy(update=change or {})
    return learn(model, data, mask, folder=folder, out=folder / "out", progress=progress)


def test_positions_and_their_report(folder: Path) -> None:
    report = run(folder, {"recalibrate": True})
    masks = read_mask_set(folder / "out" / MASKS)
    assert [a.method for a in report.accuracies] == ["dense", "positions", "positions + batch norm"]
    assert report.pattern == "dense"
    assert report.layers == ()
    assert report.convolutions == Share(masked=0, total=4)
    assert report.macs == Share(masked=0, total=ALL_MACS)
    assert report.positions == tuple(
        PositionedLayer(
            name=name,
            height=4,
            width=4,
            density=11 / 16,
            mac_count=MACS[name],
            mask_sha256=masks.positions[name].digest,
        )
        for name in LAYERS
    )
    assert {layer.name for layer in report.positions_skipped} == {"conv", "block.shortcut.0", "fc"}
    assert report.skipped == report.positions_skipped == masks.skipped
    assert report.amdahl_limit == pytest.approx(ALL_MACS / (ALL_MACS - SAVED_MACS))
    assert report.weights_sha256_before != report.weights_sha256_after
    assert LearnReport.read(folder / "out" / REPORT) == report
    assert masks.digest == report.mask_set_sha256


def test_the_accuracy_is_that_of_everything_in_the_mask_set_together(tmp_path: Path) -> None:
    save_file(flat().state_dict(), tmp_path / "model.safetensors")
    images = example_images(96)
    with torch.no_grad():
        labels = flat()(torch.from_numpy(images)).argmax(1).numpy()
    np.savez(tmp_path / "all.npz", images=images, labels=labels)
    model = ModelOptions(factory="tests.learn.positions.networks:flat", weights="model.safetensors")
    data = DataOptions(train="all.npz", test="all.npz")
    # Weights hardly move, so that the network has not learned to do without most of its positions.
    mask = MASK.model_copy(update={"position_rate": 0.9, "learning_rate": 1e-6})
    report = learn(model, data, mask, folder=tmp_path, out=tmp_path / "out")
    masks, network = read_mask_set(tmp_path / "out" / MASKS), flat()
    replaced, counts = substitutes(network, masks.layers, masks.statistics, masks.weights), []
    for positions in ({}, masks.positions):
        with masked_positions(network, positions):
            counts.append(count_correct(network, Samples(images, labels), replaced, batch_size=32))
    assert counts[1] == report.accuracies[-1].correct
    assert counts[0] > counts[1]


def test_masks_of_weights_and_of_positions_are_reported_together(folder: Path) -> None:
    report = run(folder, {"method": "sparse-training", "include": ("*", "con*")})
    masks = read_mask_set(folder / "out" / MASKS)
    assert [layer.name for layer in report.layers] == ["block.conv1", "block.conv2", "block.shortcut.0"]
    assert [layer.name for layer in report.positions] == ["conv", *LAYERS]
    assert {layer.name for layer in report.positions_skipped} == {"block.shortcut.0", "fc"}
    assert {layer.name for layer in report.skipped} == {"conv", "fc"}
    assert set(masks.layers) == {f"{layer.name}.weight" for layer in report.layers}
    # round(0.3 * 64) = 19 of the first layer's; half of the weights of the others, at 11 of 16 positions of two of them.
    left = MACS["conv"] * 45 / 64 + (MACS["block.conv1"] + MACS["block.conv2"]) / 2 * 11 / 16 + 16 * 8 * 16 / 2 + 160
    assert report.amdahl_limit == pytest.approx(ALL_MACS / left)


def test_interrupted_training_continues_to_the_same_bytes(folder: Path) -> None:
    def interrupt(description: str, done: int, total: int) -> None:
        if description == "training with masked positions" and done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(folder, {"checkpoint_steps": 1}, interrupt)
    assert (folder / "out" / CHECKPOINT).is_file()
    run(folder, {"checkpoint_steps": 1})
    continued = [(folder / "out" / name).read_bytes() for name in (MASKS, REPORT)]
    run(folder)
    assert continued == [(folder / "out" / name).read_bytes() for name in (MASKS, REPORT)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "scores"}, "mask.position_rate 0.3 leaves output positions out, for which the weights must train"),
        ({"include": ("fc",)}, "mask.include names fc, which cannot leave positions out: a linear layer has no positions"),
        ({"position_rate": 0.005}, "no layer of the network can leave positions out (conv: mask.position_rate 0.005 of 8 x 8"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_computed(folder: Path, change: dict[str, object], message: str) -> None:
    seen: list[str] = []
    with pytest.raises(UsageError) as caught:
        run(folder, change, lambda text, *_: seen.append(text))
    assert str(caught.value).startswith(message)
    assert not seen

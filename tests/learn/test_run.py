import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from masksparse_deploy.core.artifacts.learning import LearnReport, Share
from masksparse_deploy.core.config import DataOptions, MaskOptions, ModelOptions
from masksparse_deploy.core.errors import ArtifactError, MachineError, OutputError, UsageError
from masksparse_deploy.core.masks import MaskSet, read_mask_set
from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.learn.model import weights_fingerprint
from masksparse_deploy.learn.run import CHECKPOINT, MASKS, REPORT, learn
from tests.learn.networks import PATH, labelled_by_network, shallow_net
from tests.models.tiny_cnn import example_images, tiny_cnn

TINY = ModelOptions(factory="tests.models.tiny_cnn:tiny_cnn", weights="model.safetensors")
DATA = DataOptions(train="train.npz", test="test.npz")
MASK = MaskOptions(epochs=3, batch_size=32, calibration_count=64, augment="shift")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file(tiny_cnn().state_dict(), tmp_path / "model.safetensors")
    for name, count, seed in (("train", 96, 1), ("test", 64, 2)):
        samples = labelled_by_network(count, seed)
        np.savez(tmp_path / f"{name}.npz", images=samples.images, labels=samples.labels)
    return tmp_path


def run(folder: Path, mask: MaskOptions = MASK, out: str = "out", progress: Progress = silent) -> LearnReport:
    return learn(TINY, DATA, mask, folder=folder, out=folder / out, progress=progress)


def test_learned_masks_and_their_report(folder: Path) -> None:
    report = run(folder)
    assert [a.method for a in report.accuracies] == ["dense", "magnitude", "magnitude + batch norm", "scores"]
    # The labels are the dense network's own answers.
    assert report.accuracies[0].correct == report.accuracies[0].total == 64
    assert report.method == "scores"
    assert report.weights_sha256_before == report.weights_sha256_after
    assert report.statistics_updated
    assert [layer.name for layer in report.layers] == ["block.conv1", "block.conv2", "block.shortcut.0"]
    assert [layer.density for layer in report.layers] == [0.5, 0.5, 0.5]
    assert {layer.name for layer in report.skipped} == {"conv", "fc"}
    masked_macs = (16 * 8 * 9 + 16 * 16 * 9 + 16 * 8) * 16
    all_macs = masked_macs + 8 * 3 * 9 * 64 + 160
    assert report.convolutions == Share(masked=3, total=4)
    assert report.macs == Share(masked=masked_macs, total=all_macs)
    assert report.amdahl_limit == pytest.approx(all_macs / (all_macs - masked_macs / 2))
    assert LearnReport.read(folder / "out" / REPORT) == report
    masks = read_mask_set(folder / "out" / MASKS)
    assert masks.digest == report.mask_set_sha256
    assert masks.source_sha256 == report.source_sha256
    assert masks.skipped == report.skipped
    assert sorted(file.name for file in (folder / "out").iterdir()) == sorted([MASKS, REPORT])


@pytest.mark.parametrize(
    ("batch_norm", "methods"),
    [
        (True, ["dense", "magnitude", "magnitude + batch norm"]),
        (False, ["dense", "magnitude + batch norm", "magnitude"]),
    ],
)
def test_the_kept_baseline_comes_last(folder: Path, batch_norm: bool, methods: list[str]) -> None:
    report = run(folder, MASK.model_copy(update={"method": "magnitude", "batch_norm": batch_norm}))
    assert [a.method for a in report.accuracies] == methods
    assert report.method == methods[-1]
    assert report.statistics_updated == batch_norm
    weights = tiny_cnn().state_dict()
    for layer in report.layers:
        # Half of the weights, and never the smaller half.
        assert 0.5 <= layer.kept_magnitude_share < 1
        magnitude = weights[layer.weight_name].abs().double()
        keep = torch.from_numpy(read_mask_set(folder / "out" / MASKS).layers[layer.weight_name].keep.copy())
        assert layer.kept_magnitude_share == pytest.approx(float((magnitude * keep).sum() / magnitude.sum()))


def test_the_accuracy_is_that_of_masks_and_statistics_together(folder: Path) -> None:
    report = run(folder, MASK.model_copy(update={"method": "magnitude", "pattern": "1:4"}))
    masks, test = read_mask_set(folder / "out" / MASKS), np.load(folder / "test.npz")
    model = tiny_cnn()
    state = model.state_dict()

    def correct() -> int:
        with torch.inference_mode():
            return int((model(torch.from_numpy(test["images"])).argmax(1).numpy() == test["labels"]).sum())

    for name, mask in masks.layers.items():
        state[name].mul_(torch.tensor(mask.keep))
    assert report.accuracies[1].correct == correct()
    for name, value in masks.statistics.items():
        state[name].copy_(torch.tensor(value))
    assert report.accuracies[2].correct == correct() != report.accuracies[1].correct
    masked, total = report.macs.masked, report.macs.total
    assert report.amdahl_limit == pytest.approx(total / (total - 0.75 * masked))


def test_without_batch_norm_there_is_one_baseline(folder: Path) -> None:
    save_file(shallow_net().state_dict(), folder / "model.safetensors")
    model = ModelOptions(factory=f"{PATH}:shallow_net", weights="model.safetensors")
    report = learn(model, DATA, MASK, folder=folder, out=folder / "out")
    assert [a.method for a in report.accuracies] == ["dense", "magnitude", "scores"]
    assert not report.statistics_updated


@pytest.mark.parametrize("steps", [1, 3, 7])
def test_interrupted_learning_continues_to_the_same_bytes(folder: Path, steps: int) -> None:
    def interrupt(description: str, done: int, total: int) -> None:
        if description.startswith("learning") and done == steps:
            raise KeyboardInterrupt

    run(folder, out="whole")
    with pytest.raises(KeyboardInterrupt):
        run(folder, progress=interrupt)
    # Three steps are an epoch; the state is saved after whole ones, and the interruption comes before the third is.
    assert (folder / "out" / CHECKPOINT).exists() == (steps > 3)
    assert not (folder / "out" / MASKS).exists()
    seen: list[int] = []
    run(folder, progress=lambda description, done, total: seen.append(done) if description.startswith("learning") else None)
    assert seen[0] == (1 if steps <= 3 else 7)
    for name in (MASKS, REPORT):
        assert (folder / "out" / name).read_bytes() == (folder / "whole" / name).read_bytes()
    assert not (folder / "out" / CHECKPOINT).exists()


def test_a_damaged_checkpoint_is_not_used(folder: Path) -> None:
    run(folder, out="whole")
    (folder / "out").mkdir()
    (folder / "out" / CHECKPOINT).write_bytes(b"half of a checkpoint")
    run(folder)
    assert (folder / "out" / MASKS).read_bytes() == (folder / "whole" / MASKS).read_bytes()


def write_data(folder: Path, name: str, shape: tuple[int, ...], labels: list[int]) -> None:
    np.savez(folder / f"{name}.npz", images=np.zeros(shape, np.float32), labels=np.array(labels, np.int64))


@pytest.mark.parametrize(
    ("name", "shape", "labels", "message"),
    [
        ("test", (2, 3, 16, 16), [0, 1], "training images have the shape (3, 8, 8) (channels, height, width), test images"),
        ("test", (2, 3, 8, 8), [0, 10], "data.test has labels from 0 to 10; the network tells 10 classes apart"),
        ("train", (2, 3, 8, 8), [-1, 0], "data.train has labels from -1 to 0"),
        ("train", (2, 1, 8, 8), [0, 1], "layer conv takes 3 channels and receives 1"),
        ("train", (1, 3, 8, 8), [0], "data.train has 1 images"),
    ],
)
def test_data_that_does_not_fit_is_refused(
    folder: Path, name: str, shape: tuple[int, ...], labels: list[int], message: str
) -> None:
    write_data(folder, name, shape, labels)
    with pytest.raises(UsageError, match=re.escape(message)):
        run(folder)
    assert list((folder / "out").iterdir()) == []


@pytest.mark.parametrize("option", ["batch_size", "calibration_count"])
def test_batch_norm_needs_more_than_one_image(folder: Path, option: str) -> None:
    with pytest.raises(UsageError, match=rf"at least 2 images in a batch: .*mask.{option}( is)? 1,"):
        run(folder, MASK.model_copy(update={option: 1}))


def test_answers_that_are_not_finite_are_refused(folder: Path) -> None:
    # Finite images, whose sums in the first convolution are beyond float32.
    images = np.sign(example_images(2)) * np.float32(3e38)
    np.savez(folder / "test.npz", images=images, labels=np.arange(2))
    with pytest.raises(ArtifactError, match="the dense network returns NaN or infinite values for images 0 to 1"):
        run(folder)


def test_limits_cut_the_data(folder: Path) -> None:
    data = DATA.model_copy(update={"train_limit": 40, "test_limit": 10})
    report = learn(TINY, data, MASK, folder=folder, out=folder / "out")
    assert {a.total for a in report.accuracies} == {10}


def test_an_output_that_is_a_file_is_refused(folder: Path) -> None:
    (folder / "out").write_text("in the way")
    with pytest.raises(OutputError, match="out"):
        run(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "data.train has no labels, and mask.distillation 0.5 learns from labels too"),
        ({"distillation": 1.0, "device": "cpu", "autocast": "float16"}, "mask.autocast float16 needs a GPU"),
        ({"distillation": 1.0, "accumulate": 90}, "data.train has 96 images, and a step needs at least 180"),
    ],
)
@pytest.mark.parametrize("method", ["scores", "gumbel", "auto"])
def test_what_learning_cannot_do_is_refused_before_the_baselines(
    folder: Path, method: str, change: dict[str, object], message: str
) -> None:
    np.savez(folder / "train.npz", images=labelled_by_network(96, 1).images)
    seen: list[str] = []
    with pytest.raises(UsageError, match=re.escape(message)):
        run(folder, MASK.model_copy(update={"method": method, **change}), progress=lambda text, *_: seen.append(text))
    assert seen == []


def test_too_many_rows_and_a_missing_tensorboard_are_told_before_the_baselines(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    rows = MASK.model_copy(update={"method": "gumbel", "pattern": "4:16", "exclude": ("block.conv1", "block.shortcut.0")})
    with pytest.raises(UsageError, match="use method 'scores'"):
        run(folder, rows, progress=lambda text, *_: seen.append(text))
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MachineError, match=r"needed for mask\.tensorboard"):
        run(folder, MASK.model_copy(update={"tensorboard": True}), progress=lambda text, *_: seen.append(text))
    assert seen == []
    run(folder, MASK.model_copy(update={"tensorboard": True, "method": "magnitude"}))


def test_masks_by_magnitude_need_no_labels(folder: Path) -> None:
    np.savez(folder / "train.npz", images=labelled_by_network(96, 1).images)
    assert run(folder, MASK.model_copy(update={"method": "magnitude"})).method == "magnitude + batch norm"


def test_masks_come_with_the_order_of_channels_that_they_are_measured_in(folder: Path) -> None:
    report = run(folder, MASK.model_copy(update={"method": "magnitude", "permute": True, "pattern": "1:4"}))
    masks, test = read_mask_set(folder / "out" / MASKS), np.load(folder / "test.npz")
    assert report.permutation_count == len(masks.permutations) > 0
    model = tiny_cnn()
    state = model.state_dict()
    for permutation in masks.permutations:
        order = torch.tensor(permutation.order)
        state[permutation.name].copy_(state[permutation.name].index_select(permutation.axis, order))
    for layer in report.layers:
        magnitude = state[layer.weight_name].abs().double()
        keep = torch.tensor(masks.layers[layer.weight_name].keep)
        assert layer.kept_magnitude_share == pytest.approx(float((magnitude * keep).sum() / magnitude.sum()))
        state[layer.weight_name].mul_(keep)
    for name, value in masks.statistics.items():
        state[name].copy_(torch.tensor(value))
    with torch.inference_mode():
        correct = int((model(torch.from_numpy(test["images"])).argmax(1).numpy() == test["labels"]).sum())
    assert report.accuracies[-1].correct == correct
    assert report.accuracies[-1].method == "magnitude + permutation + batch norm"


def test_transposable_masks_are_reported_as_such(folder: Path) -> None:
    report = run(folder, MASK.model_copy(update={"method": "transposable"}))
    assert [a.method for a in report.accuracies] == ["dense", "magnitude", "transposable", "transposable + batch norm"]
    assert report.pattern == "T2:4"
    assert [layer.pattern for layer in report.layers] == ["T2:4"] * 3
    assert report.weights_sha256_before == report.weights_sha256_after
    assert report.changed_parameters == ()
    assert {layer.weight_change for layer in report.layers} == {None}
    masks = read_mask_set(folder / "out" / MASKS)
    assert masks.method == "transposable + batch norm"
    assert not masks.weights
    for mask in masks.layers.values():
        assert mask.pattern.count_violations(mask.keep, group_axis=1) == 0
    # Of the same network, free masks keep more.
    free = run(folder, MASK.model_copy(update={"method": "magnitude"}), out="free")
    assert all(a.kept_magnitude_share < b.kept_magnitude_share for a, b in zip(report.layers, free.layers, strict=True))


def with_new_weights(masks: MaskSet) -> torch.nn.Module:
    """The network as it is to be deployed, put together by hand."""
    model = tiny_cnn()
    state = model.state_dict()
    for permutation in masks.permutations:
        state[permutation.name].copy_(state[permutation.name].index_select(permutation.axis, torch.tensor(permutation.order)))
    for name, value in {**masks.weights, **masks.statistics}.items():
        state[name].copy_(torch.tensor(value))
    return model


@pytest.mark.parametrize("permute", [False, True])
@pytest.mark.parametrize(("method", "pattern"), [("adaprune", "2:4"), ("adaprune", "T2:4"), ("sparse-training", "T2:4")])
def test_methods_that_change_weights_bring_the_ones_they_were_measured_with(
    folder: Path, method: str, pattern: str, permute: bool
) -> None:
    change = {"method": method, "pattern": pattern, "permute": permute, "mask_steps": 4, "batch_norm": method == "adaprune"}
    report = run(folder, MASK.model_copy(update=change))
    masks, test = read_mask_set(folder / "out" / MASKS), np.load(folder / "test.npz")
    assert report.pattern == pattern
    assert report.method.startswith(method)
    assert ("magnitude" in [a.method for a in report.accuracies]) and (pattern == "2:4") == (
        "transposable" not in [a.method for a in report.accuracies]
    )
    assert report.changed_parameters == tuple(sorted(masks.weights)) != ()
    assert set(masks.layers) <= set(masks.weights)
    for layer in report.layers:
        mask, weight = masks.layers[layer.weight_name], masks.weights[layer.weight_name]
        assert not weight[~mask.keep].any()
        assert layer.weight_change is not None
        assert layer.weight_change > 0
    model = with_new_weights(masks)
    with torch.inference_mode():
        correct = int((model(torch.from_numpy(test["images"])).argmax(1).numpy() == test["labels"]).sum())
    assert report.accuracies[-1].correct == correct
    assert report.weights_sha256_after == weights_fingerprint(model) != report.weights_sha256_before
    again = run(folder, MASK.model_copy(update=change), out="again")
    assert again == report


def test_how_far_weights_moved_is_relative_to_what_the_mask_keeps(folder: Path) -> None:
    report = run(folder, MASK.model_copy(update={"method": "adaprune"}))
    masks, state = read_mask_set(folder / "out" / MASKS), tiny_cnn().state_dict()
    for layer in report.layers:
        kept = state[layer.weight_name].numpy() * masks.layers[layer.weight_name].keep
        distance = np.linalg.norm(masks.weights[layer.weight_name] - kept) / np.linalg.norm(kept)
        assert layer.weight_change == pytest.approx(float(distance), rel=1e-5)


def test_interrupted_sparse_training_continues_to_the_same_bytes(folder: Path) -> None:
    def interrupt(description: str, done: int, total: int) -> None:
        if description == "sparse training" and done == 7:
            raise KeyboardInterrupt

    mask = MASK.model_copy(update={"method": "sparse-training", "mask_steps": 2})
    run(folder, mask, out="whole")
    with pytest.raises(KeyboardInterrupt):
        run(folder, mask, progress=interrupt)
    assert (folder / "out" / CHECKPOINT).exists()
    run(folder, mask)
    for name in (MASKS, REPORT):
        assert (folder / "out" / name).read_bytes() == (folder / "whole" / name).read_bytes()


def test_sparse_training_without_labels_is_refused_before_the_baselines(folder: Path) -> None:
    np.savez(folder / "train.npz", images=labelled_by_network(96, 1).images)
    seen: list[str] = []
    with pytest.raises(UsageError, match=r"data\.train has no labels"):
        run(folder, MASK.model_copy(update={"method": "sparse-training"}), progress=lambda text, *_: seen.append(text))
    assert seen == []
    # Fitting needs none.
    assert run(folder, MASK.model_copy(update={"method": "adaprune"})).method.startswith("adaprune")

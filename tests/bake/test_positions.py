"""Masks of positions in baked files: the function of the masked PyTorch model, the form, and what is refused."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

from masksparse_deploy.bake import positions
from masksparse_deploy.bake.position_check import check_positions
from masksparse_deploy.bake.run import bake
from masksparse_deploy.bake.twins import changed_constants, structural_differences
from masksparse_deploy.core.artifacts.baking import BakeReport
from masksparse_deploy.core.config import BakeOptions
from masksparse_deploy.core.errors import ArtifactError, UsageError
from masksparse_deploy.core.masks import MaskSet, fingerprint
from masksparse_deploy.core.positions import PositionMask
from masksparse_deploy.graph.positions import position_masks, without_positions
from masksparse_deploy.graph.reader import parse_graph, read_graph
from masksparse_deploy.learn.positions.apply import masked_positions
from tests.models.make_onnx import residual_pair
from tests.models.narrow_cnn import narrow_cnn
from tests.models.positions import random_positions, with_positions
from tests.models.tiny_cnn import example_images, float_state, magnitude_masks, tiny_cnn

SIZES = {"conv": (8, 8), "block.conv1": (4, 4), "block.conv2": (4, 4)}
# Folding batch norm and another order of summation: sums of at most 144 products of size one round by 144 * 2^-24, about 1e-5.
TOLERANCE = 1e-5

Array = npt.NDArray[np.float32]


class Awkward(nn.Module):
    """A bias of its own, a batch norm that cannot be folded, a layer called twice, a grouped and a 1x1 convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.unfolded = nn.Conv2d(8, 8, (1, 3), padding=(0, 1), bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, 3, groups=8, padding=2, dilation=2)
        self.pointwise = nn.Conv2d(8, 4, 1, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.twice(torch.relu(self.twice(torch.relu(self.first(x)))))
        y = self.norm(torch.sigmoid(self.unfolded(y)))
        return torch.flatten(self.pointwise(self.grouped(y) + y), 1)


AWKWARD_SIZES = {
    "first": (8, 6),
    "twice": (8, 6),
    "unfolded": (8, 6),
    "grouped": (8, 6),
    "pointwise": (4, 3),
}


def awkward() -> Awkward:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Awkward()
        nn.init.uniform_(model.norm.bias, -0.5, 0.5)
    return model.eval()


def bake_into(
    out: Path, model: nn.Module, masks: MaskSet, *, images: Array | None = None, options: BakeOptions | None = None
) -> BakeReport:
    images = example_images() if images is None else images
    return bake(
        model,
        masks,
        options or BakeOptions(),
        example_shape=(images.shape[1], images.shape[2], images.shape[3]),
        source_sha256=masks.source_sha256,
        out=out,
        probe_images=images,
        calibration=images,
    )


def masks_of(model: nn.Module, positions: Mapping[str, PositionMask], base: MaskSet | None = None) -> MaskSet:
    base = base or MaskSet(layers={}, source_sha256=fingerprint(float_state(model)), method="positions")
    return dataclasses.replace(base, positions=positions)


def outputs(path: Path, images: Array) -> Array:
    (found,) = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"images": images})
    return np.asarray(found, dtype=np.float32)


def reference(model: nn.Module, masks: MaskSet, images: Array) -> Array:
    """The masked PyTorch model: masks of weights and statistics loaded, positions left out as learning leaves them out."""
    values = {name: torch.tensor(value) for name, value in masks.statistics.items()}
    for name, mask in masks.layers.items():
        values[name] = model.get_parameter(name).detach() * torch.tensor(mask.keep)
    with torch.no_grad(), masked_positions(model, masks.positions):
        found: Array = torch.func.functional_call(model, values, (torch.tensor(images),)).numpy()
    return found


@pytest.mark.parametrize("opset", [17, 20])
def test_the_file_computes_what_the_masked_model_computes(opset: int, tmp_path: Path) -> None:
    model = awkward()
    masks = masks_of(model, random_positions(AWKWARD_SIZES))
    images = np.random.default_rng(1).standard_normal((4, 3, 8, 6), dtype=np.float32)
    bake_into(tmp_path, model, masks, images=images, options=BakeOptions.model_validate({"opset": opset}))

    expected = reference(model, masks, images)
    assert np.abs(expected - reference(model, masks_of(model, {}), images)).max() > 0.1  # the masks are no detail
    for batch in (1, 4):
        np.testing.assert_allclose(outputs(tmp_path / "sparse.onnx", images[:batch]), expected[:batch], atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(load_file(tmp_path / "probe.safetensors")["sparse_outputs"], expected, atol=1e-6, rtol=0)
    assert not any(node.op == "Where" for node in read_graph(tmp_path / "dense.onnx").nodes)
    # The layer that is called twice has its mask behind both calls
    found = [masked.layer for masked in position_masks(read_graph(tmp_path / "sparse.onnx")).values()]
    assert sorted(found) == ["first", "grouped", "pointwise", "twice", "twice", "unfolded"]


def test_a_network_may_end_with_a_masked_convolution(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3, stride=2)).eval()
    images = np.random.default_rng(1).standard_normal((2, 3, 9, 12), dtype=np.float32)
    masks = masks_of(model, random_positions({"0": (7, 10), "2": (3, 4)}))
    bake_into(tmp_path, model, masks, images=images)
    (found, dense) = (outputs(tmp_path / name, images) for name in ("sparse.onnx", "dense.onnx"))
    np.testing.assert_allclose(found, reference(model, masks, images), atol=TOLERANCE, rtol=0)
    dropped = ~masks.positions["2"].keep
    np.testing.assert_array_equal(found[0, 1, dropped], np.full(6, model[2].bias[1].item(), np.float32))
    assert np.abs(found - dense)[:, :, dropped].max() > 0.1


@pytest.fixture(scope="module")
def baked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, MaskSet]:
    """Masks of positions and of weights in one network."""
    model = tiny_cnn()
    masks = masks_of(model, random_positions(SIZES), magnitude_masks(model))
    out = tmp_path_factory.mktemp("baked")
    bake_into(out, model, masks)
    return out, masks


def test_masks_of_positions_and_of_weights_go_together(baked: tuple[Path, MaskSet]) -> None:
    out, masks = baked
    expected = reference(tiny_cnn(), masks, example_images())
    np.testing.assert_allclose(outputs(out / "sparse.onnx", example_images()), expected, atol=TOLERANCE, rtol=0)


def test_the_report_tells_of_both(baked: tuple[Path, MaskSet]) -> None:
    out, masks = baked
    report = BakeReport.read(out / "bake.json")
    assert [layer.layer for layer in report.layers] == ["block.conv1", "block.conv2"]
    assert [(row.layer, row.height, row.width, row.kept_count) for row in report.positions] == [
        ("conv", 8, 8, 32),
        ("block.conv1", 4, 4, 8),
        ("block.conv2", 4, 4, 8),
    ]
    row = report.positions[1]
    assert row.mask_sha256 == masks.positions["block.conv1"].digest
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(row.keep), dtype=np.uint8), count=16).astype(np.bool_)
    np.testing.assert_array_equal(bits.reshape(4, 4), masks.positions["block.conv1"].keep)
    assert row.mac_count == 16 * 8 * 9 * 16


def test_but_for_the_masks_the_files_are_twins(baked: tuple[Path, MaskSet]) -> None:
    out, _ = baked
    dense, sparse = read_graph(out / "dense.onnx"), read_graph(out / "sparse.onnx")
    assert structural_differences(dense, sparse) != ()
    assert structural_differences(dense, without_positions(sparse)) == ()
    assert changed_constants(dense, without_positions(sparse)) == ("block.conv1.weight", "block.conv2.weight")
    stem = next(node for node in sparse.nodes if node.inputs[1:2] == ("conv.weight",))
    assert "masksparse.dense_reason" in stem.metadata


def test_new_statistics_reach_what_dropped_positions_hold(tmp_path: Path) -> None:
    model = tiny_cnn()
    masks = masks_of(model, random_positions(SIZES), magnitude_masks(model, new_statistics=True))
    bake_into(tmp_path, model, masks)
    expected = reference(model, masks, example_images())
    np.testing.assert_allclose(outputs(tmp_path / "sparse.onnx", example_images()), expected, atol=TOLERANCE, rtol=0)


def test_channels_of_zeros_that_fill_groups_stay_zero_where_nothing_is_computed(tmp_path: Path) -> None:
    model = narrow_cnn()
    positions = random_positions({"stem": (8, 8), "conv1": (4, 4), "conv2": (4, 4)})
    masks = masks_of(model, positions, magnitude_masks(model, ("conv1", "conv2")))
    report = bake_into(tmp_path, model, masks)
    assert {row.node for row in report.padded} & {row.node for row in report.positions}
    expected = reference(model, masks, example_images())
    # The classifier's weights have a standard deviation of 2: four times those of the other networks here
    np.testing.assert_allclose(outputs(tmp_path / "sparse.onnx", example_images()), expected, atol=4 * TOLERANCE, rtol=0)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_reduced_precision(precision: str, tmp_path: Path) -> None:
    model = tiny_cnn()
    masks = masks_of(model, random_positions(SIZES), magnitude_masks(model))
    options = BakeOptions.model_validate({"precision": precision, "opset": 22})
    bake_into(tmp_path, model, masks, options=options)

    sparse = read_graph(tmp_path / "sparse.onnx")
    kinds = {masked.constant.dtype.name for masked in position_masks(sparse).values()}
    assert kinds == {"float16" if precision == "fp16" else "bfloat16"}
    assert check_positions(sparse, masks.positions).findings == ()
    if precision == "fp16":  # ONNX Runtime has no BF16 convolution on the CPU
        # Ten bits of mantissa: values of size one, through four layers that each add up to a few times 2^-11
        expected = reference(model, masks, example_images())
        np.testing.assert_allclose(outputs(tmp_path / "sparse.onnx", example_images()), expected, atol=2e-2, rtol=0)


def test_int8_is_refused_before_any_work(tmp_path: Path) -> None:
    model = tiny_cnn()
    masks = masks_of(model, random_positions(SIZES))
    with pytest.raises(UsageError, match="int8 is not for masked positions, and 3 layers have some; use fp32, fp16 or bf16"):
        bake_into(tmp_path / "out", model, masks, options=BakeOptions(precision="int8"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("layer", "size", "message"),
    [
        (
            "conv",
            (16, 16),
            "of 16 x 16 positions, but the output of node .* has 8 x 8; the masks were made for images of another",
        ),
        ("block.conv9", (4, 4), "the model has no module of that name, not a Conv2d; the masks were made for another model"),
        ("fc", (1, 2), "the model has a Linear of that name, not a Conv2d"),
    ],
)
def test_masks_that_do_not_fit_are_refused(layer: str, size: tuple[int, int], message: str, tmp_path: Path) -> None:
    model = tiny_cnn()
    masks = masks_of(model, random_positions({layer: size}))
    with pytest.raises(ArtifactError, match=f"position mask of {layer}.*{message}"):
        bake_into(tmp_path, model, masks)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_two_layers_share_are_refused(tmp_path: Path) -> None:
    model = awkward()
    model.twice.weight = nn.Parameter(torch.randn(8, 8, 3, 3))
    model.extra = nn.Conv2d(8, 8, 3)
    model.extra.weight = model.twice.weight
    masks = masks_of(model, random_positions({"twice": (8, 6)}))
    with pytest.raises(UsageError, match="position mask of twice: extra shares its weight"):
        bake_into(tmp_path, model, masks, images=np.zeros((2, 3, 8, 6), np.float32))


def test_an_input_of_free_size_is_refused() -> None:
    """No exporter of this package leaves the size free, but another one's file may."""
    model, _ = residual_pair()
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"size{axis}"
    del model.graph.value_info[:]
    with pytest.raises(ArtifactError, match=r"gives the output of node layer1\.conv1 no fixed height and width"):
        with_positions(model, random_positions())


def _mask_turned(model: onnx.ModelProto) -> None:
    _edit(model, 0, lambda keep: keep[:, :, ::-1, :])


def _constant_changed(model: onnx.ModelProto) -> None:
    _edit(model, 2, lambda constant: constant * np.float32(1 + 2**-20))


def _mask_of_another_layer(model: onnx.ModelProto) -> None:
    where = [node for node in model.graph.node if node.op_type == "Where"]
    next(entry for entry in where[1].metadata_props if entry.key.endswith("layer")).value = "block.conv2"


def _annotation_lost(model: onnx.ModelProto) -> None:
    del next(node for node in model.graph.node if node.op_type == "Where").metadata_props[:]


def _everything_kept(model: onnx.ModelProto) -> None:
    _edit(model, 0, np.ones_like)


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (_mask_turned, ["is not the digest of the mask of conv that is there", "masks other positions than the mask set"]),
        (_constant_changed, ["dropped positions hold something else than the bias of .* in 8 of 8 channels"]),
        (_mask_of_another_layer, ["is not the digest of the mask of block.conv2 that is there"]),
        (_annotation_lost, ["all positions are computed, but the mask set has a position mask of conv", "masks no positions"]),
        (_everything_kept, ["the mask drops none of 64 positions", "is not the digest", "masks other positions"]),
    ],
)
def test_planted_faults_are_found(
    fault: Callable[[onnx.ModelProto], None], expected: list[str], baked: tuple[Path, MaskSet]
) -> None:
    out, masks = baked
    data = (out / "sparse.onnx").read_bytes()
    assert check_positions(parse_graph(data, name="sparse.onnx"), masks.positions).findings == ()
    model = onnx.load_model_from_string(data)
    fault(model)

    findings = check_positions(parse_graph(model.SerializeToString(), name="sparse.onnx"), masks.positions).findings
    assert len(findings) == len(expected)
    for finding, pattern in zip(findings, expected, strict=True):
        assert re.search(pattern, finding), finding


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda array: np.flip(array) if array.dtype == np.bool_ else array, "masks other positions than the mask set"),
        (lambda array: array if array.dtype == np.bool_ else array + 1, "something else than the bias of"),
    ],
)
def test_what_baking_gets_wrong_is_not_written(
    spoil: Callable[[npt.NDArray[Any]], npt.NDArray[Any]], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, stored = tiny_cnn(), positions._stored
    masks = masks_of(model, random_positions(SIZES))
    monkeypatch.setattr(positions, "_stored", lambda graph, name, array: stored(graph, name, spoil(array)))
    with pytest.raises(ArtifactError, match=f"does not conform to its position masks .*{message}.*nothing was written"):
        bake_into(tmp_path, model, masks)
    assert list(tmp_path.iterdir()) == []


def test_a_mask_that_the_set_does_not_have_is_found(baked: tuple[Path, MaskSet]) -> None:
    out, masks = baked
    graph = read_graph(out / "sparse.onnx")
    fewer = {name: mask for name, mask in masks.positions.items() if name != "conv"}
    (finding,) = check_positions(graph, fewer).findings
    assert finding.endswith("masks positions, but the mask set has no position mask of conv")


def _edit(model: onnx.ModelProto, place: int, change: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]) -> None:
    """Change a constant that the Where of the stem reads."""
    where = next(node for node in model.graph.node if node.op_type == "Where")
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == where.input[place])
    array = np.ascontiguousarray(change(onnx.numpy_helper.to_array(tensor)))
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))

"""The whole stage on a small residual network."""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from safetensors.numpy import load_file

from masksparse_deploy.bake import run
from masksparse_deploy.bake.convert import Conversion
from masksparse_deploy.bake.export import export_onnx
from masksparse_deploy.bake.run import bake
from masksparse_deploy.bake.twins import changed_constants, structural_differences
from masksparse_deploy.core.artifacts.baking import BakeReport
from masksparse_deploy.core.config import BakeOptions
from masksparse_deploy.core.errors import ArtifactError, OutputError, UsageError
from masksparse_deploy.core.files import sha256_file
from masksparse_deploy.core.masks import MaskSet
from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.graph.reader import read_graph
from tests.models.tiny_cnn import EXAMPLE_SHAPE, TinyCnn, example_images, float_state, magnitude_masks, tiny_cnn


def bake_into(
    out: Path,
    model: TinyCnn,
    masks: MaskSet,
    *,
    source_sha256: str | None = None,
    options: BakeOptions | None = None,
    calibration: npt.NDArray[np.float32] | None = None,
) -> BakeReport:
    return bake(
        model,
        masks,
        options or BakeOptions(),
        example_shape=EXAMPLE_SHAPE,
        source_sha256=source_sha256 or masks.source_sha256,
        out=out,
        probe_images=example_images(),
        calibration=calibration,
    )


@pytest.fixture(scope="module", params=[False, True], ids=["same-statistics", "new-statistics"])
def baked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, MaskSet]:
    model = tiny_cnn()
    masks = magnitude_masks(model, new_statistics=request.param)
    out = tmp_path_factory.mktemp("baked")
    before = {name: value.copy() for name, value in float_state(model).items()}
    bake_into(out, model, masks)
    for name, value in float_state(model).items():
        np.testing.assert_array_equal(value, before[name])  # the given model is left as it was
    return out, masks


def test_report_and_files_agree(baked: tuple[Path, MaskSet]) -> None:
    out, masks = baked
    report = BakeReport.read(out / "bake.json")
    assert report.dense_sha256 == sha256_file(out / "dense.onnx")
    assert report.sparse_sha256 == sha256_file(out / "sparse.onnx")
    assert report.probe_sha256 == sha256_file(out / "probe.safetensors")
    assert report.mask_set_sha256 == masks.digest
    assert report.statistics_updated == bool(masks.statistics)
    assert [layer.weight_name for layer in report.layers] == list(masks.layers)
    assert all(layer.violation_count == 0 and layer.density == 0.5 for layer in report.layers)
    assert report.skipped == masks.skipped
    assert sorted(path.name for path in out.iterdir()) == ["bake.json", "dense.onnx", "probe.safetensors", "sparse.onnx"]


def without_masks(path: Path, masks: MaskSet) -> bytes:
    """The file without annotations and without the values of masked weights."""
    proto = onnx.load(path)
    for part in (proto, *proto.graph.node, *proto.graph.initializer):
        del part.metadata_props[:]
    for tensor in proto.graph.initializer:
        if tensor.name in masks.layers:
            tensor.raw_data = b""
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


def test_one_graph_and_the_right_values(baked: tuple[Path, MaskSet]) -> None:
    out, masks = baked
    dense, sparse = read_graph(out / "dense.onnx"), read_graph(out / "sparse.onnx")
    assert structural_differences(dense, sparse) == ()
    if not masks.statistics:
        # The files differ in masked values and annotations only
        assert changed_constants(dense, sparse) == tuple(sorted(masks.layers))
        assert without_masks(out / "dense.onnx", masks) == without_masks(out / "sparse.onnx", masks)
    for name, mask in masks.layers.items():
        assert not sparse.constants[name][~mask.keep].any()
        assert dense.constants[name][~mask.keep].all()


def test_the_files_compute_what_pytorch_computes(baked: tuple[Path, MaskSet]) -> None:
    out, masks = baked
    probe = load_file(out / "probe.safetensors")
    np.testing.assert_array_equal(probe["images"], example_images())
    model = tiny_cnn()
    state = model.state_dict()
    for twin in ("dense", "sparse"):
        if twin == "sparse":  # the reference: the masks and the statistics loaded into an ordinary copy
            for name, value in masks.statistics.items():
                state[name].copy_(torch.from_numpy(value.copy()))
            for name, mask in masks.layers.items():
                state[name].mul_(torch.from_numpy(mask.keep.copy()))
        with torch.no_grad():
            expected = model(torch.from_numpy(example_images())).numpy()
        np.testing.assert_array_equal(probe[f"{twin}_outputs"], expected)
        (found,) = onnxruntime.InferenceSession(out / f"{twin}.onnx").run(None, {"images": probe["images"]})
        # Folding and summation order: sums of at most 144 terms of size one, 144 * 2^-24, about 1e-5
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
    assert np.abs(probe["dense_outputs"] - probe["sparse_outputs"]).max() > 1e-3


def test_baking_again_gives_the_same_bytes(baked: tuple[Path, MaskSet], tmp_path: Path) -> None:
    out, masks = baked
    bake_into(tmp_path, tiny_cnn(), masks)
    for path in out.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_masks_for_other_weights(tmp_path: Path) -> None:
    model = tiny_cnn()
    masks = magnitude_masks(model)
    with pytest.raises(ArtifactError, match="masks were made for other weights") as caught:
        bake_into(tmp_path / "out", model, masks, source_sha256="f" * 64)
    assert masks.source_sha256 in str(caught.value) and "f" * 64 in str(caught.value)
    assert "run 'masksparse learn' again" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_what_does_not_conform_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class ForgetsTheMasks(run.ApplyMasks):
        def call(self, model):  # type: ignore[no-untyped-def]
            return run.ir.passes.PassResult(model, False)

        def ensures(self, model):  # type: ignore[no-untyped-def]
            pass

    monkeypatch.setattr(run, "ApplyMasks", ForgetsTheMasks)
    model = tiny_cnn()
    with pytest.raises(ArtifactError, match=r"does not conform to its masks \(node_Conv.* keep more than 2 of 4.*nothing was"):
        bake_into(tmp_path, model, magnitude_masks(model))
    assert list(tmp_path.iterdir()) == []


def test_a_conversion_that_breaks_a_group_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(
        model: onnx.ModelProto, options: BakeOptions, images: Any, *, masks: MaskSet | None = None, progress: Progress = silent
    ) -> Conversion:
        if masks is None:
            return Conversion(model=model)
        changed = onnx.ModelProto()
        changed.CopyFrom(model)
        tensor = next(tensor for tensor in changed.graph.initializer if tensor.name in masks.layers)
        tensor.raw_data = np.ones(tuple(tensor.dims), dtype=np.float32).tobytes()
        return Conversion(model=changed)

    model = tiny_cnn()
    monkeypatch.setattr(run, "convert", broken)
    with pytest.raises(ArtifactError, match="no longer does after the conversion"):
        bake_into(tmp_path, model, magnitude_masks(model))
    assert not list(tmp_path.iterdir())


def test_reduced_precision(tmp_path: Path) -> None:
    model = tiny_cnn()
    masks = magnitude_masks(model)
    options, calibration = BakeOptions(precision="fp16"), example_images(8, seed=1)
    report = bake_into(tmp_path, model, masks, options=options, calibration=calibration)
    assert report.precision == "fp16" and report.calibration_sha256 is not None
    assert not report.remarks
    rows = {row.weight: row for row in report.ranges if row.weight}
    assert rows.keys() >= masks.layers.keys()
    for name, mask in masks.layers.items():
        # what is lost is counted in the sparse file: no row counts more weights than the mask keeps
        assert 0 < rows[name].weight_nonzero_count <= mask.keep.sum()
        assert rows[name].output_largest is not None
    for layer in report.layers:
        assert [checkpoint.stage for checkpoint in layer.checkpoints] == ["module", "onnx", "converted"]
    dense, sparse = (read_graph(tmp_path / f"{name}.onnx") for name in ("dense", "sparse"))
    assert changed_constants(dense, sparse) == tuple(sorted(masks.layers))
    assert all(array.dtype == np.float16 for array in sparse.constants.values() if array.dtype.kind == "f")


@pytest.mark.parametrize(
    ("calibration", "message"),
    [(None, "needs images to calibrate scales on"), (np.zeros((8, 3, 9, 9), np.float32), r"the shape \(3, 9, 9\)")],
)
def test_images_that_int8_cannot_use(tmp_path: Path, calibration: Any, message: str) -> None:
    model, out = tiny_cnn(), tmp_path / "out"
    with pytest.raises(UsageError, match=message):
        bake_into(out, model, magnitude_masks(model), options=BakeOptions(precision="int8"), calibration=calibration)
    assert not out.exists()


def test_statistics_of_another_model(tmp_path: Path) -> None:
    model = tiny_cnn()
    masks = magnitude_masks(model)
    for name, value, message in (
        ("bn9.running_mean", np.zeros(8, np.float32), r"bn9\.running_mean .*is not in the model"),
        ("bn.running_mean", np.zeros(4, np.float32), r"shape \(4,\): the buffer has shape \(8,\) there"),
    ):
        with pytest.raises(ArtifactError, match=message):
            bake_into(tmp_path, model, dataclasses.replace(masks, statistics={name: value}))
    assert list(tmp_path.iterdir()) == []


def test_masks_of_another_model(tmp_path: Path) -> None:
    model = tiny_cnn()
    masks = magnitude_masks(model)
    (mask, *_) = masks.layers.values()
    renamed = dataclasses.replace(mask, weight_name="head.weight")
    with pytest.raises(ArtifactError, match=r"mask of head\.weight: the model has no parameter of that name"):
        bake_into(tmp_path, model, dataclasses.replace(masks, layers={"head.weight": renamed}))


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")  # networks with it are still around
@pytest.mark.filterwarnings("ignore:The tensor attribute .* was assigned during export:UserWarning")  # the computed weight
def test_a_network_that_cannot_be_copied(tmp_path: Path) -> None:
    model = tiny_cnn()
    torch.nn.utils.weight_norm(model.conv)
    model.requires_grad_(False)  # as learning leaves it
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(model)
    masks = magnitude_masks(model, new_statistics=True)
    before = {name: value.copy() for name, value in float_state(model).items()}
    bake_into(tmp_path, model, masks)
    for name, value in float_state(model).items():
        np.testing.assert_array_equal(value, before[name])


def swapped_kernels(proto: onnx.ModelProto) -> None:
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    one, other = (tensors[f"{layer}.weight"] for layer in ("conv_a", "conv_b"))
    one.raw_data, other.raw_data = other.raw_data, one.raw_data


def scaled_input_channel(proto: onnx.ModelProto) -> None:
    (tensor,) = [tensor for tensor in proto.graph.initializer if tensor.name == "conv_b.weight"]
    values = onnx.numpy_helper.to_array(tensor).copy()
    values[:, 3] *= 1.01
    tensor.raw_data = values.tobytes()


class TwoAlike(torch.nn.Module):
    """Two convolutions of one shape."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_a = torch.nn.Conv2d(8, 8, 3)
        self.conv_b = torch.nn.Conv2d(8, 8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.relu(self.conv_b(self.conv_a(x))).mean((2, 3))


@pytest.mark.parametrize("fault", [swapped_kernels, scaled_input_channel])
def test_kernels_that_are_not_the_trained_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable[[onnx.ModelProto], None]
) -> None:
    def export(*args: Any, **options: Any) -> bytes:
        proto = onnx.load_model_from_string(export_onnx(*args, **options))
        fault(proto)
        data: bytes = proto.SerializeToString()
        return data

    model = TwoAlike().eval()
    masks = magnitude_masks(model, ("conv_a", "conv_b"))

    def bake_two(out: Path) -> None:
        bake(
            model,
            masks,
            BakeOptions(),
            example_shape=(8, 8, 8),
            source_sha256=masks.source_sha256,
            out=out,
            probe_images=np.zeros((2, 8, 8, 8), np.float32),
        )

    bake_two(tmp_path / "right")
    monkeypatch.setattr(run, "export_onnx", export)
    with pytest.raises(ArtifactError, match=r"constant conv_b\.weight is not the trained weight of that name"):
        bake_two(tmp_path / "wrong")
    assert list((tmp_path / "wrong").iterdir()) == []


def test_kept_weights_that_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Doubles(run.ApplyMasks):
        def call(self, model):  # type: ignore[no-untyped-def]
            result = super().call(model)
            value = model.graph.initializers["block.conv2.weight"]
            value.const_value = run.ir.Tensor(2 * value.const_value.numpy(), name=value.name)
            return result

    monkeypatch.setattr(run, "ApplyMasks", Doubles)
    model = tiny_cnn()
    with pytest.raises(ArtifactError, match=r"kept weights of block\.conv2\.weight changed"):
        bake_into(tmp_path, model, magnitude_masks(model))


def test_weights_that_are_not_numbers(tmp_path: Path) -> None:
    model = tiny_cnn()
    with torch.no_grad():
        model.fc.weight[0, 0] = float("nan")
    with pytest.raises(UsageError, match=r"constant fc\.weight of the exported graph holds 1 values that are not finite"):
        bake_into(tmp_path, model, magnitude_masks(model))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    model = tiny_cnn()
    with pytest.raises(OutputError, match="cannot be written"):
        bake_into(tmp_path / "file" / "out", model, magnitude_masks(model))

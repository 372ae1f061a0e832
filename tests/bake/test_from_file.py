"""Baking ONNX files of any origin: the right weights."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from masksparse_deploy.bake.lint import lint
from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.graph import annotations as keys
from tests.bake.baking import bake, function_model, product_differs_as_masked, run
from tests.bake.file_models import (
    branching_model,
    constant_node,
    mask_of,
    mask_set,
    matmul_model,
    model_of,
    values,
)

# Which axes a mask may be given in -----------------------------------------------------------------------------------------


def test_a_linear_layer_that_the_exporter_stored_transposed(tmp_path: Path) -> None:
    weight = values(12, 8)  # (out, in), as in the PyTorch model
    mask = mask_of("fc.weight", weight, 1)
    report = bake(matmul_model(weight.T.copy()), mask_set(mask), tmp_path)
    product_differs_as_masked(tmp_path, values(3, 8, seed=1), weight.T, mask.keep.T)
    assert report.layers[0].group_axis == 0 and report.layers[0].shape == (8, 12)


def test_a_square_matrix_is_turned_only_if_its_groups_would_not_run_along_input_channels(tmp_path: Path) -> None:
    weight = values(8, 8)
    for axis, turned in ((0, False), (1, True)):
        folder = tmp_path / str(axis)
        folder.mkdir()
        mask = mask_of("fc.weight", weight, axis)
        bake(matmul_model(weight), mask_set(mask), folder)
        product_differs_as_masked(folder, values(3, 8, seed=1), weight, mask.keep.T if turned else mask.keep)


@pytest.mark.parametrize("axes", ["of the constant", "of the operator"])
def test_behind_a_transpose(tmp_path: Path, axes: str) -> None:
    weight = values(12, 8)
    model = matmul_model(weight, helper.make_node("Transpose", ["fc.weight"], ["w"], name="turn", perm=[1, 0]))
    mask = mask_of("fc.weight", *((weight, 1) if axes == "of the constant" else (weight.T, 0)))
    bake(model, mask_set(mask), tmp_path)
    keep = mask.keep.T if axes == "of the constant" else mask.keep
    product_differs_as_masked(tmp_path, values(3, 8, seed=1), weight.T, keep)
    sparse = onnx.load(tmp_path / "out" / "sparse.onnx")
    for part in (sparse.graph.node[-1], sparse.graph.initializer[0]):
        assert {entry.key: entry.value for entry in part.metadata_props}[keys.GROUP_AXIS] == "1"


ROUTES = {
    "Identity": [helper.make_node("Identity", ["fc.weight"], ["w"], name="same")],
    "Cast": [
        helper.make_node("Cast", ["fc.weight"], ["half"], name="down", to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["half"], ["w"], name="up", to=TensorProto.FLOAT),
    ],
    "Unsqueeze and Squeeze": [
        constant_node("axis", np.array([0], dtype=np.int64)),
        helper.make_node("Unsqueeze", ["fc.weight", "axis"], ["wider"], name="wider"),
        helper.make_node("Squeeze", ["wider", "axis"], ["w"], name="back"),
    ],
    "Reshape": [
        constant_node("flat", np.array([0, 3, -1], dtype=np.int64)),
        constant_node("shape", np.array([8, 12], dtype=np.int64)),
        helper.make_node("Reshape", ["fc.weight", "flat"], ["three"], name="split"),
        helper.make_node("Reshape", ["three", "shape"], ["w"], name="join"),
    ],
}


@pytest.mark.parametrize("route", ROUTES)
def test_operators_that_only_rearrange_or_rescale(tmp_path: Path, route: str) -> None:
    weight = np.round(values(8, 12) * 16) / 16  # exact in FP16
    mask = mask_of("fc.weight", weight, 0)
    bake(matmul_model(weight, *ROUTES[route]), mask_set(mask), tmp_path)
    product_differs_as_masked(tmp_path, values(3, 8, seed=1), weight, mask.keep)
    assert lint(tmp_path / "out" / "sparse.onnx").ok


@pytest.mark.parametrize("zero_point", [0, 3])
def test_a_quantized_weight_needs_zero_points_of_zero(tmp_path: Path, zero_point: int) -> None:
    stored = np.random.default_rng(0).integers(-100, 100, (8, 12)).astype(np.int8)
    dequantize = helper.make_node("DequantizeLinear", ["fc.weight", "scale", "zero"], ["w"], name="dequantize")
    model = matmul_model(stored, dequantize, scale=np.float32(0.5), zero=np.int8(zero_point))
    mask = mask_of("fc.weight", stored, 0)
    if zero_point:
        with pytest.raises(ArtifactError, match=r"dequantize \(DequantizeLinear\) has a zero point other than 0; quantize"):
            bake(model, mask_set(mask), tmp_path)
        return
    bake(model, mask_set(mask), tmp_path)
    # Products are multiples of 0.5 times a normal value: at most 8 terms of size 50, so 8 * 50 * 2^-24, about 2.4e-5
    found = run(tmp_path / "out" / "sparse.onnx", values(3, 8, seed=1))
    np.testing.assert_allclose(found, values(3, 8, seed=1) @ (np.where(mask.keep, stored, 0) * 0.5), atol=2.5e-4)


def test_a_reshape_that_splits_the_input_channels_is_refused(tmp_path: Path) -> None:
    weight = values(96)
    shape = constant_node("shape", np.array([8, 12], dtype=np.int64))
    model = matmul_model(weight, shape, helper.make_node("Reshape", ["fc.weight", "shape"], ["w"], name="split"))
    with pytest.raises(ArtifactError, match=r"a Reshape before node fc \(MatMul\) takes the axis of the input channels apart"):
        bake(model, mask_set(mask_of("fc.weight", weight.reshape(8, 12), 0)), tmp_path)


# Operators ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "shape", "group_axis", "attributes", "channels"),
    [
        ("Conv", (6, 8, 3, 3), 1, {}, 8),
        ("Conv", (6, 4, 3, 3), 1, {"group": 2}, 8),
        ("Conv", (6, 8, 3), 1, {}, 8),
        ("ConvTranspose", (8, 6, 3, 3), 0, {}, 8),
        ("ConvTranspose", (8, 3, 3, 3), 0, {"group": 2}, 8),
    ],
)
def test_convolutions(
    tmp_path: Path, op: str, shape: tuple[int, ...], group_axis: int, attributes: dict[str, int], channels: int
) -> None:
    weight = values(*shape)
    spatial = len(shape) - 2
    node = helper.make_node(op, ["x", "conv.weight"], ["y"], name="conv", **attributes)
    free = ["h", "w"][:spatial]
    model = model_of([node], {"conv.weight": weight}, x=["batch", channels, *free], y=["batch", "out", *free])
    mask = mask_of("conv.weight", weight, group_axis)
    report = bake(model, mask_set(mask), tmp_path)
    assert [(layer.group_axis, layer.violation_count, layer.density) for layer in report.layers] == [(group_axis, 0, 0.5)]
    sparse = numpy_helper.to_array(onnx.load(tmp_path / "out" / "sparse.onnx").graph.initializer[0])
    np.testing.assert_array_equal(sparse, np.where(mask.keep, weight, 0))


def two_products(second: onnx.NodeProto) -> onnx.ModelProto:
    first = helper.make_node("MatMul", ["x", "fc.weight"], ["a"], name="first")
    return model_of([first, second], {"fc.weight": values(8, 8)}, x=["batch", 8], y=["batch", 8])


def test_a_shared_weight_is_masked_once_and_annotated_twice(tmp_path: Path) -> None:
    model = two_products(helper.make_node("Gemm", ["a", "fc.weight"], ["y"], name="second"))
    report = bake(model, mask_set(mask_of("fc.weight", values(8, 8), 0)), tmp_path)
    assert [layer.node for layer in report.layers] == ["first", "second"]


def test_a_shared_weight_with_two_group_axes_is_refused(tmp_path: Path) -> None:
    model = two_products(helper.make_node("Gemm", ["a", "fc.weight"], ["y"], name="second", transB=1))
    with pytest.raises(
        ArtifactError, match=r"different axes of it \(axis 0 for first \(MatMul\), axis 1 for second \(Gemm\)\)"
    ):
        bake(model, mask_set(mask_of("fc.weight", values(8, 8), 0)), tmp_path)


def test_a_weight_that_is_an_output_too_is_refused(tmp_path: Path) -> None:
    model = matmul_model(values(8, 12))
    model.graph.output.append(helper.make_tensor_value_info("fc.weight", TensorProto.FLOAT, [8, 12]))
    with pytest.raises(ArtifactError, match=r"output fc\.weight of a graph"):
        bake(model, mask_set(mask_of("fc.weight", values(8, 12), 0)), tmp_path)


# Constants, bodies and functions ----------------------------------------------------------------------------------------------


def test_a_constant_node(tmp_path: Path) -> None:
    weight = values(8, 12)
    nodes = [constant_node("fc.weight", weight), helper.make_node("MatMul", ["x", "fc.weight"], ["y"], name="fc")]
    mask = mask_of("fc.weight", weight, 0)
    bake(model_of(nodes, {}, x=["batch", 8], y=["batch", 12]), mask_set(mask), tmp_path)
    product_differs_as_masked(tmp_path, values(3, 8, seed=1), weight, mask.keep)


@pytest.mark.parametrize("captured", [True, False], ids=["captured", "own"])
def test_weights_in_bodies(tmp_path: Path, captured: bool) -> None:
    names = ["fc.weight"] if captured else ["then.weight", "else.weight"]
    masks = [mask_of(name, values(8, 12), 0) for name in names]
    report = bake(branching_model(captured=captured), mask_set(*masks), tmp_path)
    assert sorted({layer.weight_name for layer in report.layers}) == sorted(names)
    product_differs_as_masked(tmp_path, values(3, 8, seed=1), values(8, 12), masks[0].keep)
    bodies = onnx.load(tmp_path / "out" / "sparse.onnx").graph.node[-1].attribute
    for body in bodies:
        assert keys.PATTERN in {entry.key for entry in body.g.node[0].metadata_props}


def test_a_weight_that_a_function_multiplies_by(tmp_path: Path) -> None:
    mask = mask_of("a.weight", values(8, 8), 0)
    report = bake(function_model("a.weight"), mask_set(mask), tmp_path)
    assert [layer.weight_name for layer in report.layers] == ["a.weight"]
    product_differs_as_masked(tmp_path, values(3, 8, seed=1), values(8, 8), mask.keep)


def test_a_function_with_two_weights_cannot_be_annotated(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"the function around node inner \(MatMul\) is also called with b\.weight"):
        bake(function_model("a.weight", "b.weight"), mask_set(mask_of("a.weight", values(8, 8), 0)), tmp_path)

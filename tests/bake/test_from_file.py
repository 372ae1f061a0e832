"""Baking ONNX files of any origin: the right weights, nothing lost, and what is refused."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from masksparse_deploy.bake import from_file
from masksparse_deploy.bake.from_file import bake_file
from masksparse_deploy.bake.lint import lint
from masksparse_deploy.bake.proto_twins import any_content, proto_differences
from masksparse_deploy.core.artifacts.baking import BakeReport
from masksparse_deploy.core.config import BakeOptions
from masksparse_deploy.core.errors import ArtifactError, MasksparseError, OutputError, UsageError
from masksparse_deploy.core.files import sha256_file
from masksparse_deploy.core.masks import AxisPermutation, MaskSet
from masksparse_deploy.graph import annotations as keys
from tests.bake.file_models import (
    branching_model,
    constant_node,
    mask_of,
    mask_set,
    matmul_model,
    model_of,
    rich_masks,
    rich_model,
    save_external,
    values,
)
from tests.models.positions import random_positions


def bake(model: onnx.ModelProto, masks: MaskSet, folder: Path) -> BakeReport:
    """Write a model to a file, and bake that into folder/out."""
    onnx.save(model, folder / "in.onnx")
    return bake_file(folder / "in.onnx", masks, BakeOptions(), out=folder / "out")


def run(path: Path, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    # the operators as they are in the file: fused, a dequantized weight would be multiplied in another precision
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    (found,) = onnxruntime.InferenceSession(path, options).run(None, {"x": x})
    return np.asarray(found)


def product_differs_as_masked(folder: Path, x: np.ndarray, dense_weight: np.ndarray, keep: np.ndarray) -> None:
    """x @ (in, out) in both files, the sparse one with the zeros of the mask."""
    # Sums of at most 8 terms of size one in FP32: 8 * 2^-24, about 5e-7
    np.testing.assert_allclose(run(folder / "out" / "dense.onnx", x), x @ dense_weight, atol=5e-6)
    np.testing.assert_allclose(run(folder / "out" / "sparse.onnx", x), x @ np.where(keep, dense_weight, 0), atol=5e-6)


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


def function_model(*calls: str) -> onnx.ModelProto:
    """Products in a function that gets its weight from outside: one call for each weight."""
    inside = [helper.make_node("MatMul", ["left", "right"], ["product"], name="inner")]
    function = helper.make_function(
        "com.example", "Product", ["left", "right"], ["product"], inside, [helper.make_opsetid("", 20)]
    )
    names = ["x", *(f"y{index}" for index in range(len(calls) - 1)), "y"]
    nodes = [
        helper.make_node("Product", [names[index], weight], [names[index + 1]], name=f"call{index}", domain="com.example")
        for index, weight in enumerate(calls)
    ]
    return model_of(nodes, {weight: values(8, 8) for weight in calls}, x=["batch", 8], y=["batch", 8], functions=[function])


def test_a_weight_that_a_function_multiplies_by(tmp_path: Path) -> None:
    mask = mask_of("a.weight", values(8, 8), 0)
    report = bake(function_model("a.weight"), mask_set(mask), tmp_path)
    assert [layer.weight_name for layer in report.layers] == ["a.weight"]
    product_differs_as_masked(tmp_path, values(3, 8, seed=1), values(8, 8), mask.keep)


def test_a_function_with_two_weights_cannot_be_annotated(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"the function around node inner \(MatMul\) is also called with b\.weight"):
        bake(function_model("a.weight", "b.weight"), mask_set(mask_of("a.weight", values(8, 8), 0)), tmp_path)


# Nothing lost -----------------------------------------------------------------------------------------------------------------


def test_everything_that_is_the_users_survives(tmp_path: Path) -> None:
    source = rich_model()
    bake(source, rich_masks(), tmp_path)
    dense, sparse = (onnx.load(tmp_path / "out" / name) for name in ("dense.onnx", "sparse.onnx"))
    assert list(proto_differences(source, dense, lambda name, one, other: one.raw_data == other.raw_data)) == []
    assert list(proto_differences(source, sparse, any_content)) == []
    assert [(entry.domain, entry.version) for entry in sparse.opset_import] == [("com.example", 7), ("", 18)]
    assert (sparse.ir_version, sparse.producer_version, sparse.model_version) == (9, "1.2+local", 12)
    assert {entry.key: entry.value for entry in sparse.graph.initializer[0].metadata_props}["author"] == "the user"
    for part in (sparse.graph.initializer[0], sparse.graph.node[0], dense.graph.initializer[0]):
        names = [entry.key for entry in part.metadata_props]
        assert len(names) == len(set(names))


def test_baking_again_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        bake(rich_model(), rich_masks(), tmp_path / name)
    for path in (tmp_path / "one" / "out").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / "out" / path.name).read_bytes(), path.name


def test_what_exporters_note_about_the_machine_goes(tmp_path: Path) -> None:
    model = rich_model()
    node = model.graph.node[0]
    node.metadata_props.add(key="pkg.torch.onnx.stack_trace", value='File "/home/me/net.py", line 3, in forward')
    node.metadata_props.add(key="pkg.onnxscript.name", value="conv")
    node.metadata_props.add(key="where", value="made by /home/me/net.py")
    model.graph.node[2].doc_string = "/usr/lib/python3/torch/nn/functional.py(10): forward"
    model.graph.node[3].doc_string = "see net.py for the head"
    bake(model, rich_masks(), tmp_path)
    sparse = onnx.load(tmp_path / "out" / "sparse.onnx")
    assert not {"pkg.torch.onnx.stack_trace", "pkg.onnxscript.name", "where"} & {
        p.key for p in sparse.graph.node[0].metadata_props
    }
    assert sparse.graph.node[2].doc_string == "" and sparse.graph.node[3].doc_string == "see net.py for the head"
    assert b"/home/me" not in (tmp_path / "out" / "sparse.onnx").read_bytes()


def test_an_earlier_baking_leaves_no_claims(tmp_path: Path) -> None:
    bake(rich_model(), rich_masks(), tmp_path)
    only_conv = mask_set(rich_masks().layers["conv.weight"])
    bake_file(tmp_path / "out" / "sparse.onnx", only_conv, BakeOptions(), out=tmp_path / "again")
    again = onnx.load(tmp_path / "again" / "sparse.onnx")
    assert [p.key for p in again.graph.node[3].metadata_props if p.key.startswith(keys.PREFIX)] == [keys.DENSE_REASON]
    dense = (tmp_path / "again" / "dense.onnx").read_bytes()
    assert keys.PATTERN.encode() not in dense


def with_training(model: onnx.ModelProto) -> None:
    model.training_info.add().algorithm.name = "steps"


def with_sparse_attribute(model: onnx.ModelProto) -> None:
    attribute = model.graph.node[1].attribute.add(name="sparse", type=onnx.AttributeProto.SPARSE_TENSOR)
    attribute.sparse_tensor.values.CopyFrom(numpy_helper.from_array(values(1), "v"))
    attribute.sparse_tensor.indices.CopyFrom(numpy_helper.from_array(np.zeros(1, np.int64), "i"))
    attribute.sparse_tensor.dims.append(4)


@pytest.mark.parametrize(
    ("add", "message"),
    [
        (with_training, r"would be lost by rewriting it \(training_info: 1 and 0\)"),
        (with_sparse_attribute, r"stores .* as a sparse tensor"),
    ],
)
def test_what_cannot_be_carried_is_refused(tmp_path: Path, add: Callable[[onnx.ModelProto], None], message: str) -> None:
    model = rich_model()
    add(model)
    with pytest.raises(UsageError, match=message):
        bake(model, rich_masks(), tmp_path)
    assert not (tmp_path / "out").exists()


def test_fields_that_onnx_does_not_know_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "in.onnx"
    path.write_bytes(rich_model().SerializeToString() + b"\xfa\x3e\x02hi")  # field 1007, a string
    with pytest.raises(UsageError, match=r"in\.onnx holds fields that ONNX .* does not know and that would be lost"):
        bake_file(path, rich_masks(), BakeOptions(), out=tmp_path / "out")


# Data files -------------------------------------------------------------------------------------------------------------------


def test_data_files_stay_data_files(tmp_path: Path) -> None:
    source = tmp_path / "in" / "net.onnx"
    save_external(rich_model(), source, {"conv.weight": "data/conv.bin", "fc.weight": "rest.bin"})
    bake_file(source, rich_masks(), BakeOptions(), out=tmp_path / "out")
    written = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    twins = {
        f"{place}{twin}.{name}" for place, name in (("data/", "conv.bin"), ("", "rest.bin")) for twin in ("dense", "sparse")
    }
    assert written == {"dense.onnx", "sparse.onnx", "bake.json", *twins}
    inside = onnx.load(tmp_path / "out" / "sparse.onnx")
    for name, mask in rich_masks().layers.items():
        (tensor,) = [tensor for tensor in inside.graph.initializer if tensor.name == name]
        found = numpy_helper.to_array(tensor)
        np.testing.assert_array_equal(found, np.where(mask.keep, values(*found.shape), 0))


# Reduced precision ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_reduced_precisions(tmp_path: Path, precision: str) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "conv.weight"], ["a"], name="conv", kernel_shape=[3, 3]),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("Flatten", ["b"], ["c"], name="flatten"),
        helper.make_node("Gemm", ["c", "fc.weight"], ["y"], name="fc", transB=1),
    ]
    weights = {"conv.weight": values(8, 8, 3, 3), "fc.weight": values(4, 8)}
    model = model_of(nodes, weights, x=["batch", 8, 3, 3], y=["batch", 4], opset=22)
    save_external(model, tmp_path / "in" / "net.onnx", {"conv.weight": "net.bin"})
    options = BakeOptions.model_validate({"precision": precision})
    out = tmp_path / "out"
    report = bake_file(tmp_path / "in" / "net.onnx", rich_masks(), options, out=out, calibration=values(16, 8, 3, 3, seed=1))
    assert report.precision == precision and report.ranges
    assert [(layer.layer, layer.violation_count) for layer in report.layers] == [("conv", 0), ("fc", 0)]
    assert (out / "sparse.net.bin").stat().st_size > 0
    assert lint(out / "sparse.onnx").ok


@pytest.mark.parametrize(("dtype", "precision"), [(np.float16, "fp16"), (ml_dtypes.bfloat16, "bf16")])
def test_a_file_in_reduced_precision_keeps_it(tmp_path: Path, dtype: type, precision: str) -> None:
    weight = values(8, 12).astype(dtype)
    model = matmul_model(weight)
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.elem_type = model.graph.initializer[0].data_type
    mask = mask_of("fc.weight", weight, 0)
    assert bake(model, mask_set(mask), tmp_path).precision == precision
    sparse = numpy_helper.to_array(onnx.load(tmp_path / "out" / "sparse.onnx").graph.initializer[0])
    np.testing.assert_array_equal(sparse, np.where(mask.keep, weight, np.zeros((), dtype)))
    options = BakeOptions(precision="int8")
    with pytest.raises(UsageError, match=f"the weights of the ONNX file are {precision} already, and only fp32"):
        bake_file(tmp_path / "in.onnx", mask_set(mask), options, out=tmp_path / "out", calibration=values(2, 8))


def test_channels_that_are_no_multiple_of_four_are_padded(tmp_path: Path) -> None:
    weight = values(5, 6, 3, 3)
    node = helper.make_node("Conv", ["x", "conv.weight"], ["y"], name="conv", kernel_shape=[3, 3])
    model = model_of([node], {"conv.weight": weight}, x=["batch", 6, 4, 4], y=["batch", 5, 2, 2])
    report = bake(model, mask_set(mask_of("conv.weight", weight, 1)), tmp_path)
    assert [(layer.channels, layer.padded_channels) for layer in report.padded] == [(6, 8)]
    x = values(2, 6, 4, 4, seed=1)
    # Sums of 54 terms of size one in FP32: 54 * 2^-24, about 3e-6
    np.testing.assert_allclose(run(tmp_path / "out" / "dense.onnx", x), run(tmp_path / "in.onnx", x), atol=3e-5)
    assert lint(tmp_path / "out" / "sparse.onnx").ok


# Refusals ---------------------------------------------------------------------------------------------------------------------


def test_masks_that_match_nothing_or_half(tmp_path: Path) -> None:
    stray = mask_of("layer9.weight", values(8, 8), 1)
    with pytest.raises(ArtifactError, match=r"1 of 1 masks find no weight of their name in .*in\.onnx \(layer9\.weight\)"):
        bake(rich_model(), mask_set(stray), tmp_path)
    with pytest.raises(ArtifactError, match="1 of 3 masks find no weight"):
        bake(rich_model(), mask_set(*rich_masks().layers.values(), stray), tmp_path)
    assert not (tmp_path / "out").exists()


def test_masks_of_other_shapes(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"has shape \(4, 12\), but the weight in the ONNX graph has \(4, 8\)"):
        bake(rich_model(), mask_set(mask_of("fc.weight", values(4, 12), 1)), tmp_path)


def test_masks_that_need_the_pytorch_model(tmp_path: Path) -> None:
    layers = rich_masks().layers
    order = AxisPermutation(name="conv.weight", axis=1, order=np.arange(8))
    for masks, what in (
        (MaskSet(layers=layers, source_sha256="0" * 64, method="m", permutations=(order,)), "permutations"),
        (MaskSet(layers=layers, source_sha256="0" * 64, method="m", statistics={"a": values(2)}), "batch-norm statistics"),
        (MaskSet(layers=layers, source_sha256="0" * 64, method="m", weights={"a": values(2)}), "new weights"),
        (
            MaskSet(layers=layers, source_sha256="0" * 64, method="m", statistics={"a": values(2)}, weights={"b": values(2)}),
            "batch-norm statistics and new weights",
        ),
        (
            MaskSet(layers=layers, source_sha256="0" * 64, method="m", positions=random_positions({"conv": (4, 4)})),
            "masks of positions",
        ),
    ):
        with pytest.raises(UsageError, match=f"brings {what} of the PyTorch model.*--factory and --weights"):
            bake(rich_model(), masks, tmp_path)


def test_the_input_is_not_overwritten(tmp_path: Path) -> None:
    onnx.save(rich_model(), tmp_path / "dense.onnx")
    before = sha256_file(tmp_path / "dense.onnx")
    with pytest.raises(UsageError, match=r"dense\.onnx would be overwritten by what is made from it; choose another"):
        bake_file(tmp_path / "dense.onnx", rich_masks(), BakeOptions(), out=tmp_path)
    assert sha256_file(tmp_path / "dense.onnx") == before
    onnx.save(rich_model(), tmp_path / "net.onnx")
    bake_file(tmp_path / "net.onnx", rich_masks(), BakeOptions(), out=tmp_path)  # beside the input is fine


def test_an_output_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("not a folder")
    with pytest.raises(OutputError, match="out cannot be written"):
        bake(rich_model(), rich_masks(), tmp_path)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir(mode=0o500)
    with pytest.raises(OutputError, match="cannot be written"):
        bake(rich_model(), rich_masks(), tmp_path)


@pytest.mark.parametrize("kept", [0, 10, 500])
def test_damaged_files(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "in.onnx"
    path.write_bytes(rich_model().SerializeToString()[:kept])
    with pytest.raises(MasksparseError, match=r"in\.onnx"):
        bake_file(path, rich_masks(), BakeOptions(), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["missing", "short", "outside"])
def test_damaged_data_files(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "in" / "net.onnx"
    save_external(rich_model(), path, {"conv.weight": "../conv.bin" if damage == "outside" else "conv.bin"})
    if damage == "missing":
        (path.parent / "conv.bin").unlink()
    elif damage == "short":
        os.truncate(path.parent / "conv.bin", 100)
    with pytest.raises(MasksparseError, match=r"conv\.(bin|weight)"):
        bake_file(path, rich_masks(), BakeOptions(), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


# The checker ------------------------------------------------------------------------------------------------------------------


class Faulty:
    """Stands for a pass that does something else than it says."""

    def __init__(self, fault: Callable[[onnx.ModelProto], None]) -> None:
        self._fault = fault

    def __call__(self, *arguments: object, **named: object) -> object:
        written = self._original(*arguments, **named)
        path = arguments[1]
        assert isinstance(path, Path)
        if path.name == "sparse.onnx":
            proto = onnx.load(path)
            self._fault(proto)
            onnx.save(proto, path)
        return written

    _original = staticmethod(from_file.write_model)


def tensor(proto: onnx.ModelProto, index: int) -> np.ndarray:
    return numpy_helper.to_array(proto.graph.initializer[index]).copy()


def put_weight_back(proto: onnx.ModelProto) -> None:
    array = tensor(proto, 0)
    array[~rich_masks().layers["conv.weight"].keep] = 1
    proto.graph.initializer[0].raw_data = array.tobytes()


def change_kept_weight(proto: onnx.ModelProto) -> None:
    array = tensor(proto, 1)
    array[rich_masks().layers["fc.weight"].keep] *= np.float32(1.0000001)
    proto.graph.initializer[1].raw_data = array.tobytes()


def negative_zero(proto: onnx.ModelProto) -> None:
    array = tensor(proto, 1)
    array[~rich_masks().layers["fc.weight"].keep] = -0.0
    proto.graph.initializer[1].raw_data = array.tobytes()


def change_attribute(proto: onnx.ModelProto) -> None:
    proto.graph.node[1].attribute[0].f = 1.25


def drop_annotation(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].ClearField("metadata_props")


def rename_opset(proto: onnx.ModelProto) -> None:
    proto.opset_import[0].version = 8


@pytest.mark.parametrize(
    ("fault", "finding"),
    [
        (put_weight_back, r"initializer\[conv\.weight\]: other values"),
        (change_kept_weight, r"initializer\[fc\.weight\]: other values"),
        (negative_zero, r"initializer\[fc\.weight\]: other values"),
        (change_attribute, r"graph\.node\[own\]\.attribute\[alpha\]\.f"),
        (drop_annotation, r"graph\.node\[conv\]\.metadata_props\[author\]"),
        (rename_opset, r"opset_import\[com\.example\]\.version"),
    ],
)
def test_faults_are_found_before_anything_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable[[onnx.ModelProto], None], finding: str
) -> None:
    monkeypatch.setattr(from_file, "write_model", Faulty(fault))
    with pytest.raises(ArtifactError, match=f"does not conform to its masks .*{finding}"):
        bake(rich_model(), rich_masks(), tmp_path)
    assert list((tmp_path / "out").iterdir()) == []


def test_the_report_tells_what_was_written(tmp_path: Path) -> None:
    report = bake(rich_model(), rich_masks(), tmp_path)
    out = tmp_path / "out"
    assert BakeReport.read(out / "bake.json") == report
    assert (report.origin, report.probe_sha256, report.opset) == ("onnx", None, 18)
    assert report.dense_sha256 == sha256_file(out / "dense.onnx")
    assert report.sparse_sha256 == sha256_file(out / "sparse.onnx")
    assert str(tmp_path) not in json.dumps(report.model_dump(mode="json"))
    assert [layer.layer for layer in report.layers] == ["conv", "fc"]
    assert lint(out / "sparse.onnx").ok and lint(out / "dense.onnx").ok


def test_progress_is_told(tmp_path: Path) -> None:
    onnx.save(rich_model(), tmp_path / "in.onnx")
    told: list[str] = []
    bake_file(
        tmp_path / "in.onnx",
        rich_masks(),
        BakeOptions(),
        out=tmp_path / "out",
        progress=lambda description, done, total: told.append(description),
    )
    assert told == ["reading", "masking", "converting", "writing", "checking", "baked"]

"""The linter on files of ours and of others, with every state and every reason."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from masksparse_deploy.bake.lint import lint
from masksparse_deploy.core.errors import ArtifactError, UsageError
from masksparse_deploy.core.files import sha256_file
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.graph import annotations as keys
from tests.bake.lint_models import layer_of, model_of, one_layer, pruned, pruned_along_taps, report_of, weights
from tests.models.make_onnx import MASKED_LAYERS, residual_pair


def test_a_baked_pair(tmp_path: Path) -> None:
    for name, model in zip(("dense", "sparse"), residual_pair(), strict=True):
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(model.SerializeToString())
        report = lint(path)
        assert report.ok
        assert report.file_sha256 == sha256_file(path)
        assert len(report.layers) == 7
        assert layer_of(report, "stem").state == "not eligible"
        assert layer_of(report, "stem").why == "3 input channels: not a multiple of 4"
        states = {layer_of(report, layer).state for layer in MASKED_LAYERS}
        assert states == ({"eligible"} if name == "dense" else {"conforming"})
    assert layer_of(report, "fc").why.startswith("left dense when baked: excluded by the configuration")
    assert layer_of(report, "layer1.conv1").violation_count == 0
    assert layer_of(report, "layer1.conv1").density == 0.5


def test_macs_and_the_amdahl_limit() -> None:
    report = report_of(residual_pair()[1])
    # Weights times output positions, for 8 x 8 images: the stem at 8 x 8, layer1 at 4 x 4, layer2 at 2 x 2
    expected = {
        "stem": 16 * 3 * 9 * 64,
        "layer1.conv1": 16 * 16 * 9 * 16,
        "layer1.conv2": 16 * 16 * 9 * 16,
        "layer2.conv1": 32 * 16 * 9 * 4,
        "layer2.conv2": 32 * 32 * 9 * 4,
        "layer2.shortcut": 32 * 16 * 4,
        "fc": 10 * 32,
    }
    assert {layer.node: layer.mac_count for layer in report.layers} == expected
    total, masked = sum(expected.values()), sum(expected[layer] for layer in MASKED_LAYERS)
    assert report.amdahl_limit == pytest.approx(total / (total - masked / 2), rel=1e-12)
    assert report_of(residual_pair()[0]).amdahl_limit == 1.0


def test_the_limit_follows_the_pattern_and_needs_every_layer() -> None:
    keep = NMPattern(n=1, m=4).keep_largest(weights(8, 8), group_axis=1)
    model = one_layer("Gemm", np.where(keep, weights(8, 8), np.float32(0)), x=["n", 8], transB=1)
    claim = {keys.PATTERN: "1:4", keys.GROUP_AXIS: "1"}
    helper.set_model_props(model, {keys.SCHEMA_VERSION: keys.SCHEMA})
    for key, value in claim.items():
        model.graph.node[0].metadata_props.add(key=key, value=value)
    assert report_of(model).amdahl_limit == pytest.approx(4)
    # a layer whose work is unknown
    model.graph.node.append(helper.make_node("Einsum", ["y", "w"], ["z"], name="other", equation="ij,jk->ik"))
    assert report_of(model).amdahl_limit is None


def test_unknown_shapes_leave_macs_and_limit_unknown() -> None:
    report = report_of(one_layer("Conv", pruned(weights(8, 8, 3, 3)), x=["n", 8, "height", "width"]))
    assert layer_of(report, "layer").mac_count is None
    assert report.amdahl_limit is None


@pytest.mark.parametrize(
    ("op", "weight", "x", "attributes", "mac_count"),
    [
        ("Conv", weights(8, 4, 3), ["n", 4, 10], {}, 8 * 4 * 3 * 8),
        ("Conv", weights(8, 2, 3, 3), ["n", 4, 10, 10], {"group": 2}, 8 * 2 * 9 * 64),
        ("ConvTranspose", weights(4, 8, 2, 2), ["n", 4, 10, 10], {}, 4 * 8 * 4 * 100),
        ("Gemm", weights(4, 8), ["n", 4], {}, 32),
        ("MatMul", weights(4, 8), ["n", 5, 4], {}, 5 * 32),
        ("MatMul", weights(2, 4, 8), [2, 5, 4], {}, None),
    ],
)
def test_macs_of_other_operators(
    op: str, weight: np.ndarray, x: list[Any], attributes: dict[str, Any], mac_count: int | None
) -> None:
    report = report_of(one_layer(op, weight, x=x, **attributes))
    assert layer_of(report, "layer").mac_count == mac_count


@pytest.mark.parametrize(
    ("op", "weight", "x", "attributes", "state", "why"),
    [
        ("Conv", weights(512, 256, 1, 1), ["n", 256, 1, 1], {}, "eligible", "dense"),
        ("Conv", weights(8, 8, 3, 3), ["n", 8, 4, 4], {}, "eligible", "dense; small (fewer than 256 channels)"),
        ("Conv", pruned(weights(8, 8, 3, 3)), ["n", 8, 4, 4], {}, "conforming", "2:4, not annotated; small"),
        ("Conv", weights(8, 1, 3, 3), ["n", 1, 4, 4], {}, "not eligible", "1 input channel: not a multiple of 4"),
        ("Conv", weights(8, 6, 3, 3), ["n", 6, 4, 4], {}, "not eligible", "6 input channels: not a multiple of 4"),
        ("Conv", weights(8, 4, 3, 3), ["n", 8, 4, 4], {"group": 2}, "not eligible", "group convolution (2 groups)"),
        (
            "Conv",
            pruned_along_taps(weights(16, 16, 3, 3)),
            ["n", 16, 4, 4],
            {},
            "wrong axis",
            "groups of 4 run over kernel taps, not input channels: ",
        ),
        (
            "Conv",
            pruned(weights(16, 16, 1, 1), axis=0),
            ["n", 16, 4, 4],
            {},
            "wrong axis",
            "groups of 4 run over output channels, not input channels: ",
        ),
        ("Gemm", pruned(weights(8, 8)), ["n", 8], {"transB": 1}, "conforming", "2:4"),
        ("Gemm", pruned(weights(8, 8)), ["n", 8], {}, "wrong axis", "output channels"),
        ("MatMul", pruned(weights(8, 8), axis=0), ["n", 8], {}, "conforming", "2:4"),
        ("MatMul", pruned(weights(3, 8, 4), axis=1), [3, 5, 8], {}, "conforming", "2:4"),
        ("MatMul", weights(8), [3, 8], {}, "not eligible", "a product with a vector"),
        ("Conv", pruned(weights(8, 8, 3)), ["n", 8, 4], {}, "not eligible", "a 1-d convolution"),
        ("Conv", weights(8, 8, 1, 1, 1), ["n", 8, 4, 4, 4], {}, "not eligible", "a 3-d convolution"),
        ("ConvTranspose", weights(8, 8, 2, 2), ["n", 8, 4, 4], {}, "not eligible", "transposed convolution"),
    ],
)
def test_states_of_files_without_annotations(
    op: str, weight: np.ndarray, x: list[Any], attributes: dict[str, Any], state: str, why: str
) -> None:
    report = report_of(one_layer(op, weight, x=x, **attributes))
    layer = layer_of(report, "layer")
    assert layer.state == state
    assert why in layer.why
    assert report.ok


def first_factor() -> onnx.ModelProto:
    return model_of([helper.make_node("MatMul", ["w", "x"], ["y"], name="layer")], {"w": weights(8, 16)}, x=[16, 4])


def computed_factor() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Mul", ["w", "factor"], ["b"], name="multiply"),
        helper.make_node("MatMul", ["x", "b"], ["y"], name="layer"),
    ]
    return model_of(nodes, {"w": weights(16, 8), "factor": weights(1)}, x=["n", 16])


def einsum() -> onnx.ModelProto:
    node = helper.make_node("Einsum", ["x", "w"], ["y"], name="layer", equation="ij,jk->ik")
    return model_of([node], {"w": weights(16, 8)}, x=["n", 16])


def recurrent() -> onnx.ModelProto:
    node = helper.make_node("LSTM", ["x", "w", "r"], ["", "y"], name="layer", hidden_size=4)
    return model_of([node], {"w": weights(1, 16, 8), "r": weights(1, 16, 4)}, x=[2, "n", 8])


def fused() -> onnx.ModelProto:
    node = helper.make_node("FusedConv", ["x", "w"], ["y"], name="layer", domain="com.microsoft", activation="Relu")
    model = model_of([node], {"w": weights(8, 8, 3, 3)}, x=["n", 8, 4, 4])
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


@pytest.mark.parametrize(
    ("make", "why", "mac_count"),
    [
        (first_factor, "the weight is the first factor: only second factors are read", None),
        (computed_factor, "the weight is computed while the network runs: not read", 128),
        (einsum, "Einsum: not read", None),
        (recurrent, "recurrent operator: not read", None),
        (fused, "operator of the domain com.microsoft: not read", None),
    ],
)
def test_weights_beside_the_usual_place_are_listed(
    make: Callable[[], onnx.ModelProto], why: str, mac_count: int | None
) -> None:
    report = report_of(make())
    layer = layer_of(report, "layer")
    assert (layer.state, layer.why, layer.mac_count) == ("not eligible", why, mac_count)
    # Without the work of every layer there is no limit to tell.
    assert report.amdahl_limit == (1 if mac_count else None)


def test_a_product_of_two_activations_is_not_listed() -> None:
    model = model_of([helper.make_node("MatMul", ["x", "x"], ["y"], name="layer")], {}, x=[4, 4])
    assert report_of(model).layers == ()


def test_an_operator_without_outputs() -> None:
    model = one_layer("MatMul", weights(8, 8), x=["n", 8])
    model.graph.node.append(helper.make_node("Log", ["y"], [], name="log", domain="mine"))
    model.opset_import.append(helper.make_opsetid("mine", 1))
    assert layer_of(report_of(model), "layer").state == "eligible"


def test_the_share_of_groups_that_break_over_taps() -> None:
    layer = layer_of(report_of(one_layer("Conv", pruned_along_taps(weights(64, 64, 3, 3)), x=["n", 64, 4, 4])), "layer")
    # Four weights from four different tap groups are independent halves: more than two survive with probability 5/16.
    # 9,216 groups give a standard deviation of 0.005.
    assert layer.violation_count / layer.group_count == pytest.approx(5 / 16, abs=0.03)
    assert f"{100 * layer.violation_count / layer.group_count:.3g} % of the groups there break" in layer.why


@pytest.mark.parametrize(
    ("dtype", "state", "remark"),
    [
        (np.float16, "conforming", None),
        (ml_dtypes.bfloat16, "conforming", "1 layer in BF16: no sparse convolution kernels were seen for it"),
        (np.float64, "not eligible", None),
    ],
)
def test_other_precisions(dtype: Any, state: str, remark: str | None) -> None:
    weight = pruned(weights(8, 8, 3, 3)).astype(dtype)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [
        helper.make_node("Cast", ["x"], ["z"], to=kind),
        helper.make_node("Conv", ["z", "w"], ["u"], name="layer"),
        helper.make_node("Cast", ["u"], ["y"], to=TensorProto.FLOAT),
    ]
    report = report_of(model_of(nodes, {"w": weight}, x=["n", 8, 4, 4]))
    layer = layer_of(report, "layer")
    assert (layer.state, layer.density, layer.dtype) == (state, 0.5, np.dtype(dtype).name)
    assert [text.startswith(remark or "-") for text in report.remarks] == [True] * (remark is not None)
    if state == "not eligible":
        assert layer.why == "float64: no sparse kernels of this type, which are for FP16 and INT8"


@pytest.mark.parametrize(
    ("dtype", "state"),
    [
        (np.int8, "conforming"),
        (np.uint8, "conforming"),
        (ml_dtypes.float8_e4m3fn, "not eligible"),
        (ml_dtypes.int4, "not eligible"),
    ],
)
def test_what_is_dequantized_is_multiplied_in_the_stored_type(dtype: Any, state: str) -> None:
    levels = np.where(pruned(weights(8, 8, 1, 1)) != 0, 3, 0).astype(dtype)
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "scale"], ["real"]),
        helper.make_node("Conv", ["x", "real"], ["y"], name="layer"),
    ]
    layer = layer_of(report_of(model_of(nodes, {"q": levels, "scale": np.float32(0.1)}, x=["n", 8, 4, 4])), "layer")
    assert (layer.state, layer.dtype, layer.route) == (state, np.dtype(dtype).name, ("DequantizeLinear",))
    assert layer.violation_count == 0


def quantized(zero_points: list[int], *, from_float: bool) -> onnx.ModelProto:
    weight = pruned(weights(8, 8, 1, 1))
    scale = np.full(len(zero_points), 0.05, np.float32)
    points = np.array(zero_points, np.int8)
    stored = weight if from_float else (np.rint(weight / 0.05) + points.reshape(-1, 1, 1, 1)).clip(-128, 127).astype(np.int8)
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "scale", "points"], ["real"], axis=0),
        helper.make_node("Conv", ["x", "real"], ["y"], name="layer"),
    ]
    if from_float:
        nodes.insert(0, helper.make_node("QuantizeLinear", ["w", "scale", "points"], ["q"], axis=0))
    constants = {"w" if from_float else "q": stored, "scale": scale, "points": points}
    return model_of(nodes, constants, x=["n", 8, 4, 4])


@pytest.mark.parametrize("from_float", [False, True])
@pytest.mark.parametrize("zero_points", [[0] * 8, list(range(-4, 4))])
def test_weights_behind_a_dequantizer(zero_points: list[int], from_float: bool) -> None:
    layer = layer_of(report_of(quantized(zero_points, from_float=from_float)), "layer")
    assert layer.state == "conforming"
    assert layer.weight == ("w" if from_float else "q")


def test_a_weight_behind_a_transposition() -> None:
    nodes = [
        helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "t"], ["y"], name="layer"),
    ]
    layer = layer_of(report_of(model_of(nodes, {"w": pruned(weights(12, 8))}, x=["n", 8])), "layer")
    assert (layer.state, layer.weight, layer.shape) == ("conforming", "w", (8, 12))


def test_weights_that_are_not_read_are_listed() -> None:
    nodes = [
        helper.make_node("Mul", ["w", "factor"], ["u"]),
        helper.make_node("Conv", ["x", "u"], ["y"], name="computed"),
    ]
    report = report_of(model_of(nodes, {"w": weights(8, 8, 1, 1), "factor": weights(1)}, x=["n", 8, 4, 4]))
    layer = layer_of(report, "computed")
    assert (layer.state, layer.shape) == ("not eligible", (8, 8, 1, 1))
    assert layer.why == "the weight is computed while the network runs: not read"


def test_layers_in_bodies_are_judged_by_weights_inside_and_outside() -> None:
    value = helper.make_tensor_value_info("t", TensorProto.FLOAT, None)
    inner = helper.make_node("MatMul", ["x", "w"], ["t"], name="inner")
    then = helper.make_graph([inner], "body", [], [value], [numpy_helper.from_array(weights(8, 8), "w")])
    other = helper.make_graph([inner], "body", [], [value])
    for outer in ("w", "v"):  # a body's own weight may have the name of another one outside
        other.node[0].input[1] = outer
        branch = helper.make_node("If", ["flag"], ["y"], name="branch", then_branch=then, else_branch=other)
        constants = {outer: pruned(weights(8, 8), axis=0), "flag": np.array(True)}
        report = report_of(model_of([branch], constants, x=["n", 8]))
        found = {layer.where: (layer.node, layer.weight, layer.state, layer.mac_count) for layer in report.layers}
        assert found == {
            "then_branch of If branch": ("inner", "w", "eligible", None),
            "else_branch of If branch": ("inner", outer, "conforming", None),
        }
        assert report.amdahl_limit is None


def test_shared_weights() -> None:
    twice = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="first"),
        helper.make_node("Conv", ["a", "w"], ["y"], name="second"),
    ]
    report = report_of(model_of(twice, {"w": weights(8, 8, 1, 1)}, x=["n", 8, 4, 4]))
    assert [layer.state for layer in report.layers] == ["eligible", "eligible"]
    assert "2 operators share the weight and would share its mask" in report.layers[0].why

    tied = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="layer"),
        helper.make_node("Gemm", ["a", "v", "w"], ["y"], name="other"),
    ]
    report = report_of(model_of(tied, {"w": weights(8, 8), "v": weights(8, 8)}, x=[8, 8]))
    assert layer_of(report, "layer").state == "not eligible"
    assert layer_of(report, "layer").why == "the weight is also read by Gemm other, which zeros would change too"


def test_a_file_without_layers() -> None:
    report = report_of(model_of([helper.make_node("Relu", ["x"], ["y"])], {}, x=["n", 8]))
    assert (report.layers, report.ok, report.amdahl_limit) == ((), True, None)


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        lint(tmp_path / "none.onnx")
    model = residual_pair()[1]
    next(entry for entry in model.metadata_props if entry.key == keys.SCHEMA_VERSION).value = "9"
    with pytest.raises(ArtifactError, match=r"test\.onnx is annotated under schema version 9; this version reads 1"):
        report_of(model)


def test_the_linter_needs_neither_torch_nor_onnx_ir() -> None:
    code = "import sys; sys.modules.update(torch=None, onnx_ir=None, onnxscript=None); import masksparse_deploy.bake.lint"
    subprocess.run([sys.executable, "-c", code], check=True)

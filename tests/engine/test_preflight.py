"""NVIDIA's parser without a GPU. What the parser itself says is tested where the package is there, the rest everywhere."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from masksparse_deploy.core.artifacts.preflight import PreflightLayer, PreflightReport
from masksparse_deploy.core.errors import ArtifactError, MachineError, UsageError
from masksparse_deploy.engine import preflight as module
from masksparse_deploy.engine.preflight import preflight
from masksparse_deploy.engine.preflight_layers import judge_layers
from masksparse_deploy.engine.preflight_parser import ParsedLayer, ParsedNetwork
from masksparse_deploy.graph.annotations import PATTERN
from masksparse_deploy.graph.reader import parse_graph
from tests.bake.lint_models import model_of, one_layer, pruned_along_taps, weights
from tests.engine.preflight_models import kinds_model, sparse_model, with_changed_weight, with_custom_operators
from tests.models.make_onnx import MASKED_LAYERS, residual_pair, set_properties
from tests.requirements import requires

needs_parser = requires(tensorrt_rtx=True)
WEIGHT = "layer1.conv2.weight"


def report_of(folder: Path, model: onnx.ModelProto, **options: Any) -> PreflightReport:
    path = folder / "model.onnx"
    onnx.save(model, path)
    return preflight(path, **options)


def layer_of(report: PreflightReport, node: str) -> PreflightLayer:
    (layer,) = [layer for layer in report.layers if layer.node == node]
    return layer


def fill_group(array: np.ndarray) -> np.ndarray:
    """One group of four input channels with no zero in it."""
    array[0, :4, 1, 1] = 1.0
    return array


@needs_parser
def test_a_sparse_file_conforms_as_parsed_and_its_dense_twin_does_not(tmp_path: Path) -> None:
    dense, sparse = residual_pair()
    report = report_of(tmp_path, sparse, build=True)
    assert report.ok and report.parsed and report.built
    assert report.versions.keys() == {"tensorrt-rtx"}
    assert [layer.node for layer in report.layers if layer.claimed] == list(MASKED_LAYERS)
    assert all(layer.conforming and layer.violation_count == 0 for layer in report.layers if layer.claimed)
    assert all(layer.agrees for layer in report.layers)
    assert "3 input channels" in layer_of(report, "stem").detail
    report = report_of(tmp_path, dense)
    assert report.ok and report.built is None  # it claims nothing
    assert not any(layer.conforming or layer.claimed for layer in report.layers)


@needs_parser
def test_every_kind_of_layer_and_every_route_of_its_weight(tmp_path: Path) -> None:
    report = report_of(tmp_path, kinds_model(), build=True)
    assert report.ok, [layer for layer in report.layers if not (layer.conforming and layer.agrees)]
    assert report.built
    assert {layer.node: (layer.kind, layer.dtype) for layer in report.layers} == {
        "direct": ("convolution", "float32"),
        "grouped": ("convolution", "float32"),
        "half": ("convolution", "float16"),
        "int8": ("convolution", "int8"),
        "quantized": ("convolution", "float32"),
        "bfloat16": ("convolution", "bfloat16"),
        "up": ("deconvolution", "float32"),
        "gemm": ("matrix product", "float32"),
        "matmul": ("matrix product", "float32"),
        "turned": ("matrix product", "float32"),
    }


@needs_parser
def test_unknown_operators_are_all_named(tmp_path: Path) -> None:
    report = report_of(tmp_path, with_custom_operators())
    assert not report.ok and not report.parsed
    assert [(error.node, error.op) for error in report.errors] == [("fancy", "Fancy"), ("fancier", "Fancy")]
    assert all("Plugin not found" in error.message for error in report.errors)
    late = layer_of(report, "layer2.conv2")
    assert (late.conforming, late.agrees, late.detail) == (None, None, "the parser stopped before this node")


@needs_parser
def test_a_broken_group_breaks_the_claim(tmp_path: Path) -> None:
    report = report_of(tmp_path, with_changed_weight(WEIGHT, fill_group))
    assert report.parsed and not report.ok
    layer = layer_of(report, "layer1.conv2")
    # 16 output channels, 16 / 4 groups, 9 taps
    assert (layer.conforming, layer.violation_count, layer.group_count, layer.agrees) == (False, 1, 576, True)


@needs_parser
def test_groups_along_taps_are_not_groups_along_channels(tmp_path: Path) -> None:
    model = one_layer("Conv", pruned_along_taps(weights(16, 16, 3, 3)), x=["batch", 16, 6, 6])
    set_properties(model.graph.node[0], {PATTERN: "2:4"})
    (layer,) = report_of(tmp_path, model).layers
    assert layer.conforming is False and layer.agrees is True
    assert layer.violation_count > 0


@needs_parser
def test_nodes_without_names_and_with_the_same_one(tmp_path: Path) -> None:
    nodes = [helper.make_node("Conv", [x, w], [y], name=name) for x, w, y, name in (("x", "u", "a", ""), ("a", "v", "b", "c"))]
    nodes.append(helper.make_node("Conv", ["b", "w"], ["y"], name="c"))
    kernels = {name: weights(8, 8, 1, 1, seed=seed) for seed, name in enumerate("uvw")}
    report = report_of(tmp_path, model_of(nodes, kernels, x=["batch", 8, 4, 4]))
    assert [layer.agrees for layer in report.layers] == [True] * 3
    assert len(report.warnings) == 1 and "A node named c already exists" in report.warnings[0]


@needs_parser
def test_layers_in_functions_and_branches(tmp_path: Path) -> None:
    node = helper.make_node
    kernels = {name: weights(8, 8, 1, 1, seed=seed) for seed, name in enumerate(("first", "second", "inside"))}
    branches = {
        "then_branch": node("Conv", ["b", "inside"], ["t"], name="inside"),
        "else_branch": node("Identity", ["b"], ["e"], name="same"),
    }
    values = {name: helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None] * 4) for name in "te"}
    bodies = {key: helper.make_graph([body], key, [], [values[body.output[0]]]) for key, body in branches.items()}
    nodes = [
        node("Block", ["x", "first"], ["a"], name="block1", domain="local"),
        node("Block", ["a", "second"], ["b"], name="block2", domain="local"),
        node("ReduceMax", ["b"], ["largest"], name="max", keepdims=0),
        node("Cast", ["largest"], ["condition"], name="cast", to=onnx.TensorProto.BOOL),
        node("If", ["condition"], ["y"], name="if", **bodies),
    ]
    model = model_of(nodes, kernels, x=["batch", 8, 4, 4])
    opset = list(model.opset_import)
    model.functions.append(
        helper.make_function("local", "Block", ["i", "k"], ["o"], [node("Conv", ["i", "k"], ["o"], name="conv")], opset)
    )
    model.opset_import.append(helper.make_opsetid("local", 1))
    report = report_of(tmp_path, model)
    assert [(layer.node, layer.agrees) for layer in report.layers[:2]] == [("conv__1", True), ("conv__2", True)]
    (branch,) = report.layers[2:]
    assert branch.node.startswith("inside | ") and (branch.agrees, branch.conforming) == (None, False)


@needs_parser
def test_a_computed_weight_is_no_layer_with_a_weight(tmp_path: Path) -> None:
    nodes = [helper.make_node("Mul", ["w", "k"], ["v"], name="mul"), helper.make_node("Conv", ["x", "v"], ["y"], name="layer")]
    model = model_of(nodes, {"w": weights(8, 8, 1, 1), "k": np.float32(2)}, x=["batch", 8, 4, 4])
    report = report_of(tmp_path, model)
    assert report.ok and report.layers == ()


@needs_parser
def test_weights_in_another_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save_model(sparse_model(), path, save_as_external_data=True, location="model.bin", size_threshold=0)
    report = preflight(path)
    assert report.ok and len(report.layers) == 7


@needs_parser
def test_the_same_file_gives_the_same_report_without_traces_of_the_machine(tmp_path: Path) -> None:
    first, second = (report_of(tmp_path, with_custom_operators()).to_bytes() for _ in range(2))
    assert first == second
    assert str(tmp_path).encode() not in first


def test_a_damaged_or_missing_file_is_refused_before_the_parser_starts(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "is_installed", lambda name: True)
    path = tmp_path / "model.onnx"
    with pytest.raises(UsageError, match="does not exist"):
        preflight(path)
    path.write_bytes(sparse_model().SerializeToString()[:5000])
    with pytest.raises(ArtifactError, match="damaged"):
        preflight(path)


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "is_installed", lambda name: False)
    monkeypatch.setitem(__import__("sys").modules, "tensorrt_rtx", None)  # None makes its import fail
    with pytest.raises(MachineError, match=r"masksparse-deploy\[preflight\]"):
        report_of(tmp_path, sparse_model())


@pytest.mark.parametrize(
    ("death", "message"),
    [
        ("crash", "died from the signal SIGSEGV"),
        ("hang", "had not finished after 1 seconds"),
        ("exception", "exit code 1 (RuntimeError: the bindings lack a name)"),
    ],
)
def test_the_death_of_the_parser_is_told(tmp_path: Path, monkeypatch: Any, death: str, message: str) -> None:
    report = dying(tmp_path, monkeypatch, death)
    assert not report.ok and not report.parsed
    (error,) = report.errors
    assert message in error.message
    assert {layer.agrees for layer in report.layers} == {None}


def test_the_death_of_the_builder_leaves_the_parsers_answer(tmp_path: Path, monkeypatch: Any) -> None:
    report = dying(tmp_path, monkeypatch, "crash of the build", build=True)
    assert report.parsed and report.built is False and not report.ok
    assert "the process that built an engine died from the signal SIGSEGV" in report.errors[0].message


def test_a_package_that_does_not_work_is_the_machines_fault(tmp_path: Path, monkeypatch: Any) -> None:
    with pytest.raises(MachineError, match="tensorrt_rtx is needed"):
        dying(tmp_path, monkeypatch, "missing package")


def dying(folder: Path, monkeypatch: Any, death: str, **options: Any) -> PreflightReport:
    monkeypatch.setattr(module, "is_installed", lambda name: True)
    monkeypatch.setattr(module, "_MODULE", "tests.engine.dying_parser")
    monkeypatch.setenv("DEATH", death)
    return report_of(folder, sparse_model(), timeout_s=1 if death == "hang" else 300, **options)


def judged(folder: Path, model: onnx.ModelProto, *layers: ParsedLayer) -> tuple[PreflightLayer, ...]:
    seen = ParsedNetwork(versions={}, parsed=True, built=None, errors=(), warnings=(), layers=layers)
    return judge_layers(parse_graph(model.SerializeToString(), name="model.onnx"), seen, folder)


def shown(folder: Path, values: np.ndarray, **changes: Any) -> ParsedLayer:
    np.save(folder / "0.npy", values)
    content = {"kind": "convolution", "dtype": values.dtype.name, "group_axis": 1, "route": (), "values": "0.npy", "why": ""}
    return ParsedLayer(**{"node": "layer", **content, **changes})


def test_another_weight_than_the_files_is_found(tmp_path: Path) -> None:
    kernel = weights(8, 8, 3, 3)
    model = one_layer("Conv", kernel, x=["batch", 8, 6, 6])
    other = kernel.copy()
    other[3, 2, 1, 0] = np.nextafter(other[3, 2, 1, 0], np.float32(9))
    (layer,) = judged(tmp_path, model, shown(tmp_path, other))
    assert (layer.agrees, layer.detail) == (False, "1 of 576 weights are not the file's")
    # behind a conversion the last bits may differ, but not which weights are zero
    (layer,) = judged(tmp_path, model, shown(tmp_path, other, route=("dequantize",)))
    assert layer.agrees is True
    other[3, 2, 1, 0] = 0
    (layer,) = judged(tmp_path, model, shown(tmp_path, other, route=("dequantize",)))
    assert layer.agrees is False
    # one rounding to BF16 more or less is within 2^-8, 2 % and NaN are not
    for value, agrees in ((kernel[3, 2, 1, 0] * 1.003, True), (kernel[3, 2, 1, 0] * 1.02, False), (np.nan, False)):
        other[3, 2, 1, 0] = value
        (layer,) = judged(tmp_path, model, shown(tmp_path, other, route=("dequantize",)))
        assert layer.agrees is agrees
    (layer,) = judged(tmp_path, model, shown(tmp_path, kernel[:4]))
    assert layer.detail == "the parser's weight has shape (4, 8, 3, 3), the file's (8, 8, 3, 3)"


def test_a_layer_that_only_one_side_sees(tmp_path: Path) -> None:
    kernel = weights(8, 8, 3, 3)
    model = one_layer("Conv", kernel, x=["batch", 8, 6, 6])
    missing, unread = judged(tmp_path, model, shown(tmp_path, kernel, node="elsewhere"))
    assert (missing.node, missing.agrees, missing.detail) == ("layer", False, "the parser has no layer for this node")
    assert (unread.node, unread.agrees, unread.conforming) == ("elsewhere", None, False)
    (hidden,) = judged(tmp_path, model, shown(tmp_path, kernel).model_copy(update={"values": "", "why": "it is INT4"}))
    assert (hidden.agrees, hidden.conforming) == (False, None)
    assert "INT4" in hidden.detail


def test_a_claim_is_held_against_its_own_pattern_and_must_be_readable(tmp_path: Path) -> None:
    kernel = weights(8, 8, 3, 3)
    kernel[:, 3::4] = 0
    model = one_layer("Conv", kernel, x=["batch", 8, 6, 6])
    for claim, conforming in (("3:4", True), ("2:4", False), ("1:3", False), ("half", None)):
        set_properties(model.graph.node[0], {PATTERN: claim})
        (layer,) = judged(tmp_path, model, shown(tmp_path, kernel))
        assert (layer.claimed, layer.conforming) == (True, conforming), claim
    set_properties(model.graph.node[0], {PATTERN: "T3:4"})
    # The parser is asked what kernels need, which are the groups of input channels.
    (layer,) = judged(tmp_path, model, shown(tmp_path, kernel))
    assert (layer.pattern, layer.conforming, layer.group_count) == ("3:4", True, kernel.size // 4)


def test_blocks_hold_as_parsed_and_are_no_two_of_four(tmp_path: Path) -> None:
    kernel = weights(8, 8, 3, 3)
    kernel[:4, 4:] = kernel[4:, :4] = 0
    model = one_layer("Conv", kernel, x=["batch", 8, 6, 6])
    set_properties(model.graph.node[0], {PATTERN: "1x4@0.5"})
    (layer,) = judged(tmp_path, model, shown(tmp_path, kernel))
    assert (layer.claimed, layer.conforming, layer.group_count) == (True, True, 2)
    assert layer.detail == "1x4@0.5 is no 2:4: no sparse kernel computes it; 'masksparse rewrite' leaves its zeros out"
    # one weight in a pruned block
    kernel[0, 7, 0, 0] = 1
    (layer,) = judged(tmp_path, model, shown(tmp_path, kernel))
    assert (layer.conforming, layer.violation_count, layer.group_count) == (False, 1, 2)
    set_properties(model.graph.node[0], {PATTERN: "1x3@0.5"})
    (layer,) = judged(tmp_path, model, shown(tmp_path, kernel))
    assert (layer.conforming, layer.group_count) == (False, 0)
    assert layer.detail.startswith("8 output channels: not a multiple of 3")

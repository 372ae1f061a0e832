"""Whether the engine has its file's precision: told from recorded inspectors, and planted engines of another precision."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from masksparse_deploy.core.artifacts.engines import EngineLayer
from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.engine.built_precision import check_precision, expected_precisions, ran_precision
from masksparse_deploy.engine.inspector import parse_inspector
from masksparse_deploy.graph.model import Graph
from masksparse_deploy.graph.reader import read_graph

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
NAMES = ("a", "b", "c", "d", "e")


def layer(node: str, **fields: object) -> EngineLayer:
    values = {"name": node, "onnx_nodes": (node,), "tactic": "", "is_sparse": None, "reason": "", **fields}
    return EngineLayer.model_validate(values)


def network(folder: Path, dtype: type[np.generic], *, quantized: tuple[str, ...] = ()) -> Graph:
    """A chain of 1x1 convolutions named by NAMES, of which some are quantized."""
    nodes, constants, tensor = [], [], "images"
    scale, zero = numpy_helper.from_array(np.array(0.1, dtype), "scale"), numpy_helper.from_array(np.array(0, np.int8), "zero")
    for name in NAMES:
        weight = np.ones((4, 4, 1, 1), np.int8 if name in quantized else dtype)
        constants.append(numpy_helper.from_array(weight, f"{name}.weight"))
        inputs = [tensor, f"{name}.weight"]
        if name in quantized:
            nodes.append(helper.make_node("QuantizeLinear", [tensor, "scale", "zero"], [f"{name}.q"], f"{name}.quantize"))
            for index, source in enumerate((f"{name}.q", f"{name}.weight")):
                inputs[index] = f"{name}.dq{index}"
                nodes.append(helper.make_node("DequantizeLinear", [source, "scale", "zero"], [inputs[index]], inputs[index]))
        tensor = f"{name}.out"
        nodes.append(helper.make_node("Conv", inputs, [tensor], name))
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    shape = (1, 4, 8, 8)
    values = [helper.make_tensor_value_info(name, kind, shape) for name in ("images", tensor)]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [*constants, scale, zero])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), folder / "n.onnx")
    assert kind in (TensorProto.FLOAT, TensorProto.FLOAT16)
    return read_graph(folder / "n.onnx")


@pytest.mark.parametrize("version", ["8.6", "10", "11"])
def test_recorded_layers_tell_their_precision(version: str) -> None:
    layers = parse_inspector((GOLDEN / f"inspector-{version}-synthetic.json").read_text(encoding="utf-8"))
    # the last one reformats data for another layer
    assert [ran_precision(entry) for entry in layers][1:] == ["fp16", "fp16", ""]


@pytest.mark.parametrize(
    ("fields", "precision"),
    [
        ({"inputs": ("Row major linear FP32",)}, "fp32"),
        ({"inputs": ("Float",)}, "fp32"),
        ({"inputs": ("Thirty-two wide channel vectorized row major Int8 format.",)}, "int8"),
        ({"inputs": ("Channel major BF16 format where channel % 8 == 0",)}, "bf16"),
        ({"inputs": ("",), "weight_dtype": "Half"}, "fp16"),
        ({"tactic": "sm80_xmma_fprop_implicit_gemm_f32f32_tf32f32_f32_nhwckrsc_nchw_tilesize128x64x32"}, "tf32"),
        ({"inputs": ("Float",), "tactic": "sm80_xmma_fprop_implicit_gemm_f32f32_tf32f32_f32_nhwckrsc_nchw"}, "tf32"),
        ({"tactic": "sm80_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nhwc_tilesize128x64x32"}, "fp16"),
        ({"inputs": ("Row major linear FP32",), "layer_type": "Reformat"}, ""),
        ({"tactic": "somebodys_kernel"}, ""),
    ],
)
def test_where_the_precision_is_read(fields: dict[str, object], precision: str) -> None:
    assert ran_precision(layer("a", **fields)) == precision


def test_what_the_file_asks_for(tmp_path: Path) -> None:
    assert set(expected_precisions(network(tmp_path, np.float16)).values()) == {"fp16"}
    quantized = network(tmp_path, np.float32, quantized=("b", "d"))
    assert expected_precisions(quantized) == {"a": "fp32", "b": "int8", "c": "fp32", "d": "int8", "e": "fp32"}


def test_an_engine_as_its_file_has_no_findings(tmp_path: Path) -> None:
    graph = network(tmp_path, np.float32, quantized=("b",))
    layers = tuple(layer(name, inputs=("Int8" if name == "b" else "Float",)) for name in NAMES)
    assert check_precision(graph, layers, binding=True) == ()


def test_a_half_precision_file_in_single_precision_is_an_error(tmp_path: Path) -> None:
    graph = network(tmp_path, np.float16)
    layers = tuple(layer(name, inputs=("Row major linear FP32",)) for name in NAMES)
    with pytest.raises(ArtifactError, match=r"5 of 5 .*: a in fp32 instead of fp16, .* and 2 more; bake the file again"):
        check_precision(graph, layers, binding=True)
    (finding,) = check_precision(graph, layers, binding=False)
    assert "5 of 5 layers with weights do not run in the file's precision" in finding


def test_single_layers_of_another_precision_are_told(tmp_path: Path) -> None:
    graph = network(tmp_path, np.float32, quantized=NAMES)
    layers = tuple(layer(name, inputs=("Half" if name == "c" else "Int8",)) for name in NAMES)
    (finding,) = check_precision(graph, layers, binding=True)
    assert finding == "1 of 5 layers with weights do not run in the file's precision: c in fp16 instead of int8"


def test_what_is_not_told_is_said(tmp_path: Path) -> None:
    graph = network(tmp_path, np.float32)
    layers = (layer("a", inputs=("Float",)), layer("b"), layer("c", layer_type="NoOp", inputs=("Half",)))
    (finding,) = check_precision(graph, layers, binding=True)
    assert "4 of 5 layers with weights is not told by the engine inspector (b, c, d and 1 more)" in finding

"""Layers that ONNX Runtime made integer operators of are read back as what they multiply by."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from masksparse_deploy.graph.reader import read_graph
from masksparse_deploy.validate.deployed import check_weights
from tests.bake.lint_models import weights
from tests.engine.preflight_models import change_initializer

INPUTS, OUTPUTS = 16, 8


def quantized_product(op: str, *, transposed: bool, per_channel: bool) -> onnx.ModelProto:
    """An INT8 product of 16 with 8 features and Q/DQ around it; Gemm also has an INT32 bias."""
    weight = weights(OUTPUTS, INPUTS) if transposed else weights(INPUTS, OUTPUTS)
    axis = 0 if transposed else 1
    largest = np.abs(weight).max(1 - axis, keepdims=True) if per_channel else np.abs(weight).max(keepdims=True)
    scale = (largest / 127).astype(np.float32)
    step = np.float32(0.05)
    flat = scale.reshape(-1) if per_channel else scale.reshape(())
    constants = {
        "w": np.rint(weight / scale).astype(np.int8),
        "w.scale": flat,
        "w.zero": np.zeros(flat.shape, np.int8),
        "step": step,
        "zero": np.int8(0),
    }
    node = helper.make_node
    nodes = [
        node("QuantizeLinear", ["x", "step", "zero"], ["x8"], name="q"),
        node("DequantizeLinear", ["x8", "step", "zero"], ["xf"], name="dq"),
        node("DequantizeLinear", ["w", "w.scale", "w.zero"], ["wf"], name="w.dq", axis=axis),
    ]
    if op == "Gemm":
        constants.update({"b": np.arange(OUTPUTS, dtype=np.int32), "b.scale": (flat * step).astype(np.float32)})
        nodes.append(node("DequantizeLinear", ["b", "b.scale"], ["bf"], name="b.dq", axis=0))
        nodes.append(node("Gemm", ["xf", "wf", "bf"], ["c"], name="layer", transB=int(transposed)))
    else:
        nodes.append(node(op, ["xf", "wf"], ["c"], name="layer"))
    nodes.append(node("QuantizeLinear", ["c", "step", "zero"], ["c8"], name="out.q"))
    nodes.append(node("DequantizeLinear", ["c8", "step", "zero"], ["y"], name="out.dq"))
    graph = helper.make_graph(
        nodes,
        "quantized",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", INPUTS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", OUTPUTS])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize(
    ("op", "transposed", "per_channel", "integer_op"),
    [
        ("Gemm", True, True, "QGemm"),
        ("Gemm", False, True, "QGemm"),
        ("MatMul", False, True, "QLinearMatMul"),
        ("MatMul", False, False, "QLinearMatMul"),
    ],
)
def test_integer_products(tmp_path: Path, op: str, transposed: bool, per_channel: bool, integer_op: str) -> None:
    source, plan = tmp_path / "model.onnx", tmp_path / "plan.onnx"
    onnx.save(quantized_product(op, transposed=transposed, per_channel=per_channel), source)
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    settings.optimized_model_filepath = str(plan)
    settings.log_severity_level = 4  # it warns that optimised models fit the machine they were made on
    onnxruntime.InferenceSession(source, settings, providers=["CPUExecutionProvider"])
    graph = read_graph(source)
    assert integer_op in [node.op for node in read_graph(plan).nodes]
    assert check_weights("weights", graph, read_graph(plan), "onnxruntime").verdict == "pass"
    for name in ("w", "w.scale"):
        model = onnx.load(plan)
        change_initializer(model, name, lambda array: array + array.dtype.type(1))
        changed = tmp_path / "changed.onnx"
        onnx.save(model, changed)
        check = check_weights("weights", graph, read_graph(changed), "onnxruntime")
        assert check.verdict == "fail" and "values of w differ" in check.detail

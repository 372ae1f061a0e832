"""Small files for the pre-flight: one network of every kind of layer and route, and models with a fault."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from masksparse_deploy.graph.annotations import PATTERN
from tests.bake.lint_models import pruned, weights
from tests.models.make_onnx import residual_pair, set_properties

CHANNELS = 8


def kinds_model() -> onnx.ModelProto:
    """Conv, ConvTranspose, Gemm and MatMul, stored directly, in FP16, BF16 and INT8, behind Cast and Transpose; all 2:4.

    Every layer has 8 input and output channels and claims its pattern; groups of the grouped convolution have 4 channels.
    """
    kernel = pruned(weights(CHANNELS, CHANNELS, 3, 3))
    scale = (np.abs(kernel).max((1, 2, 3)) / 127).astype(np.float32)
    half = helper.make_tensor("bfloat16.weight", TensorProto.BFLOAT16, kernel.shape, kernel.ravel())
    matrix = pruned(weights(CHANNELS, CHANNELS, seed=1))
    constants = {
        "direct.weight": kernel,
        "grouped.weight": pruned(weights(CHANNELS, 4, 3, 3, seed=2)),
        "half.weight": kernel.astype(np.float16),
        "int8.weight": np.rint(kernel / scale[:, None, None, None]).astype(np.int8),
        "int8.scale": scale,
        "int8.zero": np.zeros(CHANNELS, np.int8),
        "quantized.weight": kernel,
        "up.weight": pruned(weights(CHANNELS, CHANNELS, 1, 1, seed=3), axis=0),
        "gemm.weight": matrix,
        "matmul.weight": matrix.T.copy(),
        "turned.weight": matrix,
    }
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "direct.weight"], ["a"], name="direct", pads=[1] * 4),
        node("Conv", ["a", "grouped.weight"], ["b"], name="grouped", pads=[1] * 4, group=2),
        node("Cast", ["half.weight"], ["half.float"], name="half.cast", to=TensorProto.FLOAT),
        node("Conv", ["b", "half.float"], ["c"], name="half", pads=[1] * 4),
        node("DequantizeLinear", ["int8.weight", "int8.scale", "int8.zero"], ["int8.float"], name="int8.dequantize", axis=0),
        node("Conv", ["c", "int8.float"], ["d"], name="int8", pads=[1] * 4),
        node("QuantizeLinear", ["quantized.weight", "int8.scale", "int8.zero"], ["quantized.int8"], name="q", axis=0),
        node("DequantizeLinear", ["quantized.int8", "int8.scale", "int8.zero"], ["quantized.float"], name="dq", axis=0),
        node("Conv", ["d", "quantized.float"], ["e"], name="quantized", pads=[1] * 4),
        node("Cast", ["e"], ["e16"], name="to_bfloat16", to=TensorProto.BFLOAT16),
        node("Conv", ["e16", "bfloat16.weight"], ["f16"], name="bfloat16", pads=[1] * 4),
        node("Cast", ["f16"], ["f"], name="to_float", to=TensorProto.FLOAT),
        node("ConvTranspose", ["f", "up.weight"], ["g"], name="up"),
        node("GlobalAveragePool", ["g"], ["h"], name="average"),
        node("Flatten", ["h"], ["i"], name="flatten"),
        node("Gemm", ["i", "gemm.weight"], ["j"], name="gemm", transB=1),
        node("MatMul", ["j", "matmul.weight"], ["k"], name="matmul"),
        node("Transpose", ["turned.weight"], ["turned.matrix"], name="turn", perm=[1, 0]),
        node("MatMul", ["k", "turned.matrix"], ["y"], name="turned"),
    ]
    for entry in nodes:
        if entry.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            set_properties(entry, {PATTERN: "2:4"})
    graph = helper.make_graph(
        nodes,
        "kinds",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", CHANNELS, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", CHANNELS])],
        [half, *(numpy_helper.from_array(array, name) for name, array in constants.items())],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def sparse_model() -> onnx.ModelProto:
    return residual_pair()[1]


def with_custom_operators() -> onnx.ModelProto:
    """Behind two convolutions an operator that nobody but its author knows."""
    model = sparse_model()
    for layer, name in (("layer1.conv1", "fancy"), ("layer2.conv1", "fancier")):
        place = next(index for index, node in enumerate(model.graph.node) if node.name == layer)
        model.graph.node[place + 1].input[0] = f"{name}.out"
        model.graph.node.insert(
            place + 1, helper.make_node("Fancy", [f"{layer}.out"], [f"{name}.out"], name=name, domain="my.ops")
        )
    model.opset_import.append(helper.make_opsetid("my.ops", 1))
    return model


def with_changed_weight(name: str, change: Callable[[np.ndarray], np.ndarray]) -> onnx.ModelProto:
    model = sparse_model()
    change_initializer(model, name, change)
    return model


def change_initializer(model: onnx.ModelProto, name: str, change: Callable[[Any], Any]) -> None:
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == name]
    notes = {entry.key: entry.value for entry in tensor.metadata_props}
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor).copy()), name))
    set_properties(tensor, notes)

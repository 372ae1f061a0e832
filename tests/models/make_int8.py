"""A small INT8 network written with onnx.helper alone: a dense file and its sparse twin, whose kernels are of every kind.

With `signed` grids Q/DQ stand as the bake stage puts them, for TensorRT; with unsigned ones and zero points as ONNX Runtime's
own quantiser does, so that all convolutions but the one with the residual addition become integer operators there.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.graph.evaluate import evaluate
from masksparse_deploy.graph.reader import parse_graph

INT8_MASKED = ("conv1", "conv2", "conv3")
PATTERN = NMPattern(n=2, m=4)
# Layer: shape of the weight, stride, whether a Relu follows.
_LAYERS: Mapping[str, tuple[tuple[int, ...], int, bool]] = {
    "stem": ((16, 3, 3, 3), 1, True),
    "conv1": ((16, 16, 3, 3), 1, False),
    "conv2": ((16, 16, 3, 3), 1, True),
    "conv3": ((32, 16, 3, 3), 2, False),
    "fc": ((10, 32), 1, False),
}
# What each layer reads, and the tensor that is written behind it.
_INPUTS = {"stem": "images", "conv1": "stem.relu", "conv2": "conv1.out", "conv3": "conv2.relu", "fc": "pooled"}
_ENDS = {"stem": "stem.relu", "conv1": "conv1.out", "conv2": "conv2.relu", "conv3": "conv3.out"}

Array = npt.NDArray[Any]


def int8_images(count: int = 32) -> npt.NDArray[np.float32]:
    """Images (count, 3, 8, 8) like those that the grids are made for."""
    return np.random.default_rng(1).standard_normal((count, 3, 8, 8), dtype=np.float32)


def int8_pair(*, signed: bool = True, reach: float = 1.0) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The dense and the sparse model: input "images" (batch, 3, 8, 8), output "logits" (batch, 10), opset 20.

    Args:
        signed: grids from -128 to 127 with zero points 0; else from 0 to 255 with others.
        reach: how much of the range that calibration saw the grids cover; below 1 values are clamped.
    """
    weights, masked = _weights()
    return _quantized(weights, signed, reach), _quantized(masked, signed, reach)


def int8_networks() -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The same two in FP32, before they were quantized."""
    weights, masked = _weights()
    return _model(weights, {}), _model(masked, {})


def _weights() -> tuple[Mapping[str, Array], Mapping[str, Array]]:
    """Those of the dense network, and those that its masks leave."""
    generator = np.random.default_rng(0)
    weights = {}
    for name, (shape, _, _) in _LAYERS.items():
        spread = np.float32(np.sqrt(2 / np.prod(shape[1:])))
        weights[f"{name}.weight"] = generator.standard_normal(shape, dtype=np.float32) * spread
        weights[f"{name}.bias"] = generator.standard_normal(shape[0], dtype=np.float32) * np.float32(0.1)
    masked = dict(weights)
    for name in INT8_MASKED:
        weight = weights[f"{name}.weight"]
        masked[f"{name}.weight"] = np.where(PATTERN.keep_largest(np.abs(weight), group_axis=1), weight, np.float32(0))
    return weights, masked


def _quantized(weights: Mapping[str, Array], signed: bool, reach: float) -> onnx.ModelProto:
    plain = _model(weights, {})
    tensors = ("images", *_ENDS.values(), "pooled")
    images = int8_images()
    graph = parse_graph(plain.SerializeToString(), name="plain")
    values = {"images": images, **evaluate(graph, images, tensors[1:])}
    return _model(weights, {name: _grid(values[name], signed, reach) for name in tensors})


def _grid(values: Array, signed: bool, reach: float) -> tuple[np.float32, Any]:
    low, high = reach * min(float(values.min()), 0.0), reach * max(float(values.max()), 0.0)
    if signed:
        return np.float32(max(-low, high) / 127), np.int8(0)
    # zero points that the dense and the sparse file share: 0 behind a Relu, else the middle
    if low == 0:
        return np.float32(high / 255), np.uint8(0)
    return np.float32(max(-low, high) / 127), np.uint8(128)


def _model(weights: Mapping[str, Array], grids: Mapping[str, tuple[np.float32, Any]]) -> onnx.ModelProto:
    """With Q/DQ behind every tensor that has a grid."""
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, Array] = {}
    for name, (step, zero_point) in grids.items():
        constants[f"{name}.scale"], constants[f"{name}.zero"] = np.asarray(step), np.asarray(zero_point)

    def through(tensor: str) -> str:
        if tensor not in grids:
            return tensor
        if not any(f"{tensor}.dq" in node.output for node in nodes):
            parameters = [f"{tensor}.scale", f"{tensor}.zero"]
            nodes.append(helper.make_node("QuantizeLinear", [tensor, *parameters], [f"{tensor}.q"], name=f"{tensor}.quantize"))
            nodes.append(
                helper.make_node(
                    "DequantizeLinear", [f"{tensor}.q", *parameters], [f"{tensor}.dq"], name=f"{tensor}.dequantize"
                )
            )
        return f"{tensor}.dq"

    for name, (_, stride, relu) in _LAYERS.items():
        weight = weights[f"{name}.weight"]
        inputs: Sequence[str] = [through(_INPUTS[name]), f"{name}.weight", f"{name}.bias"]
        constants[f"{name}.weight"], constants[f"{name}.bias"] = weight, weights[f"{name}.bias"]
        if grids:
            step = (np.abs(weight).reshape(len(weight), -1).max(1) / 127).astype(np.float32)
            constants[f"{name}.weight"] = np.rint(weight / step.reshape(-1, *(1,) * (weight.ndim - 1))).astype(np.int8)
            constants[f"{name}.step"], constants[f"{name}.point"] = step, np.zeros(len(step), np.int8)
            parameters = [f"{name}.step", f"{name}.point"]
            nodes.append(
                helper.make_node(
                    "DequantizeLinear", [inputs[1], *parameters], [f"{name}.float"], name=f"{name}.weight.dequantize", axis=0
                )
            )
            inputs = [inputs[0], f"{name}.float", inputs[2]]
        if name == "fc":
            nodes.append(helper.make_node("Gemm", inputs, ["logits"], name=name, transB=1))
            continue
        nodes.append(
            helper.make_node(
                "Conv", inputs, [f"{name}.out"], name=name, pads=[1] * 4, strides=[stride] * 2, kernel_shape=[3, 3]
            )
        )
        end = f"{name}.out"
        if name == "conv2":
            nodes.append(helper.make_node("Add", [end, through("stem.relu")], ["conv2.sum"], name="conv2.add"))
            end = "conv2.sum"
        if relu:
            nodes.append(helper.make_node("Relu", [end], [f"{name}.relu"], name=f"{name}.activation"))
        if name == "conv3":
            nodes.append(helper.make_node("GlobalAveragePool", [through("conv3.out")], ["conv3.mean"], name="pool"))
            nodes.append(helper.make_node("Flatten", ["conv3.mean"], ["pooled"], name="flatten"))
    initializers = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    values = [
        helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 8, 8]),
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10]),
    ]
    graph = helper.make_graph(nodes, "int8", values[:1], values[1:], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model

"""A kind of convolution as a small network of its own, with 2:4 weights.

It stands between a cheap convolution and a pooling, so that the builder may choose the layout of what it reads and writes, as
inside a network; alone it would pay for conversions from the plain layout. INT8 needs the values behind it in INT8, too.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from masksparse_deploy.core.artifacts.forecast import ConvolutionKind
from masksparse_deploy.core.patterns import NMPattern

__all__ = ["LAYER", "layer_model"]

# Name of the layer's node.
LAYER = "layer"
PATTERN = NMPattern(n=2, m=4)
_INPUT_CHANNELS = 4
# The newest that TensorRT 8.6 reads; in it the weights of INT8 files are FP32, with Q/DQ behind.
_OPSET = 17
_IR_VERSION = 8
_SEED = 0
_LARGEST_LEVEL = 127
# Inputs are standard normal, and weights keep their variance: what lies beyond four deviations is clamped.
_RANGE = np.float32(4)

Array = npt.NDArray[Any]


def layer_model(kind: ConvolutionKind, batch: int | str = "batch") -> onnx.ModelProto:
    """A 1x1 convolution to the layer's channels and Relu, the layer with random 2:4 weights, Relu and a global pooling.

    Args:
        kind: of the layer.
        batch: images in an inference; a name for a dynamic batch.

    Returns:
        a checked model from "x" (batch, 4, height, width) to "y" (batch, out_channels, 1, 1), in float16 for FP16 and float32
        for INT8, in opset 17. Only "layer" has 2:4 weights.
    """
    random = np.random.default_rng(_SEED)
    dtype = np.float16 if kind.precision == "fp16" else np.float32
    writer = _Writer(quantized=kind.precision == "int8", dtype=dtype)
    first = random.standard_normal((kind.in_channels, _INPUT_CHANNELS, 1, 1), dtype=np.float32) / 2
    weight = random.standard_normal((kind.out_channels, kind.in_channels, *kind.kernel), dtype=np.float32)
    weight *= PATTERN.keep_largest(np.abs(weight), group_axis=1)
    weight /= np.sqrt(np.float32(weight[0].size / 2))
    writer.convolution("first", "x", "first.out", first, {})
    writer.add("Relu", "first.out", "read")
    geometry = {"strides": kind.strides, "pads": kind.pads, "dilations": kind.dilations}
    writer.convolution(LAYER, "read", "computed", weight, geometry)
    writer.add("Relu", "computed", "active")
    writer.add("GlobalAveragePool", writer.rounded("active"), "y")
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        writer.nodes,
        "kind",
        [helper.make_tensor_value_info("x", element, [batch, _INPUT_CHANNELS, kind.height, kind.width])],
        [helper.make_tensor_value_info("y", element, [batch, kind.out_channels, 1, 1])],
        writer.constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    return model


class _Writer:
    """Collects operators and constants, with Q/DQ in front of convolutions where the file is quantized."""

    def __init__(self, *, quantized: bool, dtype: Any) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[TensorProto] = []
        self._quantized = quantized
        self._dtype = dtype

    def add(self, op: str, x: str, y: str) -> None:
        self.nodes.append(helper.make_node(op, [x], [y], name=y))

    def convolution(self, name: str, x: str, y: str, weight: Array, geometry: dict[str, Any]) -> None:
        """A Conv with a bias of zeros, as batch norm leaves one."""
        operand = self._constant(f"{name}.weight", weight)
        if self._quantized:
            largest = np.abs(weight).reshape(len(weight), -1).max(axis=1)
            step = np.where(largest > 0, largest / _LARGEST_LEVEL, 1).astype(np.float32)
            operand = self._pair(operand, step, axis=0)
        bias = self._constant(f"{name}.bias", np.zeros(len(weight), dtype=np.float32))
        self.nodes.append(helper.make_node("Conv", [self.rounded(x), operand, bias], [y], name=name, **geometry))

    def rounded(self, x: str) -> str:
        """The tensor behind Q/DQ in a quantized file, else itself."""
        return self._pair(x, _RANGE / _LARGEST_LEVEL) if self._quantized else x

    def _pair(self, x: str, step: Array | np.float32, **axis: Any) -> str:
        scale = self._constant(f"{x}.scale", np.asarray(step), np.float32)
        zero = self._constant(f"{x}.zero", np.zeros(np.shape(step)), np.int8)
        for op, source, result in (("QuantizeLinear", x, f"{x}.q"), ("DequantizeLinear", f"{x}.q", f"{x}.dq")):
            self.nodes.append(helper.make_node(op, [source, scale, zero], [result], name=result, **axis))
        return f"{x}.dq"

    def _constant(self, name: str, values: Array, dtype: Any = None) -> str:
        self.constants.append(numpy_helper.from_array(values.astype(dtype or self._dtype), name))
        return name

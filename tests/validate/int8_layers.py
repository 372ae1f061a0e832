"""One INT8 layer between Q/DQ as an ONNX file, and kernels in NumPy that compute it as runtimes do."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from masksparse_deploy.graph.model import Graph
from masksparse_deploy.graph.reader import parse_graph, weighted_layers
from masksparse_deploy.validate.units import Unit, unit_of

Array = npt.NDArray[Any]
UNIT = 2.0**-24


@dataclass(frozen=True, eq=False, kw_only=True)
class Int8Layer:
    """A Gemm of `terms` features into `channels`, its numbers, and the file that says the same."""

    graph: Graph
    unit: Unit
    levels: Array
    steps: Array
    bias: Array
    x_step: np.float32
    x_point: int
    y_step: np.float32
    y_point: int


def int8_layer(
    seed: int,
    *,
    terms: int = 24,
    channels: int = 6,
    unsigned: bool = False,
    tail: tuple[str, ...] = (),
    quantized: bool = True,
    reach: float = 4.0,
    **attributes: Any,
) -> Int8Layer:
    """Random weights, scales and biases.

    Args:
        seed: of the numbers.
        terms: input features.
        channels: output features.
        unsigned: UINT8 activations with zero points that are not 0; else INT8 with 0.
        tail: operators between the layer and the QuantizeLinear; Add reads a second input of the network, on a grid of its own.
        quantized: whether a QuantizeLinear follows; else the output is in floating point.
        reach: the grid of the output ends at about that many standard deviations.
        attributes: of the Gemm.
    """
    generator = np.random.default_rng(seed)
    levels = generator.integers(-127, 128, (channels, terms)).astype(np.int8)
    levels[generator.random(levels.shape) < 0.5] = 0
    steps = generator.uniform(0.001, 0.01, channels).astype(np.float32)
    x_step = np.float32(generator.uniform(0.01, 0.1))
    y_step = np.float32(reach * 74 * 74 * np.sqrt(terms / 2) * float(x_step) * float(steps.mean()) / 127)
    bias = (generator.standard_normal(channels) * 20 * y_step).astype(np.float32)
    kind = np.uint8 if unsigned else np.int8
    points = (int(generator.integers(100, 150)), int(generator.integers(100, 150))) if unsigned else (0, 0)
    constants: dict[str, Array] = {
        "x.scale": np.asarray(x_step),
        "x.zero": np.asarray(points[0], kind),
        "w": levels,
        "w.scale": steps,
        "w.zero": np.zeros(channels, np.int8),
        "b": bias,
        "y.scale": np.asarray(y_step),
        "y.zero": np.asarray(points[1], kind),
        "low": np.asarray(-20 * y_step),
        "high": np.asarray(20 * y_step),
    }
    node = helper.make_node
    nodes = [
        node("QuantizeLinear", ["x", "x.scale", "x.zero"], ["x.q"], name="x.quantize"),
        node("DequantizeLinear", ["x.q", "x.scale", "x.zero"], ["x.dq"], name="x.dequantize"),
        node("DequantizeLinear", ["w", "w.scale", "w.zero"], ["w.dq"], name="w.dequantize", axis=0),
        node("Gemm", ["x.dq", "w.dq", "b"], ["layer.out"], name="layer", transB=1, **attributes),
    ]
    value = "layer.out"
    for op in tail:
        more = {"Add": ["r.dq"], "Clip": ["low", "high"]}.get(op, [])
        if op == "Add":
            nodes[:0] = [
                node("QuantizeLinear", ["r", "y.scale", "y.zero"], ["r.q"], name="r.quantize"),
                node("DequantizeLinear", ["r.q", "y.scale", "y.zero"], ["r.dq"], name="r.dequantize"),
            ]
        extra: dict[str, Any] = {"alpha": 1.5} if op == "LeakyRelu" else {}
        nodes.append(node(op, [value, *more], [f"{op}.out"], name=op, **extra))
        value = f"{op}.out"
    if quantized:
        nodes.append(node("QuantizeLinear", [value, "y.scale", "y.zero"], ["y.q"], name="y.quantize"))
        nodes.append(node("DequantizeLinear", ["y.q", "y.scale", "y.zero"], ["y.dq"], name="y.dequantize"))
        value = "y.dq"
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", terms])]
    if "Add" in tail:
        inputs.append(helper.make_tensor_value_info("r", TensorProto.FLOAT, ["batch", channels]))
    outputs = [helper.make_tensor_value_info(value, TensorProto.FLOAT, ["batch", channels])]
    initializers = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "layer", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    parsed = parse_graph(model.SerializeToString(), name="layer")
    (layer,) = weighted_layers(parsed)
    return Int8Layer(
        graph=parsed,
        unit=unit_of(parsed, layer),
        levels=levels,
        steps=steps,
        bias=bias,
        x_step=x_step,
        x_point=points[0],
        y_step=y_step,
        y_point=points[1],
    )


def random_levels(seed: int, layer: Int8Layer, count: int, width: int, point: int) -> Array:
    """Integers of a tensor, int64, within what its type holds."""
    limits = (0, 256) if layer.x_point else (-128, 128)
    return np.random.default_rng(seed).integers(*limits, (count, width)) - point


def dequantized(levels: Array, step: np.float32) -> Array:
    """What DequantizeLinear shows: float32."""
    return levels.astype(np.float32) * step


def integer_sums(layer: Int8Layer, x_levels: Array) -> Array:
    """The sums of integers with the biases on their grid, int64, which must fit INT32."""
    step = layer.x_step * layer.steps
    total = x_levels @ layer.levels.T.astype(np.int64) + np.rint(layer.bias / step).astype(np.int64)
    assert np.abs(total).max() < 2**31
    return total


def on_grid(layer: Int8Layer, scaled: Array) -> Array:
    """Real numbers in steps of the output's grid -> what is shown of the levels, float32."""
    low, high = (0, 255) if layer.y_point else (-128, 127)
    return dequantized(np.clip(np.rint(scaled), low - layer.y_point, high - layer.y_point), layer.y_step)


def integer_kernel(layer: Int8Layer, x_levels: Array) -> Array:
    """As ONNX Runtime's QLinearConv: one multiplier in float32 from the sum to the output's level."""
    multiplier = (layer.x_step * layer.steps) / layer.y_step
    return on_grid(layer, integer_sums(layer, x_levels).astype(np.float32) * multiplier)


def worst_kernel(layer: Int8Layer, x_levels: Array, added: Array | None, seed: int) -> Array:
    """Exact sums, then every rounding by a whole unit of FP32 up or down; FP32 biases, a scaled residual, a reciprocal."""
    generator = np.random.default_rng(seed)

    def rounded(value: Array) -> Array:
        return value * (1 + UNIT * generator.choice([-1, 1], value.shape))

    sums = rounded((x_levels @ layer.levels.T.astype(np.int64)).astype(np.float64))
    value = rounded(rounded(sums * rounded(np.float64(layer.x_step) * layer.steps.astype(np.float64))) + layer.bias)
    if added is not None:
        value = rounded(value + rounded(added.astype(np.float64)))
    return value


def worst_on_grid(layer: Int8Layer, value: Array, seed: int) -> Array:
    """The real numbers of `worst_kernel` on the grid, by a reciprocal rounded the wrong way."""
    signs = np.random.default_rng(seed).choice([-1, 1], value.shape)
    return on_grid(layer, value * (1 / np.float64(layer.y_step)) * (1 + UNIT * signs) * (1 + UNIT * signs))


def float_kernel(layer: Int8Layer, x: Array, order: Array) -> Array:
    """As a convolution between DequantizeLinear and QuantizeLinear: float32, term by term, biases on their grid."""
    step = layer.x_step * layer.steps
    weight = layer.levels.astype(np.float32) * layer.steps[:, None]
    total: Array = np.zeros((len(x), len(weight)), np.float32)
    for term in order:
        total = total + x[:, term, None] * weight[:, term]
    return on_grid(layer, (total + np.rint(layer.bias / step) * step) / layer.y_step)

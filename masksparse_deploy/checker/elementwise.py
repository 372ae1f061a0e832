"""How far each element of an operator's output can be off if each element of its input is off by so much."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.helper

from masksparse_deploy.checker.activations import slope_of
from masksparse_deploy.checker.evaluation import apply_exactly
from masksparse_deploy.checker.network import attributes_of
from masksparse_deploy.checker.rules import NoRuleError, Surroundings

__all__ = ["enlarged"]

Array = npt.NDArray[Any]

# They move, choose or average elements, and do the same with distances.
_ARRANGEMENTS = (
    *("AveragePool", "Flatten", "GlobalAveragePool", "GlobalMaxPool", "MaxPool", "ReduceMax", "ReduceMean", "ReduceSum"),
    *("Slice", "Squeeze", "Transpose", "Unsqueeze"),
)


def enlarged(node: onnx.NodeProto, around: Surroundings, distances: Mapping[str, Array], shape: tuple[int, ...]) -> Array:
    """The elements' distances after `node`, of `shape` (count, ...), from those of its variable inputs by name.

    Raises:
        NoRuleError: the operator has no elementwise rule.
    """
    opset = around.network.opset
    attributes = attributes_of(node)
    if node.op_type in ("Add", "Sub", "Sum"):
        return np.broadcast_to(sum(distances[name] for name in node.input if name in distances), shape)
    if node.op_type == "Concat":
        constants = around.network.constants
        parts = [distances[name] if name in distances else np.zeros(constants[name].shape) for name in node.input]
        return np.concatenate(parts, axis=attributes["axis"])
    if node.op_type in ("Mul", "Div") and len(distances) == 1:
        return np.broadcast_to(_scaled(node, around, distances), shape)
    x = distances[node.input[0]]
    slope = slope_of(node, around.network.constants)
    if slope is not None:
        return x * slope
    if node.op_type in ("Cast", "Dropout"):
        return x
    if node.op_type == "Reshape":
        return x.reshape(shape)
    if node.op_type == "Softmax":  # a row of diag(p) - p p^T has an absolute sum of at most 1/2
        return np.broadcast_to(0.5 * x.max(axis=attributes.get("axis", -1), keepdims=True), shape)
    if node.op_type == "LogSoftmax":  # a row of I - 1 p^T
        return np.asarray(x + x.max(axis=attributes.get("axis", -1), keepdims=True))
    if node.op_type in _ARRANGEMENTS:
        return apply_exactly(node, [x, *(around.constant(node, place) for place in range(1, len(node.input)))], opset=opset)
    if node.op_type in ("Conv", "Gemm", "MatMul"):
        weight = np.abs(around.network.constants[node.input[1]].astype(np.float64))
        return apply_exactly(_without_bias(node), [x, weight], opset=opset) * abs(float(attributes.get("alpha", 1.0)))
    if node.op_type == "Pad":
        return apply_exactly(*_padded_with_zeros(node, x, around), opset=opset)
    if node.op_type == "BatchNormalization":
        scale, variance = (around.network.constants[node.input[place]].astype(np.float64) for place in (1, 4))
        factors: Array = np.abs(scale) / np.sqrt(variance + attributes.get("epsilon", 1e-5))
        return x * factors.reshape(-1, *(1,) * (x.ndim - 2))
    raise NoRuleError(node.op_type)


def _scaled(node: onnx.NodeProto, around: Surroundings, distances: Mapping[str, Array]) -> Array:
    """A product or quotient with a constant, or a gate: a function of one tensor with a known slope."""
    ((name, x),) = distances.items()
    others = [key for key in node.input if key in around.network.constants]
    if not others:
        gate = around.gates.find(node)
        assert gate is not None and gate.slope is not None and gate.source == name, "its rule was found first"
        return x * gate.slope
    constant = np.abs(around.network.constants[others[0]].astype(np.float64))
    scaled: Array = x * constant if node.op_type == "Mul" else x / constant
    return scaled


def _without_bias(node: onnx.NodeProto) -> onnx.NodeProto:
    """The product alone, with no scalar before it."""
    product = onnx.helper.make_node(node.op_type, list(node.input[:2]), list(node.output[:1]))
    product.attribute.extend(attribute for attribute in node.attribute if attribute.name not in ("alpha", "beta"))
    return product


def _padded_with_zeros(node: onnx.NodeProto, x: Array, around: Surroundings) -> tuple[onnx.NodeProto, list[Array | None]]:
    """What is added is the same in both networks, so that it is no distance away."""
    zeros = onnx.NodeProto()
    zeros.CopyFrom(node)
    kept = [attribute for attribute in zeros.attribute if attribute.name != "value"]
    del zeros.attribute[:]
    zeros.attribute.extend(kept)
    inputs = [x, *(around.constant(node, place) for place in range(1, len(node.input)))]
    if len(inputs) > 2 and inputs[2] is not None:
        inputs[2] = np.zeros_like(inputs[2])
    return zeros, inputs

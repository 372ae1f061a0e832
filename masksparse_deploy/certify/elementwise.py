"""Elementwise distances through one operator: from |x - y| <= u for every element to the same for the outputs.

It complements the l2 constants of certify.lipschitz: neither is always smaller, so the recursion takes the minimum.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from masksparse_deploy.certify.activations import slope
from masksparse_deploy.certify.rule import NoRuleError
from masksparse_deploy.graph.model import Graph, Node
from masksparse_deploy.graph.nodes import apply_node

__all__ = ["enlarge"]

Array = npt.NDArray[Any]

# Operators that move, average or compare elements: applied to distances they give the distances of their outputs.
_ITSELF = (
    *("AveragePool", "Flatten", "GlobalAveragePool", "GlobalMaxPool", "MaxPool", "ReduceMax", "ReduceMean", "ReduceSum"),
    *("Resize", "Slice", "Squeeze", "Transpose", "Unsqueeze"),
)


def enlarge(node: Node, graph: Graph, distances: Mapping[str, Array], shape: tuple[int, ...], batch: int | None) -> Array:
    """The distances of the outputs.

    Args:
        node: an operator for which `lipschitz_rule` has a rule.
        graph: the graph it is in, for its weights.
        distances: u >= 0 by tensor name for the variable inputs, float64 (count, ...).
        shape: of the output, with the count.
        batch: the batch size fixed in the file, None if it is dynamic.
    """
    attributes = node.attributes
    inputs = [distances[name] if name in distances else graph.constants.get(name) for name in node.inputs]
    u = distances.get(node.inputs[0])
    if node.op in ("Add", "Sub", "Sum"):
        return np.broadcast_to(sum(distances[name] for name in node.inputs if name in distances), shape)
    if node.op == "Concat":
        parts = [distances.get(name, np.zeros_like(graph.constants.get(name, 0.0))) for name in node.inputs]
        return np.concatenate(parts, axis=attributes["axis"])
    if node.op in ("Mul", "Div") and len(distances) == 1:
        constant = next(np.abs(graph.constants[name].astype(np.float64)) for name in node.inputs if name not in distances)
        (only,) = distances.values()
        return np.broadcast_to(only * constant if node.op == "Mul" else only / constant, shape)
    if u is None:
        raise NoRuleError(f"{node.op} with a computed parameter")
    largest = slope(node, graph)
    if largest is not None:
        return u * largest
    if node.op == "Reshape":
        return u.reshape(shape)
    if node.op == "Resize" and inputs[-1] is None:  # to sizes that are computed from the shape of the model's input
        return apply_node(node, [u, None, None, np.array(shape)], batch=batch)
    if node.op in _ITSELF:
        return apply_node(node, [u, *inputs[1:]], batch=batch)
    if node.op == "Softmax":  # one row of diag(p) - p p^T
        return np.broadcast_to(0.5 * u.max(axis=attributes.get("axis", -1), keepdims=True), shape)
    if node.op == "LogSoftmax":  # one row of I - 1 p^T
        return np.asarray(u + u.max(axis=attributes.get("axis", -1), keepdims=True))
    if node.op in ("Conv", "Gemm", "MatMul"):
        weight = np.abs(graph.constants[node.inputs[1]].astype(np.float64))
        return apply_node(node, [u, weight, None], batch=batch, absolute=True)
    if node.op == "Pad":  # what is added is the same in both networks, whether its value is an input or an attribute
        zero = replace(node, attributes={key: value for key, value in attributes.items() if key != "value"})
        return apply_node(
            zero, [u, *(None if position == 1 else array for position, array in enumerate(inputs[1:]))], batch=batch
        )
    if node.op == "BatchNormalization":
        scale, _, _, variance = (graph.constants[name].astype(np.float64) for name in node.inputs[1:])
        zeros = np.zeros_like(scale)
        return apply_node(node, [u, np.abs(scale), zeros, zeros, variance], batch=batch)
    raise NoRuleError(node.op)

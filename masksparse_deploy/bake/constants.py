"""Which values of a graph do not depend on its input, and which of them are stored weights in disguise."""

import dataclasses
from collections.abc import Mapping, Set
from typing import Any

import numpy as np
import numpy.typing as npt

from masksparse_deploy.graph.model import Graph, Node

__all__ = ["fixed_values", "see_through"]


def fixed_values(graph: Graph) -> Set[str]:
    """Names of the values that are the same for every input of the network."""
    fixed = set(graph.constants)
    for node in graph.nodes:
        inputs = [name for name in node.inputs if name]
        if inputs and all(name in fixed for name in inputs):
            fixed.update(node.outputs)
    return fixed


def see_through(graph: Graph) -> tuple[Graph, Mapping[str, str]]:
    """The graph with constants also where a stored one passes through operators that keep zeros where they are.

    Returns:
        the graph, and for each constant so added the name of the initializer it comes from.
    """
    constants = dict(graph.constants)
    metadata = dict(graph.constant_metadata)
    origins: dict[str, str] = {}
    unrounded: set[str] = set()
    for node in graph.nodes:
        if node.domain or not node.inputs or node.inputs[0] not in constants:
            continue
        source, target = node.inputs[0], node.outputs[0]
        if node.op in ("Identity", "Cast"):
            constants[target] = constants[source]
        elif node.op == "QuantizeLinear" or (node.op == "DequantizeLinear" and source in unrounded):
            # 0 is quantized to the zero point and back to 0: the zeros of the stored weight tell enough.
            constants[target] = constants[source]
        elif node.op == "DequantizeLinear" and _has_plain_zero_point(node, constants):
            constants[target] = _without_zero_point(node, constants)
        elif node.op == "Transpose":
            order = node.attributes.get("perm", tuple(range(constants[source].ndim))[::-1])
            constants[target] = np.transpose(constants[source], order)
        else:
            continue
        if node.op == "QuantizeLinear" or (source in unrounded and node.op != "DequantizeLinear"):
            unrounded.add(target)
        origins[target] = origins.get(source, source)
        metadata[target] = {} if node.op == "Transpose" else metadata.get(source, {})
    return dataclasses.replace(graph, constants=constants, constant_metadata=metadata), origins


def _has_plain_zero_point(node: Node, constants: Mapping[str, npt.NDArray[Any]]) -> bool:
    """None, or a constant for the whole tensor or for each index of one axis."""
    known = len(node.inputs) < 3 or not node.inputs[2] or node.inputs[2] in constants
    return known and not node.attributes.get("block_size", 0)


def _without_zero_point(node: Node, constants: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Quantized values less their zero point: zero where (x - zero_point) * scale is."""
    quantized = constants[node.inputs[0]]
    zero_point = constants.get(node.inputs[2]) if len(node.inputs) > 2 else None
    if zero_point is None or not zero_point.any():
        return quantized
    if zero_point.ndim == 1:
        axis = int(node.attributes.get("axis", 1)) % quantized.ndim
        zero_point = zero_point.reshape([-1 if index == axis else 1 for index in range(quantized.ndim)])
    return quantized.astype(np.float32) - zero_point.astype(np.float32)

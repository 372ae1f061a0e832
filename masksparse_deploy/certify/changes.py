"""What a node's changed constants can do to its output, for every input."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from masksparse_deploy.certify.lipschitz import constant_factor
from masksparse_deploy.certify.operator_norm import NormCache
from masksparse_deploy.certify.pairing import Pair
from masksparse_deploy.certify.positions import Masks, difference_norm
from masksparse_deploy.certify.rule import NoRuleError
from masksparse_deploy.graph.model import Graph, Node
from masksparse_deploy.graph.nodes import apply_node
from masksparse_deploy.graph.normalization import NORMALIZATIONS, epsilon_of

__all__ = ["at_zero", "change_factor"]

Array = npt.NDArray[Any]


def at_zero(node: Node, graph: Graph, shapes: Mapping[str, tuple[int, ...]], masks: Masks) -> Array:
    """f(0) for one sample: what biases, constants, activations like the sigmoid and masked positions add."""
    if node.op in ("Reshape", "Resize"):  # their shapes may be computed, and they add nothing
        return np.zeros((1, *shapes[node.outputs[0]]))
    inputs = []
    for name in node.inputs:
        value = graph.constants.get(name)
        if name in shapes:
            value = np.zeros((1, *shapes[name]))
        elif value is not None and np.issubdtype(value.dtype, np.floating):
            value = value.astype(np.float64)
        inputs.append(value)
    (shape,) = graph.inputs.values()
    result = apply_node(node, inputs, batch=shape[0])
    return masks[node.outputs[0]].apply(result) if node.outputs[0] in masks else result


def change_factor(node: Node, pair: Pair, shapes: Mapping[str, tuple[int, ...]], norms: NormCache) -> float:
    """Lip(f - f~) of a node whose constants differ between the two files; raises NoRuleError where none is known."""
    if node.op in ("Conv", "Gemm", "MatMul"):
        dense, sparse = (graph.constants[node.inputs[1]].astype(np.float64) for graph in (pair.dense, pair.sparse))
        return difference_norm(node, dense, sparse, pair.positions(node), shapes[node.inputs[0]], norms).value
    if node.op in ("Mul", "Div"):
        (name,) = (name for name in node.inputs if name in pair.dense.constants)
        dense, sparse = (graph.constants[name].astype(np.float64) for graph in (pair.dense, pair.sparse))
        change = {name: dense - sparse if node.op == "Mul" else 1 / dense - 1 / sparse}
        inputs = [key for key in node.inputs if key != name]
        return constant_factor(replace(node, op="Mul"), change, inputs, shapes[inputs[0]], shapes[node.outputs[0]])
    if node.op == "PRelu" or node.op in NORMALIZATIONS:
        if node.op in NORMALIZATIONS and epsilon_of(node) <= 0:
            raise NoRuleError(f"{node.op} with epsilon 0")
        dense, sparse = (graph.constants[node.inputs[1]].astype(np.float64) for graph in (pair.dense, pair.sparse))
        # what is scaled by the one or the other is at most ||x||, or ||x|| / sqrt(epsilon)
        return float(np.abs(dense - sparse).max()) / (math.sqrt(epsilon_of(node)) if node.op in NORMALIZATIONS else 1.0)
    if node.op in ("Add", "Sub", "Sum"):
        return 0.0  # the difference of two constants does not depend on x
    if node.op == "BatchNormalization":
        dense, sparse = (_channel_factors(node, graph) for graph in (pair.dense, pair.sparse))
        return float(np.abs(dense - sparse).max())
    raise NoRuleError(f"{node.op} whose parameters differ between the two files")


def _channel_factors(node: Node, graph: Graph) -> Array:
    scale, _, _, variance = (graph.constants[name].astype(np.float64) for name in node.inputs[1:])
    factors: Array = scale / np.sqrt(variance + node.attributes.get("epsilon", 1e-5))
    return factors

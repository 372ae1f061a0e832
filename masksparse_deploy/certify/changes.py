"""What a node's changed constants can do to its output, for every input."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from masksparse_deploy.certify.lipschitz import NoRuleError, weight_norm
from masksparse_deploy.certify.operator_norm import NormCache
from masksparse_deploy.certify.pairing import Pair
from masksparse_deploy.graph.model import Graph, Node
from masksparse_deploy.graph.nodes import apply_node

__all__ = ["at_zero", "change_factor"]

Array = npt.NDArray[Any]


def at_zero(node: Node, graph: Graph, shapes: Mapping[str, tuple[int, ...]]) -> Array:
    """f(0) for one sample: what biases, constants and activations like the sigmoid add."""
    inputs = []
    for name in node.inputs:
        value = graph.constants.get(name)
        if name in shapes:
            value = np.zeros((1, *shapes[name]))
        elif value is not None and np.issubdtype(value.dtype, np.floating):
            value = value.astype(np.float64)
        inputs.append(value)
    (shape,) = graph.inputs.values()
    return apply_node(node, inputs, batch=shape[0])


def change_factor(node: Node, pair: Pair, shapes: Mapping[str, tuple[int, ...]], norms: NormCache) -> float:
    """Lip(f - f~) of a node whose constants differ between the two files; raises NoRuleError where none is known."""
    if node.op in ("Conv", "Gemm", "MatMul"):
        name = node.inputs[1]
        difference = pair.dense.constants[name].astype(np.float64) - pair.sparse.constants[name].astype(np.float64)
        return weight_norm(node, difference, shapes[node.inputs[0]], norms).value
    if node.op == "Add":
        return 0.0  # the difference of two constants does not depend on x
    if node.op == "BatchNormalization":
        dense, sparse = (_channel_factors(node, graph) for graph in (pair.dense, pair.sparse))
        return float(np.abs(dense - sparse).max())
    raise NoRuleError(f"{node.op} whose parameters differ between the two files")


def _channel_factors(node: Node, graph: Graph) -> Array:
    scale, _, _, variance = (graph.constants[name].astype(np.float64) for name in node.inputs[1:])
    factors: Array = scale / np.sqrt(variance + node.attributes.get("epsilon", 1e-5))
    return factors

"""The recursion without samples: one bound for every input whose norm is at most a given radius."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from masksparse_deploy.certify.lipschitz import NoRuleError, lipschitz_rule, variable_tensors, weight_norm
from masksparse_deploy.certify.operator_norm import NormCache
from masksparse_deploy.certify.pairing import Pair
from masksparse_deploy.certify.recursion import ROUNDING
from masksparse_deploy.graph.model import Graph, Node
from masksparse_deploy.graph.nodes import apply_node

__all__ = ["data_free_bound"]

Array = npt.NDArray[Any]


def data_free_bound(pair: Pair, *, radius: float, shapes: Mapping[str, tuple[int, ...]], norms: NormCache) -> float:
    """A bound of ||f(x) - f~(x)|| for all inputs x with ||x|| <= `radius`.

    Two numbers are carried for every tensor: r >= ||x_l|| in the dense network, and e >= ||x_l - x~_l||.
    r <- Lip(f) r + ||f(0)||, and e <- Lip(f~) e + Lip(f - f~) r + ||(f - f~)(0)||.

    Args:
        pair: the two graphs, with one output.
        radius: of the ball of inputs, l2.
        shapes: of all variable tensors, without the batch.
        norms: operator norms known so far.

    Raises:
        NoRuleError: an operator without a rule.
    """
    variables = variable_tensors(pair.dense)
    (source,) = pair.dense.inputs
    (output,) = pair.dense.outputs
    radii, bounds = {source: radius}, {source: 0.0}
    for dense, sparse in zip(pair.dense.nodes, pair.sparse.nodes, strict=True):
        name = dense.outputs[0]
        if name not in variables:
            continue
        inputs = [key for key in dense.inputs if key in variables]
        at_zero = _at_zero(dense, pair.dense, shapes)
        reach = lipschitz_rule(dense, pair.dense, variables, shapes, norms)
        bound = lipschitz_rule(sparse, pair.sparse, variables, shapes, norms).combine([bounds[key] for key in inputs])
        if pair.differs(dense):
            change = at_zero - _at_zero(sparse, pair.sparse, shapes)
            bound += _change_factor(dense, pair, shapes, norms) * radii[inputs[0]] + float(np.linalg.norm(change))
        radii[name] = (reach.combine([radii[key] for key in inputs]) + float(np.linalg.norm(at_zero))) * ROUNDING
        bounds[name] = bound * ROUNDING
    return bounds[output]


def _at_zero(node: Node, graph: Graph, shapes: Mapping[str, tuple[int, ...]]) -> Array:
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


def _change_factor(node: Node, pair: Pair, shapes: Mapping[str, tuple[int, ...]], norms: NormCache) -> float:
    """Lip(f - f~) of a node whose constants differ between the two files."""
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

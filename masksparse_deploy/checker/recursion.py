"""The network recursions of docs/bounds.md, section 3: how far the two networks can be apart, node by node."""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from masksparse_deploy.checker.evaluation import apply_exactly
from masksparse_deploy.checker.network import Network, attributes_of
from masksparse_deploy.checker.rules import NoRuleError, Surroundings, rule_of
from masksparse_deploy.checker.setting import Setting

__all__ = ["at_zero", "change_factor", "data_free_bound", "missing_rules"]

Array = npt.NDArray[Any]


def data_free_bound(setting: Setting, *, radius: float) -> float:
    """The bound for all inputs with a norm up to `radius`, in float64 and not enlarged.

    r <- Lip(f) r + ||f(0)|| bounds the dense network's tensors, e <- Lip(f~) e + Lip(f - f~) r + ||(f - f~)(0)|| the distance.

    Raises:
        NoRuleError: there is no rule for an operator.
        KeyError: the shape of a tensor is not known.
    """
    dense, sparse = setting.dense, setting.sparse
    name = dense.network.inputs[0].name
    norms, bounds = {name: radius}, {name: 0.0}
    for node in dense.network.nodes:
        inputs = [key for key in node.input if key in dense.variables]
        if not inputs:
            continue
        origin = at_zero(node, dense)
        bound = rule_of(node, sparse).combine([bounds[key] for key in inputs])
        if setting.pair.differs(node):
            offset = float(np.linalg.norm(origin - at_zero(node, sparse)))
            bound += change_factor(node, setting) * norms[inputs[0]] + offset
        norms[node.output[0]] = rule_of(node, dense).combine([norms[key] for key in inputs]) + float(np.linalg.norm(origin))
        bounds[node.output[0]] = bound
    return float(bounds[dense.network.outputs[0]])


def missing_rules(setting: Setting) -> set[str]:
    """The operators for which this checker has no rule, as they are used; raises KeyError where a shape is not known."""
    sparse = setting.sparse
    missing = set()
    for node in sparse.network.nodes:
        if not any(name in sparse.variables for name in node.input):
            continue
        try:
            at_zero(node, sparse)
            rule_of(node, sparse)
        except NoRuleError as error:
            missing.add(str(error))
    return missing


def at_zero(node: onnx.NodeProto, around: Surroundings) -> Array:
    """f(0) for one sample: biases, and activations that are not 0 at 0.

    Raises:
        NoRuleError: it cannot be computed, or not for each sample of a batch by itself.
    """
    if node.name in around.at_zero:
        return around.at_zero[node.name]
    count = around.network.batch or 2
    inputs = [
        np.zeros((count, *around.shapes[name])) if name in around.variables else around.network.constants.get(name)
        for name in node.input
    ]
    result = apply_exactly(node, inputs, opset=around.network.opset)
    if result.shape[:1] != (count,):
        raise NoRuleError(f"{node.op_type} across samples")
    around.at_zero[node.name] = result[0]
    return around.at_zero[node.name]


def change_factor(node: onnx.NodeProto, setting: Setting) -> float:
    """Lip(f - f~) of a node that reads other constants in the sparse file.

    Raises:
        NoRuleError: none is known.
    """
    if node.op_type in ("Conv", "Gemm", "MatMul"):
        return setting.norms.norm(node, "difference").value
    if node.op_type == "Add":
        return 0.0  # the constants' difference does not depend on x
    if node.op_type == "BatchNormalization":
        factors = [_factors(node, network) for network in (setting.pair.dense, setting.pair.sparse)]
        return float(np.abs(factors[0] - factors[1]).max())
    raise NoRuleError(f"{node.op_type} whose parameters differ between the two files")


def _factors(node: onnx.NodeProto, network: Network) -> Array:
    scale, variance = (network.constants[node.input[place]].astype(np.float64) for place in (1, 4))
    factors: Array = scale / np.sqrt(variance + attributes_of(node).get("epsilon", 1e-5))
    return factors

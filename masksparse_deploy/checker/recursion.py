"""The network recursions of docs/bounds.md, section 3: how far the two networks can be apart, node by node."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from masksparse_deploy.checker.evaluation import apply_exactly
from masksparse_deploy.checker.network import Network, attributes_of
from masksparse_deploy.checker.products import Ball, peak_of, product_of_balls
from masksparse_deploy.checker.rules import NoRuleError, Surroundings, rule_of, scaling
from masksparse_deploy.checker.setting import Setting

__all__ = ["at_zero", "change_factor", "data_free_bound", "missing_rules"]

Array = npt.NDArray[Any]


def data_free_bound(setting: Setting, *, radius: float) -> float:
    """The bound for all inputs with a norm up to `radius`, in float64 and not enlarged.

    r <- Lip(f) r + ||f(0)|| bounds the dense network's tensors, e <- Lip(f~) e + Lip(f - f~) r + ||(f - f~)(0)|| the distance,
    and the largest element of either network's tensors is bounded for the sake of products.

    Raises:
        NoRuleError: there is no rule for an operator.
        KeyError: the shape of a tensor is not known.
    """
    dense, sparse = setting.dense, setting.sparse
    balls = {dense.network.inputs[0].name: Ball(norm=radius, distance=0.0, peak=radius)}
    for node in dense.network.nodes:
        if node.output[0] not in dense.variables:
            continue
        inputs = [balls[name] for name in sparse.sources(node)]
        found = product_of_balls(node, sparse, *inputs) if sparse.is_product(node) else _through(node, setting, inputs)
        balls[node.output[0]] = peak_of(node, (dense, sparse), inputs, found)
    return balls[dense.network.outputs[0]].distance


def _through(node: onnx.NodeProto, setting: Setting, inputs: list[Ball]) -> Ball:
    """A node with a Lipschitz constant."""
    dense, sparse = setting.dense, setting.sparse
    distance = rule_of(node, sparse).combine([ball.distance for ball in inputs])
    origin = at_zero(node, dense)
    if setting.pair.differs(node):
        offset = float(np.linalg.norm(origin - at_zero(node, sparse)))
        distance += change_factor(node, setting) * inputs[0].norm + offset
    norm = rule_of(node, dense).combine([ball.norm for ball in inputs]) + float(np.linalg.norm(origin))
    return Ball(norm=norm, distance=distance, peak=math.inf)


def missing_rules(setting: Setting) -> set[str]:
    """The operators for which this checker has no rule, as they are used; raises KeyError where a shape is not known."""
    sparse = setting.sparse
    missing = set()
    for node in sparse.network.nodes:
        if node.output[0] not in sparse.variables:
            continue
        try:
            if not sparse.is_product(node):
                rule_of(node, sparse)
            at_zero(node, sparse)
        except NoRuleError as error:
            missing.add(str(error))
    return missing


def at_zero(node: onnx.NodeProto, around: Surroundings) -> Array:
    """f(0) for one sample: biases, and activations that are not 0 at 0.

    Raises:
        NoRuleError: it cannot be computed, or not for each sample of a batch by itself.
    """
    if node.output[0] in around.at_zero:
        return around.at_zero[node.output[0]]
    is_gate = sum(name in around.variables for name in node.input) == 2 and node.op_type in ("Div", "Mul")
    if is_gate or node.op_type == "Reshape":  # 0 at 0, whatever shape is computed, or where 0 would be divided by 0
        return np.zeros(around.shapes[node.output[0]])
    count = around.network.batch or 2
    inputs = [
        np.zeros((count, *around.shapes[name])) if name in around.variables else around.network.constants.get(name)
        for name in node.input
    ]
    result = apply_exactly(node, inputs, opset=around.network.opset)
    if node.output[0] in around.network.masks:
        result = around.network.masks[node.output[0]].apply(result)
    if result.shape[:1] != (count,):
        raise NoRuleError(f"{node.op_type} across samples")
    around.at_zero[node.output[0]] = result[0]
    return around.at_zero[node.output[0]]


def change_factor(node: onnx.NodeProto, setting: Setting) -> float:
    """Lip(f - f~) of a node that reads other constants in the sparse file.

    Raises:
        NoRuleError: none is known.
    """
    if node.op_type in ("Conv", "Gemm", "MatMul"):
        return setting.norms.norm(node, "difference").value
    if node.op_type in ("Add", "Sub", "Sum"):
        return 0.0  # the constants' difference does not depend on x
    if node.op_type in ("Mul", "Div") and any(name in setting.pair.dense.constants for name in node.input):
        one, other = (_multiplier(node, network) for network in (setting.pair.dense, setting.pair.sparse))
        return scaling(node, setting.dense, one - other)
    if node.op_type == "PRelu":
        one, other = (
            network.constants[node.input[1]].astype(np.float64) for network in (setting.pair.dense, setting.pair.sparse)
        )
        return float(np.abs(one - other).max())
    if node.op_type == "BatchNormalization":
        factors = [_factors(node, network) for network in (setting.pair.dense, setting.pair.sparse)]
        return float(np.abs(factors[0] - factors[1]).max())
    raise NoRuleError(f"{node.op_type} whose parameters differ between the two files")


def _multiplier(node: onnx.NodeProto, network: Network) -> Array:
    """What a Mul or Div multiplies its variable input with."""
    constant = next(network.constants[name] for name in node.input if name in network.constants).astype(np.float64)
    return 1 / constant if node.op_type == "Div" else constant


def _factors(node: onnx.NodeProto, network: Network) -> Array:
    scale, variance = (network.constants[node.input[place]].astype(np.float64) for place in (1, 4))
    factors: Array = scale / np.sqrt(variance + attributes_of(node).get("epsilon", 1e-5))
    return factors

"""Largest slopes of the operators that change every element by itself; docs/bounds.md says where they come from."""

import math
from collections.abc import Callable, Mapping

import numpy as np
from onnx import TensorProto

from masksparse_deploy.certify.rule import NoRuleError
from masksparse_deploy.graph.activations import SELU_ALPHA, SELU_GAMMA
from masksparse_deploy.graph.model import Graph, Node

__all__ = ["GELU", "MISH", "SILU", "gate_slope", "slope"]

_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)

# Largest derivatives, rounded up: 1.09984 at x = 2.3994, 1.12904 at 1.4142 (by tanh 1.128994), 1.088499 at 1.4906.
SILU = 1.0999
GELU = 1.1290
MISH = 1.0885


def slope(node: Node, graph: Graph) -> float | None:
    """The largest slope of an operator that changes every element by itself; None for other operators.

    Raises:
        NoRuleError: there is none, as for a Cast to integers.
    """
    function = _SLOPES.get(node.op)
    return None if function is None else function(node, graph)


def gate_slope(high: float, offset: float) -> float:
    """The largest slope of x clip(x + offset, 0, high): 0 below, `high` above, 2 x + offset in between."""
    return max(high, abs(offset), abs(2 * high - offset))


def _leaky_relu(node: Node, graph: Graph) -> float:
    return max(1.0, abs(float(node.attributes.get("alpha", 0.01))))


def _prelu(node: Node, graph: Graph) -> float:
    if node.inputs[1] not in graph.constants:
        raise NoRuleError("PRelu with a computed parameter")
    return max(1.0, float(np.abs(graph.constants[node.inputs[1]].astype(np.float64)).max()))


def _elu(node: Node, graph: Graph) -> float:
    return max(1.0, abs(float(node.attributes.get("alpha", 1.0))))


def _selu(node: Node, graph: Graph) -> float:
    alpha, gamma = (float(node.attributes.get(*key)) for key in (("alpha", SELU_ALPHA), ("gamma", SELU_GAMMA)))
    return abs(gamma) * max(1.0, abs(alpha))


def _hard_sigmoid(node: Node, graph: Graph) -> float:
    return abs(float(node.attributes.get("alpha", 0.2)))


def _celu(node: Node, graph: Graph) -> float:
    # exp(x / alpha) below zero, which grows without end where alpha is negative
    if float(node.attributes.get("alpha", 1.0)) <= 0:
        raise NoRuleError("Celu with an alpha that is not above 0")
    return 1.0


def _cast(node: Node, graph: Graph) -> float:
    # Bounds are about exact arithmetic, in which a number is the same in every floating-point format.
    if node.attributes["to"] not in _FLOATS:
        raise NoRuleError("Cast to integers")
    return 1.0


def _constant(value: float) -> Callable[[Node, Graph], float]:
    return lambda node, graph: value


_SLOPES: Mapping[str, Callable[[Node, Graph], float]] = {
    "Abs": _constant(1.0),
    "Cast": _cast,
    "Celu": _celu,
    "Clip": _constant(1.0),
    "Dropout": _constant(1.0),
    "Elu": _elu,
    "Erf": _constant(2 / math.sqrt(math.pi)),
    "Gelu": _constant(GELU),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _constant(1.5),
    "Identity": _constant(1.0),
    "LeakyRelu": _leaky_relu,
    "Mish": _constant(MISH),
    "Neg": _constant(1.0),
    "PRelu": _prelu,
    "Relu": _constant(1.0),
    "Selu": _selu,
    "Sigmoid": _constant(0.25),
    "Softplus": _constant(1.0),
    "Softsign": _constant(1.0),
    "Swish": _constant(SILU),  # whatever its alpha: x sigmoid(a x) = swish(a x) / a
    "Tanh": _constant(1.0),
}

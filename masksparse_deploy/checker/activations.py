"""Functions applied to each element by itself: the largest slope of each, from the table of docs/bounds.md, section 3."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from masksparse_deploy.checker.network import attributes_of

__all__ = ["GELU", "MISH", "SILU", "hard_gate_slope", "slope_of"]

_Attributes = Mapping[str, Any]
_Constants = Mapping[str, npt.NDArray[Any]]

# Largest derivatives of functions without a short formula for it, rounded up.
GELU, MISH, SILU = 1.1290, 1.0885, 1.0999
# Selu's own defaults, as ONNX gives them.
_SELU = 1.67326319217681884765625, 1.05070102214813232421875


def slope_of(node: onnx.NodeProto, constants: _Constants) -> float | None:
    """The Lipschitz constant of `node` for each element; None if it is no such function, or none that is known."""
    if node.op_type == "PRelu":
        slopes = constants.get(node.input[1])
        return None if slopes is None else max(1.0, float(np.abs(slopes.astype(np.float64)).max()))
    if node.op_type not in _SLOPES:
        return None
    if node.op_type == "Celu" and attributes_of(node).get("alpha", 1.0) <= 0:
        return None  # it grows like an exponential
    return float(_SLOPES[node.op_type](attributes_of(node)))


def hard_gate_slope(alpha: float, beta: float) -> float:
    """Of x clip(alpha x + beta, 0, 1) for alpha > 0: 0, 1, or 2 alpha x + beta, which is linear, between 0 and 1."""
    low, high = -beta / alpha, (1 - beta) / alpha
    return max(1.0, abs(2 * alpha * low + beta), abs(2 * alpha * high + beta))


def _constant(value: float) -> Callable[[_Attributes], float]:
    return lambda attributes: value


_SLOPES: Mapping[str, Callable[[_Attributes], float]] = {
    **dict.fromkeys(("Abs", "Celu", "Clip", "Identity", "Neg", "Relu", "Softplus", "Softsign", "Tanh"), _constant(1.0)),
    "Elu": lambda attributes: max(1.0, abs(attributes.get("alpha", 1.0))),
    "Erf": _constant(2 / math.sqrt(math.pi)),
    "Gelu": _constant(GELU),
    "HardSigmoid": lambda attributes: abs(attributes.get("alpha", 0.2)),
    "HardSwish": _constant(1.5),
    "LeakyRelu": lambda attributes: max(1.0, abs(attributes.get("alpha", 0.01))),
    "Mish": _constant(MISH),
    "Selu": lambda attributes: abs(attributes.get("gamma", _SELU[1])) * max(1.0, abs(attributes.get("alpha", _SELU[0]))),
    "Sigmoid": _constant(0.25),
    "Swish": _constant(SILU),
}

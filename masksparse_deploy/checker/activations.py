"""Functions applied to each element by itself: the largest slope of each, from the table of docs/bounds.md, section 3."""

from collections.abc import Callable, Mapping
from typing import Any

import onnx

from masksparse_deploy.checker.network import attributes_of

__all__ = ["slope_of"]

_Attributes = Mapping[str, Any]

_SLOPES: Mapping[str, Callable[[_Attributes], float]] = {
    "Clip": lambda attributes: 1.0,
    "HardSigmoid": lambda attributes: abs(attributes.get("alpha", 0.2)),
    "Identity": lambda attributes: 1.0,
    "LeakyRelu": lambda attributes: max(1.0, abs(attributes.get("alpha", 0.01))),
    "Relu": lambda attributes: 1.0,
    "Sigmoid": lambda attributes: 0.25,
    "Tanh": lambda attributes: 1.0,
}


def slope_of(node: onnx.NodeProto) -> float | None:
    """The Lipschitz constant of `node` for each element; None if it is no such function, or none that is known."""
    if node.op_type not in _SLOPES:
        return None
    return float(_SLOPES[node.op_type](attributes_of(node)))

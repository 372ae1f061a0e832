"""The ONNX operators that change every element by itself, and softmax, applied to arrays (see graph.evaluate)."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import erf

from masksparse_deploy.graph.model import Node

__all__ = ["ACTIVATIONS", "SELU_ALPHA", "SELU_GAMMA"]

Array = npt.NDArray[Any]
Inputs = Sequence[Array | None]

# The defaults of ONNX's Selu, float32 numbers.
SELU_ALPHA = 1.67326319217681884765625
SELU_GAMMA = 1.05070102214813232421875


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), in the form that never overflows."""
    return (1 + np.tanh(x / 2)) / 2


def softplus(x: Array) -> Array:
    """log(1 + exp(x)), in the form that never overflows."""
    return np.logaddexp(x, 0).astype(x.dtype, copy=False)


def _one(inputs: Inputs, position: int = 0) -> Array:
    array = inputs[position]
    assert array is not None, "ONNX requires this input, the checker has verified it"
    return array


def _clip(node: Node, inputs: Inputs) -> Array:
    low = node.attributes.get("min") if len(inputs) < 2 else inputs[1]
    high = node.attributes.get("max") if len(inputs) < 3 else inputs[2]
    x = _one(inputs)
    return x if low is None and high is None else np.clip(x, low, high)


def _hard_sigmoid(node: Node, inputs: Inputs) -> Array:
    alpha, beta = node.attributes.get("alpha", 0.2), node.attributes.get("beta", 0.5)
    clipped: Array = np.clip(alpha * _one(inputs) + beta, 0, 1)
    return clipped


def _hard_swish(node: Node, inputs: Inputs) -> Array:
    x = _one(inputs)
    product: Array = x * np.clip(x / 6 + 0.5, 0, 1)
    return product


def _leaky_relu(node: Node, inputs: Inputs) -> Array:
    x = _one(inputs)
    return np.where(x < 0, node.attributes.get("alpha", 0.01) * x, x)


def _prelu(node: Node, inputs: Inputs) -> Array:
    x = _one(inputs)
    return np.where(x < 0, _one(inputs, 1) * x, x)


def _below_zero(x: Array, scale: float = 1.0) -> Array:
    """exp(x / scale) - 1 where x < 0, 0 elsewhere."""
    return np.expm1(np.minimum(x, 0) / scale)


def _elu(node: Node, inputs: Inputs) -> Array:
    x = _one(inputs)
    result: Array = np.maximum(x, 0) + node.attributes.get("alpha", 1.0) * _below_zero(x)
    return result


def _celu(node: Node, inputs: Inputs) -> Array:
    x, alpha = _one(inputs), node.attributes.get("alpha", 1.0)
    result: Array = np.maximum(x, 0) + alpha * _below_zero(x, alpha)
    return result


def _selu(node: Node, inputs: Inputs) -> Array:
    x, alpha, gamma = _one(inputs), node.attributes.get("alpha", SELU_ALPHA), node.attributes.get("gamma", SELU_GAMMA)
    result: Array = gamma * (np.maximum(x, 0) + alpha * _below_zero(x))
    return result


def _gelu(node: Node, inputs: Inputs) -> Array:
    x = _one(inputs)
    if node.attributes.get("approximate", "none") == "tanh":
        gate = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    else:
        gate = erf(x / math.sqrt(2))
    half: Array = 0.5 * x * (1 + gate)
    return half


def _mish(node: Node, inputs: Inputs) -> Array:
    x = _one(inputs)
    return x * np.tanh(softplus(x))


def _swish(node: Node, inputs: Inputs) -> Array:
    x = _one(inputs)
    return x * sigmoid(node.attributes.get("alpha", 1.0) * x)


def _softsign(node: Node, inputs: Inputs) -> Array:
    x = _one(inputs)
    quotient: Array = x / (1 + np.abs(x))
    return quotient


def _softmax(node: Node, inputs: Inputs) -> Array:
    x, axis = _one(inputs), node.attributes.get("axis", -1)
    powers = np.exp(x - x.max(axis=axis, keepdims=True))
    shares: Array = powers / powers.sum(axis=axis, keepdims=True)
    return shares


def _log_softmax(node: Node, inputs: Inputs) -> Array:
    x, axis = _one(inputs), node.attributes.get("axis", -1)
    shifted = x - x.max(axis=axis, keepdims=True)
    logarithms: Array = shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))
    return logarithms


def _where(node: Node, inputs: Inputs) -> Array:
    return np.where(_one(inputs), _one(inputs, 1), _one(inputs, 2))


ACTIVATIONS: Mapping[str, Callable[[Node, Inputs], Array]] = {
    "Abs": lambda node, inputs: np.abs(_one(inputs)),
    "Celu": _celu,
    "Clip": _clip,
    "Elu": _elu,
    "Erf": lambda node, inputs: np.asarray(erf(_one(inputs))),
    "Gelu": _gelu,
    "Greater": lambda node, inputs: _one(inputs) > _one(inputs, 1),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "LeakyRelu": _leaky_relu,
    "LogSoftmax": _log_softmax,
    "Mish": _mish,
    "Neg": lambda node, inputs: -_one(inputs),
    "PRelu": _prelu,
    "Pow": lambda node, inputs: np.power(_one(inputs), _one(inputs, 1)),
    "Relu": lambda node, inputs: np.maximum(_one(inputs), 0),
    "Selu": _selu,
    "Sigmoid": lambda node, inputs: sigmoid(_one(inputs)),
    "Softmax": _softmax,
    "Sqrt": lambda node, inputs: np.sqrt(_one(inputs)),
    "Softplus": lambda node, inputs: softplus(_one(inputs)),
    "Softsign": _softsign,
    "Swish": _swish,
    "Tanh": lambda node, inputs: np.tanh(_one(inputs)),
    "Where": _where,
}

"""The ONNX operators that normalize with the statistics of their input, applied to arrays (see graph.evaluate)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from masksparse_deploy.graph.model import Node

__all__ = ["NORMALIZATIONS", "epsilon_of", "normalized_axes"]

Array = npt.NDArray[Any]
Inputs = Sequence[Array | None]


def normalized_axes(node: Node, rank: int) -> tuple[int, ...]:
    """The axes over which mean and variance are taken."""
    if node.op == "InstanceNormalization":
        return tuple(range(2, rank))
    return tuple(range(int(node.attributes.get("axis", -1)) % rank, rank))


def epsilon_of(node: Node) -> float:
    """What is added to the variance."""
    return float(node.attributes.get("epsilon", 1e-5))


def _normalize(node: Node, inputs: Inputs) -> Array:
    x, scale = inputs[0], inputs[1]
    assert x is not None and scale is not None, "ONNX requires these inputs, the checker has verified it"
    shift = inputs[2] if len(inputs) > 2 else None
    axes = normalized_axes(node, x.ndim)
    centred = x - x.mean(axis=axes, keepdims=True)
    deviation = np.sqrt((centred**2).mean(axis=axes, keepdims=True) + x.dtype.type(epsilon_of(node)))
    if node.op == "InstanceNormalization":  # one factor for each channel
        shape = (-1,) + (1,) * (x.ndim - 2)
        scale, shift = scale.reshape(shape), None if shift is None else shift.reshape(shape)
    scaled: Array = centred / deviation * scale
    return scaled if shift is None else scaled + shift


NORMALIZATIONS: Mapping[str, Callable[[Node, Inputs], Array]] = {
    "InstanceNormalization": _normalize,
    "LayerNormalization": _normalize,
}

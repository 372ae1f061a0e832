"""The operators that change types, Cast, QuantizeLinear and DequantizeLinear, applied to arrays (see graph.evaluate)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.helper

from masksparse_deploy.graph.model import Graph, Node

__all__ = ["CONVERSIONS", "conversion_obstacle", "dequantize", "quantize"]

Array = npt.NDArray[Any]
Inputs = Sequence[Array | None]

_QUANTIZED_TYPES = ("int8", "uint8", "int16", "uint16", "int32")


def quantize(x: Array, scale: Array, zero_point: Array) -> Array:
    """ONNX QuantizeLinear: x / scale rounded to the nearest integer (ties to even) plus the zero point, saturated.

    Args:
        x: floats.
        scale: a scalar, or of the rank of `x` with one entry for each slice of an axis.
        zero_point: integers, the shape of `scale`; their dtype is that of the result.
    """
    limits = np.iinfo(zero_point.dtype)
    shifted = np.rint(x / scale) + zero_point.astype(np.float64)
    quantized: Array = np.clip(shifted, limits.min, limits.max).astype(zero_point.dtype)
    return quantized


def dequantize(x: Array, scale: Array, zero_point: Array) -> Array:
    """ONNX DequantizeLinear: (x - zero_point) scale in float64, for integers `x`; scale and zero point as in `quantize`."""
    difference = x.astype(np.float64) - zero_point.astype(np.float64)
    product: Array = difference * scale.astype(np.float64)
    return product


def conversion_obstacle(node: Node, graph: Graph) -> str | None:
    """Why one of these operators cannot be evaluated, or None."""
    if node.op == "Cast":
        to = node.attributes["to"]
        return None if _cast_type(to) is not None else f"Cast to {onnx.TensorProto.DataType.Name(to)}"
    if node.attributes.get("block_size", 0):
        return f"{node.op} in blocks"
    stored = _stored_type(node, graph)
    return None if stored in _QUANTIZED_TYPES else f"{node.op} of {stored}"


def _cast(node: Node, inputs: Inputs) -> Array:
    x, to = _present(inputs, 0), _cast_type(node.attributes["to"])
    assert to is not None, "refused by conversion_obstacle"
    return x if x.dtype.kind == to.kind == "f" else x.astype(to)


def _cast_type(to: int) -> np.dtype[Any] | None:
    """What a Cast makes here: float64 for every floating-point type, the type itself for integers and truth values."""
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(to))
    if dtype.name.startswith(("float", "bfloat")):
        return np.dtype(np.float64)
    return dtype if dtype.kind in "iub" else None


def _quantize(node: Node, inputs: Inputs) -> Array:
    x = _present(inputs, 0)
    return quantize(x, *_scale_and_zero_point(node, inputs, x.ndim))


def _dequantize(node: Node, inputs: Inputs) -> Array:
    x = _present(inputs, 0)
    return dequantize(x, *_scale_and_zero_point(node, inputs, x.ndim))


def _scale_and_zero_point(node: Node, inputs: Inputs, rank: int) -> tuple[Array, Array]:
    """Scalars, or arrays of `rank` axes with one entry for each slice of the node's axis."""
    scale = _present(inputs, 1)
    zero_point = inputs[2] if len(inputs) > 2 else None
    if zero_point is None:
        zero_point = np.zeros(scale.shape, dtype=_default_type(node))
    if scale.size == 1:
        return scale.reshape(()), zero_point.reshape(())
    axis = int(node.attributes.get("axis", 1)) % rank
    shape = [-1 if position == axis else 1 for position in range(rank)]
    return scale.reshape(shape), zero_point.reshape(shape)


def _stored_type(node: Node, graph: Graph) -> str:
    """The type that a QuantizeLinear writes or a DequantizeLinear reads."""
    if len(node.inputs) > 2 and node.inputs[2] in graph.constants:
        return graph.constants[node.inputs[2]].dtype.name
    if node.op == "DequantizeLinear" and node.inputs[0] in graph.constants:
        return graph.constants[node.inputs[0]].dtype.name
    return _default_type(node).name


def _default_type(node: Node) -> np.dtype[Any]:
    """Where there is no zero point: what the attribute says, or 8 bits without a sign."""
    to = node.attributes.get("output_dtype", 0) if node.op == "QuantizeLinear" else 0
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(to)) if to else np.dtype(np.uint8)


def _present(inputs: Inputs, position: int) -> Array:
    array = inputs[position]
    assert array is not None, "ONNX requires this input, the checker has verified it"
    return array


CONVERSIONS: Mapping[str, Callable[[Node, Inputs], Array]] = {
    "Cast": _cast,
    "DequantizeLinear": _dequantize,
    "QuantizeLinear": _quantize,
}

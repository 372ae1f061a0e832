"""One ONNX operator applied to arrays by ONNX's own reference implementation, in the precision of the arrays."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.helper
import onnx.shape_inference
from onnx.reference import ReferenceEvaluator

__all__ = ["apply"]

Array = npt.NDArray[Any]


def apply(node: onnx.NodeProto, inputs: Sequence[Array | None], *, opset: int) -> Array:
    """The first output of `node`.

    Args:
        node: the operator, of the standard domain.
        inputs: in its order; None where an optional one is left out.
        opset: version of the standard operators.

    Raises:
        Exception: what the reference implementation raises where it has no such operator, or the shapes do not fit.
    """
    if node.op_type in ("Erf", "Gelu"):
        (x,) = (array for array in inputs if array is not None)
        return _erf(x) if node.op_type == "Erf" else _gelu(node, x)
    if node.op_type == "HardSwish":
        return _hard_swish(inputs)
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):  # older versions mean the same and have no implementation
        opset = max(opset, 19)
    if node.op_type in ("AveragePool", "MaxPool") and inputs[0] is not None:
        node = _with_pads(node, inputs[0].shape[2:])
    feeds = {name: array for name, array in zip(node.input, inputs, strict=True) if array is not None}
    types = tuple((name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype)) for name, array in feeds.items())
    run = _evaluator(node.SerializeToString(deterministic=True), types, opset)
    results: Any = run.run([node.output[0]], feeds)
    return np.asarray(results[0])


def _erf(x: Array) -> Array:
    """The reference implementation rounds to float32 here."""
    return np.asarray(np.vectorize(math.erf, otypes=[np.float64])(x), dtype=x.dtype)


def _gelu(node: onnx.NodeProto, x: Array) -> Array:
    by_tanh = any(attribute.name == "approximate" and attribute.s == b"tanh" for attribute in node.attribute)
    gate = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)) if by_tanh else _erf(x / math.sqrt(2))
    product: Array = 0.5 * x * (1 + gate)
    return product


def _hard_swish(inputs: Sequence[Array | None]) -> Array:
    """Its definition has alpha = 1/6, which the reference implementation rounds to float32."""
    (x,) = (array for array in inputs if array is not None)
    product: Array = x * np.clip(x / 6 + 0.5, 0, 1)
    return product


def _with_pads(node: onnx.NodeProto, size: Sequence[int]) -> onnx.NodeProto:
    """The same pooling with its padding written out: the reference implementation takes SAME_LOWER for something else."""
    attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    if attributes.get("auto_pad", b"NOTSET") not in (b"SAME_LOWER", b"SAME_UPPER"):
        return node
    ones = (1,) * len(size)
    kernel, strides, dilations = (attributes.get(name) or ones for name in ("kernel_shape", "strides", "dilations"))
    totals = [
        max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0) for n, k, s, d in zip(size, kernel, strides, dilations, strict=True)
    ]
    smaller, larger = [total // 2 for total in totals], [total - total // 2 for total in totals]
    pads = smaller + larger if attributes["auto_pad"] == b"SAME_UPPER" else larger + smaller
    padded = onnx.NodeProto()
    padded.CopyFrom(node)
    del padded.attribute[:]
    padded.attribute.extend(attribute for attribute in node.attribute if attribute.name not in ("auto_pad", "pads"))
    padded.attribute.append(onnx.helper.make_attribute("pads", pads))
    return padded


@functools.lru_cache(maxsize=4096)
def _evaluator(node: bytes, types: tuple[tuple[str, int], ...], opset: int) -> ReferenceEvaluator:
    proto = onnx.NodeProto.FromString(node)
    inputs = [onnx.helper.make_tensor_value_info(name, element_type, None) for name, element_type in types]
    outputs = [onnx.ValueInfoProto(name=proto.output[0])]
    graph = onnx.helper.make_graph([proto], "one", inputs, outputs)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    # some operators are defined by others, which depend on the types
    return ReferenceEvaluator(onnx.shape_inference.infer_shapes(model))

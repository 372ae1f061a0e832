"""The values of the weights in NVIDIA's network definition, those included that its Python bindings do not show."""

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.numpy_helper

__all__ = ["UnreadableWeightError", "constant_values"]

Array = npt.NDArray[Any]

# Types that NumPy lacks and the bindings therefore keep to themselves, as ONNX calls them.
_ONNX_TYPES = {"BF16": onnx.TensorProto.BFLOAT16, "FP8": onnx.TensorProto.FLOAT8E4M3FN}


class UnreadableWeightError(Exception):
    """The network definition does not show a layer's weight; the message says why."""


def constant_values(weights: Any) -> tuple[Array, str]:
    """The values of a kernel or constant, flat, and the name of their type; float32 where NumPy lacks that type.

    Args:
        weights: what the bindings give: an array, or an object without values for types that NumPy lacks.

    Raises:
        UnreadableWeightError: of a type that is not read.
    """
    if isinstance(weights, np.ndarray):
        return weights.copy(), weights.dtype.name
    name = weights.dtype.name
    if name not in _ONNX_TYPES:
        raise UnreadableWeightError(f"its weights are {name}, which is not read")
    tensor = onnx.TensorProto(data_type=_ONNX_TYPES[name], dims=[weights.size], raw_data=_raw_bytes(weights))
    values: Array = onnx.numpy_helper.to_array(tensor).astype(np.float32)
    return values, "bfloat16" if name == "BF16" else "float8"


class _NativeWeights(ctypes.Structure):
    """nvinfer1::Weights, documented as a plain structure of these members."""

    _fields_ = (("type", ctypes.c_int32), ("values", ctypes.c_void_p), ("count", ctypes.c_int64))


def _raw_bytes(weights: Any) -> bytes:
    """The bytes of weights that the bindings do not show, from the structure that the Python object wraps.

    A bound object holds the pointer right behind its header. Type and count must be those that the bindings tell, so that
    another layout is noticed instead of read.
    """
    address = ctypes.c_void_p.from_address(id(weights) + object.__basicsize__).value
    if address is not None:
        native = _NativeWeights.from_address(address)
        if native.type == int(weights.dtype) and native.count == weights.size and native.values:
            return ctypes.string_at(native.values, weights.nbytes)
    raise UnreadableWeightError(f"its weights are {weights.dtype.name}, which this version of the package does not show")

"""The weights that layers of NVIDIA's network definition multiply by, followed back to the constants they come from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from masksparse_deploy.engine.preflight_values import UnreadableWeightError, constant_values

__all__ = ["LayerWeight", "weight_of"]

Array = npt.NDArray[Any]

_MOVES = ("IDENTITY", "SQUEEZE", "UNSQUEEZE", "SHUFFLE")


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerWeight:
    """A weight as its layer multiplies by it.

    Attributes:
        values: (out_channels, in_channels / groups, kernel ...) for a convolution, (in_channels, out_channels / groups,
            kernel ...) for a deconvolution, as stored otherwise; dequantised, and float32 where NumPy lacks the type.
        dtype: type of the constant it comes from, as "float16" or "int8".
        group_axis: the axis of the input channels.
        route: the kinds of layers between constant and product, in the order of the data.
    """

    values: Array
    dtype: str
    group_axis: int
    route: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Constant:
    values: Array
    dtype: str
    route: tuple[str, ...] = ()

    def then(self, kind: str, values: Array) -> "_Constant":
        return _Constant(values, self.dtype, (*self.route, kind.lower()))


def weight_of(trt: Any, layer: Any, producers: Mapping[str, Any]) -> LayerWeight:
    """The constant second factor of a convolution, deconvolution or matrix product.

    Args:
        trt: the module tensorrt_rtx.
        layer: of its network definition.
        producers: for each tensor name the layer that computes it.

    Raises:
        UnreadableWeightError: there is none, or it goes through something that is not followed.
    """
    if layer.type.name == "MATRIX_MULTIPLY":
        layer.__class__ = trt.IMatrixMultiplyLayer
        constant = _follow(trt, layer.get_input(1), producers)
        transposed = layer.op1 == trt.MatrixOperation.TRANSPOSE
        values = constant.values
        if values.ndim < 2:
            raise UnreadableWeightError("its weight is a vector: there are no groups of input channels to look at")
        # a product with a batch of matrices carries the weight with leading axes of length 1
        while values.ndim > 2 and values.shape[0] == 1:
            values = values[0]
        return LayerWeight(
            values=values,
            dtype=constant.dtype,
            group_axis=values.ndim - 1 if transposed else values.ndim - 2,
            route=constant.route,
        )
    forward = layer.type.name == "CONVOLUTION"
    layer.__class__ = trt.IConvolutionLayer if forward else trt.IDeconvolutionLayer
    kernel = layer.kernel
    if kernel.size:
        constant = _Constant(*constant_values(kernel))
        # kernels are flat: the axis that is left over is the one of the input channels
        shape = (layer.num_output_maps, -1) if forward else (-1, layer.num_output_maps // layer.num_groups)
        values = constant.values.reshape(*shape, *layer.kernel_size_nd)
    elif layer.num_inputs > 1:
        constant = _follow(trt, layer.get_input(1), producers)
        values = constant.values
    else:
        raise UnreadableWeightError("it has neither a kernel nor an input for one")
    return LayerWeight(values=values, dtype=constant.dtype, group_axis=1 if forward else 0, route=constant.route)


def _follow(trt: Any, tensor: Any, producers: Mapping[str, Any]) -> _Constant:
    """Evaluate a tensor that only constants go into."""
    layer = producers.get(tensor.name)
    if layer is None:
        raise UnreadableWeightError(f"its weight {tensor.name} is an input of the network")
    kind = layer.type.name
    if kind == "CONSTANT":
        layer.__class__ = trt.IConstantLayer
        values, dtype = constant_values(layer.weights)
        return _Constant(values.reshape(tuple(layer.shape)), dtype)
    if kind in _MOVES:
        inner = _follow(trt, layer.get_input(0), producers)
        return inner.then(kind, _moved(trt, layer, inner.values))
    if kind == "CAST":
        layer.__class__ = trt.ICastLayer
        inner = _follow(trt, layer.get_input(0), producers)
        return inner.then(kind, _cast(inner.values, layer.to_type.name))
    if kind in ("QUANTIZE", "DEQUANTIZE"):
        layer.__class__ = trt.IQuantizeLayer if kind == "QUANTIZE" else trt.IDequantizeLayer
        inner = _follow(trt, layer.get_input(0), producers)
        scale, zero_point = (
            _along(_follow(trt, layer.get_input(index), producers).values, inner.values.ndim, layer.axis)
            if layer.num_inputs > index
            else np.float32(0)
            for index in (1, 2)
        )
        step: Callable[..., Array] = _quantized if kind == "QUANTIZE" else _dequantized
        return inner.then(kind, step(inner.values, scale, zero_point))
    raise UnreadableWeightError(f"its weight is computed while the network runs, by {kind.lower()} {layer.name}")


def _moved(trt: Any, layer: Any, values: Array) -> Array:
    """A transposed or reshaped constant; a shuffle transposes, reshapes and transposes again."""
    shape = tuple(layer.get_output(0).shape)
    if any(length < 0 for length in shape):
        raise UnreadableWeightError(f"its weight has no fixed shape behind {layer.name}")
    if layer.type.name != "SHUFFLE":
        return values.reshape(shape)
    layer.__class__ = trt.IShuffleLayer
    first, second = list(layer.first_transpose)[: values.ndim], list(layer.second_transpose)[: len(shape)]
    between = [0] * len(shape)
    for axis, source in enumerate(second):
        between[source] = shape[axis]
    return values.transpose(first).reshape(between).transpose(second)


def _cast(values: Array, to_type: str) -> Array:
    """Only the casts that change which weights are zero are carried out; all others keep what they are given."""
    return values.astype(np.float16) if to_type == "HALF" else values


def _along(values: Array, rank: int, axis: int) -> Array:
    """One scale for all, or one for each index of `axis`."""
    if values.size == 1:
        return values.reshape(())
    return values.reshape([-1 if index == axis else 1 for index in range(rank)])


def _quantized(values: Array, scale: Array, zero_point: Array) -> Array:
    steps: Array = np.rint(values / scale) + zero_point
    return np.clip(steps, -128, 127).astype(np.float32)


def _dequantized(values: Array, scale: Array, zero_point: Array) -> Array:
    shifted: Array = values.astype(np.float32) - zero_point.astype(np.float32)
    return shifted * scale.astype(np.float32)

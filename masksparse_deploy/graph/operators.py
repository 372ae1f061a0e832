"""The array functions behind the operators of CNN classifiers, in the precision of their input (see graph.evaluate)."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "average_pool",
    "batch_normalization",
    "ceil_extension",
    "convolution",
    "max_pool",
    "pad_zeros",
    "pool_divisors",
    "resolve_pads",
    "sliding_windows",
    "transposed_convolution",
]

Array = npt.NDArray[Any]
Pads = tuple[int, int, int, int]

# Patches are gathered for as many samples at a time as fit in here: small enough for a CPU's cache, large enough for BLAS.
_PATCH_BYTES = 8 << 20


def resolve_pads(
    auto_pad: str,
    pads: Sequence[int],
    *,
    size: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> Pads:
    """The padding (top, left, bottom, right) that the ONNX attributes `auto_pad` and `pads` mean for an input of `size`."""
    if auto_pad == "NOTSET":
        top, left, bottom, right = pads
        return top, left, bottom, right
    if auto_pad == "VALID":
        return 0, 0, 0, 0
    before, after = [], []
    for length, extent, stride, dilation in zip(size, kernel, strides, dilations, strict=True):
        total = max((math.ceil(length / stride) - 1) * stride + (extent - 1) * dilation + 1 - length, 0)
        small, large = total // 2, total - total // 2
        before.append(small if auto_pad == "SAME_UPPER" else large)
        after.append(large if auto_pad == "SAME_UPPER" else small)
    return before[0], before[1], after[0], after[1]


def pad_zeros(x: Array, pads: Pads, *, value: float = 0.0) -> Array:
    """`x` (count, channels, height, width) with `value` around its height and width."""
    top, left, bottom, right = pads
    if not any(pads):
        return x
    padded: Array = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=value)
    return padded


def sliding_windows(x: Array, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int] = (1, 1)) -> Array:
    """A view (count, channels, out_height, out_width, kernel_h, kernel_w) of `x` (count, channels, height, width)."""
    extents = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(x, extents, axis=(2, 3))
    view: Array = windows[:, :, :: strides[0], :: strides[1], :: dilations[0], :: dilations[1]]
    return view


def convolution(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    strides: Sequence[int] = (1, 1),
    pads: Pads = (0, 0, 0, 0),
    dilations: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Array:
    """A two-dimensional convolution with zero padding, as ONNX Conv (a cross-correlation).

    Args:
        x: (count, in_channels, height, width).
        weight: (out_channels, in_channels / groups, kernel_h, kernel_w), the dtype of `x`.
        bias: (out_channels,) or None.
        strides: (height, width).
        pads: (top, left, bottom, right).
        dilations: (height, width).
        groups: input and output channels are split into that many independent convolutions.

    Returns:
        (count, out_channels, out_height, out_width), the dtype of `x`.
    """
    out_channels, group_channels, kernel_h, kernel_w = weight.shape
    windows = sliding_windows(pad_zeros(x, pads), (kernel_h, kernel_w), strides, dilations)
    count, channels, out_h, out_w = windows.shape[:4]
    taps, positions = group_channels * kernel_h * kernel_w, out_h * out_w
    kernel = weight.reshape(groups, out_channels // groups, taps)
    out = np.empty((count, groups, out_channels // groups, positions), dtype=x.dtype)
    step = max(1, _PATCH_BYTES // max(1, channels * kernel_h * kernel_w * positions * x.itemsize))
    for start in range(0, count, step):
        part = windows[start : start + step]
        patches = part.transpose(0, 1, 4, 5, 2, 3).reshape(len(part), groups, taps, positions)
        np.matmul(kernel, patches, out=out[start : start + step])
    out = out.reshape(count, out_channels, out_h, out_w)
    if bias is not None:
        out += bias[:, None, None]
    return out


def transposed_convolution(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    strides: Sequence[int] = (1, 1),
    pads: Pads = (0, 0, 0, 0),
    dilations: Sequence[int] = (1, 1),
    output_padding: Sequence[int] = (0, 0),
    groups: int = 1,
) -> Array:
    """ONNX ConvTranspose in two dimensions, the transpose of `convolution` as a linear map.

    Computed as a convolution, with the kernel turned by half a turn, of `x` with stride - 1 zeros between its rows and columns.

    Args:
        x: (count, in_channels, height, width).
        weight: (in_channels, out_channels / groups, kernel_h, kernel_w), the dtype of `x`.
        bias: (out_channels,) or None.
        strides: (height, width).
        pads: (top, left, bottom, right), cut off the output; what is negative is added.
        dilations: (height, width).
        output_padding: rows added at the bottom and columns at the right, where input still reaches.
        groups: input and output channels are split into that many independent convolutions.

    Returns:
        (count, out_channels, out_height, out_width), the dtype of `x`.
    """
    in_channels, group_outputs, *kernel = weight.shape
    spread = np.zeros((*x.shape[:2], *((n - 1) * s + 1 for n, s in zip(x.shape[2:], strides, strict=True))), dtype=x.dtype)
    spread[:, :, :: strides[0], :: strides[1]] = x
    reach = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
    around = [reach[axis] - pads[axis] for axis in (0, 1)]
    around += [reach[axis] - pads[axis + 2] + output_padding[axis] for axis in (0, 1)]
    top, left, bottom, right = around
    rows = slice(max(-top, 0), spread.shape[2] - max(-bottom, 0))
    columns = slice(max(-left, 0), spread.shape[3] - max(-right, 0))
    padded = pad_zeros(spread[:, :, rows, columns], (max(top, 0), max(left, 0), max(bottom, 0), max(right, 0)))
    turned = weight[:, :, ::-1, ::-1].reshape(groups, in_channels // groups, group_outputs, *kernel)
    turned = turned.swapaxes(1, 2).reshape(groups * group_outputs, in_channels // groups, *kernel)
    return convolution(padded, turned, bias, dilations=dilations, groups=groups)


def ceil_extension(size: Sequence[int], *, kernel: Sequence[int], strides: Sequence[int], pads: Pads) -> tuple[int, int]:
    """How far the last windows of a pooling with ceil_mode reach beyond the padded (height, width).

    A window that would begin behind the input, in the padding at the end, is left out, as ONNX demands.
    """
    extra = []
    for axis, (length, k, s) in enumerate(zip(size, kernel, strides, strict=True)):
        before, padded = pads[axis], length + pads[axis] + pads[axis + 2]
        count = math.ceil((padded - k) / s) + 1
        if (count - 1) * s >= length + before:
            count -= 1
        extra.append(max((count - 1) * s + k - padded, 0))
    return extra[0], extra[1]


def max_pool(x: Array, *, kernel: Sequence[int], strides: Sequence[int], pads: Pads) -> Array:
    """ONNX MaxPool without dilation: padding never wins."""
    windows = sliding_windows(pad_zeros(x, pads, value=-np.inf), kernel, strides)
    highest: Array = functools.reduce(np.maximum, _taps(windows))
    return highest


def average_pool(
    x: Array,
    *,
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Pads,
    count_include_pad: bool,
    extension: tuple[int, int] = (0, 0),
) -> Array:
    """ONNX AveragePool without dilation; padded zeros count as elements only with `count_include_pad`, the extension never."""
    padded = pad_zeros(pad_zeros(x, pads), (0, 0, *extension))
    total: Array = functools.reduce(np.add, _taps(sliding_windows(padded, kernel, strides)))
    if not any(extension) and (count_include_pad or not any(pads)):
        return np.asarray(total / math.prod(kernel))
    divisors = pool_divisors(
        x.shape[2:], kernel=kernel, strides=strides, pads=pads, count_include_pad=count_include_pad, extension=extension
    )
    return np.asarray(total / divisors.astype(x.dtype))


def pool_divisors(
    size: Sequence[int],
    *,
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Pads,
    count_include_pad: bool,
    extension: tuple[int, int] = (0, 0),
) -> Array:
    """By what each window's sum is divided in `average_pool`, float64 (1, 1, out_height, out_width)."""
    counted = pad_zeros(np.ones((1, 1, *size)), pads, value=1.0 if count_include_pad else 0.0)
    windows = sliding_windows(pad_zeros(counted, (0, 0, *extension)), kernel, strides)
    divisors: Array = functools.reduce(np.add, _taps(windows))
    return divisors


def batch_normalization(x: Array, scale: Array, shift: Array, mean: Array, variance: Array, *, epsilon: float) -> Array:
    """Inference-mode batch normalization over axis 1; the last four arrays are (channels,)."""
    shape = (-1,) + (1,) * (x.ndim - 2)
    factor = scale / np.sqrt(variance + x.dtype.type(epsilon))
    normalized: Array = (x - mean.reshape(shape)) * factor.reshape(shape) + shift.reshape(shape)
    return normalized


def _taps(windows: Array) -> list[Array]:
    return [windows[..., row, column] for row in range(windows.shape[-2]) for column in range(windows.shape[-1])]

"""Convolutions with stride and dilation as convolutions without, on a rearranged input; docs/bounds.md, section 1."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["polyphase"]

Array = npt.NDArray[Any]


def polyphase(kernel: Array, *, strides: Sequence[int], dilations: Sequence[int]) -> tuple[Array, tuple[int, ...]]:
    """The kernel of the same operator with stride 1 on a space-to-depth input.

    Args:
        kernel: (out_channels, in_channels, *taps), with any number of spatial axes.
        strides: one for each spatial axis.
        dilations: one for each spatial axis.

    Returns:
        The kernel (out_channels, in_channels x phases, *taps), with ceil(extent / stride) taps along each axis and without the
        phases that no tap reads, and by how much the input grid shrinks along each spatial axis.
    """
    shrink = []
    for axis, (stride, dilation) in enumerate(zip(strides, dilations, strict=True), start=2):
        common = math.gcd(stride, dilation)  # only every common-th input is read at all: a restriction, which contracts
        stride, dilation = stride // common, dilation // common
        if stride == 1:  # the dilated operator is one undilated operator on each of `dilation` interleaved grids
            shrink.append(common * dilation)
            continue
        shrink.append(common * stride)
        taps = kernel.shape[axis]
        extent = (taps - 1) * dilation + 1
        length = math.ceil(extent / stride) * stride
        spread = np.zeros((*kernel.shape[:axis], length, *kernel.shape[axis + 1 :]), dtype=kernel.dtype)
        index = [slice(None)] * kernel.ndim
        index[axis] = slice(0, extent, dilation)
        spread[tuple(index)] = kernel
        split = spread.reshape(*kernel.shape[:axis], length // stride, stride, *kernel.shape[axis + 1 :])
        read = sorted({tap * dilation % stride for tap in range(taps)})  # fewer taps than phases: the others read nothing
        phases = np.moveaxis(split, axis + 1, 2)[:, :, read]  # (out_channels, in_channels, phase, ...)
        kernel = phases.reshape(kernel.shape[0], -1, *phases.shape[3:])
    return kernel, tuple(shrink)
